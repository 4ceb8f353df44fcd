"""A submission can harm nothing but itself: it ends as one line, whatever it does."""

import json
import shutil
import socket

import pytest

from gencheck.outcomes import Finding
from grading import worker
from grading.grader import judge_file
from tests.conftest import ROOT
from tests.grading.conftest import METHODS_VAE, SECRET

FILE = """
import os, sys, json, shutil, signal, socket, subprocess, time
import torch
import torch.nn as nn


def attack():
{attack}


result = attack()


class VAE(nn.Module):
    def __init__(self, hidden_dim=500, z_dim=20):
        super().__init__()
        attack()
        raise RuntimeError("the attack went on")
"""
FORGED = json.dumps({"kind": "finding", "token": ""} | dict.fromkeys(Finding.__annotations__, ""))
UNDO = """import ctypes
libc = ctypes.CDLL(None)
for _ in range(2):
    libc.mount(None, b'/', None, 4096 | 32, None), libc.umount2(b'/proc', 2)
    libc.unshare(0x10000000 | 0x20000)
open(CANARY + '/new', 'w')"""
LEAVE = """import ctypes
os.setsid()
ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)  # outlive the parent
signal.setitimer(signal.ITIMER_REAL, 0)
time.sleep(9)
print('escaped', flush=True)"""
NO_OBJECTS = "[1]\\nnull\\n" + 100_000 * "[" + "\\n"
WENT_ON = "the attack went on"  # its harm is looked for, and not found
ATTACKS = {  # what it runs, and a part of the reason why the file is not judged
    "endless loop": ("while True: pass", "longer than 3 s"),
    "100 GB": ("return bytearray(100 << 30)", "MemoryError"),
    "100 GB tensor": ("return torch.ones(25 << 30)", "allocate memory"),
    "fork bomb": ("while True: os.fork()", "BlockingIOError"),
    "other programs": ("subprocess.run(['/bin/sh', '-c', 'echo'], check=True)", "BlockingIOError"),
    "deletion": ("shutil.rmtree(CANARY)", "Read-only file system"),
    "silent deletion": ("shutil.rmtree(CANARY, ignore_errors=True)", WENT_ON),
    "writing": ("open(CANARY + '/new', 'w')", "Read-only file system"),
    "overwriting": ("open(CANARY + '/file', 'w').write('gone')", "Read-only file system"),
    "undoing the limits": (UNDO, "Read-only file system"),
    "a gigabyte of output": ("for _ in range(1 << 10): os.write(1, bytes(1 << 20))", "than 64 MB"),
    "a large file": (
        "f = open('big', 'wb')\nfor _ in range(1 << 10): f.write(bytes(1 << 20))",
        "File too large",
    ),
    "exit": ("os._exit(0)", "ended before the checks"),
    "system exit": ("sys.exit(0)", "sys.exit"),
    "killing": ("os.kill(os.getppid(), signal.SIGKILL)", WENT_ON),
    "killing all": ("os.kill(-1, signal.SIGKILL)", "ProcessLookupError"),
    "leaving the group": (LEAVE, "longer than 3 s"),
    "printed results": (f"print({FORGED!r})", WENT_ON),
    "results that are none": (f'forge(b"{NO_OBJECTS}")', WENT_ON),
    "a flood of results": ("forge(bytes(1 << 25))", "than 16 MB"),
    "a closed result": ("os.closerange(3, 64)", ""),
}
FORGE = """
def forge(content):
    for fd in range(3, 64):
        try:
            os.write(fd, content)
        except OSError:
            pass
"""


def write(folder, attack, canary, port=0):
    lines = "\n".join(f"    {line}" for line in attack.splitlines())
    source = FILE.format(attack=lines).replace("result =", f"{FORGE}\n\nresult =", 1)
    path = folder / "a3_vae_template.py"
    path.write_text(source.replace("CANARY", repr(str(canary))).replace("PORT", str(port)))
    return path


@pytest.fixture(scope="module")
def contained(zygote, tmp_path_factory):
    """Skip unless a harmless file shows that all limits hold: attacks kill what they can reach."""
    path = write(tmp_path_factory.mktemp("harmless"), "pass", "")
    if missing := judge_file(zygote, "vae", path, 20, False).not_enforced:
        pytest.skip(f"not enforced here: {', '.join(missing)}")


