"""Steps: sums over batches, and captured steps, which are proved before they are trusted."""

import contextlib
import functools
import itertools
import types
from unittest import mock

import pytest
import torch

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
from datasets import mnist
from harness import devices, steps
from harness.average import WeightAverage
from harness.steps import CapturedStep, adam, captured

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def graphs(monkeypatch):
    monkeypatch.setattr(steps, "use_graphs", True)


class ActedCapture(CapturedStep):
    """Does on a CPU what a capture on CUDA does; `mistake` names what its graph gets wrong."""

    def __init__(self, step, parts, mistake=None):
        super().__init__(step, parts)
        self.mistake = mistake
        self.optimizers = [part for part in parts if isinstance(part, torch.optim.Optimizer)]

    def _capture(self, input):
        for _ in range(self.N_WARM_UP):
            self.step(input)
        random = torch.get_rng_state()

        def replay(batch):
            if self.mistake != "reads a stale batch":
                input.copy_(batch)
            before = torch.get_rng_state()
            if self.mistake == "has the random numbers of the capture":
                torch.set_rng_state(random)
            with contextlib.ExitStack() as stack:
                for n, optimizer in enumerate(self.optimizers):
                    if self.mistake in ("skips the optimisers", f"skips optimiser {n}"):
                        stack.enter_context(mock.patch.object(optimizer, "step"))
                output = self.step(input)
            if self.mistake == "repeats its random numbers":
                torch.set_rng_state(before)
            return output.clone()

        return replay


def small():
    """(modules and optimiser, step, batches): batch norm, noise, a short last batch."""
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

    return [model, optimizer], step, torch.rand(22, 5).split(4)


@functools.cache
def digits():
    return mnist()[1].images[:56].float().split(16)


def training_of(name):
    """(parts, step, batches) of one script on digits, the last batch shorter."""
    torch.manual_seed(0)
    grey = digits()
    if name == "gan":
        networks = gan.Generator(latent_dim=5), gan.Discriminator()
        optimizers = tuple(torch.optim.Adam(network.parameters(), lr=2e-4) for network in networks)
        arguments = (*networks, optimizers, (0.9, 0.0))
        return [*networks, *optimizers], bound(gan, arguments), [b / 127.5 - 1 for b in grey]
    if name == "vae":
        model = vae.VAE(hidden_dim=50, z_dim=5)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        return [model, optimizer], bound(vae, (model, optimizer)), [(b > 127).float() for b in grey]
    model = nf.Model([784], n_flows=1, n_hidden=32)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return [model, optimizer], bound(nf, (model, optimizer, 5.0)), grey


def bound(script, arguments):
    return lambda batch: script.train_step(*arguments, batch)


TRAININGS = {"small": small}
TRAININGS |= {name: (lambda name=name: training_of(name)) for name in ("vae", "nf", "gan")}


def state_of(parts):
    """Everything in modules, optimisers and random numbers, flat: {name: tensor or value}."""
    flat = {"random": torch.get_rng_state()}
    for n, part in enumerate(parts):
        state = part.state_dict()
        if isinstance(part, torch.nn.Module):
            flat |= {(n, name): value.clone() for name, value in state.items()}
            flat |= {(n, name): p.requires_grad for name, p in part.named_parameters()} | flat
            continue
        for index, of_parameter in state["state"].items():
            flat |= {(n, index, name): value.clone() for name, value in of_parameter.items()}
        flat[n, "groups"] = state["param_groups"]
    return flat


def assert_same(expected, found):
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, found[name]), name
        else:
            assert value == found[name], name


def train(name, mistake, n_eager, n=6):
    """Results and state after `n` steps; those after the first `n_eager` from a graph."""
    parts, step, batches = TRAININGS[name]()
    torch.manual_seed(1)
    batches = list(itertools.islice(itertools.cycle(batches), n))
    results = [step(batch) for batch in batches[:n_eager]]
    if n_eager < n:
        step = ActedCapture(step, parts, mistake)
    results += [step(batch) for batch in batches[n_eager:]]
    return {"results": torch.stack(results)} | state_of(parts)


