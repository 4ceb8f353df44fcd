"""Graded rows: values, verdicts and the table; and what `references.toml` must hold."""

import math
import tomllib

import pytest

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
from harness import references
from harness.references import Row, grade, mean_rows, table, tail_mean

HISTORY = [{"epoch": epoch, "loss": 10.0 / epoch} for epoch in range(1, 11)]
SETTINGS = {"protocol": "standard", "zdim": 20, "seed": 3}
ROW = {"quantity": "loss", "unit": "nats", "key": "test.loss", "at": "end", "value": 1.0}
ROW |= {"kind": "published", "source": "someone", "high": 1.0}
SCRIPTS = (vae, nf, gan)


@pytest.fixture
def file(monkeypatch):
    """A function that puts rows, wanted settings and a curve in place of `references.toml`."""

    def replace(*rows, settings=None, **more):
        standard = {"rows": list(rows), "settings": {"zdim": 20} if settings is None else settings}
        content = {"harmless": ["protocol", "seed"], "published": []}
        content["one"] = {"script": "script.py", "standard": standard | more}
        monkeypatch.setattr(references, "load", lambda: content)

    return replace


def graded(history=HISTORY, settings=None, **results):
    return grade("script.py", SETTINGS | (settings or {}), history, {"test": results})


def verdicts(**results):
    return [row.verdict for row in graded(**results)]


def test_a_value_passes_within_its_bounds(file):
    for bounds, passing, failing in (
        ({"high": 1.0}, (1.0, -5.0), (1.1,)),
        ({"low": 0.5}, (0.5, 9.0), (0.4,)),
        ({"low": 0.5, "high": 2.0}, (0.5, 2.0), (0.4, 2.1)),
    ):
        file({name: value for name, value in ROW.items() if name != "high"} | bounds)
        assert all(verdicts(loss=value) == ["pass"] for value in passing)
        assert all(verdicts(loss=value) == ["falls short"] for value in failing)


def test_a_value_beyond_what_is_plausible_is_not_believed_however_good_it_is(file):
    file(ROW | {"plausible": [0.5, 9.0]})
    assert [verdicts(loss=value)[0] for value in (0.5, 0.49, 9.0, 9.1, -3.0)] == [
        "pass",
        "not plausible",
        "falls short",
        "not plausible",
        "not plausible",
    ]


def test_a_value_that_is_not_there_is_not_reached(file):
    file(ROW)
    assert verdicts() == ["not reached"]


def test_other_settings_are_not_comparable_and_named(file):
    file(ROW, settings={"zdim": 20, "binarize": ["static", "larochelle"]})

    def verdict(**settings):
        settings = {"binarize": "static"} | settings
        (row,) = graded(settings=settings, loss=0.5)
        return row.verdict

    assert verdict() == verdict(binarize="larochelle") == verdict(seed=7) == "pass"
    assert verdict(zdim=2) == "not comparable: zdim is 2, not 20"
    expected = "not comparable: binarize is threshold, not static or larochelle"
    assert verdict(binarize="threshold") == expected
    assert verdict(dropout=0.1) == "not comparable: dropout is 0.1, which no reference has"
    (row,) = graded(loss=0.5)
    assert row.verdict == "not comparable: binarize is missing"
    (row,) = graded(settings={"zdim": 2})  # without a value, too
    assert row.verdict == "not comparable: zdim is 2, not 20" and row.value is None


def test_a_script_that_the_file_does_not_know_has_no_rows(file):
    file(ROW)
    assert grade("mine.py", SETTINGS, HISTORY, {}) == []
    assert references.points("mine.py", SETTINGS, "loss") == []


def test_an_optional_row_without_a_value_is_left_out(file):
    rows = [ROW | {"key": f"test.{name}", "quantity": name, "optional": True} for name in "ab"]
    file(*rows, ROW | {"quantity": "c"})
    assert [row.row.quantity for row in graded(a=0.5)] == ["a", "c"]


def test_a_row_is_filled_from_the_line_it_names(file):
    file(*(ROW | {"key": "loss", "at": at, "value": v, "high": v} for at, v in AT.items()))
    found = graded()
    assert [(row.at, row.value, row.row.value, row.verdict) for row in found] == [
        (1, 10.0, 9.0, "falls short"),
        (4, 2.5, 2.5, "pass"),
        (11, None, 1.0, "not reached"),
    ]
    assert found[0].as_dict() == {
        "quantity": "loss",
        "unit": "nats",
        "at": 1,
        "value": 10.0,
        "reference": 9.0,
        "source": "someone",
        "verdict": "falls short",
    }


