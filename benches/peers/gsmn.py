"""GSMN in PyTorch, in two forms: as published, and factored as well as PyTorch's operations allow.

The published form takes one caption at a time against all images, with contexts, the Gaussian kernels made again for
each caption, and each node's own vector repeated as its neighbours. The factored form takes all captions at once
behind a mask, from one affinity, whose blocks and Gram matrices give the comparisons; the kernels' row sums belong to
the image.
"""

import math

import torch
import torch.nn.functional as F

KERNELS = 8
IMAGE, TEXT = "i2t_match_G.graph_convolution_1.", "t2i_match_G.graph_convolution_3."


def l2norm(x, dim):
    return x / (x.pow(2).sum(dim, keepdim=True).sqrt() + 1e-8)


# ---- encoders, of both forms ----------------------------------------------------------------------


def encode_images(p, images):
    return l2norm(F.linear(images, p["img_enc.fc.weight"], p["img_enc.fc.bias"]), -1)


def encode_captions(p, cfg, ids, lengths):
    """Words [captions, words, embed], 0 past the lengths, which descend."""
    at = "txt_enc.rnn."
    weights = {n[len(at) :]: t for n, t in p.items() if n.startswith(at)}
    with torch.device("meta"):
        gru = torch.nn.GRU(cfg["word_dim"], cfg["embed_size"], batch_first=True, bidirectional=cfg["bi_gru"])
    x = F.embedding(ids, p["txt_enc.embed.weight"])
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths.cpu(), batch_first=True)
    states = torch.func.functional_call(gru, weights, (packed,))[0]
    words = torch.nn.utils.rnn.pad_packed_sequence(states, batch_first=True, total_length=ids.shape[1])[0]
    if cfg["bi_gru"]:
        words = words.unflatten(-1, (2, -1)).mean(-2)
    # A square root at 0 has no gradient, and padding is nothing but zeros.
    inside = mask(lengths, ids.shape[1])[..., None]
    return l2norm(torch.where(inside, words, 1.0), -1) * inside


def mask(lengths, words):
    return torch.arange(words, device=lengths.device)[None] < lengths[:, None]


def gaussian_weights(p, boxes):
    """[images, i, j, kernels]."""
    middle = boxes[..., :2] + 0.5 * (boxes[..., 2:] - boxes[..., :2])
    delta = middle[:, :, None] - middle[:, None]
    rho, theta = delta.pow(2).sum(-1, keepdim=True).sqrt(), torch.atan2(delta[..., :1], delta[..., 1:])
    of = lambda name: p[IMAGE + name].view(-1)
    near = torch.exp(-0.5 * (rho - of("mean_rho")) ** 2 / (1e-14 + of("precision_rho") ** 2))
    turn = (theta - of("mean_theta")).abs()
    turn = torch.minimum(turn, (2 * math.pi - turn).abs())
    weights = near * torch.exp(-0.5 * turn**2 / (1e-14 + of("precision_theta") ** 2))
    weights = torch.where(weights.isnan(), 0.0, weights)
    return weights / weights.sum(-1, keepdim=True)


def weight_normed(p, name):
    v = p[name + ".weight_v"]
    return p[name + ".weight_g"] * v / v.norm(dim=1, keepdim=True), p[name + ".bias"]


# ---- as published ---------------------------------------------------------------------------------


def node_match(cfg, query, context):
    scores = l2norm(F.leaky_relu(torch.bmm(context, query.transpose(1, 2)), 0.1), 2)
    attention = torch.softmax(scores.transpose(1, 2).contiguous() * cfg["lambda_softmax"], 2)
    attended = torch.bmm(attention, context)
    width = cfg["embed_size"] // cfg["num_block"]
    pairs = zip(query.split(width, 2), attended.split(width, 2))
    matched = [(q * c).sum(2) / (q.norm(dim=2) * c.norm(dim=2)).clamp_min(1e-8) for q, c in pairs]
    return torch.stack(matched, 2)


def graph(p, at, matched, weights):
    """`weights` [items, i, j, kernels], of one item or of as many as `matched` [images, nodes, blocks] has."""
    images, nodes, blocks = matched.shape
    around = matched[:, :, None].repeat(1, 1, nodes, 1).view(images * nodes, nodes, blocks)
    weights = weights.expand(images, -1, -1, -1).reshape(images * nodes, nodes, KERNELS)
    heard = torch.bmm(weights.transpose(1, 2), around)
    maps = ((p[f"{at}conv_weights.{k}.weight"], p.get(f"{at}conv_weights.{k}.bias")) for k in range(KERNELS))
    return torch.cat([F.linear(heard[:, k], *m) for k, m in enumerate(maps)], 1).view(images, nodes, -1)


def score(p, side, hidden):
    hidden = torch.tanh(F.linear(hidden, *weight_normed(p, side + ".out_1")))
    return F.linear(hidden, *weight_normed(p, side + ".out_2")).mean((1, 2))


def published(p, cfg, regions, boxes, words, lengths):
    columns = []
    for c, n in enumerate(lengths.tolist()):
        t = words[c : c + 1, :n].repeat(len(regions), 1, 1)
        hidden = graph(p, IMAGE, node_match(cfg, regions, t), gaussian_weights(p, boxes))
        image = score(p, "i2t_match_G", hidden)
        alike = torch.softmax(cfg["lambda_softmax"] * torch.bmm(t, t.transpose(1, 2)), 2)
        weights = alike[..., None] * p[TEXT + "params"].view(-1)
        weights = weights / weights.sum(2, keepdim=True)
        text = score(p, "t2i_match_G", graph(p, TEXT, node_match(cfg, t, regions), weights))
        columns.append(image + text)
    return torch.stack(columns, 1)


