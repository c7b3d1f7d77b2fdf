"""Checked programs: each way to be ill-formed is an error that says what is wrong; what is well-formed passes."""

import dataclasses
import functools

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx

import lrpfunc
from lrpfunc.errors import LrpError, ProgramError
from lrpfunc.program import Equation, Leaf, Program, Variable, check, einsum
from tests import transformer_zoo
from tests.helpers import Branches, randomize

MINE = "the pass 'mine'"
aten = torch.ops.aten


class Small(nn.Module):
    """Two layers with a name each, on inputs (batch, 3)."""

    def __init__(self):
        super().__init__()
        self.fc, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.fc(x).relu())


@functools.cache
def small() -> Program:
    return lrpfunc.functionalize(Small(), torch.ones(2, 3))[0]


def changed(position: int, **changes) -> Program:
    """The small program with one equation changed."""
    equations = list(small().equations)
    equations[position] = dataclasses.replace(equations[position], **changes)
    return dataclasses.replace(small(), equations=tuple(equations))


def of(equations, **changes) -> Program:
    return dataclasses.replace(small(), equations=tuple(equations), **changes)


def output(position: int) -> Variable:
    return small().equations[position].outputs[0]


def assert_refused(program: Program, message: str, before: Program | None = None) -> None:
    with pytest.raises(ProgramError) as caught:
        check(program, before, MINE)
    assert str(caught.value) == f"{MINE} made an ill-formed program: {message}"


# -- what is read, and what is made -----------------------------------------------------------------------------------


def test_a_variable_must_be_made():
    fc, _, head = small().equations
    assert_refused(
        of([fc, head]),
        "equation 'head' reads 'relu.1', which no equation makes before it. "
        "A pass that takes an equation away must rename what reads it (equation.renamed).",
    )


def test_a_variable_must_be_made_before_it_is_read():
    fc, relu, head = small().equations
    assert_refused(
        of([relu, fc, head]),
        "equation 'relu' reads 'linear.0', which no equation makes before it. "
        "A pass that takes an equation away must rename what reads it (equation.renamed).",
    )


def test_results_must_be_made():
    assert_refused(
        of(small().equations[:2]),
        "the program returns 'linear_1.2', which no equation makes. "
        "A pass that takes an equation away must rename what reads it (equation.renamed).",
    )


def test_what_is_read_must_be_as_it_is_made():
    assert_refused(
        changed(0, outputs=(Variable(output(0).name, (4, "batch"), torch.float32),)),
        "equation 'relu' reads 'linear.0' as (batch, 4) torch.float32, but it is made as (4, batch) torch.float32. "
        "A pass that changes the shape or dtype of a variable must rename what reads it (equation.renamed).",
    )


# -- names ------------------------------------------------------------------------------------------------------------


def test_names_of_equations_are_unique():
    assert_refused(changed(1, name="fc"), "two equations are called 'fc'. A pass must give new equations new names.")


@pytest.mark.parametrize(
    ("name", "maker"), [("linear.0", "relu"), ("inputs.0", "relu"), ("params.fc.bias", "relu"), ("@device", "relu")]
)
def test_names_of_variables_are_unique(name, maker):
    outputs = (Variable(name, output(1).shape, output(1).dtype),)
    assert_refused(
        changed(1, outputs=outputs),
        f"equation '{maker}' makes '{name}', a name that another variable has. "
        "A pass must give new variables new names.",
    )


def test_inputs_have_names_of_their_own():
    (leaf,) = small().input_leaves
    twice = (leaf, Leaf((1,), "y", leaf.value))
    assert_refused(
        dataclasses.replace(small(), input_leaves=twice, input_names=("x", "y")),
        "input 'y' makes 'inputs.0', a name that another variable has. A pass must give new variables new names.",
    )


def test_leaves_of_inputs_belong_to_an_input():
    assert_refused(
        dataclasses.replace(small(), input_names=()),
        "input 'x' is a leaf of input 0, but there are 0 inputs. "
        "A pass must leave input_leaves and input_names as they are, or change both.",
    )


