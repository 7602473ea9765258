#!/usr/bin/env python3
"""An independent reference of DIME, its BERT, its losses and its optimiser step, in float64.

Written from the maths alone, with PyTorch for arrays and gradients, to check Crossweave against
numbers that Crossweave did not make. It reads and writes the fixture form: one safetensors file a
case, `spec` in its metadata, tensors `param.`, `in.`, `out.`, `grad.`, `step.`.

    python tools/reference.py OUT_DIR [--seed N] [--cases NAME ..]   write fixtures
    python tools/reference.py --verify FILE ..                       recompute and compare fixtures
    python tools/reference.py --list                                 name the cases

Needs: pip install torch safetensors numpy
"""

import argparse
import json
import math
import os
import sys

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

CELLS = ("ric", "glgc", "imrc", "cmrc")
FROZEN = "txt_enc.bert."
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


# ---- small pieces ---------------------------------------------------------------------------------


def linear(p, name, x):
    return x @ p[name + ".weight"].T + p[name + ".bias"]


def normalise(x, dim=-1):
    return x / torch.linalg.vector_norm(x, dim=dim, keepdim=True).clamp_min(1e-12)


def largest(x, dim):
    """The maximum along an axis; the gradient goes to the first of equals."""
    first = x.argmax(dim, keepdim=True)
    return x.gather(dim, first).squeeze(dim)


def mean_of(x, dim, true=None):
    """The mean along an axis, over the places that `true` marks (a bool array that broadcasts to x)."""
    if true is None:
        return x.mean(dim)
    true = true.expand_as(x)
    return torch.where(true, x, 0.0).sum(dim) / true.sum(dim)


def max_of(x, dim, true=None):
    return largest(x if true is None else torch.where(true, x, -math.inf), dim)


def hidden(x, true, value=0.0):
    return x if true is None else torch.where(true, x, value)


def batch_norm(p, name, x, train, buffers, true=None):
    """x: [rows, channels]. In training, updated running statistics go into `buffers`."""
    if train:
        counted = x if true is None else x[true]
        n = counted.shape[0]
        mean, var = counted.mean(0), counted.var(0, unbiased=False)
        moved = lambda old, new: 0.9 * p[f"{name}.{old}"] + 0.1 * new.detach()
        buffers[f"{name}.running_mean"] = moved("running_mean", mean)
        buffers[f"{name}.running_var"] = moved("running_var", var * (n / (n - 1)))
        buffers[f"{name}.num_batches_tracked"] = p[f"{name}.num_batches_tracked"] + 1
    else:
        mean, var = p[f"{name}.running_mean"], p[f"{name}.running_var"]
    return (x - mean) / torch.sqrt(var + 1e-5) * p[f"{name}.weight"] + p[f"{name}.bias"]


# ---- BERT -----------------------------------------------------------------------------------------


def layer_norm(p, name, x):
    mean = x.mean(-1, keepdim=True)
    var = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(var + 1e-12) * p[name + ".weight"] + p[name + ".bias"]


