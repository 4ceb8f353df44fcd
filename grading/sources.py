"""A submission's source, of a file or of a notebook's code cells in order."""

import json
import re
import tokenize
from dataclasses import dataclass, field
from pathlib import Path

import nbformat

# Cell magics that leave the cell's code Python; of others the cell is no Python.
TRANSPARENT = ("time", "timeit", "capture", "prun")
MAGIC = re.compile(r"^([ \t]*)(?:[%!?].*|[\w.]+\?{1,2}\s*|[\w, ]+=[ \t]*[%!].*)$", re.MULTILINE)
CELL_MAGIC = re.compile(r"\s*%%(\w+)[^\n]*\n?")


class NoSource(Exception):
    """There is no source in it; the message says why."""


@dataclass
class Source:
    """Text of Python, and where its lines stand.

    Args:
        name: the file's.
        text: as it is executed.
        cells: of a notebook, the first line of each code cell.
    """

    name: str
    text: str
    cells: list[int] = field(default_factory=list)

    def place(self, line: int) -> str:
        """'FILE, line 7', or 'FILE, code cell 3, line 2'."""
        before = [first for first in self.cells if first <= line]
        if not before:
            return f"{self.name}, line {line}"
        return f"{self.name}, code cell {len(before)}, line {line - before[-1] + 1}"


def read_source(path: Path) -> Source:
    """The source of a file.

    Raises:
        NoSource: it is no notebook, though it is called so.
        SyntaxError, ValueError: it is no text.
    """
    if path.suffix.lower() != ".ipynb":
        with tokenize.open(path) as file:
            return Source(path.name, file.read())
    try:
        notebook = nbformat.reads(path.read_text("utf-8-sig"), as_version=4)
        cells = [str(cell.source) for cell in notebook.cells if cell.cell_type == "code"]
    except (nbformat.reader.NotJSONError, json.JSONDecodeError, RecursionError) as error:
        raise NoSource("no notebook: its JSON is damaged") from error
    except Exception as error:  # nbformat raises whatever a wrong structure leads to
        raise NoSource("no notebook: cells are missing or damaged") from error
    lines, starts = [], []
    for cell in cells:
        starts.append(len(lines) + 1)
        lines += [*without_magics(cell).splitlines(), ""]
    return Source(path.name, "\n".join(lines), starts)


def without_magics(cell: str) -> str:
    """A code cell with `pass` for IPython's magics and shell lines; empty if it is no Python."""
    if match := CELL_MAGIC.match(cell):
        if match[1] not in TRANSPARENT:
            return ""
        cell = "\n" + cell[match.end() :]
    return MAGIC.sub(r"\1pass", cell)
