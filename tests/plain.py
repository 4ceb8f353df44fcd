"""The three trainings as a competent student writes them, for `tests.benchmark` to compare with.

A Dataset that makes a PIL image of each digit, torchvision's transforms, a DataLoader, eager Adam
with PyTorch's defaults, probabilities instead of logits, couplings that multiply by masks, a second
generator pass for the discriminator, and `.item()` after each batch.
"""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import a3_gan_template as gan
import a3_vae_template as vae
from a3_nf_template import get_mask

VAE_TRANSFORM = transforms.ToTensor()
NF_TRANSFORM = transforms.Compose(
    [transforms.RandomAffine(0, translate=(0.05, 0.05)), transforms.ToTensor()]
)
GAN_TRANSFORM = transforms.Compose(
    [transforms.ToTensor(), transforms.Normalize(mean=(0.5,), std=(0.5,))]
)


class ImageDataset(Dataset):
    """Pairs of a transformed image and its label.

    Args:
        images: uint8 tensor [n, 784].
        transform: applied to each PIL image.
    """

    def __init__(self, images, transform):
        self.images = images.view(-1, 28, 28)
        self.labels = torch.zeros(len(images), dtype=torch.int64)
        self.transform = transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = Image.fromarray(self.images[index].numpy())
        return self.transform(image), int(self.labels[index])


def loader(images, batch_size, transform, shuffle=True, workers=0):
    return DataLoader(
        ImageDataset(images, transform),
        batch_size,
        shuffle=shuffle,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def vae_step(device="cpu"):
    """One training step of the VAE, on binary images in [0, 1]."""
    model = vae.VAE().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step(images):
        images = images.to(device).view(-1, 784)
        mean, log_std = model.encoder(images)
        std = torch.exp(log_std)
        means = model.decoder(mean + std * torch.randn_like(std))
        recon = F.binary_cross_entropy(means, images, reduction="sum") / len(images)
        kl = 0.5 * torch.sum(std**2 + mean**2 - 2 * log_std - 1) / len(images)
        loss = recon + kl
        if model.training:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()

    step.model = model
    return step


class MaskedCoupling(nn.Module):
    def __init__(self, mask, n_hidden=1024):
        super().__init__()
        self.register_buffer("mask", mask)
        self.nn = nn.Sequential(
            nn.Linear(784, n_hidden), nn.ReLU(), nn.Linear(n_hidden, n_hidden), nn.ReLU()
        )
        self.log_scale, self.translation = nn.Linear(n_hidden, 784), nn.Linear(n_hidden, 784)
        for head in (self.log_scale, self.translation):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def forward(self, z, ldj):
        hidden = self.nn(z * self.mask)
        log_scale = torch.tanh(self.log_scale(hidden)) * (1 - self.mask)
        translation = self.translation(hidden) * (1 - self.mask)
        z = self.mask * z + (1 - self.mask) * (z * torch.exp(log_scale) + translation)
        return z, ldj + log_scale.sum(dim=1)


def nf_step(device="cpu"):
    """One training step of the flow, on shifted images in [0, 1]."""
    layers = nn.ModuleList(
        MaskedCoupling(mask) for _ in range(4) for mask in (get_mask(), 1 - get_mask())
    ).to(device)
    optimizer = torch.optim.Adam(layers.parameters(), lr=1e-3)

    def step(images):
        images = images.to(device).view(-1, 784) * 255
        z = (images + torch.rand_like(images)) / 256 * (1 - 1e-5) + 0.5e-5
        ldj = torch.sum(-torch.log(z) - torch.log(1 - z), dim=1) + 784 * (
            math.log(1 - 1e-5) - math.log(256)
        )
        z = torch.log(z) - torch.log(1 - z)
        for layer in layers:
            z, ldj = layer(z, ldj)
        loss = -(torch.sum(-0.5 * z**2 - 0.5 * math.log(2 * math.pi), dim=1) + ldj).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(layers.parameters(), 5.0)
        optimizer.step()
        return loss.item()

    return step


def gan_step(device="cpu"):
    """One training step of the GAN, on images in [-1, 1]."""
    generator, discriminator = gan.Generator().to(device), gan.Discriminator().to(device)
    optimizer_g = torch.optim.Adam(generator.parameters(), lr=2e-4)
    optimizer_d = torch.optim.Adam(discriminator.parameters(), lr=2e-4)

    def step(images):
        images = images.to(device).view(-1, 784)
        ones, zeros = (
            torch.ones(len(images), 1, device=device),
            torch.zeros(len(images), 1, device=device),
        )
        optimizer_g.zero_grad()
        g_loss = F.binary_cross_entropy(
            discriminator(generator(torch.randn(len(images), 100, device=device))), ones
        )
        g_loss.backward()
        optimizer_g.step()
        optimizer_d.zero_grad()
        fake = generator(torch.randn(len(images), 100, device=device)).detach()
        d_loss = F.binary_cross_entropy(discriminator(images), 0.9 * ones) + F.binary_cross_entropy(
            discriminator(fake), zeros
        )
        d_loss.backward()
        optimizer_d.step()
        return g_loss.item(), d_loss.item()

    return step
