"""What a VAE's forward returns, as a loss: one value, values per image, or several terms."""

import torch


def readings(value) -> dict[str, torch.Tensor]:
    """What a returned value may mean as a loss: scalars by words, the likeliest first.

    The likeliest has the words "": values per image are averaged, a (recon, kl) pair is added, and
    of three or more losses the first is taken. Beside other values, tensors with more than one
    value per image, such as z or images, are no losses; where all are such there is no likeliest.
    Further readings are each value alone, and the sum of the first two. A dictionary stands for
    its values.
    """
    if isinstance(value, dict):
        value = tuple(value.values())
    if not isinstance(value, tuple | list):
        return {"": _scalar(value)}
    parts = {f"value {i}": part for i, part in enumerate(value, start=1) if _is_number(part)}
    scalars = {words: _scalar(part) for words, part in parts.items()}
    losses = [scalars[words] for words, part in parts.items() if _is_per_image(part)]
    likeliest = losses[0] + losses[1] if len(losses) == 2 else (losses or [None])[0]
    found = {} if likeliest is None else {"": likeliest}
    found |= scalars
    if {"value 1", "value 2"} <= scalars.keys():
        found["values 1 and 2 added"] = scalars["value 1"] + scalars["value 2"]
    return found


def has_loss(value) -> bool:
    """Whether a returned value has a scalar, or one value per image, in it."""
    if isinstance(value, dict):
        value = tuple(value.values())
    parts = value if isinstance(value, tuple | list) else [value]
    return any(_is_number(part) and _is_per_image(part) for part in parts)


def _is_number(part) -> bool:
    return isinstance(part, float) or (isinstance(part, torch.Tensor) and part.is_floating_point())


def _is_per_image(part) -> bool:
    """Whether this is a scalar, or one value per image."""
    return torch.as_tensor(part).shape[1:].numel() == 1


def _scalar(value) -> torch.Tensor:
    value = torch.as_tensor(value)
    if value.dim() > 1:
        value = value.flatten(1).sum(dim=1)
    return value.mean()
