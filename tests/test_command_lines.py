"""The three scripts as a user runs them, at a small size, and the files that each writes."""

import ast
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
from harness import plots, records, separate_random_numbers
from harness.checkpoints import NEWEST, PREVIOUS
from harness.errors import UsageError, UserError
from tests.conftest import ROOT
from tests.processes import GAN, NF, SCRIPTS, VAE, run, run_script, run_together, start_script

MODULES = {VAE: vae, NF: nf, GAN: gan}
GROUPS = ("options", "data options", "run options")
FEW = {  # for the tenth of the data that children of the fork server read
    VAE: "--epochs 2 --zdim 2 --hidden_dim 8 --batch_size 200 --importance_samples 3",
    NF: "--epochs 2 --n_flows 1 --n_hidden 8 --batch_size 200 --importance_samples 2",
    GAN: "--n_epochs 1 --batch_size 204 --save_interval 10",
}
FEW = {script: [*flags.split(), "--quality_samples", "0"] for script, flags in FEW.items()}
EVERY_RUN = {"config.json", "metrics.jsonl", "result.json", NEWEST, PREVIOUS}
EVERY_RUN |= {"model.safetensors", "index.html"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """{script: (its output, run folder)} of one run each; the VAE's from a shell, on all images."""
    base = tmp_path_factory.mktemp("runs")
    vae = start_script(VAE, *FEW[VAE], "--batch_size", 2000, "--out", base / VAE)
    commands = [(script, *FEW[script], "--out", base / script) for script in (NF, GAN)]
    for status, output in (ended := run_together(base, *commands)):
        assert status == 0, output
    stdout, stderr = vae.communicate(timeout=300)
    assert vae.returncode == 0, stderr
    outputs = [stdout, *(output for _, output in ended)]
    return {script: (output, base / script) for script, output in zip((VAE, NF, GAN), outputs)}


def grids(names):
    """The files of sample grids: a picture and its arrays each."""
    return {f"{name}.{suffix}" for name in names for suffix in ("png", "npz")}


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
    settings = config["settings"]
    assert settings["device"] == "cpu" and settings["out"] == str(folder)
    graded = result_of(folder)["graded"]
    keys = {"quantity", "unit", "at", "value", "reference", "source", "verdict"}
    assert graded and all(row.keys() == keys and isinstance(row["at"], int) for row in graded)
    differs = {
        VAE: "zdim is 2, not 20",
        NF: "n_flows is 1, not 4",
        GAN: "batch_size is 204, not 64",
    }
    assert {row["verdict"] for row in graded} == {f"not comparable: {differs[script]}"}
    torch.load(folder / NEWEST, weights_only=True)
    grids = {path.stem for path in folder.glob("*.npz")}
    for picture in folder.glob("*.png"):
        Image.open(picture).verify()
        assert (picture.stem in grids) != picture.with_suffix(".pdf").exists()
    for arrays in grids:
        with np.load(folder / f"{arrays}.npz") as panels:
            *names, shape = panels.files
            assert names and all(panels[name].dtype == np.uint8 for name in names)
            assert shape == "image_shape" and [*panels[shape]] == [28, 28]
    assert not list(folder.glob("*.partial"))


def test_a_vae_run_has_these_files_and_numbers(finished):
    _, folder = finished[VAE]
    pictures = grids(f"{kind}_{n:03d}" for kind in ("samples", "manifold") for n in (0, 1, 2))
    assert content_of(folder).keys() == EVERY_RUN | pictures | {"elbo.png", "elbo.pdf"}
    lines = records.read_metrics(folder)
    assert [line["epoch"] for line in lines] == [1, 2]
    assert list(lines[0]) == [
        "epoch",
        "train_neg_elbo_nats",
        "val_neg_elbo_nats",
        "val_recon_nats",
        "val_kl_nats",
        "dead_units",
        "lr",
        "seconds",
    ]
    for line in lines:
        parts = line["val_recon_nats"] + line["val_kl_nats"]
        assert line["val_neg_elbo_nats"] == pytest.approx(parts)
    assert lines[1]["train_neg_elbo_nats"] < lines[0]["train_neg_elbo_nats"] < 560
    result = result_of(folder)
    assert result["test"].keys() == {"neg_elbo_nats", "recon_nats", "kl_nats"}
    assert result["latent"].keys() == {
        "active_units",
        "mutual_information_nats",
        "marginal_kl_nats",
    }
    assert result["likelihood"]["importance_samples"] == 3


def test_a_flow_s_run_has_these_files_and_numbers(finished):
    _, folder = finished[NF]
    pictures = grids(f"samples_{name}" for name in ("000", "001", "002", "by_temperature"))
    assert content_of(folder).keys() == EVERY_RUN | pictures | {"bpd.png", "bpd.pdf"}
    lines = records.read_metrics(folder)
    assert [line["epoch"] for line in lines] == [1, 2]
    assert list(lines[0]) == [
        "epoch",
        "train_bpd",
        "val_bpd",
        "val_bpd_shifted",
        "dead_units",
        "lr",
        "seconds",
    ]
    # An untrained flow, the identity, has 27.7.
    assert lines[1]["train_bpd"] < lines[0]["train_bpd"] < 27
    result = result_of(folder)
    assert result["test"].keys() == {"bpd", "bpd_shifted"}
    assert result["inverse_error"].keys() == {"pixels", "logit"}
    assert result["inverse_error"]["pixels"] < 0.01
    assert result["likelihood"]["bpd"] < result["likelihood"]["one_draw_bpd"]


def test_a_gan_run_has_these_files_and_numbers(finished):
    _, folder = finished[GAN]
    samples = grids(f"samples_{name}" for name in ("000001", "000029", "fresh"))
    lines_between = grids(f"interpolation_{name}" for name in ("report", "pair"))
    curves = {"loss.png", "loss.pdf"}
    assert content_of(folder).keys() == EVERY_RUN | samples | lines_between | curves
    lines = records.read_metrics(folder)
    assert [line["batch"] for line in lines] == [10, 20, 29]
    assert list(lines[0]) == ["batch", "g_loss", "d_loss", "d_real", "d_fake", "seconds"]
    keys = {"mean_distance", "mean_distance_real", "spread", "repeats"}
    assert result_of(folder)["samples"].keys() == keys


@pytest.mark.thorough
def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(tmp_path):
    seeds = {"first": 0, "again": 0, "other": 1}
    commands = [(VAE, *FEW[VAE], "--seed", s, "--out", tmp_path / n) for n, s in seeds.items()]
    for status, output in run_together(tmp_path, *commands):
        assert status == 0, output
    first, again, other = (metrics_of(tmp_path / name) for name in seeds)
    assert first == again != other


def redrawn(folder, settings):
    """A stand-in for a `Run` that writes grids to `folder`."""

    def save_grid(name, panels, caption):
        plots.save_grid(folder / f"{name}.png", panels, caption)

    config = SimpleNamespace(run=SimpleNamespace(seed=settings["seed"]))
    return SimpleNamespace(config=config, save_grid=save_grid)


def draw_gan_again(run, model, batch):
    with separate_random_numbers(run.config.run.seed):
        z = gan.sample_latents(25, model.latent_dim)
    images = {"samples": gan.generate(model, z)}
    run.save_grid(f"samples_{batch:06d}", images, f"batch {batch}")


@pytest.mark.parametrize(
    "script, draw_again, last, n_pictures",
    [(VAE, vae.save_pictures, 2, 2), (NF, nf.save_pictures, 2, 1), (GAN, draw_gan_again, 29, 1)],
)
def test_load_model_gives_the_pictures_that_the_run_drew_last(
    finished, tmp_path, script, draw_again, last, n_pictures
):
    _, folder = finished[script]
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    for name in ("config.json", "model.safetensors"):  # nothing else is needed
        shutil.copy(folder / name, run_folder)
    model = MODULES[script].load_model(str(run_folder))
    assert not any(part.training for part in model.modules())
    settings = json.loads((folder / "config.json").read_text())["settings"]
    draw_again(redrawn(tmp_path, settings), model, last)
    drawn = list(tmp_path.glob("*.png"))
    assert len(drawn) == n_pictures
    for picture in drawn:
        assert picture.read_bytes() == (folder / picture.name).read_bytes()
        with (
            np.load(picture.with_suffix(".npz")) as again,
            np.load((folder / picture.name).with_suffix(".npz")) as arrays,
        ):
            assert again.files == arrays.files
            assert all(np.array_equal(again[name], arrays[name]) for name in arrays.files)


def test_load_model_refuses_a_run_of_another_script(finished):
    with pytest.raises(UserError, match="is a run of 'a3_gan_template.py', not of a3_vae_templ"):
        vae.load_model(finished[GAN][1])


@pytest.mark.thorough
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


BAD = [
    (VAE, ["--epochs", "-1"], 2, "--epochs"),
    (VAE, ["--out", ROOT / "pyproject.toml" / "run"], 1, "cannot be made"),
    (VAE, ["--binarize", "larochelle"], 1, "binarized_mnist_train.amat"),
    (VAE, ["--binarize", "larochelle", "--dataset", "fashion"], 1, "larochelle is for mnist only"),
    (VAE, ["--data_dir", "absent"], 1, "no MNIST in absent"),
    (NF, ["--dataset", "fashion", "--data_dir", "absent"], 1, "no FashionMNIST in absent"),
    (GAN, ["--dataset", "cifar"], 2, "--dataset"),
    (VAE, ["--resume", "absent"], 1, "not a run folder"),
    (NF, ["--batch_size", "0"], 2, "--batch_size"),
    (NF, ["--lr", "1e20", *FEW[NF]], 1, "is not finite at epoch 1"),
    (GAN, ["--evaluate", "absent"], 1, "not a run folder"),
    (GAN, ["--protocol", "report", "--fake_label", "0"], 2, "report sets --fake_label to 0.1"),
]


@pytest.mark.parametrize(
    "script, flags, status, words", BAD, ids=[f"{row[0]} {row[1][0]}" for row in BAD]
)
def test_bad_input_ends_in_one_line(tmp_path, script, flags, status, words):
    out = [] if {"--out", "--resume", "--evaluate"} & {*flags} else ["--out", tmp_path / "run"]
    found, output = run(tmp_path, script, *out, *flags)
    lines = re.sub(r".*\r", "", output).strip().splitlines()  # after the progress bar
    assert found == status and words in lines[-1] and "Traceback" not in output
    assert lines[-1].startswith(f"{script}: error: ")
    assert len(lines) == 1 or "--lr" in flags


def test_a_wrong_command_line_ends_in_one_line_on_stderr():
    status, stdout, stderr = run_script(VAE, "--zdim", "0")
    assert (status, stdout, stderr.count("\n")) == (2, "", 1)
    assert stderr.startswith(f"{VAE}: error: ") and "--zdim" in stderr


def test_a_taken_folder_is_not_written_over(finished, tmp_path):
    _, folder = finished[NF]
    before = content_of(folder)
    status, output = run(tmp_path, NF, *FEW[NF], "--epochs", 1, "--out", folder)
    assert status == 0 and f"run folder: {folder}-2" in output
    assert content_of(folder) == before


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_shows_groups_defaults_and_an_example(tmp_path, script):
    status, output = run(tmp_path, script, "--help")
    module = MODULES[script]
    assert status == 0 and f"Example: {module.Config.EXAMPLE}" in output
    for words in (*GROUPS, "(default: 10000)", "--resume", "--evaluate", "--out", "--no_graph"):
        assert words in output
    assert ("larochelle" in output) == (script == VAE)
    fields = {*module.Config.parse([]).flat(), "resume", "evaluate"}
    shown = {*re.findall(r"--(\w+)", output)} - {"help"}
    assert {name.removeprefix("no_") for name in shown} == fields


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_example_of_help_is_a_command_line(script):
    config = MODULES[script].Config
    python, name, *words = config.EXAMPLE.split()
    assert (python, name) == ("python", script) and config.parse(words)


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_option_is_read_by_something(script):
    """By its script, or by what all scripts use: as an attribute of a config."""
    sources = [ROOT / script, *(ROOT / "harness").glob("*.py"), *(ROOT / "datasets").glob("*.py")]
    trees = [ast.parse(path.read_bytes()) for path in sources]
    read = {
        node.attr
        for tree in trees
        for node in without_bounds(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    assert {*MODULES[script].Config.parse([]).flat(), "resume", "evaluate"} <= read


def without_bounds(tree):
    """All nodes but those of `__post_init__`, which reads a setting only to check it."""
    if isinstance(tree, ast.FunctionDef) and tree.name == "__post_init__":
        return
    yield tree
    for child in ast.iter_child_nodes(tree):
        yield from without_bounds(child)


# What the preset changes of a run, beside `protocol` itself.
PRESETS = {
    VAE: {"ema_decay": 0.0},
    NF: {
        "lr": 1e-3,
        "first_lr_factor": 1.0,
        "warmup": 0,
        "schedule": "constant",
        "weight_decay": 0.0,
        "adam_eps": 1e-8,
        "ema_decay": 0.0,
    },
    GAN: {"fake_label": 0.1},
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_report_s_protocol_sets_its_preset(script):
    parse = MODULES[script].Config.parse
    standard, report = parse([]).flat(), parse(["--protocol", "report"]).flat()
    changed = {name: value for name, value in report.items() if value != standard[name]}
    assert changed == {"protocol": "report"} | PRESETS[script]
    assert parse(["--protocol", "report", "--batch_size", "7"]).batch_size == 7
    for name, value in PRESETS[script].items():
        assert parse(["--protocol", "report", f"--{name}", str(value)]).flat() == report
        other = {"schedule": "cosine", "warmup": "2"}.get(name, "0.5")
        with pytest.raises(UsageError, match=f"--protocol report sets --{name} to {value}"):
            parse(["--protocol", "report", f"--{name}", other])


@pytest.mark.thorough
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_run_under_the_report_s_protocol_resumes_and_has_no_second_bound(tmp_path, script):
    folder = tmp_path / "run"
    status, output = run(tmp_path, script, *FEW[script], "--protocol", "report", "--out", folder)
    assert status == 0, output
    settings = json.loads((folder / "config.json").read_text())["settings"]
    assert settings.items() >= ({"protocol": "report"} | PRESETS[script]).items()
    lines = records.read_metrics(folder)
    assert all(("val_report_nats" in line) == (script == VAE) for line in lines)
    result = result_of(folder)
    numbers = {name for part in result.values() if isinstance(part, dict) for name in part}
    assert numbers and not [name for name in numbers if "report" in name]
    longer = {GAN: ["--n_epochs", 2]}.get(script, ["--epochs", 3])
    status, output = run(tmp_path, script, "--resume", folder, *longer)
    assert status == 0, output
    grown = records.read_metrics(folder)
    assert len(grown) > len(lines) and grown[: len(lines)] == lines
    status, output = run(tmp_path, script, "--evaluate", folder, "--protocol", "standard")
    assert status == 2 and "its --protocol is report, not standard" in output