AT = {1: 9.0, 4: 2.5, 11: 1.0}


def test_a_metric_that_a_line_lacks_is_not_reached(file):
    file(ROW | {"key": "bpd", "at": 4})
    assert verdicts() == ["not reached"]


def test_the_end_of_a_run_counts_once_it_has_reached_what_the_row_asks(file):
    def filled(after, **results):
        file(ROW | {"after": after})
        (row,) = graded(**results)
        return row.at, row.value, row.verdict

    assert filled(10, loss=0.5) == (10, 0.5, "pass")
    assert filled(5, loss=0.5) == (10, 0.5, "pass")  # the value is of the end, not of epoch 5
    assert filled(11, loss=0.5) == (11, None, "not reached")
    assert filled(10) == filled(10, other=0.5) == (10, None, "not reached")


def test_the_end_of_a_metric_is_its_last_line(file):
    file(ROW | {"key": "loss"})
    (row,) = graded()
    assert (row.at, row.value) == (10, 1.0)


def test_a_tail_mean_is_of_the_last_tenth_of_the_run(file):
    history = [{"batch": n, "loss": 100.0 if n <= 90 else n} for n in range(5, 101, 5)]
    assert tail_mean(history, "loss") == (95 + 100) / 2
    assert tail_mean([], "loss") is tail_mean(history, "bpd") is None
    file(ROW | {"key": "loss", "at": "last tenth"})
    (row,) = graded(history)
    assert (row.at, row.value) == (100, 97.5)


def test_the_distance_of_two_values_needs_both(file):
    for keys, expected in ((["a", "b"], 3.0), (["b", "a"], 3.0), (["a", "c"], None)):
        file(ROW | {"key": [f"test.{key}" for key in keys]})
        (row,) = graded(a=5.0, b=8.0)
        assert row.value == expected


def test_the_mean_over_seeds_is_graded_by_the_row_s_own_bounds(file):
    bounds = {"low": 0.5, "high": 2.0, "plausible": [0.0, 4.0]}
    file(
        ROW | bounds | {"key": "test.a"},
        ROW | {"quantity": "b", "key": "test.b", "high": 3.0, "optional": True},
    )

    def mean_of(*results, settings=None):
        return mean_rows(graded(settings=settings, **of_run) for of_run in results)

    a, b = mean_of({"a": 1.0}, {"a": 2.5, "b": 3.0}, {"a": 1.0, "b": 5.0})
    assert (a.value, a.verdict, a.values, a.n_passing) == (1.5, "pass", (1.0, 2.5, 1.0), 2)
    assert (b.value, b.verdict, b.values) == (4.0, "falls short", (3.0, 5.0))
    (a,) = mean_of({"a": 1.0}, {})
    assert (a.value, a.verdict, a.n_passing) == (None, "not reached", 1)
    (a,) = mean_of({"a": 5.0}, {"a": 4.0})
    assert a.verdict == "not plausible"
    (a,) = mean_of({"a": 1.0}, settings={"zdim": 2})
    assert (a.value, a.verdict) == (1.0, "not comparable: zdim is 2, not 20")


def test_published_values_are_points_and_levels_of_a_plot_with_their_labels(file):
    metric = ROW | {"key": "loss", "at": 4, "label": "someone", "value": 100.6}
    tail = metric | {"at": "last tenth"}
    file(metric, tail, ROW, metric | {"label": ""}, metric | {"key": "other"})
    found = [function("script.py", SETTINGS, "loss") for function in (POINTS, LEVELS)]
    assert found == [[(4, 100.6, "someone, 100.60")], [(100.6, "someone 100.6")]]
    other = SETTINGS | {"zdim": 2}
    assert POINTS("script.py", other, "loss") == LEVELS("script.py", other, "loss") == []
    file(metric, curve={"key": "loss", "label": "curve", "at": [1, 2], "values": [9.0, 8.0]})
    assert POINTS("script.py", SETTINGS, "loss") == [(1, 9.0, "curve"), (2, 8.0, "curve")]


POINTS, LEVELS = references.points, references.levels


def test_the_table_is_aligned_and_says_the_bounds(file):
    file(
        ROW | {"key": "loss", "at": 1, "value": 100.6, "high": 100.6},
        ROW | {"quantity": "a longer quantity", "unit": "bits/dim", "kind": "bar", "high": 2},
        {**ROW, "value": 0.5, "low": 0.5, "high": math.inf},
        ROW | {"value": 1.15, "low": 0.9, "high": 1.5},
    )
    assert table(graded(loss=1.25), "epoch").splitlines() == [
        "quantity           unit      at epoch  this run           reference  verdict",
        "loss               nats             1    10.000             100.600  pass",
        "a longer quantity  bits/dim        10     1.250       at most 2.000  pass",
        "loss               nats            10     1.250      at least 0.500  pass",
        "loss               nats            10     1.250  1.150 (0.9 to 1.5)  pass",
    ]