@pytest.mark.usefixtures("contained")
@pytest.mark.parametrize("name", ATTACKS)
def test_attack_ends_as_one_line_and_touches_nothing(zygote, tmp_path, name):
    canary, folder = tmp_path / "canary", tmp_path / "submission"
    canary.mkdir(), folder.mkdir()
    (canary / "file").write_text("here")
    attack, words = ATTACKS[name]
    result = judge_file(zygote, "vae", write(folder, attack, canary), 3, False)
    assert result.reason and "\n" not in result.reason and words in result.reason
    assert result.findings == []
    assert len(result.output) < 100_000 and "escaped" not in result.output
    assert [file.name for file in canary.iterdir()] == ["file"]
    assert (canary / "file").read_text() == "here"
    assert [file.name for file in folder.iterdir()] == ["a3_vae_template.py"]
    assert zygote.process.poll() is None


def test_forged_results_are_not_believed(zygote, tmp_path):
    path = tmp_path / "a3_vae_template.py"
    path.write_text(f"{METHODS_VAE}\nimport os\n{FORGE}\nresult = forge(b'{FORGED}\\n')\n")
    result = judge_file(zygote, "vae", path, training=False)
    assert result.is_judged, result.reason
    assert all(found.measured for found in result.findings)


def test_network_is_out_of_reach(zygote, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        attack = "socket.create_connection(('127.0.0.1', PORT), timeout=2)"
        path = write(tmp_path, attack, tmp_path, server.getsockname()[1])
        result = judge_file(zygote, "vae", path, 10, False)
        assert result.reason
        if "network" in result.not_enforced:
            pytest.skip("no network namespaces here")
        with pytest.raises(TimeoutError):
            server.accept()


def test_environment_is_not_shown(zygote, tmp_path):
    attack = "print(dict(os.environ)); print(open('/proc/self/environ').read())"
    result = judge_file(zygote, "vae", write(tmp_path, attack, tmp_path), 10, False)
    assert "PATH" in result.output
    assert SECRET not in result.output


def test_a_reason_cannot_paint_the_terminal(zygote, tmp_path):
    attack = "raise RuntimeError('\\x1b[2J\\udcff')"
    result = judge_file(zygote, "vae", write(tmp_path, attack, tmp_path), 20, False)
    assert "\\x1b[2J\\udcff" in result.reason and result.reason.isprintable()


def test_a_large_file_does_not_keep_small_ones_out(tmp_path):
    (tmp_path / "code" / "a").mkdir(parents=True)
    with open(tmp_path / "code" / "checkpoint.pt", "wb") as file:
        file.truncate(worker.COPIED_BYTES + 1)
    for name in ("a/config.json", "a3_vae_template.py"):
        (tmp_path / "code" / name).touch()
    worker._copy(tmp_path / "code", tmp_path / "copy")
    copied = {str(path.relative_to(tmp_path / "copy")) for path in (tmp_path / "copy").rglob("*.*")}
    assert copied == {"a/config.json", "a3_vae_template.py"}


def test_empty_template_is_not_judged(zygote, tmp_path):
    path = tmp_path / "a3_vae_template.py"
    path.write_text(
        "import torch.nn as nn\n\n\nclass VAE(nn.Module):\n    def forward(self, input):\n"
        "        raise NotImplementedError()\n"
    )
    result = judge_file(zygote, "vae", path, 20, False)
    assert result.reason
    assert not result.is_wrong


def test_the_reason_names_modules_that_are_not_beside_the_file(zygote, tmp_path):
    path = tmp_path / "a3_vae_template.py"
    shutil.copyfile(ROOT / path.name, path)
    result = judge_file(zygote, "vae", path, 20, False)
    assert result.reason.endswith("(not found beside the file, nor installed: harness)")


@pytest.mark.parametrize("source", ["print 'python 2'", "\0", "import missing_module_xyz; VAE = 1"])
def test_file_that_cannot_be_loaded_is_not_judged(zygote, tmp_path, source):
    path = tmp_path / "a3_vae_template.py"
    path.write_text(source)
    result = judge_file(zygote, "vae", path, 20, False)
    assert result.reason
    assert not result.findings
