"""TextArena's games for one player that need no download and no model."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from turncredit.envs.adapters.packages import imported
from turncredit.envs.splits import draw_from_split
from turncredit.envs.text_env import Reply, TextEnv
from turncredit.episode import Outcome, Task, Verdict
from turncredit.errors import UserError, did_you_mean

# Left out: games with one start (TowerOfHanoi, PegJump, Countdown, Cryptarithm), of chance (Bandit, Blackjack,
# Secretary, ThreeCardMonte), with a word list or a model to download (Hangman, Wordle, WordLadder, WordSearch,
# TwentyQuestions, GuessWho), that print (RushHour, LogicPuzzle), that take seconds to begin (Sokoban) or cannot be won
# (2048), and Klondike, which needs Python 3.12.
GAMES = ("Mastermind-v0", "Mastermind-v0-hard", "Mastermind-v0-extreme", "GuessTheNumber-v0",
         "GuessTheNumber-v0-hardcore", "Minesweeper-v0-small", "Minesweeper-v0", "Minesweeper-v0-medium",
         "Minesweeper-v0-hard", "LightsOut-v0", "FifteenPuzzle-v0", "FrozenLake-v0-random",
         "Sudoku-v0-very-easy", "Sudoku-v0-easy", "Sudoku-v0", "Sudoku-v0-medium", "Sudoku-v0-hard",
         "Crosswords-v0", "Crosswords-v0-hardcore")
_SOLVABLE = ("Mastermind", "GuessTheNumber", "Sudoku")
_global_generators = threading.Lock()


class Won:
    """Passes where the game gives its full reward of 1. Its partial rewards pay for nonsense: up to 0.69 of 1."""

    def verify(self, task: Task, outcome: Outcome) -> Verdict:
        """The package writes a sentence in the reward's place where some games end by a wrong move: that is lost."""
        reward = outcome.state["reward"]
        return Verdict.of(isinstance(reward, int | float) and reward >= 1, str(outcome.state["reason"]))


class TextArena(TextEnv):
    """A game of TextArena's, won or lost.

    The games draw from Python's global generator, also while they are played; here each episode has a generator of its
    own. A task is what the game begins with (its board, its secret), and splits hold different ones. Mastermind,
    GuessTheNumber and Sudoku have a scripted solution, which knows the secret.

    Args:
        game: one of `GAMES`.
        ood: the game for the split "ood".
    Raises:
        MissingExtra: textarena is not installed.
        UserError: a game that is not in `GAMES`.
    """

    instructions = "Play the game. What stands in square brackets in your answer is your move."
    verifier = Won()
    begins_alike = True
    turn_limit = 80

    def __init__(self, game: str = "Mastermind-v0", ood: str = "Mastermind-v0-hard", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name, value in (("game", game), ("ood", ood)):
            if value not in GAMES:
                raise UserError(f"{name} is {value!r}{did_you_mean(value, GAMES)} (known: {', '.join(GAMES)})")
        self.game = ood if self.split == "ood" else game
        self._generator = random.Random(0).getstate()
        with self._own_generators(self._generator):
            variables = set(os.environ)
            self._package = imported("textarena", "textarena", "textarena")
            for name in set(os.environ) - variables:  # its import brings scikit-learn, which sets OpenMP's
                del os.environ[name]

    def make_task(self, rng: np.random.Generator) -> Task:
        """A start of the game."""
        def draw() -> tuple[int, str]:
            seed = int(rng.integers(2**31))
            return seed, self._begun(seed)

        seed, content = draw_from_split(self.split, draw, lambda drawn: drawn[1])
        digest = hashlib.sha1(f"{self.game} {content}".encode()).hexdigest()[:12]
        return Task(self._seen(), {"seed": seed}, self.split, self.level, f"{self.split}-{digest}")

    def start(self) -> None:
        """Begin the game."""
        self._begun(self.task.hidden["seed"])
        self._seen()
        self._reward: Any = 0
        self._reason = "the game was not finished"

    def state(self) -> Mapping[str, Any]:
        """The game's reward."""
        return {"reward": self._reward, "reason": self._reason}

    def respond(self, action: str) -> Reply:
        """A move; the second wrong one in a row loses the game."""
        text = action.encode(errors="replace").decode()
        with self._own_generators(self._generator):
            over, _ = self._playing.step(text)
            self._generator = random.getstate()
        if not over:
            said = self._seen()
            return Reply(said, valid="attempted an invalid move" not in said)
        rewards, info = self._playing.close()
        self._reward, self._reason = rewards[0], info[0].get("reason", "")
        return Reply(done=True, valid=not info[0].get("invalid_move"))

    @property
    def solvable(self) -> bool:
        """Three kinds of games."""
        return self.game.startswith(_SOLVABLE)

    def expert_action(self) -> str:
        """The secret, or a right cell.

        Raises:
            NotImplementedError: another game.
        """
        state = self._playing.state.game_state
        if self.game.startswith("Mastermind"):
            return f"[{' '.join(map(str, state['secret_code']))}]"
        if self.game.startswith("GuessTheNumber"):
            return f"[{state['game_number']}]"
        if self.game.startswith("Sudoku"):
            board, full = state["board"], self._playing.full_grid
            row, column = next((r, c) for r in range(9) for c in range(9) if not board[r][c])
            return f"[{row + 1} {column + 1} {full[row][column]}]"
        raise NotImplementedError(f"{self.game} has no scripted solution")

    def _begun(self, seed: int) -> str:
        """Begin a game; all that tells its start from another."""
        with self._own_generators(random.Random(seed).getstate()):
            self._playing = self._package.make(f"{self.game}-raw")
            self._playing.reset(num_players=1, seed=seed)
            self._generator = random.getstate()
        if self.game.startswith("Minesweeper"):  # which lays its mines with the first move
            return hashlib.sha1(repr(self._generator).encode()).hexdigest()
        return json.dumps(self._playing.state.game_state, sort_keys=True, default=str)

    def _seen(self) -> str:
        """What the game said since the last move."""
        kinds = self._package.ObservationType
        _, messages = self._playing.get_observation()
        return "\n".join(text for _, text, kind in messages if kind != kinds.PLAYER_ACTION).strip()

    @contextlib.contextmanager
    def _own_generators(self, state: Any) -> Iterator[None]:
        """Put a state into Python's global generator, and back what was there, in numpy's as well."""
        with _global_generators:
            kept, kept_numpy = random.getstate(), np.random.get_state()
            random.setstate(state)
            try:
                yield
            finally:
                random.setstate(kept)
                np.random.set_state(kept_numpy)
