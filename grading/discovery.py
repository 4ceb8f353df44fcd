"""Finding submissions in a folder that strangers filled.

Only regular files are read, and no more of them than fits a submission. Nothing here parses or
runs them: classes are found by the lines that begin with `class`.
"""

import itertools
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from gencheck.outcomes import printable
from grading.results import FileResult

MODELS = ("vae", "gan", "nf")
CLASSES = {
    "vae": ({"VAE"},),
    "gan": ({"Generator", "Discriminator"},),
    "nf": ({"Coupling"}, {"Flow"}),
}
NAMES = {"vae": r"vae", "gan": r"gan", "nf": r"(^|_)nf|flow|nvp"}
CLASS_LINE = re.compile(rb"(?:^|[\r\n])class[ \t]+(\w+)")
ROOT = Path(__file__).resolve().parent.parent
OURS = {"datasets", "examples", "figures", "gencheck", "grading", "harness", "tests"}
NOT_CODE = {"__pycache__", "node_modules", "venv", "site-packages"}
NOT_COPIED = NOT_CODE | {"runs", "data"}
SOURCE_BYTES = 1 << 20  # of one file
CODE_BYTES = 4 << 20  # of the code of a folder
COPIED_BYTES = 32 << 20  # of everything in it
COPIED_DEPTH = 4  # folders
DEPTH, N_ENTRIES, N_NOTES = 20, 10_000, 10  # of a person's folder; lines about it


class Unreadable(Exception):
    """A file that is not read; the message says why."""


@dataclass
class Person:
    """One person's submission.

    Args:
        name: printable.
        files: a file for each model.
        other_files: more files of these models, which are not judged.
        results: by model, filled by `grader.grade`.
        root: the person's folder, which links may not leave.
        notes: what in the folder was not read, a line each.
    """

    name: str
    files: dict[str, Path] = field(default_factory=dict)
    other_files: list[Path] = field(default_factory=list)
    results: dict[str, FileResult] = field(default_factory=dict)
    root: Path = Path()
    notes: list[str] = field(default_factory=list)


def read_regular(path: Path, at_most: int = SOURCE_BYTES) -> bytes:
    """The content of a regular file.

    Raises:
        Unreadable: it is a link, device or FIFO, is larger than `at_most` bytes, or can't be read.
    """
    try:
        # Without O_NONBLOCK, opening a FIFO waits for somebody who writes.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise Unreadable("no regular file")
            content = file.read(at_most + 1)
    except OSError as error:
        is_link = os.path.islink(path)
        raise Unreadable("a link" if is_link else error.strerror or str(error)) from error
    if len(content) > at_most:
        raise Unreadable(f"larger than {at_most >> 20} MB")
    return content


def kind_of(path: Path) -> str | None:
    """The model that a file implements, by its classes; else by its name, if that is a3_..."""
    named = [model for model in MODELS if re.search(NAMES[model], path.stem.lower())]
    try:
        classes = {name.decode() for name in CLASS_LINE.findall(read_regular(path))}
    except Unreadable:
        classes = set()
    for model in (*named, *MODELS):
        if any(wanted <= classes for wanted in CLASSES[model]):
            return model
    return named[0] if named and path.stem.startswith("a3") else None


def walk(root: Path, depth: int, skipped: set[str]) -> Iterator[tuple[Path, str]]:
    """(path, "") of each regular file below a folder, (path, reason) of what is not looked at.

    Hidden files and folders, and folders of these names, are left out silently. Links are not
    followed; those that lead to a file in the same folder's tree have the reason "a link".
    """
    todo, n = [(root, 1)], 0
    while todo:
        folder, level = todo.pop()
        try:
            with os.scandir(folder) as found:
                entries = list(itertools.islice(found, N_ENTRIES + 1))
        except OSError as error:
            yield folder, f"cannot be searched: {error.strerror}"
            continue
        for entry in sorted(entries, key=lambda entry: entry.name):
            path, n = Path(entry.path), n + 1
            if n > N_ENTRIES:
                yield folder, f"more than {N_ENTRIES:,} files: the rest is not looked at"
                return
            if entry.name.startswith(".") or entry.name in skipped:
                continue
            if entry.is_symlink():
                yield path, "a link" if inside(path, root) else f"a link out of {root.name}/"
            elif entry.is_dir(follow_symlinks=False):
                if level < depth:
                    todo.append((path, level + 1))
                else:
                    yield path, f"deeper than {depth} folders"
            else:
                regular = entry.is_file(follow_symlinks=False)
                yield path, "" if regular else "no regular file"


def inside(link: Path, root: Path) -> Path | None:
    """The file that a link leads to, if it lies below `root`."""
    try:
        target = Path(os.path.realpath(link, strict=True))
        return target if target.is_relative_to(os.path.realpath(root)) else None
    except OSError:  # a loop, or nothing there
        return None


def discover(path: Path) -> list[Person]:
    """The submissions in a file or folder: one person per folder that is directly in it.

    A folder with one of the assignment's files directly in it is one person's. A person's folder is
    searched in any depth up to DEPTH. People without a file of the assignment are left out, unless
    something in their folder was not read.

    Raises:
        OSError: the folder itself can't be read.
    """
    if not path.is_dir():
        model = kind_of(path)
        return [Person(printable(path.stem), {model: path}, root=path.parent)] if model else []
    entries = sorted(os.scandir(path), key=lambda entry: entry.name)
    is_own = any(
        entry.name.endswith(".py")
        and not entry.name.startswith(".")
        and entry.is_file(follow_symlinks=False)
        and kind_of(Path(entry.path))
        for entry in entries
    )
    if is_own:
        return [_person(path)]
    people = []
    for entry in entries:
        folder = Path(entry.path)
        if entry.name.startswith(".") or entry.name in NOT_CODE:
            continue
        if entry.is_symlink() and folder.is_dir():
            name = printable(folder.name)
            people.append(Person(name, root=folder, notes=["a link to a folder: not followed"]))
        elif entry.is_dir(follow_symlinks=False):
            try:
                people.append(_person(folder))
            except OSError as error:  # whatever it is, the others are not to blame
                note = f"cannot be searched: {error.strerror}"
                people.append(Person(printable(folder.name), root=folder, notes=[note]))
    return [person for person in people if person.files or person.notes]


