"""`check_gan` on anyone's step and modules."""

import re

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from gencheck import CheckFailure, NotJudged, check_gan
from gencheck.gan_checks import Labels
from gencheck.outcomes import NOTE, PASS, UNJUDGED, WRONG


class TinyDiscriminator(nn.Module):
    """Dropout as a module and as a function."""

    def __init__(self):
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(784, 32), nn.Dropout(0.3), nn.Linear(32, 1)

    def forward(self, x):
        return self.last(F.dropout(self.drop(F.relu(self.first(x))), 0.3, self.training))


class Probabilities(TinyDiscriminator):
    def forward(self, x):
        return torch.sigmoid(super().forward(x))


def gan_checks(
    g_loss,
    d_loss,
    order="DG",
    n_batches=24,
    kind=TinyDiscriminator,
    stated=(),
    cleared="DG",
    **options,
):
    """`check_gan` of a small GAN with these losses of the discriminator's outputs.

    In order "GDDG" the generator's backward pass comes first, its step last; "DDDDDG" makes five
    discriminator steps, with a batch each. Gradients are set to zero before the steps in `cleared`.
    """
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 784), nn.Tanh())
    discriminator, n_steps = kind(), [0]
    g_optimizer, d_optimizer = (
        torch.optim.Adam(m.parameters()) for m in (generator, discriminator)
    )

    def g_first(real):
        fake = generator(torch.randn(len(real), 8))
        g_optimizer.zero_grad()
        g_loss(discriminator(fake)).mean().backward()
        d_optimizer.zero_grad()
        d_loss(discriminator(x=real), discriminator(x=fake.detach())).mean().backward()
        d_optimizer.step()
        g_optimizer.step()

    def step(real):
        fake = generator(torch.randn(len(real), 8))
        if "D" in cleared:
            d_optimizer.zero_grad()
        d_loss(discriminator(real), discriminator(fake.detach())).mean().backward()
        d_optimizer.step()
        n_steps[0] += 1
        if n_steps[0] % order.count("D"):
            return
        if "G" in cleared:
            g_optimizer.zero_grad()
        g_loss(discriminator(fake)).mean().backward()
        g_optimizer.step()

    step = g_first if order == "GDDG" else step
    batches = [2 * torch.rand(32, 784) - 1 for _ in range(n_batches)]
    options |= dict(zip(("d_loss", "g_loss"), stated))
    found = check_gan(step, generator, discriminator, batches, **options)
    assert discriminator.drop.p == 0.3
    return {f.check: f for f in found}


D_TERMS = {
    "bce": (lambda out: F.softplus(-out), lambda out: F.softplus(out)),
    "lsgan": (lambda out: (out - 1) ** 2, lambda out: out**2),
    "hinge": (lambda out: (1 - out).clamp(min=0), lambda out: (1 + out).clamp(min=0)),
    "wgan": (lambda out: -out, lambda out: out),
}
G_TERMS = {
    "nonsaturating": lambda out: F.softplus(-out),
    "lsgan": lambda out: (out - 1) ** 2,
    "hinge": lambda out: -out,
    "wgan": lambda out: -out,
}


def cross_entropy(real, fake):
    return F.softplus(-real) + F.softplus(fake)


def test_right_gan_passes():
    found = gan_checks(lambda fake: F.softplus(-fake), cross_entropy)
    assert found["generator_loss"].status == PASS
    assert "no label smoothing" in found["smoothing"].measured


def test_backward_pass_of_the_generator_may_come_first():
    found = gan_checks(lambda fake: F.softplus(-fake), cross_entropy, order="GDDG")
    assert found["stray_gradient"].status == found["discriminator_loss"].status == PASS


def test_ten_batches_are_enough_to_accuse():
    with pytest.raises(CheckFailure, match="learns to be rejected"):
        gan_checks(lambda fake: F.softplus(fake), cross_entropy, order="DDDDDG", n_batches=10)


D_LOSSES = {
    "hinge": lambda real, fake: F.relu(1 - real) + F.relu(1 + fake),
    "Wasserstein": lambda real, fake: fake - real,
    "Wasserstein, other sign": lambda real, fake: real - fake,
    "cross-entropy": cross_entropy,
}


@pytest.mark.parametrize("name", D_LOSSES)
def test_generator_that_follows_the_discriminators_output_is_not_accused(name):
    sign = 1 if "other" in name else -1
    if name != "cross-entropy":
        with pytest.raises(NotJudged, match="d_loss="):
            gan_checks(lambda fake: sign * fake, D_LOSSES[name])
    left_open = {"allow_unjudged": ("discriminator_loss",)}
    found = gan_checks(lambda fake: sign * fake, D_LOSSES[name], **left_open)
    assert "D(G(z)) grows" in found["generator_loss"].measured
    with pytest.raises(CheckFailure, match="D\\(G\\(z\\)\\) smaller"):
        gan_checks(lambda fake: -sign * fake, D_LOSSES[name])


