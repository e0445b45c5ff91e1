"""The embedded model itself, written and run."""

from __future__ import annotations

import pytest

from tunesmith.chat.renderer import Renderer
from tunesmith.exporting.checks import check_read_back, check_tokens
from tunesmith.exporting.gguf_file import Labels, plan_gguf, write_gguf
from tunesmith.exporting.native_tokens import tokenize_natively
from tunesmith.inference.llama_cpp import LlamaCppEngine
from tunesmith.types import Message, SamplingParams

pytestmark = pytest.mark.real


@pytest.mark.parametrize(
    ("quantisation", "size_mb", "kinds"),
    [
        ("q8_0", 145, {"Q8_0": 211, "F32": 61}),
        # 576 wide: only the down projections, 1,536 wide, can be K-quants; 14 of those 30 keep six bits
        ("q4_k_m", 105, {"Q5_0": 166, "Q8_0": 15, "Q4_K": 16, "Q6_K": 14, "F32": 61}),
    ],
)
def test_the_embedded_model_is_written_and_answers(smollm2, tmp_path, quantisation, size_mb, kinds):
    renderer = Renderer.for_model(smollm2.path)
    plan = plan_gguf(
        smollm2.path,
        quantisation=quantisation,
        chat_template=renderer.template,
        stop_ids=renderer.stop_ids,
        labels=Labels("smollm2", smollm2.licence, smollm2.name),
    )
    path = tmp_path / "m.gguf"
    write_gguf(plan, path, num_threads=1, on_done=lambda done: None)
    found = check_read_back(plan, path)
    assert found["tensor_types"] == kinds
    assert found["size_bytes"] == pytest.approx(size_mb * 1e6, rel=0.01)
    tokens = check_tokens(
        smollm2.path / "tokenizer.json", lambda texts: tokenize_natively(path, texts, parse_special=True), path
    )
    assert tokens["num_equal"] == 500
    prompt = renderer.prompt([Message(role="user", content="What is 2+2?")])
    with LlamaCppEngine(path, context_length=256, num_slots=1, num_threads=1) as engine:
        (answer,) = engine.generate_batch([prompt], SamplingParams(max_tokens=24))
    assert "4" in answer.text
    assert answer.finish_reason == "stop"
