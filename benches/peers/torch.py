#!/usr/bin/env python3
"""PyTorch on the shapes of Crossweave's benches: a case's name a line in, a line of JSON out.

DIME and BERT are those of tools/reference.py, in f32 and with PyTorch's own fused pieces in place of the spelled
out ones; GSMN and HAT are those of gsmn.py and hat.py, as published or `factored`. They are held against fixtures
before they are timed. Any job may be `compiled` by torch.compile.
Runs on CUDA where there is one, else on the CPU.

    python benches/peers/torch.py [--autocast]      --autocast: f16 where PyTorch thinks it safe (CUDA only)
    python benches/peers/torch.py --check           holds all of them against the fixtures, and ends

Needs: pip install torch safetensors numpy
"""

import json
import os
import platform
import sys
import time

# This file has the package's name: its folder must not be searched for it.
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [p for p in sys.path if os.path.abspath(p or ".") != HERE]
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.append(os.path.join(ROOT, "tools"))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

import reference as ref  # noqa: E402
import reference_gsmn as ref_gsmn  # noqa: E402
import reference_hat as ref_hat  # noqa: E402

sys.path.append(HERE)  # PyTorch is loaded by now.
import gsmn  # noqa: E402
import hat  # noqa: E402

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
AUTOCAST = "--autocast" in sys.argv
REGIONS, WORDS = 36, 32
UNTRACKED = torch.inference_mode

ref.linear = lambda p, name, x: F.linear(x, p[name + ".weight"], p[name + ".bias"])
ref.normalise = lambda x, dim=-1: F.normalize(x, dim=dim)
ref.largest = lambda x, dim: x.max(dim).values
ref.layer_norm = lambda p, name, x: F.layer_norm(x, x.shape[-1:], p[name + ".weight"], p[name + ".bias"], 1e-12)
ref.gelu = F.gelu


def batch_norm(p, name, x, train, buffers, true=None):
    assert true is None, "the peer knows no masked models"
    mean, var = p[f"{name}.running_mean"], p[f"{name}.running_var"]
    if train:
        mean, var = mean.clone(), var.clone()
        buffers[f"{name}.running_mean"], buffers[f"{name}.running_var"] = mean, var
    return F.batch_norm(x, mean, var, p[f"{name}.weight"], p[f"{name}.bias"], train, 0.1, 1e-5)


ref.batch_norm = batch_norm


def on_device(tensors):
    return {n: (t.float() if t.is_floating_point() else t).to(DEVICE) for n, t in tensors.items()}


def tracked(params, trains):
    leaves = {n: p.clone().requires_grad_() for n, p in params.items() if trains(n)}
    return {**params, **leaves}, leaves


def in_dime(name):
    return not name.startswith(ref.FROZEN) and not name.endswith(ref.BUFFERS)


class Few(dict):
    """What is asked for: the reference notes every intermediate, and holding them would only cost memory."""

    def __setitem__(self, name, value):
        if not name.startswith(("cell_", "aggr_", "router_")):
            super().__setitem__(name, value)


def forward(p, cfg, images, states, lengths, train):
    """Similarities and loss from features and text states, with the buffers a step changes."""
    out, buffers = Few(), {}
    stc, wrd = ref.encode_text(p, states)
    img, rgn = ref.encode_images(p, cfg, images, train, buffers)
    ref.interact(p, cfg, img, rgn, stc, wrd, lengths, None, train, out, buffers)
    if not train:
        return out["sims"], None, buffers
    path, label = ref.normalise(out["path_map"]), ref.normalise(states.mean(1))[: img.shape[0]]
    loss_path = ((path @ path.T - label @ label.T) ** 2).sum() / cfg["batch_size"]
    loss = ref.triplet(out["sims"], cfg["margin"], cfg["max_violation"]) + cfg["trade_off"] * loss_path
    return out["sims"], loss, buffers


def hold(name, ours, theirs):
    theirs = theirs.to(DEVICE)
    far = float(torch.linalg.vector_norm(ours.detach() - theirs) / torch.linalg.vector_norm(theirs))
    if not far <= 1e-3:
        raise SystemExit(f"torch.py: {far:.1e} from fixture {name}")


