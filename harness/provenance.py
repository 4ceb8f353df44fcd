"""Where a run comes from: command, commit, versions, hardware, time."""

import datetime
import importlib.metadata
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import torch


def provenance(device: torch.device) -> dict:
    """What `config.json` records of a run beside its settings."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("numpy", "scipy", "matplotlib"):
        versions[package] = importlib.metadata.version(package)
    return {
        "command": shlex.join(["python", *sys.argv]),
        "git_commit": _git_commit(),
        "versions": versions,
        "device": device_name(device),
        "started": now(),
    }


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's with the number of threads PyTorch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"{platform.machine()} GPU (Metal)"
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    threads = torch.get_num_threads()
    return f"{next(names, platform.machine())}, {threads} thread{'s' if threads > 1 else ''}"


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _git_commit() -> str | None:
    """The commit of this source, with '-dirty' if files differ; None outside a git checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