def test_least_squares_are_no_cross_entropy_with_the_same_labels():
    with pytest.raises(NotJudged, match="the gradient of lsgan: pass d_loss='lsgan'"):
        gan_checks(
            lambda fake: (fake - 1).square(), lambda real, fake: (real - 1).square() + fake.square()
        )
    with pytest.raises(CheckFailure, match="labels 0.90 for real and 0.90 for generated"):
        gan_checks(
            lambda fake: F.softplus(-fake),
            lambda real, fake: cross_entropy(real, fake) + 0.1 * real - 0.9 * fake,
        )


@pytest.mark.parametrize("fake_range", [(0.0, 0.3), (0.0, 0.0), (0.1, 0.4)])
def test_random_labels_are_read_off_within_the_error_that_is_stated(fake_range):
    def d_loss(real, fake):
        targets = (
            torch.empty_like(real).uniform_(0.7, 1.2),
            torch.empty_like(fake).uniform_(*fake_range),
        )
        return sum(
            F.softplus(-logits) + (1 - target) * logits
            for logits, target in zip((real, fake), targets)
        )

    found = gan_checks(lambda fake: F.softplus(-fake), d_loss, n_batches=40)["discriminator_loss"]
    pattern = r"labels (\S+) \u00b1 (\S+) for real and (\S+) \u00b1 (\S+) for gen"
    real, error, fake, fake_error = map(float, re.findall(pattern, found.measured)[0])
    assert found.status == NOTE and "random ones" in found.measured
    assert max(error, fake_error) < 0.15
    assert abs(real - 0.95) < 2 * error and abs(fake - sum(fake_range) / 2) < 2 * fake_error


def test_a_sigmoid_before_a_loss_of_logits_is_wrong():
    with pytest.raises(CheckFailure, match="probabilities for logits") as failure:
        gan_checks(lambda fake: F.softplus(-fake), cross_entropy, kind=Probabilities)
    assert "generator_loss" not in str(failure.value)
    found = gan_checks(
        lambda fake: -fake.log(),
        lambda real, fake: -real.log() - (1 - fake).log(),
        kind=Probabilities,
    )
    assert found["discriminator_loss"].status == PASS


def test_generator_that_helps_the_discriminator_is_accused():
    with pytest.raises(CheckFailure, match="learns to be rejected"):
        gan_checks(lambda fake: F.softplus(fake), cross_entropy)


SMOOTH = {"bce": "nonsaturating", "lsgan": "lsgan", "hinge": "hinge", "wgan": "wgan"}


@pytest.mark.parametrize("name", SMOOTH)
def test_stated_losses_pass_and_others_are_found(name):
    real_term, fake_term = D_TERMS[name]
    step = {
        "d_loss": lambda real, fake: real_term(real) + fake_term(fake),
        "g_loss": G_TERMS[SMOOTH[name]],
    }
    found = gan_checks(**step, stated=(name, SMOOTH[name]))
    assert found["discriminator_loss"].status == found["generator_loss"].status == PASS
    other = "lsgan" if name != "lsgan" else "hinge"
    with pytest.raises(CheckFailure, match=f"is not that of the {other} loss"):
        gan_checks(**step, stated=(other, SMOOTH[name]))


def test_stated_loss_of_the_wrong_sign_is_found():
    with pytest.raises(CheckFailure, match="wrong sign"):
        gan_checks(lambda fake: -(fake - 1).square(), cross_entropy, stated=("bce", "lsgan"))


def test_stated_loss_may_be_a_function_of_both_outputs():
    def relativistic(real, fake):
        return F.softplus(fake.mean() - real) + F.softplus(fake - real.mean())

    def generator_loss(real, fake):
        return -F.softplus(real.mean() - fake)

    found = gan_checks(
        lambda fake: F.softplus(-fake), relativistic, stated=(relativistic, "nonsaturating")
    )
    assert found["discriminator_loss"].status == PASS
    with pytest.raises(CheckFailure, match="generator_loss"):
        gan_checks(
            lambda fake: F.softplus(-fake), relativistic, stated=(relativistic, generator_loss)
        )


