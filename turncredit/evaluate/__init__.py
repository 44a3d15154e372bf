"""Evaluation: avg@k, pass@k and pass^k with intervals, floors and ceilings, paired comparison, leakage."""

from turncredit.evaluate.compare import Comparison, compare
from turncredit.evaluate.leakage import Leak, leakage
from turncredit.evaluate.sampling import evaluate, sample, task_refs
from turncredit.evaluate.scores import Score, score
from turncredit.evaluate.statistics import (
    bootstrap_interval,
    macro_interval,
    mean_interval,
    mean_pass_all,
    mean_pass_at,
    pass_all_k,
    pass_at_k,
)
from turncredit.evaluate.suites import Suite, load_suite

__all__ = ["Comparison", "Leak", "Score", "Suite", "bootstrap_interval", "compare", "evaluate", "leakage", "load_suite",
           "macro_interval", "mean_interval", "mean_pass_all", "mean_pass_at", "pass_all_k", "pass_at_k", "sample",
           "score", "task_refs"]
