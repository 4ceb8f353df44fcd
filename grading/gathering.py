"""The files that a submission gets in its sandbox, and what a person should look at in them."""

import os
import re
from pathlib import Path

from grading.code_files import is_code, size_limit
from grading.discovery import COPIED_BYTES, NOT_COPIED, OURS, shortened
from grading.inputs import SOURCE_BYTES, Unreadable, inside, read_regular, walk
from harness.escape import printable

ROOT = Path(__file__).resolve().parent.parent
CODE_BYTES = 4 << 20  # of the code that is copied
COPIED_DEPTH = 4  # folders


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
    files = {file.name: read_regular(file, size_limit(file))}
    found = []
    for path, reason in walk(folder, COPIED_DEPTH, NOT_COPIED):
        target = inside(path, root) if reason.startswith("a link") else path
        taken = reason == "" or reason.startswith("a link")
        if taken and target is not None and target.is_file() and path != file:
            found.append((path.suffix.lower() != ".py", target.stat().st_size, str(path), target))
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


def left_out(file: Path, files: dict[str, bytes]) -> list[str]:
    """The files beside and below a submission's that `gather` didn't take, by path, the first."""
    found = (path for path, reason in walk(file.parent, COPIED_DEPTH, set()) if not reason)
    return sorted({os.path.relpath(path, file.parent) for path in found} - files.keys())[:1000]


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

    In a notebook, a line is one of its JSON, which nobody parses here.
    Unchanged files of this project's packages, which a submission may bring along, have none.
    """
    notes, any_of_them = [], re.compile("|".join(SUSPICIOUS.values()))
    for name, content in files.items():
        if not is_code(Path(name)) or _is_ours(name, content):
            continue
        is_notebook = name.lower().endswith(".ipynb")
        for number, line in enumerate(content.decode(errors="replace").splitlines(), 1):
            code = line.lstrip()
            if is_notebook:  # a line of JSON is a string
                code = code.removeprefix('"').lstrip().replace('\\"', '"')
            if any_of_them.search(code) and not code.startswith("#"):
                what = [words for words, pattern in SUSPICIOUS.items() if re.search(pattern, code)]
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
