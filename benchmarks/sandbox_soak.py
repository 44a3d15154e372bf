"""Thousands of executions, one in ten hostile: nothing may be left behind, and memory must stay flat.

    python benchmarks/sandbox_soak.py [COUNT] [--home local|docker] [--slots N] [--seed N]

Prints a line now and then, and last one JSON object. Exits 1 where a process, mount, cgroup, file or
descriptor is left, where the sandbox itself failed, or where memory grew. It looks for its own alone: the processes
below it and their cgroups, mounts where a slot mounts, files of the user ids that its candidates had, and what lies
in its own temporary folder.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from processes import alive, cgroups_of, descendants, descriptors, memory_bytes, users_of

from turncredit.sandboxes import Limits, Sandbox, SandboxError, docker

LIMITS = Limits(wall_s=30, cpu_s=5, memory_bytes=64 << 20, processes=12, file_bytes=4 << 20, files=64)
BRIEF = replace(LIMITS, wall_s=0.3)
FIRST_USER = 1 << 30  # user ids from here on only sandboxes have; a pool has 256 of them, in a row
GROWTH = 0.10  # of memory between the second and the last quarter; a leak of a page a run would be far more

HONEST = {
    "nothing": "pass",
    "arithmetic": "print(sum(i * i for i in range(2000)))",
    "exception": "raise ValueError('no')",
    "files": "open('out', 'w').write(open('in').read() * 3)",
    "thread": "import threading; t = threading.Thread(target=print, args=(1,)); t.start(); t.join()",
    "child": "import os; os._exit(0) if os.fork() == 0 else os.wait()",
    "output": "print('x' * 100_000)",
}
HOSTILE = {
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "memory bomb": "x = []\nwhile True: x.append(bytearray(1 << 20))",
    "loop": "while True: pass",
    "disk": "n = 0\nwhile True:\n    n += 1\n    open(f'{n}', 'wb').write(bytes(1 << 20))",
    "daemon": "import os, time\nif os.fork() == 0:\n    os.setsid(); time.sleep(3600)",
    "crash": "import ctypes; ctypes.string_at(0)",
    "endless output": "while True: print('y' * 1000)",
    "close all": "import os; os.closerange(0, 256); os.abort()",
    "kill": "import os\nos.kill(1, 9)\nos.kill(-1, 9)",
    "poison": "import sys, gc\nsys.modules.clear()\n[x.clear() for x in gc.get_objects() if type(x) is dict]",
    "shared memory": "import os\nos.truncate(os.open('/dev/shm/a', os.O_CREAT | os.O_RDWR), 1 << 22)",
}


async def one(sandbox: Sandbox, draw: random.Random, ends: Counter[str]) -> None:
    kind = "hostile" if draw.random() < 0.1 else draw.choices(["run", "argv", "session"], [20, 1, 1])[0]
    try:
        if kind == "session":
            async with await sandbox.session(limits=LIMITS) as session:
                await session.write_file("a", b"x")
                result = await session.run("x = open('a').read(); x * 3")
                assert result.value == "'xxx'", result
        elif kind == "argv":
            result = await sandbox.run(argv=["sh", "-c", "cat"], stdin=b"y" * 1000, limits=LIMITS)
            assert result.stdout == "y" * 1000, result
        elif kind == "run":
            result = await sandbox.run(HONEST[draw.choice(list(HONEST))], files={"in": b"z" * 100},
                                       collect=["out"], limits=LIMITS)
            assert result.killed_by is None, result
        else:
            kind = draw.choice(list(HOSTILE))
            result = await sandbox.run(HOSTILE[kind], limits=BRIEF)
    except SandboxError as error:
        ends[f"SandboxError: {error}"] += 1
        return
    ends[f"{kind}: {result.killed_by or 'ended'}"] += 1


async def soak(home: str, count: int, slots: int,
               seed: int) -> tuple[Counter[str], list[int], dict[int, str], set[int], float]:
    """Return how the executions ended, memory at each stop, processes seen, their users, and executions a second."""
    draw, ends, memory, seen = random.Random(seed), Counter[str](), list[int](), dict[int, str]()
    users: set[int] = set()
    stops = 40
    left = count

    async def work(sandbox: Sandbox, until: int) -> None:
        nonlocal left
        while left > until:
            left -= 1
            if left % 50 == 0:
                now = descendants(os.getpid())
                seen.update(now)
                users.update(users_of(now))
            await one(sandbox, draw, ends)

    async with await Sandbox.open(home, slots=slots, limits=LIMITS) as sandbox:
        began = time.monotonic()
        for stop in range(1, stops + 1):
            await asyncio.gather(*(work(sandbox, count - count * stop // stops) for _ in range(slots)))
            await asyncio.sleep(0.3)  # slots that were let go end, and fresh ones wait
            processes = descendants(os.getpid())
            memory.append(memory_bytes([*processes, os.getpid()]))
            print(f"{count - left:7} {time.monotonic() - began:7.0f} s {memory[-1] / 1e6:6.1f} MB "
                  f"{len(processes)} processes, {len(cgroups_of(processes))} cgroups", flush=True)
        return ends, memory, seen, users, count / (time.monotonic() - began)


def left_of(processes: dict[int, str], mounts: str, open_before: int, own_folder: Path) -> list[str]:
    """Return what of a pool's processes, cgroups, mounts and descriptors there still is."""
    left = [f"process {pid}" for pid, started in processes.items() if alive(pid, started)]
    left += cgroups_of(processes)
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = line.split()[4]
        ours = point == "/tmp" or point.startswith(("/sandbox", "/.old", "/tmp/.old", str(own_folder)))
        if ours and line not in mounts.splitlines():
            left.append(f"mount {line}")
    if descriptors() != open_before:
        left.append(f"{descriptors() - open_before} descriptors")
    return left


