"""An algorithm of your own in ten lines, and a run with it.

    python examples/own_algorithm.py --steps 40 --warmstart 400
"""

import argparse

import numpy as np
from train_agent import config_of

from turncredit.progress import Display
from turncredit.trainer.algorithms import Algorithm, GroupCredit, register_algorithm
from turncredit.trainer.loop import train


@register_algorithm("quickest")
class Quickest(Algorithm):
    """Correct episodes share `bonus`, the shorter the more; the others earn nothing."""

    bonus: float = 1.0

    def score_group(self, rewards, verified, lengths, seed):
        worth = np.array([1 / length if passed else 0.0 for passed, length in zip(verified, lengths)])
        earned = self.bonus * worth / max(worth.sum(), 1e-9)
        return GroupCredit("quickest", earned, [None] * len(rewards))  # no teacher


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", type=int, default=1)
    options.add_argument("--warmstart", type=int, default=5, help="supervised steps")
    given = options.parse_args()
    with Display() as display:
        run = train(config_of("quickest", given.steps, given.warmstart, {"name": "quickest", "bonus": 0.5}), display)
    print({name: count for name, count in run.read_metrics()[-1].items() if name.startswith("route")})
