"""Changes that a reader makes to a script: few lines, and everything stays right afterwards.

Each is applied to a copy of the script. The copy trains by its command line, is killed and resumed
bit for bit, evaluated again, loaded, and graded.
"""

import difflib
import importlib.util
import json
import math
import sys
from typing import NamedTuple

import pytest
import torch

from datasets import Batches, bmnist
from harness import records
from harness.references import grade
from tests.conftest import ROOT
from tests.processes import GAN, NF, VAE, Process, run, wait_for
from tests.run_states import assert_same, final_state

pytestmark = pytest.mark.thorough

FLAGS = {
    VAE: "--epochs 3 --zdim 3 --hidden_dim 16 --batch_size 100 --importance_samples 4",
    NF: "--epochs 3 --n_flows 1 --n_hidden 16 --batch_size 100 --importance_samples 1"
    " --schedule cosine",
    GAN: "--n_epochs 1 --batch_size 408 --save_interval 3",
}


class Change(NamedTuple):
    """A change of one script.

    Attributes:
        lines: the script's line (or the end of it that is unique) -> the lines in its place.
        at_most: how many lines it may change.
        flags: of its runs, beside FLAGS.
    """

    script: str
    lines: dict[str, str]
    at_most: int
    flags: tuple[str, ...] = ()


COSINE = "torch.optim.lr_scheduler.CosineAnnealingLR"

CHANGES = {
    "a second hidden layer": Change(
        VAE,
        {
            "        self.hidden = nn.Linear(n_pixels, hidden_dim)": """\
        self.hidden = nn.Linear(n_pixels, hidden_dim)
        self.hidden_2 = nn.Linear(hidden_dim, hidden_dim)""",
            "        hidden = F.relu(self.hidden(input))": """\
        hidden = F.relu(self.hidden_2(F.relu(self.hidden(input))))""",
            "        self.hidden = nn.Linear(z_dim, hidden_dim)": """\
        self.hidden = nn.Linear(z_dim, hidden_dim)
        self.hidden_2 = nn.Linear(hidden_dim, hidden_dim)""",
            "        return self.output(F.relu(self.hidden(z)))": """\
        return self.output(F.relu(self.hidden_2(F.relu(self.hidden(z)))))""",
        },
        at_most=6,
    ),
    "beta": Change(
        VAE,
        {
            "    lr: float = 1e-3  # learning rate of Adam": """\
    lr: float = 1e-3  # learning rate of Adam
    beta: float = 1.0  # weight of the KL in what training minimises""",
            '        return terms["neg_elbo"]': """\
        return terms["recon"] + self.beta * terms["kl"]""",
            "        optimizer = adam(model, config.lr, config.weight_decay)": """\
        model.beta = config.beta
        optimizer = adam(model, config.lr, config.weight_decay)""",
        },
        at_most=3,
        flags=("--beta", "4"),
    ),
    "tanh": Change(
        VAE,
        {
            "        hidden = F.relu(self.hidden(input))": """\
        hidden = torch.tanh(self.hidden(input))""",
            "        return self.output(F.relu(self.hidden(z)))": """\
        return self.output(torch.tanh(self.hidden(z)))""",
        },
        at_most=2,
    ),
    "a schedule": Change(
        VAE,
        {
            "        run.start_or_resume(model=model, average=average, optimizer=optimizer)": f"""\
        decay = {COSINE}(optimizer, config.epochs)
        run.start_or_resume(model=model, average=average, optimizer=optimizer, decay=decay)""",
            "            run.checkpoint()": """\
            decay.step()
            run.checkpoint()""",
        },
        at_most=3,
    ),
    "another schedule of the flow": Change(
        NF,
        {
            "        fall = 0.5 + 0.5 * math.cos(math.pi * step / n_steps)"
            ' if schedule == "cosine" else 1.0': "        fall = 1.0 - step / n_steps"
        },
        at_most=1,
        flags=("--lr", "1e-3", "--warmup", "0"),
    ),
    "schedules of the GAN": Change(
        GAN,
        {
            "        optimizers = adam(generator, config.lr), adam(discriminator, config.lr)": f"""\
        optimizers = adam(generator, config.lr), adam(discriminator, config.lr)
        schedulers = [{COSINE}(optimizer, n_batches) for optimizer in optimizers]""",
            "            batches=batches,": """\
            batches=batches,
            generator_scheduler=schedulers[0],
            discriminator_scheduler=schedulers[1],""",
            "            averages.append(step(real))  # stays on the device": """\
            averages.append(step(real))  # stays on the device
            for scheduler in schedulers:
                scheduler.step()""",
        },
        at_most=5,
    ),
}


OF_VAE = [name for name, change in CHANGES.items() if change.script == VAE]


def apply(change, folder):
    """(path of the changed copy of a script, how many lines differ)."""
    before = (ROOT / change.script).read_text().splitlines()
    after = list(before)
    for line, replacement in change.lines.items():
        assert after.count(line) == 1, line
        at = after.index(line)
        after[at : at + 1] = replacement.splitlines()
    path = folder / change.script
    path.write_text("\n".join(after) + "\n")
    return path, n_changed(before, after)


def n_changed(before, after):
    """Lines that are new, gone or other, as a diff counts them; a changed line counts once."""
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    differing = [codes for codes in matcher.get_opcodes() if codes[0] != "equal"]
    return sum(max(i2 - i1, j2 - j1) for _, i1, i2, j1, j2 in differing)


