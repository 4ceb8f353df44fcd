"""Text that others wrote, such as names and settings in their files, escaped for where it is shown.

One function per format; each first makes the text one line of printable characters, not endless.
"""

import html
import re

CELL = 600  # characters of a cell
FORMULA = tuple("=+-@|%")  # what a formula begins with
MESSAGE = 3000  # characters of a line in the terminal

_MARKDOWN = re.compile(r"[\\`*\[\]<>|&~#$]|\b_|_\b")  # a_b is no emphasis
_LATEX = str.maketrans(
    {character: rf"\{character}" for character in "&%$#_{}"}
    | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
    | {"<": "$<$", ">": "$>$", "|": "$|$", "±": r"$\pm$", "−": "$-$"}
)


def printable(text: str) -> str:
    """The text with escapes for control characters, direction marks and bytes that are no UTF-8."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def words(text: str, at_most: int = CELL) -> str:
    """A text for people: one printable line of at most so many characters."""
    text = printable(text[: at_most + 1])
    return text if len(text) <= at_most else f"{text[: at_most - 1]}…"


def csv_cell(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    text = words(text)
    return f"'{text}" if text.lstrip().startswith(FORMULA) else text


def html_cell(text: str) -> str:
    """A text without markup; its direction doesn't reach what stands beside it."""
    return f"<bdi>{html.escape(words(text))}</bdi>"


def markdown_cell(text: str) -> str:
    """A text without markup, for a table, a paragraph or a list item."""
    return _MARKDOWN.sub(r"\\\g<0>", words(text))


def markdown_code(text: str) -> str:
    """A text as a code span, where nothing can be escaped: its backticks become quotes."""
    return f"`{words(text).replace('`', chr(39))}`"


def latex(text: str) -> str:
    """A text without commands, its quotes paired."""
    return re.sub('"([^"]*)"', r"``\1''", words(text).translate(_LATEX))
