"""The sandbox of one person's submission: bubblewrap around a fork server.

Everything is unshared. The root is empty but for Python, /usr, the virtual environment and the
packages that judge, all read-only; a folder in memory is for writing. There is none of
the user's environment variables, no network, no other process, no privilege, and nobody's files: a
request carries the content of the submission's own folder. `confine.py` adds the limits of the
process itself.
"""

import contextlib
import itertools
import json
import os
import secrets
import shutil
import signal
import site
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from grading.scratch import clear
from harness.errors import UsageError

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("datasets", "gencheck", "grading")  # what judging needs of this project
SCRATCH, SHARED = "/scratch", "/dev/shm"
SCRATCH_BYTES, SHARED_BYTES = 512 << 20, 16 << 20  # both in memory
NOBODY = "65534"
WAITING = 5  # a request takes at most so many times its limit of processor time
GRACE_SECONDS = 120.0  # beyond that, for the fork server to start and to clear up
PROBE_SECONDS = 20.0  # of processor time
ANSWER_BYTES = 8 << 20
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "USER": "nobody",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONPATH": str(ROOT),
    "PYTHONDONTWRITEBYTECODE": "1",
}
INSTEAD = (
    "install the packages bubblewrap and libseccomp2 and allow user namespaces, "
    "or give --unsafe in a container of its own for each person"
)


class SandboxError(Exception):
    """The sandbox can't be started, or does not hold; the message says why in one line."""


class Sandbox:
    """One person's sandbox. It starts with the first request, and again if a request ends it.

    Args:
        unsafe: run the fork server as it is, with the rights of the user.
    """

    def __init__(self, unsafe: bool = False):
        self.unsafe = unsafe
        self.process, self.closed, self.scratch = None, False, None
        self.lock = threading.Lock()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()
        self.end()

    def start(self) -> None:
        """Start it, and try from inside what must fail.

        Raises:
            SandboxError: it doesn't start, or something that must fail does not.
        """
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  (kept until the process ends)
        server = [sys.executable, "-P", "-W", "ignore", "-m", "grading.fork_server"]
        if self.unsafe:
            self.scratch = tempfile.mkdtemp(prefix="grading-")
            command = [*server, self.scratch]
        else:
            program = shutil.which("bwrap")  # in the user's PATH, not in that of ENVIRONMENT
            if program is None:
                raise SandboxError("bubblewrap is missing")
            command = [program, *bubblewrap()[1:], *server, SCRATCH, SHARED]
        with self.lock:
            if self.closed:
                raise SandboxError("the grading has ended")
            try:
                self.process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self.errors,
                    env=ENVIRONMENT,
                    cwd="/",
                    start_new_session=True,
                )
            except OSError as error:
                raise SandboxError(f"{command[0]} cannot be started: {error.strerror}") from error
        if not self.unsafe:
            self._probe()

    def _probe(self):
        with outside() as things:
            answer = self._ask({"outside": things}, PROBE_SECONDS)
        try:
            doors = json.loads(answer["results"])
        except ValueError:
            self.end()
            lines = answer["output"].strip().splitlines() or [answer["reason"]]
            raise SandboxError(f"the sandbox can't be set up: {lines[-1]}") from None
        if doors:
            self.end()
            raise SandboxError(f"the sandbox does not hold: a submission could {', '.join(doors)}")

    def ask(self, request: dict, seconds: float) -> dict:
        """The fork server's answer to a request, which may take `seconds` of processor time.

        It may take WAITING times as much of any time: what waits uses no processor time.

        Returns:
            `results` and `output`, texts; `reason`, why the process was ended, or ""; `seconds` of
            processor time and `peak_mb` of memory.

        Raises:
            SandboxError: it can't be started.
        """
        if self.process is None:
            self.start()
        return self._ask(request, seconds)

    def _ask(self, request, seconds):
        process = self.process
        wall_seconds = WAITING * seconds
        content = request | {"seconds": seconds, "wall_seconds": wall_seconds}
        content["sandboxed"] = not self.unsafe
        timer = threading.Timer(wall_seconds + GRACE_SECONDS, _kill, [process])
        timer.start()
        try:
            with contextlib.suppress(BrokenPipeError):  # the answer is missing, too
                process.stdin.write(json.dumps(content).encode() + b"\n")
                process.stdin.flush()
            line = process.stdout.readline(ANSWER_BYTES)
            return json.loads(line)
        except ValueError as error:  # no answer: it has ended, or was ended
            self.end()
            self.errors.seek(0)
            words = self.errors.read(10_000).decode(errors="replace").strip().splitlines()
            raise SandboxError(words[-1] if words else "the sandbox has ended") from error
        finally:
            timer.cancel()

    def end(self) -> None:
        """End all of its processes."""
        process, self.process = self.process, None
        if process is not None:
            _kill(process)
            process.wait()
            process.stdout.close()
            with contextlib.suppress(BrokenPipeError):  # of a request that was not read
                process.stdin.close()
        if self.scratch is not None:
            try:
                clear(Path(self.scratch))
                os.rmdir(self.scratch)
            except OSError as error:
                print(f"grading: {self.scratch} is left: {error.strerror}", file=sys.stderr)
            self.scratch = None

    def close(self) -> None:
        """Let it end and never start again; a thread that waits for an answer gets none."""
        with self.lock:
            self.closed = True
        process = self.process  # its thread may let it end at any time
        if process is not None:
            _kill(process)


