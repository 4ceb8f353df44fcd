"""How a check's measurement becomes a finding."""

import pytest

from gencheck.outcomes import PASS, UNJUDGED, WRONG, Check, Outcome, TooLong, run_checks


class Subject:
    seed = 0


@pytest.mark.parametrize("second, status", [(WRONG, WRONG), (PASS, UNJUDGED)])
def test_nothing_is_accused_by_one_measurement(second, status):
    outcomes = iter([Outcome(WRONG, "first"), Outcome(second, "second")])
    check = Check("name", lambda subject: next(outcomes), "why", "hint")
    (finding,) = run_checks("vae", Subject(), [check])
    assert finding.status == status


@pytest.mark.parametrize(
    "error, words", [(TooLong("longer than 20 s"), "longer than 20 s"), (SystemExit(3), "sys.exit")]
)
def test_call_that_is_too_slow_or_exits_leaves_its_own_check_unjudged(error, words):
    def measure(subject):
        raise error

    checks = [Check("slow", measure, "why", "hint", crash=True)]
    checks.append(Check("next", lambda subject: Outcome(PASS, "right"), "why", "hint"))
    slow, following = run_checks("vae", Subject(), checks)
    assert (slow.status, following.status) == (UNJUDGED, PASS)
    assert words in slow.measured
