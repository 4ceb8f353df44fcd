"""An MPS device, acted on the CPU: no float64 off the host, and only operators that MPS has."""

import pytest
import torch

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
import datasets
from harness import sample_quality
from harness.classifier import Classifier
from harness.devices import to_host
from tests.modes import ActsAsMps, mps_has

FLAGS = {
    vae: "--epochs 1 --zdim 2 --hidden_dim 8 --importance_samples 3 --quality_samples 100",
    nf: "--epochs 1 --n_flows 1 --n_hidden 8 --importance_samples 2 --quality_samples 100",
    gan: "--n_epochs 1 --save_interval 2 --quality_samples 100 --latent_dim 3",
}


@pytest.fixture
def small(monkeypatch):
    """The first 100 images of each split, and an untrained classifier."""

    def first_100(function):
        def splits(*args, **kwargs):
            found = function(*args, **kwargs)
            for split in found:
                split.images = split.images[:100]
            return found

        return splits

    for module in (vae, sample_quality):
        monkeypatch.setattr(module, "bmnist", first_100(datasets.bmnist))
    for module in (nf, gan, sample_quality):
        monkeypatch.setattr(module, "mnist", first_100(datasets.mnist))
    classifier = Classifier().eval()
    monkeypatch.setattr(sample_quality, "load_classifier", lambda device: classifier)
    monkeypatch.setattr(gan, "N_DIVERSITY", 50)


@pytest.mark.thorough
@pytest.mark.parametrize("script", FLAGS, ids=lambda script: script.__name__)
def test_a_short_run_passes_on_a_device_without_float64(script, small, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", [f"{script.__name__}.py"])
    flags = [*FLAGS[script].split(), "--device", "cpu", "--out", str(tmp_path / "run")]
    with ActsAsMps() as device:
        script.main(script.Config.parse(flags))
    assert (tmp_path / "run" / "result.json").exists()
    assert {"mm", "addmm", "_fused_adam_"} & device.operators  # the mode saw the training
    assert [operator for operator in sorted(device.operators) if not mps_has(operator)] == []


def test_the_acted_device_refuses_float64_until_the_host_has_a_copy():
    with ActsAsMps():
        values = torch.ones(3)
        for convert in (
            torch.Tensor.double,
            lambda x: x.to(torch.float64),
            lambda x: x * to_host(x),
        ):
            with pytest.raises(RuntimeError, match="float64"):
                convert(values)
        assert to_host(values).sum().item() == 3
        assert values[:2].cpu().bool().double().mean().item() == 1
    assert not mps_has("mkldnn_linear") and mps_has("mul.Tensor")
