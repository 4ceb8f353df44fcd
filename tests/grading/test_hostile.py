"""A submission can harm nothing but itself: it ends as one line, whatever it does."""

import contextlib
import os
import secrets
import socket
from pathlib import Path

import pytest

from grading.grader import Memory, grade, judge_file
from grading.sandbox import PACKAGES, readable
from tests.conftest import ROOT
from tests.grading import attacks
from tests.grading.conftest import METHODS_VAE, SECRET, people_in


class Outside:
    """What attacks reach for: files, sockets that listen, and the state of the machine."""

    def __init__(self, folder, stack):
        self.canary, self.name = folder / "canary", secrets.token_hex(8)
        self.canary.mkdir()
        (self.canary / "file").write_text(SECRET)
        (self.canary / "neighbour.py").write_text("NAME = 'his'\n")
        for path in (folder, self.canary, *self.canary.iterdir()):
            path.chmod(0o777)  # only the sandbox keeps them out
        unix, abstract = (stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2))
        unix.bind(str(folder / "unix"))
        abstract.bind(f"\0{self.name}")
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.port = tcp.getsockname()[1]
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", self.port))
        for server in (unix, abstract, tcp):
            server.listen()
        self.servers = unix, abstract, tcp, udp
        for server in self.servers:
            server.setblocking(False)
        python = [path for path in readable() if path.is_relative_to(Path.home())]
        self.values = {
            "CANARY": str(self.canary), "UNIX": str(folder / "unix"), "ABSTRACT": self.name,
            "PORT": self.port, "HOME": str(Path.home()),
            "PYTHONS_PARENTS": [path.relative_to(Path.home()).parts[0] for path in python],
        }  # fmt: skip

    def state(self):
        """The state of the machine, as far as an attack could change it."""
        settings = [Path("/proc/sys/kernel", name) for name in ("core_pattern", "hostname")]
        packages = [ROOT / name for name in PACKAGES]
        return {
            "files": {path.name: path.read_text() for path in self.canary.iterdir()},
            "settings": [path.read_text() for path in settings],
            "packages": [(p, p.stat().st_mtime_ns) for f in packages for p in f.rglob("*.py")],
        }

    def visitors(self):
        """Which servers somebody has connected to."""
        for server in self.servers:
            with contextlib.suppress(BlockingIOError):
                yield server.accept() if server.type == socket.SOCK_STREAM else server.recv(1)


@pytest.fixture
def outside(tmp_path):
    with contextlib.ExitStack() as stack:
        yield Outside(tmp_path, stack)


def run(box, folder, body, outside, seconds=20, **options):
    folder.mkdir(exist_ok=True)
    path = attacks.write(folder, body, **options, **outside.values)
    before = outside.state()
    result = judge_file(box, "vae", path, seconds, False)
    assert outside.state() == before
    assert not list(outside.visitors())
    assert os.listdir(folder) == [path.name]
    assert SECRET not in result.output and "ESCAPED" not in result.output, result.output
    assert result.reason and result.reason.isprintable()
    assert {finding.check for finding in result.findings} <= {"runs"}  # it doesn't
    assert len(result.output) <= 20_000
    return result


def test_there_are_forty_attacks():
    assert len(attacks.ESCAPES | attacks.ENDS) >= 40


@pytest.mark.thorough
@pytest.mark.parametrize("name", attacks.ESCAPES)
def test_nothing_outside_is_reached(sandbox, tmp_path, outside, name):
    result = run(sandbox, tmp_path / "attacker", attacks.ESCAPES[name], outside)
    assert "contained: " in result.output, result.reason


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n in attacks.LASTING else n for n in attacks.ENDS],
)
def test_it_ends_as_one_line_and_the_next_file_is_judged(
    sandbox, tmp_path, outside, name, monkeypatch
):
    body, words = attacks.ENDS[name]
    if words == attacks.LOOPED:
        monkeypatch.setattr("grading.sandbox.WAITING", 300)  # this machine may be busy
    seconds = attacks.SECONDS if "stopped after" in words else 20
    assert words in run(sandbox, tmp_path / "attacker", body, outside, seconds).reason
    process = sandbox.process
    left = "raise OSError([*os.listdir(os.environ['HOME']), *os.listdir('/dev/shm')])"
    after = run(sandbox, tmp_path / "next", left, outside)
    assert after.output == "contained: OSError ['1']\n"  # the folder of its own
    assert sandbox.process is process


@pytest.mark.thorough
def test_waiting_costs_no_processor_time(sandbox, tmp_path, outside, monkeypatch):
    """On a busy machine a right submission waits for the processor."""
    monkeypatch.setattr("grading.sandbox.WAITING", 300)
    body = f"time.sleep({attacks.SECONDS + 0.5})\nraise RuntimeError"
    result = run(sandbox, tmp_path / "waiting", body, outside, attacks.SECONDS)
    assert attacks.WENT_ON in result.reason
    assert result.seconds < attacks.SECONDS


