"""A side job takes at most its share of the time."""

import pytest

from harness import pace


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(pace.time, "perf_counter", lambda: now[0])
    return now


@pytest.mark.parametrize("cost", [0.001, 0.3, 5.0])
def test_a_job_takes_at_most_its_share(clock, cost):
    job, spent = pace.Pace(0.01, 2.0), 0.0
    for _ in range(5000):
        clock[0] += 1.0
        if job.due():
            with job.timed():
                clock[0] += cost
            spent += cost
    assert 0 < spent / (clock[0] - 100) <= 0.0101
    assert spent / cost <= 5000 / 2


def test_the_first_job_waits_as_long_as_the_others(clock):
    job = pace.Pace(0.5, 3.0)
    assert not job.due()
    clock[0] += 3.0
    assert job.due()
    assert pace.Pace(0.5).due()


def test_a_job_that_fails_waits_for_its_next_turn_too(clock):
    job = pace.Pace(0.5)
    with pytest.raises(OSError), job.timed():
        clock[0] += 10.0
        raise OSError
    assert not job.due()
