"""Attacks on the machine's means: memory, disk, processes, time. Each gains nothing; its honest twin works.

Limits are small in every test, so that a defence that fails does not take the machine along.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from turncredit.sandboxes import KilledBy

if TYPE_CHECKING:
    from tests.sandboxes.conftest import Driven


def test_fork_bomb(walled: Driven) -> None:
    began = time.monotonic()
    result = walled.run("""
        import os
        while True:
            try:
                os.fork()
            except OSError:
                pass
    """, limits=replace(walled.limits, wall_s=2, cpu_s=60))
    assert result.killed_by == KilledBy.WALL
    assert time.monotonic() - began < 8
    walled.alone()
    walled.still_works("""
        import os
        print(os.waitstatus_to_exitcode(os.waitpid(os.fork() or os._exit(3), 0)[1]))
    """, "3\n")


def test_fork_bomb_gets_no_more_processes_than_allowed(walled: Driven) -> None:
    code = """
        import os, time
        made = 0
        while made < 500:
            try:
                if os.fork() == 0: time.sleep(60)
                made += 1
            except BlockingIOError:
                break
        print(made)
    """
    result = walled.run(code, limits=replace(walled.limits, processes=10))
    assert result.exit == 0, result
    assert 7 <= int(result.stdout) <= 10
    walled.alone()
    walled.still_works("""
        import os
        for _ in range(5): os.fork() or os._exit(0)
        print(len([os.wait() for _ in range(5)]))
    """, "5\n", limits=replace(walled.limits, processes=10))


def test_thread_bomb(walled: Driven) -> None:
    code = """
        import threading, time
        made = 0
        try:
            while made < 500:
                threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
                made += 1
        except RuntimeError:
            pass
        print(made, flush=True)
        import os
        os._exit(0)
    """
    result = walled.run(code, limits=replace(walled.limits, processes=10))
    assert 7 <= int(result.stdout) <= 10, result
    walled.still_works("""
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(5) as threads: print(sum(threads.map(abs, range(-20, 0))))
    """, "210\n", limits=replace(walled.limits, processes=10))


def test_memory_bomb(walled: Driven) -> None:
    result = walled.run("""
        x = []
        while True: x.append(bytearray(1 << 20))
    """)
    assert result.killed_by == KilledBy.MEMORY
    assert result.peak_bytes < 3 * walled.limits.memory_bytes
    walled.still_works("print(len(bytearray(40 << 20)))", f"{40 << 20}\n")


def test_memory_bomb_spread_over_processes(walled: Driven) -> None:
    code = """
        import os, time
        for _ in range(10):
            if os.fork() == 0:
                x = [bytearray(1 << 20) for _ in range(30)]
                time.sleep(60)
        time.sleep(60)
    """
    result = walled.run(code)
    assert result.killed_by == KilledBy.MEMORY
    walled.still_works("""
        import os
        for _ in range(3):
            if os.fork() == 0:
                x = bytearray(10 << 20)
                os._exit(0)
        for _ in range(3): os.wait()
        print('done')
    """, "done\n")


def test_memory_bomb_of_shared_pages(walled: Driven) -> None:
    code = """
        import mmap
        kept = []
        for _ in range(40):
            pages = mmap.mmap(-1, 16 << 20)
            for at in range(0, 16 << 20, 4096): pages[at] = 1
            pages.madvise(mmap.MADV_DONTNEED)
            kept.append(pages)
        print('BREACH')
    """
    result = walled.run(code)
    assert "BREACH" not in result.stdout
    assert result.killed_by == KilledBy.MEMORY or "Error" in result.stderr
    walled.still_works("""
        import mmap
        with open('shared', 'w+b') as file:
            file.truncate(1 << 20)
            pages = mmap.mmap(file.fileno(), 1 << 20)
        pages[5] = 7
        pages.flush()
        print(open('shared', 'rb').read()[5])
    """, "7\n")


@pytest.mark.parametrize("folder", [".", "/tmp", "/dev/shm", "/var/tmp"])
def test_disk_fill(walled: Driven, folder: str) -> None:
    if walled.home == "local" and Path(sys.prefix).is_relative_to(folder):
        pytest.skip(f"this Python lies below {folder}, which the local sandbox therefore shows read-only")
    code = f"""
        total = 0
        try:
            for number in range(50):
                with open(f'{folder}/{{number}}', 'wb') as file:
                    total += file.write(bytes(1 << 20))
        except OSError:
            pass
        if total > 4 << 20: print('BREACH', total)
    """
    walled.attack(code)
    walled.still_works(f"open('{folder}/a', 'wb').write(bytes(1 << 20)); print('done')", "done\n")


def test_inode_fill(walled: Driven) -> None:
    code = """
        made = 0
        try:
            for number in range(10_000):
                open(f'f{number}', 'w').close()
                made += 1
        except OSError:
            pass
        if made > 70: print('BREACH', made)
    """
    walled.attack(code)
    walled.still_works("""
        for n in range(50): open(f'f{n}', 'w').close()
        print('done')
    """, "done\n")


def test_sparse_files(walled: Driven) -> None:
    result = walled.attack("""
        file = open('sparse', 'wb')
        attempt('1 TB', file.truncate, 1 << 40)
    """, collect=["sparse"])
    assert len(result.files["sparse"]) <= walled.limits.file_bytes
    walled.still_works("open('sparse', 'wb').truncate(1 << 20); print('done')", "done\n")


def test_many_sparse_files_collected(walled: Driven) -> None:
    names = [f"s{n}" for n in range(40)]
    result = walled.run(f"for name in {names}: open(name, 'wb').truncate(4 << 20)", collect=names)
    assert sum(map(len, result.files.values())) <= walled.limits.file_bytes
    names = names[:5]
    result = walled.run(f"for name in {names}: open(name, 'wb').truncate(4096)", collect=names)
    assert result.files == dict.fromkeys(names, bytes(4096))


def test_memory_files(walled: Driven) -> None:
    code = """
        import os
        kept = []
        for _ in range(100):
            file = os.memfd_create('x')
            os.write(file, bytes(4 << 20))
            kept.append(file)
        print('BREACH')
    """
    result = walled.run(code)
    assert "BREACH" not in result.stdout
    assert result.killed_by == KilledBy.MEMORY or "Error" in result.stderr
    walled.still_works("import tempfile; print(tempfile.TemporaryFile().write(b'abc'))", "3\n")


def test_descriptors(walled: Driven) -> None:
    code = """
        kept = []
        try:
            while len(kept) < 5000: kept.append(os.open('/dev/null', os.O_RDONLY))
        except OSError:
            pass
        if len(kept) >= 1000: print('BREACH', len(kept))
        for fd in kept: os.close(fd)
    """
    walled.attack(code)
    walled.still_works("kept = [open('/dev/null') for _ in range(100)]; print(len(kept))", "100\n")


def test_endless_output(walled: Driven) -> None:
    result = walled.run("while True: print('x' * 1000)", limits=replace(walled.limits, wall_s=1))
    assert result.killed_by == KilledBy.WALL
    assert result.truncated
    assert len(result.stdout) < walled.limits.output_bytes + 100
    walled.still_works("print('x' * 1000)", "x" * 1000 + "\n")


def test_endless_output_of_many_processes(walled: Driven) -> None:
    code = """
        import os
        for _ in range(3): os.fork()
        while True: os.write(2, b'y' * 65536)
    """
    result = walled.run(code, limits=replace(walled.limits, wall_s=1, cpu_s=60))
    assert result.killed_by == KilledBy.WALL
    assert len(result.stderr) < walled.limits.output_bytes + 100
    walled.alone()
    walled.still_works("""
        import os
        for _ in range(3):
            if os.fork() == 0: os._exit(os.write(1, b'y') - 1)
            os.wait()
    """, "yyy")


def test_loop_that_ignores_every_signal(walled: Driven) -> None:
    code = """
        import signal
        for number in range(1, 65):
            try:
                signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError):
                pass
        while True: pass
    """
    assert walled.run(code, limits=replace(walled.limits, wall_s=1)).killed_by == KilledBy.WALL
    assert walled.run(code, limits=replace(walled.limits, cpu_s=1)).killed_by == KilledBy.CPU
    walled.still_works("import signal; signal.signal(2, signal.SIG_IGN); print('done')", "done\n")


def test_sleep(walled: Driven) -> None:
    result = walled.run("import time; time.sleep(1e6)", limits=replace(walled.limits, wall_s=0.5))
    assert result.killed_by == KilledBy.WALL
    walled.still_works("import time; time.sleep(0.1); print('awake')", "awake\n")


def test_cpu_time_burnt_by_children(walled: Driven) -> None:
    code = """
        import os
        for _ in range(3): os.fork()
        while True: pass
    """
    result = walled.run(code, limits=replace(walled.limits, cpu_s=1))
    assert result.killed_by == KilledBy.CPU
    assert result.cpu_s < 3
    walled.still_works("""
        import os
        for _ in range(3):
            if os.fork() == 0: os._exit(sum(range(100_000)) % 2)
        print([os.wait()[1] for _ in range(3)])
    """, "[0, 0, 0]\n", limits=replace(walled.limits, cpu_s=1))


DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print('daemon', flush=True)
        time.sleep(3600)
    os._exit(0)
os.wait()
"""


