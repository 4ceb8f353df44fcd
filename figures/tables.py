"""The gallery's tables, as lines of Markdown."""

import itertools
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from datasets import Source
from figures.kinds import GAN, KINDS, NF, SCRIPTS, VAE
from figures.runs import (
    NOT_OF_TRAINING,
    Groups,
    Runs,
    StoredRun,
    newest_of_kind,
    seed_groups,
)
from harness.classifier import read_record
from harness.escape import markdown_cell
from harness.references import (
    LAST_TENTH,
    NOT_COMPARABLE,
    PASS,
    SHORT,
    Graded,
    load,
    mean_rows,
)

# Further rows of the graded table: part of `result.json`, key, quantity.
TEST_VALUES = (
    ("test", "neg_elbo_nats", "test negative ELBO (nats)"),
    ("test", "bpd", "test (bits/dim)"),
    ("test", "bpd_shifted", "test, shifted as in the report (bits/dim)"),
    ("likelihood", "neg_log_px_nats", "test -log p(x), importance-weighted (nats)"),
    ("likelihood", "standard_error_nats", "standard error of test -log p(x) (nats)"),
    ("likelihood", "bpd", "test, importance-weighted: an upper bound (bits/dim)"),
    ("likelihood", "standard_error", "standard error of test, importance-weighted (bits/dim)"),
    ("likelihood", "encoder_gap_nats", "gap: test negative ELBO − (−log p(x)) (nats)"),
    ("likelihood", "gap_nats", "gap of the importance proposal, one draw − many (nats)"),
    ("likelihood", "effective_sample_size", "effective number of importance samples, median"),
    ("likelihood", "gap", "gap: test, one draw − importance-weighted (bits/dim)"),
    ("latent", "active_units", "active latent units"),
)
# Those that say how something was measured or used: left out where space is short.
DETAILS = {
    "standard_error_nats",
    "standard_error",
    "gap_nats",
    "gap",
    "effective_sample_size",
    "active_units",
}

# Rows of the comparison: label, key of the value, key of that of real images, digits.
MEASURES = (
    ("Fréchet distance (lower is better)", "frechet_distance", "frechet_floor", 2),
    ("precision", "precision", "precision_floor", 3),
    ("recall", "recall", "recall_floor", 3),
    ("share of the rarest digit", "smallest_class", None, 3),
    ("share of the commonest digit", "largest_class", None, 3),
    ("entropy of the classes (nats, at most 2.303)", "class_entropy_nats", None, 3),
    ("Parzen log-likelihood (nats)", "parzen_nats", "parzen_floor_nats", 1),
    ("its standard error (nats)", "parzen_standard_error", None, 1),
)
# Its columns: title, kind of run, part of `result.json`.
COMPARED = (
    ("VAE, means", "vae", "quality_of_means"),
    ("VAE, draws", "vae", "quality_of_draws"),
    ("GAN", "gan", "quality"),
    ("flow", "nf", "quality"),
)

# Metrics at the end of runs on other data than MNIST: kind of run, quantity, key.
ON_OTHER_DATA = (
    ("vae", "validation negative ELBO (nats)", "val_neg_elbo_nats"),
    ("gan", "generator loss, last tenth (nats)", "g_loss"),
    ("gan", "discriminator loss, last tenth (nats)", "d_loss"),
    ("nf", "validation (bits/dim)", "val_bpd"),
    ("nf", "validation, shifted as in the report (bits/dim)", "val_bpd_shifted"),
)


LINE_HEADER = ("training", "quantity", "at", "this project", "reference", "verdict")


class Line(NamedTuple):
    """A line of the graded table, in cells of text. A value of several runs is 'mean ± sd (n)'."""

    training: str
    quantity: str
    at: str
    value: str
    reference: str
    verdict: str


def other_groups(found: Runs, groups: Groups) -> Groups:
    """The finished runs that are in no group, by a title that says their settings."""
    shown = [run.folder for runs in groups.values() for run in runs]
    others = {}
    for runs in seed_groups(found):
        if runs[0].folder not in shown:
            title, n = title_of(runs[0]), 2
            while title in others:
                title, n = f"{title_of(runs[0])} ({n})", n + 1
            others[title] = runs
    return others


def title_of(run: StoredRun) -> str:
    """What a run is: its model and what is not the script's default, 'VAE: zdim 5'."""
    defaults = SCRIPTS[run.script].Config().flat()
    model = {VAE: "VAE", GAN: "GAN", NF: "flow"}[run.script]
    differing = [
        setting_text(name, value)
        for name, value in run.settings.items()
        if name not in NOT_OF_TRAINING and value != defaults[name]
    ]
    return f"{model}: {', '.join(differing)}" if differing else f"{model}, {run.length}"


def setting_text(name: str, value: Any) -> str:
    """A setting in words, 'zdim 5'; of a data set its title."""
    return Source(value).title if name == "dataset" else f"{name} {value}"


def graded_lines(groups: Groups, details: bool = True) -> list[Line]:
    """The graded rows and test values of the runs of each kind, their means over seeds.

    A group that is of no kind has its title as its name, and no row that does not compare. Without
    `details` the values of DETAILS are left out.
    """
    lines = []
    for name, runs in groups.items():
        title, shown = KINDS[name].title if name in KINDS else name, set()
        if any(run.chosen for run in runs):  # of any size
            title = title_of(runs[0])
        for graded in mean_rows(run.graded() for run in runs):
            quantity = f"{graded.row.quantity} ({graded.row.unit})"
            if name not in KINDS and graded.verdict.startswith(NOT_COMPARABLE):
                continue
            at, value = f"{runs[0].counter} {graded.at:,}", mean_text(graded.values, 3)
            if graded.row.at == LAST_TENTH:
                at = LAST_TENTH
            lines.append(Line(title, quantity, at, value, graded.row.bound, verdict(graded)))
            shown.add(quantity)
        for part, key, quantity in TEST_VALUES:
            if quantity in shown or key in DETAILS and not details:
                continue
            results = [run.results.get(part, {}) for run in runs]
            if values := [result[key] for result in results if key in result]:
                lines.append(Line(title, quantity, "end", mean_text(values, 3), "-", "-"))
    return lines


