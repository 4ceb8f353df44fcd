"""The cases: what to fetch, how to call it, and what is known to be right or wrong."""

import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn as nn

from gencheck import check_flow, check_gan, check_vae

RIGHT, WRONG, REFUSED = ("right",), ("wrong",), ("not judged",)
MULTI_GAN = "eriklindernoren/PyTorch-GAN", "36d3c77"
NORMFLOWS = "VincentStimper/normalizing-flows"


@dataclass(frozen=True)
class Case:
    """One implementation.

    Args:
        name: repository and version.
        expected: verdicts that are right.
        check: the call, given `Sources`.
        bug: where its bug is described; "" if it has none.
        finding: the check that must find it; "" if there is no bug.
    """

    name: str
    expected: tuple[str, ...]
    check: Callable
    bug: str = ""
    finding: str = ""


def images(*shape, binary=False):
    """32 images of random numbers in [0, 1]."""
    x = torch.rand(32, *shape, generator=torch.Generator().manual_seed(0))
    return (x < 0.3).float() if binary else x


def _loss_of(model, loss_function):
    """A function of x: the loss of the model's outputs, or the sum of its terms."""

    def loss(x):
        output, mean, spread = model(x)
        value = loss_function(output, x, mean, spread)
        return value if isinstance(value, torch.Tensor) else sum(value)

    return loss


def _examples(commit, sources):
    module = sources.names("pytorch/examples", commit, "vae/main.py")
    model = module.VAE()
    loss = _loss_of(model, module.loss_function)
    check_vae(loss, model.encode, model.decode, images(1, 28, 28, binary=True))


def _beginner(sources):
    module = sources.names(
        "L1aoXingyu/pytorch-beginner",
        "a57dd7e",
        "08-AutoEncoder/Variational_autoencoder.py",
        "reconstruction_function",
    )
    model = module.VAE()
    loss = _loss_of(model, module.loss_function)
    check_vae(loss, model.encode, model.decode, images(784), nll="gaussian")


def _sigma_vae(sources):
    module = sources.names("orybkin/sigma-vae-pytorch", "4748a3a", "model.py")
    settings = types.SimpleNamespace(batch_size=8, model="gaussian_vae")
    model = module.ConvVAE("cpu", 1, settings)
    loss = _loss_of(model, model.loss_function)
    check_vae(loss, model.encode, model.decode, images(1, 28, 28), nll="gaussian")


def _world_models(sources):
    repository = "ctallec/world-models", "d6abd9c"
    model = sources.names(*repository, "models/vae.py").VAE(3, 32)
    training = sources.names(*repository, "trainvae.py", F=nn.functional)
    loss = _loss_of(model, training.loss_function)
    check_vae(loss, model.encoder, model.decoder, images(3, 64, 64), nll="gaussian")


def _beta_vae(sources):
    repository = "1Konny/Beta-VAE", "977a1ec"
    model = sources.names(*repository, "model.py").BetaVAE_H(10, 3)
    solver = sources.names(*repository, "solver.py")

    def loss(x):
        output, mean, log_var = model(x)
        kl = solver.kl_divergence(mean, log_var)[0]
        return solver.reconstruction_loss(x, output, "bernoulli") + 4 * kl

    check_vae(loss, model.encoder, model.decoder, images(3, 64, 64), beta=4)


def _pytorch_vae(sources):
    module = sources.module("AntixK/PyTorch-VAE", "a6896b9", "models.vanilla_vae")
    model = module.VanillaVAE(3, 16)

    def loss(x):
        return model.loss_function(*model(x), M_N=0.00025)["loss"]

    x = 2 * images(3, 64, 64) - 1
    check_vae(loss, model.encode, model.decode, x, nll="gaussian", beta=0.00025)


def _generative(sources):
    repository = "podgorskiy/VAE", "ee907bc"
    model = sources.names(*repository, "net.py").VAE(16, 3, 3)
    script = sources.names(*repository, "VAE.py")
    loss = _loss_of(model, script.loss_function)
    x = 2 * images(3, 32, 32) - 1
    check_vae(loss, model.encode, model.decode, x, nll="gaussian", beta=0.1)


