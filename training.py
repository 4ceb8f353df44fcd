"""What any training run needs, whatever it trains: device, seed, run folder, metrics, checkpoint, averaged weights.

Nothing here knows a model, a loss or a metric.
"""

import argparse
import contextlib
import copy
import datetime
import importlib.metadata
import itertools
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

from datasets import DataError


class UserError(Exception):
    """Something the user can mend; the message says what is wrong and what to do, in one line."""


def number(kind, at_least=None, above=None, at_most=None, below=None):
    """argparse type for an `int` or `float` within bounds (NaN and infinity never are)."""
    bounds = [f'{words} {bound}' for words, bound in
              (('at least', at_least), ('above', above), ('at most', at_most), ('below', below)) if bound is not None]

    def convert(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and (at_least is None or value >= at_least)
                and (above is None or value > above)
                and (at_most is None or value <= at_most) and (below is None or value < below)):
            raise argparse.ArgumentTypeError(
                f'must be a {"whole number" if kind is int else "number"}, {" and ".join(bounds)}, not {text!r}')
        return value

    return convert


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser with defaults in --help, one line for an error, and the flags all scripts share."""

    def __init__(self, description):
        super().__init__(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)

    def add_common_arguments(self):
        self.add_argument('--seed', type=number(int, at_least=0, below=2 ** 32), default=0,
                          help='seed of every random number of the run')
        self.add_argument('--device', choices=('auto', 'cuda', 'mps', 'cpu'), default='auto', help='where to train')
        self.add_optional_argument('--data_dir', metavar='DIR', help='read MNIST from DIR (mnist.npz or the four IDX '
                                   'files; larochelle: the three .amat files) instead of the copy in datasets/')
        self.add_optional_argument('--out', metavar='DIR', help='run folder to make; a suffix is added if it is taken '
                                   '(default: named after the settings, in runs/)')

    def add_optional_argument(self, flag, **options):
        """A flag that is None unless given; its help text itself says what that means."""
        self.set_defaults(**{flag.lstrip('-'): None})
        self.add_argument(flag, default=argparse.SUPPRESS, **options)

    def error(self, message):
        self.exit(2, f'{self.prog}: error: {message} (--help lists the options)\n')


def run_script(main, args):
    """Call main(args); what the user can mend ends in one line on stderr and exit status 1, Ctrl-C in 130."""
    try:
        main(args)
    except (UserError, DataError) as error:
        message, status = f'error: {error}', 1
    except OSError as error:
        message, status = f'error: {error.filename or "writing the run"}: {error.strerror or error}', 1
    except KeyboardInterrupt:
        message, status = 'interrupted', 130
    else:
        return
    print(f'{Path(sys.argv[0]).name}: {message}', file=sys.stderr)
    sys.exit(status)


def select_device(name):
    """torch.device for 'auto' (CUDA, else MPS, else CPU), 'cuda', 'mps' or 'cpu'.

    Raises:
        UserError: the device asked for is not there.
    """
    present = {'cuda': torch.cuda.is_available(), 'mps': torch.backends.mps.is_available(), 'cpu': True}
    if name == 'auto':
        name = next(device for device, available in present.items() if available)
    if not present[name]:
        raise UserError(f'--device {name}: PyTorch {torch.__version__} finds no such device here; '
                        f'use --device {next(device for device, available in present.items() if available)}')
    return torch.device(name)


def random_state(device):
    """The state of every random generator a run draws from, as a dict of tensors."""
    state = {'cpu': torch.get_rng_state()}
    if device.type != 'cpu':
        state[device.type] = getattr(torch, device.type).get_rng_state()
    return state


def set_random_state(state):
    """Put back what `random_state` returned."""
    for device_type, value in state.items():
        (torch if device_type == 'cpu' else getattr(torch, device_type)).set_rng_state(value)


@contextlib.contextmanager
def separate_random_numbers(seed, device):
    """Inside the block random numbers come from `seed`; after it the run's own stream goes on as if untouched.

    So a picture or an evaluation never changes the training that follows it, and shows the same draws every time.
    """
    state = random_state(device)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        set_random_state(state)


class WeightAverage:
    """Exponential moving average of a model's weights, for evaluation: a running form of the average of iterates of Polyak
    & Juditsky (SIAM J. Control 1992). Parameters are averaged, buffers are not.

    The decay per step is min(decay, (1 + t) / (10 + t)) at step t, so that the average does not drag the first, useless
    weights along. With decay 0, `model` is the model itself.

    Args:
        every: steps between updates; for large models the average of every tenth step is as good and nearly free.
    """

    def __init__(self, model, decay, every=1):
        self.decay = decay
        self.every = every
        self.n_steps = 0
        self.model = copy.deepcopy(model).eval() if decay else model

    def update(self, model):
        """To be called after each optimiser step."""
        self.n_steps += 1
        if self.decay and self.n_steps % self.every == 0:
            decay = min(self.decay, (1 + self.n_steps) / (10 + self.n_steps)) ** self.every
            get_ema_multi_avg_fn(decay)(list(self.model.parameters()), list(model.parameters()), None)


def progress_bar(n_batches):
    """A tqdm bar over a whole training, counted in batches; on a terminal live, in a log a line every 30 s."""
    return tqdm(total=n_batches, mininterval=0.2 if sys.stderr.isatty() else 30,
                bar_format='{desc} |{bar}| {percentage:3.0f}% [{elapsed}<{remaining}]{postfix}', dynamic_ncols=True)


def counted(batches, bar):
    """The batches, each counted on the bar once it has been used."""
    for batch in batches:
        yield batch
        bar.update()


class Run:
    """A new run folder: `config.json` now, `metrics.jsonl` line by line, `checkpoint.pt`, `result.json` at the end.

    Args:
        folder: the folder to make. If it is taken, `-2`, `-3`, ... is appended: nothing is ever written over.
        args: the parsed command line, recorded in `config.json` as resolved by the script.
        device: the torch.device the run uses.

    Raises:
        UserError: the folder cannot be made.
    """

    def __init__(self, folder, args, device):
        try:
            self.folder = _claim_folder(Path(folder))
        except OSError as error:
            raise UserError(f'the run folder {folder} cannot be made: {error.strerror}; '
                            'name another with --out') from error
        self._next_checkpoint = 0.0
        self.script = Path(sys.argv[0]).name
        self._write_json('config.json', {
            'script': self.script,
            'arguments': vars(args) | {'out': str(self.folder), 'device': device.type},
            'command': shlex.join(['python', *sys.argv]),
            'git_commit': _git_commit(),
            'versions': {'python': platform.python_version(), 'torch': torch.__version__}
            | {package: importlib.metadata.version(package) for package in ('numpy', 'scipy', 'matplotlib')},
            'device': device_name(device),
            'started': _now(),
        })

    def log(self, **metrics):
        """Append one line to `metrics.jsonl`.

        Raises:
            UserError: a value is not finite; the line is not written, the last checkpoint stays as it is.
        """
        bad = [key for key, value in metrics.items() if not math.isfinite(value)]
        if bad:
            counter, count = next(iter(metrics.items()))
            checkpoint = 'last checkpoint kept' if (self.folder / 'checkpoint.pt').exists() else 'no checkpoint made yet'
            raise UserError(f'{bad[0]} is not finite at {counter} {count}; {checkpoint} in {self.folder}; '
                            'try a lower --lr')
        with open(self.folder / 'metrics.jsonl', 'a') as file:
            file.write(json.dumps(metrics) + '\n')

    def save_checkpoint(self, last, **state):
        """Write `checkpoint.pt`, whole or not at all.

        Unless it is the `last`, it is skipped while the time spent writing would exceed about 2% of the run.
        """
        started = time.perf_counter()
        if not last and started < self._next_checkpoint:
            return
        partial = self.folder / 'checkpoint.pt.partial'
        with open(partial, 'wb') as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.folder / 'checkpoint.pt')
        finished = time.perf_counter()
        self._next_checkpoint = finished + 50 * (finished - started)

    def finish(self, graded, counter, **results):
        """Write `result.json` and print it; `counter` ('epoch', 'batch') is what the graded rows' `at` counts.

        Each further result is a dict of numbers.
        """
        self._write_json('result.json', {'graded': graded, **results, 'finished': _now()})
        print(f'\n{graded_table(graded, counter)}\n')
        for name, values in results.items():
            print(f'{name}: ' + ', '.join(f'{key} {value:.5g}' for key, value in values.items()))
        print(f'run folder: {self.folder}')

    def _write_json(self, name, content):
        (self.folder / name).write_text(json.dumps(content, indent=2) + '\n')


def load_run(folder, script, device):
    """(config, checkpoint) of a run that `script` made: two dicts, the checkpoint's tensors on `device`.

    Raises:
        UserError: the folder holds no such run, or its files cannot be read.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / 'config.json').read_text())
        maker = config['script']
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f'{folder} is not a run folder: {folder / "config.json"} is missing or unreadable') from error
    if maker != script:
        raise UserError(f'{folder} is a run of {maker}, not of {script}')
    try:
        checkpoint = torch.load(folder / 'checkpoint.pt', map_location=device, weights_only=True)
    except Exception as error:  # there is no exception that foreign bytes do not make an unpickler raise
        raise UserError(f'{folder / "checkpoint.pt"} is missing, truncated or foreign') from error
    return config, checkpoint


