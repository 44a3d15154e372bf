"""The Docker sandbox (extra `docker`): warm containers, each with a zygote as its PID 1.

A container has no network, a read-only root, one small tmpfs, memory and process limits, no new privileges,
and no capabilities but those by which PID 1 turns a fork of itself into a candidate with a user id of its
own. It is reached over its own stdin and stdout (the engine's attach call): docker exec would start an
interpreter a run, and its time-outs kill nothing. When the stream ends, as it does with this process, PID 1
ends, and the engine removes the container.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import io
import os
import socket
import struct
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turncredit.errors import MissingExtra, UserError
from turncredit.sandboxes import image as images
from turncredit.sandboxes.base import KilledBy, Limits, SandboxError, check_counts
from turncredit.sandboxes.local import ENVIRONMENT, PRELOAD
from turncredit.sandboxes.slots import SlotSandbox, check_limits
from turncredit.sandboxes.warm import WarmPool, WarmSlot
from turncredit.sandboxes.zygote import cgroups, container, frames, root

if TYPE_CHECKING:
    from docker import DockerClient

# Reads the zygote's package from stdin into memory that has no name, and becomes it.
BOOT = """\
import os, sys
sys.path.remove("")
def take(count):
    data = b""
    while len(data) < count:
        data += os.read(0, count - len(data)) or sys.exit(0)
    return data
