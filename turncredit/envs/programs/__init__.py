"""Programming tasks drawn from a seed: templates with parameters, compositions, simulations."""

from __future__ import annotations

import numpy as np

from turncredit.envs.programs.functions import FUNCTIONS
from turncredit.envs.programs.pipelines import LEVEL, draw_pipeline
from turncredit.envs.programs.simulations import SIMULATIONS
from turncredit.envs.programs.template import Problem, Template

__all__ = ["FUNCTIONS", "SIMULATIONS", "Problem", "Template", "draw_pipeline", "draw_problem"]


def draw_problem(rng: np.random.Generator, split: str, level: int) -> Problem:
    """A task of a level from 1 to 4: from the split's templates up to 3, a composition at 4; for "ood" a simulation."""
    if split != "ood" and level == LEVEL:
        return draw_pipeline(rng, split)
    if split == "ood":
        templates = [t for t in SIMULATIONS if t.level == level]
    else:
        templates = [t for t in FUNCTIONS if t.level == level and t.held_out == (split == "test")]
    return templates[int(rng.integers(len(templates)))].draw(rng)
