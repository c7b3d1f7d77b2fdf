"""Relevance of parameters on their way to the inputs: R_W is W times autograd's gradient, whatever else is on that way.

Under input times gradient at every equation that holds for any function, under LRP-0 for those that are piecewise
linear in the input. The oracle is autograd through the function itself.
"""

import functools
import math

import optree
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import grad, vmap
from torch.nn.utils import parametrizations, prune

import lrpfunc
from lrpfunc import composites, rules
from lrpfunc.errors import RuleError
from tests import transformer_zoo
from tests.derivatives import directional, inner, random_like

DOUBLE, COMPLEX = torch.float64, torch.complex128
close = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-11)

# Movements have one rule for values and for token ids, which no derivative has.
GRADIENT = composites.by_kind({"movement": rules.gradient(), "*": rules.input_times_gradient(0)})
LRP_0 = composites.epsilon(0)


def random(*shape: int, dtype=DOUBLE) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


X, IDS = random(3, 4, 5), torch.tensor([[1, 0, 6, 2], [3, 3, 5, 1], [0, 2, 4, 6]])
W, V, SQUARE, ROW, SHORT = random(5, 3), random(5, 3) + 0.5, random(5, 5), random(5), random(3)
MASK = torch.ones(5, 5, dtype=torch.bool).tril()
PHASES = random(5, dtype=COMPLEX)
TOKEN, PLACES, PLACED = random(1, 1, 5), random(1, 9, 5), random(9, 5)


def lead(p, x):
    return torch.cat([p["token"].expand(x.shape[0], -1, -1), x], 1)


def standardized(w):
    std, mean = torch.std_mean(w, 0, keepdim=True)
    return (w - mean) / std


def two_layers(x, weights):
    return (x @ weights[0]).relu() @ weights[1].mT


def looked_up(p, x, ids):
    return x @ p["w"] + p["table"][ids] * ids[..., None]


