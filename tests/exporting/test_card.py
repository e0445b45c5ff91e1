"""The card says where a model comes from, in the same bytes every time."""

from __future__ import annotations

import yaml

from tunesmith.exporting.card import CardFacts, write_card, write_modelfile
from tunesmith.types import Task

FACTS = CardFacts(
    name="small-tuned",
    base={
        "name": "small",
        "source": "registry",
        "weights_digest": "ab" * 32,
        "licence": "apache-2.0",
        "num_parameters": 134515008,
        "architecture": "LlamaForCausalLM",
    },
    train={"num_steps": 12, "num_trainable": 4884480, "first_loss": 2.5, "final_loss": 0.25, "method": "lora"},
    train_section={"method": "lora", "lora_rank": 16, "learning_rate": 2e-4, "max_steps": None},
    data_counts={"train": 100, "test": 50, "excluded_rouge_l": 3},
    data_licences={"cc0": 90, "not stated": 10},
    digests={"curate": "cd" * 32, "train": "ef" * 32},
    task=Task(description="Sorts messages.", system_prompt='Answer in "JSON".'),
    files={"gguf/small-tuned-q8_0.gguf": 144_000_000, "safetensors/model.safetensors": 269_000_000},
    checks={
        "merge": {"max_logit_difference": 2e-5, "num_positions": 900, "limit": 1e-3},
        "cast": {"dtype": "bfloat16", "mean_kl": 0.001, "num_equal_top1": 899, "num_positions": 900},
        "gguf": {
            "small-tuned-q8_0.gguf": {
                "tokens": {"num_equal": 500, "num_strings": 500},
                "answers": {
                    "num_equal": 18,
                    "num_prompts": 20,
                    "equal_token_share": 0.99,
                    "mean_logprob_difference": 0.004,
                },
            }
        },
    },
    stop_texts=("<|im_end|>",),
    scores={
        "base": {"json_valid": {"value": 0.0, "stderr": 0.0, "n": 50}},
        "tuned": {"json_valid": {"value": 0.98, "stderr": 0.02, "n": 50}, "rouge_l": {"value": None}},
    },
)


def test_the_front_matter_is_yaml_that_hubs_read():
    front = yaml.safe_load(write_card(FACTS).split("---")[1])
    assert front == {
        "base_model": "small",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": "apache-2.0",
    }


def test_a_licence_that_is_not_stated_is_not_claimed():
    card = write_card(CardFacts(**{**FACTS.__dict__, "base": {**FACTS.base, "licence": "not stated"}}))
    assert "license:" not in card
    assert "| its licence | not stated |" in card


def test_lineage_scores_and_checks_are_all_there():
    card = write_card(FACTS)
    for expected in (
        "| digest of train | " + "ef" * 32,
        "sha256 " + "ab" * 32,
        "train 100, test 50, excluded rouge l 3",
        "cc0 (90 rows), not stated (10 rows)",
        "lora_rank 16, learning_rate 0.0002",
        "first loss 2.5, final loss 0.25",
        "| tuned | 0.98 ± 0.02 (n=50) | – |",
        "500 of 500 texts tokenised alike",
        "18 of 20 greedy answers equal to transformers', 99.0% of the tokens",
        "llama-server -m gguf/small-tuned-q8_0.gguf",
        'Answer in "JSON".',
    ):
        assert expected in card, expected
    assert card == write_card(FACTS)


def test_a_model_that_was_not_scored_has_no_score_table():
    assert "## Scores" not in write_card(CardFacts(**{**FACTS.__dict__, "scores": {}}))


def test_the_modelfile_quotes_what_it_must():
    text = write_modelfile("gguf/a.gguf", Task(system_prompt='Say """hi"""'), ["<|im_end|>", 'a"b'])
    assert text == (
        'FROM ./gguf/a.gguf\nSYSTEM """Say \'\'\'hi\'\'\'"""\nPARAMETER stop "<|im_end|>"\n'
        'PARAMETER stop "a\\"b"\nPARAMETER temperature 0\n'
    )
