#!/usr/bin/env python3
"""An independent reference of HAT (ACM MM 2023): Swin, BERT, the three alignments, loss and Adam step, in float64.

Written from the maths alone, as tools/reference.py is for DIME, in the same fixture form, and as the paper has it:
one caption after another, with the context of every region or word.

    python tools/reference_hat.py OUT_DIR [--seed N] [--cases NAME ..]   write fixtures
    python tools/reference_hat.py --verify FILE ..                       recompute and compare fixtures
    python tools/reference_hat.py --list                                 name the cases

Needs: pip install torch safetensors numpy
"""

import json
import math
import sys

import numpy as np
import torch

import reference
from reference import Adam, Draw, bert, gelu, largest, linear

IMAGES, TEXT, LINEAR = "vit_model.", "text_transformer.", "cross_modal_"
DIRECTIONS = ("i2t", "t2i")
# Level, the stage of Swin and the layer of BERT it compares; the last layer is whichever that is.
LEVELS = (("", 3, -1), ("_1", 1, 3), ("_2", 2, 9))
RECALLS = (1, 5, 10, 20, 50, 70, 100)


# ---- Swin -----------------------------------------------------------------------------------------


def layer_norm(p, name, x):
    mean = x.mean(-1, keepdim=True)
    var = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(var + 1e-5) * p[name + ".weight"] + p[name + ".bias"]


def window_of(cfg, stage, block):
    """Side of the grid, side of a window and cyclic shift."""
    grid = cfg["img_size"] // cfg["patch_size"] // 2**stage
    window = cfg["img_size"] // 32
    if grid <= window:
        return grid, grid, 0
    return grid, window, window // 2 if block % 2 else 0


def relative_index(w):
    """[w^2, w^2]: the row of the table for a query and a key of one window."""
    at = torch.arange(w * w)
    row, column = at // w, at % w
    far = lambda t: t[:, None] - t[None] + w - 1
    return far(row) * (2 * w - 1) + far(column)


def in_windows(x, w):
    """[B, G, G, ..] -> [B, windows, w^2, ..], windows and tokens row by row."""
    b, n = x.shape[0], x.shape[1] // w
    x = x.reshape(b, n, w, n, w, *x.shape[3:]).transpose(2, 3)
    return x.reshape(b, n * n, w * w, *x.shape[5:])


def out_of_windows(x, w, grid):
    n = grid // w
    return x.reshape(x.shape[0], n, n, w, w, -1).transpose(2, 3).reshape(x.shape[0], grid, grid, -1)


def shift_mask(grid, w, shift):
    """[windows, w^2, w^2]: -100 between tokens that only the roll made neighbours."""
    at = torch.arange(grid)
    part = (at >= grid - w).long() + (at >= grid - shift).long()
    part = in_windows((3 * part[:, None] + part[None])[None, ..., None], w)[0, :, :, 0]
    return torch.where(part[:, :, None] == part[:, None, :], 0.0, -100.0).double()


def window_attention(p, at, x, heads, mask):
    """x: [B, windows, tokens, D]."""
    tokens, width = x.shape[-2], x.shape[-1] // heads
    table = p[at + "relative_position_bias_table"]
    bias = table[relative_index(math.isqrt(tokens))].permute(2, 0, 1)
    q, k, v = (y.unflatten(-1, (heads, width)).transpose(-3, -2) for y in linear(p, at + "qkv", x).chunk(3, -1))
    scores = (q * width**-0.5) @ k.transpose(-1, -2) + bias
    if mask is not None:
        scores = scores + mask[:, None].to(x.dtype)
    heard = torch.softmax(scores, -1) @ v
    return linear(p, at + "proj", heard.transpose(-3, -2).flatten(-2))


def swin_block(p, at, x, grid, w, shift, heads):
    y = layer_norm(p, at + "norm1", x).unflatten(1, (grid, grid))
    y = in_windows(torch.roll(y, (-shift, -shift), (1, 2)), w)
    y = window_attention(p, at + "attn.", y, heads, shift_mask(grid, w, shift) if shift else None)
    x = x + torch.roll(out_of_windows(y, w, grid), (shift, shift), (1, 2)).flatten(1, 2)
    y = layer_norm(p, at + "norm2", x)
    return x + linear(p, at + "mlp.fc2", gelu(linear(p, at + "mlp.fc1", y)))


def merge_patches(p, at, x, grid):
    x = x.unflatten(1, (grid, grid))
    corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
    return layer_norm(p, at + "norm", torch.cat(corners, -1).flatten(1, 2)) @ p[at + "reduction.weight"].T


