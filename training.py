"""What any training needs, whatever it trains: command line, device, random numbers, averaged weights, progress bar.

Nothing here knows a model, a loss or a metric. What a run writes is in `runs.py`.
"""

import argparse
import contextlib
import copy
import itertools
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
# Settings it may change: where and how it runs, where the same data lie, how it is evaluated.
MAY_DIFFER = ('device', 'data_dir', 'no_graph', 'importance_samples', 'quality_samples')
STEPS_PER_LAUNCH = 10  # on CUDA: divides the 390 whole batches of an epoch


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


def none_or_hundreds(text):
    """argparse type for a number of samples to take statistics of: 0 or at least 100."""
    value = number(int, at_least=0)(text)
    if 0 < value < 100:
        raise argparse.ArgumentTypeError(f'must be 0 or at least 100, not {text!r}')
    return value


class UsageError(UserError):
    """A command line that is wrong; the message says how, in one line."""


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser with defaults in --help, one line for an error, and the flags all scripts share."""

    def __init__(self, description, **options):
        super().__init__(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, **options)

    def add_common_arguments(self):
        self.add_argument('--seed', type=number(int, at_least=0, below=2 ** 32), default=0,
                          help='seed of every random number of the run')
        self.add_argument('--device', choices=('auto', 'cuda', 'mps', 'cpu'), default='auto', help='where to train')
        self.add_argument('--no_graph', action='store_true', help='on CUDA: launch every kernel of a step by itself, do not '
                          'replay a captured graph')
        self.add_optional_argument('--data_dir', metavar='DIR', help='read MNIST from DIR (mnist.npz or the four IDX '
                                   'files; larochelle: the three .amat files) instead of the copy in datasets/')
        self.add_optional_argument('--out', metavar='DIR', help='run folder to make; a suffix is added if it is taken '
                                   '(default: named after the settings, in runs/)')
        self.add_optional_argument('--resume', metavar='RUN', help='go on with the stopped run in this folder, with its '
                                   'own settings; the number of epochs may grow')
        self.add_optional_argument('--evaluate', metavar='RUN', help='evaluate the finished run in this folder anew, without '
                                   'training')
        self.add_argument('--quality_samples', type=none_or_hundreds, default=10_000, help='generated images to judge '
                          'against real ones at the end; 0 for no judgement')

    def add_optional_argument(self, flag, **options):
        """A flag that is None unless given; its help text itself says what that means."""
        self.set_defaults(**{flag.lstrip('-'): None})
        self.add_argument(flag, default=argparse.SUPPRESS, **options)

    def parse_args(self, args=None):
        """The parsed command line; with --resume or --evaluate, the settings of that run.

        Those pass through the parser like flags, so that a setting spoilt in `config.json` is an error like any other. A flag
        given beside them must agree, except those that may grow or differ.

        Raises:
            UsageError: the command line is wrong, or disagrees with the run to resume.
            UserError: there is no such run, or it is finished (to resume) or not (to evaluate).
        """
        parsed = super().parse_args(args)
        resume, evaluate = (getattr(parsed, name, None) for name in ('resume', 'evaluate'))
        if sum(getattr(parsed, name, None) is not None for name in ('resume', 'evaluate', 'generate')) > 1:
            self.error('--resume, --evaluate, --generate: one at a time')
        if resume is None and evaluate is None:
            return parsed
        flag, folder = ('--resume', Path(resume)) if evaluate is None else ('--evaluate', Path(evaluate))
        given = vars(super().parse_args(args, argparse.Namespace(**dict.fromkeys(vars(parsed)))))
        run = settings_of(folder, runs.read_config(folder, self.prog), super().parse_args)
        grows = False
        for name, value in given.items():
            if value is None or name in ('resume', 'evaluate') or value == getattr(run, name):
                continue
            if name in MAY_GROW and value < getattr(run, name):
                self.error(f'{flag} {folder}: the run has --{name} {getattr(run, name)}, which may only grow')
            if name not in MAY_DIFFER and (name not in MAY_GROW or evaluate is not None):
                self.error(f'{flag} {folder}: its --{name} is {getattr(run, name)}, not {value}: a run keeps its settings')
            grows = grows or name in MAY_GROW
            setattr(run, name, value)
        finished = (folder / 'result.json').exists()
        if resume is not None and finished and not grows:
            raise UserError(f'{folder} is finished: only with more epochs can it go on')
        if evaluate is not None and not finished:
            raise UserError(f'{folder} is unfinished: go on with --resume {folder} first')
        run.resume, run.evaluate = resume, evaluate
        return run

    def error(self, message):
        raise UsageError(f'{message} (--help lists the options)')


def settings_of(folder, config, parse_args):
    """The arguments in `config`, the `config.json` of the run in `folder`, parsed as flags by a script's `parse_args`.

    Raises:
        UserError: there is one that no command line could have set.
    """
    try:
        if 'help' in config['arguments']:
            raise UsageError("there is no setting 'help'")
        return parse_args([f'--{name}' if value is True else f'--{name}={value}'
                           for name, value in config['arguments'].items()
                           if value is not None and value is not False and name not in ('resume', 'evaluate')])
    except UsageError as error:
        raise UserError(f'{folder / "config.json"}: {error}') from error


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM: `signum` says which."""

    def __init__(self, signum):
        self.signum = signum


