"""Whole training steps against TRL's GRPOTrainer: same model, tokenizer, prompts, group size and lengths, in one run.

    python benchmarks/against_trl.py [one-turn] [calculator] [--rounds N] [--prompts P]

Both run their own loop as users run it, each in a thread of its own, and hand one another the processor after each
step: sampling, tools, rewards, advantages, forward, backward and the optimiser's step, one update a batch, and what
each writes down of it. TRL runs with `generate`, its fused head and the fastest of its micro-batches, which are tried
first; ours with its defaults. Rewards are drawn, so that every group has something to learn from; the learning rate is
so small that all steps are of the same policy. That both have the same loss is checked on one batch first.

`one-turn`: questions answered in 64 tokens. `calculator`: turncredit/Calculator-v0 with a policy that has learnt to say
the same to each question: two calls of the tool, and an answer. Three turns and so many tokens are the most in both
loops, so that both have the same to do; `work` says what they did, and `cpu_over_trl_a_token` is of generated tokens.
The last line is one JSON object; its ratios count: `over_trl` in wall time and `cpu_over_trl` in the process's
processor time, which other load on the machine does not lengthen. A work takes about 2 minutes of it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import numpy as np
import torch
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.chat_template_utils import qwen3_instruct_2507_chat_template

import trainer as parts  # benchmarks/trainer.py
from turncredit.agents.tiny import learn_tokenizer, make_tiny_model
from turncredit.config import Config, EnvConfig, ModelConfig, TinyModel, WarmstartConfig
from turncredit.envs import make, register
from turncredit.envs.arithmetic import Arithmetic
from turncredit.envs.calculator import Calculator
from turncredit.episode import Outcome, Segment, Task, Verdict
from turncredit.integrations.environment import environment_dataset, environment_factory, verdict_reward
from turncredit.toolcalls import tool_format
from turncredit.trainer.batch import make_batch
from turncredit.trainer.loop import train
from turncredit.trainer.policy import Policy
from turncredit.trainer.warmstart import demonstrations, texts_of

G = 8
TURNS = 3  # of the calculator: two calls and an answer
MICRO_BATCHES = (8, 16)
TINY = TinyModel(width=192, layers=4, heads=6, context=1024)


class Drawn:
    """A verdict by lot: what is measured is time."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)

    def verify(self, task: Task, outcome: Outcome) -> Verdict:
        passed = bool(self._rng.random() < 0.5)
        return Verdict(float(passed), passed)


class Questions(Arithmetic):
    """One turn."""

    verifier = Drawn()


class DrawnCalculator(Calculator):
    """Several turns."""

    verifier = Drawn()
    turn_limit = TURNS


register("benchmarks/Questions-v0", Questions)
register("benchmarks/Calculator-v0", DrawnCalculator)
WORK: dict[str, dict[str, Any]] = {
    "one-turn": {"id": "benchmarks/Questions-v0", "arguments": {}, "turn": 64, "episode": 64},
    "calculator": {"id": "benchmarks/Calculator-v0", "arguments": {"level": 2}, "turn": 160, "episode": 160}}


