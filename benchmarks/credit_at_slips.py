"""Where SC-GRPO's weights fall in failed episodes of a run: before the slip, at it, behind it.

A slip is the first token of an episode that the policy itself gave less than a tenth. Of failed episodes in
partial-solve groups, by part: tokens, the weight's mean and median, and how much of the gradient's size under GRPO,
|A| (1 - p) a token (the norm of a logprob's gradient grows with 1 - p), is left under SC-GRPO.

    python benchmarks/credit_at_slips.py runs/ablations/sc-grpo
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

SLIP = 0.1  # a probability
PARTS = ("before the slip", "the slip", "behind it")
COLUMNS = ["episode", "turn", "position", "route", "advantage", "weight", "student_logprob"]


def failed_episodes(file: Path) -> Iterator[list[dict[str, Any]]]:
    """Tokens of each failed episode of a partial-solve group, in order."""
    episodes = defaultdict(list)
    for token in pq.read_table(file, columns=COLUMNS).to_pylist():
        if token["route"] == "partial-solve" and token["advantage"] < 0:
            episodes[token["episode"]].append(token)
    for tokens in episodes.values():
        yield sorted(tokens, key=lambda token: (token["turn"], token["position"]))


def by_part(run: Path) -> dict[str, list[dict[str, Any]]]:
    """The tokens of all failed episodes of a run that have a slip."""
    parts: dict[str, list[dict[str, Any]]] = {part: [] for part in PARTS}
    for file in sorted((run / "credit").glob("step-*.parquet")):
        for tokens in failed_episodes(file):
            slip = next((i for i, token in enumerate(tokens) if np.exp(token["student_logprob"]) < SLIP), None)
            if slip is not None:
                for part, some in zip(PARTS, (tokens[:slip], tokens[slip:slip + 1], tokens[slip + 1:])):
                    parts[part] += some
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    found = {}
    for part, tokens in by_part(run).items():
        if not tokens:
            parser.error(f"{run} holds no credit of failed episodes in partial-solve groups: train with sc-grpo first")
        # None: its reference did not fit into the context, so that it had no teacher.
        weights = np.array([1.0 if token["weight"] is None else token["weight"] for token in tokens])
        size = np.array([abs(token["advantage"]) * (1 - np.exp(token["student_logprob"])) for token in tokens])
        found[part] = {"tokens": len(tokens), "weight_mean": float(weights.mean()),
                       "weight_median": float(np.median(weights)), "kept": float((weights * size).sum() / size.sum()),
                       "share_grpo": float(size.sum()), "share_sc": float((weights * size).sum())}
    for name in ("share_grpo", "share_sc"):
        whole = sum(part[name] for part in found.values())
        for part in found.values():
            part[name] /= whole
    for part, line in found.items():
        print(f"{part:16} " + "  ".join(f"{name} {value:.3g}" for name, value in line.items()))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
