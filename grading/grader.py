"""Judging submissions side by side, one sandbox a person, and remembering what was judged."""

import hashlib
import json
import secrets
import sys
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from gencheck.outcomes import one_line
from grading import sandbox
from grading.discovery import Person
from grading.gathering import gather, left_out, look_at
from grading.inputs import Unreadable
from grading.results import (
    Damaged,
    FileResult,
    plain,
    read_findings,
    read_png,
    read_results,
    read_steps,
)
from grading.sandbox import Sandbox, SandboxError
from harness.escape import printable

CODE = {".py", ".toml"}  # what results depend on, in our packages
MEMORY_BYTES = 256 << 20  # of a file of results


class Memory:
    """Results by a file's content, in a file of JSON lines: an interrupted grading goes on there.

    What could not be judged is not remembered: with more time, or more memory, it may be. A file
    that can't be read or written, or that holds something else, is reported and left alone.

    Args:
        path: the file; None remembers nothing.
        options: what results depend on besides the file.
    """

    def __init__(self, path: Path | None, **options):
        self.path, self.lock = path, threading.Lock()
        folders = (sandbox.ROOT / name for name in sandbox.PACKAGES)
        files = [file for folder in folders for file in folder.rglob("*.*")]
        code = b"".join(file.read_bytes() for file in sorted(files) if file.suffix in CODE)
        options["torch"] = torch.__version__
        self.salt = hashlib.sha256(code + json.dumps(options, sort_keys=True).encode())
        self.known = {}
        if path is not None:
            try:
                self._open()
            except (OSError, ValueError) as error:
                self._give_up(error)

    def _open(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and not self.path.is_file():
            raise ValueError("no regular file")
        with self.path.open("a+b") as file:
            file.seek(0)
            text = file.read(MEMORY_BYTES + 1).decode("utf-8-sig", "replace")
            if len(text) > MEMORY_BYTES:
                raise ValueError(f"larger than {MEMORY_BYTES >> 20} MB")
            for line in text.splitlines():
                self._learn(line)
            if text and not self.known:
                raise ValueError("its lines are no results of this grader")
            if text and not text.endswith("\n"):  # a grading was interrupted in this line
                file.write(b"\n")

    def _learn(self, line):
        try:
            entry = json.loads(line)
            self.known[entry["key"]] = entry["result"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return  # a damaged line is no result: its file is judged again

    def _give_up(self, error):
        words = printable(getattr(error, "strerror", None) or str(error))
        print(f"grading: --memory {printable(str(self.path))}: not used: {words}", file=sys.stderr)
        self.path = None

    def key(self, model: str, name: str, files: dict[str, bytes]) -> str:
        """Changes with a file, what lies beside and below it (see `gather`), and the grader."""
        digest = self.salt.copy()
        for text in (model, name):
            digest.update(hashlib.sha256(text.encode(errors="surrogateescape")).digest())
        for path, content in sorted(files.items()):
            digest.update(hashlib.sha256(path.encode(errors="surrogateescape")).digest())
            digest.update(hashlib.sha256(content).digest())
        return digest.hexdigest()

    def get(self, key: str, model: str, path: Path) -> FileResult | None:
        """The result that was stored under this key, if it is one."""
        stored = self.known.get(key)
        try:
            result = FileResult(
                model,
                str(path),
                read_findings(stored["findings"], model),
                seconds=float(stored["seconds"]),
                peak_mb=int(stored["peak_mb"]),
                picture=read_png(stored["picture"]),
                steps=read_steps(stored["steps"]),
            )
        except (Damaged, KeyError, TypeError, ValueError, OverflowError):
            return None
        return result if result.is_judged else None

    def put(self, key: str, result: FileResult) -> None:
        """Store a result at once, if the file could be judged."""
        if not result.is_judged:
            return
        stored = {
            "findings": [plain(found) for found in result.findings],
            "seconds": result.seconds,
            "peak_mb": result.peak_mb,
            "picture": result.picture,
            "steps": result.steps,
        }
        with self.lock:
            if self.path is None:
                return
            try:
                with self.path.open("a") as file:
                    file.write(json.dumps({"key": key, "result": stored}) + "\n")
            except OSError as error:
                self._give_up(error)


def judge_file(
    box: Sandbox,
    model: str,
    path: Path,
    seconds: float = 120.0,
    training: bool = True,
    seed: int = 0,
    files: dict[str, bytes] | None = None,
) -> FileResult:
    """Judge one file in a process of its own; another seed (0 to 999) measures with other draws.

    Args:
        box: the person's sandbox.
        model: one of MODELS.
        path: the file.
        seconds: the limit of processor time.
        training: whether to run the short trainings.
        seed: of the measurements.
        files: what `gather` found, if that is known.

    Raises:
        Unreadable: the file can't be read.
    """
    files = gather(path, path.parent) if files is None else files
    token = secrets.token_hex(16)
    request = {"model": model, "name": path.name, "training": training, "seed": seed}
    request |= {"files": {name: b64encode(content).decode() for name, content in files.items()}}
    request["left_out"] = left_out(path, files)
    result = FileResult(model, str(path), look=look_at(files))
    try:
        answer = box.ask(request | {"token": token}, seconds)
    except SandboxError as error:
        result.reason = printable(str(error))
        return result
    result.output = answer["output"]
    result.seconds, result.peak_mb = answer["seconds"], answer["peak_mb"]
    try:
        if answer["reason"]:
            result.reason = answer["reason"]
        elif not answer["results"]:
            result.reason = "its process ended before the checks did"
        else:
            results = read_results(answer["results"], token, model)
            result.findings, result.picture, result.steps, result.reason = results
    except Damaged:
        result.reason = "its results are damaged"
    return result


def grade(
    people: list[Person],
    memory: Memory,
    jobs: int,
    seconds: float,
    training: bool,
    seed: int,
    on_result: Callable[[FileResult], None],
    unsafe: bool = False,
) -> Iterator[Person]:
    """Judge all files, `jobs` people at a time; yields people in their order.

    Raises:
        UsageError: no sandbox can be had, and there is something to judge; nothing has run.
    """
    for person in people:
        for model, path in person.files.items():
            if (result := _remembered(memory, person, model, path)) is not None:
                person.results[model] = result
                on_result(result)
    open_people = [person for person in people if person.files.keys() - person.results.keys()]
    boxes = [Sandbox(unsafe) for _ in open_people]
    if open_people:
        boxes[0] = sandbox.require(unsafe)

    def judge(person, box):
        with box:
            for model, path in person.files.items():
                if model not in person.results:
                    result = _judge_any(box, memory, person, model, path, seconds, training, seed)
                    person.results[model] = result
                    on_result(result)

    pool = ThreadPoolExecutor(jobs)
    try:
        work = zip(open_people, boxes)
        judged = {id(person): pool.submit(judge, person, box) for person, box in work}
        for person in people:
            if id(person) in judged:
                judged[id(person)].result()
            yield person
    finally:
        for box in boxes:
            box.close()
        pool.shutdown(cancel_futures=True)
        for box in boxes:
            box.end()


def _remembered(memory, person, model, path):
    try:
        files = gather(path, person.root_of(path))
    except (Unreadable, OSError):
        return None  # judging it gives the reason
    result = memory.get(memory.key(model, path.name, files), model, path)
    if result is not None:
        result.look, result.path = look_at(files), person.shown(path)
    return result


def _judge_any(box, memory, person, model, path, seconds, training, seed):
    """The result of a file; whatever goes wrong with it ends with it."""
    try:
        files = gather(path, person.root_of(path))
        result = judge_file(box, model, path, seconds, training, seed, files)
        memory.put(memory.key(model, path.name, files), result)
    except Unreadable as error:
        result = FileResult(model, "", reason=str(error))
    except Exception as error:
        result = FileResult(model, "", reason=f"the grader failed: {one_line(error)}")
    result.path = person.shown(path)
    return result
