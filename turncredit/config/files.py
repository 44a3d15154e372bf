"""From a YAML file and overrides on the command line to a checked configuration."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from turncredit.config.models import Config, sentence_of
from turncredit.errors import UserError


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a YAML file and apply overrides such as `trainer.lr=1e-5`.

    A file that says `extends: other.yaml` (as seen from where it stands) starts from that one: mappings are merged key
    by key, everything else is replaced, and so is `algorithm` as a whole, since its keys are its algorithm's own.

    Raises:
        UserError: no such file, no valid YAML, an unknown key (names the nearest), a wrong type or an impossible
            combination.
    """
    data = read_extending(Path(path))
    for override in overrides:
        _apply(data, override)
    return parse_config(data)


def read_extending(file: Path, extended_by: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A configuration file laid over the one that it extends, if any.

    Args:
        extended_by: the files that led here, resolved.
    Raises:
        UserError: as `read_yaml`; or files extend one another in a circle.
    """
    chain = (*extended_by, file.resolve())
    data = read_yaml(file, "config" if not extended_by else f"config {str(extended_by[-1])!r}: extends")
    if "extends" not in data:
        return data
    parent = data.pop("extends")
    if not isinstance(parent, str):
        raise UserError(f"config {str(file)!r}: extends is {parent!r}: it must be the path of another YAML file")
    above = file.parent / parent
    if above.resolve() in chain:
        raise UserError(f"config {str(file)!r}: extends is {parent!r}, which extends this file in turn: name one that "
                        "does not")
    merged: dict[str, Any] = _laid_over(data, read_extending(above, chain))
    return merged


def _laid_over(upper: Any, lower: Any, whole: tuple[str, ...] = ("algorithm",)) -> Any:
    if not (isinstance(upper, dict) and isinstance(lower, dict)):
        return upper
    return lower | {name: value if name in whole or name not in lower else _laid_over(value, lower[name], ())
                    for name, value in upper.items()}


def read_yaml(path: str | Path, what: str) -> dict[str, Any]:
    """A YAML file that holds a mapping; `what` it is, for the message.

    Raises:
        UserError: no such file, no valid YAML, or no mapping.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{what} {str(path)!r}: there is no such file")
    try:
        data = yaml.load(file.read_text(), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{what} {str(path)!r} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{what} {str(path)!r} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise UserError(f"{what} {str(path)!r} must be a mapping of keys to values")
    return data


def parse_config(data: Mapping[str, Any]) -> Config:
    """Check a mapping; see `load_config`."""
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise UserError(sentence_of(error)) from None


def refuse_unusable_envs(config: Config) -> None:
    """Make every environment of a configuration once, those of its evaluation and warm start too.

    Raises:
        UserError: one cannot be made; names the key. Without this it would be found out in the middle of the run.
    """
    from turncredit.envs import make

    warm = config.warmstart.envs if config.warmstart else []
    for key, envs in (("envs", config.envs), ("warmstart.envs", warm), ("evaluation.envs", config.evaluation.envs)):
        for i, env in enumerate(envs):
            try:
                make(env.id, **env.make_arguments).close()
            except UserError as error:
                raise UserError(f"config: {key}.{i}: {error}") from None


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-5 is a number and 2024-01-01 a text, and a key that stands twice is an error."""

    yaml_implicit_resolvers = {  # noqa: RUF012  # as PyYAML declares it
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping with different keys."""
        seen = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} stands twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"),
                              list("-+0123456789"))


def _apply(data: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UserError(f"override {override!r}: write key=value, for example trainer.lr=1e-5")
    *parents, last = key.split(".")
    at: Any = data
    for name in parents:
        at = at[_index(at, name, override)] if isinstance(at, list) else at.setdefault(name, {})
        if not isinstance(at, dict | list):
            raise UserError(f"override {override!r}: {name} is not a mapping")
    try:
        parsed = yaml.load(value, _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"override {override!r}: its value is not valid YAML: {' '.join(str(error).split())}") from None
    at[_index(at, last, override) if isinstance(at, list) else last] = parsed


def _index(items: list[Any], name: str, override: str) -> int:
    if not name.isdecimal() or int(name) >= len(items):
        raise UserError(f"override {override!r}: {name!r} is no place in a list of {len(items)} (the first is 0)")
    return int(name)
