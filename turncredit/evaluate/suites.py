"""Suites: which environments an evaluation takes, in one YAML file.

    in_distribution:
      - {id: turncredit/Calculator-v0, split: test}
    ood:
      - {id: turncredit/LeftToRight-v0, split: test}
    tasks: 64
    k: 4
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, ValidationError, model_validator

from turncredit.config import EnvConfig, Strict, read_yaml
from turncredit.errors import UserError, did_you_mean

FOLDERS = (Path("configs/suites"), Path(__file__).parents[2] / "configs" / "suites")


class Suite(Strict):
    """What is evaluated."""

    in_distribution: list[EnvConfig] = Field(default_factory=list)
    ood: list[EnvConfig] = Field(default_factory=list, description="environments that were not trained on")
    tasks: int = Field(64, ge=1, description="tasks an environment")
    k: int = Field(4, ge=1, description="episodes a task")

    @model_validator(mode="after")
    def _not_empty(self) -> Suite:
        if not self.envs:
            raise ValueError("in_distribution and ood are both empty: name an environment")
        return self

    @property
    def envs(self) -> list[EnvConfig]:
        """All of them, in distribution first."""
        return [*self.in_distribution, *self.ood]

    def kind(self, number: int) -> str:
        """ "in distribution" or "ood", of the environment at a place of `envs`."""
        return "in distribution" if number < len(self.in_distribution) else "ood"


def load_suite(name: str) -> Suite:
    """A YAML file, or one of configs/suites by its name.

    Raises:
        UserError: no such suite (names the nearest), or what is wrong in it.
    """
    file = Path(name) if name.endswith((".yaml", ".yml")) else _named(name)
    data = read_yaml(file, "suite")
    try:
        return Suite.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            known = Suite.model_fields if len(first["loc"]) == 1 else EnvConfig.model_fields
            hint = did_you_mean(str(first["loc"][-1]), known)
            raise UserError(f"suite {name!r}: unknown key {key!r}{hint}") from None
        value = "" if first["type"] in ("missing", "value_error") else f" is {first['input']!r}"
        message = first["msg"].removeprefix("Value error, ")
        raise UserError(f"suite {name!r}: {key}{value}: {message}".replace(": :", ":")) from None


def _named(name: str) -> Path:
    for folder in FOLDERS:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    known = sorted({file.stem for folder in FOLDERS for file in folder.glob("*.yaml")})
    hint = did_you_mean(name, known)
    raise UserError(f"suite {name!r} is unknown{hint} (known: {', '.join(known)}; or give a YAML file)")
