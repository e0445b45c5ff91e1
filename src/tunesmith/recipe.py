"""Every parameter there is: type, bounds, default, one sentence. Declared here once; nothing below holds a second default.

One Section per stage; those that name teachers are in recipe_teaching.py, the options of filters in recipe_filters.py.
The string under a field is its description and feeds `--help`, the docs and the studio's form.
`auto` is replaced in resolve.py where the recipe alone decides, and by the stage (as a fact in its manifest) where
the data or the machine decides. What cannot change a result beyond rounding lives in `runtime`, outside every key.
"""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from tunesmith.recipe_align import Align, Prefer
from tunesmith.recipe_filter_list import FilterList
from tunesmith.recipe_optimisation import Optimisation
from tunesmith.recipe_pretrain import Pretrain
from tunesmith.recipe_teaching import Generate, TeacherSection
from tunesmith.section import Auto, RngSeed, Section, StrList, as_list

_SAMPLED = re.compile(r"(.+)#(\d+)\Z", re.DOTALL)


def split_sampled(name: str) -> tuple[str, int | None]:
    """("rows.jsonl", 500) of "rows.jsonl#500", ("rows.jsonl", None) of "rows.jsonl": the file and how many to draw."""
    match = _SAMPLED.match(name)
    return (match[1], int(match[2])) if match else (name, None)


class BaseModelSection(Section):
    """The model that is tuned."""

    name: str
    """A built-in name (`tunesmith models`), a hub id, a local folder, or a .gguf file."""

    revision: str | None = None
    """Commit or tag of a hub id; none = the newest at fetch time, which is then recorded."""

    context_length: int | None = Field(default=None, ge=8)
    """Tokens the model is to read; none = as many as it does. More than that needs `rope_scaling`."""

    rope_scaling: Literal["none", "linear", "dynamic", "yarn", "extrapolate"] = "none"
    """How its rotary positions reach `context_length`: see docs/longer-context.md."""

    add_tokens: StrList = ()
    """New special tokens, such as `<|end_of_turn|>`; their rows begin as the mean of all rows."""

    @model_validator(mode="after")
    def _scaling_has_a_length(self) -> BaseModelSection:
        if self.rope_scaling != "none" and self.context_length is None:
            raise ValueError(f"`rope_scaling: {self.rope_scaling}` reaches a length: add `context_length`")
        return self


