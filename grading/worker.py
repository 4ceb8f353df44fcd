"""Judging one file of a submission, in the process forked for it."""

import base64
import contextlib
import gc
import importlib
import json
import os
import re
import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader

import datasets
from datasets.batches import bernoulli_draw
from gencheck import gan_checks, vae_checks
from gencheck.outcomes import (
    NOTE,
    OLD,
    PASS,
    UNJUDGED,
    WRONG,
    one_line,
    run_checks,
    seed_everything,
)
from grading import couplings, flow_model, interpolation
from grading.arguments import fill_in_arguments
from grading.checks import MAX_TEXT
from grading.epoch_checks import epoch_checks
from grading.epochs import epoch_subject
from grading.flow_adapter import flow_subject
from grading.gan_adapter import GAN_BATCH, gan_subject
from grading.loading import CannotLoad, Submission, is_theirs, stand_in_for_weights
from grading.on_cpu import OnCPU
from grading.other_settings import CHECKS as OTHER_SETTINGS
from grading.pictures import CHECKS as PICTURE_CHECKS
from grading.pictures import Pictures, samples
from grading.running import Running
from grading.shims import Adaptation
from grading.stand_ins import (
    BATCHES,
    Finder,
    Images,
    StubModule,
    course_modules,
    progress_modules,
    torchvision_modules,
)
from grading.training import TRAINING_CHECKS
from grading.vae_adapter import vae_subject

N_IMAGES = 4096  # of each kind, in the fork server's memory
# Advice on arguments of the library: why something is unjudged, and inside other words.
FOR_CALLERS = re.compile(r"(;|:) (pass|state) [^;]*$")
ASIDE = re.compile(r"(: if that is meant,|, or) pass \w+=[^\s,;]+")
# Installed libraries that take long to import: once for all files of a person that name them.
SHARED = {
    b"scipy": ("scipy.special", "scipy.linalg"),
    b"scipy.stats": ("scipy.stats",),
    b"tyro": ("tyro",),
    b"sklearn": ("sklearn",),
}


def _images() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(binary images, grey ones, their labels): validation images of MNIST."""
    arrays = datasets.read_mnist()
    place = slice(datasets.N_TRAIN, datasets.N_TRAIN + N_IMAGES)
    grey = torch.from_numpy(arrays["x_train"][place]).flatten(1).clone()
    labels = torch.from_numpy(arrays["y_train"][place]).long()
    torch.manual_seed(0)
    return bernoulli_draw(grey).byte(), grey, labels


BINARY, GREY, LABELS = _images()
gc.freeze()


def import_shared(files: dict[str, str]) -> None:
    """Import installed libraries that a request's files name, before a process is forked for it."""
    content = b"".join(base64.b64decode(file) for file in files.values())
    for word, names in SHARED.items():
        if word in content:
            for name in names:
                with contextlib.suppress(ImportError):
                    importlib.import_module(name)


def judge(request: dict, scratch: Path) -> str:
    """Judge the file of a request; returns what `grading.results` reads.

    Args:
        request: `model`; `name`, the file's path in its folder; `files`, the folder's content by
            path, in base64; `training`; `seed`; `token`, repeated in the results.
        scratch: an empty folder.
    """
    # So deep that paths relative to the script, such as ../../data, lead to places in the scratch.
    code = scratch / "1" / "2" / "3" / "4" / "code"
    results = {
        "token": request.pop("token"),
        "findings": [],
        "pixels": "",
        "steps": 0,
        "reason": "",
    }
    running = Running(code, request["left_out"])
    try:
        _judge(request, scratch, results, running)
    except BaseException as error:  # even of an interrupt that the submission raises
        reason = _reason(error, running, request["name"]).replace(f"{code}{os.sep}", "")
        results["reason"] = reason[:MAX_TEXT]
    runs = running.outcome()
    if runs.status not in (PASS, NOTE) or not results["reason"]:
        _add(results, "runs", runs.status, runs.measured, runs.expected)
    return json.dumps(results)


def _add(results, check, status, measured, expected=""):
    if status == UNJUDGED:
        measured = FOR_CALLERS.sub("", measured)
    measured = ASIDE.sub("", measured)
    here = os.getcwd() + os.sep  # where its files lie is nobody's business
    texts = {"measured": measured.replace(here, "")[:MAX_TEXT], "expected": expected[:MAX_TEXT]}
    results["findings"].append({"check": check, "status": status} | texts)


def _reason(error, running, name):
    if isinstance(error, NotImplementedError):
        return "not implemented"
    # Where layers belong, the template has None.
    if "'NoneType'" in str(error) and (place := running.left_open(str(running.folder / name))):
        return f"not implemented: {place} still raises NotImplementedError"
    if isinstance(error, SystemExit):
        return "it calls sys.exit"
    words = str(error) if isinstance(error, CannotLoad) else one_line(error)
    if running.missing:
        names = sorted({module.name.partition(".")[0] for module in running.missing})
        words += f" (not found beside the file, nor installed: {', '.join(names)})"
    return words


