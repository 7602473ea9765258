#!/usr/bin/env python3
"""Writes a small Swin as its authors release theirs, and the values that an import of it must give.

    python tools/swin_fixture.py OUT_DIR

Writes ckpt_swin_release.pth (a dict `model`, with the head of its first task and the buffers of its blocks, without
the norms between stages) and ckpt_swin_expect.safetensors. Needs: pip install torch safetensors numpy
"""

import os
import sys

import torch
from safetensors.torch import save_file

import reference
import reference_hat as hat

SIZES = {"embed_dim": 4, "depths": [1, 2, 3, 1], "num_heads": [1, 2, 4, 2], "mlp_ratio": 2.0}


def main():
    (out,) = sys.argv[1:]
    drawn = hat.draw_swin(reference.Draw([3]), hat.swin_config(64, SIZES))
    state = {name.removeprefix(hat.IMAGES): value for name, value in drawn.items()}
    state = {name: v.float() if v.is_floating_point() else v.long() for name, v in state.items()}
    state = {name: value for name, value in state.items() if not name.startswith("norm_")}
    state["head.weight"], state["head.bias"] = torch.randn(7, 32), torch.randn(7)
    torch.save({"model": state}, os.path.join(out, "ckpt_swin_release.pth"))
    kept = {n: v for n, v in state.items() if not hat.is_buffer(n) and not n.startswith("head.")}
    save_file(kept, os.path.join(out, "ckpt_swin_expect.safetensors"))


if __name__ == "__main__":
    main()
