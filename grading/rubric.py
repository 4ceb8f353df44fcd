"""Points: which check is worth how many, and what part of them a status earns."""

import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from gencheck.outcomes import NOTE, OLD, PASS, WEAK, WRONG, Finding
from grading.discovery import MODELS, Person
from grading.results import FileResult, checks_of
from harness.errors import UserError

CREDIT = {PASS: 1.0, NOTE: 1.0, OLD: 1.0, WEAK: 0.5, WRONG: 0.0}  # unjudged checks don't count


def default_points(model: str) -> dict[str, float]:
    """The points of a model's checks."""
    return {name: check["points"] for name, check in checks_of(model).items()}


@dataclass
class Rubric:
    """Points by model and check, and the part of them that each status earns."""

    points: dict[str, dict[str, float]] = field(
        default_factory=lambda: {model: default_points(model) for model in MODELS}
    )
    credit: dict[str, float] = field(default_factory=lambda: dict(CREDIT))

    def of_check(self, model: str, found: Finding) -> tuple[float, float]:
        """(earned, possible) points of a check; none are possible if it is unjudged."""
        possible = self.points[model].get(found.check, 0.0) if found.status in self.credit else 0.0
        return possible * self.credit.get(found.status, 0.0), possible

    def of_file(self, result: FileResult) -> tuple[float, float]:
        """(earned, possible) points of a file; checks that were not run count for nothing."""
        counted = [self.of_check(result.model, found) for found in result.findings]
        return sum(earned for earned, _ in counted), sum(possible for _, possible in counted)

    def of_person(self, person: Person) -> tuple[float, float]:
        """(earned, possible) points of all of a person's files."""
        totals = [self.of_file(result) for result in person.results.values()]
        return sum(t[0] for t in totals), sum(t[1] for t in totals)


def read_rubric(path: Path) -> Rubric:
    """A rubric from a TOML file: tables [vae], [gan], [nf] of points, [credit] by status.

    What it doesn't name keeps its default.

    Raises:
        UserError: it is missing, no TOML, or names a check or status that doesn't exist.
    """
    try:
        content = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise UserError(f"--rubric {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"--rubric {path} is no TOML file: {error}") from error
    rubric = Rubric()
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
