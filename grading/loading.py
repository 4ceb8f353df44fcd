"""Executing a submission's file without the work that it would do when run as a script."""

import __future__

import argparse
import ast
import builtins
import contextlib
import dataclasses
import errno
import functools
import inspect
import os
import re
import signal
import sys
import types
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn

from gencheck.outcomes import TooLong, one_line
from grading.arguments import usual_value
from grading.running import Running
from grading.sources import NoSource
from grading.stand_ins import Stub

WAITING = 4  # a busy machine takes longer than its processor time
STATEMENT_SECONDS = 5  # for one statement at module level
WORK = ("main", "run", "train", "fit", "test", "show", "generate", "interpolate", "demo")
SETTINGS = ("args", "ARGS", "FLAGS", "opt", "opts", "config", "cfg", "params", "hparams", "options")
DATACLASSES = ("Config", "Args", "Settings", "Options", "Hyperparameters")
ROLES = {  # parameters of an epoch's function by their names
    "model": r"model|net$|vae|flow",
    "data": r"data|load|batches|images|iter$",
    "optimizer": r"opt",
}
FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EAGAIN)


class CannotLoad(Exception):
    """The file can't be judged; the message says why."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TooLong in the block after this processor time, or WAITING times as much of any time.

    Only Python code is interrupted.
    """

    def stop(signum, frame):
        raise TooLong(f"longer than {seconds:g} s")

    timers = {
        signal.SIGPROF: (signal.ITIMER_PROF, seconds),
        signal.SIGALRM: (signal.ITIMER_REAL, WAITING * seconds),
    }
    before = {number: signal.signal(number, stop) for number in timers}
    for timer, limit in timers.values():
        signal.setitimer(timer, limit)
    try:
        yield
    finally:
        for number, (timer, _) in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])


