"""A flow as a black box: its maps with their log-determinants, at perturbed weights."""

import contextlib
import copy
import math
from collections.abc import Callable, Iterator

import torch
from torch.distributions import Distribution, Transform

from gencheck.flow_maps import Bijection, bijection_of
from gencheck.modules import changed_weights, leaves, modules_of, perturb, restored
from gencheck.outcomes import CannotJudge

STD = 0.03  # noise added to all weights: log-scales of about 0.5, where new couplings have 0
PROBES = 2048  # rows of a Jacobian by one backward pass
STRONG = 1.0  # noise of this deviation is divided by the root of a weight's inputs
NEARBY = 1e-6  # part of the way from one example to the next
N_DRAWS = 128  # of a log-determinant that is estimated


class FlowSubject:
    """A flow under measurement.

    Args:
        shape: of an example.
        domain: interval that each number of an example lies in; None for the real line.
        atol: allowed error of the inverse; None where it should be exact.
    """

    stds = (STD,)  # of the noise added to the weights, one measurement each
    strong_stds = ()  # further ones, for log-determinants only
    is_strong = False  # whether the setting is one of them
    proves = False  # whether one counterexample is proof

    def __init__(self, shape, domain=None, atol=None):
        self.shape = torch.Size([shape] if isinstance(shape, int) else shape)
        self.dim = self.shape.numel()
        self.domain, self.atol = domain, atol
        self.flow: Bijection | None = None
        self.device = torch.device("cpu")
        self.seed = 0
        self.dtype = torch.float32

    def perturbed(self, precise: bool = True, std: float = STD):
        """Inside the block weights are perturbed, and in float64 where the code allows it."""
        raise NotImplementedError

    def there(self, bijection: Bijection) -> tuple[torch.Tensor, ...]:
        """Inputs and what the forward map makes of them: (z, ldj, z1, ldj1)."""

        def measure():
            z, ldj = self.inputs(self.n_rows)
            with torch.no_grad():
                return z, ldj, *pair(bijection.forward(z.clone(), ldj.clone()))

        return self._remembered("there", bijection, measure)

    def nearby(self, bijection: Bijection) -> tuple[torch.Tensor, torch.Tensor]:
        """Points very near the inputs, in the domain as it is convex, and their images: (z, z1)."""

        def measure():
            z, ldj = self.inputs(self.n_rows)
            z = z + NEARBY * (z.roll(1, dims=0) - z)
            with torch.no_grad():
                return z, pair(bijection.forward(z.clone(), ldj))[0]

        return self._remembered("nearby", bijection, measure)

    def back(self, bijection: Bijection) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the inverse makes of the forward map's results: (z2, ldj2)."""

        def measure():
            z1, ldj1 = self.there(bijection)[2:]
            with torch.no_grad():
                return pair(bijection.inverse(z1.clone(), ldj1.clone()))

        return self._remembered("back", bijection, measure)

    def added(self, bijection: Bijection) -> tuple[torch.Tensor, torch.Tensor]:
        """What the forward map adds to the log-determinant; see `estimated`."""

        def measure():
            z, ldj, _, ldj1 = self.there(bijection)
            return estimated(bijection.forward, z, ldj, ldj1 - ldj)

        return self._remembered("added", bijection, measure)

    def log_abs_det(self, bijection: Bijection, z: torch.Tensor) -> torch.Tensor:
        """log |det| of the forward map at the first rows of z [n, ...], all or fewer, by autodiff.

        Nothing of what the map says of its log-determinant enters.
        """
        return log_abs_det(points_of(bijection), z)

    def _remembered(self, name, bijection, measure):
        """Checks of one setting share results."""
        return measure()

    def inputs(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """n points of the domain, and log-determinants to start from, which are not 0."""
        generator = torch.Generator().manual_seed(self.seed)
        z = torch.randn(n, *self.shape, generator=generator).to(self.dtype)
        if self.domain is not None:
            low, high = self.domain
            if math.isinf(high):
                z = z.exp() + low
            elif math.isinf(low):
                z = high - z.exp()
            else:
                z = low + (high - low) * torch.sigmoid(z)
        return z.to(self.device), torch.linspace(-3, 5, n, device=self.device).to(self.dtype)

    @property
    def n_rows(self) -> int:
        """Examples in a batch; never as many as dimensions, so that shapes tell them apart."""
        few, many = 5, 8
        n = many if self.dim <= many**2 else few
        return n + (self.dim == n)

    def tolerance(self, size: float = 1.0) -> float:
        """Allowed error of a log-determinant or a point: rounding over all dimensions."""
        unit = 2.0**-53 if self.dtype == torch.float64 else 2.0**-24
        return 100 * self.dim * unit * max(1.0, size) + 10 * self.dim * (self.atol or 0.0)


class AnyFlow(FlowSubject):
    """Anyone's flow. Measurements work on copies of it, so that it stays as it is.

    Args:
        flow, inverse, context, inverse_logdet: as for `check_flow`.
        shape, domain, atol: as for `FlowSubject`.
    """

    # First as it is, since perturbed weights may break what holds for those that were trained.
    # Noise of both signs, since a wrong absolute value shows for one sign only.
    stds = (0.0, STD, -3 * STD)
    proves = True

    def __init__(self, flow, inverse, context, inverse_logdet, shape, domain=None, atol=None):
        super().__init__(shape, domain, atol)
        self.parts = flow, inverse, context
        self.inverse_logdet = inverse_logdet
        if atol is None:  # iterative flows rely on weights that are small
            self.strong_stds = (STRONG, -STRONG)
        self.has_weights = False
        self.setting = None  # seed and standard deviation
        self._copies, self._results = {}, {}
        weights = (p for m in modules_of(flow, inverse) for p in m.parameters())
        first = next((p for p in weights if p.is_floating_point()), torch.empty(0))
        self.device, self.own_dtype = first.device, first.dtype

    @contextlib.contextmanager
    def perturbed(self, precise: bool = True, std: float = STD) -> Iterator[None]:
        """A copy of the flow with perturbed weights, in evaluation mode, as `self.flow`.

        Before that it is called once in its own mode: initialisation from data comes first.
        """
        self.setting, self.is_strong = (self.seed, std), abs(std) >= STRONG
        if self.setting in self._copies:
            self.flow, self.dtype, self.has_weights = self._copies[self.setting]
            yield
            return
        parts, is_copy = self._copy()
        modules = modules_of(*parts[:2])
        with contextlib.ExitStack() as stack:
            if not is_copy:
                stack.enter_context(restored(modules))
            self.dtype = self.own_dtype
            self.flow = bijection_of(*parts, self.inverse_logdet)
            with torch.no_grad():
                self.flow.forward(*self.inputs(self.n_rows))
            for module in modules:
                module.eval()
            weights = self._weights()
            if not weights and any(list(m.parameters()) for m in modules):
                raise CannotJudge(
                    "no weight has a gradient, so none is perturbed: pass the flow with "
                    "requires_grad_(True)"
                )
            if not is_copy:
                stack.enter_context(changed_weights(weights))
            if not self.is_strong:
                perturb(weights, std, self.seed)
            for i, weight in enumerate(weights) if self.is_strong else ():
                inputs = weight[0].numel() if weight.dim() > 1 else 4
                perturb([weight], std / math.sqrt(inputs), self.seed + i)
            if precise:
                self._to_float64(modules, weights, parts)
            self.has_weights = bool(weights)
            if is_copy:
                self._copies[self.setting] = self.flow, self.dtype, self.has_weights
            yield

    def _copy(self):
        """The flow, its inverse and one row of the context, and whether they are copies.

        Transforms of `torch.distributions` lose their inverse when they are copied, functions keep
        the modules that they enclose, and tensors that are results of others can't be copied: then
        what is changed is restored.
        """
        *maps, context = self.parts
        if context is not None and context.dim() > 1:
            first = self.seed % len(context)
            context = context[first : first + 1]
        elif context is not None:
            context = context[None]
        if not any(isinstance(part, Transform | Distribution) for part in maps):
            with contextlib.suppress(Exception):
                copies = copy.deepcopy(maps)
                originals = {id(m) for m in modules_of(*maps)}
                copied = modules_of(*copies)
                if copied and not any(id(module) in originals for module in copied):
                    return (*copies, context), True
        return (*maps, context), False

    def _remembered(self, name, bijection, measure):
        key = self.setting, name
        if key not in self._results:
            self._results[key] = measure()
        return self._results[key]

    def forget(self) -> None:
        """Forget results of this setting."""
        for name in ("there", "nearby", "back", "added"):
            self._results.pop((self.setting, name), None)

    def _weights(self) -> list[torch.Tensor]:
        """The tensors that the map depends on and that have a gradient, wherever they are kept.

        Raises:
            CannotJudge: the map has no gradient even with respect to its input.
        """
        z, ldj = self.inputs(2)
        outputs = self.flow.forward(z.requires_grad_(), ldj)
        if not outputs[0].requires_grad:
            raise CannotJudge(
                "the forward map has no gradient: it is detached, or calculated under no_grad; "
                "pass one that autograd sees"
            )
        return [leaf for leaf in leaves(*outputs) if leaf is not z]

    def _to_float64(self, modules, weights, parts):
        """Go on in float64 if the code allows it."""
        *maps, context = parts
        single = self.flow
        try:
            for module in modules:
                module.double()
            for weight in weights:
                weight.data = weight.data.double()
            context = context.double() if torch.is_tensor(context) else context
            self.dtype = torch.float64
            self.flow = bijection_of(*maps, context, self.inverse_logdet)
            z, ldj = self.there(self.flow)[2:]
            if z.dtype != torch.float64 or (ldj is not None and ldj.dtype != torch.float64):
                raise TypeError
            self.back(self.flow)
        except Exception:
            for module in modules:
                module.float()
            for weight in weights:
                weight.data = weight.data.float()
            self.dtype, self.flow = torch.float32, single
            self.forget()


def pair(returned) -> tuple[torch.Tensor, torch.Tensor]:
    """The (z, ldj) that a map returned; CannotJudge for anything else."""
    if not isinstance(returned, tuple | list) or len(returned) != 2:
        raise CannotJudge("the flow returns no pair (z, log-determinant)")
    return returned


def points_of(bijection: Bijection) -> Callable:
    """The forward map without its log-determinant: z [n, ...] -> z."""
    return lambda z: pair(bijection.forward(z, z.new_zeros(len(z))))[0]


@torch.no_grad()
def estimated(function: Callable, z, ldj, first) -> tuple[torch.Tensor, torch.Tensor]:
    """What a map adds to the log-determinant, [n], and its standard error: 0 unless it is random.

    `first` is what it added in an earlier call. Random estimates, such as Hutchinson's of a trace,
    are averaged.
    """

    def once():
        return pair(function(z.clone(), ldj.clone()))[1] - ldj

    second = once()
    if (first - second).abs().max() < 1e-9 * (1 + first.abs().max()):
        return first, torch.zeros_like(first)
    draws = torch.stack([first, second, *(once() for _ in range(N_DRAWS - 2))])
    return draws.mean(dim=0), draws.std(dim=0) / math.sqrt(N_DRAWS)


def log_abs_det(function: Callable, z: torch.Tensor) -> torch.Tensor:
    """log |det| of the Jacobian at each row of z [n, ...], [n], by autodiff in its precision.

    Every row is repeated once for each of its dimensions, so that one backward pass gives all rows
    of its Jacobian; rows must not depend on each other.
    """
    dim = z[0].numel()
    step = max(1, PROBES // dim)
    values = []
    for rows in z.split(step):
        copies = rows.repeat_interleave(dim, dim=0).requires_grad_()
        output = function(copies).reshape(len(copies), -1)
        if (size := output.shape[1]) != dim:
            raise CannotJudge(f"{dim} numbers become {size}: there is no square Jacobian")
        # The gradient of a sum: `grad_outputs` would import sympy, which takes two seconds.
        numbers = output.view(len(rows), dim, dim).diagonal(dim1=1, dim2=2)
        gradient = torch.autograd.grad(numbers.sum(), copies)[0]
        matrices = gradient.reshape(len(rows), dim, dim)
        values.append(torch.linalg.slogdet(matrices.double())[1])
    return torch.cat(values)
