"""Episodes at once against one after the other, in an environment whose steps take milliseconds.

    python benchmarks/many_episodes.py TextWorld [EPISODES]

Both ways are the same `Rollout` with the scripted solution, on other tasks each time, first the one and then the other;
prints episodes a second of each, their ratio, and what was left behind (processes, threads, files below the temporary
folder). ScienceWorld's Java processes are warm before, as they are after the first minute of a training.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

from turncredit.agents.chat import ChatFormat
from turncredit.agents.tiny import learn_tokenizer
from turncredit.evaluate.floors import CEILING, bound_rollout
from turncredit.rollout import Budget, TaskRef

ROUNDS = 2
WARM = {"ScienceWorld": 24}  # episodes that are played before
ARGUMENTS = {"ScienceWorld": {"tasks": ["find-plant", "find-animal", "lifespan-longest-lived"]}}


def left_behind() -> tuple[int, int, int]:
    """Child processes, threads, and our entries below the temporary folder."""
    children = sum(int(stat.read_text().rpartition(")")[2].split()[1]) == os.getpid()
                   for stat in Path("/proc").glob("[0-9]*/stat") if stat.exists())
    return children, threading.active_count(), len(list(Path(tempfile.gettempdir()).glob("turncredit-*")))


def main(name: str, episodes: int) -> None:
    """Measure and print."""
    chat = ChatFormat(learn_tokenizer(["one text"] * 50, 300))
    before = left_behind()
    seconds = {"one after the other": 0.0, "at once": 0.0}
    warm = bound_rollout(CEILING, chat, Budget(step_timeout_s=300), "json")
    warm.sample_groups([TaskRef(f"turncredit/{name}-v0", i, ARGUMENTS.get(name, {})) for i in range(WARM.get(name, 0))],
                       1, 0)
    seed = 1000
    for turn in range(ROUNDS):
        for way in list(seconds)[::1 - 2 * (turn % 2)]:
            tasks = [TaskRef(f"turncredit/{name}-v0", seed + i, ARGUMENTS.get(name, {})) for i in range(episodes)]
            seed += episodes  # games that were made are kept: each round takes others
            rollout = bound_rollout(CEILING, chat, Budget(step_timeout_s=300), "json")
            began = time.perf_counter()
            lots = [tasks] if way == "at once" else [[task] for task in tasks]
            groups = [group for lot in lots for group in rollout.sample_groups(lot, 1, seed)]
            seconds[way] += time.perf_counter() - began
            rollout.close()
            worth = [episode.reward for group in groups for episode in group.episodes]
            assert worth == [1.0] * episodes, worth
    warm.close()
    time.sleep(1)
    rates = {way: ROUNDS * episodes / taken for way, taken in seconds.items()}
    after = left_behind()
    print(json.dumps({"environment": name, "episodes": episodes, "rounds": ROUNDS} | rates
                     | {"ratio": rates["at once"] / rates["one after the other"],
                        "left behind: processes, threads, files": [b - a for a, b in zip(before, after)]}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 64)
