"""The scripts on Fashion-MNIST: trained, resumed, graded as not comparable."""

import json

import pytest

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
from harness import records
from harness.errors import UsageError
from harness.references import difference
from tests.processes import GAN, NF, VAE, run

pytestmark = pytest.mark.thorough

MODULES = {VAE: vae, NF: nf, GAN: gan}
FLAGS = {
    VAE: "--epochs 1 --hidden_dim 8 --batch_size 200 --importance_samples 2",
    NF: "--epochs 1 --n_flows 1 --n_hidden 8 --batch_size 200 --importance_samples 2 "
    "--schedule constant",  # may grow
    GAN: "--n_epochs 1 --batch_size 204 --save_interval 10",
}
LONGER = {VAE: ["--epochs", 2], NF: ["--epochs", 2], GAN: ["--n_epochs", 2]}


@pytest.mark.parametrize("script", FLAGS)
def test_a_script_trains_on_fashion_mnist_resumes_and_is_not_comparable(
    tmp_path, script, fashion_folder
):
    folder = tmp_path / "run"
    flags = [*FLAGS[script].split(), "--quality_samples", 100, "--out", folder]
    status, output = run(
        tmp_path, script, *flags, "--dataset", "fashion", "--data_dir", fashion_folder
    )
    assert status == 0, output
    assert "left out for" in output
    lines = records.read_metrics(folder)
    status, output = run(tmp_path, script, "--resume", folder, *LONGER[script])
    assert status == 0, output
    grown = records.read_metrics(folder)
    assert len(grown) > len(lines) and grown[: len(lines)] == lines
    result = json.loads((folder / "result.json").read_text())
    assert all(row["verdict"].startswith("not comparable: ") for row in result["graded"])
    quality = result["quality_of_draws" if script == VAE else "quality"]
    keys = {"parzen_nats", "parzen_standard_error", "parzen_floor_nats", "n_samples"}
    assert quality.keys() == keys
    if script == GAN:  # MNIST's images have 10.2
        assert result["samples"]["mean_distance_real"] > 11
    status, output = run(tmp_path, script, "--resume", folder, "--dataset", "mnist")
    assert status == 2 and "its --dataset is fashion, not mnist" in output


@pytest.mark.parametrize("protocol", ["standard", "report"])
@pytest.mark.parametrize("script", FLAGS)
def test_another_set_is_not_comparable_whatever_the_model(script, protocol):
    words = ["--protocol", protocol, "--device", "cpu"]
    parse = MODULES[script].Config.parse
    assert difference(script, parse(words).flat()) is None
    other = parse([*words, "--dataset", "fashion"]).flat()
    assert difference(script, other) == "dataset is fashion, not mnist"


@pytest.mark.parametrize("script", FLAGS)
def test_a_run_s_folder_names_a_data_set_that_is_not_the_default(script):
    parse = MODULES[script].Config.parse
    name = {VAE: "vae{}-z20-seed0", NF: "nf{}-seed0", GAN: "gan{}-seed0"}[script]
    assert parse([]).name == name.format("")
    assert parse(["--dataset", "kmnist"]).name == name.format("-kmnist")


def test_a_run_may_find_its_files_elsewhere_but_not_change_its_set(tmp_path):
    settings = nf.Config.parse(["--dataset", "fashion", "--out", str(tmp_path)]).flat()
    config = {"script": NF, "settings": settings}
    (tmp_path / "config.json").write_text(json.dumps(config))
    resume = ["--resume", str(tmp_path)]
    data = nf.Config.parse([*resume, "--data_dir", "here", "--download"]).data
    assert (data.dataset, str(data.data_dir), data.download) == ("fashion", "here", True)
    with pytest.raises(UsageError, match="its --dataset is fashion, not kmnist"):
        nf.Config.parse([*resume, "--dataset", "kmnist"])
