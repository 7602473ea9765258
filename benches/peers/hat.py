"""HAT in PyTorch, in two forms: as published, and factored as well as PyTorch's operations allow.

The published form scores one caption at a time against all images, from contexts in full, and its encoders spell
their attention out. The factored form takes all captions at once behind a mask, compares through Gram matrices where
they are smaller than contexts, and gives attention, with Swin's biases as its mask, to PyTorch's own kernel.
"""

import math

import torch
import torch.nn.functional as F

IMAGES, TEXT, LINEAR = "vit_model.", "text_transformer.", "cross_modal_"
# Level, the stage of Swin and the layer of BERT it compares.
LEVELS = (("", 3, -1), ("_1", 1, 3), ("_2", 2, 9))
EPS = 1e-8


def linear(p, name, x):
    return F.linear(x, p[name + ".weight"], p.get(name + ".bias"))


def layer_norm(p, name, x, eps):
    return F.layer_norm(x, x.shape[-1:], p[name + ".weight"], p[name + ".bias"], eps)


def mask(lengths, words):
    return torch.arange(words, device=lengths.device)[None] < lengths[:, None]


def is_buffer(name):
    return name.endswith(("relative_position_index", "attn_mask"))


def trains(name, frozen):
    if frozen:
        return name.startswith(LINEAR)
    # Nothing reads the pooler, nor the norm of the stage that no level compares.
    return not name.startswith((TEXT + "pooler.", IMAGES + "norm_0.")) and not is_buffer(name)


# ---- encoders -------------------------------------------------------------------------------------


def attend(form, q, k, v, bias):
    """[items, heads, tokens, width], and what is added to the scores."""
    if form is factored:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + bias, -1) @ v


