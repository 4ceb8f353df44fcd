"""A submission can harm nothing but itself: it ends as one line, whatever it does."""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from grading.discovery import COPIED_BYTES, discover, gather
from grading.grader import Memory, grade, judge_file
from grading.sandbox import readable
from tests.conftest import ROOT
from tests.grading import attacks
from tests.grading.conftest import METHODS_VAE, SECRET


class Outside:
    """What attacks reach for: files, sockets that listen, and the state of the machine."""

    def __init__(self, folder, stack):
        self.canary, self.name = folder / "canary", secrets.token_hex(8)
        self.canary.mkdir()
        (self.canary / "file").write_text(SECRET)
        (self.canary / "neighbour.py").write_text("")
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
        packages = [ROOT / "grading", ROOT / "datasets"]
        return {
            "files": {path.name: path.read_text() for path in self.canary.iterdir()},
            "settings": [path.read_text() for path in settings],
            "packages": [(p, p.stat().st_mtime_ns) for f in packages for p in f.rglob("*.py")],
            "shared memory": Path("/proc/sysvipc/shm").read_text().count("\n"),
            "queues": Path("/proc/sysvipc/msg").read_text().count("\n"),
            "left behind": sorted(map(str, Path("/tmp").glob("grading-*"))),
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
    assert result.reason and result.reason.isprintable() and not result.findings
    assert len(result.output) <= 20_000
    return result


def test_there_are_forty_attacks():
    assert len(attacks.ESCAPES | attacks.ENDS) >= 40


@pytest.mark.parametrize("name", attacks.ESCAPES)
def test_nothing_outside_is_reached(sandbox, tmp_path, outside, name):
    result = run(sandbox, tmp_path / "attacker", attacks.ESCAPES[name], outside)
    assert "contained: " in result.output, result.reason


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n in attacks.LASTING else n for n in attacks.ENDS],
)
def test_it_ends_as_one_line_and_the_next_file_is_judged(sandbox, tmp_path, outside, name):
    body, words = attacks.ENDS[name]
    seconds = 2 if "longer than" in words else 20
    assert words in run(sandbox, tmp_path / "attacker", body, outside, seconds).reason
    process = sandbox.process
    left = "raise OSError([*os.listdir(os.environ['HOME']), *os.listdir('/dev/shm')])"
    after = run(sandbox, tmp_path / "next", left, outside)
    assert after.output == "contained: OSError ['1']\n"  # the folder of its own
    assert sandbox.process is process
