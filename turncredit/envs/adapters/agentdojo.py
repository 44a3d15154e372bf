"""AgentDojo's tool tasks (workspace, travel, banking, slack), judged by their utility, without attacks."""

from __future__ import annotations

import datetime
import functools
import types
from collections.abc import Mapping
from typing import Any

import numpy as np

from turncredit.agents.trivial import EVERYTHING
from turncredit.envs.adapters.packages import imported
from turncredit.envs.splits import split_of
from turncredit.envs.text_env import Reply, TextEnv
from turncredit.episode import Outcome, Task, Verdict
from turncredit.errors import UserError, did_you_mean
from turncredit.toolcalls import MalformedCall, ToolCall, ToolSpec, typed_call

SUITES = ("workspace", "travel", "banking", "slack")
VERSION = "v1.2.2"
# Tasks solved without a call, as `idle_solves` finds them: banking's 5, 6, 8, 9 and 10 with an empty answer,
# the others with an answer that names every small number, since their utility looks for the right one in it.
EXCLUDED: dict[str, tuple[int, ...]] = {"banking": (5, 6, 7, 8, 9, 10), "workspace": (1, 10, 27)}
_NOON = datetime.datetime(2024, 5, 15, 12)  # of the day that the data calls today
_CLOCKED = ("email_client", "cloud_drive_client")


class Utility:
    """The task's own check of the answer, of the final state and of the calls."""

    def verify(self, task: Task, outcome: Outcome) -> Verdict:
        """All or nothing."""
        if outcome.answer is None:
            return Verdict.of(False, "no answer was given")
        state = outcome.state
        return Verdict.of(_solved(task.hidden["task"], outcome.answer, state["before"], state["after"], state["calls"]))