def _judge(request, scratch, results, running):
    code = running.folder
    for name, content in request["files"].items():
        file = code / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(base64.b64decode(content))
    os.chdir(code)
    os.environ.clear()
    os.environ.update(HOME=str(scratch), TMPDIR=str(scratch), PATH="/usr/bin:/bin", LANG="C.UTF-8")
    torch.set_num_threads(1)
    pictures, adaptation, on_cpu = Pictures(), Adaptation(), OnCPU()
    _replace_modules(code, pictures.on_picture, running.missing)
    on_cpu.install()
    stand_in_for_weights(running)
    fill_in_arguments()
    seed_everything(request["seed"])
    submission = Submission(code / request["name"], adaptation.attempt, running)
    if request["model"] == "gan":
        pictures.watch(submission.find_class("Generator", "Gen"))
    model, folder = request["model"], str(Path.cwd())

    def theirs(error):
        running.in_call(error)
        return is_theirs(error, folder)

    def check(subject, table):
        """Add the findings of a table to the results; returns the checks that found a fault."""
        wrong = set()
        for one in run_checks(model, subject, table, adaptation.adapt, theirs, request["seed"]):
            _add(results, one.check, one.status, one.measured, one.expected)
            wrong |= {one.check} if one.status == WRONG else set()
        return wrong

    subject, steps = _check_all(model, submission, check, pictures, request["training"])
    with contextlib.suppress(Exception, SystemExit):  # the page then has no picture
        images = (samples(model, subject) * 255).byte()
        results["pixels"] = base64.b64encode(images.numpy().tobytes()).decode()
        results["steps"] = steps
    if adaptation.used:
        _add(results, "runs_today", OLD, "; ".join(adaptation.used))
    if on_cpu.asked:
        _add(results, "runs_on_cpu", NOTE, "CUDA is asked for by name, or where there is none")


def _check_all(model, submission, check, pictures, training):
    """Run all checks of a model; returns the subject, and the steps that its samples had."""
    if model == "gan":
        images = Images((GREY.float().view(-1, 1, 28, 28) / 127.5 - 1), LABELS)
        loader = DataLoader(images, batch_size=GAN_BATCH, shuffle=True)
        subject = gan_subject(submission, pictures, loader)
        check(subject, (*gan_checks.CHECKS, *PICTURE_CHECKS, *OTHER_SETTINGS["gan"]))
        subject.interpolate = interpolation.find(submission)
        if subject.interpolate is not None:
            check(subject, interpolation.CHECKS)
        return subject, subject.seen.total
    if model == "vae":
        subject, caught = vae_subject(submission, BINARY)
        check(subject, (*vae_checks.CHECKS, *OTHER_SETTINGS["vae"]))
        images = BINARY
    else:
        subject, caught = flow_subject(submission, GREY)
        wrong = check(subject, couplings.CHECKS)
        subject.wrong_logdet = bool(wrong & {"coupling_logdet", "flow_logdet"})
        check(subject, (*flow_model.CHECKS, *OTHER_SETTINGS["nf"]))
        if subject.model is None:
            return subject, 0
        images = GREY
    epochs = epoch_subject(model, submission, subject, caught, images, LABELS)
    check(epochs, epoch_checks(model))
    if training:
        check(epochs, TRAINING_CHECKS)
    return subject, max((run["steps"] for run in epochs.trained.values()), default=0)


def _replace_modules(code, on_picture, not_found):
    """Let the submission import its own modules, and stand-ins for what is not here."""
    root = str(Path(__file__).resolve().parent.parent)
    for name in list(sys.modules):
        if name.partition(".")[0] in ("datasets", "harness", "torchvision", "matplotlib"):
            del sys.modules[name]
    sys.path[:] = [str(code)] + [p for p in sys.path if p not in ("", root, os.getcwd())]
    modules = course_modules(BINARY, GREY, LABELS)
    modules |= torchvision_modules(GREY, LABELS, on_picture) | progress_modules()
    if not (code / "datasets").is_dir():
        modules["datasets"] = StubModule("datasets")
        for name in ("bmnist", "mnist"):
            setattr(modules["datasets"], name, modules[f"datasets.{name}"])
    sys.meta_path.insert(0, Finder(modules, not_found, str(code)))
    sys.meta_path.append(Finder({}, not_found, str(code), last=True))
    original = DataLoader.__init__

    def single_process(self, dataset, batch_size=1, *args, **options):
        kept = {
            k: v for k, v in options.items() if k not in ("persistent_workers", "prefetch_factor")
        }
        if BATCHES.limit is not None and batch_size is not None:
            batch_size = min(batch_size, BATCHES.limit)
        own = {"num_workers": 0, "pin_memory": False}
        original(self, dataset, batch_size, *args, **kept | own)

    DataLoader.__init__ = single_process
