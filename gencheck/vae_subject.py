"""A VAE as a black box: its loss, the latents it draws, and the posterior they really follow."""

import contextlib
import math
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F

from gencheck.outcomes import (
    CannotJudge,
    changed_weights,
    modules_of,
    perturb,
    replaced,
    seed_everything,
)
from gencheck.vae_heads import MEANINGS, UNKNOWN_HEAD, Posterior, misfit
from gencheck.vae_loss import readings

N_IMAGES = 8  # in a batch of most measurements
N_REPEATS = 256  # of each image, to measure moments of z
ENCODER_STD = 0.02  # noise added to the encoder's weights: standard deviations of 0.2 to 5
DECODER_STD = 0.03  # to the decoder's: reconstructions change by tens of nats, none saturates


class NotCentred(CannotJudge):
    """The latents are centred on neither output of the encoder."""


class Draw(NamedTuple):
    """One call of the loss."""

    loss: torch.Tensor  # as returned, read as a scalar
    z: torch.Tensor  # what the decoder got, [batch, z_dim]
    nll: torch.Tensor  # -log p(x|z) in nats of the decoder's output for z, [batch]


class VAESubject:
    """A VAE under measurement.

    Args:
        loss: binary images [batch, 784] -> average negative ELBO in nats.
        encode: images -> (mean, head); a module, or a method of an object.
        decode: latents -> Bernoulli means or logits; a module, or a method of an object.
        x: binary images, at least 16 different ones, in the shape that `loss` takes.
        sample: n -> generated images and their means; None if there is no such function.
        to_encoder: maps a batch to the shape that `encode` takes.
    """

    def __init__(self, loss, encode, decode, x, sample=None, to_encoder=lambda x: x):
        self.loss, self.encode, self.decode, self.sample = loss, encode, decode, sample
        self.to_encoder = to_encoder
        self.x = x
        self.seed = 0
        self.reading = ""  # of what the loss returns, one of `readings`
        self.modules = modules_of(loss, encode, decode)
        self._to_float64()

    def _to_float64(self):
        """Measure in float64 where the code allows it."""
        for module in self.modules:
            module.train().double()
        with contextlib.suppress(Exception):
            found = readings(self.loss(self.x.double())).values()
            if next(iter(found)).dtype == torch.float64:
                self.x = self.x.double()
                return
        for module in self.modules:
            module.float()

    def to_float32(self) -> None:
        """End the measurements in float64, for good."""
        self.x = self.x.float()
        for module in self.modules:
            module.float()

    @property
    def batch(self) -> torch.Tensor:
        """A batch that depends on the seed of the measurement."""
        return self.x[:N_IMAGES] if self.seed < 2000 else self.x[N_IMAGES : 2 * N_IMAGES]

    @property
    def other_batch(self) -> torch.Tensor:
        """As many other images."""
        return self.x[-N_IMAGES:] if self.seed < 2000 else self.x[:N_IMAGES]

    @cached_property
    def parameters(self) -> tuple[list, list]:
        """The encoder's and the decoder's parameters: those that their outputs depend on.

        What both share, as tied weights, counts as the encoder's.

        Raises:
            CannotJudge: nothing is left for the decoder.
        """
        everything = {id(p): p for m in self.modules for p in m.parameters() if p.requires_grad}
        parameters = list(everything.values())
        heads = self.outputs(self.x[:2])
        encoder = _reaching(heads[0].sum() + heads[1].sum(), parameters)
        shared = {id(p) for p in encoder}
        decoder = _reaching(self.decode(torch.randn_like(heads[0])).sum(), parameters)
        decoder = [p for p in decoder if id(p) not in shared]
        if not decoder:
            raise CannotJudge("encoder and decoder share all weights")
        return encoder, decoder

    @cached_property
    def z_dim(self) -> int:
        """Number of latent dimensions: the width of what the decoder gets.

        Raises:
            CannotJudge: the loss never calls the decoder.
        """
        with self.spied() as calls, torch.no_grad():
            self.loss(self.x[:N_IMAGES])
        return latents_of(calls)[0].shape[-1]

    def outputs(self, x) -> tuple[torch.Tensor, torch.Tensor]:
        """The encoder's two outputs, [batch, z_dim] each.

        It may return them as a pair, a normal distribution, or one tensor [batch, 2 z_dim].
        """
        outputs = self.encode(self.to_encoder(x))
        if isinstance(outputs, torch.distributions.Independent):
            outputs = outputs.base_dist
        if isinstance(outputs, torch.distributions.Normal):
            outputs = outputs.loc, outputs.scale
        if isinstance(outputs, torch.Tensor) and outputs.shape[1:] == (2 * self.z_dim,):
            outputs = outputs.chunk(2, dim=1)
        if not isinstance(outputs, tuple | list) or len(outputs) < 2:
            raise CannotJudge("the encoder doesn't return a mean and a deviation")
        return tuple(outputs[:2])

    @contextlib.contextmanager
    def spied(self) -> Iterator[dict]:
        """Record the inputs of the decoder and its parts, by part: those of the first are z.

        The decoder itself comes first, since the encoder may call a part that both share.
        """
        calls = {}

        def recording(part, function):
            def call(*args, **options):
                if args:
                    calls.setdefault(part, []).append(args[0])
                return function(*args, **options)

            return call

        if isinstance(self.decode, nn.Module):
            calls[self.decode] = []
            parts = [self.decode]
            parts += [
                m
                for m in nn.Module.modules(self.decode)
                if m is not self.decode and next(m.parameters(False), None) is not None
            ]
            targets = [(part, "forward", recording(part, part.forward)) for part in parts]
        elif hasattr(self.decode, "__self__"):
            name = self.decode.__name__
            targets = [(self.decode.__self__, name, recording(name, self.decode))]
        else:
            raise CannotJudge("decode is a plain function, so what the loss gives it isn't seen")
        with replaced(*targets):
            yield calls

    def draw(self, x, seed=None) -> Draw:
        """One call of the loss, with the latents it drew and the likelihood it should report."""
        if seed is not None:
            seed_everything(seed)
        with self.spied() as calls:
            found = readings(self.loss(x.clone()))
        if self.reading not in found:
            raise CannotJudge("the forward pass returns no loss: no scalar, no value per image")
        z, *others = latents_of(calls)
        if not all(torch.equal(z, other) for other in others):
            raise CannotJudge("the loss decodes more than one draw of z")
        return Draw(found[self.reading], z, self.nll(self.decode(z), x))

    def read_as(self, reading: str) -> None:
        """Read what the loss returns in this way; all `posteriors` are likely again."""
        self.reading = reading
        self.__dict__.pop("posteriors", None)

    @cached_property
    def logits(self) -> bool:
        """Whether the decoder returns logits instead of means."""
        z = 3 * torch.randn_like(self.outputs(self.x[:16])[0])
        with changed_weights(self.parameters[1]):
            perturb(self.parameters[1], 0.3, seed=1)
            output = self.decode(z)
        return bool(output.min() < 0 or output.max() > 1)

    def nll(self, output, x) -> torch.Tensor:
        """-log p(x|z) in nats of the decoder's output for z, [batch]."""
        output, x = output.reshape(len(x), -1).double(), x.reshape(len(x), -1).double()
        if output.shape != x.shape:
            raise CannotJudge(f"the decoder returns {output.shape[1]} values for {x.shape[1]}")
        if self.logits:
            return F.binary_cross_entropy_with_logits(output, x, reduction="none").sum(dim=1)
        log_0, log_1 = (part.log().clamp(min=-100) for part in (1 - output, output))
        return -(x * log_1 + (1 - x) * log_0).sum(dim=1)

    @torch.no_grad()
    def latents(self, x, n=N_REPEATS) -> tuple[torch.Tensor, bool]:
        """Latents of every image, [n, batch, z_dim], and whether a batch shares its noise."""
        z = self.draw(x.repeat(n, *[1] * (x.dim() - 1))).z
        z = z.reshape(n, len(x), -1).double()
        spread = z.std(dim=0)
        if (spread > 1e-6 * (1 + z.abs().mean())).any():
            return z, False
        return torch.stack([self.draw(x).z.double() for _ in range(n)]), True

    @cached_property
    def _meanings(self) -> tuple[int, list[str]]:
        """Which of the encoder's outputs is the mean, and what the other one may mean."""
        x = self.x[:N_IMAGES]
        encoder = self.parameters[0]
        with changed_weights(encoder), torch.no_grad():
            perturb(encoder, 2 * ENCODER_STD, seed=5)
            z, _ = self.latents(x)
            outputs = [output.double() for output in self.outputs(x)]
        mean, std = z.mean(dim=0), z.std(dim=0)
        # Squared errors of the mean in units of its standard error: 1 on average if it is right.
        error = [
            ((mean - m).square() / (std.square() / len(z) + 1e-12)).mean().item() for m in outputs
        ]
        i_mean = min((0, 1), key=lambda i: error[i])
        if error[i_mean] > 3:
            raise NotCentred("the latents are centred on neither output of the encoder")
        head = outputs[1 - i_mean]
        misfits = sorted(
            ((misfit(std, of(head)), meaning) for meaning, of in MEANINGS.items()),
            key=lambda pair: pair[0],
        )
        # A log ratio of standard deviations has variance 1 / (2 n).
        return i_mean, [m for error, m in misfits if error * math.sqrt(2 * len(z)) < 2]

    @cached_property
    def posteriors(self) -> list[Posterior]:
        """What the encoder's outputs may mean, judged by many draws of z; the likeliest first.

        It is empty if the deviation is no known function of an output.

        Raises:
            NotCentred: neither output is the mean.
        """
        i_mean, likely = self._meanings

        def reading(meaning):
            return lambda outputs: (outputs[i_mean], MEANINGS[meaning](outputs[1 - i_mean]))

        return [Posterior(meaning, reading(meaning)) for meaning in likely]

    @property
    def posterior(self) -> Posterior:
        """The likeliest of `posteriors`.

        Raises:
            CannotJudge: there is none; NotCentred if neither output of the encoder is the mean.
        """
        if not self.posteriors:
            raise CannotJudge(UNKNOWN_HEAD)
        return self.posteriors[0]

    def prefer(self, posterior: Posterior) -> None:
        """Move a reading that the KL agrees with to the front."""
        self.posteriors.sort(key=lambda other: other is not posterior)

    @contextlib.contextmanager
    def single_precision(self) -> Iterator[None]:
        """Make the modules float32 inside the block: `sample` draws float32 latents."""
        precision = self.x.dtype
        for module in self.modules:
            module.float()
        try:
            yield
        finally:
            for module in self.modules:
                module.to(precision)

    @contextlib.contextmanager
    def encoder_setting(self, i: int) -> Iterator[None]:
        """Perturb the encoder, differently for each i; restore it after the block."""
        encoder = self.parameters[0]
        with changed_weights(encoder):
            perturb(
                encoder,
                ENCODER_STD * (0.5, 1.5, 2.5, 0.5, 1.0, 0.5, 0.5)[i % 7],
                seed=self.seed + i,
            )
            for parameter in encoder:
                if parameter.shape in ((self.z_dim,), (2 * self.z_dim,)):  # of one head, of both
                    parameter.data.add_((0.0, 0.4, -0.4, 0.8, 1.2, 2.0, 3.0)[i % 7])
            yield

    @contextlib.contextmanager
    def finite(self) -> Iterator[None]:
        """Perturb the encoder inside the block if the loss is not finite as it is.

        A standard deviation through ReLU is 0 for half of a new encoder's units.
        """
        if self.draw(self.batch).loss.isfinite():
            yield
        else:
            with self.encoder_setting(6):
                yield

    def recon_and_kl(self, x, n=4, seed=None) -> tuple[float, float, float]:
        """Fit loss = c * recon + K over n random decoders: (c, K, largest residual), in nats.

        With a seed all decoders get the same z, so K may depend on it.
        """
        decoder = self.parameters[1]
        losses, nlls = [], []
        with changed_weights(decoder), torch.no_grad():
            for i in range(n):
                perturb(decoder, DECODER_STD / math.sqrt(i + 1), seed=self.seed + 77 * i)
                draw = self.draw(x, seed)
                losses.append(draw.loss.double())
                nlls.append(draw.nll.mean())
        losses, nlls = torch.stack(losses), torch.stack(nlls)
        if not losses.isfinite().all():
            raise CannotJudge("the loss is not finite")
        centred = nlls - nlls.mean()
        c = ((losses - losses.mean()) @ centred / centred.square().sum()).item()
        k = (losses.mean() - c * nlls.mean()).item()
        return c, k, (losses - c * nlls - k).abs().max().item()


def latents_of(calls) -> list[torch.Tensor]:
    """What the decoder got in each of these recorded calls."""
    inputs = next((inputs for inputs in calls.values() if inputs), None)
    if inputs is None:
        raise CannotJudge("the loss never calls the decoder")
    return inputs


def _reaching(output, parameters) -> list:
    gradients = torch.autograd.grad(output, parameters, allow_unused=True)
    return [p for p, gradient in zip(parameters, gradients) if gradient is not None]
