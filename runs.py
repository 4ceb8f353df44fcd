"""The folder of a run: what a training writes, how a stopped one goes on, and what reads it afterwards.

    config.json              arguments, command line, commit, versions, hardware, start; `resumed` lists later starts
    metrics.jsonl            one JSON object per line; its first key counts epochs or batches
    checkpoint.pt            everything the training goes on from, the metrics so far included
    checkpoint_previous.pt   the one before, for when the last one is damaged
    result.json              the graded numbers of a finished run

Every file but `metrics.jsonl` is written beside its name, flushed to disk and renamed, so that a file is whole or absent.
Nothing here knows a model, a loss or a metric.
"""

import contextlib
import datetime
import importlib.metadata
import itertools
import json
import math
import os
import platform
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch

try:
    import fcntl
except ImportError:  # Windows: two processes that resume the same run are not told apart there
    fcntl = None

CHECKPOINTS = ('checkpoint.pt', 'checkpoint_previous.pt')
CHECKPOINT_COST = 0.02  # the share of a run's time that writing checkpoints may take


class UserError(Exception):
    """Something the user can mend; the message says what is wrong and what to do, in one line."""


class Run:
    """The folder of one training, new or resumed.

    Args:
        args: the parsed command line. A new run is made in `args.out`, or, if that is taken, with `-2`, `-3`, ... appended:
            nothing is ever written over. With `args.resume` the run in that folder goes on instead.
        device: the torch.device the run uses, for the record.
        **state: what a checkpoint holds beside the metrics: objects with `state_dict` and `load_state_dict`. Those of a
            resumed run are loaded here.

    Attributes:
        folder: Path.
        history: the lines of `metrics.jsonl`, a list of dicts; a resumed run's are cut back to its checkpoint.
        count: epochs or batches done, by the first key of the last line.

    Raises:
        UserError: the folder cannot be made, or holds nothing to resume.
    """

    def __init__(self, args, device, **state):
        self.script = Path(sys.argv[0]).name
        self.history = []
        self._state = state
        self._next_checkpoint = 0.0
        here = {'command': shlex.join(['python', *sys.argv]), 'git_commit': _git_commit(), 'versions': _versions(),
                'device': device_name(device), 'started': _now()}
        if args.resume is None:
            try:
                self.folder = _claim_folder(Path(args.out))
            except OSError as error:
                raise UserError(f'the run folder {args.out} cannot be made: {error.strerror}; '
                                'name another with --out') from error
            config = {'script': self.script, 'arguments': _settings(args, self.folder, device), **here}
            self._lock()
        else:
            self.folder = Path(args.resume)
            config = read_config(self.folder, self.script)
            self._lock()
            self._restore()
            config['arguments'] = _settings(args, self.folder, device)
            resumed = config.get('resumed')
            config['resumed'] = [*(resumed if isinstance(resumed, list) else []), {'from': self.count, **here}]
            (self.folder / 'result.json').unlink(missing_ok=True)  # the run is no longer finished
            lines = ''.join(json.dumps(line) + '\n' for line in self.history)
            write_whole(self.folder / 'metrics.jsonl', lambda file: file.write(lines.encode()))
        _write_json(self.folder / 'config.json', config)
        if not self.history:
            self.save_checkpoint(last=False)

    @property
    def count(self):
        return _count(self.history)

    def log(self, **metrics):
        """Append one line to `metrics.jsonl`.

        Raises:
            UserError: a value is not finite; the line is not written, the last checkpoint stays as it is.
        """
        bad = [key for key, value in metrics.items() if not math.isfinite(value)]
        if bad:
            counter, count = next(iter(metrics.items()))
            raise UserError(f'{bad[0]} is not finite at {counter} {count}; last checkpoint kept in {self.folder}; '
                            'start a new run with a lower --lr')
        with open(self.folder / 'metrics.jsonl', 'a') as file:
            file.write(json.dumps(metrics) + '\n')
        self.history.append(metrics)

    def save_checkpoint(self, last):
        """Write `checkpoint.pt`, whole or not at all, and keep the one before it.

        Unless it is the `last`, it is skipped while the time spent writing would exceed about 2% of the run.
        """
        started = time.perf_counter()
        if not last and started < self._next_checkpoint:
            return
        checkpoint = {name: part.state_dict() for name, part in self._state.items()} | {'metrics': self.history}
        write_whole(self.folder / CHECKPOINTS[0], lambda file: torch.save(checkpoint, file),
                    previous=self.folder / CHECKPOINTS[1])
        finished = time.perf_counter()
        self._next_checkpoint = finished + (finished - started) / CHECKPOINT_COST

    @contextlib.contextmanager
    def resumable(self):
        """An exception that leaves the block, unless it is a UserError, is given the command that resumes the run as a note."""
        try:
            yield
        except UserError:
            raise
        except BaseException as error:
            error.add_note(f'last checkpoint in {self.folder}; go on with: '
                           + shlex.join(['python', sys.argv[0], '--resume', str(self.folder)]))
            raise

    @contextlib.contextmanager
    def ending_with(self, draw_curves):
        """`resumable`, for the training loop: however it ends, `draw_curves()` is called if there is a line to draw."""
        with self.resumable():
            try:
                yield
            except BaseException:
                if self.history:
                    with contextlib.suppress(OSError):  # the disk that has stopped the run, say
                        draw_curves()
                raise
            draw_curves()

    def _lock(self):
        """Hold the folder for this process: two that train into it would mix their lines."""
        if fcntl is None:
            return
        self._folder_lock = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(self._folder_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f'{self.folder} is being trained by another process') from None
        except OSError:  # a file system without locks
            return

    def _restore(self):
        """Load the state and the history from the newest checkpoint that is whole and of this run."""
        def load(checkpoint):
            for name, part in self._state.items():
                state = checkpoint[name]
                if isinstance(part, torch.optim.Optimizer):
                    # The moments are the checkpoint's; the options (capturable, say) are this device's.
                    state = state | {'param_groups': part.state_dict()['param_groups']}
                part.load_state_dict(state)
            self.history = checkpoint['metrics']

        _first_whole_checkpoint(self.folder, load)


