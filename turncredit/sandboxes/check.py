"""What works here: open each sandbox, try what it promises, and time it.

`turncredit sandbox check [local|docker|e2b]` prints a table a home. Its exit code is 0 where every home that
was asked for works; asked for none, all are tried and only local, the default, has to work.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, replace

from rich.console import Console
from rich.table import Table

from turncredit.errors import UserError, did_you_mean
from turncredit.sandboxes.base import KilledBy, Limits, Sandbox, SandboxError
from turncredit.sandboxes.docker import DockerSandbox
from turncredit.sandboxes.e2b import E2bSandbox
from turncredit.sandboxes.local import PROTECTIONS, LocalSandbox

HOMES = ("local", "docker", "e2b")
LIMITS = Limits(wall_s=10, cpu_s=5, memory_bytes=128 << 20, processes=16, output_bytes=10_000)
TIMES = 20  # runs that the latency is the median of


@dataclass(frozen=True, slots=True)
class Finding:
    """One row: what was tried, whether it holds, and a figure or the reason."""

    name: str
    holds: bool
    detail: str
    required: bool = True


async def check_home(home: str) -> list[Finding]:
    """Open one home and try what every sandbox promises.

    Returns:
        The findings; a single one, with the reason, where it does not open.
    """
    began = time.perf_counter()
    try:
        sandbox = await Sandbox.open(home, limits=LIMITS)
    except (UserError, SandboxError) as error:
        return [Finding("opens", False, str(error))]
    async with sandbox:
        findings = [Finding("opens", True, _ms(time.perf_counter() - began))]
        findings += _protections(sandbox)
        for name, attempt in ATTEMPTS.items():
            try:
                findings.append(Finding(name, True, await attempt(sandbox)))
            except (AssertionError, SandboxError, OSError) as error:
                findings.append(Finding(name, False, str(error) or repr(error)))
    return findings


def _protections(sandbox: Sandbox) -> list[Finding]:
    if isinstance(sandbox, DockerSandbox | E2bSandbox):
        return [Finding(f"protection: {name}", bool(found), str(found), required=False)
                for name, found in sandbox.protections.items()]
    if not isinstance(sandbox, LocalSandbox):
        return []
    obtained = sandbox.protections.obtained
    return [Finding(f"protection: {name}", name in obtained, "" if name in obtained else f"missing: {how}",
                    required=False) for name, how in PROTECTIONS.items()]


async def _runs_python(sandbox: Sandbox) -> str:
    taken = []
    for _ in range(TIMES):
        began = time.perf_counter()
        result = await sandbox.run("print(6 * 7)")
        taken.append(time.perf_counter() - began)
        _expect(result.stdout == "42\n", result)
    return f"{_ms(statistics.median(taken))} (median of {TIMES})"


async def _runs_programs(sandbox: Sandbox) -> str:
    began = time.perf_counter()
    result = await sandbox.run(argv=["sh", "-c", "cat in; echo made > out"], files={"in": b"given"},
                               collect=["out"])
    _expect(result.stdout == "given" and result.files == {"out": b"made\n"}, result)
    return _ms(time.perf_counter() - began)


async def _keeps_sessions(sandbox: Sandbox) -> str:
    began = time.perf_counter()
    async with await sandbox.session() as session:
        started = time.perf_counter()
        await session.run("x = 41")
        result = await session.run("x + 1")
        _expect(result.value == "42", result)
        return f"{_ms(started - began)} to start, {_ms((time.perf_counter() - started) / 2)} a cell"


async def _limits_time(sandbox: Sandbox) -> str:
    result = await sandbox.run("while True: pass", limits=replace(LIMITS, wall_s=0.5))
    _expect(result.killed_by == KilledBy.WALL, result)
    return f"ended after {result.wall_s:.2f} s of 0.5 s"


async def _limits_memory(sandbox: Sandbox) -> str:
    result = await sandbox.run("x = []\nwhile True: x.append(bytearray(1 << 20))")
    _expect(result.killed_by == KilledBy.MEMORY, result)
    return f"ended at {result.peak_bytes >> 20} MiB of {LIMITS.memory_bytes >> 20} MiB"


FORKS = """
import os, time
made = 0
try:
    while made < 200:
        if os.fork() == 0: time.sleep(60)
        made += 1
except OSError: pass
print(made)
"""


async def _limits_processes(sandbox: Sandbox) -> str:
    result = await sandbox.run(FORKS)
    _expect(result.stdout.strip().isdigit() and int(result.stdout) <= LIMITS.processes, result)
    return f"{result.stdout.strip()} made of {LIMITS.processes}"


async def _limits_output(sandbox: Sandbox) -> str:
    result = await sandbox.run("print('x' * 100_000)")
    _expect(result.truncated and result.exit == 0, result)
    return f"cut at {LIMITS.output_bytes} bytes"


async def _keeps_the_network_away(sandbox: Sandbox) -> str:
    result = await sandbox.run("import socket; socket.create_connection(('1.1.1.1', 53), 2)")
    _expect(result.exit != 0, result)
    return result.stderr.strip().rpartition("\n")[2]


ATTEMPTS: dict[str, Callable[[Sandbox], Awaitable[str]]] = {
    "runs Python": _runs_python, "runs programs, with files": _runs_programs,
    "keeps sessions": _keeps_sessions,
    "limits time": _limits_time, "limits memory": _limits_memory, "limits processes": _limits_processes,
    "limits output": _limits_output, "keeps the network away": _keeps_the_network_away,
}


def _expect(holds: bool, result: object) -> None:
    if not holds:
        raise AssertionError(f"unexpected: {result}")


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


def check(homes: Sequence[str] = (), console: Console | None = None, as_json: bool = False) -> int:
    """Print a table for each home (all of them where none is named), or JSON; return the exit code.

    Raises:
        UserError: an unknown home.
    """
    console = console or Console()
    for home in homes:
        if home not in HOMES:
            raise UserError(f"sandbox {home!r} is unknown{did_you_mean(home, HOMES)} (known: {', '.join(HOMES)})")
    failed, told = False, {}
    for home in homes or HOMES:
        with Console(stderr=True).status(f"trying {home}"):
            findings = asyncio.run(check_home(home))
        told[home] = [asdict(finding) for finding in findings]
        table = Table("", "", "", title=f"sandbox: {home}", show_header=False, title_justify="left")
        for finding in findings:
            mark = "[green]yes" if finding.holds else "[red]no" if finding.required else "[yellow]no"
            table.add_row(finding.name, mark, finding.detail)
        if not as_json:
            console.print(table)
        broken = any(finding.required and not finding.holds for finding in findings)
        failed |= broken and (bool(homes) or home == "local")
    if as_json:
        print(json.dumps(told))
    return int(failed)
