import argparse
import contextlib
import math
import signal
import sys
import types

import pytest
import torch

import training
from datasets import DataError
from runs import UserError

CPU = torch.device('cpu')


@pytest.mark.parametrize('text', ['0', '-1', '1.5', 'ten', '', 'nan', 'inf'])
def test_numbers_out_of_bounds(text):
    with pytest.raises(argparse.ArgumentTypeError, match='whole number, at least 1'):
        training.number(int, at_least=1)(text)
    if text != '1.5':
        with pytest.raises(argparse.ArgumentTypeError, match='number, above 0 and below 1'):
            training.number(float, above=0, below=1)(text)


def test_numbers_within_bounds():
    assert [training.none_or_hundreds(text) for text in ('0', '100')] == [0, 100]
    with pytest.raises(argparse.ArgumentTypeError, match='0 or at least 100'):
        training.none_or_hundreds('99')
    assert training.number(int, at_least=1)('1') == 1
    assert training.number(float, at_least=0, at_most=1)('1') == 1.0


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


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a CUDA device')
def test_an_absent_device_is_refused():
    with pytest.raises(UserError, match='--device cuda: .* use --device'):
        training.select_device('cuda')


def test_other_runtime_errors_are_bugs_and_keep_their_traceback():
    def main(args):
        raise RuntimeError('a bug')

    with pytest.raises(RuntimeError, match='a bug'):
        training.run_script(main, lambda: None)


@pytest.mark.parametrize('error, message, status', [
    (UserError('use another'), 'script.py: error: use another\n', 1),
    (DataError('no file'), 'script.py: error: no file\n', 1),
    (OSError(28, 'No space left on device', 'runs/x'), 'script.py: error: runs/x: No space left on device\n', 1),
    (MemoryError(), 'script.py: error: out of memory: smaller settings need less\n', 1),
    (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 TB"),
     'script.py: error: out of memory: smaller settings need less\n', 1),
    (training.Interrupted(signal.SIGINT), 'script.py: interrupted\n', 130),
    (training.Interrupted(signal.SIGTERM), 'script.py: interrupted\n', 143),
])
def test_a_script_ends_in_one_line(monkeypatch, capsys, error, message, status):
    def main(args):
        raise error

    monkeypatch.setattr(sys, 'argv', ['folder/script.py'])
    with pytest.raises(SystemExit) as exit:
        training.run_script(main, lambda: None)
    assert exit.value.code == status
    assert capsys.readouterr().err == message



def test_random_state_round_trip():
    random = training.RandomState(CPU)
    state = random.state_dict()
    expected = torch.rand(3)
    random.load_state_dict(state | {'cuda': None})  # of a run on another device
    assert torch.equal(torch.rand(3), expected)


def test_weight_average_round_trip():
    torch.manual_seed(0)
    model, averages = torch.nn.Linear(2, 2), []
    for _ in range(2):
        averages.append(training.WeightAverage(model, 0.9, every=2))
    for step in range(1, 6):
        with torch.no_grad():
            model.weight.add_(step)
        averages[0].update(model)
        if step == 3:
            averages[1].load_state_dict(averages[0].state_dict())
        elif step > 3:
            averages[1].update(model)
    assert averages[1].n_steps == 5
    assert torch.equal(averages[0].model.weight, averages[1].model.weight)


class CapturedOnCpu(training.CapturedSteps):
    """Its graph does on the CPU what a CUDA graph does: the captured work once more, on the same tensors.

    Capturing itself changes nothing on CUDA; that it does so here is undone with the warm-up.
    """

    def _capture(self, input):
        step, batches = self.step, []
        self.step = lambda batch: batches.append(batch) or step(batch)
        graph, input, output = super()._capture(input)
        self.step = step
        graph.replay = lambda: output.copy_(torch.stack([step(batch) for batch in batches[self.N_WARM_UP:]]))
        return graph, input, output


