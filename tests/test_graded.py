"""Graded rows: values, verdicts and the table."""

import math
from types import SimpleNamespace

import pytest

from harness.graded import (
    Row,
    at_least,
    at_most,
    between,
    distance,
    fill_rows,
    mean_rows,
    metric,
    optional,
    ratio,
    result,
    rows_at,
    table,
    tail_mean,
)

HISTORY = [{"epoch": epoch, "loss": 10.0 / epoch} for epoch in range(1, 11)]


def verdict(value, reference=1.0, settings=None, **bounds):
    row = Row("loss", "nats", lambda history, results, at: value, reference, **bounds)
    args = SimpleNamespace(zdim=20)
    (filled,) = fill_rows([row], settings or {}, args, HISTORY, {})
    return filled["verdict"]


def test_a_value_passes_at_or_below_its_reference():
    assert verdict(1.0) == "pass"
    assert verdict(1.1) == "falls short"
    assert verdict(None) == "not reached"


def test_bounds_replace_the_reference():
    inf = math.inf
    for low, high, passing, failing in (
        (0.5, inf, (0.5, 9.0), (0.4,)),
        (-inf, 2.0, (-3.0, 2.0), (2.1,)),
        (0.5, 2.0, (0.5, 2.0), (0.4, 2.1)),
    ):
        assert {verdict(value, low=low, high=high) for value in passing} == {"pass"}
        assert {verdict(value, low=low, high=high) for value in failing} == {"falls short"}


@pytest.mark.parametrize(
    "make, quantity, passing, failing",
    [
        (lambda value: at_most("a", "nats", value, 2.0), "a, at most", (1.0, 2.0), (2.1,)),
        (lambda value: at_least("a", "nats", value, 2.0), "a, at least", (2.0, 9.0), (1.9,)),
        (lambda value: between("a", "nats", value, 1, 0.5, 2), "a, 0.5 to 2", (0.5, 2), (0.4, 2.1)),
    ],
    ids=["at most", "at least", "between"],
)
def test_a_row_says_the_bounds_it_has(make, quantity, passing, failing):
    for values, expected in ((passing, "pass"), (failing, "falls short")):
        for number in values:
            row = make(lambda history, results, at, number=number: number)
            (filled,) = fill_rows([row], {}, SimpleNamespace(), HISTORY, {})
            assert (filled["quantity"], filled["verdict"]) == (quantity, expected)


def test_other_settings_are_not_comparable():
    assert verdict(0.5, settings={"zdim": (2, 20)}) == "pass"
    assert verdict(0.5, settings={"zdim": (2,)}) == "not comparable"
    assert verdict(None, settings={"zdim": (2,)}) == "not comparable"


def test_an_optional_row_without_a_value_is_left_out():
    a, b, c = (Row(name, "nats", result("test", name), 1.0) for name in "abc")
    rows = [*optional(a, b), c]
    graded = fill_rows(rows, {}, SimpleNamespace(), HISTORY, {"test": {"a": 0.5}})
    assert [row["quantity"] for row in graded] == ["a", "c"]


def test_a_row_is_filled_from_the_line_it_names():
    rows = rows_at({1: 9.0, 4: 2.5, 11: 1.0}, "loss", "nats", "loss")
    graded = fill_rows(rows, {}, SimpleNamespace(), HISTORY, {})
    assert [(row["at"], row["value"], row["reference"], row["verdict"]) for row in graded] == [
        (1, 10.0, 9.0, "falls short"),
        (4, 2.5, 2.5, "pass"),
        (11, None, 1.0, "not reached"),
    ]
    assert graded[0].keys() == {"quantity", "unit", "at", "value", "reference", "verdict"}


def test_a_metric_that_a_line_lacks_is_not_reached():
    assert metric("bpd")(HISTORY, {}, 4) is None


