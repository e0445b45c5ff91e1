"""The model card and the Ollama file: what was made of what, how it scores, how to use it. The same bytes for the same
run; no dates, no paths of this machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tunesmith.types import Task


@dataclass(frozen=True)
class CardFacts:
    """Everything the card says. Sections and facts are those of the manifests."""

    name: str
    base: Mapping[str, Any]
    train: Mapping[str, Any]
    train_section: Mapping[str, Any]
    data_counts: Mapping[str, int]
    data_licences: Mapping[str, int]
    digests: Mapping[str, str]  # stage -> digest of its artifact
    task: Task
    files: Mapping[str, int]  # name -> bytes
    checks: Mapping[str, Any]
    stop_texts: tuple[str, ...]
    scores: Mapping[str, Any] = field(default_factory=dict)  # evaluate's facts, {} without that stage


_SHOWN_SETTINGS = (
    "method",
    "lora_rank",
    "lora_alpha",
    "learning_rate",
    "lr_schedule",
    "num_epochs",
    "max_steps",
    "global_batch_size",
    "rng_seed",
)


def write_card(facts: CardFacts) -> str:
    """README.md of an exported model."""
    front = ["---", f"base_model: {facts.base['name']}", "library_name: transformers", "pipeline_tag: text-generation"]
    if facts.base["licence"] != "not stated":
        front.append(f"license: {str(facts.base['licence']).split(' ')[0]}")
    parts = ["\n".join([*front, "---"]), f"# {facts.name}", *_what(facts), *_scores(facts), *_use(facts)]
    parts += [*_origin(facts), *_checks(facts), *_files(facts)]
    return "\n\n".join(parts) + "\n"


def write_modelfile(gguf: str, task: Task, stop_texts: Iterable[str]) -> str:
    """A Modelfile for Ollama, which takes the chat template from the GGUF file itself."""
    lines = [f"FROM ./{gguf}"]
    if task.system_prompt:
        lines.append(f'SYSTEM """{task.system_prompt.replace(chr(34) * 3, chr(39) * 3)}"""')
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in stop_texts]
    lines.append("PARAMETER temperature 0")
    return "\n".join(lines) + "\n"


def _what(facts: CardFacts) -> list[str]:
    text = f"`{facts.base['name']}` ({facts.base['architecture']}, {facts.base['num_parameters']:,} parameters), tuned"
    parts = [f"{text} with tunesmith."]
    if facts.task.description:
        parts.append(f"Made for: {facts.task.description}")
    if facts.task.system_prompt:
        parts.append(
            f"It was trained with this system message; give it the same one:\n\n{_block(facts.task.system_prompt)}"
        )
    return parts


def _scores(facts: CardFacts) -> list[str]:
    """A table of contestants by metrics, from facts of the form {contestant: {metric: number or {value, stderr, n}}}."""
    contestants = {name: row for name, row in facts.scores.items() if isinstance(row, Mapping)}
    metrics = list(dict.fromkeys(metric for row in contestants.values() for metric in row))
    if not metrics:
        return []
    lines = ["| | " + " | ".join(metrics) + " |", "|---|" + "---:|" * len(metrics)]
    for name, row in contestants.items():
        lines.append(f"| {name} | " + " | ".join(_score(row.get(metric)) for metric in metrics) + " |")
    return ["## Scores on held-out rows", "\n".join(lines), "± is one standard error. A dash is unscored, never zero."]


def _score(value: Any) -> str:
    if isinstance(value, Mapping):
        if value.get("value") is None:
            return "–"
        shown = f"{value['value']:.3g}"
        if value.get("stderr") is not None:
            shown += f" ± {value['stderr']:.2g}"
        return shown + (f" (n={value['n']})" if value.get("n") is not None else "")
    return "–" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def _use(facts: CardFacts) -> list[str]:
    ggufs = [name for name in facts.files if name.endswith(".gguf")]
    parts = [
        "## Use",
        "With tunesmith, from the folder it was made in:",
        _block("tunesmith serve latest\ntunesmith chat latest", "sh"),
    ]
    if ggufs:
        serve = f"llama-server -m {ggufs[0]} --jinja"
        parts += ["With llama.cpp or Ollama:", _block(f"{serve}\nollama create {facts.name} -f Modelfile", "sh")]
    if any(name.startswith("safetensors/") for name in facts.files):
        system = f'{{"role": "system", "content": {facts.task.system_prompt!r}}}, ' if facts.task.system_prompt else ""
        code = (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            'tokenizer = AutoTokenizer.from_pretrained("safetensors")\n'
            'model = AutoModelForCausalLM.from_pretrained("safetensors")\n'
            f'messages = [{system}{{"role": "user", "content": "..."}}]\n'
            'inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", '
            "return_dict=True)\n"
            "answer = model.generate(**inputs, max_new_tokens=256, do_sample=False)\n"
            'print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))'
        )
        parts += ["With transformers:", _block(code, "python")]
    return parts


def _origin(facts: CardFacts) -> list[str]:
    licences = ", ".join(f"{licence} ({count:,} rows)" for licence, count in sorted(facts.data_licences.items()))
    counts = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in facts.data_counts.items())
    settings = ", ".join(
        f"{name} {facts.train_section[name]}" for name in _SHOWN_SETTINGS if facts.train_section.get(name) is not None
    )
    measured = ", ".join(
        f"{name.replace('_', ' ')} {_score(facts.train[name])}"
        for name in ("num_steps", "num_trainable", "first_loss", "final_loss", "max_length")
        if facts.train.get(name) is not None
    )
    rows = [
        ("base model", f"{facts.base['name']}, from {facts.base['source']}"),
        ("its weights", f"sha256 {facts.base['weights_digest']}"),
        ("its licence", str(facts.base["licence"])),
        ("data", counts),
        ("licence of the data", licences or "not stated"),
        ("training", f"{settings}; {measured}"),
        *((f"digest of {stage}", digest) for stage, digest in facts.digests.items()),
    ]
    return ["## Where it comes from", "| | |\n|---|---|\n" + "\n".join(f"| {key} | {value} |" for key, value in rows)]


def _checks(facts: CardFacts) -> list[str]:
    lines = []
    merge, cast = facts.checks["merge"], facts.checks["cast"]
    lines.append(
        f"- merged against adapter, fp32: logits differ by at most {merge['max_logit_difference']:.2g} "
        f"over {merge['num_positions']:,} positions (limit {merge['limit']:.2g})"
    )
    lines.append(
        f"- saved as {cast['dtype']}: {cast['mean_kl']:.2g} nats a token from fp32, "
        f"{cast['num_equal_top1']:,} of {cast['num_positions']:,} first choices equal"
    )
    for name, found in facts.checks["gguf"].items():
        tokens, answers = found["tokens"], found["answers"]
        lines.append(f"- {name}: {tokens['num_equal']} of {tokens['num_strings']} texts tokenised alike by llama.cpp")
        if answers:
            lines.append(
                f"- {name}: {answers['num_equal']} of {answers['num_prompts']} greedy answers equal to transformers', "
                f"{answers['equal_token_share']:.1%} of the tokens; log probabilities "
                f"{answers['mean_logprob_difference']:.2g} apart on average"
            )
    return ["## Checks made at export", "\n".join(lines), "All figures are in `checks.json`."]


def _files(facts: CardFacts) -> list[str]:
    lines = [f"| `{name}` | {size / 1e6:,.1f} MB |" for name, size in facts.files.items()]
    return ["## Files", "| | |\n|---|---:|\n" + "\n".join(lines)]


def _block(text: str, info: str = "") -> str:
    return f"```{info}\n{text}\n```"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
