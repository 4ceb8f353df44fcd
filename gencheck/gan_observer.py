"""Watching a GAN's training from outside, through the steps of its optimisers.

At every step the gradient in `.grad` is written as a combination of the gradients of log D and
log(1 - D), real and generated images apart, which this module computes itself at the same weights.
The coefficients show the labels, whatever the loss is divided by.
"""

import contextlib
import math
import time
from dataclasses import dataclass, field

import torch
import torch.nn as nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from gencheck.gan_step import EXPLAINED, Step, fit
from gencheck.outcomes import changed_weights, replaced, without_dropout

LOGIT_STD = 1.2  # of the rescaled discriminator: its probabilities must differ between images
WANTED = 3  # steps of each network to look at
SECONDS = 25  # after this time, one of each is enough


class Stop(BaseException):
    """Enough steps were seen. No submission's `except Exception` catches it."""


@dataclass
class Watched:
    """A network: its module, its calls and steps."""

    module: nn.Module
    calls: list = field(default_factory=list)
    mark: int = 0  # calls before the last step of any network
    steps: list[Step] = field(default_factory=list)
    # Gradients, by parameter, before the first backward pass after a step of any network, or
    # after gradients were set to zero.
    leftover: dict[int, torch.Tensor] = field(default_factory=dict)
    start: list = field(default_factory=list)

    @property
    def parameters(self) -> list:
        """Its trainable parameters."""
        return [p for p in self.module.parameters() if p.requires_grad]

    def moved(self) -> float:
        """Norm of the change of its weights since the start."""
        changes = [(p.detach() - s).norm() for p, s in zip(self.module.parameters(), self.start)]
        return torch.stack(changes).norm().item()


