"""Height, width, time steps, nodes and edges: one trace, other sizes, equal to fresh traces."""

import dataclasses
import math
import pickle
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lrpfunc
from lrpfunc import composites
from lrpfunc.errors import FileError, InputError, TraceError
from lrpfunc.tracing import exports
from lrpfunc.tracing.axes import Opening
from tests.helpers import randomize
from tests.traced import assert_equal, x_of

DOUBLE = torch.float64


# -- networks ---------------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """Strides, a shortcut, adaptive pooling: a ResNet."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 4, 7, 2, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        self.a = nn.Sequential(
            nn.Conv2d(4, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, 1, 1)
        )
        self.b = nn.Conv2d(4, 6, 1, 2)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))

    def forward(self, x):
        x = self.stem(x)
        return self.head(F.relu(self.a(x) + self.b(x)))


class Segmenting(nn.Module):
    """A class for each pixel, by interpolation up to the image's own size: an FCN."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3, dilation=2, padding=2)
        )

    def forward(self, x):
        return F.interpolate(self.body(x), size=x.shape[-2:], mode="bilinear", align_corners=False)


class UNet(nn.Module):
    """Skip connections, for which sizes must be multiples of four."""

    def __init__(self):
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 4, 3, padding=1)
        self.up1, self.up2 = nn.ConvTranspose2d(4, 4, 2, 2), nn.ConvTranspose2d(4, 2, 2, 2)
        self.mix1, self.mix2 = nn.Conv2d(8, 4, 3, padding=1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        one = F.relu(self.down1(x))
        two = F.relu(self.down2(F.max_pool2d(one, 2)))
        x = F.relu(self.mix1(torch.cat([two, self.up1(F.max_pool2d(two, 2))], 1)))
        return self.mix2(torch.cat([one, self.up2(x)], 1))


class Hearing(nn.Module):
    """Convolutions over time."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(1, 4, 9, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.AvgPool1d(3), nn.Conv1d(4, 5, 3), nn.ReLU()
        )
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.body(x).mean(2))


class Graph(nn.Module):
    """Two graph convolutions (GCN) over a list of edges."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, nodes, edges):
        source, target = edges
        degree = nodes.new_ones(nodes.shape[0]).index_add(0, target, nodes.new_ones(edges.shape[1]))
        norm = degree.rsqrt()

        def spread(h):
            messages = h[source] * (norm[source] * norm[target])[:, None]
            return (h / degree[:, None]).index_add(0, target, messages)

        return spread(self.b(F.relu(spread(self.a(nodes)))))


def images(height, width, channels=3, batch=2):
    return (x_of(batch, channels, height, width, dtype=DOUBLE),)


def graph(nodes, edges):
    return x_of(nodes, 3, dtype=DOUBLE), torch.randint(
        nodes, (2, edges), generator=torch.Generator().manual_seed(edges)
    )


COMPOSITES = {
    "plus": composites.epsilon_plus(),
    "flat": composites.epsilon_alpha2_beta1_flat(),
    "gamma_box": composites.epsilon_gamma_box(-4.0, 4.0),
    "attn_lrp": composites.attn_lrp(),
}


class Case(NamedTuple):
    """A network, an example, inputs of other sizes, and how the inputs' shapes read."""

    network: Callable[[], nn.Module]
    example: tuple
    others: list[tuple]
    shapes: str


def audio(batch, time):
    return (x_of(batch, 1, time, dtype=DOUBLE),)


SPACE = "(batch, 3, height, width)"
CASES = {
    "resnet": Case(Residual, images(32, 48), [images(33, 40), images(21, 64, batch=1), images(64, 64)], SPACE),
    "fcn": Case(Segmenting, images(12, 16), [images(13, 16), images(24, 9, batch=1), images(7, 30)], SPACE),
    "u-net": Case(
        UNet, images(8, 16, 1), [images(12, 8, 1), images(16, 4, 1, 3), images(20, 20, 1)], "(batch, 1, height, width)"
    ),
    "audio": Case(Hearing, audio(2, 120), [audio(2, 90), audio(1, 101), audio(3, 240)], "(batch, 1, length)"),
    "gcn": Case(Graph, graph(6, 9), [graph(9, 5), graph(4, 30), graph(7, 7)], "(batch, 3), (2, length)"),
}
ASKED = {
    "resnet": [(0, 2, 3)],
    "fcn": [(2, 3)],
    "u-net": [(-1, -2)],
    "audio": [(2,)],
    "gcn": [(0,), (1,)],
}


