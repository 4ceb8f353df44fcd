"""Checks of a flow's masks and of its model of images, on small ones."""

import math
from functools import partial

import pytest
import torch
import torch.nn as nn

from gencheck.flow_maps import Bijection
from gencheck.flow_subject import log_abs_det, points_of
from gencheck.outcomes import PASS, UNJUDGED, WEAK, WRONG, run_checks
from grading import couplings, flow_model
from grading.epochs import true_bpd
from grading.flow_subject import FlowSubject, affine_log_abs_det

DIM = 784


class Layer(nn.Module):
    """An affine coupling of [batch, 784] that changes the pixels where `changed` is true."""

    def __init__(self, changed):
        super().__init__()
        self.changed = changed
        self.scale, self.shift = (nn.Parameter(torch.zeros(DIM)) for _ in range(2))

    def forward(self, z, ldj, reverse=False):
        kept = torch.where(self.changed, 0.0, z).mean(dim=1, keepdim=True)
        log_scale = torch.where(self.changed, torch.tanh(self.scale * kept), 0.0)
        shift = torch.where(self.changed, self.shift, 0.0)
        if reverse:
            return (z - shift) * torch.exp(-log_scale), ldj - log_scale.sum(dim=1)
        return z * torch.exp(log_scale) + shift, ldj + log_scale.sum(dim=1)


class TinyFlow(nn.Module):
    def __init__(self, masks):
        super().__init__()
        self.layers = nn.ModuleList(Layer(mask) for mask in masks)

    def forward(self, z, ldj, reverse=False):
        for layer in reversed(self.layers) if reverse else self.layers:
            z, ldj = layer(z, ldj, reverse)
        return z, ldj


class Model(nn.Module):
    """The course's model; `left_out` of the logit step's log-determinant is a fault.

    `divide` is where the grey levels are divided by 256, and where log 256 is counted.
    """

    def __init__(self, alpha, left_out=0.0, divide=("logit", "logit")):
        super().__init__()
        self.flow, self.alpha, self.left_out = TinyFlow(CHECKERBOARDS), alpha, left_out
        self.divide, self.count = divide
        self.unit = 1 if self.divide == "logit" else 1 / 256  # a grey level after `dequantize`

    def dequantize(self, z):
        return (z + torch.rand_like(z)) * self.unit

    def logit_normalize(self, z, ldj, reverse=False):
        if reverse:
            v = (torch.sigmoid(z) - self.alpha / 2) / (1 - self.alpha)
            return v * 256 * self.unit, ldj
        w = z / 256 / self.unit * (1 - self.alpha) + self.alpha / 2
        per_pixel = math.log(1 - self.alpha) - w.log() - (1 - w).log() - self.left_out
        return w.logit(), ldj + (per_pixel - self._log_256("logit")).sum(dim=1)

    def _log_256(self, where):
        return math.log(256) if self.count == where else 0.0

    def forward(self, x):
        z, ldj = self.flow(*self.logit_normalize(self.dequantize(x), torch.zeros(len(x))))
        log_pz = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(dim=1)
        return log_pz + ldj - DIM * self._log_256("forward")

    def sample(self, n):
        z, _ = self.flow(torch.randn(n, DIM), torch.zeros(n), reverse=True)
        grey = self.logit_normalize(z, torch.zeros(n), reverse=True)[0] / self.unit
        return grey.floor().clamp(0, 255)


BOARD = (torch.arange(28)[:, None] + torch.arange(28)).flatten() % 2 == 0
HALF = torch.arange(DIM) < DIM // 2
CHECKERBOARDS = (BOARD, ~BOARD)


def subject_of(flow, model=None, x=None):
    bijections = [Bijection(m, partial(m, reverse=True)) for m in (flow, *flow.layers)]
    return FlowSubject(bijections[0], bijections[1:], flow, DIM, model, None, x)


@pytest.mark.parametrize(
    "masks, status, words",
    [
        (CHECKERBOARDS, PASS, "checkerboard"),
        ((BOARD, BOARD, ~BOARD, ~BOARD), WEAK, "don't alternate"),
        ((HALF, ~HALF), WEAK, "no checkerboard"),
        ((BOARD, BOARD), WRONG, "392 pixels never change"),
    ],
)
def test_only_pixels_that_never_change_are_wrong_masks(masks, status, words):
    found = {f.check: f for f in run_checks("flow", subject_of(TinyFlow(masks)), couplings.CHECKS)}
    of_masks = found.pop("masks")
    assert (of_masks.status, {f.status for f in found.values()}) == (status, {PASS})
    assert words in of_masks.measured


