"""Everything that hostile code is known to try. Each attack gains nothing, and its honest twin still works.

An attack's code prints `BREACH …` where it gets what it should not, so a quiet failure of the attack's own
code can't pass for a defence: it must also end as said, with `tried` printed at its end where it may end.
Limits are small in every test, so that a defence that fails does not take the machine along.
"""

from __future__ import annotations

import hashlib
import os
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from turncredit.sandboxes import KilledBy, Result

if TYPE_CHECKING:
    from tests.sandboxes.conftest import Driven

# In front of every attack: `attempt(name, call)` reports a breach where the call succeeds.
PRELUDE = """
import ctypes, errno, os, signal, socket, struct, subprocess, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def attempt(name, call, *arguments):
    try:
        result = call(*arguments)
    except (OSError, ValueError, MemoryError) as error:
        return print('refused', name, error)
    if isinstance(result, int) and not isinstance(result, bool) and result < 0:
        return print('refused', name, os.strerror(ctypes.get_errno()))
    print('BREACH', name, result)
"""


def attack(walled: Driven, code: str, **arguments: object) -> Result:
    """Run hostile code that ends by itself; it must have been carried out, and breach nothing."""
    result = walled.run(PRELUDE + code + "\nprint('tried')", **arguments)
    assert result.stdout.endswith("tried\n"), result
    assert "BREACH" not in result.stdout, result
    return result


def still_works(walled: Driven, code: str, output: str, **arguments: object) -> None:
    """Run the honest twin."""
    result = walled.run(code, **arguments)
    assert (result.stdout, result.exit) == (output, 0), result


def alone(walled: Driven) -> None:
    """Check in every slot that a new execution finds no process of an earlier one."""
    for _ in range(4):
        code = ("import os\nmine = {str(os.getpid()), str(os.getppid()), '1'}\n"
                "print(sorted(name for name in os.listdir('/proc') if name.isdigit() and name not in mine))")
        still_works(walled, code, "[]\n")


# Exhaustion


def test_fork_bomb(walled: Driven) -> None:
    began = time.monotonic()
    result = walled.run("import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass",
                        limits=replace(walled.limits, wall_s=2, cpu_s=60))
    assert result.killed_by == KilledBy.WALL
    assert time.monotonic() - began < 8
    alone(walled)
    still_works(walled, "import os\nprint(os.waitstatus_to_exitcode(os.waitpid(os.fork() or os._exit(3), 0)[1]))",
                "3\n")


def test_fork_bomb_gets_no_more_processes_than_allowed(walled: Driven) -> None:
    code = ("import os, time\nmade = 0\nwhile made < 500:\n    try:\n        if os.fork() == 0: time.sleep(60)\n"
            "        made += 1\n    except BlockingIOError:\n        break\nprint(made)")
    result = walled.run(code, limits=replace(walled.limits, processes=10))
    assert result.exit == 0, result
    assert 7 <= int(result.stdout) <= 10
    alone(walled)


def test_thread_bomb(walled: Driven) -> None:
    code = ("import threading, time\nmade = 0\ntry:\n    while made < 500:\n"
            "        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n        made += 1\n"
            "except RuntimeError:\n    pass\nprint(made, flush=True)\nimport os\nos._exit(0)")
    result = walled.run(code, limits=replace(walled.limits, processes=10))
    assert 7 <= int(result.stdout) <= 10, result


def test_memory_bomb(walled: Driven) -> None:
    result = walled.run("x = []\nwhile True: x.append(bytearray(1 << 20))")
    assert result.killed_by == KilledBy.MEMORY
    assert result.peak_bytes < 3 * walled.limits.memory_bytes
    still_works(walled, "print(len(bytearray(40 << 20)))", f"{40 << 20}\n")


def test_memory_bomb_spread_over_processes(walled: Driven) -> None:
    code = ("import os, time\nfor _ in range(10):\n    if os.fork() == 0:\n"
            "        x = [bytearray(1 << 20) for _ in range(30)]\n        time.sleep(60)\ntime.sleep(60)")
    result = walled.run(code)
    assert result.killed_by == KilledBy.MEMORY
    still_works(walled, "import os\nfor _ in range(3):\n    if os.fork() == 0:\n        x = bytearray(10 << 20)\n"
                        "        os._exit(0)\nfor _ in range(3): os.wait()\nprint('done')", "done\n")


