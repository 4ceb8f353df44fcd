"""`check_flow` on anyone's callables."""

import math
import traceback
from functools import partial

import pytest
import torch
import torch.distributions as D
import torch.nn as nn

import a3_nf_template as nf
from gencheck import CheckFailure, NotJudged, check_flow
from gencheck.outcomes import NOTE, PASS


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


class Coupling(nn.Module):
    """An affine coupling whose last layer is zero; `logdet` and `frozen` can be set."""

    logdet = staticmethod(lambda log_scale: log_scale.sum(1))

    def __init__(self, dim=4):
        super().__init__()
        self.mask = nn.Parameter((torch.arange(dim) % 2).float(), requires_grad=False)
        self.network = nn.Sequential(nn.Linear(dim, 16), nn.Tanh(), nn.Linear(16, 2 * dim))
        nn.init.zeros_(self.network[-1].weight)
        nn.init.zeros_(self.network[-1].bias)

    def _parts(self, z):
        log_scale, shift = self.network(self.mask * z).chunk(2, dim=1)
        return (1 - self.mask) * log_scale, (1 - self.mask) * shift

    def forward(self, z):
        log_scale, shift = self._parts(z)
        return z * log_scale.exp() + shift, self.logdet(log_scale)

    def inverse(self, z):
        log_scale, shift = self._parts(z)
        return (z - shift) * (-log_scale).exp(), -self.logdet(log_scale)


def with_(module, **attributes):
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


def test_module_with_forward_and_inverse_needs_no_adapter():
    flow = Coupling()
    mask = flow.mask.clone()
    found = check_flow(flow, shape=4)
    assert {f.status for f in found} == {PASS} and torch.equal(flow.mask, mask)
    assert check_flow(flow.forward, flow.inverse, shape=(4,))["flow_logdet"].status == PASS