def gelu(x):
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def bert(p, cfg, ids, types, mask, pre=""):
    """The outputs of the embeddings and of every layer, and the pooled first token."""
    heads, width = cfg["num_attention_heads"], cfg["hidden_size"]
    emb = pre + "embeddings."
    x = p[emb + "word_embeddings.weight"][ids] + p[emb + "token_type_embeddings.weight"][types]
    x = layer_norm(p, emb + "LayerNorm", x + p[emb + "position_embeddings.weight"][: ids.shape[1]])
    out = {"embeddings": x}
    bias = (1 - mask.to(x.dtype))[:, None, None, :] * -10000.0
    split = lambda y: y.unflatten(-1, (heads, width // heads)).transpose(1, 2)
    for i in range(cfg["num_hidden_layers"]):
        at = f"{pre}encoder.layer.{i}."
        q, k, v = (split(linear(p, f"{at}attention.self.{n}", x)) for n in ("query", "key", "value"))
        weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(width // heads) + bias, -1)
        heard = (weights @ v).transpose(1, 2).flatten(-2)
        x = layer_norm(p, at + "attention.output.LayerNorm", x + linear(p, at + "attention.output.dense", heard))
        wide = gelu(linear(p, at + "intermediate.dense", x))
        x = layer_norm(p, at + "output.LayerNorm", x + linear(p, at + "output.dense", wide))
        out[f"layer.{i}"] = x
    out["pooled"] = torch.tanh(linear(p, pre + "pooler.dense", x[:, 0]))
    return out


# ---- DIME -----------------------------------------------------------------------------------------


def encode_text(p, x, true=None):
    """x: [captions, words, hidden] -> sentences [captions, embed], words [captions, words, embed].

    `true` [captions, words, 1] marks the words that count, where padding does not."""
    words = x.shape[1]
    x = hidden(x, true)
    embedded = linear(p, "txt_enc.fc", x)
    convs = []
    for k, (before, after) in enumerate(((0, 0), (0, 1), (1, 1))):
        w = p[f"txt_enc.convs1.{k}.weight"][:, 0]
        padded = torch.nn.functional.pad(x, (0, 0, before, after))
        y = p[f"txt_enc.convs1.{k}.bias"]
        for j in range(k + 1):
            y = y + padded[:, j : j + words] @ w[:, j].T
        convs.append(torch.relu(y))
    local = linear(p, "txt_enc.mapping", torch.cat(convs, -1)) + embedded
    pooled = torch.cat([max_of(c, 1, true) for c in convs], -1)
    sentence = linear(p, "txt_enc.mapping", pooled) + mean_of(embedded, 1, true)
    return normalise(sentence), normalise(local)


def encode_images(p, cfg, images, train, buffers):
    raw = linear(p, "img_enc.fc", images)
    img = raw.mean(1)
    if cfg["direction"] == "t2i":
        img = batch_norm(p, "img_enc.bn", img, train, buffers)
    if not cfg["no_imgnorm"]:
        img = normalise(img)
    return img.abs() if cfg["use_abs"] else img, normalise(raw)


def router(p, name, x, true):
    y = torch.relu(linear(p, name + ".mlp.0", mean_of(x, -2, true)))
    return torch.relu(torch.tanh(linear(p, name + ".mlp.2", y)))


def reason(p, name, x, heads, true):
    """Self-attention of an item's rows, then a feed-forward layer, both with a skip."""
    split = lambda y: y.unflatten(-1, (heads, -1)).transpose(-3, -2)
    q, k, v = (split(linear(p, f"{name}.sa.att_layer.linears.{i}", x)) for i in range(3))
    keys = None if true is None else true.transpose(-1, -2)[..., None, :, :]
    weights = torch.softmax(hidden(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), keys, -math.inf), -1)
    y = x + (weights @ v).transpose(-3, -2).flatten(-2)
    ffn = f"{name}.sa.feed_forward_layer."
    return y + linear(p, ffn + "fc2", torch.relu(linear(p, ffn + "fc1", y)))


def guide(p, name, x, whole, true):
    z = normalise(hidden(linear(p, name + ".fc_1", x) * whole, true), -2)
    return (1 + z) * x


def refine(p, name, x, context, mask, cfg, true):
    scores = context @ x.transpose(-1, -2)  # [.., context, query]
    queries = None if true is None else true.transpose(-1, -2)
    scores = hidden(scores, queries)
    norm = cfg["raw_feature_norm_CMRC"]
    leaky = torch.where(scores > 0, scores, 0.1 * scores)
    if norm == "clipped_l2norm":
        scores = normalise(leaky)
    elif norm == "l2norm":
        scores = scores / (torch.sqrt((scores**2).sum(-1, keepdim=True)) + 1e-8)
    elif norm == "softmax":
        scores = torch.softmax(hidden(scores, queries, -math.inf), -1)
    elif norm == "clipped":
        scores = leaky
    elif norm != "no_norm":
        raise SystemExit(f"raw_feature_norm_CMRC {norm} does not work in the original either")
    scores = scores * cfg["lambda_softmax_CMRC"]
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    w = torch.softmax(scores, -2).transpose(-1, -2) @ context
    name = name + ".refine"
    mixed = x * torch.tanh(linear(p, name + ".fc_scale", w)) + linear(p, name + ".fc_shift", w)
    return linear(p, name + ".fc_2", torch.relu(linear(p, name + ".fc_1", mixed))) + x


def interact(p, cfg, img, rgn, stc, wrd, lengths, true, train, out, buffers):
    """The three routed layers and the score of every pair: [images, captions]."""
    i2t = cfg["direction"] == "i2t"
    n_img, n_cap = img.shape[0], stc.shape[0]
    if i2t:
        item, whole, context = rgn, stc[None, :, None], wrd[None]
        inside = torch.arange(wrd.shape[1])[None, :] < lengths[:, None]
        mask = inside[None, :, :, None]
        per_item = lambda t: t[:, None]
        true = None  # rows are regions: all count
    else:
        item, whole, context, mask = wrd, img[:, None, None], rgn[:, None], None
        per_item = lambda t: t[None]
    heads = cfg["num_head_IMRC"]

    def cells(layer, inputs):
        """Cell outputs and raw routes; inputs: one a cell. Layer 0 takes items, the others pairs."""
        at = f"itr_module.dynamic_itr_l{layer}."
        pairs = [per_item(x) if layer == 0 else x for x in inputs]
        made = (
            torch.relu(inputs[0]),
            guide(p, at + "glgc", pairs[1], whole, true),
            reason(p, at + "imrc", inputs[2], heads, true),
            refine(p, at + "cmrc", pairs[3], context, mask, cfg, true),
        )
        routes = [router(p, f"{at}{c}.router", x, true) for c, x in zip(CELLS, inputs)]
        for c, e, r in zip(CELLS, made, routes):
            out[f"router_l{layer}.{c}"] = r
            out[f"cell_l{layer}.{c}"] = e
        if layer == 0:
            made = (per_item(made[0]), made[1], per_item(made[2]), made[3])
        return made, torch.stack(routes, -1)  # [.., out, cell]

    def mix(layer, made, routes):
        total = routes.sum(-1)
        gate = (total < 1e-4).to(routes.dtype).detach()
        paths = routes / (total[..., None] + 1e-8)
        out[f"path_l{layer}"] = paths
        if layer == 0:
            paths, gate = per_item(paths), per_item(gate)
        weight = lambda t: t[..., None, None]
        mixed = []
        for i in range(routes.shape[-2]):
            y = weight(gate[..., i]) * made[0]
            for j, e in enumerate(made):
                y = y + weight(paths[..., i, j]) * e
            out[f"aggr_l{layer}.{i}"] = y
            mixed.append(y)
        return mixed

    made, routes = cells(0, [item] * 4)
    x = mix(0, made, routes)
    made, routes = cells(1, x)
    x = mix(1, made, routes)
    made, routes = cells(2, x)
    out["path_l2"] = routes
    routes = routes[..., 0, :]
    gate = (routes < 1e-4 / 4).to(routes.dtype).detach()
    y = sum(
        routes[..., j, None, None] * made[j] + gate[..., j, None, None] * x[j] for j in range(4)
    ) / (gate + routes).sum(-1)[..., None, None]
    out["aggr_l2"] = y

    counted = None if true is None else true[..., 0].expand(y.shape[:-1]).reshape(-1)
    flat = batch_norm(p, "itr_module.bn", y.reshape(-1, y.shape[-1]), train, buffers, counted).reshape(y.shape)
    pooled = normalise(mean_of(flat, -2, true) + max_of(flat, -2, true))
    out["sims"] = (pooled * (stc[None] if i2t else img[:, None])).sum(-1)

    first = per_item(out["path_l0"].flatten(-2)).expand(n_img, n_cap, 16)
    vector = torch.cat([first, out["path_l1"].flatten(-2), out["path_l2"].flatten(-2)], -1)
    out["paths_mean"] = vector.mean(1 if i2t else 0)
    out["path_map"] = linear(p, "itr_module.path_mapping", out["paths_mean"])


def triplet(scores, margin, max_violation):
    """The hinge over an images x captions matrix whose leading square's diagonal matches."""
    n = min(scores.shape)
    diagonal = scores.diagonal()[:n]
    rows, columns = scores[:n], scores[:, :n]
    off = lambda t: torch.ones_like(t) - torch.eye(*t.shape, dtype=t.dtype)
    cost_s = torch.relu(margin + rows - diagonal[:, None]) * off(rows)
    cost_i = torch.relu(margin + columns - diagonal[None, :]) * off(columns)
    if max_violation:
        cost_s, cost_i = largest(cost_s, 1), largest(cost_i, 0)
    return cost_s.sum() + cost_i.sum()


def dime(p, cfg, inputs, train):
    """Every output by name, and the buffers that a training step changes."""
    out, buffers = {}, {}
    ids, types, mask = (inputs[n].long() for n in ("input_ids", "token_type_ids", "attention_mask"))
    last = bert(p, cfg["bert_config"], ids, types, mask, FROZEN)
    x = last[f"layer.{cfg['bert_config']['num_hidden_layers'] - 1}"].detach()
    out["bert_last"] = x
    true = mask.bool()[..., None] if cfg.get("mask_padding") else None
    stc, wrd = out["stc_emb"], out["wrd_emb"] = encode_text(p, x, true)
    img, rgn = out["img_emb"], out["rgn_emb"] = encode_images(p, cfg, inputs["images"], train, buffers)
    interact(p, cfg, img, rgn, stc, wrd, inputs["lengths"].long(), true, train, out, buffers)
    if not train:
        return out, buffers
    out["bert_emb"] = normalise(mean_of(x, 1, true))
    path = normalise(out["path_map"])
    label = out["bert_emb"]
    if img.shape[0] < stc.shape[0]:
        label = label[: img.shape[0]]
    out["sim_paths"], out["sim_label"] = path @ path.T, label @ label.T
    out["loss_path"] = ((out["sim_paths"] - out["sim_label"]) ** 2).sum() / cfg["batch_size"]
    out["loss_rank"] = triplet(out["sims"], cfg["margin"], cfg["max_violation"])
    out["loss_total"] = out["loss_rank"] + cfg["trade_off"] * out["loss_path"]
    return out, buffers


# ---- optimiser ------------------------------------------------------------------------------------


def clip(grads, limit):
    """The total norm before clipping, and the clipped gradients."""
    norm = torch.sqrt(sum((g**2).sum() for g in grads.values()))
    scale = limit / (norm + 1e-6) if limit > 0 else torch.tensor(1.0)
    return norm, {n: g * min(1.0, float(scale)) for n, g in grads.items()}


class Adam:
    """Each parameter counts its own steps, so that one without a gradient stands still."""

    def __init__(self):
        self.state = {}

    def step(self, params, grads, lr):
        for name, g in grads.items():
            t, m, v = self.state.get(name, (0, torch.zeros_like(g), torch.zeros_like(g)))
            t, m, v = t + 1, 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            self.state[name] = (t, m, v)
            rate = lr / (1 - 0.9**t)
            params[name] = params[name] - rate * m / (torch.sqrt(v) / math.sqrt(1 - 0.999**t) + 1e-8)


# ---- a case: tensors in, tensors out --------------------------------------------------------------


def run_dime(cfg, mode, given):
    train = mode == "train"
    p, leaves = {}, {}
    for name, value in given["param"].items():
        p[name] = value
        if train and value.is_floating_point() and not name.startswith(FROZEN) and not name.endswith(BUFFERS):
            p[name] = leaves[name] = value.clone().requires_grad_()
    out, buffers = dime(p, cfg, given["in"], train)
    result = {"out": out, "grad": {}, "step": {}}
    if not train:
        return result
    for name in [n for n in out if n.startswith(("cell_", "aggr_l0", "aggr_l1"))]:
        del out[name]
    grads = torch.autograd.grad(out["loss_total"], list(leaves.values()), allow_unused=True)
    result["grad"] = {n: g for n, g in zip(leaves, grads) if g is not None}
    out["grad_norm"], clipped = clip(result["grad"], cfg["grad_clip"])
    after = {n: v.detach() for n, v in p.items() if not n.startswith(FROZEN)}
    after.update(buffers)
    Adam().step(after, clipped, cfg["learning_rate"])
    result["step"] = after
    return result


def run_bert(cfg, mode, given):
    i = given["in"]
    ids, types, mask = (i[n].long() for n in ("input_ids", "token_type_ids", "attention_mask"))
    return {"out": bert(given["param"], cfg, ids, types, mask)}


def run_loss(cfg, mode, given):
    scores = given["in"]["scores"].clone().requires_grad_()
    loss = triplet(scores, cfg["margin"], cfg["max_violation"])
    return {"out": {"loss": loss}, "grad": {"scores": torch.autograd.grad(loss, scores)[0]}}


def run_adam(cfg, mode, given):
    params, optimiser, norms, result = dict(given["param"]), Adam(), [], {"step": {}}
    for t in range(cfg["steps"]):
        at = f"grad.{t}."
        grads = {n[len(at) :]: g for n, g in given["in"].items() if n.startswith(at)}
        norm, grads = clip(grads, cfg["grad_clip"])
        norms.append(norm)
        optimiser.step(params, grads, cfg["lr_from_step_4"] if t >= 4 else cfg["learning_rate"])
        result["step"].update({f"{t}.{n}": v for n, v in params.items()})
    result["out"] = {"grad_norms": torch.stack(norms)}
    return result


RUNS = {"dime": run_dime, "bert": run_bert, "loss": run_loss, "adam": run_adam}
# The largest deviation of a float64 run from a file that stores f32.
BOUNDS = {"out": 1e-6, "grad": 1e-6, "step": 1e-5, "grad2": 1e-6, "step2": 1e-5}
# A file may leave out intermediates and parts of a second step, but no gradient.
IN_PART = ("out", "grad2", "step2")


def read_fixture(path):
    with safe_open(path, "np") as file:
        spec = json.loads(file.metadata()["spec"])
        groups = {group: {} for group in ("param", "in", *BOUNDS)}
        for key in file.keys():
            group, name = key.split(".", 1)
            array = torch.from_numpy(file.get_tensor(key))
            groups[group][name] = array.double() if array.is_floating_point() else array
    return spec, groups


def compare(ours, theirs, bound, top):
    """The ratio to the bound, by 2-norm and 10x looser by inf-norm; under 1 passes."""
    if ours is None or ours.shape != theirs.shape:
        return math.inf
    if not theirs.is_floating_point():
        return 0.0 if torch.equal(ours.to(theirs.dtype), theirs) else math.inf
    a, b = ours.detach().reshape(-1), theirs.reshape(-1)
    if b.numel() == 0:
        return 0.0
    if not bool(torch.isfinite(a).all()):
        return math.inf
    peak = float(b.abs().max())
    if peak <= 1e-10 * top or peak == 0:
        return float(a.abs().max()) / (1e-6 * top if top > 0 else 1e-7)
    by_norm = float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b))
    return max(by_norm / bound, float((a - b).abs().max()) / peak / (10 * bound))


