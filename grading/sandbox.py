"""Limits on the process that runs a submission: what it may write, reach, start and use up.

On Linux: namespaces of its own for users, mounts, processes and the network (none left), a file
system that is read-only outside the scratch directory, and a filter that refuses new processes.
Elsewhere only the resource limits hold. Nothing here replaces a container for strangers' code.
"""

import ctypes
import errno
import os
import platform
import resource
import signal
import struct
from pathlib import Path

MEMORY_BYTES = 6 << 30  # more than at the start
FILE_BYTES = 256 << 20
N_FILES = 512
N_PROCESSES = 64
CLONE = {
    "user": 0x10000000,
    "mount": 0x20000,
    "pid": 0x20000000,
    "network": 0x40000000,
    "ipc": 0x8000000,
}
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
NAMESPACES = ("network", "files", "hidden processes")
KEPT_FLAGS = (
    2 | 4 | 8 | 1024 | 2048
)  # nosuid, nodev, noexec, noatime, nodiratime: may not be dropped
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP = 1, 4, 38, 22
CAPABILITY_VERSION_3 = 0x20080522


def isolate(scratch: Path) -> list[str]:
    """Enter namespaces of its own; only `scratch` stays writable. Call it before any thread starts.

    Returns what could not be enforced. The caller goes on as another process, in whose place this
    one waits, if process namespaces exist.
    """
    if platform.system() != "Linux":
        return list(NAMESPACES)
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(sum(CLONE.values())):
        return list(NAMESPACES)
    for name, content in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {uid} 1"),
        ("gid_map", f"{gid} {gid} 1"),
    ):
        Path(f"/proc/self/{name}").write_text(content)
    missing = [] if _read_only_except(libc, str(scratch.resolve())) else ["files"]
    _continue_in_child(libc)  # the first process of the namespace: all others end with it
    _continue_in_child(libc)  # the submission's, which cannot end the first one
    if libc.mount(b"proc", b"/proc", b"proc", 0, None):
        missing.append("hidden processes")
    return missing


def _read_only_except(libc, scratch: str) -> bool:
    def mount(source, target, flags):
        return libc.mount(source and source.encode(), target.encode(), None, flags, None) == 0

    if not mount(None, "/", MS_REC | MS_PRIVATE) or not mount(scratch, scratch, MS_BIND):
        return False
    done = True
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        target = line.split()[4].encode().decode("unicode_escape")
        if target in (scratch, "/proc", "/dev/pts"):
            continue
        try:
            flags = os.statvfs(target).f_flag & KEPT_FLAGS
        except OSError:
            continue  # hidden under another mount
        done &= mount(None, target, MS_REMOUNT | MS_BIND | MS_RDONLY | flags)
    return done


def _continue_in_child(libc) -> None:
    """Go on as a child, which ends with this process; nobody may look into the one that waits."""
    child = os.fork()
    if child:
        libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def limit(cpu_seconds: int) -> list[str]:
    """Limit memory, files, processor time and processes; returns what could not be enforced."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if os.path.exists("/proc") else 0
    limits = {
        resource.RLIMIT_AS: pages * resource.getpagesize() + MEMORY_BYTES,
        resource.RLIMIT_FSIZE: FILE_BYTES,
        resource.RLIMIT_NOFILE: N_FILES,
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NPROC: N_PROCESSES,
    }
    missing = []
    for kind, value in limits.items():
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(kind, (value, value))
        except (OSError, ValueError):
            missing.append("memory" if kind == resource.RLIMIT_AS else "resources")
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit fails instead
    if platform.system() != "Linux":
        return [*missing, "privileges", "processes"]
    libc = ctypes.CDLL(None, use_errno=True)
    if not _drop_privileges(libc):
        missing.append("privileges")
    if not _refuse_processes(libc):
        missing.append("processes")
    return missing


def _drop_privileges(libc) -> bool:
    """Give up all capabilities for good: with them a process undoes its own namespaces' limits."""
    header, none = struct.pack("=Ii", CAPABILITY_VERSION_3, 0), bytes(24)
    return libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 == libc.capset(header, none)


def _refuse_processes(libc) -> bool:
    """A seccomp filter: fork and clone fail with EAGAIN unless they make a thread.

    It needs a process that can gain no privileges.
    """
    numbers = {"x86_64": (0xC000003E, 56, (57, 58)), "aarch64": (0xC00000B7, 220, ())}
    if platform.machine() not in numbers:
        return False
    architecture, clone, forks = numbers[platform.machine()]
    load, equal, any_bit, give = 0x20, 0x15, 0x45, 0x06
    allow, again, unknown = 0x7FFF0000, 0x50000 | errno.EAGAIN, 0x50000 | errno.ENOSYS
    clone3, clone_thread = 435, 0x10000
    # (code, jump if true, jump if false, value): offset 4 is the architecture, 0 the number of the
    # call, 16 its first argument. C libraries fall back to clone when clone3 is unknown.
    program = [(load, 0, 0, 4), (equal, 1, 0, architecture), (give, 0, 0, again), (load, 0, 0, 0)]
    for fork in forks:
        program += [(equal, 0, 1, fork), (give, 0, 0, again)]
    program += [
        (equal, 0, 1, clone3),
        (give, 0, 0, unknown),
        (equal, 0, 3, clone),
        (load, 0, 0, 16),
        (any_bit, 1, 0, clone_thread),
        (give, 0, 0, again),
        (give, 0, 0, allow),
    ]
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HL", len(program), ctypes.addressof(buffer))
    return libc.prctl(PR_SET_SECCOMP, 2, header, 0, 0) == 0
