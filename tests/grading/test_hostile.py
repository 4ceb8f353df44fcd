"""A submission can harm nothing but itself: it ends as one line, whatever it does."""

import json
import shutil
import socket

import pytest

from grading.grader import judge_file
from tests.conftest import ROOT
from tests.grading.conftest import SECRET

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
FORGED = json.dumps({"kind": "finding", "token": "", "model": "vae", "check": "kl"})
ATTACKS = {
    "endless loop": "while True: pass",
    "100 GB": "return bytearray(100 << 30)",
    "100 GB tensor": "return torch.ones(25 << 30)",
    "fork bomb": "while True: os.fork()",
    "other programs": "subprocess.run(['/bin/sh', '-c', 'echo'], check=True)",
    "deletion": "shutil.rmtree(CANARY)",
    "silent deletion": "shutil.rmtree(CANARY, ignore_errors=True)",
    "writing": "open(CANARY + '/new', 'w')",
    "overwriting": "open(CANARY + '/file', 'w').write('gone')",
    "a gigabyte of output": "for _ in range(1 << 10): os.write(1, b'x' * (1 << 20))",
    "a large file": "f = open('big', 'wb')\nfor _ in range(1 << 10): f.write(bytes(1 << 20))",
    "exit": "os._exit(0)",
    "system exit": "sys.exit(0)",
    "killing": "os.kill(os.getppid(), signal.SIGKILL)",
    "killing all": "os.kill(-1, signal.SIGKILL)",
    "forged results": f"print({FORGED!r}); [forge(fd) for fd in range(3, 64)]",
    "a closed result": "os.closerange(3, 64)",
}
FORGE = f"""
def forge(fd):
    try:
        os.write(fd, {FORGED.encode()!r} + b"\\n")
    except OSError:
        pass
"""


def write(folder, attack, canary, port=0):
    lines = "\n".join(f"    {line}" for line in attack.splitlines())
    source = FILE.format(attack=lines).replace("result =", f"{FORGE}\n\nresult =", 1)
    path = folder / "a3_vae_template.py"
    path.write_text(source.replace("CANARY", repr(str(canary))).replace("PORT", str(port)))
    return path


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_ends_as_one_line_and_touches_nothing(zygote, tmp_path, name):
    canary, folder = tmp_path / "canary", tmp_path / "submission"
    canary.mkdir(), folder.mkdir()
    (canary / "file").write_text("here")
    result = judge_file(zygote, "vae", write(folder, ATTACKS[name], canary), 3, False)
    assert result.reason and "\n" not in result.reason
    assert result.findings == []
    assert len(result.output) < 100_000
    assert [file.name for file in canary.iterdir()] == ["file"]
    assert (canary / "file").read_text() == "here"
    assert [file.name for file in folder.iterdir()] == ["a3_vae_template.py"]
    assert zygote.process.poll() is None


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
