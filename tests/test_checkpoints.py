"""Checkpoints and weights: what is restored, and what is refused."""

import json
import os

import pytest
import safetensors.torch
import torch
import torch.nn as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from harness import checkpoints, records
from harness.checkpoints import NEWEST, PREVIOUS
from harness.errors import UserError
from tests.damage import DAMAGE, damaged


def parts(seed):
    """A model, and an optimiser that has made a step."""
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
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


def test_changed_bytes_fall_back_to_the_checkpoint_before(tmp_path, capsys, weights):
    path = tmp_path / NEWEST
    whole = bytearray(path.read_bytes())
    start = whole.index(
        weights[2].detach().numpy().tobytes()
    )  # a weight that torch.load would accept
    whole[start + 2] ^= 1
    path.write_bytes(whole)
    weight, n_epochs = loaded(tmp_path)
    assert torch.equal(weight, weights[1]) and n_epochs == 2
    assert "not used" in capsys.readouterr().err


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
            "model": nn.Linear(4, 2).state_dict(),
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


def group_of(optimizer):
    (group,) = optimizer.param_groups
    return {name: value for name, value in group.items() if name != "params"}


def test_the_options_of_every_group_are_restored(tmp_path):
    def new(lr):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
        groups = [{"params": model[0].parameters(), "lr": lr}, {"params": model[1].parameters()}]
        return torch.optim.AdamW(groups, lr=2 * lr, weight_decay=lr)

    saved, restored = new(0.1), new(0.5)
    saved.param_groups[1]["betas"] = (0.5, 0.75)
    checkpoints.save(tmp_path, {"optimizer": saved}, [])
    checkpoints.load(tmp_path, {"optimizer": restored})
    assert [group["lr"] for group in restored.param_groups] == [0.1, 0.2]
    for one, other in zip(saved.param_groups, restored.param_groups):
        assert {**one, "params": 0} == {**other, "params": 0}


def test_a_checkpoint_of_another_device_keeps_everything_but_the_options_of_the_device(tmp_path):
    """A captured step reads the learning rate from a tensor; elsewhere it is a float."""
    for capturable, other in ((True, False), (False, True)):
        saved, restored = parts(1), parts(2)
        for of_run, on_cuda in ((saved, capturable), (restored, other)):
            (group,) = of_run["optimizer"].param_groups
            group["capturable"] = on_cuda
            group["lr"] = torch.tensor(0.25) if on_cuda else 0.25
        saved["optimizer"].param_groups[0]["lr"] *= 0.5
        checkpoints.save(tmp_path, saved, [])
        checkpoints.load(tmp_path, restored)
        found = group_of(restored["optimizer"])
        assert found.pop("capturable") == other
        assert isinstance(found["lr"], torch.Tensor) == other and found.pop("lr") == 0.125
        assert found.items() <= group_of(saved["optimizer"]).items()
        states = zip(saved["optimizer"].state.values(), restored["optimizer"].state.values())
        for one, another in states:
            assert torch.equal(one["exp_avg"], another["exp_avg"])
    restored["optimizer"].param_groups[0]["capturable"] = False  # which a CPU cannot run
    restored["optimizer"].step()


def test_a_checkpoint_without_a_part_of_the_training_is_not_used(tmp_path, weights):
    schedule = torch.optim.lr_scheduler.StepLR(parts(0)["optimizer"], 3)
    with pytest.raises(UserError, match="no usable checkpoint"):
        checkpoints.load(tmp_path, parts(0) | {"schedule": schedule})


# --- Weights

CONFIG = {"script": "script.py", "settings": {"n": 3}}