class Ingest(Section):
    """What the model is for, and the examples that are at hand."""

    task: str | None = None
    """One or two sentences that say what the model should do; shown to the teacher."""

    system_prompt: str | None = None
    """System message put before every conversation that has none, in training, evaluation and serving alike."""

    output_schema: dict[str, Any] | str | None = None
    """JSON Schema of the answers (inline, or a .json file): curate rejects rows that break it, evaluate scores by it."""

    files: StrList = ()
    """Example files, folders or .zip archives; `rows.jsonl#500` draws 500 of its examples, by `rng_seed`."""

    format: str = "auto"
    """auto = look at the rows; or the name of the one form of all files, where rows could be read in two ways:
    alpaca_plain, belle_multiturn, belle_generated_chat, sharegpt, openai_messages, question_response, preference, ..."""

    test_files: StrList = ()
    """Held-out example files: never shown to a teacher, never trained on."""

    test_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Share of `files` to hold out before a teacher sees any, by origin."""

    licence: str | None = None
    """Licence of the files; travels with every row."""

    rng_seed: RngSeed = 17
    """Seed of the split and of `file#500`."""

    def file_names(self) -> list[str]:
        schema = [self.output_schema] if isinstance(self.output_schema, str) else []
        examples = [split_sampled(name)[0] for name in (*self.files, *self.test_files)]
        return [*dict.fromkeys(examples), *schema]


class Curate(Section):
    """Which rows go on. Excluded rows are kept with their reason."""

    test_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Share of rows without a split of their own that is held out for evaluation, by origin."""

    min_prompt_words: int = Field(default=1, ge=0)
    """Shortest prompt, in words (a CJK character counts as one)."""

    max_prompt_words: int = Field(default=4000, ge=1)
    """Longest prompt, in words."""

    min_reply_words: int = Field(default=1, ge=0)
    """Shortest reply, in words."""

    max_reply_words: int = Field(default=4000, ge=1)
    """Longest reply, in words."""

    blacklist: StrList = ()
    """Words or phrases that exclude a row, whole words, case ignored."""

    max_similarity: float = Field(default=0.7, ge=0, le=1)
    """A training row whose prompt is above this ROUGE-L F1 with a test row or an earlier row is excluded; 1 = off."""

    check_schema: bool = True
    """Exclude rows whose reply breaks `ingest.output_schema`."""

    filters: FilterList = ()
    """Further filters, in the order in which they are asked (see docs/filters.md)."""

    decontaminate_against: StrList = ()
    """Evaluation files: training rows that repeat their questions are excluded, as those that repeat test rows are."""

    max_eval_coverage: float = Field(default=0.5, ge=0, le=1)
    """Share of an evaluation question's 8-grams that a training row may hold; 1 = off, then a 13-gram is no matter either."""

    review: str | None = None
    """File of decisions made with `tunesmith data review`: edits replace rows, rejects go, kept rows pass the filters."""

    teacher: TeacherSection | None = None
    """Who answers for the filters that ask a judge: alpagasus, deita, yes_no."""

    budget_usd: float | None = Field(default=None, ge=0)
    """Hard stop of the judge: worst-case cost is reserved before a request is sent."""

    max_failures: int = Field(default=20, ge=0)
    """Answers of the judge that may fail before the stage gives up."""

    rng_seed: RngSeed = 17
    """Seed of the split."""

    def file_names(self) -> list[str]:
        review = [self.review] if self.review else []
        return [*self.decontaminate_against, *review, *(self.teacher.file_names() if self.teacher else [])]

    @model_validator(mode="after")
    def _judges_have_a_teacher(self) -> Curate:
        judge = next((each.name for each in self.filters if each.asks_teacher), None)
        if judge and self.teacher is None:
            raise ValueError(f"the filter {judge!r} asks a judge: add `curate.teacher`")
        return self


class Tokenize(Section):
    """Rows to token ids and loss masks, and the plan that packs them."""

    chat_template: str = "auto"
    """auto = the base model's own; or a built-in template's name, or a .jinja file."""

    max_length: int | Auto = "auto"
    """Longest sample in tokens; auto = the longest one, at most the model's context."""

    overlong: Literal["error", "drop", "split"] = "drop"
    """What to do with a longer sample: stop, leave it out and count it, or cut it between exchanges into pieces that fit."""

    write_text: bool = False
    """Also write tokens.train.jsonl and tokens.test.jsonl: id, input_ids, loss_mask and text of every sample."""

    pack_length: int | Auto = "auto"
    """Tokens one pack holds; auto = at least max_length, and 2,048 where the data allow."""

    supervise: Literal["all_turns", "last_turn", "everything"] = "all_turns"
    """Which tokens are targets: every assistant turn, the last one, or all text."""

    def file_names(self) -> list[str]:
        return [self.chat_template] if self.chat_template.endswith(".jinja") else []