def _pythae(sources):
    from pythae.models import VAE, VAEConfig

    model = VAE(VAEConfig(input_dim=(1, 28, 28), latent_dim=8))

    def loss(x):
        return model({"data": x}).loss

    check_vae(loss, model.encoder, model.decoder, images(1, 28, 28), nll="gaussian")


def _zuko(name, options, sources):
    import zuko

    check_flow(getattr(zuko.flows, name)(3), shape=3, **options)


def _nflows(make, options, sources):
    from nflows import transforms

    check_flow(make(transforms), shape=4, **options)


def _normflows(make, options, sources):
    import normflows

    check_flow(make(normflows), **options)


def _residual(normflows):
    net = normflows.nets.LipschitzMLP([2, 32, 32, 2], init_zeros=True, lipschitz_const=0.9)
    base = normflows.distributions.DiagGaussian(2)
    return normflows.NormalizingFlow(base, [normflows.flows.Residual(net)])


def _old_normflows(commit, make, shape, sources):
    module = sources.module(NORMFLOWS, commit, "normflow.flows")
    check_flow(make(module), shape=shape)


def _masked_affine(module):
    nets = [nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)) for _ in range(2)]
    return module.MaskedAffineFlow(torch.tensor([0.0, 1.0, 0.0, 1.0]), *nets)


def _core_of_normflows(commit, sources):
    module = sources.module(NORMFLOWS, commit, "normflows")
    base = module.distributions.DiagGaussian(2)
    flow = module.NormalizingFlow(base, [module.flows.AffineConstFlow(2)])
    check_flow(flow, shape=2)


def _affine_half(sources):
    module = sources.module("karpathy/pytorch-normalizing-flows", "b60e119", "nflib.flows")
    check_flow(module.AffineHalfFlow(4, False), shape=4)


def _real_nvp_of_masks(sources):
    module = sources.names("xqding/RealNVP", "e86c449", "script/RealNVP_2D.py")
    check_flow(module.RealNVP_2D([[0.0, 1.0], [1.0, 0.0]] * 2, 16), shape=2)


def _real_nvp_of_moons(sources):
    masks = torch.tensor([[0.0, 1.0], [1.0, 0.0]] * 3)
    notebook = sources.names(
        "senya-ashukha/real-nvp-pytorch", "90c7562", "real-nvp-pytorch.ipynb", masks=masks
    )

    def net():
        return nn.Sequential(nn.Linear(2, 16), nn.LeakyReLU(), nn.Linear(16, 2), nn.Tanh())

    flow = notebook.RealNVP(net, net, masks, None)
    check_flow(flow.f, inverse=flow.g, dim=2)


def _real_nvp_of_images(sources):
    module = sources.module("chrischute/real-nvp", "df51ad5", "models.real_nvp.real_nvp")
    flow = module.RealNVP(num_scales=1, in_channels=3, mid_channels=8, num_blocks=1).flows
    back = partial(flow, reverse=True)
    check_flow(flow, inverse=back, shape=(3, 4, 4), inverse_logdet=False)


def _spline(commit, sources):
    module = sources.module("facebookincubator/flowtorch", commit, "flowtorch.bijectors")
    check_flow(module.Spline(shape=torch.Size([3])), shape=3)


def _code_soup(commit, sources):
    repository = "Adversarial-Deep-Learning/code-soup", commit
    gan = sources.names(*repository, "code_soup/ch5/models/gan.py").GAN(28, 1, 16, "cpu", 2e-4)
    batches = [(2 * torch.rand(24, 1, 28, 28) - 1, torch.zeros(24)) for _ in range(12)]
    check_gan(gan.step, gan.generator, gan.discriminator, batches)


