"""What every sandbox offers, whichever home it has: local, Docker or E2B.

A sandbox runs code that nobody has read. It is asynchronous, it has limits, and what comes out of it is
data: bytes decoded with replacement, an exit code, and the reason for which it was killed, if it was.
"""

from __future__ import annotations

import inspect
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from types import TracebackType
from typing import Self

from turncredit.errors import UserError, did_you_mean

MIB = 1 << 20
PAGE = 4096  # bytes: what a file takes is rounded up to


class SandboxError(Exception):
    """The sandbox itself failed (not the code in it): an infrastructure error, never a zero reward."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one execution may use. Every field is enforced, or the sandbox refuses to open."""

    wall_s: float = 10.0
    cpu_s: float = 10.0
    memory_bytes: int = 512 * MIB
    processes: int = 32
    output_bytes: int = 64 * 1024  # of stdout and of stderr, each
    file_bytes: int = 16 * MIB  # the largest file, and all files together
    files: int = 256
    network: bool = False

    def __post_init__(self) -> None:
        for name in ("wall_s", "cpu_s", "memory_bytes", "processes", "output_bytes", "file_bytes", "files"):
            value = getattr(self, name)
            whole = not name.endswith("_s")
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not value > 0:
                raise UserError(f"limits.{name} is {value!r}: it must be a {'whole ' * whole}number above 0")
        if not isinstance(self.network, bool):
            raise UserError(f"limits.network is {self.network!r}: it must be true or false")

    @classmethod
    def of(cls, given: object) -> Limits:
        """Return limits as a setting has them: `Limits`, or a mapping of a configuration's.

        Raises:
            UserError: it is neither, or has an unknown name or an impossible value.
        """
        if isinstance(given, Limits):
            return given
        if not isinstance(given, Mapping):
            raise UserError(f"limits is {given!r}: it must be Limits(…), or a mapping of their names")
        known = [each.name for each in fields(cls)]
        for name in given:
            if name not in known:
                raise UserError(f"limits.{name} is unknown{did_you_mean(str(name), known)} "
                                f"(known: {', '.join(known)})")
        return cls(**given)


def check_counts(**counts: object) -> None:
    """Refuse settings that must count something, and do not.

    Raises:
        UserError: naming the first that is no whole number of at least 1.
    """
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise UserError(f"{name} is {count!r}: it must be a whole number of at least 1")


class KilledBy(StrEnum):
    """Why an execution did not end by itself."""

    WALL = "wall time"
    CPU = "cpu time"
    MEMORY = "memory"
    SIGNAL = "signal"  # it crashed, or sent itself one


@dataclass(frozen=True, slots=True)
class Result:
    """What one execution left behind."""

    stdout: str
    stderr: str
    exit: int | None  # None where it was killed
    killed_by: KilledBy | None
    wall_s: float
    cpu_s: float
    peak_bytes: int
    truncated: bool  # stdout or stderr was cut at the limit, and carries a mark
    value: str | None = None  # sessions only: repr of the last expression, as in a notebook
    files: Mapping[str, bytes] = field(default_factory=dict)  # asked for with `collect`, where they exist


CUT_MARK = "\n[cut at the output limit]"


def as_text(data: bytes, limit: int, *, cut: bool = False) -> tuple[str, bool]:
    """Return output as `Result` wants it: decoded with replacement, with a mark where it is cut.

    Args:
        limit: `Limits.output_bytes`; what goes beyond it is cut here.
        cut: it was cut before.
    """
    cut = cut or len(data) > limit
    text = data[:limit].decode(errors="replace")
    return (text + CUT_MARK if cut else text), cut


