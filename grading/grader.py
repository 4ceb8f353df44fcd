"""Finding submissions, judging their files side by side, and remembering what was judged."""

import ast
import hashlib
import json
import os
import re
import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

import torch

from gencheck.outcomes import UNJUDGED, WRONG, Finding, printable
from grading.zygote import Zygote

MODELS = ("vae", "gan", "nf")
CLASSES = {
    "vae": ({"VAE"},),
    "gan": ({"Generator", "Discriminator"},),
    "nf": ({"Coupling"}, {"Flow"}),
}
NAMES = {"vae": r"vae", "gan": r"gan", "nf": r"(^|_)nf|flow|nvp"}
NOT_CODE = {"__pycache__", "node_modules", "venv", "site-packages"}


@dataclass
class FileResult:
    """What came out of judging one file.

    Args:
        model: one of MODELS.
        path: the file.
        findings: in the order of the checks.
        reason: why the file could not be judged, or "".
        seconds: processor's time, about.
        peak_mb: the process's memory at its largest.
        output: what the submission printed, cut.
        not_enforced: limits that this system couldn't set.
        picture: a PNG of samples in base64, or "".
    """

    model: str
    path: str
    findings: list[Finding] = field(default_factory=list)
    reason: str = ""
    seconds: float = 0.0
    peak_mb: int = 0
    output: str = ""
    not_enforced: list[str] = field(default_factory=list)
    picture: str = ""

    @property
    def is_judged(self) -> bool:
        """Whether the checks ran and no central one is left open."""
        return not self.reason and not any(
            f.central and f.status == UNJUDGED for f in self.findings
        )

    @property
    def is_wrong(self) -> bool:
        """Whether something is wrong."""
        return any(f.status == WRONG for f in self.findings)


@dataclass
class Person:
    """One person's submission: a file for each model."""

    name: str
    files: dict[str, Path] = field(default_factory=dict)
    other_files: list[Path] = field(default_factory=list)
    results: dict[str, FileResult] = field(default_factory=dict)


def kind_of(path: Path) -> str | None:
    """The model that a file implements, by its classes; by its name if it can't be parsed."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError, RecursionError, MemoryError):
        # Code that is nested too deeply raises one of the last two.
        matches = [m for m in MODELS if re.search(NAMES[m], path.stem.lower())]
        return matches[0] if matches and path.stem.startswith("a3") else None
    classes = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    named = [m for m in MODELS if re.search(NAMES[m], path.stem.lower())]
    for model in (*named, *MODELS):
        if any(wanted <= classes for wanted in CLASSES[model]):
            return model
    return named[0] if named and path.stem.startswith("a3_") else None


def discover(path: Path) -> list[Person]:
    """The submissions in a file or folder: one person per folder that is directly in it.

    A folder with one of the assignment's files directly in it is one person's. A person's folder is
    searched in any depth.
    """
    if path.is_file():
        model = kind_of(path)
        return [Person(printable(path.stem), {model: path})] if model else []
    is_own = any(kind_of(file) for file in path.glob("*.py"))
    folders = [path] if is_own else sorted(p for p in path.iterdir() if p.is_dir())
    people = []
    for folder in folders:
        person = Person(printable(folder.name))
        files = [file for file in folder.rglob("*.py") if _is_code(file.relative_to(path))]
        for file in sorted(files, key=lambda f: (_distance(f), len(f.parts), str(f))):
            model = kind_of(file)
            if model and model not in person.files:
                person.files[model] = file
            elif model:
                person.other_files.append(file)
        if person.files:
            people.append(person)
    return people


def _is_code(file: Path) -> bool:
    """Whether neither a file nor a folder on its way is hidden, and none is an installation's."""
    return not any(name in NOT_CODE or name.startswith(".") for name in file.parts)


def _distance(file: Path) -> int:
    """0 for the course's own names, 1 for nearly those, 2 for others."""
    if file.stem in {f"a3_{model}_template" for model in MODELS}:
        return 0
    return 1 if file.stem.startswith("a3") else 2


