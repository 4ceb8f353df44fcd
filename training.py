"""What any training needs, whatever it trains: command line, device, random numbers, averaged weights, progress bar.

Nothing here knows a model, a loss or a metric. What a run writes is in `runs.py`.
"""

import argparse
import contextlib
import copy
import math
import signal
import sys
from pathlib import Path

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

import runs
from datasets import DataError
from runs import UserError

MAY_GROW = ('epochs', 'n_epochs')  # settings a resumed run may raise
MAY_DIFFER = ('device', 'data_dir')  # settings it may change: where it runs, where the same data lie


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
        self._source = ''  # of what is parsed, for an error, if it is not the command line

    def add_common_arguments(self):
        self.add_argument('--seed', type=number(int, at_least=0, below=2 ** 32), default=0,
                          help='seed of every random number of the run')
        self.add_argument('--device', choices=('auto', 'cuda', 'mps', 'cpu'), default='auto', help='where to train')
        self.add_optional_argument('--data_dir', metavar='DIR', help='read MNIST from DIR (mnist.npz or the four IDX '
                                   'files; larochelle: the three .amat files) instead of the copy in datasets/')
        self.add_optional_argument('--out', metavar='DIR', help='run folder to make; a suffix is added if it is taken '
                                   '(default: named after the settings, in runs/)')
        self.add_optional_argument('--resume', metavar='RUN', help='go on with the stopped run in this folder, with its '
                                   'own settings; the number of epochs may grow')

    def add_optional_argument(self, flag, **options):
        """A flag that is None unless given; its help text itself says what that means."""
        self.set_defaults(**{flag.lstrip('-'): None})
        self.add_argument(flag, default=argparse.SUPPRESS, **options)

    def parse_args(self):
        """The parsed command line; with --resume, the settings of the run that goes on.

        Those pass through the parser like flags, so that a setting spoilt in `config.json` is an error like any other. A flag
        given beside --resume must agree with them, except those that may grow or differ.
        """
        args = super().parse_args()
        if args.resume is None:
            return args
        given = vars(super().parse_args(namespace=argparse.Namespace(**dict.fromkeys(vars(args)))))
        run = self._settings_of(args.resume)
        grows = False
        for name, value in given.items():
            if value is None or name == 'resume' or value == getattr(run, name):
                continue
            if name in MAY_GROW and value < getattr(run, name):
                self.error(f'--resume {args.resume}: the run has --{name} {getattr(run, name)}, which may only grow')
            if name not in MAY_GROW + MAY_DIFFER:
                self.error(f'--resume {args.resume}: its --{name} is {getattr(run, name)}, not {value}: '
                           'a resumed run keeps its settings')
            grows = grows or name in MAY_GROW
            setattr(run, name, value)
        if (Path(args.resume) / 'result.json').exists() and not grows:
            self.exit(1, f'{self.prog}: error: {args.resume} is finished: only with more epochs can it go on\n')
        run.resume = args.resume
        return run

    def _settings_of(self, folder):
        """The arguments in the `config.json` of the run in this folder, through the parser."""
        try:
            saved = runs.read_config(folder, self.prog)['arguments']
        except UserError as error:
            self.exit(1, f'{self.prog}: error: {error}\n')
        self._source = f'{Path(folder) / "config.json"}: '
        known = {action.dest for action in self._actions} - {'help', 'resume'}
        if unknown := saved.keys() - known:
            self.error(f'there is no setting {min(unknown)!r}')
        settings = super().parse_args([f'--{name}={value}' for name, value in saved.items() if value is not None])
        self._source = ''
        return settings

    def error(self, message):
        self.exit(2, f'{self.prog}: error: {self._source}{message} (--help lists the options)\n')


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM: `signum` says which."""

    def __init__(self, signum):
        self.signum = signum


def run_script(main, args):
    """Call main(args); what the user can mend ends in one line on stderr and exit status 1, Ctrl-C in 130, SIGTERM in 143."""
    def interrupt(signum, frame):
        raise Interrupted(signum)

    for signum in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(signum) != signal.SIG_IGN:  # as nohup and shells set it for background jobs
            signal.signal(signum, interrupt)
    try:
        main(args)
    except (UserError, DataError) as exception:
        error, message, status = exception, f'error: {exception}', 1
    except OSError as exception:
        message = f'error: {exception.filename or "writing the run"}: {exception.strerror or exception}'
        error, status = exception, 1
    except Interrupted as exception:
        error, message, status = exception, 'interrupted', 128 + exception.signum
    else:
        return
    print(f'{Path(sys.argv[0]).name}: ' + '; '.join([message, *getattr(error, '__notes__', [])]), file=sys.stderr)
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


class RandomState:
    """The state of every random generator that a run on `device` draws from, in the form of a part of a checkpoint."""

    def __init__(self, device):
        self.generators = {'cpu': torch} | ({} if device.type == 'cpu' else {device.type: getattr(torch, device.type)})

    def state_dict(self):
        return {name: generator.get_rng_state() for name, generator in self.generators.items()}

    def load_state_dict(self, state):
        """Put back what `state_dict` returned; of another kind of device, as far as there is anything to put back."""
        for name, generator in self.generators.items():
            if name in state:
                generator.set_rng_state(state[name])


@contextlib.contextmanager
def separate_random_numbers(seed, device):
    """Inside the block random numbers come from `seed`; after it the run's own stream goes on as if untouched.

    So a picture or an evaluation never changes the training that follows it, and shows the same draws every time.
    """
    random = RandomState(device)
    state = random.state_dict()
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.load_state_dict(state)


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

    def state_dict(self):
        return {'model': self.model.state_dict(), 'n_steps': self.n_steps}

    def load_state_dict(self, state):
        self.model.load_state_dict(state['model'])
        self.n_steps = state['n_steps']


def progress_bar(n_batches, n_done=0):
    """A tqdm bar over a whole training, counted in batches; on a terminal live, in a log a line every 30 s."""
    return tqdm(total=n_batches, initial=n_done, mininterval=0.2 if sys.stderr.isatty() else 30,
                bar_format='{desc} |{bar}| {percentage:3.0f}% [{elapsed}<{remaining}]{postfix}', dynamic_ncols=True)


def counted(batches, bar):
    """The batches, each counted on the bar once it has been used."""
    for batch in batches:
        yield batch
        bar.update()
