"""The table of operations: every row is run and is what it says, and no other module lists operations."""

import ast
import dataclasses
import functools
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lrpfunc
from lrpfunc import composites
from lrpfunc.errors import RuleError
from lrpfunc.operations import (
    KINDS,
    SPELLINGS,
    TABLE,
    USUAL_NAMES,
    bind,
    facts,
    is_active,
    kind,
    nonnegative,
    row_of,
)
from lrpfunc.operations.kinds import LINEAR
from lrpfunc.operations.pullbacks import differentiable
from lrpfunc.program import functions
from lrpfunc.tracing import trace_along
from tests.helpers import randomize
from tests.samples import SAMPLES, X, Y, random

aten = torch.ops.aten


def close(got, expected, tolerance=1e-12) -> None:
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


@functools.cache
def traced(key: str):
    """The program of a sample, its parameters, and the equation of the row that it is a sample of."""
    program, params = SAMPLES[key].trace()
    name = key.partition(":")[0]
    found = [equation for equation in program.equations if equation.operator == name]
    assert found, f"no {name} in {[equation.operator for equation in program.equations]}"
    return program, params, found[0]


def evaluated(program, params, inputs) -> dict:
    """The values of all variables."""
    values = program.bind(params, inputs)
    for equation in program.equations:
        program.store(equation, equation.evaluate(values), values)
    return values


@functools.cache
def bound(key: str):
    """The operation of a sample at its active inputs, and these inputs; None for what has none."""
    program, params, equation = traced(key)
    values = evaluated(program, params, SAMPLES[key].inputs)
    inputs = [values[variable.name].detach() for variable in facts(program).inputs_of(equation)]
    return (bind(program, equation, values).at(inputs), inputs) if inputs else None


