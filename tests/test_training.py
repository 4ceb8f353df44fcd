import argparse
import json
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import training
from datasets import DataError
from training import UserError

CPU = torch.device('cpu')


def make_run(folder, **settings):
    return training.Run(folder, argparse.Namespace(**settings), CPU)


@pytest.mark.parametrize('text', ['0', '-1', '1.5', 'ten', '', 'nan', 'inf'])
def test_numbers_out_of_bounds(text):
    with pytest.raises(argparse.ArgumentTypeError, match='whole number, at least 1'):
        training.number(int, at_least=1)(text)
    if text != '1.5':
        with pytest.raises(argparse.ArgumentTypeError, match='number, above 0 and below 1'):
            training.number(float, above=0, below=1)(text)


def test_numbers_within_bounds():
    assert training.number(int, at_least=1)('1') == 1
    assert training.number(float, at_least=0, at_most=1)('1') == 1.0


def test_a_run_folder_is_never_written_over(tmp_path):
    runs = [make_run(tmp_path / 'a' / 'run') for _ in range(3)]
    assert [run.folder.name for run in runs] == ['run', 'run-2', 'run-3']
    (tmp_path / 'notes').mkdir()
    (tmp_path / 'notes' / 'mine.txt').write_text('mine')
    assert make_run(tmp_path / 'notes').folder.name == 'notes-2'
    (tmp_path / 'empty').mkdir()
    assert make_run(tmp_path / 'empty').folder.name == 'empty'


def test_runs_started_together_get_a_folder_each(tmp_path, monkeypatch):
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: training._claim_folder(tmp_path / 'run'), range(24)))
    assert len(set(folders)) == 24
    # The worst moment: each run sees an empty folder, because the others have not written to it yet.
    monkeypatch.setattr(Path, 'iterdir', lambda _: iter(()))
    assert [training._claim_folder(tmp_path / 'race').name for _ in range(3)] == ['race', 'race-2', 'race-3']


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
    run.log(epoch=1, loss=2.5)
    run.log(epoch=2, loss=1.5)
    for bad in (math.nan, math.inf):
        with pytest.raises(UserError, match='loss is not finite at epoch 3'):
            run.log(epoch=3, loss=bad)
    lines = (run.folder / 'metrics.jsonl').read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{'epoch': 1, 'loss': 2.5}, {'epoch': 2, 'loss': 1.5}]


def test_a_checkpoint_is_whole_or_not_written(tmp_path, monkeypatch):
    run = make_run(tmp_path / 'run')
    run.save_checkpoint(last=True, epoch=1, weights=torch.arange(3))

    def fail_halfway(state, file):
        file.write(b'half')
        raise OSError('disk full')

    monkeypatch.setattr(torch, 'save', fail_halfway)
    with pytest.raises(OSError):
        run.save_checkpoint(last=True, epoch=2, weights=torch.arange(3))
    _, checkpoint = training.load_run(run.folder, run.script, CPU)
    assert checkpoint['epoch'] == 1 and torch.equal(checkpoint['weights'], torch.arange(3))


