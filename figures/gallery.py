"""The report's figures and the graded table, from finished runs.

Figures are numbered as in the course report (Figure 1 is a borrowed diagram).
"""

import math
import statistics
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
import figures
import runs
import training
from runs import UserError

SCRIPTS = {'a3_vae_template.py': vae, 'a3_gan_template.py': gan, 'a3_nf_template.py': nf}
# A key that only this script's lines have, by which a metrics.jsonl without a config.json is known.
MARKS = {'val_neg_elbo_nats': 'a3_vae_template.py', 'g_loss': 'a3_gan_template.py', 'val_bpd': 'a3_nf_template.py'}
NOT_OF_TRAINING = ('seed', 'out', 'resume', 'evaluate', 'device', 'data_dir', 'no_graph', 'importance_samples',
                   'quality_samples', 'generate', 'n')

# Read off the curves of the report's Figures 2 and 14: validation, by epoch.
REPORT_ELBO = {1: 118.24, 2: 100.11, 5: 90.14, 10: 86.03, 20: 83.29, 40: 81.15, 60: 80.04, 80: 79.46, 100: 79.04}
REPORT_BPD = {1: 2.098, 2: 2.009, 5: 1.940, 10: 1.880, 20: 1.862, 40: 1.826, 60: 1.797, 80: 1.807, 100: 1.804}

# Of `result.json`, and what they are called in the table.
TEST_VALUES = (
    ('test', 'neg_elbo_nats', 'test negative ELBO (nats)'), ('test', 'bpd', 'test (bits/dim)'),
    ('test', 'bpd_shifted', 'test, shifted as in the report (bits/dim)'),
    ('likelihood', 'standard_error_nats', 'standard error of test -log p(x) (nats)'),
    ('likelihood', 'bpd', 'test, importance-weighted (bits/dim)'),
    ('likelihood', 'standard_error', 'standard error of that (bits/dim)'),
    ('likelihood', 'gap_nats', 'gap of the bound to -log p(x) on test images (nats)'),
    ('likelihood', 'gap', 'gap of the one-draw to the importance-weighted bound on test images (bits/dim)'),
    ('latent', 'active_units', 'active latent units'))

# Rows of the comparison of the models: label, key in `result.json`, key of its floor, digits.
MEASURES = (
    ('Fréchet distance (lower is better)', 'frechet_distance', 'frechet_floor', 2),
    ('precision', 'precision', 'precision_floor', 3), ('recall', 'recall', 'recall_floor', 3),
    ('share of the rarest digit', 'smallest_class', None, 3), ('share of the commonest digit', 'largest_class', None, 3),
    ('entropy of the classes (nats, at most 2.303)', 'class_entropy_nats', None, 3),
    ('Parzen log-likelihood (nats)', 'parzen_nats', 'parzen_floor_nats', 1),
    ('its standard error (nats)', 'parzen_standard_error', None, 1))

# What others have published; test split, the same quantities.
PUBLISHED = (
    ('VAE, -log p(x) on fixed binary MNIST (nats)', 'one stochastic layer with a standard prior about 87 to 90; with IWAE training and '
     'deeper nets 84.8; VampPrior 85.57; HVAE + VampPrior 83.19; PixelVAE 79.02; BIVA 78.59'),
    ('flow on grey MNIST (bits/dim)', 'MLP flows (RealNVP, MAF) 1.85 to 1.93; convolutional RealNVP 1.06; Glow 1.05; FFJORD 0.99; '
     'Residual Flow 0.97'),
    ('GAN of MLPs, Parzen windows (nats)', '225 ± 2 (Goodfellow et al. 2014, Table 1); no Fréchet distance on classifier features '
     'has been published for it'))


class Kind(NamedTuple):
    """One of the trainings the report is made of."""

    title: str
    script: str
    flags: tuple  # that a training of this kind is started with
    quick: tuple  # and for a fraction of its length
    settings: dict  # that a run chosen by hand must have
    minutes: float  # on two cores