# --- references.toml


def protocols():
    """(script, protocol, its table) of the file."""
    content = tomllib.loads(references.FILE.read_text())
    tables = {table["script"] for table in content.values() if isinstance(table, dict)}
    assert tables == {script.Config.SCRIPT for script in SCRIPTS}
    for script in SCRIPTS:
        for protocol in ("standard", "report"):
            settings = {"protocol": protocol}
            yield script, protocol, references.protocol_of(script.Config.SCRIPT, settings)


def of_file():
    return [
        pytest.param(script, protocol, row, id=f"{script.__name__}-{protocol}-{n}")
        for script, protocol, table in protocols()
        for n, row in enumerate(table["rows"])
    ]


@pytest.mark.parametrize("script, protocol, values", of_file())
def test_every_row_has_a_source_a_kind_and_bounds_on_both_sides(script, protocol, values):
    row = Row(**values)  # raises for a key that is none
    assert row.kind in ("published", "bar") and len(row.source) > 10
    assert row.quantity and row.unit and isinstance(row.value, int | float)
    assert row.low <= row.value <= row.high and row.low < row.high
    assert math.isfinite(row.low) or math.isfinite(row.high)
    assert all(math.isfinite(bound) for bound in row.plausible)
    # What passes is plausible, but for a bound that is open to the good side.
    low, high = row.plausible
    assert low < high and low <= row.value <= high
    for bound in (row.low, row.high):
        assert math.isinf(bound) or low <= bound <= high
    assert row.verdict(math.nextafter(low, -math.inf)) == "not plausible"
    assert row.verdict(math.nextafter(high, math.inf)) == "not plausible"
    if isinstance(row.at, int):
        assert row.at > 0 and "." not in row.key
    else:
        assert row.at in ("end", "last tenth") and row.after > 0


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_runs_with_the_defaults_compare_and_those_with_another_setting_do_not(script):
    harmless = references.load()["harmless"]
    for words in ([], ["--protocol", "report"]):
        settings = script.Config.parse(words).flat()
        name = script.Config.SCRIPT
        assert references.difference(name, settings) is None
        wanted = references.protocol_of(name, settings)["settings"]
        assert not wanted.keys() & set(harmless)
        assert wanted.keys() <= settings.keys() <= wanted.keys() | set(harmless)
        for setting in wanted:
            changed = settings | {setting: "another"}
            words = references.difference(name, changed)
            assert words.startswith(f"{setting} is another, not ")


@pytest.mark.parametrize("script, protocol, table", list(protocols()))
def test_a_curve_has_a_value_for_each_of_its_epochs_and_passes_through_the_rows(
    script, protocol, table
):
    curve = table["curve"]
    if curve is None:
        pytest.skip("has no curve")
    assert curve.keys() == {"label", "key", "at", "values"}
    assert len(curve["at"]) == len(curve["values"]) and curve["at"] == sorted(set(curve["at"]))
    assert curve["key"] in script.CURVES.columns
    drawn = dict(zip(curve["at"], curve["values"]))
    for row in table["rows"]:
        if "report" in row["source"] and row["key"] == curve["key"] and row["at"] in drawn:
            assert drawn[row["at"]] == pytest.approx(row["value"], rel=0.01)


@pytest.mark.parametrize(
    "script, line",
    [
        (vae, {"epoch": 40, "val_neg_elbo_nats": 79.4}),
        (vae, {"epoch": 40, "val_neg_elbo_nats": -3.0}),
        (nf, {"epoch": 40, "val_bpd_shifted": 1.19}),
        (nf, {"epoch": 100, "val_bpd_shifted": -0.5}),
    ],
)
def test_numbers_that_are_wrong_in_the_good_direction_do_not_pass(script, line):
    rows = grade(script.Config.SCRIPT, script.Config().flat(), [line], {})
    found = {row.verdict for row in rows if row.value is not None}
    assert found == {"not plausible"}


def test_a_wrong_likelihood_does_not_pass():
    results = {"likelihood": {"neg_log_px_nats": 70.0}}
    rows = grade("a3_vae_template.py", vae.Config().flat(), [{"epoch": 100}], results)
    (row,) = [row for row in rows if row.value is not None]
    assert row.verdict == "not plausible"
