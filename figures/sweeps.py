"""Sweeps: grids of a script's options to train, and any number of a run against a setting."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from figures.kinds import KINDS, SCRIPTS
from figures.runs import NOT_OF_TRAINING, Runs, StoredRun
from figures.tables import mean_text, setting_text
from harness import plots
from harness.errors import UsageError, UserError

MARK = {"Title": "Drawn by python -m figures plot"}  # in the file, by which it is known later
START = rf"\x89PNG.{{0,400}}{MARK['Title']}"
SWEPT = ("vae", "gan", "nf")  # the kinds whose scripts a sweep trains
# Options of the script that a sweep sets by itself, and those that set them.
SET_BY = {"seed": "--seeds N", "out": "--runs DIR", "resume": "", "evaluate": "", "protocol": ""}
LABELS = {  # of numbers in plots; others are labelled with their names
    "likelihood.neg_log_px_nats": "test −log p(x) (nats)",
    "latent.active_units": "active latent units",
    "test.neg_elbo_nats": "test negative ELBO (nats)",
    "val_neg_elbo_nats": "validation negative ELBO (nats)",
    "val_bpd": "validation (bits/dim)",
    "val_bpd_shifted": "validation, shifted images (bits/dim)",
    "test.bpd": "test (bits/dim)",
    "likelihood.bpd": "test, importance-weighted (bits/dim)",
    "zdim": "latent dimensions",
}
# The gallery's own: how many latent dimensions should a VAE have?
DIMENSIONS = ("likelihood.neg_log_px_nats", "latent.active_units", "test.neg_elbo_nats")
MIN_DIMENSIONS = 3  # fewer are no sweep

Points = dict[Any, list[float]]  # the values of the seeds, by the value of the swept setting
LeftOut = list[tuple[str, Path]]  # reasons, and the folders of the runs


def split_words(kind_name: str, words: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """(the words for `figures train` itself, [--option, value, ...] for the script).

    An option belongs to the script if its `Config` has it and `figures train` sets it not itself.
    """
    config = SCRIPTS[KINDS[kind_name].script].Config()
    of_script = set(config.flat()) - set(vars(config.data)) - {"device"}
    ours, theirs = [], []
    target = ours
    for word in words:
        name = word.removeprefix("--").partition("=")[0].removeprefix("no_")
        if not word.startswith("--"):
            target.append(word)
        elif name in SET_BY:
            instead = f": use {SET_BY[name]}" if SET_BY[name] else ""
            raise UsageError(f"--{name} is no option of a sweep{instead}")
        elif name in of_script:
            option, _, value = word.partition("=")
            theirs.append([option, value] if value else [option])
            target = theirs[-1]
        else:
            ours.append(word)
            target = ours
    return ours, theirs


def grid(kind_name: str, options: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    """The option words of each training: all combinations of the options' values.

    Raises:
        UsageError: the script does not take one of them, or an option is given twice.
    """
    names = [name for name, *_ in options]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{name} is given twice: name all of its values at once")
    for name, *values in options:
        if joined := next((value for value in values if "," in value), None):
            raise UsageError(f"{name} {joined}: separate values with spaces")
    choices = [
        [f"{name}={value}" for value in dict.fromkeys(values)] or [name]
        for name, *values in options
    ]
    combinations = tuple(itertools.product(*choices))
    parse = SCRIPTS[KINDS[kind_name].script].Config.parse
    for words in combinations:
        parse(list(words))
    return combinations


def number_of(run: StoredRun, key: str) -> float | None:
    """A number of a finished run: "part.key" of its results, or its last value of a metric."""
    part, _, name = key.rpartition(".")
    return run.results.get(part, {}).get(name) if part else run.final(key)


def lines(found: Runs, x: str, y: str) -> tuple[dict[str, Points], LeftOut]:
    """The numbers `y` of finished runs by setting `x`: a line of points for each other setting.

    Settings in which the lines differ are their labels. Of runs that differ in nothing the newest
    counts. Lines of one point are left out where there are longer ones.

    Returns:
        The points by label, and the runs that are left out.

    Raises:
        UserError: no finished run has both.
    """
    by_rest, left_out = {}, []
    for run in found:
        if not run.finished:
            left_out.append(("unfinished", run.folder))
        elif x not in run.settings:
            left_out.append((f"without a setting {x}", run.folder))
        elif number_of(run, y) is None:
            left_out.append((f"without a number {y}", run.folder))
        else:
            others = {name for name in run.settings if name not in {x, *NOT_OF_TRAINING}}
            rest = (run.script, *sorted((name, str(run.settings[name])) for name in others))
            at = by_rest.setdefault(rest, {}).setdefault(run.settings[x], {})
            if run.seed in at:
                left_out.append(("a newer run differs in nothing", at[run.seed].folder))
            at[run.seed] = run
    if not by_rest:
        finished = [run for run in found if run.finished]
        settings = sorted({name for run in finished for name in run.settings})
        numbers = sorted({name for run in finished for name in _numbers_of(run)})
        if finished and x not in settings:
            raise UserError(
                f"no finished run has the setting {x}; settings are {', '.join(settings)}"
            )
        raise UserError(
            f"no finished run has the setting {x} and the number {y}"
            + (f"; numbers are {', '.join(numbers)}" if numbers else "")
        )
    longest = max(map(len, by_rest.values()))
    kept = {rest: by_x for rest, by_x in by_rest.items() if longest == 1 or len(by_x) > 1}
    for rest, by_x in by_rest.items():
        if rest not in kept:
            alone = [run for at in by_x.values() for run in at.values()]
            left_out += [(f"no other run differs in {x} alone", run.folder) for run in alone]
    shared = set.intersection(*(set(rest) for rest in kept))
    differing = [[part for part in rest if part not in shared] for rest in kept]
    labels = [_label(parts) for parts in differing]
    if len(set(labels)) < len(labels):  # two data sets of one name
        labels = [_label(parts, "{} {}".format) for parts in differing]
    points = {
        label: {
            at: [number_of(run, y) for run in by_x[at].values()] for at in sorted(by_x, key=_order)
        }
        for label, by_x in zip(labels, kept.values())
    }
    return points, left_out


def _numbers_of(run: StoredRun) -> list[str]:
    """The names that `number_of` knows in a run."""
    results = [f"{part}.{key}" for part, values in run.results.items() for key in values]
    return results + [key for line in run.history[-1:] for key in line]


def _label(parts: list, text: Callable[[str, str], str] = setting_text) -> str:
    """Parts of a line's key in words: the script, and settings with their values."""
    return ", ".join(part if isinstance(part, str) else text(*part) for part in parts)


