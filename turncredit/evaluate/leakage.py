"""Does what is tested stand in what was trained on? By first observations: exactly, normalised, and by n-grams."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from turncredit.config import EnvConfig
from turncredit.envs import make
from turncredit.seeds import seed_of

NGRAM = 8  # words, as GPT-3's and later contamination studies take 8 to 13
SECONDS = 10.0  # an environment whose tasks take long to make is looked at for so long


@dataclass(frozen=True, slots=True)
class Leak:
    """How much of one held-out environment and split stands in the training tasks; counts are of its tasks."""

    env: str
    split: str
    tasks: int  # different ones that were drawn
    exact: int  # that stand among the training tasks word for word
    normalised: int  # that do but for capitals, spaces and punctuation
    ngrams: int  # of whose 8-grams at least half stand there; of shorter tasks the whole
    example: str = ""

    @property
    def clean(self) -> bool:
        """Whether no task is the same but for its spelling."""
        return self.normalised == 0


def leakage(train: Sequence[EnvConfig], held_out: Sequence[EnvConfig], tasks: int = 256, seed: int = 0) -> list[Leak]:
    """Compare drawn tasks of training with drawn tasks of each held-out environment.

    A sample: none found is no proof where tasks are generated without end. Environments that are trained on in the
    same split (a training curve) are left out.
    """
    seen = {text for env in train for text in prompts(env, tasks * 4, seed)}
    seen_normal = {normal(text) for text in seen}
    seen_grams = {gram for text in seen_normal for gram in grams(text)}
    found = []
    for env in held_out:
        if env.split == "train" and any(env.id == one.id for one in train):
            continue
        drawn = sorted(prompts(env, tasks, seed))
        same = [text for text in drawn if normal(text) in seen_normal]
        near = [text for text in drawn if 2 * len(grams(normal(text)) & seen_grams) >= len(grams(normal(text)))]
        found.append(Leak(env.id, env.split, len(drawn), sum(text in seen for text in drawn), len(same), len(near),
                          same[0][:80] if same else ""))
    return found


def prompts(env: EnvConfig, count: int, seed: int) -> set[str]:
    """Different first observations."""
    made = make(env.id, **env.make_arguments)
    finite: int | None = getattr(made.unwrapped, "num_tasks", None)
    until = time.monotonic() + SECONDS
    found: set[str] = set()
    for i in range(count if finite is None else min(count, finite)):
        options = None if finite is None else {"task": i}
        found.add(str(made.reset(seed=seed_of(seed, "leakage", i) >> 32, options=options)[0]))
        if time.monotonic() > until:
            break
    made.close()
    return found


def normal(text: str) -> str:
    """Words and signs of arithmetic, in lower case, one space apart."""
    return " ".join(re.findall(r"\w+|[-+*/=<>^%]", text.casefold()))


def grams(text: str) -> set[tuple[str, ...]]:
    """Runs of `NGRAM` words; a shorter text is one."""
    words = text.split()
    return {tuple(words[i:i + NGRAM]) for i in range(max(1, len(words) - NGRAM + 1))}