class Turns:
    """Whose turn it is, round and round."""

    def __init__(self, names: list[str]) -> None:
        self._names, self._changed = list(names), threading.Condition()
        self._began = (0.0, 0.0)
        self.seconds: dict[str, list[float]] = {name: [] for name in names}
        self.cpu_seconds: dict[str, list[float]] = {name: [] for name in names}  # of the process: one loop works
        self.errors: list[BaseException] = []

    def take(self, name: str) -> None:
        """Wait for it."""
        with self._changed:
            self._changed.wait_for(lambda: self._names[0] == name or bool(self.errors))
        if self.errors:
            raise RuntimeError("another loop failed")
        torch.set_num_threads(1)
        self._began = time.perf_counter(), time.process_time()

    def give(self, name: str) -> None:
        """A step is done."""
        self.seconds[name].append(time.perf_counter() - self._began[0])
        self.cpu_seconds[name].append(time.process_time() - self._began[1])
        with self._changed:
            self._names.append(self._names.pop(0))
            self._changed.notify_all()

    def run(self, loops: Mapping[str, Callable[[], object]]) -> None:
        """All loops at once, one step at a time."""

        def work(name: str, loop: Callable[[], object]) -> None:
            try:
                self.take(name)
                loop()
            except BaseException as error:
                self.errors.append(error)
            with self._changed:
                self._names.remove(name)
                self._changed.notify_all()

        threads = [threading.Thread(target=work, args=one) for one in loops.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.errors:
            raise self.errors[0]


class Ours:
    """Watches our loop."""

    def __init__(self, turns: Turns, name: str) -> None:
        self.turns, self.name = turns, name
        self.metrics: list[dict[str, Any]] = []

    def warming(self, *_: Any) -> None:
        """There is no warm start."""

    def training(self, step: int, steps: int, metrics: dict[str, Any]) -> None:
        """A step is done."""
        self.metrics.append(metrics)
        self.turns.give(self.name)
        if step + 1 < steps:
            self.turns.take(self.name)


class Theirs(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Watches TRL's loop."""

    def __init__(self, turns: Turns, name: str) -> None:
        self.turns, self.name = turns, name

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A step is done; what is logged of it counts for the next."""
        self.turns.give(self.name)
        if state.global_step < state.max_steps:
            self.turns.take(self.name)


def our_config(work: Mapping[str, Any], model: Path, algorithm: str, prompts: int, steps: int, runs: Path) -> Config:
    """Our defaults."""
    return Config.model_validate({
        "name": algorithm, "runs": str(runs), "model": {"path": str(model)}, "algorithm": {"name": algorithm},
        "envs": [{"id": work["id"], "arguments": work["arguments"]}],
        "rollout": {"groups": prompts, "group_size": G, "turn_tokens": work["turn"], "episode_tokens": work["episode"],
                    "context_tokens": TINY.context},
        "trainer": {"steps": steps, "lr": 1e-12, "save_every": 10**6}})


def trl_trainer(name: str, work: Mapping[str, Any], policy: Policy, prompts: int, steps: int, micro: int,
                turns: Turns, folder: Path) -> Any:
    """TRL's trainer on the same tasks; of the calculator with its own loop of tools."""
    arguments = GRPOConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, beta=0.0, loss_type="grpo", learning_rate=1e-12,
        lr_scheduler_type="constant", per_device_train_batch_size=micro, generation_batch_size=prompts * G,
        gradient_accumulation_steps=prompts * G // micro, num_generations=G, temperature=1.0, max_steps=steps,
        max_completion_length=work["episode"], logging_steps=1,  # the tool's results are counted in
        max_tool_calling_iterations=TURNS - 1, save_strategy="no", report_to=[], gradient_checkpointing=False,
        disable_tqdm=True)
    rows = environment_dataset(work["id"], prompts * steps, 0, **work["arguments"])
    options: dict[str, Any] = {"reward_funcs": verdict_reward, "train_dataset": rows,
                               "environment_factory": environment_factory(work["id"], **work["arguments"])}
    if name == "one-turn":  # TRL shows a tool wherever there is an environment: so here the prompts are complete
        drawn = Drawn()
        questions = [make(work["id"]).reset(seed=row["seed"])[0] for row in rows]
        rows = rows.map(lambda row, i: {"prompt": [*row["prompt"][:-1], {"role": "user", "content": questions[i]}]},
                        with_indices=True)
        options = {"train_dataset": rows, "reward_funcs": lambda completions, **_: [
            drawn.verify(Task(""), Outcome(None)).reward for _ in completions]}
    warnings.simplefilter("ignore")
    return GRPOTrainer(model=policy.model, processing_class=policy.tokenizer, args=arguments,
                       callbacks=[Theirs(turns, f"TRL {micro}")], **options)


def make_policy(name: str) -> Policy:
    """Random weights; for the calculator a policy that knows how its tasks are solved."""
    work = WORK[name]
    texts = ["Work out the expression. Answer with the number alone. What is + - * ?"]
    if name == "calculator":
        texts += texts_of(warmstart_of(work), "json", 0, count=8)
        texts += [tool_format("json").describe(make(work["id"]).unwrapped.tools)]
    tokenizer = learn_tokenizer(texts, 420)
    tokenizer.add_tokens([f"<{i}>" for i in range(4096 - len(tokenizer))])
    tokenizer.chat_template = qwen3_instruct_2507_chat_template
    policy = Policy(make_tiny_model(TINY, tokenizer, 0), tokenizer, ModelConfig(path="made"))
    if name == "calculator":
        learn_by_heart(policy, work)
    return policy


def warmstart_of(work: Mapping[str, Any]) -> WarmstartConfig:
    """Where demonstrations come from."""
    return WarmstartConfig(envs=[EnvConfig(id=work["id"], arguments=work["arguments"])])


def learn_by_heart(policy: Policy, work: Mapping[str, Any], count: int = 6, steps: int = 80) -> None:
    """One episode of the scripted solution, behind our prompts and those that TRL renders, whatever they ask."""
    shown = demonstrations(warmstart_of(work), policy.chat, "json", 64, 0)[:count]
    environment = environment_factory(work["id"], **work["arguments"])()
    conversations = []
    for episode in shown:
        messages = [{"role": "system", "content": environment._env.unwrapped.instructions},
                    {"role": "user", "content": episode.prompt}]
        theirs = policy.tokenizer.apply_chat_template(messages, tools=[environment.calculate], return_dict=False,
                                                      add_generation_prompt=True)
        conversations += [[prompt, *shown[0].response] for prompt in (
            episode.segments[0], Segment.text(theirs, "prompt"))]
    batch = make_batch(conversations)
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=2e-3)
    for step in range(steps):
        loss = -policy.scores(batch).logprobs.mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 19:
            print(f"learning by heart: step {step + 1}, loss {float(loss.detach()):.3f}", flush=True)
        if float(loss.detach()) < 0.002:
            break


