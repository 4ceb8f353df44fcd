"""Finding submissions, remembering results, points and reports."""

import csv
import io
import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from gencheck.outcomes import Finding
from grading import __main__ as command
from grading import page, report
from grading.checks import checks_table
from grading.code_files import MODELS
from grading.discovery import Person
from grading.gathering import gather
from grading.grader import Memory
from grading.loading import CannotLoad, Submission
from grading.results import SECTIONS, FileResult
from grading.rubric import Rubric, default_points, read_rubric
from grading.sandbox import WAITING, Sandbox
from harness import cli
from harness.errors import UsageError, UserError
from harness.escape import csv_cell
from tests.conftest import ROOT
from tests.grading.conftest import people_in

VAE = "import torch\n\n\nclass VAE:\n    pass\n"
GAN = "class Generator:\n    pass\n\n\nclass Discriminator:\n    pass\n"


def found(check, status, central=False):
    return Finding(
        "vae", check, status, "9 <nats>", "7", "It matters.", "A paper", "Look!", central
    )


@pytest.fixture
def people():
    result = FileResult("vae", "a/a3_vae_template.py", picture="iVBO")
    result.findings = [found("shapes", "pass"), found("kl", "wrong", True), found("stable", "weak")]
    person = Person("=ann", {}, {"vae": result})
    unjudged = FileResult(
        "gan", "b/a3_gan_template.py", reason="stopped after 120 s of processor time"
    )
    return [person, Person("bob", {}, {"gan": unjudged})]


def test_submissions_are_found_in_any_depth_by_name_or_content(tmp_path):
    for file, text in {
        "ann/deep/er/a3_vae_template.py": VAE,
        "ann/notes.py": "x = 1",
        "bob/my_model.py": GAN,
        "bob/a3_nf_template.py": "print 'python 2'",
        "bob/.git/a3_vae_template.py": VAE,
        "readme.txt": "",
    }.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    ann, bob = people_in(tmp_path)
    assert (ann.name, set(ann.files)) == ("ann", {"vae"})
    assert set(bob.files) == {"gan", "nf"}
    (only,) = people_in(tmp_path / "ann" / "deep" / "er")
    assert only.files.keys() == ann.files.keys()
    (tmp_path / "bob" / "part2" / "src").mkdir(parents=True)
    (tmp_path / "bob" / "part2" / "src" / "a3_vae_template.py").write_text(VAE)
    (alone,) = people_in(tmp_path / "bob")
    assert set(alone.files) == {"gan", "nf", "vae"}
    assert alone.files["vae"].parent.name == "src"


def test_odd_names_and_deep_nesting_do_not_end_the_grading_of_others(tmp_path):
    for file, text in {
        os.fsdecode(b"M\xfcller/a3_vae_template.py"): VAE,  # Latin-1, as in an archive of Windows
        "\x1b[31mred/a3_vae_template.py": VAE,
        "deep/x.py": "not " * 50_000 + "1",
        "deep/a3_gan_template.py": "not " * 50_000 + "1",
    }.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    found = people_in(tmp_path)
    names = {"M\\udcfcller": {"vae"}, "\\x1b[31mred": {"vae"}, "deep": {"gan"}}
    assert {person.name: {*person.files} for person in found} == names
    for person in found:
        file = next(iter(person.files.values()))
        assert Memory(None).key("vae", file.name, gather(file, person.root_of(file)))
        report.terminal(person, Rubric(), "full", True).encode()
    (deep,) = (person for person in found if person.name == "deep")
    with pytest.raises(CannotLoad, match="no Python 3: "):
        Submission(deep.files["gan"], None)


def test_the_assignments_names_come_first(tmp_path):
    for name in ("a3_vae_template.py", "another_vae.py", "a3_vae_old.py"):
        (tmp_path / name).write_text(VAE)
    (person,) = people_in(tmp_path)
    assert person.files["vae"].name == "a3_vae_template.py"
    assert len(person.others) == 2


def test_points_follow_the_rubric(people, tmp_path):
    points = default_points("vae")
    total = sum(sum(default_points(model).values()) for model in MODELS)
    rest = sum(points.values()) - points["shapes"] - points["kl"] - points["stable"]
    earned = points["shapes"] + points["stable"] / 2
    assert Rubric().of_person(people[0]) == (earned, total, rest)
    (tmp_path / "r.toml").write_text('models = ["vae"]\n[vae]\nkl = 10\n[credit]\nweak = 1\n')
    rubric = read_rubric(tmp_path / "r.toml")
    total = sum(points.values()) + 10 - points["kl"]
    assert rubric.of_person(people[0]) == (points["shapes"] + points["stable"], total, rest)
    assert rubric.of_person(people[1]) == (0, total, 0)  # of a GAN that nobody asked for