def test_memory_bomb_of_shared_pages(walled: Driven) -> None:
    code = ("import mmap\nkept = []\nfor _ in range(40):\n    pages = mmap.mmap(-1, 16 << 20)\n"
            "    for at in range(0, 16 << 20, 4096): pages[at] = 1\n"
            "    pages.madvise(mmap.MADV_DONTNEED)\n    kept.append(pages)\nprint('BREACH')")
    result = walled.run(code)
    assert "BREACH" not in result.stdout
    assert result.killed_by == KilledBy.MEMORY or "Error" in result.stderr


@pytest.mark.parametrize("folder", [".", "/tmp", "/dev/shm", "/var/tmp"])
def test_disk_fill(walled: Driven, folder: str) -> None:
    code = (f"total = 0\ntry:\n    for number in range(50):\n        with open(f'{folder}/{{number}}', 'wb') as file:\n"
            "            total += file.write(bytes(1 << 20))\nexcept OSError:\n    pass\n"
            "if total > 4 << 20: print('BREACH', total)")
    attack(walled, code)
    still_works(walled, f"open('{folder}/a', 'wb').write(bytes(1 << 20)); print('done')", "done\n")


def test_inode_fill(walled: Driven) -> None:
    code = ("made = 0\ntry:\n    for number in range(10_000):\n        open(f'f{number}', 'w').close()\n        made += 1\n"
            "except OSError:\n    pass\nif made > 70: print('BREACH', made)")
    attack(walled, code)
    still_works(walled, "for n in range(50): open(f'f{n}', 'w').close()\nprint('done')", "done\n")


def test_sparse_files(walled: Driven) -> None:
    result = attack(walled, "file = open('sparse', 'wb')\nattempt('1 TB', file.truncate, 1 << 40)", collect=["sparse"])
    assert len(result.files["sparse"]) <= walled.limits.file_bytes
    still_works(walled, "open('sparse', 'wb').truncate(1 << 20); print('done')", "done\n")


def test_many_sparse_files_collected(walled: Driven) -> None:
    names = [f"s{n}" for n in range(40)]
    result = walled.run(f"for name in {names}: open(name, 'wb').truncate(4 << 20)", collect=names)
    assert sum(map(len, result.files.values())) <= walled.limits.file_bytes


def test_memory_files(walled: Driven) -> None:
    code = ("import os\nkept = []\nfor _ in range(100):\n    file = os.memfd_create('x')\n    os.write(file, bytes(4 << 20))\n"
            "    kept.append(file)\nprint('BREACH')")
    result = walled.run(code)
    assert "BREACH" not in result.stdout
    assert result.killed_by == KilledBy.MEMORY or "Error" in result.stderr
    still_works(walled, "import tempfile; print(tempfile.TemporaryFile().write(b'abc'))", "3\n")


def test_descriptors(walled: Driven) -> None:
    code = ("kept = []\ntry:\n    while len(kept) < 5000: kept.append(os.open('/dev/null', os.O_RDONLY))\n"
            "except OSError:\n    pass\nif len(kept) >= 1000: print('BREACH', len(kept))\nfor fd in kept: os.close(fd)")
    attack(walled, code)
    still_works(walled, "kept = [open('/dev/null') for _ in range(100)]; print(len(kept))", "100\n")


def test_endless_output(walled: Driven) -> None:
    result = walled.run("while True: print('x' * 1000)", limits=replace(walled.limits, wall_s=1))
    assert result.killed_by == KilledBy.WALL
    assert result.truncated
    assert len(result.stdout) < walled.limits.output_bytes + 100
    still_works(walled, "print('x' * 1000)", "x" * 1000 + "\n")


def test_endless_output_of_many_processes(walled: Driven) -> None:
    code = "import os\nfor _ in range(3): os.fork()\nwhile True: os.write(2, b'y' * 65536)"
    result = walled.run(code, limits=replace(walled.limits, wall_s=1, cpu_s=60))
    assert result.killed_by == KilledBy.WALL
    assert len(result.stderr) < walled.limits.output_bytes + 100
    alone(walled)


# Outliving the run


