"""What is measured of a GAN (Goodfellow et al., "Generative adversarial nets", 2014)."""

import math
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import torch

from gencheck.gan_explain import EXACT, STATED
from gencheck.gan_losses import OF_LOGITS
from gencheck.gan_observer import Observer
from gencheck.gan_step import EXPLAINED, Pulls
from gencheck.layers import layers_outcome
from gencheck.modules import changed_weights
from gencheck.outcomes import NOTE, PASS, WEAK, WRONG, CannotJudge, Outcome, load_checks

MAX_ERROR = 0.15  # standard error of an average label that is too rough to tell it from another
RANDOM_LABELS = 0.6  # above: labels that differ between images explain it no longer


class GanSubject:
    """A GAN under measurement.

    Args:
        watch: watch a training of new networks, from this seed: the `Observer` after it.
        image_range: that the generator's output should have.
    """

    def __init__(
        self,
        watch: Callable[[int], Observer],
        image_range: tuple[float, float] = (-1.0, 1.0),
    ):
        self._watch = watch
        self.image_range = image_range
        self.seed = 0
        self._observers = {}

    @property
    def seen(self) -> Observer:
        """The watched training that belongs to the seed of the measurement."""
        if self.seed not in self._observers:
            self._observers[self.seed] = self._watch(self.seed)
        return self._observers[self.seed]


def _steps(gan, which):
    net = getattr(gan.seen, which)
    if not net.steps:
        name = "discriminator" if which == "d" else "generator"
        raise CannotJudge(
            f"none of the {gan.seen.total} optimiser's steps that were seen is the {name}'s"
        )
    return net.steps


class Labels(NamedTuple):
    """The labels in the discriminator's loss, medians over steps."""

    real: float
    fake: float
    residual: float  # part of the gradient that they don't explain
    weight: float  # of generated images, over that of real ones
    random: bool  # they differ between images or steps
    errors: tuple = (0.0, 0.0)  # standard errors of averages of labels that differ between images

    def in_words(self) -> str:
        """Both labels, with twice the error of an average."""
        parts = [
            f"{label:z.2f}" + (f" \u00b1 {2 * error:.2f}" if error else "")
            for label, error in zip((self.real, self.fake), self.errors)
        ]
        return f"labels {parts[0]} for real and {parts[1]} for generated images"


def _labels(gan) -> Labels:
    real, fake, weights = [], [], []
    pulls = Pulls.of_steps(_steps(gan, "d"))
    if pulls is not None:
        (real, fake), errors = pulls.labels()
        if math.isnan(real + fake):
            raise CannotJudge("no step with both real and generated images was seen")
        if max(errors) > MAX_ERROR:
            raise CannotJudge("labels differ between images so much that none can be read off")
        residual = median(step.residual for step in gan.seen.d.steps)
        return Labels(real, fake, residual, 1.0, True, tuple(errors))
    for step in _steps(gan, "d"):
        for labels, label in zip((real, fake), step.labels):
            if label is not None:
                labels.append(label)
        if all(step.weights):
            weights.append(step.weights[1] / step.weights[0])
    if not real or not fake:
        raise CannotJudge(
            "no step is a cross-entropy of both real and generated images; state d_loss="
        )
    residual = median(step.residual for step in _steps(gan, "d"))
    varied = any(max(labels) - min(labels) > 0.02 for labels in (real, fake))
    random = varied or residual > EXPLAINED
    weight = median(weights) if weights else 1.0
    return Labels(median(real), median(fake), residual, weight, random)


def _raised(gan):
    """Whether steps of a discriminator without labels raise D(x) and D(G(z)): 1 or 0 each."""
    steps = gan.seen.d.steps
    if not steps:
        return 1.0, 0.0
    sides = (sum(s.coefficients[i + 1] - s.coefficients[i] for s in steps) for i in (0, 2))
    return tuple(float(side > 0) for side in sides)


def _one_sigmoid_too_many(gan):
    return all(step.of_probabilities for step in _steps(gan, "d"))


def _is_flipped(seen):
    """Whether a critic is low for real images, as its own steps show, or else the generator's."""
    net = seen.d if seen.stated["d"] == "wgan" and seen.d.steps else seen.g
    return all(c < 0 for step in net.steps for c in step.coefficients[: step.n_terms])