def rounded_inputs(given):
    """The same case with every number moved as storing it in f32 would have moved it."""
    rng = torch.Generator().manual_seed(1)
    moved = lambda t: t * (1 + 3e-8 * torch.randn(t.shape, generator=rng, dtype=t.dtype))
    move_all = lambda group: {n: moved(t) if t.is_floating_point() else t for n, t in group.items()}
    return {**given, "param": move_all(given["param"]), "in": move_all(given["in"])}


def verify(paths):
    worst, failed = {}, 0
    for path in paths:
        spec, given = read_fixture(path)
        if spec["system"] not in RUNS:
            print(f"skip  {os.path.basename(path)}: system {spec['system']}")
            continue
        run = RUNS[spec["system"]]
        made, moved = run(spec["config"], spec["mode"], given), None
        line = []
        for family, bound in BOUNDS.items():
            theirs, ours = given[family], made.get(family, {})
            floats = [float(t.abs().max()) for t in theirs.values() if t.is_floating_point() and t.numel()]
            top = max(floats, default=0.0)
            rows = [(compare(ours.get(n), t, bound, top) * bound, n) for n, t in theirs.items()]
            extra = sorted(set(ours) - set(theirs)) if theirs and family not in IN_PART else []
            ratio, name = max(rows, default=(0.0, "-"))
            excuse = ""
            if bound < ratio < math.inf:
                # Its maker's inputs need not have been f32: no run can be nearer than their rounding moves it.
                moved = moved or run(spec["config"], spec["mode"], rounded_inputs(given))
                reach = {n: compare(ours[n], moved[family][n].detach(), bound, top) * bound for _, n in rows}
                if all(r <= max(bound, reach[n]) for r, n in rows):
                    excuse = f", which rounding its inputs moves by {reach[name]:.1e}"
            bad = (ratio > bound and not excuse) or bool(extra)
            failed += bad
            if rows:
                line.append(f"{family} {len(rows)} worst {ratio:.1e} ({name}{excuse}){' FAIL' if bad else ''}")
                if extra:
                    line.append(f"not in the file: {', '.join(extra[:5])}")
                key = (spec["system"], family)
                worst[key] = max(worst.get(key, 0.0), ratio)
        print(f"{os.path.basename(path)}: " + "; ".join(line))
    for (system, family), ratio in sorted(worst.items()):
        print(f"{system:5} {family:5} worst ratio {ratio:.2e}, bound {BOUNDS[family]:.0e}")
    return 1 if failed else 0