class AgentDojo(TextEnv):
    """Do what a user asks with the tools of a mail account, a travel agency, a bank or a chat; then answer.

    Of a suite's tasks those are left out that an answer without a call solves (`EXCLUDED`). The others are parted by
    their name; "ood" holds those of another suite. Prompt injections, the
    package's other subject, are not in the data.

    Args:
        suite: "workspace", "travel", "banking" or "slack".
        ood_suite: the suite for the split "ood".
    Raises:
        MissingExtra: agentdojo is not installed.
    """

    instructions = "Do what the user asks with the tools. Then answer in a message without a call, which ends the work."
    verifier = Utility()
    turn_limit = 40

    def __init__(self, suite: str = "workspace", ood_suite: str = "travel", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name, value in (("suite", suite), ("ood_suite", ood_suite)):
            if value not in SUITES:
                raise UserError(f"{name} is {value!r}{did_you_mean(value, SUITES)} (known: {', '.join(SUITES)})")
        self.suite = ood_suite if self.split == "ood" else suite
        self._tasks = [task for task in sound_tasks(self.suite)
                       if self.split == "ood" or split_of(f"{self.suite} {task.ID}") == self.split]
        self.num_tasks = len(self._tasks)
        runtime = imported("agentdojo.functions_runtime", "agentdojo", "agentdojo").FunctionsRuntime
        self._runtime = runtime(_suite(self.suite).tools)

    def make_task(self, rng: np.random.Generator) -> Task:
        """Any of the split's."""
        return self.task_at(int(rng.integers(len(self._tasks))))

    def task_at(self, index: int) -> Task:
        """The package's task at `index` of the split."""
        task = self._tasks[index]
        return Task(str(task.PROMPT), {"task": task}, self.split, self.level, f"{self.split}-{self.suite}-{task.ID}")

    def start(self) -> None:
        """The suite's data in the task's first state."""
        self._data = _first_state(self.suite, self.task.hidden["task"])
        self._before = self._data.model_copy(deep=True)
        self._calls: list[Any] = []
        self._gold: list[Any] | None = None

    def state(self) -> Mapping[str, Any]:
        """The data before and after, and the calls."""
        return {"before": self._before, "after": self._data, "calls": self._calls}

    @property
    def tools(self) -> list[ToolSpec]:
        """The suite's."""
        return _specs(self.suite)

    def respond(self, action: str) -> Reply:
        """Run the calls; a message without one is the answer."""
        try:
            calls = self.tool_format.parse(action)
            for call in calls:
                if call.name not in self._runtime.functions:
                    raise MalformedCall(f"unknown tool {call.name!r}{did_you_mean(call.name, self._runtime.functions)}")
        except MalformedCall as error:
            return Reply(f"error: {error}", role="tool", valid=False)
        if not calls:
            return Reply(done=True, answer=action)
        if not self.tool_format.typed:
            parameters = {spec.name: spec.parameters for spec in self.tools}
            calls = [typed_call(call, parameters[call.name]) for call in calls]
        return Reply("\n".join(self._call(call) for call in calls), role="tool")

    def expert_action(self) -> str:
        """The package's solution, a call a turn, then the answer that belongs to it."""
        task = self.task.hidden["task"]
        if self._gold is None:
            self._gold = list(task.ground_truth(self._before.model_copy(deep=True)))
        if len(self._calls) < len(self._gold):
            call = self._gold[len(self._calls)]
            return self.tool_format.render(ToolCall(call.function, dict(call.args)))
        return str(task.GROUND_TRUTH_OUTPUT)

    def _call(self, call: ToolCall) -> str:
        result, error = self._runtime.run_function(self._data, call.name, dict(call.arguments))
        made = imported("agentdojo.functions_runtime", "agentdojo", "agentdojo").FunctionCall
        self._calls.append(made(function=call.name, args=dict(call.arguments)))
        if error:
            return f"error: {error}"
        written = imported("agentdojo.agent_pipeline.tool_execution", "agentdojo", "agentdojo").tool_result_to_str
        return str(written(result))


@functools.cache
def sound_tasks(suite: str) -> list[Any]:
    """The suite's tasks but for `EXCLUDED`, by number."""
    numbered = {int(name.split("_")[-1]): task for name, task in _suite(suite).user_tasks.items()}
    return [task for number, task in sorted(numbered.items()) if number not in EXCLUDED.get(suite, ())]


def idle_solves(suite: str, number: int) -> bool:
    """Whether an answer without a call solves the task of that number: an empty one, or all small numbers at once."""
    task = _suite(suite).user_tasks[f"user_task_{number}"]
    before = _first_state(suite, task)
    after = before.model_copy(deep=True)
    return any(_solved(task, answer, before, after, []) for answer in ("", EVERYTHING))


def _solved(task: Any, answer: str, before: Any, after: Any, calls: Any) -> bool:
    by_calls = task.utility_from_traces(answer, before, after, calls)
    return bool(task.utility(answer, before, after) if by_calls is None else by_calls)


class _StoppedClock(datetime.datetime):
    """What the package writes on a new mail or file would differ from episode to episode otherwise."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Any:
        return _NOON


@functools.cache
def _suite(name: str) -> Any:
    suites = imported("agentdojo.task_suite.load_suites", "agentdojo", "agentdojo")
    for module in _CLOCKED:
        tools = imported(f"agentdojo.default_suites.v1.tools.{module}", "agentdojo", "agentdojo")
        tools.datetime = types.SimpleNamespace(**{**vars(datetime), "datetime": _StoppedClock})
    return suites.get_suite(VERSION, name)


@functools.cache
def _data(suite: str) -> Any:
    return _suite(suite).load_and_inject_default_environment({})


def _first_state(suite: str, task: Any) -> Any:
    return task.init_environment(_data(suite).model_copy(deep=True))


@functools.cache
def _specs(suite: str) -> list[ToolSpec]:
    return [ToolSpec(tool.name, tool.description, tool.parameters.model_json_schema()) for tool in _suite(suite).tools]