# What becomes of parameters before they meet the input: a name, a function, parameters, and inputs if not X.
PATHS = {
    # sizes
    "a token for each sample": (lambda p, x: (lead(p, x) @ p["w"]).relu().sum(1), {"token": TOKEN, "w": W}),
    "the first places": (lambda p, x: ((x + p["at"][:, : x.shape[1]]) @ p["w"]).relu(), {"at": PLACES, "w": W}),
    "a table by arange": (
        lambda p, x: (x + F.embedding(torch.arange(x.shape[1]), p["at"])).relu() @ p["w"], {"at": PLACED, "w": W},
    ),
    "places between places": (
        lambda p, x: x + F.interpolate(p["at"].mT, size=x.shape[1], mode="linear").mT, {"at": PLACES},
    ),
    "times a size": (lambda p, x: x * (p["w"] * x.shape[0]), {"w": ROW}),
    "repeated": (lambda p, x: torch.cat([p["c"].repeat(x.shape[0], 2, 1), x], 1).relu(), {"c": TOKEN}),
    "added to new zeros": (lambda p, x: torch.cat([x.new_zeros(x.shape[0], 1, 5) + p["c"], x], 1), {"c": TOKEN}),
    # constants and masks
    "where it is positive": (lambda p, x: x @ torch.where(p["w"] > 0, p["w"], 0), {"w": W}),
    "a bias under a mask": (lambda p, x: (x @ p["w"] + (x[..., :3] > 0) * p["b"]).relu(), {"w": W, "b": SHORT}),
    "beside what is detached": (lambda p, x: x + x.detach() * p["w"], {"w": ROW}),
    "a gate of what is detached": (lambda p, x: x * (p["w"] * x.detach().sum(1, keepdim=True)).relu(), {"w": ROW}),
    "a triangle": (lambda p, x: x @ p["w"].triu() + x @ p["w"].masked_fill(MASK, 0.0), {"w": SQUARE}),
    "an outer product": (lambda p, x: x @ torch.outer(p["w"], torch.arange(3).to(DOUBLE)), {"w": ROW}),
    "beside constants": (lambda p, x: x @ torch.stack([p["a"], torch.ones(5).to(DOUBLE)], 1), {"a": ROW}),
    "written into zeros": (lambda p, x: x @ p["w"].new_zeros(5, 3).index_add(0, IDS[0, :2], p["w"]), {"w": W[:2]}),
    "chosen by an input": (
        lambda p, x, ids: x @ p["w"] + torch.where(ids[..., None] > 2, p["a"], p["b"]),
        {"w": W, "a": SHORT, "b": SHORT + 1}, X, IDS,
    ),
    "looked up by an input": (looked_up, {"w": W, "table": random(7, 3)}, X, IDS),
    "beside token ids": (
        lambda p, ids: (F.embedding(ids, p["table"]) @ p["w"] + (ids > 2)[..., None] * p["b"]).relu(),
        {"w": W, "table": random(7, 5), "b": SHORT}, IDS,
    ),
    # several of one equation
    "split": (lambda p, x: two_layers(x, p["w"].split([3, 3], 1)), {"w": random(5, 6)}),
    "chunks": (lambda p, x: two_layers(x, p["w"].chunk(2, 1)), {"w": random(5, 6)}),
    "unbound": (lambda p, x: two_layers(x, p["w"].unbind(0)), {"w": random(2, 5, 3)}),
    "one part alone": (lambda p, x: x @ p["w"].split(2, 1)[1], {"w": random(5, 5)}),
    "standardized": (lambda p, x: x @ standardized(p["w"]), {"w": W}),
    "the largest of each column": (lambda p, x: x @ (p["w"] / p["w"].max(0).values), {"w": W}),
    "stacked": (lambda p, x: two_layers(x, torch.stack([p["a"], p["b"]])), {"a": W, "b": V}),
    # several places
    "tied, on a way of its own too": (lambda p, x: x @ p["w"] + p["w"].sum(0) * x.shape[1], {"w": W}),
    "tied to a table": (
        lambda p, ids: two_layers(F.embedding(ids, p["t"]), [p["w"], p["w"]]) @ p["t"].mT,
        {"w": W, "t": random(7, 5)}, IDS,
    ),
    "its own factor": (lambda p, x: (x * (p["w"] * p["w"])) @ (p["v"] @ p["v"]), {"w": ROW, "v": SQUARE}),
    "with itself": (lambda p, x: x @ torch.outer(p["w"], p["w"]), {"w": ROW}),
    "weight and bias": (lambda p, x: x @ p["w"] + p["w"], {"w": SQUARE}, random(5, 5)),
    "weight and bias of one layer": (lambda p, x: F.linear(x, p["w"], p["w"][0]), {"w": SQUARE}),
    # through functions of their own
    "cancelled": (lambda p, x: x @ (p["w"] - p["v"]), {"w": W, "v": torch.where(W > 0, W, V)}),
    "of low rank, from zero on": (
        lambda p, x: x @ (p["w"] + p["b"] @ p["a"]), {"w": W, "b": random(5, 2), "a": 0 * random(2, 3)},
    ),
    "normalized": (lambda p, x: x @ (p["g"] * p["v"] / p["v"].norm(dim=0, keepdim=True)), {"v": W, "g": SHORT}),
    "rotated": (lambda p, x: x @ torch.matrix_exp(p["w"] - p["w"].mT), {"w": SQUARE}),
    "rounded, straight through": (lambda p, x: x @ (p["w"] + (p["w"].round() - p["w"]).detach()), {"w": W}),
    "signs times a size": (lambda p, x: x @ (p["w"].sign() * p["w"].abs().mean()), {"w": W}),
    "gated": (lambda p, x: x * p["g"].sigmoid() + p["h"] * (1 - p["g"].sigmoid()), {"g": ROW, "h": ROW + 1}),
    "of a convolution": (
        lambda p, x: F.conv1d(x, p["w"] * p["m"], p["b"].abs()),
        {"w": random(2, 4, 3), "m": random(4, 3), "b": random(2)},
    ),
    # complex
    "a complex scale": (lambda p, x: torch.view_as_real(torch.complex(x, x) * p["c"]).relu(), {"c": PHASES}),
    "a spectral filter": (lambda p, x: torch.fft.irfft(torch.fft.rfft(x) * p["c"][:3], n=5), {"c": PHASES}),
    "a complex layer": (lambda p, x: F.linear(x.to(COMPLEX), p["w"], p["w"][0]).imag, {"w": PHASES.outer(PHASES)}),
    "the power of a complex scale": (lambda p, x: x * (p["c"] * p["c"].conj()).real, {"c": PHASES}),
    "a complex number by its parts": (lambda p, x: (x * torch.view_as_complex(p["c"])).real, {"c": random(5, 2)}),
    # what comes out
    "an output": (lambda p, x: (x @ p["w"], p["w"]), {"w": W}),
    "outputs made of parameters": (lambda p, x: [x @ p["w"], p["w"].mT * 2, p["v"].sum(), p["v"]], {"w": W, "v": ROW}),
    "an output, twice": (lambda p, x: (p["w"], (x @ p["w"]).relu(), p["w"]), {"w": W}),
}  # fmt: skip


