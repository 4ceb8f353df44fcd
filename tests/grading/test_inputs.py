"""Whatever is handed in: archives, notebooks, downloads without folders, groups, several files."""

import io
import json
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grading import inputs
from grading.inputs import Unreadable, flat_name, unpack
from grading.sources import NoSource, read_source, without_magics
from tests.grading.conftest import UNPACKED, people_in

VAE = "class VAE:\n    pass\n"
GAN = "class Generator:\n    pass\n\n\nclass Discriminator:\n    pass\n"
FLOW = "class Flow:\n    pass\n"


def write(folder, **files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def names(people):
    return {person.name: {m: person.shown(f) for m, f in person.files.items()} for person in people}


@pytest.mark.parametrize(
    "name, expected",
    [
        ("lee_123_a3_vae_template.py", ("lee_123", "a3_vae_template.py")),
        ("leeann_LATE_4711_99120_all.ipynb", ("leeann_4711", "all.ipynb")),
        ("Ann Lee_77_assignsubmission_file_vae.py", ("Ann Lee_77", "vae.py")),
        ("Ann Lee_77_assignsubmission_file_.zip", ("Ann Lee_77", None)),
        ("Ann Lee_77_assignsubmission_file", ("Ann Lee_77", None)),
        ("lee_123_.zip", ("lee_123", None)),
        ("ann_lee_A3_GAN_TEMPLATE.PY", ("ann_lee", "A3_GAN_TEMPLATE.PY")),
        ("A3_s123_attempt_2021-03-01-12-00-00_a3.zip", ("s123", "a3.zip")),
        ("ann_lee_a3_gan_template.py", ("ann_lee", "a3_gan_template.py")),
        ("a3_vae_template.py", None),
        ("a3_vae_template_v2.py", None),
        ("helper.py", None),
    ],
)
def test_whose_a_file_of_a_download_is(name, expected):
    """None in the place of a file's own name is the whole name: no file gets a hidden one."""
    assert flat_name(name) == (expected and (expected[0], expected[1] or name))


def test_people_of_a_download_are_not_mixed(tmp_path):
    files = {"lee_123_a3_vae_template.py": VAE, "lee_123_utils.py": "", "kim_9_1.pdf": ""}
    files |= {"lee_124_model.py": VAE, "lee_124_a3_gan_template.py": GAN, "kim_900_report.pdf": ""}
    write(tmp_path, **files)
    people = {person.name: person for person in people_in(tmp_path)}
    assert people.keys() == {"lee_123", "lee_124", "kim_900"}
    assert people["lee_123"].files.keys() == {"vae"}
    assert people["lee_123"].files["vae"].with_name("utils.py").exists()
    assert people["lee_124"].files.keys() == {"vae", "gan"}
    assert people["kim_900"].reason() == "no file of the assignment"


def test_one_persons_folder_stays_one(tmp_path):
    write(tmp_path, **{"a3_vae_template.py": VAE, "old/a3_vae_template.py": VAE, "data/x.txt": ""})
    (person,) = people_in(tmp_path)
    assert person.others[0] == "old/a3_vae_template.py: judged is the VAE in a3_vae_template.py"


@pytest.mark.parametrize("parts", [("part 1", "part 2"), ("src", "experiments"), ("v1", "vae_v2")])
def test_parts_of_one_persons_work_are_no_people(tmp_path, parts):
    files = {f"ann/{part}/vae.py": VAE for part in parts}
    write(tmp_path, **files)
    for path, name in ((tmp_path, "ann"), (tmp_path / "ann", "ann")):
        (person,) = people_in(path)
        assert person.name == name and len(person.files) == 1
        (other,) = person.others
        assert "judged is the VAE in" in other


def test_groups_and_solutions_beside_people(tmp_path):
    for group in ("a", "b"):
        write(tmp_path / "groups" / group, **{"ann/vae.py": VAE, "bob/vae.py": VAE})
    assert {*names(people_in(tmp_path / "groups"))} == {"a/ann", "a/bob", "b/ann", "b/bob"}
    write(tmp_path / "class", **{f"{name}/vae.py": VAE for name in ("ann", "bob")})
    write(tmp_path / "class", **{"a3_vae_template.py": VAE})
    assert {*names(people_in(tmp_path / "class"))} == {"ann", "bob", "class"}


def test_several_models_in_a_file_and_a_model_in_several(tmp_path):
    training = "from gen import Generator\nimport disc\n\n\ndef main():\n    pass\n"
    write(tmp_path, **{"ann/all.py": VAE + GAN + FLOW, "bob/train.py": training})
    halves = GAN.split("\n\n\n")
    write(tmp_path / "bob", **{"gen.py": halves[0], "disc.py": halves[1]})
    found = names(people_in(tmp_path))
    assert found["ann"] == dict.fromkeys(("vae", "gan", "nf"), "all.py")
    assert found["bob"] == {"gan": "train.py"}


def tar_of(path, members, mode):
    with tarfile.open(path, mode) as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("ending", ["zip", "tar", "tar.gz", "tgz", "tar.bz2", "tar.xz"])
def test_archives_in_archives_are_unpacked(tmp_path, ending):
    inner, outer = tmp_path / "inner.zip", tmp_path / "class" / f"ann.{ending}"
    outer.parent.mkdir()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("work/a3_vae_template.py", VAE)
    if ending == "zip":
        with zipfile.ZipFile(outer, "w") as archive:
            archive.write(inner, "deep/inner.zip")
    else:
        kind = {"gz": "gz", "tgz": "gz", "bz2": "bz2", "xz": "xz"}.get(ending.split(".")[-1], "")
        tar_of(outer, [(tarfile.TarInfo("deep/inner.zip"), inner.read_bytes())], f"w:{kind}")
    found = names(people_in(outer.parent))
    assert found == {"ann": {"vae": "deep/inner.zip/work/a3_vae_template.py"}}


def files_below(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


EVIL = (
    "../evil.py",
    "/evil.py",
    "a/../../evil.py",
    "C:/evil.py",
    "x" * 300 + ".py",
    "d/" * 30 + "x",
)


def test_no_archive_reaches_out_of_its_folder(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in (*EVIL, "..\\evil.py", "good.py", "good.py"):
            archive.writestr(name, VAE)
        link = zipfile.ZipInfo("link.py")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    members = [(tarfile.TarInfo(name), VAE.encode()) for name in (*EVIL, "good.py")]
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
        special = tarfile.TarInfo(f"special{kind.decode()}.py")
        special.type, special.linkname = kind, "/etc/passwd"
        members.append((special, b""))
    tar_of(tmp_path / "a.tar.gz", members, "w:gz")
    (tmp_path / "scratch").mkdir()
    for name, n_notes in (("a.zip", 9), ("a.tar.gz", 10)):
        folder, notes = unpack(tmp_path / name, tmp_path / "scratch")
        assert files_below(folder) == {"good.py"}
        assert len(notes) == n_notes, notes
    outside = {str(path.relative_to(tmp_path)) for path in tmp_path.glob("*")}
    assert outside == {"a.zip", "a.tar.gz", "scratch"} and not Path("/evil.py").exists()


def test_bombs_and_rubbish_end_as_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "MEMBER_BYTES", 1 << 16)
    monkeypatch.setattr(inputs, "UNPACKED_BYTES", 1 << 17)
    monkeypatch.setattr(inputs, "STREAM_BYTES", 1 << 20)
    monkeypatch.setattr(inputs, "N_ENTRIES", 50)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("large.py", bytes(1 << 24))
        for i in range(9):
            archive.writestr(f"{i}.py", bytes(1 << 15))
    folder, notes = unpack(tmp_path / "bomb.zip", tmp_path)
    assert len(files_below(folder)) == 4 and len(notes) == 6
    liar = (
        (tmp_path / "bomb.zip").read_bytes().replace((1 << 24).to_bytes(4, "little"), b"\1\0\0\0")
    )
    (tmp_path / "liar.zip").write_bytes(liar)
    folder, notes = unpack(tmp_path / "liar.zip", tmp_path)
    assert all(path.stat().st_size <= 1 << 16 for path in folder.iterdir())
    tar_of(tmp_path / "bomb.tar.gz", [(tarfile.TarInfo("x.py"), bytes(1 << 24))] * 2, "w:gz")
    _, notes = unpack(tmp_path / "bomb.tar.gz", tmp_path)
    assert len(notes) == 2 and "becomes larger" in notes[-1]
    tar_of(tmp_path / "many.tar", [(tarfile.TarInfo(str(i)), b"") for i in range(60)], "w")
    folder, notes = unpack(tmp_path / "many.tar", tmp_path)
    assert len(files_below(folder)) == 50 and "more than 50 files" in notes[0]
    for name, content in (("x.zip", b"PK"), ("x.tar.gz", b"\x1f\x8b"), ("x.tar", b"a" * 600)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(Unreadable):
            unpack(tmp_path / name, tmp_path)


def test_a_notebooks_code_is_its_cells_without_magics(tmp_path):
    cells = [
        "%matplotlib inline\nx = !ls\ny = 7 % 4\nif y:\n    %time\n",
        "%%bash\nls",
        "%%time\nz = 1",
    ]
    code = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None}
    content = {"metadata": {}, "nbformat": 4, "nbformat_minor": 4}
    content["cells"] = [code | {"source": cell} for cell in cells]
    content["cells"].insert(0, {"cell_type": "markdown", "metadata": {}, "source": "# not code ("})
    (tmp_path / "a.ipynb").write_text(json.dumps(content))
    source = read_source(tmp_path / "a.ipynb")
    values = {}
    exec(compile(source.text, "a", "exec"), values)
    assert (values["y"], values["z"]) == (3, 1)
    line = source.text.splitlines().index("z = 1") + 1
    assert source.place(line) == "a.ipynb, code cell 3, line 2"
    assert without_magics("help?\nx = a if b else c\n") == "pass\nx = a if b else c\n"
    for text in ("{", "[1]", "{}", '{"cells": 3, "nbformat": 4, "nbformat_minor": 2}', "[" * 10**5):
        (tmp_path / "b.ipynb").write_text(text)
        with pytest.raises(NoSource):
            read_source(tmp_path / "b.ipynb")


VILE = "\x1b[2J\u202e\r\n.py"


def vile_zip(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, mode in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, VAE)


# Archives whose members all have to stay out, or inside under their own names.
ODD = {
    "device nodes": [("a.py", stat.S_IFCHR), ("b.py", stat.S_IFBLK)],
    "pipes and sockets": [
        (f"{i}.py", kind) for i, kind in enumerate((stat.S_IFIFO, stat.S_IFSOCK))
    ],
    "a file that is a folder, too": [("a.py", 0), ("a.py/b.py", 0)],
    "control characters": [(VILE, 0), (f"{VILE}/../x", 0), (f"d\x07/{VILE}", 0)],
    "dots": [("./../x.py", 0), ("a/./../../x.py", 0), ("...py", 0), ("a//x.py", 0), ("..", 0)],
    "other separators": [("..\\..\\x.py", 0), ("\\\\host\\share.py", 0), ("C:x.py", 0)],
    "hidden ones": [(".git/hooks/x.py", 0o100755), (".bashrc", 0), ("__MACOSX/a.py", 0)],
    "no name": [("", 0), ("/", 0), (" ", 0)],
}


@pytest.mark.parametrize("name", ODD)
def test_odd_members_of_an_archive_stay_in_it_or_out(tmp_path, name):
    (tmp_path / "class").mkdir()
    vile_zip(tmp_path / "class" / "ann.zip", [*ODD[name], ("a3_vae_template.py", 0)])
    (tmp_path / "scratch").mkdir()
    folder, notes = unpack(tmp_path / "class" / "ann.zip", tmp_path / "scratch")
    assert (folder / "a3_vae_template.py").read_text() == VAE
    for path in tmp_path.rglob("*"):
        below = path.is_relative_to(folder) or path in folder.parents or path == folder
        assert below or path.parent.name == "class" or path.name in ("class", "scratch")
        assert path.is_dir() or path.is_file() and not path.is_symlink()
    assert all(note.isprintable() and str(tmp_path) not in note for note in notes)
    (person,) = people_in(tmp_path / "class")
    assert person.files.keys() == {"vae"}
    assert all(line.isprintable() for line in (*person.notes, *person.others))


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The bytes of small archives, by ending."""
    folder, found = tmp_path_factory.mktemp("archives"), {}
    for ending, mode in (("zip", ""), ("tar", "w:"), ("tar.gz", "w:gz"), ("tar.xz", "w:xz")):
        path = folder / f"a.{ending}"
        if ending == "zip":
            vile_zip(path, [("a.py", 0), ("b/c.py", 0)])
        else:
            tar_of(
                path, [(tarfile.TarInfo(name), VAE.encode()) for name in ("a.py", "b/c.py")], mode
            )
        found[ending] = path.read_bytes()
    return found


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_damaged_archive_is_unpacked_in_part_or_unreadable(archives, data):
    """Bytes are changed, cut off or repeated anywhere."""
    ending = data.draw(st.sampled_from(sorted(archives)))
    content = bytearray(archives[ending])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        change = data.draw(st.sampled_from(["byte", "cut", "repeat"]))
        if change == "byte":
            content[at] = data.draw(st.integers(0, 255))
        elif change == "cut":
            del content[at : at + data.draw(st.integers(1, 40))]
        else:
            content[at:at] = content[at : at + 64]
        content = content or bytearray(b"x")
    folder = Path(UNPACKED.name)
    (folder / f"fuzzed.{ending}").write_bytes(content)
    try:
        _, notes = unpack(folder / f"fuzzed.{ending}", folder)
    except Unreadable as reason:
        notes = [str(reason)]
    assert all(note.isprintable() and str(folder) not in note for note in notes)


@pytest.mark.thorough
def test_a_hundred_thousand_entries_are_one_line(tmp_path):
    with zipfile.ZipFile(tmp_path / "ann.zip", "w") as archive:
        archive.writestr("a3_vae_template.py", VAE)
        for i in range(100_000):
            archive.writestr(f"{i}.txt", b"")
    folder, notes = unpack(tmp_path / "ann.zip", tmp_path)
    assert len(files_below(folder)) == inputs.N_ENTRIES
    assert notes == ["more than 10,000 files: the rest is not unpacked"]


A3 = "a3_vae_template.py"
FLAT_NAMES = [f"lee_123_{rest}" for rest in ("..", ".", "...", VILE, "~", "-rf", A3)]
FLAT_NAMES += [f"{who}_77_{A3}" for who in ("..", ".", VILE, "=1+1", "~", " ")]


def test_odd_names_in_a_download_are_read_or_noted(tmp_path):
    (tmp_path / "class").mkdir()
    for name in FLAT_NAMES:
        (tmp_path / "class" / name).write_text(VAE)
    people = {person.name: person for person in people_in(tmp_path / "class")}
    assert people["lee_123"].files["vae"].read_text() == VAE
    assert sum("vae" in person.files for person in people.values()) == 5  # no hidden ones
    assert all(name.isprintable() for name in people)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["class"]
    assert sorted(path.name for path in (tmp_path / "class").iterdir()) == sorted(FLAT_NAMES)


def test_no_file_of_a_download_is_lost_to_another_of_its_name(tmp_path):
    write(tmp_path, **{"lee_123_111_a3_vae_template.py": "1\n" + VAE, "lee_123_222_utils.py": ""})
    write(tmp_path, **{"lee_LATE_123_333_a3_vae_template.py": VAE})
    (person,) = people_in(tmp_path)
    assert person.files.keys() == {"vae"}
    assert [note for note in person.notes if "a3_vae_template.py" in note]


HARMFUL_NOTEBOOKS = {
    "too large": b" " * (16 << 20) + b"{}",
    "deep": b"[" * 10**6,
    "endless numbers": b'{"nbformat": ' + b"9" * 10**5 + b"}",
    "no text": b"\xff\xfe\x00",
    "not a number": b'{"nbformat": NaN, "nbformat_minor": Infinity, "cells": []}',
    "cells of cells": b'{"nbformat": 4, "nbformat_minor": 4, "metadata": {}, "cells": [[[]]]}',
    "lines of numbers": b'{"nbformat": 4, "nbformat_minor": 4, "metadata": {}, "cells": '
    b'[{"cell_type": "code", "source": [1, null]}]}',
    "an old format": b'{"nbformat": 1, "worksheets": "x"}',
}


@pytest.mark.parametrize("name", HARMFUL_NOTEBOOKS)
def test_a_damaged_notebook_is_no_source(tmp_path, name):
    path = tmp_path / "a3_vae_template.ipynb"
    path.write_bytes(HARMFUL_NOTEBOOKS[name])
    if name != "too large":
        with pytest.raises(NoSource):
            read_source(path)
    (person,) = people_in(tmp_path)
    assert person.files.get("vae") == path