archive = os.memfd_create("zygote")
os.write(archive, take(int(take(8))))
sys.path.insert(0, f"/proc/self/fd/{archive}")
from zygote.container import main
del sys.path[0]
os.close(archive)
main()
"""
# What PID 1 needs to make candidates of another user, to end them, and to clear up after them.
CAPABILITIES = ("SETUID", "SETGID", "KILL", "CHOWN", "DAC_OVERRIDE", "FOWNER")
# What tells about the host, and no program needs: what engines mask, and most of /sys.
MASKED = [
    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/block", "/sys/bus",
    "/sys/class", "/sys/dev", "/sys/devices", "/sys/firmware", "/sys/hypervisor", "/sys/kernel", "/sys/module",
    "/sys/power",
]
LABEL, OWNER = "turncredit.sandbox", "turncredit.owner"
CHUNK = 1 << 18
START_S = 60.0
RUNTIME_THREADS = 256  # of a kernel in user space, which the engine counts as the container's
START_MEMORY = 1 << 30  # on top of the limits, until the zygote says what it uses
STREAM = struct.Struct(">BxxxL")  # the engine's frame around what comes from a container: which stream, bytes
STDOUT, STDERR = 1, 2


async def open_sandbox(
    *, image: str | None = None, packages: Sequence[str] = (), runtime: str | None = None,
    slots: int | None = None, sessions: int = 64, preload: Sequence[str] = PRELOAD,
    limits: Limits | None = None, recycle_after: int = 1000,
) -> DockerSandbox:
    """Open a Docker sandbox on the engine that the environment names (DOCKER_HOST), or the usual one.

    Args:
        image: an image with Python 3.10 or later, pulled where the engine lacks it; None makes one of the
            running Python, which needs no registry.
        packages: with no image named, distributions installed here that the code may import.
        runtime: the engine's name for a runtime other than its default: "runsc" for gVisor. One that does not
            enforce the limits is refused.
        slots: executions at once; the engine's CPU cores where None.
        sessions: sessions at once, beside the slots.
        preload: modules that every execution finds already imported.
        limits: what an execution may use where a call does not say.
        recycle_after: executions after which a container is replaced.
    Raises:
        MissingExtra: the Docker SDK is not installed.
        UserError: no engine answers, or it can't start such containers.
    """
    limits = limits or Limits()
    check_counts(slots=1 if slots is None else slots, sessions=sessions, recycle_after=recycle_after)
    if image is not None and packages:
        raise UserError(f"packages is {list(packages)}, with image {image!r}: put them into that image")
    client = await asyncio.to_thread(connect)
    machine = await asyncio.to_thread(client.info)
    check_limits(limits, machine["MemTotal"])
    name = await asyncio.to_thread(_image, client, image, packages)
    await asyncio.to_thread(sweep, client)
    start = functools.partial(Container.start, client, name, runtime=runtime, preload=preload)
    pool = WarmPool(start, _shape, size=slots or machine["NCPU"], recycle_after=recycle_after)
    sandbox = DockerSandbox(client, pool, sessions=sessions, limits=limits, memory_bytes=machine["MemTotal"])
    try:
        await pool.fill(limits)
        container = await pool.take(limits)
        sandbox.protections = container.protections
        pool.give_back(container, sound=True)
        await sandbox.run("pass")
    except SandboxError as error:
        await sandbox.close()
        raise UserError(f"the Docker engine can't run image {name!r} as a sandbox: {error}") from error
    except BaseException:
        await sandbox.close()
        raise
    return sandbox


def connect() -> DockerClient:
    """Return a client of the engine, after it answered.

    Raises:
        MissingExtra: the Docker SDK is not installed.
        UserError: no engine answers.
    """
    try:
        import docker
    except ImportError:
        raise MissingExtra("docker", "docker") from None
    where = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if not where.startswith(("unix://", "tcp://", "http://")) or os.environ.get("DOCKER_TLS_VERIFY"):
        raise UserError(f"DOCKER_HOST is {where!r}: the Docker sandbox reaches an engine over unix:// or "
                        "plain tcp:// only (another machine's through its socket, forwarded by ssh -L)")
    try:
        client = docker.from_env(timeout=START_S)
        client.ping()
    except docker.errors.DockerException as error:
        raise UserError(f"no Docker engine answers at {where}: start one, or set DOCKER_HOST to one that runs"
                        ) from error
    return client


def _image(client: DockerClient, name: str | None, packages: Sequence[str]) -> str:
    if name is None:
        return images.build_image(client, packages)
    return images.prepare_image(client, name)


def _shape(limits: Limits) -> object:
    return limits.memory_bytes, limits.processes, limits.file_bytes, limits.files, limits.network


class DockerSandbox(SlotSandbox["Container"]):
    """Executions in warm containers. Opened by `open_sandbox`.

    Attributes:
        protections: what holds a candidate besides the container: Landlock's version, 0 where the kernel or the
            engine's seccomp profile has none, and whether a cgroup that PID 1 can read counts its memory.
    """

    def __init__(self, client: DockerClient, pool: WarmPool[Container], *, sessions: int, limits: Limits,
                 memory_bytes: int) -> None:
        super().__init__(pool, sessions=sessions, limits=limits, memory_bytes=memory_bytes)
        self.protections: dict[str, Any] = {}
        self._client = client

    async def close(self) -> None:
        """See `Sandbox.close`: returns when every container is gone."""
        await super().close()
        await asyncio.to_thread(self._client.close)


class Container(WarmSlot):
    """A running container, and the stream to its PID 1."""

    def __init__(self, client: DockerClient, name: str, limits: Limits, reader: asyncio.StreamReader,
                 writer: asyncio.StreamWriter) -> None:
        super().__init__(limits)
        self.protections: dict[str, Any] = {}
        self._client, self.name = client, name
        self._reader, self._writer = reader, writer
        self._errors = b""
        self._since = int(time.time())

    @classmethod
    async def start(cls, client: DockerClient, image: str, limits: Limits, *, runtime: str | None,
                    preload: Sequence[str]) -> Container:
        """Start a container and its zygote.

        Raises:
            SandboxError: the engine refuses, or the zygote does not come up.
        """
        name, stream = await asyncio.to_thread(_start, client, image, limits, runtime)
        reader, writer = await asyncio.open_connection(sock=stream, limit=CHUNK)
        started = cls(client, name, limits, reader, writer)
        try:
            archive = _archive()
            writer.write(b"%8d" % len(archive) + archive)
            async with asyncio.timeout(START_S):
                reply = await started.exchange(
                    {"preload": list(preload), "network": limits.network, "limits": dataclasses.asdict(limits)}, [])
            if reply is None or "ready" not in reply[0]:
                said = [reply[0].get("error")] if reply else started._errors.decode(errors="replace").splitlines()
                raise SandboxError(said[-1] if said else "its PID 1 ended at its start")
            started.protections = reply[0]["ready"]
            await asyncio.to_thread(started._limit_memory, reply[0]["memory_bytes"])
        except BaseException:
            await started.stop()
            raise
        return started

    def _limit_memory(self, own_bytes: int) -> None:
        """Lower the memory limit to the candidate's, on top of what the zygote uses without one."""
        most = self.limits.memory_bytes + cgroups.OWN_USE + own_bytes
        self._client.api.update_container(self.name, mem_limit=most, memswap_limit=most)

    def alive(self) -> bool:
        """See `WarmSlot.alive`."""
        return not self._reader.at_eof() and not self._writer.is_closing()

    async def exchange(self, header: Mapping[str, object], blobs: Sequence[bytes]) -> frames.Message | None:
        """See `Slot.exchange`."""
        try:
            self._writer.write(frames.pack(header, blobs))
            await self._writer.drain()
            return await self._receive()
        except (asyncio.IncompleteReadError, ConnectionError):
            memory = await asyncio.to_thread(self._ran_out_of_memory)
            return ({"ended": KilledBy.MEMORY}, []) if memory else None

    async def _receive(self) -> frames.Message:
        answer = bytearray()
        while len(answer) < frames.PREFIX.size or len(answer) < frames.size(answer):
            stream, length = STREAM.unpack(await self._reader.readexactly(STREAM.size))
            chunk = await self._reader.readexactly(length)
            if stream == STDERR:
                self._errors = (self._errors + chunk)[-4096:]
            else:
                answer += chunk
        return frames.unpack(bytes(answer))

    def _ran_out_of_memory(self) -> bool:
        """Say whether the engine saw the container run out of memory."""
        with contextlib.suppress(*_engine_errors()):
            return any(self._client.events(
                since=self._since, until=int(time.time()) + 1, decode=True,
                filters={"container": self.name, "event": "oom"}))
        return False

    async def stop(self) -> None:
        """See `WarmSlot.stop`."""
        await asyncio.to_thread(remove, self._client, self.name)
        self._writer.transport.abort()


