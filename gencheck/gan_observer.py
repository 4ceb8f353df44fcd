"""Watching a GAN's training from outside, through the steps of its optimisers.

At every step the gradient in `.grad` is written as a combination of the gradients of log D and
log(1 - D), real and generated images apart, which this module computes itself at the same weights.
The coefficients show the labels, whatever the loss is divided by.
"""

import contextlib
import math
import time

import torch
import torch.nn as nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from gencheck.gan_calls import Call, gradient_of, row_sums
from gencheck.gan_explain import WANTED, Explainer
from gencheck.gan_step import EXPLAINED
from gencheck.modules import replaced, without_dropout
from gencheck.outcomes import CannotJudge

LOGIT_STD = 1.2  # of the rescaled discriminator: its probabilities must differ between images
LARGE = 1e4  # factor on D's last weights, at which only probabilities stay in [0, 1]
SECONDS = 25  # of processor time; after them one of each is enough
MAX_STEPS = 60  # of both networks


class Stop(BaseException):
    """Enough steps were seen. No submission's `except Exception` catches it."""


class Observer(Explainer):
    """Context manager that watches a generator and a discriminator.

    Args:
        generator, discriminator: the modules.
        d_loss, g_loss: the losses that the caller states; None reads the labels of a cross-entropy.
    """

    def __init__(self, generator: nn.Module, discriminator: nn.Module, d_loss=None, g_loss=None):
        super().__init__(generator, discriminator, d_loss, g_loss)
        self.latents, self.real_range = [], [math.inf, -math.inf]
        self.last_of_generator: Call | None = None
        self.total = 0
        self.before, self.deadline = {}, math.inf

    def __enter__(self):
        self.deadline = time.process_time() + SECONDS
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
        inside, whole = [False], net.module.forward
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
                saw(Call.of(args, options), output if function is whole else None)
                return output

            return call

        spies = [(net.module, "forward", wrap(whole))]
        return spies if leaf is net.module else [*spies, (leaf, "forward", wrap(leaf.forward))]

    def saw_batch(self, batch) -> None:
        """Remember the images of a batch that the training is given."""
        for part in batch if isinstance(batch, tuple | list) else [batch]:
            if isinstance(part, torch.Tensor) and part.is_floating_point() and part.dim() > 1:
                self.real_sums.update(row_sums(part))

    def _saw_latent(self, call, images):
        if self.g.module.training and torch.is_grad_enabled():  # no picture's latents
            self.latents.append(call.main)
            self.last_of_generator = call
        self.g.calls.append(call)
        if images is None:  # its first layer was called
            with torch.no_grad(), self._unseen():
                images = call.again(self.g.module)
        if not isinstance(images, torch.Tensor):
            raise CannotJudge(f"the generator returns {type(images).__name__}, not images")
        self.fakes.update(row_sums(images))

    def _saw_images(self, call, output):
        if output is not None and not isinstance(output, torch.Tensor):
            raise CannotJudge(
                f"the discriminator returns {type(output).__name__}, not one number for each "
                "image: its losses are not judged"
            )
        self.d.calls.append(call)

    def _on_backward(self, net, parameter):
        def hook(gradient):
            before = gradient_of([parameter])
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
            other = self.d if net is self.g else self.g
            for call in self.d.calls if self.rescaled else ():
                self._see_range(call)
            with self._unseen():
                step = self._explain(net, gradient_of(net.parameters))
                if step is not None and step.residual > EXPLAINED and other.previous:
                    step = self._explain_before(net, other) or step
            net.previous = [p.detach().clone() for p in net.parameters]
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
            net.older, net.calls = net.calls, []
        for net in (self.g, self.d):
            net.mark = len(net.calls)
            net.leftover.clear()
        self.total += 1
        if self.has_enough or self.total >= MAX_STEPS:
            raise Stop

    @property
    def has_enough(self) -> bool:
        """Whether enough steps of both networks were seen."""
        late = time.process_time() > self.deadline
        both = all(any(step.sides[i] for step in self.d.steps) for i in (0, 1))
        wanted = 1 if late else WANTED
        return all(len(net.steps) >= wanted for net in (self.g, self.d)) and (both or late)

    def _see_range(self, call):
        if self.real_sums and not self._are_real(call):
            return
        rows = [i for i, value in enumerate(call.sums) if value not in self.fakes]
        if rows:
            real = call.main[rows]
            low, high = self.real_range
            self.real_range = [min(low, real.min().item()), max(high, real.max().item())]

    @torch.no_grad()
    def _rescale(self):
        """Make D's probabilities differ between images, by its last layer's weights."""
        shape = self.d.calls[-1].main.shape[1:] if self.d.calls else None
        calls = [call for call in self.d.calls if call.main.shape[1:] == shape]
        if not calls:
            return
        *_, last = (p for p in self.d.module.parameters() if p.dim() > 1)
        *_, bias = self.d.module.parameters()
        with self._unseen():
            last.data.mul_(LARGE)
            scaled = torch.cat([call.again(self.d.module).reshape(-1) for call in calls])
            last.data.div_(LARGE)
            self.logits = bool(scaled.min() < 0 or scaled.max() > 1)
            self.width = len(scaled) // sum(len(call.main) for call in calls)
            logits = torch.cat([self._log_odds(call) for call in calls])
        factor = (LOGIT_STD / logits.std().clamp(min=1e-4)).item()
        last.data.mul_(factor)
        shares = {1: [1.0], 2: [-0.5, 0.5]}.get(self.width)  # of each output in the logit
        if shares and bias.shape == (self.width,):
            bias.data.copy_(factor * (bias - logits.mean() * torch.tensor(shares)))
        self.d.start = [p.detach().clone() for p in self.d.module.parameters()]
        self.rescaled = True
