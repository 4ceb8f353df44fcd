"""A VAE as a black box: its loss, the latents it draws, and the posterior they really follow."""

import contextlib
import math
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn as nn
from torch.distributions import Distribution, Independent

from gencheck.outcomes import (
    CannotJudge,
    changed_weights,
    float32_sum_error,
    leaves,
    modules_of,
    perturb,
    replaced,
    seed_everything,
)
from gencheck.vae_heads import MEANINGS, UNKNOWN_HEAD, Posterior, kl_divergence, misfit
from gencheck.vae_loss import readings
from gencheck.vae_nll import Likelihood, tensors

N_IMAGES = 8  # in a batch of most measurements
N_REPEATS = 256  # of each image, to measure moments of z
LARGE = 4096  # numbers in an example: above, a quarter of the repeats
ROWS = 512  # examples in a call of the loss for them
ENCODER_STD = 0.02  # noise added to the encoder's weights: standard deviations of 0.2 to 5
DECODER_STD = 0.03  # to the decoder's: reconstructions change by tens of nats, none saturates


class NotCentred(CannotJudge):
    """The latents are centred on neither output of the encoder."""


class Reached(BaseException):
    """The decoder is called, and all that was wanted is seen."""


class Draw(NamedTuple):
    """One call of the loss."""

    loss: torch.Tensor  # as returned, read as a scalar
    z: torch.Tensor  # what the decoder got, [batch, z_dim]
    nll: torch.Tensor  # -log p(x|z) in nats of the decoder's output for z, [batch]


