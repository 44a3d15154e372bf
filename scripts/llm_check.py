"""After `make llm`: sampler and trainer agreed, and the episodes read as conversations.

    python scripts/llm_check.py runs/llm
"""

from __future__ import annotations

import sys
from pathlib import Path

from turncredit.store import RunFolder

LARGEST_DRIFT = 1e-3  # nats, fp32


def main(folder: Path) -> int:
    """Print one episode an environment and the largest logprob difference; 1 where it is too large."""
    run = RunFolder(folder)
    shown = set()
    for episode in run.read_episodes():
        if episode.env_id not in shown:
            shown.add(episode.env_id)
            print(f"--- {episode.env_id}, {episode.stop}, reward {episode.reward}\n[system] {episode.system}\n"
                  f"[user] {episode.prompt}")
            for turn in episode.turns:
                print(f"[assistant] {turn.action}\n[{turn.role}] {turn.observation}")
    metrics = run.read_metrics()
    drifts = [m["drift_max"] for m in metrics if m["drift_max"] is not None]
    print(f"{len(metrics)} steps; rewards {[m['reward'] for m in metrics]}; seconds a step "
          f"{[round(m['sampling_s'] + m['credit_s'] + m['update_s'], 1) for m in metrics]}")
    print(f"largest difference of sampler's and trainer's logprobs: {max(drifts):.2e} (allowed {LARGEST_DRIFT:g})")
    return 0 if drifts and max(drifts) <= LARGEST_DRIFT else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
