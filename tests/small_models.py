"""Random models of every architecture that can be written, with a byte-level BPE tokenizer trained on the spot.

Weights are drawn wide, so that the next token is a real choice and a wrong conversion shows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, trainers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from tunesmith.model.pretokenizers import PRE_TOKENIZERS

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = [
    "the quick brown fox jumps over the lazy dog, and they've said it's 2024 already!",
    "def f(x): return {'a': [1, 2, 3]}  # comment\n\n\tindented  twice",
    "自転車の注文 订单 12345 退款 🚲 🙂 naïve café Привет мир",
    "where is my order? my bicycle's wheel is broken; please refund or replace it",
] * 4
CONFIGS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
STOP_ID = 2


def build_model(folder: Path, kind: str = "llama", *, pre_tokenizer: str = "smollm", **changes: Any) -> Path:
    """Write a model folder: 2 blocks, 64 wide, 4 heads over 2, bf16 as real checkpoints are."""
    tokenizer = build_tokenizer(folder, pre_tokenizer)
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
        "bos_token_id": 1,
        "eos_token_id": STOP_ID,
    }
    if kind == "mistral":
        sizes["sliding_window"] = None
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind](**{**sizes, **changes})).to(torch.bfloat16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):  # as drawn they are ones and zeros, which hide a mix-up
                parameter.copy_(parameter + 0.2 * torch.randn_like(parameter))
        # Rarely choose a part of a character, or a control token: an engine reports neither as a token of its own.
        parts = [index for index in range(len(tokenizer)) if "\ufffd" in tokenizer.decode([index])] + [0, 1]
        model.get_output_embeddings().weight[parts] *= 0.05
    model.config.dtype = torch.bfloat16
    model.save_pretrained(folder)
    return folder


def build_tokenizer(folder: Path, pre_tokenizer: str = "smollm") -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of about 400 tokens and save it with a ChatML template."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(text, special=True) for text in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=ByteLevel.alphabet())
    tokenizer.train_from_iterator(CORPUS, trainer)
    raw = json.loads(tokenizer.to_str())
    raw["pre_tokenizer"] = PRE_TOKENIZERS[pre_tokenizer]
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(raw)),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    wrapped.chat_template = TEMPLATE
    wrapped.save_pretrained(folder)
    return wrapped
