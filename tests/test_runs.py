import argparse
import json
import math
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, strategies as st

import runs
from runs import UserError
from training import Interrupted

CPU = torch.device('cpu')


def make_run(folder, resume=None, state=None, **settings):
    return runs.Run(argparse.Namespace(out=folder, resume=resume, **settings), CPU, **state or {})


def state_of(seed):
    """A model, and an optimiser that has made a step."""
    torch.manual_seed(seed)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.rand(4, 3)).sum().backward()
    optimizer.step()
    return {'model': model, 'optimizer': optimizer}


def resumed_weight(folder):
    """(weight, history) of a new state after resuming, or the error."""
    state = state_of(99)
    run = make_run(folder, resume=folder, state=state)
    os.close(run._folder_lock)
    return state['model'].weight, run.history


def three_epochs(folder):
    """A run of three epochs with a checkpoint after each; returns the weights at each."""
    state, weights = state_of(1), []
    run = make_run(folder, state=state)
    for epoch in (1, 2, 3):
        with torch.no_grad():
            state['model'].weight.fill_(epoch)
        weights.append(state['model'].weight.clone())
        run.log(epoch=epoch, loss=1 / epoch)
        run.save_checkpoint(last=True)
    os.close(run._folder_lock)
    return weights


def test_a_run_folder_is_never_written_over(tmp_path):
    made = [make_run(tmp_path / 'a' / 'run') for _ in range(3)]
    assert [run.folder.name for run in made] == ['run', 'run-2', 'run-3']
    (tmp_path / 'notes').mkdir()
    (tmp_path / 'notes' / 'mine.txt').write_text('mine')
    assert make_run(tmp_path / 'notes').folder.name == 'notes-2'
    (tmp_path / 'empty').mkdir()
    assert make_run(tmp_path / 'empty').folder.name == 'empty'


def test_runs_started_together_get_a_folder_each(tmp_path, monkeypatch):
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: runs._claim_folder(tmp_path / 'run'), range(24)))
    assert len(set(folders)) == 24
    # The worst moment: each run sees an empty folder, because the others have not written to it yet.
    monkeypatch.setattr(Path, 'iterdir', lambda _: iter(()))
    assert [runs._claim_folder(tmp_path / 'race').name for _ in range(3)] == ['race', 'race-2', 'race-3']


def test_an_impossible_folder_is_named(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='file/run cannot be made'):
        make_run(tmp_path / 'file' / 'run')


def test_config_records_what_made_the_run(tmp_path):
    config = json.loads((make_run(tmp_path / 'run', lr=0.1).folder / 'config.json').read_text())
    assert config['arguments'] == {'lr': 0.1, 'out': str(tmp_path / 'run'), 'device': 'cpu'}
    assert config['versions']['torch'] == torch.__version__
    assert {'script', 'command', 'git_commit', 'device', 'started'} <= config.keys()


def test_metrics_are_appended_and_must_be_finite(tmp_path):
    run = make_run(tmp_path / 'run')
    lines = [{'epoch': 1, 'loss': 2.5}, {'epoch': 2, 'loss': 1.5}]
    for line in lines:
        run.log(**line)
    for bad in (math.nan, math.inf):
        with pytest.raises(UserError, match='loss is not finite at epoch 3'):
            run.log(epoch=3, loss=bad)
    assert runs.read_metrics(run.folder) == run.history == lines and run.count == 2


@pytest.mark.parametrize('error', [OSError(28, 'No space left on device'), KeyboardInterrupt(), RuntimeError('bug')])
def test_a_checkpoint_is_whole_or_not_written(tmp_path, monkeypatch, error):
    run = make_run(tmp_path / 'run', state=state_of(1))
    run.log(epoch=1, loss=1.0)
    run.save_checkpoint(last=True)
    before = {path: path.read_bytes() for path in run.folder.iterdir()}

    def fail_halfway(state, file):
        file.write(b'half')
        raise error

    monkeypatch.setattr(torch, 'save', fail_halfway)
    with pytest.raises(type(error)) as raised:
        run.save_checkpoint(last=True)
    if isinstance(error, OSError):
        assert raised.value.filename == str(run.folder / 'checkpoint.pt')
    assert {path: path.read_bytes() for path in run.folder.iterdir()} == before


