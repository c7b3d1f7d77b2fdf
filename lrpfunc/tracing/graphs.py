"""What a node of an exported graph says: its operation under its usual name, its arguments, memory and module.

It knows `torch.fx` graphs on `torch.export`'s training IR, and nothing of how they were made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lrpfunc.errors import TraceError
from lrpfunc.program import operator_name
from lrpfunc.tracing.source_lines import line_of

aten = torch.ops.aten


# -- what operations need ---------------------------------------------------------------------------------------------


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What is the identity in a deterministic evaluation, and what checks only what a program checks itself.
IDENTITIES = _words(
    "dropout dropout_ feature_dropout feature_dropout_ alpha_dropout alpha_dropout_ feature_alpha_dropout "
    "feature_alpha_dropout_ alias lift_fresh lift_fresh_copy"
)
ASSERTIONS = _words(
    "_assert_tensor_metadata _assert_scalar _assert_async sym_constrain_range sym_constrain_range_for_size"
)

# Operations that are random in training only, and the arguments by which they are not.
RANDOM_IN_TRAINING = _words("scaled_dot_product_attention lstm gru rnn_tanh rnn_relu rrelu")
DETERMINISTIC = {"dropout_p": 0.0, "dropout": 0.0, "train": False, "training": False}

# Operations of which one argument gives a shape and no values, with its position.
SHAPE_GIVING = {
    **dict.fromkeys(_words("zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty"), 0),
    **dict.fromkeys(_words("fill zero copy"), 0),
    **dict.fromkeys(_words("expand_as view_as reshape_as type_as"), 1),
}

# Operations that return the tensor they were given where nothing is to be done.
WHOLE = IDENTITIES | {"contiguous", "to", "type_as", "detach"}

# One name for what has several. A view fails for some memory layouts, where a reshape does not.
SYNONYMS = {
    "view": "reshape", "_unsafe_view": "reshape", "concat": "cat", "concatenate": "cat", "clip": "clamp",
    "multiply": "mul", "divide": "div", "true_divide": "div", "subtract": "sub", "negative": "neg", "absolute": "abs",
    "moveaxis": "movedim",
}  # fmt: skip


def is_symbolic(n) -> bool:
    """Whether a size may differ from call to call."""
    return isinstance(n, torch.SymInt) and not n.node.expr.is_number


class Origin(NamedTuple):
    """The call (as a key) and the path of the innermost module that made an equation."""

    call: str
    path: str


# -- nodes ------------------------------------------------------------------------------------------------------------


def normalize(node) -> tuple[list[str], list, dict[str, Any]]:
    """The names and values of the arguments in the schema's order, defaults filled in; keyword-only ones apart."""
    names, positional, keywords = [], [], {}
    for i, argument in enumerate(node.target._schema.arguments):
        if not argument.kwarg_only:
            names.append(argument.name)
            given = node.args[i : i + 1] or [node.kwargs.get(argument.name, argument.default_value)]
            positional.append(given[0])
        elif node.kwargs.get(argument.name) is not None:
            keywords[argument.name] = node.kwargs[argument.name]
    return names, positional, keywords


def usual(function):
    """The operation under its usual name."""
    packet = getattr(aten, SYNONYMS.get(operator_name(function), ""), None)
    return getattr(packet, function._overloadname, function)


def functional_twin(node) -> Callable:
    """What gives as a new tensor (or, for `unsqueeze_` and the like, a view) what an in-place operation writes."""
    name, schema = operator_name(node.target), node.target._schema
    packet = getattr(aten, name.removesuffix("_"), None) if node.target.namespace == "aten" else None
    twin = getattr(packet, node.target._overloadname, None)
    written = [argument.name for argument in schema.arguments if argument.is_write]
    is_view = torch.Tag.inplace_view in node.target.tags
    if twin is None or twin._schema.is_mutable or written != [schema.arguments[0].name] or is_view != _is_view(twin):
        if is_random(node.target):
            raise TraceError(random_message(name, line_of(node)))
        raise TraceError(
            f"the in-place operation '{name}' at {line_of(node)} has no functional twin. "
            "Replace it by one that returns a new tensor."
        )
    return twin


def _is_view(function) -> bool:
    return any(result.alias_info is not None for result in function._schema.returns)


def memory(node):
    """A key of the memory that a node shows; None for what is no tensor."""
    value = node.meta.get("val") if isinstance(node, torch.fx.Node) else None
    return value.untyped_storage()._cdata if isinstance(value, Tensor) else None


def origin(node) -> Origin:
    """The call (as a key) and the path of the innermost module that made a node."""
    stack = node.meta.get("nn_module_stack", {}).items()
    inside = [(key, path) for key, (path, _) in stack if isinstance(path, str) and path.startswith("model")]
    key, path = inside[-1] if inside else ("", "")
    return Origin(key, path.removeprefix("model").removeprefix("."))


def is_random(function) -> bool:
    """Whether a function draws random numbers."""
    return torch.Tag.nondeterministic_seeded in getattr(function, "tags", ())


def random_message(name: str, source: str) -> str:
    """Why a model that draws random numbers is refused, and the way out."""
    return (
        f"'{name}' at {source} draws random numbers, but a program is a function: "
        "make them an input, or call model.eval() if only training needs them."
    )
