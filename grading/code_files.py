"""Which models a file of code implements, as far as its lines tell: nothing is parsed or run.

Classes are found by the lines that begin with `class`.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from grading.inputs import SOURCE_BYTES, Unreadable, read_regular

MODELS = ("vae", "gan", "nf")
TITLES = {"vae": "VAE", "gan": "GAN", "nf": "flow"}
CLASSES = {
    "vae": ({"VAE"},),
    "gan": ({"Generator", "Discriminator"},),
    "nf": ({"Coupling"}, {"Flow"}),
}
NAMES = {"vae": r"vae", "gan": r"gan", "nf": r"(^|_)nf|flow|nvp"}
# In a notebook, lines are strings of JSON.
CLASS_LINE = {
    ".py": re.compile(rb"(?:^|[\r\n])class[ \t]+(\w+)"),
    ".ipynb": re.compile(rb'(?:^|[\r\n"]|\\n)class[ \t]+(\w+)'),
}
IMPORT_LINE = re.compile(rb"(?:^|[\r\n\"]|\\n)[ \t]*(?:from|import)[ \t]+(\w+)")
TRAINING = re.compile(rb"__main__|def (?:main|train|run_epoch|epoch_iter)\b")
NOTEBOOK_BYTES = 16 << 20  # of one notebook, with the pictures in it


@dataclass
class Code:
    """A file of code, as far as its lines tell."""

    path: Path
    classes: set[str]
    imports: set[str]
    trains: bool
    reason: str = ""  # why it is not read

    @property
    def named(self):
        """The models in its name."""
        return [model for model in MODELS if re.search(NAMES[model], self.stem)]

    @property
    def stem(self):
        """Its name without the ending, in lower case."""
        return self.path.stem.lower()

    @property
    def models(self) -> list[str]:
        """The models that it implements: that of its name, else all whose classes it has."""
        found = [m for m in MODELS if any(wanted <= self.classes for wanted in CLASSES[m])]
        both = [model for model in self.named if model in found]
        if both or found:
            return both[:1] or found
        return self.named[:1] if self.stem.startswith("a3") else []


def code_in(path: Path) -> Code:
    """What the lines of a file tell; of one that is not read, the reason."""
    try:
        content = read_regular(path, size_limit(path))
    except Unreadable as reason:
        return Code(path, set(), set(), False, str(reason))
    names = (
        {name.decode() for name in pattern.findall(content)}
        for pattern in (CLASS_LINE[path.suffix.lower()], IMPORT_LINE)
    )
    return Code(path, *names, trains=bool(TRAINING.search(content)))


def is_code(path: Path) -> bool:
    """Whether a file's name is that of Python code or of a notebook."""
    return path.suffix.lower() in CLASS_LINE


def size_limit(path: Path) -> int:
    """Bytes of a file of code that are read."""
    return NOTEBOOK_BYTES if path.suffix.lower() == ".ipynb" else SOURCE_BYTES


def with_imported(codes: list[Code]) -> None:
    """Let a file that trains have the classes of the modules beside it that it imports."""
    own = {(code.path.parent, code.path.stem): set(code.classes) for code in codes}
    for code in codes:
        if code.trains:
            for name in code.imports:
                code.classes |= own.get((code.path.parent, name), set())


def rank(code):
    """Small for the file to judge: the course's own name, code that trains, near the top."""
    distance = 1 if code.stem.startswith("a3") else 2
    if code.stem in {f"a3_{model}_template" for model in MODELS}:
        distance = 0
    is_notebook = code.path.suffix.lower() == ".ipynb"
    return (
        code.reason != "", distance if distance == 0 else 1, not code.trains, is_notebook, distance,
        len(code.path.parts), str(code.path),
    )  # fmt: skip
