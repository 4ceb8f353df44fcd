"""Run folders are read or refused, whatever is in their files."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import records
from harness.errors import UserError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.sampled_from(["script", "settings", "test", "graded", "x"]), inner)
    ),
).map(lambda value: json.dumps(value).encode())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("records")


@given(content=st.binary() | JSON)
def test_any_config_is_read_or_refused(folder, content):
    (folder / "config.json").write_bytes(content)
    try:
        config = records.read_config(folder)
    except UserError as error:
        assert str(error).startswith(f"{folder} is not a run folder") and "\n" not in str(error)
        return
    assert isinstance(config["script"], str) and isinstance(config["settings"], dict)


def test_a_folder_without_a_config_and_a_run_of_another_script_are_refused(tmp_path):
    with pytest.raises(UserError, match="is not a run folder"):
        records.read_config(tmp_path / "absent")
    (tmp_path / "config.json").write_text('{"script": "a.py", "settings": {"lr": 0.1}}')
    assert records.read_config(tmp_path, "a.py")["settings"] == {"lr": 0.1}
    with pytest.raises(UserError, match="is a run of 'a.py', not of b.py"):
        records.read_config(tmp_path, "b.py")


LINE = st.dictionaries(
    st.sampled_from(["epoch", "loss"]),
    st.integers() | st.floats() | st.none() | st.booleans(),
)
LINES = st.lists(LINE.map(json.dumps) | st.text(max_size=5)).map("\n".join).map(str.encode)


@given(content=st.binary() | LINES)
def test_any_metrics_are_read_or_refused(folder, content):
    (folder / "metrics.jsonl").write_bytes(content)
    try:
        lines = records.read_metrics(folder)
    except UserError as error:
        assert "is damaged" in str(error) and "\n" not in str(error)
        return
    counts = [next(iter(line.values())) for line in lines]
    assert counts == sorted(set(counts))
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert lines == [json.loads(text) for text in content.split(b"\n")[:-1]]


def test_a_truncated_last_line_is_dropped_with_a_warning(tmp_path, capsys):
    text = '{"epoch": 1, "loss": 2.0}\n{"epoch": 2, "loss": 1.0}\n'
    for length in range(27, len(text)):
        (tmp_path / "metrics.jsonl").write_text(text[:length])
        assert records.read_metrics(tmp_path) == [{"epoch": 1, "loss": 2.0}]
        assert "the last line is truncated" in capsys.readouterr().err


@pytest.mark.parametrize(
    "damage, line",
    [
        (lambda text: text.replace("2.0", "NaN"), 1),
        (lambda text: text[1:], 1),
        (lambda text: text + text, 3),  # epochs that don't rise
        (lambda text: text + '{"batch": 3}\n', 3),
        (lambda text: text[:26] + "\n" + text[26:], 2),
    ],
)
def test_a_damaged_line_is_named(tmp_path, damage, line):
    text = '{"epoch": 1, "loss": 2.0}\n{"epoch": 2, "loss": 1.0}\n'
    (tmp_path / "metrics.jsonl").write_text(damage(text))
    with pytest.raises(UserError, match=f"line {line} is damaged"):
        records.read_metrics(tmp_path)


def test_missing_metrics_are_named(tmp_path):
    with pytest.raises(UserError, match="metrics.jsonl cannot be read: No such file"):
        records.read_metrics(tmp_path)


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"[]",
        b'{"test": 3}',
        b'{"test": {"loss": null}}',
        b'{"test": {"loss": NaN}}',
        b'{"test": {"loss": 1',
    ],
)
def test_damaged_results_are_refused(tmp_path, damaged):
    (tmp_path / "result.json").write_bytes(damaged)
    with pytest.raises(UserError, match="result.json"):
        records.read_results(tmp_path)


@given(content=st.binary() | JSON)
def test_any_results_are_read_or_refused(folder, content):
    (folder / "result.json").write_bytes(content)
    try:
        results = records.read_results(folder)
    except UserError as error:
        assert "result.json" in str(error) and "\n" not in str(error)
        return
    assert all(math.isfinite(value) for part in results.values() for value in part.values())


def test_an_unfinished_run_has_no_results(tmp_path):
    assert records.read_results(tmp_path) == {}


def test_the_last_line_says_how_much_is_done():
    assert records.count_of([{"epoch": 1}, {"epoch": 4}]) == 4 and records.count_of([]) == 0
