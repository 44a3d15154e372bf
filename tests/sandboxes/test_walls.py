"""Parts of the local sandbox's walls that this machine may not show: other architectures, other cgroup layouts."""

from __future__ import annotations

import errno
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from turncredit.sandboxes.zygote import cgroups, seccomp

X86_64, AARCH64 = 0xC000003E, 0xC00000B7


def decide(program: bytes, number: int, architecture: int, *arguments: int) -> int:
    """Run a filter as the kernel would; return its verdict (struct seccomp_data: number, arch, ip, arguments)."""
    data = struct.pack("=IIQ6Q", number, architecture, 0, *(*arguments, 0, 0, 0, 0, 0, 0)[:6])
    steps = list(struct.iter_unpack("=HBBI", program))
    at = accumulator = 0
    while True:
        code, if_true, if_false, value = steps[at]
        at += 1
        if code == seccomp.RETURN:
            return int(value)
        if code == seccomp.LOAD:
            accumulator = struct.unpack_from("=I", data, value)[0]
            continue
        holds = {seccomp.EQUAL: accumulator == value, seccomp.AT_LEAST: accumulator >= value,
                 seccomp.ANY_BIT: bool(accumulator & value)}[code]
        at += if_true if holds else if_false


@pytest.mark.parametrize(("machine", "column", "architecture", "read"), [
    ("x86_64", 0, X86_64, 0), ("aarch64", 1, AARCH64, 63)])
def test_the_filter_refuses_exactly_what_it_lists(machine: str, column: int, architecture: int, read: int) -> None:
    program = seccomp.program(network=False, shared_memory=True, machine=machine)
    refused = seccomp.ERRNO | errno.EPERM
    listed = {numbers[column] for numbers in seccomp.DENIED.values()}
    special = {call[column] for call in (seccomp.SOCKET, seccomp.SOCKETPAIR, seccomp.CLONE, seccomp.PRLIMIT)}
    for number in range(500):
        if number not in special | {seccomp.CLONE3}:
            expected = refused if number in listed else seccomp.ALLOW
            assert decide(program, number, architecture) == expected, number
    assert decide(program, read, architecture) == seccomp.ALLOW
    assert decide(program, seccomp.CLONE3, architecture) == seccomp.ERRNO | errno.ENOSYS
    assert decide(program, read, 0x40000003) == seccomp.KILL  # 32-bit calls have other numbers
    assert decide(program, seccomp.CLONE[column], architecture, 0x10000011) == refused  # a user namespace
    assert decide(program, seccomp.CLONE[column], architecture, 0x11) == seccomp.ALLOW
    assert decide(program, seccomp.PRLIMIT[column], architecture, 1) == refused
    assert decide(program, seccomp.PRLIMIT[column], architecture, 0) == seccomp.ALLOW


@pytest.mark.parametrize("network", [False, True])
def test_the_filter_lets_internet_sockets_through_only_with_the_network(network: bool) -> None:
    program = seccomp.program(network=network, shared_memory=False, machine="x86_64")
    allowed = {family for family in range(45)
               if decide(program, seccomp.SOCKET[0], X86_64, family) == seccomp.ALLOW}
    assert allowed == ({1, 2, 10, 16} if network else {1})
    shared_anonymous, private_anonymous, shared_file = 0x21, 0x22, 0x01
    verdicts = [decide(program, seccomp.MMAP[0], X86_64, 0, 0, 0, flags) == seccomp.ALLOW
                for flags in (shared_anonymous, private_anonymous, shared_file)]
    assert verdicts == [False, True, True]


def test_the_old_call_numbers_of_x32_are_refused() -> None:
    program = seccomp.program(network=True, shared_memory=True, machine="x86_64")
    assert decide(program, 0x40000000 + 521, X86_64) == seccomp.KILL


V1 = """\
30 24 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
31 24 0:27 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
32 24 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
"""
V2_IN_CONTAINER = "30 24 0:26 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n"


@pytest.mark.parametrize(("mounts", "own", "expected"), [
    (V1, "4:memory:/a/b\n8:pids:/\n0::/\n",
     [(2, "/sys/fs/cgroup/unified"), (1, "/sys/fs/cgroup/memory/a/b"), (1, "/sys/fs/cgroup/pids")]),
    ("30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", "0::/user.slice/session-1.scope\n",
     [(2, "/sys/fs/cgroup/user.slice/session-1.scope"), (2, "/sys/fs/cgroup/user.slice")]),
    (V2_IN_CONTAINER, "0::/docker/abc\n", [(2, "/sys/fs/cgroup")]),
    ("", "0::/\n", []),
])
def test_cgroups_are_looked_for_where_this_process_has_its_own(
    tmp_path: Path, mounts: str, own: str, expected: list[tuple[int, str]],
) -> None:
    (tmp_path / "mountinfo").write_text(mounts)
    (tmp_path / "cgroup").write_text(own)
    found = [(place.version, str(place.folder)) for place in cgroups.hierarchies(tmp_path)]
    assert found == expected


def test_pools_that_start_at_once_keep_their_folders(tmp_path: Path) -> None:
    # Folders of a file system stand for cgroups: what is locked and removed, and how, is the same.
    def live(_: int) -> bool:
        folder, lock = cgroups._make_locked(tmp_path)
        cgroups.sweep(tmp_path)  # as every pool does at its start
        kept = folder.exists()
        cgroups._remove(folder)
        os.close(lock)
        return kept

    with ThreadPoolExecutor(6) as pools:
        assert all(pools.map(live, range(600)))
    assert not list(tmp_path.iterdir())
