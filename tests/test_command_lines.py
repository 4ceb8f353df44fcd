"""The three scripts as a user runs them, at a small size, and the files that each writes."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
from examples import use_trained_models
from harness import plots, records
from harness.checkpoints import NEWEST, PREVIOUS
from harness.devices import separate_random_numbers
from harness.errors import UserError
from tests.conftest import ROOT
from tests.processes import GAN, NF, SCRIPTS, VAE, run, run_script, run_together, start_script

TINY = {
    VAE: "--epochs 2 --zdim 2 --hidden_dim 8 --batch_size 2000 --importance_samples 3",
    NF: "--epochs 2 --n_flows 1 --n_hidden 8 --batch_size 2000 --importance_samples 2",
    GAN: "--n_epochs 1 --batch_size 2048 --save_interval 10",
}
TINY = {script: [*flags.split(), "--quality_samples", "0"] for script, flags in TINY.items()}
EVERY_RUN = {"config.json", "metrics.jsonl", "result.json", NEWEST, PREVIOUS}
EVERY_RUN |= {"model.safetensors", "index.html"}


# The same number of steps with a tenth of the data, as in children of the fork server.
FEW = {VAE: ["--batch_size", "200"], NF: ["--batch_size", "200"], GAN: ["--batch_size", "204"]}
FEW = {script: [*TINY[script], *flags] for script, flags in FEW.items()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """{script: (its stdout, run folder)} of one tiny run each, from a shell."""
    base, started, finished = tmp_path_factory.mktemp("runs"), {}, {}
    for script, flags in TINY.items():
        started[script] = start_script(script, *flags, "--out", base / script)
    for script, process in started.items():
        stdout, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr
        finished[script] = stdout, base / script
    return finished


def content_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


def metrics_of(folder):
    """The lines without the time they took."""
    return [line | {"seconds": None} for line in records.read_metrics(folder)]


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_run_folder_has_its_config_result_checkpoint_and_pictures(finished, script):
    stdout, folder = finished[script]
    assert f"run folder: {folder}" in stdout and "not comparable" in stdout
    config = json.loads((folder / "config.json").read_text())
    assert config["script"] == script
    arguments = config["arguments"]
    assert arguments["device"] == "cpu" and arguments["out"] == str(folder)
    graded = result_of(folder)["graded"]
    keys = {"quantity", "unit", "at", "value", "reference", "verdict"}
    assert graded and all(row.keys() == keys and isinstance(row["at"], int) for row in graded)
    verdicts = {"pass", "falls short", "not comparable", "not reached"}
    assert {row["verdict"] for row in graded} <= verdicts
    torch.load(folder / NEWEST, weights_only=True)
    for picture in folder.glob("*.png"):
        Image.open(picture).verify()
    assert not list(folder.glob("*.partial"))


def test_a_vae_run_has_these_files_and_numbers(finished):
    _, folder = finished[VAE]
    pictures = {f"{kind}_{n:03d}.png" for kind in ("samples", "manifold") for n in (0, 1, 2)}
    assert content_of(folder).keys() == EVERY_RUN | pictures | {"elbo.png", "elbo.pdf"}
    lines = records.read_metrics(folder)
    assert [line["epoch"] for line in lines] == [1, 2]
    assert list(lines[0]) == [
        "epoch",
        "train_neg_elbo_nats",
        "val_neg_elbo_nats",
        "val_recon_nats",
        "val_kl_nats",
        "val_report_nats",
        "seconds",
    ]
    for line in lines:
        parts = line["val_recon_nats"] + line["val_kl_nats"]
        assert line["val_neg_elbo_nats"] == pytest.approx(parts)
    assert lines[1]["train_neg_elbo_nats"] < lines[0]["train_neg_elbo_nats"] < 560
    result = result_of(folder)
    assert result["test"].keys() == {"neg_elbo_nats", "recon_nats", "kl_nats", "report_nats"}
    assert result["latent"].keys() == {
        "active_units",
        "mutual_information_nats",
        "marginal_kl_nats",
    }
    assert result["likelihood"]["importance_samples"] == 3


def test_a_flow_s_run_has_these_files_and_numbers(finished):
    _, folder = finished[NF]
    pictures = {f"samples_{name}.png" for name in ("000", "001", "002", "by_temperature")}
    assert content_of(folder).keys() == EVERY_RUN | pictures | {"bpd.png", "bpd.pdf"}
    lines = records.read_metrics(folder)
    assert [line["epoch"] for line in lines] == [1, 2]
    assert list(lines[0]) == ["epoch", "train_bpd", "val_bpd", "val_bpd_shifted", "seconds"]
    # An untrained flow, the identity, has 27.7.
    assert lines[1]["train_bpd"] < lines[0]["train_bpd"] < 27
    result = result_of(folder)
    assert result["test"].keys() == {"bpd", "bpd_shifted"}
    assert result["inverse_error"].keys() == {"pixels", "logit"}
    assert result["inverse_error"]["pixels"] < 0.01
    assert result["likelihood"]["bpd"] < result["likelihood"]["one_draw_bpd"]


def test_a_gan_run_has_these_files_and_numbers(finished):
    _, folder = finished[GAN]
    samples = {f"samples_{name}.png" for name in ("000001", "000029", "fresh")}
    lines_between = {f"interpolation_{name}.png" for name in ("report", "pair")}
    curves = {"loss.png", "loss.pdf"}
    assert content_of(folder).keys() == EVERY_RUN | samples | lines_between | curves
    lines = records.read_metrics(folder)
    assert [line["batch"] for line in lines] == [10, 20, 29]
    assert list(lines[0]) == ["batch", "g_loss", "d_loss", "d_real", "d_fake", "seconds"]
    keys = {"mean_distance", "mean_distance_real", "repeats"}
    assert result_of(folder)["samples"].keys() == keys


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(tmp_path):
    seeds = {"first": 0, "again": 0, "other": 1}
    commands = [(VAE, *FEW[VAE], "--seed", s, "--out", tmp_path / n) for n, s in seeds.items()]
    for status, output in run_together(tmp_path, *commands):
        assert status == 0, output
    first, again, other = (metrics_of(tmp_path / name) for name in seeds)
    assert first == again != other


def draw_vae_again(model, config, folder):
    vae.save_pictures(model, 2, folder, config["seed"])


def draw_flow_again(model, config, folder):
    plots.save_grid(folder / "samples_002.png", {"epoch 2": nf.draw(model, config["seed"])})


def draw_gan_again(model, config, folder):
    with separate_random_numbers(config["seed"], torch.device("cpu")):
        z = gan.sample_latents(25, config["latent_dim"])
    plots.save_grid(folder / "samples_000029.png", {"batch 29": gan.generate(model, z)})


@pytest.mark.parametrize(
    "module, draw_again, n_pictures",
    [(vae, draw_vae_again, 2), (nf, draw_flow_again, 1), (gan, draw_gan_again, 1)],
)
def test_load_model_gives_the_pictures_that_the_run_drew_last(
    finished, tmp_path, module, draw_again, n_pictures
):
    _, folder = finished[f"{module.__name__}.py"]
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    for name in ("config.json", "model.safetensors"):  # nothing else is needed
        shutil.copy(folder / name, run_folder)
    model = module.load_model(str(run_folder))
    assert not any(part.training for part in model.modules())
    draw_again(model, json.loads((folder / "config.json").read_text())["arguments"], tmp_path)
    drawn = list(tmp_path.glob("*.png"))
    assert len(drawn) == n_pictures
    for picture in drawn:
        assert picture.read_bytes() == (folder / picture.name).read_bytes()


def test_load_model_refuses_a_run_of_another_script(finished):
    with pytest.raises(UserError, match="is a run of 'a3_gan_template.py', not of a3_vae_templ"):
        vae.load_model(finished[GAN][1])


def test_the_example_draws_samples_and_interpolations_of_every_model(finished, tmp_path):
    folders = [str(folder) for _, folder in finished.values()]
    use_trained_models.main(use_trained_models.parse_args([*folders, "--out", str(tmp_path)]))
    sizes = {"samples": (8 * 30 + 2, 8 * 30 + 2), "interpolation": (9 * 30 + 2, 6 * 30 + 2)}
    expected = {f"{script}_{name}.png": sizes[name] for script in SCRIPTS for name in sizes}
    assert {path.name: Image.open(path).size for path in tmp_path.glob("*.png")} == expected
    for path in tmp_path.glob("*.png"):
        assert np.asarray(Image.open(path)).std() > 1  # not one grey


@pytest.mark.parametrize("script", SCRIPTS)
def test_evaluating_again_gives_what_the_end_of_the_run_gave(tmp_path, script):
    """And changes nothing else. Weights that an older run lacks are written again."""
    folder = tmp_path / "run"
    status, output = run(tmp_path, script, *FEW[script], "--out", folder)
    assert status == 0, output
    before, result = content_of(folder), result_of(folder)
    (folder / "model.safetensors").unlink()
    status, output = run(tmp_path, script, "--evaluate", folder)
    assert status == 0, output
    assert result_of(folder) | {"finished": None} == result | {"finished": None}
    new = dict.fromkeys(("result.json", "index.html"))  # they hold the time
    assert content_of(folder) | new == before | new
    if script != GAN:  # what is not evaluated again stays
        likelihood = result["likelihood"]
        status, output = run(tmp_path, script, "--evaluate", folder, "--importance_samples", 0)
        assert status == 0 and likelihood and result_of(folder)["likelihood"] == likelihood


def test_a_gan_draws_images_from_a_finished_run(finished, tmp_path):
    shutil.copytree(finished[GAN][1], tmp_path / "run")
    picture = tmp_path / "run" / "generated_n7_seed0.png"
    status, output = run(tmp_path, GAN, "--generate", tmp_path / "run", "--n", 7)
    assert (status, output.strip()) == (0, str(picture))
    Image.open(picture).verify()


BAD = [
    (VAE, ["--zdim", "0"], 2, "--zdim"),
    (VAE, ["--epochs", "-1"], 2, "--epochs"),
    (VAE, ["--device", "tpu"], 2, "--device"),
    (VAE, ["--out", ROOT / "pyproject.toml" / "run"], 1, "cannot be made"),
    (VAE, ["--binarize", "larochelle"], 1, "binarized_mnist_train.amat"),
    (VAE, ["--binarize", "larochelle", "--dataset", "fashion"], 1, "larochelle is for mnist only"),
    (VAE, ["--data_dir", "absent"], 1, "no MNIST in absent"),
    (NF, ["--dataset", "fashion", "--data_dir", "absent"], 1, "no FashionMNIST in absent"),
    (GAN, ["--dataset", "cifar"], 2, "--dataset"),
    (VAE, ["--resume", "absent"], 1, "not a run folder"),
    (NF, ["--batch_size", "0"], 2, "--batch_size"),
    (NF, ["--max_norm", "nan"], 2, "--max_norm"),
    (NF, ["--lr", "1e20", *FEW[NF]], 1, "is not finite at epoch 1"),
    (GAN, ["--batch_size", "1"], 2, "--batch_size"),
    (GAN, ["--batch_size", "60001", "--n_epochs", "1"], 2, "--batch_size"),
    (GAN, ["--generate", "absent"], 1, "not a run folder"),
    (GAN, ["--n", "5"], 2, "--n is only for --generate"),
]


@pytest.mark.parametrize(
    "script, flags, status, words", BAD, ids=[f"{row[0]} {row[1][0]}" for row in BAD]
)
def test_bad_input_ends_in_one_line(tmp_path, script, flags, status, words):
    out = [] if {"--out", "--resume", "--generate"} & {*flags} else ["--out", tmp_path / "run"]
    found, output = run(tmp_path, script, *out, *flags)
    lines = re.sub(r".*\r", "", output).strip().splitlines()  # after the progress bar
    assert found == status and words in lines[-1] and "Traceback" not in output
    assert lines[-1].startswith(f"{script}: error: ")
    assert len(lines) == 1 or "--lr" in flags


def test_a_wrong_command_line_ends_in_one_line_on_stderr():
    status, stdout, stderr = run_script(VAE, "--zdim", "0")
    assert (status, stdout, stderr.count("\n")) == (2, "", 1)
    assert stderr.startswith(f"{VAE}: error: argument --zdim: must be a whole number")


def test_a_taken_folder_is_not_written_over(finished, tmp_path):
    _, folder = finished[NF]
    before = content_of(folder)
    status, output = run(tmp_path, NF, *FEW[NF], "--epochs", 1, "--out", folder)
    assert status == 0 and f"run folder: {folder}-2" in output
    assert content_of(folder) == before


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_gives_the_defaults(tmp_path, script):
    status, output = run(tmp_path, script, "--help")
    assert status == 0 and "None" not in output
    for words in ("default: 10000", "--resume", "--evaluate", "--out", "--no_graph", "--dataset"):
        assert words in output
    assert ("larochelle" in output) == (script == VAE)
