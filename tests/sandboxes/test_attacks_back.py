"""Attacks through what comes back, and on the sandbox itself. Each gains nothing; its honest twin works."""

from __future__ import annotations

from dataclasses import replace
from textwrap import indent
from typing import TYPE_CHECKING

import pytest

from turncredit.sandboxes import KilledBy, Result

if TYPE_CHECKING:
    from tests.sandboxes.conftest import Driven


def test_links_to_host_files_are_not_collected(walled: Driven) -> None:
    code = """
        os.symlink('/etc/passwd', 'link')
        os.symlink('/etc', 'folder')
        os.mkfifo('pipe')
        os.mkdir('real')
        os.symlink('../../..', 'real/up')
        open('honest', 'w').write('x')
        os.symlink('honest', 'inner')
        attempt('hard link', os.link, '/etc/passwd', 'hard')
    """
    names = ["link", "folder/passwd", "pipe", "real", "real/up/etc/passwd", "inner", "hard", "honest"]
    assert walled.attack(code, collect=names).files == {"honest": b"x"}


def test_links_to_host_files_are_not_read_or_written_through(walled: Driven) -> None:
    with walled.session() as session:
        session.run("""
        import os
        os.symlink('/etc/passwd', 'link'); os.symlink('/etc', 'folder')
        os.symlink('/tmp', 'tmp'); os.mkfifo('pipe')
    """)
        for path in ("link", "folder/passwd", "pipe"):
            with pytest.raises(OSError):
                session.read_file(path)
        for path in ("link", "tmp/x", "pipe", "folder/x"):
            with pytest.raises(OSError):
                session.write_file(path, b"x")
        session.write_file("honest/file", b"x")
        assert session.read_file("honest/file") == b"x"


@pytest.mark.parametrize(("written", "seen"), [
    (r"b'a\0b'", "a\0b"), (r"b'\xff\xfe'", "\ufffd\ufffd"), (r"b'\x1b[31mred'", "\x1b[31mred"),
    (r"b'\xed\xa0\x80'", "\ufffd\ufffd\ufffd"), (r"'\N{PILE OF POO}'.encode()", "\N{PILE OF POO}"),
])
def test_output_of_odd_bytes(walled: Driven, written: str, seen: str) -> None:
    result = walled.run(f"import os; os.write(1, {written}); os.write(2, {written})")
    assert (result.stdout, result.stderr) == (seen, seen)
    result.stdout.encode()  # no surrogates
    walled.still_works("print('größe ☃')", "größe ☃\n")


def test_code_of_odd_characters(walled: Driven) -> None:
    for code in ("print('\ud800')", "x = 1\0", "\ufeffprint(1)", """
        print(1)
        print(2)
    """):
        result = walled.run(code)
        assert result.killed_by is None
        assert result.exit in (0, 1)
    walled.still_works("größe = 'naïve ☃'; print(größe)", "naïve ☃\n")


def test_segfault(walled: Driven) -> None:
    assert walled.run("import ctypes; ctypes.string_at(0)").killed_by == KilledBy.SIGNAL
    walled.still_works("print('next')", "next\n")


def test_deep_recursion(walled: Driven) -> None:
    result = walled.run("""
        def f(): return f()
        f()
    """)
    assert result.exit == 1
    assert "RecursionError" in result.stderr
    code = """
        import sys
        sys.setrecursionlimit(10**9)
        class A:
            def __repr__(self): return repr([self])
        repr(A())
    """
    result = walled.run(code)
    assert result.killed_by in (KilledBy.SIGNAL, KilledBy.MEMORY) or result.exit == 1
    walled.still_works("""
        def f(n): return n and f(n - 1)
        print(f(500))
    """, "0\n")


def test_huge_source(walled: Driven) -> None:
    result = walled.run("x = " + "(" * 100_000 + ")" * 100_000)
    assert result.exit == 1 or result.killed_by
    result = walled.run("x = [" + "1, " * 2_000_000 + "]")
    assert result.exit is not None or result.killed_by
    walled.still_works("# " + "x" * 1_000_000 + "\nprint('read')", "read\n")


@pytest.mark.parametrize("value", [
    "10 ** 5000", "[[]]", "type('A', (), {'__repr__': lambda self: 1})()", "'x' * 10_000_000",
    "type('A', (), {'__reduce__': lambda self: (exec, ('1/0',))})()", "'\\ud800'",
    "type('A', (), {'__repr__': lambda self: __import__('os')._exit(0)})()",
])
def test_bombs_as_values(walled: Driven, value: str) -> None:
    with walled.session() as session:
        result = session.run(value)
        assert result.value is None or type(result.value) is str
        assert len(result.value or "") <= walled.limits.output_bytes + 100
    with walled.session() as session:
        session.run("""
        deep = []
        for _ in range(100_000): deep = [deep]
    """)
        assert session.run("deep").exit in (0, 1, None)
    with walled.session() as session:
        assert session.run("{'a': [1, 2.5]}").value == "{'a': [1, 2.5]}"


