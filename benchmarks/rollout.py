"""How fast episodes are sampled: the embedded engine against `model.generate`, the two schedules,
and whole training steps where sampling waits for the update and where it does not.

Random weights in the shape of SmolLM2-135M-Instruct (or a model given by --model): speed does not depend on what they
are. Every pair of figures is measured alternately in one run; the ratios count, and the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import turncredit
from turncredit.agents import AsynchronousAgent, ChatFormat, EngineAgent, Request, Sample, Sampling, TransformersEngine
from turncredit.agents.tiny import learn_tokenizer, make_tiny_model
from turncredit.config import TinyModel, parse_config
from turncredit.envs import Reply, TextEnv
from turncredit.episode import Outcome, StopReason, Task, Verdict
from turncredit.rollout import Budget, Rollout, TaskRef
from turncredit.trainer.loop import train


def model_of(path: str | None, layers: int) -> Any:
    """The model at a path, or one of SmolLM2's shape with so many layers."""
    if path is not None:
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=layers, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=2048, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=None, pad_token_id=None)).eval()


@torch.no_grad()
def generate(model: Any, contexts: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
    """What users write: a batch padded on the left, given to `model.generate`."""
    width = max(map(len, contexts))
    ids = torch.zeros(len(contexts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, context in enumerate(contexts):
        ids[row, width - len(context):] = torch.tensor(context)
        mask[row, width - len(context):] = 1
    out = model.generate(input_ids=ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                         max_new_tokens=new_tokens, min_new_tokens=new_tokens, pad_token_id=0)
    return [row[width:].tolist() for row in out]


class Workload:
    """Groups of 8 that share a prompt; turns of 16 to 64 tokens; observations of 40."""

    def __init__(self, groups: int, turns: int, prompt: int) -> None:
        rng = np.random.default_rng(1)
        self.prompts = [rng.integers(100, 40_000, prompt).tolist() for _ in range(groups)]
        self.limits = rng.integers(16, 65, size=(turns, 8 * groups))
        self.observations = rng.integers(100, 40_000, size=(turns, 8 * groups, 40))

    @property
    def tokens(self) -> int:
        """Those that are of use: generate samples every row up to the longest limit."""
        return int(self.limits.sum())

    def play(self, say: Callable[[int, list[list[int]], Any], list[list[int]]]) -> None:
        """All turns of all episodes, in lockstep."""
        contexts = [list(prompt) for prompt in self.prompts for _ in range(8)]
        for turn, limits in enumerate(self.limits):
            said = say(turn, contexts, limits)
            contexts = [[*context, *ids[:limit], *seen.tolist()]
                        for context, ids, limit, seen in zip(contexts, said, limits, self.observations[turn])]


def compare_with_generate(model: Any, work: Workload, repeats: int, now: Callable[[], float]) -> dict[str, float]:
    """Useful tokens a second by the clock `now`, the best: of the engine on both schedules, and of generate."""
    engine = TransformersEngine(model, max_batch=64)

    def request(turn: int, episode: int, context: list[int]) -> Request:
        return Request(context, int(work.limits[turn][episode]), 1000 * turn + episode, episode=episode)

    def lockstep(turn: int, contexts: list[list[int]], limits: Any) -> list[list[int]]:
        asked = [request(turn, i, context) for i, context in enumerate(contexts)]
        return [sample.token_ids for sample in engine.generate(asked, Sampling(), [])]

    def theirs(turn: int, contexts: list[list[int]], limits: Any) -> list[list[int]]:
        return generate(model, contexts, int(max(limits)))

    def own_pace() -> None:
        """Each episode's next turn joins the batch once its last one is over, as with AsynchronousAgent."""
        stream = engine.stream(Sampling(), [])
        contexts = [list(prompt) for prompt in work.prompts for _ in range(8)]
        numbers = stream.add([request(0, i, context) for i, context in enumerate(contexts)])
        under_way = {number: (0, i) for i, number in enumerate(numbers)}
        while stream.unfinished:
            coming = []
            for number, sample in stream.step():
                assert isinstance(sample, Sample)
                turn, i = under_way.pop(number)
                contexts[i] += [*sample.token_ids, *work.observations[turn][i].tolist()]
                if turn + 1 < len(work.limits):
                    coming.append((turn + 1, i))
            numbers = stream.add([request(turn, i, list(contexts[i])) for turn, i in coming])
            under_way |= zip(numbers, coming)

    ways: dict[str, Callable[[], None]] = {
        "engine": own_pace, "lockstep": lambda: work.play(lockstep), "generate": lambda: work.play(theirs)}
    if len(work.limits) == 1:
        del ways["lockstep"]  # the same
    engine.generate([Request([1, 2, 3], 2, 0)], Sampling(), [])  # the trial, and packing
    best = dict.fromkeys(ways, 0.0)
    for _ in range(repeats):
        for name, play in ways.items():
            engine.forget()
            began = now()
            play()
            best[name] = max(best[name], work.tokens / (now() - began))
            print(f"{name}: {best[name]:.1f} useful tokens a second", flush=True)
    return best | {"ratio": best["engine"] / best["generate"]} | (
        {"lockstep_ratio": best["lockstep"] / best["generate"]} if "lockstep" in best else {})


class Waiting(TextEnv):
    """Answers after a time drawn from an exponential distribution, for 2 to 8 turns."""

    instructions = "Say something."
    turn_limit = 100

    class Verifier:
        def verify(self, task: Task, outcome: Outcome) -> Verdict:
            return Verdict.of(True)

    verifier = Verifier()
    numbers: ClassVar[Iterator[int]] = itertools.count()

    def __init__(self, mean_s: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mean_s, self.number = mean_s, next(self.numbers)

    def make_task(self, rng: np.random.Generator) -> Task:
        self.pace = random.Random(self.number % 64)  # the same paces in each rollout
        self.length = 2 + int(rng.integers(7))
        return Task(f"What is {rng.integers(1000)} + {rng.integers(1000)}?", split=self.split)

    def respond(self, action: str) -> Reply:
        if self.mean_s:
            time.sleep(self.pace.expovariate(1 / self.mean_s))
        return Reply("Go on.", done=len(self.turns) + 1 >= self.length, answer=action)


def compare_schedules(repeats: int) -> dict[str, float]:
    """Seconds for 64 episodes of a tiny policy whose environments take as long as a turn's sampling, on average."""
    turncredit.register("benchmark/Waiting-v0", Waiting)
    tokenizer = learn_tokenizer(["What is 12 + 7? Say something. Go on."] * 3, 400)
    model = make_tiny_model(TinyModel(width=64, layers=2, heads=2, context=512), tokenizer, 0)
    chat = ChatFormat(tokenizer)
    engine = TransformersEngine(model, max_batch=64)

    def seconds(agent: Any, mean_s: float) -> tuple[float, float]:
        rollout = Rollout(agent, chat, Budget(16, 1000, 512))
        tasks = [TaskRef("benchmark/Waiting-v0", i, {"mean_s": mean_s}) for i in range(8)]
        began = time.perf_counter()
        episodes = [e for group in rollout.sample_groups(tasks, 8, seed=1) for e in group.episodes]
        took = time.perf_counter() - began
        assert all(e.stop is StopReason.FINISHED for e in episodes)
        return took, sum(len(e.turns) for e in episodes) / len(episodes)

    lockstep = EngineAgent(engine, chat)
    seconds(lockstep, 0.0)
    took, turns = seconds(lockstep, 0.0)
    mean_s = took / turns
    best = {"lockstep": float("inf"), "asynchronous": float("inf")}
    idle = 0.0
    for _ in range(repeats):
        best["lockstep"] = min(best["lockstep"], seconds(lockstep, mean_s)[0])
        agent = AsynchronousAgent(engine, chat)
        took = seconds(agent, mean_s)[0]
        if took < best["asynchronous"]:
            best["asynchronous"], idle = took, 1 - agent.busy_s / took
    return {"environment_mean_s": mean_s, **best, "engine_idle_share": idle,
            "ratio": best["lockstep"] / best["asynchronous"]}


class WaitingToBeTrained(Waiting):
    """The same, with rewards that there is something to learn from."""

    instructions = "Say something."

    class Verifier:
        def verify(self, task: Task, outcome: Outcome) -> Verdict:
            return Verdict.of(len(outcome.answer or "") % 2 == 0)

    verifier = Verifier()


class Silent:
    """Watches a run and says nothing."""

    def warming(self, *_: Any) -> None:
        pass

    def training(self, *_: Any) -> None:
        pass


SCHEDULES: dict[str, dict[str, Any]] = {
    "on_policy": {"schedule": "lockstep", "staleness": 0}, "steps_ahead": {"schedule": "lockstep", "staleness": 1},
    "asynchronous": {"schedule": "asynchronous", "staleness": 0},
    "continuous": {"schedule": "asynchronous", "staleness": 1}}
PARTS = ("sampling", "weights", "credit", "update")


def compare_training(repeats: int, steps: int = 5) -> dict[str, float]:
    """Steps a second of whole training runs of a tiny policy, 32 episodes a step, whose environments take as long as a
    turn's sampling on average; the first two steps of each run are not counted."""
    turncredit.register("benchmark/WaitingToBeTrained-v0", WaitingToBeTrained)
    tokenizer = learn_tokenizer(["What is 12 + 7? Say something. Go on."] * 3, 400)
    model = make_tiny_model(TinyModel(width=64, layers=2, heads=2, context=512), tokenizer, 0)
    best = dict.fromkeys(SCHEDULES, 0.0)
    idle, stale, updates = {}, 0, 0.0

    def run(schedule: str, mean_s: float, count: int) -> list[dict[str, Any]]:
        env = {"id": "benchmark/WaitingToBeTrained-v0", "arguments": {"mean_s": mean_s}}
        config = parse_config({
            "name": f"{schedule}-{time.monotonic_ns()}", "runs": folder, "model": {"path": f"{folder}/policy"},
            "envs": [env], "evaluation": {"leakage": "ignore"},
            "rollout": {"groups": 4, "group_size": 8, "turn_tokens": 16, "episode_tokens": 1000, "context_tokens": 512,
                        "max_batch": 128} | SCHEDULES[schedule],
            "trainer": {"steps": count, "lr": 1e-4, "old_logprobs": "recomputed", "save_every": count}})
        return train(config, Silent()).read_metrics()

    def seconds(metrics: list[dict[str, Any]], *parts: str) -> float:
        return sum(float(line[f"{part}_s"]) for line in metrics for part in parts)

    with TemporaryDirectory() as folder:
        model.save_pretrained(f"{folder}/policy")
        tokenizer.save_pretrained(f"{folder}/policy")
        quick = run("on_policy", 0.0, 3)
        mean_s = min(seconds([line], *PARTS) * (1 - line["engine_idle"]) / line["turns"] for line in quick)
        for _, schedule in itertools.product(range(repeats), SCHEDULES):
            metrics = run(schedule, mean_s, steps + 2)[2:]
            rate = steps / seconds(metrics, *PARTS)
            print(f"{schedule}: {rate:.3f} steps a second", flush=True)
            if rate > best[schedule]:
                best[schedule], idle[schedule] = rate, float(np.mean([line["engine_idle"] for line in metrics]))
            if schedule == "continuous":
                stale += sum(line["groups stale"] for line in metrics)
            if schedule == "on_policy":
                updates = seconds(metrics, "credit", "update") / steps
    return {"environment_mean_s": mean_s, "update_s": updates, **best, "groups_stale": stale,
            **{f"engine_idle_{schedule}": share for schedule, share in idle.items()},
            **{f"continuous_over_{other}": best["continuous"] / best[other] for other in list(SCHEDULES)[:-1]}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a folder that transformers can load, in place of random weights")
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="on a machine that others use, more wait for each other")
    parser.add_argument("--cpu-seconds", action="store_true",
                        help="with one thread, count this process's own seconds on the CPU: others disturb those less")
    parser.add_argument("--only", choices=["one_turn", "several_turns", "schedules", "continuous"])
    wanted = parser.parse_args()
    torch.set_num_threads(wanted.threads)
    now = time.process_time if wanted.cpu_seconds else time.perf_counter
    measures: dict[str, Callable[[], dict[str, float]]] = {
        "one_turn": lambda: compare_with_generate(model, Workload(4, 1, 60), wanted.repeats, now),
        "several_turns": lambda: compare_with_generate(model, Workload(4, 4, 200), wanted.repeats, now),
        "schedules": lambda: compare_schedules(2 * wanted.repeats),
        "continuous": lambda: compare_training(wanted.repeats)}
    names = [wanted.only] if wanted.only else list(measures)
    model = model_of(wanted.model, wanted.layers) if {"one_turn", "several_turns"} & {*names} else None
    results = {}
    for name in names:
        results[name] = {key: round(value, 3) for key, value in measures[name]().items()}
        print(name, results[name], flush=True)
    print(json.dumps({"layers": wanted.layers, "threads": wanted.threads} | results))


if __name__ == "__main__":
    main()