def oracle(function, params, *inputs):
    """W times the gradient of the sum of all outputs, Re(w conj(c)) of complex ones."""
    leaves, structure = optree.tree_flatten(params)
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    out = function(optree.tree_unflatten(structure, leaves), *inputs)
    gradients = torch.autograd.grad(sum(y.sum() for y in optree.tree_leaves(out)), leaves)
    found = [(leaf * g.conj()).real.detach() for leaf, g in zip(leaves, gradients, strict=True)]
    return optree.tree_unflatten(structure, found)


@pytest.mark.parametrize("composite", [GRADIENT, LRP_0], ids=["gradient", "lrp_0"])
@pytest.mark.parametrize("name", PATHS)
def test_a_parameter_gets_itself_times_its_gradient(name, composite):
    function, given, *inputs = PATHS[name]
    inputs = inputs or [X]
    fmodel, params = lrpfunc.trace(function, given, *inputs)
    found = lrpfunc.parameter_relevance(fmodel, params, tuple(inputs), composite, lambda y: y)
    expected = oracle(function, given, *inputs)
    close({leaf: found[leaf] for leaf in given}, expected)
    assert any(r.any() for r in expected.values())


# -- modules ----------------------------------------------------------------------------------------------------------


class Prefixed(nn.Module):
    """A class token, places, buffers of every kind, weights that are normalized, and complex ones."""

    def __init__(self):
        super().__init__()
        self.token, self.filter = (
            nn.Parameter(torch.randn(1, 1, 6)),
            nn.Parameter(torch.randn(4, dtype=torch.complex64)),
        )
        self.places, self.head = nn.Embedding(9, 6), nn.Linear(6, 3)
        self.direction, self.size = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.randn(6, 1))
        self.register_buffer("waves", torch.rand(9, 6))
        self.register_buffer("mask", torch.full((9, 9), -math.inf).triu(1))
        self.register_buffer("steps", torch.tensor(3), persistent=False)

    def forward(self, x):
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        n = x.shape[1]
        x = x + self.places(torch.arange(n)) + self.waves[:n] * self.steps
        x = F.linear(x, self.size * self.direction / self.direction.norm(dim=1, keepdim=True)).relu()
        x = x + torch.fft.irfft(torch.fft.rfft(x) * self.filter, n=6)
        x = torch.softmax(x @ x.mT + self.mask[:n, :n], -1) @ x
        return self.head(x[:, 0])


class Asking(nn.Module):
    """Learned queries that pass layers of their own before they meet the input, as in DETR."""

    def __init__(self):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(3, 6))
        self.decoder = nn.TransformerDecoderLayer(6, 2, 8, dropout=0.0, batch_first=True)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.decoder(self.queries.expand(x.shape[0], -1, -1), x))


class Windowed(nn.Module):
    """A bias of scores that is looked up by a buffer, as in Swin."""

    def __init__(self):
        super().__init__()
        self.table, self.qkv = nn.Parameter(torch.randn(7, 2)), nn.Linear(6, 18)
        self.register_buffer("index", torch.randint(7, (16,)))

    def forward(self, x):
        q, k, v = self.qkv(x).reshape(-1, 4, 3, 2, 3).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index].view(4, 4, 2).permute(2, 0, 1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)


class Remembering(nn.Module):
    """A GRU that begins with a state of its own."""

    def __init__(self):
        super().__init__()
        self.cell, self.start = nn.GRUCell(6, 4), nn.Parameter(torch.randn(1, 4))

    def forward(self, x):
        state = self.start.expand(x.shape[0], -1)
        for step in x.unbind(1):
            state = self.cell(step, state)
        return state


def dense(parametrize):
    layer = nn.Linear(6, 6)
    return nn.Sequential(parametrize(layer) or layer, nn.ReLU(), nn.Linear(6, 2))