class Conditional(nn.Module):
    """A network of an image, or of noise, and its label."""

    def __init__(self, n_in, n_out, last):
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.layers = nn.Sequential(nn.Linear(n_in + 4, 32), nn.ReLU(), nn.Linear(32, n_out), last)

    def forward(self, labels, x):
        return self.layers(torch.cat([self.embedding(labels), x], 1))


def conditional_step(penalty=0.0, target=1.0, sign=1):
    """A step of a conditional Wasserstein GAN, whose generator follows sign times D, and its parts.

    The penalty is on a norm that differs from the target.
    """
    torch.manual_seed(0)
    generator = Conditional(8, 784, nn.Tanh())
    critic = Conditional(784, 1, nn.Identity())
    optimizers = [torch.optim.Adam(m.parameters()) for m in (generator, critic)]

    def step(batch):
        real, labels = batch
        fake = generator(labels, torch.randn(len(real), 8))
        mixed = torch.lerp(fake.detach(), real, torch.rand(len(real), 1)).requires_grad_()
        (slope,) = torch.autograd.grad(critic(labels, mixed).sum(), mixed, create_graph=True)
        loss = critic(labels, fake.detach()).mean() - critic(labels, real).mean()
        optimizers[1].zero_grad()
        (loss + penalty * (slope.norm(dim=1) - target).square().mean()).backward()
        optimizers[1].step()
        optimizers[0].zero_grad()
        (-sign * critic(labels, fake).mean()).backward()
        optimizers[0].step()

    batches = [(2 * torch.rand(32, 784) - 1, torch.randint(10, (32,))) for _ in range(12)]
    return step, generator, critic, batches


@pytest.mark.parametrize("penalty", (0.0, 10.0))
def test_conditional_networks_and_gradient_penalties_pass(penalty):
    found = check_gan(*conditional_step(penalty), d_loss="wgan", g_loss="wgan")
    assert found["discriminator_loss"].status == found["generator_loss"].status == PASS
    assert ("penalty" in found["discriminator_loss"].measured) == (penalty > 0)


@pytest.mark.parametrize(
    ("options", "check"),
    [
        ({"penalty": -10.0}, "discriminator_loss"),
        ({"penalty": 10.0, "target": 5.0}, "discriminator_loss"),
        ({"sign": -1}, "generator_loss"),
    ],
    ids=["penalty subtracted", "another target", "generator against the critic's sign"],
)
def test_wrong_wasserstein_gan_is_found(options, check):
    with pytest.raises(CheckFailure) as failure:
        check_gan(*conditional_step(**options), d_loss="wgan", g_loss="wgan")
    assert [f.check for f in failure.value.result.failures] == [check]


def test_nothing_is_guessed_from_what_a_penalty_leaves_unexplained():
    with pytest.raises(NotJudged, match="state the loss"):
        check_gan(*conditional_step(10.0))


def test_what_is_not_seen_is_not_right():
    step, generator, critic, batches = conditional_step()
    with pytest.raises(NotJudged, match="no optimiser of torch.optim made a step"):
        check_gan(lambda batch: None, generator, critic, batches)
    with pytest.raises(NotJudged, match="pass at least 10"):
        check_gan(step, generator, critic, batches[:2], d_loss="wgan", g_loss="wgan")
    with torch.no_grad(), pytest.raises(NotJudged, match="no_grad"):
        check_gan(step, generator, critic, batches)
    with pytest.raises(ValueError, match="d_loss='wasserstein': pass one of bce"):
        check_gan(step, generator, critic, batches, d_loss="wasserstein")
    with pytest.raises(NotJudged, match="generator has no weight with a gradient"):
        check_gan(step, generator.requires_grad_(False), critic, batches)


def test_discriminator_that_returns_several_values_is_refused_with_the_reason():
    class Pair(TinyDiscriminator):
        def forward(self, x):
            output = super().forward(x)
            return output, output.square()

    with pytest.raises(NotJudged, match="returns tuple, not one number for each image"):
        gan_checks(lambda fake: fake[0], lambda real, fake: real[0] - fake[0], kind=Pair)


class Classes(TinyDiscriminator):
    """Scores of the classes of generated (0) and real (1) images."""

    n_classes, last_layer = 2, nn.Identity()

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(32, self.n_classes)

    def forward(self, x):
        return self.last_layer(super().forward(x))


class LogSoftmax(Classes):
    last_layer = nn.LogSoftmax(1)


class Softmax(Classes):
    last_layer = nn.Softmax(1)


class ElevenClasses(LogSoftmax):
    n_classes = 11


def likelihood(scores, label):
    """The negative log-likelihood of a class, of log-probabilities."""
    return F.nll_loss(scores, torch.full((len(scores),), label))