def gradients(operation, inputs):
    """A cotangent of the operation's value (or values), and what autograd makes of it."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    value = differentiable(operation(*leaves))
    parts = value if isinstance(value, tuple) else (value,)
    s = tuple(torch.randn_like(part) for part in parts)
    expected = torch.autograd.grad(parts, leaves, s, allow_unused=True, materialize_grads=True)
    return (s if isinstance(value, tuple) else s[0]), expected


def keys_where(test) -> list[str]:
    return [key for key in SAMPLES if test(TABLE[key.partition(":")[0]])]


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*TABLE, *USUAL_NAMES, *SPELLINGS])
def test_every_name_exists(name):
    where = (aten, functions, torch.ops.torchvision)
    assert any(callable(getattr(each, name, None)) for each in where)


def test_second_names_are_no_rows():
    assert not (USUAL_NAMES.keys() | SPELLINGS.keys()) & TABLE.keys()


def test_every_row_has_a_sample():
    rows = {name for name, row in TABLE.items() if not row.is_identity and not row.is_assertion}
    assert rows == {key.partition(":")[0] for key in SAMPLES}


SECOND_NAMES = {
    "clip": lambda x: aten.clip(x, 0.0, 1.0),
    "absolute": aten.absolute,
    "subtract": lambda x: aten.subtract(x, 1.0),
    "negative": aten.negative,
    "multiply": lambda x: aten.multiply(x, 2.0),
    "divide": lambda x: aten.divide(x, 2.0),
    "true_divide": lambda x: aten.true_divide(x, 2.0),
    "view": lambda x: aten.view(x, [2, 24]),
    "_unsafe_view": lambda x: aten._unsafe_view(x, [2, 24]),
    "concat": lambda x: aten.concat([x, x]),
    "concatenate": lambda x: aten.concatenate([x, x]),
    "moveaxis": lambda x: aten.moveaxis(x, [0], [1]),
}


@pytest.mark.parametrize("name", USUAL_NAMES)
def test_a_second_name_becomes_the_rows_own(name):
    function = SECOND_NAMES[name]
    program, params = trace_along(lambda _, x: function(x), {}, [X], [()])
    assert [equation.operator for equation in program.equations] == [USUAL_NAMES[name]]
    close(program(params, X), function(X), 0)


IDENTITIES = {
    **{
        name: functools.partial(lambda f, x: f(x, 0.5, False), getattr(aten, name))
        for name in TABLE
        if "dropout" in name
    },
    "alias": aten.alias,
    "lift_fresh": aten.lift_fresh,
    "lift_fresh_copy": aten.lift_fresh_copy,
}


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row.is_identity])
def test_an_identity_leaves_no_equation(name):
    program, params = trace_along(lambda _, x: IDENTITIES[name](x) + 1, {}, [X], [()])
    assert [equation.operator for equation in program.equations] == ["add"]
    close(program(params, X), X + 1, 0)


# -- every row is run -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", SAMPLES)
def test_a_program_has_the_value_of_its_function(key):
    program, params, _ = traced(key)
    close(program(params, *SAMPLES[key].inputs), SAMPLES[key].function(*SAMPLES[key].inputs))


@pytest.mark.parametrize("key", SAMPLES)
def test_a_row_has_the_kind_of_its_equation(key):
    program, _, equation = traced(key)
    found = kind(program, equation)
    assert found in KINDS
    given = TABLE[equation.operator].kind
    if isinstance(given, str):
        assert found == given
    elif key in KINDS_OF_SAMPLES:
        assert found == KINDS_OF_SAMPLES[key]
    elif is_active(program, equation):
        assert found != "other"


@pytest.mark.parametrize("key", SAMPLES)
def test_adjoint_is_the_gradient_of_what_is_linear(key):
    if bound(key) is None or not bound(key)[0].is_linear:
        return
    operation, inputs = bound(key)
    if not all(x.is_floating_point() for x in inputs):
        return  # token ids, which have no gradient
    s, expected = gradients(operation, inputs)
    got = operation.adjoint(s)
    close(got if isinstance(got, tuple) else (got,), expected)


@pytest.mark.parametrize("key", keys_where(lambda row: row.pullback))
def test_pullback_is_the_gradient_of_both(key):
    operation, inputs = bound(key)
    if len(inputs) == 2:
        s, expected = gradients(operation, inputs)
        pulled = operation.row.pullback(operation, inputs, s)
        assert (pulled is None) == (min(x.dim() for x in inputs) < 2 and operation.operator != "mul")
        close(operation.vjp(inputs, s), expected)


def test_every_pullback_has_a_sample_with_two_active_inputs():
    both = {key.partition(":")[0] for key in SAMPLES if bound(key) is not None and len(bound(key)[1]) == 2}
    assert {name for name, row in TABLE.items() if row.pullback} <= both


def weighted(key: str) -> bool:
    return TABLE[key.partition(":")[0]].positions is not None


@pytest.mark.parametrize("key", list(filter(weighted, SAMPLES)))
def test_adjoint_of_a_layer_has_a_derivative(key):
    operation, inputs = bound(key)
    if len(inputs) > 1:
        return  # a product of two values
    assert operation.is_weighted
    assert operation.is_linear == (operation.kind != "recurrent")
    if not operation.is_linear:
        return
    s, _ = gradients(operation, inputs)
    t = torch.randn_like(s)
    _, derivative = torch.func.jvp(operation.adjoint, (s,), (t,))
    close(derivative, operation.adjoint(t))


@pytest.mark.parametrize("key", keys_where(lambda row: row.outputs))
def test_an_offset_adds_epsilon_to_every_output(key):
    operation, inputs = bound(key)
    shifted = operation.linear(operation.weight, operation.offset(operation.bias, 0.25))
    close(shifted(*inputs), operation(*inputs) + 0.25)


@pytest.mark.parametrize("key", [key for key in keys_where(lambda row: row.ratio) if key != "pow: zero"])
def test_ratio_is_the_quotient_and_the_slope_at_zero(key):
    operation, _ = bound(key)
    is_root = key == "pow: root"  # of positive numbers, and without a slope at zero
    x = torch.linspace(0.1 if is_root else -3, 3, 13, dtype=torch.float64).requires_grad_()
    ratio = operation.row.ratio(x.detach(), *operation.arguments[1:], **operation.keywords)
    value = operation.function(x, *operation.arguments[1:], **operation.keywords)
    close(ratio * x, value)
    (slope,) = torch.autograd.grad(value.sum(), x)
    if not is_root:
        assert (x == 0).any()
    close(ratio[x == 0], slope[x == 0])


@pytest.mark.parametrize("key", keys_where(lambda row: row.rectifies))
def test_what_rectifies_is_the_relu(key):
    operation, (x,) = bound(key)
    close(operation(x), torch.where(x > 0, x, 0.0), 0)


@pytest.mark.parametrize("key", SAMPLES)
@pytest.mark.parametrize("is_ranged", [False, True])
def test_what_is_never_below_zero_is_not(key, is_ranged):
    program, params, _ = traced(key)
    labels = [leaf.label for leaf in program.input_leaves if is_ranged and leaf.value.is_floating]
    known = nonnegative(program, dict.fromkeys(labels, (0.0, 1.0)))
    for seed in range(3):
        inputs = [x if not x.is_floating_point() else random(*x.shape, seed=seed + 5) for x in SAMPLES[key].inputs]
        if is_ranged:
            inputs = [x.sigmoid() if x.is_floating_point() else x for x in inputs]
        values = evaluated(program, params, tuple(inputs))
        for name in known & values.keys():
            assert not (values[name] < 0).any(), name  # roots of negative numbers are no numbers


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row.sign])
def test_every_sign_is_found_somewhere(name):
    found = False
    for key in SAMPLES:
        if key.partition(":")[0] == name:
            program, _, equation = traced(key)
            labels = [leaf.label for leaf in program.input_leaves]
            found |= equation.outputs[0].name in nonnegative(program, dict.fromkeys(labels, (0.0, 1.0)))
    assert found


BY_ARGUMENTS = {"pow": ["pow: zero"], "float_power": [], "div": ["div: rounded"], "sgn": ["sgn"]}


@pytest.mark.parametrize("key", keys_where(lambda row: row.is_constant))
def test_a_constant_is_not_active(key):
    program, _, equation = traced(key)
    name = key.partition(":")[0]
    assert is_active(program, equation) != (key in BY_ARGUMENTS.get(name, [key]))


@pytest.mark.parametrize("key", keys_where(lambda row: row.shape_giver is not None))
def test_no_relevance_goes_to_what_gives_a_shape(key):
    program, _, equation = traced(key)
    giver = equation.arguments[TABLE[equation.operator].shape_giver]
    assert giver not in facts(program).inputs_of(equation)


@pytest.mark.parametrize("key", keys_where(lambda row: row.smooth or row.remember))
def test_what_is_remembered_gives_the_gradient(key):
    operation, inputs = bound(key)
    s, expected = gradients(operation, inputs)
    close(operation.smooth(*inputs), operation(*inputs))
    value, memory = operation.remembering(*inputs)
    close(value, operation(*inputs))
    for moved in (operation.recall(memory, inputs, s), operation.vjp(inputs, s)):
        close(moved if isinstance(moved, tuple) else (moved,), expected)


# The axes over which a normalization's mean is taken, None for given statistics or (RMS) no mean.
MEANS = {"layer_norm": (-1,), "layer_norm: two": (-2, -1), "group_norm": (2, 3), "instance_norm": (2,)}


@pytest.mark.parametrize("key", keys_where(lambda row: row.form))
def test_a_form_is_the_normalization_with_its_deviation_constant(key):
    operation, (x,) = bound(key)
    value, scale = operation.row.form.statistics(operation, x)
    close(value, operation(x))
    grouped = x.reshape(2, 2, 2, 6) if key == "group_norm" else x
    axes = MEANS.get(key)
    centered = grouped - grouped.mean(axes, keepdim=True) if axes else grouped
    centered = centered.reshape(x.shape)
    # What multiplies it is (y - b) / (x - mean): a number for each entry that does not depend on x.
    shift = operation(x * 0 + x.mean(axes, keepdim=True)) if axes and key != "group_norm" else None
    if shift is None:
        shift = operation(torch.zeros_like(x))
    factor = (value - shift) / centered
    c = random(*x.shape, seed=7)
    u = c * factor
    if axes:
        wide = u.reshape(grouped.shape)
        u = (wide - wide.mean(axes, keepdim=True)).reshape(x.shape)
    close(operation.row.form.adjoint(operation, c, scale), u, 1e-10)


@pytest.mark.parametrize("key", keys_where(lambda row: row.is_spatial))
def test_what_keeps_uniform_values_does(key):
    _, _, equation = traced(key)
    operation, (x,) = bound(key)
    keeps = operation.row.keeps_uniform is None or operation.row.keeps_uniform(equation)
    value = operation(torch.full_like(x, 3.0))
    assert keeps == torch.allclose(value, torch.full_like(value, 3.0), rtol=1e-12, atol=0)


@pytest.mark.parametrize("key", [key for key in keys_where(lambda row: row.bounds) if "another" not in key])
def test_bounds_are_the_activation_as_a_clamp(key):
    operation, (x,) = bound(key)
    found = operation.row.bounds(traced(key)[2])
    inside = x.clamp(*(torch.as_tensor(end, dtype=x.dtype) for end in found[:2]))
    close(operation(x), inside + found.slope * (x - inside))


# -- kinds by which arguments are active ------------------------------------------------------------------------------

KINDS_OF_SAMPLES = {
    "mm: both": "bilinear",
    "bmm: both": "bilinear",
    "matmul: both": "bilinear",
    "einsum: both": "bilinear",
    "mul: both": "product",
    "mul": "affine",
    "div": "affine",
    "div: right": "elementwise",
    "add": "affine",
    "add: both": "sum",
    "sub: right": "affine",
    "softmax": "softmax",
    "embedding": "embedding",
    "embedding: table": "movement",
}

IMAGE, KERNEL, WEIGHT, BIAS = random(2, 4, 6), random(5, 4, 3), random(5, 6), random(5)
MATRIX, IDS = random(3, 6), torch.tensor([0, 2, 1])
BASE = X.abs() + 0.5
EXCEPTIONS = {
    "conv1d of an active weight": (lambda w: F.conv1d(IMAGE, w), (KERNEL,), "other"),
    "conv1d of both": (lambda x, w: F.conv1d(x, w, BIAS), (IMAGE, KERNEL), "bilinear"),
    "conv1d of an active bias": (lambda b: F.conv1d(IMAGE, KERNEL, b), (BIAS,), "other"),
    "conv1d of input and bias": (lambda x, b: F.conv1d(x, KERNEL, b), (IMAGE, BIAS), "other"),
    "conv1d of all": (F.conv1d, (IMAGE, KERNEL, BIAS), "other"),
    "conv1d": (lambda x: F.conv1d(x, KERNEL), (IMAGE,), "convolution"),
    "linear of an active weight": (lambda w: F.linear(X, w), (WEIGHT,), "other"),
    "linear of both": (F.linear, (X, WEIGHT), "bilinear"),
    "linear of input and bias": (lambda x, b: F.linear(x, WEIGHT, b), (X, BIAS), "other"),
    "linear": (lambda x: F.linear(x, WEIGHT, BIAS), (X,), "dense"),
    "mm of the second": (lambda y: torch.mm(MATRIX, y), (WEIGHT.T.contiguous(),), "dense"),
    "mm of both": (torch.mm, (MATRIX, WEIGHT.T.contiguous()), "bilinear"),
    "addmm": (lambda x: torch.addmm(BIAS, x, WEIGHT.T), (MATRIX,), "dense"),
    "addmm of an active weight": (lambda w: torch.addmm(BIAS, MATRIX, w), (WEIGHT.T.contiguous(),), "other"),
    "addmm of both": (lambda x, w: torch.addmm(BIAS, x, w), (MATRIX, WEIGHT.T.contiguous()), "bilinear"),
    "addmm of an active bias": (lambda b: torch.addmm(b, MATRIX, WEIGHT.T), (BIAS,), "affine", "add"),
    "pow of a number": (lambda x: x**1.5, (BASE,), "elementwise"),
    "pow of an active exponent": (lambda y: BASE**y, (Y,), "other"),
    "pow of a number's power": (lambda y: 2.0**y, (Y,), "other"),
    "pow of both": (torch.pow, (BASE, Y), "other"),
    "pow of a tensor": (lambda x: torch.pow(x, Y), (BASE,), "other"),
    "div of the numerator": (lambda x: x / BASE, (Y,), "affine"),
    "div of the denominator": (lambda y: Y / y, (BASE,), "elementwise"),
    "div of both": (torch.div, (Y, BASE), "normalization"),  # its denominator counts as a constant
    "embedding of ids": (lambda ids: F.embedding(ids, WEIGHT), (IDS,), "embedding"),
    "embedding of a table": (lambda table: F.embedding(IDS, table), (WEIGHT,), "movement"),
    "layer_norm": (lambda x: F.layer_norm(x, (6,), WEIGHT[0], WEIGHT[1]), (X,), "normalization"),
    "layer_norm of an active weight": (lambda w: F.layer_norm(X, (6,), w), (WEIGHT[0].clone(),), "other"),
    "layer_norm of both": (lambda x, w: F.layer_norm(x, (6,), w), (X, WEIGHT[0].clone()), "other"),
    "einsum of two": (lambda x, y: torch.einsum("bci,bdi->bcd", x, y), (X, Y), "bilinear"),
    "einsum of one and a weight": (lambda x: torch.einsum("bci,oi->bco", x, WEIGHT), (X,), "dense"),
    "einsum of three": (lambda x, y, z: torch.einsum("bci,bci,bci->bc", x, y, z), (X, Y, X), "bilinear", "einsum"),
    "softmax": (lambda x: x.softmax(-1), (X,), "softmax"),
    "mul of both": (lambda x, y: x * y, (X, Y), "product"),
    "mul of one": (lambda x: x * Y, (X,), "affine"),
    "add of both": (lambda x, y: x + y, (X, Y), "sum"),
    "add of one": (lambda x: x + Y, (X,), "affine"),
    "addcmul of two": (lambda x, y: torch.addcmul(x, y, BASE), (X, Y), "sum", "add"),
}


@pytest.mark.parametrize("case", EXCEPTIONS)
def test_kinds_by_which_arguments_are_active(case):
    function, inputs, expected, *written_out = EXCEPTIONS[case]
    program, _ = trace_along(lambda _, *x: function(*x), {}, list(inputs), [()] * len(inputs))
    (name,) = written_out or [case.partition(" ")[0]]
    kinds = [kind(program, e) for e in program.equations if e.operator == name]
    assert set(kinds) == {expected}
    assert len(kinds) == 1 or written_out


# -- how channels move ------------------------------------------------------------------------------------------------

MOVES = {
    "transpose": lambda x: x.transpose(1, -1),
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "permute: cycle": lambda x: x.permute(3, 0, 1, 2),
    "reshape": lambda x: x.reshape(3, 4, 30),
    "reshape: flatten": lambda x: x.flatten(1),
    "reshape: groups": lambda x: x.reshape(3, 2, 2, 5, 6),
    "mean": lambda x: x.mean((2, 3)),
    "mean: kept": lambda x: x.mean((2, 3), keepdim=True),
}


@pytest.mark.parametrize("case", MOVES)
def test_channels_move_to_the_right_as_values_do_and_back(case):
    index = np.arange(4).reshape(1, 4, 1, 1)
    x = torch.from_numpy(index).double().expand(3, 4, 5, 6).contiguous()  # each value says its channel
    program, _ = trace_along(lambda _, x: MOVES[case](x), {}, [x], [()])
    (equation,) = program.equations
    moves = row_of(equation).moves
    right = moves(equation, index, False)
    value = MOVES[case](x)
    np.testing.assert_allclose(np.broadcast_to(right, value.shape), value.numpy(), rtol=0, atol=1e-12)
    np.testing.assert_array_equal(moves(equation, right, True), index)


# -- no other module lists operations ---------------------------------------------------------------------------------

FOLDER = Path(lrpfunc.__file__).parent
FILES = sorted(path for path in FOLDER.rglob("*.py") if path.relative_to(FOLDER).parts[0] != "operations")
ROWS = (TABLE.keys() | USUAL_NAMES.keys() | SPELLINGS.keys()) - {*KINDS, LINEAR}

# What may hold names of operations, by file and one of the names, and why.
MAY_LIST = {
    ("program/functions.py", "conv1d"): "the functions of this very module, by the convolution that each one extends",
    ("rules/__init__.py", "clamp"): "rules that have the names of operations",
    ("pictures/runs.py", "std"): "the names of a classifier's mean and standard deviation",
    ("pictures/workfile.py", "std"): "the names of a classifier's mean and standard deviation",
    ("pictures/shards.py", "std"): "the names of a classifier's mean and standard deviation",
}


def displays(tree) -> Iterator[list]:
    """The elements of each tuple, list and set, the keys of each dict, and the alternatives of each pattern."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
            yield node.elts
        elif isinstance(node, ast.Dict):
            yield node.keys
        elif isinstance(node, ast.MatchOr):
            yield [pattern.value for pattern in node.patterns if isinstance(pattern, ast.MatchValue)]