@functools.cache
def train_eagerly(name):
    return train(name, None, n_eager=6)


@pytest.mark.parametrize("n_eager", [0, 3])  # a new training, and one that has been resumed
@pytest.mark.parametrize("name", TRAININGS)
def test_a_right_graph_is_trusted_and_its_training_is_the_eager_one_s(name, n_eager, capsys):
    assert_same(train_eagerly(name), train(name, None, n_eager))
    assert steps.use_graphs and capsys.readouterr().err == ""


@pytest.mark.parametrize("n_eager", [0, 3])
@pytest.mark.parametrize("name", TRAININGS)
def test_the_proof_leaves_the_state_as_it_was(name, n_eager):
    parts, step, batches = TRAININGS[name]()
    for batch in batches[:n_eager]:
        step(batch)
    before = state_of(parts)
    captured_step = ActedCapture(step, parts)
    captured_step._proved(batches[0], steps._State(devices.RandomState(CPU), parts))
    after = state_of(parts)
    for name in after.keys() - before.keys():  # what a new optimiser starts from
        assert (after.pop(name) == 0).all()
    assert_same(before, after)


MISTAKES = (
    "reads a stale batch",
    "has the random numbers of the capture",
    "repeats its random numbers",
    "skips the optimisers",
    "skips optimiser 0",
)


@pytest.mark.parametrize("n_eager", [0, 3])
@pytest.mark.parametrize(
    "name, mistake", [*itertools.product(TRAININGS, MISTAKES), ("gan", "skips optimiser 1")]
)
def test_a_wrong_graph_ends_in_one_line_and_an_eager_training(name, mistake, n_eager, capsys):
    parts, step, batches = TRAININGS[name]()
    for batch in batches[:n_eager]:
        step(batch)
    before = state_of(parts)
    seen = []

    def watched(batch):
        if not steps.use_graphs and not seen:
            seen.append(state_of(parts))
        return step(batch)

    ActedCapture(watched, parts, mistake)(batches[0])
    assert_same(before, seen[0])  # in the moment at which the eager training goes on
    assert not steps.use_graphs
    (line,) = capsys.readouterr().err.strip().splitlines()
    start = "warning: no CUDA graphs, so steps are slower: a replayed step leaves another "
    assert line.startswith(start)

    steps.use_graphs = True
    assert_same(train_eagerly(name), train(name, mistake, n_eager))


def test_what_differs_is_named(capsys):
    """Each kind of difference is enough, however small the others are."""
    for name, change in (
        ("result", lambda parts, output: output.mul_(1.001)),
        ("random state", lambda parts, output: torch.rand(1)),
        ("change of weights", lambda parts, output: parts[0][0].weight.add_(0.1)),
        ("change of buffers", lambda parts, output: parts[0][1].running_var.add_(0.1)),
        ("optimiser state", lambda parts, output: scale_moments(parts[1])),
    ):
        steps.use_graphs = True
        parts, step, batches = small()

        class Changing(ActedCapture):
            def _capture(self, input, parts=parts, change=change):
                replay = super()._capture(input)

                def changed(batch):
                    output = replay(batch)
                    with torch.no_grad():
                        change(parts, output)
                    return output

                return changed

        Changing(step, parts)(batches[0])
        assert f"leaves another {name} than" in capsys.readouterr().err


def scale_moments(optimizer):
    for state in optimizer.state.values():
        state["exp_avg"].mul_(1.1)


@pytest.mark.parametrize("name", ["vae", "nf", "gan"])
def test_the_tolerances_allow_rounding(name, monkeypatch):
    """Ten times over: weights that differ by an epsilon stand for sums in another order."""
    parts, step, batches = TRAININGS[name]()

    class Rounding(ActedCapture):
        def _capture(self, input):
            replay = super()._capture(input)

            def rounded(batch):
                generator = torch.Generator().manual_seed(0)
                for module in parts:
                    if isinstance(module, torch.nn.Module):
                        for parameter in module.parameters():
                            signs = torch.randint(-1, 2, parameter.shape, generator=generator)
                            parameter.data *= 1 + torch.finfo(torch.float32).eps * signs
                return replay(batch)

            return rounded

    monkeypatch.setattr(steps, "TOLERANCES", {k: v / 10 for k, v in steps.TOLERANCES.items()})
    Rounding(step, parts)(batches[0])
    assert steps.use_graphs