def test_loop_that_ignores_every_signal(walled: Driven) -> None:
    code = ("import signal\nfor number in range(1, 65):\n    try:\n        signal.signal(number, signal.SIG_IGN)\n"
            "    except (OSError, ValueError):\n        pass\nwhile True: pass")
    assert walled.run(code, limits=replace(walled.limits, wall_s=1)).killed_by == KilledBy.WALL
    assert walled.run(code, limits=replace(walled.limits, cpu_s=1)).killed_by == KilledBy.CPU
    still_works(walled, "import signal; signal.signal(2, signal.SIG_IGN); print('done')", "done\n")


def test_sleep(walled: Driven) -> None:
    result = walled.run("import time; time.sleep(1e6)", limits=replace(walled.limits, wall_s=0.5))
    assert result.killed_by == KilledBy.WALL
    still_works(walled, "import time; time.sleep(0.1); print('awake')", "awake\n")


def test_cpu_time_burnt_by_children(walled: Driven) -> None:
    code = "import os\nfor _ in range(3): os.fork()\nwhile True: pass"
    result = walled.run(code, limits=replace(walled.limits, cpu_s=1))
    assert result.killed_by == KilledBy.CPU
    assert result.cpu_s < 3


DAEMON = ("import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
          "        print('daemon', flush=True)\n        time.sleep(3600)\n    os._exit(0)\nos.wait()\n")


def test_daemon_that_outlives_the_run(walled: Driven) -> None:
    began = time.monotonic()
    result = walled.run(DAEMON.replace("print('daemon', flush=True)", "os.closerange(0, 64)") + "print('main ended')")
    assert (result.stdout, result.exit) == ("main ended\n", 0)
    assert time.monotonic() - began < 5
    alone(walled)


def test_child_that_holds_stdout_open(walled: Driven) -> None:
    began = time.monotonic()
    result = walled.run(DAEMON + "time.sleep(0.2); print('main ended')")
    assert (result.stdout, result.exit) == ("daemon\nmain ended\n", 0)
    assert time.monotonic() - began < 5
    alone(walled)
    still_works(walled, "import subprocess; print(subprocess.check_output(['echo', 'a']))", "b'a\\n'\n")


def test_processes_that_outlive_a_session(walled: Driven) -> None:
    with walled.session() as session:
        assert session.run(DAEMON).exit == 0
        assert session.run("1 + 1").value == "2"
    alone(walled)


# Looking around


def test_reading_the_environment(walled: Driven) -> None:
    code = ("for path in ['/proc/1/environ', '/proc/self/environ', f'/proc/{os.getppid()}/environ']:\n    try:\n"
            "        text = open(path, 'rb').read() + str(os.environ).encode()\n    except OSError: continue\n"
            "    for word in (b'HOME=/root', b'SECRET', b'TOKEN', b'API_KEY', b'VIRTUAL_ENV', b'PYTEST'):\n"
            "        if word in text: print('BREACH', path, word)\n"
            "    if path == '/proc/1/environ': print('BREACH', path)")
    attack(walled, code)
    still_works(walled, "import os; os.environ['A'] = 'b'; print(os.popen('echo $A').read())", "b\n\n")


def test_processes_of_others(walled: Driven) -> None:
    code = ("for pid in filter(str.isdigit, os.listdir('/proc')):\n    if int(pid) == os.getpid(): continue\n"
            "    if int(pid) > 1 and int(pid) != os.getppid(): print('BREACH', pid)\n"
            "    for name in ('mem', 'environ', 'maps', 'fd', 'cwd/x', 'root/etc', 'syscall', 'stack', 'exe'):\n"
            "        path = f'/proc/{pid}/{name}'\n"
            "        attempt(path, os.listdir if name in ('fd', 'root/etc') else "
            "os.readlink if name == 'exe' else lambda p: open(p, 'rb').read(1), path)")
    attack(walled, code)
    still_works(walled, "print(open('/proc/self/status').read().count('Pid:'))", "3\n")