def test_zip_bombs_come_back_as_the_bytes_they_are(walled: Driven) -> None:
    code = "import zlib; open('bomb', 'wb').write(zlib.compress(bytes(50 << 20)))"
    assert len(walled.run(code, collect=["bomb"]).files["bomb"]) < 1 << 20
    walled.still_works("import zlib; print(zlib.decompress(zlib.compress(b'honest')))", "b'honest'\n")


def test_poisoning_a_warm_zygote(walled: Driven) -> None:
    poison = """
        import builtins, json, sys, os, gc, random
        builtins.print = lambda *a: None
        json.dumps = None
        sys.modules.clear()
        sys.path[:] = []
        os.environ['X'] = 'y'
        os._exit = None
        for thing in gc.get_objects():
            if isinstance(thing, dict) and len(thing) < 3: thing.clear()
    """
    for _ in range(4):
        walled.run(poison)
    for _ in range(4):
        walled.still_works("import json, os; print(json.dumps([1]), os.environ.get('X'))", "[1] None\n")


@pytest.mark.parametrize("left", ["", "open('.hidden', 'w').close()", "open('/tmp/x', 'w').write('x' * 9999)"])
def test_marks_on_the_folders_do_not_reach_later_executions(walled: Driven, left: str) -> None:
    folders = ["/sandbox/scratch/work", "/sandbox/scratch/tmp", "/sandbox/scratch/shm"]
    mark = f"""
        import os
        for path in {folders}:
            os.utime(path, (86400, 86400))
            os.chmod(path, 0o750)
            try: os.setxattr(path, 'user.mark', b'x')
            except OSError: pass
    """
    look = f"""
        import os
        for path in {folders}:
            about = os.stat(path)
            print(oct(about.st_mode), about.st_mtime > 86400, os.listdir(path), os.listxattr(path))
    """
    fresh = "".join(f"{mode} True [] []\n" for mode in ("0o40755", "0o41777", "0o41777"))
    for _ in range(4):
        assert walled.run(mark).exit == 0
        assert walled.run(left).exit == 0
        walled.still_works(look, fresh)
        walled.still_works(look, fresh)


def test_poisoning_a_warm_session(walled: Driven) -> None:
    with walled.session() as session:
        session.run("""
        import builtins, os, sys
        builtins.repr = lambda x: 'forged'
        builtins.compile = None
    """)
        session.run("1 + 1")
    with walled.session() as session:
        assert session.run("1 + 1").value == "2"
    walled.still_works("print(repr(1))", "1\n")


def test_forging_a_sessions_answers_fools_only_the_session(walled: Driven) -> None:
    with walled.session() as session:
        code = """
        import os, struct
        for fd in range(3, 30):
            try:
                os.write(fd, struct.pack('<B?Q', 0, True, 1 << 62) + b'forged' * 1000)
            except OSError: pass
    """
        result = session.run(code, limits=replace(walled.limits, wall_s=1))
        assert len(result.value or "") <= walled.limits.output_bytes + 100
    with walled.session() as session:
        assert session.run("1 + 1").value == "2"


@pytest.mark.parametrize("code", [
    "os.kill(os.getppid(), 9)", "os.kill(1, 9)", "os._exit(1)", "os._exit(125)", "os._exit(255)",
    "os.kill(os.getpid(), 9)", "os.closerange(0, 256); os._exit(0)", "os.rename('.', '../x')",
    "os.chmod('.', 0)",
    "os.closerange(0, 256)\nwhile True: pass", "libc.prctl(4, 0)", "libc.prctl(1, 9)", "os.setsid()",
    "[os.fork() for _ in range(20)]", "open('/proc/self/comm', 'w').write(') R 1 1')",
    "os.chdir('/'); import shutil; shutil.rmtree('/sandbox', ignore_errors=True)",
    "libc.prctl(15, b'x) R 1 2 3 4 5')\ntime.sleep(0.3)",
])
def test_breaking_the_sandbox_is_the_candidates_own_failure(walled: Driven, code: str) -> None:
    # A SandboxError here would turn a bad reward into none at all.
    result = walled.hostile("try:\n" + indent(code, "    ") + "\nexcept OSError: pass",
                            limits=replace(walled.limits, wall_s=1.5))
    assert isinstance(result, Result)
    walled.still_works("open('a', 'w').write('b'); print(open('a').read())", "b\n")
