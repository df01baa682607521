"""P11: thirty system calls that lead out of a container."""

from __future__ import annotations

import pytest
from boxes import Ways, box

from appliance.sandbox.podman import PodmanExecutor

pytestmark = [
    pytest.mark.podman,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.usefixtures("each_tier_and_image"),
]

NAMESPACES = {
    "time": 0x00000080,
    "mount": 0x00020000,
    "cgroup": 0x02000000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "net": 0x40000000,
}
# x86_64 and aarch64 numbers; arguments that would work for a privileged process.
CALLS = {
    "unshare user": (272, 97, (0x10000000,)),
    "unshare mount": (272, 97, (0x00020000,)),
    "setns": (308, 268, ("fd", 0)),
    "mount": (165, 40, (b"none", b"/tmp", b"tmpfs", 0, 0)),
    "umount2": (166, 39, (b"/tmp", 2)),
    "pivot_root": (155, 41, (b"/tmp", b"/tmp")),
    "chroot": (161, 51, (b"/tmp",)),
    "mknod": (259, 33, (-100, b"/tmp/null", 0o20666, 0x103)),
    "keyctl": (250, 219, (0, 0xFFFFFFFD, 1)),
    "add_key": (248, 217, (b"user", b"x", b"y", 1, 0xFFFFFFFD)),
    "request_key": (249, 218, (b"user", b"x", 0, 0)),
    "bpf": (321, 280, (0, 0, 0)),
    "io_uring_setup": (425, 425, (8, "buffer")),
    "userfaultfd": (323, 282, (1,)),
    "perf_event_open": (298, 241, ("buffer", 0, -1, -1, 0)),
    "ptrace traceme": (101, 117, (0, 0, 0, 0)),
    "process_vm_readv": (310, 270, ("pid", "buffer", 0, "buffer", 0, 0)),
    "process_vm_writev": (311, 271, ("pid", "buffer", 0, "buffer", 0, 0)),
    "open_by_handle_at": (304, 265, ("fd", "buffer", 0)),
    "name_to_handle_at": (303, 264, (-100, b"/tmp", "buffer", "buffer", 0)),
    "kexec_load": (246, 104, (0, 0, 0, 0)),
    "init_module": (175, 105, ("buffer", 0, b"")),
    "finit_module": (313, 273, ("fd", b"", 0)),
    "reboot": (169, 142, (0xFEE1DEAD, 672274793, 0, 0)),
    "swapon": (167, 224, (b"/tmp/x", 0)),
    "syslog": (103, 116, (3, "buffer", 10)),
    "quotactl": (179, 60, (0, 0, 0, 0)),
    "acct": (163, 89, (b"/tmp/x",)),
    "settimeofday": (164, 170, ("buffer", 0)),
    "sethostname": (170, 161, (b"x", 1)),
    "fsopen": (430, 430, (b"tmpfs", 0)),
    "open_tree": (428, 428, (-100, b"/tmp", 1)),
    "move_mount": (429, 429, (-100, b"/tmp", -100, b"/model", 0)),
    "mount_setattr": (442, 442, (-100, b"/tmp", 0, "buffer", 32)),
    "fanotify_init": (300, 262, (0, 0)),
    "pidfd_getfd": (438, 438, ("fd", 0, 0)),
    "kcmp": (312, 272, ("pid", "pid", 0, 0, 0)),
    "clone new user": (56, 220, (0x10000000 | 17, 0, 0, 0, 0)),
    "clone new net": (56, 220, (0x40000000 | 17, 0, 0, 0, 0)),
    "clone3": (435, 435, ("buffer", 88)),
    "socket packet": (41, 198, (17, 3, 0)),
    "socket alg": (41, 198, (38, 5, 0)),
    "socket vsock": (41, 198, (40, 1, 0)),
    "socket xdp": (41, 198, (44, 3, 0)),
    "socket netlink audit": (41, 198, (16, 3, 9)),
    "socket bluetooth": (41, 198, (31, 3, 0)),
    "socket raw": (41, 198, (2, 3, 1)),
    "socketpair tipc": (53, 199, (30, 1, 0, "buffer")),
    "personality": (135, 92, (0x0400000,)),
    "vmsplice": (278, 75, ("fd", "buffer", 0, 0)),
    "iopl": (172, 999, (3,)),
    "modify_ldt": (154, 999, (0, "buffer", 16)),
    "memfd_secret": (447, 447, (0,)),
    "ptrace attach": (101, 117, (16, "pid", 0, 0)),
    "ptrace seize": (101, 117, (0x4206, "pid", 0, 0)),
    "keyctl join session": (250, 219, (1, 0)),
    "keyctl describe": (250, 219, (6, 0xFFFFFFFD, "buffer", 4096)),
    "keyctl link": (250, 219, (8, 0xFFFFFFFD, 0xFFFFFFFC)),
    "io_uring_enter": (426, 426, (0, 0, 0, 0, 0, 0)),
    "io_uring_register": (427, 427, (0, 0, 0, 0)),
    "kexec_file_load": (320, 294, (0, 0, 0, b"", 0)),
    "delete_module": (176, 106, (b"x", 0)),
    "swapoff": (168, 225, (b"/tmp/x",)),
    "setdomainname": (171, 162, (b"x", 1)),
    "clock_settime": (227, 112, (0, "buffer")),
    "clock_adjtime": (305, 266, (0, "buffer")),
    "fsmount": (432, 432, ("fd", 0, 0)),
    "fsconfig": (431, 431, ("fd", 0, 0, 0, 0)),
    "fspick": (433, 433, (-100, b"/tmp", 0)),
    "fanotify_mark": (301, 263, (0, 1, 2, -100, b"/tmp")),
    "quotactl_fd": (443, 443, ("fd", 0, 0, 0)),
    "process_madvise": (440, 440, ("fd", 0, 0, 0, 0)),
    "process_mrelease": (448, 448, ("fd", 0)),
    "move_pages": (279, 239, (1, 0, 0, 0, 0, 0)),
    "vhangup": (153, 58, ()),
    "ioperm": (173, 999, (0, 8, 1)),
    "lookup_dcookie": (212, 18, (0, "buffer", 4096)),
    "memfd_create hugetlb": (319, 279, (b"x", 4)),
    "shmget hugetlb": (29, 194, (0, 1 << 21, 0o4600 | 0o1000)),
    "mq_open with a size": (240, 180, (b"x", 0o102, 0o600, "queue")),
    **{f"unshare {name}": (272, 97, (flag,)) for name, flag in NAMESPACES.items()},
    **{
        f"clone new {name}": (56, 220, (flag | 17, 0, 0, 0, 0))
        for name, flag in NAMESPACES.items()
        if name != "time"  # in clone(2) its bit is the number of a signal
    },
    **{f"socket netlink {family}": (41, 198, (16, 3, family)) for family in range(1, 23)},
    **{
        f"socket family {family}": (41, 198, (family, kind, 0))
        for family in range(3, 46)
        if family not in (10, 16)
        for kind in (1, 2, 3)
    },
}

