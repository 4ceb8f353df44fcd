"""The house: imports point one way, scripts are short ways, numbers stand in one place."""

import ast
import itertools
import re
import subprocess
from collections import deque
from graphlib import TopologicalSorter

import pytest

from harness.references import load, protocol_of
from tests.conftest import ROOT

SCRIPTS = ("a3_vae_template", "a3_gan_template", "a3_nf_template")
# Each may import itself and what stands below it; besides, UNUSED says what it doesn't.
FLOORS = {
    "gencheck": 0,
    "datasets": 0,
    "harness": 1,
    **dict.fromkeys(SCRIPTS, 2),
    "examples": 3,
    "figures": 3,
    "grading": 3,
    "tests": 4,
}
# gencheck installs without the rest, which trains without it.
UNUSED = {
    "gencheck": {*FLOORS} - {"gencheck"},
    "grading": {*SCRIPTS},
    **dict.fromkeys(("harness", *SCRIPTS, "examples", "figures"), {"gencheck"}),
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
            upwards = ours != theirs and FLOORS[theirs] >= FLOORS[ours]
            if upwards or theirs in UNUSED.get(ours, ()):
                wrong.append(f"{module} line {node.lineno} imports {imported}")
    assert not wrong


# What a function imports there, and why.
INSIDE_FUNCTIONS = {
    "datasets.files": {"torchvision.datasets"},  # a second, which only a download takes
    "harness.tensorboard": {"torch.utils.tensorboard"},  # slow, and may not be installed
    "figures.cluster": {"submitit"},  # optional
    # Each of the benchmark's cases needs one of them.
    "gencheck.benchmark.cases": {"nflows", "normflows", "pythae.models", "zuko"},
}


def test_functions_import_nothing_but_what_is_slow_or_optional(trees):
    """Nothing of the project: there an import would hide a cycle."""
    found = {}
    for module, tree in trees.items():
        if module.split(".")[0] in ("tests", "grading"):  # strangers' code is imported there
            assert not [name for _, name in imports_inside(tree, trees) if name in trees], module
            continue
        if names := {name for _, name in imports_inside(tree, {})}:
            found[module] = names
    assert found == INSIDE_FUNCTIONS


def imports_inside(tree, modules):
    """(statement, imported module) inside functions; of `modules` the longest name that fits."""
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Import):
                    yield from ((node, alias.name) for alias in node.names)
                elif isinstance(node, ast.ImportFrom):
                    names = [f"{node.module}.{alias.name}" for alias in node.names]
                    whole = [name for name in names if name in modules]
                    yield from ((node, name) for name in whole or [node.module])


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


# --- What a reader of a script meets
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_imports_at_most_twelve_of_our_names(trees, script):
    nodes = [node for node in ast.walk(trees[script]) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in nodes if node.module.split(".")[0] in FLOORS]
    names = [alias.name for node in ours for alias in node.names]
    assert {node.module for node in ours} == {"datasets", "harness"}  # packages, no modules
    assert 0 < len(names) <= 12, names


@pytest.mark.parametrize("script", SCRIPTS)
def test_at_most_two_functions_stand_between_main_and_backward(trees, script):
    way = way_to_backward(trees[script])
    assert way[0] == "main" and len(way) - 1 <= 2, " -> ".join(way)


def way_to_backward(tree):
    """The shortest chain of a module's functions from `main` to one that calls `.backward()`.

    A function leads to another if it names it: it may hand it over instead of calling it.
    """
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    ways = deque([["main"]])
    seen = {"main"}
    while ways:
        way = ways.popleft()
        nodes = list(ast.walk(functions[way[-1]]))
        if any(isinstance(node, ast.Attribute) and node.attr == "backward" for node in nodes):
            return way
        named = {node.id for node in nodes if isinstance(node, ast.Name)}
        new = sorted((named & functions.keys()) - seen)
        seen.update(new)
        ways.extend([*way, name] for name in new)
    raise AssertionError("main does not lead to backward()")


def test_the_way_to_backward_is_found():
    source = """
def main(): run(epoch)
def epoch(): step(evaluate); captured(step)
def evaluate(): epoch()
def step(): loss.backward()
"""
    assert way_to_backward(ast.parse(source)) == ["main", "epoch", "step"]


def squeezed(tree):
    """Lines with a display such as [a, *(b, c)]: a list that wants to be written out."""
    written_out = (ast.Name, ast.Attribute, ast.Subscript)
    return [
        element.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.List | ast.Tuple | ast.Set)
        for element in node.elts
        if isinstance(element, ast.Starred) and not isinstance(element.value, written_out)
    ]


def test_scripts_and_harness_have_no_starred_displays(trees):
    of_readers = [name for name in trees if name.split(".")[0] in (*SCRIPTS, "harness", "datasets")]
    wrong = [f"{name} line {line}" for name in of_readers for line in squeezed(trees[name])]
    assert not wrong
    assert squeezed(ast.parse("[a, *(b, c)]")) == squeezed(ast.parse("(*(x for x in y), 1)")) == [1]
    assert squeezed(ast.parse("[a, *b, *c.d, *e[1:]]")) == squeezed(ast.parse("f(*(1, 2))")) == []


# --- Published numbers
def numbers_in(text):
    """(number, its significant digits, 2.50 has three) of each number in a text."""
    for found in re.finditer(r"(?<![\w.])\d[\d_]*(?:\.\d+)?(?![\w.]*\w)", text):
        digits = found[0].replace("_", "").replace(".", "").lstrip("0")
        yield float(found[0]), len(digits)


def published():
    """Every published number of `references.toml` with three significant digits or more.

    Shorter ones, such as 0.97 bits or the bar 0.85, are in code for many other reasons.
    """
    content, texts = load(), []
    scripts = [table["script"] for table in content.values() if isinstance(table, dict)]
    for script, name in itertools.product(scripts, ("standard", "report")):
        protocol = protocol_of(script, {"protocol": name})
        texts += [f"{value:.3f}" for value in (protocol["curve"] or {}).get("values", [])]
        rows = [row for row in protocol["rows"] if row["kind"] == "published"]
        texts += [f"{row['value']:.3f}" for row in rows]
    texts += [entry["text"] for entry in content["published"]]
    found = {number for text in texts for number, n in numbers_in(text) if n >= 3}
    years = {number for number in found if number in range(1990, 2030)}
    return found - years


def test_published_numbers_stand_in_references_toml_alone():
    """The page in one file is made of the others, and gets the numbers when it is made."""
    ours, wrong = published(), []
    assert {79.458, 1.826, 2.098, 100.6} <= ours
    for path in files_of_the_project():
        top = path.relative_to(ROOT).parts[0]
        if path.suffix not in (".py", ".js", ".html") or path.name == "explorer.html":
            continue
        if top.removesuffix(".py") in (*SCRIPTS, "harness", "figures", "examples", "datasets"):
            for n, line in enumerate(path.read_text().splitlines(), start=1):
                numbers = {number for number, digits in numbers_in(line) if digits >= 3}
                wrong += [f"{path.relative_to(ROOT)}:{n}: {number}" for number in numbers & ours]
    assert not wrong, "\n".join(wrong)


def test_numbers_are_found_in_texts():
    text = "x1.826 is no number; 1.826, 79.458 (100.60) 1_000 and 0.85, not v1.2.345"
    assert list(numbers_in(text)) == [(1.826, 4), (79.458, 5), (100.6, 5), (1000, 4), (0.85, 2)]