class Watched:
    """A file that calls `at_one_kilobyte()` when it has grown to that."""
    def __init__(self, file, at_one_kilobyte):
        self.file, self.at_one_kilobyte = file, at_one_kilobyte

    def write(self, data):
        if self.file.tell() + len(data) > 1024:
            self.at_one_kilobyte()
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)


def test_the_failed_write_behind_torch_save_s_error_is_the_one_reported(tmp_path):
    def full():
        raise OSError(28, 'No space left on device')

    with pytest.raises(OSError, match='No space left on device') as raised:
        runs.write_whole(tmp_path / 'x.pt', lambda file: torch.save({'a': torch.zeros(10_000)}, Watched(file, full)))
    assert raised.value.filename == str(tmp_path / 'x.pt') and not list(tmp_path.iterdir())


@pytest.mark.parametrize('signum', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_until_a_file_is_written(tmp_path, signum):
    def interrupt(signum, _):
        raise Interrupted(signum)

    before = {each: signal.signal(each, interrupt) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(Interrupted) as raised:
            runs.write_whole(tmp_path / 'x.pt', lambda file: torch.save(
                {'a': torch.zeros(10_000)}, Watched(file, lambda: signal.raise_signal(signum))))
        assert all(signal.getsignal(each) is interrupt for each in before)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert raised.value.signum == signum
    assert [path.name for path in tmp_path.iterdir()] == ['x.pt']
    assert torch.equal(torch.load(tmp_path / 'x.pt')['a'], torch.zeros(10_000))


def test_checkpoints_cost_about_two_percent(tmp_path, monkeypatch):
    clock = [0.0]
    run, written = make_run(tmp_path / 'run'), 0
    monkeypatch.setattr(runs.time, 'perf_counter', lambda: clock[0])
    monkeypatch.setattr(runs.os, 'fsync', lambda _: clock.__setitem__(0, clock[0] + 2.0))
    run._next_checkpoint = 0.0
    for epoch in range(1000):
        clock[0] += 1.0
        before = clock[0]
        run.save_checkpoint(last=False)
        written += clock[0] != before
    assert 0.01 < 2.0 * written / clock[0] <= 0.025


def test_resume_cuts_the_metrics_back_to_the_checkpoint(tmp_path):
    weights = three_epochs(tmp_path / 'run')
    with open(tmp_path / 'run' / 'metrics.jsonl', 'a') as file:
        file.write('{"epoch": 4, "loss": 0.25}\n{"epoch": 5, "lo')
    weight, history = resumed_weight(tmp_path / 'run')
    assert torch.equal(weight, weights[2])
    assert [line['epoch'] for line in history] == [1, 2, 3] and runs.read_metrics(tmp_path / 'run') == history
    config = json.loads((tmp_path / 'run' / 'config.json').read_text())
    assert [start['from'] for start in config['resumed']] == [3]


def test_every_truncation_of_a_checkpoint_falls_back_to_the_one_before(tmp_path, capsys):
    weights = three_epochs(tmp_path / 'run')
    path, previous = tmp_path / 'run' / 'checkpoint.pt', tmp_path / 'run' / 'checkpoint_previous.pt'
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 97), len(whole) - 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        weight, history = resumed_weight(tmp_path / 'run')
        assert torch.equal(weight, weights[1]) and len(history) == 2
        error = capsys.readouterr().err
        assert error.startswith(f'{path} is truncated, foreign') and error.count('\n') == 1
    path.unlink()  # killed between the two renames
    assert torch.equal(resumed_weight(tmp_path / 'run')[0], weights[1])
    previous.write_bytes(b'')
    with pytest.raises(UserError, match='no usable checkpoint'):
        runs._first_whole_checkpoint(tmp_path / 'run', print)
    previous.unlink()
    with pytest.raises(UserError, match='holds no checkpoint'):
        runs._first_whole_checkpoint(tmp_path / 'run', print)


@pytest.mark.parametrize('foreign', [
    {}, [], 3, {'metrics': []}, {'metrics': [], 'model': {}, 'optimizer': {}},
    {'metrics': [{}], 'model': torch.nn.Linear(3, 2).state_dict(), 'optimizer': state_of(0)['optimizer'].state_dict()},
    {'metrics': [{'epoch': 1}], 'model': torch.nn.Linear(4, 2).state_dict(),
     'optimizer': state_of(0)['optimizer'].state_dict()}], ids=range(7))
def test_a_foreign_checkpoint_is_not_used(tmp_path, foreign):
    weights = three_epochs(tmp_path / 'run')
    torch.save(foreign, tmp_path / 'run' / 'checkpoint.pt')
    weight, history = resumed_weight(tmp_path / 'run')
    assert torch.equal(weight, weights[1]) and len(history) == 2


def test_a_checkpoint_of_another_device_keeps_the_moments_and_not_the_options(tmp_path):
    three_epochs(tmp_path / 'run')
    path = tmp_path / 'run' / 'checkpoint.pt'
    checkpoint = torch.load(path, weights_only=True)
    checkpoint['optimizer']['param_groups'][0] |= {'capturable': True, 'lr': torch.tensor(0.5)}  # as a CUDA graph needs
    torch.save(checkpoint, path)
    state = state_of(99)
    make_run(tmp_path / 'run', resume=tmp_path / 'run', state=state)
    group, = state['optimizer'].param_groups
    assert not group['capturable'] and group['lr'] == 1e-3
    for moments, expected in zip(state['optimizer'].state.values(), checkpoint['optimizer']['state'].values()):
        assert torch.equal(moments['exp_avg'], expected['exp_avg'])
    state['optimizer'].step()


def test_a_run_is_trained_by_one_process_at_a_time(tmp_path):
    run = make_run(tmp_path / 'run', state=state_of(1))
    with pytest.raises(UserError, match='is being trained by another process'):
        make_run(None, resume=run.folder, state=state_of(1))


def test_a_finished_run_with_a_damaged_checkpoint_is_not_read_from_the_one_before(tmp_path):
    three_epochs(tmp_path / 'run')
    script = json.loads((tmp_path / 'run' / 'config.json').read_text())['script']
    assert len(runs.load_run(tmp_path / 'run', script, lambda checkpoint: None)) == 3
    (tmp_path / 'run' / 'checkpoint.pt').write_bytes(b'')
    with pytest.raises(UserError, match='no usable checkpoint'):
        runs.load_run(tmp_path / 'run', script, lambda checkpoint: None)


def test_a_folder_without_a_name_of_its_own(tmp_path, monkeypatch):
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'notes.txt').write_text('')
    monkeypatch.chdir(tmp_path / 'mine')
    assert make_run('.').folder == tmp_path / 'mine-2'