class Train(Optimisation):
    """How the weights change."""

    method: Literal["lora", "dora", "qlora", "full"] = "lora"
    """lora = train small added matrices; dora = and the length of every row; qlora = lora beside a base in 4 bits (needs
    a CUDA device); full = train every weight."""

    loss: str = "cross_entropy"
    """Which loss of the loss layer is minimised."""

    lora_rank: int = Field(default=16, ge=1, le=8192)
    """Rank of the added matrices."""

    lora_alpha: float = Field(default=32, gt=0)
    """Scale of the added matrices: they count alpha / rank."""

    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout before the added matrices."""

    use_rslora: bool = False
    """The added matrices count alpha / sqrt(rank) instead of alpha / rank (rsLoRA): high ranks learn as fast as low ones."""

    lora_target_modules: StrList = ("all-linear",)
    """Names of the linear maps that get an adapter; all-linear = every one except the output head."""

    trainable_layers: Annotated[int, Field(ge=1)] | Literal["all"] = "all"
    """Only this many topmost blocks are trained, or get adapters; all = every one."""

    train_embeddings: bool | Auto = "auto"
    """Whether full training changes the embeddings and the output head; auto = yes where trainable_layers is all."""

    @model_validator(mode="after")
    def _adapters_leave_embeddings_alone(self) -> Train:
        if self.train_embeddings is True and self.method != "full":
            raise ValueError(
                f"`train_embeddings: true` needs `method: full`: the files of an adapter ({self.method}) hold none"
            )
        return self


class Evaluate(Section):
    """Base, tuned and teacher side by side on the test split."""

    max_samples: int | None = Field(default=None, ge=1)
    """At most this many test rows; none = all."""

    max_tokens: int = Field(default=256, ge=1)
    """Longest answer, in tokens."""

    temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature; 0 = greedy."""

    exact_fields: StrList | Auto = "auto"
    """JSON fields scored by equality; auto = those the schema restricts by enum, const, pattern, boolean or number."""

    text_field: str | Auto = "auto"
    """JSON field scored by ROUGE-L; auto = the free-text one."""

    teacher: TeacherSection | None = None
    """Also let this model answer the test rows."""

    max_failures: int = Field(default=20, ge=0)
    """Teacher answers that may fail before the stage gives up."""

    rng_seed: RngSeed = 17
    """Seed of sampling."""

    def file_names(self) -> list[str]:
        return self.teacher.file_names() if self.teacher else []


class Export(Section):
    """Files that other programs load."""

    formats: StrList = ("safetensors", "gguf-q8_0")
    """safetensors (merged transformers folder), gguf-f16, gguf-q8_0, gguf-q4_k_m."""

    num_check_prompts: int = Field(default=20, ge=0)
    """Prompts whose greedy answers are compared between the GGUF engine and transformers."""

    max_logit_difference: float = Field(default=1e-3, gt=0)
    """Largest difference allowed between merged and adapter logits, in fp32."""


_ROWS_FOR_ONE_PROCESS = 20_000
"""Starting workers takes one to three seconds, in which one process reads and filters about as many rows."""


class Runtime(Section):
    """What cannot change a result beyond rounding: outside every key, so changing it never repeats work."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1 ..."""

    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of the forward and backward pass; auto = bf16 where the processor multiplies it faster."""

    num_threads: int | Auto = "auto"
    """CPU threads; auto = the cores this process may use."""

    @property
    def usable_threads(self) -> int:
        """num_threads, with auto resolved on this machine."""
        if self.num_threads != "auto":
            return self.num_threads
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    workers: Literal["local", "ray"] = "local"
    """Where rows are read, filtered and rendered: processes of this machine, or a Ray cluster ($RAY_ADDRESS)."""

    num_workers: Annotated[int, Field(ge=1)] | Auto = "auto"
    """Processes that work on rows; auto = this one alone up to 20,000 rows, then one for each CPU thread; with `ray` one
    for each CPU of the cluster."""

    def workers_for(self, num_rows: int) -> int | None:
        """num_workers, with auto resolved for so many rows; None = one for each CPU of the Ray cluster, which it tells."""
        if self.num_workers != "auto":
            return self.num_workers
        if self.workers == "ray":
            return None
        return 1 if num_rows <= _ROWS_FOR_ONE_PROCESS else self.usable_threads

    micro_batch_size: int | Auto = "auto"
    """Packs per forward pass on one device; auto = 1 on a CPU, what fits on a GPU."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""

    share_prefixes: bool = True
    """Compute what samples of a micro batch begin with in common (a system prompt, earlier turns) only once."""

    checkpoint_every_steps: int | Auto = "auto"
    """Steps between training checkpoints; auto = about once a minute."""

    log_every_steps: int = Field(default=1, ge=1)
    """Steps between two loss lines."""

    report_to: Annotated[
        tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...], BeforeValidator(as_list)
    ] = ()
    """Trackers that get every loss line too (see docs/watching.md); one that fails is left out with a warning."""

    eval_batch_size: int = Field(default=32, ge=1)
    """Prompts answered side by side in evaluation."""

    teacher_concurrency: Annotated[int, Field(ge=1)] | Auto = "auto"
    """Requests in flight at each endpoint; auto = more and more, up to 1,024, while answers come faster."""

    teacher_requests_per_minute: int | None = Field(default=None, ge=1)
    """Requests a minute to each endpoint; none = what its rate-limit headers allow."""

    teacher_tokens_per_minute: int | None = Field(default=None, ge=1)
    """Tokens a minute, prompts and answers, of each endpoint; none = what its rate-limit headers allow."""

    teacher_batch: bool = False
    """Send requests through the endpoint's batch API: often half the price, answers within 24 hours."""

    request_timeout_seconds: float = Field(default=120, gt=0)
    """Longest wait for one answer of a teacher."""

    max_retries: int = Field(default=6, ge=0)
    """Tries after the first for one request."""

    keep_checkpoints: int = Field(default=2, ge=1)
    """Training checkpoints kept while a run is unfinished."""