def test_the_total_is_the_same_whatever_is_unjudged_or_missing(people):
    total = Rubric().of_person(people[0]).total
    people[0].results["vae"].findings.append(found("sample", "unjudged"))
    nobody = Person("cem")
    assert {Rubric().of_person(person).total for person in [*people, nobody]} == {total}
    for person in [*people, nobody]:
        tests = json.loads(report.to_gradescope([person], Rubric(), "full"))["tests"]
        assert sum(test["max_score"] for test in tests) == total
    tests = json.loads(report.to_gradescope(people[:1], Rubric(), "full"))["tests"]
    (test,) = (test for test in tests if test["name"].endswith("sample"))
    assert test["max_score"] == 1 and not {"score", "status"} & test.keys()


def test_the_printed_rubric_is_the_default_one(tmp_path, capsys):
    command.main(command.parse(["--print_rubric"]))
    (tmp_path / "r.toml").write_text(capsys.readouterr().out)
    assert read_rubric(tmp_path / "r.toml") == Rubric()


def test_what_is_not_judged_may_earn_up_to_its_points(people):
    """A grade book that takes an empty cell for 0 shows it beside what is certain."""
    total = sum(sum(default_points(model).values()) for model in MODELS)
    bob = people[1]
    assert Rubric().of_person(bob).percent == 0
    at_most = round(100 * sum(default_points("gan").values()) / total, 1)
    assert Rubric().of_person(bob).at_most == at_most
    assert f"not judged (0% to {at_most:g}%)" in report.terminal(bob, Rubric(), "full", False)
    (row,) = csv.DictReader(io.StringIO(report.to_csv([bob], Rubric())))
    (content,) = json.loads(report.to_json([bob], Rubric()))
    assert float(row["at_most"]) == content["at_most"] == at_most
    judged = Person("cem", results={"gan": FileResult("gan", "c", judged_all("gan"))})
    points = Rubric().of_person(judged)
    assert points.at_most == points.percent and "%" not in str(points)


def judged_all(model):
    return [replace(found(check, "pass"), model=model) for check in default_points(model)]


def test_the_end_lists_who_needs_a_look_by_hand_and_why():
    def person(name, *findings, reason="", model="vae"):
        result = FileResult(model, f"{name}.py", [*findings], reason)
        if not reason:
            judged = {one.check for one in findings}
            result.findings += [one for one in judged_all(model) if one.check not in judged]
        return Person(name, {model: None}, {model: result})

    rubric = Rubric(models=("vae",))
    in_time = "stopped after 600 s (3.0 s of processor time): it waits"
    people = [
        person("right"),
        person("wrong", found("kl", "wrong")),
        person("syntax", found("runs", "wrong"), reason="no Python 3"),
        person("empty", reason="not implemented: VAE.forward"),
        person("odd", found("kl", "unjudged", central=True)),
        person("note", found("seeded", "unjudged")),  # worth no points
        person("slow", reason=in_time),
        person("gan", reason="unknown", model="gan"),  # which is not asked for
        Person("absent", notes=["a.py: no regular file"]),
        Person("(nobody)", is_person=False, others=["x.py: the hand-out"]),
    ]
    lines = report.by_hand(people, rubric).splitlines()
    assert lines[0] == "To look at by hand:"
    names = [line.split()[0] for line in lines[1:] if line.startswith("    ")]
    assert names == ["syntax", "empty", "gan", "absent", "odd", "slow"]
    groups = [i for i, line in enumerate(lines[1:], 1) if not line.startswith("    ")]
    assert [i - groups[0] for i in groups] == [0, 5, 7] and len(lines) == 10
    assert lines[groups[1] + 1].split(maxsplit=3) == ["odd", "VAE", "kl:", "9 <nats>"]
    assert in_time in lines[-1] and "--time_limit" in lines[-2]
    assert "absent  not handed in: VAE (a.py: no regular file)" in "\n".join(lines)
    assert report.by_hand(people[:2], rubric) == ""
    (vile,) = report.by_hand([person("\x1b", reason="\x1b[2J\n")], rubric).splitlines()[2:]
    assert vile.isprintable()


