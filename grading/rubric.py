"""Points: which check is worth how many, and what part of them a status earns."""

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from gencheck.outcomes import NOTE, OLD, PASS, WEAK, WRONG, Finding
from grading.checks import checks_table
from grading.code_files import MODELS
from grading.discovery import Person
from grading.results import FileResult, checks_of
from harness.errors import UserError

CREDIT = {PASS: 1.0, NOTE: 1.0, OLD: 1.0, WEAK: 0.5, WRONG: 0.0}  # unjudged checks earn nothing yet
TRAINING = tuple(checks_table()["training"])  # checks of the short trainings


class Points(NamedTuple):
    """Points of a check, a file or a person."""

    earned: float
    total: float  # the same for everyone
    unjudged: float  # part of the total that nobody has judged

    def __str__(self):
        rest = ""
        if self.unjudged:
            rest = f", {self.unjudged:g} not judged ({self.percent:g}% to {self.at_most:g}%)"
        return f"{self.earned:g} of {self.total:g} points{rest}"

    @property
    def percent(self) -> float:
        """100 times what is earned over the total, to a tenth; 0 where there is nothing to earn."""
        return _percent(self.earned, self.total)

    @property
    def at_most(self) -> float:
        """`percent` if all that is unjudged turned out right."""
        return _percent(self.earned + self.unjudged, self.total)


def _percent(earned: float, total: float) -> float:
    return round(100 * earned / total, 1) if total else 0.0


def default_points(model: str) -> dict[str, float]:
    """The points of a model's checks."""
    return {name: check["points"] for name, check in checks_of(model).items()}


@dataclass
class Rubric:
    """Points by model and check, the part of them that each status earns, and the models asked."""

    points: dict[str, dict[str, float]] = field(
        default_factory=lambda: {model: default_points(model) for model in MODELS}
    )
    credit: dict[str, float] = field(default_factory=lambda: dict(CREDIT))
    models: tuple[str, ...] = MODELS

    def without_training(self) -> None:
        """Leave the short trainings out of everyone's total."""
        for checks in self.points.values():
            checks.update({name: 0.0 for name in TRAINING if name in checks})

    def of_check(self, model: str, found: Finding) -> Points:
        """Points of a check's finding."""
        total = self.points[model].get(found.check, 0.0) if model in self.models else 0.0
        if found.status not in self.credit:
            return Points(0.0, total, total)
        return Points(total * self.credit[found.status], total, 0.0)

    def of_checks(self, model: str, result: FileResult | None) -> dict[str, Points]:
        """Points by check of a model's file; without a file nothing is earned."""
        found = {} if result is None else {f.check: f for f in result.findings}
        points = {}
        for check, total in self.points[model].items():
            total = total if model in self.models else 0.0
            missing = Points(0.0, total, 0.0 if result is None else total)
            points[check] = self.of_check(model, found[check]) if check in found else missing
        return points

    def of_model(self, model: str, result: FileResult | None) -> Points:
        """Points of a model's file, or of None."""
        return _sum(self.of_checks(model, result).values())

    def of_person(self, person: Person) -> Points:
        """Points of all models."""
        return _sum(self.of_model(model, person.results.get(model)) for model in MODELS)


def _sum(points) -> Points:
    return Points(*map(sum, zip(*points)))


def read_rubric(path: Path) -> Rubric:
    """A rubric from a TOML file: tables [vae], [gan], [nf] of points, [credit] by status, `models`.

    What it doesn't name keeps its default.

    Raises:
        UserError: it is missing, no TOML, or names a check, a status or a model that doesn't exist.
    """
    try:
        content = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise UserError(f"--rubric {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"--rubric {path} is no TOML file: {error}") from error
    rubric = Rubric()
    if "models" in content:
        models = content.pop("models")
        if not isinstance(models, list) or not models or any(m not in MODELS for m in models):
            raise UserError(f"--rubric {path}: models is a list of {', '.join(MODELS)}")
        rubric.models = tuple(models)
    tables = rubric.points | {"credit": rubric.credit}
    for name, table in content.items():
        if name not in tables or not isinstance(table, dict):
            raise UserError(f"--rubric {path}: tables are {', '.join(tables)}, not {name}")
        for key, value in table.items():
            if key not in tables[name]:
                known = ", ".join(tables[name])
                raise UserError(f"--rubric {path}: [{name}] has no {key}, but {known}")
            if not isinstance(value, int | float) or isinstance(value, bool) or value < 0:
                raise UserError(f"--rubric {path}: {name}.{key} must be a number, at least 0")
            tables[name][key] = float(value)
    return rubric


def default_rubric() -> str:
    """The default rubric as TOML, with what each check is for."""
    lines = [f"models = {list(MODELS)}  # what everyone hands in".replace("'", '"')]
    for model in MODELS:
        lines += ["", f"[{model}]"]
        for name, check in checks_of(model).items():
            lines.append(f"{name} = {check['points']:g}  # {check['why']}")
    lines += ["", "[credit]  # the part of the points that a status earns"]
    lines += [f"{status} = {part:g}" for status, part in CREDIT.items()]
    return "\n".join(lines) + "\n"