def grade(quantity, unit, at, value, reference, comparable=True, passes=None):
    """A row of the graded table: `at` is an epoch or a batch, a `value` of None was not reached.

    A value passes at or below the reference, unless `passes` says otherwise.
    """
    if not comparable:
        verdict = 'not comparable'
    elif value is None:
        verdict = 'not reached'
    else:
        verdict = 'pass' if (value <= reference if passes is None else passes) else 'falls short'
    return {'quantity': quantity, 'unit': unit, 'at': at, 'value': value, 'reference': reference, 'verdict': verdict}


def graded_table(graded, counter):
    """The graded rows as text, one aligned line each under a heading."""
    rows = [('quantity', 'unit', f'at {counter}', 'this run', 'reference', 'verdict')]
    for row in graded:
        value = '-' if row['value'] is None else f'{row["value"]:.3f}'
        rows.append((row['quantity'], row['unit'], f'{row["at"]:,}', value, f'{row["reference"]:.3f}', row['verdict']))
    widths = [max(map(len, column)) for column in zip(*rows)]
    return '\n'.join('  '.join(cell.rjust(width) if i in (2, 3, 4) else cell.ljust(width)
                               for i, (cell, width) in enumerate(zip(row, widths))).rstrip() for row in rows)


def device_name(device):
    """The hardware in words, for the record: the GPU's name, or the processor's with the threads PyTorch uses."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    if device.type == 'mps':
        return f'{platform.machine()} GPU (Metal)'
    cpuinfo = Path('/proc/cpuinfo')
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.split(':')[1].strip() for line in lines if line.startswith('model name')), platform.machine())
    return f'{model}, {torch.get_num_threads()} threads'


def _claim_folder(folder):
    """Make `folder`, or the first of `folder-2`, `folder-3`, ... that is free; of two runs only one can get it."""
    for suffix in itertools.chain([''], (f'-{n}' for n in itertools.count(2))):
        candidate = folder.parent / (folder.name + suffix)
        candidate.mkdir(parents=True, exist_ok=True)
        if not any(candidate.iterdir()):
            with contextlib.suppress(FileExistsError):
                (candidate / 'config.json').touch(exist_ok=False)
                return candidate


def _git_commit():
    """The commit of this source, with '-dirty' if files differ from it; None outside a git checkout."""
    try:
        return subprocess.run(['git', 'describe', '--always', '--dirty', '--abbrev=40', '--exclude=*'],
                              cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _now():
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds')
