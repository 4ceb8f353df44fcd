"""States of models and runs, to compare one that was stopped, say, with one that was not."""

import json

import torch

from harness import records


def state_of(model):
    """A copy of the parameters and buffers, by name."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def unchanged(model, before):
    """Whether they are what `state_of` returned, bit for bit."""
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def final_state(folder):
    """(checkpoint, metrics, result, pictures) of a finished run, without the time it took."""
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    metrics = [line | {"seconds": None} for line in records.read_metrics(folder)]
    assert metrics == [line | {"seconds": None} for line in checkpoint.pop("metrics")]
    result = json.loads((folder / "result.json").read_text()) | {"finished": None}
    pictures = {path.name: path.read_bytes() for path in folder.glob("*.png")}
    assert {path.stem for path in folder.glob("*.npz")} < {name[:-4] for name in pictures}
    return checkpoint, metrics, result, pictures


def assert_same(one, other):
    """Bit for bit, in whatever containers."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for pair in zip(one, other):
            assert_same(*pair)
    else:
        assert one == other