def test_the_end_of_a_run_counts_once_it_has_reached_what_the_row_asks():
    def filled(reached, results):
        row = Row("loss", "nats", result("test", "loss"), 1.0, reached=reached)
        (content,) = fill_rows([row], {}, SimpleNamespace(), HISTORY, results)
        return content["at"], content["value"], content["verdict"]

    results = {"test": {"loss": 0.5}}
    assert filled(10, results) == (10, 0.5, "pass")
    assert filled(5, results) == (10, 0.5, "pass")  # the value is of the end, not of epoch 5
    assert filled(11, results) == (11, None, "not reached")
    assert filled(10, {}) == filled(10, {"test": {"x": 0.5}}) == (10, None, "not reached")


def test_a_row_without_a_place_is_of_the_end_of_the_run():
    values = (result("test", "loss"), metric("loss"))
    rows = [Row("loss", "nats", value, 1.0) for value in values]
    graded = fill_rows(rows, {}, SimpleNamespace(), HISTORY, {"test": {"loss": 0.5}})
    assert [(row["at"], row["value"]) for row in graded] == [(10, 0.5), (10, 1.0)]


def test_a_tail_mean_is_of_the_last_tenth_of_the_run():
    history = [{"batch": n, "loss": 100.0 if n <= 90 else n} for n in range(5, 101, 5)]
    assert tail_mean("loss")(history, {}, 100) == (95 + 100) / 2
    assert tail_mean("loss")([], {}, 0) is None


def test_a_ratio_and_a_distance_need_both_of_their_parts():
    results = {"test": {"a": 5.0, "b": 8.0}}
    a, b, c = (result("test", key) for key in "abc")
    assert ratio(a, b)(HISTORY, results, 10) == 5 / 8
    assert distance(a, b)(HISTORY, results, 10) == distance(b, a)(HISTORY, results, 10) == 3
    assert ratio(a, c)(HISTORY, results, 10) is distance(c, a)(HISTORY, results, 10) is None


def test_the_mean_over_seeds_is_graded_by_the_row_s_own_bounds():
    rows = [
        between("a", "nats", result("test", "a"), 1.0, 0.5, 2.0),
        *optional(Row("b", "nats", result("test", "b"), 3.0)),
    ]

    def mean_of(*results, settings=None):
        args = SimpleNamespace(zdim=20)
        seeds = [fill_rows(rows, settings or {}, args, HISTORY, {"test": test}) for test in results]
        return mean_rows(seeds)

    a, b = mean_of({"a": 1.0}, {"a": 2.5, "b": 3.0}, {"a": 1.0, "b": 5.0})
    assert (a["value"], a["verdict"], a["n_passing"]) == (1.5, "pass", 2)
    assert a["spread"] == pytest.approx(math.sqrt(0.75))
    assert (b["value"], b["verdict"], b["values"]) == (4.0, "falls short", [3.0, 5.0])
    (a,) = mean_of({"a": 1.0}, {})
    assert (a["value"], a["spread"], a["verdict"], a["n_passing"]) == (None, None, "not reached", 1)
    (a,) = mean_of({"a": 1.0}, settings={"zdim": (2,)})
    assert (a["value"], a["spread"], a["verdict"]) == (1.0, None, "not comparable")


def test_a_reference_is_a_point_of_a_plot_with_its_source():
    row = Row("loss", "nats", metric("loss"), 100.6, 40, "someone")
    assert row.star() == (40, 100.6, "someone, 100.60")


def test_the_table_is_aligned():
    rows = [
        Row("loss", "nats", lambda *_: None, 100.6, at=1),
        Row("a longer quantity", "bits/dim", lambda *_: 1.25, 2.0, at=1000),
    ]
    graded = fill_rows(rows, {}, SimpleNamespace(), HISTORY, {})
    assert table(graded, "epoch").splitlines() == [
        "quantity           unit      at epoch  this run  reference  verdict",
        "loss               nats             1         -    100.600  not reached",
        "a longer quantity  bits/dim     1,000     1.250      2.000  pass",
    ]