def embed_patches(p, pre, cfg, images):
    side = cfg["patch_size"]
    x = images.unfold(2, side, side).unfold(3, side, side)  # [B, 3, rows, columns, side, side]
    x = x.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    weight = p[pre + "patch_embed.proj.weight"].flatten(1)
    return layer_norm(p, pre + "patch_embed.norm", x @ weight.T + p[pre + "patch_embed.proj.bias"])


def swin(p, pre, cfg, images):
    """Every output by name; `stage0` .. `stage3` are what the published model returns."""
    x = embed_patches(p, pre, cfg, images)
    out = {"patch_embed": x}
    for stage, depth in enumerate(cfg["depths"]):
        at = f"layers.{stage}."
        for block in range(depth):
            grid, w, shift = window_of(cfg, stage, block)
            x = swin_block(p, f"{pre}{at}blocks.{block}.", x, grid, w, shift, cfg["num_heads"][stage])
            out[f"{at}blocks.{block}"] = x
        out[at + "last_block"] = x
        out[f"stage{stage}"] = layer_norm(p, pre + ("norm" if stage == 3 else f"norm_{stage}"), x)
        if stage < 3:
            x = out[at + "downsample"] = merge_patches(p, f"{pre}{at}downsample.", x, grid)
    return out


def cubic_weights(t, a=-0.75):
    """Of the four neighbours of a place that is `t` past the second of them."""
    near = lambda d: (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = lambda d: a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return [far(1 + t), near(t), near(1 - t), far(2 - t)]


def resampling(before, after):
    """[after, before]: one axis, half-pixel centres, places beyond the edge read as the edge."""
    m = torch.zeros(after, before, dtype=torch.float64)
    for i in range(after):
        place = (i + 0.5) * before / after - 0.5
        first = math.floor(place)
        for j, weight in enumerate(cubic_weights(place - first)):
            m[i, min(max(first - 1 + j, 0), before - 1)] += weight
    return m


def resampled(table, after):
    before = math.isqrt(len(table))
    if before == after:
        return table
    m = resampling(before, after)
    return torch.einsum("ia,jb,abh->ijh", m, m, table.unflatten(0, (before, before))).flatten(0, 1)


# ---- text, levels, matching -----------------------------------------------------------------------


def infer(p, cfg, inputs):
    """The rows of each level, [items, rows, hidden_size], and the layers of BERT."""
    stages = swin(p, IMAGES, cfg["swin"], inputs["image"])
    ids, types, mask = (inputs[n].long() for n in ("input_ids", "input_type_ids", "input_mask"))
    hidden = bert(p, cfg["bert"], ids, types, mask, TEXT)
    layers = [hidden[f"layer.{i}"] for i in range(cfg["bert"]["num_hidden_layers"])]
    out = {f"bert_layer_{i}": layers[i] for i in sorted({0, 3, 9, len(layers) - 1})}
    for level, stage, layer in LEVELS:
        out["image_feats" + level] = linear(p, f"{LINEAR}image_transform{level}", stages[f"stage{stage}"])
        out["text_feats" + level] = linear(p, f"{LINEAR}text_transform{level}", layers[layer])
    return out


def attend(query, source, cfg):
    """query [.., Q, d], source [.., S, d] -> attention [.., Q, S], context and cosine of each of the query's rows."""
    raw = query @ source.transpose(-1, -2)
    a = torch.where(raw > 0, raw, 0.1 * raw)
    a = a / (torch.sqrt((a**2).sum(-2, keepdim=True)) + 1e-8)
    weights = torch.softmax(cfg["lambda_softmax"] * a, -1)
    context = weights @ source
    norms = torch.sqrt((query**2).sum(-1)) * torch.sqrt((context**2).sum(-1))
    return weights, context, (query * context).sum(-1) / norms.clamp_min(1e-8)


def sides(direction, image, words):
    """The query and the source of all images with one caption."""
    words = words.expand(len(image), -1, -1)
    return (image, words) if direction == "i2t" else (words, image)


def align(images, captions, lengths, direction, cfg):
    """One level: [images, captions]."""
    rows = []
    for caption, n in zip(captions, lengths.tolist()):
        query, source = sides(direction, images, caption[:n])
        rows.append(attend(query, source, cfg)[2].mean(-1))
    return torch.stack(rows, 1)


def match(feats, lengths, direction, cfg, name):
    out = {
        name + level: align(feats["image_feats" + level], feats["text_feats" + level], lengths, direction, cfg)
        for level, _, _ in LEVELS
    }
    return {**out, name + "_all": sum(out.values())}


def hinge(scores, margin):
    diagonal, off = scores.diagonal(), 1 - torch.eye(len(scores), dtype=scores.dtype)
    cost_s = largest(torch.relu(margin + scores - diagonal[:, None]) * off, 1)
    cost_im = largest(torch.relu(margin + scores - diagonal[None]) * off, 0)
    one = lambda t: t.reshape(1)
    loss_s, loss_im = cost_s.sum(), cost_im.sum()
    return {
        "cost_s": cost_s, "cost_im": cost_im, "loss_s": one(loss_s), "loss_im": one(loss_im),
        "loss": one(loss_s + loss_im),
    }  # fmt: skip


def evaluate(sims):
    """Ranks of images x captions, five captions an image: of the best of its own, and of its image."""
    place = lambda row: torch.argsort(torch.argsort(row, descending=True))
    owner = torch.arange(sims.shape[1]) // 5
    i2t = torch.stack([place(row)[owner == i].min() for i, row in enumerate(sims)])
    t2i = torch.stack([place(column)[i] for column, i in zip(sims.T, owner)])
    recalls = [100.0 * float((r < k).double().mean()) for r in (i2t, t2i) for k in RECALLS]
    middle = lambda r: [math.floor(float(np.median(r.numpy()))) + 1.0, float(r.double().mean()) + 1.0]
    as_tensor = lambda values: torch.tensor(values, dtype=torch.float64)
    return {
        "i2t_ranks": i2t.int(), "t2i_ranks": t2i.int(), "recalls": as_tensor(recalls),
        "i2t_medr_meanr": as_tensor(middle(i2t)), "t2i_medr_meanr": as_tensor(middle(t2i)),
        "best_irtr": as_tensor([recalls[0] + recalls[len(RECALLS)]]),
    }  # fmt: skip


# ---- a case: tensors in, tensors out --------------------------------------------------------------


def trains(name, unfrozen):
    """Whether a gradient reaches it: never the pooler, whose output nothing reads, nor stage 0's own norm."""
    if name.startswith(LINEAR):
        return True
    unused = name.startswith((TEXT + "pooler.", IMAGES + "norm_0.")) or is_buffer(name)
    return unfrozen and not unused


def is_buffer(name):
    return name.endswith(("relative_position_index", "attn_mask"))


def forward_and_gradient(cfg, params, inputs, unfrozen):
    leaves = {n: v.clone().requires_grad_() for n, v in params.items() if trains(n, unfrozen)}
    out = infer({**params, **leaves}, cfg, inputs)
    out = {n: v for n, v in out.items() if not n.startswith("bert_layer")}
    out.update(match(out, inputs["lengths"], cfg["direction"], cfg, "scores"))
    out.update(hinge(out["scores_all"], cfg["margin"]))
    grad = dict(zip(leaves, torch.autograd.grad(out["loss"], list(leaves.values()))))
    rows = TEXT + "embeddings.word_embeddings.weight"
    if rows in grad:
        grad[rows][0] = 0.0  # the published model's padding index
    out["grad_norm"] = torch.sqrt(sum((g**2).sum() for g in grad.values())).reshape(1)
    return out, grad


# What a file of two steps keeps of the second.
SECOND = (
    LINEAR, IMAGES + "patch_embed.", IMAGES + "layers.0.", IMAGES + "norm", TEXT + "embeddings.word_embeddings.",
    TEXT + "encoder.layer.0.",
)  # fmt: skip


def run_train(cfg, given, phase):
    params, optimiser, rate = dict(given["param"]), Adam(), cfg["learning_rate"]
    out, grad = forward_and_gradient(cfg, params, given["in"], phase == "unfrozen")
    optimiser.step(params, grad, rate)
    result = {"out": out, "grad": grad, "step": {n: params[n] for n in grad}}
    if phase == "unfrozen":
        result["step"] = params
    if phase != "transition":
        return result
    rate = 0.1 * rate
    again, grad = forward_and_gradient(cfg, params, given["in"], True)
    optimiser.step(params, grad, rate)
    # As in the published file, `scores_2` is the main level of the second step, not level 2 of the first.
    out.update({n + "_2": v for n, v in again.items() if "feats" not in n})
    out["lr_2"] = torch.tensor([rate], dtype=torch.float64)
    kept = (*SECOND, f"{TEXT}encoder.layer.{cfg['bert']['num_hidden_layers'] - 1}.")
    result["grad2"] = {n: g for n, g in grad.items() if n.startswith(kept)}
    result["step2"] = {n: params[n] for n in result["grad2"]}
    return result


def run_eval(cfg, given):
    out = infer(given["param"], cfg, given["in"])
    feats = dict(out)
    for direction in DIRECTIONS:
        sims = match(feats, given["in"]["lengths"], direction, cfg, "sims")
        out.update({f"{direction}.{n}": v for n, v in {**sims, **evaluate(sims["sims_all"])}.items()})
    return {"out": out}


def run_align(cfg, given):
    i, out, grad = given["in"], {}, {}
    for direction in DIRECTIONS:
        images, captions = (i[n].clone().requires_grad_() for n in ("images", "captions"))
        out[direction + ".sims"] = sims = align(images, captions, i["cap_lens"], direction, cfg)
        weighted = (sims * i["grad_weight"]).sum()
        grads = torch.autograd.grad(weighted, (images, captions))
        grad[direction + ".images"], grad[direction + ".captions"] = grads
        one = captions[1, : int(i["cap_lens"][1])]
        weights, context, cosines = attend(*sides(direction, images, one), cfg)
        at = direction + ".cap1."
        out[at + "attnT"], out[at + "weightedContext"] = weights.transpose(1, 2), context
        out[at + "row_sim"] = cosines
        edge = align(i["edge.images"], i["edge.captions"], i["cap_lens"], direction, cfg)
        out[f"edge.{direction}.sims"] = edge
    return {"out": out, "grad": grad}


def run_tables(cfg, given):
    (table,) = given["in"].values()
    sides = {size: 2 * (size // 32) - 1 for size in cfg["after image sizes"]}
    return {"out": {f"table_{size}": resampled(table, side) for size, side in sides.items()}}


def phase_of(given):
    """Which of the weights train: what a file's gradients show."""
    if given.get("grad2"):
        return "transition"
    return "unfrozen" if any(n.startswith(IMAGES) for n in given["grad"]) else "frozen"


def run_hat(cfg, mode, given):
    if "before_side" in cfg:
        return run_tables(cfg, given)
    if "images" in given["in"]:
        return run_align(cfg, given)
    if "input_ids" not in given["in"]:
        return {"out": swin(given["param"], IMAGES, cfg, given["in"]["image"])}
    if mode == "eval":
        return run_eval(cfg, given)
    return run_train(cfg, given, given.get("phase") or phase_of(given))


reference.RUNS = {"hat": run_hat}


# ---- making fixtures ------------------------------------------------------------------------------

SWIN = {
    "patch_size": 4, "in_chans": 3, "embed_dim": 6, "depths": [2, 2, 2, 1], "num_heads": [1, 2, 3, 6], "mlp_ratio": 2.0,
    "qkv_bias": True, "drop_rate": 0.0, "attn_drop_rate": 0.0, "drop_path_rate": 0.0, "ape": False, "patch_norm": True,
}  # fmt: skip
BERT = {
    **reference.BERT, "vocab_size": 41, "hidden_size": 12, "num_hidden_layers": 12, "num_attention_heads": 3,
    "intermediate_size": 20, "max_position_embeddings": 13,
}  # fmt: skip
HAT = {
    "exp_name": "finetune_irtr_f30k", "seed": 0, "datasets": "f30k", "loss_names": {"irtr": 1, "itm": 0, "mlm": 0},
    "margin": 0.2, "learning_rate": 1e-4, "direction": "i2t", "lambda_softmax": 9, "precision": 32,
    "vit": "swin_base_patch4_window7_224_in22k", "tokenizer": "bert-base-uncased", "image_size": 64, "hidden_size": 22,
    "max_text_len": 11,
}  # fmt: skip
ALIGN = {"lambda_softmax": 9, "leaky_slope": 0.1, "l2norm_eps": 1e-8, "cosine_eps": 1e-8}


def aligned(images, regions, d, lengths, **options):
    return dict(kind="align", images=images, regions=regions, d=d, lengths=lengths, options=options)


def stages(size, images=2, buffers=True, **swin):
    return dict(kind="swin", size=size, images=images, buffers=buffers, swin=swin)


def tables(before, heads, sizes):
    return dict(kind="tables", before=before, heads=heads, sizes=sizes)


def case(kind, images=4, lengths=None, owners=None, swin=None, bert=None, **options):
    """`kind`: eval or what trains; `owners`: the image of each of a batch's rows, where some come twice."""
    return dict(kind=kind, images=images, lengths=lengths, owners=owners, swin=swin or {}, bert=bert or {},
                options=options)  # fmt: skip


# Heads of these widths in every stage but where the name says other.
THREE = dict(embed_dim=6, num_heads=[2, 4, 8, 16])
FIVE = dict(embed_dim=10, num_heads=[2, 4, 8, 16])
EIGHT = dict(embed_dim=8, num_heads=[1, 2, 4, 8], depths=[1, 2, 1, 1])
EIGHT_AND_32 = dict(embed_dim=16, num_heads=[2, 1, 2, 16], depths=[2, 1, 1, 1])
SMALL = dict(embed_dim=4, num_heads=[2, 1, 4, 2], depths=[1, 2, 1, 1])
FINE = dict(patch_size=2, embed_dim=4, num_heads=[1, 2, 4, 2], depths=[2, 1, 2, 2])  # its last stage is shifted
SHALLOW = dict(embed_dim=4, num_heads=[1, 2, 4, 2], depths=[1, 1, 1, 1])
WIDE_TEXT = dict(hidden_size=16, num_attention_heads=2, intermediate_size=24, num_hidden_layers=10)
TEN, ELEVEN = dict(num_hidden_layers=10), dict(num_hidden_layers=11)
CASES = {
    "hat_align_short": aligned(5, 9, 20, [6, 1, 2, 1, 3, 2]),
    "hat_align_one_image": aligned(1, 203, 24, [13, 2, 1, 7, 5]),
    "hat_align_one_region": aligned(4, 1, 12, [3, 5, 1, 2]),
    "hat_align_narrow": aligned(6, 3, 5, [4, 7, 2], lambda_softmax=4),
    "hat_align_wide": aligned(3, 49, 64, [20, 9, 13, 1, 32]),
    "hat_align_long": aligned(2, 196, 16, [32, 31, 9], lambda_softmax=14),
    "hat_swin_window1_eval": stages(32),
    "hat_swin_wide_eval": stages(64, **EIGHT_AND_32),
    "hat_swin_odd3_eval": stages(128, 1, **THREE),
    "hat_swin_odd5_eval": stages(96, 1, mlp_ratio=3.0, **FIVE),
    "hat_swin_patch2_eval": stages(64, 1, **FINE),
    "hat_swin_patch2_window1_eval": stages(32, 3, **FINE),
    "hat_swin_paper_window_eval": stages(224, 1, buffers=False, **{**EIGHT, "depths": [2, 2, 2, 1]}),
    "hat_swin_posinterp_more": tables(13, 5, [32, 64, 128, 160, 224, 384]),
    "hat_swin_posinterp_narrow": tables(5, 2, [32, 64, 96, 224]),
    "hat_i2t_eval": case("eval", 3, max_text_len=9),
    "hat_t2i_eval": case("eval", 5, direction="t2i", hidden_size=13, swin=SMALL),
    "hat_window1_eval": case("eval", 4, image_size=32, bert=ELEVEN),
    "hat_window3_eval": case("eval", 2, image_size=96, bert=TEN, swin=SMALL, lambda_softmax=4),
    "hat_window4_eval": case("eval", 1, image_size=128, direction="t2i", swin=SHALLOW),
    "hat_patch2_eval": case("eval", 3, swin=FINE, bert=TEN, direction="t2i"),
    "hat_wide_eval": case("eval", 2, swin=EIGHT, bert=WIDE_TEXT, hidden_size=32),
    "hat_i2t_frozen_train": case("frozen", 6, margin=0.35, learning_rate=0.001, bert=ELEVEN),
    "hat_t2i_frozen_train": case("frozen", 5, direction="t2i", hidden_size=32, swin=EIGHT, bert=TEN),
    "hat_i2t_unfrozen_train": case("unfrozen", 4, swin=SHALLOW, bert=TEN, hidden_size=9, lambda_softmax=6),
    "hat_t2i_unfrozen_train": case("unfrozen", 4, direction="t2i", swin=SMALL, bert=ELEVEN),
    "hat_i2t_transition_train": case("transition", 5, learning_rate=0.001, swin=SMALL, bert=ELEVEN),
    "hat_t2i_transition_train": case("transition", 3, direction="t2i", learning_rate=5e-4, swin=SHALLOW, bert=TEN),
    "hat_i2t_wide_train": case("unfrozen", 4, swin=EIGHT, bert=WIDE_TEXT, hidden_size=32),
    "hat_t2i_window1_train": case("unfrozen", 5, direction="t2i", image_size=32, swin=SMALL, bert=TEN),
    "hat_i2t_window1_train": case("unfrozen", 3, image_size=32, swin=SHALLOW, bert=TEN),
    "hat_i2t_window3_train": case("unfrozen", 3, image_size=96, swin=SMALL, bert=TEN),
    "hat_i2t_patch2_train": case("unfrozen", 3, swin=FINE, bert=TEN, hidden_size=16),
    "hat_i2t_same_image_train": case("unfrozen", 5, owners=[0, 1, 2, 0, 4], swin=SHALLOW, bert=TEN),
    "hat_t2i_same_image_train": case("frozen", 6, owners=[0, 1, 1, 3, 4, 3], direction="t2i", swin=SMALL, bert=TEN),
    "hat_i2t_short_train": case("frozen", 5, lengths=[3, 2, 2, 2, 2], swin=SMALL, bert=TEN),
    "hat_t2i_short_train": case("unfrozen", 3, lengths=[3, 2, 2], direction="t2i", swin=SHALLOW, bert=TEN),
    "hat_i2t_batch13_train": case("frozen", 13, image_size=32, swin=SMALL, bert=TEN),
}


def draw_swin(draw, cfg, buffers=True):
    p, width, ratio = {}, cfg["embed_dim"], cfg["mlp_ratio"]
    side, at = cfg["patch_size"], IMAGES + "patch_embed."
    draw.linear(p, at + "proj", 3 * side * side, width, shape=(width, 3, side, side))
    draw.norm(p, at + "norm", width)
    for stage, depth in enumerate(cfg["depths"]):
        for block in range(depth):
            grid, w, shift = window_of(cfg, stage, block)
            at = f"{IMAGES}layers.{stage}.blocks.{block}."
            draw.norm(p, at + "norm1", width)
            draw.norm(p, at + "norm2", width)
            draw.linear(p, at + "attn.qkv", width, 3 * width)
            draw.linear(p, at + "attn.proj", width, width)
            draw.linear(p, at + "mlp.fc1", width, int(ratio * width))
            draw.linear(p, at + "mlp.fc2", int(ratio * width), width)
            table = draw.normal((2 * w - 1) ** 2, cfg["num_heads"][stage], std=0.7)
            p[at + "attn.relative_position_bias_table"] = table
            if buffers:
                p[at + "attn.relative_position_index"] = relative_index(w).int()
            if buffers and shift:
                p[at + "attn_mask"] = shift_mask(grid, w, shift)
        draw.norm(p, IMAGES + ("norm" if stage == 3 else f"norm_{stage}"), width)
        if stage < 3:
            at = f"{IMAGES}layers.{stage}.downsample."
            draw.norm(p, at + "norm", 4 * width)
            p[at + "reduction.weight"] = draw.normal(2 * width, 4 * width, std=0.5 / math.sqrt(width))
        width *= 2
    return p


def swin_config(size, options):
    said = {"img_size": size, "window_size (effective = int(img_size/32))": size // 32}
    return {**SWIN, **options, **said}


def draw_captions(rng, cfg, lengths):
    words = cfg["max_text_len"]
    ids = rng.integers(3, cfg["bert"]["vocab_size"], (len(lengths), words))
    ids[:, 0] = 1
    ids[np.arange(len(lengths)), lengths - 1] = 2
    mask = np.arange(words)[None] < lengths[:, None]
    ints = lambda a: torch.from_numpy(np.asarray(a).astype(np.int32))
    return {
        "input_ids": ints(ids * mask), "input_mask": ints(mask), "input_type_ids": ints(0 * ids),
        "lengths": ints(lengths),
    }  # fmt: skip


def draw_model(draw, plan):
    rng, cfg = draw.rng, {**HAT, **plan["options"]}
    cfg["swin"] = swin_config(cfg["image_size"], plan["swin"])
    cfg["bert"] = {**BERT, **plan["bert"]}
    width, text, d = cfg["swin"]["embed_dim"], cfg["bert"]["hidden_size"], cfg["hidden_size"]
    cfg["input_image_embed_size"], cfg["input_text_embed_size"] = 8 * width, text
    param = {**draw_swin(draw, cfg["swin"]), **draw.bert(cfg["bert"], TEXT)}
    for level, stage, _ in LEVELS:
        draw.linear(param, f"{LINEAR}image_transform{level}", width * 2**stage, d)
        draw.linear(param, f"{LINEAR}text_transform{level}", text, d)
    captions = 5 * plan["images"] if plan["kind"] == "eval" else plan["images"]
    lengths = rng.integers(2, cfg["max_text_len"] + 1, captions)
    lengths[0] = cfg["max_text_len"] - 1  # a column of padding in every file
    lengths = np.minimum(lengths, lengths[0])
    if plan["lengths"]:
        lengths = np.array(plan["lengths"])
    given = {"param": param, "in": draw_captions(rng, cfg, lengths)}
    size = cfg["image_size"]
    images = draw.normal(plan["images"], 3, size, size)
    if plan["kind"] == "eval":
        given["in"]["img_index_of_caption"] = torch.arange(captions).int() // 5
    else:
        order = np.argsort(-lengths, kind="stable")
        given["in"] = {n: v[torch.from_numpy(order)] for n, v in given["in"].items()}
        images = images[plan["owners"] or slice(None)]
        given["phase"] = plan["kind"]
    given["in"]["image"] = images
    return cfg, given


def draw_align(draw, plan):
    d, lengths = plan["d"], np.array(plan["lengths"])
    inside = torch.from_numpy(np.arange(max(lengths))[None, :, None] < lengths[:, None, None])
    images = draw.normal(plan["images"], plan["regions"], d)
    captions = draw.normal(len(lengths), max(lengths), d)
    # Rows of one length would make every softmax flat.
    captions = draw._exact(torch.where(inside, captions * draw.uniform(0.3, 2.0, *inside.shape), 0.0))
    edge_images, edge_captions = images.clone(), captions.clone()
    edge_images[0, 2:3], edge_images[1:2], edge_captions[0, 1:2] = 0.0, 0.0, 0.0
    given = {
        "images": images, "captions": captions, "cap_lens": torch.from_numpy(lengths.astype(np.int32)),
        "edge.images": edge_images, "edge.captions": edge_captions,
        "grad_weight": draw.normal(len(images), len(captions)),
    }  # fmt: skip
    return {**ALIGN, **plan["options"]}, {"in": given}


def draw_case(name, seed):
    plan = CASES[name]
    draw = Draw([*seed, *name.encode()])
    if plan["kind"] == "align":
        return draw_align(draw, plan)
    if plan["kind"] == "tables":
        sides = [2 * (size // 32) - 1 for size in plan["sizes"]]
        cfg = {"before_side": plan["before"], "after image sizes": plan["sizes"], "side after": sides}
        table = draw.normal(plan["before"] ** 2, plan["heads"])
        return cfg, {"in": {"layers.0.blocks.0.attn.relative_position_bias_table": table}}
    if plan["kind"] == "swin":
        cfg = swin_config(plan["size"], plan["swin"])
        blocks = [[window_of(cfg, s, b)[1:] for b in range(n)] for s, n in enumerate(cfg["depths"])]
        cfg["per-block (window, shift)"] = blocks
        image = draw.normal(plan["images"], 3, plan["size"], plan["size"])
        return cfg, {"param": draw_swin(draw, cfg, plan["buffers"]), "in": {"image": image}}
    return draw_model(draw, plan)


def gaps(cfg, scores, owners):
    """How far the loss is from another choice: of its hinges from 0, and of each largest violation from the next.
    An image that comes twice ties with itself, and either choice has the same gradient."""
    owners = torch.tensor(owners or range(len(scores)))
    diagonal = scores.diagonal()
    hinges, apart = [], []
    for axis, table in enumerate((scores, scores.T)):
        costs = cfg["margin"] + table - diagonal[:, None]
        for i, row in enumerate(costs):
            others = torch.arange(len(row)) != i
            hinges.append(row[others])
            if axis == 1:  # one of each image
                first = torch.tensor([owners[:j].ne(owners[j]).all().item() for j in range(len(row))])
                others &= first | (owners == owners[i])
            two = row[others].clamp_min(0).topk(min(2, int(others.sum()))).values
            if len(two) == 2 and two[0] > 0:
                apart.append(float(two[0] - two[1]))
    hinges = torch.cat(hinges)
    return {
        "hinge": float(hinges.abs().min()), "argmax": min(apart, default=math.inf),
        "active": float((hinges > 0).double().mean()),
    }  # fmt: skip


def unstable(name):
    """Whose gradient is 0 by mathematics: a softmax does not see what all its scores share."""
    return name.endswith("attention.self.key.bias")


def close_in_float32(cfg, mode, given, made):
    """Whether float32 can pass, also with inputs a little off: one run may be near by luck."""
    rng = torch.Generator().manual_seed(1)
    for jitter in (0, 1e-7):
        moved = lambda t: (t * (1 + jitter * torch.randn(t.shape, generator=rng))).float()
        short = lambda t: moved(t) if t.is_floating_point() else t
        near = {g: {n: short(t) for n, t in v.items()} for g, v in given.items() if g != "phase"}
        again = run_hat(cfg, mode, {**near, "phase": given.get("phase")})
        for family, bound in (("out", 2e-5), ("grad", 2e-4), ("grad2", 2e-4)):
            theirs = {n: t.detach() for n, t in made.get(family, {}).items() if not unstable(n)}
            top = max((float(t.abs().max()) for t in theirs.values()), default=0.0)
            if any(reference.compare(again[family][n].double(), t, bound, top) > 1 for n, t in theirs.items()):
                return False
    return True


def rank_gap(sims):
    """The least distance of two scores that a rank compares."""
    least = lambda rows: float((rows.sort(-1).values.diff(dim=-1)).min()) if rows.shape[-1] > 1 else math.inf
    return min(least(sims), least(sims.T))


def fair(name, cfg, mode, given, made):
    plan = CASES[name]
    if plan["kind"] == "tables":
        return True
    if mode == "train":
        found = gaps(cfg, made["out"]["scores_all"].detach(), plan["owners"])
        if found["hinge"] < 2e-4 or found["argmax"] < 2e-3 or found["active"] < 0.1:
            return False
    if plan["kind"] == "eval" and min(rank_gap(made["out"][d + ".sims_all"]) for d in DIRECTIONS) < 5e-5:
        return False
    return close_in_float32(cfg, mode, given, made)


NOTES = {
    "align": "one level. grad.<dir>.* = gradient of sum(sims*in.grad_weight). cap1.*: caption 1. edge: image 0 region 2, "
    "all of image 1 and caption 0 word 1 are zero vectors, where there are such (forward only).",
    "swin": "out.stage0..3: the last block of each stage before its patch merging, through its own LayerNorm; "
    "out.layers.* are not normalised.",
    "tables": "bicubic (a=-0.75, half-pixel centres, no antialias) resampling of the pretrained table.",
    "eval": "in.image holds the unique images; caption c belongs to image c//5. sims_all = plain sum of the levels. "
    "Both directions given; config.direction is the default.",
    "frozen": "backbones frozen: only the cross_modal_* tensors have gradients; step.* lists only tensors with one.",
    "unfrozen": "everything trains but the BERT pooler and vit_model.norm_0, which nothing reads.",
    "transition": "one step frozen (grad.*, step.*), then a second on the same batch with everything trained, the same "
    "Adam object and out.lr_2: out.*_2, grad2.*, step2.* (a subset). out.scores_2 is the MAIN level of the second step.",
}  # fmt: skip


def notes(plan, cfg, made):
    text = NOTES[plan["kind"]]
    if "grad" not in made or plan["kind"] == "align":
        return text
    text += " loss = sums, no mean. Adam: betas 0.9/0.999, eps 1e-8, no weight decay, no clipping."
    if plan["owners"]:
        text += f" Images of the batch: {plan['owners']}, so that some tie with themselves."
    zero = [n for n in made.get("grad2", made["grad"]) if unstable(n)]
    found = gaps(cfg, made["out"]["scores_all"].detach(), plan["owners"])
    return f"{text} Gaps: {json.dumps(found)}. Mathematically zero gradients: {', '.join(zero)}"


def make(name, seed):
    plan = CASES[name]
    mode = "train" if plan["kind"] in ("frozen", "unfrozen", "transition") else "eval"
    for attempt in range(200):
        cfg, given = draw_case(name, [seed, attempt])
        made = run_hat(cfg, mode, given)
        if fair(name, cfg, mode, given, made):
            break
    else:
        raise SystemExit(f"{name}: no fair draw in 200; try another --seed")
    phase = given.pop("phase", None)
    spec = {
        "system": "hat", "case": f"train_{phase} {cfg['direction']} ({name})" if phase else name, "mode": mode,
        "config": cfg, "source": "tools/reference_hat.py", "torch": torch.__version__,
        "dtype": "computed in float64 then cast to f32", "seed": [seed, attempt], "notes": notes(plan, cfg, made),
    }  # fmt: skip
    made["out"] = {n: v for n, v in made["out"].items() if kept(n)}
    return spec, reference.packed(name, {**given, **made})


def kept(output):
    """Of Swin's blocks the published files keep the first two stages' and the very last."""
    return not output.startswith(("layers.2", "layers.3.b")) and ".last" not in output.replace("3.last", "")


if __name__ == "__main__":
    sys.exit(reference.command(__doc__, CASES, make))