def _kill(process):
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(process.pid, signal.SIGKILL)


def require(unsafe: bool) -> Sandbox:
    """A sandbox that has been probed, for the first person.

    Raises:
        UsageError: there can be none here; the message says what to do.
    """
    sandbox = Sandbox(unsafe)
    try:
        sandbox.start()
    except SandboxError as error:
        raise UsageError(f"there is no sandbox ({error}): {INSTEAD}") from error
    return sandbox


def bubblewrap() -> list[str]:
    """The words of the command line before the program that runs in the sandbox."""
    inner = [
        "bwrap", "--unshare-all", "--unshare-user", "--uid", NOBODY, "--gid", NOBODY,
        "--hostname", "sandbox", "--cap-drop", "ALL", "--new-session", "--die-with-parent",
        "--as-pid-1",  # bubblewrap's own first process could be taken over: it has no filter
        *_root(), "--proc", "/proc", "--dev", "/dev",
        "--size", str(SHARED_BYTES), "--tmpfs", SHARED, "--remount-ro", "/dev",
        "--size", str(SCRATCH_BYTES), "--tmpfs", SCRATCH, "--remount-ro", "/",
        "--chdir", SCRATCH, "--",
    ]  # fmt: skip
    if os.getuid() != 0:
        return inner
    # A namespace that maps root to nobody leaves it root outside: owner of root's files and of
    # /proc/sys, and free of limits on the number of threads. So root becomes nobody first, in a
    # root with the same folders: nobody may not be able to enter the folders above them.
    outer = [
        "bwrap", "--die-with-parent", "--cap-drop", "ALL",
        "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID",
        *_root(), "--dir", "/tmp", "--bind", "/proc", "/proc", "--dev-bind", "/dev", "/dev", "--",
        "setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups",
        "--inh-caps=-all", "--ambient-caps=-all", "--",
    ]  # fmt: skip
    return [*outer, *inner]


def readable() -> list[Path]:
    """The folders that a submission can read: Python's, the libraries', and our packages."""
    installed = [sys.prefix, sys.base_prefix, *site.getsitepackages()]
    if site.ENABLE_USER_SITE:
        installed.append(site.getusersitepackages())
    ours = [ROOT / name for name in PACKAGES]
    paths = [Path("/usr"), *(Path(path).resolve() for path in installed), *ours]
    return [
        path
        for i, path in enumerate(paths)
        if path.is_dir() and not any(path.is_relative_to(other) for other in paths[:i])
    ]


def _root():
    """Arguments that mount what is readable, each at its own place."""
    system = [Path("/lib"), Path("/lib64"), Path("/lib32"), Path("/bin"), Path("/sbin")]
    links = [path for path in system if path.is_symlink()]
    mounts = [path for path in system if path.is_dir() and not path.is_symlink()]
    # The loader's cache, what Debian's links to libraries lead to, and the processor's features,
    # without which PyTorch takes its slowest kernels.
    details = ["/etc/ld.so.cache", "/etc/alternatives", "/sys/devices/system/cpu"]
    mounts += [*readable(), *(path for path in map(Path, details) if path.exists())]
    words = []
    for path in links:
        words += ["--symlink", os.readlink(path), str(path)]
    for path in mounts:
        for parent in [*path.parents][-2::-1]:  # bubblewrap would make them for their owner only
            words += ["--dir", str(parent)]
        words += ["--ro-bind", str(path), str(path)]
    return words


@contextlib.contextmanager
def outside():
    """Things out of a sandbox's reach that its probe tries to reach; see `confine.open_doors`."""
    with (
        tempfile.TemporaryDirectory(prefix="grading-") as folder,
        socket.socket(socket.AF_UNIX) as unix,
        socket.create_server(("127.0.0.1", 0)) as server,
    ):
        os.chmod(folder, 0o755)  # only the sandbox keeps everyone out
        path = f"{folder}/{secrets.token_hex(4)}"
        unix.bind(path)
        unix.listen()
        os.chmod(path, 0o666)
        canary = Path(folder, "file")
        canary.touch()
        files = [str(canary)]
        with contextlib.suppress(OSError):  # a user without a home has no file there
            home = (entry.path for entry in os.scandir(Path.home()) if entry.is_file())
            files += itertools.islice(home, 1)
        yield {
            "folder": folder,
            "files": files,
            "unix": path,
            "port": server.getsockname()[1],
        }
