"""Writes a parity fixture of a BERT-family encoder as Hugging Face transformers computes it.

    python tools/minilm_fixture.py MODEL CAPTIONS OUT [--captions 8] [--words 32]

MODEL is a folder that transformers opens (config.json, model.safetensors, vocab.txt), CAPTIONS a text file with
a caption a line. Needs torch and transformers. Then: crossweave parity OUT.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import BertModel, BertTokenizer

OPTIONS = (
    "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act"
    " max_position_embeddings type_vocab_size layer_norm_eps"
).split()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--captions", type=int, default=8)
    parser.add_argument("--words", type=int, default=32)
    asked = parser.parse_args()

    lines = asked.texts.read_text(encoding="utf-8").splitlines()
    step = max(1, len(lines) // asked.captions)
    texts = lines[::step][: asked.captions]
    tokens = BertTokenizer(asked.model / "vocab.txt")(
        texts, padding="max_length", truncation=True, max_length=asked.words, return_tensors="pt"
    )
    model = BertModel.from_pretrained(asked.model, attn_implementation="eager").eval()
    # The reference is f64, so that a bound measures the f32 side alone.
    model = model.double()
    with torch.no_grad():
        out = model(**tokens, output_hidden_states=True)

    tensors = {f"param.{name}": value for name, value in model.state_dict().items() if "position_ids" not in name}
    tensors |= {f"in.{name}": value.int() for name, value in tokens.items()}
    tensors["out.embeddings"], *layers = out.hidden_states
    tensors |= {f"out.layer.{i}": state for i, state in enumerate(layers)}
    tensors["out.pooled"] = out.pooler_output
    tensors = {
        name: (value.float() if value.is_floating_point() else value).contiguous() for name, value in tensors.items()
    }
    config = {option: getattr(model.config, option) for option in OPTIONS}
    spec = {"system": "bert", "mode": "eval", "config": config, "captions": texts}
    save_file(tensors, asked.out, metadata={"spec": json.dumps(spec)})
    print(f"{asked.out}: {len(texts)} captions, {len(layers)} layers")


if __name__ == "__main__":
    main()
