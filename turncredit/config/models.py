"""What a configuration consists of, and in one sentence what is wrong with one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from turncredit.errors import did_you_mean


class Strict(BaseModel):
    """Unknown keys are refused, and true or false where a number belongs."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("true and false are no value for it")
        return value


class TinyModel(Strict):
    """A small Llama-architecture policy made from nothing, with a tokenizer learnt from the environments' texts."""

    vocabulary: int = Field(512, ge=300, description="tokens of the byte-level BPE tokenizer")
    width: int = Field(128, ge=16)
    layers: int = Field(4, ge=1)
    heads: int = Field(4, ge=1)
    context: int = Field(1024, ge=64)

    @model_validator(mode="after")
    def _heads_fit(self) -> TinyModel:
        if self.width % (2 * self.heads):
            raise ValueError(f"width is {self.width} and heads is {self.heads}: the width must be a multiple of twice "
                             "the heads")
        return self


class LoraConfig(Strict):
    """Adapters of low rank that are trained in place of the weights."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0, description="the adapter's share is alpha / rank")
    layers: Literal["all-linear"] | list[str] = Field("all-linear", description="such as [q_proj, v_proj]")


class ModelConfig(Strict):
    """Which policy is trained or evaluated."""

    path: str | None = Field(None, description="a folder or hub name that transformers can load")
    tiny: TinyModel | None = Field(None, description="make a small policy instead of loading one")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bf16 on GPUs, fp32 on CPUs")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    attention: Literal["auto", "blocks"] = Field(
        "auto", description="of packed rows; auto: in one kernel on GPUs (flex attention), in blocks elsewhere")
    chat_template: Path | None = Field(None, description="a Jinja file, in place of the tokenizer's template")
    template_options: dict[str, Any] = Field(default_factory=dict, description="such as {enable_thinking: false}")
    history: Literal["exact", "as-sampled"] = Field("exact", description="as-sampled accepts templates that rewrite it")
    tool_calls: Literal["json", "plain"] = Field("json", description="how the model writes tool calls")
    lora: LoraConfig | None = Field(None, description="train adapters beside frozen weights; null: train the weights")

    @model_validator(mode="after")
    def _one_source(self) -> ModelConfig:
        if (self.path is None) == (self.tiny is None):
            raise ValueError("set exactly one of model.path and model.tiny")
        if self.chat_template is not None and not self.chat_template.is_file():
            raise ValueError(f"model.chat_template is {str(self.chat_template)!r}: there is no such file")
        return self


class EnvConfig(Strict):
    """An environment to draw tasks from."""

    id: str
    split: str = "train"
    weight: float = Field(1.0, gt=0, description="its share of the tasks")
    arguments: dict[str, Any] = Field(default_factory=dict, description="for its constructor: level, data, …")

    @property
    def make_arguments(self) -> dict[str, Any]:
        """Keyword arguments for `make`. "train" is every `TextEnv`'s default, and others may know no splits."""
        return ({} if self.split == "train" else {"split": self.split}) | self.arguments


class RolloutConfig(Strict):
    """How episodes are sampled."""

    groups: int = Field(8, ge=1, description="tasks a step (P)")
    group_size: int = Field(8, ge=2, description="episodes a task (G)")
    temperature: float = 1.0
    top_p: float = 1.0
    turn_tokens: int = Field(256, ge=1)
    episode_tokens: int = Field(1024, ge=1, description="tokens that the agent may generate in an episode")
    context_tokens: int = Field(4096, ge=16)
    step_timeout_s: float = Field(60.0, gt=0)
    engine_timeout_s: float = Field(1800.0, gt=0, description="the longest wait for the engine's next answer")
    refills: int = Field(0, ge=0, description="times a step that groups of equal rewards are sampled anew, elsewhere")
    max_batch: int = Field(64, ge=1, description="sequences sampled side by side")
    schedule: Literal["lockstep", "asynchronous"] = Field(
        "lockstep", description="asynchronous: nobody waits for a slow environment; repeatable but for rounding")

    staleness: int = Field(
        0, ge=0, le=16, description="policy versions that samples may lag behind: sampling goes on during training")

    @property
    def continuous(self) -> bool:
        """Whether a step takes the groups that end first, of those that are under way while it is trained."""
        return self.schedule == "asynchronous" and self.staleness > 0

    @model_validator(mode="after")
    def _sampled_from_the_policy(self) -> RolloutConfig:
        if self.temperature != 1 or self.top_p != 1:
            raise ValueError(f"rollout.temperature is {self.temperature} and rollout.top_p is {self.top_p}: training "
                             "needs 1 and 1, since the policy that is trained must be the one that sampled")
        return self