def _start(client: DockerClient, image: str, limits: Limits,
           runtime: str | None) -> tuple[str, socket.socket]:
    """Create a container, attach to it, start it; return its name and the stream."""
    from docker.types import LogConfig

    scratch = f"exec,size={limits.file_bytes},nr_inodes={limits.files + container.KEPT},mode=755"
    memory = limits.memory_bytes + START_MEMORY
    processes = limits.processes + cgroups.OWN_PROCESSES + (RUNTIME_THREADS if runtime else 0)
    options = client.api.create_host_config(
        auto_remove=True, read_only=True, tmpfs={root.SCRATCH: scratch}, ipc_mode="none",
        network_mode="bridge" if limits.network else "none", mem_limit=memory, memswap_limit=memory,
        pids_limit=processes, cap_drop=["ALL"], cap_add=list(CAPABILITIES),
        security_opt=["no-new-privileges"], log_config=LogConfig(type="none"), runtime=runtime)
    options["MaskedPaths"] = MASKED  # the SDK has no argument for it
    name = None
    try:
        name = client.api.create_container(
            image, [], entrypoint=["python3", "-s", "-B", "-c", BOOT], user="0:0", working_dir="/",
            hostname="sandbox", stdin_open=True, environment=ENVIRONMENT, healthcheck={"test": ["NONE"]},
            host_config=options, labels={LABEL: "1", OWNER: owner()})["Id"]
        attached = client.api.attach_socket(name, {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})
        stream = socket.socket(fileno=os.dup(attached.fileno()))
        attached._response.close()  # the SDK would keep its own descriptor until a garbage collection
        client.api.start(name)
        return name, stream
    except _engine_errors() as error:
        if name:
            remove(client, name)
        raise SandboxError(getattr(error, "explanation", None) or str(error)) from error


def remove(client: DockerClient, name: str) -> None:
    """Kill a container, and wait until the engine has removed it, if there is such a container or engine."""
    from docker.errors import NotFound

    try:
        client.api.remove_container(name, v=True, force=True)
    except NotFound:
        pass
    except _engine_errors():  # most often: its removal is under way
        with contextlib.suppress(*_engine_errors()):
            client.api.wait(name, timeout=START_S, condition="removed")


def _engine_errors() -> tuple[type[Exception], ...]:
    from docker.errors import DockerException
    from requests.exceptions import RequestException

    return DockerException, RequestException


def sweep(client: DockerClient) -> None:
    """Remove the containers that programs of this machine left behind when they died."""
    for found in client.containers.list(all=True, filters={"label": LABEL}, ignore_removed=True):
        where, _, process = found.labels.get(OWNER, "").rpartition(" ")
        if where == _machine() and process != _process(process.partition("-")[0]):
            remove(client, found.id)


def owner(pid: int | None = None) -> str:
    """Name a process (None: this one) so that another one can tell whether it still lives."""
    return f"{_machine()} {_process(str(pid or os.getpid()))}"


def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {Path('/proc/self/ns/pid').readlink()}"


def _process(pid: str) -> str:
    """Return the id with the time of its start, which tells it from a later process of the same id."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return f"{pid}-{stat.rpartition(')')[2].split()[19]}"


@functools.cache
def _archive() -> bytes:
    """Return the zygote's package as a zip file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(Path(container.__file__).parent.glob("*.py")):
            archive.writestr(f"zygote/{path.name}", path.read_bytes())
    return buffer.getvalue()
