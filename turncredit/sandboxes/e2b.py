"""The E2B sandbox (extra `e2b`): virtual machines of that service, through its own SDK.

In each machine runs the local sandbox, started as its root, which enforces every field of `Limits` as it does
here: the service itself limits only a machine's memory, life time and network. A call travels as input
of that program, and its answer as output. Each execution at once has a machine of its own, and so has each
session. A machine that does not answer in time is killed and replaced; one whose owner died ends with
its life time (`lifetime_s`), which is prolonged as long as the owner lives.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import functools
import importlib.metadata
import io
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turncredit.errors import MissingExtra, UserError
from turncredit.sandboxes import base
from turncredit.sandboxes.base import (
    Limits,
    Result,
    Sandbox,
    SandboxError,
    Session,
    check_counts,
    check_path,
    check_request,
)
from turncredit.sandboxes.local import MINIMUM, PRELOAD
from turncredit.sandboxes.machine import RAISED, decoded
from turncredit.sandboxes.slots import GRACE_S
from turncredit.sandboxes.warm import WarmPool, WarmSlot
from turncredit.sandboxes.zygote import frames

if TYPE_CHECKING:
    from e2b_code_interpreter import AsyncSandbox

BROKEN = ("2.38.0", "2.39.0")  # versions of e2b, first and last, that fail in every execution
ARCHIVE = "turncredit.zip"  # in the home of the machine's root
BOOT = f"""\
exec python3 -s -B -c '
import os, runpy, sys, tempfile, zipfile
if sys.version_info < (3, 11):
    sys.exit("the template has Python %d.%d, and 3.11 or later is needed" % sys.version_info[:2])
folder = tempfile.mkdtemp(prefix="turncredit-", dir=os.getcwd())
zipfile.ZipFile("{ARCHIVE}").extractall(folder)
sys.path[0] = folder
runpy.run_module("turncredit.sandboxes.machine", run_name="__main__")
'"""
PIECE = 1 << 18  # bytes of input a request
START_S = 60.0
LEAST_LIFETIME_S = 30


async def open_sandbox(
    *, template: str | None = None, api_key: str | None = None, api_url: str | None = None,
    sandbox_url: str | None = None, slots: int = 1, sessions: int = 20, preload: Sequence[str] = PRELOAD,
    limits: Limits | None = None, minimum: Sequence[str] = MINIMUM, lifetime_s: int = 300,
    recycle_after: int = 1000,
) -> E2bSandbox:
    """Open a sandbox at E2B, or at a service that speaks its protocol.

    Args:
        template: what machines are made of, with Python 3.11 or later; the SDK's own where None.
        api_key: E2B_API_KEY of the environment where None.
        api_url, sandbox_url: of another service than E2B's; E2B_API_URL and E2B_SANDBOX_URL where None.
        slots: machines for executions, and so executions at once.
        sessions: sessions at once, each in a machine of its own.
        preload: modules that every execution finds already imported.
        limits: what an execution may use where a call does not say.
        minimum: protections that the local sandbox must obtain in the machine.
        lifetime_s: seconds after which the service ends a machine whose owner died.
        recycle_after: executions after which a machine is replaced.
    Raises:
        MissingExtra: the SDK is not installed.
        UserError: no key, a version of the SDK that is broken, or a service or template that does not serve.
    """
    limits = limits or Limits()
    check_counts(slots=slots, sessions=sessions, recycle_after=recycle_after)
    if lifetime_s < LEAST_LIFETIME_S:
        raise UserError(f"lifetime_s is {lifetime_s}: it must be at least {LEAST_LIFETIME_S}")
    check_sdk()
    if not (api_key or os.environ.get("E2B_API_KEY")):
        raise UserError("the E2B sandbox needs a key: set E2B_API_KEY in the environment")
    options = {"template": template, "timeout": lifetime_s, "api_key": api_key, "api_url": api_url,
               "sandbox_url": sandbox_url}
    config = {"preload": list(preload), "minimum": list(minimum), "limits": dataclasses.asdict(limits)}
    start = functools.partial(Machine.start, options, config)
    pool = WarmPool(start, lambda wanted: wanted.network, size=slots, recycle_after=recycle_after)
    sandbox = E2bSandbox(pool, sessions=sessions, limits=limits)
    try:
        await pool.fill(limits)
        machine = await pool.take(limits)
        sandbox.protections = machine.protections
        pool.give_back(machine, sound=True)
        await sandbox.run("pass")
    except SandboxError as error:
        await sandbox.close()
        where = api_url or os.environ.get("E2B_API_URL") or "E2B"
        raise UserError(f"no sandbox can be had at {where}: {error}") from error
    except BaseException:
        await sandbox.close()
        raise
    return sandbox


