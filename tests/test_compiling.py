"""torch.compile explains as eager code does. Its tracing takes seconds, so each composite has the smallest network.

In the plain run are rows whose rules no other has; `pytest -m slow` has the rest, and the networks of the other laws.
"""

import functools
from collections.abc import Callable

import pytest
import torch

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
    """Without graph breaks, also where others watch: for parameters and samples other than those it has seen."""
    f, params, x = attribution(network, entries)
    compiled = torch.compile(f, fullgraph=True, **options)
    close(compiled(params, x), f(params, x))


SMALLEST = {
    "epsilon": ("convolutional", composites.epsilon()),
    "epsilon_plus": ("convolutional", composites.epsilon_plus()),
    "epsilon_plus_flat": ("convolutional", composites.epsilon_plus_flat()),
    "epsilon_gamma_box": ("convolutional", composites.epsilon_gamma_box(-3.0, 3.0)),
    "epsilon_alpha2_beta1": ("convolutional", composites.epsilon_alpha2_beta1()),
    "epsilon_alpha2_beta1_flat": ("convolutional", composites.epsilon_alpha2_beta1_flat()),
    "excitation_backprop": ("convolutional", composites.excitation_backprop()),
    "wsquare": ("convolutional", composites.epsilon_plus(entries=composites.first_layer(rules.wsquare()))),
    "deconvnet": ("convolutional", composites.deconvnet()),
    "guided_backprop": ("convolutional", composites.guided_backprop()),
    "beta_smooth": ("convolutional", composites.beta_smooth()),
    "attn_lrp": ("attending", composites.attn_lrp()),
    "cp_lrp": ("attending", composites.cp_lrp()),
    "attn_lrp(gamma)": ("attending", composites.attn_lrp(gamma=0.25)),
}


@pytest.mark.parametrize("name", SMALLEST)
def test_torch_compile_without_graph_breaks_gives_the_eager_result(name):
    assert_compiles(*SMALLEST[name], backend="aot_eager")


def test_torch_compile_with_inductor_gives_the_eager_result():
    assert_compiles("convolutional", composites.epsilon_plus())


def test_torch_compile_takes_name_patterns():
    entries = {"f*": rules.gamma(), "second": rules.zplus(), "*": rules.epsilon()}
    assert_compiles("convolutional", entries, backend="eager")


@pytest.mark.slow
@pytest.mark.parametrize("case", [pytest.param(case, id=f"{case.network}-{case.name}") for case in CASES])
def test_torch_compile_of_every_case(case):
    assert_compiles(case.network, case.rules, backend="aot_eager")
