"""Importance-weighted estimates of log p(x), and the numerical error of an inverse."""

import math
from collections.abc import Callable, Iterable

import torch

from harness.devices import to_host


def importance_weighted(
    log_weights: Callable[[torch.Tensor, int], torch.Tensor],
    batches: Iterable[torch.Tensor],
    n_samples: int,
    max_rows: int | None = None,
) -> dict[str, float]:
    """Estimate -log p(x) by importance sampling: -log of the mean weight, averaged over images.

    The mean weight is an unbiased estimate of p(x), so its logarithm bounds log p(x) from below in
    expectation, more tightly with more draws (Burda, Grosse & Salakhutdinov, "Importance weighted
    autoencoders", ICLR 2016, Equation 8 and Theorem 1).

    Args:
        log_weights: called as log_weights(batch, n); n independent log-weights for each image of
            the batch, in nats: [len(batch), n].
        batches: images.
        n_samples: weights per image.
        max_rows: images times draws in one call, at least one draw per image; None is
            `rows_at_once` of the batches' device.

    Returns:
        `neg_log_px_nats`; its standard error over the images; `neg_elbo_nats`, the mean of the
        same draws' log-weights, negated; the gap between the two; and `importance_samples`.
    """
    print(f"estimating log p(x) with {n_samples:,} draws per image")
    bounds, log_px = [], []
    for batch in batches:
        n_draws = max(1, (max_rows or rows_at_once(batch.device)) // len(batch))
        draws = [
            log_weights(batch, min(n_draws, n_samples - start))
            for start in range(0, n_samples, n_draws)
        ]
        weights = to_host(torch.cat(draws, dim=1))
        bounds.append(weights.mean(dim=1))
        log_px.append(torch.logsumexp(weights, dim=1) - math.log(n_samples))
    bound, log_px = torch.cat(bounds), torch.cat(log_px)
    return {
        "neg_log_px_nats": -log_px.mean().item(),
        "standard_error_nats": (log_px.std() / math.sqrt(len(log_px))).item(),
        "neg_elbo_nats": -bound.mean().item(),
        "gap_nats": (log_px - bound).mean().item(),
        "importance_samples": n_samples,
    }


def repeated(log_px: Callable[[torch.Tensor], torch.Tensor]) -> Callable:
    """Log-weights for `importance_weighted` from a function that draws its noise itself.

    Args:
        log_px: images -> log p(x, noise) - log q(noise) in nats, [batch], new noise in every call.
    """
    return lambda batch, n: log_px(batch.repeat_interleave(n, dim=0)).view(len(batch), n)


def rows_at_once(device: torch.device) -> int:
    """Images times draws in one call: enough to fill a GPU; on a CPU, what its caches can use."""
    return 2**18 if device.type == "cuda" else 4096


def per_dimension(nats: dict[str, float], n_dimensions: int) -> dict[str, float]:
    """The result of `importance_weighted` in bits per dimension."""
    bits = n_dimensions * math.log(2)
    return {
        "bpd": nats["neg_log_px_nats"] / bits,
        "standard_error": nats["standard_error_nats"] / bits,
        "one_draw_bpd": nats["neg_elbo_nats"] / bits,
        "gap": nats["gap_nats"] / bits,
        "importance_samples": nats["importance_samples"],
    }


def inverse_error(layers: dict[str, Callable], x: torch.Tensor) -> dict[str, float]:
    """Largest error of x, and of the value before each later layer, after a round trip.

    Args:
        layers: invertible layers by name, called as layer(x, ldj, reverse) -> (x, ldj).
        x: [batch, d].
    """
    ldj = torch.zeros(len(x), device=x.device)
    before, errors = {}, {}
    for name, layer in layers.items():
        before[name] = x
        x, _ = layer(x, ldj, reverse=False)
    for name, layer in reversed(layers.items()):
        x, _ = layer(x, ldj, reverse=True)
        errors[name] = (x - before[name]).abs().max().item()
    return errors
