"""Runs that are killed, stopped or out of disk space end as if nothing had happened."""

import contextlib
import json
import os
import random
import shutil
import signal
import time

import pytest
import torch

from harness import records
from tests.conftest import ROOT
from tests.processes import GAN, NF, SCRIPTS, VAE, Process, run, wait_for
from tests.run_states import assert_same, final_state

SHORT = {
    VAE: "--epochs 6 --zdim 3 --hidden_dim 16 --batch_size 100 --importance_samples 2",
    NF: "--epochs 3 --n_flows 1 --n_hidden 16 --batch_size 100 --importance_samples 1",
    GAN: "--n_epochs 1 --batch_size 204 --save_interval 5",
}
SHORT = {script: [*flags.split(), "--quality_samples", "0"] for script, flags in SHORT.items()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """{script: (folder of an uninterrupted run, seconds it took)}."""
    base, folders = tmp_path_factory.mktemp("finished"), {}
    run(base, VAE, "--help")  # starts the fork server
    for script, flags in SHORT.items():
        started = time.monotonic()
        status, output = run(base, script, *flags, "--out", base / script)
        assert status == 0, output
        folders[script] = base / script, time.monotonic() - started
    return folders


def killed(tmp_path, script, moment):
    """The folder of a run that got SIGKILL after `moment` seconds."""
    folder = tmp_path / "run"
    process = Process(tmp_path, script, *SHORT[script], "--out", folder)
    process.process.join(moment)
    process.kill()
    return folder


def stopped_twice(tmp_path, script, moment):
    """The folder of a run that got two signals of Ctrl-C within 50 ms after `moment` seconds."""
    folder = tmp_path / "run"
    process = Process(tmp_path, script, *SHORT[script], "--out", folder)
    process.process.join(moment)
    had_checkpoint = (folder / "checkpoint.pt").exists()
    for _ in range(2):
        with contextlib.suppress(ProcessLookupError):
            if process.process.is_alive():  # the number of an ended process may be another's
                os.kill(process.process.pid, signal.SIGINT)
        time.sleep(0.03)
    status, output = process.join()
    if had_checkpoint and status != 0:
        assert status == 130 and "Traceback" not in output, output
        assert f"resume with: python {ROOT / script} --resume {folder}" in output
    return folder


def go_on(tmp_path, script, folder):
    """Finish a killed run as a user would: resume it, or start it again without a checkpoint."""
    if (folder / "result.json").exists():
        return folder
    status, output = run(tmp_path, script, "--resume", folder)
    if status == 1 and ("holds no checkpoint" in output or "is not a run folder" in output):
        assert not (folder / "checkpoint.pt").exists()
        shutil.rmtree(folder, ignore_errors=True)
        status, output = run(tmp_path, script, *SHORT[script], "--out", folder)
    assert status == 0, output
    return folder


def stop_and_compare(tmp_path, script, finished, stops, seed):
    folder, seconds = finished[script]
    moments = random.Random(seed)
    for number, stop in enumerate(stops):
        work = tmp_path / str(number)
        work.mkdir()
        interrupted = stop(work, script, moments.uniform(0.1, seconds))
        assert_same(final_state(go_on(work, script, interrupted)), final_state(folder))
        shutil.rmtree(work)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "script, stop", [(VAE, killed), (NF, killed), (GAN, killed), (VAE, stopped_twice)]
)
def test_stopped_runs_end_as_if_nothing_had_been(tmp_path, script, stop, finished):
    stop_and_compare(tmp_path, script, finished, [stop], seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_stopped_twenty_times(tmp_path, script, finished):
    stop_and_compare(tmp_path, script, finished, [killed, stopped_twice] * 10, seed=2)


@pytest.mark.thorough
@pytest.mark.parametrize("script", [VAE, NF])
def test_a_run_stopped_at_every_checkpoint_goes_on_exactly(tmp_path, script, finished):
    """Each process continues from the checkpoint of the last, and is killed after its next line."""
    folder = tmp_path / "run"
    n_lines = len(records.read_metrics(finished[script][0]))
    process = Process(tmp_path, script, *SHORT[script], "--out", folder)
    for line in range(1, n_lines):
        wait_for(folder / "metrics.jsonl", lambda content: content.count(b"\n") >= line)
        process.kill()
        process = Process(tmp_path, script, "--resume", folder)
    status, output = process.join()
    assert status == 0, output
    assert_same(final_state(folder), final_state(finished[script][0]))
    assert len(json.loads((folder / "config.json").read_text())["resumed"]) >= 1


@pytest.mark.thorough
def test_a_longer_run_goes_on_from_a_shorter_one(tmp_path, finished):
    script = VAE
    for flags in (
        (*SHORT[script], "--epochs", 3, "--out", tmp_path / "run"),
        ("--resume", tmp_path / "run", "--epochs", 6),
    ):
        status, output = run(tmp_path, script, *flags)
        assert status == 0, output
    assert_same(final_state(tmp_path / "run")[:3], final_state(finished[script][0])[:3])
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["settings"]["epochs"] == 6 and config["resumed"][0]["from"] == 3


@pytest.mark.thorough
@pytest.mark.parametrize(
    "script, signum, status",
    [*((script, signal.SIGTERM, 143) for script in SCRIPTS), (VAE, signal.SIGINT, 130)],
)
def test_signals_stop_a_run_in_order(tmp_path, script, signum, status):
    folder = tmp_path / "run"
    process = Process(tmp_path, script, *SHORT[script], "--out", folder)
    wait_for(folder / "metrics.jsonl")
    os.kill(process.process.pid, signum)
    ended_with, output = process.join()
    assert ended_with == status and "Traceback" not in output
    assert output.splitlines()[-1].endswith(
        f"resume with: python {ROOT / script} --resume {folder}"
    )
    assert list(folder.glob("*.pdf")) and not (folder / "result.json").exists()
    assert not list(folder.glob("*.partial"))
    torch.load(folder / "checkpoint.pt", weights_only=True)


@pytest.mark.thorough
def test_a_full_disk_ends_in_one_line_and_keeps_the_last_checkpoint(tmp_path, finished):
    script = VAE
    # Room for the first checkpoint, which has no moments of Adam yet, but not for the next.
    folder = tmp_path / "run"
    status, output = run(tmp_path, script, *SHORT[script], "--out", folder, file_size=350_000)
    assert status == 1 and "Traceback" not in output
    words = f"error: {folder / 'checkpoint.pt'}: File too large; last checkpoint in {folder}"
    assert words in output.splitlines()[-1]
    assert not list(folder.glob("*.partial"))
    status, output = run(tmp_path, script, "--resume", folder)
    assert status == 0, output
    assert_same(final_state(folder), final_state(finished[script][0]))


@pytest.mark.thorough
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_folder_removed_during_the_run(tmp_path, script):
    folder = tmp_path / "run"
    process = Process(tmp_path, script, *SHORT[script], "--out", folder)
    wait_for(folder / "metrics.jsonl")
    os.rename(folder, tmp_path / "gone")  # removing it file by file would race with the run
    status, output = process.join()
    assert status == 1 and "Traceback" not in output
    last_line = output.splitlines()[-1]
    assert str(folder) in last_line and "No such file or directory" in last_line
    torch.load(tmp_path / "gone" / "checkpoint.pt", weights_only=True)


@pytest.mark.thorough
def test_a_refused_resume_changes_nothing(tmp_path, finished):
    folder, _ = finished[VAE]
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for script, flags, status, words in (
        (VAE, [], 1, "is finished"),
        (VAE, ["--lr", "0.1", "--epochs", "9"], 2, "its --lr is 0.001, not 0.1"),
        (NF, [], 1, "is a run of 'a3_vae_template.py', not of a3_nf_template.py"),
    ):
        found, output = run(tmp_path, script, "--resume", folder, *flags)
        assert found == status and words in output and output.count("\n") == 1
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
