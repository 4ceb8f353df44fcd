"""`check_flow` on anyone's callables."""

from functools import partial

import pytest
import torch
import torch.nn as nn

from gencheck.outcomes import PASS
from grading import CheckFailure, check_flow


class Affine(nn.Module):
    """A map with a full matrix: z -> z exp(s) A, whose log-determinant is easy."""

    def __init__(self, dim=6, factor=1.0, inverts=True):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(dim))
        self.mix = nn.Parameter(torch.eye(dim))
        self.factor, self.inverts = factor, inverts

    def forward(self, z, ldj, reverse=False):
        added = self.factor * (self.log_scale.sum() + torch.linalg.slogdet(self.mix)[1])
        if reverse:
            back = torch.linalg.inv(self.mix) if self.inverts else self.mix
            return (z @ back) * torch.exp(-self.log_scale), ldj - added
        return z * torch.exp(self.log_scale) @ self.mix, ldj + added


def test_right_flow_passes():
    flow = Affine()
    findings = check_flow(forward=flow, inverse=partial(flow, reverse=True), dim=6)
    assert {f.status for f in findings} == {PASS}


class NormalisedShift(nn.Module):
    """Shifts the second half of z by a network of the first, with batch norm and dropout in it."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(
            *(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 6))
        )

    def forward(self, z, ldj, reverse=False):
        kept, changed = z.chunk(2, dim=1)
        log_scale, shift = self.network(kept).chunk(2, dim=1)
        if reverse:
            return torch.cat(
                [kept, (changed - shift) * (-log_scale).exp()], 1
            ), ldj - log_scale.sum(1)
        return torch.cat([kept, changed * log_scale.exp() + shift], 1), ldj + log_scale.sum(1)


def test_flow_with_batch_norm_and_dropout_in_its_networks_passes():
    flow = NormalisedShift()
    findings = check_flow(forward=flow, inverse=partial(flow, reverse=True), dim=6)
    assert {f.status for f in findings} == {PASS} and all(m.training for m in flow.modules())


@pytest.mark.parametrize(
    "options, check", [({"factor": 2.0}, "flow_logdet"), ({"inverts": False}, "flow_inverse")]
)
def test_wrong_flow_is_named(options, check):
    flow = Affine(**options)
    with pytest.raises(CheckFailure, match=check):
        check_flow(forward=flow, inverse=partial(flow, reverse=True), dim=6)