def same_loss(policy: Policy) -> float:
    """By how much the gradients of TRL's loss and of ours differ on one batch, of the norm of ours."""
    groups = parts.make_groups(policy, 48, 64)
    theirs = parts.trl_trainer(policy)
    credit = parts.credited(groups, None)
    padded = parts.padded_parts(credit)
    theirs.model.train()  # without that its loss is the one of an evaluation, which is not divided by micro-batches
    learner = parts.learner_of(policy, "grpo", 4096)
    learner.settings = learner.settings.model_copy(update={"clip_norm": 1e9})
    update = parts.backward_only(learner, credit)
    one, other = parts.gradient_of(policy, lambda: parts.trl_step(theirs, padded)), parts.gradient_of(policy, update)
    return float((one - other).norm() / other.norm())


def measure(name: str, rounds: int, prompts: int) -> dict[str, Any]:
    """Seconds a step of GRPO and SC-GRPO in our loop and of GRPO in TRL's; the first round of each is left out."""
    policy, work = make_policy(name), WORK[name]
    apart = same_loss(policy)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        policy.save(model)

        def of_trl(micro: int, steps: int, turns: Turns) -> Any:
            mine = Policy.load(ModelConfig(path=str(model)))
            return trl_trainer(name, work, mine, prompts, steps, micro, turns, Path(folder) / f"trl-{steps}-{micro}")

        tried = Turns([f"TRL {micro}" for micro in MICRO_BATCHES])
        tried.run({f"TRL {micro}": of_trl(micro, 3, tried).train for micro in MICRO_BATCHES})
        speeds = {micro: statistics.median(tried.cpu_seconds[f"TRL {micro}"][1:]) for micro in MICRO_BATCHES}
        micro = min(speeds, key=lambda one: speeds[one])

        theirs, steps = f"TRL {micro}", rounds + 1
        turns = Turns(["grpo", theirs, "sc-grpo"])
        watchers = {one: Ours(turns, one) for one in ("grpo", "sc-grpo")}
        trainer = of_trl(micro, steps, turns)
        turns.run({theirs: trainer.train} | {
            one: partial(train, our_config(work, model, one, prompts, steps + 1, Path(folder)), watchers[one])
            for one in watchers})
    return summed(turns, watchers, trainer, theirs) | {"gradients_apart": apart, "trl_micro_batches": speeds}


def summed(turns: Turns, watchers: Mapping[str, Ours], trainer: Any, theirs: str) -> dict[str, Any]:
    """The figures, with what shows that both did the same work."""
    seconds, cpu = ({name: statistics.median(values[1:]) for name, values in spent.items()}
                    for spent in (turns.seconds, turns.cpu_seconds))
    ours = {name: watcher.metrics[1:] for name, watcher in watchers.items()}
    work = work_of(ours, [line for line in trainer.state.log_history if "completions/mean_length" in line], theirs)
    return {"seconds": {name: round(value, 3) for name, value in seconds.items()},
            "over_trl": {name: round(seconds[name] / seconds[theirs], 3) for name in watchers},
            "cpu_seconds": {name: round(value, 3) for name, value in cpu.items()},
            "cpu_over_trl": {name: round(cpu[name] / cpu[theirs], 3) for name in watchers},
            "sc_over_grpo": round(seconds["sc-grpo"] / seconds["grpo"], 3),
            "cpu_sc_over_grpo": round(cpu["sc-grpo"] / cpu["grpo"], 3),
            "cpu_over_trl_a_token": {name: round(cpu[name] / cpu[theirs] * work[theirs]["generated"] / work[name][
                "generated"], 3) for name in watchers},
            "work": work,
            "of_a_step": {name: {part: round(statistics.median(m[part] for m in lines), 3)
                                   for part in ("sampling_s", "credit_s", "update_s")} for name, lines in ours.items()}}


def work_of(ours: Mapping[str, Any], logged: list[dict[str, Any]], theirs: str) -> dict[str, dict[str, float]]:
    """Means over the episodes of the measured steps: turns, generated tokens, and all tokens, prompts included."""
    work = {name: {"turns": statistics.mean(m["turns"] for m in lines),
                   "generated": statistics.mean(m["generated_tokens"] / m["episodes"] for m in lines),
                   "all": statistics.mean(m["total_tokens"] / m["episodes"] for m in lines)}
            for name, lines in ours.items()}
    episodes = statistics.mean(m["episodes"] for lines in ours.values() for m in lines)
    work[theirs] = {"turns": 1 + statistics.mean(line.get("tools/call_frequency", 0.0) for line in logged[1:]),
                    "generated": statistics.mean(line["completions/mean_length"] for line in logged[1:]),
                    "all": (logged[-1]["num_tokens"] - logged[0]["num_tokens"]) / (len(logged) - 1) / episodes}
    return {name: {what: round(value, 2) for what, value in one.items()} for name, one in work.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", nargs="*", help="of " + ", ".join(WORK))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for name in given.work or list(WORK):
        results[name] = measure(name, given.rounds, given.prompts)
        print(name, json.dumps(results[name]), flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