# ---- making fixtures ------------------------------------------------------------------------------


class Draw:
    """Random arrays that f32 holds exactly, as float64."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def _exact(self, array):
        return torch.from_numpy(np.asarray(array, dtype=np.float32).astype(np.float64))

    def normal(self, *shape, std=1.0, mean=0.0):
        return self._exact(self.rng.normal(mean, std, shape))

    def uniform(self, low, high, *shape):
        return self._exact(self.rng.uniform(low, high, shape))

    def integers(self, low, high, shape):
        return torch.from_numpy(self.rng.integers(low, high, shape).astype(np.int32))

    def linear(self, p, name, n_in, n_out, std=None, shape=None):
        p[name + ".weight"] = self.normal(*(shape or (n_out, n_in)), std=std or 1 / math.sqrt(n_in))
        p[name + ".bias"] = self.normal(n_out, std=0.1)

    def norm(self, p, name, n):
        p[name + ".weight"] = self.uniform(0.7, 1.3, n)
        p[name + ".bias"] = self.normal(n, std=0.15)

    def batch_norm(self, p, name, n):
        self.norm(p, name, n)
        p[name + ".running_mean"] = self.normal(n, std=0.2)
        p[name + ".running_var"] = self.uniform(0.4, 1.4, n)
        p[name + ".num_batches_tracked"] = self.integers(1, 20, ())

    def bert(self, cfg, pre=""):
        p, width = {}, cfg["hidden_size"]
        emb = pre + "embeddings."
        p[emb + "word_embeddings.weight"] = self.normal(cfg["vocab_size"], width)
        p[emb + "position_embeddings.weight"] = self.normal(cfg["max_position_embeddings"], width, std=0.4)
        p[emb + "token_type_embeddings.weight"] = self.normal(cfg["type_vocab_size"], width, std=0.4)
        self.norm(p, emb + "LayerNorm", width)
        for i in range(cfg["num_hidden_layers"]):
            at = f"{pre}encoder.layer.{i}."
            for n in ("query", "key", "value"):
                self.linear(p, f"{at}attention.self.{n}", width, width)
            self.linear(p, at + "attention.output.dense", width, width)
            self.norm(p, at + "attention.output.LayerNorm", width)
            self.linear(p, at + "intermediate.dense", width, cfg["intermediate_size"])
            self.linear(p, at + "output.dense", cfg["intermediate_size"], width)
            self.norm(p, at + "output.LayerNorm", width)
        self.linear(p, pre + "pooler.dense", width, width)
        return p

    def dime(self, cfg, routes):
        d, width, q = cfg["embed_size"], cfg["bert_config"]["hidden_size"], cfg["hid_router"]
        p = self.bert(cfg["bert_config"], FROZEN)
        self.linear(p, "txt_enc.fc", width, d)
        for k in (1, 2, 3):
            self.linear(p, f"txt_enc.convs1.{k - 1}", k * width, d, shape=(d, 1, k, width))
        self.linear(p, "txt_enc.mapping", 3 * d, d)
        self.linear(p, "img_enc.fc", cfg["img_dim"], d)
        self.batch_norm(p, "img_enc.bn", d)
        self.batch_norm(p, "itr_module.bn", d)
        self.linear(p, "itr_module.path_mapping", 36, cfg["path_hid"])
        for layer in range(3):
            at = f"itr_module.dynamic_itr_l{layer}."
            for i in range(3):
                self.linear(p, f"{at}imrc.sa.att_layer.linears.{i}", d, d)
            self.linear(p, at + "imrc.sa.feed_forward_layer.fc1", d, cfg["hid_IMRC"])
            self.linear(p, at + "imrc.sa.feed_forward_layer.fc2", cfg["hid_IMRC"], d)
            for n in ("fc_1", "fc_2"):
                self.linear(p, f"{at}glgc.{n}", d, d)
            for n in ("fc_scale", "fc_shift", "fc_1", "fc_2"):
                self.linear(p, f"{at}cmrc.refine.{n}", d, d)
            for cell in CELLS:
                self.router(p, f"{at}{cell}.router.mlp", d, q, 1 if layer == 2 else 4, routes)
        return p

    def router(self, p, name, d, q, outs, routes):
        """`routes`: open (probabilities vary), gate (many are 0), tiny (some sums are tiny and positive)."""
        self.linear(p, name + ".0", d, q, std=3.0 / math.sqrt(d) if d > 1 else 3.0)
        self.linear(p, name + ".2", q, outs, std=1.5 / math.sqrt(q))
        p[name + ".2.bias"] = self.uniform(-1.1, 0.3, outs) if routes == "gate" else self.uniform(0.2, 0.8, outs)
        if routes == "tiny":
            scale = 1e-5 if outs == 4 else 3e-5
            shrink = torch.ones(outs, dtype=torch.float64)
            shrink[: max(1, outs // 2)] = scale
            for part in (".2.weight", ".2.bias"):
                t = p[name + part]
                p[name + part] = self._exact(t * (shrink[:, None] if t.dim() == 2 else shrink))

    def tokens(self, cfg, captions, words, full, odd):
        """Ids with [CLS]-like 2 and [SEP]-like 3 at the ends; sorted lengths; `odd`: rubbish in the padding."""
        lengths = np.full(captions, words) if full else np.sort(self.rng.integers(min(2, words), words + 1, captions))[::-1]
        if not full:
            lengths[0] = words if captions > 1 else lengths[0]
        mask = (np.arange(words)[None] < lengths[:, None]).astype(np.int32)
        ids = self.rng.integers(min(4, cfg["vocab_size"] - 1), cfg["vocab_size"], (captions, words))
        types = self.rng.integers(0, cfg["type_vocab_size"], (captions, words))
        if not odd:
            ids[:, 0] = 2
            ids[np.arange(captions), lengths - 1] = 3
            ids, types = ids * mask, types * 0
        as_tensor = lambda a: torch.from_numpy(np.ascontiguousarray(a).astype(np.int32))
        return {
            "input_ids": as_tensor(ids),
            "attention_mask": as_tensor(mask),
            "token_type_ids": as_tensor(types),
            "lengths": as_tensor(lengths),
        }


BERT = {
    "vocab_size": 97, "hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 36, "hidden_act": "gelu", "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0, "max_position_embeddings": 24, "type_vocab_size": 2,
    "initializer_range": 0.02,
}  # fmt: skip
DIME = {
    "data_name": "f30k_precomp", "max_words": 9, "extra_stc": 0, "extra_img": 0, "num_epochs": 30,
    "batch_size": 4, "learning_rate": 0.0002, "lr_update": 15, "grad_clip": 2.0, "drop": 0.0, "margin": 0.2,
    "max_violation": True, "trade_off": 0.5, "img_dim": 19, "embed_size": 24, "direction": "i2t",
    "val_step": 2000, "finetune": False, "use_restval": False, "measure": "cosine", "use_abs": False,
    "no_imgnorm": False, "reset_train": False, "num_head_IMRC": 3, "hid_IMRC": 30,
    "raw_feature_norm_CMRC": "clipped_l2norm", "lambda_softmax_CMRC": 4.0, "hid_router": 18,
    "do_lower_case": True, "path_hid": 128,
}  # fmt: skip


def case(mode, regions=6, images=None, captions=None, full=False, routes="open", bert=None, **options):
    return dict(mode=mode, regions=regions, images=images, captions=captions, full=full, routes=routes,
                bert=bert or {}, options=options)  # fmt: skip


T2I = dict(direction="t2i", lambda_softmax_CMRC=9.0)
CASES = {
    "dime_i2t_eval_odd": case("eval", 5, 3, 7, embed_size=21, hid_IMRC=17, hid_router=11, img_dim=13, max_words=7),
    "dime_i2t_one_head": case("train", num_head_IMRC=1, embed_size=17, hid_IMRC=5, hid_router=7, margin=0.05),
    "dime_i2t_one_region": case("train", 1, learning_rate=0.001, lambda_softmax_CMRC=1.5),
    "dime_i2t_full_length": case("train", 7, full=True, margin=0.35, grad_clip=0.25, trade_off=1.25),
    "dime_i2t_extra2": case("train", extra_stc=2, batch_size=5, bert=dict(num_hidden_layers=3)),
    "dime_i2t_gate": case("train", routes="gate", grad_clip=0.0, batch_size=6),
    "dime_i2t_tiny": case("eval", 4, 3, 5, routes="tiny"),
    "dime_i2t_sum": case("train", max_violation=False, margin=0.1, grad_clip=100.0),
    "dime_i2t_last_batch": case("train", images=3, captions=3, batch_size=8),
    "dime_i2t_l2norm": case("train", raw_feature_norm_CMRC="l2norm", lambda_softmax_CMRC=12.0),
    "dime_i2t_many_heads": case("eval", 9, 2, 3, num_head_IMRC=24, max_words=3),
    "dime_t2i_eval_odd": case("eval", 7, 5, 3, embed_size=15, num_head_IMRC=5, hid_router=13, max_words=11, **T2I),
    "dime_t2i_one_head": case("train", num_head_IMRC=1, embed_size=11, hid_IMRC=37, margin=0.3, **T2I),
    "dime_t2i_one_region": case("train", 1, **T2I),
    "dime_t2i_full_length": case("train", 5, full=True, learning_rate=0.005, **T2I),
    "dime_t2i_extra2": case("train", extra_img=2, bert=dict(num_hidden_layers=1, num_attention_heads=1), **T2I),
    "dime_t2i_gate": case("train", routes="gate", **T2I),
    "dime_t2i_tiny": case("eval", 4, 3, 5, routes="tiny", **T2I),
    "dime_t2i_sum": case("train", max_violation=False, trade_off=0.0, **T2I),
    "dime_t2i_softmax": case("train", 3, raw_feature_norm_CMRC="softmax", **T2I),
    "dime_t2i_clipped": case("train", 8, raw_feature_norm_CMRC="clipped", batch_size=7, **T2I),
    "dime_t2i_no_norm": case("train", raw_feature_norm_CMRC="no_norm", direction="t2i", lambda_softmax_CMRC=2.0),
    "dime_t2i_abs": case("eval", 5, 4, 4, use_abs=True, max_words=5, **T2I),
    "dime_t2i_abs_raw": case("train", use_abs=True, no_imgnorm=True, **T2I),
    "dime_i2t_wide": case("train", 36, embed_size=64, num_head_IMRC=4, hid_IMRC=128, hid_router=64, max_words=17),
    "dime_t2i_deep": case("eval", 5, 3, 4, bert=dict(num_hidden_layers=6, hidden_size=12, num_attention_heads=3), **T2I),
    "dime_i2t_masked_train": case("train", mask_padding=True),
    "dime_i2t_masked_eval": case("eval", 5, 3, 5, mask_padding=True, max_words=11),
    "dime_t2i_masked_train": case("train", mask_padding=True, **T2I),
    "dime_t2i_masked_eval": case("eval", 5, 3, 5, mask_padding=True, max_words=11, **T2I),
    "dime_t2i_masked_softmax": case("train", 3, mask_padding=True, raw_feature_norm_CMRC="softmax", **T2I),
    "dime_t2i_masked_l2norm": case("train", 4, mask_padding=True, raw_feature_norm_CMRC="l2norm", **T2I),
    "bert_one_layer": case("eval", captions=3, bert=dict(num_hidden_layers=1, num_attention_heads=1), max_words=5),
    "bert_deep": case("eval", captions=2, bert=dict(num_hidden_layers=8, hidden_size=30, num_attention_heads=5), max_words=13),
    "bert_one_word": case("eval", captions=4, bert=dict(type_vocab_size=5), max_words=1),
    "bert_full": case("eval", captions=3, full=True, bert=dict(max_position_embeddings=33), max_words=33),
    "loss_wide_max": case("train", images=3, captions=12, extra_stc=3, margin=0.4),
    "loss_tall_sum": case("train", images=20, captions=5, extra_img=3, max_violation=False),
    "loss_one_by_many": case("train", images=1, captions=6, extra_stc=5),
}


def draw_case(name, seed):
    plan = CASES[name]
    system = name.split("_")[0]
    draw = Draw([*seed, *name.encode()])
    cfg = {**DIME, **plan["options"], "bert_config": {**BERT, **plan["bert"]}}
    if system == "loss":
        cfg = {k: cfg[k] for k in ("margin", "max_violation", "extra_stc", "extra_img", "measure")}
        return system, cfg, {"in": {"scores": draw.normal(plan["images"], plan["captions"], std=0.3)}}
    words = cfg["max_words"]
    if system == "bert":
        cfg = cfg["bert_config"]
        given = {"param": draw.bert(cfg), "in": draw.tokens(cfg, plan["captions"], words, plan["full"], True)}
        del given["in"]["lengths"]
        return system, cfg, given
    batch = plan["images"] or cfg["batch_size"]
    captions = plan["captions"] or batch * (1 + cfg["extra_stc"])
    given = {"param": draw.dime(cfg, plan["routes"])}
    given["in"] = draw.tokens(cfg["bert_config"], captions, words, plan["full"], False)
    given["in"]["images"] = draw.normal(batch * (1 + cfg["extra_img"]), plan["regions"], cfg["img_dim"])
    return system, cfg, given


def gates(out):
    """A layer: how many route sums lie below its threshold, how many there are, how many of them are positive."""
    rows = []
    for layer in range(3):
        routes = torch.stack([out[f"router_l{layer}.{c}"] for c in CELLS], -1)
        total = routes.sum(-1) if layer < 2 else routes
        low = total < (1e-4 if layer < 2 else 2.5e-5)
        rows.append((int(low.sum()), total.numel(), int((low & (total > 0)).sum())))
    return rows


def fair(name, run, cfg, given, made):
    """Whether float32 can pass: a draw that lies on a kink or cancels to noise checks nothing."""
    mode = CASES[name]["mode"]
    short = lambda t: t.float() if t.is_floating_point() else t
    again = run(cfg, mode, {g: {n: short(t) for n, t in v.items()} for g, v in given.items()})
    for family, bound in (("out", 5e-6), ("grad", 3e-5)):
        theirs = made.get(family, {})
        top = max((float(t.abs().max()) for t in theirs.values()), default=0.0)
        # Key biases have no gradient; their noise in float32 counts for nothing.
        rows = [compare(again[family][n].double(), t, bound, top) for n, t in theirs.items() if "linears.1.bias" not in n]
        if max(rows, default=0.0) > 1:
            return False
    if CASES[name]["routes"] == "gate":
        return all(0 < fired < n for fired, n, _ in gates(made["out"]))
    return True


def make(name, seed):
    for attempt in range(50):
        system, cfg, given = draw_case(name, [seed, attempt])
        made = RUNS[system](cfg, CASES[name]["mode"], given)
        if fair(name, RUNS[system], cfg, given, made):
            break
    else:
        raise SystemExit(f"{name}: no fair draw in 50; try another --seed")
    spec = {
        "system": system, "case": name, "mode": CASES[name]["mode"], "config": cfg, "source": "tools/reference.py",
        "torch": torch.__version__, "dtype": "computed in float64 then cast to f32", "seed": [seed, attempt],
        "notes": notes(system, made),
    }  # fmt: skip
    return spec, packed(name, {**given, **made})


def notes(system, made):
    if system != "dime":
        return "padding holds random ids and types" if system == "bert" else ""
    fired = "; ".join(f"l{i} {n} of {of}, {tiny} tiny" for i, (n, of, tiny) in enumerate(gates(made["out"])))
    text = f"gates fired: {fired}"
    if made["grad"]:
        unused = [n for n in made["step"] if n not in made["grad"] and not n.endswith(BUFFERS)]
        text += f" | {FROZEN}* frozen, not in step; without gradient: {', '.join(unused)}"
        text += " | step_unreliable in f32 (gradient zero by mathematics): every imrc linears.1.bias"
    return text


def packed(name, families):
    """A fixture's tensors by their full names, floats as f32, from the f64 tensors of each family."""
    tensors = {}
    for group, values in families.items():
        for key, value in values.items():
            array = value.detach().numpy()
            if not np.isfinite(array).all():
                raise SystemExit(f"{name}: {group}.{key} is not finite")
            kind = np.float32 if array.dtype.kind == "f" else np.int32
            tensors[f"{group}.{key}"] = np.ascontiguousarray(array).astype(kind).reshape(array.shape)
    return tensors


def command(doc, cases, make, seed=7):
    """The command line of a reference: `make(case, seed)` gives a fixture's spec and its tensors."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", help="folder to write fixtures into")
    parser.add_argument("--seed", type=int, default=seed, help=f"another seed, other numbers (default {seed})")
    parser.add_argument("--cases", nargs="+", choices=cases, default=list(cases), metavar="NAME")
    parser.add_argument("--verify", nargs="+", metavar="FILE", help="recompute these fixtures and compare")
    parser.add_argument("--list", action="store_true", help="name the cases and stop")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.list:
        print("\n".join(cases))
        return 0
    if args.verify:
        return verify(args.verify)
    if not args.out:
        parser.error("name a folder to write into, --verify FILE .. or --list")
    os.makedirs(args.out, exist_ok=True)
    for name in args.cases:
        spec, tensors = make(name, args.seed)
        path = os.path.join(args.out, f"{name}.safetensors")
        save_file(tensors, path, metadata={"spec": json.dumps(spec)})
        print(f"{path}: {len(tensors)} tensors, {os.path.getsize(path)} bytes, draw {spec['seed']}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(command(__doc__, CASES, make, seed=1))
