"""Results as data with a schema: what a submission's process says is believed in no other form."""

import base64
import io
import json
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from gencheck.outcomes import STATUSES, UNJUDGED, WRONG, Finding
from grading.checks import MAX_TEXT, OF_FLOWS, POINTS, checks_table
from grading.pictures import N_SIDE
from harness.escape import printable

SECTIONS = {  # of checks.toml, by model
    "vae": ("vae", "epochs", "training", "all"),
    "nf": ("flow", "model", "epochs", "training", "all"),
    "gan": ("gan", "all"),
}
KEYS = {"token", "findings", "pixels", "steps", "reason"}
FINDING_KEYS = {"check", "status", "measured", "expected"}


@dataclass
class FileResult:
    """What came out of judging one file.

    Args:
        model: one of MODELS.
        path: the file.
        findings: in the order of the checks.
        reason: why the file could not be judged, or "".
        seconds: of processor time.
        peak_mb: the process's memory at its largest.
        output: what the submission printed, cut.
        look: lines of the source that a person should look at.
        picture: a PNG of samples in base64, or "".
        steps: of training that were made before these samples were drawn.
    """

    model: str
    path: str
    findings: list[Finding] = field(default_factory=list)
    reason: str = ""
    seconds: float = 0.0
    peak_mb: int = 0
    output: str = ""
    look: list[str] = field(default_factory=list)
    picture: str = ""
    steps: int = 0

    @property
    def is_judged(self) -> bool:
        """Whether the checks ran and no central one is left open."""
        return not self.reason and not any(
            f.central and f.status == UNJUDGED for f in self.findings
        )

    @property
    def is_wrong(self) -> bool:
        """Whether something is wrong."""
        return any(f.status == WRONG for f in self.findings)


def as_json(result: FileResult) -> dict:
    """A result as plain data."""
    return vars(result) | {"findings": [vars(found) for found in result.findings]}


class Damaged(Exception):
    """What should be results is something else."""


def checks_of(model: str) -> dict[str, dict]:
    """The checks of a model by name, gencheck's and ours, with their points."""
    table = checks_table()
    return {
        name: check | {"points": POINTS.get(section, {}).get(name, 1.0)}
        for section in SECTIONS[model]
        for name, check in table[section].items()
        if model != "vae" or name not in OF_FLOWS
    }


def read_results(text: str, token: str, model: str) -> tuple[list[Finding], str, int, str]:
    """What a process wrote: findings, a picture as PNG in base64 or "", its steps, a reason or "".

    Raises:
        Damaged: it has other keys, types or lengths, another token, or an unknown check, a check
            twice or none of a central one.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Damaged from error
    if not isinstance(content, dict) or content.keys() != KEYS or content["token"] != token:
        raise Damaged
    if reason := _text(content["reason"]):
        # A process that ends its checks early may have hidden the rest; only this hides nothing.
        entries = content["findings"] if isinstance(content["findings"], list) else []
        runs = [e for e in entries if isinstance(e, dict) and e.get("check") == "runs"][:1]
        return read_findings(runs, model, complete=False), "", 0, reason
    findings, picture = read_findings(content["findings"], model), _picture(content["pixels"])
    return findings, picture, read_steps(content["steps"]), ""


def read_findings(entries: Any, model: str, complete: bool = True) -> list[Finding]:
    """Findings of known checks, each at most once; the words about a check are `checks.toml`'s.

    Raises:
        Damaged: they are something else, or `complete` and a central check is missing.
    """
    checks, findings = dict(checks_of(model)), []  # the checks that are not found yet
    if not isinstance(entries, list):
        raise Damaged
    for entry in entries:
        if not isinstance(entry, dict) or entry.keys() != FINDING_KEYS:
            raise Damaged
        name, status = _text(entry["check"]), entry["status"]
        if name not in checks or status not in STATUSES:
            raise Damaged
        check = checks.pop(name)
        findings.append(
            Finding(
                model=model,
                check=name,
                status=status,
                measured=_text(entry["measured"]),
                expected=_text(entry["expected"]),
                why=check["why"],
                reference=check.get("reference", ""),
                hint=check["hint"],
                central=check.get("central", False),
            )
        )
    if complete and any(check.get("central") for check in checks.values()):
        raise Damaged
    return findings


def plain(found: Finding) -> dict[str, str]:
    """A finding in the form that `read_findings` reads."""
    return {key: getattr(found, key) for key in sorted(FINDING_KEYS)}


def _text(value):
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise Damaged
    return printable(value)


def read_steps(value: Any) -> int:
    """A number of training steps.

    Raises:
        Damaged: it is something else.
    """
    if type(value) is not int or not 0 <= value <= 10**6:
        raise Damaged
    return value


def read_png(text: Any) -> str:
    """A stored picture: base64 and nothing else.

    Raises:
        Damaged: it is something else.
    """
    if not isinstance(text, str) or not re.fullmatch(r"[A-Za-z0-9+/]{0,100000}={0,2}", text):
        raise Damaged
    return text


def _picture(pixels):
    """The PNG is made here: a submission chooses grey levels and nothing else."""
    if pixels == "":
        return ""
    try:
        levels = base64.b64decode(pixels, validate=True)
    except (TypeError, ValueError) as error:
        raise Damaged from error
    if len(levels) != N_SIDE * N_SIDE * 784:
        raise Damaged
    images = np.frombuffer(levels, np.uint8).reshape(N_SIDE, N_SIDE, 28, 28)
    grid = images.swapaxes(1, 2).reshape(28 * N_SIDE, 28 * N_SIDE)
    content = io.BytesIO()
    Image.fromarray(grid).save(content, "png")
    return base64.b64encode(content.getvalue()).decode()
