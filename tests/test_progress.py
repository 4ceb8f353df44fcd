"""Progress bars, and side jobs that take at most their share of the time."""

import pytest

from harness import progress
from harness.progress import progress_bar


@pytest.mark.parametrize("terminal, seconds", [(True, 0.2), (False, 30)])
def test_the_bar_is_live_on_a_terminal_and_rare_in_a_log(monkeypatch, terminal, seconds):
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    with progress_bar(10, initial=4) as bar:
        bar.update(0.5)
        assert (bar.total, bar.n, bar.mininterval) == (10, 4.5, seconds)


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


@pytest.mark.parametrize("cost", [0.001, 0.3, 5.0])
def test_a_job_takes_at_most_its_share(clock, cost):
    job, spent = progress.Pace(0.01, 2.0), 0.0
    for _ in range(5000):
        clock[0] += 1.0
        if job.due():
            with job.timed():
                clock[0] += cost
            spent += cost
    assert 0 < spent / (clock[0] - 100) <= 0.0101
    assert spent / cost <= 5000 / 2


def test_the_first_job_waits_as_long_as_the_others(clock):
    job = progress.Pace(0.5, 3.0)
    assert not job.due()
    clock[0] += 3.0
    assert job.due()
    assert progress.Pace(0.5).due()


def test_a_job_that_fails_waits_for_its_next_turn_too(clock):
    job = progress.Pace(0.5)
    with pytest.raises(OSError), job.timed():
        clock[0] += 10.0
        raise OSError
    assert not job.due()


def test_a_bar_warns_of_no_rounding(recwarn):
    """A warning of tqdm would stand beside the message that the bar shows."""
    with progress_bar(1.0) as bar:
        for _ in range(10):
            bar.update(0.1)
        bar.update(0.1)
    assert bar.n <= bar.total and not [w for w in recwarn if "Tqdm" in w.category.__name__]
