"""What only the E2B sandbox promises, against a service on this machine that speaks E2B's protocol."""

from __future__ import annotations

import asyncio
import importlib.metadata
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("e2b_code_interpreter", reason="the extra `e2b` is not installed")

from turncredit.errors import MissingExtra, UserError
from turncredit.sandboxes import KilledBy, Limits, Sandbox, SandboxError
from turncredit.sandboxes import e2b as home


def opened(e2b: Any, **settings: Any) -> Any:
    return home.open_sandbox(**{**e2b.settings, **settings})


def test_no_key_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("E2B_API_KEY", raising=False)
    with pytest.raises(UserError, match="set E2B_API_KEY"):
        asyncio.run(Sandbox.open("e2b"))


def test_a_wrong_key_is_one_sentence(e2b: Any) -> None:
    with pytest.raises(UserError, match="Invalid API key"):
        asyncio.run(opened(e2b, api_key="e2b_" + "1" * 40))


def test_a_service_out_of_reach_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("E2B_API_KEY", "e2b_" + "0" * 40)
        monkeypatch.setenv("E2B_API_URL", url)
        with pytest.raises(UserError, match=f"no sandbox can be had at {url}"):
            asyncio.run(Sandbox.open("e2b"))


def test_the_environment_names_the_service(e2b: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("E2B_API_KEY", e2b.settings["api_key"])
    monkeypatch.setenv("E2B_API_URL", e2b.settings["api_url"])
    monkeypatch.setenv("E2B_SANDBOX_URL", e2b.settings["sandbox_url"])

    async def main() -> str:
        async with await Sandbox.open("e2b") as sandbox:
            return (await sandbox.run("print('there')")).stdout

    assert asyncio.run(main()) == "there\n"


@pytest.mark.parametrize(("version", "refused"), [
    ("2.37.9", False), ("2.38.0", True), ("2.38.4", True), ("2.39.0", True), ("2.39.1", False)])
def test_versions_that_fail_in_every_execution_are_refused(
        monkeypatch: pytest.MonkeyPatch, version: str, refused: bool) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    if refused:
        with pytest.raises(UserError, match=rf"e2b {version} is installed"):
            home.check_sdk()
    else:
        home.check_sdk()


def test_without_the_sdk_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(MissingExtra, match=r"turncredit\[e2b\]"):
        asyncio.run(Sandbox.open("e2b"))


@pytest.mark.parametrize(("settings", "said"), [
    ({"slots": 0}, "slots is 0"), ({"lifetime_s": 5}, "lifetime_s is 5"),
    ({"preload": ["no_such_module"]}, "no_such_module"), ({"minimum": ["magic"]}, "minimum names 'magic'"),
    ({"limits": Limits(memory_bytes=1 << 50)}, "limits.memory_bytes"),
])
def test_bad_settings_are_one_sentence(e2b: Any, settings: dict[str, Any], said: str) -> None:
    before = set(e2b.machines)
    with pytest.raises(UserError, match=said):
        asyncio.run(opened(e2b, **settings))
    assert not e2b_machines(e2b, before, lambda machines: not machines)


def e2b_machines(e2b: Any, before: set[str], settled: Callable[[set[str]], bool]) -> set[str]:
    """Return the machines made since, once they are as they should be, or after a while."""
    until = time.monotonic() + 5
    while not settled(machines := set(e2b.machines) - before) and time.monotonic() < until:
        time.sleep(0.02)
    return machines


def test_a_template_that_can_not_serve_is_one_sentence(e2b: Any, tmp_path: Path) -> None:
    (tmp_path / "python3").write_text("#!/bin/sh\necho 'the template has Python 3.8' >&2\nexit 1\n")
    (tmp_path / "python3").chmod(0o755)
    e2b.path = f"{tmp_path}:{e2b.path}"
    try:
        with pytest.raises(UserError, match=r"the template has Python 3\.8"):
            asyncio.run(opened(e2b))
    finally:
        e2b.path = e2b.path.partition(":")[2]


def test_machines_have_no_network_unless_asked(e2b: Any) -> None:
    async def main() -> None:
        async with await opened(e2b, template="some-template") as sandbox:
            await sandbox.run("pass", limits=Limits(network=True))

    e2b.made.clear()
    asyncio.run(main())
    assert [made["allow_internet_access"] for made in e2b.made] == [False, True]
    assert {made["templateID"] for made in e2b.made} == {"some-template"}
    assert all(made["timeout"] == 300 for made in e2b.made)


def test_a_machine_that_does_not_answer_is_discarded(e2b: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home, "GRACE_S", 0.3)

    async def main() -> tuple[set[str], set[str], str]:
        async with await opened(e2b) as sandbox:
            first = set(e2b.machines) - before
            e2b.silent = True
            with pytest.raises(SandboxError, match="no answer"):
                await sandbox.run("print(1)", limits=Limits(wall_s=0.2))
            e2b.silent = False
            stdout = (await sandbox.run("print(2)")).stdout
            return first, set(e2b.machines) - before, stdout

    before = set(e2b.machines)
    try:
        first, later, stdout = asyncio.run(main())
    finally:
        e2b.silent = False
    assert stdout == "2\n" and len(first) == len(later) == 1 and not first & later


def test_a_time_out_inside_keeps_the_machine(e2b: Any) -> None:
    async def main() -> tuple[set[str], set[str], KilledBy | None]:
        async with await opened(e2b) as sandbox:
            first = set(e2b.machines) - before
            cut = (await sandbox.run("while True: pass", limits=Limits(wall_s=0.2))).killed_by
            return first, set(e2b.machines) - before, cut

    before = set(e2b.machines)
    first, later, cut = asyncio.run(main())
    assert cut is KilledBy.WALL and first == later


def test_an_execution_whose_machine_is_lost_runs_again(e2b: Any) -> None:
    async def main() -> str:
        async with await opened(e2b) as sandbox:
            running = asyncio.create_task(sandbox.run("import time; time.sleep(0.5); print('once')"))
            await asyncio.sleep(0.2)
            for machine in set(e2b.machines) - before:
                await asyncio.to_thread(e2b.kill, machine)
            return (await running).stdout

    before = set(e2b.machines)
    assert asyncio.run(main()) == "once\n"


def test_a_session_whose_machine_is_lost_has_ended(e2b: Any) -> None:
    async def main() -> None:
        async with await opened(e2b) as sandbox, await sandbox.session() as session:
            assert (await session.run("x = 1; x")).value == "1"
            for machine in set(e2b.machines) - before:
                await asyncio.to_thread(e2b.kill, machine)
            with pytest.raises(SandboxError, match="the session has ended"):
                await session.run("x")

    before = set(e2b.machines)
    asyncio.run(main())


def test_machines_live_little_longer_than_their_owner(e2b: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home, "LEAST_LIFETIME_S", 1)

    async def main() -> str:
        sandbox = await opened(e2b, lifetime_s=3)
        first = set(e2b.machines) - before
        await asyncio.sleep(4)
        assert set(e2b.machines) - before == first
        return (await sandbox.run("print('alive')")).stdout  # and never closes it: what prolongs its life ends

    before = set(e2b.machines)
    assert asyncio.run(main()) == "alive\n"
    assert not e2b_machines(e2b, before, lambda machines: not machines)


def test_close_kills_every_machine(e2b: Any) -> None:
    async def main() -> None:
        sandbox = await opened(e2b, slots=2)
        session = await sandbox.session()
        await session.run("x = 1")
        busy = asyncio.create_task(sandbox.run("import time; time.sleep(60)"))
        await asyncio.sleep(0.2)
        assert len(set(e2b.machines) - before) == 3
        await sandbox.close()
        with pytest.raises(SandboxError):
            await busy

    before = set(e2b.machines)
    asyncio.run(main())
    assert set(e2b.machines) == before


def test_large_inputs_and_outputs_pass(e2b: Any) -> None:
    data = bytes(range(256)) * 16_000

    async def main() -> tuple[int, dict[str, bytes]]:
        async with await opened(e2b) as sandbox:
            result = await sandbox.run(
                "import sys, shutil; shutil.copy('a', 'b'); print(len(sys.stdin.buffer.read()))",
                stdin=data, files={"a": data}, collect=["b"])
            return int(result.stdout), dict(result.files)

    assert asyncio.run(main()) == (len(data), {"b": data})