class Unmasked(Coupling):
    """A coupling that halves its input, so that nothing changes the input's type."""

    def __init__(self):
        super().__init__()
        self.network[0] = nn.Linear(2, 16)
        self.network[2] = nn.Linear(16, 4)

    def _parts(self, z):
        log_scale, shift = self.network(z[:, :2]).chunk(2, dim=1)
        return nn.functional.pad(log_scale, (2, 0)), nn.functional.pad(shift, (2, 0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_flow_of_any_floating_type_is_judged_in_float64(dtype):
    flow = Unmasked().to(dtype)
    check_flow(flow, shape=4)
    assert {weight.dtype for weight in flow.parameters()} == {dtype}


class Deep(nn.Module):
    """Couplings with alternating masks; the `wrong` one has `factor` times its log-determinant."""

    def __init__(self, wrong, factor=-1.0, kind=Coupling, n=8):
        super().__init__()
        self.layers = nn.ModuleList(kind() for _ in range(n))
        for coupling in self.layers[::2]:
            coupling.mask.data = 1 - coupling.mask.data
        self.layers[wrong].logdet = lambda log_scale: factor * log_scale.sum(1)

    def forward(self, z):
        return self._through(z, self.layers, "forward")

    def inverse(self, z):
        return self._through(z, reversed(self.layers), "inverse")

    def _through(self, z, layers, way):
        total = 0
        for coupling in layers:
            z, ldj = getattr(coupling, way)(z)
            total = total + ldj
        return z, total


@pytest.mark.parametrize("wrong", range(8))
def test_a_wrong_sign_in_any_layer_of_a_new_flow_is_found(wrong):
    with pytest.raises(CheckFailure) as failure:
        check_flow(Deep(wrong), shape=4)
    assert [f.check for f in failure.value.result.failures] == ["flow_logdet"]


@pytest.mark.parametrize("seed", range(20))
def test_absolute_value_of_the_log_determinant_is_found_with_every_seed(seed):
    flow = with_(Coupling(), logdet=lambda log_scale: log_scale.sum(1).abs())
    with pytest.raises(CheckFailure, match="flow_logdet"):
        check_flow(flow, shape=4, seed=seed)


def test_zero_initialised_flow_behind_a_function_is_perturbed_too():
    flow = with_(Coupling(), logdet=lambda log_scale: 2 * log_scale.sum(1))
    with pytest.raises(CheckFailure, match="it is doubled"):
        check_flow(lambda z: flow(z), lambda z: flow.inverse(z), shape=4)
    assert not flow.network[-1].weight.any()


def test_a_row_that_is_wrong_alone_is_found():
    flow = with_(Coupling(), logdet=lambda s: s.sum(1) * (torch.arange(len(s)) != 3))
    with pytest.raises(CheckFailure, match="flow_logdet"):
        check_flow(flow, shape=4)


class Radial(nn.Module):
    """Its distance from the centre is a norm over `dims`."""

    def __init__(self, dims):
        super().__init__()
        self.dims, self.centre = dims, nn.Parameter(torch.zeros(3))

    def forward(self, z):
        r = (z - self.centre).norm(dim=self.dims, keepdim=True)
        h = 1 / (2 + r)
        z_out = z + h * (z - self.centre)
        logdet = 2 * torch.log1p(h) + torch.log1p(h - r / (2 + r) ** 2)
        return z_out, logdet.expand(len(z), 1)


def test_norm_over_the_batch_is_found():
    options = {"inverse": lambda z: z, "shape": 3, "inverse_logdet": False}
    with pytest.raises(CheckFailure, match="with the others of its batch"):
        check_flow(Radial((0, 1)), **options)
    with pytest.raises(CheckFailure) as failure:  # its inverse alone is wrong
        check_flow(Radial(1), **options)
    assert [f.check for f in failure.value.result.failures] == ["flow_inverse"]
    with pytest.raises(NotJudged, match="pass inverse="):
        check_flow(Radial(1), shape=3)


class SecondInverseCrashes(Coupling):
    cached = None

    def inverse(self, z):
        if self.cached is not None:
            raise RuntimeError("expected Half")
        self.cached = True
        return super().inverse(z)


def test_nothing_is_measured_twice():
    flow, calls = Affine(), []
    forward = flow.forward

    def counted(z, ldj, reverse=False):
        calls.append(reverse)
        return forward(z, ldj, reverse)

    check_flow(counted, inverse=partial(counted, reverse=True), dim=6, atol=1e-6)
    assert calls.count(False) <= 39 and calls.count(True) <= 4


def test_inverse_that_crashes_when_it_is_called_again_is_found():
    flow = SecondInverseCrashes()
    with pytest.raises(CheckFailure, match="called again: RuntimeError: expected Half"):
        check_flow(flow, shape=4)
    assert flow.cached is None


class ActNorm(nn.Module):
    """Takes its scale from the first batch."""

    def __init__(self):
        super().__init__()
        self.scale, self.initialised = nn.Parameter(torch.ones(3)), False

    def forward(self, z):
        if not self.initialised:
            self.scale.data.copy_(1 / z.std(dim=0))
            self.initialised = True
        return z * self.scale, self.scale.abs().log().expand_as(z)  # unsummed

    def backward(self, z):
        return z / self.scale, -self.scale.abs().log().sum()  # one number for all


@pytest.mark.parametrize("through", [lambda flow: flow, lambda flow: lambda z: flow(z)])
def test_initialisation_from_data_comes_first_and_leaves_the_flow_as_it_was(through):
    flow = ActNorm()
    inverse = None if through(flow) is flow else flow.backward
    assert {f.status for f in check_flow(through(flow), inverse, shape=3)} == {PASS}
    assert not flow.initialised and torch.equal(flow.scale, torch.ones(3))


TRANSFORMS = {
    "affine": (D.AffineTransform(1.0, 2.0), None),
    "cached": (D.ComposeTransform([D.AffineTransform(0.0, 3.0), D.SigmoidTransform(1)]), None),
    "logarithm": (D.ExpTransform().inv, (0, math.inf)),
    "logit": (D.SigmoidTransform().inv, (0, 1)),
    "distribution": (
        D.TransformedDistribution(D.Normal(torch.zeros(3), 1.0), [D.AffineTransform(1.0, 2.0)]),
        None,
    ),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_of_torch_need_no_adapter(name):
    flow, domain = TRANSFORMS[name]
    assert {f.status for f in check_flow(flow, shape=3, domain=domain)} == {PASS}


class Conditional(Coupling):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Linear(2, 4)

    def forward(self, z, context):
        z1, ldj = super().forward(z)
        scale = self.embedding(context)
        return z1 * scale.exp(), ldj + scale.sum(1)

    def inverse(self, z, context):
        scale = self.embedding(context)
        back, ldj = super().inverse(z * (-scale).exp())
        return back, ldj - scale.sum(1)


def test_conditional_flow_gets_its_context():
    found = check_flow(Conditional(), shape=4, context=torch.randn(7, 2))
    assert {f.status for f in found} == {PASS}


class Iterative(Coupling):
    """Inverts to about 1e-5 only."""

    def inverse(self, z):
        back, ldj = super().inverse(z)
        return back + 1e-5 * torch.sin(back), ldj


def test_iterative_inverse_gets_its_tolerance_from_atol():
    flow = Iterative()
    flow.network[-1].bias.data.fill_(0.5)
    assert check_flow(flow, shape=4, atol=1e-4)["flow_inverse"].status == PASS
    with pytest.raises(NotJudged, match="pass its tolerance, such as atol=1e-4"):
        check_flow(flow, shape=4)


class Hutchinson(Coupling):
    """An unbiased estimate of the log-determinant, times `factor`."""

    factor = 1.0

    def forward(self, z):
        z, ldj = super().forward(z)
        return z, self.factor * ldj + 0.1 * torch.randn_like(ldj)


def test_random_log_determinants_are_judged_by_their_average():
    left_open = {"inverse_logdet": False, "shape": 4}
    found = check_flow(with_(Hutchinson()), **left_open)
    assert "averaged over draws" in found["flow_logdet"].measured
    flow = with_(Hutchinson(), factor=3.0)
    flow.network[-1].bias.data.fill_(0.5)
    with pytest.raises(CheckFailure, match="flow_logdet"):
        check_flow(flow, **left_open)


def test_inverse_without_log_determinant():
    flow = Coupling()
    found = check_flow(flow, lambda z: flow.inverse(z)[0], shape=4)
    assert found["flow_reverse_logdet"].status == NOTE
    wrong = check_flow(flow, lambda z: (flow.inverse(z)[0], None), shape=4, inverse_logdet=False)
    assert "flow_reverse_logdet" not in wrong.as_dict()["findings"]


class Detached(Coupling):
    @torch.no_grad()
    def forward(self, z):
        return super().forward(z)


class Numpy(Coupling):
    def forward(self, z):
        z, ldj = super().forward(z)
        return z.detach().numpy(), ldj.detach().numpy()


NOTHING_MEASURED = {
    "no_grad": (Detached(), {"shape": 4}, "no gradient: it is detached, or calculated under"),
    "arrays": (Numpy(), {"shape": 4}, "returns numpy.ndarray, which has no gradient"),
    "wrong shape": (Coupling(), {"shape": 5}, "RuntimeError"),
    "no shape": (Coupling(), {}, "pass the shape"),
    "frozen": (Coupling().requires_grad_(False), {"shape": 4}, "pass the flow with requires_grad_"),
    "identity": (lambda z: (z, z.new_zeros(len(z))), {"shape": 4}, "the flow does nothing"),
    "no log-determinant": (nn.Linear(4, 4), {"shape": 4}, "returns no log-determinant"),
    "one for each dimension": (lambda z: (2 * z, z.sum(0)), {"shape": 4}, "one for each"),
}


@pytest.mark.parametrize("name", NOTHING_MEASURED)
def test_what_is_not_measured_is_not_right(name):
    flow, options, words = NOTHING_MEASURED[name]
    inverse = getattr(flow, "inverse", lambda z: (z, z.new_zeros(len(z))))
    with pytest.raises(NotJudged, match=words):
        check_flow(flow, inverse, **options)


def test_the_users_own_exception_is_the_cause():
    with pytest.raises(NotJudged) as error:
        check_flow(Coupling(), shape=5)
    trace = traceback.extract_tb(error.value.__cause__.__traceback__)
    assert "_parts" in {frame.name for frame in trace}


def test_checks_may_be_left_open_by_name():
    class OneWay(Coupling):
        def inverse(self, z):
            raise NotImplementedError

    with pytest.raises(NotJudged, match="allow_unjudged="):
        check_flow(OneWay(), shape=4)
    found = check_flow(OneWay(), shape=4, allow_unjudged=("inverse", "reverse_logdet"))
    assert found["flow_logdet"].status == PASS and len(found.unjudged) == 2
    with pytest.raises(ValueError, match="no check is called invers"):
        check_flow(Coupling(), shape=4, allow_unjudged=("invers",))
    with torch.no_grad(), pytest.raises(NotJudged, match="no_grad"):
        check_flow(Coupling(), shape=4)


def test_a_deep_wide_flow_is_right_where_noise_on_its_weights_makes_values_huge():
    torch.manual_seed(0)
    flow = nf.Flow([4], n_flows=8, n_hidden=1024, mask=torch.tensor([[1.0, 0.0, 1.0, 0.0]]))
    check_flow(flow, shape=4)


class WideCoupling(Coupling):
    """A coupling of a network with two hidden layers, whose log-scales are bounded."""

    def __init__(self):
        super().__init__(dim=32)
        hidden = (nn.Linear(32, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())
        self.network = nn.Sequential(*hidden, nn.Linear(256, 64))
        nn.init.zeros_(self.network[-1].weight)
        nn.init.zeros_(self.network[-1].bias)

    def _parts(self, z):
        log_scale, shift = super()._parts(z)
        return 4 * torch.tanh(log_scale), shift


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_a_new_deep_flow_is_judged_with_as_much_noise_as_it_bears(factor):
    """Noise makes it chaotic: a change of the input grows over a million times."""
    torch.manual_seed(0)
    flow = Deep(-1, factor, WideCoupling, n=32)
    if factor == 1:
        check_flow(flow, shape=32)
    else:
        with pytest.raises(CheckFailure, match="flow_logdet"):
            check_flow(flow, shape=32)
