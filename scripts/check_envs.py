"""Hold every environment that we ship to the contract: `python scripts/check_envs.py [NAME …]`.

Each is a `turncredit envs check` of its own; prints a line for each, and the rows that fail. An environment whose
package is not installed is named and left out. OpenEnv's server, the taskset of `verifiers` and AppWorld's stand-in are
those of the tests. Exit code 1 where a row fails.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from turncredit.envs import list_envs
from turncredit.envs.adapters.agentdojo import SUITES
from turncredit.envs.adapters.tau2 import DOMAINS

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests" / "envs" / "adapters"
PROBLEM = {"task_id": "T/{n}", "prompt": "def add_{n}(a: int) -> int:\n    \"\"\"The number plus {n}.\"\"\"\n",
           "canonical_solution": "    return a + {n}\n", "entry_point": "add_{n}",
           "test": "def check(f):\n    assert f(1) == 1 + {n}\n    assert f(-7) == {n} - 7\n"}
# Arguments that are checked besides none; an environment that is not named here is checked without any.
ARGUMENTS: dict[str, list[dict[str, Any]]] = {
    "FrozenLake": [{}, {"slippery": True}],
    "MiniGrid": [{}, {"env": "MiniGrid-DoorKey-5x5-v0"}],
    "ReasoningGym": [{}, {"task": "base_conversion"}, {"task": "countdown"}],
    "TextArena": [{}, {"game": "Minesweeper-v0", "ood": "Minesweeper-v0-hard"},
                  {"game": "Sudoku-v0-easy", "ood": "Sudoku-v0"}],
    "BFCL": [{"category": name} for name in ("base", "miss_func", "miss_param", "long_context")],
    "Tau2": [{"domain": one, "ood_domain": other} for one, other in zip(DOMAINS, (*DOMAINS[1:], DOMAINS[0]))],
    "AgentDojo": [{"suite": one, "ood_suite": other} for one, other in zip(SUITES, (*SUITES[1:], SUITES[0]))],
    "ScienceWorld": [{}, {"tasks": ["find-plant", "lifespan-longest-lived"], "ood_tasks": ["find-animal"]}],
}


def main(names: list[str]) -> int:
    """Check and print."""
    wanted = [id for id in list_envs() if not names or id.partition("/")[2].partition("-")[0] in names]
    counts = {"hold": 0, "fail": 0, "left out": 0}
    with tempfile.TemporaryDirectory() as folder:
        for id in wanted:
            name = id.partition("/")[2].removesuffix("-v0")
            with _given(name, Path(folder)) as (more, variables):
                for arguments in ARGUMENTS.get(name, [{}]):
                    verdict = _check(id, arguments | more, arguments, variables)
                    counts[verdict] += 1
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return bool(counts["fail"])


def _check(id: str, arguments: dict[str, Any], shown: dict[str, Any], variables: dict[str, str]) -> str:
    began = time.monotonic()
    command = [sys.executable, "-m", "turncredit.cli", "envs", "check", id, "--json", "--deadline", "60", "--arguments",
               json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | variables)
    title = f"{id} {json.dumps(shown) if shown else ''}".strip()
    if not done.stdout.strip():
        print(f"{title}: left out: {' '.join(done.stderr.split())[-300:]}", flush=True)
        return "left out"
    findings = json.loads(done.stdout.splitlines()[-1])
    rows = {verdict: [one for one in findings if one["verdict"] == verdict] for verdict in ("pass", "fail", "skip")}
    print(f"{title}: {len(rows['pass'])} rows hold, {len(rows['fail'])} fail, {len(rows['skip'])} do not apply "
          f"({time.monotonic() - began:.0f} s)", flush=True)
    for one in rows["fail"]:
        print(f"    {one['row']}: {one['detail']}", flush=True)
    return "fail" if rows["fail"] else "hold"


@contextmanager
def _given(name: str, folder: Path) -> Iterator[tuple[dict[str, Any], dict[str, str]]]:
    """What an environment needs that has no default: arguments and variables."""
    if name == "Questions":
        data = folder / "questions.jsonl"
        rows = ({"question": f"What is {n} times {n + 3}?", "answer": str(n * (n + 3))} for n in range(11, 90))
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        yield {"data": str(data)}, {}
    elif name == "CodeProblems":
        data = folder / "problems.jsonl"
        data.write_text("".join(json.dumps({key: text.replace("{n}", str(n)) for key, text in PROBLEM.items()}) + "\n"
                                for n in range(2, 60)))
        yield {"data": str(data)}, {}
    elif name == "Verifiers":
        yield {"taskset": "verifiers_vault", "ood_config": {"low": 500}}, {"PYTHONPATH": _path(TESTS)}
    elif name == "AppWorld":
        subprocess.run([sys.executable, str(TESTS / "appworld_data.py"), str(folder / "appworld")], check=True)
        yield ({"python": sys.executable, "root": str(folder / "appworld")},
               {"PYTHONPATH": _path(TESTS / "appworld_standin")})
    elif name == "OpenEnv":
        with _openenv_server() as url:
            yield {"url": url}, {}
    else:
        yield {}, {}


def _path(more: Path) -> str:
    return os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(more))))


@contextmanager
def _openenv_server() -> Iterator[str]:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, str(TESTS / "openenv_server.py"), str(port)], stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 90
        while time.monotonic() < until and server.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
