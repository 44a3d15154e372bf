"""Which tokens of an answer would another solution change? As a page, for any model.

    python examples/credit_heatmap.py runs/example          # a run folder, a model's folder or a hub name
"""

import argparse
from pathlib import Path

from turncredit.heatmap.page import write_page
from turncredit.heatmap.scored import score
from turncredit.heatmap.trajectories import read_reference, read_task
from turncredit.trainer.start import policy_of

if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("model")
    options.add_argument("--task", default="What is 3 + 4 * 2?")
    options.add_argument("--response", default="It is 14.")
    options.add_argument("--reference", default="4 * 2 = 8 and 3 + 8 = 11, so it is 11.")
    options.add_argument("--out", type=Path, default=Path("credit.html"))
    given = options.parse_args()
    policy, config = policy_of(given.model)
    scored = score(policy, config, read_task(given.task, given.response, None), read_reference(given.reference),
                   given.model)
    told = scored.as_json()
    for text, weight, kl in sorted(zip(told["text"], told["weight"], told["kl"]), key=lambda row: -row[1])[:5]:
        print(f"{text!r:>12}  weight {weight:.3f}  KL {kl:.4f} nats")
    print(f"page: {write_page([scored], given.out)}")