def new_model(n_outputs=2):
    return nn.Sequential(nn.Linear(3, n_outputs), nn.BatchNorm1d(n_outputs))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(model, folder of its weights)"""
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    torch.manual_seed(0)
    model = new_model().double()
    model(torch.randn(5, 3, dtype=torch.double))  # moves the statistics
    checkpoints.save_weights(folder, model)
    return model, folder


def test_floats_are_written_in_float32_with_the_config_beside_them(saved):
    model, folder = saved
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["config"]) == CONFIG
        assert set(file.keys()) == model.state_dict().keys()
        for name, value in model.state_dict().items():
            expected = value.float() if value.is_floating_point() else value
            written = file.get_tensor(name)
            assert written.dtype == expected.dtype and torch.equal(written, expected)


def test_a_loaded_model_is_the_same_function_in_evaluation_mode(saved):
    model, folder = saved
    loaded = checkpoints.load_weights(folder, new_model)
    assert not loaded.training and not loaded[1].training
    x = torch.randn(4, 3)
    assert torch.allclose(loaded(x), model.eval()(x.double()).float(), atol=1e-6)


@settings(deadline=None)
@given(damage=DAMAGE)
def test_damaged_weights_are_refused_in_one_line_or_load(saved, tmp_path_factory, damage):
    content = (saved[1] / "model.safetensors").read_bytes()
    folder = tmp_path_factory.getbasetemp() / "damaged_weights"
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(damaged(content, damage))
    try:
        model = checkpoints.load_weights(folder, new_model)
    except UserError as error:
        assert str(folder / "model.safetensors") in str(error) and "\n" not in str(error)
    else:
        assert model.state_dict().keys() == new_model().state_dict().keys()


OTHERS = {"width": new_model(3), "fewer": new_model()[:1], "more": new_model().append(nn.PReLU())}


@pytest.mark.parametrize("model", OTHERS.values(), ids=OTHERS)
def test_weights_of_another_model_are_refused(saved, model):
    with pytest.raises(UserError, match="is damaged, or of other settings than config.json has"):
        checkpoints.load_weights(saved[1], lambda: model)


def test_a_cut_file_is_refused(saved, tmp_path):
    content = (saved[1] / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:-1])
    with pytest.raises(UserError, match="is damaged"):
        checkpoints.load_weights(tmp_path, new_model)


def test_an_absent_file_is_named_with_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"model.safetensors is missing.*--resume.*--evaluate"):
        checkpoints.load_weights(tmp_path, new_model)


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), torch.tensor([[1, 2, 3], [4, 5, 6]])]
)
def test_weights_that_are_no_finite_floats_are_refused(tmp_path, value):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    if isinstance(value, float):
        tensors["weight"][1, 2] = value
    else:
        tensors["weight"] = value
    safetensors.torch.save_file(tensors, tmp_path / checkpoints.WEIGHTS)
    with pytest.raises(UserError, match="is damaged"):
        checkpoints.load_weights(tmp_path, lambda: nn.Linear(3, 2))


VALUES = st.sampled_from(
    ["text", None, [], {}, True, 1.5, -1, 10**400, 1e308, float("nan"), float("inf")]
    + [torch.zeros(2), torch.zeros(7, 7), torch.full((2, 3), float("inf")), b"bytes"]
)
PLACES = st.sampled_from(
    [("metrics",), ("metrics", 0), ("metrics", 1, "epoch"), ("metrics", 0, "loss"), ("model",)]
    + [("model", "weight"), ("optimizer",), ("optimizer", "state"), ("optimizer", "state", 0)]
    + [("optimizer", "state", 0, name) for name in ("step", "exp_avg", "exp_avg_sq")]
    + [("optimizer", "param_groups"), ("optimizer", "param_groups", 0)]
    + [("optimizer", "param_groups", 0, name) for name in ("lr", "betas", "eps", "params")]
)


@pytest.mark.thorough
@settings(deadline=None, max_examples=300)
@given(place=PLACES, value=VALUES | st.just("remove"))
def test_a_changed_checkpoint_is_refused_in_one_line_or_trains_on(tmp_path_factory, place, value):
    folder = tmp_path_factory.getbasetemp() / "changed_checkpoint"
    folder.mkdir(exist_ok=True)
    checkpoints.save(folder, parts(1), [{"epoch": 1, "loss": 1.0}, {"epoch": 2, "loss": 0.5}])
    content = torch.load(folder / NEWEST, weights_only=True)
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    if isinstance(value, str) and value == "remove":
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    torch.save(content, folder / NEWEST)
    (folder / PREVIOUS).unlink(missing_ok=True)
    new = parts(2)
    try:
        history = checkpoints.load(folder, new)
    except UserError as error:
        assert "\n" not in str(error)
        return
    assert all(records.is_number(number) for line in history for number in line.values())
    new["model"](torch.rand(4, 3)).sum().backward()
    new["optimizer"].step()
    assert all(weight.isfinite().all() for weight in new["model"].parameters())


def test_memory_that_runs_out_is_not_called_damage(tmp_path, weights, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: 1 TB")

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(RuntimeError, match="allocate"):
        loaded(tmp_path)
    monkeypatch.setattr(safetensors.torch, "load", fail)
    (tmp_path / checkpoints.WEIGHTS).touch()
    with pytest.raises(RuntimeError, match="allocate"):
        checkpoints.load_weights(tmp_path, lambda: nn.Linear(1, 1))


def test_a_checkpoint_that_cannot_be_read_is_not_replaced_by_the_one_before(tmp_path, weights):
    (tmp_path / NEWEST).unlink()
    os.mkfifo(tmp_path / NEWEST)
    with pytest.raises(OSError, match="not a regular file"):
        loaded(tmp_path)
