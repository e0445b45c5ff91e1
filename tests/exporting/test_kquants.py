"""K-quants against the published dequantisers and against llama.cpp's own quantiser."""

from __future__ import annotations

import ctypes
import importlib

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from tunesmith.exporting.kquants import quantize_q4_k, quantize_q6_k

KINDS = [
    (quantize_q4_k, GGMLQuantizationType.Q4_K, 0.0714),
    (quantize_q6_k, GGMLQuantizationType.Q6_K, 0.0178),
]


@pytest.mark.parametrize(("quantize", "kind", "expected"), KINDS)
def test_error_on_normal_values_is_the_known_one(quantize, kind, expected):
    values = np.random.default_rng(0).standard_normal((256, 1024)).astype(np.float32)
    back = quants.dequantize(quantize(values), kind)
    assert np.sqrt(np.mean((back - values) ** 2)) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize(("quantize", "kind", "expected"), KINDS)
def test_error_is_within_one_percent_of_llama_cpps_quantiser(quantize, kind, expected):
    native = pytest.importorskip("xllamacpp.xllamacpp")
    library = ctypes.CDLL(native.__file__)
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        *[ctypes.c_void_p] * 2,
        *[ctypes.c_int64] * 3,
        ctypes.c_void_p,
    ]
    values = np.random.default_rng(1).laplace(0.01, 0.03, (64, 768)).astype(np.float32)
    ours = quantize(values)
    theirs = np.zeros_like(ours)
    library.ggml_quantize_chunk(kind.value, values.ctypes.data, theirs.ctypes.data, 0, *values.shape, None)
    error = [np.square(quants.dequantize(one, kind) - values).mean() for one in (ours, theirs)]
    assert error[0] <= 1.01 * error[1]


@pytest.mark.parametrize(("quantize", "kind", "expected"), KINDS)
def test_zeros_constants_and_one_sided_rows_survive(quantize, kind, expected):
    ramp = np.linspace(0.5, 1.0, 256, dtype=np.float32)
    values = np.stack([np.zeros(256, np.float32), np.full(256, 0.25, np.float32), ramp, -ramp])
    back = quants.dequantize(quantize(values), kind)
    assert np.isfinite(back).all()
    assert not back[0].any()
    assert np.abs(back - values).max() < 0.04


def test_quantising_in_chunks_equals_quantising_row_by_row():
    values = np.random.default_rng(2).standard_normal((300, 512)).astype(np.float32)
    whole = quantize_q4_k(values)
    assert np.array_equal(whole[[0, 150, 299]], np.stack([quantize_q4_k(values[row]) for row in (0, 150, 299)]))


def test_rows_that_are_no_multiple_of_a_block_are_refused():
    with pytest.raises(ValueError, match="576 values are not a multiple of 256"):
        quantize_q4_k(np.zeros((2, 576), np.float32))


def test_the_engine_module_has_the_reference_quantiser():
    pytest.importorskip("xllamacpp")
    assert hasattr(ctypes.CDLL(importlib.import_module("xllamacpp.xllamacpp").__file__), "ggml_quantize_chunk")