class Named(Strict):
    """A section with a `name`, which alone may stand for it."""

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class EngineConfig(Named):
    """What samples the episodes of training. `engine: vllm` is short for {name: vllm}."""

    name: Literal["transformers", "vllm", "vllm-server"] = Field(
        "transformers", description="transformers is the trainer's own model; vllm runs in this process")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: as the trainer computes")
    servers: list[str] = Field(default_factory=list, description="running vLLM servers' URLs; empty: one is started")
    python: str | None = Field(None, description="an interpreter that has vllm, to start a server with; null: this one")
    start_timeout_s: float = Field(600.0, gt=0, description="the longest that a server may take to come up")
    restarts: int = Field(3, ge=0, description="of a server that was started here and died, in a run")
    cache_gb: int = Field(1, ge=1, description="vLLM on a CPU: memory for keys and values")
    memory_share: float = Field(0.4, gt=0, le=1, description="vLLM on a GPU: its share of the memory")
    sleep: bool = Field(False, description="vLLM gives its GPU's memory up while the policy is trained on the same one")
    lora: Literal["merged", "adapter"] = Field(
        "merged", description="what vLLM gets with model.lora: whole weights, or the adapter beside the base's")
    accepted_difference: float | None = Field(
        None, gt=0, description="from the trainer's logprobs, in nats, mean; null: 0.001 in float32, 0.1 in bfloat16")

    @model_validator(mode="after")
    def _settings_fit(self) -> EngineConfig:
        if self.name != "vllm-server" and (self.servers or self.python):
            raise ValueError(f"engine.name is {self.name!r}: engine.servers and engine.python are for 'vllm-server'")
        if self.name == "transformers" and self.sleep:
            raise ValueError("engine.sleep is true with engine.name 'transformers', which has no memory of its own: "
                             "set it to false")
        if self.name == "transformers" and self.lora == "adapter":
            raise ValueError("engine.lora is 'adapter' with engine.name 'transformers', which samples with the "
                             "trainer's own model: leave it out")
        return self


class ClusterConfig(Named):
    """Where environments and engines run. `cluster: ray` is short for {name: ray}."""

    name: Literal["none", "ray"] = Field("none", description="none: in this process; ray: in a cluster's workers")
    address: str | None = Field(None, description="host:port of the head node, or auto; null: this machine alone")
    workers: int | None = Field(
        None, ge=0, description="processes that hold environments; null: as many as fit; 0: they stay in this process")
    worker_cpus: float = Field(1.0, gt=0, description="CPUs that each takes")
    engines: int = Field(0, ge=0, description="vLLM servers on nodes with GPUs; 0: none")
    engine_gpus: int = Field(1, ge=0, description="GPUs of each, on one node; 0: on any node")
    wait_s: float = Field(120.0, gt=0, description="the longest wait for a worker, or room for an engine")
    runtime_env: dict[str, Any] = Field(default_factory=dict, description="Ray's, such as {py_modules: [./my_envs]}")

    @model_validator(mode="after")
    def _settings_fit(self) -> ClusterConfig:
        others = sorted(self.model_fields_set - {"name"})
        if self.name == "none" and any(getattr(self, name) != type(self).model_fields[name].get_default(
                call_default_factory=True) for name in others):
            raise ValueError(f"cluster.name is 'none' with {', '.join(others)} set: set it to 'ray', or leave them out")
        return self


class TeacherConfig(Strict):
    """The self-conditioned teacher's prompt."""

    guide: str | None = Field(None, description="the instruction before the reference; the built-in one where null")
    reference_tokens: int = Field(2048, ge=16, description="a longer reference is cut in the middle, and counted")
    path: str | None = Field(None, description="another model as the teacher (opd): a folder or hub name")


