"""Steps: sums over batches, and on CUDA graphs that train as the step itself does."""

import contextlib
import types

import pytest
import torch

from harness import devices, steps
from harness.steps import CapturedStep, adam, captured, mean_over_images


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
    stream = types.SimpleNamespace(wait_stream=lambda other: None)
    fakes = {
        "CUDAGraph": types.SimpleNamespace,
        "graph": contextlib.nullcontext,
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": contextlib.nullcontext,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)


def train_small(capture, resumed):
    """A small training with batch norm, noise, Adam and a short last batch: all that it leaves."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)

    def step(batch):
        loss = (model(batch + torch.randn_like(batch)) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    batches = torch.rand(22, 5).split(4)
    losses = [step(batch) for batch in batches] if resumed else []
    step = CapturedOnCpu(step, [model, optimizer]) if capture else step
    losses += [step(batch) for _ in range(3) for batch in batches]
    moments = optimizer.state_dict()["state"]
    return torch.stack(losses), model.state_dict(), moments, torch.get_rng_state()


@pytest.mark.parametrize("resumed", [False, True])
def test_a_captured_step_trains_as_the_step_does(fake_cuda, resumed):
    expected, found = train_small(False, resumed), train_small(True, resumed)
    assert torch.equal(expected[0], found[0])
    for name in expected[1]:
        assert torch.equal(expected[1][name], found[1][name])
    for n in expected[2]:
        assert all(torch.equal(expected[2][n][key], found[2][n][key]) for key in expected[2][n])
    assert torch.equal(expected[3], found[3])


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
