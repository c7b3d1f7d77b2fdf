"""Open sizes in words and numbers: `((height - 1)//2) + 1`, and what must hold of them, `2*(height//2) == height`.

Expressions come from torch.export, and out of files that anybody may have written: only arithmetic is read.
"""

from __future__ import annotations

import ast
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from lrpfunc.errors import InputError

Ranges = Mapping[str, tuple[int, int | None]]  # by open size

ARITHMETIC = (
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Constant, ast.Call, ast.Name, ast.Load),
    *(ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.USub, ast.BitAnd, ast.BitOr),
    *(ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE),
)

# As torch calls them.
FUNCTIONS: dict[str, Callable] = {
    "Eq": lambda a, b: a == b,
    "Ne": lambda a, b: a != b,
    "Mod": lambda a, b: a % b,
    "PythonMod": lambda a, b: a % b,
    "Max": max,
    "Min": min,
    "ToFloat": float,
    "FloatTrueDiv": lambda a, b: a / b,
    "IntTrueDiv": lambda a, b: a / b,
    "TruncToInt": math.trunc,
    "FloorToInt": math.floor,
    "CeilToInt": math.ceil,
}

LONGEST = 120  # of an expression in a message


class _BySize(ast.NodeTransformer):
    """Names of sizes become look-ups of them. Errors: `ValueError` for what is no arithmetic."""

    def visit(self, node: ast.AST) -> ast.AST:
        is_number = not isinstance(node, ast.Constant) or type(node.value) in (int, float)
        if not isinstance(node, ARITHMETIC) or not is_number or (isinstance(node, ast.Call) and node.keywords):
            raise ValueError(f"'{ast.unparse(node)}' is no arithmetic of sizes")
        return super().visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if not isinstance(node.func, ast.Name) or node.func.id not in FUNCTIONS:
            raise ValueError(f"nothing is known of '{ast.unparse(node.func)}'")
        return ast.Call(node.func, [cast(ast.expr, self.visit(argument)) for argument in node.args], [])

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        is_small = isinstance(node.right, ast.Constant) and node.right.value in range(5)
        if isinstance(node.op, ast.Pow) and not is_small:  # a number that no memory holds
            raise ValueError(f"'{ast.unparse(node)}' is no arithmetic of sizes")
        return self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Subscript(ast.Name("sizes", ast.Load()), ast.Constant(node.id), ast.Load())


@functools.cache
def function_of(expression: str) -> Callable[[Mapping[str, int]], int | bool]:
    """An expression of sizes as a function of these, by their names. Errors: `ValueError` for anything else.

    >>> function_of("((height - 1)//2) + 1")({"height": 7})
    4
    """
    try:
        body = cast(ast.Expression, _BySize().visit(ast.parse(expression, mode="eval"))).body
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"'{expression[:LONGEST]}' is no arithmetic of sizes") from error
    of = [ast.arg("sizes")]
    function = ast.Lambda(ast.arguments(posonlyargs=[], args=of, kwonlyargs=[], kw_defaults=[], defaults=[]), body)
    code = compile(ast.fix_missing_locations(ast.Expression(function)), "<sizes>", "eval")
    return eval(code, {"__builtins__": {}, **FUNCTIONS})


@functools.cache
def sizes_in(expression: str) -> tuple[str, ...]:
    """The names of the sizes that an expression is of, each once."""
    names = [node.id for node in ast.walk(ast.parse(expression, mode="eval")) if isinstance(node, ast.Name)]
    return tuple(dict.fromkeys(name for name in names if name not in FUNCTIONS))


@functools.cache
def spelled(expression: str) -> str:
    """An expression as Python has it, without torch's parentheses: `2*(height//2) == height`.

    Errors: `ValueError` for what is no arithmetic of sizes.

    >>> spelled("Eq(2*((height//2)), height)")
    '2*(height//2) == height'
    """
    function_of(expression)
    text = ast.unparse(_Operators().visit(ast.parse(expression, mode="eval")))
    return re.sub(r" (\*|//|/|%|\*\*) ", r"\1", text)


class _Operators(ast.NodeTransformer):
    """Python's operators in place of torch's functions of the same meaning, and fewer divisions."""

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        """(x // a + c) // b as (x + a c) // (a b), and x + a + b as x + (a + b)."""
        self.generic_visit(node)
        if isinstance(node.op, (ast.Add, ast.Sub)):
            return _shifted(node, 0)
        inner, shift = _unshifted(node.left)
        if not (isinstance(inner, ast.BinOp) and all(isinstance(n.op, ast.FloorDiv) for n in (node, inner))):
            return node
        by, before = _count(node.right), _count(inner.right)
        if not by or not before:
            return node
        return ast.BinOp(_shifted(inner.left, shift * before), ast.FloorDiv(), ast.Constant(by * before))

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        assert isinstance(node.func, ast.Name)
        if node.func.id in ("Mod", "PythonMod"):
            return ast.BinOp(node.args[0], ast.Mod(), node.args[1])
        if node.func.id in ("Eq", "Ne"):
            return ast.Compare(node.args[0], [ast.Eq() if node.func.id == "Eq" else ast.NotEq()], node.args[1:])
        return node


