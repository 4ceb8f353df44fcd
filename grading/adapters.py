"""From a submission's module to what the checks measure: callables, by the course's names."""

import contextlib
import inspect
import itertools
import re
import types
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
import torch.nn as nn
from torch.utils.data import DataLoader

from gencheck.flow_maps import Bijection
from gencheck.gan_checks import GanSubject
from gencheck.gan_observer import Observer
from gencheck.outcomes import CannotJudge, TooLong, one_line, seed_everything
from gencheck.vae_loss import has_loss, readings
from gencheck.vae_subject import VAESubject
from grading.flow_subject import FlowSubject
from grading.loading import ROLES, CannotLoad, Submission, time_limit
from grading.stand_ins import BATCHES, Images

GAN_BATCH = 32
SMALL_BATCH = 8  # for networks that make no step with GAN_BATCH
MAIN_SECONDS = 15  # until `main` calls the first epoch
SHAPES = ((784,), (1, 28, 28), (28, 28))
Z_DIMS = {"z_dim", "zdim", "dim_z", "latent_dim", "z_size", "latent_size", "n_latent", "latent"}
OF_IMAGES = r"x|inputs?|data|im(age|g)s?|targets?|batch|orig(inal)?|real|y|true"
EPOCH_FUNCTIONS = ("epoch_iter", "run_epoch", "train_epoch", "train")


def first_that_works(options: list, try_one: Callable, what: str):
    """The first option for which try_one(option) raises nothing, and its result.

    Raises:
        CannotLoad: all fail; the reason is the first error, or the template's NotImplementedError.
    """
    errors = []
    for option in options:
        try:
            return option, try_one(option)
        except Exception as error:
            errors.append(error)
    missing = [e for e in errors if isinstance(e, NotImplementedError)]
    if missing:
        raise CannotLoad(f"{what} is not implemented") from missing[0]
    is_plain = isinstance(errors[0], CannotJudge | CannotLoad)
    words = str(errors[0]) if is_plain else f"{what} fails: {one_line(errors[0])}"
    raise CannotLoad(words) from errors[0]


def build(submission: Submission, kind: type, *args):
    """An instance: the one that `main` makes on its way to the first epoch, or one of our own.

    Returns it with the arguments of the function that `main` called, if it got so far.
    """
    if any("NotImplementedError" in line for line in _body(kind)):
        submission.attempt(submission.call, kind, *args)  # not worth running main for
    caught = submission.attempt(submission.run_main, EPOCH_FUNCTIONS, MAIN_SECONDS) or {}
    made = submission.made(kind)
    if made is None:
        _, made = first_that_works(
            [args, ()], lambda a: submission.attempt(submission.call, kind, *a), kind.__name__
        )
    return made.cpu(), caught


def _body(kind):
    try:
        return inspect.getsource(kind.__init__).splitlines()
    except (OSError, TypeError):
        return []


def _parts(model, *names, methods=()):
    """A submodule by attribute, with or without underscores, or by its class's name; and methods.

    Raises:
        CannotLoad: there is none.
    """
    attributes = [form.format(name) for name in names for form in ("{}", "_{}", "{}_")]
    modules = [getattr(model, name, None) for name in attributes]
    modules += [
        part
        for part in nn.Module.modules(model)
        if part is not model and any(name in type(part).__name__.lower() for name in names)
    ]
    found = [part for part in modules if isinstance(part, nn.Module)][:1]
    found += [getattr(model, name) for name in methods if callable(getattr(model, name, None))]
    if not found:
        raise CannotLoad(f"the model has no {names[0]}")
    return found


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
        return _parts(model, name, short, methods=[method]), True
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


def required(function, known):
    """Of the known arguments those that the function demands."""
    parameters = inspect.signature(function).parameters.items()
    demanded = {n for n, p in parameters if p.default is p.empty}
    return {name: value for name, value in known.items() if name in demanded}


def _takes_log_det(kind: type) -> bool:
    """Whether a module maps z and a log-determinant, as couplings and chains of them do."""
    second = list(inspect.signature(kind.forward).parameters.values())[2:3]
    return any(
        p.kind is p.POSITIONAL_OR_KEYWORD
        and (p.default is p.empty or re.search(r"ldj|det|jac", p.name.lower()))
        for p in second
    )


