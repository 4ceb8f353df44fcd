"""Steps: sums over batches, and on CUDA graphs that train as the step itself does."""

import contextlib
import itertools
import types

import pytest
import torch

from harness import devices, steps
from harness.average import WeightAverage
from harness.steps import CapturedStep, adam, captured, mean_over_images

CPU = torch.device("cpu")


class CapturedOnCpu(CapturedStep):
    """Its graph does on the CPU what a CUDA graph does: the captured work, on the same tensors.

    A capture on CUDA executes nothing. Here it does, and that is undone with the warm-up.
    """

    def _capture(self, input):
        graph, input, output = super()._capture(input)
        graph.replay = lambda: output.copy_(self.step(input))
        return graph, input, output


@pytest.fixture
def fake_cuda(monkeypatch):
    monkeypatch.setattr(devices, "no_graph", False)
    stream = types.SimpleNamespace(wait_stream=lambda other: None)
    fakes = {
        "CUDAGraph": types.SimpleNamespace,
        "graph": contextlib.nullcontext,
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda stream: contextlib.nullcontext(),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)


def train_small(capture, resumed, fails_at=()):
    """A small training with batch norm, noise, Adam and a short last batch: all that it leaves.

    Calls of the step whose numbers are in `fails_at` raise in its middle.
    """
    calls = itertools.count(1)
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)

    def step(batch):
        loss = (model(batch + torch.randn_like(batch)) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        model.requires_grad_(False)
        if next(calls) in fails_at:
            raise RuntimeError("out of memory\nand more")
        optimizer.step()
        model.requires_grad_(True)
        return loss.detach()

    batches = torch.rand(22, 5).split(4)
    losses = [step(batch) for batch in batches] if resumed else []
    step = CapturedOnCpu(step, [model, optimizer]) if capture else step
    losses += [step(batch) for _ in range(3) for batch in batches]
    moments = optimizer.state_dict()["state"]
    return torch.stack(losses), model.state_dict(), moments, torch.get_rng_state()


@pytest.mark.parametrize("resumed", [False, True])
def test_a_captured_step_trains_as_the_step_does(fake_cuda, resumed):
    assert_same(train_small(False, resumed), train_small(True, resumed))


def assert_same(expected, found):
    assert torch.equal(expected[0], found[0])
    for name in expected[1]:
        assert torch.equal(expected[1][name], found[1][name])
    for n in expected[2]:
        assert all(torch.equal(expected[2][n][key], found[2][n][key]) for key in expected[2][n])
    assert torch.equal(expected[3], found[3])


# Of the full batches call 1 is a warm-up and 4 the capture; of the short one 10 and 13.
@pytest.mark.parametrize("call", [1, 2, 4, 10, 12, 13])
def test_a_capture_that_fails_leaves_no_trace_but_a_warning(fake_cuda, capsys, call):
    assert_same(train_small(False, False), train_small(True, False, fails_at=[call]))
    assert devices.no_graph
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["warning: no CUDA graphs, so steps are slower: out of memory"]


def test_a_step_that_fails_without_a_graph_too_raises(fake_cuda):
    with pytest.raises(RuntimeError, match="out of memory"):
        train_small(True, False, fails_at=range(1, 99))


def test_only_training_on_cuda_multiplies_in_tf32(monkeypatch):
    def step(model, *_):
        return torch.get_float32_matmul_precision()

    monkeypatch.setattr(devices, "no_graph", True)
    model = torch.nn.Linear(1, 1)
    optimizer = adam(model, 0.1)
    assert captured(step, model, (optimizer,))(None) == "highest"
    monkeypatch.setattr(steps, "device_of", lambda module: torch.device("cuda"))
    assert captured(step, model, (optimizer,))(None) == "high"
    assert captured(step, model)(None) == torch.get_float32_matmul_precision() == "highest"


def test_a_graph_of_a_training_step_is_captured_in_tf32(fake_cuda, monkeypatch):
    monkeypatch.setattr(steps, "device_of", lambda module: torch.device("cuda"))
    monkeypatch.setattr(steps, "RandomState", lambda device: devices.RandomState(CPU))
    seen = []

    def step(*arguments):
        seen.append(torch.get_float32_matmul_precision())
        return arguments[-1].sum()

    model = torch.nn.Linear(1, 1)
    for arguments, precision in (((model, adam(model, 0.1)), "high"), ((model,), "highest")):
        captured(step, *arguments)._capture(torch.ones(1))
        assert set(seen) == {precision}
        seen.clear()


def test_averages_of_the_weights_are_those_of_eager_training(fake_cuda):
    def train(make):
        torch.manual_seed(0)
        model = torch.nn.Linear(5, 1)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        average = WeightAverage(model, decay=0.99, every=3)

        def step(batch):
            optimizer.zero_grad()
            loss = model(batch).square().mean()
            loss.backward()
            optimizer.step()
            return loss.detach()

        step, weights = make(step, model, optimizer), []
        for batches in 2 * [torch.rand(22, 5).split(4)]:  # two epochs
            for batch in batches:
                mean_over_images(step, [batch], average.update)
                weights.append(average.model.weight.detach().clone())
        return torch.stack(weights)

    expected = train(lambda step, *parts: step)
    assert torch.equal(expected, train(lambda step, *parts: CapturedOnCpu(step, list(parts))))
    # The weights in training before the first update; then every third step changes the average.
    assert len(expected.unique(dim=0)) == 2 + 12 // 3


def test_a_graph_is_made_once_for_each_shape(fake_cuda):
    calls = []

    def step(batch):
        calls.append(len(batch))
        return batch.sum()

    step = CapturedOnCpu(step, [])
    for _ in range(2):
        assert [step(batch).item() for batch in torch.ones(22, 5).split(4)] == 5 * [20] + [10]
    assert set(step.graphs) == {(4, 5), (2, 5)}
    # Warm-up and capture, then one replay for each batch.
    n_capture = CapturedStep.N_WARM_UP + 1
    assert (calls.count(4), calls.count(2)) == (n_capture + 10, n_capture + 2)


def test_results_outlive_the_next_replay(fake_cuda):
    step = CapturedOnCpu(lambda batch: batch.sum(), [])
    results = [step(batch) for batch in torch.arange(6.0).split(2)]
    assert [result.item() for result in results] == [1, 5, 9]


def test_a_batch_stays_as_it_was_and_may_change_after_the_step(fake_cuda):
    step = CapturedOnCpu(lambda batch: batch.mul_(2).sum(), [])
    batches = torch.arange(6.0).split(2)
    assert step(batches[0]).item() == 2
    assert torch.equal(batches[0], torch.tensor([0.0, 1.0]))


def test_on_the_cpu_a_step_is_called_as_it_is():
    model, calls = torch.nn.Linear(1, 1), []

    def step(model, labels, batch):
        calls.append((model, labels))
        return batch.sum()

    assert captured(step, model, (0.9, 0.1))(torch.ones(3)).item() == 3
    assert calls == [(model, (0.9, 0.1))]
    assert not adam(model, 0.1).defaults["capturable"]


@pytest.mark.parametrize(
    "device, no_graph, expected",
    [("cpu", False, False), ("cuda", True, False), ("cuda", False, True)],
)
def test_steps_are_captured_on_cuda_unless_told_otherwise(monkeypatch, device, no_graph, expected):
    monkeypatch.setattr(devices, "no_graph", no_graph)
    monkeypatch.setattr(steps, "device_of", lambda module: torch.device(device))
    model = torch.nn.Linear(1, 1)
    optimizer = adam(model, 0.1)
    assert optimizer.defaults["capturable"] == expected and optimizer.defaults["fused"]
    step = captured(lambda *arguments: None, model, (optimizer,), 0.5)
    assert isinstance(step, CapturedStep) == expected
    if expected:
        assert step.parts == [model, optimizer]


def test_the_graphs_of_a_step_are_kept_from_epoch_to_epoch(monkeypatch):
    monkeypatch.setattr(steps, "_captures", lambda device: True)
    model, other = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)

    def step(model, batch):
        return batch.sum()

    assert captured(step, model) is captured(step, model)
    assert captured(step, model) is not captured(step, other)


def test_averages_weigh_every_image_the_same():
    values = torch.arange(24.0).view(12, 2)
    counted = []

    def total(batch):
        return batch.sum(dim=0)

    mean = mean_over_images(total, values.split(5), lambda: counted.append(1))
    assert torch.equal(mean, values.double().mean(dim=0)) and mean.dtype == torch.float64
    assert len(counted) == 3


def test_sums_are_added_in_double_precision():
    values = torch.tensor([2.0**24, 1.0, 1.0, 1.0])
    assert 4 * mean_over_images(torch.sum, values.split(1)).item() == 2**24 + 3