@pytest.fixture(scope="module")
def forks(tmp_path_factory):
    """{name: (the changed copy as a module, its uninterrupted run, one that was killed)}."""
    base, started, forks = tmp_path_factory.mktemp("forks"), {}, {}
    run(base, VAE, "--help")  # starts the fork server
    for name, change in CHANGES.items():
        folder = base / name.replace(" ", "_")
        folder.mkdir()
        path, _ = apply(change, folder)
        words = [*FLAGS[change.script].split(), "--quality_samples", "0", *change.flags]
        started[name] = path, Process(folder, path, *words, "--out", folder / "whole")
        killed = Process(folder, path, *words, "--out", folder / "killed")
        # The first checkpoint of a training comes with its first line.
        wait_for(folder / "killed" / "metrics.jsonl", lambda content: content.count(b"\n") >= 2)
        killed.kill()
    for name, (path, whole) in started.items():
        status, output = whole.join()
        assert status == 0, output
        spec = importlib.util.spec_from_file_location(f"fork_{len(forks)}", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # a dataclass looks for its module there
        spec.loader.exec_module(module)
        forks[name] = module, path.parent / "whole", path.parent / "killed"
    yield forks
    for module, _, _ in forks.values():
        del sys.modules[module.__name__]


def settings_of(folder):
    return json.loads((folder / "config.json").read_text())["settings"]


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_of_few_lines(tmp_path, name):
    _, n_lines = apply(CHANGES[name], tmp_path)
    assert 0 < n_lines <= CHANGES[name].at_most


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_script_is_killed_and_resumes_bit_for_bit(tmp_path, forks, name):
    module, whole, killed = forks[name]
    status, output = run(tmp_path, module.__file__, "--resume", killed)
    assert status == 0, output
    resumed = json.loads((killed / "config.json").read_text())["resumed"]
    assert resumed[0]["from"] >= 1
    assert_same(final_state(killed), final_state(whole))


@pytest.mark.parametrize("name", OF_VAE)
def test_a_changed_vae_evaluates_its_run_again(tmp_path, forks, name):
    module, whole, _ = forks[name]
    before = final_state(whole)
    status, output = run(tmp_path, module.__file__, "--evaluate", whole)
    assert status == 0, output
    assert_same(final_state(whole), before)


@pytest.mark.parametrize("name", OF_VAE)
def test_a_changed_vae_loads_and_is_estimated_and_graded(forks, name):
    module, folder, _ = forks[name]
    result = json.loads((folder / "result.json").read_text())
    model = module.load_model(folder)
    test = bmnist()[2]
    few = Batches(test.images[:1000], 100, torch.Tensor.float)  # as in the fork server's child
    nats = dict(zip(model.TERMS, module.evaluate(model, few)))
    for term, value in nats.items():
        assert result["test"][f"{term}_nats"] == pytest.approx(value, rel=1e-5)
    assert nats["neg_elbo"] == pytest.approx(nats["recon"] + nats["kl"])

    neg_log_px = result["likelihood"]["neg_log_px_nats"]
    # After three short epochs they are nearly equal, and the estimate has four draws an image.
    assert math.isfinite(neg_log_px)
    assert (
        neg_log_px
        < result["test"]["neg_elbo_nats"] + 3 * result["likelihood"]["standard_error_nats"]
    )

    # Its own size compares with nothing; at the default size it is graded unless it has a setting
    # that no reference knows.
    verdicts = {row["verdict"] for row in result["graded"]}
    assert verdicts == {"not comparable: zdim is 3, not 20"}
    lines = [{"epoch": epoch, "val_neg_elbo_nats": 99.0} for epoch in range(1, 101)]
    settings = module.Config.parse([*CHANGES[name].flags, "--device", "cpu"]).flat()
    for n_epochs, expected in ((100, "pass"), (39, "not reached")):
        rows = grade(VAE, settings, lines[:n_epochs], {})
        if name == "beta":
            expected = "not comparable: beta is 4.0, which no reference has"
        assert rows[0].verdict == expected


def test_beta_weighs_the_kl_in_training_alone(forks):
    module, folder, _ = forks["beta"]
    assert settings_of(folder)["beta"] == 4.0
    for line in records.read_metrics(folder):
        parts = line["val_recon_nats"] + line["val_kl_nats"]
        assert line["val_neg_elbo_nats"] == pytest.approx(parts)
    model = module.VAE(4, 2)
    model.beta = 4.0
    terms = model.terms(torch.ones(3, 784))
    assert torch.equal(model.loss(terms), terms["recon"] + 4 * terms["kl"])
    with pytest.raises(module.cli.UsageError, match="its --beta is 4.0, not 2.0"):
        module.Config.parse(["--resume", str(folder), "--beta", "2"])


def test_the_learning_rates_of_a_schedule_are_in_the_metrics(forks):
    _, whole, _ = forks["a schedule"]
    rates = [line["lr"] for line in records.read_metrics(whole)]
    assert rates == pytest.approx([1e-3 * math.cos(math.pi * n / 6) ** 2 for n in range(3)])
    _, whole, _ = forks["another schedule of the flow"]
    rates = [line["lr"] for line in records.read_metrics(whole)]
    assert rates == pytest.approx([1e-3 * (1 - epoch / 3) for epoch in (1, 2, 3)])


def test_the_gan_s_schedules_end_at_zero(forks):
    _, whole, _ = forks["schedules of the GAN"]
    checkpoint = torch.load(whole / "checkpoint.pt", weights_only=True)
    for network in ("generator", "discriminator"):
        (group,) = checkpoint[f"{network}_optimizer"]["param_groups"]
        assert group["lr"] == pytest.approx(0, abs=1e-12)


def test_lines_are_counted_as_a_diff_does():
    before = ["a", "b", "c"]
    assert n_changed(before, before) == 0
    assert n_changed(before, ["a", "x", "c"]) == n_changed(before, ["a", "b", "x", "c"]) == 1
    assert n_changed(before, ["a", "c"]) == 1 and n_changed(before, ["x", "y", "b", "c"]) == 2
