"""`check_vae`: anyone's VAE, of any shape and likelihood."""

import contextlib
from collections.abc import Callable, Collection

import torch

from gencheck.modules import modules_of, place_of, replaced, restored
from gencheck.outcomes import kept_random_numbers
from gencheck.result import NotJudged, Result, judge
from gencheck.vae_calls import N_IMAGES
from gencheck.vae_checks import CHECKS
from gencheck.vae_nll import Likelihood
from gencheck.vae_subject import VAESubject


def check_vae(
    loss: Callable,
    encode: Callable,
    decode: Callable,
    x: torch.Tensor,
    sample: Callable | None = None,
    *,
    nll: str | Callable = "bernoulli",
    beta: float = 1.0,
    batch_size: int | None = None,
    extract: Callable | None = None,
    weak_too: bool = False,
    allow_unjudged: Collection[str] = (),
    seed: int = 0,
) -> Result:
    """Check a VAE's mathematics: its loss is a bound on -log p(x), and z follows q(z|x).

    Weights, buffers, precision and mode are as before afterwards.

    Args:
        loss: examples [batch, ...] -> average negative ELBO in nats: a scalar, one value per
            example, or the pair of its terms; z or reconstructions beside it are ignored. A sum
            over the batch is weak, not wrong.
        encode: examples -> mean and head, where the head may be a (log) standard deviation or
            variance, which many draws of z tell apart: a tuple, a dictionary, a normal
            distribution or one tensor [batch, 2 z_dim]. It gets x in the shape in which `loss`
            passes it on. A module or a method that `loss` calls.
        decode: z -> parameters of p(x|z). A module or a method that `loss` calls: its input there
            is taken for z.
        x: at least 16 different examples (2 `batch_size`), of any shape, as `loss` takes them.
        sample: n -> (binary images, means), for Bernoulli likelihoods.
        nll: -log p(x|z): "bernoulli" (means or logits), "gaussian" (mean with one fixed variance,
            whatever it is, or mean and log variance, in two tensors or the halves of the second
            dimension), "categorical" (logits, classes in the second or last dimension), or a
            function (decode's output, x) -> nats [batch].
        beta: factor on the KL, where it is weighted on purpose.
        batch_size: of every call of `loss`, where it takes one size only.
        extract: what `encode` returns -> (mean, log variance), where it returns something else.
        weak_too: weak findings are failures, too.
        allow_unjudged: checks that may stay without a verdict, such as ("moments",).
        seed: of the measurements, 0 to 999.

    Returns:
        All findings.

    Raises:
        CheckFailure: an AssertionError that lists what is wrong.
        NotJudged: something could not be measured; the message says what to pass.
        ValueError: `nll` is none of those above.

    Example:
        >>> check_vae(model, model.encoder, model.decoder, x)
        >>> check_vae(model, model.encode, model.decode, x, nll="gaussian", beta=4)

    References:
        Kingma and Welling, "Auto-encoding variational Bayes", ICLR 2014, Equation 10 and
        Appendices B and C.
    """
    _refuse(x, batch_size or N_IMAGES, nll)
    checks = list(CHECKS)
    if nll != "bernoulli":
        checks = [check for check in checks if check.name not in ("sample", "stable")]
    elif sample is None:
        checks = [check for check in checks if check.name != "sample"]
    with kept_random_numbers(), restored(modules_of(loss, encode, decode)):
        subject = LibraryVAE(
            loss,
            encode,
            decode,
            x.clone(),
            sample,
            likelihood=Likelihood(nll),
            beta=beta,
            batch_size=batch_size,
            extract=extract,
        )
        return judge("vae", subject, checks, weak_too, allow_unjudged, seed)


class LibraryVAE(VAESubject):
    """A VAE whose loss may be left once z is seen, and whose encoder takes x as the loss gives."""

    stops_early = True

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        with contextlib.suppress(Exception):
            shape = self._shape_for_encoder()
            self.to_encoder = lambda x: x.reshape(len(x), *shape)

    def _shape_for_encoder(self):
        """The shape of an example that the loss passes to the encoder."""
        seen = []
        target, name = place_of(self.encode)
        function = getattr(self.encode, name, self.encode)

        def spy(x, *args, **options):
            seen.append(x.shape[1:])
            return function(x, *args, **options)

        with replaced((target, name, spy)), torch.no_grad():
            self.loss(self.x[: self.batch_size or N_IMAGES].clone())
        if seen[0].numel() != self.dim:
            raise ValueError
        return seen[0]


def _refuse(x, n, nll):
    """Refuse what leaves a check with nothing to measure.

    Raises:
        NotJudged: too few examples, another type, or gradients are off.
    """
    if not torch.is_grad_enabled():
        raise NotJudged("check_vae is called under torch.no_grad(): it needs gradients")
    if not isinstance(x, torch.Tensor):
        raise NotJudged(f"x is {type(x).__name__}: pass a tensor, as from torch.as_tensor")
    if len(x) < 2 * n:
        raise NotJudged(f"x has {len(x)} examples: pass at least {2 * n}")
    if len(x[: 2 * n].flatten(1).unique(dim=0)) < 2 * n:
        raise NotJudged(f"examples of x are equal: pass at least {2 * n} different ones")
    if nll == "bernoulli" and (x.min() < 0 or x.max() > 1):
        raise NotJudged(
            f"x has values from {x.min():.3g} to {x.max():.3g}, a Bernoulli likelihood needs those "
            "from 0 to 1: pass nll='gaussian', or another likelihood"
        )