def asked(case: str, inputs: tuple) -> tuple:
    return tuple(lrpfunc.varying(x, *axes) for x, axes in zip(inputs, ASKED[case], strict=True))


def shapes(fmodel) -> str:
    return ", ".join(str(leaf.value) for leaf in fmodel.input_leaves)


@pytest.fixture
def fixed(monkeypatch):
    """Traces of one size alone."""

    def trace(model, *inputs):
        with monkeypatch.context() as patch:
            patch.setattr(Opening, "attempts", lambda opening, inputs: iter(()))
            fmodel, params = lrpfunc.functionalize(model, *inputs)
        assert not any(isinstance(n, str) for leaf in fmodel.input_leaves for n in leaf.value.shape)
        return fmodel, params

    return trace


@pytest.mark.parametrize("is_asked", [False, True], ids=["found", "asked"])
@pytest.mark.parametrize("case", CASES)
def test_one_trace_has_the_values_of_the_module_at_other_sizes(case, is_asked):
    network, example, others, expected = CASES[case]
    model = randomize(network()).double()
    fmodel, params = lrpfunc.functionalize(model, *(asked(case, example) if is_asked else example))
    assert shapes(fmodel) == expected
    for inputs in (example, *others):
        assert torch.equal(fmodel(params, *inputs), model(*inputs))


@pytest.mark.parametrize("composite", COMPOSITES)
@pytest.mark.parametrize("case", CASES)
def test_one_trace_has_the_relevance_of_fresh_traces(case, composite, fixed):
    network, example, others, _ = CASES[case]
    model, rules = randomize(network()).double(), COMPOSITES[composite]
    one = lrpfunc.functionalize(model, *example)
    for open_, at in (
        (one, lambda *fresh: fresh),
        (lrpfunc.canonize(*one)[:2], lambda *fresh: lrpfunc.canonize(*fresh)[:2]),
    ):
        explain = lrpfunc.prepare(*open_, rules)
        for inputs in others:
            fmodel, params = at(*fixed(model, *inputs))
            x = inputs if len(inputs) > 1 else inputs[0]
            expected = lrpfunc.attribute(fmodel, params, x, rules, target=lambda y: y)
            for found in (lrpfunc.attribute(*open_, x, rules, target=lambda y: y), explain(x, target=lambda y: y)):
                compare(found, expected)


def compare(found, expected) -> None:
    found, expected = (value if isinstance(value, tuple) else (value,) for value in (found, expected))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)


# -- what is done with programs ---------------------------------------------------------------------------------------


def u_net():
    """A network whose sizes are bound by conditions, and inputs of other ones."""
    model = randomize(UNet()).double()
    return (*lrpfunc.functionalize(model, *images(8, 8, 1)), images(12, 16, 1)[0])


def everything(y):
    return y


def test_conditions_are_kept_in_files_and_pickles(tmp_path):
    fmodel, params, x = u_net()
    lrpfunc.save(tmp_path / "u-net.safetensors", (fmodel, params))
    loaded, _ = lrpfunc.load(tmp_path / "u-net.safetensors")
    for again in (loaded, pickle.loads(pickle.dumps(fmodel))):
        assert again.size_conditions == fmodel.size_conditions
        assert torch.equal(again(params, x), fmodel(params, x))
        with pytest.raises(InputError, match="must be a multiple of 4"):
            again(params, x[..., 2:])


def test_a_size_in_a_file_is_arithmetic_and_no_code(tmp_path):
    fmodel, params, _ = u_net()
    for expression in ("().__class__", "print(1)", "[height]", "height**99", "'a'*9", "height if height else 1", "("):
        with pytest.raises(ValueError, match=r"is no arithmetic of sizes|nothing is known of"):
            dataclasses.replace(fmodel, size_conditions=(expression,))
    path = tmp_path / "crafted.safetensors"
    lrpfunc.save(path, (dataclasses.replace(fmodel, size_conditions=("height%2 == 0",)), params))
    path.write_bytes(path.read_bytes().replace(b"height%2 == 0", b"height.bit_len"[:13]))
    with pytest.raises(FileError, match="cannot be loaded"):
        lrpfunc.load(path)


