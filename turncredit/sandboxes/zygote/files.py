"""Files of the working folder, reached from outside the candidate: no link is ever followed."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence

from . import root, syscalls


def collect(paths: Sequence[str], budget: int, store: int) -> list[tuple[str, int]]:
    """Copy those of `paths` that are regular files to a memory file, in order, while `budget` bytes last.

    Returns:
        The paths found, with their lengths.
    """
    found = []
    for path in paths:
        with contextlib.suppress(OSError):  # asked for where it exists
            length = copy(path, budget, store)
            budget -= length
            found.append((path, length))
    return found


def copy(path: str, most: int, store: int) -> int:
    """Append a regular file below the working folder to a memory file, inside the kernel; return its length.

    Raises:
        OSError: there is none, a link leads to it, or it is not a regular file of at most `most` bytes.
    """
    with _opened(path, os.O_RDONLY, most) as descriptor:
        length = os.fstat(descriptor).st_size
        done = 0
        while done < length and (moved := os.sendfile(store, descriptor, done, length - done)):
            done += moved
        return done


def write(path: str, data: bytes, owner: int | None) -> None:
    """Write a file below the working folder, with the folders above it, as `owner`'s (None: our own).

    Raises:
        OSError: something that is no regular file stands there, a link leads out, or no room is left.
    """
    *above, _ = path.split("/")
    for depth, name in enumerate(above):
        # One step at a time: mkdir itself would follow links in all but the last.
        with _folder("/".join(above[:depth]) or ".") as folder, contextlib.suppress(FileExistsError):
            os.mkdir(name, dir_fd=folder)
            if owner is not None:
                os.chown(name, owner, owner, dir_fd=folder, follow_symlinks=False)
    with _opened(path, os.O_WRONLY | os.O_CREAT, None) as descriptor:
        if owner is not None:
            os.fchown(descriptor, owner, owner)
        os.ftruncate(descriptor, 0)
        left = memoryview(data)
        while left:
            left = left[os.write(descriptor, left):]


@contextlib.contextmanager
def _folder(path: str) -> Iterator[int]:
    work = os.open(root.WORK, os.O_PATH | os.O_DIRECTORY)
    try:
        folder = syscalls.open_beneath(work, path, os.O_PATH | os.O_DIRECTORY)
    finally:
        os.close(work)
    try:
        yield folder
    finally:
        os.close(folder)


@contextlib.contextmanager
def _opened(path: str, flags: int, most: int | None) -> Iterator[int]:
    mode = 0o644 if flags & os.O_CREAT else 0
    with _folder(".") as work:
        descriptor = syscalls.open_beneath(work, path, flags | os.O_NONBLOCK, mode)
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        if most is not None and about.st_size > most:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        yield descriptor
    finally:
        os.close(descriptor)
