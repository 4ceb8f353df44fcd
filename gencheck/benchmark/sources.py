"""Other people's code, fetched at a commit by whoever runs the benchmark; none of it is kept here.

A script that trains when it is imported is read in part: only its imports of torch, numpy and
typing, its classes, functions and named assignments are run.
"""

import ast
import importlib
import json
import subprocess
import sys
import types
from pathlib import Path


class Sources:
    """Checkouts of public repositories in a folder outside this one.

    Args:
        folder: for clones, `OWNER+NAME.git`, and for the files of each commit.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def checkout(self, repository: str, commit: str) -> Path:
        """The Python files and notebooks of a repository of GitHub, "owner/name", at a commit."""
        name = repository.replace("/", "+")
        clone, files = self.folder / f"{name}.git", self.folder / f"{name}@{commit}"
        if not clone.exists():
            address = f"https://github.com/{repository}"
            subprocess.run(["git", "clone", "--bare", "--quiet", address, clone], check=True)
        if not files.exists():
            git = ["git", f"--git-dir={clone}"]
            names = _output(*git, "ls-tree", "-r", "--name-only", commit).decode().splitlines()
            code = [name for name in names if name.endswith((".py", ".ipynb"))]
            archive = _output(*git, "archive", commit, "--", *code)
            files.mkdir()
            subprocess.run(["tar", "x", "-C", files], input=archive, check=True)
        return files

    def module(self, repository: str, commit: str, name: str):
        """A module of it, freshly imported."""
        root = str(self.checkout(repository, commit).resolve())
        package = name.partition(".")[0]
        for known in [m for m in sys.modules if m.partition(".")[0] == package]:
            del sys.modules[known]
        sys.path.insert(0, root)
        try:
            return importlib.import_module(name)
        finally:
            sys.path.remove(root)

    def names(self, repository: str, commit: str, file: str, *assigned: str, **given):
        """The classes and functions of a file or notebook, as attributes.

        Args:
            repository, commit: as for `checkout`.
            file: its path.
            assigned: names of variables whose assignments at module level are run, too.
            given: values of names that the file expects.
        """
        path = self.checkout(repository, commit) / file
        text = path.read_text()
        if path.suffix == ".ipynb":
            cells = [c for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
            lines = [line for cell in cells for line in [*cell["source"], "\n"]]
            text = "".join(line for line in lines if not line.lstrip().startswith("%"))
        module = types.ModuleType(path.stem)
        vars(module).update(given)
        for node in ast.parse(text).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module] if isinstance(node, ast.ImportFrom) else []
                names = names or [alias.name for alias in node.names]
                wanted = {str(name).partition(".")[0] for name in names} <= {
                    "torch",
                    "numpy",
                    "typing",
                }
            elif isinstance(node, ast.Assign):
                wanted = any(isinstance(t, ast.Name) and t.id in assigned for t in node.targets)
            else:
                wanted = isinstance(node, ast.ClassDef | ast.FunctionDef)
            if wanted:
                exec(compile(ast.Module([node], []), str(path), "exec"), vars(module))
        return module


def _output(*command) -> bytes:
    return subprocess.run(command, check=True, capture_output=True).stdout
