"""Without a sandbox that holds, nothing runs."""

import os
import signal
import subprocess
import sys
import time

import pytest

from grading import fork_server
from grading.sandbox import Sandbox, SandboxError, require
from grading.scratch import clear
from harness.errors import UsageError
from tests.conftest import ROOT
from tests.grading.conftest import METHODS_VAE

RUNS = "import pathlib\npathlib.Path({!r}).touch()\n"


@pytest.fixture
def submission(tmp_path):
    """A submission that leaves a file outside of any sandbox as soon as it runs."""
    path = tmp_path / "ann" / "a3_vae_template.py"
    path.parent.mkdir()
    path.write_text(f"{METHODS_VAE}\n{RUNS.format(str(tmp_path / 'it ran'))}")
    return path


def grading(*words, **environment):
    """The result of the command line."""
    return subprocess.run(
        [sys.executable, "-m", "grading", *map(str, words), "--fresh", "--no_training"],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def assert_refused(done, words, tmp_path):
    assert done.returncode == 2 and not done.stdout
    assert words in done.stderr and "--unsafe" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "it ran").exists()


@pytest.mark.thorough
def test_without_bubblewrap_nothing_runs(submission, tmp_path):
    done = grading(submission, PATH=str(tmp_path))
    assert_refused(done, "install the packages bubblewrap", tmp_path)


