"""Tasks of environments of the package verifiers (0.4: a taskset with rewards), answered in one message."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from turncredit.envs.adapters.packages import imported
from turncredit.envs.splits import split_of
from turncredit.envs.text_env import Reply, TextEnv
from turncredit.episode import Outcome, Task, Verdict
from turncredit.errors import UserError

_tasks: dict[tuple[str, str, int], list[Any]] = {}


class TaskRewards:
    """The task's own rewards, weighted and added up; unknown where that lies outside of [0, 1]. Passes at 1."""

    def verify(self, task: Task, outcome: Outcome) -> Verdict:
        """Scores the conversation as the package does without a model, tools or a container."""
        if outcome.answer is None:
            return Verdict.of(False, "no answer was given")
        trace = _conversation(task.hidden["task"], outcome.answer)
        with ThreadPoolExecutor(1) as thread:  # the caller's may run an event loop
            thread.submit(asyncio.run, task.hidden["task"].score(trace)).result()
        total = float(trace.reward)
        if not 0 <= total <= 1:
            return Verdict.unknown(f"the task's rewards add up to {total:g}: an episode is worth 0 to 1")
        rewards = {name: float(one.value) for name, one in trace.rewards.items() if one is not None}
        return Verdict(total, total >= 1, details=rewards)


class Verifiers(TextEnv):
    """A prompt of a taskset, answered in one message and scored by its rewards.

    Tasks are parted by their content; "ood" holds those of `ood_config`. What needs more than a message (tool servers,
    a container, a simulated user) is refused: it runs under the package's own harnesses alone.

    Args:
        taskset: its id, the name of an installed package or a module.
        config: its settings.
        ood_config: its settings for the split "ood".
        most: tasks that are read, the first ones.
    Raises:
        MissingExtra: verifiers is not installed.
        UserError: no such taskset, wrong settings, or tasks that need more than a message.
    """

    instructions = "Answer in one message."
    verifier = TaskRewards()
    package = "verifiers"
    turn_limit = 1

    def __init__(self, taskset: str, config: Mapping[str, Any] | None = None,
                 ood_config: Mapping[str, Any] | None = None, most: int = 10_000, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(most, int) or most < 1:
            raise UserError(f"most is {most!r}: it must be a whole number of at least 1")
        if self.split == "ood" and ood_config is None:
            raise UserError("split is 'ood': give ood_config, the taskset's settings for it")
        imported("verifiers.v1", "verifiers", "verifiers")
        chosen = dict((ood_config if self.split == "ood" else config) or {})
        found = _read(taskset, chosen, most)
        self._chosen = [task for task in found if self.split == "ood" or split_of(_prompt(task)) == self.split]
        if not self._chosen:
            raise UserError(f"taskset {taskset!r} has no task for split {self.split!r} of its {len(found)}")
        self.taskset, self.num_tasks = taskset, len(self._chosen)

    def make_task(self, rng: np.random.Generator) -> Task:
        """Any of the split's."""
        return self.task_at(int(rng.integers(len(self._chosen))))

    def task_at(self, index: int) -> Task:
        """The taskset's task at `index` of the split."""
        task = self._chosen[index]
        self.instructions = str(task.data.system_prompt or type(self).instructions)
        return Task(_prompt(task), {"task": task}, self.split, self.level,
                    f"{self.split}-{self.taskset}-{task.key[:16]}")

    def respond(self, action: str) -> Reply:
        """The action is the answer."""
        return Reply(done=True, answer=action)


def _read(taskset: str, config: Mapping[str, Any], most: int) -> list[Any]:
    """The taskset's first tasks, read once a process."""
    loaders = imported("verifiers.v1.utils.loaders", "verifiers", "verifiers")
    key = (taskset, json.dumps(config, sort_keys=True, default=str), most)
    if key not in _tasks:
        try:
            settings = loaders.taskset_config_type(taskset).model_validate({**config, "id": taskset})
            loaded = loaders.load_taskset(settings)
            found = list(itertools.islice(iter(loaded), most))
        except (ImportError, AttributeError, TypeError, ValueError) as error:  # pydantic's errors are ValueErrors
            raise UserError(f"taskset {taskset!r}: {' '.join(str(error).split())}") from None
        if not found:
            raise UserError(f"taskset {taskset!r} has no tasks with the settings {dict(config)}")
        needs = _needs(found[0])
        if needs:
            raise UserError(f"taskset {taskset!r} needs {needs}: only tasks that one message answers can be played")
        _tasks[key] = found
    return _tasks[key]


def _needs(task: Any) -> str:
    """What a task needs beyond a message, in words; empty where nothing."""
    if task.NEEDS_CONTAINER or task.data.image:
        return "a container"
    if type(task).toolsets(task.config):
        return "tool servers"
    if task.data.prompt is None:
        return "a user who opens the conversation"
    if task.plugged_judges():
        return "a model as its judge"
    hooks = task.hooks("reward")
    if not hooks:
        return "rewards: it has none of its own"
    parameters = [inspect.signature(hook).parameters.get("runtime") for hook in hooks]
    bound = any(one is not None and one.default is inspect.Parameter.empty for one in parameters)
    return "the box that its rewards look into" if bound else ""


def _prompt(task: Any) -> str:
    return str(task.data.prompt_text)


def _conversation(task: Any, answer: str) -> Any:
    """The package's record of a prompt and one answer."""
    trace_of = imported("verifiers.v1.trace", "verifiers", "verifiers")
    types = imported("verifiers.v1.types", "verifiers", "verifiers")
    node = imported("verifiers.v1.graph", "verifiers", "verifiers").MessageNode
    state = imported("verifiers.v1.state", "verifiers", "verifiers").state_cls(type(task))
    agent = imported("verifiers.v1.configs.agent", "verifiers", "verifiers").AgentConfig
    trace = trace_of.Trace(
        task=trace_of.TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash), state=state(),
        agent=trace_of.AgentInfo(config=agent()))
    given = task.data.prompt
    said = [types.SystemMessage(content=task.data.system_prompt)] if task.data.system_prompt else []
    said += [types.UserMessage(content=given)] if isinstance(given, str) else list(given)
    said.append(types.AssistantMessage(content=answer))
    for index, message in enumerate(said):
        trace.nodes.append(node(parent=index - 1 if index else None, message=message, sampled=index == len(said) - 1))
    trace.is_completed = trace.ok = True
    return trace
