"""A seccomp filter in raw BPF: system calls that no candidate needs are refused.

The filter is a second wall: most of these calls fail without capabilities anyway, but each is kernel code
that hostile programs have used to get out.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct

from . import syscalls

# name -> numbers on x86_64 and aarch64 (None: that architecture has no such call).
DENIED: dict[str, tuple[int | None, int | None]] = {
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "kcmp": (312, 272), "pidfd_getfd": (438, 438), "process_madvise": (440, 440),
    "process_mrelease": (448, 448), "move_pages": (279, 239), "migrate_pages": (256, 238),
    # mounts and namespaces
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "unshare": (272, 97), "setns": (308, 268), "open_tree": (428, 428), "move_mount": (429, 429),
    "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "open_tree_attr": (467, 467), "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265), "fanotify_init": (300, 262),
    "quotactl": (179, 60), "quotactl_fd": (443, 443),
    # large kernel interfaces
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    # the machine itself
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "reboot": (169, 142),
    "swapon": (167, 224), "swapoff": (168, 225), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "clock_adjtime": (305, 266), "adjtimex": (159, 171), "acct": (163, 89), "syslog": (103, 116),
    "sethostname": (170, 161), "setdomainname": (171, 162), "vhangup": (153, 58), "personality": (135, 92),
    "iopl": (172, None), "ioperm": (173, None), "modify_ldt": (154, None), "uselib": (134, None),
    "mbind": (237, 235), "set_mempolicy": (238, 237), "lookup_dcookie": (212, 18),
    # memory and objects that outlive or escape the accounting
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "semget": (64, 190),
    "msgget": (68, 186), "mq_open": (240, 180),
}
# What a slot does between executions. A candidate that inherits the slot's filter is kept from it all the
# same: by its lack of capabilities, by Landlock, and for memory files by the cgroup that counts them.
SLOTS_OWN = ("mount", "umount2", "memfd_create")
ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column, AUDIT_ARCH_*
SOCKET, SOCKETPAIR, CLONE, MMAP, PRLIMIT = (41, 198), (53, 199), (56, 220), (9, 222), (302, 261)
CLONE3 = 435
NEW_NAMESPACE = 0x7E020000  # every CLONE_NEW* flag that clone takes
MAP_SHARED, MAP_ANONYMOUS = 1, 0x20
X32 = 0x40000000  # x86_64's second table of calls

LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER, ARCHITECTURE = 0, 4  # offsets in struct seccomp_data
ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000


def supported() -> bool:
    """Say whether there is a table for this machine's system calls."""
    return syscalls.MACHINE in ARCHITECTURES


def program(*, network: bool, shared_memory: bool, for_slot: bool = False,
            machine: str = syscalls.MACHINE) -> bytes:
    """Return the filter as an array of `struct sock_filter`.

    Args:
        for_slot: a slot can live with it too (SLOTS_OWN is left out).
        network: internet sockets are allowed; Unix sockets always are.
        shared_memory: anonymous shared mappings are allowed. They show in no process's resident size once
            their pages are dropped, so they are refused where no cgroup counts them.
    """
    column, architecture = ARCHITECTURES[machine]
    families = [socket.AF_UNIX, *[socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK] * network]
    rules = {numbers[column]: [_refuse()] for name, numbers in DENIED.items()
             if not (for_slot and name in SLOTS_OWN)}
    # Its flags lie in memory, out of a filter's sight; libc falls back to clone.
    rules[CLONE3] = [_refuse(errno.ENOSYS)]
    for call in (SOCKET, SOCKETPAIR):
        rules[call[column]] = [
            _step(LOAD, _argument(0)),
            *(_step(EQUAL, family, left, 0) for left, family in zip(range(len(families), 0, -1), families)),
            _refuse(), _step(RETURN, ALLOW)]
    rules[CLONE[column]] = [_step(LOAD, _argument(0)), _step(ANY_BIT, NEW_NAMESPACE, 0, 1), _refuse(),
                            _step(RETURN, ALLOW)]
    # An ordinary user's candidate has its slot's user id, which is all that prlimit asks of a stranger.
    rules[PRLIMIT[column]] = [_step(LOAD, _argument(0)), _step(EQUAL, 0, 1, 0), _refuse(),
                              _step(RETURN, ALLOW)]
    if not shared_memory:
        rules[MMAP[column]] = [_step(LOAD, _argument(3)), _step(ANY_BIT, MAP_ANONYMOUS, 0, 2),
                               _step(ANY_BIT, MAP_SHARED, 0, 1), _refuse(), _step(RETURN, ALLOW)]
    known = sorted((number, rule) for number, rule in rules.items() if number is not None)
    first = [_step(LOAD, ARCHITECTURE), _step(EQUAL, architecture, 1, 0), _step(RETURN, KILL),
             _step(LOAD, NUMBER)]
    if machine == "x86_64":
        first += [_step(AT_LEAST, X32, 0, 1), _step(RETURN, KILL)]
    return b"".join(first + _search(known))


def _search(rules: list[tuple[int, list[bytes]]]) -> list[bytes]:
    """Return steps that find the number's rule by halves: at install, the kernel tries every system call."""
    if len(rules) <= 2:
        return [step for number, rule in rules for step in (_step(EQUAL, number, 0, len(rule)), *rule)] + [
            _step(RETURN, ALLOW)]
    middle = len(rules) // 2
    low, high = _search(rules[:middle]), _search(rules[middle:])
    return [_step(AT_LEAST, rules[middle][0], len(low), 0), *low, *high]


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _refuse(code: int = errno.EPERM) -> bytes:
    return _step(RETURN, ERRNO | code)


def _argument(index: int) -> int:
    return 16 + 8 * index  # the low half: both architectures are little-endian


def install(filter_program: bytes) -> None:
    """Put the filter on this process and its children for good. Needs no_new_privs or root."""
    steps = ctypes.create_string_buffer(filter_program)
    header = ctypes.create_string_buffer(
        struct.pack("@HP", len(filter_program) // 8, ctypes.addressof(steps)))
    syscalls.prctl(syscalls.PR_SET_SECCOMP, syscalls.SECCOMP_MODE_FILTER, ctypes.addressof(header))