def window_attention(p, at, form, x, heads, windows):
    """x: [images * windows, tokens, channels]."""
    items, tokens, _ = x.shape
    q, k, v = linear(p, at + "qkv", x).view(items, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
    index = p[at + "relative_position_index"].view(-1).long()
    bias = p[at + "relative_position_bias_table"][index].view(tokens, tokens, heads).permute(2, 0, 1)[None]
    if windows is not None:
        # The batch's fastest part is the window.
        bias = (bias + windows[:, None]).repeat(items // len(windows), 1, 1, 1)
    return linear(p, at + "proj", attend(form, q, k, v, bias).transpose(1, 2).flatten(2))


def swin_block(p, at, form, x, grid, w, shift, heads):
    b, _, c = x.shape
    n = grid // w
    y = layer_norm(p, at + "norm1", x, 1e-5).view(b, grid, grid, c)
    y = torch.roll(y, (-shift, -shift), (1, 2)) if shift else y
    y = y.view(b, n, w, n, w, c).transpose(2, 3).reshape(b * n * n, w * w, c)
    y = window_attention(p, at + "attn.", form, y, heads, p.get(at + "attn_mask") if shift else None)
    y = y.view(b, n, n, w, w, c).transpose(2, 3).reshape(b, grid, grid, c)
    y = torch.roll(y, (shift, shift), (1, 2)) if shift else y
    x = x + y.reshape(b, grid * grid, c)
    y = layer_norm(p, at + "norm2", x, 1e-5)
    return x + linear(p, at + "mlp.fc2", F.gelu(linear(p, at + "mlp.fc1", y)))


def merge_patches(p, at, x, grid):
    x = x.view(len(x), grid, grid, -1)
    corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
    return linear(p, at + "reduction", layer_norm(p, at + "norm", torch.cat(corners, -1).flatten(1, 2), 1e-5))


def swin(p, cfg, form, images):
    """The four stages' outputs."""
    at, side, out = IMAGES + "patch_embed.", cfg["patch_size"], []
    x = F.conv2d(images, p[at + "proj.weight"], p[at + "proj.bias"], stride=side)
    x = layer_norm(p, at + "norm", x.flatten(2).transpose(1, 2), 1e-5)
    for stage, depth in enumerate(cfg["depths"]):
        grid, window = cfg["img_size"] // side // 2**stage, cfg["img_size"] // 32
        for block in range(depth):
            w, shift = (grid, 0) if grid <= window else (window, window // 2 * (block % 2))
            at = f"{IMAGES}layers.{stage}.blocks.{block}."
            x = swin_block(p, at, form, x, grid, w, shift, cfg["num_heads"][stage])
        out.append(layer_norm(p, IMAGES + ("norm" if stage == 3 else f"norm_{stage}"), x, 1e-5))
        if stage < 3:
            x = merge_patches(p, f"{IMAGES}layers.{stage}.downsample.", x, grid)
    return out


def bert(p, cfg, form, ids, lengths):
    """The outputs of all layers."""
    heads, emb, out = cfg["num_attention_heads"], TEXT + "embeddings.", []
    x = F.embedding(ids, p[emb + "word_embeddings.weight"], padding_idx=0) + p[emb + "token_type_embeddings.weight"][0]
    x = layer_norm(p, emb + "LayerNorm", x + p[emb + "position_embeddings.weight"][: ids.shape[1]], 1e-12)
    bias = (1 - mask(lengths, ids.shape[1]).to(x.dtype))[:, None, None, :] * -10000.0
    split = lambda y: y.unflatten(-1, (heads, -1)).transpose(1, 2)
    for i in range(cfg["num_hidden_layers"]):
        at = f"{TEXT}encoder.layer.{i}."
        q, k, v = (split(linear(p, f"{at}attention.self.{n}", x)) for n in ("query", "key", "value"))
        heard = attend(form, q, k, v, bias).transpose(1, 2).flatten(2)
        x = layer_norm(p, at + "attention.output.LayerNorm", x + linear(p, at + "attention.output.dense", heard), 1e-12)
        wide = F.gelu(linear(p, at + "intermediate.dense", x))
        x = layer_norm(p, at + "output.LayerNorm", x + linear(p, at + "output.dense", wide), 1e-12)
        out.append(x)
    return out


def encode(p, cfg, form, images, ids, lengths, frozen=False):
    """The rows of each level: (image's, caption's)."""
    with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
        stages = swin(p, cfg["swin"], form, images)
        if form is factored:  # Nothing needs what all captions pad.
            ids = ids[:, : int(lengths.max())]
        layers = bert(p, cfg["bert"], form, ids, lengths)
    return [
        (linear(p, f"{LINEAR}image_transform{n}", stages[s]), linear(p, f"{LINEAR}text_transform{n}", layers[i]))
        for n, s, i in LEVELS
    ]


# ---- as published ---------------------------------------------------------------------------------


def scan(query, source, scale):
    """[images, query's rows, d] and [images, source's rows, d] -> [images]."""
    attention = F.leaky_relu(torch.bmm(source, query.transpose(1, 2)), 0.1)
    attention = attention / (attention.pow(2).sum(2, keepdim=True).sqrt() + EPS)
    attention = torch.softmax(attention.transpose(1, 2).contiguous() * scale, 2)
    context = torch.bmm(attention, source)
    norms = query.norm(dim=2) * context.norm(dim=2)
    return ((query * context).sum(2) / norms.clamp_min(EPS)).mean(1)


def published(cfg, items, lengths):
    total = 0.0
    for image, text in items:
        columns = []
        for c, n in enumerate(lengths.tolist()):
            words = text[c : c + 1, :n].repeat(len(image), 1, 1)
            pair = (image, words) if cfg["direction"] == "i2t" else (words, image)
            columns.append(scan(*pair, cfg["lambda_softmax"]))
        total = total + torch.stack(columns, 1)
    return total


# ---- factored -------------------------------------------------------------------------------------


def norms_of(x):
    return x.norm(dim=-1).clamp_min(EPS)


def per_item(cfg, items, lengths):
    """What the pairs need of each item by itself: rows, norms, and Gram matrices of the source."""
    out = []
    for image, text in items:
        text = text * mask(lengths, text.shape[1])[..., None]
        source, query = (text, image) if cfg["direction"] == "i2t" else (image, text)
        rows, width = source.shape[1:]
        gram = torch.bmm(source, source.transpose(1, 2)) if rows < width else None
        # A norm of nothing but zeros has no gradient.
        if query is text:
            norms = norms_of(torch.where(mask(lengths, text.shape[1])[..., None], text, 1.0))
        else:
            norms = norms_of(image)
        out.append((image, text, norms, gram))
    return out


def factored(cfg, items, lengths):
    total = 0.0
    for image, text, norms, gram in prepared(cfg, factored, items, lengths):
        of_level = for_regions if cfg["direction"] == "i2t" else for_words
        total = total + of_level(cfg, image, text, norms, gram, lengths)
    return total


def cosines(dot, square, norms):
    # Rounding may leave a square of 0 below it, where its root has no gradient.
    return dot / (square.clamp_min(1e-30).sqrt() * norms).clamp_min(EPS)


def for_regions(cfg, image, text, norms, gram, lengths):
    """[images, captions]: each region attends to the words of each caption."""
    (i, r, d), (c, n, _) = image.shape, text.shape
    raw = (image.reshape(i * r, d) @ text.reshape(c * n, d).T).view(i, r, c, n)
    inside = mask(lengths, n)
    a = F.leaky_relu(raw, 0.1)
    # Padding's own affinities are 0: their root has no gradient.
    sums = torch.where(inside, a.pow(2).sum(1, keepdim=True), 1.0)
    a = a * (cfg["lambda_softmax"] / (sums.sqrt() + EPS))
    weights = torch.softmax(a.masked_fill(~inside, -math.inf), -1)
    dot = (weights * raw).sum(-1)
    flat = weights.view(i * r, c, n).transpose(0, 1)
    if gram is None:
        square = torch.bmm(flat, text).pow(2).sum(-1)
    else:
        square = (torch.bmm(flat, gram) * flat).sum(-1)
    return cosines(dot, square.view(c, i, r).permute(1, 2, 0), norms[..., None]).mean(1)


def for_words(cfg, image, text, norms, gram, lengths):
    """[images, captions]: each word attends to the regions of each image."""
    (i, r, d), (c, n, _) = image.shape, text.shape
    raw = (text.reshape(c * n, d) @ image.transpose(1, 2)).view(i, c, n, r)
    inside = mask(lengths, n)
    a = F.leaky_relu(raw, 0.1)
    a = a * (cfg["lambda_softmax"] / (a.pow(2).sum(2, keepdim=True).sqrt() + EPS))
    weights = torch.softmax(a, -1)
    dot = (weights * raw).sum(-1)
    flat = weights.view(i, c * n, r)
    if gram is None:
        square = torch.bmm(flat, image).pow(2).sum(-1)
    else:
        square = (torch.bmm(flat, gram) * flat).sum(-1)
    cosine = cosines(dot, square.view(i, c, n), norms) * inside
    return cosine.sum(-1) / lengths


FORMS = (published, factored)


def prepared(cfg, form, items, lengths):
    """Encoded items as the form's scoring takes them, which they may be already."""
    return per_item(cfg, items, lengths) if form is factored and len(items[0]) == 2 else items


# ---- both -----------------------------------------------------------------------------------------


def hinge(cfg, scores):
    diagonal = scores.diagonal()
    off = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    rows = (cfg["margin"] + scores - diagonal[:, None]).clamp_min(0).masked_fill(off, 0)
    columns = (cfg["margin"] + scores - diagonal[None]).clamp_min(0).masked_fill(off, 0)
    return rows.max(1).values.sum() + columns.max(0).values.sum()
