"""SC-GRPO from Python: a small policy made from nothing learns to call a calculator.

    python examples/train_agent.py --steps 90 --warmstart 400     # minutes on a CPU; the defaults take seconds
"""

import argparse

from turncredit.config import parse_config
from turncredit.progress import Display
from turncredit.report import write_report_of
from turncredit.trainer.loop import train


def config_of(name: str, steps: int, warmstart: int, algorithm=None):
    """A run's configuration; every key that is left out has its default."""
    env = {"id": "turncredit/Calculator-v0", "arguments": {"level": 1}}
    return parse_config({
        "name": name,
        "model": {"tiny": {"vocabulary": 400, "width": 64, "layers": 2, "heads": 2, "context": 512},
                  "tool_calls": "plain"},
        "envs": [env],
        "algorithm": algorithm or {"name": "sc-grpo"},
        "rollout": {"groups": 4, "group_size": 4, "turn_tokens": 24, "episode_tokens": 64, "context_tokens": 512},
        "trainer": {"steps": steps, "lr": 5e-4, "save_every": steps},
        "warmstart": {"envs": [env], "steps": warmstart, "lr": 3e-3, "demonstrations": 40 * warmstart},
    })


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", type=int, default=1)
    options.add_argument("--warmstart", type=int, default=5, help="supervised steps")
    options.add_argument("--name", default="example", help="of the run's folder, in runs/")
    given = options.parse_args()
    with Display() as display:
        run = train(config_of(given.name, given.steps, given.warmstart), display)
    for line in run.read_metrics():
        print(f"step {line['step']}: mean reward {line['reward']:.3f} of {line['episodes']} episodes")
    print(f"report: {write_report_of(run.path)}")
