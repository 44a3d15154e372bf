"""Join an agent and environments: G episodes for each of P tasks at once, each of which moves by itself.

An exception in an environment ends that episode alone; a step that does not return in time does so too, and
its environment is not used again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np

from turncredit.agents.base import Actor, Agent, Request
from turncredit.agents.chat import ChatFormat
from turncredit.daemon import in_daemon_thread
from turncredit.envs import make
from turncredit.episode import Episode, Group, Segment, StopReason, Turn, Verdict
from turncredit.errors import UserError
from turncredit.seeds import seed_of
from turncredit.toolcalls import ToolSpec, tool_format

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TaskRef:
    """Where a task comes from: an environment with its arguments, and a seed or an index into its task set."""

    env_id: str
    seed: int
    arguments: Mapping[str, Any] = field(default_factory=dict)
    index: int | None = None

    @property
    def reset_options(self) -> dict[str, Any] | None:
        """What `reset` gets beside the seed."""
        return None if self.index is None else {"task": self.index}


@dataclass(frozen=True, slots=True)
class Budget:
    """What an episode may use; each bound has its own stop reason."""

    turn_tokens: int = 256
    episode_tokens: int = 1024
    context_tokens: int = 4096
    step_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not getattr(self, name) > 0:
                raise UserError(f"budget.{name} is {getattr(self, name)}: it must be above 0")


class Environments(Protocol):
    """Where environments are made."""

    def make(self, env_id: str, **arguments: Any) -> Any:
        """An environment: what has `reset`, `step`, `close` and `unwrapped`."""

    def ready(self) -> None:
        """Called before episodes begin. Raises UserError where no environment can be made any more."""

    def close(self) -> None:
        """End what was started for them; the environments are closed already."""


class Here:
    """In this process."""

    def make(self, env_id: str, **arguments: Any) -> Any:
        """As the registry makes it."""
        return make(env_id, **arguments)

    def ready(self) -> None:
        """Always."""

    def close(self) -> None:
        """Nothing was started."""


class Rollout:
    """Runs an agent in environments, which are made once and used again.

    Args:
        agent: what acts.
        chat: the model's chat format.
        budget: the bounds of an episode.
        tool_calls: the format in which the agent writes tool calls, "json" or "plain".
        on_episode: called with each finished episode.
        environments: where they are made; in this process by default.
    """

    def __init__(self, agent: Agent, chat: ChatFormat, budget: Budget | None = None, tool_calls: str = "json",
                 on_episode: Callable[[Episode], None] | None = None, environments: Environments | None = None) -> None:
        self.agent, self.chat, self.budget = agent, chat, budget or Budget()
        self.tool_calls = tool_format(tool_calls)
        self.on_episode = on_episode
        self.environments = environments or Here()
        self.moved_at = time.monotonic()  # when a turn was last sampled, or an environment last answered
        self._idle: dict[str, list[Any]] = {}

    def sample_groups(self, tasks: Sequence[TaskRef], group_size: int, seed: int, step: int = 0,
                      on_group: Callable[[Group], None] | None = None, numbers: Sequence[int] | None = None,
                      ) -> list[Group]:
        """One group of `group_size` episodes for each task, in the tasks' order.

        Args:
            seed: of every draw of the agent in these episodes.
            step: noted in the episodes.
            on_group: called with each group as soon as its last episode has ended.
            numbers: the groups', on which their draws depend; 0, 1, 2, … where None.
        """
        work = self._sample_groups(tasks, group_size, seed, step, on_group, numbers or range(len(tasks)))
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(work)
        with ThreadPoolExecutor(1) as beside:  # in a notebook, whose own loop is running
            return beside.submit(asyncio.run, work).result()

    async def _sample_groups(self, tasks: Sequence[TaskRef], group_size: int, seed: int, step: int,
                             on_group: Callable[[Group], None] | None, numbers: Sequence[int]) -> list[Group]:
        async def one_group(number: int, task: TaskRef, seats: Sequence[tuple[Actor, Any]]) -> Group:
            group = await self._play(task, seats, seed, number)
            for episode in group.episodes:
                episode.step = step
            if on_group:
                on_group(group)
            return group

        # Every episode has its place before the first one moves, so that the first batch holds them all.
        envs = [self.environments_of(task, group_size) for task in tasks]
        seats = [self._seats(group) for group in envs]
        return list(await asyncio.gather(*(one_group(i, t, s) for i, t, s in zip(numbers, tasks, seats, strict=True))))

    async def play(self, task: TaskRef, envs: Sequence[Any], seed: int, number: int) -> Group:
        """One group by itself, in the event loop that runs; `envs` are from `environments_of`."""
        return await self._play(task, self._seats(envs), seed, number)

    def environments_of(self, task: TaskRef, count: int) -> list[Any]:
        """So many for one task's episodes.

        Raises:
            UserError: none can be made.
        """
        self.environments.ready()
        return [self._environment(task) for _ in range(count)]

    def _seats(self, envs: Sequence[Any]) -> list[tuple[Actor, Any]]:
        return [(self.agent.start(env), env) for env in envs]

    async def _play(self, task: TaskRef, seats: Sequence[tuple[Actor, Any]], seed: int, number: int) -> Group:
        episodes = [_OneEpisode(self, actor, env, task, seed_of(seed, number, sample)).run()
                    for sample, (actor, env) in enumerate(seats)]
        group = Group(list(await asyncio.gather(*episodes)), task)
        _refuse_different_starts(group)
        for sample, episode in enumerate(group.episodes):
            episode.group, episode.sample = number, sample
        return group

    def _environment(self, task: TaskRef) -> Any:
        """One that is idle or a new one; where it cannot be made, the exception, which its episode will raise."""
        idle = self._idle.get(_key(task))
        if idle:
            env = idle.pop()
        else:
            try:
                env = self.environments.make(task.env_id, **task.arguments)
            except UserError:
                raise
            except Exception as error:  # the author's code, such as a server that is away: it ends its episode alone
                return error
        use_format = getattr(env.unwrapped, "use_tool_format", None)
        if use_format is not None:
            use_format(self.tool_calls.name)
        return env

    def _give_back(self, task: TaskRef, env: Any) -> None:
        self._idle.setdefault(_key(task), []).append(env)

    def close(self) -> None:
        """Close every environment that is not in use."""
        for envs in self._idle.values():
            for env in envs:
                env.close()
        self._idle.clear()


class _OneEpisode:
    """One agent in one environment, from reset to verdict."""

    def __init__(self, rollout: Rollout, actor: Actor, env: Any, task: TaskRef, seed: int) -> None:
        self.rollout, self.actor, self.env, self.task, self.seed = rollout, actor, env, task, seed
        self.chat, self.budget = rollout.chat, rollout.budget
        self.context: list[int] = []
        self.tools: Sequence[ToolSpec] = ()
        self.reward = 0.0
        self.episode = Episode(task.env_id, "", "", task.seed, "", "", [], policy_version=rollout.agent.policy_version,
                               timings={"sampling": 0.0, "environment": 0.0})

    async def run(self) -> Episode:
        """Never raises for what an environment, a verifier or an engine does: the stop reason says it."""
        episode = self.episode
        usable = True
        try:
            if isinstance(self.env, Exception):
                raise self.env
            await self._begin()
            while not await self._take_turn():
                pass
            if episode.verdict is not None and episode.verdict.reward is None:
                episode.stop, episode.error = StopReason.VERIFIER_ERROR, episode.verdict.reason
        except _TimedOut:
            usable = False  # its thread may still be inside it
            episode.stop = StopReason.ENVIRONMENT_TIMEOUT
            episode.error = f"no answer in {self.budget.step_timeout_s:g} s"
        except _EngineFailed as error:
            episode.stop, episode.error = StopReason.ENGINE_ERROR, _describe(error.__cause__)
        except Exception as error:  # the environment is the author's code: it ends this episode alone
            usable = False
            episode.stop, episode.error = StopReason.ENVIRONMENT_ERROR, _describe(error)
        finally:
            self.actor.end()
        if usable:
            episode.timings["verifier"] = float(getattr(self.env.unwrapped, "verifier_s", 0.0))
            self.rollout._give_back(self.task, self.env)
        elif not isinstance(self.env, Exception):
            _close_in_background(self.env)
        if self.rollout.on_episode:
            self.rollout.on_episode(episode)
        return episode

    async def _begin(self) -> None:
        reset, seed, options = self.env.reset, self.task.seed, self.task.reset_options
        observation, info = await self._in_environment(lambda: reset(seed=seed, options=options))
        self.tools = info.get("tools") or []
        parts = [str(info.get("instructions", "")), self.rollout.tool_calls.describe(self.tools) if self.tools else ""]
        episode = self.episode
        episode.system = "\n\n".join(part for part in parts if part)
        episode.prompt = _checked_text(observation)
        episode.task_id = str(info.get("task_id", f"seed-{self.task.seed}"))
        episode.split = str(info.get("split", ""))
        self._append(Segment.text(self.chat.first_prompt(episode.system, episode.prompt), "prompt"))

    async def _take_turn(self) -> bool:
        """Sample an action and give it to the environment. True where that ended the episode."""
        room = self._room()
        if isinstance(room, StopReason):
            return await self._stop_early(room)
        turn, action = await self._sample(Request(self.context, room, seed_of(self.seed, len(self.episode.turns)),
                                                   tools=self.tools))
        self._append(turn)
        if not len(turn.token_ids) or turn.token_ids[-1] != self.chat.end_id:
            self._append(Segment.text(self.chat.turn_end, "glue"))
        step = self.env.step
        observation, reward, terminated, truncated, info = await self._in_environment(lambda: step(action))
        role, observation, reward = _checked_role(info), _checked_text(observation), float(reward)
        self.reward += reward
        self.episode.turns.append(Turn(action, observation, role, bool(info.get("valid", True)), reward))
        if terminated or truncated:
            self.episode.stop = _stop_reason(info, StopReason.TRUNCATED if truncated else StopReason.FINISHED)
            self.episode.verdict = _checked_verdict(info["verdict"]) if "verdict" in info else await self._judged()
            return True
        ids = self.chat.observation(observation, role)
        room = self._room(len(ids))
        if isinstance(room, StopReason):  # nobody will read the observation: it is in the turns, not in the tokens
            return await self._stop_early(room)
        self._append(Segment.text(ids, role))
        return False

    def _room(self, more: int = 0) -> int | StopReason:
        """Tokens that the next turn may take once `more` are appended, or why there is none."""
        left = self.budget.episode_tokens - self.episode.generated_count
        # One token is kept for the end of a turn that does not end by itself.
        free = self._readable - len(self.context) - more - 1
        if left <= 0:
            return StopReason.TOKEN_LIMIT
        return min(self.budget.turn_tokens, left, free) if free > 0 else StopReason.CONTEXT_FULL

    @property
    def _readable(self) -> int:
        return min(self.budget.context_tokens, self.rollout.agent.max_context)

    async def _stop_early(self, reason: StopReason) -> bool:
        """Out of tokens: the episode is judged as it stands, but where the agent could not act at all, not judged."""
        self.episode.stop = reason
        if self.episode.turns:
            self.episode.verdict = await self._judged()
        else:
            self.episode.error = f"the first prompt takes {len(self.context)} tokens of {self._readable}"
        return True

    async def _judged(self) -> Verdict:
        """What the episode is worth as it stands: by the environment's verdict, or else by what it earned."""
        judge = getattr(self.env.unwrapped, "verdict", None)
        if judge is None:
            return verdict_of_reward(self.reward)
        return _checked_verdict(await self._in_environment(judge))

    async def _sample(self, request: Request) -> tuple[Segment, str]:
        """A turn as tokens and as text."""
        began = time.perf_counter()
        try:
            sample = await self.actor.act(request)
            version = self.rollout.agent.policy_version if sample.policy_version is None else sample.policy_version
            if not self.episode.turns:
                self.episode.policy_version = version
            turn = Segment(np.asarray(sample.token_ids, np.int32), "assistant", True, sample.logprobs,
                           sample.sampling_logprobs, version)
            return turn, self.chat.text(sample.token_ids)
        except Exception as error:
            raise _EngineFailed from error
        finally:
            self.episode.timings["sampling"] += time.perf_counter() - began
            self.rollout.moved_at = time.monotonic()

    async def _in_environment(self, call: Callable[[], T]) -> T:
        began = time.perf_counter()
        try:
            async with asyncio.timeout(self.budget.step_timeout_s) as limit:
                return await in_daemon_thread(call)
        except TimeoutError:
            if limit.expired():
                raise _TimedOut from None
            raise  # the environment's own
        finally:
            self.episode.timings["environment"] += time.perf_counter() - began
            self.rollout.moved_at = time.monotonic()

    def _append(self, segment: Segment) -> None:
        self.episode.segments.append(segment)
        self.context = [*self.context, *segment.token_ids.tolist()]