def _gan(name, losses, sources):
    settings = types.SimpleNamespace(
        img_size=32, latent_dim=16, channels=1, n_classes=10, batch_size=16
    )
    given = {"opt": settings, "img_shape": (1, 32, 32), "cuda": False, "autograd": torch.autograd}
    given["device"] = "cpu"
    file = f"implementations/{name}/{name}.py"
    module = sources.names(*MULTI_GAN, file, "Tensor", "adversarial_loss", **given)
    networks = module.Generator(), module.Discriminator()
    optimizers = [torch.optim.Adam(network.parameters(), 2e-4) for network in networks]
    batches = [2 * torch.rand(24, 1, 32, 32) - 1 for _ in range(12)]
    if name == "cgan":
        batches = [(real, torch.randint(10, (24,))) for real in batches]
    step = partial(STEPS[name], module, *networks, *optimizers)
    d_loss, g_loss = losses
    check_gan(step, *networks, batches, d_loss=d_loss, g_loss=g_loss)


def _update(optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _squares(output, target):
    return (output - target).square().mean()


def _lsgan(module, generator, discriminator, g_optimizer, d_optimizer, real):
    fake = generator(torch.randn(len(real), 16))
    _update(g_optimizer, _squares(discriminator(fake), 1))
    on_fake = _squares(discriminator(fake.detach()), 0)
    _update(d_optimizer, (_squares(discriminator(real), 1) + on_fake) / 2)


def _cgan(module, generator, discriminator, g_optimizer, d_optimizer, batch):
    real, labels = batch
    wanted = torch.randint(10, (len(real),))
    fake = generator(torch.randn(len(real), 16), wanted)
    _update(g_optimizer, _squares(discriminator(fake, wanted), 1))
    on_fake = _squares(discriminator(fake.detach(), wanted), 0)
    _update(d_optimizer, (_squares(discriminator(real, labels), 1) + on_fake) / 2)


def _wgan_gp(module, generator, discriminator, g_optimizer, d_optimizer, real):
    fake = generator(torch.randn(len(real), 16)).detach()
    penalty = module.compute_gradient_penalty(discriminator, real, fake)
    gap = discriminator(fake).mean() - discriminator(real).mean()
    _update(d_optimizer, gap + 10 * penalty)
    _update(g_optimizer, -discriminator(generator(torch.randn(len(real), 16))).mean())


def _relative(real, fake):
    """The loss of a relativistic discriminator (Jolicoeur-Martineau 2018, Section 4.1)."""
    return nn.functional.softplus(fake - real)


def _relativistic(module, generator, discriminator, g_optimizer, d_optimizer, real):
    fake = generator(torch.randn(len(real), 16))
    valid, invalid = torch.ones(len(real), 1), torch.zeros(len(real), 1)
    # Its relativistic loss of the generator is calculated, and overwritten by this one.
    _update(g_optimizer, module.adversarial_loss(discriminator(fake), valid))
    on_real, on_fake = discriminator(real), discriminator(fake.detach())
    terms = (on_real - on_fake, valid), (on_fake - on_real, invalid)
    _update(d_optimizer, sum(module.adversarial_loss(*term) for term in terms) / 2)


def _ebgan(module, generator, discriminator, g_optimizer, d_optimizer, real):
    fake = generator(torch.randn(len(real), 16))
    image, embedding = discriminator(fake)
    _update(g_optimizer, _squares(image, fake.detach()) + 0.1 * module.pullaway_loss(embedding))
    on_real, on_fake = discriminator(real)[0], discriminator(fake.detach())[0]
    margin = nn.functional.relu(1 - _squares(on_fake, fake.detach()))
    _update(d_optimizer, _squares(on_real, real) + margin)


STEPS = {
    "lsgan": _lsgan,
    "cgan": _cgan,
    "wgan_gp": _wgan_gp,
    "relativistic_gan": _relativistic,
    "ebgan": _ebgan,
}
LINEAR = {"shape": 2, "atol": 1e-3}
CASES = [
    Case("pytorch/examples fcce71c", RIGHT, partial(_examples, "fcce71c")),
    Case(
        "pytorch/examples 753d086",
        WRONG,
        partial(_examples, "753d086"),
        "#419",
        "noise_in_evaluation",
    ),
    Case("L1aoXingyu/pytorch-beginner", RIGHT, _beginner),
    Case("orybkin/sigma-vae-pytorch", RIGHT, _sigma_vae),
    Case("ctallec/world-models", RIGHT, _world_models),
    Case("1Konny/Beta-VAE", RIGHT, _beta_vae),
    Case("AntixK/PyTorch-VAE", RIGHT, _pytorch_vae),
    Case("pythae VAE, mse", RIGHT, _pythae),
    Case("podgorskiy/VAE", WRONG, _generative, "#1", "kl"),
    Case("zuko NSF", RIGHT, partial(_zuko, "NSF", {})),
    Case("zuko MAF", RIGHT, partial(_zuko, "MAF", {})),
    Case("zuko GF", RIGHT, partial(_zuko, "GF", {"atol": 1e-3})),
    Case("zuko CNF", RIGHT, partial(_zuko, "CNF", {"atol": 1e-4})),
    Case("nflows Logit", RIGHT, partial(_nflows, lambda t: t.Logit(), {"domain": (0, 1)})),
    Case(
        "nflows spline",
        RIGHT,
        partial(
            _nflows,
            lambda t: t.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(4, 16),
            {"domain": (0, 1)},
        ),
    ),
    Case("normflows residual", RIGHT, partial(_normflows, _residual, LINEAR)),
    Case(
        "normflows Glow",
        RIGHT,
        partial(_normflows, lambda nf: nf.flows.GlowBlock(4, 8), {"shape": (4, 4, 4)}),
    ),
    Case(
        "normflows 913cd2d",
        WRONG,
        partial(_old_normflows, "1b06141^", _masked_affine, (1, 4)),
        "1b06141",
        "flow_logdet",
    ),
    Case(
        "normflows, Invertible1x1Conv",
        WRONG,
        partial(_old_normflows, "7ce9356^", lambda m: m.Invertible1x1Conv(4), (4, 2, 2)),
        "7ce9356",
        "flow_logdet",
    ),
    Case(
        "normflows, its inverse",
        WRONG,
        partial(_old_normflows, "bf18411^", lambda m: m.Invertible1x1Conv(4), (4, 2, 2)),
        "bf18411",
        "flow_inverse",
    ),
    Case(
        "normflows before 8b5415f",
        WRONG,
        partial(_core_of_normflows, "8b5415f^"),
        "#27",
        "flow_logdet",
    ),
    Case("karpathy/pytorch-normalizing-flows", WRONG, _affine_half, "#10", "flow_inverse"),
    Case("flowtorch 4992731", RIGHT, partial(_spline, "4992731")),
    Case(
        "flowtorch before 4992731",
        WRONG,
        partial(_spline, "4992731^"),
        "#100",
        "flow_reverse_logdet",
    ),
    Case("xqding/RealNVP", RIGHT, _real_nvp_of_masks),
    Case("senya-ashukha/real-nvp-pytorch", RIGHT, _real_nvp_of_moons),
    Case("chrischute/real-nvp", RIGHT, _real_nvp_of_images),
    Case("PyTorch-GAN lsgan", RIGHT, partial(_gan, "lsgan", ("lsgan", "lsgan"))),
    Case("PyTorch-GAN cgan", RIGHT, partial(_gan, "cgan", ("lsgan", "lsgan"))),
    Case("PyTorch-GAN wgan_gp", RIGHT, partial(_gan, "wgan_gp", ("wgan", "wgan"))),
    Case(
        "PyTorch-GAN relativistic_gan",
        RIGHT,
        partial(_gan, "relativistic_gan", (_relative, "nonsaturating")),
    ),
    Case("PyTorch-GAN ebgan", REFUSED, partial(_gan, "ebgan", (None, None))),
    Case(
        "Adversarial-Deep-Learning/code-soup",
        WRONG,
        partial(_code_soup, "7aa48e7^"),
        "#69",
        "stray_gradient",
    ),
    Case("PyTorch-GAN wgan_gp, losses unstated", REFUSED, partial(_gan, "wgan_gp", (None, None))),
]