def test_parameters_and_their_paths_agree():
    assert_refused(
        dataclasses.replace(small(), parameter_paths=small().parameter_paths[:2]),
        "its parameters are called 'fc.bias', 'fc.weight', 'head.bias', 'head.weight', but have the paths 'fc.bias', "
        "'fc.weight'. A pass that changes parameters must end with program.with_parameters(variables, params).",
    )


def test_parameters_have_the_names_of_their_leaves():
    parameters = {**small().parameters, "fc.bias": Variable("bias", (4,), torch.float32)}
    assert_refused(
        dataclasses.replace(small(), parameters=parameters),
        "the variable of parameter 'fc.bias' must be called 'params.fc.bias', but is 'bias'. "
        "A pass that makes a parameter must name its variable so.",
    )


# -- what equations make ----------------------------------------------------------------------------------------------

DECLARE = "A pass must declare as outputs what the function makes of the arguments."


def test_an_equation_has_an_output():
    assert_refused(changed(1, outputs=()), "equation 'relu' has no output. A pass must declare what a function makes.")


@pytest.mark.parametrize(
    ("function", "outputs", "made"),
    [(aten.relu.default, 2, 1), (aten.var_mean.default, 1, 2)],
    ids=["one too many", "one missing"],
)
def test_an_equation_has_as_many_outputs_as_its_function_makes(function, outputs, made):
    fc, *rest = small().equations
    variables = tuple(Variable(f"new.{i}", ("batch", 4), torch.float32) for i in range(outputs))
    new = Equation("new", function, fc.outputs, {}, variables)
    assert_refused(
        of([fc, new, *rest]),
        f"equation 'new' ({new.operator}) must make the {outputs} outputs that it declares, but makes {made}. "
        + DECLARE,
    )


def test_outputs_have_the_declared_shape():
    swapped = Variable("linear_1.2", (2, "batch"), torch.float32)
    assert_refused(
        dataclasses.replace(changed(2, outputs=(swapped,)), output=swapped),
        "equation 'head' (linear) must make (2, batch) torch.float32 as it declares, but makes (5, 2) torch.float32 "
        f"where batch is 5. {DECLARE}",
    )


def test_outputs_have_the_declared_dtype():
    double = Variable("linear_1.2", ("batch", 2), torch.float64)
    assert_refused(
        dataclasses.replace(changed(2, outputs=(double,)), output=double),
        "equation 'head' (linear) must make (batch, 2) torch.float64 as it declares, but makes (5, 2) torch.float32 "
        f"where batch is 5. {DECLARE}",
    )


def test_a_size_is_no_tensor():
    undeclared = Variable("linear_1.2")
    assert_refused(
        dataclasses.replace(changed(2, outputs=(undeclared,)), output=undeclared),
        "equation 'head' (linear) must make a size as it declares, but makes (5, 2) torch.float32 where batch is 5. "
        + DECLARE,
    )


def test_arguments_fit_the_function():
    head = small().equations[2]
    _, weight, bias = head.arguments
    assert_refused(
        changed(2, function=aten.addmm.default, arguments=(bias, output(1), weight)),
        "equation 'head' (addmm) cannot be computed of (2) torch.float32 and (batch, 4) torch.float32 and (2, 4) "
        "torch.float32 where batch is 5: RuntimeError: a and b must have same reduction dim, but got "
        f"[5, 4] X [2, 4].. {DECLARE}",
    )


def test_only_what_is_new_is_evaluated():
    wrong = Variable("linear_1.2", (2, "batch"), torch.float32)
    program = dataclasses.replace(changed(2, outputs=(wrong,)), output=wrong)
    check(program, before=program)
    with pytest.raises(ProgramError):
        check(program, before=small())


def test_what_does_not_follow_from_a_smaller_sequence_is_tried_on_a_longer_one():
    program, _ = lrpfunc.trace(
        lambda w, x: F.conv1d(x.transpose(1, 2), w, stride=2), torch.ones(4, 3, 12), torch.ones(2, 30, 3)
    )
    assert "length" in str(program)
    check(program)