def finish(folder, graded, counter, results):
    """Write the `result.json` of the run in `folder`, and print it.

    Args:
        graded: rows of the graded table.
        counter: 'epoch' or 'batch', what the rows' `at` counts.
        results: dict from the name of a further result to its values, a dict of numbers.
    """
    _write_json(Path(folder) / 'result.json', {'graded': graded, **results, 'finished': _now()})
    print(f'\n{graded_table(graded, counter)}\n')
    for name, values in results.items():
        print(f'{name}: ' + ', '.join(f'{key} {value:.5g}' for key, value in values.items()))
    print(f'run folder: {folder}')


def load_run(folder, script, load):
    """Call load(checkpoint) with the last checkpoint of a finished or stopped run of `script`; returns its metrics.

    A checkpoint that `load` cannot use counts as damaged. The one before it is not tried: it belongs to an earlier epoch.

    Raises:
        UserError: the folder holds no such run, or no usable checkpoint.
    """
    read_config(folder, script)
    return _first_whole_checkpoint(Path(folder), load, CHECKPOINTS[:1])['metrics']


def read_config(folder, script=None):
    """`config.json` of a run, as a dict with a str `script` and a dict `arguments` at least.

    Raises:
        UserError: the folder is not a run's, or not one of `script`.
    """
    path = Path(folder) / 'config.json'
    try:
        config = json.loads(path.read_bytes())
        maker, arguments = config['script'], config['arguments']
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f'{folder} is not a run folder: {path} is missing or unreadable') from error
    if not isinstance(maker, str) or not isinstance(arguments, dict):
        raise UserError(f'{folder} is not a run folder: {path} is not one this project wrote')
    if script is not None and maker != script:
        raise UserError(f'{folder} is a run of {maker!r}, not of {script}')
    return config


def read_metrics(folder):
    """The lines of `metrics.jsonl`, a list of dicts of finite numbers with the same first key, rising from line to line.

    A last line that a killed run left half-written is dropped, with a warning.

    Raises:
        UserError: the file is missing, or not such lines.
    """
    path = Path(folder) / 'metrics.jsonl'
    try:
        texts = path.read_bytes().split(b'\n')
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror}') from error
    if texts.pop():  # whole lines end in a newline
        print(f'{path}: the last line is truncated, not used', file=sys.stderr)
    lines = []
    for n, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
            counter, count = next(iter(line.items()))
            if (lines and (counter != next(iter(lines[0])) or count <= _count(lines))
                    or not all(type(value) in (int, float) and math.isfinite(value) for value in line.values())):
                raise ValueError(text)
        except (ValueError, TypeError, AttributeError, StopIteration, RecursionError, OverflowError) as error:
            raise UserError(f'{path}: line {n} is damaged, or not one this project wrote') from error
        lines.append(line)
    return lines


