"""Whether a submission runs as it was handed in, without our stand-ins.

What counts: no Python, an exception at import, a module or file that is not there, a name that is
defined nowhere. What does not: exceptions where a stand-in is involved, data that the course
downloads, and what yesterday's libraries allowed, which is "old".
"""

import ast
import builtins
import contextlib
import errno
import os
import re
import symtable
import sys
from pathlib import Path

from gencheck.outcomes import NOTE, OLD, PASS, WRONG, Outcome, one_line
from grading.sources import NoSource, Source, read_source
from grading.stand_ins import ALWAYS_STUBS, Missing, Stub, StubModule

KNOWN = {
    *sys.stdlib_module_names, *ALWAYS_STUBS, "datasets", "torchvision", "torchaudio", "torchtext",
    "scipy", "tqdm", "PIL", "yaml", "h5py", "einops", "lightning", "pytorch_lightning", "ignite",
    "tensorboard_logger", "tabulate", "click", "absl", "keras", "numba", "requests", "torchinfo",
    "torchmetrics", "fire", "omegaconf", "hydra", "dill", "joblib", "psutil", "google", "attr",
    "networkx", "statsmodels", "umap", "pyro", "torchdiffeq", "prettytable", "termcolor", "nltk",
    "colorama", "easydict", "livelossplot", "ipywidgets", "mlflow", "comet_ml", "neptune", "ray",
    "optuna", "dask", "moviepy", "progressbar", "pytest", "six", "future", "jax", "flax", "skorch",
    "accelerate", "pytorch_fid", "torch_fidelity", "lpips", "kornia", "timm", "typing_extensions",
    "tyro",
}  # fmt: skip
PYTHON_2 = {"cPickle", "urllib2", "Queue", "ConfigParser", "StringIO", "cStringIO", "Tkinter"}
DATA = re.compile(r"data|mnist|\.(npz?|gz|mat|amat|idx.*|ubyte)$", re.IGNORECASE)
OWN_PATH = re.compile(r"/(home|Users|content/drive)/|[A-Za-z]:[\\/]+Users\b")
EXPECTED = "no exception before the first steps"
HELPED = "what follows was judged with a stand-in for it"


