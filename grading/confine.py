"""Limits that a submission's process puts on itself, for good, before any code of it runs.

bubblewrap gives the process a file system, namespaces and no privileges (`sandbox.py`). Here
follow the limits of the process itself: memory, files and time, and a seccomp filter that refuses
system calls. A step that fails raises; nothing is skipped.
"""

import contextlib
import ctypes
import errno
import os
import resource
import signal
import socket
import sys
from pathlib import Path

import gencheck
import grading

MEMORY_BYTES = 6 << 30  # more than at the start
FILE_BYTES = 256 << 20
N_FILES = 512  # open at the same time
N_THREADS = 64

# The filter is made by libseccomp, through ctypes: it knows the numbers on all architectures,
# checks the architecture in the filter itself, and is in every distribution that has bubblewrap.
REFUSED = (
    # Sockets of every family: a Unix socket reaches servers outside through any mount.
    "socket", "socketpair", "connect", "bind", "listen", "accept", "accept4",
    # Programs and processes. Threads are made by clone, see below.
    "execve", "execveat", "fork", "vfork",
    # Namespaces and mounts
    "unshare", "setns", "chroot", "pivot_root", "mount", "umount2", "move_mount", "open_tree",
    "fsopen", "fsconfig", "fsmount", "fspick", "open_by_handle_at", "name_to_handle_at",
    # Other processes
    "ptrace", "process_vm_readv", "process_vm_writev", "kcmp", "pidfd_open", "pidfd_getfd",
    "pidfd_send_signal", "tkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo",
    # Memory that RLIMIT_AS does not count, or that outlives the process
    "memfd_create", "shmget", "msgget", "semget", "mq_open",
    # Large parts of the kernel that no submission needs
    "io_uring_setup", "io_uring_enter", "io_uring_register", "bpf", "perf_event_open",
    "userfaultfd", "keyctl", "add_key", "request_key", "init_module", "finit_module",
    "delete_module", "kexec_load", "kexec_file_load", "fanotify_init", "quotactl", "acct",
    "swapon", "swapoff", "reboot", "syslog", "iopl", "ioperm", "modify_ldt",
)  # fmt: skip
ALLOW, FAIL = 0x7FFF0000, 0x00050000  # actions of libseccomp; FAIL + errno
NOT_EQUAL, MASKED_EQUAL = 1, 7  # comparisons of libseccomp
CLONE_THREAD, CLONE_NEWUSER = 0x10000, 0x10000000


class _Comparison(ctypes.Structure):
    """libseccomp's scmp_arg_cmp: a condition on one argument of a call."""

    _fields_ = [
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    ]


def limit(cpu_seconds: int) -> None:
    """Limit memory, files, threads and processor time of this process.

    Raises:
        OSError: a limit can't be read or set.
    """
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = {
        resource.RLIMIT_AS: pages * resource.getpagesize() + MEMORY_BYTES,
        resource.RLIMIT_FSIZE: FILE_BYTES,
        resource.RLIMIT_NOFILE: N_FILES,
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NPROC: N_THREADS,
    }
    for kind, value in limits.items():
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit fails instead


def refuse_calls() -> None:
    """Load the seccomp filter: the calls of REFUSED fail with EPERM from now on.

    A process must be unable to gain privileges before; bubblewrap sees to that.

    Raises:
        OSError: libseccomp is missing or older than a call in the list, or the kernel refuses.
    """
    library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(ALLOW)))
    if not context:
        raise OSError("libseccomp: seccomp_init failed")

    def refuse(name, code=errno.EPERM, *conditions):
        number = library.seccomp_syscall_resolve_name(name.encode())
        array = (_Comparison * len(conditions))(*conditions)
        action = ctypes.c_uint32(FAIL | code)
        if number == -1 or library.seccomp_rule_add_array(
            context, action, number, len(conditions), array
        ):
            raise OSError(f"libseccomp cannot refuse {name}")

    for name in REFUSED:
        refuse(name)
    refuse("clone3", errno.ENOSYS)  # its flags lie in memory; C libraries fall back to clone
    refuse("clone", errno.EPERM, _Comparison(0, MASKED_EQUAL, CLONE_THREAD, 0))
    for name in ("kill", "tgkill"):  # a process may end itself
        refuse(name, errno.EPERM, _Comparison(0, NOT_EQUAL, os.getpid(), 0))
    if code := library.seccomp_load(context):
        raise OSError(-code, "the kernel refuses the seccomp filter")


def open_doors(outside: dict) -> list[str]:
    """What a submission could do in this process that it must not, in words; [] if all holds.

    Args:
        outside: made by the grader, out of reach: `folder`, a folder; `files`, files that exist;
            `unix`, the path of a socket that listens; `port`, one on 127.0.0.1.
    """
    checks = [str(Path(module.__file__).parent) for module in (gencheck, grading)]
    folders = ["/", "/usr", "/dev", "/proc", sys.prefix, sys.base_prefix, *checks]
    folders.append(outside["folder"])

    def write(folder):
        path = f"{folder}/grading-probe"
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        os.unlink(path)

    def connect(family, address):
        with socket.socket(family) as client:
            client.settimeout(1)
            client.connect(address)

    def start_process():
        if os.fork() == 0:
            os._exit(0)

    def start_program():
        with contextlib.suppress(FileNotFoundError):  # so the call itself is allowed
            os.execv("/nowhere", ["nowhere"])

    def unshare():
        if ctypes.CDLL(None).unshare(CLONE_NEWUSER):
            raise PermissionError

    def have_privileges():
        status = dict(
            line.split(":\t", 1)
            for line in Path("/proc/self/status").read_text().splitlines()
            if ":\t" in line
        )
        nobody = "0" not in status["Uid"].split() and int(status["CapEff"], 16) == 0
        if nobody and status["NoNewPrivs"] == "1" and status["Seccomp"] == "2":
            raise PermissionError

    def see_processes():
        # The fork server and this one
        if sum(name.isdigit() for name in os.listdir("/proc")) == 2:
            raise PermissionError

    attempts = [
        *(("write outside its folder", lambda f=f: write(f)) for f in folders),
        ("change the kernel's settings", lambda: open("/proc/sys/vm/drop_caches", "r+b").close()),
        *(("read the user's files", lambda f=f: open(f).close()) for f in outside["files"]),
        ("connect", lambda: connect(socket.AF_UNIX, outside["unix"])),
        ("connect", lambda: connect(socket.AF_INET, ("127.0.0.1", outside["port"]))),
        ("start a process", start_process),
        ("start a program", start_program),
        ("make a namespace", unshare),
        ("use privileges", have_privileges),
        ("see other processes", see_processes),
    ]
    found = []
    for words, attempt in attempts:
        with contextlib.suppress(OSError):
            attempt()
            found.append(words)
    return sorted(set(found))
