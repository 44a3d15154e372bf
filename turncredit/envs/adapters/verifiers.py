"""Tasks of environments of the package verifiers (0.4: a taskset with rewards, tool servers and users)."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from turncredit.envs.adapters.packages import imported
from turncredit.envs.adapters.tau2 import STOP, User
from turncredit.envs.adapters.verifiers_tools import EpisodeTools, fresh_toolsets, needs_of_tools
from turncredit.envs.splits import split_of
from turncredit.envs.text_env import Reply, TextEnv
from turncredit.envs.tools import ToolError
from turncredit.episode import Outcome, Task, Verdict
from turncredit.errors import UserError, did_you_mean
from turncredit.toolcalls import MalformedCall, ToolCall, ToolSpec, typed_call

_TURNS = 30  # where there are tools or a user


@dataclass(frozen=True, slots=True)
class _Read:
    taskset: Any
    tasks: list[Any]


_tasksets: dict[tuple[str, str, int], _Read] = {}


class TaskRewards:
    """The task's own rewards, weighted and added up; unknown where that lies outside of [0, 1]. Passes at 1."""

    def verify(self, task: Task, outcome: Outcome) -> Verdict:
        """Scores the conversation and its state as the package does without a model or a container."""
        inner, state = task.hidden["task"], outcome.state
        trace = _trace(inner, state["messages"], state["state"])
        trace.is_completed = trace.ok = True
        _awaited(inner.score(trace))
        total = float(trace.reward)
        if not 0 <= total <= 1:
            return Verdict.unknown(f"the task's rewards add up to {total:g}: an episode is worth 0 to 1")
        rewards = {name: float(one.value) for name, one in trace.rewards.items() if one is not None}
        return Verdict(total, total >= 1, details=rewards)


