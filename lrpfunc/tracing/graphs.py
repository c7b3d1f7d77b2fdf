"""What a node of an exported graph says: its operation under its usual name, its arguments, memory and module.

It knows `torch.fx` graphs on `torch.export`'s training IR, and nothing of how they were made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lrpfunc.compat import Operator, memory_of, overload_name, schema_of
from lrpfunc.errors import TraceError
from lrpfunc.operations import USUAL_NAMES, row_named
from lrpfunc.program import operator_name
from lrpfunc.tracing.refusals import no_memory_message
from lrpfunc.tracing.source_lines import line_of

aten = torch.ops.aten


def is_symbolic(n) -> bool:
    """Whether a size may differ from call to call."""
    return isinstance(n, torch.SymInt) and not n.node.expr.is_number


BATCH, LENGTH = "batch", "length"  # what open sizes are called
SPACE = ("depth", "height", "width")


def word_for(axis: int, rank: int) -> str:
    """What to call an open size of an input, if nothing more is known of it."""
    if axis == 0:
        return BATCH
    return SPACE[axis - rank] if axis > 1 and rank in (4, 5) else LENGTH


def words(graph) -> dict[str, str]:
    """What to call sizes, by their symbols, that a recurrent layer tells apart: its batch from its steps."""
    found: dict[str, str] = {}
    for node in graph.nodes:
        if node.op == "call_function" and isinstance(node.target, Operator):
            names, values, _ = normalize(node)
            if "batch_first" in names:
                batch, steps = values[0].meta["val"].shape[:2][:: 1 if values[names.index("batch_first")] else -1]
                found.update(dict.fromkeys(_symbols(steps), LENGTH) | dict.fromkeys(_symbols(batch), BATCH))
    return found


def _symbols(n) -> list[str]:
    return [str(symbol) for symbol in n.node.expr.free_symbols] if is_symbolic(n) else []


class Origin(NamedTuple):
    """The paths of the modules that made an equation, the innermost last, each with the call (as a key)."""

    stack: tuple[tuple[str, str], ...] = ()

    @property
    def path(self) -> str:
        return self.stack[-1][0] if self.stack else ""

    @property
    def call(self) -> str:
        return self.stack[-1][1] if self.stack else ""


# -- nodes ------------------------------------------------------------------------------------------------------------


def normalize(node) -> tuple[list[str], list, dict[str, Any]]:
    """The names and values of the arguments in the schema's order, defaults filled in; keyword-only ones apart."""
    names, positional, keywords = [], [], {}
    for i, argument in enumerate(schema_of(node.target).arguments):
        if not argument.kwarg_only:
            names.append(argument.name)
            given = node.args[i : i + 1] or [node.kwargs.get(argument.name, argument.default_value)]
            positional.append(given[0])
        elif node.kwargs.get(argument.name) is not None:
            keywords[argument.name] = node.kwargs[argument.name]
    return names, positional, keywords


def usual(function):
    """The operation under its usual name. A view fails for some memory layouts, where a reshape does not."""
    packet = getattr(aten, USUAL_NAMES.get(operator_name(function), ""), None)
    return getattr(packet, overload_name(function), function)


def is_into(node) -> bool:
    """Whether a node writes its results into given tensors: `add(x, y, out=z)`."""
    return isinstance(node.target, Operator) and any(map(_is_out, schema_of(node.target).arguments))


def _is_out(argument) -> bool:
    return argument.is_write and argument.kwarg_only


def written(node) -> list:
    """The nodes that an operation writes to."""
    arguments = schema_of(node.target).arguments
    given = {**dict(zip((argument.name for argument in arguments), node.args, strict=False)), **node.kwargs}
    return [given[argument.name] for argument in arguments if argument.is_write]


