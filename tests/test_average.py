"""The moving average of the weights."""

import pytest
import torch

from harness.average import WeightAverage


def filled(value):
    model = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(value)
    return model


@pytest.mark.parametrize("every", [1, 3])
def test_the_average_is_the_docstring_s_by_hand(every):
    model, expected = filled(5.0), 5.0
    average = WeightAverage(model, decay=0.6, every=every)
    assert average.model is model
    for step, value in enumerate([1.0, 4.0, -2.0, 8.0, 0.5, 3.0, 7.0, 7.0, -1.0], start=1):
        with torch.no_grad():
            model.weight.fill_(value)
        average.update()
        if step % every == 0:
            decay = min(0.6, (1 + step) / (10 + step)) ** every
            expected = decay * expected + (1 - decay) * value
        # Before the first update the initial weights are no average of what was trained.
        shown = expected if step >= every else value
        assert average.model.weight.item() == pytest.approx(shown, rel=1e-6)
    assert model.weight.item() == -1.0 and average.n_steps == 9


def test_without_a_decay_the_model_itself_is_evaluated():
    model = filled(1.0)
    average = WeightAverage(model, decay=0.0)
    average.update()
    assert average.model is model and average.n_steps == 1


def test_an_average_continues_from_its_state():
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 2)
    one, other = (WeightAverage(model, 0.9, every=2) for _ in range(2))
    for step in range(1, 6):
        with torch.no_grad():
            model.weight.add_(step)
        one.update()
        if step == 3:
            other.load_state_dict(one.state_dict())
        elif step > 3:
            other.update()
    assert other.n_steps == 5
    assert torch.equal(one.model.weight, other.model.weight)


def test_the_averaged_model_evaluates_with_the_newest_statistics_of_batch_normalisation():
    model = torch.nn.BatchNorm1d(3).train()
    average = WeightAverage(model, decay=0.9, every=2)
    for _ in range(4):
        model(torch.randn(8, 3) + 5)
        average.update()
    assert model.training and not average.model.training
    assert torch.equal(average.model.running_mean, model.running_mean)
    assert average.model.running_mean.min() > 1 and average.model.num_batches_tracked == 4
