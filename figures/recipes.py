"""The recipes that were tried for the three models, as a figure and tables of the gallery.

`measured/recipes.jsonl` holds an object per trial: `model` and `recipe`; `epochs`, a list; `val`,
the validation metric at these, of a GAN its Parzen log-likelihood; perhaps `dead`, the share of
dead units at these, a pair of the worst first and the worst second hidden layer, or before the last
epoch only the worst of all, and `dead_of_all`, that of all hidden units at the end; perhaps
`frechet` of the samples or `neg_log_px_nats` of the test images at the end, and the `label` of its
curves in the figure.
"""

import json
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from figures.tables import markdown
from harness import plots

FILE = Path(__file__).parent / "measured" / "recipes.jsonl"
PICTURE = "recipes.png"
UNITS = {"flow": (3, "bits/dim"), "VAE": (2, "nats"), "GAN": (1, "nats, Parzen windows")}
HEADING = "Why Adam at 1e-3 kills most of the flow's units"
WHY = """\
At a constant rate of 1e-3, 45% of the flow's hidden units are dead after one epoch, and 78% after
100: none of 1,000 validation images makes them fire, so they get almost no gradient and seldom
recover. After the first epoch of seed 0 they are 79% of the first coupling's first hidden layer,
and 77 to 97% of seven of the eight second hidden layers; the other first layers are alive. Adam
moves each weight by about the learning rate, however small its gradient, so a step changes the
input of a unit by up to that rate times the sum of the sizes of what it reads. Logits are mostly
near -6, and they and the outputs of ReLUs have one sign in all images: a step shifts what a unit
makes of them for all images alike, and can push it below zero for good."""
CURE = """\
A lower rate with warm-up and a cosine helps, but not for long: at 4e-4, 80% of the worst layer are
dead after 40 epochs. The script's defaults change three more things: a fiftieth of the rate for
both hidden layers of the first coupling, weight decay, and a larger eps of Adam, which shortens the
steps of weights with small gradients. At the end 2% of all units are dead. Two of the three were
varied by themselves, over eight epochs: with the larger eps 9% of the worst layer are dead instead
of 15%; weight decay saves no units (86% and 97% instead of 85% and 97%), but 0.011 bits per
dimension. `--protocol report` has the constant rate of the report."""
OF_THE_VAE = """\
The VAE keeps its recipe. Of seed 0, weight decay 0.05 lowers the negative ELBO of the validation
images from 97.96 to 97.66 nats, but raises -log p(x) of the test images from 91.01 to 91.72: q(z|x)
comes nearer to the posterior, and the model itself is worse. A bound alone does not show that. The
GAN keeps its recipe, too: with a rate that falls to zero its samples have larger Fréchet distances,
with averaged weights or without."""
WHAT = """\
Each trial is one run of seed 0, most of them in a loop of their own whose images come in another
order than the scripts'. Bits per dimension are of clean validation images. "x 0.1" is a factor on
the learning rate of the layers named; "first layers" are the first hidden layers of all couplings;
"first heads standardise" means that the first two couplings start with the scales and shifts that
standardise their pixels. A trial whose schedule is longer than its epochs was stopped early."""


def read_trials() -> list[dict]:
    """The trials, in the order of the file."""
    return [json.loads(line) for line in FILE.read_text().splitlines()]


@plots.default_style
def draw_recipes(folder: Path) -> None:
    """Draw the flow's trials into `folder`: bits per dimension, and the share of dead units.

    Those with a `label` have a colour and an entry in the legend; the others are grey.
    """
    trials = [trial for trial in read_trials() if trial["model"] == "flow"]
    figure = Figure(figsize=(2.6 * plots.COLUMN_INCHES, plots.COLUMN_INCHES), layout="constrained")
    bits, dead = figure.subplots(1, 2)
    bits.set(xlabel="epoch", xscale="log", ylabel="validation (bits per dimension)")
    dead.set(
        xlabel="epoch", xscale="log", ylabel="dead units in the worst layer", ylim=(-0.02, 1.03)
    )
    for axes in (bits, dead):
        axes.set_xticks([1, 2, 5, 10, 20, 50, 100], minor=False)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
    looks = iter(plots.STYLES)
    styles = {"other trials": {"color": "0.75", "linewidth": 0.8}}
    for trial in sorted(trials, key=lambda trial: "label" in trial):  # grey ones below
        label = trial.get("label", "other trials")
        if label not in styles:
            colour, line = next(looks)
            styles[label] = {"color": colour, "linestyle": line, "linewidth": 1.6}
        style = styles[label]
        bits.plot(trial["epochs"], trial["val"], label=label, **style)
        if "dead" in trial:
            dead.plot(trial["epochs"], [max(pair) for pair in trial["dead"]], **style)
    entries = dict(zip(*reversed(bits.get_legend_handles_labels())))  # one entry per label
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", fontsize=8, ncols=2)
    plots.save_figure(figure, folder / PICTURE)


def recipe_table() -> list[str]:
    """The trials as lines of a Markdown table."""
    dead = "dead: of all, worst first, worst second layer"
    header = ("model", "recipe", "epochs", "validation", dead, "Fréchet distance")
    rows = []
    for trial in read_trials():
        digits, unit = UNITS[trial["model"]]
        value = f"{trial['val'][-1]:.{digits}f} {unit}"
        shares = [trial["dead_of_all"], *trial["dead"][-1]] if "dead" in trial else []
        dead_units = ", ".join(f"{share:.0%}" for share in shares) or "-"
        frechet = f"{trial['frechet']:.0f}" if "frechet" in trial else "-"
        cells = (str(trial["epochs"][-1]), value, dead_units, frechet)
        rows.append([trial["model"], trial["recipe"], *cells])
    return markdown(header, rows)
