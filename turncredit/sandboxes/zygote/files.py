"""Files of the working folder, read and written from outside the candidate: no link is ever followed."""

from __future__ import annotations

import os
import stat

from . import root, syscalls


def read(path: str, most: int) -> bytes:
    """Read a regular file below the working folder.

    Raises:
        OSError: there is none, a link leads to it, or it is not a regular file of at most `most` bytes.
    """
    folder = os.open(root.WORK, os.O_PATH | os.O_DIRECTORY)
    try:
        with open(syscalls.open_beneath(folder, path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            _check(file.fileno(), most)
            return file.read(most)
    finally:
        os.close(folder)


def write(path: str, data: bytes, owner: int | None) -> None:
    """Write a file below the working folder, with the folders above it, as `owner`'s (None: our own).

    Raises:
        OSError: something that is no regular file stands there, a link leads out, or no room is left.
    """
    *above, _ = path.split("/")
    folder = os.open(root.WORK, os.O_PATH | os.O_DIRECTORY)
    try:
        for depth in range(1, len(above) + 1):
            inner = "/".join(above[:depth])
            try:
                # One step at a time: mkdir itself would follow links in all but the last.
                outer = syscalls.open_beneath(folder, "/".join(above[:depth - 1]) or ".", os.O_PATH)
                try:
                    os.mkdir(above[depth - 1], dir_fd=outer)
                finally:
                    os.close(outer)
            except FileExistsError:
                continue
            _give(syscalls.open_beneath(folder, inner, os.O_RDONLY | os.O_DIRECTORY), owner)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK
        with open(syscalls.open_beneath(folder, path, flags, 0o644), "wb") as file:
            _check(file.fileno(), 0)
            _give(os.dup(file.fileno()), owner)
            file.write(data)
    finally:
        os.close(folder)


def _give(descriptor: int, owner: int | None) -> None:
    try:
        if owner is not None:
            os.fchown(descriptor, owner, owner)
    finally:
        os.close(descriptor)


def _check(descriptor: int, most: int) -> None:
    about = os.fstat(descriptor)
    if not stat.S_ISREG(about.st_mode) or about.st_size > most:
        raise OSError(22, f"no regular file of at most {most} bytes")


def collect(paths: list[str], budget: int) -> dict[str, bytes]:
    """Read those of `paths` that are regular files, in order, while they fit in `budget` bytes together."""
    found: dict[str, bytes] = {}
    for path in paths:
        try:
            found[path] = read(path, budget)
        except OSError:
            continue  # asked for where it exists
        budget -= len(found[path])
    return found
