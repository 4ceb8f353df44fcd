"""The progress bar of a long job."""

import pytest

from harness.progress import progress_bar


@pytest.mark.parametrize("terminal, seconds", [(True, 0.2), (False, 30)])
def test_the_bar_is_live_on_a_terminal_and_rare_in_a_log(monkeypatch, terminal, seconds):
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    with progress_bar(10, initial=4) as bar:
        bar.update(0.5)
        assert (bar.total, bar.n, bar.mininterval) == (10, 4.5, seconds)