def _from_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class Recipe(BaseModel):
    """A whole run on one screen."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Name of the run folders."""

    description: str = ""
    """For people."""

    base_model: Annotated[BaseModelSection, BeforeValidator(_from_name)]
    """The model to tune; a bare string is its name."""

    ingest: Ingest = Ingest()
    generate: Generate | None = None
    curate: Curate = Curate()
    tokenize: Tokenize = Tokenize()
    train: Train = Train()
    pretrain: Pretrain | None = None
    prefer: Prefer | None = None
    align: Align | None = None
    evaluate: Evaluate | None = Evaluate()
    export: Export | None = Export()
    runtime: Runtime = Runtime()

    @model_validator(mode="after")
    def _there_is_something_to_learn_from(self) -> Recipe:
        if not self.ingest.files and self.generate is None:
            raise ValueError("there is nothing to learn from: name `ingest.files`, or add a `generate` section")
        if self.generate is not None and self.generate.generator == "distill" and not self.ingest.task:
            raise ValueError("`generate.generator: distill` works from `ingest.task`, which is missing")
        return self

    @model_validator(mode="after")
    def _new_tokens_are_learnt(self) -> Recipe:
        frozen = (
            self.train.trainable_layers != "all"
            if self.train.train_embeddings == "auto"
            else not self.train.train_embeddings
        )
        if self.base_model.add_tokens and (self.train.method != "full" or frozen):
            raise ValueError(
                "the rows of `base_model.add_tokens` would stay the mean they begin as, so the model could never write such "
                "a token: set `train.method: full` and let it train the embeddings"
            )
        return self


SYNONYMS: dict[str, str] = {
    "model": "base_model",
    "model_name_or_path": "base_model",
    "dataset": "ingest.files",
    "datasets": "ingest.files",
    "dataset_name": "ingest.files",
    "data_path": "ingest.files",
    "cutoff_len": "tokenize.max_length",
    "sequence_len": "tokenize.max_length",
    "max_seq_length": "tokenize.max_length",
    "max_seq_len": "tokenize.max_length",
    "template": "tokenize.chat_template",
    "train_on_inputs": "tokenize.supervise",
    "finetuning_type": "train.method",
    "use_dora": "train.method: dora",
    "load_in_4bit": "train.method: qlora",
    "quantization_bit": "train.method: qlora",
    "freeze_trainable_layers": "train.trainable_layers",
    "lora_r": "train.lora_rank",
    "r": "train.lora_rank",
    "lora_target": "train.lora_target_modules",
    "target_modules": "train.lora_target_modules",
    "lr": "train.learning_rate",
    "lr_scheduler_type": "train.lr_schedule",
    "lr_scheduler": "train.lr_schedule",
    "epochs": "train.num_epochs",
    "num_train_epochs": "train.num_epochs",
    "batch_size": "train.global_batch_size",
    "per_device_train_batch_size": "runtime.micro_batch_size",
    "gradient_accumulation_steps": "train.global_batch_size",
    "seed": "train.rng_seed",
    "bf16": "runtime.precision",
    "fp16": "runtime.precision",
    "output_dir": "--root on the command line",
    "val_size": "ingest.test_fraction",
    "val_set_size": "ingest.test_fraction",
    "api_key": "generate.teacher.api_key_env (the NAME of an environment variable, never the key)",
    "resume_from_checkpoint": "nothing: runs resume by themselves",
}
"""Names other trainers use, and ours: they get an error that says so, never a silent alias."""