def containers() -> list[str]:
    """Return the containers of this process that the engine still knows."""
    client = docker.connect()
    owned = client.containers.list(all=True, filters={"label": f"{docker.OWNER}={docker.owner()}"})
    client.close()
    return [container.id for container in owned]


def files_of(users: set[int], own_folder: Path) -> set[Path]:
    """Return the files of this machine's shared folders that belong to candidates, and all that lies in our own."""
    blocks = {user >> 8 for user in users if user >= FIRST_USER}
    found = set(own_folder.iterdir())
    for folder in ("/tmp", "/dev/shm", "/var/tmp"):
        for path in Path(folder).iterdir():
            with contextlib.suppress(FileNotFoundError):  # other programs' files come and go
                if path.lstat().st_uid >> 8 in blocks:
                    found.add(path)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("count", type=int, nargs="?", default=20_000)
    parser.add_argument("--home", default="local", choices=["local", "docker"])
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    mounts, open_before = Path("/proc/self/mountinfo").read_text(), descriptors()
    with tempfile.TemporaryDirectory(prefix="turncredit-soak-") as own_folder:
        tempfile.tempdir = own_folder
        ends, memory, seen, users, per_second = asyncio.run(soak(asked.home, asked.count, asked.slots, asked.seed))
        left = left_of(seen, mounts, open_before, Path(own_folder))
        left += [f"file {path}" for path in files_of(users, Path(own_folder))]
        tempfile.tempdir = None
    if asked.home == "docker":
        left += [f"container {name}" for name in containers()]
    for end, times in sorted(ends.items()):
        print(f"{times:7} {end}")
    quarter = len(memory) // 4
    early, late = statistics.median(memory[quarter:2 * quarter]), statistics.median(memory[-quarter:])
    failures = sum(times for end, times in ends.items() if end.startswith("SandboxError"))
    print(json.dumps({
        "executions": asked.count, "left": left, "sandbox_errors": failures,
        "memory_mb_second_quarter": round(early / 1e6, 1), "memory_mb_last_quarter": round(late / 1e6, 1),
        "executions_per_s": round(per_second, 1)}))
    return int(bool(left) or failures > 0 or late > early * (1 + GROWTH))


if __name__ == "__main__":
    sys.exit(main())
