import json

from grading import discovery, gathering
from grading.gathering import gather, look_at


def test_a_large_file_does_not_keep_small_ones_out(tmp_path):
    (tmp_path / "a").mkdir()
    with open(tmp_path / "checkpoint.pt", "wb") as file:
        file.truncate(discovery.COPIED_BYTES + 1)
    for name in ("a/config.json", "a3_vae_template.py", ".hidden", "layers.py"):
        (tmp_path / name).touch()
    files = gather(tmp_path / "a3_vae_template.py", tmp_path)
    assert files.keys() == {"a/config.json", "a3_vae_template.py", "layers.py"}


def test_lines_of_a_notebook_are_looked_at_as_those_of_a_script():
    cell = ["import gc\n", "# import ctypes\n", 'open("/etc/passwd")']
    notebook = json.dumps({"cells": [{"cell_type": "code", "source": cell}]}, indent=1)
    notes = look_at({"a3.ipynb": notebook.encode(), "notes.txt": b"import gc"})
    words = ["objects of the interpreter", "an absolute path"]
    assert [note.partition(": ")[2] for note in notes] == words


def test_a_string_that_begins_like_a_comment_hides_no_line():
    code = '"#"; import gc'
    notebook = json.dumps({"source": [code]}, indent=1)
    assert len(look_at({"a3.py": code.encode(), "a3.ipynb": notebook.encode()})) == 2


def test_unchanged_files_of_this_project_need_no_look():
    name = "harness/interrupts.py"
    content = (gathering.ROOT / name).read_bytes()
    assert look_at({name: content}) == []
    assert look_at({"interrupts.py": content})  # a file of the submission's own
    changed = look_at({name: content + b"\nimport gc\n"})
    assert changed[-1].endswith("objects of the interpreter")