def test_explanations_under_transforms_take_other_sizes():
    fmodel, params, x = u_net()
    rules = composites.epsilon_plus()

    def explained(x):
        return lrpfunc.attribute(fmodel, params, x, rules, target=everything)

    expected = explained(x)
    compare(torch.func.vmap(lambda one: explained(one[None])[0])(x), expected)
    compare(lrpfunc.record(fmodel, params, x, rules).pull(everything)[0], expected)
    compare(torch.compile(explained, fullgraph=True, backend="eager")(x), expected)


def test_a_program_that_is_cut_keeps_the_conditions_that_it_can_see():
    fmodel, params, x = u_net()
    lower, upper = fmodel.cut("down2")
    assert lower.size_conditions == fmodel.size_conditions
    assert torch.equal(upper(params, *lower(params, x)), fmodel(params, x))


@pytest.mark.parametrize("name", ["max_pool2d", "down1", "up2", "mix1"])
def test_a_part_is_replaced_in_a_program_of_open_sizes(name):
    fmodel, params, x = u_net()
    functions = {
        "max_pool2d": lambda p, x: F.max_pool2d(x, 2),
        "down1": lambda p, x: F.conv2d(x, p["down1.weight"], p["down1.bias"], padding=1),
        "up2": lambda p, x: F.conv_transpose2d(x, p["up2.weight"], p["up2.bias"], 2),
        "mix1": lambda p, x: F.conv2d(F.pad(x, (1, 1, 1, 1)), p["mix1.weight"], p["mix1.bias"]),
    }
    changed, leaves = lrpfunc.canonizers.replace(name, functions[name])(fmodel, params)
    assert set(changed.size_conditions) >= set(fmodel.size_conditions)
    compare(changed(leaves, x), fmodel(params, x))


# -- what is no tensor by itself, and has no batch --------------------------------------------------------------------


def test_examples_vary_in_keywords_and_inside_of_pytrees():
    def model(params, batch, *, mask):
        return (batch["images"][0] * mask).sum((2, 3)) @ params

    x, mask = x_of(2, 3, 4, 5), torch.ones(4, 5)
    for given in (lrpfunc.varying(mask, 0, 1), lrpfunc.varying(mask, -2, -1)):
        batch = {"images": [lrpfunc.varying(x, 2, 3)]}
        fmodel, params = lrpfunc.trace(model, torch.randn(3, 2), batch, mask=given)
        assert shapes(fmodel) == "(batch, 3, height, width), (height, width)"
        other = {"images": [x_of(1, 3, 6, 7)]}, torch.rand(6, 7)
        assert torch.equal(fmodel(params, other[0], mask=other[1]), model(params, other[0], mask=other[1]))


def test_an_explainer_takes_examples_that_vary():
    net = nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(3, 2))
    explain = lrpfunc.explainer(net.eval(), lrpfunc.varying(x_of(1, 2, 9), 2))
    assert explain(x_of(3, 2, 30)).shape == (3, 2, 30)


# -- which sizes ------------------------------------------------------------------------------------------------------


class Plain(nn.Module):
    """A function of images as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.table = nn.Parameter(torch.randn(1, 3, 20, 20))

    def forward(self, x):
        return self.function(self, x)


def unrolled(self, x):
    return sum(x[:, :, i] for i in range(x.shape[2]))


def asserting(self, x):
    torch._assert(x.shape[2] % 3 == 0, "three")
    return x * 2 if x.shape[3] > 5 else x


def unnoticed(self, x):
    """torch takes the example's size for a number here, and has no record of it."""
    return x * torch.as_tensor(x.shape[2] / 2)


def rooted(self, x):
    return x * math.sqrt(x.shape[2])


# A function, and the shape that is traced.
FIXED = {
    "a loop": (unrolled, "(batch, 3, 8, width)"),
    "a root": (rooted, "(batch, 3, 8, width)"),
    "a tensor of a size": (unnoticed, "(batch, 3, 8, 8)"),
    "a number in a view": (lambda self, x: x.view(x.shape[0], 3, 64).sum(2), "(batch, 3, 8, 8)"),
    "features": (lambda self, x: F.linear(x.flatten(1), self.table.reshape(-1)[None, :192]), "(batch, 3, 8, 8)"),
    "a float": (lambda self, x: x * float(x.shape[2]), "(batch, 3, 8, width)"),
    "a table of this size": (lambda self, x: x + self.table[:, :, :8, :8], "(batch, 3, 8, 8)"),
}