def check_sdk() -> None:
    """Refuse an SDK that is missing, or known to be broken.

    Raises:
        MissingExtra: it is not installed.
        UserError: its version fails in every execution.
    """
    from packaging.version import Version

    try:
        importlib.metadata.version("e2b-code-interpreter")
        version = importlib.metadata.version("e2b")
    except importlib.metadata.PackageNotFoundError:
        raise MissingExtra("e2b-code-interpreter", "e2b") from None
    if Version(BROKEN[0]) <= Version(version) <= Version(BROKEN[1]):
        raise UserError(f"e2b {version} is installed, and {BROKEN[0]} to {BROKEN[1]} fail in every "
                        f"execution: pip install 'e2b>{BROKEN[1]}'")


class Machine(WarmSlot):
    """A virtual machine, and the local sandbox in it."""

    def __init__(self, limits: Limits, sandbox: AsyncSandbox) -> None:
        super().__init__(limits)
        self.protections: dict[str, Any] = {}
        self._sandbox = sandbox
        self._process: Any = None  # the SDK's handle of the program
        self._line = ""  # the beginning of an answer
        self._errors = ""
        self._answers: asyncio.Queue[frames.Message | None] = asyncio.Queue()  # None: there will be no more
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    async def start(cls, options: Mapping[str, Any], config: Mapping[str, object], limits: Limits) -> Machine:
        """Have a machine made, and start the local sandbox in it.

        Raises:
            UserError: the machine does not offer the minimum of protection.
            SandboxError: the service refuses, or the program does not come up.
        """
        from e2b_code_interpreter import AsyncSandbox

        try:
            sandbox = await AsyncSandbox.create(**options, allow_internet_access=limits.network,
                                                metadata={"turncredit": "sandbox"})
        except _failures() as error:
            raise SandboxError(_reason(error)) from error
        machine = cls(limits, sandbox)
        try:
            async with asyncio.timeout(START_S):
                await sandbox.files.write(ARCHIVE, _archive(), user="root")
                machine._process = await sandbox.commands.run(
                    BOOT, background=True, user="root", stdin=True, timeout=0, retain_output=False,
                    on_stdout=machine._said, on_stderr=machine._complained)
                machine._tasks = [asyncio.create_task(machine._watch()),
                                  asyncio.create_task(machine._prolong(options["timeout"]))]
                reply = await machine.exchange(config, [])
            if reply is None:
                raise SandboxError(machine._errors.strip() or "the program in the machine ended at its start")
            machine.protections = reply[0]["ready"]
        except TimeoutError:
            await machine.stop()
            raise SandboxError(f"the machine did not come up within {START_S:g} s") from None
        except _failures() as error:
            await machine.stop()
            raise SandboxError(_reason(error)) from error
        except BaseException:
            await machine.stop()
            raise
        return machine

    def _said(self, text: str) -> None:
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self._answers.put_nowait(frames.unpack(base64.b64decode(line)))

    def _complained(self, text: str) -> None:
        self._errors = (self._errors + text)[-4096:]

    async def _watch(self) -> None:
        with contextlib.suppress(*_failures()):
            await self._process.wait()
        self._answers.put_nowait(None)

    async def _prolong(self, lifetime_s: int) -> None:
        """Let the machine live as long as this process: what the service ends then is an orphan."""
        while True:
            await asyncio.sleep(lifetime_s / 3)
            with contextlib.suppress(*_failures()):  # the next attempt may succeed, or the machine ends
                await self._sandbox.set_timeout(lifetime_s)

    def alive(self) -> bool:
        """See `WarmSlot.alive`."""
        return self._answers.empty()

    async def exchange(self, header: Mapping[str, object], blobs: Sequence[bytes]) -> frames.Message | None:
        """See `Slot.exchange`. Raises what the call raised in the machine."""
        request = frames.pack(header, blobs)
        try:
            for start in range(0, len(request), PIECE):
                await self._process.send_stdin(request[start:start + PIECE])
        except _failures():
            return None
        reply = await self._answers.get()
        if reply and "raised" in reply[0]:
            raise RAISED[reply[0]["raised"]](*reply[0]["arguments"])
        return reply

    async def stop(self) -> None:
        """See `WarmSlot.stop`."""
        for task in self._tasks:
            task.cancel()
        with contextlib.suppress(*_failures()):  # out of reach: it ends with its life time
            await self._sandbox.kill()
        self._answers.put_nowait(None)