@pytest.mark.thorough
def test_without_user_namespaces_nothing_runs(submission, tmp_path):
    """The number of namespaces is limited in one of its own: it takes no rights outside."""
    line = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    start = ["unshare", "-U", "-r", "sh", "-c", line, "sh"]
    if subprocess.run([*start, "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces here to forbid them in")
    done = subprocess.run(
        [*start, sys.executable, "-m", "grading", str(submission), "--fresh"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert_refused(done, "there is no sandbox", tmp_path)


# What bubblewrap says and does where it is forbidden: the sysctl user.max_user_namespaces is 0,
# Ubuntu's AppArmor or Docker's profile; and other programs of its name.
FORBIDDEN = {
    "Creating new namespace failed: nesting depth or": "#!/bin/sh\necho 'bwrap: Creating new "
    "namespace failed: nesting depth or /proc/sys/user/max_*_namespaces exceeded (ENOSPC)' >&2\n"
    "exit 1\n",
    "setting up uid map: Permission denied": "#!/bin/sh\necho 'bwrap: setting up uid map: "
    "Permission denied' >&2\nexit 1\n",
    "the sandbox has ended": "#!/bin/sh\nexit 0\n",
    "bwrap cannot be started: Exec format error": "no program",
}


def fake_bubblewrap(folder, source):
    folder.mkdir()
    (folder / "bwrap").write_text(source)
    (folder / "bwrap").chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@pytest.mark.parametrize("words", FORBIDDEN)
def test_a_bubblewrap_that_is_forbidden_gives_its_reason(tmp_path, monkeypatch, words):
    monkeypatch.setenv("PATH", fake_bubblewrap(tmp_path / "bin", FORBIDDEN[words]))
    with pytest.raises(UsageError, match=words) as error:
        require(unsafe=False)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.thorough
def test_where_bubblewrap_is_forbidden_nothing_runs(submission, tmp_path):
    words, source = next(iter(FORBIDDEN.items()))
    done = grading(submission, PATH=fake_bubblewrap(tmp_path / "bin", source))
    assert_refused(done, words, tmp_path)


@pytest.mark.thorough
def test_the_probe_finds_every_open_door():
    """Without a sandbox all are open: this is the server that `--unsafe` runs."""
    words = "does not hold: a submission could "
    with Sandbox(unsafe=True) as box, pytest.raises(SandboxError, match=words) as error:
        box.start()
        box._probe()
    doors = ["connect", "read the user's files", "see other processes", "start a process"]
    doors += ["start a program", "use privileges", "write outside its folder"]
    assert all(door in str(error.value) for door in doors)


@pytest.mark.slow
def test_unsafe_runs_without_one_and_leaves_nothing(submission, tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    done = grading(submission, "--unsafe", PATH="", TMPDIR=str(tmp_path / "tmp"))
    assert done.stderr.splitlines()[0] == "grading: --unsafe: submissions run with your rights"
    assert (tmp_path / "it ran").exists()
    assert "VAE: " in done.stdout and "could not" not in done.stdout
    assert not os.listdir(tmp_path / "tmp")


ENDLESS = """
import sys
from pathlib import Path
from grading.grader import judge_file
from grading.sandbox import Sandbox

with Sandbox() as box:
    box.start()
    print(box.process.pid, flush=True)
    judge_file(box, "vae", Path(sys.argv[1]), 99, False)
"""


def processes_of(pid):
    """The process and all below it."""
    listing = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True).stdout
    parents = dict(map(int, line.split()) for line in listing.splitlines())
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found & parents.keys()


def comes_true(condition, seconds=20):
    ends = time.monotonic() + seconds
    while not (done := condition()) and time.monotonic() < ends:
        time.sleep(0.1)
    return done


BUSY_CHILD = """
import os
pid = os.fork()
while pid == 0:
    pass
os.wait()
"""


def test_the_processor_time_of_children_counts():
    """Without a sandbox a submission may start some."""
    words = [sys.executable, "-I", "-S", "-c", BUSY_CHILD]
    with subprocess.Popen(words, start_new_session=True) as process:
        try:
            assert comes_true(lambda: fork_server.processor_seconds(process.pid) > 0.5, 60)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    assert comes_true(lambda: fork_server.processor_seconds(process.pid) == 0, 60)


@pytest.mark.slow
def test_a_killed_grader_leaves_no_process(sandbox, tmp_path):
    """Not even as root, where the sandbox's parent may not signal it."""
    path = tmp_path / "a3_vae_template.py"
    path.write_text("class VAE:\n    while True:\n        pass\n")
    words = [sys.executable, "-c", ENDLESS, str(path)]
    grader = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    pid = int(grader.stdout.readline())
    n = 3 + (os.getuid() == 0)  # bubblewrap, as root twice, the server and the file's process
    assert comes_true(lambda: len(processes_of(pid)) == n)
    family = processes_of(pid)
    grader.kill(), grader.wait(), grader.stdout.close()
    assert comes_true(lambda: not any(processes_of(pid) for pid in family))


@pytest.mark.slow
def test_an_ended_sandbox_starts_again(sandbox):
    sandbox.end()
    request = {"outside": {"folder": "/nowhere", "files": [], "unix": "/nowhere", "port": 1}}
    assert sandbox.ask(request, 20)["results"] == "[]"


def test_a_deep_and_closed_folder_is_emptied(tmp_path):
    os.symlink(ROOT, tmp_path / "link")
    (tmp_path / "file").touch()
    folder = os.open(tmp_path, os.O_DIRECTORY)
    for _ in range(300):
        os.mkdir("d" * 200, dir_fd=folder)
        folder, above = os.open("d" * 200, os.O_DIRECTORY, dir_fd=folder), folder
        os.close(above)
    os.fchmod(folder, 0)
    os.close(folder)
    clear(tmp_path)
    assert os.listdir(tmp_path) == [] and ROOT.exists()


@pytest.mark.thorough
def test_the_class_folder_is_not_on_the_search_path(tmp_path):
    """A class with modules named as those that the grader imports."""
    for name in ("torch", "numpy", "csv", "harness", "datasets"):
        (tmp_path / f"{name}.py").write_text(RUNS.format(str(tmp_path / "it ran")))
    done = subprocess.run(
        [sys.executable, "-m", "grading", "nowhere"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stderr.startswith("grading: error: ") and "no such file" in done.stderr
    assert not (tmp_path / "it ran").exists()


def test_what_ends_a_child_before_its_results_is_in_its_output(tmp_path, monkeypatch):
    def child(*_):
        raise OSError("libseccomp is missing")

    monkeypatch.setattr(fork_server, "_child", child)
    request = {"sandboxed": False, "seconds": 10, "wall_seconds": 50}
    reading, writing = (os.fdopen(end, mode) for end, mode in zip(os.pipe(), "rw"))
    with reading, writing:
        answer = fork_server._run(request, [tmp_path], (reading, writing))
    assert answer["results"] == ""
    assert answer["output"].strip().endswith("OSError: libseccomp is missing")
