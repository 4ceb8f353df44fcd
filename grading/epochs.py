"""A submission's own epoch functions as a black box, with data in the format that they take."""

import contextlib
import copy
import math
from collections.abc import Callable

import torch
from torch.utils.data import DataLoader

from gencheck.outcomes import PASS, CannotJudge, TooLong, seed_everything
from gencheck.vae_calls import N_IMAGES
from gencheck.vae_heads import kl_divergence
from gencheck.vae_subject import VAESubject
from grading.adapters import SHAPES, first_that_works, required
from grading.flow_model import differentiated, grey_unit, log_normal, logit
from grading.flow_subject import FlowSubject
from grading.loading import CannotLoad, Submission, time_limit
from grading.stand_ins import Images

BATCH = 32
EPOCH_SECONDS = 20  # for a few batches
NATS_PER_BIT = 784 * math.log(2)


class Snapshots(DataLoader):
    """A loader that calls functions when it is iterated, and before it gives each batch."""

    on_start: Callable = staticmethod(lambda: None)
    on_batch: Callable = staticmethod(lambda: None)

    def __iter__(self):
        self.on_start()
        for batch in super().__iter__():
            self.on_batch()
            yield batch


class EpochSubject:
    """A submission's `epoch_iter` and `run_epoch` with data in the format that they take.

    Args:
        model: "vae" or "nf".
        submission: the module.
        module: the network to train.
        true_value: images [n, 784] -> the exact value of each in the model's unit, [n].
        caught: arguments that `main` gave to the epoch's function, by name.
        images, labels: data.
    """

    def __init__(self, model, submission, module, true_value, caught, images, labels):
        self.model, self.submission, self.module = model, submission, module
        self.true_value, self.images, self.labels = true_value, images.float(), labels
        self.seed = 0
        self.wrong_logdet = False  # whether that of a flow was found wrong
        # Further arguments that `main` gave: a device, for instance.
        usual = ("model", "net", "data", "optimizer", "function")
        self.extra = {name: value for name, value in caught.items() if name not in usual}
        self.format = None
        self.too_long: TooLong | None = None
        self.untrained = copy.deepcopy(module.state_dict())
        self.trained: dict[int, dict] = {}  # results of short trainings, by seed
        self.averages: dict[int, tuple] = {}  # what `epoch_iter` returns at unchanged weights

    @contextlib.contextmanager
    def limit(self, seconds):
        """Limit the time of a call of the submission; after one that took too long none is made."""
        if self.too_long is not None:
            raise self.too_long
        try:
            with time_limit(seconds):
                yield
        except TooLong as error:
            self.too_long = error
            raise

    def loader(self, images, size=BATCH) -> DataLoader:
        """Batches of these images in the format that the epoch's function takes."""
        with_labels, shape = self.format
        labels = self.labels[: len(images)] if with_labels else None
        data = Images(images.view(-1, *shape).clone(), labels)
        return Snapshots(data, batch_size=size)

    def settle(self) -> None:
        """Find the format of batches that `epoch_iter` or `run_epoch` takes."""
        if self.format is not None:
            return
        order = (False, True) if self.model == "vae" else (True, False)
        shapes = SHAPES[1::-1] if self.model == "vae" else SHAPES[:2]
        options = [(labels, shape) for labels in order for shape in shapes]

        def attempt(option):
            self.format = option
            value = self.submission.attempt(self.epoch, self.images[:BATCH], training=False)
            if self.submission.find("epoch_iter") is None:
                return  # `run_epoch` may return nothing
            if value is None:
                raise NotImplementedError
            numbers(value)

        try:
            first_that_works(options, attempt, "the epoch's function")
        except CannotLoad as error:
            self.format = None
            raise CannotJudge(str(error)) from error
        except BaseException:
            self.format = None
            raise

    def optimizer(self, lr=0.0):
        """A new optimiser of the network; with a learning rate of 0 it changes nothing."""
        kind = torch.optim.SGD if lr == 0 else torch.optim.Adam
        return kind(self.module.parameters(), lr=lr)

    def epoch(self, images, training, lr=0.0, size=BATCH, on_batch=lambda: None):
        """What `epoch_iter` returns for these images; `on_batch` is called before each batch.

        Without one, what `run_epoch` returns that trains or validates on them.
        """
        function = self.submission.find("epoch_iter")
        self.module.train(training)
        loader, optimizer = self.loader(images, size), self.optimizer(lr)
        loader.on_batch = on_batch
        if function is None:
            other = self.loader(images[:size], size)
            return self.run_epoch(*((loader, other) if training else (other, loader)), optimizer)
        extra = required(function, self.extra)
        with self.limit(EPOCH_SECONDS):
            roles = {"model": self.module, "data": loader, "optimizer": optimizer}
            return self.submission.call_by_role(function, roles, **extra)

    def run_epoch(self, train, val, optimizer, seconds=EPOCH_SECONDS):
        """What `run_epoch` returns for these loaders."""
        function = self.submission.find("run_epoch")
        if function is None:
            raise CannotJudge("there is no epoch_iter or run_epoch")
        extra = required(function, self.extra)
        with self.limit(seconds):
            roles = {"model": self.module, "data": (train, val), "optimizer": optimizer}
            return self.submission.call_by_role(function, roles, **extra)