@pytest.mark.parametrize("case", FIXED)
def test_what_has_a_size_in_it_keeps_that_size(case):
    function, expected = FIXED[case]
    fmodel, params = lrpfunc.functionalize(Plain(function), x_of(2, 3, 8, 8))
    assert shapes(fmodel) == expected
    message = r"must have shape .*, but has \(2, 3, 9, 8\)\. Trace the model again for another size, or for any with "
    with pytest.raises(InputError, match=message + r"lrpfunc\.varying\(x, 2\)\."):
        fmodel(params, x_of(2, 3, 9, 8))
    with pytest.raises(TraceError, match=r"lrpfunc\.varying asks"):
        lrpfunc.functionalize(Plain(function), lrpfunc.varying(x_of(2, 3, 8, 8), 2))


# A function, an example's height and width, those that are taken, and what is said of others.
BOUND = {
    "even": (
        lambda self, x: x.unflatten(2, (-1, 2)).sum(3),
        (8, 8),
        [(6, 5)],
        (9, 8),
        "'height' .* be a multiple of 2",
    ),
    "both": (lambda self, x: F.pixel_unshuffle(x, 2), (8, 8), [(6, 4)], (6, 7), "where width is 7|multiple of 2"),
    "asserted": (
        asserting,
        (6, 6),
        [(9, 7)],
        (8, 7),
        "'height' of input 'x' must be a multiple of 3, but is 8: the model",
    ),
    "a branch": (asserting, (6, 6), [(9, 60)], (9, 5), r"'width' of input 'x' must be at least 6, but is 5: the model"),
    "a table": (
        lambda self, x: x + self.table[:, :, : x.shape[2], : x.shape[3]],
        (8, 8),
        [(20, 3)],
        (8, 21),
        r"'width' of input 'x' must be at most 20, but is 21: the model needs width == Min\(20, width\)\.",
    ),
    "a kernel": (
        lambda self, x: F.avg_pool2d(x, 5, 1),
        (8, 8),
        [(5, 30)],
        (4, 8),
        "'height' .* must be at least 5, but is 4",
    ),
    "ceilings": (
        lambda self, x: F.max_pool2d(x, 2, 2, 1, ceil_mode=True),
        (9, 9),
        [(7, 11)],
        (8, 8),
        "must be|the model needs",
    ),
    "in place": (
        lambda self, x: F.avg_pool2d(x.clamp_(0.0).mul_(2), 3),
        (8, 8),
        [(5, 30)],
        (2, 8),
        "'height' of input 'x' must be at least 3, but is 2",
    ),
    "nothing": (lambda self, x: x * 2, (8, 8), [(1, 1)], (0, 8), "'height' of input 'x' must be at least 1, but is 0"),
}


@pytest.mark.parametrize("case", BOUND)
def test_sizes_that_do_not_fit_are_refused_and_all_others_are_exact(case):
    function, example, fits, wrong, message = BOUND[case]
    model = Plain(function)
    fmodel, params = lrpfunc.functionalize(model, lrpfunc.varying(x_of(2, 3, *example), 2, 3))
    assert shapes(fmodel) == SPACE
    for size in (example, *fits):
        assert torch.equal(fmodel(params, x_of(3, 3, *size)), model(x_of(3, 3, *size)))
    with pytest.raises(InputError, match=message):
        fmodel(params, x_of(3, 3, *wrong))


def test_a_number_that_makes_batches_of_what_there_is_more_of_must_be_asked_for():
    model = Plain(lambda self, x: x.view(-1, 3, 8, 8).sum(1))
    fmodel, _ = lrpfunc.functionalize(model, x_of(2, 3, 8, 8))
    assert shapes(fmodel) == "(batch, 3, 8, 8)"
    fmodel, params = lrpfunc.functionalize(model, lrpfunc.varying(x_of(2, 3, 8, 8), 2, 3))
    assert torch.equal(fmodel(params, x_of(2, 3, 16, 12)), model(x_of(2, 3, 16, 12)))
    with pytest.raises(
        InputError, match=r"'width' of input 'x' must be a multiple of 4 where .*batch is 2 and height is 8, but is 9"
    ):
        fmodel(params, x_of(2, 3, 8, 9))