def contents(tree) -> set[int]:
    """The nodes of docstrings and of lists of what a module exports."""
    found = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            found.add(id(body[0].value))
        if isinstance(node, ast.Assign) and any(getattr(name, "id", "") == "__all__" for name in node.targets):
            found.update(id(inner) for inner in ast.walk(node))
    return found


def operation_named(node) -> str | None:
    """The row that an element names: as a string, or as torch's function."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value if node.value in ROWS else None
    if isinstance(node, ast.Attribute) and node.attr in ROWS:
        return node.attr if ast.unparse(node.value) in ("torch", "F", "aten", "torch.ops.aten") else None
    return None


def lists_of_operations(source: str) -> list[list[str]]:
    """All lists with two or more names of rows in a module."""
    tree = ast.parse(source)
    left_out = contents(tree)
    found = [[name for element in elements if (name := operation_named(element))] for elements in displays(tree)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in left_out:
            words = node.value.split()
            if all(word.isidentifier() for word in words):  # English has capitals, stops, or words that are no rows
                names = [word for word in words if word in ROWS]
                found.append(names if 2 * len(names) >= len(words) else [])
    return [names for names in found if len(names) > 1]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_no_other_module_lists_operations(path):
    file = path.relative_to(FOLDER).as_posix()
    lists = lists_of_operations(path.read_text())
    assert [names for names in lists if not any((file, name) in MAY_LIST for name in names)] == []


@pytest.mark.parametrize(("file", "name"), MAY_LIST)
def test_every_exception_is_needed(file, name):
    assert any(name in names for names in lists_of_operations((FOLDER / file).read_text()))


@pytest.mark.parametrize(
    "source",
    [
        'A = ("relu", "gelu")',
        'A = {"relu": 1, "gelu": 2}',
        'A = "relu gelu".split()',
        'def f(x): return x in {"relu", "gelu"}',
        "A = [F.relu, torch.gelu]",
        'match x:\n    case "relu" | "gelu": pass',
    ],
)
def test_a_list_of_operations_is_found(source):
    assert lists_of_operations(source) == [["relu", "gelu"]]


# -- operations -------------------------------------------------------------------------------------------------------


def test_an_adjoint_of_a_wrong_shape_is_an_error_of_our_own():
    operation, (x,) = bound("linear")
    wrong = dataclasses.replace(operation, row=operation.row._replace(adjoint=lambda operation, s: s[..., :1]))
    text = r"the adjoint of '.*' \(linear\) must give its input's shape, \(2, 4, 6\), but gave \(2, 4, 1\)"
    with pytest.raises(RuleError, match=text):
        wrong.adjoint(operation(x))


def test_a_pullback_of_a_wrong_shape_is_one_too():
    operation, inputs = bound("mm: both")
    row = operation.row._replace(pullback=lambda operation, inputs, s: (s, s))
    with pytest.raises(RuleError, match="must give its input's shape"):
        dataclasses.replace(operation, row=row).vjp(inputs, operation(*inputs))


def test_what_is_not_linear_has_no_adjoint():
    operation, (x,) = bound("relu")
    with pytest.raises(RuleError, match="is not linear in its inputs, but the rule needs a linear equation"):
        operation.adjoint(x)


def test_what_has_no_weight_says_so():
    operation, (x,) = bound("relu")
    with pytest.raises(RuleError, match="has no weight, but the rule needs a weighted equation"):
        operation.linear(x)


def test_an_operation_is_frozen():
    operation, _ = bound("linear")
    with pytest.raises(dataclasses.FrozenInstanceError):
        operation.kind = "other"
    with pytest.raises(dataclasses.FrozenInstanceError):
        operation.copy().weights = 1


def test_what_is_hoisted_is_made_once_and_not_shared():
    operation, _ = bound("linear")
    made = []

    def first(operation):
        made.append("first")
        return operation.weight * 2

    def second(operation):
        made.append("second")
        return operation.hoisted(first) + 1

    prepared = operation.hoisting([first, second])
    for _ in range(2):
        close(prepared.hoisted(second), operation.weight * 2 + 1, 0)
    assert made == ["first", "second"]
    assert not operation.hoists
    other = prepared.linear(torch.ones_like(operation.weight))
    assert not other.hoists
    close(other.hoisted(first), torch.full_like(operation.weight, 2.0), 0)
    assert prepared.hoists.keys() == {first, second}


def test_facts_are_made_once():
    program, _, _ = traced("linear")
    assert facts(program) is facts(program)


# -- core-ATen spellings ----------------------------------------------------------------------------------------------


class Spelled(nn.Module):
    """Every layer that core ATen spells otherwise, in some dimensions."""

    def __init__(self, dimensions: int):
        super().__init__()
        n = dimensions - 1
        self.conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[n](3, 4, 3, padding=1)
        self.batch_norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[n](4)
        self.back = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[n](4, 6, 3, 2, 1, 1, groups=2)
        self.group_norm = nn.GroupNorm(2, 6)
        self.pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[n](2)
        self.layer_norm = nn.LayerNorm(6 * 2**dimensions)
        self.head = nn.Linear(6 * 2**dimensions, 5)

    def forward(self, x):
        x = self.batch_norm(self.conv(x)).relu()
        x = self.group_norm(self.back(x)).relu()
        x = self.layer_norm(self.pool(x).flatten(1))
        return self.head(x.softmax(1)).log_softmax(1)


class Block(nn.Module):
    """A transformer's layer, its attention written out: what torch decomposes the fused one into is other code."""

    def __init__(self):
        super().__init__()
        self.norm, self.second_norm = nn.LayerNorm(6), nn.LayerNorm(6)
        self.query, self.key, self.value, self.out = (nn.Linear(6, 6) for _ in range(4))
        self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 6)

    def forward(self, x):
        y = self.norm(x)
        weights = (self.query(y) @ self.key(y).transpose(1, 2) / 6**0.5).softmax(-1)
        x = x + self.out(weights @ self.value(y))
        return (x + self.down(F.gelu(self.up(self.second_norm(x))))).mean(1)


