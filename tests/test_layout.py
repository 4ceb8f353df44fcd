"""The house: imports point one way, and no file or line is too long."""

import ast
import subprocess
from graphlib import TopologicalSorter

import pytest

from tests.conftest import ROOT

SCRIPTS = ("a3_vae_template", "a3_gan_template", "a3_nf_template")
# Each may import itself and what stands below it.
FLOORS = {
    "datasets": 0,
    "gencheck": 0,
    "harness": 1,
    **dict.fromkeys(SCRIPTS, 2),
    "examples": 3,
    "figures": 3,
    "grading": 3,
    "tests": 4,
}
TEXT = (".py", ".md", ".toml", ".yml", ".yaml", ".txt", ".sh", ".js", ".html", ".css")


def files_of_the_project():
    """Tracked files and new ones, without what git ignores."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("needs a git checkout")
    paths = (ROOT / name for name in done.stdout.splitlines())
    return [path for path in paths if path.is_file()]


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.fixture(scope="module")
def trees():
    """{module: its syntax tree} of every Python file."""
    files = [path for path in files_of_the_project() if path.suffix == ".py"]
    return {module_name(path): ast.parse(path.read_bytes()) for path in files}


def imports_of(module, tree, modules):
    """(statement, imported module) of a module's imports from this project."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} line {node.lineno}: write the package's name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            while name and name not in modules:
                name = name.rpartition(".")[0]
            if name:
                yield node, name


def test_every_module_stands_on_a_floor(trees):
    assert {name.split(".")[0] for name in trees} <= FLOORS.keys()
    assert {"datasets", "harness", "tests", *SCRIPTS} <= {name.split(".")[0] for name in trees}


def test_no_import_points_upwards_or_to_the_side(trees):
    wrong = []
    for module, tree in trees.items():
        for node, imported in imports_of(module, tree, trees):
            ours, theirs = module.split(".")[0], imported.split(".")[0]
            if ours != theirs and FLOORS[theirs] >= FLOORS[ours]:
                wrong.append(f"{module} line {node.lineno} imports {imported}")
    assert not wrong


def test_no_function_imports_from_the_project(trees):
    """There such an import would hide a cycle."""
    wrong = []
    for module, tree in trees.items():
        inside = {
            id(node)
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for node in ast.walk(function)
        }
        wrong += [
            f"{module} line {node.lineno}"
            for node, _ in imports_of(module, tree, trees)
            if id(node) in inside
        ]
    assert not wrong


def test_no_imports_form_a_cycle(trees):
    graph = {}
    for module, tree in trees.items():
        graph[module] = {name for _, name in imports_of(module, tree, trees)}
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_the_checks_see_a_wrong_import():
    modules = {"datasets": None, "harness": None, "harness.run": None}
    source = "from harness import run\ndef f():\n    import harness.run\nimport numpy"
    found = [name for _, name in imports_of("datasets", ast.parse(source), modules)]
    assert found == ["harness.run", "harness.run"]


def can_be_broken(path, line):
    """Not rows of tables, pictures, the commands of README, which are to be pasted whole, and the
    page, which is made and not written."""
    if path.name == "explorer.html":
        return False
    return path.suffix != ".md" or not line.startswith(("|", "![", "    python3 -m venv"))


def test_no_line_is_longer_than_100_columns():
    too_long = []
    for path in files_of_the_project():
        if path.suffix in TEXT or path.parts[-2] == ".ci":
            for n, line in enumerate(path.read_text().splitlines(), start=1):
                if len(line) > 100 and can_be_broken(path, line):
                    too_long.append(f"{path.relative_to(ROOT)}:{n}: {len(line)} columns")
    assert not too_long, "\n".join(too_long)


def test_no_file_is_longer_than_350_lines_and_no_script_than_300():
    too_long = []
    for path in files_of_the_project():
        if path.suffix == ".py":
            limit = 300 if path.stem in SCRIPTS else 350
            n_lines = len(path.read_text().splitlines())
            if n_lines > limit:
                too_long.append(f"{path.relative_to(ROOT)}: {n_lines} lines of {limit}")
    assert not too_long, "\n".join(too_long)
