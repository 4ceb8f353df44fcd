"""No command overwrites a file that it did not write; what it wrote, it may replace."""

import os

import pytest

from examples import interpolate, sample
from figures import __main__ as figures
from figures.explorer import __main__ as explorer
from grading import __main__ as grading
from grading import page, report
from harness.errors import UserError
from harness.files import may_replace
from tests.explorer_runs import write_runs
from tests.fake_runs import fake_run, fake_runs

THEIRS = "name;of,somebody\n"


def grading_words(kind):
    return lambda folder, file: (grading, [str(folder), f"--{kind}", str(file)])


def export_words(folder, file):
    return figures, ["export", str(file), "--runs", str(folder)]


COMMANDS = {
    "export.csv": export_words,
    "export.json": export_words,
    "export.jsonl": export_words,
    "export.tex": export_words,
    "page.html": lambda folder, file: (explorer, ["--runs", str(folder), "--out", str(file)]),
    "grades.csv": grading_words("csv"),
    "grades.json": grading_words("json"),
    "grades.html": grading_words("html"),
    "results.json": grading_words("gradescope"),
    "README.md": lambda folder, file: (
        figures,
        ["draw", "--runs", str(folder), "--out", str(file.parent)],
    ),
    "index.html": lambda folder, file: (grading, [str(folder), "--html", f"{file.parent}/"]),
}


@pytest.mark.parametrize("kind", ["file", "dangling link", "link to a file"])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_of_somebody_else_stays(tmp_path, name, kind):
    """Nor is a link followed to one, or through one that leads nowhere."""
    folder, other = tmp_path / "runs", tmp_path / "other"
    fake_runs(folder, "manifold")
    file = tmp_path / "out" / name
    file.parent.mkdir()
    if kind == "file":
        file.write_text(THEIRS)
    else:
        file.symlink_to(other)
    if kind == "link to a file":
        other.write_text(THEIRS)
    before = sorted(os.walk(tmp_path / "out"))
    program, words = COMMANDS[name](folder, file)
    with pytest.raises(UserError, match="another (file|folder)"):
        program.main(program.parse(words))
    assert sorted(os.walk(tmp_path / "out")) == before
    assert os.path.lexists(file) and other.exists() == (kind == "link to a file")
    for path in (file, other):
        assert not path.exists() or path.read_text() == THEIRS


@pytest.mark.parametrize("name", ["strip.png", "results.csv", "recipes.png", "fig07_notes.txt"])
def test_a_folder_of_somebody_else_with_a_name_of_ours_is_not_drawn_into(tmp_path, name):
    fake_runs(tmp_path / "runs", "manifold")
    theirs = tmp_path / "out" / "report" / name
    theirs.parent.mkdir(parents=True)
    theirs.write_text(THEIRS)
    words = ["draw", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    for start in (None, "# Gallery of my holidays\n"):
        if start is not None:
            (tmp_path / "out" / "README.md").write_text(start)
        for only in ([], ["--only", "fig07"]):
            with pytest.raises(UserError, match="another folder with --out"):
                figures.main(figures.parse([*words, *only]))
            assert [path.name for path in theirs.parent.iterdir()] == [name]
            assert theirs.read_text() == THEIRS


@pytest.mark.thorough
def test_what_a_command_wrote_it_replaces(tmp_path):
    runs = write_runs(tmp_path / "runs")
    out = tmp_path / "page.html"
    sizes = []
    for _ in range(2):
        explorer.main(explorer.parse(["--runs", str(runs), "--out", str(out)]))
        sizes.append(out.stat().st_size)
    assert sizes[0] == sizes[1]


def test_reports_of_the_grader_are_known_by_their_starts(tmp_path):
    starts = {
        report.to_csv: report.CSV_START,
        report.to_json: report.JSON_START,
        lambda *args: report.to_gradescope(*args, "full"): report.GRADESCOPE_START,
        lambda *args: page.to_html(*args, "full"): page.START,
    }
    for make, start in starts.items():
        (tmp_path / "file").write_text(make([report.Person("ann")], report.Rubric()))
        assert may_replace(tmp_path / "file", start)
        assert [s for s in starts.values() if may_replace(tmp_path / "file", s)] == [start]


@pytest.mark.parametrize("program", [sample, interpolate])
def test_examples_give_new_pictures_new_names(tmp_path, program):
    """The arrays beside a picture count, too, and so does a link that leads nowhere."""
    fake_run(tmp_path / "run", "manifold")
    what = {sample: "samples", interpolate: "interpolation"}[program]
    (tmp_path / f"run_{what}.png").write_text(THEIRS)
    (tmp_path / f"run_{what}-2.npz").symlink_to("nowhere")
    command = program.parse([str(tmp_path / "run"), "--out", str(tmp_path)])
    ((_, _, picture),) = command.each(what)
    assert picture == tmp_path / f"run_{what}-3.png"
