"""Finding submissions, remembering results, points and reports."""

import csv
import io
import json
import os
import sys
from pathlib import Path

import pytest

from gencheck.outcomes import Finding
from grading import __main__ as command
from grading import report
from grading.checks import checks_table
from grading.grader import FileResult, Memory, Person, discover, grade
from grading.loading import CannotLoad, Submission
from grading.rubric import SECTIONS, Rubric, default_points, read_rubric
from harness import cli
from harness.errors import UserError

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
    person = Person("=ann", {}, [], {"vae": result})
    unjudged = FileResult("gan", "b/a3_gan_template.py", reason="it took longer than 120 s")
    return [person, Person("bob", {}, [], {"gan": unjudged})]


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
    ann, bob = discover(tmp_path)
    assert (ann.name, set(ann.files)) == ("ann", {"vae"})
    assert set(bob.files) == {"gan", "nf"}
    (only,) = discover(tmp_path / "ann" / "deep" / "er")
    assert only.files.keys() == ann.files.keys()
    (tmp_path / "bob" / "part2" / "src").mkdir(parents=True)
    (tmp_path / "bob" / "part2" / "src" / "a3_vae_template.py").write_text(VAE)
    (alone,) = discover(tmp_path / "bob")
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
    found = discover(tmp_path)
    names = {"M\\udcfcller": {"vae"}, "\\x1b[31mred": {"vae"}, "deep": {"gan"}}
    assert {person.name: {*person.files} for person in found} == names
    for person in found:
        assert Memory(None).key("vae", next(iter(person.files.values())))
        report.terminal(person, Rubric(), "full", True).encode()
    (deep,) = (person for person in found if person.name == "deep")
    with pytest.raises(CannotLoad, match="no Python 3: "):
        Submission(deep.files["gan"], None)


def test_the_assignments_names_come_first(tmp_path):
    for name in ("a3_vae_template.py", "another_vae.py", "a3_vae_old.py"):
        (tmp_path / name).write_text(VAE)
    (person,) = discover(tmp_path)
    assert person.files["vae"].name == "a3_vae_template.py"
    assert len(person.other_files) == 2


def test_interrupted_grading_goes_on_where_it_was(tmp_path, monkeypatch):
    judged = []

    def judge(zygote, model, path, *options):
        judged.append(path.parent.name)
        if len(judged) == 3:
            raise KeyboardInterrupt
        return FileResult(model, str(path), [found("kl", "pass")])

    monkeypatch.setattr("grading.grader.judge_file", judge)
    monkeypatch.setattr("grading.grader.Zygote", lambda: type("Z", (), {"close": lambda _: None})())
    for name in "abcd":
        (tmp_path / name).mkdir()
        (tmp_path / name / "a3_vae_template.py").write_text(VAE)

    def run():
        memory = Memory(tmp_path / "memory.jsonl", training=False)
        return list(grade(discover(tmp_path), memory, 1, 9, False, 0, lambda _: None))

    with pytest.raises(KeyboardInterrupt):
        run()
    stored = (tmp_path / "memory.jsonl").read_text()
    (tmp_path / "memory.jsonl").write_text(stored + '{"key": "half a li')
    before = list(judged[:2])
    assert len(run()) == 4
    assert not set(before) & set(judged[3:])
    (tmp_path / "a" / "a3_vae_template.py").write_text(VAE + "\n# changed\n")
    n = len(judged)
    run()
    assert judged[n:] == ["a"]


def test_what_could_not_be_judged_is_judged_again(tmp_path):
    memory = Memory(tmp_path / "memory.jsonl")
    memory.put("slow", FileResult("vae", "file", reason="it took longer than 120 s"))
    memory.put("open", FileResult("vae", "file", [found("kl", "unjudged", central=True)]))
    memory.put("judged", FileResult("vae", "file", [found("kl", "pass")]))
    memory = Memory(tmp_path / "memory.jsonl")
    assert memory.get("slow") is memory.get("open") is None
    assert memory.get("judged").findings[0].check == "kl"