BRIEF = ('--importance_samples', '4', '--quality_samples', '0')
KINDS = {
    'vae': Kind('VAE, 20 latent dimensions', 'a3_vae_template.py', ('--zdim', '20'), ('--epochs', '2', *BRIEF),
                {'zdim': 20, 'protocol': 'standard'}, 5),
    'manifold': Kind('VAE, 2 latent dimensions', 'a3_vae_template.py', ('--zdim', '2'), ('--epochs', '2', *BRIEF),
                     {'zdim': 2, 'protocol': 'standard'}, 5),
    'vae_report': Kind('VAE, the report\'s computation', 'a3_vae_template.py', ('--zdim', '20', '--protocol', 'report'),
                       ('--epochs', '2', *BRIEF), {'zdim': 20, 'protocol': 'report'}, 6),
    'gan': Kind('GAN', 'a3_gan_template.py', (), ('--n_epochs', '1', '--quality_samples', '0'), {'protocol': 'standard'}, 40),
    'gan_report': Kind('GAN, the report\'s computation', 'a3_gan_template.py', ('--protocol', 'report'),
                       ('--n_epochs', '1', '--quality_samples', '0'), {'protocol': 'report'}, 40),
    'nf': Kind('flow (RealNVP)', 'a3_nf_template.py', (), ('--epochs', '1', *BRIEF), {}, 80),
}


def length_of(args):
    """Epochs that a command line asks for."""
    return vars(args).get('epochs') or args.n_epochs


def full_length(name, quick=False):
    """Epochs of a training of this kind."""
    kind = KINDS[name]
    return length_of(SCRIPTS[kind.script].parse_args([*kind.flags, *(kind.quick if quick else ())]))


def training_settings(args):
    """The arguments that make the training what it is, but for its seed."""
    return {name: value for name, value in vars(args).items() if name not in NOT_OF_TRAINING}


class Reading(NamedTuple):
    """A run as far as its metrics go; `results` are empty, and `finished` false, until it has a `result.json`.

    Without a `config.json` there is no telling, and it counts as finished.
    """

    folder: Path
    script: ModuleType
    args: Namespace
    history: list
    results: dict
    config: dict
    finished: bool

    @property
    def length(self):
        return length_of(self.args)

    @property
    def counter(self):
        return next(iter(self.history[-1]))

    @property
    def count(self):
        return self.history[-1][self.counter]

    def graded(self):
        return self.script.graded(self.args, self.history, self.results)

    def settings(self):
        """What makes another run one of the same kind with another seed."""
        return training_settings(self.args) | {'script': self.script, 'count': self.count}


def read_run(folder):
    """The run in `folder`, as a Reading. Without a `config.json` (another project's run) settings count as the defaults.

    Raises:
        UserError: a file is missing or damaged, or of no script of this project.
    """
    folder = Path(folder)
    foreign = not (folder / 'config.json').exists() and (folder / 'metrics.jsonl').exists()
    config = {} if foreign else runs.read_config(folder)
    history = runs.read_metrics(folder)
    if not history:
        raise UserError(f'{folder} is unfinished: there is no line in its metrics.jsonl yet')
    mark = next((script for key, script in MARKS.items() if key in history[0]), None)
    if mark is None or not foreign and config['script'] != mark:
        raise UserError(f'{folder}: metrics.jsonl holds no metrics of {config.get("script", "a script of this project")}')
    script = SCRIPTS[mark]
    args = script.parse_args([]) if foreign else training.settings_of(folder, config, script.parse_args)
    finished = foreign or (folder / 'result.json').exists()
    run = Reading(folder, script, args, history, runs.read_results(folder), config, finished)
    try:
        run.graded()
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise UserError(f'{folder}: a value is missing from its metrics: {error}') from error
    return run


def find_runs(base):
    """(runs under `base`, messages about those that cannot be read), in the order of their start."""
    found, messages = [], []
    base = Path(base)
    for path in sorted({path.parent for name in ('metrics.jsonl', 'config.json') for path in base.rglob(name)}):
        try:
            found.append(read_run(path))
        except UserError as error:
            messages.append(str(error))
    found.sort(key=lambda run: str(run.config.get('started', '')))
    return found, messages


