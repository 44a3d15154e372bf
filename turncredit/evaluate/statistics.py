"""Intervals that cover as often as they say: resampled over tasks, since the episodes of one are not independent."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from typing import Any

import numpy as np

RESAMPLES = 2000


def pass_at_k(n: int, c: int, k: int) -> float:
    """The unbiased estimate 1 - C(n - c, k) / C(n, k) from c passes in n episodes (arXiv 2107.03374, equation 1)."""
    return 1.0 - comb(n - c, k) / comb(n, k)


def pass_all_k(n: int, c: int, k: int) -> float:
    """pass^k, that k episodes all pass: the unbiased estimate C(c, k) / C(n, k) (arXiv 2406.12045, section 4)."""
    return comb(c, k) / comb(n, k)


def mean_pass_at(passes: Sequence[tuple[int, int]], k: int) -> float | None:
    """The mean of pass@k over tasks with at least k judged episodes; None where there is none."""
    values = [pass_at_k(n, c, k) for n, c in passes if n >= k]
    return float(np.mean(values)) if values else None


def mean_pass_all(passes: Sequence[tuple[int, int]], k: int) -> float | None:
    """The mean of pass^k over tasks with at least k judged episodes; None where there is none."""
    values = [pass_all_k(n, c, k) for n, c in passes if n >= k]
    return float(np.mean(values)) if values else None


def bootstrap_interval(by_task: Any, seed: int) -> tuple[float, float]:
    """The 95 % percentile interval of the mean, resampling tasks (episodes of one task are not independent)."""
    rng = np.random.default_rng(seed)
    means = by_task[rng.integers(len(by_task), size=(RESAMPLES, len(by_task)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def mean_interval(by_task: Any, seed: int) -> tuple[float, float]:
    """The 95 % interval of a mean reward, [tasks] -> (low, high).

    Bootstrapped over tasks. Where all failed or all passed, resampling shows no spread, which is no certainty: then
    Wilson's interval, with a task as a trial.
    """
    if np.all(by_task == 0) or np.all(by_task == 1):
        from scipy.stats import binomtest

        found = binomtest(int(by_task.sum()), len(by_task)).proportion_ci(0.95, "wilson")
        # Its ends at 0 and 1 are off by a rounding error.
        return float(np.clip(found.low, 0, by_task[0])), float(np.clip(found.high, by_task[0], 1))
    return bootstrap_interval(by_task, seed)


def macro_interval(by_task: Sequence[Any], seed: int) -> tuple[float, float]:
    """The 95 % interval of the mean over environments of their means, tasks resampled within each environment."""
    from scipy.stats import bootstrap

    def mean_of_means(*samples: Any, axis: int = -1) -> Any:
        return np.mean([sample.mean(axis) for sample in samples], axis=0)

    many = [np.asarray(one) for one in by_task if len(one) > 1]
    if not many or all(one.std() == 0 for one in many):  # scipy takes no sample of one
        mean = float(np.mean([np.mean(one) for one in by_task]))
        return mean, mean
    found = bootstrap(many, mean_of_means, n_resamples=RESAMPLES, method="percentile", vectorized=True,
                      rng=np.random.default_rng(seed))
    return float(found.confidence_interval.low), float(found.confidence_interval.high)