def test_checkpoints_cost_about_two_percent(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(training.time, 'perf_counter', lambda: clock[0])
    monkeypatch.setattr(training.os, 'fsync', lambda _: clock.__setitem__(0, clock[0] + 2.0))
    run, written = make_run(tmp_path / 'run'), 0
    for epoch in range(1000):
        clock[0] += 1.0
        before = clock[0]
        run.save_checkpoint(last=False, epoch=epoch)
        written += clock[0] != before
    assert 0.01 < 2.0 * written / clock[0] <= 0.025


def test_runs_that_cannot_be_loaded(tmp_path):
    with pytest.raises(UserError, match='is not a run folder'):
        training.load_run(tmp_path / 'absent', 'a.py', CPU)
    run = make_run(tmp_path / 'run')
    with pytest.raises(UserError, match='not of another.py'):
        training.load_run(run.folder, 'another.py', CPU)
    with pytest.raises(UserError, match='checkpoint.pt is missing'):
        training.load_run(run.folder, run.script, CPU)
    run.save_checkpoint(last=True, weights=torch.arange(1000))
    path = run.folder / 'checkpoint.pt'
    whole = path.read_bytes()
    for content in (b'', b'text', whole[:100], whole[:len(whole) // 2], whole[:-1]):
        path.write_bytes(content)
        with pytest.raises(UserError, match='checkpoint.pt is missing, truncated or foreign'):
            training.load_run(run.folder, run.script, CPU)


@pytest.mark.parametrize('every', [1, 3])
def test_weight_average_by_hand(every):
    model = torch.nn.Linear(1, 1, bias=False)
    values = [1.0, 4.0, -2.0, 8.0, 0.5, 3.0, 7.0, 7.0, -1.0]
    with torch.no_grad():
        model.weight.fill_(5.0)
    average, expected = training.WeightAverage(model, decay=0.6, every=every), 5.0
    for step, value in enumerate(values, start=1):
        with torch.no_grad():
            model.weight.fill_(value)
        average.update(model)
        if step % every == 0:
            decay = min(0.6, (1 + step) / (10 + step)) ** every
            expected = decay * expected + (1 - decay) * value
        assert average.model.weight.item() == pytest.approx(expected, rel=1e-6)
    assert model.weight.item() == values[-1]


def test_no_weight_average():
    model = torch.nn.Linear(1, 1)
    average = training.WeightAverage(model, decay=0.0)
    average.update(model)
    assert average.model is model


def test_separate_random_numbers_leave_the_stream_alone():
    torch.manual_seed(1)
    expected = torch.rand(4)
    torch.manual_seed(1)
    first = torch.rand(2)
    with training.separate_random_numbers(7, CPU):
        inside = torch.rand(2)
    assert torch.equal(torch.cat([first, torch.rand(2)]), expected)
    with training.separate_random_numbers(7, CPU):
        assert torch.equal(torch.rand(2), inside)


def test_random_state_round_trip():
    state = training.random_state(CPU)
    expected = torch.rand(3)
    training.set_random_state(state)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a CUDA device')
def test_an_absent_device_is_refused():
    with pytest.raises(UserError, match='--device cuda: .* use --device'):
        training.select_device('cuda')


def test_verdicts():
    def verdict(*args, **kwargs):
        return training.grade('loss', 'nats', 1, *args, **kwargs)['verdict']

    assert verdict(1.0, 1.0) == 'pass'
    assert verdict(1.1, 1.0) == 'falls short'
    assert verdict(0.9, 1.0, passes=False) == 'falls short'
    assert verdict(1.1, 1.0, passes=True) == 'pass'
    assert verdict(None, 1.0) == 'not reached'
    assert verdict(0.9, 1.0, comparable=False) == 'not comparable'


def test_graded_table_is_aligned():
    rows = [training.grade('loss', 'nats', 1, None, 100.6), training.grade('a longer quantity', 'bits/dim', 1000, 1.25, 2.0)]
    assert training.graded_table(rows, 'epoch').splitlines() == [
        'quantity           unit      at epoch  this run  reference  verdict',
        'loss               nats             1         -    100.600  not reached',
        'a longer quantity  bits/dim     1,000     1.250      2.000  pass']


@pytest.mark.parametrize('error, message, status', [
    (UserError('use another'), 'script.py: error: use another\n', 1),
    (DataError('no file'), 'script.py: error: no file\n', 1),
    (OSError(28, 'No space left on device', 'runs/x'), 'script.py: error: runs/x: No space left on device\n', 1),
    (KeyboardInterrupt(), 'script.py: interrupted\n', 130),
])
def test_a_script_ends_in_one_line(monkeypatch, capsys, error, message, status):
    def main(args):
        raise error

    monkeypatch.setattr(sys, 'argv', ['folder/script.py'])
    with pytest.raises(SystemExit) as exit:
        training.run_script(main, None)
    assert exit.value.code == status
    assert capsys.readouterr().err == message
