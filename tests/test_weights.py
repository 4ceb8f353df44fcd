"""The weights of a finished run: what is written, and what loading refuses."""

import json

import pytest
import torch
import torch.nn as nn
from hypothesis import given, settings
from safetensors import safe_open

from harness import weights
from harness.errors import UserError
from tests.damage import DAMAGE, damaged

CONFIG = {"script": "script.py", "arguments": {"n": 3}}


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
    weights.save(folder, model)
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
    loaded = weights.load(folder, new_model())
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
        model = weights.load(folder, new_model())
    except UserError as error:
        assert str(folder / "model.safetensors") in str(error) and "\n" not in str(error)
    else:
        assert model.state_dict().keys() == new_model().state_dict().keys()


OTHERS = {"width": new_model(3), "fewer": new_model()[:1], "more": new_model().append(nn.PReLU())}


@pytest.mark.parametrize("model", OTHERS.values(), ids=OTHERS)
def test_weights_of_another_model_are_refused(saved, model):
    with pytest.raises(UserError, match="is damaged, or of other settings than config.json has"):
        weights.load(saved[1], model)


def test_a_cut_file_is_refused(saved, tmp_path):
    content = (saved[1] / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:-1])
    with pytest.raises(UserError, match="is damaged"):
        weights.load(tmp_path, new_model())


def test_an_absent_file_is_named_with_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"model.safetensors is missing.*--resume.*--evaluate"):
        weights.load(tmp_path, new_model())
