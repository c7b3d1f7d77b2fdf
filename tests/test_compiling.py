"""torch.compile explains as eager code does. Its tracing takes seconds, so each composite has the smallest network.

In the plain run are rows whose rules no other has; `pytest -m slow` has the rest, and the networks of the other laws.
"""

import functools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

import lrpfunc
from lrpfunc import composites, rules
from tests.cases import CASES, subject

close = functools.partial(torch.testing.assert_close, rtol=1e-8, atol=1e-11)
SLOW = pytest.mark.slow


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    """What other tests compiled counts towards a limit of dynamo's."""
    torch.compiler.reset()


def attribution(network: str, entries: composites.Entries) -> tuple[Callable, dict, torch.Tensor]:
    fmodel, params, x = subject(network)
    return lambda params, x: lrpfunc.attribute(fmodel, params, x, entries), params, x


def assert_compiles(network: str, entries: composites.Entries, **options) -> None:
    """Without graph breaks."""
    f, params, x = attribution(network, entries)
    compiled = torch.compile(f, fullgraph=True, **options)
    close(compiled(params, x), f(params, x))


SMALLEST = {
    "epsilon_plus_flat": ("convolutional", composites.epsilon_plus_flat(), ()),
    "epsilon_gamma_box": ("convolutional", composites.epsilon_gamma_box(-3.0, 3.0), ()),
    "epsilon_alpha2_beta1": ("convolutional", composites.epsilon_alpha2_beta1(), ()),
    "guided_backprop": ("convolutional", composites.guided_backprop(), ()),
    "attn_lrp": ("attending", composites.attn_lrp(), ()),
    "recurrent": ("steps", composites.epsilon(), SLOW),
    "epsilon": ("convolutional", composites.epsilon(), SLOW),
    "epsilon_plus": ("convolutional", composites.epsilon_plus(), SLOW),
    "epsilon_alpha2_beta1_flat": ("convolutional", composites.epsilon_alpha2_beta1_flat(), SLOW),
    "excitation_backprop": ("convolutional", composites.excitation_backprop(), SLOW),
    "deconvnet": ("convolutional", composites.deconvnet(), SLOW),
    "beta_smooth": ("convolutional", composites.beta_smooth(), SLOW),
    "cp_lrp": ("attending", composites.cp_lrp(), SLOW),
    "attn_lrp(gamma)": ("attending", composites.attn_lrp(gamma=0.25), SLOW),
}
EVERY = [pytest.param(case.network, case.rules, id=f"{case.network}-{case.name}", marks=SLOW) for case in CASES]


@pytest.mark.parametrize(
    ("network", "entries"), [*(pytest.param(*row[:2], id=name, marks=row[2]) for name, row in SMALLEST.items()), *EVERY]
)
def test_torch_compile_without_graph_breaks_gives_the_eager_result(network, entries):
    assert_compiles(network, entries, backend="aot_eager")


def test_torch_compile_with_inductor_gives_the_eager_result():
    """It has a compiler of C++ at work, so it has as few kernels as can be."""
    assert_compiles("dense", composites.excitation_backprop())


@pytest.mark.slow
def test_torch_compile_with_inductor_knows_what_is_clamped_in_half_precision():
    """Its kernels compare in single precision, in which 0.3 is another number."""
    x = torch.tensor([[-5.0, 0.05, 0.25, 5.0]], dtype=torch.float16)

    def f(p, x):
        return torch.cat([F.hardtanh(x * p, -0.3, 0.3), F.hardtanh(x * p, 0.1, 0.7)], 1)

    fmodel, params = lrpfunc.trace(f, x.new_ones(()), x.repeat(2, 1))
    entries = composites.by_kind({"activation": rules.clamp()})

    def explained(x):
        return lrpfunc.attribute(fmodel, params, x, entries, torch.ones_like)

    assert torch.equal(torch.compile(explained, fullgraph=True)(x), explained(x))
    assert explained(x).tolist() == [[0.0, 1.0, 2.0, 0.0]]


@pytest.mark.slow
def test_torch_compile_with_inductor_gives_the_eager_result_of_convolutions():
    assert_compiles("branches", composites.epsilon_plus())


def test_torch_compile_takes_name_patterns():
    entries = {"f*": rules.gamma(), "second": rules.zplus()}
    assert_compiles("convolutional", entries, backend="eager")


def product(p, x):
    return x @ x.mT @ p["w"]


def attention(p, x):
    return torch.softmax(x @ x.mT, -1) @ x @ p["w"]


@pytest.mark.parametrize("network", [product, pytest.param(attention, marks=SLOW)])
def test_torch_compile_takes_products_of_inputs_as_of_attention_that_is_written_out(network):
    x, params = torch.randn(2, 4, 4), {"w": torch.randn(4, 2)}
    fmodel, _ = lrpfunc.trace(network, params, x)
    rules = composites.attn_lrp()

    def explained(params, x):
        return lrpfunc.attribute(fmodel, params, x, rules, lambda y: y)

    close(torch.compile(explained, fullgraph=True, backend="eager")(params, x), explained(params, x))


def scaled(p, x):
    return x @ (p["scale"] * p["w"])


def normalized_behind_a_token(p, x):
    x = torch.cat([p["token"].expand(x.shape[0], -1, -1), x], 1)
    return (x @ (p["scale"] * p["w"] / p["w"].norm(dim=0))).relu(), p["scale"]


@pytest.mark.parametrize("network", [scaled, pytest.param(normalized_behind_a_token, marks=SLOW)])
def test_torch_compile_takes_parameters_on_their_way_to_the_input(network):
    x, params = torch.randn(2, 3, 4), {"w": torch.randn(4, 2), "scale": torch.randn(2), "token": torch.randn(1, 1, 4)}
    fmodel, _ = lrpfunc.trace(network, params, x)
    rules = composites.epsilon()

    def explained(params, x):
        return lrpfunc.parameter_relevance(fmodel, params, x, rules, lambda y: y)

    close(torch.compile(explained, fullgraph=True, backend="eager")(params, x), explained(params, x))


@pytest.mark.slow
def test_torch_compile_takes_a_pattern_for_everything():
    entries = {"s*": rules.gamma(), "block": rules.zplus(), "*": rules.epsilon()}
    assert_compiles("branches", entries, backend="eager")
