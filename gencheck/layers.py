"""Layers that a network creates and never applies, seen from its calls and autograd's graph."""

from collections.abc import Callable, Iterator

import torch
import torch.nn as nn

from gencheck.modules import leaves, replaced
from gencheck.outcomes import NOTE, PASS, WEAK, Outcome

# Nodes of autograd's graph: linear maps with weights, and what only rearranges numbers.
LINEAR = ("AddmmBackward", "MmBackward", "BmmBackward", "ConvolutionBackward", "LinearBackward")
MOVES = ("View", "UnsafeView", "ReshapeAlias", "T", "Transpose", "Permute", "Squeeze", "Unsqueeze",
         "Slice", "Split", "Clone", "Expand", "ToCopy", "Unbind", "Select", "Alias")  # fmt: skip
EXPECTED = "every layer that is created is applied"


def layers_outcome(networks: dict[str, nn.Module], run: Callable[[], dict]) -> Outcome:
    """Whether all layers of these networks are applied by what `run` calls.

    Args:
        networks: by name, which may be "".
        run: calls all that uses them, and returns tensors: by a network's name those that it makes
            of an input without a gradient, under "" others.
    """
    called = set()

    def recording(module, forward):
        def call(*args, **options):
            called.add(id(module))
            return forward(*args, **options)

        return call

    named = {
        id(part): (f"{name}.{below}".strip("."), part)
        for name, module in reversed(networks.items())  # a part has its name in the first
        for below, part in module.named_modules()
    }
    spies = [(m, "forward", recording(m, m.forward)) for _, m in named.values()]
    with replaced(*spies), torch.enable_grad():
        outputs = run()
    used = {id(leaf) for tensors in outputs.values() for leaf in leaves(*tensors)}
    weights, activations = [], []
    for key, (name, module) in named.items():
        if key in called:
            continue
        own = [p for p in module.parameters(recurse=False) if p.requires_grad]
        words = f"{name} ({type(module).__name__})"
        if own and not any(id(p) in used for p in own):
            weights.append(words)
        elif type(module).__module__ == "torch.nn.modules.activation" and not own:
            activations.append(words)
    doubled = [name for name, tensors in outputs.items() if name and _has_linear_pair(tensors)]
    pair = f"in the {' and the '.join(doubled)} two linear layers follow each other without an "
    pair += "activation between them, so they are one linear layer"
    unused = sorted(weights) + sorted(activations)
    if not unused:
        return Outcome(NOTE, pair, EXPECTED) if doubled else Outcome(PASS, EXPECTED, EXPECTED)
    more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
    are = "are" if len(unused) > 1 else "is"
    measured = f"{', '.join(unused[:3])}{more} {are} created and never applied"
    measured += f"; {pair}" if doubled else ""
    return Outcome(WEAK if weights or doubled else NOTE, measured, EXPECTED)


def _has_linear_pair(tensors) -> bool:
    """Whether a linear map with weights acts on what another one returns, and nothing between."""
    return any(
        _is_linear(before)
        for node in _nodes(tensors)
        if _is_linear(node)
        for before in _sources(node)
    )


def _is_linear(node):
    return type(node).__name__.startswith(LINEAR)


def _nodes(tensors) -> Iterator:
    seen, todo = set(), [t.grad_fn for t in tensors if t.grad_fn is not None]
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            yield node
            todo += [following for following, _ in node.next_functions if following is not None]


def _sources(node) -> Iterator:
    """The nodes whose results a node takes, through those that only move numbers."""
    for following, _ in node.next_functions:
        if following is None:
            continue
        if type(following).__name__.rstrip("0123456789").removesuffix("Backward") in MOVES:
            yield from _sources(following)
        else:
            yield following
