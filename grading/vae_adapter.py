"""From a submission's module to its VAE: its parts, its loss and its samples as callables."""

import contextlib
import inspect
import itertools
import re
from collections.abc import Callable
from functools import partial

import torch
import torch.nn as nn
from torch.utils.data import DataLoader

from gencheck.outcomes import CannotJudge
from gencheck.vae_loss import has_loss, readings
from gencheck.vae_subject import VAESubject
from grading.adapters import EPOCH_FUNCTIONS, SHAPES, build, first_that_works, parts_of, required
from grading.loading import ROLES, CannotLoad, Submission
from grading.stand_ins import Images

Z_DIMS = {"z_dim", "zdim", "dim_z", "latent_dim", "z_size", "latent_size", "n_latent", "latent"}
OF_IMAGES = r"x|inputs?|data|im(age|g)s?|targets?|batch|orig(inal)?|real|y|true"


@contextlib.contextmanager
def _calls_of_children(model):
    """A list of (child, its first input, what it returns), filled inside the block."""
    calls = []

    def record(child, args, returned):
        calls.append((child, args[0] if args else None, returned))

    handles = [child.register_forward_hook(record) for child in nn.Module.children(model)]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _role(model, calls, fits, name, short, method) -> tuple[list, bool]:
    """The candidates for a role by their names, or by what they map to what; whether by names.

    Raises:
        CannotLoad: there are none.
    """
    try:
        return parts_of(model, name, short, methods=[method]), True
    except CannotLoad:
        found = [child for child, given, returned in calls if fits(given, returned)]
        if not found:
            raise
        return list(dict.fromkeys(found)), False


def _is_of_images(value) -> bool:
    is_batch = isinstance(value, torch.Tensor) and value.dim() > 1
    return is_batch and value[0].numel() == 784


def _encodes(given, returned) -> bool:
    """Images become two heads."""
    heads = returned.values() if isinstance(returned, dict) else returned
    return _is_of_images(given) and isinstance(returned, tuple | list | dict) and len(heads) == 2


def _decodes(given, returned) -> bool:
    """Vectors become images."""
    is_vector = isinstance(given, torch.Tensor) and given.dim() == 2 and given.shape[1] != 784
    return is_vector and _is_of_images(returned)


def vae_subject(submission: Submission, binary: torch.Tensor) -> tuple[VAESubject, dict]:
    """The VAE of a submission, and the arguments its `main` gives to the epoch's function."""
    kind = submission.find_class("VAE", "VariationalAutoencoder", "autoencoder")
    if kind is None:
        raise CannotLoad("there is no class VAE")
    model, caught = build(submission, kind)
    with _calls_of_children(model) as calls:
        loss, shape = _loss_of_vae(submission, model, binary)
    encoders, known = _role(model, calls, _encodes, "encoder", "enc", "encode")
    decoders, also_known = _role(model, calls, _decodes, "decoder", "dec", "decode")
    images = binary[:64].float().view(-1, *shape)

    def try_parts(parts):
        encoder, decoder, encoder_shape = parts
        subject = VAESubject(
            _Loss(model, loss),
            encoder,
            decoder,
            images,
            to_encoder=lambda x: x.view(len(x), *encoder_shape),
        )
        subject.networks = {"": model}
        mean, _ = subject.outputs(subject.batch)
        if mean.dim() != 2 or len(mean) != len(subject.batch):
            raise ValueError("unexpected shapes of the encoder's outputs")
        return subject

    def try_parts_that_fit(parts):
        subject = try_parts(parts)
        if subject.outputs(subject.batch)[0].shape[1] != subject.z_dim:
            raise ValueError("the decoder gets no vector of the width of the encoder's mean")
        return subject

    options = list(itertools.product(encoders, decoders, dict.fromkeys([shape, *SHAPES])))
    try:
        _, subject = first_that_works(options, try_parts_that_fit, "the encoder")
    except CannotLoad:
        if not (known and also_known):  # other layers fit a role as little
            raise
        _, subject = first_that_works(options, try_parts, "the encoder")
    subject.stops_early = subject.decodes_at_once
    method = _sampler(submission, model)
    if method is not None:
        subject.sample = partial(_sample, submission, method, subject.z_dim)
    subject.with_z_dim = partial(_with_z_dim, submission, kind, binary)
    return subject, caught