def _names_in(code: types.CodeType) -> set[str]:
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return {*code.co_names}.union(*map(_names_in, inner))


def _flow_class(submission) -> type:
    """The class of the whole model, from images to log p(x); without one, that of the flow.

    The same names are given to both: a whole model takes no log-determinant, and makes the flow.

    Raises:
        CannotLoad: there is none.
    """
    named = submission.find_classes("Model", "RealNVP", "NormalizingFlow", "Flow")
    whole = [kind for kind in named if not _takes_log_det(kind)]
    for flow in named:
        for kind in submission.kinds().values():
            start = inspect.unwrap(kind.__init__)
            if inspect.isfunction(start) and flow.__name__ in _names_in(start.__code__):
                whole += [] if _takes_log_det(kind) else [kind]
    if not named:
        raise CannotLoad("there is no class Model or Flow")
    return (whole or named)[0]


def _flow_of(model) -> nn.Module:
    """The flow in a model, by its name or as the only part that maps log-determinants; or itself.

    Raises:
        CannotLoad: there is none.
    """
    if _takes_log_det(type(model)) and not isinstance(getattr(model, "flow", None), nn.Module):
        return model
    try:
        return _parts(model, "flow")[0]
    except CannotLoad:
        maps = list(_outermost(model))
        if len(maps) != 1:
            raise
        return maps[0]


def _outermost(module) -> Iterator[nn.Module]:
    """The parts that map log-determinants and lie in no other such part."""
    for child in nn.Module.children(module):
        if _takes_log_det(type(child)):
            yield child
        else:
            yield from _outermost(child)


def _is_coupling(kind: type) -> bool:
    """By its class's name, or that of a class that it is derived from."""
    return any("coupling" in base.__name__.lower() for base in kind.__mro__)


def flow_subject(submission: Submission, grey: torch.Tensor) -> tuple[FlowSubject, dict]:
    """The flow of a submission, and the arguments its `main` gives to the epoch's function."""
    model, caught = build(submission, _flow_class(submission), [784])
    flow = _flow_of(model)
    named = [m for m in nn.Module.modules(flow) if _is_coupling(type(m))]
    named = [m for m in named if m is not flow]
    inner = {part for m in named for part in nn.Module.modules(m) if part is not m}
    couplings = [m for m in named if m not in inner]
    layers = getattr(flow, "layers", None)
    if isinstance(layers, nn.ModuleList) and not couplings:
        couplings = list(layers)

    def bijection(module):
        def both(z, ldj, reverse):
            return module(z, ldj, reverse=reverse) if reverse else module(z, ldj)

        return Bijection(partial(both, reverse=False), partial(both, reverse=True))

    def try_flow(_):
        value = submission.attempt(flow, torch.randn(3, 784), torch.zeros(3))
        if value is None or len(value) != 2:
            raise NotImplementedError

    first_that_works([None], try_flow, "the flow's forward")
    subject = FlowSubject(
        bijection(flow),
        [bijection(layer) for layer in couplings],
        flow,
        784,
        None if model is flow else model,
        submission.find("log_prior"),
        grey[:64].float(),
    )
    return subject, caught


