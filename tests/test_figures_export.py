import csv
import itertools
import json
import re
import shutil
import subprocess

import pytest

from figures.__main__ import main, parse
from figures.kinds import KINDS
from harness.errors import UsageError, UserError
from harness.escape import latex
from tests.fake_runs import fake_run, fake_runs


@pytest.fixture
def base(tmp_path):
    """Two seeds of the VAE that differ, a VAE of other settings, and an unfinished GAN."""
    for seed, nats in (("0", 99.0), ("1", 101.0)):
        fake_run(tmp_path / "runs" / f"vae{seed}", "vae", "--seed", seed, val_neg_elbo_nats=nats)
    fake_run(tmp_path / "runs" / "slow", "vae", "--lr", "0.0001", "--epochs", "3")
    (fake_run(tmp_path / "runs" / "gan", "gan") / "result.json").unlink()
    return tmp_path / "runs"


def exported(base, name):
    path = base.parent / name
    main(parse(["export", str(path), "--runs", str(base)]))
    return path.read_text()


def test_a_run_on_another_data_set_has_its_kind_and_says_its_set(base):
    fake_run(base / "dressed", "nf", "--dataset", "fashion")
    runs = {run["run"]: run for run in json.loads(exported(base, "runs.json"))}
    dressed, vae = runs["dressed"], runs["vae0"]
    assert (dressed["kind"], dressed["dataset"]) == ("nf", "fashion")
    assert (vae["kind"], vae["dataset"]) == ("vae", "mnist")


ELBO = "validation negative ELBO (nats) at epoch 40"


def test_csv_has_a_line_for_every_run(base, capsys):
    text = exported(base, "runs.csv")
    rows = {row["run"]: row for row in csv.DictReader(text.splitlines())}
    assert list(rows) == ["gan", "slow", "vae0", "vae1"]
    gan, slow, vae0, vae1 = rows.values()
    assert (vae0["seed"], vae1["seed"], vae0["kind"], slow["kind"]) == ("0", "1", "vae", "")
    assert (vae0[ELBO], vae1[f"{ELBO}: verdict"], slow[ELBO]) == ("99.0", "falls short", "")
    assert (vae0["lr"], slow["lr"], slow["epochs"]) == ("0.001", "0.0001", "3")
    assert (vae0["epoch"], gan["batch"], gan["finished"]) == ("100", "187500", "False")
    assert vae0["test.neg_elbo_nats"] == "99.5" and gan["test.neg_elbo_nats"] == ""
    assert (vae0["seconds"], vae0["device"]) == ("100.0", "an abacus")
    assert vae0["val_neg_elbo_nats"] == "99.0"  # at the end
    assert vae0["dataset"] == "mnist"  # whether or not runs differ in it
    assert not {"zdim", "latent_dim"} & vae0.keys()  # the same in all runs
    assert "out" not in vae0  # no setting of the training
    assert text.splitlines()[0].endswith(",seconds,device")
    assert "gan is unfinished" in capsys.readouterr().err


def test_json_has_the_same_values(base):
    runs = json.loads(exported(base, "runs.json"))
    table = list(csv.DictReader(exported(base, "runs.csv").splitlines()))
    for run, row in zip(runs, table, strict=True):
        assert {name: "" if run.get(name) is None else str(run[name]) for name in row} == row
    assert type(runs[-1][ELBO]) is float and runs[0]["finished"] is False


def test_tex_has_the_means_of_each_kind(base):
    text = exported(base, "runs.tex")
    title = r"\midrule" "\n" r"\multicolumn{4}{@{}l}{\emph{VAE, 20 latent dimensions}} \\" "\n"
    row = title + r"validation negative ELBO (nats) & epoch 40 &"
    assert rf"{row} 100.000 $\pm$ 1.414 (2) & 100.600 \\" in text
    assert text.count(r"\begin{") == text.count(r"\end{") == 2 and r"\label{tab:results}" in text
    body = text.split(r"Reference \\")[1].split(r"\bottomrule")[0]
    for line in body.strip().splitlines():
        assert line.startswith((r"\midrule", r"\multicolumn")) or line.count(" & ") == 3
        assert line == r"\midrule" or line.endswith(r" \\")
    # The GAN has no finished run, and the slow VAE is of no kind.
    assert "GAN" not in text and "epoch 3 " not in text


def test_tex_shows_no_reference_that_does_not_compare(base):
    fake_run(base / "plane", "manifold")
    assert r"validation negative ELBO (nats) & epoch 40 & 100.000 & - \\" in exported(base, "a.tex")


def test_what_latex_reads_as_a_command_is_escaped():
    assert latex("50% of $5 & #1_a {b}") == r"50\% of \$5 \& \#1\_a \{b\}"
    assert latex("~^\\") == r"\textasciitilde{}\textasciicircum{}\textbackslash{}"
    assert latex('the "ELBO" and the "KL", 1 ± 2, a < b') == (
        r"the ``ELBO'' and the ``KL'', 1 $\pm$ 2, a $<$ b"
    )


def test_latex_compiles_the_table(base):
    if shutil.which("pdflatex") is None:
        pytest.skip("needs pdflatex")
    for kind, seed in itertools.product(KINDS, ("3", "4")):
        fake_run(base / f"{kind}-{seed}", kind, "--seed", seed)
    exported(base, "runs.tex")
    document = r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{runs.tex}"
    (base.parent / "paper.tex").write_text(document + r"\end{document}")
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "paper.tex"]
    done = subprocess.run(command, cwd=base.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert (base.parent / "paper.pdf").exists()
    assert not re.search("^! |^Overfull|too large", done.stdout, re.M)  # it fits


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("runs.xlsx", "runs.xlsx must end in .csv, .json, .jsonl, .tex"),
        ("nowhere/runs.csv", "nowhere/runs.csv: there is no folder .*nowhere"),
        ("folder.csv", "folder.csv cannot be written"),
        ("file/runs.csv", "file/runs.csv: there is no folder .*file"),
    ],
)
def test_a_bad_name_is_refused_before_anything_is_read(tmp_path, name, words):
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=words):
        parse(["export", str(tmp_path / name)])


def test_no_runs_are_no_table(tmp_path):
    (tmp_path / "runs").mkdir()
    for suffix in ("csv", "tex"):
        path = tmp_path / f"runs.{suffix}"
        with pytest.raises(UserError, match="no runs to export"):
            main(parse(["export", str(path), "--runs", str(tmp_path / "runs")]))
        assert not path.exists()


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".tex"])
def test_only_an_earlier_export_is_replaced(tmp_path, suffix):
    path = tmp_path / f"mine{suffix}"
    words = ["export", str(path), "--runs", str(fake_runs(tmp_path / "runs", "vae"))]
    main(parse(words))
    first = path.read_bytes()
    main(parse(words))
    assert path.read_bytes() == first
    path.write_text("name,points")
    with pytest.raises(UsageError, match="is no earlier export"):
        main(parse(words))
    assert path.read_text() == "name,points"