UNNOTICED = {
    "a scale": (lambda self, x: F.scaled_dot_product_attention(x, x, x, scale=x.shape[1] ** -0.5), "(batch, 6, 4)"),
    "a tensor": (lambda self, x: x * x.new_tensor(x.shape[1] / 3), "(batch, 6, 4)"),
    "a tensor of several": (lambda self, x: x * x.new_tensor([x.shape[1] / 3, 1, 1, 1]), "(batch, 6, 4)"),
    "a window": (lambda self, x: F.avg_pool1d(x.mT, x.shape[1] // 2), "(batch, 6, 4)"),
    "the batch": (lambda self, x: x * x.new_tensor(x.shape[0] / 3), "(2, 6, 4)"),
    "a ratio": (lambda self, x: x * x.new_tensor(x.shape[1] / x.shape[2]), "(batch, 6, 4)"),
}


@pytest.mark.parametrize("case", UNNOTICED)
def test_batches_and_sequences_that_torch_takes_for_numbers_keep_their_size(case):
    function, shape = UNNOTICED[case]
    model = Plain(function)
    fmodel, params = lrpfunc.functionalize(model, x_of(2, 6, 4))
    assert shapes(fmodel) == shape
    torch.testing.assert_close(fmodel(params, x_of(2, 6, 4)), model(x_of(2, 6, 4)))


def test_a_ratio_of_sizes_that_torch_takes_for_a_number_keeps_them():
    """Half of both, and twice both, have the same ratio."""
    model = Plain(lambda self, x: x * x.new_tensor(x.shape[2] / x.shape[3]))
    for size in ((8, 12), (12, 8), (32, 32)):
        fmodel, _ = lrpfunc.functionalize(model, x_of(2, 3, *size))
        assert shapes(fmodel) == f"(batch, 3, {size[0]}, {size[1]})"


def test_trials_leave_what_is_written_to_and_random_numbers_alone():
    class Written(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.drop = nn.Parameter(torch.ones(3, 1, 1)), nn.Dropout()

        def forward(self, x):
            with torch.no_grad():
                self.w.mul_(2)
            return self.drop(x * self.w)

    model, state = Written(), torch.get_rng_state()
    for training in (False, True):
        lrpfunc.functionalize(model.train(training), x_of(2, 3, 8, 8))
        assert torch.equal(model.w, torch.ones(3, 1, 1))
        assert torch.equal(torch.get_rng_state(), state)
    params, x = torch.ones(3, 1, 1), x_of(2, 3, 8, 8)
    lrpfunc.trace(lambda p, x: x.mul_(p.mul_(2)), params, x)
    assert torch.equal(params, torch.ones(3, 1, 1))
    assert torch.equal(x, x_of(2, 3, 8, 8))


def test_sizes_that_a_model_returns_are_those_of_the_call():
    model = Plain(lambda self, x: (x * 2, x.shape[0], {"height": x.shape[2]}))
    fmodel, params = lrpfunc.functionalize(model, x_of(1, 3, 8, 8))
    assert shapes(fmodel) == SPACE
    assert fmodel(params, x_of(4, 3, 5, 6))[1:] == (4, {"height": 5})


@pytest.mark.parametrize(("size", "expected"), [
    ((0, 4), "(batch, 4)"), ((0, 3, 8, 8), "(batch, 3, 8, 8)"), ((2, 0, 4), "(batch, 0, 4)"),
])  # fmt: skip
def test_an_empty_example_tells_of_no_other_sizes(size, expected):
    """What is made of it is empty, whatever the model does."""
    model = Plain(lambda self, x: x * 2)
    fmodel, params = lrpfunc.functionalize(model, torch.ones(size))
    assert shapes(fmodel) == expected
    assert torch.equal(fmodel(params, torch.ones(3, *size[1:])), torch.full((3, *size[1:]), 2.0))


def test_a_sequence_of_the_greatest_length_stays_open():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.places = nn.Embedding(5, 4), nn.Embedding(6, 4)

        def forward(self, ids):
            return self.tokens(ids) + self.places(torch.arange(ids.shape[1]))

    model, ids = Positions(), torch.arange(12).reshape(2, 6) % 5
    fmodel, params = lrpfunc.functionalize(model, ids)
    assert torch.equal(fmodel(params, ids[:, :3]), model(ids[:, :3]))


def test_what_is_made_must_have_the_shape_that_was_traced():
    """Where torch was told a wrong shape, sizes that follow from it would be wrong as well."""
    fmodel, params = lrpfunc.functionalize(nn.Conv2d(3, 2, 3), x_of(1, 3, 8, 8))
    (conv,) = fmodel.equations
    output = dataclasses.replace(conv.outputs[0], shape=("batch", 2, "height//2 + 2", "width - 2"))
    wrong = dataclasses.replace(fmodel, equations=(dataclasses.replace(conv, outputs=(output,)),), output=output)
    assert wrong(params, x_of(1, 3, 8, 8)).shape == (1, 2, 6, 6)
    with pytest.raises(
        InputError, match=r"'conv2d' makes \(1, 2, 7, 6\) of inputs of this size, which is not \(batch, 2,"
    ):
        wrong(params, x_of(1, 3, 9, 8))


def test_a_size_that_a_layer_fixes_is_named_with_the_line_that_fixed_it():
    for function in (unrolled, rooted):
        with pytest.raises(
            TraceError, match=r"axis 2 of input 'x' cannot vary.*the model fixes its size at 8, at .*"
        ) as error:
            lrpfunc.functionalize(Plain(function), lrpfunc.varying(x_of(2, 3, 8, 8), 2))
        assert f"test_open_sizes.py:{function.__code__.co_firstlineno + 1} " in str(error.value)
    with pytest.raises(TraceError, match=r"the model takes no other ones, as it needs .*x\.shape\[2\].* == 192\."):
        lrpfunc.functionalize(Plain(FIXED["features"][0]), lrpfunc.varying(x_of(2, 3, 8, 8), 2, 3))
    with pytest.raises(TraceError, match=r"axis 1 of input 'input' cannot vary.*the model fixes its size at 3, at "):
        lrpfunc.functionalize(nn.Conv2d(3, 2, 3), lrpfunc.varying(x_of(2, 3, 8, 8), 1))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            lambda x: lrpfunc.varying([x], 0),
            r"varying needs a tensor, but got list\. Put it around each tensor inside\.",
        ),
        (lambda x: lrpfunc.varying(x, 4), r"varying got axis 4, but the axes of a tensor \(2, 3, 8, 8\) are 0 to 3\."),
        (lambda x: lrpfunc.varying(x, -5), r"varying got axis -5"),
        (lambda x: lrpfunc.varying(x, True), r"varying got axis True"),
        (lambda x: lrpfunc.varying(x, 1.0), r"varying got axis 1\.0"),
        (lambda x: lrpfunc.varying(x.sum(), 0), r"the axes of a tensor \(\) are none"),
        (lambda x: lrpfunc.varying(x), r"varying needs the axes that vary, of 0 to 3: lrpfunc\.varying\(x, 0\)\."),
    ],
)
def test_axes_that_there_are_not_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        wrong(x_of(2, 3, 8, 8))


