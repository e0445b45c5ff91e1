"""Small tokenizers for the tests of the renderer: trained on a few lines, with the control tokens of every template."""

from __future__ import annotations

import json
from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = [
    "<s>",
    "</s>",
    "<unk>",
    "<|im_start|>",
    "<|im_end|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|end_of_turn|>",
]
NOT_SPECIAL = [
    "<think>",
    "</think>",
    "<|START_OF_TURN_TOKEN|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|USER_TOKEN|>",
    "<|CHATBOT_TOKEN|>",
    "<|SYSTEM_TOKEN|>",
]
SWALLOWS_SPACE = ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]  # as in Phi-3: rstrip
CORPUS = [
    "user assistant system You are a helpful assistant. Hello there, how are you? Fine, thanks!",
    "### Instruction:\nSay hi\n\n### Response:\nHi\n\n Human: \n Assistant: \n GPT4 Correct User: [INST] [/INST] <<SYS>>",
    "A chat between a curious user and an artificial intelligence assistant. USER: ASSISTANT: the gear slips on my bike",
    '你好，世界。今天天气很好。 émigré naïve 🙂🚲 1234567890 {"intent": "refund", "order": null}',
] * 4


@cache
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with a post-processor that would add <s> and trim offsets, as Llama 3's does."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    )
    _add_tokens(backend)
    first = backend.token_to_id("<s>")
    backend.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", first)]),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@cache
def sentencepiece_tokenizer(prepend: bool) -> PreTrainedTokenizerFast:
    """BPE over pieces with byte fallback. prepend: the older form, which puts a space before whatever follows an
    added token, so that a text cannot be cut without a trace; else the newer one, only at the very start."""
    everything = [f"<0x{byte:02X}>" for byte in range(256)]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["<unk>", *everything], show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    backend = Tokenizer(models.BPE(model["vocab"], merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if prepend:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    _add_tokens(backend)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _add_tokens(backend: Tokenizer) -> None:
    backend.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in SPECIAL])
    backend.add_special_tokens(
        [AddedToken(text, normalized=False, special=True, rstrip=True) for text in SWALLOWS_SPACE]
    )
    backend.add_tokens([AddedToken(text, normalized=False, special=False) for text in NOT_SPECIAL])
