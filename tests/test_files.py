"""Files that are whole or absent, whatever interrupts the writing."""

import json
import os
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
    def full():
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left on device") as raised:
        save_watched(tmp_path / "x.pt", full)
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