def check_request(code: str | None, argv: Sequence[str] | None, files: Mapping[str, bytes],
                  collect: Sequence[str], limits: Limits) -> None:
    """Refuse what no home could run, before anything starts.

    Raises:
        UserError: not exactly one of code and argv, a path out of the working folder, files over the limits.
    """
    if (code is None) == (argv is None):
        raise UserError("a run needs code or argv: give exactly one of them")
    if argv is not None and (not argv or not argv[0] or any(_unspeakable(word) for word in argv)):
        raise UserError(f"argv is {argv!r}: it must name a program, in words without NUL or lone surrogates")
    for field_name, paths in (("files", files), ("collect", collect)):
        for path in paths:
            check_path(field_name, path)
    folders = {path[:at] for path in files for at, letter in enumerate(path) if letter == "/"}
    if both := folders & set(files):
        raise UserError(f"files names {both.pop()!r} as a file and as a folder: it can be only one")
    if (entries := len(files) + len(folders)) > limits.files:
        raise UserError(f"files needs {entries} files and folders: limits.files is {limits.files}")
    if (needed := sum(-(-len(data) // PAGE) * PAGE for data in files.values())) > limits.file_bytes:
        raise UserError(f"files needs {needed} bytes in pages: limits.file_bytes is {limits.file_bytes}")


def check_path(field_name: str, path: str) -> None:
    """Refuse a path that is not relative, plain and below the working folder.

    Raises:
        UserError: it is empty, absolute, has `.`, `..` or empty parts, or can't be a file's name.
    """
    if _unspeakable(path) or any(part in ("", ".", "..") for part in path.split("/")):
        raise UserError(f"{field_name} names {path!r}: it must be a relative path below the working folder")


def _unspeakable(word: str) -> bool:
    try:
        os.fsencode(word)
    except UnicodeEncodeError:
        return True
    return "\0" in word


class Session(ABC):
    """A Python interpreter that keeps its state between calls. Ended by a time-out, a crash or `close`."""

    @abstractmethod
    async def run(self, code: str, *, limits: Limits | None = None) -> Result:
        """Run `code` in the interpreter's namespace; `Result.value` is the last expression's repr.

        Raises:
            SandboxError: the session has ended.
        """

    @abstractmethod
    async def write_file(self, path: str, data: bytes) -> None:
        """Write a file below the session's working folder.

        Raises:
            OSError: there is no room, or something that is no regular file stands there.
            SandboxError: the session has ended.
        """

    @abstractmethod
    async def read_file(self, path: str) -> bytes:
        """Read a regular file below the session's working folder; links out of it are refused.

        Raises:
            OSError: there is none (FileNotFoundError), or it is a link, or no regular file.
            SandboxError: the session has ended.
        """

    @abstractmethod
    async def close(self) -> None:
        """End the interpreter and everything it started."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        await self.close()


class Sandbox(ABC):
    """A place to run code in: each `run` starts from a clean state, and leaves nothing behind."""

    @abstractmethod
    async def run(self, code: str | None = None, *, argv: Sequence[str] | None = None, stdin: bytes = b"",
                  files: Mapping[str, bytes] | None = None, collect: Sequence[str] = (),
                  limits: Limits | None = None) -> Result:
        """Run Python source (`code`) or a program (`argv`), with `files` in its working folder.

        Args:
            code: Python source, run as `__main__`. Exactly one of `code` and `argv` is given.
            argv: a program and its arguments.
            stdin: what the execution reads from standard input.
            files: relative path -> content, written before the start.
            collect: relative paths of regular files to bring back in `Result.files`.
            limits: the sandbox's own where None.
        Raises:
            SandboxError: the sandbox failed, not the code.
        """

    @abstractmethod
    async def session(self, *, limits: Limits | None = None) -> Session:
        """Start an interpreter that keeps its state."""

    @abstractmethod
    async def close(self) -> None:
        """End everything this sandbox started. Idempotent."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        await self.close()

    @staticmethod
    async def open(home: str = "local", **settings: object) -> Sandbox:
        """Open a sandbox by name: "local", "docker" or "e2b", with that home's settings.

        Raises:
            UserError: an unknown home, a missing extra, engine or key, or too little protection.
        """
        homes = ("local", "docker", "e2b")
        if home not in homes:
            known = ", ".join(homes)
            raise UserError(f"sandbox {home!r} is unknown{did_you_mean(home, homes)} (known: {known})")
        # Imported where used: docker and e2b are extras, and the local home needs Linux.
        from importlib import import_module

        opener = import_module(f"turncredit.sandboxes.{home}").open_sandbox
        known_settings = list(inspect.signature(opener).parameters)
        for name in settings:
            if name not in known_settings:
                raise UserError(f"setting {name!r} is unknown to sandbox {home!r}"
                                f"{did_you_mean(name, known_settings)} (known: {', '.join(known_settings)})")
        if settings.get("limits") is not None:
            settings["limits"] = Limits.of(settings["limits"])
        opened = await opener(**settings)
        assert isinstance(opened, Sandbox)
        return opened