class TrainerConfig(Strict):
    """The optimiser and the loop."""

    steps: int = Field(100, ge=1)
    lr: float = Field(1e-6, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["constant", "linear"] = Field("constant", description="linear: down to 0 at the last step")
    clip_norm: float = Field(1.0, gt=0)
    micro_batch_tokens: int = Field(16_384, ge=1, description="tokens in one forward pass")
    mini_batches: int = Field(1, ge=1, description="updates in one pass over a step's episodes")
    epochs: int = Field(1, ge=1, description="passes over a step's episodes")
    old_logprobs: Literal["sampler", "recomputed"] = Field(
        "sampler", description="recomputed: the trainer's own before its update, for engines that differ numerically")
    importance: Literal["truncate", "mask"] = Field(
        "truncate", description="how the ratio of trainer to sampler is bounded, with recomputed logprobs")
    importance_level: Literal["token", "sequence"] = "token"
    importance_cap: float = Field(2.0, gt=1)
    sharding: Literal["none", "full"] = Field(
        "none", description="full: torchrun's processes share weights and optimiser state (FSDP2) instead of copies")
    gradient_checkpointing: bool = Field(False, description="compute layers again in the backward pass: less memory")
    compile: bool = Field(False, description="torch.compile over the layers that read episodes: for long runs on GPUs")
    save_every: int = Field(50, ge=1)
    keep_checkpoints: int = Field(2, ge=1, description="the newest ones, which stay")
    keep_best_checkpoints: int = Field(
        0, ge=0, description="and those with the best evaluations; there is then a checkpoint behind each evaluation")
    credit_every: int = Field(1, ge=1, description="steps between the files of what each token earned")
    refused_steps: int = Field(3, ge=1, description="non-finite updates in a row before the run stops")
    silent_steps: int = Field(50, ge=1, description="updates in a row without any signal before the run stops")


class WarmstartConfig(Strict):
    """Supervised learning on verified demonstrations of the environments' scripted solutions."""

    envs: list[EnvConfig] = Field(min_length=1)
    steps: int = Field(500, ge=1)
    lr: float = Field(1e-3, gt=0)
    batch: int = Field(32, ge=1, description="demonstrations a step")
    demonstrations: int = Field(2000, ge=1)
    with_reference: float = Field(0.5, ge=0, le=1, description="share of conversations with a reference in the prompt")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="probability left to all other tokens")
    until_success: float | None = Field(None, gt=0, le=1, description="stop once the policy solves this share of tasks")
    check_every: int = Field(50, ge=1)


class EvaluationConfig(Strict):
    """What is evaluated, during training and by `turncredit evaluate`."""

    envs: list[EnvConfig] = Field(default_factory=list)
    tasks: int = Field(64, ge=1, description="tasks an environment")
    k: int = Field(1, ge=1, description="episodes a task")
    every: int | None = Field(None, ge=1, description="steps between evaluations in training; null: none")
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    leakage: Literal["report", "refuse", "ignore"] = Field("report", description="evaluated tasks among trained ones")


class TrackingConfig(Strict):
    """Where a run's numbers go beside its folder. Each tracker is an extra of its own name."""

    to: list[Literal["tensorboard", "wandb", "trackio"]] = Field(default_factory=list, description="accelerate's")
    project: str = Field("turncredit", min_length=1, description="under which W&B and trackio file the run")


