"""The process inside a sandbox: it has PyTorch and the data, and forks one process per file.

It reads requests from stdin and writes answers to stdout, one JSON object a line each. The file's
process has no descriptor of either, and can't look into this one.
"""

import contextlib
import ctypes
import json
import os
import selectors
import signal
import sys
import time
import traceback
from pathlib import Path

from grading import confine, dynamo, worker
from grading.checks import STOPPED
from grading.scratch import clear

OUTPUT_BYTES = 64 << 20  # printing more ends a submission
KEPT_OUTPUT = 20_000  # bytes of it are kept
RESULT_BYTES = 1 << 20  # more results than that end it, too
N_INODES = 20_000  # and more files and folders
PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4


def main(folders: list[Path]) -> None:
    """Answer requests until stdin closes.

    Args:
        folders: where submissions may write; emptied after each request. They start in the first.
    """
    if ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0):  # hides its memory and descriptors
        raise OSError("prctl failed")
    dynamo.install()
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0), os.dup2(nothing, 1)
    for line in requests:
        request = json.loads(line)
        worker.import_shared(request.get("files", {}))
        answer = _run(request, folders, (requests, answers))
        for folder in folders:
            clear(folder)
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def _run(request, folders, streams):
    results_r, results_w = os.pipe()
    output_r, output_w = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            for stream in streams:
                os.close(stream.fileno())
            os.close(results_r), os.close(output_r)
            os.dup2(output_w, 1), os.dup2(output_w, 2)
            os.close(output_w)
            _child(request, folders[0], results_w)
        except BaseException:
            os.write(2, traceback.format_exc().encode())  # the end below would show nothing
        finally:
            os._exit(1)
    os.close(results_w), os.close(output_w)
    # The file systems in memory count their files; without a sandbox others make some, too.
    counted = folders if request["sandboxed"] else []
    limits = request["seconds"], request["wall_seconds"]
    results, output, reason = _collect(
        results_r, output_r, streams[0].fileno(), pid, limits, counted
    )
    _, _, usage = os.wait4(pid, 0)
    return {
        "results": results.decode(errors="replace"),
        "output": output.decode(errors="replace"),
        "reason": reason,
        "seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_mb": usage.ru_maxrss >> 10,
    }


def _child(request, scratch, results):
    if ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):  # ends with the server
        raise OSError("prctl failed")
    confine.limit(2 * int(request["seconds"]) + 5)  # if the server can't end it
    if request["sandboxed"]:
        confine.refuse_calls()
    if "outside" in request:
        content = json.dumps(confine.open_doors(request["outside"]))
    else:
        content = worker.judge(request, scratch)
    with os.fdopen(results, "w") as stream:
        stream.write(content)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)


def _collect(results_r, output_r, requests, pid, limits, folders):
    """(results, output, the reason why the process was ended or "") once it has ended."""
    seconds, wall_seconds = limits
    parts, reason, ends = {results_r: [], output_r: []}, "", time.monotonic() + wall_seconds
    sizes = dict.fromkeys(parts, 0)
    before = _inodes(folders)
    with selectors.DefaultSelector() as selector:
        # There is one request at a time: anything to read is the end of the grader's process.
        for descriptor in (*parts, requests):
            selector.register(descriptor, selectors.EVENT_READ)
        # A process may close both pipes and go on.
        while not reason and not (len(selector.get_map()) == 1 and _has_ended(pid)):
            for key, _ in selector.select(0.2 if len(selector.get_map()) > 1 else 0.02):
                if key.fd == requests:
                    reason = "the grader has ended"
                    break
                chunk = os.read(key.fd, 1 << 16)
                if not chunk:
                    selector.unregister(key.fd)
                sizes[key.fd] += len(chunk)
                if key.fd == results_r or sizes[key.fd] <= KEPT_OUTPUT + len(chunk):
                    parts[key.fd].append(chunk)
            if sizes[output_r] > OUTPUT_BYTES:
                reason = f"it printed more than {OUTPUT_BYTES >> 20} MB"
            elif sizes[results_r] > RESULT_BYTES:
                reason = f"its results are larger than {RESULT_BYTES >> 20} MB"
            elif _inodes(folders) > before + N_INODES:
                reason = f"it made more than {N_INODES:,} files"
            elif (used := processor_seconds(pid)) > seconds:
                reason = f"{STOPPED} {seconds:g} s of processor time"
            elif time.monotonic() > ends:
                reason = (
                    f"{STOPPED} {wall_seconds:g} s ({used:.1f} s of processor time): "
                    "it waits for something, or the machine is busy"
                )
    for descriptor in parts:
        os.close(descriptor)
    # Its process group, since without a sandbox it may have started processes. It has not been
    # waited for, so the number is still its own.
    os.killpg(pid, signal.SIGKILL)
    output = b"".join(parts[output_r])[:KEPT_OUTPUT]
    return b"".join(parts[results_r])[:RESULT_BYTES], output, reason


def _has_ended(pid):
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def processor_seconds(session: int) -> float:
    """Processor time of the processes of a session, and of their children that have ended."""
    ticks = 0
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            # After the program's name, which may hold anything: see proc_pid_stat(5).
            fields = file.read_bytes().rpartition(b")")[2].split()
            if int(fields[3]) == session:
                ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _inodes(folders):
    used = (os.statvfs(folder) for folder in folders)
    return sum(file_system.f_files - file_system.f_ffree for file_system in used)


if __name__ == "__main__":
    main([Path(folder) for folder in sys.argv[1:]])