MODULES = {
    "prefixed": Prefixed,
    "asking": Asking,
    "windowed": Windowed,
    "remembering": Remembering,
    "weight norm": lambda: dense(parametrizations.weight_norm),
    "spectral norm": lambda: dense(parametrizations.spectral_norm),
    "orthogonal": lambda: dense(parametrizations.orthogonal),
    "pruned": lambda: dense(lambda layer: prune.random_unstructured(layer, "weight", 0.4)),
    "pooled by attention": lambda: nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True),
}


def in_double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(COMPLEX if tensor.is_complex() else DOUBLE if tensor.is_floating_point() else tensor.dtype)


@functools.cache
def traced(name: str):
    """A module in double precision, its program and parameters, and samples."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = MODULES[name]().eval(), torch.randn(3, 4, 6)
    fmodel, params = lrpfunc.functionalize(model, x)
    params = {leaf: in_double(tensor) for leaf, tensor in params.items()}
    return model._apply(in_double), fmodel, params, x.double()


def check(model, fmodel, params, output, found, **tolerances) -> None:
    """Parameters have W times the gradient of the output's sum, all other leaves zeros."""
    learned = {leaf: p for leaf, p in model.named_parameters() if leaf in params}
    gradients = torch.autograd.grad(output.sum(), list(learned.values()), allow_unused=True, materialize_grads=True)
    for (leaf, p), g in zip(learned.items(), gradients, strict=True):
        close(found[leaf], (p * g.conj()).real.detach(), msg=lambda m, leaf=leaf: f"{leaf}: {m}", **tolerances)
    assert not any(found[leaf].any() for leaf in found.keys() - learned.keys())
    assert set(fmodel.buffers) == {leaf for leaf, _ in model.named_buffers()} & params.keys()
    assert all(found[leaf].dtype == (p.real if p.is_complex() else p).dtype for leaf, p in params.items())


@pytest.mark.parametrize("name", MODULES)
def test_parameters_of_modules_get_themselves_times_their_gradients(name):
    model, fmodel, params, x = traced(name)
    found = lrpfunc.parameter_relevance(fmodel, params, x, GRADIENT, lambda y: y)
    check(model, fmodel, params, model(x), found)
    assert found.keys() - set(fmodel.buffers)


@pytest.mark.slow
@pytest.mark.parametrize("name", transformer_zoo.NAMES)
def test_parameters_of_transformers_get_themselves_times_their_gradients(name):
    """To what the casts to float32 inside leave."""
    model, inputs = transformer_zoo.build(name).eval(), transformer_zoo.inputs(name)
    fmodel, params = lrpfunc.functionalize(model, **inputs)
    params = {leaf: in_double(tensor) for leaf, tensor in params.items()}
    inputs = {key: in_double(tensor) for key, tensor in inputs.items()}

    def first(output):
        return optree.tree_leaves(output, namespace="lrpfunc")[0]

    def target(output):
        leaves, structure = optree.tree_flatten(output, namespace="lrpfunc")
        return optree.tree_unflatten(structure, [leaves[0], *map(torch.zeros_like, leaves[1:])])

    found = lrpfunc.parameter_relevance(fmodel, params, inputs, GRADIENT, target)
    output = model._apply(in_double)(**inputs)
    first_leaf = output if isinstance(output, torch.Tensor) else output[0]
    torch.testing.assert_close(first(fmodel(params, **inputs)), first_leaf, rtol=1e-5, atol=1e-5)
    check(model, fmodel, params, first_leaf, found, rtol=1e-3, atol=1e-4)


# -- transforms -------------------------------------------------------------------------------------------------------


def explained(name: str):
    _, fmodel, _, _ = traced(name)
    composite = composites.attn_lrp()
    return lambda params, x: lrpfunc.parameter_relevance(fmodel, params, x, composite, lambda y: y)


@pytest.mark.parametrize("name", ["prefixed", "asking"])
def test_samples_by_vmap_sum_to_the_batch(name):
    *_, params, x = traced(name)
    one = explained(name)
    each = vmap(lambda sample: one(params, sample[None]))(x)
    close({leaf: r.sum(0) for leaf, r in each.items()}, one(params, x))


def test_derivatives_agree_with_finite_differences():
    *_, params, x = traced("prefixed")
    floating = {leaf: p for leaf, p in params.items() if p.is_floating_point() and p.isfinite().all()}

    def size(given):
        found = explained("prefixed")({**params, **given[0]}, given[1])
        return sum(r.square().sum() for r in found.values())

    direction = random_like((floating, x))
    torch.testing.assert_close(
        inner(grad(size)((floating, x)), direction), directional(size, (floating, x), direction), rtol=1e-5, atol=1e-6
    )