def test_nothing_is_searched_for_long(monkeypatch):
    """Windows and their paddings ask so much of sizes that tracing would take ten times as long: once is enough."""
    calls = []
    once = exports._export_once
    monkeypatch.setattr(exports, "_export_once", lambda *given: calls.append(given) or once(*given))

    def windows(self, x):
        h, w = x.shape[2], x.shape[3]
        x = F.pad(x, (0, -w % 7, 0, -h % 7))
        x = x.view(x.shape[0], 3, x.shape[2] // 7, 7, x.shape[3] // 7, 7).roll(3, 3).reshape(x.shape)
        x = F.pad(x, (0, -x.shape[3] % 4, 0, -x.shape[2] % 4))
        return x.view(x.shape[0], 3, x.shape[2] // 4, 4, x.shape[3] // 4, 4).mean((2, 4))

    fmodel, _ = lrpfunc.functionalize(Plain(windows), x_of(2, 3, 14, 14))
    assert shapes(fmodel) == "(batch, 3, 14, 14)"
    assert len(calls) == 2
    model = Plain(windows)
    fmodel, params = lrpfunc.functionalize(model, lrpfunc.varying(x_of(2, 3, 15, 17), 2, 3))
    assert torch.equal(fmodel(params, x_of(1, 3, 20, 30)), model(x_of(1, 3, 20, 30)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "densenet121", "squeezenet1_0", "fcn_resnet50", "deeplabv3_resnet50"])
def test_models_of_torchvision_take_images_of_other_sizes(name):
    import torchvision

    settings = {"weights_backbone": None} if name.startswith(("fcn", "deeplab")) else {}
    model = randomize(torchvision.models.get_model(name, weights=None, **settings))
    fmodel, params = lrpfunc.functionalize(model.eval(), x_of(1, 3, 64, 96))
    for size in ((65, 97), (96, 64), (81, 130)):
        x = x_of(2, 3, *size)
        assert_equal(fmodel(params, x), model(x))