def unfinished_message(run):
    return (f'{run.folder} is unfinished ({run.counter} {run.count:,}); '
            f'go on with: python {run.script.__name__}.py --resume {run.folder}')


def command_of(name, quick=False):
    """The words of the command that trains a run of this kind."""
    kind = KINDS[name]
    return ['python', kind.script, *kind.flags, *(kind.quick if quick else ())]


def is_of_kind(run, kind):
    """Has `run` all the settings that the command of this kind has, but for its length?"""
    if run.script is not SCRIPTS[kind.script]:
        return False
    wanted = training_settings(run.script.parse_args(list(kind.flags)))
    return all(vars(run.args)[name] == value for name, value in wanted.items() if name not in training.MAY_GROW)


def newest_of_kind(found, name):
    """The newest finished run of a kind, followed by those that differ from it in the seed only; [] if there is none.

    A run of full length is preferred to a newer, shorter one.
    """
    finished = [run for run in found if run.finished and is_of_kind(run, KINDS[name])]
    finished.sort(key=lambda run: run.length >= full_length(name))  # stable: by start within
    if not finished:
        return []
    by_seed = {run.args.seed: run for run in finished if run.settings() == finished[-1].settings()}
    newest = by_seed.pop(finished[-1].args.seed)
    return [newest, *(by_seed[seed] for seed in sorted(by_seed))]


def aggregate(group):
    """The graded rows of one or more runs that differ in the seed only; `values` has one value a seed, or is None.

    With several seeds a row passes if each of them does.
    """
    rows = []
    for same in zip(*(run.graded() for run in group)):
        values = [row['value'] for row in same]
        verdicts = [row['verdict'] for row in same]
        worst = next(verdict for verdict in ('falls short', 'not reached', 'not comparable', 'pass') if verdict in verdicts)
        rows.append(same[0] | {'values': None if None in values else values, 'verdict': worst})
    return rows


def mean_and_spread(values, digits):
    """'mean' of one value a seed, or 'mean ± standard deviation' of several."""
    spread = f' ± {statistics.stdev(values):.{digits}f}' if len(values) > 1 else ''
    return f'{statistics.fmean(values):.{digits}f}{spread}'


class Figure(NamedTuple):
    """A figure of the report: its number, file name, the kind of run it is drawn from, its caption, and draw(group, path, note).

    `draw` writes a `note`, if there is one, on the picture, and returns a remark for the caption, or None.
    """

    number: int
    name: str
    kind: str
    caption: str
    draw: object


def curve(group, key):
    """One list of a metric's values per seed."""
    return [[line[key] for line in run.history] for run in group]


def draw_elbo(group, path, note):
    report = group[0].args.protocol == 'report'
    epoch, nats, whose = vae.REFERENCES[group[0].args.protocol]
    references = ([(epoch, nats, 'the report\'s curve') for epoch, nats in REPORT_ELBO.items()] if report
                  else [(epoch, nats, f'{whose}, {nats:.2f}')])
    vae.save_elbo_plot(curve(group, 'train_neg_elbo_nats'), curve(group, 'val_neg_elbo_nats'), path, references,
                       curve(group, 'val_report_nats') if report else None, note)


def draw_gan_losses(group, path, note):
    run = group[0]
    gan.save_loss_plot([line['batch'] for line in run.history], curve(group, 'g_loss'), curve(group, 'd_loss'), path,
                       run.args.real_label, run.args.fake_label, note)


def draw_bpd(group, path, note):
    curves = [nf.shifted_curve(run.history) for run in group]
    shifted = None if None in curves else (curves[0][0], [values for _, values in curves])
    nf.save_bpd_plot(curve(group, 'train_bpd'), curve(group, 'val_bpd'), path,
                     [(epoch, bpd, 'the report\'s curve (shifted)') for epoch, bpd in REPORT_BPD.items()],
                     shifted, note)


