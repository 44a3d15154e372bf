"""The local sandbox's own promises: protections, the pool, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from turncredit.errors import UserError
from turncredit.sandboxes import KilledBy, Limits, Sandbox, SandboxError, local
from turncredit.sandboxes.check import check
from turncredit.sandboxes.local import LocalSandbox

SMALL = Limits(wall_s=5, cpu_s=5, memory_bytes=64 << 20, processes=8)
PID = "import os, time; print(open('/proc/self/stat').read().split()[4])"


def with_sandbox(use: Callable[[LocalSandbox], Awaitable[Any]], **settings: Any) -> Any:
    async def opened() -> Any:
        sandbox = await Sandbox.open("local", **{"slots": 1, "limits": SMALL, **settings})
        assert isinstance(sandbox, LocalSandbox)
        async with sandbox:
            return await use(sandbox)

    return asyncio.run(opened())


def descendants(of: int) -> set[int]:
    """Return every process below one, as /proc has them now."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found: set[int] = set()
    while more := {pid for pid, parent in parents.items() if parent in found | {of}} - found:
        found |= more
    return found


strangers: set[int] = set()  # processes of sandboxes that other tests keep open


@pytest.fixture(autouse=True)
def _know_strangers() -> None:
    strangers.clear()
    strangers.update(descendants(os.getpid()))


def ours() -> set[int]:
    """Return the processes of the sandboxes that this test opened."""
    return descendants(os.getpid()) - strangers


def left_behind(processes: set[int]) -> list[str]:
    """Return what is still there of a sandbox whose processes these were, after a moment's patience."""
    until = time.monotonic() + 5
    while True:
        left = [f"process {pid}" for pid in processes if Path(f"/proc/{pid}").exists()]
        for folder, _, _ in os.walk("/sys/fs/cgroup"):
            if any(Path(folder).name.startswith(f"turncredit-{pid}-") for pid in processes):
                left.append(folder)
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.05)


# Protections


def test_it_says_what_protects() -> None:
    async def use(sandbox: LocalSandbox) -> None:
        protections = sandbox.protections
        assert protections.uid == ("own" if os.getuid() == 0 else "user namespace")
        assert {"namespaces", "uid", "rlimits", "seccomp"} <= set(protections.obtained)
        status = (await sandbox.run("print(open('/proc/self/status').read())")).stdout
        assert "Seccomp:\t2\n" in status
        assert "NoNewPrivs:\t1\n" in status
        assert ("landlock" in protections.obtained) == (protections.landlock > 0)

    with_sandbox(use)


def test_landlock_holds_where_it_is_reported() -> None:
    async def use(sandbox: LocalSandbox) -> None:
        if not sandbox.protections.landlock:
            pytest.skip("this kernel has no Landlock")
        # Allowed by mode, mount and seccomp: only Landlock refuses it.
        result = await sandbox.run("open('/proc/self/comm', 'w')")
        assert "PermissionError" in result.stderr

    with_sandbox(use)


def test_too_little_protection_is_refused_with_its_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local.Protections, "obtained", local.MINIMUM)
    with pytest.raises(UserError, match=r"lacks landlock, memory_cgroup here.*lsm=.*Delegate=yes"):
        with_sandbox(nothing, minimum=["seccomp", "landlock", "memory_cgroup"])
    assert not ours()


def test_a_user_without_namespaces_is_told_how_to_get_them() -> None:
    result = where_namespaces_are_refused("""
import asyncio
from turncredit.errors import UserError
from turncredit.sandboxes import Sandbox
try:
    asyncio.run(Sandbox.open("local"))
except UserError as error:
    print("refused:", error)
""")
    assert result.stdout.startswith("refused: the local sandbox lacks namespaces here"), result
    assert "max_user_namespaces" in result.stdout


def test_the_check_says_what_works_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert check(["local"]) == 0
    table = capsys.readouterr().out
    assert "runs Python" in table
    assert "(median of" in table
    script = "from turncredit.sandboxes.check import check; raise SystemExit(check(['local']))"
    result = where_namespaces_are_refused(script)
    assert result.returncode == 1
    assert "lacks namespaces here" in " ".join(result.stdout.split())
    with pytest.raises(UserError, match="'loocal' is unknown"):
        check(["loocal"])


