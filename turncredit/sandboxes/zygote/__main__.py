"""The guard and the zygote: how a pool of slots begins, and how all of it ends.

Control messages are JSON packets on a SOCK_SEQPACKET socket whose descriptor is the only argument:
    in   the configuration, once
    out  {"ready": protections} or {"error": sentence, "missing": protection or None}
    in   {"spawn": number, "network": bool} with the slot's own socket; {"kill": number}
The end of that socket, or of the process that opened it, is the end of everything.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import resource
import secrets
import select
import signal
import socket
import sys
from typing import Any, NoReturn

from . import candidate, cgroups, landlock, packets, seccomp, slot, syscalls

CONTROL = 3  # the descriptor that the control socket is moved to
PACKET = 1 << 17
UIDS = 256  # user ids of a pool: as many slots as can live at once without two sharing one
SYS_ADMIN, SETUID, SETGID = 21, 7, 6  # capability numbers


def main() -> None:
    """Become the guard: start the zygote, and outlive both it and the program that opened the sandbox."""
    given = int(sys.argv[1])
    if given != CONTROL:
        os.dup2(given, CONTROL)
        os.close(given)
    resource.setrlimit(resource.RLIMIT_NOFILE, (candidate.OPEN_FILES,) * 2)
    control = socket.socket(fileno=CONTROL)
    config = json.loads(control.recv(PACKET))
    opener = os.pidfd_open(config["opener"])
    if os.getppid() != config["opener"]:
        return  # it died before we could watch it
    gc.disable()
    pool = cgroups.Pool()
    try:
        privileged = _is_root()
        if not privileged:
            candidate.enter_user_namespace()
        syscalls.unshare(syscalls.CLONE_NEWPID)
    except OSError as error:
        _tell(control, {"error": f"no namespaces for this user ({error})", "missing": "namespaces"})
        pool.close()
        return
    zygote = os.fork()
    if zygote == 0:
        os.close(opener)
        _zygote(control, config, pool, privileged)
    control.close()
    zygote_ended = os.pidfd_open(zygote)
    select.select([opener, zygote_ended], [], [])
    with contextlib.suppress(ProcessLookupError):
        os.kill(zygote, signal.SIGKILL)  # PID 1 of its namespace: every slot and candidate ends with it
    os.waitpid(zygote, 0)
    pool.close()
    os._exit(0)  # nothing is left that a slow end could do any good


def _is_root() -> bool:
    """Say whether this process may make namespaces and take other users' ids without a user namespace."""
    with open("/proc/self/status") as file:
        effective = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))
    return os.getuid() == 0 and all(effective >> number & 1 for number in (SYS_ADMIN, SETUID, SETGID))


def _uids() -> range:
    """Draw user ids for a pool's slots: far above real users where all ids are mapped, else from the upper half.

    They are drawn, since the kernel counts an id's processes over all pools and all containers together.
    """
    with open("/proc/self/uid_map") as file:
        end = max(int(line.split()[0]) + int(line.split()[2]) for line in file)
    first, end = (1 << 30, 1 << 31) if end >= 1 << 31 else (max(1, end // 2), end)
    block = secrets.randbelow(max(1, (end - first) // UIDS))
    return range(first + block * UIDS, min(end, first + (block + 1) * UIDS))


def _tell(control: socket.socket, message: dict[str, object]) -> None:
    control.send(json.dumps(message).encode())


def _zygote(control: socket.socket, config: dict[str, Any], pool: cgroups.Pool, privileged: bool) -> NoReturn:
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Candidates prefer the standard library to a package of the same name, as in a script.
    sys.path.sort(key=lambda path: path in config["packages"])
    for name in config["preload"]:
        try:
            importlib.import_module(name)
        except Exception as error:
            why = f"preload names {name!r}, which can't be imported ({error})"
            _tell(control, {"error": why, "missing": None})
            os._exit(1)
    settings = slot.Settings(
        privileged=privileged, uids=_uids(), landlock=landlock.abi(),
        readable=config["readable"], hidden=config["hidden"], scratch=config["scratch"])
    _tell(control, {"ready": {
        "privileged": privileged, "landlock": settings.landlock, "seccomp": seccomp.supported(),
        "cgroups": {name: version for name, (version, _) in pool.folders.items()},
    }})
    # Candidates find nothing of ours by name. It is kept, since a module's death would touch all it holds.
    ours = [sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "zygote"]
    gc.collect()
    gc.freeze()  # forks share what the collector never touches
    _fork_slots(control, settings, pool)
    ours.clear()
    os._exit(0)


def _fork_slots(control: socket.socket, settings: slot.Settings, pool: cgroups.Pool) -> None:
    """Fork and kill slots as told, until the control socket's end."""
    home = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    slots: dict[int, int] = {}  # process id -> the slot's number
    while True:
        readable, _, _ = select.select([control], [], [], 1.0)
        if readable:
            packet, descriptors, _, _ = socket.recv_fds(control, PACKET, 1)
            if not packet:
                return
            message = json.loads(packet)
            if "kill" in message:
                for process in [process for process, number in slots.items() if number == message["kill"]]:
                    os.kill(process, signal.SIGKILL)
            else:
                syscalls.unshare(syscalls.CLONE_NEWPID)  # the slot will be its PID 1
                process = _spawn(settings, pool, message, control, descriptors[0])
                syscalls.setns(home, syscalls.CLONE_NEWPID)  # or the next unshare would be refused
                slots[process] = message["spawn"]
        while slots and (ended := os.waitpid(-1, os.WNOHANG)[0]):
            if ended in slots:
                pool.remove(slots.pop(ended))


def _spawn(settings: slot.Settings, pool: cgroups.Pool, message: dict[str, Any], control: socket.socket,
           descriptor: int) -> int:
    pool.make(message["spawn"])
    process = os.fork()
    if process:
        os.close(descriptor)
        return process
    try:
        control.close()
        parent = packets.Neighbour(socket.socket(fileno=descriptor))
        slot.serve(settings, pool, message["spawn"], parent, network=message["network"])
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
