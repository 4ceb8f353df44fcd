"""The scripts on Fashion-MNIST: trained, resumed, graded as not comparable."""

import json

import pytest

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
from figures.runs import read_run
from harness import records
from harness.errors import UsageError
from tests.fake_runs import fake_run
from tests.processes import GAN, NF, VAE, run

MODULES = {VAE: vae, NF: nf, GAN: gan}
FLAGS = {
    VAE: "--epochs 1 --hidden_dim 8 --batch_size 200 --importance_samples 2",
    NF: "--epochs 1 --n_flows 1 --n_hidden 8 --batch_size 200 --importance_samples 2",
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
    assert "left out: Fréchet distance" in output
    lines = records.read_metrics(folder)
    status, output = run(tmp_path, script, "--resume", folder, *LONGER[script])
    assert status == 0, output
    grown = records.read_metrics(folder)
    assert len(grown) > len(lines) and grown[: len(lines)] == lines
    result = json.loads((folder / "result.json").read_text())
    assert {row["verdict"] for row in result["graded"]} == {"not comparable"}
    quality = result["quality_of_draws" if script == VAE else "quality"]
    keys = {"parzen_nats", "parzen_standard_error", "parzen_floor_nats", "n_samples"}
    assert quality.keys() == keys
    if script == GAN:  # MNIST's images have 10.2
        assert result["samples"]["mean_distance_real"] > 11
    status, output = run(tmp_path, script, "--resume", folder, "--dataset", "mnist")
    assert status == 2 and "its --dataset is fashion, not mnist" in output


@pytest.mark.parametrize("kind", ["vae", "vae_report", "nf", "gan", "gan_report"])
def test_rows_of_another_set_are_not_comparable_whatever_the_model(tmp_path, kind):
    verdicts = {}
    for name in ("mnist", "fashion"):
        folder = fake_run(tmp_path / name, kind, "--dataset", name)
        verdicts[name] = {row["verdict"] for row in read_run(folder).graded()}
    assert verdicts["fashion"] == {"not comparable"} and "pass" in verdicts["mnist"]
    assert "not comparable" not in verdicts["mnist"]


@pytest.mark.parametrize("script", FLAGS)
def test_a_run_s_folder_names_a_data_set_that_is_not_the_default(script):
    parse_args = MODULES[script].parse_args
    name = {VAE: "vae{}-z20-seed0", NF: "nf{}-seed0", GAN: "gan{}-seed0"}[script]
    assert parse_args([]).out == "runs/" + name.format("")
    assert parse_args(["--dataset", "kmnist"]).out == "runs/" + name.format("-kmnist")


def test_a_run_may_find_its_files_elsewhere_but_not_change_its_set(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", [NF])
    args = nf.parse_args(["--dataset", "fashion", "--out", str(tmp_path)])
    config = {"script": NF, "arguments": vars(args)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    resume = ["--resume", str(tmp_path)]
    resumed = nf.parse_args([*resume, "--data_dir", "here", "--download"])
    assert (resumed.dataset, resumed.data_dir, resumed.download) == ("fashion", "here", True)
    with pytest.raises(UsageError, match="its --dataset is fashion, not kmnist"):
        nf.parse_args([*resume, "--dataset", "kmnist"])