def test_a_hint_never_leaves_out_why_nothing_is_judged():
    finding = found("gradient", "unjudged")
    assert report.explain(finding, "short") == finding.measured
    assert report.explain(finding, "none") == ""


@pytest.mark.parametrize(
    "name, start",
    [
        ("Özdemir", "Özdemir-"),
        ("O\u0308zdemir", "Özdemir-"),  # as macOS writes it
        ("李明", "李明-"),
        ("हिन्दी", "हिन्दी-"),
        ('../a b\x1b\u202e"<c>', "a_b_c-"),
        ("M\udcfcller", "M_ller-"),
        ("🎓", "person-"),
    ],
)
def test_names_of_pages_keep_letters_and_are_safe(name, start, tmp_path):
    file = page.file_name(name)
    assert file.startswith(start) and file.isprintable() and not set(file) & set(" /\\\"<>&'")
    (tmp_path / file).touch()
    assert page.file_name(f"{name}.") != file
    (tmp_path / page.file_name(100 * name)).touch()  # not too long


def test_the_manual_states_the_total_and_a_rubric_that_is_read(tmp_path):
    manual = (ROOT / "grading" / "README.md").read_text()
    without = Rubric()
    without.without_training()
    totals = [sum(sum(p.values()) for p in r.points.values()) for r in (Rubric(), without)]
    assert {float(n) for n in re.findall(r"of (\d+) points", manual)} == {totals[0]}
    assert f"{totals[0]:g} points, {totals[1]:g} without" in manual
    assert f"stopped after {WAITING} times as many" in manual
    (example,) = re.findall(r"```toml\n(.*?)```", manual, re.DOTALL)
    (tmp_path / "r.toml").write_text(example)
    assert read_rubric(tmp_path / "r.toml") != Rubric()


def test_pages_of_a_folder_name_everyone_and_overwrite_no_others(people, tmp_path):
    pages = page.to_pages([*people, Person("=ann/..")], Rubric(), "full")
    assert len(pages) == 4 and all("/" not in name for name in pages)
    assert all(name in pages["index.html"] for name in pages if name != "index.html")
    (tmp_path / "index.html").write_text("my home page")
    with pytest.raises(UserError, match="none of this grader's"):
        command.main(command.parse([str(tmp_path), "--html", f"{tmp_path}/"]))
    assert (tmp_path / "index.html").read_text() == "my home page"


def test_checks_that_are_unjudged_for_one_reason_take_one_line(people):
    for check in ("kl", "loss", "sample"):
        people[0].results["vae"].findings.append(found(check, "unjudged"))
    text = report.terminal(people[0], Rubric(), "full", False)
    assert "    unjudged  kl, loss, sample" in text and text.count("unjudged  ") == 1


@pytest.mark.parametrize(
    "text, words",
    [
        ("[vae]\nkll = 1", "kll"),
        ("[xyz]\nkl = 1", "xyz"),
        ("[vae]\nkl = 'a'", "number"),
        ("[credit]\nunjudged = 1", "has no unjudged, but pass, note, old, weak, wrong"),
        ("[", "is no TOML file"),
        ('models = ["cnn"]', "models is a list of vae, gan, nf"),
    ],
)
def test_wrong_rubric_is_a_user_error(tmp_path, text, words):
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(UserError, match=words):
        read_rubric(tmp_path / "r.toml")


def test_every_check_says_why_and_gives_a_hint():
    sections = {s for names in SECTIONS.values() for s in names}
    assert sections == set(checks_table())
    for section in checks_table().values():
        for check in section.values():
            assert check["why"].endswith(".") and check["hint"]


def test_csv_has_one_row_per_person_and_no_formulas(people):
    rows = list(csv.DictReader(io.StringIO(report.to_csv(people, Rubric()))))
    assert [row["name"] for row in rows] == ["'=ann", "bob"]
    assert rows[0]["vae_wrong"] == "kl"
    assert rows[1]["gan_judged"].startswith("no: stopped after 120 s")


def test_reports_put_failures_first_and_say_no_more_than_asked(people):
    text = report.terminal(people[0], Rubric(), "full", verbose=True)
    assert text.index("wrong ") < text.index("weak ") < text.index("pass ")
    assert "9 <nats>; expected 7" in text
    for make in (report.terminal, page.to_html, report.to_gradescope):
        person = people[0] if make is report.terminal else people[:1]
        options = (False,) if make is report.terminal else ()
        assert "nats" not in make(person, Rubric(), "none", *options)
    text = page.to_html(people, Rubric(), "full")
    assert "9 &lt;nats&gt;" in text and "http" not in text and "data:image/png" in text
    results = json.loads(report.to_gradescope(people[:1], Rubric(), "short"))
    assert results["score"] == Rubric().of_person(people[0]).earned
    assert any(test["output"] == "wrong. Look!" for test in results["tests"])
    assert (
        json.loads(report.to_json(people, Rubric()))[0]["files"]["vae"]["findings"][1]["check"]
        == "kl"
    )


