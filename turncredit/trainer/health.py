"""Stops a run that goes nowhere, with the reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from turncredit.config import Config
from turncredit.episode import Episode, Group, StopReason
from turncredit.errors import UserError
from turncredit.trainer.credited import Credit

CUT_OFF = {StopReason.TOKEN_LIMIT, StopReason.CONTEXT_FULL}


class TrainingStopped(UserError):
    """The run stopped itself, and says why."""


class Silence:
    """What the episodes since the last signal have in common."""

    def __init__(self) -> None:
        self.updates = 0
        self.stops: Counter[StopReason] = Counter()
        self.rewards: Counter[float | None] = Counter()
        self.turns = self.valid = 0

    def add(self, episodes: Sequence[Episode]) -> None:
        """An update more without any."""
        self.updates += 1
        self.stops.update(e.stop for e in episodes)
        self.rewards.update(e.reward for e in episodes)
        self.turns += sum(len(e.turns) for e in episodes)
        self.valid += sum(turn.valid for e in episodes for turn in e.turns)

    def reasons(self) -> list[str]:
        """Why there was nothing to learn from, with what to change."""
        found = []
        known = {reward for reward in self.rewards if reward is not None}
        if not known:
            found.append("no episode was judged: see `error` of the episodes")
        elif len(known) == 1:
            found.append(f"every reward was {known.pop():g}: the tasks are too hard or too easy, or the verifier never "
                         "matches")
        else:
            found.append("all rewards of each group were equal, or unknown")
        if self.stops.keys() <= CUT_OFF:
            found.append("every episode was cut off: raise rollout.episode_tokens and rollout.context_tokens")
        if self.turns and not self.valid:
            found.append("not one action could be read: the policy does not write tool calls as model.tool_calls says")
        return found


class Health:
    """Watches a run, and stops it.

    Args:
        config: how many updates may be refused, or without any signal, in a row.
    """

    def __init__(self, config: Config) -> None:
        self.settings, self.folder = config.trainer, config.folder
        self.refused = 0
        self.silence = Silence()

    def check(self, groups: Sequence[Group], credit: Credit, update: dict[str, Any]) -> None:
        """Look at a step that is done.

        Raises:
            TrainingStopped: the engine is gone, updates are not finite, or there is nothing to learn from.
        """
        episodes = [e for group in groups for e in group.episodes]
        if all(e.stop is StopReason.ENGINE_ERROR for e in episodes):
            raise TrainingStopped(f"stopped: the engine failed in every episode of a step, the last time with "
                                  f"{episodes[-1].error}")
        self.refused = self.refused + 1 if credit.has_signal and not update["updated"] else 0
        if self.refused >= self.settings.refused_steps:
            raise TrainingStopped(f"stopped: {self.refused} updates in a row had a non-finite loss or gradient; "
                                  f"the last one's episodes and weights are in {self.folder / 'refused'}")
        if credit.has_signal:
            self.silence = Silence()
            return
        self.silence.add(episodes)
        if self.silence.updates >= self.settings.silent_steps:
            counted = ", ".join(f"{reason}: {count}" for reason, count in self.silence.stops.most_common())
            raise TrainingStopped(f"stopped: no learning signal in {self.silence.updates} updates in a row "
                                  f"({'; '.join(self.silence.reasons())}); episodes ended so: {counted}")

    def check_weights(self, update: dict[str, Any]) -> None:
        """Look at an update before anything is made of its weights.

        Raises:
            TrainingStopped: they are not finite. What they were is in the newest checkpoint.
        """
        if not update["weights_finite"]:
            raise TrainingStopped(f"stopped: a finite gradient left weights that are not finite, which cannot be taken "
                                  f"back; its episodes are in {self.folder / 'refused'}. The newest checkpoint is from "
                                  f"before: lower trainer.lr (it is {self.settings.lr:g})")
