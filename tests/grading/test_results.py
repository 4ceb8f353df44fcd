"""Results as data: read in one form only, and remembered."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grading import page
from grading.discovery import Person
from grading.gathering import gather
from grading.grader import Memory, grade
from grading.results import Damaged, FileResult, checks_of, plain, read_results
from grading.rubric import Rubric
from grading.sandbox import Sandbox
from tests.conftest import ROOT
from tests.grading.conftest import people_in
from tests.grading.test_reports import VAE, found


def complete(model="vae"):
    """Findings that pass every central check."""
    names = [name for name, check in checks_of(model).items() if check.get("central")]
    return [found(name, "pass", central=True) for name in names]


def result_text(**changes):
    names = [name for name, check in checks_of("vae").items() if check.get("central")]
    entries = [{"check": n, "status": "pass", "measured": "", "expected": ""} for n in names]
    content = {"token": "t", "findings": entries, "pixels": "", "steps": 0, "reason": ""}
    return json.dumps(content | changes)


def test_results_are_read_in_one_form_only():
    findings, picture, steps, reason = read_results(result_text(), "t", "vae")
    assert len(findings) == 5 and picture == reason == "" and steps == 0
    assert findings[0].why == checks_of("vae")["loss"]["why"]
    entry = {"check": "kl", "status": "pass", "measured": "", "expected": ""}
    runs = [{"check": "runs", "status": "wrong", "measured": "line 1", "expected": ""}]
    alone = result_text(
        reason="no Python 3", findings=[*runs, *json.loads(result_text())["findings"]]
    )
    findings, *_, reason = read_results(
        alone, "t", "vae"
    )  # where it doesn't run, nothing else holds
    assert [found.check for found in findings] == ["runs"] and reason == "no Python 3"
    for text in (
        "", "null", "[1]", "{}", "[" * 10**6, result_text() * 2, result_text(token="x"),
        result_text(more=1), result_text(reason=None), result_text(reason="x" * 501),
        result_text(pixels="AAAA"),
        result_text(steps=-1), result_text(steps=True), result_text(pixels=[1]),
        result_text(pixels="<" * 16728),
        result_text(findings={}), result_text(findings=[entry]), result_text(findings=[[]]),
        *(
            result_text(findings=[*json.loads(result_text())["findings"], entry | change])
            for change in (
                {}, {"check": "none"}, {"check": []}, {"check": "stable", "status": "best"},
                {"check": "stable", "status": []}, {"check": "stable", "measured": 1},
                {"check": "stable", "why": ""}, {"check": "stable", "expected": "x" * 501},
            )
        ),
    ):  # fmt: skip
        with pytest.raises(Damaged):
            read_results(text, "t", "vae")


STORED = {
    "findings": [plain(one) for one in complete()],
    "seconds": 1,
    "peak_mb": 1,
    "picture": "",
    "steps": 0,
}


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text() | st.integers(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "findings",
                        "seconds",
                        "peak_mb",
                        "picture",
                        "check",
                        "status",
                        "measured",
                        "expected",
                    ]
                ),
                inner,
            )
        ),
    )
)
def test_a_memory_of_any_content_ends_no_grading(tmp_path, stored):
    text = "\n".join(json.dumps({"key": "k", "result": r}) for r in (STORED, stored))
    (tmp_path / "memory.jsonl").write_text(text)
    result = Memory(tmp_path / "memory.jsonl").get("k", "vae", Path("file"))
    assert result is None or page.to_html([Person("a", results={"vae": result})], Rubric(), "full")


def test_a_memory_that_is_none_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_bytes(b"\xff my only copy")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    names = ["thesis.txt", "fifo", "folder", "thesis.txt/below", "x" * 300, "a\0b"]
    for name in names:
        memory = Memory(tmp_path / name)
        assert memory.path is None
        memory.put("key", FileResult("vae", "file", complete()))
    assert len(capsys.readouterr().err.splitlines()) == len(names)
    assert (tmp_path / "thesis.txt").read_bytes() == b"\xff my only copy"


def test_a_memory_that_an_editor_saved_with_a_bom_is_read(tmp_path):
    path = tmp_path / "memory.jsonl"
    Memory(path).put("key", FileResult("vae", "file", complete()))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    memory = Memory(path)
    assert memory.path == path and memory.get("key", "vae", Path("file")) is not None


def test_a_memory_that_fills_the_disk_ends_no_grading(tmp_path, capsys, monkeypatch):
    memory = Memory(tmp_path / "memory.jsonl")
    memory.path = Path("/dev/full")
    for _ in range(2):
        memory.put("key", FileResult("vae", "file", complete()))
    assert capsys.readouterr().err.count("No space left") == 1


def test_interrupted_grading_goes_on_where_it_was(tmp_path, monkeypatch):
    judged = []

    def judge(box, model, path, *options):
        judged.append(path.parent.name)
        if len(judged) == 3:
            raise KeyboardInterrupt
        return FileResult(model, str(path), complete(model))

    monkeypatch.setattr("grading.grader.judge_file", judge)
    monkeypatch.setattr("grading.sandbox.require", Sandbox)
    for name in "abcd":
        (tmp_path / name).mkdir()
        (tmp_path / name / "a3_vae_template.py").write_text(VAE)

    def run():
        memory = Memory(tmp_path / "memory.jsonl", training=False)
        return list(grade(people_in(tmp_path), memory, 1, 9, False, 0, lambda _: None))

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
    memory.put("slow", FileResult("vae", "file", reason="stopped after 120 s of processor time"))
    memory.put("open", FileResult("vae", "file", [found("kl", "unjudged", central=True)]))
    memory.put("judged", FileResult("vae", "file", complete()))
    memory = Memory(tmp_path / "memory.jsonl")
    slow, unjudged, judged = (memory.get(k, "vae", Path("f")) for k in ("slow", "open", "judged"))
    assert slow is unjudged is None
    assert judged.findings[0].check == "loss" and judged.findings[0].why


def test_changed_modules_and_versions_are_judged_again(tmp_path, monkeypatch):
    file, module = tmp_path / "a3_vae_template.py", tmp_path / "parts" / "layers.py"
    module.parent.mkdir()
    (tmp_path / ".venv").mkdir()
    file.write_text(VAE), module.write_text("")

    def key():
        return Memory(None).key("vae", file.name, gather(file, tmp_path))

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
    for package in ("grading", "gencheck"):
        changed = ROOT / package / "checks.toml"
        monkeypatch.setattr(Path, "read_bytes", lambda p: read(p) + b"#" * (p == changed))
        keys.append(key())
    assert len(set(keys)) == len(keys)


def test_one_file_that_fails_does_not_end_the_others(tmp_path, monkeypatch):
    def judge(box, model, path, *options):
        if path.parent.name == "bob":
            raise RecursionError("of an attacker")
        return FileResult(model, str(path), complete(model))

    monkeypatch.setattr("grading.grader.judge_file", judge)
    monkeypatch.setattr("grading.sandbox.require", Sandbox)
    for name in ("ann", "bob", "cem"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a3_vae_template.py").write_text(VAE)
    people = grade(people_in(tmp_path), Memory(None), 2, 9, False, 0, lambda _: None)
    reasons = {person.name: person.results["vae"].reason for person in people}
    failed = "the grader failed: RecursionError: of an attacker"
    assert reasons == {"ann": "", "bob": failed, "cem": ""}
