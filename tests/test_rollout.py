"""Rollouts: tokens once, unknown is not zero, the same seed is the same run, and every limit has its reason."""

from __future__ import annotations

import asyncio
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.wrappers import TimeLimit

import turncredit
from turncredit.agents import ChatFormat, EngineAgent, Request, Sample, Sampling, ScriptedAgent, TransformersEngine
from turncredit.agents.scripted import expert
from turncredit.envs import Reply, TextEnv
from turncredit.episode import Episode, Group, Outcome, StopReason, Task, Verdict
from turncredit.errors import UserError
from turncredit.rollout import Budget, Rollout, TaskRef


class Chatter(TextEnv):
    """Goes on for `length` turns, at its own pace, with a fault in some of the copies."""

    instructions = "Talk. 🙂"
    turn_limit = 50
    faults: ClassVar[list[str]] = []  # of the copies, in the order in which they are made
    closed: ClassVar[list[Chatter]] = []
    latency: ClassVar[Callable[[], float]] = lambda: 0.0

    class Verifier:
        def verify(self, task: Task, outcome: Outcome) -> Any:
            if task.hidden["fault"] == "verifier raises":
                raise RuntimeError("no network")
            if task.hidden["fault"] == "verifier returns nonsense":
                return 0.0
            if task.hidden["fault"] == "verifier returns NaN":
                return Verdict(float("nan"), True)
            return Verdict.of(True)

    verifier = Verifier()

    def __init__(self, length: int = 3, reply: str = "go on <|im_end|>\n", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.length, self.reply = length, reply
        self.fault = self.faults.pop(0) if self.faults else ""
        if self.fault == "make":
            raise ConnectionError("the server is away")

    def make_task(self, rng: np.random.Generator) -> Task:
        time.sleep(type(self).latency())
        self.fail("reset")
        text = f"Say something about {rng.integers(1000)}."
        if self.fault == "reset returns bytes":
            return Task(text.encode(), {"fault": self.fault}, id="t")  # type: ignore[arg-type]  # that is the fault
        return Task(text + ("!" if self.fault == "another start" else ""), {"fault": self.fault}, self.split)

    def respond(self, action: str) -> Reply:
        time.sleep(type(self).latency())
        self.fail("step")
        if self.fault == "step returns None":
            return Reply(None)  # type: ignore[arg-type]  # that is the fault
        over = len(self.turns) + 1 >= self.length
        return Reply("" if over else f"{self.reply}{len(self.turns)}", done=over, answer=action,
                     role="oracle" if self.fault == "step has another role" else "user")

    def fail(self, where: str) -> None:
        if self.fault == f"{where} raises":
            raise KeyError("a bug")
        if self.fault == f"{where} hangs":
            time.sleep(30)
        if self.fault == f"{where} raises StopIteration":
            next(iter(()))
        if self.fault == f"{where} raises TimeoutError":
            raise TimeoutError("the database did not answer")
        if self.fault == f"{where} exits":
            sys.exit(3)

    def close(self) -> None:
        self.closed.append(self)


class Foreign(gymnasium.Env[str, str]):
    """Somebody else's environment: rewards, no verdicts, nothing of ours."""

    def __init__(self, rewards: Sequence[Any] = (0.25, 0.5), info: dict[str, Any] | None = None) -> None:
        self.action_space = self.observation_space = turncredit.envs.TextSpace()
        self.rewards, self.info = list(rewards), info or {}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.at = 0
        return "go", {}

    def step(self, action: str) -> tuple[str, Any, bool, bool, dict[str, Any]]:
        self.at += 1
        return "on", self.rewards[self.at - 1], self.at == len(self.rewards), False, self.info


@pytest.fixture(autouse=True)
def environments() -> Iterator[None]:
    before = dict(gymnasium.registry)
    turncredit.register("tests/Chatter-v0", Chatter)
    turncredit.register("tests/Foreign-v0", Foreign)
    Chatter.faults, Chatter.closed = [], []
    Chatter.latency = lambda: 0.0
    yield
    gymnasium.registry.clear()
    gymnasium.registry.update(before)


class Recording:
    """A transformers engine that keeps its requests and samples."""

    def __init__(self, engine: TransformersEngine) -> None:
        self.engine, self.policy_version, self.max_context = engine, 5, engine.max_context
        self.asked: list[tuple[list[int], Sample]] = []
        self.batches: list[int] = []

    def generate(self, requests: Sequence[Request], sampling: Sampling, stop_ids: Sequence[int]) -> list[Sample]:
        samples = self.engine.generate(requests, sampling, stop_ids)
        self.asked += [(list(request.context), sample) for request, sample in zip(requests, samples)]
        self.batches.append(len(requests))
        return samples

    def forget(self) -> None:
        self.engine.forget()


TEMPLATES = {"chatml": "exact", "llama3": "exact", "mistral": "exact", "mistral_system": "exact",
             "qwen3": "as-sampled"}


@pytest.fixture
def chat(tokenizer_for: Any) -> ChatFormat:
    return ChatFormat(tokenizer_for("chatml"))


@pytest.fixture
def agent(chat: ChatFormat, model_for: Any) -> EngineAgent:
    return EngineAgent(Recording(TransformersEngine(model_for(chat.tokenizer))), chat)


SHORT = Budget(turn_tokens=8, episode_tokens=64, context_tokens=512)


def sample(agent: Any, chat: ChatFormat, env_id: str = "tests/Chatter-v0", size: int = 4, seed: int = 1,
           budget: Budget = SHORT, tasks: int = 1, **arguments: Any) -> list[Group]:
    rollout = Rollout(agent, chat, budget)
    refs = [TaskRef(env_id, 10 + i, arguments) for i in range(tasks)]
    return rollout.sample_groups(refs, size, seed)


def contents(groups: Sequence[Group]) -> list[Any]:
    """Everything of the episodes but the seconds that they took."""
    return [(e.id, e.task_id, e.stop, e.reward, e.turns, e.prompt, e.token_ids.tolist(), e.generated.tolist(),
             e.logprobs.tolist(), e.sampling_logprobs.tolist()) for group in groups for e in group.episodes]


# Tokens once.


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_tokens_of_an_episode_are_those_that_were_sampled_and_none_ever_changes(
        tokenizer_for: Any, model_for: Any, template: str) -> None:
    chat = ChatFormat(tokenizer_for(template), TEMPLATES[template])
    recording = Recording(TransformersEngine(model_for(chat.tokenizer)))
    groups = sample(EngineAgent(recording, chat), chat, size=3, tasks=2, length=4)
    episodes = [e for group in groups for e in group.episodes]
    assert all(len(e.turns) == 4 for e in episodes)
    for episode in episodes:
        ids = episode.token_ids.tolist()
        mine = [(context, one) for context, one in recording.asked
                if ids[:len(context) + len(one.token_ids)] == context + one.token_ids]
        assert len(mine) == 4, "each context, and what was sampled behind it, is a beginning of the episode"
        sampled = [place for context, one in mine
                   for place in range(len(context), len(context) + len(one.token_ids))]
        assert np.flatnonzero(episode.generated).tolist() == sampled
        assert episode.logprobs.tolist() == [x for _, one in mine for x in one.logprobs.tolist()]
        assert episode.generated_count == len(sampled)
        for turn, (_, one) in zip(episode.turns, mine):
            assert turn.action == chat.text(one.token_ids)


def test_masks_come_from_the_segments_alone(agent: EngineAgent, chat: ChatFormat) -> None:
    episode = sample(agent, chat, length=3)[0].episodes[0]
    spoken = [s.role for s in episode.segments if s.role != "glue"]
    assert spoken == ["prompt", "assistant", "user", "assistant", "user", "assistant"]
    for segment in episode.segments:
        assert segment.generated == (segment.role == "assistant")
        assert (segment.logprobs is None) == (not segment.generated)
    assert not any(hasattr(episode, name) for name in ("mask", "loss_mask", "attention_mask"))


def test_an_observation_is_text_in_the_episode(agent: EngineAgent, chat: ChatFormat) -> None:
    episode = sample(agent, chat, length=2)[0].episodes[0]
    observed = next(s for s in episode.segments if s.role == "user")
    assert observed.token_ids.tolist().count(chat.end_id) == 1, "the glue's, not the <|im_end|> that was uttered"
    assert "go on <|im_end|>\n0" in chat.text(observed.token_ids, keep_special=True)


def test_an_unfinished_turn_is_closed_by_a_token_that_was_not_generated(agent: EngineAgent, chat: ChatFormat) -> None:
    episodes = sample(agent, chat, size=8, length=3)[0].episodes
    unfinished = finished = 0
    for episode in episodes:
        for segment, after in zip(episode.segments, [*episode.segments[1:], None]):
            if not segment.generated:
                continue
            if segment.token_ids[-1] == chat.end_id:
                finished += 1
                assert after is None or after.role != "glue"
            else:
                unfinished += 1
                assert len(segment.token_ids) == SHORT.turn_tokens
                assert after is not None
                assert (after.role, after.token_ids.tolist()) == ("glue", [chat.end_id])
    assert unfinished == sum(episode.turns_cut for episode in episodes) > 0
    scripted = sample(ScriptedAgent(lambda env: "short", chat), chat, size=1)[0].episodes[0]
    assert all(s.role != "glue" for s in scripted.segments)
    assert scripted.turns_cut == 0


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_scripted_episode_reads_as_the_template_renders_it(tokenizer_for: Any, template: str) -> None:
    chat = ChatFormat(tokenizer_for(template), TEMPLATES[template])
    agent = ScriptedAgent(lambda env: f"turn {len(env.unwrapped.turns)}", chat)
    episode = sample(agent, chat, size=1, length=3, reply="go on")[0].episodes[0]
    said = [{"role": "user", "content": f"{episode.system}\n\n{episode.prompt}"}]
    if not template.startswith("mistral"):
        said = [{"role": "system", "content": episode.system}, {"role": "user", "content": episode.prompt}]
    for turn in episode.turns:
        said += [{"role": "assistant", "content": turn.action}, {"role": "user", "content": turn.observation}]
    rendered = chat.tokenizer.apply_chat_template(said[:-1], tokenize=False)
    text = chat.text(episode.token_ids, keep_special=True)
    assert rendered.startswith(text)
    assert rendered[len(text):].strip() == ""


# Unknown is not zero.

BROKEN = {
    "make": (StopReason.ENVIRONMENT_ERROR, "ConnectionError: the server is away"),
    "reset raises": (StopReason.ENVIRONMENT_ERROR, "KeyError: 'a bug'"),
    "step raises": (StopReason.ENVIRONMENT_ERROR, "KeyError: 'a bug'"),
    "reset hangs": (StopReason.ENVIRONMENT_TIMEOUT, "no answer in 1 s"),
    "step hangs": (StopReason.ENVIRONMENT_TIMEOUT, "no answer in 1 s"),
    "reset raises StopIteration": (StopReason.ENVIRONMENT_ERROR, "StopIteration"),
    "step raises StopIteration": (StopReason.ENVIRONMENT_ERROR, "StopIteration"),
    "step raises TimeoutError": (StopReason.ENVIRONMENT_ERROR, "TimeoutError: the database did not answer"),
    "step exits": (StopReason.ENVIRONMENT_ERROR, "SystemExit: 3"),
    "reset returns bytes": (StopReason.ENVIRONMENT_ERROR, "TypeError: the observation is bytes"),
    "step returns None": (StopReason.ENVIRONMENT_ERROR, "TypeError: the observation is NoneType"),
    "step has another role": (StopReason.ENVIRONMENT_ERROR, "info['role'] is 'oracle'"),
    "verifier raises": (StopReason.VERIFIER_ERROR, "the verifier raised RuntimeError: no network"),
    "verifier returns nonsense": (StopReason.VERIFIER_ERROR, "the verifier returned float, not a Verdict"),
    "verifier returns NaN": (StopReason.VERIFIER_ERROR, "it must lie in [0, 1]"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_what_breaks_gives_no_reward_a_reason_and_harms_no_other_episode(agent: EngineAgent, chat: ChatFormat,
                                                                         fault: str) -> None:
    stop, error = BROKEN[fault]
    healthy = sample(agent, chat)[0]
    Chatter.faults = ["", fault, "", ""]
    group = sample(agent, chat, budget=Budget(8, 64, 512, 1.0 if "hangs" in fault else 60.0))[0]
    broken = group.episodes[1]
    assert (broken.reward, broken.passed, broken.stop) == (None, None, stop)
    assert error in broken.error
    assert stop.infrastructure
    assert stop.sentence
    others = [0, 2, 3]
    assert [group.episodes[i].reward for i in others] == [1.0] * 3
    assert [e.sample for e in group.judged] == others, "it enters no mean"
    for one, same in ((group.episodes[i], healthy.episodes[i]) for i in others):
        assert (one.turns, one.token_ids.tolist()) == (same.turns, same.token_ids.tolist())
        np.testing.assert_allclose(one.logprobs, same.logprobs, atol=1e-4)  # another batch is another rounding


def test_infrastructure_is_counted_apart_from_the_agent_s_failures() -> None:
    ours = {StopReason.ENVIRONMENT_ERROR, StopReason.ENVIRONMENT_TIMEOUT, StopReason.VERIFIER_ERROR,
            StopReason.ENGINE_ERROR}
    assert {stop for stop in StopReason if stop.infrastructure} == ours
    for stop in StopReason:
        episode = Episode("e", "t", "train", 0, "", "", [], verdict=Verdict.of(False), stop=stop)
        assert episode.reward == (None if stop in ours else 0.0)


@pytest.mark.parametrize("rewards, reward, stop", [
    ((0.25, 0.5), 0.75, StopReason.FINISHED), ((0.0, 1), 1.0, StopReason.FINISHED),
    ((0.0, float("nan")), None, StopReason.VERIFIER_ERROR), ((1.0, 1.0), None, StopReason.VERIFIER_ERROR),
    ((-1.0,), None, StopReason.VERIFIER_ERROR), (("good",), None, StopReason.ENVIRONMENT_ERROR),
    ((None,), None, StopReason.ENVIRONMENT_ERROR)])
def test_an_environment_without_verdicts_is_judged_by_its_rewards(
        agent: EngineAgent, chat: ChatFormat, rewards: tuple[Any, ...], reward: float | None, stop: StopReason) -> None:
    episode = sample(agent, chat, "tests/Foreign-v0", size=1, rewards=rewards)[0].episodes[0]
    assert (episode.reward, episode.stop) == (reward, stop)


@pytest.mark.parametrize("info, reward, stop", [
    ({"verdict": "good"}, None, StopReason.VERIFIER_ERROR), ({"verdict": None}, None, StopReason.VERIFIER_ERROR),
    ({"verdict": Verdict.of(False)}, 0.0, StopReason.FINISHED), ({"stop": "I like it"}, 0.75, StopReason.FINISHED),
    ({"stop": "turn limit"}, 0.75, StopReason.TURN_LIMIT), ({"stop": 3}, 0.75, StopReason.FINISHED)])
def test_what_a_foreign_info_holds_is_not_taken_for_ours(agent: EngineAgent, chat: ChatFormat, info: dict[str, Any],
                                                         reward: float | None, stop: StopReason) -> None:
    episode = sample(agent, chat, "tests/Foreign-v0", size=1, info=info)[0].episodes[0]
    assert (episode.reward, episode.stop) == (reward, stop)


def test_an_engine_that_fails_ends_the_episodes_that_asked(chat: ChatFormat, agent: EngineAgent) -> None:
    class Failing:
        policy_version, max_context = 0, 512

        def generate(self, *_: Any) -> list[Sample]:
            raise RuntimeError("out of memory")

        def forget(self) -> None:
            """Nothing is kept."""

    for episode in sample(EngineAgent(Failing(), chat), chat)[0].episodes:
        assert (episode.stop, episode.reward, episode.error) == (StopReason.ENGINE_ERROR, None,
                                                                 "RuntimeError: out of memory")


def test_an_engine_that_returns_nonsense_is_the_engine_s_fault(chat: ChatFormat) -> None:
    class Nonsense:
        policy_version, max_context = 0, 512

        def generate(self, requests: Sequence[Request], *_: Any) -> list[Sample]:
            return [Sample([1, 2], np.zeros(1, np.float32), np.zeros(2, np.float32), True) for _ in requests]

        def forget(self) -> None:
            """Nothing is kept."""

    episode = sample(EngineAgent(Nonsense(), chat), chat, size=1)[0].episodes[0]
    assert episode.stop is StopReason.ENGINE_ERROR


def test_a_group_whose_copies_start_differently_is_the_environment_s_fault(agent: EngineAgent,
                                                                          chat: ChatFormat) -> None:
    Chatter.faults = ["", "another start", ""]
    group = sample(agent, chat, size=3)[0]
    assert {e.stop for e in group.episodes} == {StopReason.ENVIRONMENT_ERROR}
    assert group.judged == []
    assert "different first observations for one seed" in group.episodes[0].error


def test_a_broken_environment_is_closed_and_not_used_again(agent: EngineAgent, chat: ChatFormat) -> None:
    Chatter.faults = ["step raises", "", "reset raises"]
    rollout = Rollout(agent, chat, SHORT)
    for _ in range(2):
        group = rollout.sample_groups([TaskRef("tests/Chatter-v0", 1)], 3, seed=1)[0]
    assert [e.reward for e in group.episodes] == [1.0] * 3, "the second time with others"
    deadline = time.monotonic() + 5
    while len(Chatter.closed) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)  # they are closed in the background
    assert sorted(env.fault for env in Chatter.closed) == ["reset raises", "step raises"]
    rollout.close()
    assert len(Chatter.closed) == 5


def test_an_unknown_environment_is_refused_and_the_agent_is_still_of_use(agent: EngineAgent, chat: ChatFormat) -> None:
    rollout = Rollout(agent, chat, SHORT)
    with pytest.raises(UserError, match="did you mean 'tests/Chatter-v0'"):
        rollout.sample_groups([TaskRef("tests/Chatter-v0", 1), TaskRef("tests/Chater-v0", 1)], 2, seed=1)
    assert sample(agent, chat)[0].episodes[0].reward == 1.0


# The same seed is the same run.


def test_the_same_seed_is_the_same_episodes_and_another_seed_is_not(agent: EngineAgent, chat: ChatFormat) -> None:
    one, again, other = (contents(sample(agent, chat, tasks=2, seed=seed)) for seed in (1, 1, 2))
    assert one == again
    assert one != other


def test_the_pace_of_environments_changes_nothing(agent: EngineAgent, chat: ChatFormat) -> None:
    expected = contents(sample(agent, chat, tasks=2))
    pace = random.Random(1)
    Chatter.latency = lambda: pace.uniform(0, 0.02)
    assert contents(sample(agent, chat, tasks=2)) == expected


def test_the_members_of_a_group_draw_differently(agent: EngineAgent, chat: ChatFormat) -> None:
    episodes = sample(agent, chat, size=4)[0].episodes
    assert len({tuple(e.token_ids.tolist()) for e in episodes}) == 4
    assert len({e.prompt for e in episodes}) == 1


def test_a_rollout_leaves_the_global_generators_alone(agent: EngineAgent, chat: ChatFormat) -> None:
    def seeded() -> list[float]:
        return [random.random(), float(np.random.random()), float(torch.rand(1))]

    for use in (True, False):
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        if use:
            sample(agent, chat)
            after = seeded()
    assert after == seeded()


def test_episodes_say_where_they_come_from(agent: EngineAgent, chat: ChatFormat) -> None:
    finished: list[Episode] = []
    rollout = Rollout(agent, chat, SHORT, on_episode=finished.append)
    groups: list[Group] = []
    tasks = [TaskRef("tests/Chatter-v0", 3, {"split": "test"}), TaskRef("tests/Chatter-v0", 4)]
    returned = rollout.sample_groups(tasks, 2, seed=1, step=7, on_group=groups.append)
    assert sorted(e.id for e in finished) == ["000007-0000-000", "000007-0000-001", "000007-0001-000",
                                              "000007-0001-001"]
    assert sorted(map(id, groups)) == sorted(map(id, returned))
    first = returned[0].episodes[0]
    assert (first.env_id, first.split, first.seed, first.policy_version) == ("tests/Chatter-v0", "test", 3, 5)
    assert first.task_id.startswith("test-")
    assert first.system == "Talk. 🙂"
    assert first.timings["sampling"] > 0


# Every limit has its reason.


def test_the_turn_limit_ends_an_episode_and_judges_it(agent: EngineAgent, chat: ChatFormat) -> None:
    episode = sample(agent, chat, length=40, max_turns=3, size=1)[0].episodes[0]
    assert (episode.stop, len(episode.turns), episode.reward) == (StopReason.TURN_LIMIT, 3, 1.0)


def test_the_token_limit_ends_an_episode_and_judges_it(agent: EngineAgent, chat: ChatFormat) -> None:
    for episode in sample(agent, chat, length=40, budget=Budget(8, 20, 512))[0].episodes:
        assert (episode.stop, episode.reward) == (StopReason.TOKEN_LIMIT, 1.0)
        assert episode.generated_count == 20


def test_a_full_context_ends_an_episode_and_judges_it(agent: EngineAgent, chat: ChatFormat) -> None:
    for limit in (100, 130, 512):
        for episode in sample(agent, chat, length=90, budget=Budget(8, 10**6, limit))[0].episodes:
            assert (episode.stop, episode.reward) == (StopReason.CONTEXT_FULL, 1.0)
            assert len(episode.token_ids) <= limit


def test_the_model_s_own_context_is_a_limit_too(agent: EngineAgent, chat: ChatFormat) -> None:
    episode = sample(agent, chat, length=90, size=1, budget=Budget(32, 10**6, 10**6))[0].episodes[0]
    assert episode.stop is StopReason.CONTEXT_FULL
    assert len(episode.token_ids) <= agent.max_context == 512


def test_an_observation_that_leaves_no_room_is_kept_as_text_but_never_as_tokens(agent: EngineAgent,
                                                                               chat: ChatFormat) -> None:
    episode = sample(agent, chat, size=1, length=5, reply="words and words " * 6000)[0].episodes[0]
    assert (episode.stop, len(episode.turns)) == (StopReason.CONTEXT_FULL, 1)
    assert len(episode.turns[0].observation) > 90_000
    assert len(episode.token_ids) < 512


def test_a_first_prompt_that_does_not_fit_is_unknown_and_not_zero(agent: EngineAgent, chat: ChatFormat) -> None:
    group = sample(agent, chat, budget=Budget(8, 64, 40))[0]
    for episode in group.episodes:
        assert (episode.stop, episode.reward, episode.turns) == (StopReason.CONTEXT_FULL, None, [])
        assert "the first prompt takes" in episode.error
    assert group.judged == []


def test_a_wrapper_s_limit_is_judged_by_the_environment_s_verdict(agent: EngineAgent, chat: ChatFormat) -> None:
    turncredit.register("tests/Limited-v0", lambda **kwargs: TimeLimit(Chatter(**kwargs), 2))
    episode = sample(agent, chat, "tests/Limited-v0", size=1, length=40)[0].episodes[0]
    assert (episode.stop, len(episode.turns), episode.reward) == (StopReason.TRUNCATED, 2, 1.0)


@pytest.mark.parametrize("field", ["turn_tokens", "episode_tokens", "context_tokens", "step_timeout_s"])
def test_a_budget_of_nothing_is_refused(field: str) -> None:
    with pytest.raises(UserError, match=f"budget.{field} is 0: it must be above 0"):
        Budget(**{field: 0})  # type: ignore[arg-type]  # each is a number


# Text of all kinds.


def test_text_that_is_no_utf8_goes_through(agent: EngineAgent, chat: ChatFormat) -> None:
    episode = sample(agent, chat, size=1, length=2, reply="a\ud800b")[0].episodes[0]
    assert episode.turns[0].observation == "a?b0"
    assert episode.reward == 1.0


@pytest.mark.parametrize("tool_calls", ["json", "plain"])
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("id", ["turncredit/Calculator-v0", "turncredit/Pantry-v0", "turncredit/Arithmetic-v0"])
def test_scripted_solutions_pass_through_every_template(tokenizer_for: Any, template: str, tool_calls: str,
                                                        id: str) -> None:
    chat = ChatFormat(tokenizer_for(template), TEMPLATES[template])
    rollout = Rollout(ScriptedAgent(expert, chat), chat, Budget(1 << 12, 1 << 14, 1 << 14), tool_calls)
    groups = rollout.sample_groups([TaskRef(id, seed, {"level": 2}) for seed in range(4)], 1, seed=1)
    assert [e.reward for group in groups for e in group.episodes] == [1.0] * 4
    assert all(turn.valid for group in groups for e in group.episodes for turn in e.turns)


def test_a_rollout_runs_in_a_notebook_too(agent: EngineAgent, chat: ChatFormat) -> None:
    async def cell() -> list[Group]:
        return sample(agent, chat)

    assert contents(asyncio.run(cell())) == contents(sample(agent, chat))


def test_slow_steps_run_side_by_side(agent: EngineAgent, chat: ChatFormat) -> None:
    together = threading.Barrier(8)
    Chatter.latency = lambda: float(together.wait(10) * 0)  # nobody goes on before all eight are here
    episodes = sample(agent, chat, size=8)[0].episodes
    assert [e.stop for e in episodes] == [StopReason.FINISHED] * 8