def picture(pattern, at=None):
    """draw() that copies a picture of the run: the one after `at` epochs or batches, or the last one before that."""
    def draw(group, path, note):
        folder = group[0].folder
        if at is None:
            source, remark = folder / pattern, None
        else:
            counts = {int(source.stem.rsplit('_', 1)[1]): source for source in folder.glob(pattern)}
            count = max((count for count in counts if count <= at), default=None)
            source = folder / pattern if count is None else counts[count]
            remark = None if count == at else f'shown after {count:,}' if count is not None else None
        if not source.exists():
            raise UserError(f'{source} is missing')
        if note is None:
            path.write_bytes(source.read_bytes())
        else:
            figures.save_annotated(source, path, note)
        return remark
    return draw


LAST = math.inf
FIGURES = (
    Figure(2, 'fig02_elbo', 'vae', 'Negative ELBO on training and validation images.', draw_elbo),
    Figure(2, 'fig02_elbo_report_protocol', 'vae_report', 'The same as the report computed it: its count lies below the true '
           'bound.', draw_elbo),
    Figure(3, 'fig03_vae_before_training', 'vae', 'VAE samples before training: Bernoulli means, and draws from them.',
           picture('samples_[0-9]*.png', 0)),
    Figure(4, 'fig04_vae_1_epoch', 'vae', 'VAE samples after 1 epoch.', picture('samples_[0-9]*.png', 1)),
    Figure(5, 'fig05_vae_10_epochs', 'vae', 'VAE samples after 10 epochs.', picture('samples_[0-9]*.png', 10)),
    Figure(6, 'fig06_vae_100_epochs', 'vae', 'VAE samples after 100 epochs.', picture('samples_[0-9]*.png', 100)),
    Figure(7, 'fig07_vae_manifold', 'manifold', 'The data manifold of a VAE with two latent dimensions: means at the quantiles of '
           'the prior.', picture('manifold_*.png', LAST)),
    Figure(8, 'fig08_gan_loss', 'gan', 'Losses of generator and discriminator, averages over 500 batches, with the one-sided '
           'label smoothing of the report\'s text.', draw_gan_losses),
    Figure(8, 'fig08_gan_loss_report_protocol', 'gan_report', 'The same with both labels smoothed, as the report computed it.',
           draw_gan_losses),
    Figure(9, 'fig09_gan_1_batch', 'gan', 'GAN samples after 1 batch, from fixed latents.', picture('samples_[0-9]*.png', 1)),
    Figure(10, 'fig10_gan_10000_batches', 'gan', 'GAN samples after 10,000 batches, the same latents.',
           picture('samples_[0-9]*.png', 10_000)),
    Figure(11, 'fig11_gan_99000_batches', 'gan', 'GAN samples after 99,000 batches, the same latents.',
           picture('samples_[0-9]*.png', 99_000)),
    Figure(12, 'fig12_gan_187500_batches', 'gan', 'GAN samples after 187,500 batches, the same latents.',
           picture('samples_[0-9]*.png', 187_500)),
    Figure(13, 'fig13_gan_interpolation', 'gan', 'GAN images on the straight line from z = -0.9 to z = +0.9 in every element, '
           'endpoints included.', picture('interpolation_report.png')),
    Figure(13, 'fig13_gan_interpolation_pair', 'gan', 'The same between the two of 200 draws whose images differ most.',
           picture('interpolation_pair.png')),
    Figure(14, 'fig14_bpd', 'nf', 'Bits per dimension on training and validation images.', draw_bpd),
    Figure(15, 'fig15_nf_before_training', 'nf', 'Samples of the flow before training.', picture('samples_[0-9]*.png', 0)),
    Figure(16, 'fig16_nf_1_epoch', 'nf', 'Samples of the flow after 1 epoch.', picture('samples_[0-9]*.png', 1)),
    Figure(17, 'fig17_nf_10_epochs', 'nf', 'Samples of the flow after 10 epochs.', picture('samples_[0-9]*.png', 10)),
    Figure(18, 'fig18_nf_100_epochs', 'nf', 'Samples of the flow after 100 epochs.', picture('samples_[0-9]*.png', 100)),
    Figure(18, 'fig18_nf_by_temperature', 'nf', 'Samples of the flow by temperature, the standard deviation of the prior they are '
           'drawn from; 1 is the model.', picture('samples_by_temperature.png')),
)
# Beside the report's seventeen: drawn where there is such a run, and not missed where there is none.
OPTIONAL_KINDS = ('gan_report',)