def test_daemon_that_outlives_the_run(walled: Driven) -> None:
    began = time.monotonic()
    silent = DAEMON.replace("print('daemon', flush=True)", "os.closerange(0, 64)")
    result = walled.run(silent + "print('main ended')")
    assert (result.stdout, result.exit) == ("main ended\n", 0)
    assert time.monotonic() - began < 5
    walled.alone()
    walled.still_works(DAEMON.replace("time.sleep(3600)", "os._exit(0)") + "time.sleep(0.2); print('main ended')",
                       "daemon\nmain ended\n")


def test_child_that_holds_stdout_open(walled: Driven) -> None:
    began = time.monotonic()
    result = walled.run(DAEMON + "time.sleep(0.2); print('main ended')")
    assert (result.stdout, result.exit) == ("daemon\nmain ended\n", 0)
    assert time.monotonic() - began < 5
    walled.alone()
    walled.still_works("import subprocess; print(subprocess.check_output(['echo', 'a']))", "b'a\\n'\n")


def test_processes_that_outlive_a_session(walled: Driven) -> None:
    with walled.session() as session:
        assert session.run(DAEMON).exit == 0
        assert session.run("1 + 1").value == "2"
    walled.alone()
    with walled.session() as session:
        session.run("import subprocess; child = subprocess.Popen(['cat'], stdin=-1, stdout=-1, text=True)")
        assert session.run("child.communicate('still there')[0]").value == "'still there'"