class E2bSandbox(Sandbox):
    """Executions in machines at E2B. Opened by `open_sandbox`; belongs to one event loop.

    Attributes:
        protections: what the local sandbox in the machines obtained there.
    """

    def __init__(self, pool: WarmPool[Machine], *, sessions: int, limits: Limits) -> None:
        self.limits = limits
        self.pool = pool
        self.protections: dict[str, Any] = {}
        self._sessions = asyncio.Semaphore(sessions)

    async def run(self, code: str | None = None, *, argv: Sequence[str] | None = None, stdin: bytes = b"",
                  files: Mapping[str, bytes] | None = None, collect: Sequence[str] = (),
                  limits: Limits | None = None) -> Result:
        """See `Sandbox.run`."""
        limits = limits or self.limits
        files = files or {}
        check_request(code, argv, files, collect, limits)
        header = {"call": "run", "argv": argv and list(argv), "files": list(files), "collect": list(collect),
                  "limits": dataclasses.asdict(limits)}
        blobs = [(code or "").encode("utf-8", "surrogatepass"), stdin, *files.values()]
        for _ in range(1 if limits.network else 2):  # it had no effect outside, so a lost one may run again
            machine = await self.pool.take(limits)
            sound = False
            try:
                async with asyncio.timeout(limits.wall_s + GRACE_S):
                    reply = await machine.exchange(header, blobs)
                sound = reply is not None
            except TimeoutError:
                raise SandboxError(f"no answer {GRACE_S:g} s after the wall time was over") from None
            except UserError:
                sound = True
                raise
            finally:
                self.pool.give_back(machine, sound=sound)
            if reply:
                return decoded(*reply)
        raise SandboxError("the machine was lost in the execution" + ("" if limits.network else ", twice"))

    async def session(self, *, limits: Limits | None = None) -> E2bSession:
        """Start an interpreter in a machine of its own; wait where `sessions` are open."""
        limits = limits or self.limits
        await self._sessions.acquire()
        try:
            machine = await self.pool.fresh(limits)
        except BaseException:
            self._sessions.release()
            raise
        session = E2bSession(self.pool, machine, limits, self._sessions)
        try:
            await session.start()
        except BaseException:
            await session.close()
            raise
        return session

    async def close(self) -> None:
        """See `Sandbox.close`: returns when every machine is killed."""
        await self.pool.close()


class E2bSession(Session):
    """An interpreter in a machine of its own."""

    def __init__(self, pool: WarmPool[Machine], machine: Machine, limits: Limits,
                 open_sessions: asyncio.Semaphore) -> None:
        self.limits = limits
        self._pool, self._machine, self._open_sessions = pool, machine, open_sessions
        self._ended: str | None = None
        self._turn = asyncio.Lock()

    async def start(self) -> None:
        """Start the interpreter."""
        await self._call({"call": "session", "limits": dataclasses.asdict(self.limits)})

    async def run(self, code: str, *, limits: Limits | None = None) -> Result:
        """See `Session.run`."""
        limits = limits or self.limits
        header = {"call": "cell", "limits": dataclasses.asdict(limits)}
        source = code.encode("utf-8", "surrogatepass")
        return decoded(*await self._call(header, source, patience_s=limits.wall_s))

    async def write_file(self, path: str, data: bytes) -> None:
        """See `Session.write_file`."""
        check_path("path", path)
        await self._call({"call": "write", "path": path}, data)

    async def read_file(self, path: str) -> bytes:
        """See `Session.read_file`."""
        check_path("path", path)
        return (await self._call({"call": "read", "path": path}))[1][0]

    async def _call(self, header: Mapping[str, object], *blobs: bytes,
                    patience_s: float = 0.0) -> frames.Message:
        async with self._turn:
            if self._ended:
                raise SandboxError(f"the session has ended: {self._ended}")
            try:
                async with asyncio.timeout(patience_s + GRACE_S):
                    reply = await self._machine.exchange(header, blobs)
            except (UserError, SandboxError, OSError) as error:
                if isinstance(error, SandboxError | TimeoutError):
                    self._end(str(error) or "no answer in time")
                raise
            except BaseException:  # an answer may still be on its way: nobody could tell whose it is
                self._end("a request was broken off")
                raise
            if reply is None:
                self._end("its machine was lost")
                raise SandboxError("the session has ended: its machine was lost")
            return reply

    def _end(self, reason: str) -> None:
        if self._ended is None:
            self._ended = reason
            self._pool.discard(self._machine)
            self._open_sessions.release()

    async def close(self) -> None:
        """See `Session.close`."""
        self._end("it was closed")


def _failures() -> tuple[type[Exception], ...]:
    """Return what the SDK raises where the service, or the way to it, fails."""
    from e2b import exceptions
    from httpx import HTTPError

    return exceptions.SandboxException, exceptions.AuthenticationException, HTTPError, ConnectionError


def _reason(error: Exception) -> str:
    return str(error).strip() or type(error).__name__


@functools.cache
def _archive() -> bytes:
    """Return as a zip file those parts of this package that the program in the machine needs."""
    folder = Path(base.__file__).parent
    package = folder.parent
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{package.name}/__init__.py", "")  # the package's own imports all of its parts
        for path in [package / "errors.py", *sorted(folder.rglob("*.py"))]:
            archive.writestr(str(path.relative_to(package.parent)), path.read_bytes())
    return buffer.getvalue()