class _EngineFailed(Exception):
    """Carries an engine's exception past the environment's."""


class _TimedOut(Exception):
    """The environment did not answer in time."""


def _close_in_background(env: Any) -> None:
    """Close a broken environment, as far as it can be: without waiting for it."""

    def close() -> None:
        try:
            env.close()
        except Exception as error:  # it is broken already
            log.debug("an environment that failed could not be closed: %s", error)

    threading.Thread(target=close, daemon=True, name="environment close").start()


def verdict_of_reward(reward: float) -> Verdict:
    """For environments of others, which give rewards and no verdicts."""
    if not math.isfinite(reward) or not 0 <= reward <= 1:
        return Verdict.unknown(f"the episode's reward is {reward!r}: it must lie in [0, 1]")
    return Verdict(reward, reward >= 1.0)


def _checked_verdict(verdict: Any) -> Verdict:
    if not isinstance(verdict, Verdict):
        return Verdict.unknown(f"the environment's verdict is {type(verdict).__name__}, not a Verdict")
    return verdict


def _stop_reason(info: Mapping[str, Any], default: StopReason) -> StopReason:
    """The environment's own reason where it gives one of ours."""
    given = info.get("stop")
    return StopReason(given) if isinstance(given, str) and given in set(StopReason) else default


def _checked_role(info: Mapping[str, Any]) -> str:
    role = info.get("role", "user")
    if role not in ("user", "tool"):
        raise ValueError(f"info['role'] is {role!r}: an observation's role is 'user' or 'tool'")
    return str(role)


def _refuse_different_starts(group: Group) -> None:
    """A group compares answers to one task: an environment that draws another for the same seed breaks it."""
    started = [e for e in group.episodes if e.segments]
    if len({(e.system, e.prompt) for e in started}) > 1:
        for episode in started:
            episode.stop = StopReason.ENVIRONMENT_ERROR
            episode.error = "the environment gave different first observations for one seed"


def _checked_text(observation: Any) -> str:
    if not isinstance(observation, str):
        raise TypeError(f"the observation is {type(observation).__name__}: a text environment returns str")
    return observation.encode("utf-8", "replace").decode()  # a lone surrogate has no tokens


def _describe(error: BaseException | None) -> str:
    return f"{type(error).__name__}: {error}"


def _key(task: TaskRef) -> str:
    return json.dumps([task.env_id, dict(task.arguments)], sort_keys=True, default=str)