class Running:
    """What keeps a submission from running as handed in.

    Args:
        folder: of its code.
        left_out: files of its folder that were not copied, which are no fault of it.
    """

    def __init__(self, folder: Path, left_out: list[str] = ()):
        self.folder = folder
        self.left_out = {Path(name).name for name in left_out}
        self.faults: dict[str, str] = {}  # WRONG, OLD or NOTE, by what happens where
        self.missing: list[Missing] = []  # modules, filled by the finder of stand-ins
        self._sources: dict[str, tuple[Source, ast.Module]] = {}
        self._names: dict[str, set[str] | None] = {}  # global ones by file; None is unknown

    def add(self, words: str, status: str = WRONG) -> None:
        """Remember a fault."""
        self.faults.setdefault(words, status)

    def source(self, file: str) -> tuple[Source, ast.Module]:
        """A file of the submission, read and parsed once.

        Raises:
            SyntaxError, ValueError, RecursionError, MemoryError, NoSource: it is no Python.
        """
        if file not in self._sources:
            source = read_source(Path(file))
            self._sources[file] = source, ast.parse(source.text, source.name)
        return self._sources[file]

    def no_python(self, error: BaseException) -> str:
        """Remember that the file can't be parsed; returns this in words."""
        if isinstance(error, NoSource):
            words = str(error)
        elif isinstance(error, SyntaxError) and error.lineno:
            words = f"{type(error).__name__}: {error.msg}, in line {error.lineno}"
        else:
            words = one_line(error)
        self.add(f"no Python 3: {words}")
        return f"no Python 3: {words}"

    def at_import(self, error: Exception) -> None:
        """An exception of a statement at the file's top level."""
        if isinstance(error, NotImplementedError | MemoryError) or not self._place(error):
            return
        if isinstance(error, NameError | FileNotFoundError | ModuleNotFoundError):
            self.in_call(error)
        elif isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            return  # the sandbox's limits
        elif "attempted relative import" in str(error):
            return  # it may be a part of a package
        elif _is_of_library(error, self.folder):
            self._fault(error, OLD)
        elif not _involves_stand_in(error, self.folder):
            self._fault(error, WRONG)

    def in_call(self, error: BaseException) -> None:
        """An exception of a call: an absent file, module or name is a fault, others have checks."""
        if not isinstance(error, NameError | FileNotFoundError | ModuleNotFoundError):
            return
        place = self._place(error)
        if not place:
            return
        if isinstance(error, FileNotFoundError):
            self.absent(error.filename, *place)
        elif isinstance(error, NameError):
            if type(error) is NameError and not self._is_bound(error.name, place[0]):
                self._fault(error, WRONG)
        elif _is_of_library(error, self.folder):
            self._fault(error, OLD)
        else:
            self._fault(error, WRONG)

    def undefined(self, statement: ast.stmt, file: str) -> None:
        """Names that a statement which is not run calls, and nothing defines."""
        for node in ast.walk(statement):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                name = node.func.id
                if not self._is_bound(name, file):
                    where = self._words(file, node.lineno)
                    self.add(f"{where}: NameError: name '{name}' is not defined")

    def left_open(self, file: str) -> str:
        """The first method of a class that raises NotImplementedError, with its line, or ""."""
        with contextlib.suppress(Exception):  # no Python
            source, tree = self.source(file)
            for kind in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
                for method in (n for n in kind.body if isinstance(n, ast.FunctionDef)):
                    for node in ast.walk(method):
                        if isinstance(node, ast.Raise) and "NotImpl" in ast.unparse(node):
                            return f"{kind.name}.{method.name} ({source.place(node.lineno)})"
        return ""

    def absent(self, path, file: str, line: int) -> bool:
        """Remember that a file which the submission opens isn't there; whether that is a fault."""
        name = os.fsdecode(path) if isinstance(path, str | bytes | Path) else ""
        is_elsewhere = ".." in Path(name).parts or Path(name).name in self.left_out
        if not name or is_elsewhere or self._is_guarded(file, line):
            return False
        if DATA.search(name):
            if Path(name).is_absolute() and not Path(name).is_relative_to(Path.home()):
                self._own_path(name, file, line)
            return False
        self.add(f"{self._words(file, line)}: the file {name} is not there")
        return True

    def own_paths(self, file: str) -> None:
        """Note the string literals of a file that are paths into a home folder."""
        _, tree = self.source(file)
        nodes = list(ast.walk(tree))
        unused = {node.value for node in nodes if isinstance(node, ast.Expr)}  # docstrings
        for node in nodes:
            path = node.value if isinstance(node, ast.Constant) and node not in unused else None
            if isinstance(path, str) and OWN_PATH.match(path):
                self._own_path(path, file, node.lineno)

    def caller(self) -> tuple[str, int] | None:
        """File and line of the submission's code that is running, or None."""
        frame = sys._getframe(1)
        while frame is not None:
            if self._is_ours(frame.f_code.co_filename):
                return frame.f_code.co_filename, frame.f_lineno
            frame = frame.f_back
        return None

    def outcome(self) -> Outcome:
        """The check's outcome."""
        for module in self.missing:
            top = module.name.partition(".")[0]
            if top in KNOWN or self._is_guarded(module.file, module.line):
                continue
            words = f"{self._words(module.file, module.line)}: there is no module {module.name}"
            self.add(words, OLD if top in PYTHON_2 else WRONG)
        if not self.faults:
            return Outcome(PASS, "it can be imported, and nothing that it needs is missing")
        worst = next(s for s in (WRONG, OLD, NOTE) if s in self.faults.values())
        words = [words for words, status in self.faults.items() if status == worst][:3]
        if worst == NOTE:
            return Outcome(NOTE, "; ".join(words), "relative paths, or paths from arguments")
        helped = "" if words[0].startswith("no Python") else f"; {HELPED}"
        return Outcome(worst, "; ".join(words) + helped, EXPECTED)

    def _fault(self, error, status):
        self.add(f"{self._words(*self._place(error))}: {one_line(error)}", status)

    def _own_path(self, path, file, line):
        words = f"{path!r} is a path of the author's own machine"
        self.add(f"{self._words(file, line)}: {words}", NOTE)

    def _is_ours(self, file):
        return file.startswith(str(self.folder) + os.sep)

    def _place(self, error) -> tuple[str, int] | None:
        """File and line of the submission's code nearest to where an exception was raised."""
        place, trace = None, error.__traceback__
        while trace is not None:
            if self._is_ours(trace.tb_frame.f_code.co_filename):
                place = trace.tb_frame.f_code.co_filename, trace.tb_lineno
            trace = trace.tb_next
        return place

    def _words(self, file, line):
        try:
            source, _ = self.source(file)
        except Exception:
            return f"{Path(file).name}, line {line}"
        return source.place(line)

    def _is_guarded(self, file, line) -> bool:
        """Whether a line stands where an exception is caught."""
        try:
            _, tree = self.source(file)
        except Exception:
            return False
        guards = (node for node in ast.walk(tree) if isinstance(node, ast.Try) and node.handlers)
        return any(node.lineno <= line < node.handlers[0].lineno for node in guards)

    def _is_bound(self, name, file) -> bool:
        """Whether a file defines a global name anywhere, work that we don't do included."""
        if file not in self._names:
            try:
                source, tree = self.source(file)
                table = symtable.symtable(source.text, source.name, "exec")
            except Exception:
                return True
            stars = any(
                isinstance(node, ast.ImportFrom) and node.names[0].name == "*"
                for node in ast.walk(tree)
            )
            self._names[file] = None if stars else _defined(table, True)
        names = self._names[file]
        return names is None or hasattr(builtins, name) or name in names


def _defined(table, is_module=False):
    names = {
        symbol.get_name()
        for symbol in table.get_symbols()
        if (symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace())
        and (is_module or symbol.is_declared_global())
    }
    return names.union(*map(_defined, table.get_children()))


def _is_of_library(error, folder) -> bool:
    """Whether an installed library lacks what the submission takes from it."""
    if isinstance(error, ImportError):
        module = sys.modules.get((error.name or "").partition(".")[0])
        file = getattr(module, "__file__", None)
        return file is not None and not file.startswith(str(folder) + os.sep)
    return bool(
        isinstance(error, AttributeError) and re.match(r"module '|partially init", str(error))
    )


def _involves_stand_in(error, folder) -> bool:
    """Whether a frame on the way to an exception is a stand-in's, or uses one."""
    trace = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_code.co_filename.endswith("stand_ins.py"):
            return True
        if frame.f_code.co_filename.startswith(str(folder) + os.sep):
            names = {*frame.f_code.co_names, *frame.f_code.co_varnames}
            values = (frame.f_locals.get(n, frame.f_globals.get(n)) for n in names)
            if any(isinstance(value, Stub | StubModule) for value in values):
                return True
        trace = trace.tb_next
    return False
