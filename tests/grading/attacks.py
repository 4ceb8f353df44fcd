"""Submissions that attack: what each tries to do.

They are harmless where nothing contains them: they write to a canary's folder, connect to sockets
of the test, send signal 0, and start a handful of processes. Each name is followed by the body of a
function; placeholders in capitals are filled by `write`.
"""

from pathlib import Path

SOURCE = '''
import ctypes, json, os, resource, shutil, signal, socket, stat, subprocess, sys, threading
import time
import torch
import torch.nn as nn

libc = ctypes.CDLL(None, use_errno=True)


def call(name, *args):
    """A system call by its number on x86-64 and arm64; raises OSError."""
    numbers = {"x86_64": 0, "aarch64": 1}[os.uname().machine]
    number = CALLS[name][numbers]
    if number < 0:
        raise OSError("not on this machine")
    if (answer := libc.syscall(ctypes.c_long(number), *args)) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return answer


def judging():
    """The frame of the checks that holds the results."""
    frame = sys._getframe()
    while "token" not in frame.f_locals.get("results", {}):
        frame = frame.f_back
    return frame.f_locals


def forge(content):
    """Write to every descriptor that may lead to the grader."""
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, content.encode())
        except OSError:
            pass


def document(**changes):
    """Results in the form that the grader reads, with the real token."""
    passes = [dict(check=c, status="pass", measured="", expected="") for c in CENTRAL]
    content = dict(token=judging()["results"]["token"], findings=passes, pixels="", reason="")
    return json.dumps(content | changes)


def attack():
BODY


try:
    done = attack()
except BaseException as error:
    print("contained:", type(error).__name__, error, flush=True)
    FINALLY
else:
    print("ESCAPED", flush=True)


class VAE(nn.Module):
    def __init__(self, hidden_dim=500, z_dim=20):
        super().__init__()
        raise RuntimeError("the attack went on")
'''
CALLS = {  # numbers on x86-64, on arm64
    "ptrace": (101, 117), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "unshare": (272, 97), "clone": (56, 220), "clone3": (435, 435),
    "vfork": (58, -1), "io_uring_setup": (425, 425), "bpf": (321, 280), "keyctl": (250, 219),
    "memfd_create": (319, 279), "shmget": (29, 194), "perf_event_open": (298, 241),
    "userfaultfd": (323, 282), "process_vm_readv": (310, 270), "pidfd_open": (434, 434),
    "open_by_handle_at": (304, 265), "open_tree": (428, 428), "fsopen": (430, 430),
    "execveat": (322, 281), "msgget": (68, 186), "kcmp": (312, 272), "add_key": (248, 217),
}  # fmt: skip
CENTRAL = ("loss", "likelihood", "kl", "moments", "noise_per_image")