def test_an_optimiser_that_does_not_start_from_zeros_is_not_trusted(capsys):
    """NAdam's products of momenta start from 1, and a graph's tensors are reset to 0."""
    results = []
    for capture in (False, True):
        parts, _, batches = small()
        model = parts[0]
        optimizer = torch.optim.NAdam(model.parameters(), lr=0.1)

        def step(batch, model=model, optimizer=optimizer):
            loss = model(batch).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.detach()

        step = ActedCapture(step, [model, optimizer]) if capture else step
        results.append(torch.stack([step(batch) for batch in batches]))
    assert torch.equal(*results) and "no CUDA graphs" in capsys.readouterr().err


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_order_of_the_parts_does_not_matter(order):
    parts, step, batches = small()
    ActedCapture(step, [parts[n] for n in order])(batches[0])
    assert steps.use_graphs


def test_a_batch_of_one_image_is_proved_too():
    parts, step, _ = small()
    model = parts[0]

    def train_on_one(batch):
        return step(torch.cat([batch, 2 * batch]))

    ActedCapture(train_on_one, parts, "reads a stale batch")(torch.rand(1, 5))
    assert not steps.use_graphs and model.training


# Call 1 of the step is the reference, 2 to 4 warm up, 5 is the proof; of the short batch 11 to 15.
@pytest.mark.parametrize("call", [1, 2, 4, 5, 11, 12, 15])
def test_a_capture_that_fails_leaves_no_trace_but_a_warning(call, capsys):
    def train_failing(fails_at):
        calls = itertools.count(1)
        parts, _, batches = small()
        model, optimizer = parts
        torch.manual_seed(1)

        def step(batch):
            loss = (model(batch + torch.randn_like(batch)) - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            model.requires_grad_(False)
            if next(calls) == fails_at:
                raise RuntimeError("out of memory\nand more")
            optimizer.step()
            model.requires_grad_(True)
            return loss.detach()

        run = ActedCapture(step, parts) if fails_at else step
        return {"results": torch.stack([run(b) for b in 2 * batches])} | state_of(parts)

    assert_same(train_failing(None), train_failing(call))
    assert not steps.use_graphs
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines == ["warning: no CUDA graphs, so steps are slower: out of memory"]


def test_a_step_that_fails_without_a_graph_too_raises():
    def step(batch):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        ActedCapture(step, [])(torch.ones(2))


def test_only_training_on_cuda_multiplies_in_tf32(monkeypatch):
    def step(model, *_):
        return torch.get_float32_matmul_precision()

    monkeypatch.setattr(steps, "use_graphs", False)
    model = torch.nn.Linear(1, 1)
    optimizer = adam(model, 0.1)
    assert captured(step, model, (optimizer,))(None) == "highest"
    monkeypatch.setattr(steps, "device_of", lambda module: torch.device("cuda"))
    assert captured(step, model, (optimizer,))(None) == "high"
    assert captured(step, model)(None) == torch.get_float32_matmul_precision() == "highest"


@pytest.fixture
def fake_cuda(monkeypatch):
    """Enough of `torch.cuda` for `_capture`; its graph is never replayed."""
    stream = types.SimpleNamespace(wait_stream=lambda other: None)
    for name, fake in {
        "CUDAGraph": types.SimpleNamespace,
        "graph": contextlib.nullcontext,
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda stream: contextlib.nullcontext(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)


def test_a_graph_of_a_training_step_is_captured_in_tf32(fake_cuda, monkeypatch):
    model = torch.nn.Linear(1, 1)
    optimizer = adam(model, 0.1)
    monkeypatch.setattr(steps, "device_of", lambda module: torch.device("cuda"))
    seen = []

    def step(*arguments):
        seen.append(torch.get_float32_matmul_precision())
        return arguments[-1].sum()

    for arguments, precision in (((model, optimizer), "high"), ((model,), "highest")):
        captured(step, *arguments)._capture(torch.ones(1))
        assert set(seen) == {precision} and len(seen) == CapturedStep.N_WARM_UP + 1
        seen.clear()


def test_averages_of_the_weights_are_those_of_eager_training():
    def train(capture):
        parts, step, batches = small()
        average = WeightAverage(parts[0], decay=0.99, every=3)
        step, weights = ActedCapture(step, parts) if capture else step, []
        for batch in 2 * batches:
            step(batch)
            average.update()
            weights.append(average.model[0].weight.detach().clone())
        return torch.stack(weights)

    expected = train(False)
    assert torch.equal(expected, train(True))
    # The weights in training before the first update; then every third step changes the average.
    assert len(expected.unique(dim=0)) == 2 + 12 // 3


def test_a_graph_is_made_once_for_each_shape():
    calls = []

    def step(batch):
        calls.append(len(batch))
        return batch.sum()

    step = ActedCapture(step, [])
    for _ in range(2):
        assert [step(batch).item() for batch in torch.ones(22, 5).split(4)] == 5 * [20] + [10]
    assert set(step.graphs) == {(4, 5), (2, 5)}
    # The step itself, the warm-up and the proof; then one replay for each batch.
    n_before = 1 + CapturedStep.N_WARM_UP + 1
    assert (calls.count(4), calls.count(2)) == (n_before + 10, n_before + 2)


def test_a_batch_stays_as_it_was():
    step = ActedCapture(lambda batch: batch.clone().mul_(2).sum(), [])
    batches = torch.arange(6.0).split(2)
    assert [step(batch).item() for batch in batches] == [2, 10, 18]
    assert torch.equal(batches[0], torch.tensor([0.0, 1.0]))


def test_on_the_cpu_a_step_is_called_as_it_is():
    model, calls = torch.nn.Linear(1, 1), []

    def step(model, labels, batch):
        calls.append((model, labels))
        return batch.sum()

    assert captured(step, model, (0.9, 0.1))(torch.ones(3)).item() == 3
    assert calls == [(model, (0.9, 0.1))]
    optimizer = adam(model, 0.1)
    assert not optimizer.defaults["capturable"] and optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize(
    "device, graphs, expected",
    [("cpu", True, False), ("cuda", False, False), ("cuda", True, True)],
)
def test_steps_are_captured_on_cuda_unless_told_otherwise(monkeypatch, device, graphs, expected):
    monkeypatch.setattr(steps, "use_graphs", graphs)
    monkeypatch.setattr(steps, "device_of", lambda module: torch.device(device))
    captures = steps._captures
    monkeypatch.setattr(steps, "_captures", lambda _: captures(torch.device(device)))
    as_tensor = torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda value, device: as_tensor(value))
    model = torch.nn.Linear(1, 1)
    optimizer = adam(model, 0.1)
    assert optimizer.defaults["capturable"] == expected and optimizer.defaults["fused"]
    # A graph reads the learning rate of the moment from a tensor.
    assert isinstance(optimizer.param_groups[0]["lr"], torch.Tensor) == expected
    step = captured(lambda *arguments: None, model, (optimizer,), 0.5)
    assert isinstance(step, CapturedStep) == expected
    if expected:
        assert step.parts == [model, optimizer]


def test_the_graphs_of_a_step_are_kept_from_epoch_to_epoch_and_few_of_them(monkeypatch):
    monkeypatch.setattr(steps, "_captures", lambda device: True)

    def step(model, batch):
        return batch.sum()

    models = [torch.nn.Linear(1, 1) for _ in range(6)]
    assert captured(step, models[0]) is captured(step, models[0])
    first = captured(step, models[0])
    assert captured(step, models[1]) is not first
    for model in models:
        captured(step, model)
    assert captured(step, models[0]) is not first  # which has been dropped