def run_script(main, parse_args):
    """Call main(parse_args()). What the user can mend ends in one line on stderr and exit status 1, or 2 if it is the command
    line; Ctrl-C ends in status 130, SIGTERM in 143."""
    def interrupt(signum, frame):
        raise Interrupted(signum)

    for signum in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(signum) != signal.SIG_IGN:  # as nohup and shells set it for background jobs
            signal.signal(signum, interrupt)
    try:
        main(parse_args())
    except (UserError, DataError) as exception:
        error, message, status = exception, f'error: {exception}', 2 if isinstance(exception, UsageError) else 1
    except OSError as exception:
        message = f'error: {exception.filename or "writing the run"}: {exception.strerror or exception}'
        error, status = exception, 1
    except Interrupted as exception:
        error, message, status = exception, 'interrupted', 128 + exception.signum
    except (MemoryError, RuntimeError) as exception:
        if not _is_out_of_memory(exception):
            raise
        error, message, status = exception, 'error: out of memory: smaller settings need less', 1
    else:
        return
    program = Path(sys.argv[0])
    name = program.parent.name if program.name == '__main__.py' else program.name
    print(f'{name}: ' + '; '.join([message, *getattr(error, '__notes__', [])]), file=sys.stderr)
    sys.exit(status)


def _is_out_of_memory(exception):
    # On the CPU PyTorch raises a plain RuntimeError.
    return (isinstance(exception, (MemoryError, torch.OutOfMemoryError)) or 'not enough memory' in str(exception)
            or "can't allocate memory" in str(exception))


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
    if name == 'cuda':
        torch.set_float32_matmul_precision('high')  # TF32
    return torch.device(name)


class Steps:
    """A step, `step(batch)`, over many batches: called with an iterable of them, it yields each with its result.

    Up to n batches of one shape are drawn ahead, and stepped through in one go: what the caller does with a result, such as
    updating a `WeightAverage`, comes after all of these steps.
    """

    def __init__(self, step, n=1):
        self.step = step
        self.n = n

    def __call__(self, batches):
        for _, same in itertools.groupby(batches, key=lambda batch: batch.shape):
            while group := list(itertools.islice(same, self.n)):
                yield from zip(group, self.take(group))

    def take(self, group):
        """The results for a list of batches of one shape, as an iterable."""
        return [self.step(batch) for batch in group]


class CapturedSteps(Steps):
    """Steps that are captured in a CUDA graph, n at a time, and replayed: one launch for all their kernels, which are small here.

    There is a graph for every shape and number of batches met. A step must not wait for the device, nor decide anything on the
    host that changes from batch to batch; its result is a tensor.

    Args:
        parts: the modules and optimisers that the step changes (Adam with `capturable=True`).
    """

    N_WARM_UP = 3

    def __init__(self, step, n, parts):
        super().__init__(step, n)
        self.parts = parts
        self.captured = {}  # (graph, its input, its output), by the input's shape

    def take(self, group):
        shape = len(group), *group[0].shape
        if shape not in self.captured:
            self.captured[shape] = self._capture(torch.stack(group))
        graph, input, output = self.captured[shape]
        torch.stack(group, out=input)
        graph.replay()
        return output.clone()

    def _capture(self, input):
        """Capture the steps, which does not execute them, after a few real ones; then undo those.

        The real ones make what is made at the first step and must not be captured: Adam's moments, cuBLAS's workspaces. Like
        the capture they run on a stream of their own, as PyTorch's notes on CUDA graphs demand.
        """
        random = RandomState(input.device)
        before = copy.deepcopy([part.state_dict() for part in (random, *self.parts)])
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(self.N_WARM_UP):
                self.step(input[0])
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = torch.stack([self.step(batch) for batch in input])
        for part, state in zip((random, *self.parts), before):
            if isinstance(part, torch.optim.Optimizer):
                _reset_in_place(part, state)
            else:
                part.load_state_dict(state)  # copies into the same tensors
        return graph, input, output


def _reset_in_place(optimizer, state_dict):
    """`load_state_dict` into the tensors that a captured graph writes; what has no saved value starts at zero."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group['params']]
    for n, parameter in enumerate(parameters):
        saved = state_dict['state'].get(n, {})
        for name, value in optimizer.state[parameter].items():
            if name in saved:
                value.copy_(saved[name])
            else:
                value.zero_()


def steps_on(device, step, *parts, no_graph=False):
    """Steps that suit the device: on CUDA STEPS_PER_LAUNCH at a time and, unless with `no_graph`, captured.

    `parts` are the modules and optimisers that the step changes.
    """
    if device.type != 'cuda':
        return Steps(step)
    return Steps(step, STEPS_PER_LAUNCH) if no_graph else CapturedSteps(step, STEPS_PER_LAUNCH, parts)


def adam(model, lr, device, no_graph=False):
    """Adam (Kingma & Ba, ICLR 2015), in PyTorch's fused form, fit to be captured where `steps_on` does that."""
    return torch.optim.Adam(model.parameters(), lr=lr, fused=True, capturable=device.type == 'cuda' and not no_graph)


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
        every: steps between updates; the average of every tenth step is as good, and nearly free.
    """

    def __init__(self, model, decay, every=10):
        self.decay = decay
        self.every = every
        self.n_steps = 0
        self.model = copy.deepcopy(model).eval() if decay else model

    def update(self, model):
        """To be called once for each optimiser step, if several are taken in one go after those."""
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
    """A tqdm bar over a whole training, counted in batches or any unit; on a terminal live, in a log a new state every 30 s."""
    return tqdm(total=n_batches, initial=n_done, mininterval=0.2 if sys.stderr.isatty() else 30,
                bar_format='{desc} |{bar}| {percentage:3.0f}% [{elapsed}<{remaining}]{postfix}', dynamic_ncols=True)


def counted(batches, bar):
    """The batches, each counted on the bar when the next one is asked for."""
    for batch in batches:
        yield batch
        bar.update()
