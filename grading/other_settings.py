"""What a user tries next: one image, another number of samples, two latent dimensions."""

import contextlib
import os
from collections.abc import Callable

import torch
import torch.nn as nn

from gencheck.modules import restored_modes
from gencheck.outcomes import PASS, WEAK, CannotJudge, Outcome, one_line
from gencheck.vae_nll import tensors
from grading.checks import load_checks
from grading.loading import CannotLoad, is_theirs

N_SAMPLES = (1, 7)  # 7 is no square, and no divisor of a batch
EXPECTED = "one image, any number of samples and of latent dimensions"


def _tried(tries: dict[str, Callable]) -> Outcome:
    """The outcome of calls by what they are: WEAK if one crashes or returns the wrong number.

    A call returns what is wrong with its result in words, or None.
    """
    problems, folder = [], os.getcwd()
    for words, call in tries.items():
        try:
            with torch.no_grad():
                wrong = call()
        except (CannotJudge, SystemExit):  # other checks say where the code exits
            continue
        except CannotLoad as error:
            wrong = f"crashes: {error}"
        except Exception as error:
            if not is_theirs(error, folder):
                raise
            wrong = f"crashes: {one_line(error)}"
        if wrong:
            problems.append(f"{words} {wrong}")
    return Outcome(WEAK if problems else PASS, "; ".join(problems) or EXPECTED, EXPECTED)


def _numbers(returned, n, size=1) -> str | None:
    """What is wrong if none of the returned tensors has n times `size` numbers."""
    sizes = [part.numel() for part in tensors(returned)]
    if sizes and n * size not in sizes:
        most = max(sizes)
        if size == 784 and most % size == 0:
            return f"returns {most // size} of them, not {n}"
        return f"returns {most:,} numbers, not {n * size:,}"
    return None


def _sampling(sample) -> dict[str, Callable]:
    return {f"sample({n})": lambda n=n: _numbers(sample(n), n, 784) for n in N_SAMPLES}


@contextlib.contextmanager
def _evaluated(modules):
    """Put modules into evaluation mode inside the block."""
    parts = [part for module in modules for part in nn.Module.modules(module)]
    with restored_modes(parts):
        for part in parts:
            part.eval()
        yield


def of_vae(vae) -> Outcome:
    """One image, samples, and z_dim = 2 where the usual number works."""

    def two_dimensions():
        try:
            vae.with_z_dim(vae.z_dim)
        except Exception as error:
            raise CannotJudge("a new VAE can't be made") from error
        loss, sample = vae.with_z_dim(2)
        loss(vae.x[:4].float())
        return None if sample is None else _numbers(sample(4), 4, 784)

    def one_image():
        vae.loss(vae.x[:1].float())

    tries = {"a batch of one image": one_image, "z_dim = 2": two_dimensions}
    if vae.sample is not None:
        tries |= _sampling(vae.sample)
    with vae.single_precision(), _evaluated(vae.modules):
        return _tried(tries)


def of_flow(flow) -> Outcome:
    """One image, and samples."""
    if flow.model is None:
        raise CannotJudge("there is no class Model")
    tries = {"a batch of one image": lambda: _numbers(flow.model(flow.x[:1].clone()), 1)}
    if hasattr(flow.model, "sample"):
        tries |= _sampling(flow.model.sample)
    with _evaluated([flow.model]):
        return _tried(tries)


def of_gan(gan) -> Outcome:
    """One latent vector, and one image."""
    g, d = gan.seen.g, gan.seen.d
    calls = {
        "the generator with one latent vector": (g, gan.seen.last_of_generator, 784),
        "the discriminator with one image": (d, (d.calls or d.older or [None])[-1], gan.seen.width),
    }
    tries = {
        words: lambda net=net, call=call, size=size: _numbers(
            call.again(net.module, call.main[:1]), 1, size
        )
        for words, (net, call, size) in calls.items()
        if call is not None
    }
    with _evaluated([g.module, d.module]):
        return _tried(tries)


CHECKS = {
    model: load_checks("all", {"other_settings": measure})
    for model, measure in (("vae", of_vae), ("nf", of_flow), ("gan", of_gan))
}