def test_host_files(walled: Driven, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    paths = [str(tmp_path / "secret"), "/etc/shadow", "/root/.bashrc", "/home", "/boot", "/var/log", "/run", "/sys",
             "/proc/kcore", "/dev/mem", "/dev/kmsg", "/proc/kmsg", "/dev/sda", "/dev/vda", "/proc/sysrq-trigger",
             str(Path(__file__)), str(Path.cwd() / "pyproject.toml")]
    code = (f"for path in {paths}:\n"
            "    attempt(path, os.listdir if os.path.isdir(path) else lambda p: open(p, 'rb').read(1), path)")
    attack(walled, code)
    still_works(walled, "import json; print('def dumps' in open(json.__file__).read())", "True\n")


def test_this_packages_own_sources(walled: Driven) -> None:
    import turncredit

    package = Path(turncredit.__file__).parent
    attack(walled, f"attempt('source', lambda: open('{package}/errors.py').read(10))\n"
                   "try:\n    import turncredit.errors\n    print('BREACH')\nexcept ImportError: pass")


def test_writing_outside(walled: Driven) -> None:
    code = ("import sysconfig\n"
            "for path in ('/x', '/usr/x', '/etc/passwd', '/proc/sys/kernel/hostname', '/proc/1/oom_score_adj', "
            "'/proc/self/oom_score_adj', '/dev/x', sysconfig.get_path('stdlib') + '/x.py', '/usr/bin/env', "
            "sys.executable, '/proc/self/uid_map', '/proc/self/loginuid'):\n"
            "    attempt(path, lambda p: open(p, 'ab').write(b'1'), path)\n"
            "attempt('chmod', os.chmod, sys.executable, 0o777)\nattempt('rename', os.rename, '/usr/bin', '/usr/nib')\n"
            "attempt('rmdir', os.rmdir, '/dev/shm')\nattempt('utime', os.utime, '/usr')")
    attack(walled, code)
    still_works(walled, "open('a', 'w').write('x'); open('/tmp/b', 'w').write('y'); print('done')", "done\n")


def scan(secret: str) -> str:
    """Return code that searches all of its own memory for `secret`, which it can't hold itself.

    It knows the first half, written backwards, and the second half's hash.
    """
    head, tail = secret[:len(secret) // 2], secret[len(secret) // 2:]
    return SCAN.format(head=head[::-1], length=len(tail), digest=hashlib.sha256(tail.encode()).hexdigest())


SCAN = """
import hashlib
head = '{head}'[::-1].encode()
with open('/proc/self/mem', 'rb', 0) as memory:
    for line in open('/proc/self/maps'):
        span, rights = line.split()[:2]
        start, end = (int(word, 16) for word in span.split('-'))
        if 'r' not in rights or '[v' in line or end - start > 64 << 20: continue
        memory.seek(start)
        data = memory.read(end - start)
        at = data.find(head)
        while at >= 0:
            tail = data[at + len(head):at + len(head) + {length}]
            if hashlib.sha256(tail).hexdigest() == '{digest}': print('FOUND', line.split()[-1])
            at = data.find(head, at + 1)
"""
PARENTS_SECRET = "parents secret " + os.urandom(8).hex()
os.environ["TURNCREDIT_TEST_SECRET"] = PARENTS_SECRET  # before any sandbox opens


def test_secrets_in_the_zygotes_heap(walled: Driven) -> None:
    result = attack(walled, scan(PARENTS_SECRET))
    assert "FOUND" not in result.stdout
    twin = walled.run(f"own = {PARENTS_SECRET!r}\n" + PRELUDE + scan(PARENTS_SECRET))
    assert "FOUND" in twin.stdout  # the search does find what is there


def test_what_earlier_runs_left_in_the_zygotes_heap(walled: Driven) -> None:
    secrets = [f"answer {number} " + os.urandom(16).hex() for number in range(4)]
    for secret in secrets:  # every slot sees one in its code, input, files and output
        walled.run(f"kept = {secret!r}\nprint(kept)", stdin=secret.encode(), files={"f": secret.encode()},
                   collect=["f"])
    for secret in secrets * 2:
        assert "FOUND" not in attack(walled, scan(secret)).stdout


# Network


def test_network(walled: Driven) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = (f"attempt('tcp', socket.create_connection, ('127.0.0.1', {port}), 1)\n"
                "attempt('dns', socket.getaddrinfo, 'example.com', 80)\n"
                "attempt('listen', socket.create_server, ('0.0.0.0', 0))\n"
                "attempt('udp', lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('8.8.8.8', 53)))\n"
                "attempt('udp6', lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).sendto(b'x', ('::1', 53)))\n"
                "attempt('raw', socket.socket, socket.AF_INET, socket.SOCK_RAW, 1)\n"
                "attempt('packet', socket.socket, socket.AF_PACKET, socket.SOCK_RAW)\n"
                "attempt('netlink', socket.socket, socket.AF_NETLINK, socket.SOCK_RAW, 0)\n"
                "attempt('vsock', socket.socket, socket.AF_VSOCK, socket.SOCK_STREAM)\n"
                "attempt('alg', socket.socket, socket.AF_ALG, socket.SOCK_SEQPACKET)\n")
        attack(walled, code)
    still_works(walled, "import socket; a, b = socket.socketpair(); a.send(b'x'); print(b.recv(1))", "b'x'\n")


def test_abstract_sockets(walled: Driven) -> None:
    name = f"turncredit-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0" + name)
        server.listen()
        attack(walled, f"s = socket.socket(socket.AF_UNIX)\nattempt('abstract', s.connect, '\\0{name}')")
    still_works(walled, "import socket\ns = socket.socket(socket.AF_UNIX); s.bind('own'); s.listen()\n"
                        "c = socket.socket(socket.AF_UNIX); c.connect('own'); print('met')", "met\n")


def test_sockets_in_the_file_system(walled: Driven, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()
        attack(walled, f"for path in ('{tmp_path}/s', '/run/docker.sock', '/var/run/docker.sock'):\n"
                       "    attempt(path, socket.socket(socket.AF_UNIX).connect, path)")


# Other processes, and the kernel


def test_signals_to_others(walled: Driven) -> None:
    code = ("for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGSEGV):\n"
            "    try: os.kill(1, number)\n    except PermissionError: pass\n"
            "    try: os.kill(os.getppid(), number)\n    except PermissionError: pass\n")
    attack(walled, code)
    result = walled.run("import os; os.kill(-1, 9)")  # everyone it may signal: itself left out, no one
    assert (result.exit, result.killed_by) == (1, None)
    alone(walled)
    still_works(walled, "import subprocess\np = subprocess.Popen(['sleep', '60']); p.kill(); print(p.wait())",
                "-9\n")


def test_limits_and_priorities_of_others(walled: Driven) -> None:
    code = ("import resource\nfor pid in (1, os.getppid()):\n"
            "    if pid == 0: continue\n"
            "    attempt('prlimit', resource.prlimit, pid, resource.RLIMIT_CPU, (1, 1))\n"
            "    attempt('nice', os.setpriority, os.PRIO_PROCESS, pid, 19)\n"
            "    attempt('affinity', os.sched_setaffinity, pid, {0})\n"
            "attempt('nicer', os.nice, -5)")
    attack(walled, code)
    still_works(walled, "import os; print(os.nice(5) >= 5)", "True\n")


def test_ptrace_and_process_vm(walled: Driven) -> None:
    code = ("child = os.fork()\nif child == 0: time.sleep(60)\n"
            "buffer = ctypes.create_string_buffer(8)\n"
            "class Span(ctypes.Structure): _fields_ = [('at', ctypes.c_void_p), ('size', ctypes.c_size_t)]\n"
            "local = Span(ctypes.addressof(buffer), 8)\n"
            "for pid in (child, 1, os.getppid()):\n"
            "    attempt('attach', libc.ptrace, 16, pid, None, None)\n"
            "    attempt('seize', libc.ptrace, 0x4206, pid, None, None)\n"
            "    attempt('read', libc.process_vm_readv, pid, ctypes.byref(local), 1, ctypes.byref(local), 1, 0)\n"
            "    attempt('write', libc.process_vm_writev, pid, ctypes.byref(local), 1, ctypes.byref(local), 1, 0)\n"
            "attempt('traceme', libc.ptrace, 0, 0, None, None)\nos.kill(child, 9)")
    attack(walled, code)
    still_works(walled, "import os, signal\nchild = os.fork()\nif child == 0: signal.pause()\n"
                        "os.kill(child, 15); print(os.waitstatus_to_exitcode(os.wait()[1]))", "-15\n")


# name -> system call numbers on x86_64 and aarch64, and arguments that are valid as far as they go
CALLS = {
    "mount": (165, 40, "b'none', b'/tmp', b'tmpfs', 0, None"), "umount": (166, 39, "b'/proc', 2"),
    "pivot_root": (155, 41, "b'/tmp', b'/tmp'"), "chroot": (161, 51, "b'/tmp'"),
    "unshare user": (272, 97, "0x10000000"), "unshare net": (272, 97, "0x40000000"),
    "setns": (308, 268, "os.open('/proc/self/ns/user', 0), 0"),
    "clone newuser": (56, 220, "0x10000011, None, None, None, None"),
    "fsopen": (430, 430, "b'tmpfs', 0"), "open_tree": (428, 428, "-100, b'/', 1"),
    "bpf": (321, 280, "0, ctypes.create_string_buffer(128), 128"),
    "io_uring_setup": (425, 425, "8, ctypes.create_string_buffer(256)"),
    "keyctl": (250, 219, "0, -3, 1"), "add_key": (248, 217, "b'user', b'a', b'b', 1, -3"),
    "perf_event_open": (298, 241, "ctypes.create_string_buffer(struct.pack('II', 1, 112), 112), 0, -1, -1, 0"),
    "userfaultfd": (323, 282, "1"), "personality": (135, 92, "0x0040000"),
    "settimeofday": (164, 170, "struct.pack('qq', 1, 1), None"),
    "clock_settime": (227, 112, "0, struct.pack('qq', 1, 1)"), "adjtimex": (159, 171, "ctypes.create_string_buffer(208)"),
    "sethostname": (170, 161, "b'x', 1"), "reboot": (169, 142, "0xfee1dead, 672274793, 0, None"),
    "syslog": (103, 116, "3, ctypes.create_string_buffer(64), 64"), "swapon": (167, 224, "b'/tmp/x', 0"),
    "init_module": (175, 105, "b'', 0, b''"), "kexec_load": (246, 104, "0, 0, None, 0"),
    "memfd_secret": (447, 447, "0"), "open_by_handle_at": (304, 265, "-100, ctypes.create_string_buffer(64), 0"),
}


@pytest.mark.parametrize("name", CALLS)
def test_system_calls_that_no_candidate_needs(walled: Driven, name: str) -> None:
    column = {"x86_64": 0, "aarch64": 1}[os.uname().machine]
    number, arguments = CALLS[name][column], CALLS[name][2]
    attack(walled, f"result = libc.syscall({number}, {arguments})\n"
                   f"attempt({name!r}, lambda: result)")


def test_honest_system_calls_still_work(walled: Driven) -> None:
    code = ("import os, threading, mmap, tempfile, select, time, signal\n"
            "threading.Thread(target=print, args=('thread',)).start()\n"
            "m = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS); m[0] = 1\n"
            "e = select.epoll(); e.close(); r, w = os.pipe(); os.write(w, b'x'); os.read(r, 1)\n"
            "signal.setitimer(signal.ITIMER_REAL, 10); os.sched_yield(); os.getrandom(8)\n"
            "tempfile.mkdtemp(); print(round(time.clock_gettime(time.CLOCK_MONOTONIC) * 0))")
    still_works(walled, code, "thread\n0\n")


def test_clocks(walled: Driven) -> None:
    attack(walled, "attempt('clock', time.clock_settime, time.CLOCK_REALTIME, 0)")
    still_works(walled, "import time; print(time.time() > 1.7e9)", "True\n")


def test_raising_resource_limits(walled: Driven) -> None:
    code = ("import resource\nfor name in ('NPROC', 'FSIZE', 'NOFILE', 'CORE', 'CPU', 'DATA'):\n"
            "    number = getattr(resource, 'RLIMIT_' + name)\n    soft, hard = resource.getrlimit(number)\n"
            "    if hard == resource.RLIM_INFINITY: print('BREACH unlimited', name)\n"
            "    attempt(name, resource.setrlimit, number, (hard + 1, hard + 1))\n"
            "    attempt(name, resource.setrlimit, number, (-1, -1))")
    attack(walled, code)
    still_works(walled, "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50)); print('less')",
                "less\n")


def test_becoming_another_user(walled: Driven) -> None:
    code = ("if os.getuid() == 0: print('BREACH root')\nattempt('setuid', os.setuid, 0)\n"
            "attempt('setgroups', os.setgroups, [0])\nattempt('setresuid', os.setresuid, 0, 0, 0)\n"
            "caps = [line for line in open('/proc/self/status') if line.startswith(('CapEff', 'CapPrm', 'CapInh'))]\n"
            "if any(int(line.split()[1], 16) for line in caps): print('BREACH', caps)")
    attack(walled, code)
    still_works(walled, "import os; os.setuid(os.getuid()); print('same')", "same\n")


def test_devices_and_setuid_bits(walled: Driven) -> None:
    code = ("import stat\nfor kind in (stat.S_IFCHR, stat.S_IFBLK):\n"
            "    attempt('mknod', os.mknod, 'device', kind | 0o666, os.makedev(1, 1))\n"
            "import shutil\nshutil.copy('/usr/bin/id', 'id'); os.chmod('id', 0o6777)\n"
            "if b'euid=0' in subprocess.run(['./id'], capture_output=True).stdout: print('BREACH')\n"
            "if not os.statvfs('.').f_flag & os.ST_NOSUID: print('BREACH suid')\n"
            "if not os.statvfs('.').f_flag & os.ST_NODEV: print('BREACH dev')")
    result = attack(walled, code, collect=["id"])
    assert type(result.files["id"]) is bytes
    still_works(walled, "import os; os.mkfifo('pipe'); os.chmod('pipe', 0o700); print('made')", "made\n")


def test_shared_memory_left_behind(walled: Driven) -> None:
    code = "attempt('shm', libc.shmget, 4242, 4096, 0o1666)\nattempt('sem', libc.semget, 4242, 1, 0o1666)\n" \
           "attempt('msg', libc.msgget, 4242, 0o1666)\nopen('/dev/shm/left', 'w').write('x')"
    attack(walled, code)
    for _ in range(4):
        attack(walled, "attempt('left', open, '/dev/shm/left')\nattempt('shm', libc.shmget, 4242, 4096, 0)")
    still_works(walled, "from multiprocessing import shared_memory as s, resource_tracker\n"
                        "m = s.SharedMemory(create=True, size=4096); m.buf[0] = 7; print(m.buf[0])\n"
                        "m.close(); m.unlink()", "7\n")


def test_inherited_descriptors(walled: Driven) -> None:
    attack(walled, "left = sorted(set(map(int, os.listdir('/proc/self/fd'))) - {0, 1, 2})\n"
                   "if len(left) > 1: print('BREACH', left)\n"  # the listing's own
                   "for fd in range(3, 300): attempt(f'fd {fd}', os.fstat, fd)\n"
                   "for fd in (0, 1, 2):\n    if 'pipe' not in os.readlink(f'/proc/self/fd/{fd}'): print('BREACH', fd)")
    still_works(walled, "import os; print(os.read(0, 9), os.write(1, b'x'))", "xb'in' 1\n", stdin=b"in")


def test_core_dumps(walled: Driven) -> None:
    result = walled.run("import os, signal; os.kill(os.getpid(), signal.SIGABRT)", collect=["core"])
    assert (result.killed_by, result.files) == (KilledBy.SIGNAL, {})
    assert not list(Path.cwd().glob("core*"))


# What comes back


def test_links_to_host_files_are_not_collected(walled: Driven) -> None:
    code = ("os.symlink('/etc/passwd', 'link')\nos.symlink('/etc', 'folder')\nos.mkfifo('pipe')\nos.mkdir('real')\n"
            "os.symlink('../../..', 'real/up')\nopen('honest', 'w').write('x')\nos.symlink('honest', 'inner')\n"
            "attempt('hard link', os.link, '/etc/passwd', 'hard')\n")
    names = ["link", "folder/passwd", "pipe", "real", "real/up/etc/passwd", "inner", "hard", "honest"]
    assert attack(walled, code, collect=names).files == {"honest": b"x"}


def test_links_to_host_files_are_not_read_or_written_through(walled: Driven) -> None:
    with walled.session() as session:
        session.run("import os\nos.symlink('/etc/passwd', 'link'); os.symlink('/etc', 'folder')\n"
                    "os.symlink('/tmp', 'tmp'); os.mkfifo('pipe')")
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


def test_code_of_odd_characters(walled: Driven) -> None:
    for code in ("print('\ud800')", "x = 1\0", "\ufeffprint(1)", "print(1)\r\nprint(2)\r\n"):
        result = walled.run(code)
        assert result.killed_by is None
        assert result.exit in (0, 1)


def test_segfault(walled: Driven) -> None:
    assert walled.run("import ctypes; ctypes.string_at(0)").killed_by == KilledBy.SIGNAL
    still_works(walled, "print('next')", "next\n")


def test_deep_recursion(walled: Driven) -> None:
    result = walled.run("def f(): return f()\nf()")
    assert result.exit == 1
    assert "RecursionError" in result.stderr
    code = "import sys\nsys.setrecursionlimit(10**9)\nclass A:\n    def __repr__(self): return repr([self])\nrepr(A())"
    result = walled.run(code)
    assert result.killed_by in (KilledBy.SIGNAL, KilledBy.MEMORY) or result.exit == 1
    still_works(walled, "def f(n): return n and f(n - 1)\nprint(f(500))", "0\n")


def test_huge_source(walled: Driven) -> None:
    result = walled.run("x = " + "(" * 100_000 + ")" * 100_000)
    assert result.exit == 1 or result.killed_by
    result = walled.run("x = [" + "1, " * 2_000_000 + "]")
    assert result.exit is not None or result.killed_by
    still_works(walled, "# " + "x" * 1_000_000 + "\nprint('read')", "read\n")


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
        session.run("deep = []\nfor _ in range(100_000): deep = [deep]")
        assert session.run("deep").exit in (0, 1, None)
    with walled.session() as session:
        assert session.run("{'a': [1, 2.5]}").value == "{'a': [1, 2.5]}"


def test_zip_bombs_come_back_as_the_bytes_they_are(walled: Driven) -> None:
    code = "import zlib; open('bomb', 'wb').write(zlib.compress(bytes(50 << 20)))"
    assert len(walled.run(code, collect=["bomb"]).files["bomb"]) < 1 << 20


# The sandbox itself


def test_poisoning_a_warm_zygote(walled: Driven) -> None:
    poison = ("import builtins, json, sys, os, gc, random\nbuiltins.print = lambda *a: None\njson.dumps = None\n"
              "sys.modules.clear()\nsys.path[:] = []\nos.environ['X'] = 'y'\nos._exit = None\n"
              "for thing in gc.get_objects():\n    if isinstance(thing, dict) and len(thing) < 3: thing.clear()\n")
    for _ in range(4):
        walled.run(poison)
    for _ in range(4):
        still_works(walled, "import json, os; print(json.dumps([1]), os.environ.get('X'))", "[1] None\n")


def test_poisoning_a_warm_session(walled: Driven) -> None:
    with walled.session() as session:
        session.run("import builtins, os, sys\nbuiltins.repr = lambda x: 'forged'\nbuiltins.compile = None")
        session.run("1 + 1")
    with walled.session() as session:
        assert session.run("1 + 1").value == "2"
    still_works(walled, "print(repr(1))", "1\n")


def test_forging_a_sessions_answers_fools_only_the_session(walled: Driven) -> None:
    with walled.session() as session:
        code = ("import os, struct\nfor fd in range(3, 30):\n    try:\n"
                "        os.write(fd, struct.pack('<B?Q', 0, True, 1 << 62) + b'forged' * 1000)\n"
                "    except OSError: pass\n")
        result = session.run(code, limits=replace(walled.limits, wall_s=1))
        assert len(result.value or "") <= walled.limits.output_bytes + 100
    with walled.session() as session:
        assert session.run("1 + 1").value == "2"


@pytest.mark.parametrize("code", [
    "os.kill(os.getppid(), 9) if os.getppid() else os.kill(1, 9)", "os._exit(1)", "os._exit(125)", "os._exit(255)",
    "os.kill(os.getpid(), 9)", "os.closerange(0, 256); os._exit(0)", "os.rename('.', '../x')", "os.chmod('.', 0)",
    "os.closerange(0, 256)\nwhile True: pass", "libc.prctl(4, 0)", "libc.prctl(1, 9)", "os.setsid()",
    "[os.fork() for _ in range(20)]", "open('/proc/self/comm', 'w').write(') R 1 1')",
    "os.chdir('/'); import shutil; shutil.rmtree('/sandbox', ignore_errors=True)",
    "libc.prctl(15, b'x) R 1 2 3 4 5')\ntime.sleep(0.3)",
])
def test_breaking_the_sandbox_is_the_candidates_own_failure(walled: Driven, code: str) -> None:
    # A SandboxError here would turn a bad reward into none at all.
    result = walled.run(PRELUDE + f"try:\n    {code.replace(chr(10), chr(10) + '    ')}\nexcept OSError: pass",
                        limits=replace(walled.limits, wall_s=1.5))
    assert isinstance(result, Result)
    still_works(walled, "open('a', 'w').write('b'); print(open('a').read())", "b\n")
