"""TextWorld's generated games: a house, a quest, and the parser of a text adventure."""

from __future__ import annotations

import tempfile
import threading
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from turncredit.envs.adapters.packages import imported
from turncredit.envs.adapters.toy_text import GoalReached
from turncredit.envs.splits import draw_from_split
from turncredit.envs.text_env import Reply, TextEnv
from turncredit.episode import Task
from turncredit.errors import UserError

_LONGEST = 100  # characters of a command; the interpreter's own buffer ends at 200
_KEPT = 64  # games
_generator = threading.Lock()


class Game(NamedTuple):
    """A compiled game: its story file, its description as the package saves it, and the commands that win it."""

    story: bytes
    description: bytes
    objective: str
    walkthrough: tuple[str, ...]


class TextWorld(TextEnv):
    """Walk through a generated house, take, open, unlock and put things; rewards a quest that is fulfilled.

    A task is a game made from a seed, which takes a second or two: the last 64 games are kept. A seed belongs to one
    split; "ood" has larger houses and longer quests. The scripted solution is the game's walkthrough.

    Args:
        rooms: of the house.
        objects: things in it, 1 at least.
        quest_length: commands that win.
        ood_growth: how many times as large all three are in "ood".
    Raises:
        MissingExtra: textworld is not installed.
        UserError: a size below 1.
    """

    instructions = ("Fulfil the quest of a text adventure. Write one command a turn, alone on a line, such as: look, "
                    "inventory, go north, examine box, take key from box, unlock door with key, open door, put cup on "
                    "table, insert cup into box, drop cup.")
    verifier = GoalReached()
    turn_limit = 50

    def __init__(self, rooms: int = 3, objects: int = 5, quest_length: int = 3, ood_growth: int = 2,
                 **kwargs: Any) -> None:
        super().__init__(**kwargs)
        given = {"rooms": rooms, "objects": objects, "quest_length": quest_length, "ood_growth": ood_growth}
        for name, value in given.items():
            if not isinstance(value, int) or value < 1:
                raise UserError(f"{name} is {value!r}: it must be a whole number of at least 1")
        self._package = imported("textworld", "textworld", "textworld")
        times = ood_growth if self.split == "ood" else 1
        self._sizes = (rooms * times, objects * times, quest_length * times)
        self._played: Any = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def make_task(self, rng: np.random.Generator) -> Task:
        """A game."""
        half = "test" if self.split == "ood" else self.split  # with a growth of 1 these are training's kind of games
        seed = draw_from_split(half, lambda: int(rng.integers(2**31)), str)
        game = made_game(seed, *self._sizes)
        return Task(f"{game.objective}\n\n{self._begun(game)}", {"seed": seed, "game": game}, self.split, self.level,
                    f"{self.split}-{'-'.join(map(str, self._sizes))}-{seed}")

    def start(self) -> None:
        """Begin the game."""
        self._begun(self.task.hidden["game"])
        self._won = False

    def state(self) -> Mapping[str, Any]:
        """Whether the quest was fulfilled."""
        return {"reached": self._won}

    def respond(self, action: str) -> Reply:
        """Do the last line that is not empty.

        What the interpreter cannot read costs a turn: it reads printable ASCII alone, and a backslash begins a command
        to itself, which it may repeat for ever.
        """
        lines = [line.strip() for line in action.splitlines() if line.strip()]
        command = lines[-1] if lines else ""
        plain = command.isascii() and command.isprintable() and "\\" not in command
        if not plain or not 1 <= len(command) <= _LONGEST:
            return Reply(f"error: write a command of 1 to {_LONGEST} plain characters", valid=False)
        state, _, over = self._played.step(command)
        self._won = bool(state.won)
        return Reply(_shown(state.feedback), done=bool(over))

    def expert_action(self) -> str:
        """The walkthrough's next command, counted from the first turn."""
        walkthrough = self.task.hidden["game"].walkthrough
        return str(walkthrough[len(self.turns)]) if len(self.turns) < len(walkthrough) else "look"

    def close(self) -> None:
        """Close the interpreter and remove its files."""
        if self._played is not None:
            self._played.close()
            self._played = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _begun(self, game: Game) -> str:
        """Start the interpreter on a game; what it shows first."""
        self.close()
        self._folder = tempfile.TemporaryDirectory(prefix="turncredit-textworld-")
        story = Path(self._folder.name, "game.z8")
        story.write_bytes(game.story)
        story.with_suffix(".json").write_bytes(game.description)
        # The interpreter knows no generated game and says so at every start. Filters of others, set since, come first.
        warnings.filterwarnings("ignore", ".*is not fully supported", module="jericho")
        wanted = self._package.EnvInfos(feedback=True, won=True, lost=True)
        self._played = self._package.start(str(story), wanted)
        return _shown(self._played.reset().feedback)


_games: OrderedDict[tuple[int, ...], Future[Game]] = OrderedDict()
_games_lock = threading.Lock()


def made_game(*key: int) -> Game:
    """The game of a seed, rooms, objects and quest length: made once, also where a group's episodes ask at once."""
    with _games_lock:
        game = _games.get(key)
        first = game is None
        if game is None:
            game = _games[key] = Future()
        _games.move_to_end(key)
        while len(_games) > _KEPT:
            _games.popitem(last=False)
    if first:
        try:
            game.set_result(_make_game(*key))
        except BaseException as error:
            with _games_lock:
                _games.pop(key, None)
            game.set_exception(error)
    return game.result()


def _make_game(seed: int, rooms: int, objects: int, quest_length: int) -> Game:
    """Generate and compile a game; the same arguments make the same one."""
    package = imported("textworld", "textworld", "textworld")
    with tempfile.TemporaryDirectory(prefix="turncredit-textworld-") as folder:
        options = package.GameOptions()
        options.seeds, options.path = seed, str(Path(folder, "game.z8"))
        options.nb_rooms, options.nb_objects, options.quest_length = rooms, objects, quest_length
        with _generator:  # its knowledge base is one for the process; the compiler is a process of its own
            game = package.generator.make_game(options)
        story = Path(package.generator.compile_game(game, options))
        return Game(story.read_bytes(), story.with_suffix(".json").read_bytes(), str(game.objective),
                    tuple(map(str, game.metadata["walkthrough"])))


def _shown(feedback: str) -> str:
    """Without the title in letters, the prompt and the status line."""
    text = feedback.rpartition("\n>")[0] or feedback
    place = text.find("-= ")
    return (text[place:] if "$$" in text[:place] else text).strip()