def _count(node: ast.expr) -> int:
    """A number of one or more, zero for anything else."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, int) and node.value > 0 else 0


def _unshifted(node: ast.expr) -> tuple[ast.expr, int]:
    """An expression without the number that is added to it, and that number."""
    if not isinstance(node, ast.BinOp) or not isinstance(node.op, (ast.Add, ast.Sub)):
        return node, 0
    if not isinstance(node.right, ast.Constant) or not isinstance(node.right.value, int):
        return node, 0
    inner, shift = _unshifted(node.left)
    return inner, shift + (node.right.value if isinstance(node.op, ast.Add) else -node.right.value)


def _shifted(node: ast.expr, by: int) -> ast.expr:
    inner, shift = _unshifted(node)
    shift += by
    return ast.BinOp(inner, ast.Add() if shift > 0 else ast.Sub(), ast.Constant(abs(shift))) if shift else inner


def with_names(expression: str, names: Mapping[str, str]) -> str:
    """An expression in other names of sizes, of which some may have none.

    >>> with_names("Eq(2*((s0//2)), s1)", {"s0": "height"})
    'Eq(2*((height//2)), s1)'
    """
    return re.sub(r"\b[a-z]\w*", lambda match: names.get(match[0], match[0]), expression)


class Given:
    """The open sizes of a call, and by these the shapes that were traced."""

    def __init__(self, sizes: Mapping[str, int]):
        self.sizes = sizes
        self.numbers: dict[str, int | None] = {}  # of expressions; None where only the data decide
        self.shapes: dict[Sequence[int | str], tuple[int | None, ...]] = {}

    def fits(self, shape: Sequence[int | str], made: Sequence[int]) -> bool:
        """Whether a shape is the one that was traced, as far as can be told."""
        wanted = self.shapes.get(shape)
        if wanted is None:
            wanted = self.shapes[shape] = tuple([n if isinstance(n, int) else self._number(n) for n in shape])
        if wanted == made or len(wanted) != len(made):
            return wanted == made
        return all(n is None or n == m for n, m in zip(wanted, made, strict=True))

    def _number(self, expression: str) -> int | None:
        if expression not in self.numbers:
            try:
                self.numbers[expression] = function_of(expression)(self.sizes)
            except (ValueError, LookupError, ArithmeticError):
                self.numbers[expression] = None
        return self.numbers[expression]


# -- what a call must fulfil ------------------------------------------------------------------------------------------


def refuse(condition: str, seen: Mapping[str, tuple[int, str]], ranges: Ranges, conditions: Sequence[str]) -> None:
    """Say that a condition does not hold, and which sizes there are near those given for which all do.

    `seen`: each open size, and the input that it is of. Errors: `InputError`.
    """
    sizes = {name: n for name, (n, _) in seen.items()}
    needs = condition if len(condition) <= LONGEST else f"{condition[:LONGEST]}..."
    names = [name for name in reversed(tuple(seen)) if name in sizes_in(condition)]  # the batch last
    for name in names:
        size, label = seen[name]
        others = [f"{other} is {n}" for other, n in sizes.items() if other != name and other in sizes_in(condition)]
        if taken := _taken(name, sizes, ranges, conditions):
            must = _regular(taken, size) or f"be {_nearest(taken, size)}"
            where = f" where {' and '.join(others)}" if others else ""
            raise InputError(f"'{name}' of input '{label}' must {must}{where}, but is {size}: the model needs {needs}.")
    listed = " and ".join(f"'{name}' of input '{seen[name][1]}' is {sizes[name]}" for name in sizes_in(condition))
    raise InputError(f"{listed}, but the model needs {needs}.")


def _taken(name: str, sizes: Mapping[str, int], ranges: Ranges, conditions: Sequence[str]) -> list[int]:
    """The sizes in place of one, up to somewhat above it, that the conditions which it is part of allow."""
    low, high = ranges.get(name, (0, None))
    end = 2 * sizes[name] + 64
    asked = [function_of(condition) for condition in conditions if name in sizes_in(condition)]
    span = range(low, end if high is None else min(end, high + 1))
    return [n for n in span if all(holds({**sizes, name: n}) for holds in asked)]


def _regular(taken: Sequence[int], size: int) -> str:
    """What these sizes have in common: all up to one, all from one on, or all multiples of a number."""
    step = math.gcd(*taken) or 1
    if list(taken) != list(range(taken[0], taken[-1] + 1, step)) or (step > 1 and len(taken) < 3):
        return ""
    if step == 1:
        return f"be at most {taken[-1]}" if size > taken[-1] else f"be at least {taken[0]}"
    return f"be a multiple of {step}" + (f" from {taken[0]} on" if taken[0] > step else "")


def _nearest(taken: Sequence[int], size: int) -> str:
    below, above = [n for n in taken if n < size], [n for n in taken if n > size]
    return " or ".join(map(str, (*below[-1:], *above[:1])))