# ---- factored -------------------------------------------------------------------------------------


def of_kernels(p, at, kind):
    return torch.cat([p[f"{at}conv_weights.{k}.{kind}"] for k in range(KERNELS)])


def compare(weights, dots, context, nodes):
    """[nodes' items, context's items, nodes, blocks] from `weights` [x, c, nodes, context], the blocks' `dots` [blocks,
    x, c, nodes, context], and the vectors of the `context` [c, context, blocks, width] and the `nodes` [x, nodes,
    blocks, width]. The attended vector is made where it is the smaller."""
    items, others, n, k = weights.shape
    blocks, width = nodes.shape[2:]
    flat = weights.transpose(0, 1).reshape(others, items * n, k)
    if k < width:
        grams = torch.einsum("ckbw,clbw->ckbl", context, context)
        mixed = torch.bmm(flat, grams.reshape(others, k, blocks * k)).view(others, items * n, blocks, k)
        square = (mixed * flat[:, :, None]).sum(-1).view(others, items, n, blocks)
        dot = (dots * weights).sum(-1).permute(2, 1, 3, 0)
    else:
        attended = torch.bmm(flat, context.flatten(2)).view(others, items, n, blocks, width)
        square, dot = attended.pow(2).sum(-1), (attended * nodes).sum(-1)
    # Rounding may leave a square of 0 below it, where its root has no gradient.
    norms = square.clamp_min(1e-30).sqrt() * nodes.norm(dim=-1)
    return (dot / norms.clamp_min(1e-8)).transpose(0, 1)


# Pairs at a time on a CPU: more than fit its caches are slower.
CPU_PAIRS = 256


def factored(p, cfg, regions, row_sums, words, lengths):
    size = len(words) if regions.is_cuda else max(CPU_PAIRS // len(regions), 1)
    parts = zip(words.split(size), lengths.split(size))
    return torch.cat([of_part(p, cfg, regions, row_sums, *part) for part in parts], 1)


def of_part(p, cfg, regions, row_sums, words, lengths):
    scale, width = cfg["lambda_softmax"], cfg["embed_size"] // cfg["num_block"]
    (i, r, _), (c, n, _) = regions.shape, words.shape
    inside = mask(lengths, n)
    in_blocks = lambda x: x.unflatten(-1, (-1, width))
    v, t = in_blocks(regions), in_blocks(words)
    dots = None
    if min(r, n) < width:
        first = lambda x: x.flatten(0, 1).transpose(0, 1)
        dots = torch.bmm(first(v), first(t).transpose(1, 2)).view(-1, i, r, c, n).transpose(2, 3)
        affinity = dots.sum(0)
    else:
        affinity = (regions.flatten(0, 1) @ words.flatten(0, 1).T).view(i, r, c, n).transpose(1, 2)
    affinity = F.leaky_relu(affinity, 0.1)

    # Padded words make 0 / 0 of their own norms: none is made of them.
    norm = torch.where(inside[:, None], affinity.pow(2).sum(2, keepdim=True), 1.0).sqrt() + 1e-8
    weights = torch.softmax((scale * affinity / norm).masked_fill(~inside[:, None], -math.inf), -1)
    matched = compare(weights, dots, t, v)
    hidden = F.linear(matched, of_kernels(p, IMAGE, "weight"))
    hidden = (hidden.unflatten(-1, (KERNELS, -1)) * row_sums[:, None, :, :, None]).flatten(-2)
    hidden = torch.tanh(F.linear(hidden, *weight_normed(p, "i2t_match_G.out_1"))).mean(2)
    image = F.linear(hidden, *weight_normed(p, "i2t_match_G.out_2")).mean(-1)

    norm = affinity.pow(2).sum(3, keepdim=True).sqrt() + 1e-8
    weights = torch.softmax(scale * affinity / norm, 2).permute(1, 0, 3, 2)
    turned = None if dots is None else dots.permute(0, 2, 1, 4, 3)
    matched = compare(weights, turned, v, torch.where(inside[..., None, None], t, 1.0))
    w, b = weight_normed(p, "t2i_match_G.out_1")
    joined = w @ of_kernels(p, TEXT, "weight"), F.linear(of_kernels(p, TEXT, "bias"), w, b)
    hidden = torch.tanh(F.linear(matched, *joined)) * inside[:, None, :, None]
    hidden = hidden.sum(2) / lengths[:, None, None]
    text = F.linear(hidden, *weight_normed(p, "t2i_match_G.out_2")).mean(-1)
    return image + text.T


FORMS = (published, factored)


# ---- both -----------------------------------------------------------------------------------------


def encode(p, cfg, form, images, boxes, ids, lengths):
    """What the form scores: regions, their boxes or row sums, words and their lengths."""
    of_boxes = gaussian_weights(p, boxes).sum(2) if form is factored else boxes
    return encode_images(p, images), of_boxes, encode_captions(p, cfg, ids, lengths), lengths


def hinge(cfg, scores):
    diagonal = scores.diagonal()
    off = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    rows = (cfg["margin"] + scores - diagonal[:, None]).clamp_min(0).masked_fill(off, 0)
    columns = (cfg["margin"] + scores - diagonal[None]).clamp_min(0).masked_fill(off, 0)
    if cfg["max_violation"]:
        rows, columns = rows.max(1).values, columns.max(0).values
    return rows.sum() + columns.sum()