class Flip(nn.Module):
    """Reverses the order of the pixels; `added` to the log-determinant is a fault."""

    def __init__(self, added=0.0):
        super().__init__()
        self.added = added

    def forward(self, z, ldj, reverse=False):
        return z.flip(1), ldj + (-self.added if reverse else self.added)


def test_what_lies_between_couplings_is_judged_with_the_whole_flow():
    whole = TinyFlow(CHECKERBOARDS)
    layers = [Bijection(m, partial(m, reverse=True)) for m in whole.layers]
    whole.layers.append(Flip(added=1.0))
    bijection = Bijection(whole, partial(whole, reverse=True))
    subject = FlowSubject(bijection, layers, whole, DIM)
    found = {f.check: f.status for f in run_checks("flow", subject, couplings.CHECKS)}
    assert (found["coupling_logdet"], found["flow_logdet"]) == (PASS, WRONG)


class WrongSign(Layer):
    """Subtracts its log-determinant forwards and adds it backwards."""

    def forward(self, z, ldj, reverse=False):
        z, after = super().forward(z, ldj, reverse)
        return z, 2 * ldj - after


class Rotated(Layer):
    """Affine, yet each changed pixel gets some of the next one: no diagonal Jacobian."""

    def forward(self, z, ldj, reverse=False):
        changed = torch.where(self.changed, z.roll(2, 1), 0.0) * self.changed.roll(2)
        if reverse:
            return super().forward(z, ldj, reverse)
        return super().forward(z + 0.5 * changed, ldj)


@pytest.mark.parametrize("place", range(8))
def test_a_wrong_sign_in_any_coupling_is_found_and_log_px_is_wrong_with_it(x, place):
    model = Model(1e-5)
    model.flow = TinyFlow(4 * CHECKERBOARDS)
    model.flow.layers[place] = WrongSign(CHECKERBOARDS[place % 2])
    for layer in model.flow.layers:
        nn.init.constant_(layer.scale, 0.05)
    subject = subject_of(model.flow, model, x)
    checks = (*couplings.CHECKS, *flow_model.CHECKS)
    found = {f.check: f for f in run_checks("flow", subject, checks)}
    wrong = found["coupling_logdet"]
    assert wrong.status == WRONG and "the sign is wrong" in wrong.measured
    assert f"layer {place + 1} of 8" in wrong.measured
    assert found["flow_logdet"].status == PASS  # the sum of what its layers say
    assert found["log_px"].status == WRONG


class Undefined(Layer):
    """Its log-determinant is no number."""

    def forward(self, z, ldj, reverse=False):
        z, after = super().forward(z, ldj, reverse)
        return z, after * math.nan


@pytest.mark.parametrize(
    "kind, places, words",
    [
        (Undefined, (2,), "layer 3 of 4: log |det| = nan"),
        (WrongSign, (1,), "layer 2 of 4: log |det|"),
        (WrongSign, (0, 1, 3), "3 layers, such as layer "),
    ],
)
def test_all_wrong_couplings_are_counted_whatever_their_log_determinants(kind, places, words):
    flow = TinyFlow(2 * CHECKERBOARDS)
    for place in places:
        flow.layers[place] = kind(CHECKERBOARDS[place % 2])
    checks = [check for check in couplings.CHECKS if check.name == "coupling_logdet"]
    (found,) = run_checks("flow", subject_of(flow), checks)
    assert found.status == WRONG and found.measured.startswith(words), found.measured


class RotatedWrongSign(Rotated):
    """The same with the wrong sign of its log-determinant."""

    def forward(self, z, ldj, reverse=False):
        z, after = super().forward(z, ldj, reverse)
        return z, 2 * ldj - after


@pytest.mark.parametrize("place", (0, 2, 3))
def test_a_wrong_coupling_that_is_not_affine_is_found_and_log_px_does_not_pass(x, place):
    model = Model(1e-5)
    kinds = [RotatedWrongSign if i == place else Rotated for i in range(4)]
    model.flow.layers = nn.ModuleList(kind(mask) for kind, mask in zip(kinds, 2 * CHECKERBOARDS))
    subject = subject_of(model.flow, model, x)
    checks = [check for check in couplings.CHECKS if check.name == "coupling_logdet"]
    (found,) = run_checks("flow", subject, checks)
    assert found.status == WRONG and f"layer {place + 1} of 4" in found.measured
    subject.wrong_logdet = True
    checks = [check for check in flow_model.CHECKS if check.name == "log_px"]
    (found,) = run_checks("flow", subject, checks)
    assert found.status == UNJUDGED and "log-determinant is wrong" in found.measured


