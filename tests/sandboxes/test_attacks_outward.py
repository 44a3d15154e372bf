"""Attacks on what lies outside: files, secrets, network, other processes, the kernel.

Each gains nothing; its honest twin works.
"""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from turncredit.sandboxes import KilledBy

if TYPE_CHECKING:
    from tests.sandboxes.conftest import Driven


def test_reading_the_environment(walled: Driven) -> None:
    code = """
        for path in ['/proc/1/environ', '/proc/self/environ', f'/proc/{os.getppid()}/environ']:
            try:
                text = open(path, 'rb').read() + str(os.environ).encode()
            except OSError: continue
            for word in (b'HOME=/root', b'SECRET', b'TOKEN', b'API_KEY', b'VIRTUAL_ENV', b'PYTEST'):
                if word in text: print('BREACH', path, word)
            if path == '/proc/1/environ': print('BREACH', path)
    """
    walled.attack(code)
    walled.still_works("import os; os.environ['A'] = 'b'; print(os.popen('echo $A').read())", "b\n\n")


def test_processes_of_others(walled: Driven) -> None:
    code = """
        for pid in filter(str.isdigit, os.listdir('/proc')):
            if int(pid) == os.getpid(): continue
            if int(pid) > 1 and int(pid) != os.getppid(): print('BREACH', pid)
            for name in ('mem', 'environ', 'maps', 'fd', 'cwd/x', 'root/etc', 'syscall', 'stack', 'exe'):
                path = f'/proc/{pid}/{name}'
                attempt(path, lambda p: open(p, 'rb').read(1), path)
                attempt(path, os.listdir, path)
                attempt(path, os.readlink, path)
    """
    walled.attack(code)
    walled.still_works("print(open('/proc/self/status').read().count('Pid:'))", "3\n")


