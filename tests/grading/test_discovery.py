"""Finding submissions in a folder that strangers filled."""

import csv
import io
import os
import shutil
import socket
import zipfile
from pathlib import Path

import pytest

from grading import inputs, report
from grading.discovery import NOBODY, discover
from grading.gathering import gather, look_at
from grading.inputs import Unreadable, read_regular
from grading.rubric import Rubric
from grading.sources import NoSource, read_source
from tests.grading.conftest import UNPACKED, people_in

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


def test_endings_in_upper_case_are_those_of_code(tmp_path):
    lay(
        tmp_path, {"A3_VAE_TEMPLATE.PY": "import gc\n" + VAE, "LAYERS.PY": "", "A3_GAN.IPYNB": "{}"}
    )
    (person,) = people_in(tmp_path)
    assert {*person.files} == {"vae", "gan"}
    assert look_at(gather(person.files["vae"], tmp_path))
    assert read_source(person.files["vae"]).text.endswith(VAE)
    with pytest.raises(NoSource):  # it is read as a notebook
        read_source(person.files["gan"])


def zip_of(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


A3 = "a3_vae_template.py"
GOOD, DAMAGED = zip_of({f"work/{A3}": VAE}), b"PK\3\4 and no more"
MOODLE = "Kim Lee_10012_assignsubmission_"
# What somebody hands in, and the name in the reports. A path that ends with / is an empty folder.
HAND_INS = {
    "an empty folder": ({"lee/": ""}, "lee"),
    "a folder of empty folders": ({"lee/src/": "", "lee/a/b/": ""}, "lee"),
    "an empty archive": ({"lee.zip": zip_of({})}, "lee"),
    "an empty file": ({"lee.tar.gz": b""}, "lee"),
    "a damaged archive": ({"lee.zip": DAMAGED}, "lee"),
    "a damaged archive in a folder": ({"lee/a3.zip": DAMAGED}, "lee"),
    "an archive in archives": ({"lee.zip": zip_of({"a/b.zip": zip_of({"c.zip": GOOD})})}, "lee"),
    "a 7z archive": ({"lee.7z": b"7z"}, "lee"),
    "a RAR archive": ({"lee.RAR": b"Rar!"}, "lee"),
    "an archive with an upper-case ending": ({"lee.ZIP": GOOD}, "lee"),
    "a PDF": ({"lee/report.pdf": "%PDF"}, "lee"),
    "a file that is too large": ({"lee/report.pdf": bytes(8192)}, "lee"),
    "hidden files": ({"lee/.DS_Store": "", "lee/.git/config": ""}, "lee"),
    "an archive of hidden files": ({"lee.zip": zip_of({".a": "", "__MACOSX/._b": ""})}, "lee"),
    "what macOS adds": ({f"lee/__MACOSX/._{A3}": ""}, "lee"),
    "a virtual environment": ({"lee/venv/lib/site.py": ""}, "lee"),
    "code of something else": ({"lee/hello.py": "print(1)"}, "lee"),
    "deep folders": ({f"lee/a/b/c/d/{A3}": VAE}, "lee"),
    "an upper-case name": ({f"lee/{A3.upper()}": VAE}, "lee"),
    "a name with digits": ({"s10012345 lee_2/": ""}, "s10012345 lee_2"),
    "a name that contains a version's": ({f"Harold Newman/{A3}": VAE}, "Harold Newman"),
    "a name in another case": ({f"ANNA/{A3}": VAE}, "ANNA"),
    "Moodle's folder": ({f"{MOODLE}file_/{A3}": VAE}, "Kim Lee_10012"),
    "Moodle's folder, empty": ({f"{MOODLE}file_/": ""}, "Kim Lee_10012"),
    "Moodle's text": ({f"{MOODLE}onlinetext_/onlinetext.html": ""}, "Kim Lee_10012"),
    "Moodle's archive": ({f"{MOODLE}file_a3.zip": DAMAGED}, "Kim Lee_10012"),
    "Moodle's RAR archive": ({f"{MOODLE}file_a3.rar": b"Rar!"}, "Kim Lee_10012"),
    "Moodle's archive without a name": ({f"{MOODLE}file_.zip": GOOD}, "Kim Lee_10012"),
    "Canvas's archive": ({"lee_10012345_a3.zip": DAMAGED}, "lee_10012345"),
    "Canvas's archive, empty": ({"lee_10012345_a3.zip": zip_of({})}, "lee_10012345"),
    "Canvas's archive without a name": ({"lee_10012345_.zip": GOOD}, "lee_10012345"),
    "Canvas's file in upper case": ({f"lee_10012345_20005_{A3.upper()}": VAE}, "lee_10012345"),
    "Canvas's hidden file": ({"lee_10012345_.DS_Store": ""}, "lee_10012345"),
    "Canvas's PDF": ({"lee_10012345_report.pdf": "%PDF"}, "lee_10012345"),
    "Blackboard's PDF": ({"A3_lee_attempt_2026-11-30-10-00-00_a.pdf": ""}, "lee"),
}
IN_FOLDERS = {f"{name}/{A3}": VAE for name in ("anna", "bob")}
AS_MOODLE = {f"{name}_assignsubmission_file_/{A3}": VAE for name in ("anna_1", "bob_2")}
AS_CANVAS = {f"{name}_{A3}": VAE for name in ("anna_12345", "bob_12346")}


def lay(folder, files):
    """Write files; a path that ends with / becomes an empty folder."""
    for name, content in files.items():
        path = folder / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(content.encode() if isinstance(content, str) else content)


@pytest.mark.parametrize("container", ["folder", "zip", "wrapped zip"])
@pytest.mark.parametrize("others", [IN_FOLDERS, AS_MOODLE, AS_CANVAS], ids=lambda o: next(iter(o)))
@pytest.mark.parametrize("what", HAND_INS)
def test_whatever_is_handed_in_its_person_is_in_every_report(
    tmp_path, monkeypatch, what, others, container
):
    monkeypatch.setattr(inputs, "MEMBER_BYTES", 4096)
    files, name = HAND_INS[what]
    lay(tmp_path / "class", others | files)
    path = tmp_path / "class"
    if container != "folder":
        root = "." if container == "zip" else "class"
        folder = path if container == "zip" else tmp_path
        path = Path(shutil.make_archive(str(tmp_path / "all"), "zip", folder, root))
    people = discover(path, Path(UNPACKED.name))
    prefix = "class/" if container == "wrapped zip" else ""
    whose = [person.name for person in people if person.is_person]
    there = [name.partition("_assign")[0].partition("_a3")[0].partition("/")[0] for name in others]
    assert sorted(whose) == sorted(f"{prefix}{who}" for who in [*there, name])
    rows = csv.DictReader(io.StringIO(report.to_csv(people, Rubric())))
    assert f"{prefix}{name}" in [row["name"] for row in rows]
    (person,) = (person for person in people if person.name == f"{prefix}{name}")
    has_code = any(content in (VAE, GOOD) for content in files.values()) or "in archives" in what
    assert bool(person.files) == has_code
    assert has_code or person.reason()


@pytest.mark.parametrize("what", HAND_INS)
def test_one_person_with_code_does_not_hide_another_without(tmp_path, what):
    files, name = HAND_INS[what]
    lay(tmp_path, {f"anna/{A3}": VAE} | files)
    anna, *rest = sorted(discover(tmp_path, Path(UNPACKED.name)), key=lambda person: person.name)
    if anna.name == NOBODY:  # a lone file without code may be the class's own
        assert [line.partition(":")[0] for line in anna.others] == [*files]
        (anna,) = rest
    else:
        assert sorted([anna.name, *(person.name for person in rest)]) == sorted(["anna", name])


def test_the_hand_out_beside_moodles_folders_does_not_make_them_one_persons(tmp_path):
    folders = {f"{MOODLE}file_/": "", "Ann_1_assignsubmission_file_/a.pdf": ""}
    lay(tmp_path, {A3: "class VAE:\n    raise NotImplementedError\n"} | folders)
    assert [person.name for person in people_in(tmp_path)] == ["Ann_1", "Kim Lee_10012"]


def test_numbered_pictures_beside_ones_own_folder_are_nobodys(tmp_path):
    lay(tmp_path, {f"src/{A3}": VAE, "epoch_100_samples.png": "", "loss_2000_curve.pdf": ""})
    person, nobody = discover(tmp_path, Path(UNPACKED.name))
    assert (person.name, nobody.name) == ("src", NOBODY)
    assert [line.partition(":")[0] for line in nobody.others] == [
        "epoch_100_samples.png",
        "loss_2000_curve.pdf",
    ]


def test_what_cannot_be_read_hides_no_group_and_is_noted_once_with_its_group(tmp_path):
    for group in ("monday", "tuesday"):
        lay(tmp_path / group, {f"ann/{A3}": VAE, f"bob/{A3}": VAE})
        os.symlink("/etc/hostname", tmp_path / group / "link.py")
    os.mkfifo(tmp_path / "tuesday" / "pipe")
    *people, nobody = discover(tmp_path, Path(UNPACKED.name))
    assert [p.name for p in people] == ["monday/ann", "monday/bob", "tuesday/ann", "tuesday/bob"]
    names = ["monday/link.py", "tuesday/link.py", "tuesday/pipe"]
    assert sorted(nobody.notes) == [f"{name}: no regular file" for name in names]


def test_all_that_a_course_platform_names_after_one_person_is_that_persons(tmp_path):
    lay(tmp_path, {f"{MOODLE}onlinetext_/onlinetext.html": "", f"{MOODLE}file_/{A3}": VAE})
    lay(tmp_path, {f"{MOODLE}file_flow.zip": DAMAGED, f"{MOODLE}file/utils.py": "x = 1"})
    (person,) = people_in(tmp_path)
    assert person.name == "Kim Lee_10012" and person.shown(person.files["vae"]) == A3
    assert person.notes == ["flow.zip: no readable archive: File is not a zip file"]
    assert person.others == ["utils.py: no model of the assignment", "1 other file: no code"]
