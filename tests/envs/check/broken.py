"""A sound little environment, and copies of it that are each broken in one way: what the check must catch."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from turncredit.envs import Reply, TextEnv, draw_from_split
from turncredit.episode import Outcome, Task, Verdict
from turncredit.toolcalls import ToolSpec

BROKEN: dict[str, tuple[type[TextEnv], str]] = {}  # what is wrong -> the environment, the row that must fail


class Exact:
    """The last word must be the answer."""

    def verify(self, task: Task, outcome: Outcome) -> Verdict:
        return Verdict.of((outcome.answer or "").strip() == task.hidden["answer"], "another number was expected")


class Sound(TextEnv):
    """Ask for the number behind a word, then state its double: two turns, nothing wrong."""

    instructions = "Say 'look' to see the number. Then answer with its double."
    verifier: Any = Exact()
    turn_limit = 4

    def draw(self, rng: np.random.Generator) -> int:
        low, high = (10_000, 50_000) if self.split == "ood" else (50_000, 99_999)
        return draw_from_split(self.split, lambda: int(rng.integers(low, high)), str)

    def make_task(self, rng: np.random.Generator) -> Task:
        n = self.draw(rng)
        return Task(f"Case {n * 7919 % 1_000_003}.{self.split}", {"answer": str(2 * n), "number": n}, self.split)

    def start(self) -> None:
        self.looked = False

    def respond(self, action: str) -> Reply:
        if action == "look":
            self.looked = True
            return Reply(f"The number is {self.task.hidden['number']}.")
        return Reply(done=True, answer=action)

    def expert_action(self) -> str:
        return str(self.task.hidden["answer"]) if self.looked else "look"


class BeginsAlike(Sound):
    """The number is not told by the first observation: only ids tell tasks apart. Nothing wrong."""

    begins_alike = True

    def make_task(self, rng: np.random.Generator) -> Task:
        n = self.draw(rng)
        return Task("Look.", {"answer": str(2 * n), "number": n}, self.split, 1, f"{self.split}-{n}")


def broken(what: str, row: str) -> Any:
    def add(environment: type[TextEnv]) -> type[TextEnv]:
        BROKEN[what] = environment, row
        return environment

    return add


# How an episode starts and repeats.

@broken("unseeded randomness", "same seed")
class Unseeded(Sound):
    def draw(self, rng: np.random.Generator) -> int:
        return super().draw(np.random.default_rng())


@broken("the seed is ignored", "other seed")
class OneTask(Sound):
    def draw(self, rng: np.random.Generator) -> int:
        return super().draw(np.random.default_rng(5))


@broken("global generators are seeded", "global generators")
class Clobbers(Sound):
    def make_task(self, rng: np.random.Generator) -> Task:
        random.seed(int(rng.integers(1000)))
        np.random.seed(7)
        return super().make_task(rng)


@broken("global generators are read", "global generators")
class Reads(Sound):
    def respond(self, action: str) -> Reply:
        reply = super().respond(action)
        return reply if reply.done else Reply(f"{reply.observation} {random.random()}")


SHARED: list[str] = []


@broken("state is shared between copies", "copies")
class Shares(Sound):
    def start(self) -> None:
        super().start()
        SHARED.clear()

    def respond(self, action: str) -> Reply:
        SHARED.append(action)
        reply = super().respond(action)
        return reply if reply.done else Reply(f"{reply.observation} Actions: {len(SHARED)}.")


@broken("a second reset differs", "reset again")
class Counts(Sound):
    episodes = 0

    def start(self) -> None:
        super().start()
        self.episodes += 1
        self.say = f" Welcome back, number {self.episodes}." if self.episodes > 1 else ""

    def respond(self, action: str) -> Reply:
        reply = super().respond(action)
        return reply if reply.done else Reply(reply.observation + self.say)


@broken("state is carried over from an episode that was left", "reset again")
class CarriesOver(Sound):
    def start(self) -> None:
        if self.split == "nowhere" or not hasattr(self, "looked"):
            self.looked = False

    def respond(self, action: str) -> Reply:
        reply = super().respond(action)
        if reply.done:
            self.looked = False
        return reply


class Moody:
    def verify(self, task: Task, outcome: Outcome) -> Verdict:
        right = (outcome.answer or "").strip() == task.hidden["answer"]
        return Verdict(float(right) * (0.5 + 0.5 * float(np.random.default_rng().random())), right)


@broken("the verifier draws lots", "replay")
class DrawsLots(Sound):
    verifier = Moody()


@broken("the order of a set decides", "another process")
class SetOrder(Sound):
    def make_task(self, rng: np.random.Generator) -> Task:
        task = super().make_task(rng)
        colours = {"red", "green", "blue", "black", "white", "grey", "pink", "brown"}
        return Task(f"{task.prompt} {' '.join(colours)}", task.hidden, self.split)


# What is paid for.

class Pays(Exact):
    def __init__(self, *texts: str) -> None:
        self.texts = texts

    def verify(self, task: Task, outcome: Outcome) -> Verdict:
        said = (outcome.answer or "").strip()
        return Verdict.of(said in self.texts or said == task.hidden["answer"])


@broken("an empty answer is rewarded", "trivial: silent")
class PaysSilence(Sound):
    verifier = Pays("")


@broken("\"I don't know\" is rewarded", "trivial: unsure")
class PaysDoubt(Sound):
    verifier = Pays("I don't know.")


@broken("one constant answer is right", "trivial: constant")
class PaysYes(Sound):
    verifier = Pays("yes")


class Substring(Exact):
    def verify(self, task: Task, outcome: Outcome) -> Verdict:
        return Verdict.of(task.hidden["answer"] in (outcome.answer or ""))


@broken("a list of every answer is rewarded", "trivial: everything")
class PaysLists(Sound):
    verifier = Substring()

    def make_task(self, rng: np.random.Generator) -> Task:
        n = self.draw(rng)
        return Task(f"Case {n * 7919 % 1_000_003}.{self.split}", {"answer": str(n % 900 + 2), "number": n}, self.split)


class Marker(Exact):
    def verify(self, task: Task, outcome: Outcome) -> Verdict:
        return Verdict.of("PASSED" in (outcome.answer or "") or super().verify(task, outcome).passed is True)


@broken("a printed pass marker is believed", "trivial: pass markers")
class BelievesMarkers(Sound):
    verifier = Marker()


class Overlap(Exact):
    def verify(self, task: Task, outcome: Outcome) -> Verdict:
        said = (outcome.answer or "").strip()
        return Verdict.of(said == task.prompt or said == task.hidden["answer"])


@broken("a copy of the prompt is rewarded", "trivial: prompt")
class PaysCopies(Sound):
    verifier = Overlap()


@broken("the scripted solution is wrong", "solution")
class WrongSolution(Sound):
    def expert_action(self) -> str:
        return str(self.task.hidden["number"]) if self.looked else "look"


class Raises(Exact):
    def verify(self, task: Task, outcome: Outcome) -> Verdict:
        return Verdict.of(int(outcome.answer or "") == int(task.hidden["answer"]))


@broken("the verifier raises", "verdict")
class VerifierRaises(Sound):
    verifier = Raises()


class Number(Exact):
    def verify(self, task: Task, outcome: Outcome) -> Any:
        return 1.0 if (outcome.answer or "").strip() == task.hidden["answer"] else 0.0


@broken("the verifier returns a number", "verdict")
class VerifierReturnsNumber(Sound):
    verifier = Number()


# What reset and step return.

class Stepping(Sound):
    """Changes what step() returns."""

    def change(self, answer: list[Any]) -> None:
        raise NotImplementedError

    def step(self, action: str) -> Any:
        answer: list[Any] = list(super().step(action))
        self.change(answer)
        return tuple(answer)


@broken("a reward out of range", "rewards")
class RewardOutOfRange(Stepping):
    def change(self, answer: list[Any]) -> None:
        answer[4].pop("verdict", None)
        answer[1] *= 10


@broken("a reward that is NaN", "rewards")
class RewardNaN(Stepping):
    def change(self, answer: list[Any]) -> None:
        answer[4].pop("verdict", None)
        answer[1] = float("nan")


@broken("rewards that contradict the verdict", "rewards")
class RewardTwice(Stepping):
    def change(self, answer: list[Any]) -> None:
        answer[1] = answer[1] if answer[2] else 0.25


@broken("an observation that is no text", "observations")
class ObservationNumber(Stepping):
    def change(self, answer: list[Any]) -> None:
        answer[0] = {"text": answer[0]}


@broken("an observation that is no UTF-8", "observations")
class ObservationSurrogate(Stepping):
    def change(self, answer: list[Any]) -> None:
        answer[0] += "\udcff"


@broken("info of the wrong form", "info")
class InfoRole(Stepping):
    def change(self, answer: list[Any]) -> None:
        answer[4]["role"] = "system"


@broken("an old four-tuple", "plays")
class FourTuple(Sound):
    def step(self, action: str) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated or truncated, info


@broken("an episode without an end", "ends")
class Endless(Sound):
    turn_limit = 10_000

    def respond(self, action: str) -> Reply:
        reply = super().respond(action)
        right = reply.done and action == self.task.hidden["answer"]
        return reply if right or not reply.done else Reply("No. Try again.")


@broken("a step after the end is paid again", "after the end")
class PaysAfterTheEnd(Sound):
    def step(self, action: str) -> Any:
        self._over = False
        return super().step(action)


@broken("the action is changed before it is recorded", "records actions")
class ChangesActions(Sound):
    def step(self, action: str) -> Any:
        return super().step(action.strip().lower() if isinstance(action, str) else action)


@broken("the caller's options are changed", "records actions")
class ChangesOptions(Sound):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if options:
            options.clear()
        return super().reset(seed=seed)


@broken("nothing is said of what to do", "instructions")
class SaysNothing(Sound):
    instructions = ""

    def make_task(self, rng: np.random.Generator) -> Task:
        task = super().make_task(rng)
        return Task(task.prompt.replace(" ", "-"), task.hidden, self.split)


@broken("a tool without a valid schema", "tools")
class BadSchema(Sound):
    @property
    def tools(self) -> list[ToolSpec]:
        return [ToolSpec("look", "See the number.", {"type": "object", "properties": {"at": {"type": "int"}}})]


@broken("two tools of one name", "tools")
class TwoTools(Sound):
    @property
    def tools(self) -> list[ToolSpec]:
        return [ToolSpec("look", "See.", {"type": "object"}), ToolSpec("look", "See more.", {"type": "object"})]


@broken("every task has the same id", "task ids")
class OneId(Sound):
    def make_task(self, rng: np.random.Generator) -> Task:
        task = super().make_task(rng)
        return Task(task.prompt, task.hidden, self.split, id="task")


@broken("the task set is smaller than it says", "task set")
class TooFewTasks(Sound):
    num_tasks = 10

    def task_at(self, index: int) -> Task:
        return [self.make_task(np.random.default_rng(i)) for i in range(9)][index]


@broken("a level that cannot be made", "levels")
class NoLevelThree(Sound):
    levels = 3

    def make_task(self, rng: np.random.Generator) -> Task:
        return super().make_task(rng) if [0, 1][self.level - 1] >= 0 else Task("")


# What leaks.

@broken("the answer stands in the prompt", "answer in the prompt")
class AnswerInPrompt(Sound):
    def make_task(self, rng: np.random.Generator) -> Task:
        task = super().make_task(rng)
        return Task(f"{task.prompt} (key: {task.hidden['answer']})", task.hidden, self.split)


@broken("the answer stands in an observation", "answer in an observation")
class AnswerInObservation(Sound):
    def respond(self, action: str) -> Reply:
        reply = super().respond(action)
        if reply.done and action != self.task.hidden["answer"] and len(self.turns) < 2:
            return Reply(f"Wrong: it is {self.task.hidden['answer']}.", valid=False)
        return reply


@broken("the answer stands in info", "kept out of the episode")
class AnswerInInfo(Sound):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        observation, info = super().reset(seed=seed, options=options)
        return observation, info | {"answer": self.task.hidden["answer"]}


@broken("it begins alike and its splits share tasks", "splits")
class AlikeInEverySplit(BeginsAlike):
    def draw(self, rng: np.random.Generator) -> int:
        return int(rng.integers(10_000, 10_020))


@broken("splits that share tasks", "splits")
class SplitsBySeed(Sound):
    def draw(self, rng: np.random.Generator) -> int:
        return 10_000 + int(rng.integers(60))

    def make_task(self, rng: np.random.Generator) -> Task:
        n = self.draw(rng)
        return Task(f"Case {n * 7919 % 1_000_003}.", {"answer": str(2 * n), "number": n}, self.split)


@broken("tasks that say another split", "splits")
class WrongLabel(Sound):
    def make_task(self, rng: np.random.Generator) -> Task:
        task = super().make_task(rng)
        return Task(task.prompt, task.hidden, "train")


# What an agent may write.

@broken("a malformed action raises", "malformed actions")
class RaisesOnNonsense(Sound):
    def respond(self, action: str) -> Reply:
        action.encode()
        return super().respond(action)


@broken("a huge action is repeated", "huge actions")
class Repeats(Sound):
    def respond(self, action: str) -> Reply:
        reply = super().respond(action)
        return Reply(f"You said {action}", done=reply.done, answer=reply.answer)


@broken("a malformed action spoils the next episode", "goes on")
class Spoils(Sound):
    spoilt = ""

    def respond(self, action: str) -> Reply:
        if "\x00" in action:
            self.spoilt = " Out of order."
        reply = super().respond(action)
        return reply if reply.done else Reply(reply.observation + self.spoilt)


@broken("an action that is no text is rewarded", "not a text")
class PaysBytes(Sound):
    def step(self, action: Any) -> Any:
        if not isinstance(action, str):
            return "", 1.0, True, False, {}
        return super().step(action)


# What is left behind.

@broken("a step hangs", "plays")
class HangsInStep(Sound):
    def respond(self, action: str) -> Reply:
        time.sleep(3600)
        return Reply()


@broken("an odd action hangs", "malformed actions")
class HangsOnOddAction(Sound):
    def respond(self, action: str) -> Reply:
        if action == "nan":
            time.sleep(3600)
        return super().respond(action)


@broken("close hangs", "closes")
class HangsInClose(Sound):
    def close(self) -> None:
        time.sleep(3600)


@broken("close raises the second time", "closes")
class ClosesOnce(Sound):
    closed = False

    def close(self) -> None:
        if self.closed:
            raise RuntimeError("closed already")
        self.closed = True


@broken("a process is left", "leaves nothing")
class LeavesProcess(Sound):
    def start(self) -> None:
        super().start()
        self.child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(20)"])


@broken("a thread is left", "leaves nothing")
class LeavesThread(Sound):
    def start(self) -> None:
        super().start()
        threading.Thread(target=time.sleep, args=(20,), daemon=True).start()


OPEN: list[Any] = []


@broken("an open file is left", "leaves nothing")
class LeavesFile(Sound):
    def start(self) -> None:
        super().start()
        OPEN.append(Path("/dev/null").open())  # noqa: SIM115  # that is what is wrong with it


@broken("a temporary folder is left", "leaves nothing")
class LeavesFolder(Sound):
    def start(self) -> None:
        super().start()
        tempfile.mkdtemp()


@broken("the working folder is changed", "the process")
class ChangesFolder(Sound):
    def start(self) -> None:
        super().start()
        os.chdir("/")


@broken("an environment variable is changed", "the process")
class ChangesVariable(Sound):
    def start(self) -> None:
        super().start()
        os.environ["MODE"] = "test"


@broken("it prints", "prints nothing")
class Prints(Sound):
    def start(self) -> None:
        super().start()
        print("task:", self.task.prompt)


@broken("it lives in one thread", "plays")
class OneThread(Sound):
    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.database = sqlite3.connect(":memory:")

    def start(self) -> None:
        super().start()
        self.database.execute("select 1")


@broken("it keeps its first observation to another space", "Gymnasium's checker")
class WrongSpace(Sound):
    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        import gymnasium

        self.observation_space = gymnasium.spaces.Text(5)  # type: ignore[assignment]
