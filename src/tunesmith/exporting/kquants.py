"""Q4_K and Q6_K block quantisation in numpy, so that no compiler and no engine is needed to write them.

Layouts and the error each one minimises are those of ggml (ggml-quants.c, block_q4_K and block_q6_K, without an
importance matrix): 256 values a block, with sub-block scales that are themselves quantised. Knows no files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]  # float32
Bytes = NDArray[Any]  # uint8

BLOCK = 256  # values in a super-block; rows must be a multiple
_CHUNK_BLOCKS = 256  # blocks worked on at once: 256 KiB of fp32, which stays in the cache with its temporaries

Q4_K_BYTES = 144
Q6_K_BYTES = 210


def quantize_q4_k(values: Floats) -> Bytes:
    """float32 (..., T) with T a multiple of 256 -> uint8 (..., T / 256 * 144)."""
    return _in_chunks(values, Q4_K_BYTES, _q4_k_blocks)


def quantize_q6_k(values: Floats) -> Bytes:
    """float32 (..., T) with T a multiple of 256 -> uint8 (..., T / 256 * 210)."""
    return _in_chunks(values, Q6_K_BYTES, _q6_k_blocks)


def _in_chunks(values: Floats, block_bytes: int, blocks_to_bytes: Callable[[Floats], Bytes]) -> Bytes:
    if values.shape[-1] % BLOCK:
        raise ValueError(f"rows of {values.shape[-1]} values are not a multiple of {BLOCK}")
    blocks = np.ascontiguousarray(values, dtype=np.float32).reshape(-1, BLOCK)
    out = np.empty((len(blocks), block_bytes), dtype=np.uint8)
    for start in range(0, len(blocks), _CHUNK_BLOCKS):
        out[start : start + _CHUNK_BLOCKS] = blocks_to_bytes(blocks[start : start + _CHUNK_BLOCKS])
    return out.reshape(*values.shape[:-1], values.shape[-1] // BLOCK * block_bytes)


# Q4_K: 8 sub-blocks of 32; value = d * scale * q - dmin * min, q in 0..15, scale and min in 0..63


def _q4_k_blocks(blocks: Floats) -> Bytes:
    x = blocks.reshape(-1, 8, 32)  # (B, 8, 32)
    scale, minimum = _fit_scale_and_min(np.ascontiguousarray(x.reshape(-1, 32).T), levels=15)
    scale, minimum = scale.reshape(-1, 8), minimum.reshape(-1, 8)  # (B, 8) each, minimum >= 0
    d, scales = _quantize_scales(scale, scale.max(1, keepdims=True) / np.float32(63), 0, 63)
    dmin, mins = _quantize_scales(minimum, minimum.max(1, keepdims=True) / np.float32(63), 0, 63)
    step, offset = (_widen(d) * scales)[:, :, None], (_widen(dmin) * mins)[:, :, None]
    q = _ratio(x + offset, step).round().clip(0, 15).astype(np.uint8).reshape(-1, 4, 2, 32)
    nibbles = (q[:, :, 0] | (q[:, :, 1] << 4)).reshape(-1, 128)
    packed = _pack_six_bits(scales.astype(np.uint8), mins.astype(np.uint8))
    return np.concatenate([d.view(np.uint8), dmin.view(np.uint8), packed, nibbles], axis=1)


def _fit_scale_and_min(x: Floats, levels: int) -> tuple[Floats, Floats]:
    """Scale and min of each sub-block that lower the weighted squared error most, tried from 22 starting scales and
    refined by least squares. Weights |x| + rms favour large values. x (n, S) -> (S,), (S,) >= 0; the sums run over the
    first axis, which is many times faster than over a short last one."""
    weight = np.sqrt(np.square(x).mean(0)) + np.abs(x)
    low = np.minimum(x.min(0), 0)  # (S,)
    above = x - low
    width = above.max(0)
    per_width = _ratio(np.ones_like(width), width)
    sum_w, wx = weight.sum(0), weight * x
    sum_x, sum_x2 = wx.sum(0), (wx * x).sum(0)
    best_scale, best_min, best_error = width / levels, low.copy(), np.full_like(width, np.inf)
    q, product = np.empty_like(x), np.empty_like(x)
    for step in range(-1, 21):  # step -1: the plain range; then levels - 1.0, levels - 0.9, ... levels + 1.0
        reach = np.float32(levels if step < 0 else levels - 1.0 + 0.1 * step)
        np.multiply(above, per_width * reach, out=q)
        np.rint(q, out=q)
        if reach > levels:
            np.minimum(q, np.float32(levels), out=q)
        sum_xq = np.multiply(wx, q, out=product).sum(0)
        sum_q = np.multiply(weight, q, out=product).sum(0)
        sum_q2 = np.multiply(product, q, out=product).sum(0)
        determinant = sum_w * sum_q2 - sum_q * sum_q
        scale = _ratio(sum_w * sum_xq - sum_x * sum_q, determinant)
        offset = _ratio(sum_q2 * sum_x - sum_q * sum_xq, determinant)
        positive = offset > 0  # the format can only subtract a min
        scale = np.where(positive, _ratio(sum_xq, sum_q2), scale)
        offset = np.where(positive, np.float32(0), offset)
        # sum w (scale q + offset - x)^2, expanded
        error = (
            scale * (scale * sum_q2 + 2 * (offset * sum_q - sum_xq)) + offset * (offset * sum_w - 2 * sum_x) + sum_x2
        )
        better = (error < best_error) & (determinant > 0)
        best_error[better], best_scale[better], best_min[better] = error[better], scale[better], offset[better]
    return np.maximum(best_scale, 0), -best_min


def _pack_six_bits(scales: Bytes, mins: Bytes) -> Bytes:
    """(B, 8) and (B, 8) whole numbers below 64 -> (B, 12) bytes: the first four of each lie in the low six bits, the
    high bits of the last four in the two bits above them."""
    first_scales = scales[:, :4] | ((scales[:, 4:] >> 4) << 6)
    first_mins = mins[:, :4] | ((mins[:, 4:] >> 4) << 6)
    return np.concatenate([first_scales, first_mins, (scales[:, 4:] & 15) | ((mins[:, 4:] & 15) << 4)], axis=1)


# Q6_K: 16 sub-blocks of 16; value = d * scale * q, q in -32..31, scale in -128..127


def _q6_k_blocks(blocks: Floats) -> Bytes:
    x = blocks.reshape(-1, 16, 16)
    scale = _fit_scale(np.ascontiguousarray(x.reshape(-1, 16).T), levels=32).reshape(-1, 16)  # (B, 16), signed
    largest = np.take_along_axis(scale, np.abs(scale).argmax(1)[:, None], axis=1)  # (B, 1)
    d, scales = _quantize_scales(scale, largest / np.float32(-128), -128, 127)
    q = (_ratio(x, (_widen(d) * scales)[:, :, None]).round().clip(-32, 31) + 32).astype(np.uint8)
    q = q.reshape(-1, 2, 4, 32)  # halves of 128, quarters of 32
    low = np.concatenate(
        [(q[:, :, 0] & 15) | ((q[:, :, 2] & 15) << 4), (q[:, :, 1] & 15) | ((q[:, :, 3] & 15) << 4)], axis=2
    )
    high = (q[:, :, 0] >> 4) | ((q[:, :, 1] >> 4) << 2) | ((q[:, :, 2] >> 4) << 4) | ((q[:, :, 3] >> 4) << 6)
    packed_scales = scales.astype(np.int8).view(np.uint8)
    return np.concatenate([low.reshape(-1, 128), high.reshape(-1, 64), packed_scales, d.view(np.uint8)], axis=1)


def _fit_scale(x: Floats, levels: int) -> Floats:
    """Signed scale of each sub-block that lowers the squared error weighted by x^2 most, tried from 19 starting scales.
    x (n, S) -> (S,)."""
    largest = np.take_along_axis(x, np.abs(x).argmax(0)[None], axis=0)[0]  # (S,)
    per_largest = _ratio(np.ones_like(largest), -largest)
    weight = np.square(x)
    wx = weight * x
    best_scale, best_gain = np.zeros_like(largest), np.zeros_like(largest)
    q, product = np.empty_like(x), np.empty_like(x)
    for step in (0, *range(-9, 0), *range(1, 10)):
        np.multiply(x, per_largest * np.float32(levels + 0.1 * step), out=q)
        np.rint(q, out=q)
        np.clip(q, -levels, levels - 1, out=q)
        sum_xq = np.multiply(wx, q, out=product).sum(0)
        np.multiply(q, q, out=q)
        sum_q2 = np.multiply(weight, q, out=product).sum(0)
        gain = _ratio(sum_xq * sum_xq, sum_q2)  # how much of the error this scale takes away
        better = gain > best_gain
        best_gain[better], best_scale[better] = gain[better], _ratio(sum_xq, sum_q2)[better]
    return best_scale


def _quantize_scales(scale: Floats, unit: Floats, low: int, high: int) -> tuple[NDArray[np.float16], Floats]:
    """The unit as fp16 (B, 1), and how many units each scale is (B, n), as whole numbers."""
    return unit.astype(np.float16), _ratio(scale, unit).round().clip(low, high)


def _widen(values: NDArray[np.float16]) -> Floats:
    """The fp32 value a reader will multiply by."""
    return values.astype(np.float32)


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """numerator / denominator, 0 where the denominator is 0 (a sub-block of zeros)."""
    zero = denominator == 0
    return np.where(zero, np.float32(0), numerator / np.where(zero, np.float32(1), denominator))
