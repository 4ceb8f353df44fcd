"""Judging one file of a submission, in the process forked for it."""

import contextlib
import gc
import json
import os
import resource
import shutil
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import scipy.stats  # noqa: F401  (loaded once, here, for all submissions)
import torch
import torch._dynamo  # noqa: F401  (the first optimiser's step would load it)
from torch.utils.data import DataLoader

import datasets
from gencheck import gan_checks, vae_checks
from gencheck.outcomes import NOTE, OLD, Outcome, finding, one_line, run_checks, seed_everything
from grading import couplings, flow_model, sandbox
from grading.adapters import flow_subject, gan_subject, vae_subject
from grading.checks import load_checks
from grading.epochs import epoch_subject
from grading.loading import CannotLoad, Submission, is_theirs
from grading.on_cpu import OnCPU
from grading.pictures import CHECKS as PICTURE_CHECKS
from grading.pictures import png, samples
from grading.shims import Adaptation
from grading.stand_ins import Finder, StubModule, course_modules, torchvision_modules
from grading.training import TRAINING_CHECKS, epoch_checks

N_IMAGES = 4096  # of each kind, in the zygote's memory
COPIED_BYTES = 32 << 20
SKIPPED_FOLDERS = {"__pycache__", "runs", "data", "venv", "node_modules"}
BINARY = datasets.bmnist()[1].images[:N_IMAGES].clone()
GREY = datasets.mnist()[1].images[:N_IMAGES].clone()
LABELS = torch.from_numpy(datasets.read_mnist()["y_train"][-10_000:][:N_IMAGES]).long()
gc.freeze()

RUNS_TODAY, RUNS_ON_CPU = load_checks("all", {"runs_today": None, "runs_on_cpu": None})


def main(request: dict, results: int, output: int) -> None:
    """Judge the file of a request; write findings to the descriptor `results`."""
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    stream = os.fdopen(results, "w", buffering=1)
    token = request.pop("token")

    def emit(kind, **content):
        stream.write(json.dumps({"token": token, "kind": kind} | content) + "\n")
        stream.flush()

    not_found = []  # modules that became stubs
    try:
        _judge(request, emit, not_found)
    except (Exception, SystemExit) as error:
        emit("unjudged", reason=_reason(error, not_found))
    for printed in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            printed.flush()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    emit("end", seconds=round(time.process_time(), 2), peak_mb=peak >> 10)


def _reason(error, not_found):
    if isinstance(error, NotImplementedError):
        return "not implemented"
    if isinstance(error, SystemExit):
        return "it calls sys.exit"
    words = str(error) if isinstance(error, CannotLoad) else one_line(error)
    if not_found:
        names = sorted({name.partition(".")[0] for name in not_found})
        words += f" (not found beside the file, nor installed: {', '.join(names)})"
    return words


def _judge(request, emit, not_found):
    scratch, path = Path(request["scratch"]), Path(request["path"])
    missing = sandbox.isolate(scratch)
    code = scratch / "code"
    _copy(path.parent, code)
    os.chdir(code)
    os.environ.clear()
    os.environ.update(HOME=str(scratch), TMPDIR=str(scratch), PATH="/usr/bin:/bin", LANG="C.UTF-8")
    torch.set_num_threads(1)
    pictures, adaptation, on_cpu = [], Adaptation(), OnCPU()
    submission_made = []

    def on_picture():
        names = ("Generator", "generator")
        made = submission_made[0].instances if submission_made else []
        pictures.extend([m.training for m in made if type(m).__name__ in names][-1:])

    _replace_modules(code, on_picture, not_found)
    missing += sandbox.limit(int(request["seconds"]) + 5)
    emit("sandbox", not_enforced=sorted(set(missing)))
    on_cpu.install()
    seed_everything(request["seed"])
    submission = Submission(code / path.name, adaptation.attempt)
    submission_made.append(submission)
    model, folder = request["model"], str(Path.cwd())

    def check(subject, table):
        theirs = partial(is_theirs, folder=folder)
        found = run_checks(model, subject, table, adaptation.adapt, theirs, request["seed"])
        for one in found:
            emit("finding", **asdict(one))

    try:
        subject = _check_all(model, submission, check, pictures, request["training"])
        with contextlib.suppress(Exception, SystemExit):
            emit("picture", png=png(samples(model, subject)))
    finally:
        for words, error in adaptation.used.items():
            emit("finding", **asdict(finding(model, RUNS_TODAY, Outcome(OLD, f"{words}: {error}"))))
        if on_cpu.asked:
            words = "CUDA is asked for by name, or where there is none"
            emit("finding", **asdict(finding(model, RUNS_ON_CPU, Outcome(NOTE, words))))


def _check_all(model, submission, check, pictures, training):
    """Run all checks of a model; returns the subject."""
    if model == "gan":
        subject = gan_subject(submission, pictures)
        check(subject, (*gan_checks.CHECKS, *PICTURE_CHECKS))
        return subject
    if model == "vae":
        subject, caught = vae_subject(submission, BINARY)
        check(subject, vae_checks.CHECKS)
        images = BINARY
    else:
        subject, caught = flow_subject(submission, GREY)
        check(subject, couplings.CHECKS)
        check(subject, flow_model.CHECKS)
        if subject.model is None:
            return subject
        images = GREY
    epochs = epoch_subject(model, submission, subject, caught, images, LABELS)
    check(epochs, epoch_checks(model))
    if training:
        check(epochs, TRAINING_CHECKS)
    return subject


def _copy(source: Path, target: Path) -> None:
    """Copy a submission's folder, without hidden and large files: its process may write there."""
    total = 0
    for folder, folders, files in os.walk(source):
        depth = len(Path(folder).relative_to(source).parts)
        folders[:] = [
            f for f in folders if f not in SKIPPED_FOLDERS and not f.startswith(".") and depth < 3
        ]
        for name in files:
            file = Path(folder) / name
            if name.startswith(".") or file.is_symlink() or not file.is_file():
                continue
            size = file.stat().st_size if file.suffix != ".py" else 0
            if total + size <= COPIED_BYTES:
                total += size
                copy = target / file.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
    target.mkdir(exist_ok=True)


def _replace_modules(code, on_picture, not_found):
    """Let the submission import its own modules, and stand-ins for what is not here."""
    root = str(Path(__file__).resolve().parent.parent)
    for name in list(sys.modules):
        if name.partition(".")[0] in ("datasets", "harness", "torchvision", "matplotlib"):
            del sys.modules[name]
    sys.path[:] = [str(code)] + [p for p in sys.path if p not in ("", root, os.getcwd())]
    modules = course_modules(BINARY, GREY, LABELS)
    modules |= torchvision_modules(GREY, LABELS, on_picture)
    if not (code / "datasets").is_dir():
        modules["datasets"] = StubModule("datasets")
        for name in ("bmnist", "mnist"):
            setattr(modules["datasets"], name, modules[f"datasets.{name}"])
    sys.meta_path.insert(0, Finder(modules, not_found, str(code)))
    sys.meta_path.append(Finder({}, not_found, str(code), last=True))
    original = DataLoader.__init__

    def single_process(self, *args, **options):
        kept = {
            k: v for k, v in options.items() if k not in ("persistent_workers", "prefetch_factor")
        }
        original(self, *args, **kept | {"num_workers": 0, "pin_memory": False})

    DataLoader.__init__ = single_process