def _stated(gan, which, expected):
    """Whether each step follows the gradient of the loss that the caller states."""
    steps = _steps(gan, which)
    loss = gan.seen.stated[which]
    name = loss if isinstance(loss, str) else "stated"
    residual = median(step.residual for step in steps)
    terms = [c for step in steps for c in step.coefficients[: step.n_terms]]
    flipped = loss == "wgan" and _is_flipped(gan.seen)  # D is low for real images: as good
    if flipped:
        terms = [-c for c in terms]
    if residual > STATED and gan.seen.width == 2 and loss in OF_LOGITS:
        raise CannotJudge(
            "the discriminator returns 2 numbers for an image, and a loss's name does not say "
            f"which class is real: leave {which}_loss out, or pass a function"
        )
    if residual > STATED:
        others = {step.looks_like for step in steps} - {""}
        words = f", but that of {others.pop()}" if others else ""
        measured = f"{residual:.0%} of the gradient is not that of the {name} loss{words}"
        return Outcome(WRONG, measured, expected)
    if min(terms) <= 0:
        measured = f"the gradient of the {name} loss has the wrong sign"
        return Outcome(WRONG, measured, expected)
    penalty = any(len(step.coefficients) > step.n_terms for step in steps)
    words = ", with a gradient penalty" if penalty else ""
    words += ", of the other sign" if flipped else ""
    return Outcome(PASS, f"the gradient of the {name} loss, to {residual:.1g}{words}", expected)


def _refuse_unexplained(gan, which):
    """A gradient that no cross-entropy explains says nothing about labels.

    Raises:
        CannotJudge: what is unexplained are no random labels.
    """
    steps = _steps(gan, which)
    residual = median(step.residual for step in steps)
    names = [step.looks_like for step in steps if step.looks_like]
    if names:
        words = f"no cross-entropy, but the gradient of {names[0]}"
        raise CannotJudge(f"{words}: pass {which}_loss='{names[0]}'")
    if residual <= EXPLAINED or Pulls.of_steps(steps) is not None:
        return
    if gan.seen.width > 1:
        raise CannotJudge(
            f"the discriminator returns {gan.seen.width} numbers for an image, and no "
            f"cross-entropy of two classes explains the gradient; state {which}_loss="
        )
    raise CannotJudge(
        f"no cross-entropy: {residual:.0%} of the gradient is unexplained; state the loss: "
        f"{which}_loss= a name or a function of D's outputs"
    )


def _refuse_unknown_side(gan):
    """Without the discriminator's loss nobody knows which way its output should move.

    Raises:
        CannotJudge: most of that is unexplained, and none is stated.
    """
    steps = gan.seen.d.steps
    unknown = steps and not any(step.n_terms or step.looks_like for step in steps)
    if unknown and median(step.residual for step in steps) > RANDOM_LABELS:
        raise CannotJudge("the discriminator's loss is unexplained; state d_loss=, and g_loss=")


def _discriminator_loss(gan):
    if gan.seen.stated["d"] is not None:
        return _stated(gan, "d", "the gradient of the stated loss")
    expected = "the cross-entropy of D(x) with a label near 1 and of D(G(z)) with one near 0"
    if _one_sigmoid_too_many(gan):
        layer = "softmax" if gan.seen.width == 2 else "sigmoid"
        words = f"a cross-entropy that takes D's probabilities for logits: a {layer} too many"
        return Outcome(WRONG, words, expected)
    _refuse_unexplained(gan, "d")
    labels = _labels(gan)
    real, fake, residual, weight, random, errors = labels
    measured = labels.in_words()
    if random and residual > EXACT and not any(errors):
        raise CannotJudge("no cross-entropy with fixed or random labels; state the loss, d_loss=")
    if weight < 0:
        return Outcome(
            WRONG, "real and generated images enter the loss with opposite signs", expected
        )
    low, high = sorted((real, fake))
    # Other losses, such as least squares, are fitted roughly by labels that make no sense.
    if residual > EXACT and not any(errors) and (low < -0.2 or high > 1.4 or high - low < 0.2):
        raise CannotJudge(f"no cross-entropy, or labels that differ between images: {measured}")
    if high - low < 0.2:
        return Outcome(WRONG, measured, expected)
    noisy = ", random ones" if random else ""
    words = f", generated images weigh {weight:.2g}" if abs(weight - 1) > 0.1 else ""
    is_swapped = real < fake and gan.seen.width != 2  # either of two classes may be the real one
    swapped = "; D is the probability of a generated image" if is_swapped else ""
    status = NOTE if noisy or words or swapped else PASS
    return Outcome(status, measured + noisy + words + swapped, expected)


def _is_wrong(measure, gan):
    try:
        return measure(gan).status == WRONG
    except CannotJudge:
        return False