class Verifiers(TextEnv):
    """A task of a taskset: one message, or many where it has tools or where a `user` answers; scored by its rewards.

    Tool servers run in this process, made anew for each episode, and the task's own stop conditions end it. With a
    `user` the prompt is what the user knows, and what the user says first is the observation, as in the package's
    user-sim. Tasks are parted by their content; "ood" holds those of `ood_config`. What needs a container, a setup in a
    box or a model as judge is refused: it runs under the package's own harnesses alone.

    Args:
        taskset: its id, the name of an installed package or a module.
        config: its settings.
        ood_config: its settings for the split "ood".
        most: tasks that are read, the first ones.
        user: says what the user says next, from the task's prompt and what was said so far, pairs of ("customer" or
            "agent", text); `turncredit.envs.adapters.tau2.STOP` ends the conversation. None: a message without a call
            ends it.
    Raises:
        MissingExtra: verifiers is not installed.
        UserError: no such taskset, wrong settings, or tasks that need more.
    """

    instructions = "Answer in one message."
    verifier = TaskRewards()
    package = "verifiers"
    turn_limit = 1

    def __init__(self, taskset: str, config: Mapping[str, Any] | None = None,
                 ood_config: Mapping[str, Any] | None = None, most: int = 10_000, user: User | None = None,
                 **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(most, int) or most < 1:
            raise UserError(f"most is {most!r}: it must be a whole number of at least 1")
        if self.split == "ood" and ood_config is None:
            raise UserError("split is 'ood': give ood_config, the taskset's settings for it")
        imported("verifiers.v1", "verifiers", "verifiers")
        found = _read(taskset, dict((ood_config if self.split == "ood" else config) or {}), most)
        needs = _needs(found.taskset, found.tasks[0], user)
        if needs:
            raise UserError(f"taskset {taskset!r} needs {needs}, which this adapter does not give")
        self._taskset, self._user = found.taskset, user
        self._chosen = [task for task in found.tasks if self.split == "ood" or split_of(_content(task)) == self.split]
        if not self._chosen:
            raise UserError(f"taskset {taskset!r} has no task for split {self.split!r} of its {len(found.tasks)}")
        self.taskset, self.num_tasks = taskset, len(self._chosen)
        self._several = user is not None or bool(fresh_toolsets(found.taskset, found.tasks[0]))
        if self._several and kwargs.get("max_turns") is None:
            self.max_turns = _TURNS
        self._tools: EpisodeTools | None = None

    def make_task(self, rng: np.random.Generator) -> Task:
        """Any of the split's."""
        return self.task_at(int(rng.integers(len(self._chosen))))

    def task_at(self, index: int) -> Task:
        """The taskset's task at `index` of the split."""
        task = self._chosen[index]
        own = "" if self._several else type(self).instructions
        self.instructions = str(task.data.system_prompt or own)
        prompt = self._user(_prompt(task), ()) if self._user else _prompt(task)
        return Task(prompt, {"task": task}, self.split, self.level, f"{self.split}-{self.taskset}-{task.key[:16]}")

    def start(self) -> None:
        """A conversation of the prompt, the task's state as it is at first, and fresh tool servers."""
        self.close()
        inner, types = self.task.hidden["task"], _part("types")
        self._state = _part("state").state_cls(type(inner))()
        given = self.task.prompt if self._user else inner.data.prompt
        self._messages: list[Any] = []
        if inner.data.system_prompt:
            self._messages.append(types.SystemMessage(content=inner.data.system_prompt))
        self._messages += [types.UserMessage(content=given)] if isinstance(given, str) else list(given)
        self._said: list[tuple[str, str]] = [("customer", self.task.prompt)]
        toolsets = fresh_toolsets(self._taskset, inner)
        self._tools = EpisodeTools(toolsets, inner.data, self._state) if toolsets else None

    def state(self) -> Mapping[str, Any]:
        """The conversation and the state that the tools have changed."""
        return {"messages": list(self._messages), "state": self._state}

    @property
    def tools(self) -> list[ToolSpec]:
        """Those of the episode's servers."""
        return self._tools.specs if self._tools else []

    def respond(self, action: str) -> Reply:
        """Run the calls, or hand the message to the user; without either it is the answer."""
        if self._tools is None:
            return self._message(action)
        known = {spec.name: spec.parameters for spec in self.tools}
        try:
            calls = self.tool_format.parse(action)
            for call in calls:
                if call.name not in known:
                    raise MalformedCall(f"unknown tool {call.name!r}{did_you_mean(call.name, known)}")
            if not calls:
                return self._message(action)
            if not self.tool_format.typed:
                calls = [typed_call(call, known[call.name]) for call in calls]
        except MalformedCall as error:
            types = _part("types")
            self._messages += [types.AssistantMessage(content=action), types.UserMessage(content=f"error: {error}")]
            return Reply(f"error: {error}", role="tool", valid=False)
        return self._called(calls)

    def close(self) -> None:
        """End the tool servers."""
        if self._tools is not None:
            self._tools.close()
            self._tools = None

    def _message(self, text: str) -> Reply:
        self._messages.append(_part("types").AssistantMessage(content=text))
        if self._user is None or self._stopped():
            return Reply(done=True, answer=text)
        self._said.append(("agent", text))
        answer = self._user(_prompt(self.task.hidden["task"]), self._said)
        if STOP in answer:
            return Reply(done=True, answer=text)
        self._said.append(("customer", answer))
        self._messages.append(_part("types").UserMessage(content=answer))
        return Reply(answer)

    def _called(self, calls: Sequence[ToolCall]) -> Reply:
        assert self._tools is not None
        types, first = _part("types"), len(self._messages)
        made = [types.ToolCall(id=f"call_{first}_{i}", name=call.name, arguments=json.dumps(dict(call.arguments)))
                for i, call in enumerate(calls)]
        self._messages.append(types.AssistantMessage(content=None, tool_calls=made))
        results, valid = [], True
        for call, one in zip(calls, made):
            try:
                results.append(self._tools.call(call.name, dict(call.arguments)))
            except (MalformedCall, ToolError) as error:
                valid = valid and not isinstance(error, MalformedCall)
                results.append(f"error: {error}")
            self._messages.append(types.ToolMessage(tool_call_id=one.id, content=results[-1], name=call.name))
        said = "\n".join(results)
        return Reply(said, done=self._stopped(), answer=said, role="tool", valid=valid)

    def _stopped(self) -> bool:
        """Whether one of the task's stop conditions holds."""
        inner = self.task.hidden["task"]
        hooks = inner.hooks("stop")
        if not hooks:
            return False
        trace, kind = _trace(inner, self._messages, self._state), _part("trace").Trace
        invoke = _part("utils.decorators").invoke

        async def holds() -> bool:
            found = [invoke(hook, {kind: trace, "trace": trace}) for hook in hooks]
            return any([await one if inspect.isawaitable(one) else one for one in found])

        return bool(_awaited(holds()))


def _part(module: str) -> Any:
    return imported(f"verifiers.v1.{module}", "verifiers", "verifiers")


def _awaited(work: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine, run in a thread of its own: the caller's may run an event loop."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def _read(taskset: str, config: Mapping[str, Any], most: int) -> _Read:
    """The taskset and its first tasks, read once a process."""
    loaders = _part("utils.loaders")
    key = (taskset, json.dumps(config, sort_keys=True, default=str), most)
    if key not in _tasksets:
        try:
            settings = loaders.taskset_config_type(taskset).model_validate({**config, "id": taskset})
            loaded = loaders.load_taskset(settings)
            found = list(itertools.islice(iter(loaded), most))
        except (ImportError, AttributeError, TypeError, ValueError) as error:  # pydantic's errors are ValueErrors
            raise UserError(f"taskset {taskset!r}: {' '.join(str(error).split())}") from None
        if not found:
            raise UserError(f"taskset {taskset!r} has no tasks with the settings {dict(config)}")
        _tasksets[key] = _Read(loaded, found)
    return _tasksets[key]


def _needs(taskset: Any, task: Any, user: User | None) -> str:
    """What a task needs beyond messages, tools in this process and a scripted user, in words; empty where nothing."""
    if task.NEEDS_CONTAINER or task.data.image:
        return "a container"
    if task.data.prompt is None and user is None:
        return "a user who opens the conversation (give user)"
    if task.plugged_judges():
        return "a model as its judge"
    base = _part("task").Task
    if type(task).setup is not base.setup or type(task).finalize is not base.finalize:
        return "a box that it sets up"
    boundary, kind = _part("session").hook_boundary, _part("trace").Trace
    if _part("utils.decorators").discover_decorated(task, "intercept") or any(
            boundary(hook, allow_trace=True) is not kind for hook in task.hooks("stop")):
        return "a look into each request to a model"
    hooks = task.hooks("reward")
    if not hooks:
        return "rewards: it has none of its own"
    parameters = [inspect.signature(hook).parameters.get("runtime") for hook in hooks]
    if any(one is not None and one.default is inspect.Parameter.empty for one in parameters):
        return "the box that its rewards look into"
    return needs_of_tools(fresh_toolsets(taskset, task))


def _prompt(task: Any) -> str:
    return str(task.data.prompt_text)


def _content(task: Any) -> str:
    """What tells a task from others: its prompt, or all of it where there is none."""
    return _prompt(task) or str(task.key)


def _trace(task: Any, messages: Sequence[Any], state: Any) -> Any:
    """The package's record of a conversation."""
    node, trace_of = _part("graph").MessageNode, _part("trace")
    trace = trace_of.Trace(
        task=trace_of.TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash), state=state,
        agent=trace_of.AgentInfo(config=_part("configs.agent").AgentConfig()))
    for index, message in enumerate(messages):
        trace.nodes.append(node(parent=index - 1 if index else None, message=message,
                                sampled=message.role == "assistant"))
    return trace
