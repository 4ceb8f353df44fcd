"""Short trainings and time limits of a submission's epoch functions."""

import time

import pytest
import torch
import torch.nn as nn

from gencheck.outcomes import NOTE, PASS, UNJUDGED, WEAK, WRONG, run_checks
from grading import epochs
from grading.epoch_checks import EPOCH_CHECKS
from grading.training import TRAINING_CHECKS


class Submission:
    """A module with `run_epoch` only."""

    def __init__(self, run_epoch):
        self.functions = {"run_epoch": run_epoch, "epoch_iter": lambda model, data, _: 1.0}
        self.find = lambda name: self.functions.get(name)
        self.attempt = lambda function, *args, **options: function(*args, **options)
        self.call_by_role = lambda function, roles, **known: function(*roles.values(), **known)


def subject_of(run_epoch):
    module = nn.Linear(784, 1)
    images = torch.arange(4096.0)[:, None].expand(-1, 784)
    labels = torch.zeros(4096, dtype=torch.long)
    subject = epochs.EpochSubject(
        "nf", Submission(run_epoch), module, lambda b: b.new_tensor([99.0]), {}, images, labels
    )
    subject.exact = lambda images: 10.0 + module.bias.item()
    return subject


@pytest.mark.parametrize("error, status", [(0.0, PASS), (1.0, WRONG)])
def test_an_accusation_trains_again_from_the_same_weights_on_other_images(error, status):
    seen = []

    def run_epoch(model, data, optimizer):
        train, val = ({int(n) for batch in part for n in batch[0][:, 0]} for part in data)
        seen.append((model.bias.item(), train, val))
        model.bias.data.sub_(6.0)
        return 4.0 + error, 10.0 + model.bias.item() + error

    subject = subject_of(run_epoch)
    start = subject.module.bias.item()
    _, reported = run_checks("nf", subject, TRAINING_CHECKS)
    assert reported.status == status
    assert [bias for bias, _, _ in seen] == [start] * len(seen)
    assert len(seen) == (1 if status == PASS else 2)
    for _, train, val in seen:
        assert len(train) == 12 * 64 - 28 and len(val) == 250 and not train & val
    if status == WRONG:
        assert not seen[0][2] & seen[1][2]


# 3.6 to 6.07 is what right flows reached; more than the 10 at the start is no learning.
@pytest.mark.parametrize(
    "after, status",
    [(-0.885, WRONG), (0.5, WRONG), (3.6, PASS), (6.07, PASS), (9.0, NOTE), (17.5, WRONG)],
)
def test_bits_per_dimension_that_no_density_has_are_wrong(after, status):
    def run_epoch(model, data, optimizer):
        model.bias.data.fill_(after - 10.0)
        return after, after

    learns, reported = run_checks("nf", subject_of(run_epoch), TRAINING_CHECKS)
    assert learns.status == status
    assert reported.status == (UNJUDGED if after < 1 else PASS)


def test_no_number_is_compared_where_the_log_determinant_is_wrong():
    subject = subject_of(lambda model, data, optimizer: (3.0, 3.0))
    subject.wrong_logdet = True
    reported = list(run_checks("nf", subject, TRAINING_CHECKS))[1]
    assert reported.status == UNJUDGED
    assert reported.measured == "not compared: the log-determinant is wrong"


@pytest.mark.parametrize("order", [("train", "val"), ("val", "train"), ("val", "train", "val")])
@pytest.mark.parametrize("trained, status", [(("train",), PASS), (("train", "val"), WRONG)])
def test_only_a_pass_over_validation_images_can_train_on_them(order, trained, status):
    def run_epoch(model, data, optimizer):
        sets = dict(zip(("train", "val"), data))
        for name in order:
            for images, *_ in sets[name]:
                if name in trained:
                    optimizer.zero_grad()
                    model(images.flatten(1)).mean().backward()
                    optimizer.step()
        return 1.0, 1.0

    (found,) = run_checks("nf", subject_of(run_epoch), EPOCH_CHECKS[:1])
    assert (found.check, found.status) == ("validation", status)


class Inner(nn.Module):
    """What a network does with images inside it, such as adding noise, is no change of them."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(784, 1)

    def forward(self, images):
        return self.layer(torch.log(images + torch.rand_like(images) + 1))


@pytest.mark.parametrize("method", ["__call__", "forward"])
@pytest.mark.parametrize("noise, status", [(0.0, PASS), (30.0, WRONG)])
def test_validation_images_are_those_that_the_whole_network_gets(method, noise, status):
    def run_epoch(model, data, optimizer):
        for part in data:
            for images, *_ in part:
                images = images.flatten(1)
                getattr(model, method)(images + noise * torch.rand_like(images))
        return 1.0, 1.0

    subject = subject_of(run_epoch)
    subject.module = Inner()
    (found,) = run_checks("nf", subject, EPOCH_CHECKS[:1])
    assert (found.check, found.status) == ("validation", status)


@pytest.mark.parametrize(
    "add, status",
    [
        (lambda total, loss: total + loss, WEAK),
        (lambda total, loss: [*total, loss] if total else [loss], WEAK),
        (lambda total, loss: total + loss.item(), PASS),
        (lambda total, loss: total + loss.detach(), PASS),
    ],
)
def test_graphs_of_earlier_batches_are_seen_if_they_are_kept(add, status):
    subject = subject_of(None)
    subject.module = nn.Sequential(nn.Linear(784, 32), nn.Tanh(), nn.Linear(32, 1), nn.Sigmoid())

    def epoch_iter(model, data, optimizer):
        total = 0
        for images, *_ in data:
            loss = model(images.flatten(1)).mean()
            total = add(total, loss)
        return 1.0

    subject.submission.functions = {"epoch_iter": epoch_iter}
    checks = [check for check in EPOCH_CHECKS if check.name == "validation_memory"]
    (found,) = run_checks("nf", subject, checks)
    assert found.status == status, found.measured

    @torch.no_grad()
    def run_epoch(model, data, optimizer):
        return [epoch_iter(model, part, optimizer) for part in data]

    subject.submission.functions["run_epoch"] = run_epoch
    (found,) = run_checks("nf", subject, checks)
    assert found.status == PASS


def test_after_a_call_that_took_too_long_none_is_made(monkeypatch):
    calls = []

    def epoch_iter(model, data, optimizer):
        calls.append(len(calls))
        time.sleep(5)

    monkeypatch.setattr(epochs, "EPOCH_SECONDS", 0.1)
    subject = subject_of(None)
    subject.submission.functions["epoch_iter"] = epoch_iter
    findings = list(run_checks("nf", subject, TRAINING_CHECKS))
    assert [(f.status, f.measured) for f in findings] == 2 * [
        (UNJUDGED, "it took longer than 0.1 s")
    ]
    assert calls == [0]