@pytest.mark.parametrize(
    "statuses, reason, expected",
    [
        (["pass", "note", "weak"], "", 0),
        (["wrong"], "", 1),
        (["pass", "unjudged"], "", 1),
        ([], "broken", 1),
    ],
)
def test_exit_status(tmp_path, monkeypatch, capsys, statuses, reason, expected):
    (tmp_path / "a3_vae_template.py").write_text(VAE)
    findings = [found("kl", status, central=True) for status in statuses]

    def judge(box, model, path, *options):
        return FileResult(model, str(path), findings, reason)

    monkeypatch.setattr("grading.grader.judge_file", judge)
    monkeypatch.setattr("grading.sandbox.require", Sandbox)
    args = command.parse([str(tmp_path), "--fresh", "--json", str(tmp_path / "out.json")])
    with pytest.raises(SystemExit) as exit:
        command.main(args)
    assert exit.value.code == expected
    assert tmp_path.name in capsys.readouterr().out
    assert (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    "files, expected, counts",
    [
        ({"ann/a3.py": VAE, "bob/a3.py": VAE}, 0, "2 files: 0 wrong, 0 not judged"),
        (
            {"ann/a3.py": VAE, "bob/a3.pdf": ""},
            1,
            "1 file: 0 wrong, 0 not judged, 1 person",
        ),
        ({"ann/a.pdf": "", "bob/b.pdf": ""}, 1, "0 files: 0 wrong, 0 not judged, 2 people"),
        ({"ann/a3.py": VAE, "bob/a3.py": VAE, "x": None}, 1, "2 files: 0 wrong, 0 not judged"),
    ],
    ids=["all judged", "one without files", "two without files", "something is not read"],
)
def test_exit_status_of_a_class(tmp_path, monkeypatch, capsys, files, expected, counts):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        os.mkfifo(tmp_path / name) if text is None else (tmp_path / name).write_text(text)
    judged = FileResult("vae", "file", [found("kl", "weak", central=True)])
    monkeypatch.setattr("grading.grader.judge_file", lambda *args: judged)
    monkeypatch.setattr("grading.sandbox.require", Sandbox)
    with pytest.raises(SystemExit) as exit:
        command.main(command.parse([str(tmp_path), "--fresh"]))
    assert exit.value.code == expected
    assert f"2 people, {counts}" in capsys.readouterr().out


def test_people_are_printed_in_their_order(tmp_path, monkeypatch, capsys):
    """Bob is judged after Cem, and Ann and Dan have nothing to judge."""
    is_judged = threading.Event()

    def judge(box, model, path, *options):
        assert path.parent.name == "cem" or is_judged.wait(60)
        is_judged.set()
        return FileResult(model, str(path), [found("kl", "pass", central=True)])

    for name, text in {"ann": "", "bob": VAE, "cem": f"{VAE}    x = 1\n", "dan": ""}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "a3.py").write_text(text)
    monkeypatch.setattr("grading.grader.judge_file", judge)
    monkeypatch.setattr("grading.sandbox.require", Sandbox)
    with pytest.raises(SystemExit):
        command.main(command.parse([str(tmp_path), "--fresh", "--jobs", "2"]))
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert names[:5] == ["ann", "bob", "cem", "dan", "4"]


VILE = "\x1b[2J\u202eevil\n<script>alert(1)</script>" + "x" * 10_000


def test_no_text_of_a_submission_leaves_its_cell(people):
    person = Person(f"=HYPERLINK({VILE})", notes=[VILE], results=people[0].results)
    result = person.results["vae"]
    result.reason, result.look = VILE, [VILE]
    result.findings = [replace(found("kl", "wrong"), measured=VILE, expected=VILE)]
    result.findings.append(replace(result.findings[0], measured=" =1+1"))
    for text in (
        report.terminal(person, Rubric(), "full", True),
        report.to_csv([person], Rubric()),
        page.to_html([person], Rubric(), "full"),
        report.to_gradescope([person], Rubric(), "full"),
    ):
        assert "\x1b" not in text and "\u202e" not in text
        assert max(map(len, text.splitlines())) < 5_000
    assert "<script>" not in page.to_html([person], Rubric(), "full")
    (row,) = csv.DictReader(io.StringIO(report.to_csv([person], Rubric())))
    assert row["name"].startswith("'=") and "\\x1b" in row["vae_judged"]
    assert [csv_cell(t)[0] for t in (" =1", "+1", "@x", "-1", "\t=1")] == ["'"] * 4 + ["\\"]


