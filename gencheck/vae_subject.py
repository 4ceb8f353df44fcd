"""A VAE under measurement: the posterior that its latents really follow, and its terms."""

import contextlib
import math
from collections.abc import Iterator
from functools import cached_property

import torch

from gencheck.modules import changed_weights, leaves, perturb, place_of, replaced
from gencheck.outcomes import CannotJudge
from gencheck.vae_calls import VAECalls, latents_of
from gencheck.vae_heads import MEANINGS, UNKNOWN_HEAD, Posterior, kl_divergence, misfit

N_REPEATS = 256  # of each image, to measure moments of z
LARGE = 1024  # numbers in an example: above, a quarter of the repeats
ROWS = 512  # examples in a call of the loss for them
ENCODER_STD = 0.02  # noise added to the encoder's weights: standard deviations of 0.2 to 5
DECODER_STD = 0.03  # to the decoder's: reconstructions change by tens of nats, none saturates


class NotCentred(CannotJudge):
    """The latents are centred on neither output of the encoder."""


class VAESubject(VAECalls):
    """A VAE under measurement; arguments as for `VAECalls`."""

    # Of the encoder's settings, until the deviations are neither 0 nor huge: wide layers add up the
    # noise of thousands of weights.
    noise_scales = (1.0, 0.25, 0.06, 0.015)

    def read_as(self, reading: str) -> None:
        """Read what the loss returns in this way; all `posteriors` are likely again."""
        self.reading = reading
        for name in ("posteriors", "kl_outcomes", "_fits"):
            self.__dict__.pop(name, None)

    @property
    def tolerance(self) -> float:
        """Allowed error of the loss in nats: float32's rounding of a sum of the usual size."""
        return 784 * 2.0**-24 * self._nats

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
        once, twice, _ = self.slopes()
        return n if abs(twice / once - 2) < 0.1 else 1

    def slopes(self) -> tuple[float, float, float]:
        """c of a batch, c of a batch with every image twice, the first fit's residual in nats.

        With a fixed batch size the second is the first.
        """
        if self.seed not in self._fits:
            x = self.batch
            with self.finite():
                once, _, residual = self.recon_and_kl(x, n=6, seed=self.seed)
                twice = once
                if self.batch_size is None:
                    twice, _, _ = self.recon_and_kl(torch.cat([x, x]), seed=self.seed)
            self._fits[self.seed] = once, twice, residual
        return self._fits[self.seed]

    @cached_property
    def kl_outcomes(self) -> dict:
        """Outcomes of the KL of each seed, with this reading."""
        return {}

    @cached_property
    def _fits(self) -> dict:
        """`slopes` of each seed, at unchanged weights of the encoder."""
        return {}

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

    @cached_property
    def _as_it_is(self) -> dict:
        """Latents of the batch of each seed, at unchanged weights."""
        return {}

    def latents_of_batch(self) -> tuple[torch.Tensor, bool]:
        """`latents` of the batch, at unchanged weights; drawn once."""
        if self.seed not in self._as_it_is:
            self._as_it_is[self.seed] = self.latents(self.batch)
        return self._as_it_is[self.seed]

    @torch.no_grad()
    def latents(self, x) -> tuple[torch.Tensor, bool]:
        """Latents of every image, [n, batch, z_dim], and whether a batch shares its noise."""
        n = N_REPEATS if self.dim <= LARGE else N_REPEATS // 4
        if self.batch_size is None:
            size = min(n, max(1, ROWS // len(x)))
            repeated = x.repeat(size, *[1] * (x.dim() - 1))
            first = self._latents_of(repeated, x).reshape(size, len(x), -1)
            if (first.std(dim=0) > 1e-6 * (1 + first.abs().mean())).any():
                others = [self._latents_of(repeated, x) for _ in range(n // size - 1)]
                return torch.cat([first.flatten(0, 1), *others]).reshape(
                    -1, *first.shape[1:]
                ), False
        z = torch.stack([self._latents_of(x) for _ in range(n)])
        return z, self._shares_noise()

    def _latents_of(self, x, unique=None) -> torch.Tensor:
        """One draw of z for each example, [batch, z_dim]; x may repeat a batch of `unique` ones."""
        once = contextlib.nullcontext() if unique is None else self._encoding_once(unique)
        with once, self.spied(self.stops_early) as calls:
            self.loss(x.clone())
        return latents_of(calls)[0].reshape(len(x), -1).double()

    def _encoding_once(self, unique):
        """Inside the block the encoder maps a batch that repeats `unique` once.

        Repeating leaves the statistics of a batch as they are. Only for encoders that return
        tensors without noise: others map the whole batch.
        """
        target, name = place_of(self.encode)
        function = getattr(target, name, None)
        if not self.stops_early or function is None:
            return contextlib.nullcontext()

        def encode(x, *args, **options):
            n = len(unique)
            repeats = len(x) // n if x.shape[:1].numel() else 0
            if repeats < 2 or args or options or not (x[:n] == x[-n:]).all():
                return function(x, *args, **options)
            first, second = function(x[:n]), function(x[:n])
            parts = [first] if isinstance(first, torch.Tensor) else first
            again = [second] if isinstance(second, torch.Tensor) else second
            plain = type(parts) in (tuple, list) and all(
                isinstance(a, torch.Tensor) and a.shape[:1] == (n,) and torch.equal(a, b)
                for a, b in zip(parts, again)
            )
            if not plain:
                return function(x)
            whole = [part.repeat(repeats, *[1] * (part.dim() - 1)) for part in parts]
            return whole[0] if parts[0] is first else type(first)(whole)

        return replaced((target, name, encode))

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
            z, shared = self.latents(x)
            outputs = [output.double() for output in self.outputs(x)]
        mean, std = z.mean(dim=0), z.std(dim=0)
        n_independent = self.z_dim * (1 if shared else len(x))  # errors: few scatter widely
        # Squared errors of the mean in units of its standard error: 1 on average if it is right.
        error = [
            ((mean - m).square() / (std.square() / len(z) + 1e-12)).mean().item() for m in outputs
        ]
        i_mean = min(range(len(outputs)), key=lambda i: error[i])
        if error[i_mean] > 3 + 12 / n_independent:
            raise NotCentred("the latents are centred on no output of the encoder")
        misfits = sorted(
            ((misfit(std, of(outputs[i])), i, meaning) for i in range(len(outputs)) if i != i_mean
             for meaning, of in self._known_meanings()),
            key=lambda fit: fit[0],
        )  # fmt: skip
        i_head = misfits[0][1]
        # A log ratio of standard deviations has variance 1 / (2 n).
        limit = (2 + 4 / math.sqrt(n_independent)) / math.sqrt(2 * len(z))
        likely = [m for e, i, m in misfits if i == i_head and e < limit]
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
        return [self.as_meaning(meaning) for meaning in self._meanings[2]]

    def as_meaning(self, meaning: str) -> Posterior:
        """The posterior if the head had this meaning, one of `MEANINGS`."""
        i_mean, i_head, _ = self._meanings
        return Posterior(meaning, lambda o: (o[i_mean], MEANINGS[meaning](o[i_head])))

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
    def encoder_setting(self, i: int, scale: float = 1.0) -> Iterator[None]:
        """Perturb the encoder, differently for each i; restore it after the block.

        `scale` multiplies the noise, but not what is added to the biases of the last layer.
        """
        encoder = self.parameters[0]
        with changed_weights(encoder):
            perturb(
                encoder,
                scale * ENCODER_STD * (0.5, 1.5, 2.5, 0.5, 1.0, 0.5, 0.5)[i % 7],
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

    def recon_and_kl(self, x, n=4, seed=None, like=None) -> tuple[float, float, float]:
        """Fit loss = c * recon + K over n random decoders: (c, K, largest residual), in nats.

        With a seed all decoders get the same z, so K may depend on it. Where c is nearly `like`, it
        is this: K is off by the reconstruction's hundreds of nats times c's error.
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
            raise CannotJudge("the loss is infinite or no number")
        centred = nlls - nlls.mean()
        c = ((losses - losses.mean()) @ centred / centred.square().sum()).item()
        if like is not None and abs(c - like) < 1e-3 * abs(like):
            c = like
        k = (losses.mean() - c * nlls.mean()).item()
        return c, k, (losses - c * nlls - k).abs().max().item()


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
