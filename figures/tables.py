"""The graded table and the comparison of the three models, as lines of Markdown."""

import statistics

from figures.kinds import KINDS
from figures.runs import Groups

# Further rows of the graded table: part of `result.json`, key, quantity.
TEST_VALUES = (
    ("test", "neg_elbo_nats", "test negative ELBO (nats)"),
    ("test", "bpd", "test (bits/dim)"),
    ("test", "bpd_shifted", "test, shifted as in the report (bits/dim)"),
    ("likelihood", "standard_error_nats", "standard error of test -log p(x) (nats)"),
    ("likelihood", "bpd", "test, importance-weighted (bits/dim)"),
    ("likelihood", "standard_error", "standard error of that (bits/dim)"),
    ("likelihood", "encoder_gap_nats", "gap of the bound to -log p(x) on test images (nats)"),
    ("likelihood", "gap_nats", "the same for the proposal's own bound (nats)"),
    ("likelihood", "effective_sample_size", "effective sample size of -log p(x), median"),
    ("likelihood", "gap", "test, gap of one draw to the importance-weighted bound (bits/dim)"),
    ("latent", "active_units", "active latent units"),
)

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

PUBLISHED = (
    "VAE, -log p(x) on fixed binary MNIST (nats): one stochastic layer with a standard prior about "
    "87 to 90; with IWAE training and deeper nets 84.8; VampPrior 85.57; HVAE + VampPrior 83.19; "
    "PixelVAE 79.02; BIVA 78.59.",
    "flow on grey MNIST (bits/dim): MLP flows (RealNVP, MAF) 1.85 to 1.93; convolutional RealNVP "
    "1.06; Glow 1.05; FFJORD 0.99; Residual Flow 0.97.",
    "GAN of MLPs, Parzen windows (nats): 225 ± 2 (Goodfellow et al. 2014, Table 1); no Fréchet "
    "distance on classifier features has been published for it.",
)


def graded_table(groups: Groups) -> list[str]:
    """The graded rows and test values of the runs of each kind."""
    lines = ["| training | quantity | at | this project | reference | verdict |"]
    lines += ["|---|---|---|---|---|---|"]
    for name, runs in groups.items():
        title = KINDS[name].title + (f", {len(runs)} seeds" if len(runs) > 1 else "")
        for rows in zip(*(run.graded() for run in runs)):
            row = rows[0]
            value = _mean([row["value"] for row in rows], 3)
            lines.append(
                f"| {title} | {row['quantity']} ({row['unit']}) | {runs[0].counter} {row['at']:,} "
                f"| {value} | {row['reference']:.3f} | {_worst_verdict(rows)} |"
            )
        for part, key, quantity in TEST_VALUES:
            results = [run.results.get(part, {}) for run in runs]
            if values := [result[key] for result in results if key in result]:
                lines.append(f"| {title} | {quantity} | end | {_mean(values, 3)} | - | - |")
    return lines


def comparison(groups: Groups) -> list[str]:
    """The sample measures of the three models side by side; [] if no run has any."""
    keys = {key for _, *pair, _ in MEASURES for key in pair if key}
    keys |= {"n_samples", "classifier_accuracy"}
    columns = {}
    for title, name, part in COMPARED:
        results = [run.results.get(part, {}) for run in groups[name]]
        if complete := [result for result in results if keys <= result.keys()]:
            columns[title] = complete
    if not columns:
        return []
    lines = [f"| | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for label, key, floor, digits in MEASURES:
        cells = []
        for results in columns.values():
            cells.append(_mean([result[key] for result in results], digits))
            if floor is not None:
                cells[-1] += f" ({_mean([result[floor] for result in results], digits)})"
        lines.append(f"| {label} | {' | '.join(cells)} |")
    first, *_ = next(iter(columns.values()))
    text = (
        f"{first['n_samples']:,} samples each, against the 10,000 test images. In brackets: the "
        "same measure of the validation images, the best a model can do (for Parzen windows, of "
        "half of them; more windows can do better). The features come from a small classifier "
        f"with a test accuracy of {first['classifier_accuracy']:.2%}; another one, trained with "
        "another number of threads, gives Fréchet distances some 3% apart. The VAE's draws are "
        "bits and are compared with binary digits, all others with grey ones."
    )
    return [*lines, "", text]


def _mean(values: list, digits: int) -> str:
    """'mean' of one value, 'mean ± standard deviation' of several, '-' if one is None."""
    if None in values:
        return "-"
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def _worst_verdict(rows: tuple[dict, ...]) -> str:
    """The verdict over several seeds: 'pass' only if every seed passes."""
    verdicts = [row["verdict"] for row in rows]
    order = ("falls short", "not reached", "not comparable", "pass")
    return min(verdicts, key=order.index)