# What must fail with an exception inside.
ESCAPES = {
    # Files outside
    "writing": "open(CANARY + '/new', 'w')",
    "overwriting": "open(CANARY + '/file', 'w').write('gone')",
    "deleting": "shutil.rmtree(CANARY)",
    "writing through a link": "os.symlink(CANARY, 'link'); open('link/new', 'w')",
    "a hard link": "os.link(CANARY + '/file', 'mine'); open('mine', 'w').write('gone')",
    "reading a neighbour": "print(open(CANARY + '/file').read())",
    "importing a neighbour": (
        "sys.path.insert(0, CANARY); import neighbour; assert neighbour.NAME == 'his'"
    ),
    "the users of the machine": "open('/etc/passwd').read()",
    "the user's home": "assert [n for n in os.listdir(HOME) if n not in PYTHONS_PARENTS]",
    "writing to the checks": "open(sys.modules['grading'].__file__, 'a')",
    "writing to gencheck": "open(sys.modules['gencheck'].__file__, 'a')",
    "writing to PyTorch": "open(torch.__file__, 'a')",
    "writing to /dev": "open('/dev/new', 'w')",
    "writing to the root": "open('/new', 'w')",
    "a device": "os.mknod('disk', stat.S_IFBLK | 0o600, os.makedev(8, 0))",
    "kernel settings": "open('/proc/sys/kernel/core_pattern', 'r+')",
    "the sysrq trigger": "open('/proc/sysrq-trigger', 'w')",
    "the host's name": "socket.sethostname('gone')",
    "mounting": "call('mount', b'none', b'/tmp', b'tmpfs', 0, None)",
    "remounting": "call('mount', None, b'/', None, 4096 | 32, None)",
    "unmounting": "call('umount2', b'/proc', 2)",
    "another root": "os.chroot('/usr')",
    "pivoting": "call('pivot_root', b'.', b'.')",
    "copying a mount": "call('open_tree', -100, b'/', 1)",
    "a new file system": "call('fsopen', b'tmpfs', 0)",
    "opening by handle": "call('open_by_handle_at', 3, bytes(64), 0)",
    "a user namespace": "call('unshare', 0x10000000 | 0x20000)",
    # Sockets
    "TCP": "socket.create_connection(('127.0.0.1', PORT), timeout=2)",
    "UDP": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', PORT))",
    "a Unix socket": "socket.socket(socket.AF_UNIX).connect(UNIX)",
    "an abstract socket": "socket.socket(socket.AF_UNIX).connect(chr(0) + ABSTRACT)",
    "netlink": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)",
    "vsock": "socket.socket(40, socket.SOCK_STREAM)",
    "raw packets": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "a pair of sockets": "socket.socketpair()",
    # Processes
    "a child": "os.fork() or os._exit(0)",
    "a shell": "subprocess.run(['/bin/sh', '-c', 'true'], check=True)",
    "spawning": "os.posix_spawn('/bin/true', ['true'], {})",
    "another program in its place": "os.execv('/bin/true', ['true'])",
    "a program by descriptor": "call('execveat', os.open('/bin/true', os.O_RDONLY), b'', None, "
    "None, 0x1000)",
    "multiprocessing": "import multiprocessing as m; p = m.Process(target=print); p.start()",
    "clone": "call('clone', 17, None, None, None, None) or os._exit(0)",
    "clone3": "call('clone3', bytes(64), 64)",
    "signals to the server": "os.kill(os.getppid(), 0)",
    "signals to all": "os.kill(-1, 0)",
    "a signal by descriptor": "signal.pidfd_send_signal(os.pidfd_open(os.getppid()), 0)",
    "the server's memory": "open(f'/proc/{os.getppid()}/mem', 'rb')",
    "the server's descriptors": "os.listdir(f'/proc/{os.getppid()}/fd')",
    "the first process's root": "os.listdir('/proc/1/root')",
    "tracing": "call('ptrace', 16, os.getppid(), 0, 0)",
    "another's memory": "call('process_vm_readv', os.getppid(), None, 0, None, 0, 0)",
    "threads without end": "t = [threading.Thread(target=time.sleep, args=(1,)) for _ in range(99)]"
    "\n[x.start() for x in t]",
    # The kernel
    "io_uring": "call('io_uring_setup', 1, bytes(120))",
    "bpf": "call('bpf', 0, bytes(64), 64)",
    "keys": "call('keyctl', 0, -3, 1)",
    "a new key": "call('add_key', b'user', b'x', b'x', 1, -3)",
    "a file in memory": "call('memfd_create', b'x', 0)",
    "shared memory": "call('shmget', 0, 4096, 0o1600)",
    "a message queue": "call('msgget', 0, 0o1600)",
    "performance events": "call('perf_event_open', bytes(120), 0, -1, -1, 0)",
    "page faults": "call('userfaultfd', 1)",
    "comparing processes": "call('kcmp', os.getppid(), os.getpid(), 1, 0, 0)",
    "root": "os.setuid(0)",
    "more memory": "resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    # Resources
    "100 GB": "bytearray(100 << 30)",
    "a tensor of 100 GB": "torch.ones(25 << 30)",
    "a large file": "f = open('big', 'wb')\nfor _ in range(300): f.write(bytes(1 << 20))",
    "large files": "for i in range(3): open(f'{i}', 'wb').write(bytes(200 << 20))",
    "memory in /dev/shm": "with open('/dev/shm/x', 'wb') as f: f.write(bytes(100 << 20))",
}