def test_sizes_that_only_a_kernel_compares_may_have_to_agree():
    x, y = Variable("inputs.0", ("batch", 3), torch.float32), Variable("inputs.1", ("batch2", 3), torch.float32)
    total = Variable("total", ("batch", 3), torch.float32)
    leaves = (Leaf((0,), "x", x), Leaf((1,), "y", y))
    add = Equation("add", aten.add.Tensor, (x, y), {}, (total,))
    check(Program({}, (), ("x", "y"), leaves, (add,), total))
    swapped = Variable("total", (3, "batch"), torch.float32)
    program = Program({}, (), ("x", "y"), leaves, (dataclasses.replace(add, outputs=(swapped,)),), swapped)
    with pytest.raises(
        ProgramError, match=r"equation 'add' \(add\) cannot be computed of .* where batch is 2 and batch2"
    ):
        check(program)


def test_sizes_keep_to_the_ranges_that_the_program_takes():
    program, _ = lrpfunc.trace(lambda w, x: x * w[: x.shape[1]], torch.ones(3, 4), torch.ones(2, 2, 4))
    assert program.size_ranges["length"] == (0, 3)
    check(program)


def test_what_has_no_meta_kernel_is_not_evaluated():
    @torch.library.custom_op("test_check::same", mutates_args=())
    def same(x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    declared = Variable("relu.1", ("batch", 4), torch.float32)
    check(changed(1, function=torch.ops.test_check.same.default, outputs=(declared,)))
    with_data = dataclasses.replace(small().equations[1], function=torch.add, arguments=(output(0), torch.ones(4)))
    check(changed(1, function=with_data.function, arguments=with_data.arguments))


def test_a_mistake_of_tracing_asks_for_a_report():
    with pytest.raises(LrpError, match=r"^tracing made an ill-formed program: .* This is a mistake of lrpfunc: please"):
        check(of(small().equations[:2]))


# -- under transforms -------------------------------------------------------------------------------------------------


def test_the_check_leaves_transforms_alone():
    program = small()

    def f(x):
        check(program)
        return x * 2

    x = torch.ones(3, 2)
    assert torch.equal(vmap(f)(x), x * 2)
    assert torch.equal(torch.func.jvp(f, (x,), (x,))[1], x * 2)
    assert torch.equal(torch.func.grad(lambda x: f(x).sum())(x), torch.full_like(x, 2))
    assert [node.op for node in make_fx(f)(x).graph.nodes] == ["placeholder", "call_function", "output"]
    assert torch.equal(torch.compile(f, backend="eager", fullgraph=True)(x), x * 2)


# -- what is well-formed ----------------------------------------------------------------------------------------------


# Tracing and every pass check what they made, so that each traced and canonized model of the suite is one more.


@pytest.mark.parametrize("name", ["bert", "mixtral"])
def test_transformers_pass(name):
    pytest.importorskip("transformers")
    fmodel, params = lrpfunc.functionalize(transformer_zoo.build(name), **transformer_zoo.inputs(name))
    check(fmodel)
    check(lrpfunc.canonize(fmodel, params).fmodel, who="canonization")


def test_a_network_on_images_passes():
    model = randomize(torchvision.models.shufflenet_v2_x0_5(weights=None))
    fmodel, params = lrpfunc.functionalize(model, torch.zeros(1, 3, 64, 64))
    canonical = lrpfunc.canonize(fmodel, params).fmodel
    check(canonical, who="canonization")
    check(canonical, before=fmodel, who="canonization")


def test_a_program_with_functions_of_lrpfunc_passes():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    fmodel, params = lrpfunc.functionalize(randomize(model), torch.zeros(2, 3, 4, 4))
    check(lrpfunc.canonize(fmodel, params).fmodel)
    right = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU6())
    fmodel, params = lrpfunc.functionalize(randomize(right), torch.zeros(2, 3, 4, 4))
    check(lrpfunc.canonize(fmodel, params).fmodel)
    check(lrpfunc.functionalize(Branches(), torch.zeros(2, 3, 8, 8))[0])
    fmodel, _ = lrpfunc.trace(lambda w, x: torch.einsum("bi,oi->bo", x, w), torch.ones(2, 3), torch.ones(5, 3))
    assert fmodel.equations[0].function is einsum
    check(fmodel)