def read_results(folder):
    """The further results in `result.json`: a dict of dicts of finite numbers, empty if the run is not finished.

    Raises:
        UserError: the file is not one this project wrote.
    """
    path = Path(folder) / 'result.json'
    try:
        content = json.loads(path.read_bytes())
        results = {name: values for name, values in content.items() if name not in ('graded', 'finished')}
        finite = [math.isfinite(value) for values in results.values() for value in values.values()]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise UserError(f'{path} is damaged, or not one this project wrote') from error
    if not all(finite):
        raise UserError(f'{path} holds a value that is not finite')
    return results


def _first_whole_checkpoint(folder, load, names=CHECKPOINTS):
    present = [folder / name for name in names if (folder / name).exists()]
    for path in present:
        try:
            checkpoint = torch.load(path, map_location='cpu', weights_only=True)
            _count(checkpoint['metrics'])
            load(checkpoint)
        except Exception as error:  # there is no exception that foreign bytes do not make an unpickler raise
            print(f'{path} is truncated, foreign or of other settings than config.json has ({type(error).__name__}), not used',
                  file=sys.stderr)
        else:
            return checkpoint
    raise UserError(f'{folder} holds no usable checkpoint' if present else f'{folder} holds no checkpoint: start the run again')


def _count(history):
    return next(iter(history[-1].values())) if history else 0


def _write_json(path, content):
    write_whole(path, lambda file: file.write((json.dumps(content, indent=2) + '\n').encode()))


@contextlib.contextmanager
def undisturbed():
    """SIGINT and SIGTERM that arrive inside the block take effect after it (torch.save does not stand to be interrupted)."""
    if threading.current_thread() is not threading.main_thread():  # signals never arrive in another
        yield
        return
    arrived = []
    handlers = {signum: signal.signal(signum, lambda signum, _: arrived.append(signum))
                for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
        if arrived:
            signal.raise_signal(arrived[0])


@contextlib.contextmanager
def one_at_a_time(folder):
    """Wait until no other process is in such a block for this folder, where the file system has locks."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@undisturbed()
def write_whole(path, write, previous=None):
    """Call write(file) on a file that takes the name `path` only when it is complete and on the disk.

    What stood there takes the name `previous`, if one is given.
    """
    partial = path.with_name(path.name + '.partial')
    try:
        with open(partial, 'wb') as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            path.replace(previous)
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        failure = error if isinstance(error, OSError) else error.__context__  # torch.save hides the write that failed
        if not isinstance(failure, OSError):
            raise
        raise OSError(failure.errno, failure.strerror, str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


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
    threads = torch.get_num_threads()
    return f'{model}, {threads} thread{"s" if threads > 1 else ""}'


def candidates(folder):
    """`folder`, `folder-2`, `folder-3`, ... without end: the names a run may take, by preference."""
    for suffix in itertools.chain([''], (f'-{n}' for n in itertools.count(2))):
        yield folder.parent / (folder.name + suffix)


def _claim_folder(folder):
    """Make `folder`, or the first of `folder-2`, `folder-3`, ... that is free; of two runs only one can get it."""
    for candidate in candidates(folder if folder.name else folder.resolve()):
        candidate.mkdir(parents=True, exist_ok=True)
        if not any(candidate.iterdir()):
            with contextlib.suppress(FileExistsError):
                (candidate / 'config.json').touch(exist_ok=False)
                return candidate


def _settings(args, folder, device):
    return {name: value for name, value in vars(args).items() if name not in ('resume', 'evaluate')} | {
        'out': str(folder), 'device': device.type}


def _versions():
    return {'python': platform.python_version(), 'torch': torch.__version__} | {
        package: importlib.metadata.version(package) for package in ('numpy', 'scipy', 'matplotlib')}


def _git_commit():
    """The commit of this source, with '-dirty' if files differ from it; None outside a git checkout."""
    try:
        return subprocess.run(['git', 'describe', '--always', '--dirty', '--abbrev=40', '--exclude=*'],
                              cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _now():
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds')