def _with_z_dim(submission, kind, binary, z_dim) -> tuple[Callable, Callable | None]:
    """The loss and `sample` of a new VAE with another number of latent dimensions.

    Raises:
        CannotJudge: its class takes no such number.
    """
    names = {*inspect.signature(kind).parameters} & Z_DIMS
    if not names:
        raise CannotJudge("the class VAE takes no number of latent dimensions")
    model = submission.attempt(submission.call, kind, **{names.pop(): z_dim})
    loss, shape = _loss_of_vae(submission, model, binary)
    method = _sampler(submission, model)
    sample = method and partial(_sample, submission, method, z_dim)
    return lambda x: loss(x.view(len(x), *shape)), sample


def _loss_of_vae(submission, model, binary) -> tuple[Callable, tuple[int, ...]]:
    """A function from images to their loss, and the shape of an image that it takes.

    The loss is what `forward` returns; where that is none, what the epoch's function calls
    `backward` of, or a function of the loss that is given what `forward` returns.
    """
    forward = partial(submission.call, model.forward)

    def attempt(loss, shape):
        value = submission.attempt(loss, binary[:16].float().view(-1, *shape))
        if value is None:
            raise NotImplementedError
        readings(value)
        return value

    shape, value = first_that_works(SHAPES, partial(attempt, forward), "the VAE's forward")
    if has_loss(value):
        return forward, shape
    functions = [submission.find(name) for name in EPOCH_FUNCTIONS]
    losses = [
        partial(_loss_of_epoch, submission, function, model, with_labels)
        for function in functions
        for with_labels in (False, True)
        if inspect.isfunction(function)
    ]
    names = sorted({name for module in submission.modules for name in vars(module)})
    owners = [(name, submission.find(name)) for name in names]
    owners += [(name, getattr(model, name, None)) for name in dir(type(model))]
    losses += [
        partial(_loss_after, submission, function, forward)
        for name, function in owners
        if re.search(r"loss|elbo|bound|criterion", name.lower()) and inspect.isroutine(function)
    ]
    for loss in losses:
        for other in dict.fromkeys([shape, *SHAPES]):
            with contextlib.suppress(Exception):
                if has_loss(attempt(loss, other)):
                    return loss, other
    return forward, shape


class _Backward(BaseException):
    """`backward` was called on this loss."""


def _loss_of_epoch(submission, function, model, with_labels, x):
    """The loss whose `backward` an epoch's function calls for one batch, or what it returns."""
    labels = torch.zeros(len(x), dtype=torch.long) if with_labels else None
    data = DataLoader(Images(x, labels), batch_size=len(x))
    data = data if function.__name__ == "epoch_iter" else (data, data)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    backward = torch.Tensor.backward

    def stop(loss, *args, **options):
        raise _Backward(loss)

    torch.Tensor.backward = stop
    try:
        roles = {"model": model, "data": data, "optimizer": optimizer}
        return submission.call_by_role(function, roles)
    except _Backward as seen:
        return seen.args[0]
    finally:
        torch.Tensor.backward = backward


def _loss_after(submission, function, forward, x):
    """The loss that a function of x and what `forward` returns gives."""
    returned = forward(x)
    if isinstance(returned, dict):
        returned = tuple(returned.values())
    parts = list(returned) if isinstance(returned, tuple | list) else [returned]
    names = list(inspect.signature(function).parameters)
    known = [i for i, name in enumerate(names) if re.fullmatch(OF_IMAGES, name.lower())]
    for place in dict.fromkeys([*known[:1], 1, 0, len(parts)]):
        with contextlib.suppress(Exception):
            value = submission.call(function, *parts[:place], x, *parts[place:])
            if has_loss(value) and all(v.isfinite() for v in readings(value).values()):
                return value
    raise CannotJudge("no function of the loss takes what forward returns")


def _sampler(submission, model) -> Callable | None:
    """What draws images from a model: a method, or a function that takes the model."""
    for name in ("sample", "generate", "sample_images", "generate_samples"):
        method = getattr(model, name, None)
        if callable(method):
            return method
    function = submission.find("sample", "generate", "sample_images", "generate_samples")
    names = list(inspect.signature(function).parameters) if inspect.isfunction(function) else []
    if names and re.search(ROLES["model"], names[0].lower()):
        return partial(function, model)
    return None


def _sample(submission, method, z_dim, n):
    """n samples of the model's method, which takes their number or their latents."""
    names = ("z", "latent", "noise")
    known = dict.fromkeys(names, torch.randn(n, z_dim)) | {"n_samples": n}
    first = set(names) & {*list(inspect.signature(method).parameters)[:1]}
    return submission.call(method, *(() if first else (n,)), **required(method, known))


class _Loss(nn.Module):
    """A model whose `forward` is called with all the arguments it needs."""

    def __init__(self, model, call):
        super().__init__()
        self.model, self.call = model, call

    def forward(self, x):
        return self.call(x)
