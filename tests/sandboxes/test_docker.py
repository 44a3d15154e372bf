"""What only the Docker sandbox promises. What every home promises is tested in test_homes.py."""

from __future__ import annotations

import asyncio
import gc
import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("docker", reason="the extra `docker` is not installed")

from turncredit.errors import MissingExtra, UserError
from turncredit.sandboxes import KilledBy, Limits, Result, Sandbox, docker, image
from turncredit.sandboxes.base import MIB


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    try:
        client = docker.connect()
    except UserError as error:
        pytest.skip(str(error))
    yield client
    client.close()


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def sandbox(engine: Any, runner: asyncio.Runner) -> Iterator[docker.DockerSandbox]:
    opened = runner.run(docker.open_sandbox(slots=1))
    yield opened
    runner.run(opened.close())


@pytest.fixture
def run(sandbox: docker.DockerSandbox, runner: asyncio.Runner) -> Callable[..., Result]:
    """Run code in the sandbox, and wait for its end."""
    return lambda *arguments, **settings: runner.run(sandbox.run(*arguments, **settings))


def containers(engine: Any, owner: str | None = None) -> set[str]:
    """Return the sandboxes' containers, or those of one process: others may use the engine meanwhile."""
    label = docker.LABEL if owner is None else f"{docker.OWNER}={owner}"
    found = engine.containers.list(all=True, filters={"label": label}, ignore_removed=True)
    return {container.id for container in found}


def test_no_engine_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    with pytest.raises(UserError, match=r"no Docker engine answers at unix:///nowhere/docker\.sock"):
        asyncio.run(Sandbox.open("docker"))


def test_an_engine_over_ssh_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "ssh://somewhere")
    with pytest.raises(UserError, match="DOCKER_HOST is 'ssh://somewhere'"):
        asyncio.run(Sandbox.open("docker"))


def test_without_the_sdk_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "docker", None)
    with pytest.raises(MissingExtra, match=r"turncredit\[docker\]"):
        asyncio.run(Sandbox.open("docker"))


