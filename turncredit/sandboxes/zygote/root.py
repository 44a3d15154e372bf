"""A slot's root file system: the system's programs and the interpreter, read-only, and nothing else.

Everything keeps the path it has outside, so that the zygote's `sys.path` stays right. Runs in a mount
namespace of its own; nothing done here is seen outside it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from . import syscalls
from .syscalls import MS_BIND, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_PRIVATE, MS_RDONLY, MS_REC, MS_REMOUNT

SCRATCHES = "/sandbox"
SCRATCH = f"{SCRATCHES}/scratch"  # each execution gets a fresh tmpfs here; policies name the folder above
WORK, TEMPORARY, SHARED = f"{SCRATCH}/work", f"{SCRATCH}/tmp", f"{SCRATCH}/shm"
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc/ld.so.cache",
          "/etc/alternatives")
NETWORK = ("/etc/resolv.conf", "/etc/ssl", "/etc/pki", "/etc/ca-certificates")
DEVICES = ("null", "full", "random", "urandom")
OLD = "/.old"


def build(readable: Sequence[str], hidden: Sequence[str], *, uid: int, network: bool,
          zero_device: bool) -> None:
    """Make a new root of `readable` (host paths, bound read-only) and move into it.

    Args:
        hidden: host paths below `readable` that show as empty folders.
        uid: the candidate's, named in /etc/passwd.
        network: the resolver's and the certificates' files are there too.
        zero_device: /dev/zero exists. Mapped shared it is memory that only a cgroup can count.
    """
    wanted = _outermost([*SYSTEM, *(NETWORK if network else ()), *readable])
    links = {path: os.readlink(path) for path in wanted if os.path.islink(path) and path in SYSTEM}
    sources = {path: os.path.realpath(path) for path in wanted if path not in links and os.path.exists(path)}
    covered = [os.path.realpath(path) for path in hidden]

    syscalls.mount(None, "/", None, MS_REC | MS_PRIVATE)
    syscalls.mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "size=4m,mode=755")
    os.mkdir("/tmp" + OLD)
    syscalls.pivot_root("/tmp", "/tmp" + OLD)
    os.chdir("/")
    for path, source in sources.items():
        _bind(OLD + source, path)
        syscalls.lock_mounts(path)
        for inside in covered:
            if inside.startswith(source + "/"):
                syscalls.mount("tmpfs", path + inside.removeprefix(source), "tmpfs", MS_RDONLY, "mode=755")
    for path, target in links.items():
        os.symlink(target, path)
    _devices([*DEVICES, *["zero"] * zero_device])
    _etc(uid)
    os.mkdir("/proc")
    syscalls.mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)  # while the old one is in sight
    os.makedirs(SCRATCH)
    os.makedirs("/var", exist_ok=True)
    for path in ("/tmp", "/var/tmp"):
        if not os.path.lexists(path):  # it does where something below it is readable
            os.symlink(TEMPORARY, path)
    syscalls.unmount(OLD)
    os.rmdir(OLD)
    syscalls.mount(None, "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)


def fresh_scratch(*, file_bytes: int, files: int, owner: int | None) -> None:
    """Mount an empty scratch file system, with folders that belong to `owner` (None: to whoever mounts)."""
    syscalls.mount("tmpfs", SCRATCH, "tmpfs", MS_NOSUID | MS_NODEV, _scratch_options(file_bytes, files))
    make_folders(owner)


def make_folders(owner: int | None) -> None:
    """Make the scratch file system's folders: the working folder, temporary files, and shared memory."""
    for path, mode in ((WORK, 0o755), (TEMPORARY, 0o1777), (SHARED, 0o1777)):
        os.mkdir(path)
        os.chmod(path, mode)
        if owner is not None:
            os.chown(path, owner, owner)


def remove_folders() -> bool:
    """Remove the scratch file system's folders; False where an execution left anything at all on it."""
    try:
        for path in (WORK, TEMPORARY, SHARED):
            os.rmdir(path)
    except OSError:
        return False
    state = os.statvfs(SCRATCH)
    return state.f_bfree == state.f_blocks and state.f_ffree == state.f_files - 1


def resize_scratch(*, file_bytes: int, files: int) -> None:
    options = _scratch_options(file_bytes, files)
    syscalls.mount(None, SCRATCH, None, MS_REMOUNT | MS_NOSUID | MS_NODEV, options)


def _scratch_options(file_bytes: int, files: int) -> str:
    return f"size={file_bytes},nr_inodes={files + 4},mode=755"  # with the root and its three folders


def _outermost(paths: Sequence[str]) -> list[str]:
    """Return the paths that lie below none of the others, in order, each once."""
    kept: list[str] = []
    for path in sorted(dict.fromkeys(paths), key=len):
        if not any(path == above or path.startswith(above.rstrip("/") + "/") for above in kept):
            kept.append(path)
    return kept


def _bind(source: str, target: str) -> None:
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "x"):
            pass
    syscalls.mount(source, target, None, MS_BIND | MS_REC)


def _devices(names: Sequence[str]) -> None:
    os.mkdir("/dev")
    for name in names:
        _bind(f"{OLD}/dev/{name}", f"/dev/{name}")
    os.symlink(SHARED, "/dev/shm")
    os.symlink("/proc/self/fd", "/dev/fd")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.symlink(f"/proc/self/fd/{number}", f"/dev/{name}")


def _etc(uid: int) -> None:
    os.makedirs("/etc", exist_ok=True)
    for name, text in {
        "passwd": f"root:x:0:0:root:/:/bin/sh\nsandbox:x:{uid}:{uid}:sandbox:{WORK}:/bin/sh\n",
        "group": f"root:x:0:\nsandbox:x:{uid}:\n",
        "hosts": "127.0.0.1 localhost sandbox\n::1 localhost\n",
        "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    }.items():
        with open(f"/etc/{name}", "w", encoding="utf-8") as file:
            file.write(text)