class Memory:
    """Results by a file's content, in a file of JSON lines: an interrupted grading goes on there.

    What could not be judged is not remembered: with more time, or more memory, it may be.

    Args:
        path: the file; None remembers nothing.
        options: what results depend on besides the file.
    """

    def __init__(self, path: Path | None, **options):
        self.path, self.lock = path, threading.Lock()
        here = Path(__file__).parent
        folders = (here, here.parent / "gencheck")
        files = [
            file for kind in ("*.py", "*.toml") for f in folders for file in sorted(f.glob(kind))
        ]
        code = b"".join(file.read_bytes() for file in files)
        options["torch"] = torch.__version__
        self.salt = hashlib.sha256(code + json.dumps(options, sort_keys=True).encode())
        self.known = {}
        if path is not None and path.exists():
            text = path.read_text()
            if text and not text.endswith("\n"):  # a grading was interrupted in this line
                with path.open("a") as file:
                    file.write("\n")
            for line in text.splitlines():
                try:
                    entry = json.loads(line)
                    self.known[entry["key"]] = entry["result"]
                except (ValueError, KeyError, TypeError):
                    continue

    def key(self, model: str, file: Path) -> str:
        """Changes with the file, the modules beside and below it, and the grader."""
        digest = self.salt.copy()
        digest.update(f"{model} ".encode() + os.fsencode(file))
        for module in sorted(file.parent.rglob("*.py")):
            name = module.relative_to(file.parent)
            if module.is_file() and _is_code(name):
                digest.update(os.fsencode(name) + b" " + module.read_bytes())
        return digest.hexdigest()

    def get(self, key: str) -> FileResult | None:
        """The result that was stored under this key."""
        stored = self.known.get(key)
        if stored is None:
            return None
        findings = [Finding(**found) for found in stored["findings"]]
        return FileResult(**stored | {"findings": findings})

    def put(self, key: str, result: FileResult) -> None:
        """Store a result at once, if the file could be judged."""
        if self.path is None or not result.is_judged:
            return
        line = json.dumps({"key": key, "result": as_json(result)})
        with self.lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(line + "\n")


def as_json(result: FileResult) -> dict:
    """A result as plain data."""
    return vars(result) | {"findings": [vars(found) for found in result.findings]}


def judge_file(
    zygote: Zygote,
    model: str,
    path: Path,
    seconds: float = 120.0,
    training: bool = True,
    seed: int = 0,
) -> FileResult:
    """Judge one file in a process of its own; another seed (0 to 999) measures with other draws."""
    token = secrets.token_hex(16)
    request = {"model": model, "path": str(path.resolve()), "token": token}
    request |= {"training": training, "seed": seed}
    lines, reason, output = zygote.run(request, seconds)
    lines = [line for line in lines if line.get("token") == token]
    result = FileResult(model, str(path), output=output)
    ended = False
    for line in lines:
        kind = line["kind"]
        if kind == "finding":
            content = {k: v for k, v in line.items() if k not in ("token", "kind")}
            content |= {k: printable(v) for k, v in content.items() if isinstance(v, str)}
            result.findings.append(Finding(**content))
        elif kind == "unjudged":
            reason = printable(line["reason"])
        elif kind == "sandbox":
            result.not_enforced = line["not_enforced"]
        elif kind == "picture":
            result.picture = line["png"]
        elif kind == "end":
            ended, result.seconds, result.peak_mb = True, line["seconds"], line["peak_mb"]
    if not ended and not reason:
        reason = "its process ended before the checks did"
    if reason:
        result.findings = []  # a process that ends itself may have hidden the rest
    result.reason = reason
    return result


def grade(
    people: list[Person],
    memory: Memory,
    jobs: int,
    seconds: float,
    training: bool,
    seed: int,
    on_result: Callable[[FileResult], None],
) -> Iterator[Person]:
    """Judge all files, `jobs` at a time; yields people as they are finished."""
    zygote = None
    open_files = {person.name: len(person.files) for person in people}
    todo = [(person, model, path) for person in people for model, path in person.files.items()]

    def judge(model, path):
        key = memory.key(model, path)
        result = memory.get(key)
        if result is None:
            result = judge_file(zygote, model, path, seconds, training, seed)
            memory.put(key, result)
        return result

    if any(memory.get(memory.key(model, path)) is None for _, model, path in todo):
        zygote = Zygote()
    pool = ThreadPoolExecutor(jobs)
    try:
        futures = {pool.submit(judge, model, path): (person, model) for person, model, path in todo}
        for future in as_completed(futures):
            person, model = futures[future]
            person.results[model] = future.result()
            on_result(person.results[model])
            open_files[person.name] -= 1
            if open_files[person.name] == 0:
                yield person
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        if zygote is not None:
            zygote.close()
