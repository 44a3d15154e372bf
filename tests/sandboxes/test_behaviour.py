"""What every sandbox does, whichever home it has."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from turncredit.cli import main
from turncredit.errors import UserError
from turncredit.sandboxes import KilledBy, Limits, Sandbox, SandboxError

if TYPE_CHECKING:
    from tests.sandboxes.conftest import Driven


def test_output_and_exit_code_come_back(sandbox: Driven) -> None:
    result = sandbox.run("import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)")
    assert (result.stdout, result.stderr, result.exit, result.killed_by) == ("out\n", "err\n", 7, None)
    assert not result.truncated
    assert result.value is None
    assert result.files == {}


def test_an_exception_is_a_traceback_and_exit_code_1(sandbox: Driven) -> None:
    result = sandbox.run("""
        def f():
            return 1 / 0
        f()
    """)
    assert result.exit == 1
    assert "line 3, in f" in result.stderr
    assert result.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_a_syntax_error_is_the_codes_own_failure(sandbox: Driven) -> None:
    result = sandbox.run("def f(:\n")
    assert result.exit == 1
    assert "SyntaxError" in result.stderr


def test_code_runs_as_main(sandbox: Driven) -> None:
    result = sandbox.run("""
        if __name__ == '__main__':
            import sys, __main__
            x = 1
            print(__main__.x, len(sys.argv))
    """)
    assert result.stdout == "1 1\n"


def test_what_is_registered_at_exit_runs(sandbox: Driven) -> None:
    code = """
        import atexit, threading, time
        atexit.register(print, 'last')
        threading.Thread(target=lambda: (time.sleep(0.05), print('thread'))).start()
    """
    assert sandbox.run(code).stdout == "thread\nlast\n"


@pytest.mark.parametrize(("code", "exit"), [
    ("raise SystemExit", 0), ("raise SystemExit('no')", 1), ("import os; os._exit(9)", 9), ("x = 3", 0),
    ("import sys; sys.exit(256 + 3)", 3),
])
def test_every_way_out_gives_its_exit_code(sandbox: Driven, code: str, exit: int) -> None:
    assert sandbox.run(code).exit == exit


def test_a_program_runs_by_its_argv(sandbox: Driven) -> None:
    result = sandbox.run(argv=["sh", "-c", "echo $0 $1; exit 3", "a b", "c"])
    assert (result.stdout, result.exit) == ("a b c\n", 3)


def test_python_runs_by_its_argv(sandbox: Driven) -> None:
    result = sandbox.run(argv=["python3", "-c", "import sys; print(sys.argv[1:], 6 * 7)", "x"])
    assert result.stdout == "['x'] 42\n"


def test_a_program_that_does_not_exist_is_exit_code_127(sandbox: Driven) -> None:
    result = sandbox.run(argv=["no-such-program"])
    assert result.exit == 127
    assert "no-such-program" in result.stderr


@pytest.mark.parametrize("size", [0, 10, 3_000_000])
def test_standard_input_arrives_whole(sandbox: Driven, size: int) -> None:
    result = sandbox.run("import sys; print(len(sys.stdin.buffer.read()))", stdin=b"x" * size)
    assert result.stdout == f"{size}\n"


def test_input_that_nobody_reads_holds_nothing_up(sandbox: Driven) -> None:
    assert sandbox.run("print('done')", stdin=b"x" * 3_000_000).stdout == "done\n"


def test_files_go_in_and_come_out(sandbox: Driven) -> None:
    result = sandbox.run(
        """
        data = open('in/deep/a.bin', 'rb').read()
        open('out.bin', 'wb').write(data[::-1])
    """, files={"in/deep/a.bin": bytes(range(256))}, collect=["out.bin", "missing", "in"])
    assert result.exit == 0, result.stderr
    assert result.files == {"out.bin": bytes(range(256))[::-1]}


def test_all_the_files_that_the_limits_allow_fit(sandbox: Driven) -> None:
    files = {f"f{number}": bytes(60_000) for number in range(64)}
    result = sandbox.run("import os; print(sum(os.path.getsize(name) for name in os.listdir()))", files=files)
    assert result.stdout == f"{64 * 60_000}\n"


def test_a_file_beside_the_code_can_be_imported(sandbox: Driven) -> None:
    assert sandbox.run("import beside; print(beside.x)", files={"beside.py": b"x = 5"}).stdout == "5\n"


def test_each_run_starts_clean(sandbox: Driven) -> None:
    sandbox.run("open('left.txt', 'w').write('x'); import json; json.loads = None")
    for _ in range(4):  # more than there are slots
        result = sandbox.run("import os, json; print(os.listdir('.'), json.loads('1'))")
        assert result.stdout == "[] 1\n"


def test_wall_time_ends_a_run(sandbox: Driven) -> None:
    began = time.monotonic()
    result = sandbox.run("""
        import time
        print('before', flush=True)
        time.sleep(60)
    """, limits=replace(sandbox.limits, wall_s=0.5))
    assert (result.killed_by, result.exit, result.stdout) == (KilledBy.WALL, None, "before\n")
    assert 0.4 < result.wall_s < 5
    assert time.monotonic() - began < 10


def test_cpu_time_ends_a_run(sandbox: Driven) -> None:
    result = sandbox.run("while True: pass", limits=replace(sandbox.limits, cpu_s=0.5))
    assert (result.killed_by, result.exit) == (KilledBy.CPU, None)
    assert 0.4 < result.cpu_s < 3


def test_memory_ends_a_run(sandbox: Driven) -> None:
    result = sandbox.run("x = [bytearray(1 << 20) for _ in range(400)]")
    assert (result.killed_by, result.exit) == (KilledBy.MEMORY, None)


def test_memory_below_the_limit_is_there_and_is_reported(sandbox: Driven) -> None:
    result = sandbox.run("x = [bytearray(1 << 20) for _ in range(60)]; print(len(x))")
    assert result.stdout == "60\n", result
    assert 50 << 20 < result.peak_bytes < 128 << 20


def test_a_crash_is_a_signal(sandbox: Driven) -> None:
    result = sandbox.run("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert (result.killed_by, result.exit) == (KilledBy.SIGNAL, None)


def test_output_is_cut_at_the_limit_with_a_mark(sandbox: Driven) -> None:
    result = sandbox.run("import sys; sys.stdout.write('y' * 50_000); sys.stderr.write('z')")
    assert result.truncated
    assert result.exit == 0
    assert result.stdout.startswith("y" * 20_000 + "\n[")
    assert len(result.stdout) < 20_100
    assert result.stderr == "z"


def test_threads_and_processes_work(sandbox: Driven) -> None:
    code = """
        from concurrent.futures import ThreadPoolExecutor, ProcessPoolExecutor
        import multiprocessing, subprocess
        with ThreadPoolExecutor(4) as pool: print(sum(pool.map(abs, range(10))))
        with ProcessPoolExecutor(2, multiprocessing.get_context('fork')) as pool:
            print(sum(pool.map(abs, range(10))))
        print(subprocess.run(['echo', 'hi'], capture_output=True, text=True).stdout)
    """
    result = sandbox.run(code)
    assert result.stdout == "45\n45\nhi\n\n", result.stderr


def test_asyncio_works(sandbox: Driven) -> None:
    code = """
        import asyncio
        async def f():
            await asyncio.sleep(0)
            print('awake')
        asyncio.run(f())
    """
    assert sandbox.run(code).stdout == "awake\n"


def test_numpy_is_there_where_it_is_installed(sandbox: Driven) -> None:
    pytest.importorskip("numpy")
    result = sandbox.run("import numpy; print(numpy.arange(4).sum())")
    if sandbox.home == "local":
        assert result.stdout == "6\n", result.stderr


def test_runs_go_on_at_the_same_time(sandbox: Driven) -> None:
    async def three() -> float:
        began = time.monotonic()
        await asyncio.gather(*(sandbox.sandbox.run("import time; time.sleep(1)") for _ in range(4)))
        return time.monotonic() - began

    assert sandbox.runner.run(three()) < 3.5


@pytest.mark.parametrize("arguments", [
    {}, {"code": "x", "argv": ["x"]}, {"argv": []}, {"argv": ["a\0b"]}, {"code": "x", "files": {"../x": b""}},
    {"code": "x", "files": {"/x": b""}}, {"code": "x", "collect": ["a/../../x"]},
    {"code": "x", "collect": [""]},
    {"code": "x", "files": {"x": bytes(5 << 20)}}, {"code": "x", "files": {str(i): b"" for i in range(65)}},
    {"code": "x", "files": {f"{i}/x": b"" for i in range(40)}},
    {"code": "x", "files": {"a": b"", "a/b": b""}},
])
def test_a_request_without_sense_is_refused(sandbox: Driven, arguments: dict[str, object]) -> None:
    with pytest.raises(UserError):
        sandbox.run(**arguments)


# Sessions


def test_a_session_keeps_its_state(sandbox: Driven) -> None:
    with sandbox.session() as session:
        assert session.run("x = 20").value is None
        assert session.run("""
        def f(y):
            return x + y
    """).exit == 0
        assert session.run("f(22)").value == "42"


def test_a_cell_gives_the_last_expressions_value(sandbox: Driven) -> None:
    with sandbox.session() as session:
        result = session.run("""
        print('said')
        'a' + 'b'
    """)
        assert (result.stdout, result.value, result.exit) == ("said\n", "'ab'", 0)
        assert session.run("None").value is None
        assert session.run("""
        1
        y = 2
    """).value is None
        assert session.run("").value is None


def test_a_session_survives_an_error(sandbox: Driven) -> None:
    with sandbox.session() as session:
        result = session.run("""
        x = 1
        x / 0
    """)
        assert result.exit == 1
        assert "ZeroDivisionError" in result.stderr
        assert session.run("x").value == "1"


def test_a_session_ends_with_a_time_out(sandbox: Driven) -> None:
    with sandbox.session() as session:
        code = """
        print('before', flush=True)
        while True: pass
    """
        result = session.run(code, limits=replace(sandbox.limits, wall_s=0.5))
        assert (result.killed_by, result.stdout) == (KilledBy.WALL, "before\n")
        with pytest.raises(SandboxError, match="ended"):
            session.run("1")


def test_a_session_ends_with_a_crash(sandbox: Driven) -> None:
    with sandbox.session() as session:
        result = session.run("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
        assert result.killed_by == KilledBy.SIGNAL
        with pytest.raises(SandboxError, match="ended"):
            session.run("1")


def test_a_session_has_a_working_folder(sandbox: Driven) -> None:
    with sandbox.session() as session:
        session.write_file("data/in.txt", b"\x00\xffabc")
        assert session.run("open('data/in.txt', 'rb').read()[-3:]").value == "b'abc'"
        session.run("open('out.txt', 'w').write('made inside')")
        assert session.read_file("out.txt") == b"made inside"
        with pytest.raises(FileNotFoundError):
            session.read_file("missing")
        assert session.run("1").value == "1"


def test_each_cell_is_limited_by_itself(sandbox: Driven) -> None:
    with sandbox.session(replace(sandbox.limits, cpu_s=1)) as session:
        for _ in range(4):
            code = """
        import time
        until = time.process_time() + 0.4
        while time.process_time() < until: pass
    """
            assert session.run(code).exit == 0


def test_a_cells_output_and_value_are_cut_with_a_mark(sandbox: Driven) -> None:
    with sandbox.session() as session:
        result = session.run("""
        print('p' * 30_000)
        'v' * 30_000
    """)
        assert result.truncated
        assert result.stdout.startswith("p" * 20_000 + "\n[")
        assert result.value is not None
        assert len(result.value) < 20_100
        assert not session.run("1").truncated


def test_sessions_do_not_share_state(sandbox: Driven) -> None:
    with sandbox.session() as one, sandbox.session() as other:
        one.run("x = 1")
        assert other.run("x").exit == 1
        assert one.run("x").value == "1"


def test_a_closed_session_says_so(sandbox: Driven) -> None:
    with sandbox.session() as session:
        pass
    with pytest.raises(SandboxError, match="ended"):
        session.run("1")


# Opening


def test_an_unknown_home_is_named_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"did you mean 'docker'.*local, docker, e2b"):
        asyncio.run(Sandbox.open("dokcer"))


def test_an_unknown_setting_is_named_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"'slot' is unknown.*did you mean 'slots'"):
        asyncio.run(Sandbox.open("local", slot=3))


@pytest.mark.parametrize("limits", [
    {"wall_s": 0}, {"memory_bytes": -1}, {"cpu_s": float("nan")}, {"files": 0}, {"processes": 2.5},
    {"output_bytes": "much"}, {"network": "yes"}, {"file_bytes": True},
])
def test_a_limit_that_bounds_nothing_is_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"limits.{next(iter(limits))} is .*: it must be"):
        Limits(**limits)


def test_a_configurations_limits_are_read_or_refused() -> None:
    assert Limits.of({"wall_s": 3, "network": True}) == Limits(wall_s=3, network=True)
    for given, sentence in (({"wal_s": 3}, "limits.wal_s is unknown; did you mean 'wall_s'"), (3, "limits is 3: "),
                            ({"files": "few"}, "limits.files is 'few': it must be a whole number above 0")):
        with pytest.raises(UserError, match=sentence):
            asyncio.run(Sandbox.open("local", limits=given))


def test_the_check_names_the_nearest_home(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["turncredit", "sandbox", "check", "dokcer"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert capsys.readouterr().err == ("error: sandbox 'dokcer' is unknown; did you mean 'docker'? "
                                       "(known: local, docker, e2b)\n")
