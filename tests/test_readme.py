"""Result files support README's numbers, and its options exist."""

import dataclasses
import re
import statistics
import typing

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
import figures.__main__ as figures
import figures.explorer.__main__ as explorer
import grading.__main__ as grading
from examples import interpolate, sample
from figures import train_classifier
from figures.export import export
from figures.kinds import KINDS
from figures.recorded import read_recorded
from figures.runs import newest_of_kind
from figures.tables import comparison, graded_table
from tests import benchmark
from tests.conftest import ROOT
from tests.readme_numbers import (
    GALLERY,
    MEASURED,
    known_numbers,
    over_seeds,
    texts,
    unfounded,
)

README = (ROOT / "README.md").read_text()


def test_every_number_of_readme_and_docstrings_stands_in_a_result_file():
    known = known_numbers()
    assert {name: unfounded(text, known) for name, text in texts().items()} == dict.fromkeys(
        ("README.md", "a3_vae_template.py", "a3_gan_template.py", "a3_nf_template.py"), []
    )


def test_no_recorded_run_falls_short():
    runs = read_recorded(MEASURED / "runs.jsonl")
    verdicts = {graded.verdict.partition(":")[0] for run in runs for graded in run.graded()}
    assert verdicts == {"pass", "not comparable"}


def test_the_gallery_s_tables_are_those_of_the_recorded_runs(tmp_path):
    runs = read_recorded(MEASURED / "runs.jsonl")
    groups = {name: newest_of_kind(runs, kind) for name, kind in KINDS.items()}
    lines = GALLERY.read_text(encoding="utf-8").splitlines()
    for table in (graded_table(groups), comparison(groups)):
        rows = [row for row in table if row.startswith("|")]
        first = lines.index(rows[0])
        assert len(rows) > 5 and lines[first : first + len(rows) + 1] == [*rows, ""]
    for name in ("results.csv", "results.tex"):
        export(tmp_path / name, runs, groups)
        assert (tmp_path / name).read_text() == (GALLERY.parent / "report" / name).read_text()


def test_a_number_that_stands_nowhere_is_found_with_its_line():
    text = "\n98.87 nats, 1,234.5 ms\nin 7:11, with `--lr 0.77`\n\n    code 3.33\n\n1.7719 or 1.77"
    assert unfounded(text, [98.869, 1.7719, 431.0]) == [(2, "1,234.5")]
    assert unfounded(text, [98.88, 1234.5, 1.772, 430.0]) == [
        (2, "98.87"), (3, "7:11"), (7, "1.7719"),
    ]  # fmt: skip


def options_of(command):
    """The options of a command line that is parsed as this dataclass."""
    options = set()
    for field in dataclasses.fields(command):
        if dataclasses.is_dataclass(field.default_factory):  # a group
            options |= options_of(field.default_factory)
        else:
            options |= {f"--{field.name}", f"--no_{field.name}"}
    return options


def test_the_options_in_the_readme_exist():
    """Every option in it is one of a command of ours."""
    commands = [script.Config for script in (vae, gan, nf)]
    commands += typing.get_args(figures.Command)
    commands += [explorer.Command, train_classifier.Command, sample.Command, interpolate.Command]
    commands += [benchmark.Options, grading.Command]
    known = {"--help"}.union(*map(options_of, commands))
    text = (ROOT / "tests/device_check.py").read_text()
    ours = re.sub(r"^    sbatch .* --wrap", "", README, flags=re.MULTILINE)  # SLURM's are not
    options = set(re.findall(r"(?<![\w-])--[a-z_]+", ours)) - known
    assert {option for option in options if f'"{option}"' not in text} == set()


def test_means_and_deviations_over_runs_of_a_kind_and_length_are_known():
    runs = [("vae", 100, 1.0), ("vae", 100, 2.0), ("vae", 2, 9.0), ("nf", 100, 7.0)]
    records = [
        {"kind": kind, "dataset": "mnist", "epoch": epoch, "nats": nats}
        for kind, epoch, nats in runs
    ]
    assert list(over_seeds(records)) == [1.5, statistics.stdev([1.0, 2.0]), 9.0, 7.0]
