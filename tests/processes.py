"""The scripts in processes of their own: from a shell as a user runs them, or from a fork server.

A child of the fork server has PyTorch already, so it starts in a fraction of a second. It reads a
tenth of the data, to train for seconds. Every process has one thread: they run side by side, and
with several threads some processors end one training in one of two results.
"""

import multiprocessing
import os
import resource
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from datasets import Batches
from harness import sample_quality
from tests.conftest import ROOT

VAE, NF, GAN = SCRIPTS = ("a3_vae_template.py", "a3_nf_template.py", "a3_gan_template.py")
CONTEXT = multiprocessing.get_context("forkserver")
# What a run imports late: for its first optimiser, its first forward-mode derivative, its curves.
PRELOADED = [
    *(script.removesuffix(".py") for script in SCRIPTS),
    "torch._dynamo",
    "torch._decomp.decompositions_for_jvp",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_pdf",
]
CONTEXT.set_forkserver_preload(PRELOADED)


def start_script(script, *flags, device="cpu"):
    """`python script *flags` from a shell: the started process."""
    return subprocess.Popen(
        [sys.executable, ROOT / script, *map(str, flags), "--device", device],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_script(script, *flags, device="cpu"):
    """(exit status, stdout, stderr) of `python script *flags` from a shell."""
    process = start_script(script, *flags, device=device)
    stdout, stderr = process.communicate(timeout=300)
    return process.returncode, stdout, stderr


def _run(script, flags, output, file_size):
    with open(output, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a fork server ignores it
    torch.set_num_threads(1)
    make_batches = Batches.__init__

    def make_few(self, images, *args, **options):
        make_batches(self, images[: len(images) // 10], *args, **options)

    Batches.__init__ = make_few
    diversity = sample_quality.diversity
    sample_quality.diversity = lambda images, *args: diversity(images[: len(images) // 10], *args)
    sys.argv = [str(script), *map(str, flags), "--device", "cpu"]
    runpy.run_path(str(ROOT / script), run_name="__main__")


class Process:
    """`script *flags`, started by the fork server; output goes to a log in `folder`.

    The script is one of SCRIPTS, or the path of a changed copy.
    """

    def __init__(self, folder, script, *flags, file_size=None):
        self.output = folder / f"{Path(script).name}.{time.monotonic_ns()}.log"
        self.output.touch()  # a signal may come before the process opens it
        self.process = CONTEXT.Process(target=_run, args=(script, flags, self.output, file_size))
        self.process.start()

    def join(self):
        """(exit status, output) once it has ended."""
        self.process.join(300)
        return self.process.exitcode, self.output.read_text()

    def kill(self):
        self.process.kill()
        self.process.join()


def run(folder, script, *flags, **limits):
    """(exit status, output) of `script *flags`."""
    return Process(folder, script, *flags, **limits).join()


def run_together(folder, *commands):
    """[(exit status, output)] of several commands (script, *flags) side by side."""
    started = [Process(folder, *command) for command in commands]
    return [process.join() for process in started]


def wait_for(path, what=lambda content: content):
    """Wait until the file is there and what(its content) is true."""
    deadline = time.monotonic() + 120
    while not (path.exists() and what(path.read_bytes())):
        assert time.monotonic() < deadline, f"{path} does not come"
        time.sleep(0.005)
