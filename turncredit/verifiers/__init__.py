"""Verifiers: from what the agent did to a verdict. Reward is None where it could not be judged."""

from turncredit.verifiers.base import Verifier, judge
from turncredit.verifiers.math import MathAnswer, answers_match
from turncredit.verifiers.state import FinalState
from turncredit.verifiers.value import ValueAnswer

__all__ = ["FinalState", "MathAnswer", "ValueAnswer", "Verifier", "answers_match", "judge"]
