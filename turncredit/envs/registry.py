"""Register, make and list environments: Gymnasium's registry, plus plugins of other packages."""

from __future__ import annotations

import functools
import importlib.metadata
import logging
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec

from turncredit.errors import UserError, did_you_mean

PLUGIN_GROUP = "turncredit.environments"
log = logging.getLogger(__name__)


def register(id: str, entry_point: Any, **kwargs: Any) -> None:
    """Register an environment, as `gymnasium.register` does: `register("team/Task-v0", "package.module:Class")`.

    Raises:
        UserError: an id of another form than that.
    """
    try:
        gymnasium.register(id=id, entry_point=entry_point, disable_env_checker=True, **kwargs)
    except gymnasium.error.Error as error:
        raise UserError(f"environment id {id!r}: {' '.join(str(error).split())}") from None


@functools.cache
def load_plugins() -> None:
    """Import what other packages put into the entry-point group `turncredit.environments`, once a process.

    A plugin is a module that registers on import, or a function that registers when called. One that fails
    is logged and left out: another package's fault must not stop this one.
    """
    for entry in importlib.metadata.entry_points(group=PLUGIN_GROUP):
        try:
            loaded = entry.load()
            if callable(loaded):
                loaded()
        except Exception as error:
            log.warning("the plugin %s = %s could not be loaded: %s", entry.name, entry.value, error)


def spec(id: str) -> EnvSpec:
    """The registered spec of an environment.

    Raises:
        UserError: no environment has that id; names the nearest.
    """
    load_plugins()
    try:
        return gymnasium.spec(id)
    except gymnasium.error.Error:
        known = list_envs() or sorted(gymnasium.registry)
        hint = did_you_mean(id, known)
        raise UserError(f"environment {id!r} is not registered{hint} (`turncredit envs list` shows all)") from None


def make(id: str, **kwargs: Any) -> gymnasium.Env[str, str]:
    """Make an environment. Keyword arguments go to its constructor (split, level, max_turns, …).

    Raises:
        UserError: an unknown id or argument.
    """
    found = spec(id)
    try:
        return gymnasium.make(found, disable_env_checker=True, **kwargs)
    except TypeError as error:
        raise UserError(f"environment {id}: {error}") from None


def list_envs() -> list[str]:
    """Ids of every text environment: ours, those of plugins, and those registered in this process."""
    load_plugins()
    return sorted(id for id, entry in gymnasium.registry.items() if not _ships_with_gymnasium(entry))


def _ships_with_gymnasium(entry: EnvSpec) -> bool:
    point = entry.entry_point
    module = point if isinstance(point, str) else getattr(point, "__module__", "") or ""
    return module.startswith(("gymnasium.", "shimmy."))