def describe(group):
    """Which runs a figure shows: name, seeds, length, hardware."""
    run = group[0]
    seeds = [member.args.seed for member in group]
    seed = f'seed {seeds[0]}' if len(seeds) == 1 else f'seeds {", ".join(map(str, seeds))} (mean, band of one standard deviation)'
    length = f'{run.count:,} {"batches" if run.counter == "batch" else "epochs"}'
    return f'run `{run.folder.name}`, {seed}, {length}, {run.config.get("device", "hardware not recorded")}'


def draw_all(groups, out, quick):
    """Draw every figure whose run is there, into out/report; returns [(Figure, caption)], and messages about the rest."""
    folder = Path(out) / 'report'
    folder.mkdir(parents=True, exist_ok=True)
    drawn, messages = [], []
    for figure in FIGURES:
        group = groups[figure.kind]
        if not group:
            continue
        full, length = full_length(figure.kind), group[0].length
        note = f'{"quick run: " if quick else ""}{length} of {full} epochs' if length < full else None
        try:
            remark = figure.draw(group, folder / f'{figure.name}.png', note)
        except UserError as error:
            messages.append(f'{figure.name}: {error}')
            continue
        except KeyError as error:
            messages.append(f'{figure.name}: {group[0].folder / "metrics.jsonl"} has no {error} in every line')
            continue
        remarks = ''.join(f'; {words}' for words in (note and f'**{note}**', remark) if words)
        caption = f'**Figure {figure.number}.** {figure.caption} ({describe(group)}{remarks})'
        drawn.append((figure, caption))
    return drawn, messages


def table(groups):
    """The graded table of all kinds as Markdown, the test split's values among it."""
    lines = ['| training | quantity | at | this project | reference | verdict |', '|---|---|---|---|---|---|']
    for name, group in groups.items():
        if not group:
            continue
        seeds = '' if len(group) == 1 else f', {len(group)} seeds'
        for row in aggregate(group):
            value = '-' if row['values'] is None else mean_and_spread(row['values'], 3)
            lines.append(f'| {KINDS[name].title}{seeds} | {row["quantity"]} ({row["unit"]}) | {group[0].counter} {row["at"]:,} '
                         f'| {value} | {row["reference"]:.3f} | {row["verdict"]} |')
        for part, key, quantity in TEST_VALUES:
            values = [run.results[part][key] for run in group if key in run.results.get(part, {})]
            if values:
                lines.append(f'| {KINDS[name].title}{seeds} | {quantity} | end | {mean_and_spread(values, 3)} | - | - |')
    return lines


def comparison(groups):
    """The sample measures of the three models side by side, as Markdown; [] where no run has any."""
    keys = {key for _, value, floor, _ in MEASURES for key in (value, floor) if key} | {'n_samples', 'classifier_accuracy'}
    columns = {title: [run.results[part] for run in groups[name] if keys <= run.results.get(part, {}).keys()]
               for title, name, part in (
        ('VAE, means', 'vae', 'quality_of_means'), ('VAE, draws', 'vae', 'quality_of_draws'), ('GAN', 'gan', 'quality'),
        ('flow', 'nf', 'quality'))}
    columns = {title: results for title, results in columns.items() if results}
    if not columns:
        return []

    def cell(results, key, digits):
        return mean_and_spread([result[key] for result in results], digits)

    lines = [f'| | {" | ".join(columns)} |', '|---|' + '---|' * len(columns)]
    for label, key, floor, digits in MEASURES:
        cells = [cell(results, key, digits) + (f' ({cell(results, floor, digits)})' if floor else '')
                 for results in columns.values()]
        lines.append(f'| {label} | {" | ".join(cells)} |')
    n_samples, accuracy = (next(iter(columns.values()))[0][key] for key in ('n_samples', 'classifier_accuracy'))
    return [*lines, '', f'{n_samples:,} samples each, against the 10,000 test images; in brackets the same '
            'measure of the validation images, as good as a model could be (for Parzen windows, of half of them; '
            'more windows can do better). Features are of a small classifier with a test accuracy of '
            f'{accuracy:.2%}; by another one, trained with another number of threads, Fréchet distances are some 3% apart. '
            'The draws of the VAE are bits and are compared with binary digits, all else with grey ones.']