class Submission:
    """A submission's module, executed.

    Args:
        path: its file, in a folder that is on `sys.path`.
        attempt: calls a function, with shims for old PyTorch if it needs them.
        running: is told what keeps it from running as handed in.
    """

    def __init__(self, path: Path, attempt: Callable, running: Running | None = None):
        self.path, self._attempt = path, attempt
        self.running = running or Running(path.parent)
        self.instances: list[nn.Module] = []
        self.work: list[ast.stmt] = []  # statements at the top level that may train
        try:
            self.source, self.tree = self.running.source(str(path))
        except (SyntaxError, ValueError, RecursionError, MemoryError, NoSource) as error:
            raise CannotLoad(self.running.no_python(error)) from error
        self.running.own_paths(str(path))
        self.future = _future_flags(self.tree)
        self.module = types.ModuleType(path.stem)
        self.module.__file__ = str(path)
        sys.modules[path.stem] = self.module
        sys.argv = [str(path)]
        self._patch_open()
        self._execute(self.tree.body)
        self._inject()
        self._track_instances()

    def attempt(self, function: Callable, *args: Any, **options: Any) -> Any:
        """function(*args, **options), with shims if it needs them; notes why it can't run."""
        try:
            return self._attempt(function, *args, **options)
        except Exception as error:
            self.running.in_call(error)
            raise

    @property
    def modules(self) -> list[types.ModuleType]:
        """The file's module, and those of the submission's folder that it has imported."""
        folder = str(self.running.folder) + os.sep
        others = [
            module
            for module in list(sys.modules.values())
            if (getattr(module, "__file__", None) or "").startswith(folder)
            and module is not self.module
        ]
        return [self.module, *others]

    def find(self, *names: str) -> Any:
        """The first of these names that a module of the submission defines, or None."""
        for module in self.modules:
            for name in names:
                if name in vars(module):
                    return vars(module)[name]
        return None

    def kinds(self) -> dict[str, type]:
        """The submission's subclasses of nn.Module by name."""
        modules = self.modules
        names = {module.__name__ for module in modules}
        return {
            name: value
            for module in reversed(modules)
            for name, value in vars(module).items()
            if isinstance(value, type)
            and issubclass(value, nn.Module)
            and value.__module__ in names
        }

    def find_class(self, *names: str) -> type | None:
        """The subclass of nn.Module of one of these names, or with one inside its name."""
        return next(iter(self.find_classes(*names)), None)

    def find_classes(self, *names: str) -> list[type]:
        """The subclasses of nn.Module of these names, then those with one inside their names."""
        classes = self.kinds()
        exact = [classes[name] for name in names if name in classes]
        others = [
            value
            for name in names
            for candidate, value in classes.items()
            if name.lower() in candidate.lower()
        ]
        return list(dict.fromkeys(exact + others))

    # --- Executing
    def _execute(self, statements, guarded=False):
        for statement in statements:
            if self._is_guard(statement):
                self._execute(statement.body, guarded=True)
            elif isinstance(statement, ast.If) and guarded:
                with contextlib.suppress(Exception):
                    test = ast.Expression(statement.test)
                    chosen = eval(compile(test, str(self.path), "eval"), vars(self.module))
                    self._execute(statement.body if chosen else statement.orelse, guarded)
            elif self._is_work(statement):
                self.work.append(statement)
                self.running.undefined(statement, str(self.path))
            else:
                self._run(statement)

    def compiled(self, statement: ast.stmt) -> types.CodeType:
        """A statement of the file, to be executed in its module."""
        return compile(ast.Module([statement], []), str(self.path), "exec", flags=self.future)

    def _run(self, statement):
        definition = isinstance(statement, ast.FunctionDef | ast.ClassDef)
        try:
            code = self.compiled(statement)
            with contextlib.suppress(TooLong, SystemExit), time_limit(STATEMENT_SECONDS):
                self._attempt(exec, code, vars(self.module))
        except SyntaxError as error:  # such as a return outside of a function
            if not isinstance(statement, ast.Import | ast.ImportFrom):
                raise CannotLoad(self.running.no_python(error)) from error
            self._import_failed(statement, error)
        except Exception as error:
            fatal = error.errno in FORBIDDEN if isinstance(error, OSError) else definition
            if fatal or isinstance(error, MemoryError):
                self.running.at_import(error)
                place = self.source.place(statement.lineno)
                raise CannotLoad(f"{place}: {one_line(error)}") from error
            if isinstance(statement, ast.Import | ast.ImportFrom):
                self._import_failed(statement, error)
            else:
                self.running.at_import(error)

    def _import_failed(self, statement, error):
        """A stand-in for what can't be imported."""
        if isinstance(error, SyntaxError):
            where = f"{self.source.place(statement.lineno)}: "
            self.running.add(f"{where}{Path(error.filename or '').name}, line {error.lineno}: "
                             f"SyntaxError: {error.msg}")  # fmt: skip
        else:
            self.running.at_import(error)
        for alias in statement.names:
            name = alias.asname or alias.name.partition(".")[0]
            if name != "*":
                vars(self.module).setdefault(name, Stub())

    @staticmethod
    def _is_guard(statement):
        return (
            isinstance(statement, ast.If)
            and isinstance(statement.test, ast.Compare)
            and "__name__" in ast.unparse(statement.test)
        )

    @staticmethod
    def _is_work(statement):
        """Loops and calls that may train: calls of plain functions, and of methods like `run`."""
        if isinstance(statement, ast.For | ast.While | ast.With):
            return True
        if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)):
            return False
        function = statement.value.func
        return (
            isinstance(function, ast.Name)
            or (isinstance(function, ast.Attribute) and function.attr in WORK)
            or any(isinstance(arg, ast.Name) and arg.id in WORK for arg in statement.value.args)
        )

    def _patch_open(self):
        """Folders that a submission expects exist as soon as it writes into them."""
        scratch, original = Path.cwd(), builtins.open

        def opening(file, mode="r", *args, **options):
            if isinstance(file, str | Path) and set(mode) & set("wax"):
                parent = Path(file).parent
                if not parent.is_absolute():
                    (scratch / parent).mkdir(parents=True, exist_ok=True)
            return original(file, mode, *args, **options)

        vars(self.module)["open"] = opening

    def run_work(self) -> None:
        """Execute the statements of the file's top level that may train."""
        made = (v for v in vars(self.module).values() if isinstance(v, nn.Module))
        self.instances += made
        for statement in self.work:
            exec(self.compiled(statement), vars(self.module))

    def _inject(self):
        """Define the settings and devices that functions use but only the main block defines."""
        names = {
            node.id
            for node in ast.walk(self.tree)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
        }
        self.settings = next(
            (v for v in vars(self.module).values() if isinstance(v, argparse.Namespace)), None
        )
        if self.settings is None:
            defaults = self._defaults()
            made = self._dataclass() if not defaults else None
            self.settings = made or argparse.Namespace(**{"device": "cpu"} | defaults)
        for name in names & {*SETTINGS}:
            if vars(self.module).get(name) is None:
                vars(self.module)[name] = self.settings
        for name in names & {"device", "DEVICE"}:
            vars(self.module).setdefault(name, torch.device("cpu"))

    def _dataclass(self) -> Any:
        """The module's dataclass of settings with its defaults, or None."""
        kind = self.find(*DATACLASSES)
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            with contextlib.suppress(Exception):  # a setting may have no default
                return kind()
        return None

    def _defaults(self) -> dict:
        """The literal defaults of all `add_argument` calls, usual values where one is required."""
        defaults = {}
        for node in ast.walk(self.tree):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func).endswith("add_argument")):
                continue
            with contextlib.suppress(ValueError, IndexError, AttributeError):
                flags = [ast.literal_eval(arg) for arg in node.args]
                name = max(flags, key=len).lstrip("-").replace("-", "_")
                options = {k.arg: k.value for k in node.keywords}
                action = ast.literal_eval(options.get("action", ast.Constant(None)))
                default = False if action == "store_true" else None
                if "default" in options:
                    default = ast.literal_eval(options["default"])
                elif _is_true(options.get("required")) or not flags[0].startswith("-"):
                    kind = ast.unparse(options.get("type", ast.Name("str")))
                    kind = {"int": int, "float": float}.get(kind, str)
                    default = kind(usual_value(name, kind))
                defaults[name] = default
        return defaults

    def _track_instances(self):
        """Remember every module of the submission's classes that is made."""
        for kind in set(self.kinds().values()):
            self._track(kind)

    def _track(self, kind):
        original, instances = kind.__init__, self.instances

        @functools.wraps(original)
        def initialise(self, *args, **options):
            original(self, *args, **options)
            if type(self) is kind:
                instances.append(self)

        kind.__init__ = initialise

    # --- Calling
    @cached_property
    def pool(self) -> dict:
        """Values for parameters by name."""
        parse = self.find("parse_args")
        settings = self.settings
        if parse is not None:
            with contextlib.suppress(Exception):
                settings = parse([])
        values = {name: settings for name in SETTINGS}
        values |= {k: v for k, v in vars(settings).items() if v is not None}
        return values | {
            "device": torch.device("cpu"), "shape": [784], "x_dim": 784, "x_dims": (1, 28, 28),
            "image_dim": 784, "input_dim": 784, "input_size": 784, "img_shape": (1, 28, 28),
            "img_dim": 784, "epoch": 0, "z_dim": 20, "hidden_dim": 500, "latent_dim": 100,
            "batch_size": 64, "n_epochs": 1, "criterion": nn.BCELoss(), "writer": Stub(),
        }  # fmt: skip

    def call(self, function: Callable, *args: Any, **known: Any) -> Any:
        """Call with `args` in order, and further required parameters by name from the pool."""
        parameters = list(inspect.signature(function).parameters.values())
        pool, options = self.pool | known, {}
        positional = [
            p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        takes_all = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        args = args if takes_all else args[: len(positional)]
        for parameter in parameters:
            if parameter in positional[: len(args)]:
                continue
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            required = parameter.default is parameter.empty
            if parameter.name in known or (required and parameter.name in pool):
                options[parameter.name] = pool[parameter.name]
            elif required:
                options[parameter.name] = Stub()
        try:
            return function(*args, **options)
        except Exception as error:
            self.running.in_call(error)
            raise

    def call_by_role(self, function: Callable, roles: dict[str, Any], **known: Any) -> Any:
        """Call with a value for each role ("model", "data", "optimizer"), whatever their order.

        Where the parameters' names don't say which is which, they are given in the order of
        `roles`.
        """
        names, found = list(inspect.signature(function).parameters), {}
        for role in reversed(roles):  # a "model_optimizer" is none of the models
            fitting = [n for n in names if re.search(ROLES[role], n.lower()) and n not in found]
            if len(fitting) != 1:
                return self.call(function, *roles.values(), **known)
            found[fitting[0]] = roles[role]
        return self.call(function, **known | found)

    def run_main(self, stops: tuple[str, ...], seconds: float) -> dict | None:
        """Run `main` until it calls one of these functions: the call's arguments, by parameter.

        None if it ends, fails or takes too long before.
        """
        main = self.find("main", "Main", "run", "train_model")
        if main is None:
            return None
        caught = {}

        def stop_at(name, function):
            def stop(*args, **options):
                with contextlib.suppress(TypeError):
                    caught.update(inspect.signature(function).bind(*args, **options).arguments)
                caught["function"] = name
                raise TooLong(name)

            return stop

        functions = [
            (vars(module), name, vars(module)[name])
            for module in self.modules
            for name in stops
            if isinstance(vars(module).get(name), types.FunctionType)
        ]
        for names, name, function in functions:
            names[name] = stop_at(name, function)
        try:
            with time_limit(seconds), contextlib.suppress(Exception, TooLong, SystemExit):
                self.call(main)
        finally:
            for names, name, function in functions:
                names[name] = function
        return caught or None

    def made(self, kind: type | None) -> nn.Module | None:
        """The newest instance of a class."""
        return next((m for m in reversed(self.instances) if type(m) is kind), None)


def stand_in_for_weights(running: Running) -> None:
    """From now on, absent weights are a stand-in, which networks and optimisers ignore."""

    def loading(file, *args, **options):
        place = running.caller()
        absent = isinstance(file, str | Path) and place and not os.path.exists(file)
        if absent and running.absent(file, *place):
            return Stub()
        return load(file, *args, **options)

    def ignoring(original):
        @functools.wraps(original)
        def call(module, state, *args, **options):
            if not isinstance(state, Stub):
                return original(module, state, *args, **options)

        return call

    load, torch.load = torch.load, loading
    for kind in (nn.Module, torch.optim.Optimizer):
        kind.load_state_dict = ignoring(kind.load_state_dict)


def _is_true(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def _future_flags(tree: ast.Module) -> int:
    """The compiler's flags for the file's `from __future__ import`s: they hold for all of it."""
    flags = 0
    for statement in tree.body:
        if isinstance(statement, ast.ImportFrom) and statement.module == "__future__":
            for name in {alias.name for alias in statement.names} & {*__future__.all_feature_names}:
                flags |= getattr(__future__, name).compiler_flag
    return flags


def is_theirs(error: BaseException, folder: str) -> bool:
    """Whether the error was raised in (or below) code of this folder."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename.startswith(folder + os.sep):
            return True
        trace = trace.tb_next
    return False