def test_host_files(walled: Driven, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    paths = [str(tmp_path / "secret"), "/etc/shadow", "/root/.bashrc", "/home", "/boot", "/var/log", "/run",
             "/sys", "/proc/kcore", "/dev/mem", "/dev/kmsg", "/proc/kmsg", "/dev/sda", "/dev/vda",
             "/proc/sysrq-trigger", str(Path(__file__)), str(Path.cwd() / "pyproject.toml")]
    code = f"""
        for path in {paths}:
            attempt(path, os.listdir if os.path.isdir(path) else lambda p: open(p, 'rb').read(1), path)
    """
    walled.attack(code)
    walled.still_works("import json; print('def dumps' in open(json.__file__).read())", "True\n")


def test_this_packages_own_sources(walled: Driven) -> None:
    import turncredit

    package = Path(turncredit.__file__).parent
    walled.attack(f"""
        attempt('source', lambda: open('{package}/errors.py').read(10))
        try:
            import turncredit.errors
            print('BREACH')
        except ImportError: pass
    """)
    walled.still_works("import own.errors; print(open(own.errors.__file__).read(3), own.errors.x)", "x=1 1\n",
                       files={"own/errors.py": b"x=1"})


def test_writing_outside(walled: Driven) -> None:
    code = """
        import sysconfig
        for path in ('/x', '/usr/x', '/etc/passwd', '/proc/sys/kernel/hostname', '/proc/1/oom_score_adj',
                     '/proc/self/oom_score_adj', '/dev/x', sysconfig.get_path('stdlib') + '/x.py',
                     '/usr/bin/env', sys.executable, '/proc/self/uid_map', '/proc/self/loginuid'):
            attempt(path, lambda p: open(p, 'ab').write(b'1'), path)
        attempt('chmod', os.chmod, sys.executable, 0o777)
        attempt('rename', os.rename, '/usr/bin', '/usr/nib')
        attempt('rmdir', os.rmdir, '/dev/shm')
        attempt('utime', os.utime, '/usr')
    """
    walled.attack(code)
    walled.still_works("import tempfile; open('a', 'w').write('x'); "
                       "open(tempfile.gettempdir() + '/b', 'w').write('y'); print('done')", "done\n")


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
    result = walled.attack(scan(PARENTS_SECRET))
    assert "FOUND" not in result.stdout
    twin = walled.hostile(f"own = {PARENTS_SECRET!r}\n" + scan(PARENTS_SECRET))
    assert "FOUND" in twin.stdout  # the search does find what is there


def test_what_earlier_runs_left_in_the_zygotes_heap(walled: Driven) -> None:
    secrets = [f"answer {number} " + os.urandom(16).hex() for number in range(4)]
    for secret in secrets:  # every slot sees one in its code, input, files and output
        walled.run(f"kept = {secret!r}; print(kept)", stdin=secret.encode(), files={"f": secret.encode()},
                   collect=["f"])
    for secret in secrets * 2:
        assert "FOUND" not in walled.attack(scan(secret)).stdout
    twin = walled.hostile("own = sys.stdin.read()\n" + scan(secrets[0]), stdin=secrets[0].encode())
    assert "FOUND" in twin.stdout  # what an execution was given itself, it finds


def test_network(walled: Driven) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = f"""
        attempt('tcp', socket.create_connection, ('127.0.0.1', {port}), 1)
        attempt('dns', socket.getaddrinfo, 'example.com', 80)
        attempt('listen', socket.create_server, ('0.0.0.0', 0))
        attempt('udp', lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('8.8.8.8', 53)))
        attempt('udp6', lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).sendto(b'x', ('::1', 53)))
        attempt('raw', socket.socket, socket.AF_INET, socket.SOCK_RAW, 1)
        attempt('packet', socket.socket, socket.AF_PACKET, socket.SOCK_RAW)
        attempt('netlink', socket.socket, socket.AF_NETLINK, socket.SOCK_RAW, 0)
        attempt('vsock', socket.socket, socket.AF_VSOCK, socket.SOCK_STREAM)
        attempt('alg', socket.socket, socket.AF_ALG, socket.SOCK_SEQPACKET)
    """
        walled.attack(code)
    walled.still_works("import socket; a, b = socket.socketpair(); a.send(b'x'); print(b.recv(1))", "b'x'\n")


def test_abstract_sockets(walled: Driven) -> None:
    name = f"turncredit-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0" + name)
        server.listen()
        walled.attack(f"""
        s = socket.socket(socket.AF_UNIX)
        attempt('abstract', s.connect, '\\0{name}')
    """)
    walled.still_works("""
        import socket
        s = socket.socket(socket.AF_UNIX); s.bind('own'); s.listen()
        c = socket.socket(socket.AF_UNIX); c.connect('own'); print('met')
    """, "met\n")