def epoch_subject(model, submission: Submission, subject, caught, images, labels) -> EpochSubject:
    """The epoch functions of a submission whose model is under measurement in `subject`."""
    if model == "vae":
        subject.to_float32()
        module, value = subject.modules[0].model, vae_value(subject)
    else:
        module, value = subject.model, flow_value(subject)
    epochs = EpochSubject(model, submission, module, value, caught, images, labels)
    exact = true_elbo(subject) if model == "vae" else true_bpd(subject)

    def exact_average(images):
        seed_everything(1)
        return exact(images).mean().item()

    epochs.exact = exact_average
    epochs.wrong_logdet = model == "nf" and subject.wrong_logdet
    return epochs


def numbers(value) -> list[float]:
    """The readings of a returned value: itself, its first part, or the sum of two parts.

    The parts are those of a tuple, or the values of a dictionary.
    """
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        parts = [numbers(part)[0] for part in value]
        return [parts[0]] + ([parts[0] + parts[1]] if len(parts) > 1 else [])
    return [float(torch.as_tensor(value).detach().double().mean())]


def vae_value(vae: VAESubject) -> Callable:
    """-ELBO in nats of every image, with one draw of z, from the loss as it is coded."""
    c = []

    @torch.no_grad()
    def value(images):
        if not c:
            with torch.enable_grad():
                c.append(vae.recon_and_kl(vae.x[:N_IMAGES])[0] or 1.0)
        x = images.view(-1, *vae.x.shape[1:])
        summed = abs(abs(c[0]) / N_IMAGES - 1) < 1e-3  # the loss is a sum over the batch
        scale = len(x) if summed else c[0]
        return torch.full((len(images),), vae.draw(x).loss.item() / scale)

    return value


def true_elbo(vae: VAESubject) -> Callable:
    """The true -ELBO in nats of every image, with one draw of z."""

    def value(images):
        posterior = vae.posterior  # judged once, with gradients
        x = images.view(-1, *vae.x.shape[1:])
        with torch.no_grad():
            draw = vae.draw(x)
            return draw.nll + kl_divergence(*posterior.of(vae.outputs(x))).double()

    return value


def flow_value(flow: FlowSubject) -> Callable:
    """Bits per dimension of every image, from the model's own log p(x)."""

    @torch.no_grad()
    def value(images):
        log_px = torch.as_tensor(flow.model(images.clone())).double()
        log_px = log_px.sum(dim=1) if log_px.dim() > 1 and log_px.shape[1] > 1 else log_px
        log_px = log_px.reshape(-1)
        bits = log_px.abs() / NATS_PER_BIT
        return bits if len(bits) == len(images) else bits.mean().expand(len(images))

    return value


def true_bpd(flow: FlowSubject) -> Callable:
    """Bits per dimension of every image from the flow alone: our noise, logit step and prior.

    The logit step is the model's own where that is right: its alpha may be another one. Its
    log-determinant is autodiff's. The flow's is autodiff's only where its own was found
    wrong: it takes several passes more.
    """

    def logit_step(y, ldj):
        alpha = 1e-5
        return (y / 256 * (1 - alpha) + alpha / 2).logit(), ldj

    unit = 1.0
    with contextlib.suppress(Exception):
        if logit(flow).status == PASS:
            logit_step, unit = flow.model.logit_normalize, grey_unit(flow)

    @torch.no_grad()
    def value(images):
        y = unit * (images + torch.rand_like(images))
        _, logits, _, step_ldj = differentiated(logit_step, y)
        z, ldj = flow.flow.forward(logits.clone(), torch.zeros(len(y)))
        if flow.wrong_logdet:
            ldj = flow.chained_log_abs_det(logits)
        if ldj is None:
            raise CannotJudge("the log-determinant is wrong, which other checks judge")
        log_px = log_normal(z) + ldj + step_ldj + flow.dim * math.log(unit)
        return -log_px / NATS_PER_BIT

    return value
