"""The settings of a run: from words, from an earlier run, or as the report had them."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
import torch.nn as nn
from hypothesis import example, given
from hypothesis import settings as limits
from hypothesis import strategies as st

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
from datasets import DATASETS
from harness import checkpoints
from harness.errors import UsageError, UserError
from harness.settings import MAY_DIFFER, MAY_GROW, OF_COMMAND
from tests.bare_runs import Config
from tests.conftest import ROOT


@pytest.fixture
def folder(tmp_path):
    """A finished run with other settings than the default ones."""
    write_run(tmp_path, Config.parse(["--lr", "0.1", "--no_graph", "--out", str(tmp_path)]).flat())
    (tmp_path / "result.json").write_text("{}")
    return tmp_path


def write_run(folder, settings, script="script.py"):
    folder.mkdir(exist_ok=True)
    config = {"script": script, "settings": settings}
    (folder / "config.json").write_text(json.dumps(config))


def test_words_set_fields_of_every_group():
    words = "--lr 0.5 --seed 3 --dataset fashion --data_dir a --no_graph --tensorboard"
    config = Config.parse(words.split())
    assert (config.lr, config.run.seed, config.data.dataset) == (0.5, 3, "fashion")
    assert (str(config.data.data_dir), config.run.graph, config.run.tensorboard) == (
        "a",
        False,
        True,
    )
    assert config.name == "script-lr0.5" and config.run.out is None


def test_flat_settings_are_those_of_all_groups_and_survive_json():
    config = Config.parse(["--out", "a b", "--lr", "1e-05", "--download"])
    flat = config.flat()
    assert not flat.keys() & OF_COMMAND and flat["out"] == "a b"
    assert MAY_DIFFER - flat.keys() == {"proposal", "importance_samples"}  # not of this script
    assert Config.of_dict(json.loads(json.dumps(flat)), "a file") == config


@pytest.mark.parametrize("script", [vae, nf, gan], ids=lambda script: script.__name__)
def test_every_script_s_settings_survive_json(script):
    for words in ([], ["--protocol", "report"], ["--seed", "3", "--batch_size", "7"]):
        config = script.Config.parse(words)
        flat = json.loads(json.dumps(config.flat()))
        assert script.Config.of_dict(flat, "a file") == config
        assert flat.keys() & MAY_GROW


# --- The report's preset
REPORT = ["--protocol", "report"]


def test_a_setting_of_the_preset_beside_it_is_an_error():
    assert Config.parse(REPORT).decay == 0.0
    # Also if it is the default of the class.
    for value in ("0.5", "0.9"):
        with pytest.raises(UsageError, match="--protocol report sets --decay to 0.0: leave it out"):
            Config.parse([*REPORT, "--decay", value])


def test_a_run_of_the_report_s_protocol_is_continued_with_it(tmp_path):
    write_run(tmp_path, Config.parse(REPORT).flat())
    config = Config.parse(["--resume", str(tmp_path)])
    assert (config.protocol, config.decay) == ("report", 0.0)
    with pytest.raises(UsageError, match="its --protocol is report, not standard"):
        Config.parse(["--resume", str(tmp_path), "--protocol", "standard"])
    with pytest.raises(UsageError, match="its --decay is 0.0, not 0.5"):
        Config.parse(["--resume", str(tmp_path), "--decay", "0.5"])


# --- --resume and --evaluate


def test_a_run_goes_on_with_its_own_settings(folder):
    config = Config.parse(["--resume", str(folder), "--epochs", "20"])
    assert (config.lr, config.epochs, config.run.graph) == (0.1, 20, False)
    assert (config.run.out, config.run.resume, config.run.evaluate) == (folder, folder, None)


def test_a_setting_that_is_newer_than_the_run_is_named(folder, capsys):
    settings = Config.of(folder).flat()
    assert capsys.readouterr().err == ""
    write_run(folder, {name: value for name, value in settings.items() if name != "decay"})
    assert Config.of(folder).decay == Config().decay
    assert capsys.readouterr().err == f"{folder}: no decay recorded: read as the default\n"


def test_where_a_run_goes_on_and_how_it_is_evaluated_may_differ(folder):
    words = ["--device", "cpu", "--data_dir", "mine", "--quality_samples", "100", "--graph"]
    config = Config.parse(["--evaluate", str(folder), *words])
    assert (config.run.device, config.run.graph) == ("cpu", True)
    assert (config.lr, config.quality_samples) == (0.1, 100)
    assert (config.run.evaluate, config.run.resume) == (folder, None)


@pytest.mark.parametrize("mode", ["--resume", "--evaluate"])
def test_what_would_change_the_training_is_refused(folder, mode):
    for words, message in (
        (["--lr", "0.001"], "its --lr is 0.1, not 0.001"),  # the default of the class, too
        (["--seed", "3"], "its --seed is 0, not 3"),
        (["--dataset", "fashion"], "its --dataset is mnist, not fashion"),
        (["--out", "elsewhere"], f"its --out is {folder}, not elsewhere"),
    ):
        with pytest.raises(UsageError, match=message):
            Config.parse([mode, str(folder), *words])


def test_epochs_may_grow_where_training_goes_on(folder):
    with pytest.raises(UsageError, match="has --epochs 10, which may only grow"):
        Config.parse(["--resume", str(folder), "--epochs", "2"])
    for epochs in ("2", "20"):
        with pytest.raises(UsageError, match="its --epochs is 10"):
            Config.parse(["--evaluate", str(folder), "--epochs", epochs])


def test_an_option_that_agrees_with_the_run_is_no_error(folder):
    words = ["--lr", "1e-1", "--epochs", "10", "--seed", "0"]
    assert Config.parse(["--evaluate", str(folder), *words]).lr == 0.1


def test_finished_runs_are_evaluated_and_unfinished_ones_resumed(folder):
    with pytest.raises(UserError, match="is finished: it resumes only with more epochs"):
        Config.parse(["--resume", str(folder)])
    (folder / "result.json").unlink()
    assert Config.parse(["--resume", str(folder)]).lr == 0.1
    with pytest.raises(UserError, match="is unfinished: finish it with --resume"):
        Config.parse(["--evaluate", str(folder)])


def test_epochs_do_not_grow_where_the_schedule_ends_with_them(tmp_path):
    for schedule, grows in (("cosine", False), ("constant", True)):
        write_run(tmp_path, nf.Config(schedule=schedule).flat(), nf.Config.SCRIPT)
        resume = ["--resume", str(tmp_path)]
        assert nf.Config.parse(resume).epochs == 100  # a run that was killed
        if grows:
            assert nf.Config.parse([*resume, "--epochs", "101"]).epochs == 101
        else:
            with pytest.raises(UsageError, match="is scheduled over --epochs 100, so it cannot"):
                nf.Config.parse([*resume, "--epochs", "101"])
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(UserError, match="is finished: it resumes only with more epochs$"):
        nf.Config.parse(resume)
    write_run(tmp_path, nf.Config(schedule="cosine").flat(), nf.Config.SCRIPT)
    with pytest.raises(UserError, match="is finished$"):
        nf.Config.parse(resume)


def test_a_script_called_through_a_link_under_another_name_is_the_script(tmp_path):
    link = tmp_path / "mine.py"
    link.symlink_to(ROOT / vae.Config.SCRIPT)
    spec = importlib.util.spec_from_file_location("mine", link)
    sys.modules["mine"] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        assert module.Config.program() == vae.Config.SCRIPT
    finally:
        del sys.modules["mine"]


def test_the_run_of_a_changed_copy_is_not_resumed_by_the_script(tmp_path):
    write_run(tmp_path, vae.Config().flat(), vae.Config.SCRIPT)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"program": "my_vae.py"}))
    with pytest.raises(UserError, match="not of a3_vae_template.py: only my_vae.py itself loads"):
        vae.Config.parse(["--resume", str(tmp_path)])


def test_an_absent_run_and_one_of_another_script_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match="is not a run folder"):
        Config.parse(["--resume", str(tmp_path / "absent")])
    write_run(folder, {}, "other.py")
    for read in (lambda: Config.parse(["--resume", str(folder)]), lambda: Config.of(folder)):
        with pytest.raises(UserError, match="is a run of 'other.py', not of script.py"):
            read()


SETTINGS = ["lr", "dataset", "seed", "device", "epochs", "out", "graph", "help", "resume", "new"]
VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.lists(st.integers(), max_size=2)
)


@limits(deadline=None, max_examples=50)
@given(name=st.sampled_from(SETTINGS), value=VALUES)
@example(name="new", value="two\nlines")
@example(name="new\nlines", value=1)
@example(name="help", value=True)
def test_a_damaged_setting_is_an_error_or_passes_the_parser(tmp_path_factory, name, value):
    folder = tmp_path_factory.getbasetemp() / "damaged"
    write_run(folder, Config().flat() | {name: value})
    try:
        config = Config.parse(["--resume", str(folder)])
    except UserError as error:
        assert str(error).startswith(f"{folder / 'config.json'}: ") and "\n" not in str(error)
        return
    assert type(config.run.seed) is type(config.epochs) is int and type(config.lr) is float
    assert config.data.dataset in DATASETS or Path(config.data.dataset).is_absolute()
    assert config.epochs > 0 and config.lr > 0


def test_the_weights_of_a_run_are_loaded_with_its_settings(folder):
    model = nn.Linear(2, 1)
    checkpoints.save_weights(folder, model)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        loaded = Config.of(folder).load_weights(folder, lambda: nn.Linear(2, 1))
        assert torch.get_default_dtype() == torch.float64  # a notebook's own
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), before) and loaded.weight.dtype == torch.float32
    assert not loaded.training and (loaded.weight == model.weight).all()