def judge_source(box, folder, source):
    path = folder / "a3_vae_template.py"
    path.write_text(source)
    return judge_file(box, "vae", path, 20, False)


def test_environment_is_not_shown(sandbox, tmp_path):
    result = judge_source(sandbox, tmp_path, "import os\nresult = print(dict(os.environ))")
    assert "PATH" in result.output
    assert SECRET not in result.output


def test_a_reason_cannot_paint_the_terminal(sandbox, tmp_path):
    source = (
        METHODS_VAE + "class VAE(VAE):\n    def __init__(self): raise OSError('\\x1b[2J\\u202e')"
    )
    result = judge_source(sandbox, tmp_path, source)
    assert "\\x1b[2J\\u202e" in result.reason and result.reason.isprintable()


def test_deceiving_the_checks_is_visible(sandbox, tmp_path):
    assert judge_source(sandbox, tmp_path, METHODS_VAE).look == []
    lines = (
        "import sys",
        "f = getattr(sys, '_getframe')(0)",
        "import gc",
        "import ctypes",
        "m = sys.modules",
        "from grading import outcomes",
        "open('/etc/passwd')",
    )
    look = judge_source(sandbox, tmp_path, "\n".join(lines)).look
    what = ["frames", "objects of the interpreter", "ctypes", "sys.modules", "the checks' modules"]
    what.append("an absolute path")
    assert look == [f"a3_vae_template.py, line {i}: {word}" for i, word in enumerate(what, 2)]


def test_empty_template_is_not_judged(sandbox, tmp_path):
    source = "import torch.nn as nn\n\n\nclass VAE(nn.Module):\n    def forward(self, input):\n"
    result = judge_source(sandbox, tmp_path, f"{source}        raise NotImplementedError()\n")
    assert result.reason
    assert not result.is_wrong


def test_the_reason_names_modules_that_are_not_beside_the_file(sandbox, tmp_path):
    source = (ROOT / "a3_vae_template.py").read_text()
    result = judge_source(sandbox, tmp_path, source)
    assert result.reason.endswith("(not found beside the file, nor installed: harness)")


@pytest.mark.parametrize("source", ["print 'python 2'", "\0", "import missing_module_xyz; VAE = 1"])
def test_file_that_cannot_be_loaded_is_not_judged(sandbox, tmp_path, source):
    result = judge_source(sandbox, tmp_path, source)
    assert result.reason
    assert [(finding.check, finding.status) for finding in result.findings] == [("runs", "wrong")]


def test_folders_above_the_script_and_google_colab(sandbox, tmp_path):
    source = (
        f"{METHODS_VAE}\nimport os\nfrom google.colab import drive\ndrive.mount('/content/drive')\n"
        "os.makedirs('../../../data/mnist')\nfile = open('../../../data/mnist/x', 'w')\n"
    )
    result = judge_source(sandbox, tmp_path, source)
    assert result.is_judged, result.reason


@pytest.mark.thorough
def test_one_attacker_and_two_others_who_are_graded(sandbox, tmp_path, monkeypatch):
    for name in ("ann", "bob", "eve"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a3_vae_template.py").write_text(METHODS_VAE)
    eve = tmp_path / "eve"
    os.mkfifo(eve / "a3_gan_template.py")
    os.symlink(tmp_path / "ann" / "a3_vae_template.py", eve / "a3_nf_template.py")
    os.symlink("loop.py", eve / "loop.py")
    os.symlink("/dev/zero", eve / "data.bin")
    (eve / "a3_vae_template.py").write_bytes(b"[" * (1 << 21))
    attacks.write(eve / "..", "pass").rename(eve / "a3_vae_again.py")
    deep = os.open(eve, os.O_DIRECTORY)
    for _ in range(60):  # a path of more than 4,096 bytes
        os.mkdir("d" * 100, dir_fd=deep)
        deep, above = os.open("d" * 100, os.O_DIRECTORY, dir_fd=deep), deep
        os.close(above)
    os.close(deep)
    # One sandbox for all three: starting one takes seconds.
    monkeypatch.setattr(sandbox, "close", lambda: None)
    monkeypatch.setattr("grading.grader.Sandbox", lambda unsafe: sandbox)
    monkeypatch.setattr("grading.sandbox.require", lambda unsafe: sandbox)
    people = {}
    for person in grade(people_in(tmp_path), Memory(None), 1, 60, False, 0, lambda _: None):
        people[person.name] = person
    assert people["ann"].results["vae"].is_judged and people["bob"].results["vae"].is_judged
    reasons = {model: result.reason for model, result in people["eve"].results.items()}
    assert reasons["gan"] == "no regular file"
    assert reasons["nf"] == "a link"
    assert reasons["vae"] == "VAE fails: RuntimeError: the attack went on"  # of the other file
    assert people["eve"].others == ["a3_vae_template.py: larger than 1 MB"]
    assert "loop.py: a link out of eve/" in people["eve"].notes
    assert any("deeper than 20 folders" in note for note in people["eve"].notes)
