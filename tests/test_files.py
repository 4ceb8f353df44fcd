"""Files that are whole or absent, whatever interrupts the writing."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading

import pytest
import torch

from harness import files
from harness.errors import Interrupted
from harness.interrupts import STOP_SIGNALS
from tests.conftest import ROOT


class Watched:
    """A file that calls `at_one_kilobyte()` when it has grown to that."""

    def __init__(self, file, at_one_kilobyte):
        self.file, self.at_one_kilobyte = file, at_one_kilobyte

    def write(self, data):
        if self.file.tell() + len(data) > 1024:
            self.at_one_kilobyte()
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)


def save_watched(path, at_one_kilobyte):
    tensors = {"a": torch.zeros(10_000)}
    files.write_whole(path, lambda file: torch.save(tensors, Watched(file, at_one_kilobyte)))


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_file_is_whole_or_as_it_was(tmp_path, error):
    path, previous = tmp_path / "x", tmp_path / "previous"
    path.write_text("before")

    def fail_halfway(file):
        file.write(b"half")
        raise error

    with pytest.raises(type(error)) as raised:
        files.write_whole(path, fail_halfway, previous)
    if isinstance(error, OSError):
        assert raised.value.filename == str(path)
    assert [each.name for each in tmp_path.iterdir()] == ["x"] and path.read_text() == "before"


def test_the_file_before_is_kept_under_another_name(tmp_path):
    path, previous = tmp_path / "x", tmp_path / "previous"
    for content in (b"1", b"2", b"3"):
        files.write_whole(path, lambda file, content=content: file.write(content), previous)
    assert (path.read_bytes(), previous.read_bytes()) == (b"3", b"2")
    assert len(list(tmp_path.iterdir())) == 2


def test_the_content_is_on_the_disk_before_the_file_has_its_name(tmp_path, monkeypatch):
    path, synced = tmp_path / "x", []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(path.exists()), fsync(fd)))
    files.write_json(path, {"a": [1]})
    assert synced == [False] and json.loads(path.read_text()) == {"a": [1]}


def test_the_failed_write_behind_torch_save_s_error_is_the_one_reported(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        with pytest.raises(OSError, match="File too large") as raised:
            save_watched(tmp_path / "x.pt", lambda: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert raised.value.filename == str(tmp_path / "x.pt") and not list(tmp_path.iterdir())


@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_a_signal_waits_until_a_file_is_written(tmp_path, signum):
    def interrupt(signum, _):
        raise Interrupted(signum)

    before = {each: signal.signal(each, interrupt) for each in STOP_SIGNALS}
    try:
        with pytest.raises(Interrupted) as raised:
            save_watched(tmp_path / "x.pt", lambda: signal.raise_signal(signum))
        assert all(signal.getsignal(each) is interrupt for each in before)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert raised.value.signum == signum
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]
    assert torch.equal(torch.load(tmp_path / "x.pt")["a"], torch.zeros(10_000))


def test_other_threads_can_write_too(tmp_path):
    thread = threading.Thread(target=files.write_json, args=(tmp_path / "x", 1))
    thread.start()
    thread.join()
    assert (tmp_path / "x").read_text() == "1\n"


@pytest.mark.parametrize(
    "error",
    [FileNotFoundError(2, "No such file or directory", "latex"), RuntimeError("of the drawing")],
)
def test_an_error_that_is_not_of_the_file_keeps_its_own_name(tmp_path, error):
    def draw(file):
        try:
            raise OSError(5, "of something else")
        except OSError:
            raise error from None

    with pytest.raises(type(error)) as raised:
        files.write_whole(tmp_path / "samples_000.png", draw)
    assert raised.value is error and not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["link", "file"])
def test_nothing_that_is_planted_is_written_to_or_removed(tmp_path, kind):
    victim, planted = tmp_path / "victim", tmp_path / "checkpoint.pt.partial"
    victim.write_text("mine")
    if kind == "link":
        planted.symlink_to(victim)
    else:
        planted.write_text("mine")
    for content in (b"1", b"2"):
        files.write_whole(tmp_path / "checkpoint.pt", lambda file, c=content: file.write(c))
    assert victim.read_text() == planted.read_text() == "mine"
    assert (tmp_path / "checkpoint.pt").read_bytes() == b"2" and len(list(tmp_path.iterdir())) == 3


def test_only_what_killed_processes_have_left_is_removed(tmp_path):
    for name in ("checkpoint.pt.0123abcd.partial", "mine.partial", "checkpoint.pt"):
        (tmp_path / name).touch()
    files.remove_partial(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"mine.partial", "checkpoint.pt"}


def test_a_fifo_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(OSError, match="not a regular file"):
        files.read_regular(tmp_path / "config.json")


def test_a_folder_that_cannot_be_written_to_is_found_out_and_left_as_it_is(tmp_path):
    files.check_writable(tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError) as raised:
        files.check_writable(tmp_path / "absent")
    assert raised.value.filename == str(tmp_path / "absent")


needs_locks = pytest.mark.skipif(files.fcntl is None, reason="needs locks on folders")


@needs_locks
def test_a_folder_has_one_lock_that_ends_with_its_process(tmp_path):
    code = "import sys; from harness import files; files.try_lock(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, check=True)
    descriptor = files.try_lock(tmp_path)
    with pytest.raises(BlockingIOError):
        files.try_lock(tmp_path)
    assert files.is_locked(tmp_path)
    files.unlock(descriptor)
    assert not files.is_locked(tmp_path) and not files.is_locked(tmp_path / "not there")
    os.close(files.try_lock(tmp_path))


def test_without_locks_nothing_is_locked(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)
    assert files.try_lock(tmp_path) is None and not files.is_locked(tmp_path)
