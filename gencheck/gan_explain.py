"""Gradients of a GAN's steps as combinations of the gradients of its losses.

Those are computed here, at the same weights, for the same calls.
"""

import contextlib
import math
from functools import partial

import torch
import torch.nn as nn

from gencheck.gan_calls import Call, Watched, gradient_of, gradients_of, row_sums
from gencheck.gan_losses import (
    D_LOSSES,
    G_LOSSES,
    is_function_of,
    penalties,
    terms_of_d,
    terms_of_g,
)
from gencheck.gan_step import EXPLAINED, Pulls, Step, fit, fit_with_penalties
from gencheck.modules import changed_weights

ENTRIES = 100_000  # of a gradient that tell the images apart
FEATURES = 8  # images on a side that are too few to tell random labels
STATED = 1e-2  # of a gradient's norm may be left by a stated loss
EXACT = 1e-3  # of a gradient's norm is left by a loss that is the right one
MAX_PULLS = {"d": 12, "g": 2}  # steps at which the pull of each image is fitted
WANTED = 3  # steps of each network to look at


class Explainer:
    """Two watched networks, and what explains the gradients of their steps.

    Args:
        generator, discriminator: the modules.
        d_loss, g_loss: the losses that the caller states; None reads the labels of a cross-entropy.
    """

    def __init__(self, generator: nn.Module, discriminator: nn.Module, d_loss, g_loss):
        self.g, self.d = Watched(generator), Watched(discriminator)
        self.stated = {"d": d_loss, "g": g_loss}
        self.real_sums: set[float] = set()  # of rows of the batches that the training is given
        self.fakes: set[float] = set()  # of rows that the generator made
        self.paused, self.rescaled, self.logits = False, False, False
        self.width = 1  # numbers that the discriminator returns for an image; 2: of two classes
        self.backward = contextlib.nullcontext  # in which gradients are calculated

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

    def _outputs(self, call, images=None):
        """What the discriminator returns, [batch]; of two classes, the second less the first."""
        output = call.again(self.d.module, images).reshape(len(call.main), -1)
        return output[:, 1] - output[:, 0] if self.width == 2 else output.mean(dim=1)

    def _log_odds(self, call, images=None):
        """The discriminator's logits, [batch]."""
        outputs = self._outputs(call, images)
        if self.width == 2 and not self.logits:  # of probabilities that sum to 1
            outputs = (1 + outputs) / 2
        return self._to_logits(outputs)

    def _to_logits(self, output):
        if self.logits:
            return output
        return torch.logit(output.double(), eps=1e-12).to(output.dtype)

    def _explain_before(self, net, other) -> Step | None:
        """Fit the gradient at the other network's weights before its last step.

        The backward pass may have come before that step, or only the forward pass: PyTorch before
        1.5 went back through the new weights then. None where neither explains it.
        """
        now = [p.detach().clone() for p in other.parameters]
        for backward in (contextlib.nullcontext, partial(_weights, other.parameters, now)):
            self.backward = backward
            try:
                with _weights(other.parameters, other.previous):
                    step = self._explain(net, gradient_of(net.parameters))
            finally:
                self.backward = contextlib.nullcontext
            if step is not None and step.residual < EXPLAINED:
                return step
        return None

    def _explain(self, net, gradient) -> Step | None:
        """Fit the gradient before a step; None before the discriminator is rescaled."""
        parts = [net.leftover.get(id(p), torch.zeros(p.numel())) for p in net.parameters]
        leftover = any(bool(part.any()) for part in parts)
        gradient = gradient - torch.cat(parts)
        if not self.rescaled:
            return None
        if self.stated["d" if net is self.d else "g"] is not None:
            return self._explain_stated(net, gradient, leftover)
        columns = self._generator_columns if net is self.g else self._discriminator_columns
        # The calls since the last step of either network are most likely this loss's.
        candidates = [net.calls[net.mark :]] if net.mark else []
        candidates = [calls for calls in (*candidates, net.calls) if calls]
        if not candidates:
            return None
        coefficients, residual = fit(columns(candidates[0]), gradient)
        if residual >= EXPLAINED and len(candidates) > 1:
            wider = fit(columns(candidates[1]), gradient)
            if residual >= 1.25 * wider[1]:
                coefficients, residual = wider
        width = 4 if net is self.d else 2
        summed = [sum(coefficients[i::width]) for i in range(width)]
        others = [
            fit(self._discriminator_columns(calls, self._outputs), gradient)[1]
            for calls in candidates
            if net is self.d and not self.logits and residual > EXACT
        ]
        of_probabilities = min(others, default=math.inf) < min(EXPLAINED, residual / 5)
        step = Step(summed, residual, leftover, of_probabilities)
        if residual > EXACT and not of_probabilities:
            step.looks_like = self._looks_like(net, gradient, residual)
        is_partly = residual > EXACT or (net is self.d and not all(step.sides))
        is_partly &= self.width <= 2  # of more classes no number for an image is the logit
        few = len(net.steps) < MAX_PULLS["d" if net is self.d else "g"]
        if is_partly and few and not (of_probabilities or step.looks_like):
            step.pulls = self._pulls(net, candidates[0], gradient)
        return step

    def _explain_stated(self, net, gradient, leftover) -> Step | None:
        """Fit a gradient with the stated loss's, and with those of gradient penalties."""
        columns, n_terms = self._stated_columns(net, self.stated["d" if net is self.d else "g"])
        if not n_terms:
            return None
        coefficients, residual = fit(columns[:n_terms], gradient)
        if residual > STATED:
            coefficients, residual = fit_with_penalties(columns, n_terms, gradient)
        return Step(coefficients, residual, leftover, n_terms=n_terms)

    def _stated_columns(self, net, loss):
        """Gradients of the loss's terms and of penalties at the newest calls, and their number."""
        calls = self.d.calls[self.d.mark :]
        real, fake, others = self._sorted(calls)
        if net is self.g:
            if not net.calls:
                return [], 0
            call = net.calls[-1]
            images = call.again(self.g.module)
            sums = row_sums(images)
            like = self._call_with(sums) or fake
            if like is None:
                return [], 0
            if real is None:
                real = self._sorted(self.d.older)[0]
            output = like.again(self.d.module, images)
            others_output = None if real is None else real.again(self.d.module).detach()
            terms, weights = terms_of_g(loss, others_output, output, self._to_logits), []
        else:
            outputs = [call and call.again(self.d.module) for call in (real, fake)]
            terms = terms_of_d(loss, *outputs, self._to_logits)
            at = [(c, c.main.requires_grad_()) for c in [*others, *([real] if real else [])]]
            weights = [p for c, x in at for p in penalties(c.again(self.d.module), x)]
        gradients = [gradients_of(term, net.parameters) for term in [*terms, *weights]]
        return gradients, len(terms)

    def _call_with(self, sums) -> Call | None:
        """The discriminator's last call with these images."""
        calls = [*self.d.older, *self.d.calls]
        return next((call for call in reversed(calls) if call.sums == sums), None)

    def _sorted(self, calls):
        """The last call with real images, with generated ones, and those with others."""
        real, fake, others = None, None, []
        known = any(self._are_real(call) for call in calls)
        for call in calls:
            if all(value in self.fakes for value in call.sums):
                fake = call
            elif self._are_real(call) or (real is None and not known):
                real = call
            else:
                others.append(call)
        return real, fake, others

    def _are_real(self, call) -> bool:
        return all(value in self.real_sums for value in call.sums)

    def _looks_like(self, net, gradient, residual) -> str:
        """The name of a loss that explains the gradient far better than a cross-entropy, or ""."""
        names = D_LOSSES if net is self.d else G_LOSSES
        for name in names:
            columns, n_terms = self._stated_columns(net, name)
            if n_terms:
                coefficients, rest = fit(columns[:n_terms], gradient)
                if rest < min(EXACT, residual / 10) and min(coefficients) > 0:
                    return name
        return ""

    def _pulls(self, net, calls, gradient) -> Pulls | None:
        """How each image pulls, or None where that doesn't explain the gradient."""
        if net is self.g:
            images = calls[-1].again(self.g.module)
            like = self._call_with(row_sums(images)) or Call.of((images,), {})
            outputs, fake = self._log_odds(like, images), torch.ones(len(images), dtype=torch.bool)
        else:
            outputs = torch.cat([self._log_odds(call) for call in calls])
            fake = torch.cat([self._are_fake(call) for call in calls])
        stride = 1 + len(gradient) // ENTRIES
        columns = [gradients_of(output, net.parameters)[::stride] for output in outputs]
        coefficients, residual = fit(columns, gradient[::stride])
        if residual > EXPLAINED:
            return None
        strengths, outputs = torch.tensor(coefficients), outputs.detach()
        small = 1e-3 * strengths.abs().max()  # a loss may leave out all images of one kind
        used = torch.zeros_like(fake)
        for rows in (fake, ~fake):
            used[rows] = (strengths[rows].abs() > small).any()
        strengths, outputs, fake = strengths[used], outputs[used], fake[used]
        is_random = any(
            rows.sum() > FEATURES and not is_function_of(strengths[rows], outputs[rows])
            for rows in (fake, ~fake)
        )
        return Pulls(strengths, torch.sigmoid(outputs), fake, is_random)

    def _are_fake(self, call):
        return torch.tensor([value in self.fakes for value in call.sums])

    def _discriminator_columns(self, calls, log_odds=None):
        """Per call: gradients of mean log D, log(1 - D) over real rows, and over generated ones.

        D is the sigmoid of `log_odds`, by default the discriminator's.
        """
        log_odds = log_odds or self._log_odds
        columns, seen = [], set()
        for call in calls:
            if tuple(call.sums) in seen:
                continue
            seen.add(tuple(call.sums))
            fake, logits = self._are_fake(call), log_odds(call)
            columns += [
                self._gradient(sign * logits[rows], self.d.parameters)
                for rows in (~fake, fake)
                for sign in (1, -1)
            ]
        return columns

    def _generator_columns(self, calls):
        columns = []
        for call in calls[-3:]:
            images = call.again(self.g.module)
            sums = row_sums(images)
            # The discriminator may have seen them among others, or rounded otherwise.
            like = self._call_with(sums) or Call.of((images,), {})
            logits = self._log_odds(like, images)
            columns += [self._gradient(sign * logits, self.g.parameters) for sign in (1, -1)]
        return columns

    def _gradient(self, logits, parameters):
        if len(logits) == 0:
            return torch.zeros(sum(p.numel() for p in parameters))
        value = nn.functional.logsigmoid(logits).mean()
        with self.backward():
            return gradients_of(value, parameters)


@contextlib.contextmanager
def _weights(parameters, values):
    """Give parameters these values inside the block, in their memory."""
    with changed_weights(parameters):
        for parameter, value in zip(parameters, values):
            parameter.data.copy_(value)
        yield
