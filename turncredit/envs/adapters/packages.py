"""Import what an adapter adapts, where it is used."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from turncredit.errors import MissingExtra


def imported(module: str, package: str, extra: str) -> Any:
    """The module of a package that an extra installs.

    Raises:
        MissingExtra: the package, or one that it needs, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name and error.name.partition(".")[0] != module.partition(".")[0]:
            raise MissingExtra(f"{package} (its {error.name})", extra) from None
        raise MissingExtra(package, extra) from None


@contextmanager
def variable(name: str, value: str) -> Iterator[None]:
    """While a package is imported the process has this variable, if nobody has set it, and then no longer."""
    if name in os.environ:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name, None)