def departures(groups):
    """Where this project departs from the report, each with its evidence from the runs at hand, as Markdown."""
    def last(kind, key):
        return statistics.fmean(run.history[-1][key] for run in groups[kind]) if groups[kind] else None

    def sentence(text, *values):
        return text.format(*values) if None not in values else None

    true, count = last('vae_report', 'val_neg_elbo_nats'), last('vae_report', 'val_report_nats')
    items = [
        ('**The KL of the VAE.** The report has the standard deviation where the variance belongs, so what it sums is no bound.',
         sentence('Counted its way, the default run\'s {:.2f} nats become {:.2f}.', last('vae', 'val_neg_elbo_nats'),
                  last('vae', 'val_report_nats'))),
        ('**The validation pass of the VAE.** The report\'s steps the optimiser: its validation images are trained on.',
         sentence('Both effects together give {1:.2f} here (the report: 79.458), where the true negative ELBO of the same weights '
                  'is {0:.2f}, on images they were trained on.', true, count)),
        ('**The retained graph of the GAN.** The report updates the generator first and keeps its graph for the '
         'discriminator\'s backward pass, which PyTorch now refuses, as the weights in it have changed.',
         'Here the discriminator is updated first, on the detached images of the same pass.'),
        ('**V(D, G) at convergence.** The report\'s text says log 0.5; the value function there is -log 4.',
         'With both labels smoothed the equilibrium is D = 0.5, generator 0.69, discriminator 1.39 nats; '
         'with one, D = 0.45, 0.80 and 1.38 (derived in `a3_gan_template.py`).'),
        ('**Label smoothing.** The report\'s text smooths the real label only, its computation both.',
         sentence('At the end of its run the one-sided generator and discriminator losses are {:.2f} and {:.2f} nats.',
                  last('gan', 'g_loss'), last('gan', 'd_loss'))),
        ('**Shifted validation images.** The report shifts its validation images at random, as it does the training images; '
         'here `val_bpd` is on clean ones.',
         sentence('At the end of the flow\'s run: {:.3f} shifted, {:.3f} clean.', last('nf', 'val_bpd_shifted')
                  if groups['nf'] and 'val_bpd_shifted' in groups['nf'][0].history[-1] else None, last('nf', 'val_bpd'))),
        ('**What the curve says where the text rounds.** The report\'s text has bits per dimension of "around 1.85" after 10 epochs, its curve '
         '1.880; 79.458 is on its ELBO curve at epoch 80, and 79.04 at 100.', 'Read off Figures 2 and 14 of the report.'),
    ]
    return [f'- {claim} {evidence or "(Evidence needs a run that is not there.)"}' for claim, evidence in items]


def write_readme(out, drawn, groups, missing, quick):
    """Write the gallery, `README.md` in the folder `out`."""
    lines = ['# Gallery' + (': a quick run, a small fraction of the full length' if quick else ''), '',
             'Every figure of the course report, redrawn by `python -m figures'
             + (' --train --quick' if quick else '') + '`, which also wrote this page.', '']
    if missing:
        lines += ['Not here yet:', '', *(f'- {message}' for message in missing), '']
    lines += ['## Graded', '', *table(groups), '']
    lines += ['Published values to compare with:', '', *(f'- {quantity}: {values}.' for quantity, values in PUBLISHED), '']
    if compared := comparison(groups):
        lines += ['## The three models\' samples', '', *compared, '']
    lines += ['## Figures', '']
    for figure, caption in drawn:
        lines += [f'![{figure.caption}](report/{figure.name}.png)', '', caption, '']
    lines += ['## Where this project departs from the report', '', *departures(groups), '']
    (Path(out) / 'README.md').write_text('\n'.join(lines))