def _person(folder):
    person, candidates = Person(printable(folder.name), root=folder), []
    for path, reason in walk(folder, DEPTH, NOT_CODE):
        if path.suffix == ".py" and reason != "a link":
            candidates.append((path, reason))
        if reason not in ("", "a link"):
            person.notes.append(f"{path.relative_to(folder)}: {reason}")
    person.notes = shortened(person.notes, "files")
    candidates.sort(key=lambda c: (c[1] != "", _distance(c[0]), len(c[0].parts), str(c[0])))
    left = COPIED_BYTES
    for path, reason in candidates:
        left -= 0 if reason else min(path.lstat().st_size, SOURCE_BYTES)
        if left < 0:
            more = f"more than {COPIED_BYTES >> 20} MB of code: the rest is not looked at"
            person.notes.append(more)
            break
        model = kind_of(path)
        if model and model not in person.files:
            person.files[model] = path
        elif model:
            person.other_files.append(path)
    return person


def shortened(notes: list[str], noun: str) -> list[str]:
    """The first N_NOTES, and how many more there are."""
    more = len(notes) - N_NOTES
    return notes if more <= 0 else [*notes[:N_NOTES], f"and {more} more {noun}"]


def _distance(file):
    """0 for the course's own names, 1 for nearly those, 2 for others."""
    if file.stem in {f"a3_{model}_template" for model in MODELS}:
        return 0
    return 1 if file.stem.startswith("a3") else 2


def gather(file: Path, root: Path) -> dict[str, bytes]:
    """A submission's file and what lies beside and below it, by path in its folder.

    Code comes first, then smaller files. What is larger than SOURCE_BYTES (code), or doesn't fit
    CODE_BYTES or COPIED_BYTES any more, is left out.

    Args:
        file: the submission's file.
        root: the person's folder; links to files in it are read, others are left out.

    Raises:
        Unreadable: the file itself can't be read.
    """
    folder = file.parent
    files = {file.name: read_regular(file)}
    found = []
    for path, reason in walk(folder, COPIED_DEPTH, NOT_COPIED):
        target = inside(path, root) if reason.startswith("a link") else path
        taken = reason == "" or reason.startswith("a link")
        if taken and target is not None and target.is_file() and path != file:
            found.append((path.suffix != ".py", target.stat().st_size, str(path), target))
    left, left_for_code = COPIED_BYTES, CODE_BYTES
    for is_data, size, path, target in sorted(found):
        at_most = left if is_data else min(left_for_code, SOURCE_BYTES)
        if size > at_most:
            continue  # nobody's code is that long, and no check reads data
        try:
            content = read_regular(target, at_most)
        except Unreadable:
            continue  # `discover` has a note about it; the submission may miss it
        files[os.path.relpath(path, folder)] = content
        left -= len(content)
        left_for_code -= 0 if is_data else len(content)
    return files


# What a submission has no honest use for, or what may lead around the checks, by the words of the
# note. Lines of text are searched, not syntax: names in strings, as for getattr, count as well.
SUSPICIOUS = {
    "frames": r"_getframe|currentframe|f_back\b|f_locals|f_globals|tb_frame|inspect\.stack"
    r"|_current_frames|settrace|setprofile",
    "objects of the interpreter": r"\bimport\s+gc\b|\bgc\.get|__subclasses__|__globals__"
    r"|__closure__|cell_contents|__builtins__",
    "ctypes": r"\b_?ctypes\b|\bcffi\b",
    "sys.modules": r"\bsys\.modules|\bfrom\s+sys\s+import\b|[\"']modules[\"']",
    "the checks' modules": r"(from|import)\s+(grading|gencheck|__main__)\b"
    r"|[\"'](grading|gencheck)(\.\w+)*[\"']",
    "an absolute path": r"(\bopen|Path|listdir|scandir|walk)\(\s*[rbuf]*[\"'](/|~)|[\"']/proc/",
    "the process": r"\bos\._exit|\bos\.(write|fdopen|fork\w*|kill\w*|exec\w+|dup2?|closerange)\("
    r"|\bimport\s+(socket|subprocess|signal)\b",
    "code in a string": r"(?<![.\w])(exec|eval)\(|__import__|b64decode",
}


def look_at(files: dict[str, bytes]) -> list[str]:
    """Notes on lines of a submission that a person should read: "FILE, line N: WHAT".

    Unchanged files of this project's packages, which a submission may bring along, have none.
    """
    notes, any_of_them = [], re.compile("|".join(SUSPICIOUS.values()))
    for name, content in files.items():
        if not name.endswith(".py") or _is_ours(name, content):
            continue
        lines = content.decode(errors="replace").splitlines()
        for number, line in enumerate(lines, 1):
            if any_of_them.search(line) and not line.lstrip().startswith("#"):
                what = [words for words, pattern in SUSPICIOUS.items() if re.search(pattern, line)]
                notes.append(f"{printable(name)}, line {number}: {', '.join(what)}")
    return shortened(notes, "lines")


def _is_ours(name, content):
    package, *rest = Path(name).parts
    if package not in OURS or not rest or ".." in rest:
        return False
    try:
        return (ROOT / name).read_bytes() == content
    except OSError:
        return False