@pytest.mark.slow
def test_all_of_it_compiled_and_exported():
    torch.compiler.reset()
    *_, params, x = traced("prefixed")
    function = explained("prefixed")
    expected = function(params, x)
    close(torch.compile(function, fullgraph=True, backend="eager")(params, x), expected)

    class Module(nn.Module):
        def forward(self, params, x):
            return function(params, x)

    exported = torch.export.export(Module(), (params, x + 1), strict=False).module()
    close(exported(params, x), expected)


# -- attention --------------------------------------------------------------------------------------------------------


def eager(q, k, v, mask=0.0):
    return torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]) + mask, -1) @ v


def fused(q, k, v, mask=None):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


# Which of query, key, value and mask are parameters.
LEARNED = ["q", "k", "v", "m", "qk", "qm", "kv", "qkm", "kvm"]


@pytest.mark.parametrize("learned", LEARNED)
@pytest.mark.parametrize("preset", [composites.attn_lrp, composites.cp_lrp, composites.epsilon])
def test_attention_as_a_whole_and_written_out_give_parameters_the_same(learned, preset):
    params = {name: random(6, 6) + 0.1 * i for i, name in enumerate("qkv")} | {"out": random(6, 2)}
    params |= {name: random(1, 1, 4, 6) for name in "qkv" if name in learned}
    params |= {"m": random(4, 4)} if "m" in learned else {}

    def network(attend):
        def function(p, x):
            x = x[:, None]
            q, k, v = (p[n].expand(x.shape[0], -1, -1, -1) if n in learned else x @ p[n] for n in "qkv")
            return attend(q, k, v, *([p["m"]] if "m" in learned else [])) @ p["out"]

        return function

    x = random(2, 4, 6)
    found = []
    for attend in (eager, fused):
        fmodel, _ = lrpfunc.trace(network(attend), params, x)
        found.append(lrpfunc.parameter_relevance(fmodel, params, x, preset(epsilon=1e-12), lambda y: y))
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-8)
    scores = [found[0][name] for name in learned if name != "v"]
    are_constant = preset is not composites.attn_lrp and "v" not in learned and learned not in ("qk", "qkm")
    assert all(r.any() != are_constant for r in scores)


# -- what has no derivative -------------------------------------------------------------------------------------------


def test_what_torch_cannot_derive_is_refused():
    @torch.library.custom_op("test_made_of_parameters::coarse", mutates_args=())
    def coarse(w: torch.Tensor) -> torch.Tensor:
        return (4 * w).round() / 4

    @coarse.register_fake
    def _(w):
        return torch.empty_like(w)

    fmodel, params = lrpfunc.trace(lambda p, x: x @ coarse(p["w"]), {"w": W}, X)
    message = (
        r"torch has no derivative of 'coarse' \(coarse\), so it cannot be said what parameters contribute there\. "
        r"Give it a rule with `parameters`, or make what it gives a leaf of params\."
    )
    with pytest.raises(RuleError, match=message):
        lrpfunc.parameter_relevance(fmodel, params, X, LRP_0, lambda y: y)


def test_infinite_leaves_of_a_function_contribute_nothing():
    """A mask that was given among parameters, which are not told from buffers there."""
    given = {"mask": torch.full((4, 4), -math.inf).to(DOUBLE).triu(1), "w": W}
    fmodel, params = lrpfunc.trace(lambda p, x: torch.softmax(x @ x.mT + p["mask"], -1) @ x @ p["w"], given, X)
    found = lrpfunc.parameter_relevance(fmodel, params, X, GRADIENT, lambda y: y)
    assert found["mask"].isfinite().all()


def test_what_overflows_in_half_precision_is_refused():
    given, x = {"w": torch.full((2, 1), 60000.0)}, torch.full((1, 2), 0.5)
    fmodel, params = lrpfunc.trace(lambda p, x: x @ p["w"], given, x)
    half, x = {"w": params["w"].half()}, x.half()
    with pytest.raises(lrpfunc.LrpError, match="relevance overflowed in float16"):
        lrpfunc.parameter_relevance(fmodel, half, x, LRP_0, lambda y: 4 * y)