def graded_table(groups: Groups) -> list[str]:
    """`graded_lines` as Markdown; an empty list if there are none."""
    lines = graded_lines(groups)
    if not lines:
        return []
    text = (
        "Several seeds: mean ± standard deviation (number of seeds). A value without ± is of one "
        "seed. A pass is a pass of every seed."
    )
    return markdown(LINE_HEADER, lines) + ["", text]


def other_data(found: Runs, groups: Groups) -> list[str]:
    """The values of runs on other data sets, beside those on MNIST at the same epoch or batch.

    An empty list if there are no such runs.

    Args:
        found: all runs.
        groups: the runs on MNIST.
    """
    rows = []
    datasets = sorted({run.dataset for run in found} - {"mnist"})
    for dataset, (kind, quantity, key) in itertools.product(datasets, ON_OTHER_DATA):
        if runs := newest_of_kind(found, KINDS[kind], dataset):
            at, cells = runs[0].count, []
            for same in (runs, groups[kind]):
                values = [run.final(key, at) for run in same]
                cells.append(mean_text(values, 3) if values else "-")
            place = f"{runs[0].counter} {at:,}"
            rows.append([Source(dataset).title, KINDS[kind].title, quantity, place, *cells])
    if not rows:
        return []
    header = ("data set", "training", "quantity", "at", "this project", "the same on MNIST")
    text = (
        "Values without ± are of one run; a dash: not measured there. On MNIST it is the value at "
        "the same epoch, or at the last logged batch before. The references are of MNIST, so these "
        "values are not comparable with them."
    )
    return markdown(header, rows) + ["", text]


def comparison(groups: Groups) -> list[str]:
    """The sample measures of the three models side by side; [] if no run has any."""
    keys = {key for _, *pair, _ in MEASURES for key in pair if key}
    keys |= {"n_samples", "classifier_accuracy"}
    columns = {}
    for title, name, part in COMPARED:
        results = [run.results.get(part, {}) for run in groups[name]]
        if complete := [result for result in results if keys <= result.keys()]:
            seeds = f", {len(complete)} seeds" if len(complete) > 1 else ""
            columns[title + seeds] = complete
    if not columns:
        return []
    rows = []
    for label, key, floor, digits in MEASURES:
        cells = [label]
        for results in columns.values():
            cells.append(mean_text([result[key] for result in results], digits, n=False))
            if floor is not None:
                real = statistics.fmean(result[floor] for result in results)
                cells[-1] += f" ({real:.{digits}f})"
        rows.append(cells)
    everything = [result for results in columns.values() for result in results]
    n_samples = _range((result["n_samples"] for result in everything), ",")
    shifted = read_record()["floors"]["shifted"]
    accuracy = _range((result["classifier_accuracy"] for result in everything), ".2%")
    text = (
        f"{n_samples} samples each, against the 10,000 test images. In brackets: the same measure "
        "of 10,000 validation images (of 5,000 as Parzen windows). The features come from a small "
        f"classifier with a test accuracy of {accuracy}. Parzen windows can prefer generated "
        "digits to real ones; they are here to compare with Goodfellow et al. (2014). The VAE's "
        "draws are bits and are compared with binary digits, all others with grey ones. The flow "
        "is trained on images shifted by up to one pixel, and the measures notice the shift: "
        "validation images shifted alike have a Fréchet distance of "
        f"{shifted['frechet_floor']:.2f}, precision {shifted['precision_floor']:.3f}, recall "
        f"{shifted['recall_floor']:.3f} and {shifted['parzen_floor_nats']:.1f} nats."
    )
    return markdown(["", *columns], rows) + ["", text]


def mean_text(values: Sequence, digits: int, n: bool = True) -> str:
    """'mean' of one value, 'mean ± standard deviation (n)' of several, '-' if one is None.

    Counts that are all the same get no decimals.
    """
    if None in values:
        return "-"
    if len(set(values)) == 1 and isinstance(values[0], int):
        digits = 0
    mean = f"{statistics.fmean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    spread = f"{mean} ± {statistics.stdev(values):.{digits}f}"
    return f"{spread} ({len(values)})" if n else spread


def _range(values: Iterable[float], form: str) -> str:
    """'value' if all are the same, otherwise 'smallest to largest'."""
    ordered = sorted(values)
    return " to ".join(dict.fromkeys(format(value, form) for value in (ordered[0], ordered[-1])))


def verdict(graded: Graded) -> str:
    """The verdict over several seeds: 'pass' only if every seed passes."""
    n, n_passing = len(graded.values), graded.n_passing
    if graded.verdict not in (PASS, SHORT) or n_passing == n:
        return graded.verdict
    return SHORT if n == 1 else f"{SHORT}: {n_passing} of {n} seeds pass"


def published() -> list[str]:
    """Published values of other models, from `references.toml`, as Markdown items."""
    return [f"- {entry['model']}, {entry['text']}" for entry in load()["published"]]


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table as lines of Markdown."""
    lines = [_row(header), "|" + "---|" * len(header)]
    return lines + [_row(cells) for cells in rows]


def _row(cells: Sequence[str]) -> str:
    return " ".join(f"| {markdown_cell(cell)}".strip() for cell in cells) + " |"
