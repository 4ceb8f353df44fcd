"""A stand-in for torch._dynamo, whose import takes as long as PyTorch's.

Every optimiser imports it at its first step, and calls nothing of it that matters without
`torch.compile`.
"""

import importlib
import sys
import types
from collections.abc import Callable
from typing import Any

import torch

NAME = "torch._dynamo"


class _Dynamo(types.ModuleType):
    """What optimisers call of torch._dynamo; whoever asks for more gets the module itself."""

    @staticmethod
    def graph_break() -> None:
        pass

    @staticmethod
    def disable(function: Callable, *args: Any, **options: Any) -> Callable:
        return function

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # asked of all modules, as by `inspect`
            raise AttributeError(name)
        if sys.modules.get(NAME) is self:
            del sys.modules[NAME]
        return getattr(importlib.import_module(NAME), name)


def install() -> None:
    """From now on, in this process."""
    if NAME not in sys.modules:
        sys.modules[NAME] = torch._dynamo = _Dynamo(NAME)
