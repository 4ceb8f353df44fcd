"""Standard streams that cannot take what is written end nothing."""

import io
import os
import sys

import pytest

from harness import cli, streams


def closed():
    stream = io.TextIOWrapper(io.BytesIO())
    stream.close()
    return stream


def full():
    return open("/dev/full", "w")


def unread_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w")


STREAMS = {
    "missing": lambda: None,
    "closed": closed,
    "full": full,
    "unread": unread_pipe,
    "ascii": lambda: io.TextIOWrapper(io.BytesIO(), "ascii"),
}


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_whatever_becomes_of_the_output_the_work_is_done(monkeypatch, name, stream):
    behind, done = stream(), []
    monkeypatch.setattr(sys, name, behind)
    monkeypatch.setattr("harness.interrupts.raise_interrupted", lambda: None)

    def main(_):
        for _ in range(3):
            print("naïve 中 ±" * 3000, file=getattr(sys, name), flush=True)
        done.append(True)

    cli.run(main, lambda: None)
    assert done and getattr(sys, name) is behind
    if behind is not None:
        behind.close()  # as at the exit: nothing is left that could fail


def test_what_can_be_written_is_written_with_escapes(monkeypatch):
    behind = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(behind, "ascii"))
    with streams.tolerant():
        print("a ± b")
    assert behind.getvalue() == b"a \\xb1 b\n"


def test_a_file_never_takes_the_place_of_a_closed_stream(tmp_path):
    child = os.fork()
    if not child:
        status = 1
        try:
            os.closerange(0, 3)
            sys.stdout = sys.stderr = None
            with streams.tolerant(), open(tmp_path / "checkpoint.pt", "w") as file:
                status = int(file.fileno() <= 2)
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