class Config(Strict):
    """A whole run."""

    name: str = "run"
    seed: int = Field(0, ge=0)
    runs: Path = Field(Path("runs"), description="the folder that holds run folders")
    model: ModelConfig
    envs: list[EnvConfig] = Field(min_length=1)
    algorithm: dict[str, Any] = Field(default_factory=lambda: {"name": "sc-grpo"})
    rollout: RolloutConfig = RolloutConfig()
    engine: EngineConfig = EngineConfig()
    cluster: ClusterConfig = ClusterConfig()
    teacher: TeacherConfig = TeacherConfig()
    trainer: TrainerConfig = TrainerConfig()
    warmstart: WarmstartConfig | None = None
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _algorithm_is_known(self) -> Config:
        from turncredit.trainer.algorithms import make_algorithm  # needs torch, so not at import

        settings = dict(self.algorithm)
        name = settings.pop("name", "sc-grpo")
        if not isinstance(name, str):
            raise ValueError(f"algorithm.name is {name!r}: it must be a name")
        try:
            algorithm = make_algorithm(name, **settings)
        except ValidationError as error:
            raise ValueError(sentence_of(error, "algorithm").removeprefix("config: ")) from None
        if algorithm.teacher == "averaged" and self.model.lora is not None:
            raise ValueError(f"algorithm.name is {name!r} with an averaged teacher and model.lora: an adapter has no "
                             "second copy; set model.lora to null, or let the teacher be the current policy")
        if (algorithm.teacher == "external") != (self.teacher.path is not None):
            needs = "needs" if algorithm.teacher == "external" else "has no use for"
            raise ValueError(f"algorithm.name is {name!r} and teacher.path is {self.teacher.path!r}: {name} {needs} "
                             "another model as its teacher")
        return self

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Config:
        if self.model.tiny is not None and self.warmstart is None:
            raise ValueError("model.tiny is set without warmstart: a policy made from nothing cannot act; add a "
                             "warmstart section, or set model.path")
        if self.rollout.staleness and self.trainer.old_logprobs != "recomputed":
            raise ValueError(f"rollout.staleness is {self.rollout.staleness} with trainer.old_logprobs 'sampler': "
                             "older samples need importance weights; set trainer.old_logprobs to 'recomputed'")
        if self.rollout.staleness and self.rollout.refills:
            raise ValueError(f"rollout.staleness is {self.rollout.staleness} with rollout.refills "
                             f"{self.rollout.refills}: set one of them to 0")
        if self.rollout.staleness and self.model.lora is not None and self.engine.name == "transformers":
            raise ValueError(f"rollout.staleness is {self.rollout.staleness} with model.lora: the transformers engine "
                             "has no second copy of an adapter; set engine.name to 'vllm' or rollout.staleness to 0")
        if self.engine.lora == "adapter" and self.model.lora is None:
            raise ValueError("engine.lora is 'adapter' without model.lora: there is no adapter to send; leave it out")
        if self.engine.sleep and self.rollout.staleness:
            raise ValueError(f"engine.sleep is true with rollout.staleness {self.rollout.staleness}, which samples "
                             "while the policy is trained: set engine.sleep to false or rollout.staleness to 0")
        if self.cluster.engines and (self.engine.name != "vllm-server" or self.engine.servers):
            raise ValueError(f"cluster.engines is {self.cluster.engines} with engine.name {self.engine.name!r} and "
                             f"{len(self.engine.servers)} engine.servers: set engine.name to 'vllm-server' and leave "
                             "engine.servers out, or set cluster.engines to 0")
        if self.evaluation.every is not None and not self.evaluation.envs:
            raise ValueError(f"evaluation.every is {self.evaluation.every} without evaluation.envs: name what is to be "
                             "evaluated, or set it to null")
        if self.trainer.keep_best_checkpoints and (self.evaluation.every is None or all(
                env.split == "ood" for env in self.evaluation.envs)):
            raise ValueError(f"trainer.keep_best_checkpoints is {self.trainer.keep_best_checkpoints} without "
                             "evaluations in distribution: set evaluation.every, and name a split in evaluation.envs "
                             "that is not 'ood'")
        if self.trainer.sharding == "full" and self.rollout.staleness:
            raise ValueError(f"trainer.sharding is 'full' with rollout.staleness {self.rollout.staleness}: shares of "
                             "weights are not sent to a second copy; set rollout.staleness to 0 or trainer.sharding "
                             "to 'none'")
        if self.trainer.sharding == "full" and self.trainer.compile:
            raise ValueError("trainer.sharding is 'full' with trainer.compile true: layers in shards are not compiled; "
                             "set trainer.compile to false or trainer.sharding to 'none'")
        if self.trainer.compile and self.trainer.gradient_checkpointing:
            raise ValueError("trainer.compile is true with trainer.gradient_checkpointing true: layers that are "
                             "computed again are not compiled; set one of them to false")
        if self.trainer.sharding == "full" and self.model.lora is not None:
            raise ValueError("trainer.sharding is 'full' with model.lora: adapters are too small to be shared out; set "
                             "trainer.sharding to 'none'")
        if self.trainer.sharding == "full" and self.engine.name != "transformers":
            raise ValueError(f"trainer.sharding is 'full' with engine.name {self.engine.name!r}: shares of weights are "
                             "not sent to an engine; set engine.name to 'transformers' or trainer.sharding to 'none'")
        if not self.name or self.name != "/".join(part for part in Path(self.name).parts if part not in ("..", "/")):
            raise ValueError(f"name is {self.name!r}: it must be the name of a folder within {str(self.runs)!r}")
        return self

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.runs / self.name


def sentence_of(error: ValidationError, prefix: str = "") -> str:
    """The first thing that is wrong, with its key, its value and the nearest valid key."""
    first = error.errors()[0]
    key = ".".join(part for part in (prefix, *map(str, first["loc"])) if part)
    if first["type"] == "extra_forbidden":
        fields = _fields_at(first["loc"][:-1]) if not prefix else _algorithm_fields(error.title)
        return f"config: unknown key {key!r}{did_you_mean(str(first['loc'][-1]), fields)}"
    if first["type"] == "missing":
        return f"config: the key {key!r} is missing"
    message = first["msg"].removeprefix("Value error, ")
    of_a_part = first["type"] == "value_error" and isinstance(first["input"], dict)  # it names its own values
    value = "" if of_a_part else f" is {first['input']!r}"
    if first["type"] == "literal_error" and isinstance(first["input"], str):
        message += did_you_mean(first["input"], re.findall(r"'([^']*)'", first["ctx"]["expected"]))
    return f"config: {key}{value}: {message}" if key else f"config: {message}"


def _algorithm_fields(title: str) -> list[str]:
    from turncredit.trainer.algorithms import ALGORITHMS

    return [name for a in ALGORITHMS.values() if a.__name__ == title for name in a.model_fields]


def _fields_at(location: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = Config
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        found = [t for t in _types_in(annotation) if issubclass(t, BaseModel)]
        if not found:
            return []
        model = found[0]
    return list(model.model_fields)


def _types_in(annotation: Any) -> list[type]:
    if isinstance(annotation, type):
        return [annotation]
    return [t for argument in getattr(annotation, "__args__", ()) for t in _types_in(argument)]