def test_gradescope_always_gets_its_file(tmp_path):
    results = tmp_path / "results.json"
    args = command.parse([str(tmp_path), "--gradescope", str(results)])
    with pytest.raises(UserError):
        command.main(args)
    content = json.loads(results.read_text())
    assert content["score"] == 0 and "no file of the assignment" in content["output"]


def test_a_full_disk_costs_one_report_and_no_points(tmp_path, monkeypatch):
    (tmp_path / "a3_vae_template.py").write_text(VAE)
    result = FileResult("vae", "file", [found("kl", "pass")])
    monkeypatch.setattr("grading.grader.judge_file", lambda *args: result)
    monkeypatch.setattr("grading.sandbox.require", Sandbox)
    out = tmp_path / "results.json"
    args = ["--fresh", "--csv", "/dev/full", "--gradescope", str(out)]
    with pytest.raises(UserError, match="/dev/full: No space left"):
        command.main(command.parse([str(tmp_path), *args]))
    assert json.loads(out.read_text())["score"] == default_points("vae")["kl"]


def test_a_rubric_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "r.toml").write_bytes("\ufeff[vae]\nkl = 9\n".encode())
    assert read_rubric(tmp_path / "r.toml").points["vae"]["kl"] == 9


def test_reports_are_tried_before_the_work(tmp_path):
    (tmp_path / "class.csv").write_text(report.CSV_START)
    args = ["--csv", str(tmp_path / "class.csv"), "--json", str(tmp_path / "new.json")]
    with pytest.raises(UserError, match="no file of the assignment"):
        command.main(command.parse([str(tmp_path), *args]))
    assert [file.name for file in tmp_path.iterdir()] == ["class.csv"]
    assert (tmp_path / "class.csv").read_text() == report.CSV_START


SLOW_STREAMS = (">&-", "2>&-", "2> /dev/full")


@pytest.mark.thorough
@pytest.mark.parametrize(
    "redirection",
    [
        "> /dev/full 2>&-",
        "| head -c1",
        *(pytest.param(words, marks=pytest.mark.slow) for words in SLOW_STREAMS),
    ],
)
def test_streams_that_fail_cost_no_report(tmp_path, redirection):
    """A person whose name no Latin-1 has, nothing to judge, and streams that take nothing."""
    os.mkfifo(tmp_path / "a3.py")
    (tmp_path / "\u674e\u660e").mkdir()
    os.symlink("/etc", tmp_path / "\u674e\u660e" / "link")
    out = tmp_path / "class.json"
    line = f'"$0" -m grading "$1" --fresh --json "$2" {redirection}'
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line, sys.executable, str(tmp_path), str(out)],
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr and "rror" not in done.stderr
    person, nobody = json.loads(out.read_text())
    assert person["name"] == "\u674e\u660e" and person["not_read"]
    assert nobody["not_read"] == ["a3.py: no regular file"]


def test_wrong_command_line_exits_with_2(tmp_path, monkeypatch, capsys):
    lines = [[str(tmp_path / "nowhere")], ["--jobs", "0", str(tmp_path)], []]
    for impossible in (tmp_path / "nowhere" / "class.csv", tmp_path):
        lines.append([str(tmp_path), "--csv", str(impossible)])
    for line in lines:
        monkeypatch.setattr(sys, "argv", ["grading", *line])
        with pytest.raises(SystemExit) as exit:
            cli.run(command.main, command.parse)
        assert exit.value.code == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_two_reports_in_one_file_are_refused(tmp_path):
    file = str(tmp_path / "report")
    with pytest.raises(UsageError, match="two reports have the same file"):
        command.parse([str(tmp_path), "--json", file, "--csv", file])
    os.mkfifo(tmp_path / "pipe")  # as /dev/stdout may be one
    both = [str(tmp_path), "--json", str(tmp_path / "pipe"), "--csv", str(tmp_path / "pipe")]
    assert command.parse(both).csv == tmp_path / "pipe"
