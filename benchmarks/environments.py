"""What the framework costs on top of a bare environment: python benchmarks/environments.py

Prints microseconds a step of the same task as a bare class, as a `TextEnv`, and through `turncredit.make`, sampled in
turn; scripted steps a second; and how long `import turncredit` takes in a new process, and whether it pulls in torch.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np

import turncredit
from turncredit.envs import Reply, TextEnv
from turncredit.episode import Outcome, Task, Verdict

TURNS = 50
ROUNDS = 60


class Never:
    """Judges nothing as passed."""

    def verify(self, task: Task, outcome: Outcome) -> Verdict:
        """Zero."""
        return Verdict.of(False)


class Bare:
    """The same task with no framework at all."""

    def reset(self, seed: int) -> str:
        """Begin."""
        self.turns = 0
        return "go"

    def step(self, action: str) -> tuple[str, float, bool]:
        """Answer."""
        self.turns += 1
        return f"{len(action)} characters", 0.0, self.turns >= TURNS


class Framed(TextEnv):
    """The same as a `TextEnv`."""

    instructions = "Write."
    verifier = Never()
    turn_limit = TURNS

    def make_task(self, rng: np.random.Generator) -> Task:
        """One task."""
        return Task("go")

    def respond(self, action: str) -> Reply:
        """Answer."""
        return Reply(f"{len(action)} characters")


def microseconds_a_step(env: Any) -> float:
    """Of one whole episode, its reset and verdict included."""
    began = time.perf_counter()
    env.reset(seed=1)
    for _ in range(TURNS):
        env.step("hello")
    return (time.perf_counter() - began) / TURNS * 1e6


def scripted_steps_a_second(id: str, seconds: float = 3.0) -> float:
    """The scripted solution, from reset to verdict, in one process."""
    env = turncredit.make(id)
    steps, seed, began = 0, 0, time.perf_counter()
    while (taken := time.perf_counter() - began) < seconds:
        env.reset(seed=seed)
        over = False
        while not over:
            _, _, terminated, truncated, _ = env.step(env.unwrapped.expert_action())  # type: ignore[attr-defined]
            over = terminated or truncated
            steps += 1
        seed += 1
    return steps / taken


def import_seconds() -> tuple[float, bool]:
    """The median of five new processes, and whether torch came with it."""
    program = ("import time; t = time.perf_counter(); import turncredit, sys; "
               "print(time.perf_counter() - t, 'torch' in sys.modules)")
    said = [subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
            for _ in range(5)]
    return statistics.median(float(s[0]) for s in said), any(s[1] == "True" for s in said)


def main() -> None:
    """Measure and print."""
    turncredit.register("benchmark/Framed-v0", Framed)
    made = turncredit.make("benchmark/Framed-v0")
    envs: dict[str, Any] = {"bare": Bare(), "TextEnv": Framed(), "turncredit.make": made}
    taken: dict[str, list[float]] = {name: [] for name in envs}
    for _ in range(ROUNDS):
        for name, env in envs.items():
            taken[name].append(microseconds_a_step(env))
    medians = {name: statistics.median(values) for name, values in taken.items()}
    for name, value in medians.items():
        print(f"{name:16} {value:8.2f} microseconds a step ({value - medians['bare']:+.2f} over bare)")
    for id in ("turncredit/Calculator-v0", "turncredit/Pantry-v0"):
        print(f"{id:26} {scripted_steps_a_second(id):10,.0f} scripted steps a second, resets and verdicts included")
    seconds, torch = import_seconds()
    print(f"import turncredit {seconds:.2f} s, {'with' if torch else 'without'} torch")


if __name__ == "__main__":
    main()
