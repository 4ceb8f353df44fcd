"""Nothing that others wrote leaves its cell: terminal, gallery, LaTeX, CSV, live page."""

import csv
import json
import re

import pytest

from figures.__main__ import main, parse
from harness import cli, escape
from harness.errors import UserError
from tests.fake_runs import fake_run, unwrapped

VILE = "=1+1\x1b[2J\u202e\n\n# <b>x</b> | `a` [b](c) *d* _e_ $f$ \\input{g}"


def vile_run(folder):
    """A finished run of a VAE with vile texts wherever a stranger's files can have them."""
    fake_run(folder, "vae")
    config = json.loads((folder / "config.json").read_text())
    texts = {"device": VILE, "command": VILE, "git_commit": VILE, "started": VILE}
    (folder / "config.json").write_text(json.dumps(config | texts))
    results = json.loads((folder / "result.json").read_text())
    results[VILE] = {VILE: 1.0}
    (folder / "result.json").write_text(json.dumps(results))


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The gallery of two vile runs, one of which is damaged, and their tables."""
    base = tmp_path_factory.mktemp("base")
    runs, out = base / "runs", base / "out"
    vile_run(runs / VILE.replace("/", ""))
    (runs / f"\x1b[31m{VILE[:6]}").mkdir()
    (runs / f"\x1b[31m{VILE[:6]}" / "config.json").write_text(json.dumps({VILE: VILE}))
    with pytest.raises(UserError, match="not all figures"):
        main(parse(["draw", "--runs", str(runs), "--out", str(out)]))
    return out


def visible(text):
    """Whether a text has no character that acts on a terminal or on the direction of text."""
    return all(c.isprintable() or c == "\n" for c in text)


def test_the_terminal_shows_them_in_one_line(out, capsys):
    runs = str(out.parent / "runs")
    for words in (["check"], ["export", str(out.parent / "t.csv")], ["draw", "--only", "fig02"]):
        with pytest.raises(SystemExit):
            cli.run(lambda args: (main(args), exit(1)), lambda w=words: parse([*w, "--runs", runs]))
        printed = capsys.readouterr()
        assert visible(printed.out) and visible(printed.err), words
        assert "\\x1b" in printed.err or words[0] == "draw"


def test_markdown_shows_them_as_text(out):
    page = (out / "README.md").read_text()
    assert visible(page) and "=1+1\\\\x1b" in page
    for line in unwrapped(page).splitlines():
        text = re.sub("`[^`]*`", "", line)
        assert line[:1] == "|" or not re.search(r"(?<!\\)(<b>|\[b\]|\*d|\| )", text), line
    assert not re.search("^ *# <", page, re.MULTILINE)


def test_csv_has_no_formula_and_latex_no_command(out):
    text = (out / "report" / "results.csv").read_text()
    rows = list(csv.reader(text.splitlines()))
    assert len(rows) == 2 and visible(text)
    cells = [cell for row in rows for cell in row if "1+1" in cell]
    assert len(cells) >= 3 and not [cell for cell in cells if cell[0] == "="]
    assert visible((out / "report" / "results.tex").read_text())


FORMATS = [escape.words, escape.csv_cell, escape.html_cell, escape.latex]
FORMATS += [escape.markdown_cell, escape.markdown_code]


@pytest.mark.parametrize("escaped", FORMATS)
def test_every_format_makes_one_printable_line_that_is_not_endless(escaped):
    text = escaped(VILE + "\ud800\x85\u2028" + "x" * 10_000)
    assert text.isprintable() and len(text.splitlines()) == 1 and len(text) < 1000


def test_what_each_format_takes_for_markup_is_escaped():
    assert [escape.csv_cell(text)[0] for text in (" =1", "+1", "@x", "-1")] == ["'"] * 4
    assert escape.csv_cell("a-1") == "a-1"
    assert escape.html_cell("<b>&") == "<bdi>&lt;b&gt;&amp;</bdi>"
    assert escape.markdown_cell("a_b _c_ <d> [e](f) |") == r"a_b \_c\_ \<d\> \[e\](f) \|"
    assert escape.markdown_code("a`b") == "`a'b`"
    assert escape.latex(r"\a{b}") == r"\textbackslash{}a\{b\}"
