"""What the library's functions return, and what they raise."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict

from gencheck.outcomes import UNJUDGED, WEAK, WRONG, Check, Finding, kept_random_numbers, run_checks


class Result:
    """The findings of one call; printed, a table.

    Args:
        model: "vae", "flow" or "gan".
        findings: in the order of the checks.
        seed: of the random numbers of the measurements.
        weak_too: whether weak findings are failures.

    Example:
        >>> result = check_flow(flow, shape=2)
        >>> print(result)
        >>> result["flow_logdet"].measured
    """

    def __init__(self, model: str, findings: Iterable[Finding], seed: int, weak_too: bool = False):
        self.model, self.seed = model, seed
        self.findings = list(findings)
        accusing = (WRONG, WEAK) if weak_too else (WRONG,)
        self.failures = [found for found in self.findings if found.status in accusing]
        self.unjudged = [found for found in self.findings if found.status == UNJUDGED]

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def __getitem__(self, check: str) -> Finding:
        """The finding of a check, by its name; KeyError if it was not measured."""
        return {found.check: found for found in self.findings}[check]

    def as_dict(self) -> dict:
        """Plain data, ready for JSON: model, seed, and the findings by check."""
        findings = {found.check: asdict(found) for found in self.findings}
        return {"model": self.model, "seed": self.seed, "findings": findings}

    def __str__(self) -> str:
        rows = [("check", "status", "measured", "expected")]
        rows += [(f.check, f.status, f.measured, f.expected) for f in self.findings]
        first, second = (max(len(row[i]) for row in rows) for i in (0, 1))
        lines = []
        for check, status, measured, expected in rows:
            expected = f"  [{expected}]" if expected and expected != measured else ""
            lines.append(f"{check:{first}}  {status:{second}}  {measured}{expected}".rstrip())
        return "\n".join(lines)

    __repr__ = __str__


class CheckFailure(AssertionError):
    """Something is wrong; the message lists what was measured and expected.

    Args:
        message: for a reader.
        result: all that was measured.
    """

    def __init__(self, message: str, result: Result | None = None):
        super().__init__(message)
        self.result = result


class NotJudged(Exception):
    """A central check has no verdict; the message says why and what to pass.

    Where the code under measurement raised an exception, that one is the cause (`__cause__`), with
    its own traceback.

    Args:
        message: for a reader.
        result: all that was measured; None if nothing could be.
    """

    def __init__(self, message: str, result: Result | None = None):
        super().__init__(message)
        self.result = result


def judge(
    model: str,
    subject,
    checks: Iterable[Check],
    weak_too: bool,
    allow_unjudged: Collection[str],
    seed: int,
) -> Result:
    """Run the checks on a subject: the result if nothing is wrong and all that matters is judged.

    Random numbers of the caller (PyTorch, NumPy, Python) go on where they were.

    Raises:
        CheckFailure: something is wrong, or weak if `weak_too`.
        NotJudged: a central check has no verdict and is not in `allow_unjudged`.
        ValueError: `allow_unjudged` names no check, or the seed is not in 0 to 999.
    """
    checks = list(checks)
    if not 0 <= seed <= 999:
        raise ValueError(f"seed={seed}: pass 0 to 999")
    allowed = _names(model, checks, allow_unjudged)
    errors = {}
    with kept_random_numbers():
        findings = list(run_checks(model, subject, checks, seed=seed, errors=errors))
    result = Result(model, findings, seed, weak_too)
    repeat = f"To repeat this: check_{model}(..., seed={seed})"
    if result.failures:
        lines = []
        for found in result.failures:
            source = f" ({found.reference})" if found.reference else ""
            lines += [f"{model}: {found.line()}", f"    {found.why}{source}"]
        raise CheckFailure("\n".join([*lines, repeat]), result)
    left_open = [f for f in result.unjudged if f.central and f.check not in allowed]
    if left_open:
        reasons = {}
        for found in left_open:
            reasons.setdefault(found.measured, []).append(found.check)
        lines = [f"{model}: not judged: {', '.join(c)}: {why}" for why, c in reasons.items()]
        names = "".join(f'"{f.check}", ' for f in left_open)
        lines.append(f"To leave this open: check_{model}(..., allow_unjudged=({names.rstrip()}))")
        cause = next((errors[f.check] for f in left_open if f.check in errors), None)
        raise NotJudged("\n".join([*lines, repeat]), result) from cause
    return result


def _names(model, checks, allow_unjudged) -> set[str]:
    """Full names of checks: "logdet" stands for "flow_logdet", too."""
    if isinstance(allow_unjudged, str):
        raise ValueError(f'allow_unjudged: pass a tuple, ("{allow_unjudged}",)')
    known = {check.name: check.name for check in checks}
    known |= {name.removeprefix(f"{model}_"): name for name in known}
    unknown = [name for name in allow_unjudged if name not in known]
    if unknown:
        names = ", ".join(check.name for check in checks)
        raise ValueError(f"allow_unjudged: no check is called {', '.join(unknown)}, but {names}")
    return {known[name] for name in allow_unjudged}
