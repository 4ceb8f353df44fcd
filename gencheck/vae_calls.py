"""A VAE as a black box: its loss, and what passes between its encoder and its decoder."""

import contextlib
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn as nn
from torch.distributions import Distribution, Independent

from gencheck.modules import changed_weights, leaves, modules_of, perturb, replaced
from gencheck.outcomes import CannotJudge, seed_everything
from gencheck.vae_loss import readings
from gencheck.vae_nll import Likelihood, tensors

N_IMAGES = 8  # in a batch of most measurements


class Reached(BaseException):
    """The decoder is called, and all that was wanted is seen."""


class Draw(NamedTuple):
    """One call of the loss."""

    loss: torch.Tensor  # as returned, read as a scalar
    z: torch.Tensor  # what the decoder got, [batch, z_dim]
    nll: torch.Tensor  # -log p(x|z) in nats of the decoder's output for z, [batch]


class VAECalls:
    """A VAE and its calls.

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
    decodes_at_once = False  # whether it calls the decoder itself, and not the decoder's parts

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
        self._decoded = None  # what the loss's last call of the whole decoder returned
        self.reading = ""  # of what the loss returns, one of `readings`
        self.modules = modules_of(loss, encode, decode)
        # By name, for the check that all of their layers are applied.
        self.networks = {"" if i == 0 else f"({i})": m for i, m in enumerate(self.modules)}
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
    def encoded(self) -> tuple[torch.Tensor, ...]:
        """What the encoder makes of the batch, see `outputs`, with its graph."""
        with torch.enable_grad():
            return self.outputs(self.batch)

    @cached_property
    def parameters(self) -> tuple[list, list]:
        """The encoder's and the decoder's parameters: those that their outputs depend on.

        What both share, as tied weights, counts as the encoder's.

        Raises:
            CannotJudge: one of them has none.
        """
        encoder = leaves(*self.encoded)
        with torch.enable_grad():
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
        whole = self.decode if isinstance(self.decode, nn.Module) else self.decode.__name__
        self.decodes_at_once = bool(calls[whole])
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
        calls, whole = {}, (self.decode, getattr(self.decode, "__name__", None))

        def recording(part, function):
            def call(*args, **options):
                given = [*args, *options.values()]
                if given:
                    calls.setdefault(part, []).append(given[0])
                if early and given:
                    raise Reached
                output = function(*args, **options)
                if part in whole:
                    self._decoded = output
                return output

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
        self._decoded = None
        with self.spied() as calls:
            found = readings(self.loss(x.clone()))
        if self.reading not in found:
            raise CannotJudge("the forward pass returns no loss: no scalar, no value per image")
        z, *others = latents_of(calls)
        if not all(torch.equal(z, other) for other in others):
            raise CannotJudge("the loss decodes more than one draw of z, which is not judged")
        output = self.decode(z) if self._decoded is None else self._decoded
        return Draw(found[self.reading], z, self.nll(output, x))

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


def latents_of(calls) -> list[torch.Tensor]:
    """What the decoder got in each of these recorded calls."""
    inputs = next((inputs for inputs in calls.values() if inputs), None)
    if inputs is None:
        raise CannotJudge("the loss never calls the decoder: pass the one that it calls")
    return inputs


def outputs_of(returned) -> list[torch.Tensor]:
    """The tensors in what a network returns; of a normal distribution its mean and deviation."""
    if isinstance(returned, Independent):
        returned = returned.base_dist
    if isinstance(returned, Distribution):
        parts = (getattr(returned, name, None) for name in ("loc", "scale", "logits", "probs"))
        return [part for part in parts if isinstance(part, torch.Tensor)]
    return tensors(returned)