def _smoothing(gan):
    if gan.seen.stated["d"] is not None:
        raise CannotJudge("the discriminator's loss is stated")
    _refuse_unexplained(gan, "d")
    if _is_wrong(_discriminator_loss, gan):
        raise CannotJudge(
            "the discriminator's loss is wrong, so its labels say nothing of smoothing"
        )
    labels = _labels(gan)
    real, fake, residual, _, random, errors = labels
    if any(errors):
        words = f"labels that differ between images; on average: {labels.in_words()}"
        return Outcome(NOTE, words, "fixed labels")
    if residual > RANDOM_LABELS:
        raise CannotJudge("the discriminator's loss is no cross-entropy of its probabilities")
    top, bottom = max(real, fake), min(real, fake)
    if residual > EXPLAINED:
        raise CannotJudge("the discriminator's loss is no cross-entropy with fixed labels")
    sides = [
        n for n, smooth in (("real", abs(top - 1) > 0.015), ("generated", bottom > 0.015)) if smooth
    ]
    if not sides:
        return Outcome(PASS, f"no label smoothing ({labels.in_words()})")
    words = {1: f"one-sided, of the {sides[0]} images' label", 2: "of both sides"}[len(sides)]
    words += ", random" if random else ""
    return Outcome(
        NOTE, f"label smoothing {words} ({labels.in_words()})", "none, or of the real label only"
    )


def _generator_loss(gan):
    if gan.seen.stated["g"] is not None:
        return _stated(gan, "g", "the gradient of the stated loss")
    steps = _steps(gan, "g")
    _refuse_unexplained(gan, "g")
    pulls = Pulls.of_steps(steps)
    up = median(step.coefficients[0] for step in steps)
    down = median(step.coefficients[1] for step in steps)
    residual = median(step.residual for step in steps)
    expected = "the gradient of -log D(G(z))"
    if residual > RANDOM_LABELS and pulls is None:
        raise CannotJudge(f"no cross-entropy: {residual:.0%} of the gradient is unexplained")
    if gan.seen.d.steps and _one_sigmoid_too_many(gan):
        raise CannotJudge("no cross-entropy of D's probabilities, like the discriminator's loss")
    try:
        if gan.seen.stated["d"] is not None:
            raise CannotJudge("a stated loss has no labels")
        real, fake = _labels(gan)[:2]
    except CannotJudge:
        _refuse_unknown_side(gan)
        real, fake = _raised(gan)
    if pulls is not None:
        mean = pulls.strengths.mean().item() * (1 if real > fake else -1)
        if mean < 0:
            words = "non-saturating: -log D(G(z)), with labels that differ between images"
            return Outcome(NOTE, words, expected)
        return Outcome(
            WRONG, "labels near 0 for generated images: it makes D(G(z)) smaller", expected
        )
    if real < fake - 0.2:
        up, down = down, up
    size = max(abs(up), abs(down))
    up, down = (c if abs(c) >= 0.02 * size else 0.0 for c in (up, down))  # no rounding errors
    label = up / (up + down) if abs(up + down) > 1e-3 * size else math.nan
    names = {"log D(G(z))": up, "log(1 - D(G(z)))": down}
    terms = "the gradient of " + " ".join(f"{c:+.2g} {name}" for name, c in names.items() if c)
    if up == 0 < down and real > fake:
        return Outcome(NOTE, "saturating: it minimises log(1 - D(G(z)))", expected)
    if up < 0 and (down == 0 or label > 0.5):
        words = f" with label {label:.2f}" if down else ""
        return Outcome(NOTE if words else PASS, f"non-saturating: -log D(G(z)){words}", expected)
    if up >= 0 and down > 0:
        return Outcome(NOTE, f"saturating, mixed: {terms}", expected)
    if up < 0 < down:
        measured = f"no cross-entropy: {terms}, and D(G(z)) grows"
        return Outcome(NOTE, measured, expected)
    of_fake = fake if real > fake else 1 - fake
    if up + down < 0 and abs(label - of_fake) < 0.05:
        measured = (
            f"the generator is trained with the label for fake images ({round(fake, 2) + 0:g}), "
            "so it learns to be rejected"
        )
        return Outcome(WRONG, measured, expected)
    return Outcome(WRONG, f"it makes D(G(z)) smaller: {terms}", expected)


def _stray(gan):
    d, g = _steps(gan, "d"), _steps(gan, "g")
    steps = {"generator": g, "discriminator": d}
    leaks = [name for name in steps if any(step.leftover for step in steps[name])]
    if not leaks:
        return Outcome(PASS, "every step uses the gradient of its own loss alone")
    whose = f"the {leaks[0]}'s step includes" if len(leaks) == 1 else "both networks' steps include"
    return Outcome(
        WRONG,
        f"{whose} a gradient left over from another backward pass",
        "gradients set to zero before each backward pass",
    )