class VAESubject:
    """A VAE under measurement.

    Args:
        loss: examples [batch, ...] -> average negative ELBO in nats.
        encode: examples -> (mean, head); a module, or a method of an object.
        decode: latents -> parameters of p(x|z); a module, or a method of an object.
        x: at least 16 different examples, in the shape that `loss` takes.
        sample: n -> generated examples and their means; None if there is no such function.
        to_encoder: maps a batch to the shape that `encode` takes.
        likelihood: p(x|z).
        beta: the factor on the KL that is meant.
        batch_size: of all calls of `loss`, where it takes no other.
        extract: what `encode` returns -> (mean, log variance).
    """

    stops_early = False  # whether the loss may be left once the latents are seen

    def __init__(
        self,
        loss,
        encode,
        decode,
        x,
        sample=None,
        to_encoder=lambda x: x,
        likelihood=None,
        beta=1.0,
        batch_size=None,
        extract=None,
    ):
        self.loss, self.encode, self.decode, self.sample = loss, encode, decode, sample
        self.to_encoder, self.extract = to_encoder, extract
        self.likelihood = likelihood or Likelihood()
        self.beta, self.batch_size = beta, batch_size
        self.x = x
        self.seed = 0
        self.reading = ""  # of what the loss returns, one of `readings`
        self.modules = modules_of(loss, encode, decode)
        self._to_float64()

    def _to_float64(self):
        """Measure in float64 where the code allows it."""
        if not self.x.is_floating_point():
            return
        for module in self.modules:
            module.train().double()
        with contextlib.suppress(Exception):
            found = readings(self.loss(self.x[: self.batch_size].double())).values()
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
    def dim(self) -> int:
        """Numbers in an example."""
        return self.x[0].numel()

    @cached_property
    def n_images(self) -> int:
        """Examples in a batch: not as many as latent dimensions, to tell averages apart."""
        return self.batch_size or N_IMAGES - (self.z_dim == N_IMAGES)

    @property
    def batch(self) -> torch.Tensor:
        """A batch that depends on the seed of the measurement."""
        n = self.n_images
        return self.x[:n] if self.seed < 2000 else self.x[n : 2 * n]

    @property
    def other_batch(self) -> torch.Tensor:
        """As many other images."""
        n = self.n_images
        return self.x[-n:] if self.seed < 2000 else self.x[:n]

    @cached_property
    def parameters(self) -> tuple[list, list]:
        """The encoder's and the decoder's parameters: those that their outputs depend on.

        What both share, as tied weights, counts as the encoder's.

        Raises:
            CannotJudge: one of them has none.
        """
        with torch.enable_grad():
            encoder = leaves(*self.outputs(self.batch))
            decoder = leaves(*outputs_of(self.decode(self.prior_draws(len(self.batch)))))
        shared = {id(p) for p in encoder}
        rest = [p for p in decoder if id(p) not in shared]
        for name, found in (("encoder", encoder), ("decoder", decoder)):
            if not found:
                raise CannotJudge(
                    f"the {name}'s output has no gradient: its weights are frozen, or it is "
                    "calculated under no_grad; pass it with requires_grad_(True)"
                )
        if not rest:
            raise CannotJudge("encoder and decoder share all weights")
        return encoder, rest

    @cached_property
    def _z_shape(self) -> torch.Size:
        """Shape of what the decoder gets for one example.

        Raises:
            CannotJudge: the loss never calls the decoder.
        """
        n = self.batch_size or N_IMAGES
        with self.spied() as calls, torch.no_grad():
            self.loss(self.x[:n])
        z = latents_of(calls)[0]
        if len(z) != n:
            raise CannotJudge(
                f"the decoder gets {len(z)} latents for {n} examples: bounds of several draws, "
                "as an IWAE's, are not judged"
            )
        return z.shape[1:]

    @property
    def z_dim(self) -> int:
        """Number of latent dimensions: the width of what the decoder gets."""
        return self._z_shape.numel()

    def prior_draws(self, n: int, std: float = 1.0) -> torch.Tensor:
        """Latents from N(0, std^2), in the shape that the decoder gets."""
        reference = self.outputs(self.x[: self.n_images])[0]
        return std * reference.new_empty(n, *self._z_shape).normal_()

    def outputs(self, x) -> tuple[torch.Tensor, ...]:
        """What the encoder returns, [batch, z_dim] each, its mean and deviation among them.

        They may be in a tuple, a dictionary, a normal distribution, or one tensor
        [batch, 2 z_dim, ...].
        """
        returned = self.encode(self.to_encoder(x))
        if self.extract is not None:
            returned = self.extract(returned)
        found = outputs_of(returned)
        n, width = len(x), self.z_dim
        fitting = [part.reshape(n, -1) for part in found if part.numel() == n * width]
        if len(fitting) < 2:
            halves = [part.chunk(2, dim=1) for part in found if part.numel() == 2 * n * width]
            fitting = [half.reshape(n, -1) for half in halves[0]] if halves else found
        if len(fitting) < 2:
            shapes = ", ".join(str(list(part.shape)) for part in found) or type(returned).__name__
            raise CannotJudge(
                f"the encoder returns {shapes}, no mean and deviation of {width} latents each: "
                "pass extract=, which turns it into (mean, log variance)"
            )
        return tuple(fitting)

    @contextlib.contextmanager
    def spied(self, early: bool = False) -> Iterator[dict]:
        """Record the inputs of the decoder and its parts, by part: those of the first are z.

        The decoder itself comes first, since the encoder may call a part that both share. With
        `early` the first call of the decoder itself ends what runs in the block.
        """
        calls = {}

        def recording(part, function):
            def call(*args, **options):
                given = [*args, *options.values()]
                if given:
                    calls.setdefault(part, []).append(given[0])
                if early and given:
                    raise Reached
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
            if early:
                parts = parts[:1]
            targets = [(part, "forward", recording(part, part.forward)) for part in parts]
        elif hasattr(self.decode, "__self__"):
            name = self.decode.__name__
            targets = [(self.decode.__self__, name, recording(name, self.decode))]
        else:
            raise CannotJudge(
                "decode is a plain function, so what the loss gives it isn't seen: pass a module, "
                "or a method of an object, that the loss calls"
            )
        with replaced(*targets), contextlib.suppress(Reached):
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
            raise CannotJudge("the loss decodes more than one draw of z, which is not judged")
        return Draw(found[self.reading], z, self.nll(self.decode(z), x))

    def read_as(self, reading: str) -> None:
        """Read what the loss returns in this way; all `posteriors` are likely again."""
        self.reading = reading
        self.__dict__.pop("posteriors", None)

    @cached_property
    def _likelihood(self) -> Likelihood:
        """The likelihood, once the form of the decoder's output is known."""
        z = self.prior_draws(len(self.batch), std=3.0)
        with changed_weights(self.parameters[1]), torch.no_grad():
            perturb(self.parameters[1], 0.3, seed=1)
            for output in outputs_of(self.decode(z))[:1]:
                self.likelihood.logits = bool(output.min() < 0 or output.max() > 1)
        return self.likelihood

    def nll(self, output, x) -> torch.Tensor:
        """-log p(x|z) in nats of the decoder's output for z, [batch]."""
        return self._likelihood.of(output, x)

    @property
    def tolerance(self) -> float:
        """Allowed error of the loss in nats: float32's rounding of a sum of the usual size."""
        return float32_sum_error(self._nats)

    @cached_property
    def _nats(self) -> float:
        with torch.no_grad():
            z = self.prior_draws(len(self.batch))
            return max(600.0, self.nll(self.decode(z), self.batch).abs().mean().item())

    def factor(self, c: float) -> float:
        """What the loss multiplies the KL with, where it multiplies the likelihood with c.

        They are the same, unless a Gaussian's fixed variance is in c: then it is the number of
        examples for a sum over the batch, and 1 for an average.
        """
        if not self._likelihood.has_free_scale():
            return c
        return math.copysign(self._summed, c)

    @cached_property
    def _summed(self) -> int:
        """Examples in a batch if the loss is a sum over them, else 1."""
        x, n = self.batch, len(self.batch)
        if self.batch_size is not None:
            with self.encoder_setting(1):
                _, k, _ = self.recon_and_kl(x)
                kl, _ = drawn_kl_of(self, x)
            return n if abs(k / kl - n) < 0.3 * n else 1
        with self.finite():
            once, twice = (self.recon_and_kl(part)[0] for part in (x, torch.cat([x, x])))
        return n if abs(twice / once - 2) < 0.1 else 1

    def refuse_transformed(self) -> None:
        """Refuse latents that pass through weights which the encoder's outputs don't depend on.

        Raises:
            CannotJudge: they do, as in a normalising flow on z; its KL has no closed form.
        """
        with self.spied(self.stops_early) as calls, torch.enable_grad():
            self.loss(self.batch.clone())
        known = {id(p) for p in self.parameters[0]}
        if any(id(p) not in known for p in leaves(latents_of(calls)[0])):
            raise CannotJudge(
                "z depends on weights that the encoder's outputs don't depend on, as with a "
                "normalising flow on z: the KL has no closed form, and is not judged"
            )

    @torch.no_grad()
    def latents(self, x) -> tuple[torch.Tensor, bool]:
        """Latents of every image, [n, batch, z_dim], and whether a batch shares its noise."""
        n = N_REPEATS if self.dim <= LARGE else N_REPEATS // 4
        if self.batch_size is None:
            size = min(n, max(1, ROWS // len(x)))
            repeated = x.repeat(size, *[1] * (x.dim() - 1))
            first = self._latents_of(repeated).reshape(size, len(x), -1)
            if (first.std(dim=0) > 1e-6 * (1 + first.abs().mean())).any():
                others = [self._latents_of(repeated) for _ in range(n // size - 1)]
                return torch.cat([first.flatten(0, 1), *others]).reshape(n, len(x), -1), False
        z = torch.stack([self._latents_of(x) for _ in range(n)])
        return z, self._shares_noise()

    def _latents_of(self, x) -> torch.Tensor:
        """One draw of z for each example, [batch, z_dim]."""
        with self.spied(self.stops_early) as calls:
            self.loss(x.clone())
        return latents_of(calls)[0].reshape(len(x), -1).double()

    def _shares_noise(self) -> bool:
        """Whether equal examples of a batch get the same z."""
        equal = self.batch[:1].expand_as(self.batch)
        z = self._latents_of(equal)
        return bool(((z - z[:1]).abs() <= 1e-6 * (1 + z.abs().mean())).all())

    @cached_property
    def _meanings(self) -> tuple[int, int, list[str]]:
        """Which two of the encoder's outputs are mean and head, and what the head may mean."""
        self.refuse_transformed()
        x = self.x[: self.n_images]
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
        i_mean = min(range(len(outputs)), key=lambda i: error[i])
        if error[i_mean] > 3:
            raise NotCentred("the latents are centred on no output of the encoder")
        misfits = sorted(
            ((misfit(std, of(outputs[i])), i, meaning) for i in range(len(outputs)) if i != i_mean
             for meaning, of in self._known_meanings()),
            key=lambda fit: fit[0],
        )  # fmt: skip
        i_head = misfits[0][1]
        # A log ratio of standard deviations has variance 1 / (2 n).
        likely = [m for e, i, m in misfits if i == i_head and e * math.sqrt(2 * len(z)) < 2]
        return i_mean, i_head, likely

    def _known_meanings(self) -> list:
        """Meanings of a head: of one that the caller's function extracts, the log variance."""
        if self.extract is not None:
            return [("the log variance", MEANINGS["the log variance"])]
        return list(MEANINGS.items())

    @cached_property
    def posteriors(self) -> list[Posterior]:
        """What the encoder's outputs may mean, judged by many draws of z; the likeliest first.

        It is empty if the deviation is no known function of an output.

        Raises:
            NotCentred: neither output is the mean.
        """
        i_mean, i_head, likely = self._meanings

        def reading(meaning):
            return lambda outputs: (outputs[i_mean], MEANINGS[meaning](outputs[i_head]))

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
        raise CannotJudge("the loss never calls the decoder: pass the one that it calls")
    return inputs


@torch.no_grad()
def drawn_kl_of(vae: VAESubject, x) -> tuple[float, float]:
    """The KL in nats of what draws of z show, averaged over images; its error.

    The error is five standard errors (with n draws the mean has the variance std^2 / n, log std
    1 / (2 n)) and twice the bias of log std.
    """
    z, shared = vae.latents(x)
    n, mean, std = len(z), z.mean(dim=0), z.std(dim=0)
    kl = kl_divergence(mean, std) - std.square().sum(dim=1) / (2 * n)  # the mean's own noise
    variances = (std.square() - 1).square() / (2 * n) + (mean * std).square() / n
    of_image = variances.sum(dim=1).sqrt()
    error = of_image.mean() if shared else of_image.norm() / len(x)
    return kl.mean().item(), 5 * error.item() + std.shape[1] / n


def outputs_of(returned) -> list[torch.Tensor]:
    """The tensors in what a network returns; of a normal distribution its mean and deviation."""
    if isinstance(returned, Independent):
        returned = returned.base_dist
    if isinstance(returned, Distribution):
        parts = (getattr(returned, name, None) for name in ("loc", "scale", "logits", "probs"))
        return [part for part in parts if isinstance(part, torch.Tensor)]
    return tensors(returned)
