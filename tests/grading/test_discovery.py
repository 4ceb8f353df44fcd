"""Finding submissions in a folder that strangers filled."""

import os
import socket

import pytest

from grading import discovery, inputs
from grading.discovery import gather
from grading.inputs import Unreadable, read_regular
from tests.grading.conftest import people_in

VAE = "class VAE:\n    pass\n"


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    os.symlink("/etc/hostname", tmp_path / "link")
    os.symlink("/dev/zero", tmp_path / "zero")
    (tmp_path / "folder").mkdir()
    (tmp_path / "large").write_bytes(bytes(inputs.SOURCE_BYTES + 1))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for path in sorted(tmp_path.iterdir()):
            with pytest.raises(Unreadable):
                read_regular(path)
    with pytest.raises(Unreadable, match="File name too long"):
        read_regular(tmp_path / ("x" * 5000))


@pytest.mark.skipif(os.getuid() == 0, reason="root reads everything")
def test_an_unreadable_folder_is_one_line(tmp_path):
    (tmp_path / "ann" / "closed").mkdir(parents=True)
    (tmp_path / "ann" / "closed").chmod(0)
    (person,) = people_in(tmp_path)
    assert person.notes == ["closed: cannot be searched: Permission denied"]


def test_a_large_file_does_not_keep_small_ones_out(tmp_path):
    (tmp_path / "a").mkdir()
    with open(tmp_path / "checkpoint.pt", "wb") as file:
        file.truncate(discovery.COPIED_BYTES + 1)
    for name in ("a/config.json", "a3_vae_template.py", ".hidden", "layers.py"):
        (tmp_path / name).touch()
    files = gather(tmp_path / "a3_vae_template.py", tmp_path)
    assert files.keys() == {"a/config.json", "a3_vae_template.py", "layers.py"}


def test_links_in_a_persons_folder_are_followed_and_others_are_not(tmp_path):
    (tmp_path / "bob").mkdir()
    (tmp_path / "bob" / "secret.py").write_text("points = 9")
    ann = tmp_path / "ann"
    for name in ("part1/a3_vae_template.py", "shared/layers.py"):
        (ann / name).parent.mkdir(parents=True)
        (ann / name).write_text(VAE)
    os.symlink("../shared/layers.py", ann / "part1" / "layers.py")
    os.symlink("../../bob/secret.py", ann / "part1" / "secret.py")
    os.symlink("../bob", ann / "friend")
    os.symlink(tmp_path / "bob", tmp_path / "zoe")
    ann, bob, zoe = people_in(tmp_path)
    files = gather(ann.files["vae"], ann.root_of(ann.files["vae"]))
    assert files.keys() == {"a3_vae_template.py", "layers.py"}
    assert ann.notes == ["friend: a link out of ann/", "part1/secret.py: a link out of ann/"]
    assert zoe.notes == ["a link to a folder: not followed"]
    assert bob.reason() == "no file of the assignment"


def test_many_files_are_not_all_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "N_ENTRIES", 10)
    for i in range(11):
        (tmp_path / "ann").mkdir(exist_ok=True)
        (tmp_path / "ann" / f"{i:02}.txt").touch()
    (person,) = people_in(tmp_path)
    assert person.notes == [".: more than 10 files: the rest is not looked at"]


def test_classes_are_found_without_parsing(tmp_path):
    for name, text in {
        "ann": "x = " + "(" * 100_000 + "\nclass VAE(nn.Module):\n",
        "bob": "import torch\rclass VAE(nn.Module):\r    pass\r",
        "eve": "class VAEncoder:\n    pass\n# class VAE\n",
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.py").write_text(text)
    found = [(person.name, *person.files) for person in people_in(tmp_path)]
    assert found == [("ann", "vae"), ("bob", "vae"), ("eve",)]


def test_a_path_that_is_too_long_for_a_file_is_that_persons(tmp_path):
    """The folder can be listed by its path, the file in it can't be looked at."""
    for name in ("ann", "bob"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a3_vae_template.py").write_text(VAE)
    folder, length = os.open(tmp_path / "ann", os.O_DIRECTORY), len(str(tmp_path / "ann"))
    while length < 4080:
        name = "d" * min(250, 4080 - length)
        os.mkdir(name, dir_fd=folder)
        folder, above = os.open(name, os.O_DIRECTORY, dir_fd=folder), folder
        os.close(above)
        length += 1 + len(name)
    os.close(os.open("a3_gan_template.py", os.O_CREAT, dir_fd=folder))
    os.close(folder)
    ann, bob = people_in(tmp_path)
    assert ann.notes == ["cannot be searched: File name too long"]
    assert bob.files.keys() == {"vae"}


def test_unchanged_files_of_this_project_need_no_look():
    name = "harness/interrupts.py"
    content = (discovery.ROOT / name).read_bytes()
    assert discovery.look_at({name: content}) == []
    assert discovery.look_at({"interrupts.py": content})  # a file of the submission's own
    changed = discovery.look_at({name: content + b"\nimport gc\n"})
    assert changed[-1].endswith("objects of the interpreter")