def _alone(gan):
    g, d = (any(s.other_moved for s in _steps(gan, which)) for which in "gd")
    words = ["the discriminator's step moves the generator"] if d else []
    words += ["the generator's step moves the discriminator"] if g else []
    expected = "each step moves its own network only"
    return Outcome(WRONG if words else PASS, "; ".join(words) or expected, expected)


def _both_move(gan):
    _steps(gan, "g"), _steps(gan, "d")
    moved = {"generator": gan.seen.g.moved(), "discriminator": gan.seen.d.moved()}
    still = [name for name, change in moved.items() if change == 0]
    measured = ", ".join(f"{name} {change:.2g}" for name, change in moved.items())
    return Outcome(WRONG if still else PASS, f"change of the weights: {measured}", "above 0")


def _generator_range(gan):
    low, high = _range(gan)
    bottom, top = gan.image_range
    slack = (top - bottom) / 2
    measured = f"images from {low:z.2f} to {high:z.2f}, with large weights"
    expected = "-1 to 1, from tanh" if gan.image_range == (-1.0, 1.0) else f"{bottom:g} to {top:g}"
    if high > top + 0.001 * slack or low < bottom - 0.001 * slack:
        return Outcome(WRONG, measured, expected)
    return Outcome(NOTE if low > bottom + 0.5 * slack else PASS, measured, expected)


def _range(gan):
    """Smallest and largest output of the generator with its last layer's weights enlarged."""
    generator, latents = gan.seen.g.module, gan.seen.latents
    if not latents:
        raise CannotJudge("the generator was never called")
    call = gan.seen.last_of_generator
    wide = [p for p in generator.parameters() if p.dim() > 1][-1]
    saved = [*generator.parameters(), *generator.buffers()]
    with changed_weights(saved), torch.no_grad():
        wide.data.mul_(100)
        images = call.again(generator.train())
    return images.min().item(), images.max().item()


def _image_scale(gan):
    low, high = gan.seen.real_range
    if low > high:
        raise CannotJudge("no real images were seen")
    g_low, g_high = _range(gan)
    measured = f"real images {low:z.2f} to {high:z.2f}, generated {g_low:z.2f} to {g_high:z.2f}"
    right = abs(low - g_low) < 0.15 and abs(high - g_high) < 0.15
    return Outcome(PASS if right else WEAK, measured, "the same range")


def _discriminator_range(gan):
    if gan.seen.logits:
        width = gan.seen.width
        words = "the discriminator returns logits"
        if width > 1:
            words = f"{width} numbers for an image, such as logits or log-probabilities of classes"
        return Outcome(NOTE, words, "probabilities in [0, 1]")
    if not gan.seen.rescaled:
        raise CannotJudge("no step of the discriminator was seen")
    return Outcome(PASS, "probabilities in [0, 1]")


def _latents(gan):
    latents = [z.double() for z in gan.seen.latents if len(z) > 1]
    if len(latents) < 2:
        raise CannotJudge("the generator was called once at most")
    unique = {z.sum().item() for z in latents}
    z = torch.cat([z.flatten() for z in latents])
    problems = []
    if len(unique) == 1:
        problems.append("the same noise for every batch")
    if any((z == z[:1]).all() for z in latents):
        problems.append("the same noise for all images of a batch")
    if z.min() >= 0 or abs(z.mean()) > 0.05 + 6 / math.sqrt(len(z)) or abs(z.var() - 1) > 0.1:
        measured = f"the latents have mean {z.mean():z.2f} and variance {z.var():.2f}"
        return Outcome(WRONG if problems else NOTE, "; ".join([measured, *problems]), "N(0, 1)")
    expected = "N(0, 1), new for every batch"
    return Outcome(WRONG if problems else PASS, "; ".join(problems) or expected, expected)


def _layers(gan):
    g, d = gan.seen.g, gan.seen.d
    calls = [(g, gan.seen.last_of_generator), (d, (d.calls or d.older or [None])[-1])]
    if None in (call for _, call in calls):
        raise CannotJudge("no call of both networks was seen")
    networks = {"generator": g.module, "discriminator": d.module}

    def run():
        with changed_weights([b for net, _ in calls for b in net.module.buffers()]):
            return {n: [call.again(net.module)] for n, (net, call) in zip(networks, calls)}

    return layers_outcome(networks, run)


CHECKS = load_checks(
    "gan",
    {
        "discriminator_loss": _discriminator_loss,
        "generator_loss": _generator_loss,
        "stray_gradient": _stray,
        "steps": _alone,
        "both_move": _both_move,
        "smoothing": _smoothing,
        "generator_range": _generator_range,
        "image_scale": _image_scale,
        "discriminator_range": _discriminator_range,
        "latents": _latents,
        "layers": _layers,
    },
)
