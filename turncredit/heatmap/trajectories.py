"""Trajectories as they are given on the command line: recorded episodes, JSON files, or plain texts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, ValidationError

from turncredit.agents.chat import ChatFormat
from turncredit.config import Strict
from turncredit.episode import Episode, Segment, Turn
from turncredit.errors import UserError
from turncredit.store import read_episodes

EPISODE_ID = re.compile(r"(\d{6})-(\d{4})-\d{3}")
FORMS = ('a recorded episode (runs/quickstart/000002-0001-002), a JSON file ({"prompt": …, "turns": [{"action": …, '
         '"observation": …, "role": "tool"}]}), or a text')


class _Turn(Strict):
    action: str
    observation: str = ""
    role: Literal["user", "tool"] = "user"


class _File(Strict):
    system: str = ""
    prompt: str = ""
    turns: list[_Turn] = Field(min_length=1)


@dataclass(frozen=True)
class Trajectory:
    """What was said, whoever said it: a system prompt, a first observation and turns."""

    system: str
    prompt: str
    turns: tuple[Turn, ...]
    episode: Episode | None = None  # where it was recorded, with the tokens that were sampled
    name: str = "as given"

    def as_episode(self, chat: ChatFormat) -> Episode:
        """Its tokens under a chat format: the recorded ones where they are this tokenizer's, else those of its texts.

        Logprobs are NaN where no policy sampled the tokens.
        """
        if self.episode is not None and _reads_as(self.episode, chat):
            return self.episode
        segments = [Segment.text(chat.first_prompt(self.system, self.prompt), "prompt")]
        for place, turn in enumerate(self.turns):
            ids = chat.assistant(turn.action)
            unknown = [float("nan")] * len(ids)
            segments.append(Segment.sampled(ids, unknown, unknown))
            if turn.observation and place + 1 < len(self.turns):
                segments.append(Segment.text(chat.observation(turn.observation, turn.role), turn.role))
        return Episode("", "", "", 0, self.system, self.prompt, segments, list(self.turns))


def read_task(task: str, response: str | None, system: str | None) -> Trajectory:
    """The trajectory that is to be credited.

    Args:
        task: one of `FORMS`; a text is the task's alone, and needs `response`.
        response: what the agent answered, as text.
        system: the system prompt, in place of what the trajectory has.
    Raises:
        UserError: there is no such episode or file, it is not as it must be, or no response is given.
    """
    found = _recorded(task, "--task") or _of_file(task, "--task")
    if found is None and response is None:
        raise UserError(f"--task {_short(task)!r} is a text, and nothing says what was answered: add --response TEXT, "
                        f"or give {FORMS}")
    if found is None:
        found = Trajectory("", task, ())
    if response is not None:
        found = Trajectory(found.system, found.prompt, (Turn(response),))
    if not found.prompt:
        raise UserError(f"--task {_short(task)!r} has no prompt: its file needs the key 'prompt'")
    return found if system is None else Trajectory(system, found.prompt, found.turns, name=found.name)


def read_reference(reference: str) -> Trajectory:
    """The trajectory that the teacher reads: one of `FORMS`; a text is one turn of the agent's.

    Raises:
        UserError: there is no such episode or file, or it is not as it must be.
    """
    found = _recorded(reference, "--reference") or _of_file(reference, "--reference")
    return found or Trajectory("", "", (Turn(reference),))


def _recorded(given: str, option: str) -> Trajectory | None:
    """An episode of a run folder, where what is given ends with an episode's id."""
    folder, _, id = given.rpartition("/")
    match = EPISODE_ID.fullmatch(id)
    if match is None:
        return None
    file = Path(folder or ".") / "episodes" / f"step-{match[1]}-group-{match[2]}.parquet"
    episodes = {e.id: e for e in read_episodes(file)} if file.is_file() else {}
    if id not in episodes:
        raise UserError(f"{option} {given!r}: {folder or '.'!r} has recorded no such episode; its report lists them")
    episode = episodes[id]
    return Trajectory(episode.system, episode.prompt, tuple(episode.turns), episode, id)


def _of_file(given: str, option: str) -> Trajectory | None:
    if not given.endswith(".json") or "\n" in given:
        return None
    try:
        read = _File.model_validate_json(Path(given).read_bytes())
    except OSError as error:
        raise UserError(f"{option} {given!r}: there is no such file ({error.strerror})") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{option} {given!r}: {'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}; give "
                        f"{FORMS}") from None
    return Trajectory(read.system, read.prompt, tuple(Turn(t.action, t.observation, t.role) for t in read.turns),
                      name=given)


def _reads_as(episode: Episode, chat: ChatFormat) -> bool:
    """Whether an episode's tokens are those of this chat format: another model has another vocabulary."""
    prompt = episode.segments[0].token_ids
    if not np.array_equal(prompt, chat.first_prompt(episode.system, episode.prompt)):
        return False
    said = [chat.text(s.token_ids.tolist()) for s in episode.segments if s.generated]
    return said == [turn.action for turn in episode.turns[:len(said)]]


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}…"