class Observer:
    """Context manager that watches a generator and a discriminator.

    Args:
        generator, discriminator: the modules.
        n_steps: steps of both networks after which to stop at the latest.
    """

    def __init__(self, generator: nn.Module, discriminator: nn.Module, n_steps: int = 60):
        self.g, self.d = Watched(generator), Watched(discriminator)
        self.n_steps = n_steps
        self.latents, self.real_range = [], [math.inf, -math.inf]
        self.fakes: dict[float, bool] = {}
        self.paused, self.rescaled, self.total = False, False, 0
        self.logits = False
        self.before, self.deadline = {}, math.inf

    def __enter__(self):
        self.deadline = time.monotonic() + SECONDS
        for net in (self.g, self.d):
            net.start = [p.detach().clone() for p in net.module.parameters()]
        self.handles = [
            register_optimizer_step_pre_hook(self._before_step),
            register_optimizer_step_post_hook(self._after_step),
        ]
        for net in (self.g, self.d):
            for parameter in net.parameters:
                self.handles.append(parameter.register_hook(self._on_backward(net, parameter)))
        targets = [*self._spies(self.g, self._saw_latent), *self._spies(self.d, self._saw_images)]
        self.spying = contextlib.ExitStack()
        self.spying.enter_context(replaced(*targets))
        self.spying.enter_context(without_dropout())
        return self

    def __exit__(self, kind, error, trace):
        self.spying.close()
        for handle in self.handles:
            handle.remove()
        return kind is Stop

    def _spies(self, net, saw):
        """Wrap a network's forward and its first layer's, whichever is called first."""
        inside = [False]
        leaf = next(
            m for m in nn.Module.modules(net.module) if next(m.parameters(False), None) is not None
        )

        def wrap(function):
            def call(*args, **options):
                if self.paused or inside[0]:
                    return function(*args, **options)
                inside[0] = True
                try:
                    output = function(*args, **options)
                finally:
                    inside[0] = False
                saw([*args, *options.values()][0], output)
                return output

            return call

        parts = [net.module] if leaf is net.module else [net.module, leaf]
        return [(part, "forward", wrap(part.forward)) for part in parts]

    def _saw_latent(self, z, images):
        z = z.detach().clone()
        if self.g.module.training and torch.is_grad_enabled():  # no picture's latents
            self.latents.append(z)
        self.g.calls.append(z)
        if images.dim() > 1 and images[0].numel() >= 784:
            self._remember(images)
        else:
            with torch.no_grad(), self._unseen():
                self._remember(self.g.module(z))

    def _remember(self, images):
        self.fakes.update({value: True for value in _row_sums(images)})

    def _saw_images(self, images, _):
        self.d.calls.append(images.detach().clone())

    def _on_backward(self, net, parameter):
        def hook(gradient):
            before = _gradient_of([parameter])
            if not self.paused and (id(parameter) not in net.leftover or not before.any()):
                net.leftover[id(parameter)] = before

        return hook

    def _owner(self, optimizer):
        mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
        return [net for net in (self.g, self.d) if mine & {id(p) for p in net.parameters}]

    def _before_step(self, optimizer, args, options):
        if self.paused:
            return
        nets = self._owner(optimizer)
        self.before = {}
        for net in nets:
            with self._unseen():
                step = self._explain(net, _gradient_of(net.parameters))
            other = self.d if net is self.g else self.g
            self.before[id(other)] = [p.detach().clone() for p in other.parameters]
            if step is not None:
                net.steps.append(step)

    def _after_step(self, optimizer, args, options):
        nets = self._owner(optimizer)
        for net in nets:
            other = self.d if net is self.g else self.g
            before = self.before.get(id(other), [])
            moved = any(not torch.equal(p, b) for p, b in zip(other.parameters, before))
            if net.steps:
                net.steps[-1].other_moved |= moved
            if net is self.d and not self.rescaled:
                self._rescale()
            net.calls.clear()
        for net in (self.g, self.d):
            net.mark = len(net.calls)
            net.leftover.clear()
        self.total += 1
        if self._has_enough() or self.total >= self.n_steps:
            raise Stop

    def _has_enough(self):
        late = time.monotonic() > self.deadline
        both = all(any(step.sides[i] for step in self.d.steps) for i in (0, 1))
        wanted = 1 if late else WANTED
        return all(len(net.steps) >= wanted for net in (self.g, self.d)) and (both or late)

    @contextlib.contextmanager
    def _unseen(self):
        """Call the networks inside the block without a trace: batch statistics are restored."""
        buffers = [b for net in (self.g, self.d) for b in net.module.buffers()]
        paused, self.paused = self.paused, True
        try:
            with changed_weights(buffers):
                yield
        finally:
            self.paused = paused

    def _outputs(self, images):
        """What the discriminator returns, [batch]."""
        return self.d.module(images).reshape(len(images), -1).mean(dim=1)

    def _log_odds(self, images):
        """The discriminator's logits, [batch]."""
        output = self._outputs(images)
        if self.logits:
            return output
        return torch.logit(output.double(), eps=1e-12).to(output.dtype)

    def _explain(self, net, gradient) -> Step | None:
        """Fit the gradient before a step; None before the discriminator is rescaled."""
        parts = [net.leftover.get(id(p), torch.zeros(p.numel())) for p in net.parameters]
        leftover = any(bool(part.any()) for part in parts)
        gradient = gradient - torch.cat(parts)
        if not self.rescaled:
            return None
        for images in self.d.calls:
            self._see_range(images)
        columns = self._generator_columns if net is self.g else self._discriminator_columns
        # The calls since the last step of either network are most likely this loss's.
        newest, all_calls = net.calls[net.mark :], net.calls
        candidates = [calls for calls in (newest, all_calls) if calls]
        fits = [fit(columns(calls), gradient) for calls in candidates]
        if not fits:
            return None
        first, last = fits[0], fits[-1]
        coefficients, residual = first if first[1] < max(EXPLAINED, 1.25 * last[1]) else last
        width = 4 if net is self.d else 2
        summed = [sum(coefficients[i::width]) for i in range(width)]
        others = [
            fit(self._discriminator_columns(calls, self._outputs), gradient)[1]
            for calls in candidates
            if net is self.d and not self.logits
        ]
        of_probabilities = min(others, default=math.inf) < min(EXPLAINED, residual / 5)
        d_fake = self._d_of_fakes() if net is self.d else math.nan
        return Step(summed, d_fake, residual, leftover, of_probabilities)

    @torch.no_grad()
    def _d_of_fakes(self) -> float:
        """The average of D over generated images since its last step; NaN without any."""
        values = [
            torch.sigmoid(self._log_odds(images))[self._are_fake(images)] for images in self.d.calls
        ]
        return torch.cat(values).mean().item() if values else math.nan

    def _are_fake(self, images):
        return torch.tensor([value in self.fakes for value in _row_sums(images)])

    def _discriminator_columns(self, calls, log_odds=None):
        """Per call: gradients of mean log D, log(1 - D) over real rows, and over generated ones.

        D is the sigmoid of `log_odds`, by default the discriminator's.
        """
        log_odds = log_odds or self._log_odds
        columns, seen = [], set()
        for images in calls:
            sums = _row_sums(images)
            if tuple(sums) in seen:
                continue
            seen.add(tuple(sums))
            fake, logits = self._are_fake(images), log_odds(images)
            columns += [
                self._gradient(sign * logits[rows], self.d.parameters)
                for rows in (~fake, fake)
                for sign in (1, -1)
            ]
        return columns

    def _generator_columns(self, calls):
        columns = []
        for z in calls[-3:]:
            logits = self._log_odds(self.g.module(z))
            columns += [self._gradient(sign * logits, self.g.parameters) for sign in (1, -1)]
        return columns

    @staticmethod
    def _gradient(logits, parameters):
        if len(logits) == 0:
            return torch.zeros(sum(p.numel() for p in parameters))
        value = nn.functional.logsigmoid(logits).mean()
        parts = torch.autograd.grad(value, parameters, retain_graph=True)
        return torch.cat([part.flatten() for part in parts])

    def _see_range(self, images):
        rows = [i for i, value in enumerate(_row_sums(images)) if value not in self.fakes]
        if rows:
            real = images[rows]
            low, high = self.real_range
            self.real_range = [min(low, real.min().item()), max(high, real.max().item())]

    @torch.no_grad()
    def _rescale(self):
        """Make D's probabilities differ between images, by its last layer's weights."""
        calls = [
            images for images in self.d.calls if images.shape[1:] == self.d.calls[-1].shape[1:]
        ]
        if not calls:
            return
        images = torch.cat(calls)
        *_, last = (p for p in self.d.module.parameters() if p.dim() > 1)
        *_, bias = self.d.module.parameters()
        with self._unseen():
            raw = self.d.module(images).reshape(-1)
            last.data.mul_(50)
            scaled = self.d.module(images)
            last.data.div_(50)
        self.logits = bool(scaled.min() < 0 or scaled.max() > 1)
        logits = raw if self.logits else torch.logit(raw, eps=1e-7)
        factor = (LOGIT_STD / logits.std().clamp(min=1e-4)).item()
        last.data.mul_(factor)
        if bias.shape == (1,):
            bias.data.copy_(-factor * (logits.mean() - bias))
        self.d.start = [p.detach().clone() for p in self.d.module.parameters()]
        self.rescaled = True


def _gradient_of(parameters) -> torch.Tensor:
    """What is in `.grad`, flat; zeros where there is nothing."""
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    return torch.cat([part.flatten() for part in parts])


def _row_sums(images) -> list[float]:
    return images.detach().flatten(1).double().sum(dim=1).tolist()