@pytest.mark.parametrize(("settings", "said"), [
    ({"slots": 0}, "slots is 0"),
    ({"image": "x", "packages": ["numpy"]}, "put them into that image"),
    ({"packages": ["no-such-package"]}, "packages names 'no-such-package'"),
    ({"image": "turncredit-missing:none"}, "image 'turncredit-missing:none' is not on the Docker engine"),
    ({"runtime": "no-such-runtime"}, "no-such-runtime"),
    ({"limits": Limits(memory_bytes=1 << 50)}, "limits.memory_bytes"),
    ({"preload": ["no_such_module"]}, "no_such_module"),
])
def test_bad_settings_are_one_sentence(engine: Any, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        asyncio.run(docker.open_sandbox(**settings))


def test_a_runtime_that_does_not_enforce_a_limit_is_refused(
        engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker.container, "KEPT", 1000)  # as if nr_inodes were not obeyed
    with pytest.raises(UserError, match="its runtime lacks a limit on the files of a tmpfs"):
        asyncio.run(docker.open_sandbox(slots=1))


def test_containers_are_closed_in(
        engine: Any, sandbox: docker.DockerSandbox, runner: asyncio.Runner) -> None:
    async def name() -> str:
        container = await sandbox.pool.take(sandbox.limits)
        sandbox.pool.give_back(container, sound=True)
        return container.name

    host = engine.containers.get(runner.run(name())).attrs["HostConfig"]
    assert host["NetworkMode"] == "none" and host["IpcMode"] == "none"
    assert host["ReadonlyRootfs"] and not host["Privileged"] and not host["Binds"]
    assert host["CapDrop"] == ["ALL"] and set(host["CapAdd"]) == set(docker.CAPABILITIES)
    assert "no-new-privileges" in host["SecurityOpt"]
    limits = sandbox.limits
    assert limits.memory_bytes <= host["Memory"] == host["MemorySwap"] < limits.memory_bytes + 64 * MIB
    assert host["PidsLimit"] == limits.processes + 1
    assert host["LogConfig"]["Type"] == "none" and host["AutoRemove"]


def test_a_candidate_has_no_rights(run: Callable[..., Result]) -> None:
    status = run("print(open('/proc/self/status').read())").stdout
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert set(fields["Uid"].split()) & {"0"} == set() and fields["Groups"].strip() == ""
    assert {int(fields[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
    assert fields["NoNewPrivs"] == "1" and fields["Seccomp"] == "2"


@pytest.mark.parametrize("attempt", [
    "open('/proc/1/mem', 'rb')", "open('/proc/1/environ').read()", "os.readlink('/proc/1/fd/0')",
    "os.kill(1, 0)", "os.setuid(0)", "open('/dev/x', 'w')", "open('/x', 'w')", "os.listdir('/proc/1/fd')",
    "os.unlink('/dev/shm')", "os.rename(os.getcwd(), os.getcwd() + 'x')",
])
def test_the_supervisor_is_out_of_reach(run: Callable[..., Result], attempt: str) -> None:
    result = run(f"import os\n{attempt}")
    assert result.exit == 1 and ("PermissionError" in result.stderr or "Read-only" in result.stderr)


def test_the_hosts_hardware_is_hidden_where_there_is_no_landlock_too(
        engine: Any, sandbox: docker.DockerSandbox, runner: asyncio.Runner) -> None:
    """PID 1 has no Landlock policy: what it sees of /sys, a candidate without one would."""

    async def main() -> tuple[int, bytes]:
        container = await sandbox.pool.take(sandbox.limits)
        try:
            looked = ["ls", "-A", "/sys/class", "/sys/devices", "/sys/firmware", "/proc/acpi"]
            return await asyncio.to_thread(engine.containers.get(container.name).exec_run, looked)
        finally:
            sandbox.pool.give_back(container, sound=True)

    code, output = runner.run(main())
    assert code == 0 and [line for line in output.decode().split() if not line.endswith(":")] == []


def test_nothing_is_left_for_the_next_execution(run: Callable[..., Result]) -> None:
    mess = """
import os
work = os.getcwd()
for place in (work, "/tmp", "/dev/shm"):
    os.chdir(place)
    for depth in range(20):
        os.mkdir("d"); os.symlink("/etc", "d/link"); os.mkfifo("d/fifo"); open("d/file", "w").close()
        os.chdir("d")
    os.chmod(".", 0); os.chmod(place + "/d", 0)
    if place == work: os.chmod(place, 0)
"""
    container = "import os; print(os.getuid())"
    before = run(container).stdout
    assert run(mess).stderr == ""
    look = "import os\nprint([sorted(os.listdir(p)) for p in ('..', '.', '/tmp', '/dev/shm')])"
    assert run(look).stdout == "[['shm', 'tmp', 'work'], [], [], []]\n"
    assert run(container).stdout == before  # it was cleared, not thrown away
    assert run("open('/etc/passwd').read()").exit == 0


def test_memory_shared_by_many_processes_is_counted(run: Callable[..., Result]) -> None:
    bomb = """
import os, time
for _ in range(8):
    if os.fork() == 0:
        held = bytearray(os.urandom(1)) * (100 << 20)
        time.sleep(30)
held = bytearray(1 << 30)
"""
    result = run(bomb)
    assert result.killed_by is KilledBy.MEMORY and result.exit is None
    assert run("print('sound')").stdout == "sound\n"


def test_a_time_out_costs_the_container(sandbox: docker.DockerSandbox, runner: asyncio.Runner) -> None:
    async def both() -> tuple[str, str, KilledBy | None]:
        before = await sandbox.run("import os; print(os.getuid())")
        cut = await sandbox.run("while True: pass", limits=Limits(wall_s=0.2))
        after = await sandbox.run("import os; print(os.getuid())")
        return before.stdout, after.stdout, cut.killed_by

    before, after, cut = runner.run(both())
    assert cut is KilledBy.WALL and before != after


def test_other_limits_get_a_container_of_their_own(run: Callable[..., Result]) -> None:
    small = Limits(memory_bytes=64 * MIB, file_bytes=1 * MIB, files=8, processes=4)
    fill = "open('f', 'wb').write(bytes(900_000)); open('g', 'wb').write(bytes(900_000))"
    assert "No space left" in run(fill, limits=small).stderr
    many = "for i in range(20): open(str(i), 'w').close()"
    assert "No space left" in run(many, limits=small).stderr
    assert run("x = bytearray(120 << 20)", limits=small).killed_by is KilledBy.MEMORY
    assert run(many).exit == 0


def test_several_executions_run_at_once(engine: Any) -> None:
    async def main() -> float:
        async with await docker.open_sandbox(slots=3) as opened:
            began = time.monotonic()
            results = await asyncio.gather(*(opened.run("import time; time.sleep(0.5)") for _ in range(6)))
            assert all(result.exit == 0 for result in results)
            return time.monotonic() - began

    assert 1.0 <= asyncio.run(main()) < 2.5  # three slots, two rounds


def test_close_leaves_no_container(engine: Any) -> None:
    async def main() -> set[str]:
        opened = await docker.open_sandbox(slots=2)
        session = await opened.session()
        busy = asyncio.create_task(opened.run("import time; time.sleep(60)"))
        await session.run("x = 1")
        await asyncio.sleep(0.3)
        there = containers(engine, docker.owner()) - before
        await opened.close()
        await asyncio.gather(busy, return_exceptions=True)
        return there

    before = containers(engine, docker.owner())
    there = asyncio.run(main())
    assert len(there) == 3
    assert not there & containers(engine)


def test_containers_that_are_replaced_leave_no_descriptor(engine: Any) -> None:
    async def main() -> tuple[int, int]:
        async with await docker.open_sandbox(slots=1, recycle_after=1, preload=()) as opened:
            counts = []
            for _ in range(10):
                await opened.run("pass")
                counts.append(len(list(Path("/proc/self/fd").iterdir())))
            return counts[5], counts[9]  # by then the SDK keeps as many idle connections as it ever will

    gc.disable()  # which would hide what waits for it
    try:
        before, after = asyncio.run(main())
    finally:
        gc.enable()
    assert after <= before + 1


OPEN_AND_WAIT = """
import asyncio
from turncredit.sandboxes import docker
async def main():
    opened = await docker.open_sandbox(slots=1)
    print("open", flush=True)
    await opened.run("import os\\nwhile os.fork() >= 0: pass")
asyncio.run(main())
"""


def test_a_killed_program_leaves_no_container(engine: Any) -> None:
    program = subprocess.Popen([sys.executable, "-c", OPEN_AND_WAIT], stdout=subprocess.PIPE)
    assert program.stdout is not None and program.stdout.readline() == b"open\n"
    there = containers(engine, docker.owner(program.pid))
    program.send_signal(signal.SIGKILL)
    program.wait()
    program.stdout.close()
    assert len(there) == 1
    until = time.monotonic() + 20
    while there & containers(engine):
        assert time.monotonic() < until, "the container outlived the program that opened it"
        time.sleep(0.1)


def test_what_dead_programs_left_is_swept_at_the_next_open(engine: Any) -> None:
    """As when an engine missed the stream's end: a dead owner's container, beside a living one's."""
    dead = subprocess.Popen(["true"])
    machine, _, _ = docker.owner().rpartition(" ")
    owners = {"dead": f"{machine} {dead.pid}-1", "alive": docker.owner(), "elsewhere": "another machine 1-1"}
    dead.wait()
    made = {
        name: engine.containers.run(
            image.build_image(engine), ["sleep", "60"], detach=True, network_mode="none",
            labels={docker.LABEL: "1", docker.OWNER: owner})
        for name, owner in owners.items()}
    try:
        docker.sweep(engine)
        left = containers(engine)
        assert {name for name, container in made.items() if container.id in left} == {"alive", "elsewhere"}
    finally:
        for container in made.values():
            docker.remove(engine, container.id)


def test_the_own_image_holds_the_distributions_asked_for(engine: Any) -> None:
    async def main() -> tuple[str, str]:
        async with await docker.open_sandbox(slots=1, packages=["sympy"], preload=()) as opened:
            with_it = await opened.run("import sympy, mpmath; print(sympy.sympify('1/3') * 3)")
        async with await docker.open_sandbox(slots=1, preload=()) as opened:
            without = await opened.run("import sympy")
        return with_it.stdout, without.stderr

    with_it, without = asyncio.run(main())
    assert with_it == "1\n" and "No module named 'sympy'" in without


def test_the_own_image_is_the_running_python(run: Callable[..., Result]) -> None:
    assert run("import sys; print(sys.version)").stdout.strip() == sys.version


def test_a_named_image_is_given_a_writable_tmp(engine: Any) -> None:
    """An image of someone else's, as far as this one can tell: with a /tmp of its own, under another name."""
    made = engine.containers.create(image.build_image(engine), network_mode="none", entrypoint=[
        "/bin/sh", "-c", "rm /tmp && mkdir -m 1777 /tmp"])
    made.start()
    made.wait()
    made.commit("turncredit-test", "named")
    made.remove()

    async def main() -> str:
        async with await docker.open_sandbox(image="turncredit-test:named", slots=1) as opened:
            return (await opened.run("open('/tmp/x', 'w').write('x'); print(open('/tmp/x').read())")).stdout

    try:
        assert asyncio.run(main()) == "x\n"
    finally:
        for name in ("turncredit-test:named", image.prepare_image(engine, "turncredit-test:named")):
            engine.images.remove(name, force=True)


def test_an_image_without_python_is_refused(engine: Any) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("empty"), io.BytesIO())
    engine.api.import_image_from_data(buffer.getvalue(), repository="turncredit-test", tag="empty")
    try:
        with pytest.raises(UserError, match="turncredit-test:empty"):
            asyncio.run(docker.open_sandbox(image="turncredit-test:empty"))
    finally:
        engine.images.remove("turncredit-test:empty", force=True)


def test_cancelled_callers_lose_no_slot(sandbox: docker.DockerSandbox, runner: asyncio.Runner) -> None:
    async def main() -> str:
        for delay in (0.0, 0.01, 0.1):
            task = asyncio.create_task(sandbox.run("import time; time.sleep(5)"))
            await asyncio.sleep(delay)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        return (await sandbox.run("print('sound')")).stdout

    assert runner.run(main()) == "sound\n"


def test_a_start_that_nobody_waits_for_any_more_is_used_by_the_next(
        engine: Any, sandbox: docker.DockerSandbox, runner: asyncio.Runner) -> None:
    async def main() -> set[str]:
        limits = Limits(files=77)  # no container is made for these yet
        task = asyncio.create_task(sandbox.run("pass", limits=limits))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await sandbox.run("pass", limits=limits)).exit == 0
        await asyncio.gather(*sandbox.pool._at_work)
        return containers(engine, docker.owner()) - before

    before = containers(engine, docker.owner())
    assert len(runner.run(main())) == 1


def test_files_go_in_and_come_back_whole(run: Callable[..., Result]) -> None:
    data = os.urandom(3 << 20)
    result = run(
        "import shutil, sys; shutil.copy('in/data', 'out'); print(sys.stdin.buffer.read()[:9].decode())",
        files={"in/data": data}, stdin=b"123456789abc" * 100_000, collect=["out", "missing"])
    assert result.files == {"out": data} and result.stdout == "123456789\n"
