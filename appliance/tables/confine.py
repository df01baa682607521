"""What is taken from a process before it reads a stranger's file.

Owns: limits of memory and files, and the list of system calls that are left.
Never: knows what the process does; it keeps the descriptors it has and gets no other.
Read next: ``child``.

After ``confine`` the process can compute, allocate up to its limit, read and write descriptors it
holds already, and end. It can open no file and no socket, start no process and signal none: the
kernel answers all else with EPERM. There is no way back.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
from pathlib import Path

_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2
_ALLOW = 0x7FFF0000
_EPERM = 0x00050001
_KILL = 0x80000000
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_AT_NUMBER, _AT_ARCH = 0, 4
# read write close fstat lseek mmap mprotect munmap brk rt_sigaction rt_sigprocmask rt_sigreturn
# pread64 readv writev poll sched_yield mremap madvise nanosleep getpid exit gettimeofday getrusage
# sysinfo times sigaltstack gettid futex sched_getaffinity clock_gettime clock_getres
# clock_nanosleep exit_group restart_syscall getcpu getrandom membarrier rseq
_CALLS: dict[str, tuple[int, str]] = {
    "x86_64": (
        0xC000003E,
        "0 1 3 5 8 9 10 11 12 13 14 15 17 19 20 7 24 25 28 35 39 60 96 98 99 100 131 186 202 204 "
        "228 229 230 231 219 309 318 324 334",
    ),
    "aarch64": (
        0xC00000B7,
        "63 64 57 80 62 222 226 215 214 134 135 139 67 65 66 73 124 216 233 101 172 93 169 165 179 "
        "153 132 178 98 123 113 114 115 94 128 168 278 283 293",
    ),
}


def confine(*, memory_bytes: int) -> None:
    """Give up everything but computing and the descriptors that are open; for good.

    Args:
        memory_bytes: how much more address space than now the process may take.

    Raises:
        OSError: the kernel refuses, or its processor is not known here.
    """
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for limit, most in (
        (resource.RLIMIT_AS, size + memory_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        resource.setrlimit(limit, (most, most))
    libc = ctypes.CDLL(None, use_errno=True)
    _control(libc, _PR_SET_DUMPABLE, 0)
    _control(libc, _PR_SET_NO_NEW_PRIVS, 1)
    machine = platform.machine()
    if machine not in _CALLS:
        raise OSError(f"system calls of {machine} are not known")
    arch, calls = _CALLS[machine]
    program = _program(arch, tuple(int(number) for number in calls.split()))
    buffer = ctypes.create_string_buffer(program)
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    _control(libc, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.create_string_buffer(header))


def _program(arch: int, calls: tuple[int, ...]) -> bytes:
    """Classic BPF: the listed calls of this architecture pass, others fail, other ones kill."""
    lines = [
        (_LOAD, 0, 0, _AT_ARCH),
        (_EQUAL, 1, 0, arch),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _AT_NUMBER),
        *((_EQUAL, len(calls) - at, 0, number) for at, number in enumerate(calls)),
        (_RETURN, 0, 0, _EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("HBBI", *line) for line in lines)


def _control(libc: ctypes.CDLL, option: int, *args: object) -> None:
    padded = [*args, 0, 0, 0, 0][:4]
    values = [ctypes.c_ulong(v) if isinstance(v, int) else v for v in padded]
    if libc.prctl(option, *values) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl {option}: {os.strerror(number)}")
