"""The published networks, written down once more from their equations, slowly, in NumPy and float64; for tests only.

Small networks of two levels with one block each, 8x8 and 4x4, or 4x4 and 2x2 with the names of guided-diffusion, by hand.
"""

import math

import numpy as np


def silu(x):
    return x / (1 + np.exp(-x))


def group_norm(x, p, name, eps, groups=0):
    """Mean 0 and variance 1 in each group of channels of each image, then a scale and a shift by channel."""
    out, groups = np.empty_like(x), groups or min(32, x.shape[1] // 4)
    size = x.shape[1] // groups
    for n in range(len(x)):
        for g in range(groups):
            part = x[n, g * size : (g + 1) * size]
            out[n, g * size : (g + 1) * size] = (part - part.mean()) / math.sqrt(part.var() + eps)
    return out * p[f"{name}.weight"][:, None, None] + p[f"{name}.bias"][:, None, None]


def conv(x, p, name, pad=None, bias=True):
    """A correlation, pixel by pixel of the kernel."""
    w = p[f"{name}.weight"]
    k = w.shape[-1]
    pad = k // 2 if pad is None else pad
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    h, wide = x.shape[2] - k + 1, x.shape[3] - k + 1
    out = sum(np.einsum("oi,nihw->nohw", w[:, :, a, b], x[:, :, a : a + h, b : b + wide]) for a in range(k) for b in range(k))
    return out + p[f"{name}.bias"][:, None, None] if bias else out


def linear(x, p, name):
    found = x @ p[f"{name}.weight"].T
    return found + p[f"{name}.bias"] if f"{name}.bias" in p else found


def halving(size, taps, pad):
    """The matrix that filters ``size`` numbers, zeros outside, and keeps every second result."""
    k = len(taps)
    rows = (size + 2 * pad - k) // 2 + 1
    matrix = np.zeros((rows, size))
    for i in range(rows):
        for j, tap in enumerate(taps):
            if 0 <= (at := 2 * i + j - pad) < size:
                matrix[i, at] = tap / sum(taps)
    return matrix


def resampled(x, way, taps):
    """Down: the filter, then every second pixel, along both axes. Up: its transpose, times two along each axis."""
    if not way:
        return x
    pad, size = len(taps) // 2 - 1, x.shape[-1]
    m = halving(size, taps, pad) if way == "down" else 2 * halving(2 * size, taps, pad).T
    return m @ x @ m.T


def attention(x, p, name, heads, eps):
    """Each pixel, of each head, looks at all pixels; of a head's channels q, k and v interleave."""
    n, c, h, w = x.shape
    size = c // heads
    qkv = conv(group_norm(x, p, f"{name}.norm2", eps), p, f"{name}.qkv").reshape(n, heads, size, 3, h * w)
    out = np.empty((n, heads, size, h * w))
    for i in range(n):
        for head in range(heads):
            q, k, v = qkv[i, head, :, 0], qkv[i, head, :, 1], qkv[i, head, :, 2]
            for pixel in range(h * w):
                score = np.exp([q[:, pixel] @ k[:, other] / math.sqrt(size) for other in range(h * w)])
                out[i, head, :, pixel] = v @ (score / score.sum())
    return conv(out.reshape(n, c, h, w), p, f"{name}.proj")


def song_block(x, e, p, name, taps, way=""):
    h = conv(resampled(silu(group_norm(x, p, f"{name}.norm0", 1e-6)), way, taps), p, f"{name}.conv0")
    h = h + linear(e, p, f"{name}.affine")[:, :, None, None]
    h = conv(silu(group_norm(h, p, f"{name}.norm1", 1e-6)), p, f"{name}.conv1")
    x = resampled(x, way, taps)
    x = ((conv(x, p, f"{name}.skip") if f"{name}.skip.weight" in p else x) + h) / math.sqrt(2)
    return (x + attention(x, p, name, 1, 1e-6)) / math.sqrt(2) if f"{name}.qkv.weight" in p else x


def adm_block(x, e, p, name, heads, way=""):
    h = conv(resampled(silu(group_norm(x, p, f"{name}.norm0", 1e-5)), way, (1, 1)), p, f"{name}.conv0")
    both = linear(e, p, f"{name}.affine")[:, :, None, None]
    scale, shift = both[:, : h.shape[1]], both[:, h.shape[1] :]
    h = conv(silu(group_norm(h, p, f"{name}.norm1", 1e-5) * (1 + scale) + shift), p, f"{name}.conv1")
    x = resampled(x, way, (1, 1))
    x = (conv(x, p, f"{name}.skip") if f"{name}.skip.weight" in p else x) + h
    return x + attention(x, p, name, heads or x.shape[1] // 64, 1e-5) if f"{name}.qkv.weight" in p else x


def joined(x, skips):
    return np.concatenate([x, skips.pop()], axis=1)


def song(p, x, noise, label, ncsn):
    """DDPM++, or NCSN++."""
    taps = (1, 3, 3, 1) if ncsn else (1, 1)
    width = p["map_layer0.weight"].shape[1]
    if ncsn:
        angle = 2 * math.pi * np.outer(noise, p["map_noise.freqs"])
    else:
        angle = np.outer(noise, [10000 ** (-i / (width // 2 - 1)) for i in range(width // 2)])
    e = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
    e = e + linear(label * math.sqrt(label.shape[1]), p, "map_label")
    e = silu(linear(silu(linear(e, p, "map_layer0")), p, "map_layer1"))

    images = x
    x = conv(x, p, "enc.8x8_conv")
    skips = [x]
    x = song_block(x, e, p, "enc.8x8_block0", taps)
    skips.append(x)
    x = song_block(x, e, p, "enc.4x4_down", taps, "down")
    if ncsn:
        name = "enc.4x4_aux_residual"
        wide = conv(images, p, name, pad=2, bias=False)  # 10x10
        m = halving(10, taps, 0)
        x = (x + m @ wide @ m.T + p[f"{name}.bias"][:, None, None]) / math.sqrt(2)
    skips.append(x)
    x = song_block(x, e, p, "enc.4x4_block0", taps)
    skips.append(x)

    x = song_block(x, e, p, "dec.4x4_in0", taps)
    x = song_block(x, e, p, "dec.4x4_in1", taps)
    x = song_block(joined(x, skips), e, p, "dec.4x4_block0", taps)
    x = song_block(joined(x, skips), e, p, "dec.4x4_block1", taps)
    x = song_block(x, e, p, "dec.8x8_up", taps, "up")
    x = song_block(joined(x, skips), e, p, "dec.8x8_block0", taps)
    x = song_block(joined(x, skips), e, p, "dec.8x8_block1", taps)
    return conv(silu(group_norm(x, p, "dec.8x8_aux_norm", 1e-6)), p, "dec.8x8_aux_conv")


def adm(p, x, noise, label, heads=None):
    """ADM, with a head for each 64 channels or a number of them."""
    half = p["map_layer0.weight"].shape[1] // 2
    angle = np.outer(noise, [10000 ** (-i / half) for i in range(half)])
    e = np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
    e = silu(linear(silu(linear(e, p, "map_layer0")), p, "map_layer1") + linear(label, p, "map_label"))

    skips = [conv(x, p, "enc.8x8_conv")]
    skips.append(adm_block(skips[-1], e, p, "enc.8x8_block0", heads))
    skips.append(adm_block(skips[-1], e, p, "enc.4x4_down", heads, "down"))
    skips.append(adm_block(skips[-1], e, p, "enc.4x4_block0", heads))
    x = adm_block(skips[-1], e, p, "dec.4x4_in0", heads)
    x = adm_block(x, e, p, "dec.4x4_in1", heads)
    x = adm_block(joined(x, skips), e, p, "dec.4x4_block0", heads)
    x = adm_block(joined(x, skips), e, p, "dec.4x4_block1", heads)
    x = adm_block(x, e, p, "dec.8x8_up", heads, "up")
    x = adm_block(joined(x, skips), e, p, "dec.8x8_block0", heads)
    x = adm_block(joined(x, skips), e, p, "dec.8x8_block1", heads)
    return conv(silu(group_norm(x, p, "out_norm", 1e-5)), p, "out_conv")


# ADM with the names of guided-diffusion


def guided_block(x, e, p, name, way="", groups=0):
    """Its ``out_layers`` and ``in_layers`` are lists with an activation, and a dropout, in between."""
    h = conv(resampled(silu(group_norm(x, p, f"{name}.in_layers.0", 1e-5, groups)), way, (1, 1)), p, f"{name}.in_layers.2")
    scale, shift = np.split(linear(silu(e), p, f"{name}.emb_layers.1")[:, :, None, None], 2, axis=1)
    h = conv(silu(group_norm(h, p, f"{name}.out_layers.0", 1e-5, groups) * (1 + scale) + shift), p, f"{name}.out_layers.3")
    x = resampled(x, way, (1, 1))
    return h + (conv(x, p, f"{name}.skip_connection") if f"{name}.skip_connection.weight" in p else x)


def guided_attention(x, p, name, heads, new, groups=0):
    """By head q, k and v follow each other; in the new order first q of all heads, then k, then v."""
    n, c, h, w = x.shape
    size = c // heads
    inside = {f"{name}.qkv.weight": p[f"{name}.qkv.weight"][..., None], f"{name}.qkv.bias": p[f"{name}.qkv.bias"]}
    qkv = conv(group_norm(x, p, f"{name}.norm", 1e-5, groups), inside, f"{name}.qkv").reshape(n, 3 * c, h * w)
    out = np.empty((n, c, h * w))
    for i in range(n):
        for head in range(heads):
            at = [(part * c + head * size) if new else (3 * head + part) * size for part in range(3)]
            q, k, v = (qkv[i, start : start + size] for start in at)
            score = np.exp(q.T @ k / math.sqrt(size))
            out[i, head * size : (head + 1) * size] = v @ (score / score.sum(axis=1, keepdims=True)).T
    out = p[f"{name}.proj_out.weight"][:, :, 0] @ out + p[f"{name}.proj_out.bias"][:, None]
    return x + out.reshape(n, c, h, w)


def guided(p, x, time, classes, heads, new):
    """Two levels of one block, with attention on the second, and twice as many channels of the output: noise and variance."""
    half = p["time_embed.0.weight"].shape[1] // 2
    angle = np.outer(time, np.exp(-math.log(10000) * np.arange(half) / half))
    e = linear(silu(linear(np.concatenate([np.cos(angle), np.sin(angle)], axis=1), p, "time_embed.0")), p, "time_embed.2")
    e = e + p["label_emb.weight"][classes]
    hs = [conv(x, p, "input_blocks.0.0")]
    hs.append(guided_block(hs[-1], e, p, "input_blocks.1.0"))
    hs.append(guided_block(hs[-1], e, p, "input_blocks.2.0", "down"))
    x = guided_attention(guided_block(hs[-1], e, p, "input_blocks.3.0"), p, "input_blocks.3.1", heads, new)
    hs.append(x)
    x = guided_attention(guided_block(x, e, p, "middle_block.0"), p, "middle_block.1", heads, new)
    x = guided_block(x, e, p, "middle_block.2")
    x = guided_attention(guided_block(joined(x, hs), e, p, "output_blocks.0.0"), p, "output_blocks.0.1", heads, new)
    x = guided_attention(guided_block(joined(x, hs), e, p, "output_blocks.1.0"), p, "output_blocks.1.1", heads, new)
    x = guided_block(x, e, p, "output_blocks.1.2", "up")
    x = guided_block(joined(x, hs), e, p, "output_blocks.2.0")
    x = guided_block(joined(x, hs), e, p, "output_blocks.3.0")
    return conv(silu(group_norm(x, p, "out.0", 1e-5)), p, "out.2")


def guided_shapes(classes, c=128, images=2):
    """Names and shapes of its tensors, with as many channels everywhere."""
    emb, found = 4 * c, {}

    def layer(name, *shape, bias=True):
        found[f"{name}.weight"] = shape
        if bias:
            found[f"{name}.bias"] = shape[:1]

    def block(name, inputs=c):
        for at, shape in (("in_layers.0", (inputs,)), ("in_layers.2", (c, inputs, 3, 3)), ("emb_layers.1", (2 * c, emb)),
                          ("out_layers.0", (c,)), ("out_layers.3", (c, c, 3, 3))):  # fmt: skip
            layer(f"{name}.{at}", *shape)
        if inputs != c:
            layer(f"{name}.skip_connection", c, inputs, 1, 1)

    layer("time_embed.0", emb, c)
    layer("time_embed.2", emb, emb)
    layer("label_emb", classes, emb, bias=False)
    layer("input_blocks.0.0", c, images, 3, 3)
    for name in ("input_blocks.1", "input_blocks.2", "input_blocks.3", "middle_block"):
        block(f"{name}.0")
    block("middle_block.2")
    block("output_blocks.1.2")
    for number in range(4):
        block(f"output_blocks.{number}.0", 2 * c)
    for name in ("input_blocks.3.1", "middle_block.1", "output_blocks.0.1", "output_blocks.1.1"):
        layer(f"{name}.norm", c)
        layer(f"{name}.qkv", 3 * c, c, 1)
        layer(f"{name}.proj_out", c, c, 1)
    layer("out.0", c)
    layer("out.2", 2 * images, c, 3, 3)
    return found



def guided_classifier(p, x, time):
    """Four levels of two blocks, the second and third with attention, in heads of 64 channels; all norms have 32 groups."""
    half = p["time_embed.0.weight"].shape[1] // 2
    angle = np.outer(time, np.exp(-math.log(10000) * np.arange(half) / half))
    e = linear(silu(linear(np.concatenate([np.cos(angle), np.sin(angle)], axis=1), p, "time_embed.0")), p, "time_embed.2")
    x, number = conv(x, p, "input_blocks.0.0"), 1
    for level in range(4):
        for way in [*(["down"] if level else []), "", ""]:
            x = guided_block(x, e, p, f"input_blocks.{number}.0", way, 32)
            if f"input_blocks.{number}.1.qkv.weight" in p:
                x = guided_attention(x, p, f"input_blocks.{number}.1", x.shape[1] // 64, False, 32)
            number += 1
    x = guided_block(x, e, p, "middle_block.0", groups=32)
    x = guided_attention(x, p, "middle_block.1", x.shape[1] // 64, False, 32)
    x = silu(group_norm(guided_block(x, e, p, "middle_block.2", groups=32), p, "out.0", 1e-5, 32))
    n, c = x.shape[:2]
    tokens, out = x.reshape(n, c, -1), []
    for one in tokens:
        one = np.concatenate([one.mean(axis=1, keepdims=True), one], axis=1) + p["out.2.positional_embedding"]
        q, k, v = np.split(p["out.2.qkv_proj.weight"][:, :, 0] @ one + p["out.2.qkv_proj.bias"][:, None], 3)
        heads = []
        for at in range(0, c, 64):
            score = np.exp(q[at : at + 64, 0] @ k[at : at + 64] / 8)
            heads.append(v[at : at + 64] @ (score / score.sum()))
        out.append(p["out.2.c_proj.weight"][:, :, 0] @ np.concatenate(heads) + p["out.2.c_proj.bias"])
    return np.array(out)