def test_runs_that_cannot_be_loaded(tmp_path):
    with pytest.raises(UserError, match='is not a run folder'):
        runs.load_run(tmp_path / 'absent', 'a.py', print)
    run = make_run(tmp_path / 'run')
    with pytest.raises(UserError, match='not of another.py'):
        runs.load_run(run.folder, 'another.py', print)


@pytest.mark.parametrize('early', [KeyboardInterrupt(), OSError(28, 'No space left on device')])
def test_a_run_that_ends_early_draws_its_curves_and_says_how_to_go_on(tmp_path, monkeypatch, early):
    monkeypatch.setattr('sys.argv', ['dir/script.py'])
    run, drawn = make_run(tmp_path / 'run'), []
    with pytest.raises(type(early)) as raised, run.ending_with(lambda: drawn.append(1)):
        raise early
    assert not drawn  # there was nothing to draw
    run.log(epoch=1, loss=1.0)
    with pytest.raises(type(early)) as raised, run.ending_with(lambda: drawn.append(1)):
        raise early
    assert drawn and raised.value.__notes__[-1].endswith(f'go on with: python dir/script.py --resume {run.folder}')


@given(st.one_of(st.binary(), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(['script', 'arguments', 'x']), inner),
).map(lambda value: json.dumps(value).encode())))
def test_any_config_is_read_or_refused(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp() / 'config'
    folder.mkdir(exist_ok=True)
    (folder / 'config.json').write_bytes(content)
    try:
        config = runs.read_config(folder)
    except UserError:
        return
    assert isinstance(config['script'], str) and isinstance(config['arguments'], dict)


LINE = st.dictionaries(st.sampled_from(['epoch', 'loss']), st.integers() | st.floats() | st.none() | st.booleans())


@given(st.one_of(st.binary(), st.lists(LINE.map(json.dumps) | st.text(max_size=5)).map('\n'.join).map(str.encode)))
def test_any_metrics_are_read_or_refused(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp() / 'metrics'
    folder.mkdir(exist_ok=True)
    (folder / 'metrics.jsonl').write_bytes(content)
    try:
        lines = runs.read_metrics(folder)
    except UserError:
        return
    counts = [next(iter(line.values())) for line in lines]
    assert counts == sorted(set(counts)) and all(math.isfinite(value) for line in lines for value in line.values())
    assert lines == [json.loads(text) for text in content.split(b'\n')[:-1]]


def test_metrics_with_a_truncated_last_line(tmp_path, capsys):
    text = '{"epoch": 1, "loss": 2.0}\n{"epoch": 2, "loss": 1.0}\n'
    for length in range(27, len(text)):
        (tmp_path / 'metrics.jsonl').write_text(text[:length])
        assert runs.read_metrics(tmp_path) == [{'epoch': 1, 'loss': 2.0}]
        assert 'the last line is truncated' in capsys.readouterr().err
    for damaged, line in ((text.replace('2.0', 'NaN'), 1), (text[1:], 1), (text + text, 3), (text[:27] + '\n' + text[27:], 2)):
        (tmp_path / 'metrics.jsonl').write_text(damaged)
        with pytest.raises(UserError, match=f'line {line} is damaged'):
            runs.read_metrics(tmp_path)


def test_results_are_read_or_refused(tmp_path):
    run = make_run(tmp_path / 'run')
    assert runs.read_results(run.folder) == {}
    runs.finish(run.folder, [runs.grade('loss', 'nats', 1, 1.0, 2.0)], 'epoch', {'test': {'loss': 1.5}})
    assert runs.read_results(run.folder) == {'test': {'loss': 1.5}}
    for damaged in (b'', b'[]', b'{"test": 3}', b'{"test": {"loss": null}}', b'{"test": {"loss": NaN}}', b'{"test": {"loss": 1'):
        (run.folder / 'result.json').write_bytes(damaged)
        with pytest.raises(UserError, match='result.json'):
            runs.read_results(run.folder)


def test_verdicts():
    def verdict(*args, **kwargs):
        return runs.grade('loss', 'nats', 1, *args, **kwargs)['verdict']

    assert verdict(1.0, 1.0) == 'pass'
    assert verdict(1.1, 1.0) == 'falls short'
    assert verdict(0.9, 1.0, passes=False) == 'falls short'
    assert verdict(1.1, 1.0, passes=True) == 'pass'
    assert verdict(None, 1.0) == 'not reached'
    assert verdict(0.9, 1.0, comparable=False) == 'not comparable'


def test_graded_table_is_aligned():
    rows = [runs.grade('loss', 'nats', 1, None, 100.6), runs.grade('a longer quantity', 'bits/dim', 1000, 1.25, 2.0)]
    assert runs.graded_table(rows, 'epoch').splitlines() == [
        'quantity           unit      at epoch  this run  reference  verdict',
        'loss               nats             1         -    100.600  not reached',
        'a longer quantity  bits/dim     1,000     1.250      2.000  pass']
