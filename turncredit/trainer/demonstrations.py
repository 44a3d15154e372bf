"""Scripted solutions of the tasks that a group was sampled on: what a privileged teacher may read."""

from __future__ import annotations

from collections.abc import Sequence

from turncredit.agents.chat import ChatFormat
from turncredit.agents.scripted import ScriptedAgent, expert
from turncredit.config import EnvConfig
from turncredit.envs import TextEnv, make
from turncredit.episode import Episode, Group
from turncredit.errors import UserError
from turncredit.rollout import Budget, Rollout

UNBOUNDED = Budget(1 << 16, 1 << 20, 1 << 20)


class Demonstrator:
    """Acts out the environments' scripted solutions; of a data set of questions, that is the answer.

    They are the teacher's alone: no student, prompt or sandbox sees them. Of several processes, each acts out all.

    Args:
        envs: those that are trained on.
        chat, tool_calls: as the policy writes.
    Raises:
        UserError: an environment has no scripted solution.
    """

    def __init__(self, envs: Sequence[EnvConfig], chat: ChatFormat, tool_calls: str) -> None:
        for i, env in enumerate(envs):
            made = make(env.id, **env.make_arguments)
            if not isinstance(made.unwrapped, TextEnv) or not made.unwrapped.solvable:
                raise UserError(f"algorithm.solution is 'demonstration': envs.{i} is {env.id}, which has no scripted "
                                "solution; write its expert_action, or set algorithm.solution to 'group'")
            made.close()
        self._rollout = Rollout(ScriptedAgent(expert, chat), chat, UNBOUNDED, tool_calls)

    def demonstrations(self, groups: Sequence[Group]) -> list[Episode | None]:
        """A verified solution of each group's task; None where the script failed, or the group names no task."""
        known = [group.task for group in groups if group.task is not None]
        shown = iter(self._rollout.sample_groups(known, 1, 0))
        episodes = [next(shown).episodes[0] if group.task is not None else None for group in groups]
        return [episode if episode is not None and episode.passed else None for episode in episodes]

    def close(self) -> None:
        """Close the environments."""
        self._rollout.close()