MODELS = {
    "1d": (lambda: Spelled(1), (2, 3, 6)),
    "2d": (lambda: Spelled(2), (2, 3, 6, 5)),
    "3d": (lambda: Spelled(3), (2, 3, 4, 5, 3)),
    "block": (Block, (2, 4, 6)),
}


def decomposed(model, x):
    return torch.export.export(model, (x,)).run_decompositions().module()


def jit_traced(model, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, but its modules are still about
        return torch.jit.trace(model, x)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("respell", [decomposed, jit_traced])
def test_core_aten_spellings_have_the_relevance_of_the_module(name, respell):
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model, x = randomize(make().double()), random(*shape)
    programs = [lrpfunc.functionalize(each, x) for each in (model, respell(model, x))]
    presets = [composites.attn_lrp()] if name == "block" else [composites.epsilon_plus_flat(), composites.attn_lrp()]
    for preset in presets:
        relevances = []
        for program, params in programs:
            canonical = lrpfunc.canonize(program, params)
            relevances.append(lrpfunc.attribute(canonical.fmodel, canonical.params, x, preset, target=1))
        assert relevances[0].abs().max() > 1e-6
        close(relevances[1], relevances[0])


@pytest.mark.parametrize("name", MODELS)
def test_no_core_aten_spelling_is_left(name):
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model, x = randomize(make().double()), random(*shape)
    program, _ = lrpfunc.functionalize(decomposed(model, x), x)
    operators = {equation.operator for equation in program.equations}
    assert not operators & SPELLINGS.keys()