def gan_subject(submission: Submission, pictures: list, loader: Iterable) -> GanSubject:
    """The GAN of a submission, watched in the training that it starts.

    That is its `main`; where there is none, or it makes no steps, a `train` that gets networks,
    optimisers and the `loader`; and then loops and calls at the file's top level.
    """
    kinds = {
        "generator": submission.find_class("Generator", "Gen"),
        "discriminator": submission.find_class("Discriminator", "Critic", "Disc"),
    }
    if None in kinds.values():
        raise CannotLoad(f"there is no class {[n for n, k in kinds.items() if k is None][0]}")
    starts = _starts(submission, kinds, loader)
    if not starts:
        raise CannotLoad("there is no function main or train, and no training at the top level")
    _set_batch(submission, GAN_BATCH)  # enough for statistics, and faster

    def watch(seed):
        try:
            return watch_all(seed)
        except TooSlow:
            BATCHES.limit = SMALL_BATCH
            _set_batch(submission, SMALL_BATCH)
            return watch_all(seed)

    def watch_all(seed):
        errors = []
        for start in starts:
            few = []
            try:
                args = (submission, start, kinds, pictures, seed, few)
                return submission.attempt(_watch_main, *args)
            except Exception as error:
                if few:  # what was seen before an exception was seen
                    return few[-1]
                errors.append(error)
        raise errors[0]

    subject = GanSubject(watch)
    subject.pictures = pictures  # whether G was in training mode at each one saved
    subject.seed = 1000
    try:
        _ = subject.seen  # remembered for the first measurement
    except Exception as error:
        if any(not list(made.parameters()) for made in submission.instances):
            raise CannotLoad("the networks are not implemented") from error
        raise
    return subject


class TooSlow(BaseException):
    """The training makes no steps of both networks in time."""


def _set_batch(submission, size) -> None:
    """Lower the batch size among the submission's settings."""
    if getattr(submission.settings, "batch_size", 0) > size:
        with contextlib.suppress(AttributeError):  # of a frozen dataclass
            submission.settings.batch_size = size


def _starts(submission, kinds, loader) -> list[Callable]:
    """What may start the training, the likeliest first."""
    main = submission.find("main", "Main", "run", "train_model")
    train = submission.find("train", "train_gan", "fit", "training")
    starts = [partial(submission.call, main)] if inspect.isfunction(main) else []
    if inspect.isfunction(train) and train is not main:
        starts.append(partial(_train, submission, train, kinds, loader))
    return starts + ([submission.run_work] if submission.work else [])


def _train(submission, train, kinds, loader):
    """Call `train` with new networks, an Adam for each, and the loader, by parameters' names."""
    nets = {which[0]: submission.call(kind) for which, kind in kinds.items()}
    known = {}
    for name in inspect.signature(train).parameters:
        word = name.lower()
        found = [
            w for w in "dg" if re.search(rf"(^|_){w}(_|$)|{w}{dict(d='isc', g='en')[w]}", word)
        ]
        if found and "loss" not in word:
            net = nets[found[0]]
            is_optimizer = "opt" in word
            known[name] = torch.optim.Adam(net.parameters(), 2e-4) if is_optimizer else net
        elif "load" in word or "data" in word:
            known[name] = loader
    submission.call(train, **known)


def _watch_main(submission, start, kinds, pictures, seed, few):
    """Start the training with an observer that starts once both networks are made.

    An observer that saw some steps of both before an exception is put into `few`.
    """
    seed_everything(seed)
    submission.instances.clear()
    pictures.clear()
    watching = []

    def networks():
        return [submission.made(kind) for kind in kinds.values()]

    def watch_from_here():
        if not watching and None not in networks():
            watching.append(Observer(*networks()))
            watching[0].__enter__()

    handle = nn.modules.module.register_module_forward_pre_hook(lambda *_: watch_from_here())
    seconds, error = 4 * MAIN_SECONDS if BATCHES.limit else 2 * MAIN_SECONDS, None
    try:
        with time_limit(seconds):
            start()
    except BaseException as raised:
        error = raised
    finally:
        handle.remove()
        if watching:
            watching[0].__exit__(None, None, None)
    steps = [net.steps for net in (watching[0].g, watching[0].d)] if watching else [[], []]
    if isinstance(error, TooLong) and not all(steps) and not BATCHES.limit:
        raise TooSlow
    if not any(steps):
        if isinstance(error, Exception):
            raise error
        if isinstance(error, TooLong):
            raise CannotLoad(f"no optimiser's step in {seconds} s: its networks are too large here")
        reason = "it calls sys.exit" if error else "it ends before any optimiser's step"
        raise CannotLoad(f"the training makes no steps: {reason}")
    if isinstance(error, Exception) and watching[0].total < 4:
        if all(steps):
            few.append(watching[0])
        raise error
    return watching[0]