def check_dime():
    """Whether this form of the model gives what the fixtures hold, forward and backward."""
    for name in ("dime_i2t_extra_stc_train", "dime_t2i_extra_img_train"):
        spec, given = ref.read_fixture(os.path.join(ROOT, "tests", "fixtures", name + ".safetensors"))
        cfg, inputs = spec["config"], {n: t.to(DEVICE) for n, t in given["in"].items()}
        p, leaves = tracked(on_device(given["param"]), in_dime)
        tokens = (inputs[n].long() for n in ("input_ids", "token_type_ids", "attention_mask"))
        with torch.no_grad():
            last = ref.bert(p, cfg["bert_config"], *tokens, ref.FROZEN)
        states = last[f"layer.{cfg['bert_config']['num_hidden_layers'] - 1}"]
        sims, loss, _ = forward(p, cfg, inputs["images"].float(), states, inputs["lengths"].long(), True)
        names = [n for n in leaves if n in given["grad"] and "linears.1.bias" not in n]
        grads = torch.autograd.grad(loss, [leaves[n] for n in names])
        hold(name, sims, given["out"]["sims"])
        for n, g in zip(names, grads):
            hold(name, g, given["grad"][n])


def check_gsmn():
    for name in ("gsmn_dense_eval", "gsmn_dense_train"):
        spec, given = ref.read_fixture(os.path.join(ROOT, "tests", "fixtures", name + ".safetensors"))
        cfg, inputs = spec["config"], on_device(given["in"])
        items = [inputs[n] for n in ("images", "bboxes", "captions", "cap_lens")]
        for form in gsmn.FORMS:
            p, leaves = tracked(on_device(given["param"]), lambda n: True)
            scores = form(p, cfg, *gsmn.encode(p, cfg, form, *items))
            hold(name, scores, given["out"]["scores"])
            # What is zero by mathematics is noise here.
            names = [n for n, g in given["grad"].items() if g.abs().max() > 1e-10]
            grads = torch.autograd.grad(gsmn.hinge(cfg, scores), [leaves[n] for n in names]) if names else []
            for n, g in zip(names, grads):
                hold(name, g, given["grad"][n])


def check_hat():
    for name in ("hat_i2t_unfrozen_train", "hat_t2i_unfrozen_train"):
        spec, given = ref.read_fixture(os.path.join(ROOT, "tests", "fixtures", name + ".safetensors"))
        cfg, inputs = spec["config"], on_device(given["in"])
        items = [inputs[n] for n in ("image", "input_ids", "lengths")]
        for form in hat.FORMS:
            p, leaves = tracked(on_device(given["param"]), lambda n: hat.trains(n, False))
            scores = form(cfg, hat.encode(p, cfg, form, *items), items[-1])
            hold(name, scores, given["out"]["scores_all"])
            grads = torch.autograd.grad(hat.hinge(cfg, scores), list(leaves.values()))
            for n, g in zip(leaves, grads):
                if not ref_hat.unstable(n):
                    hold(name, g, given["grad"][n])


CHECKS = {"dime": check_dime, "gsmn": check_gsmn, "hat": check_hat}
# Whose check a case needs, where that is not the beginning of its name.
CHECKED_AS = {"swin": "hat"}


# ---- cases: each returns a function that does the job once ----------------------------------------


def matmul(m, k, n):
    a, b = torch.randn(m, k), torch.randn(k, n)
    return lambda: a @ b


BERT = {"vocab_size": 512, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072,
        "max_position_embeddings": 512, "type_vocab_size": 2}  # fmt: skip