@pytest.mark.parametrize("kind, is_affine", [(Layer, True), (Rotated, False), (WrongSign, True)])
def test_the_quick_log_determinant_of_affine_couplings_is_autodiffs(kind, is_affine):
    layer = kind(BOARD)
    for part in layer.parameters():
        nn.init.normal_(part)
    z = 3 * torch.randn(2, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    function = points_of(Bijection(layer.double(), None))
    quick = affine_log_abs_det(function, z)
    assert (quick is not None) == is_affine
    if is_affine:
        assert torch.allclose(quick, log_abs_det(function, z), rtol=0, atol=1e-9)


@pytest.mark.parametrize("sign", (1, -1))
def test_bits_per_dimension_do_not_follow_a_log_determinant_that_was_found_wrong(x, sign):
    right, wrong = Model(1e-5), Model(1e-5)
    wrong.flow.layers[1] = WrongSign(~BOARD)
    nn.init.constant_(right.flow.layers[1].scale, sign)
    wrong.flow.load_state_dict(right.flow.state_dict())
    subjects = [subject_of(model.flow, model, x) for model in (right, wrong)]
    subjects[1].wrong_logdet = True
    values = []
    for subject in subjects:
        torch.manual_seed(0)
        values.append(true_bpd(subject)(x))
    assert torch.allclose(*values, rtol=1e-5)


def test_masks_of_couplings_with_permutations_between_them_are_not_judged():
    whole = TinyFlow((HALF, HALF))
    layers = [Bijection(m, partial(m, reverse=True)) for m in whole.layers]
    whole.layers = nn.ModuleList([whole.layers[0], Flip(), whole.layers[1], Flip()])
    bijection = Bijection(whole, partial(whole, reverse=True))
    subject = FlowSubject(bijection, layers, whole, DIM)
    found = {f.check: f.status for f in run_checks("flow", subject, couplings.CHECKS)}
    assert found.pop("masks") == UNJUDGED
    assert set(found.values()) == {PASS}


@pytest.fixture
def x():
    return torch.randint(256, (64, DIM), generator=torch.Generator().manual_seed(0)).float()


DIVISIONS = [("logit", "logit"), ("dequantize", "logit"), ("dequantize", "forward")]


# 0.05 is the paper's alpha; then 784 log(1 - alpha) is 40 nats.
@pytest.mark.parametrize("divide", DIVISIONS, ids="-".join)
@pytest.mark.parametrize("alpha", (1e-5, 0.05, 0.2))
def test_any_alpha_is_right_if_its_logarithm_is_counted(x, alpha, divide):
    model = Model(alpha, divide=divide)
    subject = subject_of(model.flow, model, x)
    found = {f.check: f for f in run_checks("flow", subject, flow_model.CHECKS)}
    assert [found[name].status for name in ("logit", "dequantize", "log_px", "sample")] == 4 * [
        PASS
    ]
    with torch.no_grad():
        reported = -model(x).mean().item() / (DIM * math.log(2))
    assert true_bpd(subject)(x).mean().item() == pytest.approx(reported, rel=1e-3)


@pytest.mark.parametrize("divide", DIVISIONS, ids="-".join)
def test_alpha_whose_logarithm_is_left_out_is_wrong(x, divide):
    model = Model(0.05, left_out=math.log(1 - 0.05), divide=divide)
    subject = subject_of(model.flow, model, x)
    found = {f.check: f for f in run_checks("flow", subject, flow_model.CHECKS)}
    assert (found["logit"].status, found["log_px"].status) == (WRONG, WRONG)
    assert "40.2 nats" in found["log_px"].measured


class ForgetfulFlow(TinyFlow):
    """Its reverse pass returns no log-determinant."""

    def forward(self, z, ldj, reverse=False):
        z, after = super().forward(z, ldj, reverse)
        return z, torch.zeros_like(ldj) if reverse else after


@pytest.mark.parametrize("uses_it, status", [(False, WEAK), (True, WRONG)])
def test_a_reverse_log_determinant_is_weak_where_samples_do_not_depend_on_it(uses_it, status):
    model = Model(1e-5)
    model.flow = ForgetfulFlow(CHECKERBOARDS)

    def sample(n):
        z, ldj = model.flow(torch.randn(n, DIM), torch.zeros(n), reverse=True)
        return (z, ldj) if uses_it else z

    model.sample = sample
    flow = Bijection(model.flow, partial(model.flow, reverse=True))
    subject = FlowSubject(flow, None, model.flow, DIM, model)
    checks = [check for check in couplings.CHECKS if check.name == "flow_reverse_logdet"]
    (found,) = run_checks("nf", subject, checks)
    assert found.status == status and "zero" in found.measured