def where_namespaces_are_refused(script: str) -> subprocess.CompletedProcess[str]:
    """Run Python as a user who can't make namespaces."""
    refuse = "echo 0 > /proc/sys/user/max_user_namespaces; exec setpriv --inh-caps=-all --bounding-set=-all"
    if os.getuid() != 0:
        pytest.skip("only root can make a user for whom namespaces are refused")
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", refuse + ' "$@"', "sh",
               sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(("settings", "sentence"), [
    ({"slots": 0}, "slots is 0"), ({"sessions": -1}, "sessions is -1"), ({"recycle_after": 0}, "after is 0"),
    ({"minimum": ["seccmp"]}, "did you mean 'seccomp'"), ({"readable": ["tmp"]}, "readable names 'tmp'"),
    ({"preload": ["no_such_module"]}, "preload names 'no_such_module'"),
    ({"limits": Limits(memory_bytes=1000)}, "memory_bytes is 1000"),
    ({"limits": Limits(memory_bytes=1 << 60)}, "what the machine has"),
    ({"limits": Limits(wall_s=float("inf"))}, "wall_s is inf"),
])
def test_an_impossible_setting_is_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        with_sandbox(nothing, **settings)
    assert not ours()


async def nothing(sandbox: LocalSandbox) -> None:
    """Only open it."""


def test_preloaded_modules_are_there_at_once() -> None:
    async def use(sandbox: LocalSandbox) -> None:
        assert (await sandbox.run("import sys; print('tarfile' in sys.modules)")).stdout == "True\n"

    with_sandbox(use, preload=["tarfile"])


