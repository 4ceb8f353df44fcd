"""The losses of GANs by name, and reading a gradient as a combination of a loss and penalties."""

import inspect
from collections.abc import Callable

import torch
import torch.nn.functional as F

# Of the discriminator, for (real, generated) outputs, to be minimised. "bce" takes its logits.
D_LOSSES = {
    "bce": (lambda out: F.softplus(-out), F.softplus),
    "lsgan": (lambda out: (out - 1).square(), torch.square),
    "hinge": (lambda out: F.relu(1 - out), lambda out: F.relu(1 + out)),
    "wgan": (lambda out: -out, lambda out: out),
}
# Of the generator, for outputs of generated images.
G_LOSSES = {
    "bce": lambda out: F.softplus(-out),
    "nonsaturating": lambda out: F.softplus(-out),
    "saturating": lambda out: -F.softplus(out),
    "lsgan": lambda out: (out - 1).square(),
    "hinge": lambda out: -out,
    "wgan": lambda out: -out,
}
OF_LOGITS = ("bce", "nonsaturating", "saturating")


def check_names(d_loss, g_loss) -> None:
    """Refuse unknown names of losses.

    Raises:
        ValueError: there is one.
    """
    for name, loss, known in (("d_loss", d_loss, D_LOSSES), ("g_loss", g_loss, G_LOSSES)):
        if loss is not None and not callable(loss) and loss not in known:
            raise ValueError(f"{name}={loss!r}: pass one of {', '.join(known)}, or a function")


def terms_of_d(loss: str | Callable, real, fake, to_logits: Callable) -> list[torch.Tensor]:
    """The stated loss in terms that a step may weigh: real and generated images apart, by name."""
    if callable(loss):
        return [] if real is None or fake is None else [loss(real, fake).mean()]
    parts = zip(D_LOSSES[loss], (real, fake))
    prepare = to_logits if loss in OF_LOGITS else (lambda out: out)
    return [part(prepare(out)).mean() for part, out in parts if out is not None]


def terms_of_g(loss: str | Callable, real, fake, to_logits: Callable) -> list[torch.Tensor]:
    """The stated loss of the generator; a function may take (real, generated) or generated only."""
    if callable(loss):
        wants_both = len(inspect.signature(loss).parameters) > 1
        if wants_both and real is None:
            return []
        return [(loss(real, fake) if wants_both else loss(fake)).mean()]
    return [G_LOSSES[loss](to_logits(fake) if loss in OF_LOGITS else fake).mean()]


def penalties(output: torch.Tensor, images: torch.Tensor) -> list[torch.Tensor]:
    """Gradient penalties at these images: mean (|grad| - 1)^2, mean max(0, |grad| - 1)^2, and
    mean |grad|^2.

    Gulrajani et al. 2017, Equation 3; Petzka et al. 2018, Equation 8; Mescheder et al. 2018,
    Equation 9.
    """
    (gradient,) = torch.autograd.grad(output.sum(), images, create_graph=True)
    norm = gradient.flatten(1).norm(dim=1)
    return [(norm - 1).square().mean(), F.relu(norm - 1).square().mean(), norm.square().mean()]


def is_function_of(values: torch.Tensor, outputs: torch.Tensor) -> bool:
    """Whether values, one for each image, follow the discriminator's outputs smoothly.

    Labels that are drawn at random don't.
    """
    outputs, values = outputs.double(), values.double()
    features = (torch.ones_like(outputs), outputs, outputs.square(), outputs.sigmoid())
    matrix = torch.stack([*features, F.relu(outputs - 1), F.relu(outputs + 1)], dim=1)
    rest = values - matrix @ torch.linalg.lstsq(matrix, values[:, None]).solution[:, 0]
    return bool(rest.square().sum() < 0.02 * (values - values.mean()).square().sum() + 1e-16)