# What ends the process, or its results: a part of the reason.
DEEP = """for _ in range(300):
    os.mkdir('d' * 200), os.chdir('d' * 200)
os.mkdir('closed'), os.chmod('closed', 0)
raise RuntimeError"""
# Without the limit of a statement, which a busy machine may reach first.
LOOP = "signal.signal(signal.SIGALRM, signal.SIG_IGN)\nwhile True: pass"
LEAVE = """libc.prctl(1, 0, 0, 0, 0)  # outlive the parent
signal.setitimer(signal.ITIMER_REAL, 0)
for s in (signal.SIGTERM, signal.SIGXCPU, signal.SIGALRM): signal.signal(s, signal.SIG_IGN)
while True: pass"""
QUIET = "os.closerange(0, 64)\nwhile True: time.sleep(1)"
MANY = "for i in range(1 << 20): os.close(os.open(f'{i}', os.O_CREAT))"
EVIL_ERROR = """class Evil(Exception):
    def __str__(self): raise KeyboardInterrupt
raise Evil"""
WENT_ON = "the attack went on"
DAMAGED = "its results are damaged"
PASS = "dict(check='kl', status='pass', measured='', expected='')"
SECONDS = 2  # of processor time, for those that would not end
LOOPED = f"stopped after {SECONDS} s of processor time"
WAITED = f"stopped after {5 * SECONDS} s ("
ENDS = {
    "an endless loop": (LOOP, LOOPED),
    "ignoring signals": (LEAVE, LOOPED),
    "sleeping in a closed process": (QUIET, WAITED),
    "stopping itself": ("os.kill(os.getpid(), signal.SIGSTOP)", WAITED),
    "endless output": ("while True: os.write(1, bytes(1 << 20))", "printed more than 64 MB"),
    "a million files": (MANY, "more than 20,000 files"),
    "folders without end": (DEEP, WENT_ON),
    "exit": ("os._exit(0)", "ended before the checks"),
    "system exit": ("sys.exit(0)", WENT_ON),
    "a signal to itself": ("os.kill(os.getpid(), signal.SIGKILL)", "ended before the checks"),
    "a crash": ("ctypes.string_at(0)", "ended before the checks"),
    "an interrupt": ("raise KeyboardInterrupt", WENT_ON),
    "printed results": ("print(document())\nraise RuntimeError", WENT_ON),
    "a line on every descriptor": ("forge('{}')\nraise RuntimeError", DAMAGED),
    "no object": ("forge('[' * 100_000)\nos._exit(0)", DAMAGED),
    "a flood": ("forge('x' * (1 << 21))", "larger than 1 MB"),
    "closed results": ("os.closerange(3, 64)\nraise RuntimeError", "ended before the checks"),
    "the same pass a thousand times": (
        f"forge(document(findings=[{PASS}] * 1000))\nos._exit(0)",
        DAMAGED,
    ),
    "an unknown check": (
        f"forge(document(findings=[{PASS} | dict(check='mine')]))\nos._exit(0)",
        DAMAGED,
    ),
    "an unknown status": (
        f"forge(document(findings=[{PASS} | dict(status='best')]))\nos._exit(0)",
        DAMAGED,
    ),
    "one pass and no more": (f"forge(document(findings=[{PASS}]))\nos._exit(0)", DAMAGED),
    "an endless text": (
        f"forge(document(findings=[{PASS} | dict(measured='x' * 5000)]))\nos._exit(0)",
        DAMAGED,
    ),
    "a number for a text": (
        f"forge(document(findings=[{PASS} | dict(measured=1e999)]))\nos._exit(0)",
        DAMAGED,
    ),
    "another picture": ("forge(document(pixels='<script>'))\nos._exit(0)", DAMAGED),
    "more keys": ("forge(document(points=100))\nos._exit(0)", DAMAGED),
    "results before the real ones": ("forge(document())\nraise RuntimeError", DAMAGED),
    "an error without words": (EVIL_ERROR, "KeyboardInterrupt"),
}
LASTING = {"sleeping in a closed process", "ignoring signals", "stopping itself"}  # seconds each


def write(folder: Path, body: str, finally_: str = "pass", **values: object) -> Path:
    """Write a submission into a folder; `finally_` runs when the attack has raised."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    source = SOURCE.replace("BODY", lines).replace("FINALLY", finally_)
    values |= {"CALLS": CALLS, "CENTRAL": CENTRAL}
    header = "".join(f"{name} = {value!r}\n" for name, value in values.items())
    path = folder / "a3_vae_template.py"
    path.write_text(header + source)
    return path