def functional_twin(node) -> Callable:
    """What gives as a new tensor (or, for `unsqueeze_` and the like, a view) what an operation writes."""
    name, schema = operator_name(node.target), schema_of(node.target)
    packet = getattr(aten, name.removesuffix("_"), None) if node.target.namespace == "aten" else None
    twin = _overload(packet, node.target) if packet is not None else None
    places = [i for i, argument in enumerate(schema.arguments) if argument.is_write and not argument.kwarg_only]
    is_usual = places == ([] if is_into(node) else [0]) and not any(isinstance(out, list) for out in written(node))
    is_view = torch.Tag.inplace_view in node.target.tags
    if twin is None or not is_usual or is_view != _is_view(twin):
        if is_random(node.target):
            raise TraceError(random_message(name, line_of(node)))
        what = f"'{name}' with out=" if is_into(node) else f"the in-place operation '{name}'"
        raise TraceError(
            f"{what} at {line_of(node)} has no functional twin. Replace it by one that returns a new tensor."
        )
    return twin


def _overload(packet, target):
    """The overload that takes what an operation takes without `out`, in its order; the one of its name comes first."""
    names = [overload_name(target), *packet.overloads()]
    if is_random(target):  # which by another name might take other numbers
        names = names[:1]
    overloads = [getattr(packet, name or "default") for name in names if (name or "default") in packet.overloads()]
    pure = [f for f in overloads if not schema_of(f).is_mutable]
    return next((f for f in pure if _parameters(f) == _parameters(target)), None)


def _parameters(function) -> list[tuple[str, str]]:
    arguments = schema_of(function).arguments
    return [(argument.name, str(argument.type)) for argument in arguments if not _is_out(argument)]


def _is_view(function) -> bool:
    return any(result.alias_info is not None for result in schema_of(function).returns)


def memory(node):
    """A key of the memory that a node shows; None for what is no tensor."""
    while _is_passed_on(node):
        node = node.args[0]
    value = node.meta.get("val") if isinstance(node, torch.fx.Node) else None
    try:
        return memory_of(value) if isinstance(value, Tensor) else None
    except NotImplementedError:
        assert isinstance(value, Tensor)
        raise TraceError(no_memory_message(value, line_of(node))) from None


def _is_passed_on(node) -> bool:
    """Whether a node is what it is given: a dropout in evaluation, of which torch before 2.14 traces a copy."""
    if not (isinstance(node, torch.fx.Node) and isinstance(node.target, Operator)):
        return False
    if not row_named(operator_name(node.target)).is_identity or not node.args:
        return False
    names, values, _ = normalize(node)
    return "train" in names and values[names.index("train")] is False


def origin(node) -> Origin:
    """The modules that a node was made in."""
    stack = node.meta.get("nn_module_stack", {}).items()
    inside = [(key, path) for key, (path, _) in stack if isinstance(path, str) and path.startswith("model")]
    return Origin(tuple([(path.removeprefix("model").removeprefix("."), key) for key, path in inside]))


def is_random(function) -> bool:
    """Whether a function draws random numbers."""
    return torch.Tag.nondeterministic_seeded in getattr(function, "tags", ())


def draws(node) -> bool:
    """Whether a node draws random numbers, which most that can do so do in training alone."""
    if not is_random(node.target):
        return False
    names, values, _ = normalize(node)
    switches = [value for name, value in zip(names, values, strict=True) if name in ("train", "training", "dropout_p")]
    return any(switches) or not switches


def writes(node) -> bool:
    """Whether a node writes to what it is given."""
    return isinstance(node.target, Operator) and schema_of(node.target).is_mutable


def unsupported_message(name: str, source: str) -> str:
    """Why a model with a higher-order operator is refused, and the way out."""
    ways = {
        "while_loop": "how often it runs is only known when it runs. Write a for loop over a fixed number of steps",
        "wrap_with_autocast": "it computes in another precision. Remove it from forward",
    }
    why = ways.get(name, "its function is no equation. Call that as it is")
    return f"'{name}' at {source} is not supported: {why}."


def random_message(name: str, source: str) -> str:
    """Why a model that draws random numbers is refused, and the way out."""
    return (
        f"'{name}' at {source} draws random numbers, but a program is a function: "
        "make them an input, or call model.eval() if only training needs them."
    )