def test_sockets_in_the_file_system(walled: Driven, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()
        walled.attack(f"""
        for path in ('{tmp_path}/s', '/run/docker.sock', '/var/run/docker.sock'):
            attempt(path, socket.socket(socket.AF_UNIX).connect, path)
    """)
    walled.still_works("""
        import asyncio, os
        async def main():
            server = await asyncio.start_unix_server(lambda reader, writer: writer.close(), 'folder/s')
            reader, writer = await asyncio.open_unix_connection('folder/s')
            print(await reader.read())
            writer.close(); server.close()
        os.mkdir('folder'); asyncio.run(main())
    """, "b''\n")


def test_signals_to_others(walled: Driven) -> None:
    code = """
        for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGSEGV):
            try: os.kill(1, number)
            except PermissionError: pass
            try: os.kill(os.getppid(), number)
            except PermissionError: pass
    """
    walled.attack(code)
    result = walled.run("import os; os.kill(-1, 9)")  # everyone it may signal: itself left out, no one
    assert (result.exit, result.killed_by) == (1, None)
    walled.alone()
    walled.still_works("""
        import subprocess
        p = subprocess.Popen(['sleep', '60']); p.kill(); print(p.wait())
    """, "-9\n")


def test_limits_and_priorities_of_others(walled: Driven) -> None:
    code = """
        import resource
        for pid in (1, os.getppid()):
            if pid == 0: continue
            attempt('prlimit', resource.prlimit, pid, resource.RLIMIT_CPU, (1, 1))
            attempt('nice', os.setpriority, os.PRIO_PROCESS, pid, 19)
            attempt('affinity', os.sched_setaffinity, pid, {0})
        attempt('nicer', os.nice, -5)
    """
    walled.attack(code)
    walled.still_works("import os; print(os.nice(5) >= 5)", "True\n")


def test_ptrace_and_process_vm(walled: Driven) -> None:
    code = """
        child = os.fork()
        if child == 0: time.sleep(60)
        buffer = ctypes.create_string_buffer(8)
        class Span(ctypes.Structure): _fields_ = [('at', ctypes.c_void_p), ('size', ctypes.c_size_t)]
        local = Span(ctypes.addressof(buffer), 8)
        for pid in (child, 1, os.getppid()):
            attempt('attach', libc.ptrace, 16, pid, None, None)
            attempt('seize', libc.ptrace, 0x4206, pid, None, None)
            attempt('read', libc.process_vm_readv, pid, ctypes.byref(local), 1, ctypes.byref(local), 1, 0)
            attempt('write', libc.process_vm_writev, pid, ctypes.byref(local), 1, ctypes.byref(local), 1, 0)
        attempt('traceme', libc.ptrace, 0, 0, None, None)
        os.kill(child, 9)
    """
    walled.attack(code)
    walled.still_works("""
        import os, signal
        child = os.fork()
        if child == 0: signal.pause()
        os.kill(child, 15); print(os.waitstatus_to_exitcode(os.wait()[1]))
    """, "-15\n")


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
    "perf_event_open": (298, 241, "ctypes.create_string_buffer(b'\\1\\0\\0\\0p', 112), 0, -1, -1, 0"),
    "userfaultfd": (323, 282, "1"), "personality": (135, 92, "0x0040000"),
    "settimeofday": (164, 170, "struct.pack('qq', 1, 1), None"),
    "clock_settime": (227, 112, "0, struct.pack('qq', 1, 1)"),
    "clock_adjtime": (305, 266, "0, ctypes.create_string_buffer(b'\\1', 208)"),
    "sethostname": (170, 161, "b'x', 1"), "reboot": (169, 142, "0xfee1dead, 672274793, 0, None"),
    "syslog": (103, 116, "3, ctypes.create_string_buffer(64), 64"), "swapon": (167, 224, "b'/tmp/x', 0"),
    "init_module": (175, 105, "b'', 0, b''"), "kexec_load": (246, 104, "0, 0, None, 0"),
    "memfd_secret": (447, 447, "0"),
    "open_by_handle_at": (304, 265, "-100, ctypes.create_string_buffer(64), 0"),
}


HONEST_CALLS = """
    import os, threading, mmap, tempfile, select, time, signal
    threading.Thread(target=print, args=('thread',)).start()
    m = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS); m[0] = 1
    e = select.epoll(); e.close(); r, w = os.pipe(); os.write(w, b'x'); os.read(r, 1)
    signal.setitimer(signal.ITIMER_REAL, 10); os.sched_yield(); os.getrandom(8); os.statvfs('/'); os.uname()
    tempfile.mkdtemp(); print(round(time.clock_gettime(time.CLOCK_MONOTONIC) * 0))
"""


@pytest.mark.parametrize("name", CALLS)
def test_system_calls_that_no_candidate_needs(walled: Driven, name: str) -> None:
    column = {"x86_64": 0, "aarch64": 1}[os.uname().machine]
    number, arguments = CALLS[name][column], CALLS[name][2]
    walled.attack(f"""
        result = libc.syscall({number}, {arguments})
        attempt({name!r}, lambda: result)
    """)
    walled.still_works(HONEST_CALLS, "thread\n0\n")


def test_clocks(walled: Driven) -> None:
    walled.attack("attempt('clock', time.clock_settime, time.CLOCK_REALTIME, 0)")
    walled.still_works("import time; print(time.time() > 1.7e9)", "True\n")


