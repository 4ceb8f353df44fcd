"""Checkpoints: a damaged or foreign one is never used, the one before it is."""

import pytest
import torch

from harness import checkpoints
from harness.checkpoints import NEWEST, PREVIOUS
from harness.errors import UserError


def parts(seed):
    """A model, and an optimiser that has made a step."""
    torch.manual_seed(seed)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.rand(4, 3)).sum().backward()
    optimizer.step()
    return {"model": model, "optimizer": optimizer}


@pytest.fixture
def weights(tmp_path):
    """The weights at three checkpoints, of epochs 1 to 3, that were saved to tmp_path."""
    saved, weights, history = parts(1), [], []
    for epoch in (1, 2, 3):
        with torch.no_grad():
            saved["model"].weight.fill_(epoch)
        weights.append(saved["model"].weight.clone())
        history.append({"epoch": epoch, "loss": 1 / epoch})
        checkpoints.save(tmp_path, saved, history)
    return weights


def loaded(folder):
    """(weight, epochs done) of new parts after loading."""
    new = parts(99)
    history = checkpoints.load(folder, new)
    return new["model"].weight, len(history)


def test_every_part_is_restored_to_the_last_bit(tmp_path):
    saved, new = parts(1), parts(2)
    checkpoints.save(tmp_path, saved, [{"epoch": 7}])
    assert checkpoints.load(tmp_path, new) == [{"epoch": 7}]
    for one, other in zip(saved["model"].parameters(), new["model"].parameters()):
        assert torch.equal(one, other)
        states = saved["optimizer"].state[one], new["optimizer"].state[other]
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_every_truncation_falls_back_to_the_checkpoint_before(tmp_path, capsys, weights):
    path = tmp_path / NEWEST
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 97), len(whole) - 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        weight, n_epochs = loaded(tmp_path)
        assert torch.equal(weight, weights[1]) and n_epochs == 2
        error = capsys.readouterr().err
        assert error.startswith(f"{path} is truncated, foreign") and error.count("\n") == 1


def test_a_run_killed_between_two_renames_has_the_checkpoint_before(tmp_path, weights):
    (tmp_path / NEWEST).unlink()
    assert torch.equal(loaded(tmp_path)[0], weights[1])


def test_without_a_usable_checkpoint_one_line_says_so(tmp_path, weights):
    (tmp_path / NEWEST).unlink()
    (tmp_path / PREVIOUS).write_bytes(b"")
    with pytest.raises(UserError, match="no usable checkpoint"):
        loaded(tmp_path)
    (tmp_path / PREVIOUS).unlink()
    with pytest.raises(UserError, match="holds no checkpoint"):
        loaded(tmp_path)


@pytest.mark.parametrize(
    "foreign",
    {
        "empty": {},
        "list": [],
        "number": 3,
        "no parts": {"metrics": []},
        "empty parts": {"metrics": [], "model": {}, "optimizer": {}},
        "empty line": {"metrics": [{}]} | {name: p.state_dict() for name, p in parts(0).items()},
        "another size": {
            "metrics": [{"epoch": 1}],
            "model": torch.nn.Linear(4, 2).state_dict(),
            "optimizer": parts(0)["optimizer"].state_dict(),
        },
    }.items(),
    ids=lambda item: item[0],
)
def test_a_foreign_checkpoint_is_not_used(tmp_path, weights, foreign):
    torch.save(foreign[1], tmp_path / NEWEST)
    weight, n_epochs = loaded(tmp_path)
    assert torch.equal(weight, weights[1]) and n_epochs == 2


def test_a_checkpoint_that_runs_code_is_not_used(tmp_path, weights):
    class Exploit:
        def __reduce__(self):
            return (tmp_path / "executed").touch, ()

    torch.save({"metrics": Exploit()}, tmp_path / NEWEST)
    assert torch.equal(loaded(tmp_path)[0], weights[1])
    assert not (tmp_path / "executed").exists()


def test_a_checkpoint_of_another_device_keeps_the_moments_and_not_the_options(tmp_path, weights):
    path = tmp_path / NEWEST
    checkpoint = torch.load(path, weights_only=True)
    # As a CUDA graph needs them.
    options = {"capturable": True, "lr": torch.tensor(0.5)}
    checkpoint["optimizer"]["param_groups"][0] |= options
    torch.save(checkpoint, path)
    new = parts(99)
    checkpoints.load(tmp_path, new)
    (group,) = new["optimizer"].param_groups
    assert not group["capturable"] and group["lr"] == 1e-3
    moments = zip(new["optimizer"].state.values(), checkpoint["optimizer"]["state"].values())
    for found, expected in moments:
        assert torch.equal(found["exp_avg"], expected["exp_avg"])
    new["optimizer"].step()


def test_a_finished_run_is_not_read_from_the_checkpoint_before(tmp_path, weights):
    assert len(checkpoints.load(tmp_path, {}, (NEWEST,))) == 3
    (tmp_path / NEWEST).write_bytes(b"")
    with pytest.raises(UserError, match="no usable checkpoint"):
        checkpoints.load(tmp_path, {}, (NEWEST,))
