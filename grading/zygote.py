"""A process that has loaded PyTorch and the data, and forks a fresh one for every submission.

The grader sends a request and two file descriptors through a socket: findings are written to the
first, one JSON object a line, the submission's own output to the second. The answer is the
process's number.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

OUTPUT_BYTES = 64 << 20  # printing more ends a submission
KEPT_OUTPUT = 20_000  # characters of it are kept
RESULT_BYTES = 16 << 20  # more results than that end it, too


class Zygote:
    """Starts submissions in forked processes, each with limits of its own."""

    def __init__(self):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        root = str(Path(__file__).resolve().parent.parent)
        environment = {
            "PATH": "/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": root,
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "grading.fork_server", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        self.socket, self.lock = ours, threading.Lock()
        self.running: set[int] = set()

    def close(self) -> None:
        """End the process and its children."""
        self.socket.close()
        for pid in self.running.copy():
            _kill(pid)
        self.process.wait()

    def run(self, request: dict, seconds: float) -> tuple[list[dict], str, str]:
        """Run a request: (the objects it wrote, the reason it ended early or "", its output)."""
        with tempfile.TemporaryDirectory(prefix="grading-", ignore_cleanup_errors=True) as scratch:
            results_r, results_w = os.pipe()
            output_r, output_w = os.pipe()
            message = json.dumps(request | {"scratch": scratch, "seconds": seconds}).encode()
            with self.lock:
                socket.send_fds(self.socket, [message], [results_w, output_w])
                pid = int(self.socket.recv(64))
            os.close(results_w), os.close(output_w)
            self.running.add(pid)
            try:
                return _collect(pid, results_r, output_r, seconds)
            finally:
                self.running.discard(pid)


def _kill(pid: int) -> None:
    """End a submission's process and all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _collect(pid: int, results_r: int, output_r: int, seconds: float):
    reason, output = [], []

    def kill(why):
        reason.append(why)
        _kill(pid)

    def read_output():
        size = 0
        with open(output_r, "rb", buffering=0) as stream:
            while chunk := stream.read(1 << 16):
                if size < KEPT_OUTPUT:
                    output.append(chunk[: KEPT_OUTPUT - size])
                size += len(chunk)
                if size > OUTPUT_BYTES and not reason:
                    kill(f"it printed more than {OUTPUT_BYTES >> 20} MB")

    reader = threading.Thread(target=read_output, daemon=True)
    reader.start()
    timer = threading.Timer(seconds, kill, [f"it took longer than {seconds:.0f} s"])
    timer.start()
    with open(results_r, "rb") as stream:
        results = stream.read(RESULT_BYTES + 1)
        if len(results) > RESULT_BYTES:
            kill(f"its results are larger than {RESULT_BYTES >> 20} MB")
    timer.cancel()
    kill("")  # whatever it left running
    reader.join(timeout=5)
    return _objects(results), reason[0], b"".join(output).decode(errors="replace")


def _objects(results: bytes) -> list[dict]:
    """The JSON objects, one a line; a submission may have written other lines between them."""
    objects = []
    for line in results.splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            objects.append(json.loads(line))
    return [found for found in objects if isinstance(found, dict)]