def test_readable_folders_can_be_read_and_not_written(tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text("data")
    tmp_path.chmod(0o755)

    async def use(sandbox: LocalSandbox) -> None:
        code = f"print(open('{tmp_path}/data.txt').read())\nopen('{tmp_path}/new', 'w')"
        result = await sandbox.run(code)
        assert result.stdout == "data\n"
        assert result.exit == 1

    with_sandbox(use, readable=[str(tmp_path)])


def test_this_packages_sources_are_hidden_where_their_folder_is_readable() -> None:
    package = Path(local.__file__).parents[1]

    async def use(sandbox: LocalSandbox) -> None:
        result = await sandbox.run(f"import os; print(os.listdir('{package}')); open('{package}/errors.py')")
        assert result.stdout == "[]\n"
        assert "FileNotFoundError" in result.stderr

    with_sandbox(use, readable=[str(package.parent)])


def test_the_network_is_there_when_asked_for_and_only_then() -> None:
    async def use(sandbox: LocalSandbox) -> None:
        async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"hello")
            writer.close()

        server = await asyncio.start_server(greet, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        code = f"import socket; print(socket.create_connection(('127.0.0.1', {port}), 5).recv(9))"
        for network in (False, True, False):
            result = await sandbox.run(code, limits=replace(SMALL, network=network))
            assert (result.stdout == "b'hello'\n") == network, result
        server.close()

    with_sandbox(use)


# The pool


def test_who_comes_when_all_slots_are_taken_waits() -> None:
    async def use(sandbox: LocalSandbox) -> None:
        results = await asyncio.gather(*(sandbox.run(f"print({number})") for number in range(40)))
        assert [result.stdout for result in results] == [f"{number}\n" for number in range(40)]
        assert len(ours()) <= 2 + 2 * 2  # guard and zygote; slots with a candidate each

    with_sandbox(use, slots=2)


def test_who_comes_when_all_sessions_are_taken_waits() -> None:
    async def use(sandbox: LocalSandbox) -> None:
        first = await sandbox.session()
        second = asyncio.create_task(sandbox.session())
        await asyncio.sleep(0.1)
        assert not second.done()
        assert (await sandbox.run("print(1)")).stdout == "1\n"  # runs have slots of their own
        await first.close()
        async with await second as session:
            assert (await session.run("1")).value == "1"

    with_sandbox(use, sessions=1)


def slots_now() -> set[int]:
    """Return the slots' process ids, as seen outside: children of the zygote."""
    (guard,) = {pid for pid in ours() if parent_of(pid) == os.getpid()}
    (zygote,) = {pid for pid in descendants(guard) if parent_of(pid) == guard}
    return {pid for pid in descendants(zygote) if parent_of(pid) == zygote}


def parent_of(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


async def settled_slots() -> set[int]:
    """Return the slots once those that were let go have ended."""
    until = time.monotonic() + 5
    while len(slots := slots_now()) != 1 and time.monotonic() < until:
        await asyncio.sleep(0.02)
    return slots


def test_a_slot_serves_its_share_and_is_replaced() -> None:
    async def use(sandbox: LocalSandbox) -> None:
        seen = []
        for _ in range(4):  # opening ran once already
            await sandbox.run("pass")
            seen.append(await settled_slots())
        assert seen[0] != seen[1] == seen[2] != seen[3] or seen[0] == seen[1] != seen[2] == seen[3]

    with_sandbox(use, recycle_after=2)


def test_a_time_out_replaces_the_slot_and_an_exception_does_not() -> None:
    async def use(sandbox: LocalSandbox) -> None:
        before = await settled_slots()
        await sandbox.run("1 / 0")
        assert await settled_slots() == before
        await sandbox.run("import time; time.sleep(9)", limits=replace(SMALL, wall_s=0.2))
        assert (await sandbox.run("print(1)")).stdout == "1\n"
        assert await settled_slots() != before

    with_sandbox(use)


@pytest.mark.parametrize("victim", ["slot", "zygote", "guard"])
@pytest.mark.parametrize("busy", [False, True])
def test_a_dead_process_is_replaced_and_its_run_starts_again(victim: str, busy: bool) -> None:
    async def use(sandbox: LocalSandbox) -> None:
        before = ours()
        code = "import time; time.sleep(0.5); print('done')"
        run = asyncio.create_task(sandbox.run(code)) if busy else None
        await asyncio.sleep(0.2)
        (slot,) = slots_now()
        zygote = parent_of(slot)
        target = {"slot": slot, "zygote": zygote, "guard": parent_of(zygote)}[victim]
        os.kill(target, signal.SIGKILL)
        if run:
            assert (await run).stdout == "done\n"
        for _ in range(2):  # the first may find the dying still alive
            assert (await sandbox.run("print('next')")).stdout == "next\n"
            await asyncio.sleep(0.2)
        assert not left_behind({slot} if victim == "slot" else before)

    with_sandbox(use)


def test_a_cancelled_run_is_ended_and_its_slot_replaced() -> None:
    async def use(sandbox: LocalSandbox) -> None:
        run = asyncio.create_task(sandbox.run("import time; time.sleep(60)"))
        await asyncio.sleep(0.3)
        before = ours()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert (await sandbox.run("print('next')")).stdout == "next\n"
        until = time.monotonic() + 5
        while len(before & ours()) > 2 and time.monotonic() < until:
            await asyncio.sleep(0.02)
        assert len(before & ours()) == 2  # guard and zygote

    with_sandbox(use)


def test_a_slot_that_answers_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("turncredit.sandboxes.slots.GRACE_S", 0.5)

    async def use(sandbox: LocalSandbox) -> None:
        (slot,) = slots_now()
        os.kill(slot, signal.SIGSTOP)
        with pytest.raises(SandboxError, match="no answer"):
            await sandbox.run("pass", limits=replace(SMALL, wall_s=0.5))
        assert (await sandbox.run("print('next')")).stdout == "next\n"
        assert not left_behind({slot})

    with_sandbox(use)


def test_memory_that_a_session_holds_is_limited_between_cells() -> None:
    async def use(sandbox: LocalSandbox) -> None:
        async with await sandbox.session() as session:
            code = ("import threading, time\ndef grow():\n    time.sleep(0.3)\n"
                    "    global kept\n    kept = [bytearray(1 << 20) for _ in range(500)]\n"
                    "threading.Thread(target=grow).start()")
            assert (await session.run(code)).exit == 0
            await asyncio.sleep(2.5)
            with pytest.raises(SandboxError, match="memory"):
                await session.run("len(kept)")

    with_sandbox(use)


# Nothing is left behind


def open_descriptors() -> list[str]:
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


def test_nothing_is_left_after_close() -> None:
    mounts = Path("/proc/self/mountinfo").read_text()
    descriptors = open_descriptors()

    async def use(sandbox: LocalSandbox) -> set[int]:
        await sandbox.run("import os; os.fork(); os.fork()")
        await sandbox.session()
        asyncio.get_running_loop().create_task(sandbox.run("import time; time.sleep(60)"))
        await asyncio.sleep(0.2)
        return ours()

    processes = with_sandbox(use)
    assert len(processes) >= 4
    assert not left_behind(processes)
    new = set(Path("/proc/self/mountinfo").read_text().splitlines()) - set(mounts.splitlines())
    assert not [line for line in new if line.split()[4].startswith(("/sandbox", "/.old", "/tmp"))
                and not line.split()[4].startswith("/tmp/turncredit-docker.")]  # a Docker engine that CI started
    assert open_descriptors() == descriptors


def test_nothing_is_left_after_an_exception() -> None:
    seen: set[int] = set()

    async def use(sandbox: LocalSandbox) -> None:
        await sandbox.run("pass")
        seen.update(ours())
        raise RuntimeError("the user's own")

    with pytest.raises(RuntimeError, match="own"):
        with_sandbox(use)
    assert seen
    assert not left_behind(seen)


def test_a_closed_sandbox_says_so() -> None:
    async def use(sandbox: LocalSandbox) -> None:
        await sandbox.close()
        await sandbox.close()
        with pytest.raises(SandboxError, match="closed"):
            await sandbox.run("pass")
        with pytest.raises(SandboxError, match="closed"):
            await sandbox.session()

    with_sandbox(use)


PARENT = """
import asyncio, os, sys, time
from turncredit.sandboxes import Sandbox
async def main():
    sandbox = await Sandbox.open("local", slots=2)
    session = await sandbox.session()
    await session.run("import os\\nif os.fork() == 0:\\n    os.setsid()\\n    while True: pass")
    task = asyncio.create_task(sandbox.run("while True: pass"))
    if sys.argv[1] == "fork" and os.fork() == 0:
        time.sleep(60)  # holds copies of every socket
        os._exit(0)
    await asyncio.sleep(0.3)
    print("busy", flush=True)
    await task
asyncio.run(main())
"""


@pytest.mark.parametrize("forked", ["alone", "fork"])
def test_nothing_is_left_after_the_parent_is_killed(forked: str) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, forked], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "busy\n"
    below = descendants(parent.pid)
    copy = {pid for pid in below if b"asyncio" in Path(f"/proc/{pid}/cmdline").read_bytes()}
    assert len(below - copy) >= 6
    parent.kill()
    parent.wait()
    parent.stdout.close()
    try:
        assert not left_behind(below - copy)
    finally:
        for pid in copy:
            os.kill(pid, signal.SIGKILL)


def test_what_a_killed_guard_left_is_swept_by_the_next_sandbox() -> None:
    async def killed(sandbox: LocalSandbox) -> set[int]:
        processes = ours()
        (guard,) = {pid for pid in processes if parent_of(pid) == os.getpid()}
        os.kill(guard, signal.SIGKILL)
        await asyncio.sleep(0.2)
        return processes

    processes = with_sandbox(killed)
    with_sandbox(nothing)
    assert not left_behind(processes)


# As an ordinary user

# The interpreter and this tree may lie where only root can go: in a mount namespace of its own, everybody can reach it.
AS_NOBODY = """
set -e
kept=
while [ "$1" != -- ]; do place=$(mktemp -d); mount --bind "$1" "$place"; kept="$kept $place $1"; shift; done; shift
[ -z "$kept" ] || mount -t tmpfs -o mode=755 tmpfs /root
set -- $kept -- "$@"
while [ "$1" != -- ]; do mkdir -p "$2"; mount --move "$1" "$2"; shift 2; done; shift
exec setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all --bounding-set=-all "$@"
"""


def as_ordinary_user(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python as a user without rights: this one, or nobody where this is root."""
    root = Path(__file__).parents[2]
    command = [sys.executable, *arguments]
    if os.getuid() == 0:
        hidden = {path for path in (sys.base_prefix, sys.prefix, str(root)) if path.startswith("/root/")}
        outermost = [path for path in hidden if not any(path.startswith(f"{other}/") for other in hidden)]
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", AS_NOBODY, "sh",
                   *outermost, "--", *command]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(root), "HOME": "/tmp",
                   "PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment, timeout=280)
    if "Permission denied" in result.stderr and not result.stdout:
        pytest.skip(f"an ordinary user can't reach Python or this folder: {result.stderr.strip()[-200:]}")
    return result


def test_an_ordinary_user_is_protected_too() -> None:
    script = """
import asyncio
from turncredit.sandboxes import Limits, Sandbox
async def main():
    limits = Limits(wall_s=5, memory_bytes=64 << 20)
    async with await Sandbox.open("local", slots=1, limits=limits) as sandbox:
        print(sandbox.protections.uid)
        print((await sandbox.run("import os; print(os.getuid() > 0)")).stdout.strip())
        print((await sandbox.run("x = []\\nwhile True: x.append(bytearray(1 << 20))")).killed_by)
        print((await sandbox.run("import os\\nwhile True: os.fork()")).exit)
        async with await sandbox.session() as session:
            print((await session.run("6 * 7")).value)
asyncio.run(main())
"""
    result = as_ordinary_user("-c", script)
    assert result.stdout == "user namespace\nTrue\nmemory\n1\n42\n", result


@pytest.mark.slow
def test_every_sandbox_test_passes_as_an_ordinary_user() -> None:
    tests = [str(path) for path in Path(__file__).parent.glob("test_[ab]*.py")]
    result = as_ordinary_user("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "local", *tests)
    assert result.returncode == 0, result.stdout[-3000:]


def test_killed_by_memory_is_an_end_of_its_own() -> None:
    async def use(sandbox: LocalSandbox) -> None:
        result = await sandbox.run("x = []\nwhile True: x.append(bytearray(1 << 20))")
        assert (result.killed_by, result.exit) == (KilledBy.MEMORY, None)
        assert (await sandbox.run("print('next')")).stdout == "next\n"

    with_sandbox(use)