PROBE = """
import ctypes, os, platform
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
column = {"x86_64": 0, "aarch64": 1}[platform.machine()]
room = ctypes.create_string_buffer(4096)
fd = os.open("/proc/self/ns/user", os.O_RDONLY)
queue = (ctypes.c_long * 8)(0, 1 << 20, 1 << 20)  # more than its share of locked memory
special = {"buffer": room, "queue": queue, "fd": fd, "pid": os.getpid()}
answer = {}
for name, (*numbers, arguments) in inputs["calls"].items():
    values = []
    for one in arguments:
        if isinstance(one, str):
            one = special.get(one, one.encode())
        values.append(ctypes.c_long(one) if isinstance(one, int) else one)
    pid = os.fork()
    if pid == 0:
        ctypes.set_errno(0)
        result = libc.syscall(ctypes.c_long(numbers[column]), *values)
        os._exit(0 if result >= 0 else max(1, min(ctypes.get_errno(), 254)))
    _, status = os.waitpid(pid, 0)
    answer[name] = os.waitstatus_to_exitcode(status)
"""


async def test_every_way_out_is_refused(podman_executor: PodmanExecutor) -> None:
    calls = {
        name: (x86, arm, [a.decode() if isinstance(a, bytes) else a for a in arguments])
        for name, (x86, arm, arguments) in CALLS.items()
    }
    if podman_executor.limits.level == "enforced":  # the kernel counts what is in it
        calls.pop("memfd_create hugetlb")
    if Ways.isolation == "gvisor":  # memory like any other there, and counted
        calls.pop("shmget hugetlb")
    async with box(podman_executor) as one:
        found, names = {}, list(calls)
        for at in range(0, len(names), 60):  # a fork each, which takes gVisor a while
            found |= await one.run(PROBE, calls={n: calls[n] for n in names[at : at + 60]})
    assert set(found) == set(calls)
    assert len(found) > 30
    let_in = [name for name, code in found.items() if code == 0]
    assert not let_in


async def test_32_bit_calls_do_not_pass_around_the_filter(podman_executor: PodmanExecutor) -> None:
    text = """
import ctypes, mmap, os, platform
if platform.machine() != "x86_64":
    answer = -1
else:
    code = bytes([0xB8, 0x36, 0x01, 0, 0, 0xBB, 0, 0, 0, 0x10, 0xCD, 0x80, 0xC3])
    page = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=7)
    page.write(code)
    call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    pid = os.fork()
    if pid == 0:
        os._exit(0 if call() == 0 else 9)  # unshare(CLONE_NEWUSER) by int 0x80
    answer = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""
    async with box(podman_executor) as one:
        assert await one.run(text) != 0


async def test_ordinary_work_still_passes(podman_executor: PodmanExecutor) -> None:
    text = """
import concurrent.futures, multiprocessing, os, socket, sqlite3, subprocess, tempfile, threading
with multiprocessing.get_context("fork").Pool(2) as pool:
    doubled = pool.map(int, ["1", "2"])
with concurrent.futures.ThreadPoolExecutor(2) as threads:
    trebled = list(threads.map(lambda n: n * 3, [1, 2]))
done = subprocess.run(["/bin/echo", "x"], capture_output=True).stdout.decode()
a, b = socket.socketpair()
a.send(b"y")
rows = sqlite3.connect(":memory:").execute("select 1 + 1").fetchone()
server = socket.create_server(("127.0.0.1", 0))
socket.create_connection(server.getsockname()).close()
answer = [doubled, trebled, done, b.recv(1).decode(), rows]
"""
    async with box(podman_executor) as one:
        assert await one.run(text) == [[1, 2], [3, 6], "x\n", "y", [2]]