def lengths_of(captions, words):
    return torch.tensor([max(words - i * words // (2 * captions), 1) for i in range(captions)])


def bert(captions, words, layers, both):
    cfg = {**BERT, "num_hidden_layers": layers}
    params = on_device(ref.Draw([1]).bert(cfg))
    mask = (torch.arange(words)[None] < lengths_of(captions, words)[:, None]).long()
    ids = torch.randint(0, cfg["vocab_size"], (captions, words)) * mask
    types = torch.zeros_like(ids)
    last = lambda p: ref.bert(p, cfg, ids, types, mask)[f"layer.{layers - 1}"]
    if not both:
        return UNTRACKED()(lambda: last(params))
    p, leaves = tracked(params, lambda n: n.startswith("encoder.") or "embeddings.LayerNorm" in n)
    g = torch.randn(captions, words, cfg["hidden_size"])
    return lambda: torch.autograd.grad(last(p), list(leaves.values()), g)


def dime(direction):
    cfg = {**ref.DIME, "direction": direction, "max_words": WORDS, "img_dim": 2048, "embed_size": 256,
           "num_head_IMRC": 16, "hid_IMRC": 512, "hid_router": 512, "batch_size": 32,
           "lambda_softmax_CMRC": 4.0 if direction == "i2t" else 9.0}  # fmt: skip
    # Text states are given: of BERT only the width counts.
    cfg["bert_config"] = {**BERT, "num_hidden_layers": 1, "intermediate_size": 1, "vocab_size": 8}
    params = on_device(ref.Draw([1]).dime(cfg, "open"))
    return cfg, {n: p for n, p in params.items() if not n.startswith(ref.FROZEN)}


def batch(cfg, images, captions):
    """As the loader gives it: on the CPU."""
    on_cpu = dict(device="cpu")
    features = torch.randn(images, REGIONS, cfg["img_dim"], **on_cpu)
    states = torch.randn(captions, WORDS, cfg["bert_config"]["hidden_size"], **on_cpu)
    return features, states, lengths_of(captions, WORDS).cpu()


def dime_tile(direction, images, captions):
    cfg, p = dime(direction)
    features, states, lengths = (t.to(DEVICE) for t in batch(cfg, images, captions))
    with UNTRACKED():
        stc, wrd = ref.encode_text(p, states)
        img, rgn = ref.encode_images(p, cfg, features, False, {})

    @UNTRACKED()
    def run():
        out = Few()
        ref.interact(p, cfg, img, rgn, stc, wrd, lengths, None, False, out, {})
        return out["sims"]

    return run


def dime_step(direction, size, extra):
    cfg, params = dime(direction)
    i2t = direction == "i2t"
    given = batch(cfg, size + (0 if i2t else extra), size + (extra if i2t else 0))
    p, leaves = tracked(params, in_dime)
    adam = torch.optim.Adam(leaves.values(), lr=2e-4)

    def run():
        _, loss, buffers = forward(p, cfg, *(t.to(DEVICE) for t in given), True)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(leaves.values(), 2.0)
        adam.step()
        p.update(buffers)

    return run


GSMN = {"embed_size": 1024, "word_dim": 300, "num_block": 16, "feat_dim": 16, "hid_dim": 32, "out_dim": 1,
        "num_layers": 1, "n_kernels": gsmn.KERNELS, "bi_gru": True, "lambda_softmax": 20.0, "margin": 0.2,
        "max_violation": True, "img_dim": 2048, "vocab_size": 8000}  # fmt: skip
GSMN_DEMO = {"embed_size": 64, "word_dim": 64, "hid_dim": 16, "img_dim": 64, "vocab_size": 772}


def gsmn_model(demo):
    cfg = {**GSMN, **(GSMN_DEMO if demo else {})}
    return cfg, on_device(ref_gsmn.draw_params(ref.Draw([1]), cfg, 0.15))


def gsmn_batch(cfg, images, captions):
    """As the loader gives it: on the CPU. Captions are of 20 to 9 ids."""
    on_cpu = dict(device="cpu")
    corner = 0.6 * torch.rand(images, REGIONS, 2, **on_cpu)
    boxes = torch.cat([corner, corner + 0.05 + 0.35 * torch.rand(images, REGIONS, 2, **on_cpu)], -1)
    lengths = torch.tensor([20 - 12 * i // captions for i in range(captions)], **on_cpu)
    ids = torch.randint(4, cfg["vocab_size"], (captions, 20), **on_cpu) * gsmn.mask(lengths, 20)
    return torch.randn(images, REGIONS, cfg["img_dim"], **on_cpu), boxes, ids, lengths


def gsmn_tile(form, demo, images, captions):
    cfg, p = gsmn_model(demo)
    with torch.no_grad():
        items = gsmn.encode(p, cfg, form, *(t.to(DEVICE) for t in gsmn_batch(cfg, images, captions)))
    return UNTRACKED()(lambda: form(p, cfg, *items))


def gsmn_step(form, demo, size):
    cfg, params = gsmn_model(demo)
    given = gsmn_batch(cfg, size, size)
    p, leaves = tracked(params, lambda n: True)
    adam = torch.optim.Adam(leaves.values(), lr=2e-4, fused=form is gsmn.factored)

    def run():
        scores = form(p, cfg, *gsmn.encode(p, cfg, form, *(t.to(DEVICE) for t in given)))
        adam.zero_grad(set_to_none=True)
        gsmn.hinge(cfg, scores).backward()
        torch.nn.utils.clip_grad_norm_(leaves.values(), 2.0)
        adam.step()

    return run


HAT = {**ref_hat.HAT, "image_size": 224, "hidden_size": 768, "max_text_len": 32, "bert": {**BERT, "vocab_size": 30522},
       "swin": {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]}}  # fmt: skip
HAT_DEMO = {"image_size": 64, "hidden_size": 64, "swin": {"embed_dim": 16, "num_heads": [2, 4, 8, 16]},
            "bert": {**BERT, "vocab_size": 772, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 256,
                     "max_position_embeddings": 64}}  # fmt: skip


def hat_config(demo, direction="i2t"):
    cfg = {**HAT, **(HAT_DEMO if demo else {}), "direction": direction}
    cfg["swin"] = ref_hat.swin_config(cfg["image_size"], {"depths": [2, 2, 2, 2], "mlp_ratio": 4.0, **cfg["swin"]})
    cfg["bert"] = {**cfg["bert"], "num_hidden_layers": 12}
    return cfg


def hat_model(demo):
    cfg, draw = hat_config(demo), ref.Draw([1])
    p = {**ref_hat.draw_swin(draw, cfg["swin"]), **draw.bert(cfg["bert"], hat.TEXT)}
    for level, stage, _ in hat.LEVELS:
        width = cfg["swin"]["embed_dim"] * 2**stage
        draw.linear(p, f"{hat.LINEAR}image_transform{level}", width, cfg["hidden_size"])
        draw.linear(p, f"{hat.LINEAR}text_transform{level}", cfg["bert"]["hidden_size"], cfg["hidden_size"])
    return cfg, on_device(p)


def hat_lengths(captions):
    """Of 20 to 9 pieces."""
    return torch.tensor([20 - 12 * i // captions for i in range(captions)], device="cpu")


def swin(form, demo, images):
    cfg = hat_config(demo)["swin"]
    p = on_device(ref_hat.draw_swin(ref.Draw([1]), cfg))
    pixels = torch.randn(images, 3, cfg["img_size"], cfg["img_size"])
    return UNTRACKED()(lambda: hat.swin(p, cfg, form, pixels))


def hat_tile(form, demo, direction, images, captions):
    """From rows of encoded items, whose encoders count nothing."""
    cfg, lengths = hat_config(demo, direction), hat_lengths(captions).to(DEVICE)
    grid = cfg["image_size"] // cfg["swin"]["patch_size"]
    rows = lambda n, of: torch.randn(n, of, cfg["hidden_size"])
    items = [(rows(images, (grid >> stage) ** 2), rows(captions, 20)) for _, stage, _ in hat.LEVELS]
    items = hat.prepared(cfg, form, items, lengths)
    return UNTRACKED()(lambda: form(cfg, items, lengths))


def hat_step(form, demo, frozen, size):
    cfg, params = hat_model(demo)
    on_cpu = dict(device="cpu")
    pixels = torch.randn(size, 3, cfg["image_size"], cfg["image_size"], **on_cpu)
    lengths = hat_lengths(size)
    ids = torch.randint(4, cfg["bert"]["vocab_size"], (size, cfg["max_text_len"]), **on_cpu)
    given = (pixels, ids * hat.mask(lengths, cfg["max_text_len"]), lengths)
    p, leaves = tracked(params, lambda n: hat.trains(n, frozen))
    adam = torch.optim.Adam(leaves.values(), lr=1e-4, fused=form is hat.factored)

    def run():
        items = hat.encode(p, cfg, form, *(t.to(DEVICE) for t in given), frozen)
        adam.zero_grad(set_to_none=True)
        hat.hinge(cfg, form(cfg, items, lengths.to(DEVICE))).backward()
        adam.step()

    return run


# The systems of two forms.
TWO_FORMS = {"gsmn": gsmn, "hat": hat, "swin": hat}


def prepare(name):
    words = name.split()
    system = TWO_FORMS.get(words[0].split("_")[0])
    if "composed" in words or ("demo" in words and not system):
        raise ValueError("a form of ours")
    if "factored" in words and not system:
        raise ValueError("a form of GSMN and HAT")
    if "compiled" in words:
        # The compiler fails on views of parameters in inference mode.
        global UNTRACKED
        UNTRACKED = torch.no_grad
        try:
            return torch.compile(prepare(" ".join(w for w in words if w != "compiled")))
        finally:
            UNTRACKED = torch.inference_mode
    form = system.FORMS["factored" in words] if system else None
    demo, frozen = "demo" in words, "frozen" in words
    direction = "t2i" if "t2i" in words else "i2t"
    numbers = [int(w) for w in words[1:] if w.isdigit()]
    kinds = {
        "matmul": lambda: matmul(*numbers),
        "bert": lambda: bert(*numbers, 12, "both" in words),
        "bert_layer": lambda: bert(*numbers, 1, "both" in words),
        "dime_tile": lambda: dime_tile(direction, *numbers),
        "dime_step": lambda: dime_step(direction, numbers[0], numbers[-1]),
        "gsmn_tile": lambda: gsmn_tile(form, demo, *numbers),
        "gsmn_step": lambda: gsmn_step(form, demo, *numbers),
        "swin": lambda: swin(form, demo, *numbers),
        "hat_tile": lambda: hat_tile(form, demo, direction, *numbers),
        "hat_step": lambda: hat_step(form, demo, frozen, *numbers),
    }
    if words[0] not in kinds:
        raise ValueError(f"no job `{name}`")
    return kinds[words[0]]()


def once(job):
    started = time.perf_counter()
    with torch.autocast(DEVICE.type, torch.float16, enabled=AUTOCAST):
        job()
    if CUDA:
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - started)


def hello():
    if CUDA:
        adapter, driver = torch.cuda.get_device_name(), f"CUDA {torch.version.cuda}"
    else:
        adapter, driver = platform.processor() or platform.machine(), f"CPU, {torch.get_num_threads()} threads"
    return {"name": "torch" + (" autocast" if AUTOCAST else ""), "version": torch.__version__,
            "adapter": adapter, "driver": driver}  # fmt: skip


def main():
    torch.manual_seed(1)
    if CUDA:  # On the CPU it only costs time.
        torch.set_default_device(DEVICE)
    if "--check" in sys.argv:
        for system, check in CHECKS.items():
            check()
            print(f"{system}: as the fixtures", flush=True)
        return
    jobs, checked = {}, set()
    for line in sys.stdin:
        name = line.strip()
        if name == "hello":
            print(json.dumps(hello()), flush=True)
            continue
        try:
            if name not in jobs:
                system = name.split()[0].split("_")[0]
                system = CHECKED_AS.get(system, system)
                if system in CHECKS and system not in checked:
                    CHECKS[system]()
                    checked.add(system)
                job = prepare(name)
                jobs[name] = (job, once(job))
                answer = {"ms": jobs[name][1], "first_ms": jobs[name][1]}
            else:
                job, first = jobs[name]
                answer = {"ms": once(job), "first_ms": first}
        except Exception as e:  # A job that fails, in compiling or for lack of memory, ends no other.
            answer = {"unsupported": str(e) or repr(e)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