def test_changed_modules_and_versions_are_judged_again(tmp_path, monkeypatch):
    file, module = tmp_path / "a3_vae_template.py", tmp_path / "parts" / "layers.py"
    module.parent.mkdir()
    (tmp_path / ".venv").mkdir()
    file.write_text(VAE), module.write_text("")

    def key():
        return Memory(None).key("vae", file)

    keys = [key()]
    (tmp_path / ".venv" / "installed.py").write_text("")
    assert key() == keys[0]
    module.write_text("x = 1")
    keys.append(key())
    module.rename(module.with_name("nets.py"))
    keys.append(key())
    monkeypatch.setattr("torch.__version__", "1.0")
    keys.append(key())
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda p: read(p) + b"#" * (p.name == "checks.toml"))
    keys.append(key())
    assert len(set(keys)) == len(keys)


def test_points_follow_the_rubric(people, tmp_path):
    points = default_points("vae")
    possible = points["shapes"] + points["kl"] + points["stable"]
    assert Rubric().of_person(people[0]) == (points["shapes"] + points["stable"] / 2, possible)
    (tmp_path / "r.toml").write_text("[vae]\nkl = 10\n[credit]\nweak = 1\n")
    rubric = read_rubric(tmp_path / "r.toml")
    earned = points["shapes"] + points["stable"]
    assert rubric.of_person(people[0]) == (earned, earned + 10)


def test_unjudged_checks_are_neither_earned_nor_possible(people):
    before = Rubric().of_person(people[0])
    people[0].results["vae"].findings.append(found("sample", "unjudged"))
    assert Rubric().of_person(people[0]) == before
    tests = json.loads(report.to_gradescope(people[:1], Rubric(), "full"))["tests"]
    (test,) = (test for test in tests if test["name"].endswith("sample"))
    assert test["max_score"] == 0 and not {"score", "status"} & test.keys()
    assert sum(test["max_score"] for test in tests) == before[1]


@pytest.mark.parametrize(
    "text, words",
    [
        ("[vae]\nkll = 1", "kll"),
        ("[xyz]\nkl = 1", "xyz"),
        ("[vae]\nkl = 'a'", "number"),
        ("[credit]\nunjudged = 1", "has no unjudged, but pass, note, old, weak, wrong"),
        ("[", "is no TOML file"),
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
    assert rows[1]["gan_judged"].startswith("no: it took")


def test_reports_put_failures_first_and_say_no_more_than_asked(people):
    text = report.terminal(people[0], Rubric(), "full", verbose=True)
    assert text.index("wrong ") < text.index("weak ") < text.index("pass ")
    assert "9 <nats>; expected 7" in text
    for make in (report.terminal, report.to_html, report.to_gradescope):
        person = people[0] if make is report.terminal else people[:1]
        options = (False,) if make is report.terminal else ()
        assert "nats" not in make(person, Rubric(), "none", *options)
    page = report.to_html(people, Rubric(), "full")
    assert "9 &lt;nats&gt;" in page and "http" not in page and "data:image/png" in page
    results = json.loads(report.to_gradescope(people[:1], Rubric(), "short"))
    assert results["score"] == Rubric().of_person(people[0])[0]
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

    def judge(zygote, model, path, *options):
        return FileResult(model, str(path), findings, reason)

    monkeypatch.setattr("grading.grader.judge_file", judge)
    monkeypatch.setattr("grading.grader.Zygote", lambda: type("Z", (), {"close": lambda _: None})())
    args = command.parse_args([str(tmp_path), "--fresh", "--json", str(tmp_path / "out.json")])
    with pytest.raises(SystemExit) as exit:
        command.main(args)
    assert exit.value.code == expected
    assert tmp_path.name in capsys.readouterr().out
    assert (tmp_path / "out.json").exists()


def test_wrong_command_line_exits_with_2(tmp_path, monkeypatch, capsys):
    lines = [[str(tmp_path / "nowhere")], ["--jobs", "0", str(tmp_path)], []]
    for impossible in (tmp_path / "nowhere" / "class.csv", tmp_path):
        lines.append([str(tmp_path), "--csv", str(impossible)])
    for line in lines:
        monkeypatch.setattr(sys, "argv", ["grading", *line])
        with pytest.raises(SystemExit) as exit:
            cli.run_script(command.main, command.parse_args)
        assert exit.value.code == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