def _tick(x: str, value: Any) -> str:
    return setting_text(x, value) if x == "dataset" else str(value)


def _order(value: Any) -> tuple:
    is_number = isinstance(value, int | float)
    return (0, value, "") if is_number else (1, 0, str(value))


def panels_of(
    found: Runs, x: str, keys: Sequence[str]
) -> tuple[dict[str, dict[str, Points]], list[str]]:
    """The `lines` of each number, and messages about runs left out there, one for each reason.

    Raises:
        UserError: no finished run has the setting and one of the numbers.
    """
    panels, by_reason = {}, {}
    for key in keys:
        panels[key], left_out = lines(found, x, key)
        for reason, folder in left_out:
            by_reason.setdefault(reason, {})[str(folder)] = None  # a set in order
    messages = [f"left out, {reason}: {', '.join(names)}" for reason, names in by_reason.items()]
    return panels, messages


@plots.default_style
def draw(filename: Path, found: Runs, x: str, keys: Sequence[str]) -> list[str]:
    """Write a plot of numbers against a setting, a panel for each, as a PNG and a PDF.

    A point is the mean over the seeds; a band reaches from the smallest to the largest. Returns
    messages about the runs left out.

    Raises:
        UserError: no finished run has the setting and one of the numbers.
    """
    panels, messages = panels_of(found, x, keys)
    size = (plots.COLUMN_INCHES * len(panels), 0.8 * plots.COLUMN_INCHES)
    figure = Figure(figsize=size, layout="constrained")
    for axes, (key, by_label) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items()
    ):
        ticks = sorted({at for points in by_label.values() for at in points}, key=_order)
        numbers = all(isinstance(at, int | float) for at in ticks)
        for (label, points), look in zip(by_label.items(), itertools.cycle(plots.STYLES)):
            places = [at if numbers else ticks.index(at) for at in points]
            plots.draw_seeds(axes, places, list(points.values()), label, look)
        if numbers and min(ticks) > 0 and max(ticks) >= 10 * min(ticks):
            axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
        places = ticks if numbers else range(len(ticks))
        axes.set_xticks(places, [f"{at:g}" if numbers else _tick(x, at) for at in ticks])
        axes.set(xlabel=LABELS.get(x, x), ylabel=LABELS.get(key, key))
        axes.grid(alpha=0.25, linewidth=0.5)
        if len(by_label) > 1:
            axes.legend(fontsize=7, frameon=False)
    plots.save_with_pdf(figure, filename, MARK)
    return messages


def dimensions(found: Runs) -> Runs:
    """The VAEs that differ from the report's in `zdim` alone; [] if they are no sweep."""
    wanted = KINDS["vae"].settings()
    left_out = {"zdim", *NOT_OF_TRAINING}
    same = [
        run
        for run in found
        if run.finished
        and run.script == KINDS["vae"].script
        and all(run.settings[name] == wanted[name] for name in wanted if name not in left_out)
        and all(number_of(run, key) is not None for key in DIMENSIONS)
    ]
    return same if len({run.settings["zdim"] for run in same}) >= MIN_DIMENSIONS else []


def dimensions_table(found: Runs) -> tuple[list[str], list[list[str]]]:
    """(header, rows of cells) of DIMENSIONS by `zdim`."""
    columns = [next(iter(lines(found, "zdim", key)[0].values())) for key in DIMENSIONS]
    header = [LABELS["zdim"], *(LABELS[key] for key in DIMENSIONS)]
    digits = [0 if key == "latent.active_units" else 2 for key in DIMENSIONS]
    rows = [
        [str(at), *(mean_text(column[at], n) for column, n in zip(columns, digits))]
        for at in columns[0]
    ]
    return header, rows
