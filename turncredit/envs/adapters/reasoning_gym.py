"""reasoning-gym's procedural tasks: one question, one answer, scored by the package."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from turncredit.envs.adapters.packages import imported
from turncredit.envs.splits import draw_from_split
from turncredit.envs.text_env import Reply, TextEnv
from turncredit.episode import Outcome, Task, Verdict
from turncredit.errors import UserError, did_you_mean

EXCLUDED = {
    "boxnet": "its items have no answer to check the scoring with",
    "codeio": "its items are not the same in every process",
    "composite": "it is a mixture of others: evaluate on those",
    "game_of_life_halting": "it rewards any text",
    "graph_color": "its items have no answer to check the scoring with",
    "pool_matrix": "it reseeds numpy's global generator",
    "propositional_logic": "its items have no answer to check the scoring with",
    "rubiks_cube": "its items have no answer to check the scoring with",
    "rush_hour": "its items have no answer to check the scoring with",
}
_FIRST, _MANY = 0, 2**31 - 1
_FINITE = 5000  # items of a task that cannot be asked for any index
_LEVELS_UP = 2
_MOST_UNSOUND = 100  # items in a row without an answer that is rewarded


class PackageScore:
    """The package's own score; all or nothing unless `partial`."""

    def __init__(self, partial: bool) -> None:
        self.partial = partial

    def verify(self, task: Task, outcome: Outcome) -> Verdict:
        """An answer that the package cannot read is wrong, as long as it can read the right one."""
        entry, score_answer = task.hidden["entry"], task.hidden["score"]
        if outcome.answer is None:
            return Verdict.of(False, "no answer between <answer> and </answer>")
        try:
            score = float(score_answer(outcome.answer, entry))
        except Exception as error:  # the package's parsers raise on texts that they do not expect
            if float(score_answer(entry["answer"], entry)) < 1:
                raise
            return Verdict.of(False, f"the answer cannot be read: {type(error).__name__}")
        passed = score >= 1
        return Verdict(min(max(score, 0.0), 1.0), passed) if self.partial else Verdict.of(passed)


class ReasoningGym(TextEnv):
    """Items of one task of reasoning-gym, such as "chain_sum" or "sudoku".

    Neighbouring seeds of the package share nearly all items, so a split by seed leaks; here an item belongs to "train"
    or "test" by its question. "ood" has items of the task's curriculum, two levels up (some
    tasks' own settings are as wide as that: give `ood_config` then). `EXCLUDED` names the tasks that
    are left out, and why.

    Args:
        task: the package's name of it.
        config: settings of the task, as the package has them.
        ood_config: settings for "ood", where the curriculum's shall not be used.
        partial: give the package's partial scores as rewards, not 0 and 1.
    Raises:
        MissingExtra: reasoning-gym is not installed.
        UserError: an unknown or excluded task or setting, or "ood" without a curriculum or `ood_config`.
    """

    instructions = "Answer the question. Put the final answer between <answer> and </answer>."
    turn_limit = 1
    package = "reasoning-gym"

    def __init__(self, task: str = "chain_sum", config: Mapping[str, Any] | None = None,
                 ood_config: Mapping[str, Any] | None = None, partial: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        imported("reasoning_gym", "reasoning-gym", "reasoning-gym")
        self.verifier = PackageScore(partial)
        settings = dict(config or {})
        if self.split == "ood":
            settings = dict(ood_config) if ood_config is not None else settings | _harder(task)
        self._dataset, self._count = _dataset(task, _Settings(settings))

    def make_task(self, rng: np.random.Generator) -> Task:
        """An item of the split."""
        # Settings of "ood" may make an item of training too, so that it draws from the half that training leaves out.
        half = "test" if self.split == "ood" else self.split
        entry = draw_from_split(half, lambda: self._sound_item(rng),
                                lambda drawn: " ".join(str(drawn["question"]).split()))
        hidden = {"entry": entry, "score": self._dataset.score_answer}
        return Task(str(entry["question"]), hidden, self.split, self.level)

    def _sound_item(self, rng: np.random.Generator) -> Mapping[str, Any]:
        """One whose own answer the package rewards: base_conversion of 0, for one, shows no number and wants none."""
        for _ in range(_MOST_UNSOUND):
            entry: Mapping[str, Any] = self._dataset[int(rng.integers(self._count))]
            if entry["answer"] and float(self._dataset.score_answer(entry["answer"], entry)) >= 1:
                return entry
        raise RuntimeError(f"{_MOST_UNSOUND} items of reasoning-gym's task had no answer that it rewards")

    def respond(self, action: str) -> Reply:
        """The action is the answer, where it holds one between the tags."""
        found = re.findall(r"<answer>(.*?)</answer>", action, flags=re.DOTALL)
        return Reply(done=True, answer=found[-1].strip() if found else None, valid=bool(found))

    def expert_action(self) -> str:
        """The package's answer."""
        return f"<answer>{self.task.hidden['entry']['answer']}</answer>"


def usable_tasks() -> list[str]:
    """Every task of the package that is not excluded."""
    factory = imported("reasoning_gym.factory", "reasoning-gym", "reasoning-gym")
    return sorted(set(factory.DATASETS) - set(EXCLUDED))


class _Settings(dict[str, Any]):
    """A task's settings, enumerations among them, as the key of a cache."""

    def __hash__(self) -> int:  # type: ignore[override]  # they are never changed
        return hash(json.dumps(self, sort_keys=True, default=str))


@functools.lru_cache(maxsize=64)
def _dataset(task: str, settings: _Settings) -> tuple[Any, int]:
    """A task's items, by any index, and how many there are."""
    factory = imported("reasoning_gym.factory", "reasoning-gym", "reasoning-gym")
    if task in EXCLUDED:
        raise UserError(f"task {task!r} is left out: {EXCLUDED[task]}")
    if task not in factory.DATASETS:
        raise UserError(f"task {task!r}: reasoning-gym has none of that name{did_you_mean(task, usable_tasks())}")
    given = {"size": _FINITE, "seed": _FIRST} | settings
    try:
        made = factory.create_dataset(task, **given)
    except (TypeError, AssertionError, ValueError) as error:
        raise UserError(f"config of task {task!r}: {' '.join(str(error).split())}") from None
    try:
        made[_MANY - 1]
    except IndexError:
        return made, int(given["size"])
    except ValueError as error:  # countdown's curriculum, for one: most of its items fail, after seconds
        raise UserError(f"task {task!r}: the package cannot make items with these settings: {error}; give config, or "
                        "ood_config for split 'ood'") from None
    return made, _MANY


def _harder(task: str) -> dict[str, Any]:
    """The settings of the curriculum's levels two above the first, or of its last."""
    coaching = imported("reasoning_gym.coaching.base_curriculum", "reasoning-gym", "reasoning-gym")
    factory = imported("reasoning_gym.factory", "reasoning-gym", "reasoning-gym")
    if task not in factory.CURRICULA:
        if task in factory.DATASETS and task not in EXCLUDED:
            raise UserError(f"split 'ood': task {task!r} has no curriculum: give ood_config")
        return {}
    curriculum = factory.create_curriculum(task)
    for name, attribute in curriculum.attributes.items():
        curriculum.set_attr_level(name, min(attribute.default_level + _LEVELS_UP, len(attribute.levels) - 1))
    highest = coaching.DefaultCurriculumContext(coaching.RangeAttributeMode.UPPER_BOUND)
    made = curriculum.generate_configuration(context=highest)
    return {name: value for name, value in vars(made).items() if name not in ("seed", "size")}
