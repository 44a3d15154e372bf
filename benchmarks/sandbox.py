"""Latency and throughput of each sandbox home, against a fresh Python and against a bare fork, in one run.

    python benchmarks/sandbox.py [HOME ...] [--rounds N] [--seconds S]

The peers do the same work without any wall: `subprocess.run([python, "-I", "-S", "-c", "pass"])`, and a fork
of an interpreter as warm as the sandbox's zygote, with a pipe for its output. They take turns with the homes,
so that other load on the machine hits all alike: read the ratios. Without a key of E2B's, its home is measured
against the tests' service on this machine: what the SDK and the protocol cost, without the way to the service.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import runpy
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from processes import descendants, memory_bytes
from rich.console import Console
from rich.table import Table

from turncredit.errors import UserError
from turncredit.sandboxes import Sandbox
from turncredit.sandboxes.local import PRELOAD

CORES = len(os.sched_getaffinity(0))
IDLE_POOL = 8
SETTINGS: dict[str, dict[str, Any]] = {
    "local": {"slots": 2 * CORES}, "docker": {"slots": CORES}, "e2b": {"slots": CORES}}
SERVICE = Path(__file__).parents[1] / "tests" / "sandboxes" / "e2b_service.py"

WARM = (*PRELOAD, "ctypes", "fcntl", "resource", "select", "socket", "struct", "threading", "traceback")
# A warm interpreter that forks once for each line it reads: what the zygote would cost without walls.
BARE_FORK = f"""
import gc, importlib, os, sys
for name in {WARM}:
    importlib.import_module(name)
gc.collect()
gc.freeze()
for line in sys.stdin:
    out, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(write, 1)
        exec(compile("pass", "main.py", "exec"), {{"__name__": "__main__"}})
        sys.stdout.flush()
        os._exit(0)
    os.close(write)
    while os.read(out, 65536):
        pass
    os.close(out)
    os.waitpid(child, 0)
    print("done", flush=True)
"""


class BareForks:
    """One warm interpreter a worker, asked over a pipe."""

    def __init__(self, workers: int) -> None:
        command = [sys.executable, "-S", "-s", "-P", "-c", BARE_FORK]
        self.idle = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
                     for _ in range(workers)]
        self.all = list(self.idle)

    async def run(self) -> None:
        process = self.idle.pop()
        assert process.stdin and process.stdout
        process.stdin.write(b"\n")
        process.stdin.flush()
        ready = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(process.stdout, ready.set)
        await ready.wait()
        loop.remove_reader(process.stdout)
        process.stdout.readline()
        self.idle.append(process)

    def close(self) -> None:
        for process in self.all:
            process.communicate()


async def fresh_python() -> None:
    await asyncio.to_thread(subprocess.run, [sys.executable, "-I", "-S", "-c", "pass"], check=True)


async def latencies_ms(run: Callable[[], Awaitable[None]], rounds: int) -> list[float]:
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        await run()
        taken.append((time.perf_counter() - began) * 1000)
    return taken


async def per_second(run: Callable[[], Awaitable[None]], seconds: float) -> float:
    """Return executions a second with one worker a core."""
    done = 0
    began = time.perf_counter()

    async def work() -> None:
        nonlocal done
        while time.perf_counter() < began + seconds:
            await run()
            done += 1

    await asyncio.gather(*(work() for _ in range(CORES)))
    return done / (time.perf_counter() - began)


async def idle_memory_mb() -> float:
    """Return the memory (PSS) of a local pool of eight that waits."""
    async with await Sandbox.open("local", slots=IDLE_POOL) as sandbox:
        await asyncio.gather(*(sandbox.run("pass") for _ in range(IDLE_POOL)))
        await asyncio.sleep(0.5)
        return memory_bytes(descendants(os.getpid())) / 1e6


async def measure(homes: list[str], rounds: int, seconds: float) -> dict[str, Any]:
    console = Console(width=100)
    memory = await idle_memory_mb()
    sandboxes: dict[str, Sandbox] = {}
    service = None
    for home in homes:
        settings = SETTINGS[home]
        if home == "e2b" and not os.environ.get("E2B_API_KEY"):
            service = runpy.run_path(str(SERVICE))["Service"]()
            settings = settings | service.settings
        try:
            sandboxes[home] = await Sandbox.open(home, **settings)
        except UserError as error:
            console.print(f"{home} is left out: {error}")
    bare = BareForks(CORES)

    def runner(sandbox: Sandbox) -> Callable[[], Awaitable[None]]:
        async def run() -> None:
            result = await sandbox.run("pass")
            assert result.exit == 0, result

        return run

    runs: dict[str, Callable[[], Awaitable[None]]] = {
        "fresh python": fresh_python, "bare fork": bare.run,
        **{home: runner(sandbox) for home, sandbox in sandboxes.items()}}
    try:
        for run in runs.values():
            await latencies_ms(run, 10)  # warm
        taken: dict[str, list[float]] = {name: [] for name in runs}
        rates: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(10):
            for name, run in runs.items():
                taken[name] += await latencies_ms(run, max(1, rounds // 10))
            for name, run in runs.items():
                rates[name].append(await per_second(run, seconds / 10))
    finally:
        bare.close()
        for sandbox in sandboxes.values():
            await sandbox.close()
        if service:
            service.close()
    figures = {name: {"p50_ms": statistics.median(taken[name]),
                      "p99_ms": statistics.quantiles(taken[name], n=100)[-1],
                      "per_s": statistics.mean(rates[name])} for name in runs}
    return {**report(console, figures), "idle_pool_of_8_mb": round(memory, 1)}


def report(console: Console, figures: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Print the table and return the figures with their ratios to the peers."""
    columns = ("p50 ms", "p99 ms", f"per s, {CORES} workers", "p50 of bare fork / own", "per s / bare fork's",
               "per s / fresh python's")
    table = Table("", *columns)
    bare, fresh = figures["bare fork"], figures["fresh python"]
    for name, own in figures.items():
        own["speed_of_bare_fork"] = bare["p50_ms"] / own["p50_ms"]
        own["rate_of_bare_fork"] = own["per_s"] / bare["per_s"]
        own["rate_of_fresh_python"] = own["per_s"] / fresh["per_s"]
        table.add_row(name, *(f"{value:.2f}" for value in own.values()))
    console.print(table)
    return {name: {key: round(value, 2) for key, value in own.items()} for name, own in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("homes", nargs="*", default="local", choices=list(SETTINGS))
    parser.add_argument("--rounds", type=int, default=300, help="latencies taken of each")
    parser.add_argument("--seconds", type=float, default=5, help="of throughput measured of each")
    asked = parser.parse_args()
    homes = [asked.homes] if isinstance(asked.homes, str) else asked.homes
    print(json.dumps(asyncio.run(measure(homes, asked.rounds, asked.seconds))))


if __name__ == "__main__":
    main()
