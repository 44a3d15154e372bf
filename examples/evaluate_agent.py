"""A trained agent on its own task and on ones that it never saw, between trivial agents and scripted solutions.

    python examples/evaluate_agent.py runs/example --tasks 64 --k 4
"""

import argparse
from pathlib import Path

from rich.console import Console

from turncredit.evaluate import Suite
from turncredit.evaluate.evaluation import Evaluation, Wanted
from turncredit.evaluate.table import show
from turncredit.trainer.start import policy_of

SUITE = {"in_distribution": [{"id": "turncredit/Calculator-v0", "split": "test", "arguments": {"level": 1}}],
         "ood": [{"id": "turncredit/LeftToRight-v0", "split": "test", "arguments": {"level": 1}}]}

if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("run", help="a run folder, such as the one that train_agent.py leaves")
    options.add_argument("--tasks", type=int, default=2)
    options.add_argument("--k", type=int, default=1, help="episodes a task")
    options.add_argument("--out", type=Path, help="keeps episodes and tables; an interrupted evaluation goes on there")
    given = options.parse_args()
    suite = Suite(**SUITE, tasks=given.tasks, k=given.k)
    evaluation = Evaluation(Wanted(suite), {"policy": policy_of(given.run)}, {"policy": given.run}, given.out)
    evaluation.run()
    show(evaluation, Console())
