"""A real OpenEnv server for the tests: guess a number between 1 and 16. `python openenv_server.py PORT`."""

import random
import sys
from typing import Any

import uvicorn
from openenv.core.env_server import Action, Environment, Observation, State, create_fastapi_app


class Guess(Action):
    number: int
    why: str


class Hint(Observation):
    hint: str


class Guessing(Environment):
    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        super().__init__()
        self._secret, self._left = 0, 0

    def reset(self, seed: int | None = None, episode_id: str | None = None, **kwargs: Any) -> Hint:
        self._secret, self._left = random.Random(seed).randint(1, 16), 4
        return Hint(hint=f"Game {seed}: guess a number from 1 to 16, in four tries.")

    def step(self, action: Guess, **kwargs: Any) -> Hint:
        self._left -= 1
        if action.number == self._secret:
            return Hint(hint="right", done=True, reward=1.0)
        return Hint(hint="higher" if action.number < self._secret else "lower", done=not self._left, reward=0.0)

    @property
    def state(self) -> State:
        return State(step_count=4 - self._left)


if __name__ == "__main__":
    uvicorn.run(create_fastapi_app(Guessing, Guess, Hint, max_concurrent_envs=64), port=int(sys.argv[1]),
                log_level="error")