LIKELIHOODS = {
    "logits": (Classes, lambda scores, label: likelihood(scores.log_softmax(1), label)),
    "log-probabilities": (LogSoftmax, likelihood),
    "probabilities": (Softmax, lambda scores, label: likelihood(scores.log(), label)),
}


@pytest.mark.parametrize("real_class", (1, 0))
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_discriminator_with_two_classes_is_judged_by_their_difference(name, real_class):
    kind, loss = LIKELIHOODS[name]

    def d_loss(real, fake):
        return loss(real, real_class) + loss(fake, 1 - real_class)

    found = gan_checks(lambda fake: loss(fake, real_class), d_loss, kind=kind)
    labels = f"labels {real_class}.00 for real and {1 - real_class}.00 for generated images"
    outcome = found["discriminator_loss"]
    assert (outcome.status, outcome.measured) == (PASS, labels)
    assert found["generator_loss"].measured == "non-saturating: -log D(G(z))"
    assert "no label smoothing" in found["smoothing"].measured
    output = found["discriminator_range"]
    assert output.status == (PASS if name == "probabilities" else NOTE)
    assert output.status == PASS or output.measured.startswith("2 numbers for an image")
    with pytest.raises(CheckFailure, match="rejected"):
        gan_checks(lambda fake: loss(fake, 1 - real_class), d_loss, kind=kind)


def test_a_name_of_a_stated_loss_does_not_say_which_of_two_classes_is_real():
    with pytest.raises(NotJudged, match="2 numbers for an image"):
        gan_checks(
            lambda fake: likelihood(fake, 0),
            lambda real, fake: likelihood(real, 0) + likelihood(fake, 1),
            kind=LogSoftmax,
            stated=("bce", "nonsaturating"),
        )


def test_softmax_before_a_loss_of_logits_is_wrong():
    def loss(scores, label):
        return likelihood(scores.log_softmax(1), label)

    with pytest.raises(CheckFailure, match="probabilities for logits"):
        gan_checks(
            lambda fake: loss(fake, 1),
            lambda real, fake: loss(real, 1) + loss(fake, 0),
            kind=Softmax,
        )


def test_more_classes_are_unjudged_with_the_reason():
    with pytest.raises(NotJudged, match="returns 11 numbers for an image") as refused:
        gan_checks(
            lambda fake: likelihood(fake, 3),
            lambda real, fake: likelihood(real, 3) + likelihood(fake, 10),
            kind=ElevenClasses,
        )
    assert "differ between images" not in str(refused.value)


@pytest.mark.parametrize("label", (0.0, 0.1))
def test_generator_with_the_label_for_fake_is_told_so(label):
    def d_loss(real, fake):
        return F.softplus(-real) + F.softplus(fake) - label * fake

    with pytest.raises(CheckFailure) as failure:
        gan_checks(lambda fake: F.softplus(fake) - label * fake, d_loss)
    (found,) = failure.value.result.failures
    assert found.measured == (
        f"the generator is trained with the label for fake images ({label:g}), "
        "so it learns to be rejected"
    )


def test_coefficients_of_rounding_noise_are_not_printed():
    with pytest.raises(CheckFailure) as failure:
        gan_checks(lambda fake: -F.softplus(-fake), cross_entropy)
    (found,) = failure.value.result.failures
    assert found.measured.endswith("D(G(z)) smaller: the gradient of +1 log D(G(z))")


def test_labels_have_no_negative_zeros():
    assert "-0.00" not in Labels(1.0, -1e-9, 0.0, 1.0, False).in_words()
    assert Labels(1.0, -0.2, 0.0, 1.0, False).in_words().count("-0.20") == 1


def test_wrong_labels_are_not_called_smoothing():
    with pytest.raises(CheckFailure) as failure:
        gan_checks(
            lambda fake: F.softplus(-fake), lambda real, fake: F.softplus(-real) + F.softplus(-fake)
        )
    found = {f.check: f for f in failure.value.result.findings}
    assert found["discriminator_loss"].status == WRONG
    assert found["smoothing"].status == UNJUDGED
    assert "discriminator's loss is wrong" in found["smoothing"].measured


@pytest.mark.parametrize(
    "cleared, whose", [("D", "the generator's step includes"), ("", "both networks' steps include")]
)
def test_gradients_left_over_are_found(cleared, whose):
    words = f"{whose} a gradient left over from another backward pass"
    with pytest.raises(CheckFailure, match=words):
        gan_checks(lambda fake: F.softplus(-fake), cross_entropy, cleared=cleared)