def test_raising_resource_limits(walled: Driven) -> None:
    code = """
        import resource
        for name in ('NPROC', 'FSIZE', 'NOFILE', 'CORE', 'CPU', 'DATA'):
            number = getattr(resource, 'RLIMIT_' + name)
            soft, hard = resource.getrlimit(number)
            if hard == resource.RLIM_INFINITY: print('BREACH unlimited', name)
            attempt(name, resource.setrlimit, number, (hard + 1, hard + 1))
            attempt(name, resource.setrlimit, number, (-1, -1))
    """
    walled.attack(code)
    walled.still_works("import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (50, 50)); print('less')",
                "less\n")


def test_becoming_another_user(walled: Driven) -> None:
    code = """
        if os.getuid() == 0: print('BREACH root')
        attempt('setuid', os.setuid, 0)
        attempt('setgroups', os.setgroups, [0])
        attempt('setresuid', os.setresuid, 0, 0, 0)
        caps = [line for line in open('/proc/self/status') if line.startswith(('CapEff', 'CapPrm', 'CapInh'))]
        if any(int(line.split()[1], 16) for line in caps): print('BREACH', caps)
    """
    walled.attack(code)
    walled.still_works("import os; os.setuid(os.getuid()); print('same')", "same\n")


def test_devices_and_setuid_bits(walled: Driven) -> None:
    code = """
        import stat
        for kind in (stat.S_IFCHR, stat.S_IFBLK):
            attempt('mknod', os.mknod, 'device', kind | 0o666, os.makedev(1, 1))
        import shutil
        shutil.copy('/usr/bin/id', 'id'); os.chmod('id', 0o6777)
        if b'euid=0' in subprocess.run(['./id'], capture_output=True).stdout: print('BREACH')
        if not os.statvfs('.').f_flag & os.ST_NOSUID: print('BREACH suid')
        if not os.statvfs('.').f_flag & os.ST_NODEV: print('BREACH dev')
    """
    result = walled.attack(code, collect=["id"])
    assert type(result.files["id"]) is bytes
    walled.still_works("import os; os.mkfifo('pipe'); os.chmod('pipe', 0o700); print('made')", "made\n")


def test_shared_memory_left_behind(walled: Driven) -> None:
    code = """
        attempt('shm', libc.shmget, 4242, 4096, 0o1666)
        attempt('sem', libc.semget, 4242, 1, 0o1666)
        attempt('msg', libc.msgget, 4242, 0o1666)
        open('/dev/shm/left', 'w').write('x')
    """
    walled.attack(code)
    for _ in range(4):
        walled.attack("""
        attempt('left', open, '/dev/shm/left')
        attempt('shm', libc.shmget, 4242, 4096, 0)
    """)
    walled.still_works("""
        from multiprocessing import shared_memory as s, resource_tracker
        m = s.SharedMemory(create=True, size=4096); m.buf[0] = 7; print(m.buf[0])
        m.close(); m.unlink()
    """, "7\n")


def test_inherited_descriptors(walled: Driven) -> None:
    walled.attack("""
        left = sorted(set(map(int, os.listdir('/proc/self/fd'))) - {0, 1, 2})
        if len(left) > 1: print('BREACH', left)
        for fd in range(3, 300): attempt(f'fd {fd}', os.fstat, fd)
        for fd in (0, 1, 2):
            if 'pipe' not in os.readlink(f'/proc/self/fd/{fd}'): print('BREACH', fd)
    """)
    walled.still_works("import os; print(os.read(0, 9), os.write(1, b'x'))", "xb'in' 1\n", stdin=b"in")


def test_core_dumps(walled: Driven) -> None:
    result = walled.run("import os, signal; os.kill(os.getpid(), signal.SIGABRT)", collect=["core"])
    assert (result.killed_by, result.files) == (KilledBy.SIGNAL, {})
    assert not list(Path.cwd().glob("core*"))
    result = walled.run("open('core', 'w').write('x')", collect=["core"])  # a file of that name is a file
    assert result.files == {"core": b"x"}
