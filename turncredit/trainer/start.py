"""The policy that a run starts from: loaded, or made and warm-started, or a checkpoint's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from turncredit.agents.tiny import learn_tokenizer, make_tiny_model
from turncredit.config import Config, load_config, parse_config
from turncredit.errors import UserError
from turncredit.seeds import seed_of
from turncredit.store import RunFolder, write_whole
from turncredit.trainer.checkpoint import newest_checkpoint
from turncredit.trainer.lora import add_adapter
from turncredit.trainer.policy import Policy, pick_device
from turncredit.trainer.warmstart import texts_of, warm_start

OnWarmStep = Callable[[int, int, float, "float | None"], None]


def starting_policy(config: Config, run: RunFolder, on_step: OnWarmStep, checkpoint: Path | None = None) -> Policy:
    """The checkpoint's policy if there is one, else the warm-started one, else the model as configured.

    A warm start is kept in the run folder's `start/` and not done twice. It trains the weights themselves, and an
    adapter is put beside them behind it.
    """
    start = run.path / "start"
    if checkpoint is None and config.warmstart is not None and not start.exists():
        policy = fresh_policy(config)
        steps = config.warmstart.steps
        warm_start(config, policy, lambda step, loss, success: on_step(step, steps, loss, success))
        write_whole(start, policy.save)
    found = checkpoint or (start if config.warmstart is not None else None)
    policy = fresh_policy(config) if found is None else Policy.load(
        config.model.model_copy(update={"path": str(found), "tiny": None}))
    if config.model.lora is not None and checkpoint is None:
        base = f"../../{start.name}" if found else str(config.model.path)  # as seen from a checkpoint
        add_adapter(policy.model, config.model.lora, seed_of(config.seed, "adapter"), base)
    return policy


def fresh_policy(config: Config) -> Policy:
    """`model.path` loaded, or `model.tiny` made from nothing."""
    tiny = config.model.tiny
    if tiny is None:
        return Policy.load(config.model)
    if config.warmstart is None:
        raise UserError("model.tiny is set without warmstart: a policy made from nothing cannot act; add a warmstart "
                        "section, or set model.path")
    texts = texts_of(config.warmstart, config.model.tool_calls, config.seed, config.teacher.guide)
    tokenizer = learn_tokenizer(texts, tiny.vocabulary)
    model = make_tiny_model(tiny, tokenizer, seed_of(config.seed, "model")).to(pick_device(config.model.device))
    return Policy(model, tokenizer, config.model)


def external_teacher(config: Config, student: Policy) -> Policy | None:
    """`teacher.path`, another model of the student's vocabulary, loaded; None where there is none.

    Raises:
        UserError: its tokens are not the student's.
    """
    if config.teacher.path is None:
        return None
    teacher = Policy.load(config.model.model_copy(update={"path": config.teacher.path, "tiny": None}))
    if teacher.tokenizer.get_vocab() != student.tokenizer.get_vocab():
        raise UserError(f"teacher.path is {config.teacher.path!r}: its vocabulary is not the student's, so their "
                        "distributions cannot be compared; name a model with the same tokenizer")
    return teacher


def policy_of(model: str, tool_calls: str | None = None) -> tuple[Policy, Config]:
    """The policy of a run folder (with the run's configuration), or of a model's folder or hub name.

    Raises:
        UserError: a run folder without a policy: the run has not ended, and has no checkpoint.
    """
    folder = Path(model)
    file = folder / "config.yaml"
    if not file.exists():
        settings = {"path": model} | ({"tool_calls": tool_calls} if tool_calls else {})
        config = parse_config({"model": settings, "envs": [{"id": "any"}]})
        return Policy.load(config.model), config
    config = load_config(file)
    trained = folder / "policy"
    found = trained if trained.exists() else newest_checkpoint(folder / "checkpoints")
    if found is None:
        raise UserError(f"{model} is a run folder without a policy or a checkpoint: train it first")
    update = {"path": str(found), "tiny": None} | ({"tool_calls": tool_calls} if tool_calls else {})
    return Policy.load(config.model.model_copy(update=update)), config