@pytest.fixture
def fake_cuda(monkeypatch):
    stream = types.SimpleNamespace(wait_stream=lambda other: None)
    for name, fake in {'CUDAGraph': types.SimpleNamespace, 'graph': contextlib.nullcontext, 'Stream': lambda: stream,
                       'current_stream': lambda: stream, 'stream': contextlib.nullcontext}.items():
        monkeypatch.setattr(torch.cuda, name, fake)


def train_small(make_steps, resumed):
    """Losses of a small training with batch norm, noise, Adam and a short last batch, and all that it leaves."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)

    def step(batch):
        loss = (model(batch + torch.randn_like(batch)) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    data = torch.rand(22, 5)
    losses = [step(batch) for batch in data.split(4)] if resumed else []
    steps = make_steps(step, (model, optimizer))
    for _ in range(3):
        losses += [loss for _, loss in steps(data.split(4))]
    return torch.stack(losses), model.state_dict(), optimizer.state_dict()['state'], torch.get_rng_state()


@pytest.mark.parametrize('resumed', [False, True])
@pytest.mark.parametrize('make_steps', [lambda step, parts: training.Steps(step, 3),
                                        lambda step, parts: CapturedOnCpu(step, 1, parts),
                                        lambda step, parts: CapturedOnCpu(step, 3, parts)])
def test_steps_by_group_and_captured_train_as_the_step_does(fake_cuda, make_steps, resumed):
    one_by_one, others = train_small(lambda step, parts: training.Steps(step), resumed), train_small(make_steps, resumed)
    assert torch.equal(one_by_one[0], others[0])
    for name in one_by_one[1]:
        assert torch.equal(one_by_one[1][name], others[1][name])
    for n in one_by_one[2]:
        assert all(torch.equal(one_by_one[2][n][key], others[2][n][key]) for key in one_by_one[2][n])
    assert torch.equal(one_by_one[3], others[3])


@pytest.mark.parametrize('n, order', [(1, 'd0 s0 u0 d1 s1 u1 d2 s2 u2 d3 s3 u3'), (2, 'd0 d1 s0 s1 u0 u1 d2 d3 s2 u2 s3 u3')])
def test_batches_are_drawn_when_their_group_is_due(n, order):
    """Drawn, stepped on, used; that a batch is of another shape, and of the next group, shows only when it has been drawn."""
    events = []

    def batches():
        for index, length in enumerate((4, 4, 4, 3)):
            events.append(f'd{index}')
            yield torch.full((length,), index)

    def step(batch):
        events.append(f's{batch[0]}')
        return 10 * batch[0]

    for batch, result in training.Steps(step, n)(batches()):
        assert result == 10 * batch[0]
        events.append(f'u{batch[0]}')
    assert events == order.split()


def test_graphs_are_made_once_a_shape(fake_cuda):
    steps = CapturedOnCpu(lambda batch: batch.sum(), 3, ())
    for _ in range(2):
        assert [total.item() for _, total in steps(torch.ones(22, 5).split(4))] == 5 * [20] + [10]
    assert set(steps.captured) == {(3, 4, 5), (2, 4, 5), (1, 2, 5)}


def test_results_outlive_the_next_replay(fake_cuda):
    steps = CapturedOnCpu(lambda batch: batch.sum(), 1, ())
    assert [total.item() for total in list(zip(*steps(torch.arange(6.).split(2))))[1]] == [1, 5, 9]


def test_steps_are_captured_on_cuda_only():
    step, cuda = object(), torch.device('cuda')
    for device, no_graph, kind, n in ((CPU, False, training.Steps, 1), (cuda, True, training.Steps, training.STEPS_PER_LAUNCH),
                                      (cuda, False, training.CapturedSteps, training.STEPS_PER_LAUNCH)):
        steps = training.steps_on(device, step, no_graph=no_graph)
        assert (type(steps), steps.n) == (kind, n)
