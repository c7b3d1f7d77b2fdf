"""What depends on the input is active whatever its dtype: complex numbers, ids on their way to a table, writes.

Right values are input times autograd's gradient of the function itself, or rows of a table worked by hand.
"""

import pytest
import torch
import torch.nn.functional as F
import torchvision

import lrpfunc
from lrpfunc import rules
from lrpfunc.errors import RuleError

DOUBLE = torch.float64
X = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.5, -1.0, 2.0, 3.0]], dtype=DOUBLE)


def random(*shape: int, dtype=DOUBLE) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


def explained(function, params, *inputs):
    """Relevance of each input under LRP-0, of all outputs, without a fallback."""
    fmodel, params = lrpfunc.trace(function, params, *inputs)
    listing = lrpfunc.explain(fmodel, rules.epsilon(0), strict=True)
    return lrpfunc.attribute(fmodel, params, inputs, rules.epsilon(0), target=lambda y: y), listing


def by_gradient(function, params, *inputs):
    leaves = [x.clone().requires_grad_() for x in inputs]
    grads = torch.autograd.grad(function(params, *leaves).sum(), leaves)
    return tuple((x * g.conj()).real for x, g in zip(inputs, grads, strict=True))


def check(function, params, *inputs) -> None:
    found, _ = explained(function, params, *inputs)
    torch.testing.assert_close(found, by_gradient(function, params, *inputs), rtol=1e-5, atol=1e-6)


# -- complex numbers --------------------------------------------------------------------------------------------------

WEIGHT, PHASES, WINDOW = random(3, dtype=torch.complex128), random(2), torch.hann_window(8, dtype=DOUBLE)


def rotary(p, x):
    pairs = torch.view_as_complex(x.reshape(x.shape[0], -1, 2))
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(p), p)).flatten(1) + 3 * x


COMPLEX = {
    "beside another path": (
        lambda p, x: x.sum(1, keepdim=True) + torch.fft.irfft(2 * torch.fft.rfft(x), n=4)[:, :1],
        None,
    ),
    "real part": (lambda p, x: torch.fft.fft(x).real + 9 * x, None),
    "imaginary part": (lambda p, x: torch.fft.fft(x).imag + 9 * x, None),
    "filter": (lambda p, x: torch.fft.irfft(torch.fft.rfft(x) * p, n=4), WEIGHT),
    "spectral layer": (
        lambda p, x: torch.fft.irfft(torch.einsum("bi,oi->bo", torch.fft.rfft(x), p), n=4),
        random(3, 3, dtype=torch.complex128),
    ),
    "product": (lambda p, x: (torch.fft.rfft(x) @ p).imag, random(3, 2, dtype=torch.complex128)),
    "size": (lambda p, x: torch.fft.rfft(x).abs(), None),
    "rotary embedding": (rotary, PHASES),
    "polar": (lambda p, x: torch.polar(x[:, :2].abs() + 0 * x[:, :2], p).real, PHASES),
    "cast": (lambda p, x: (x[:, :3].to(torch.complex128) * p).real, WEIGHT),
    "conjugate": (lambda p, x: (torch.fft.rfft(x).conj() * p).real + 9 * x[:, :3], WEIGHT),
    "two dimensions": (lambda p, x: torch.fft.ifft2(torch.fft.fft2(x.reshape(-1, 2, 2))).real.flatten(1), None),
}


@pytest.mark.parametrize("case", COMPLEX)
def test_complex_values_move(case):
    function, params = COMPLEX[case]
    check(function, {} if params is None else params, X)


def test_the_right_values_beside_another_path():
    found, _ = explained(COMPLEX["beside another path"][0], {}, X[:1])
    torch.testing.assert_close(found[0], torch.tensor([[3.0, 2.0, 3.0, 4.0]], dtype=DOUBLE), rtol=1e-5, atol=1e-6)


def test_what_is_zero_in_the_spectrum_is_not_divided_by():
    """A constant signal has one frequency; its relevance is input times gradient all the same."""
    check(
        lambda p, x: torch.fft.irfft(torch.fft.rfft(x) * p, n=4) @ torch.ones(4, 1).double(), WEIGHT, torch.ones_like(X)
    )


def test_short_time_fourier_transform_and_back():
    def f(p, x):
        spectrum = torch.stft(x, 8, window=p, return_complex=True)
        return torch.istft(spectrum * 2, 8, window=p)

    check(f, WINDOW, random(2, 32))


def test_a_complex_input_has_a_real_relevance():
    z = random(2, 3, dtype=torch.complex128)
    found, _ = explained(lambda p, z: (z * p).real, WEIGHT, z)
    assert found[0].dtype == DOUBLE
    torch.testing.assert_close(found, by_gradient(lambda p, z: (z * p).real, WEIGHT, z), rtol=1e-4, atol=1e-6)


def test_stabilizers_of_complex_values():
    z = torch.tensor([3 + 4j, 0j], dtype=torch.complex128)
    expected = torch.tensor([3.6 + 4.8j, 1.0], dtype=torch.complex128)
    torch.testing.assert_close(lrpfunc.stabilizer(1.0)(z), expected)
    torch.testing.assert_close(lrpfunc.stabilizer(10.0, clip=True)(z), torch.tensor([6 + 8j, 10], dtype=z.dtype))


def test_a_complex_layer_leaves_its_bias_out():
    """Also where relevance arrives, or a coefficient that nobody foresaw, and where an epsilon is there."""
    given = {"w": random(3, 4, dtype=torch.complex128), "b": torch.zeros(3, dtype=torch.complex128)}
    fmodel, params = lrpfunc.trace(lambda p, x: F.linear(x.to(torch.complex128), p["w"], p["b"]).real, given, X)
    name = "w"  # of its weight
    for epsilon in (0, 1e-9):
        found = []
        for zero_bias in (False, True):
            trail = lrpfunc.record(fmodel, params, X, rules.epsilon(epsilon, zero_bias=zero_bias), at=name)
            found.append([trail.pull(lambda y: y)[0], trail.pull({name: trail.values[name].abs()})[0]])
        torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(found[0][0], by_gradient(fmodel, params, X)[0], rtol=1e-4, atol=1e-5)


def test_complex_layers_have_no_signs():
    fmodel, params = lrpfunc.trace(lambda p, x: (torch.fft.rfft(x) @ p).real, random(3, 2, dtype=torch.complex128), X)
    with pytest.raises(RuleError, match=r"has complex values, which have no signs: give it the epsilon rule"):
        lrpfunc.attribute(fmodel, params, X, rules.zplus())


def test_the_ledger_of_complex_values_adds_up():
    function, params = COMPLEX["filter"]
    fmodel, params = lrpfunc.trace(function, params, X)
    ledger = lrpfunc.ledger(fmodel, params, X, rules.epsilon(0), target=0)
    assert ledger.entries[0].passed_on == pytest.approx(sum(ledger.inputs.values()))


# -- ids: rows 1 to 9 -------------------------------------------------------------------------------------------------

TABLE = torch.arange(1.0, 10.0, dtype=DOUBLE)[:, None]
IDS = torch.tensor([0, 1])
PAIRS = torch.tensor([[0, 1], [1, 2]])


def rows(p, ids):
    return F.embedding(ids, p)


BAG = {"sum": [[1.0, 2.0], [2.0, 3.0]], "mean": [[0.5, 1.0], [1.0, 1.5]], "max": [[0.0, 2.0], [0.0, 3.0]]}
LOOKUPS = {
    "shifted": (lambda p, i: rows(p, i + 3), IDS, [4.0, 5.0]),
    "scaled": (lambda p, i: rows(p, 2 * i), IDS, [1.0, 3.0]),
    "remainder": (lambda p, i: rows(p, i % 3), torch.tensor([4, 5]), [2.0, 3.0]),
    "divided": (lambda p, i: rows(p, i // 2), torch.tensor([4, 5]), [3.0, 3.0]),
    "clamped": (lambda p, i: rows(p, i.clamp(0, 8)), IDS, [1.0, 2.0]),
    "concatenated": (lambda p, i: rows(p, torch.cat([i, i + 2], 1)).sum(-1), PAIRS, [[4.0, 6.0], [6.0, 8.0]]),
    "stacked": (lambda p, i: rows(p, torch.stack([i[:, 1], i[:, 0]], 1)).sum(-1), PAIRS, [[1.0, 2.0], [2.0, 3.0]]),
    "offsets": (lambda p, i: rows(p, i + torch.tensor([0, 3])).sum(-1), PAIRS, [[1.0, 5.0], [2.0, 6.0]]),
    "of two ids": (lambda p, i: rows(p, i[:, 0] * 3 + i[:, 1]), PAIRS, [[1.0, 1.0], [3.0, 3.0]]),
    "indexed": (lambda p, i: p[i], IDS, [1.0, 2.0]),
    "indexed behind": (lambda p, i: p.T[:, i].T, IDS, [1.0, 2.0]),
    "selected": (lambda p, i: p.index_select(0, i), IDS, [1.0, 2.0]),
    "gathered": (lambda p, i: p.T.expand(2, 9).gather(1, i), PAIRS, [[1.0, 2.0], [2.0, 3.0]]),
    "one-hot": (lambda p, i: F.one_hot(i, 9).double() @ p, IDS, [1.0, 2.0]),
    **{f"bag: {how}": (lambda p, i, how=how: F.embedding_bag(i, p, mode=how), PAIRS, BAG[how]) for how in BAG},
    "bag: offsets": (
        lambda p, i: F.embedding_bag(i, p, torch.tensor([0, 1, 1]), mode="sum"),
        torch.tensor([0, 1, 2]),
        [1.0, 2.0, 3.0],
    ),
}


@pytest.mark.parametrize("case", LOOKUPS)
def test_ids_have_the_relevance_of_their_rows(case):
    function, ids, expected = LOOKUPS[case]
    found, _ = explained(function, TABLE, ids)
    torch.testing.assert_close(found[0].double(), torch.tensor(expected, dtype=DOUBLE), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", LOOKUPS)
def test_ids_keep_their_relevance_beside_numbers(case):
    function, ids, expected = LOOKUPS[case]
    found, _ = explained(lambda p, i, x: function(p, i) + x.sum(), TABLE, ids, torch.zeros(2, dtype=DOUBLE))
    torch.testing.assert_close(found[0].double(), torch.tensor(expected, dtype=DOUBLE), rtol=1e-5, atol=1e-6)


def test_a_column_that_is_cast_to_an_id_has_its_rows_relevance():
    x = torch.tensor([[0.0, 5.0], [1.0, 6.0]], dtype=DOUBLE)
    found, _ = explained(lambda p, x: rows(p, x[:, 0].long()) + x[:, 1:], TABLE, x)
    expected = torch.tensor([[1.0, 5.0], [2.0, 6.0]], dtype=DOUBLE)
    torch.testing.assert_close(found[0], expected, rtol=1e-5, atol=1e-6)


def test_weighted_bags_share_between_ids_and_weights():
    weights = torch.tensor([[1.0, 2.0], [1.0, 1.0]], dtype=DOUBLE)

    def f(p, i, w):
        return F.embedding_bag(i, p, mode="sum", per_sample_weights=w)

    ids, of_weights = explained(f, TABLE, PAIRS, weights)[0]
    expected = torch.tensor([[1.0, 4.0], [2.0, 3.0]], dtype=DOUBLE) / 2
    torch.testing.assert_close(ids, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(of_weights, expected, rtol=1e-5, atol=1e-6)


def test_what_is_compared_is_no_id():
    fmodel, params = lrpfunc.trace(lambda p, i, x: rows(p, (i > 0).long()) + x, TABLE, IDS, torch.ones(2, 1).double())
    found = lrpfunc.attribute(fmodel, params, (IDS, torch.ones(2, 1).double()), rules.epsilon(0))
    assert not found[0].any()


# -- what is written, and what is a step ------------------------------------------------------------------------------


def written(p, x):
    y = torch.zeros_like(x)
    y[:, :2] = x[:, 2:]
    y[:, 2] += x[:, 0]
    y[:, 3:] *= 2
    return y


def copied(p, x):
    return torch.zeros(4, dtype=DOUBLE).expand_as(x).clone().copy_(x[:, :1])


def accumulated(p, x):
    places = torch.tensor([[0, 0, 1, 1]]).expand_as(x)
    lines = torch.arange(len(x))[:, None].expand_as(x)
    return torch.zeros_like(x).index_put((lines, places), x, accumulate=True)


PLACES = torch.tensor([[0, 0, 1, 1]] * 2)
FIRST, SECOND, ROW, GRID = random(4, 3), random(3, 2), random(1, 4), random(2, 3, 3, 2).tanh() * 0.7
LINEAR = {
    "slice writes": written,
    "copy": copied,
    "accumulated": accumulated,
    "scattered sum": lambda p, x: torch.zeros_like(x).scatter_reduce(1, PLACES, x, "sum"),
    "scattered mean": lambda p, x: torch.zeros_like(x).scatter_reduce(1, PLACES, x, "mean"),
    "a power of zero": lambda p, x: x**0 + 9 * x,
    "floor division": lambda p, x: torch.div(x, 2, rounding_mode="floor") + 9 * x,
    "a sign": lambda p, x: x * x.sign(),
    "interpolated": lambda p, x: torch.lerp(x, torch.ones_like(x), 0.3),
    "clamped by another": lambda p, x: torch.clamp(x, max=x.flip(1)),
    "einsum of one": lambda p, x: torch.einsum("bi->b", x)[:, None],
    "einsum of two weights": lambda p, x: torch.einsum("bi,ij,jk->bk", x, FIRST, SECOND),
    "kron": lambda p, x: torch.kron(x, ROW),
    "differences": lambda p, x: x.cumsum(1).diff(dim=1),
    "grid": lambda p, x: F.grid_sample(x.reshape(-1, 1, 2, 2), GRID, align_corners=False),
}


@pytest.mark.parametrize("case", LINEAR)
def test_what_is_linear_is_input_times_gradient(case):
    check(LINEAR[case], {}, X)


@pytest.mark.parametrize("name", ["pow_", "float_power_"])
def test_powers_in_place_are_those_that_return(name):
    found = explained(lambda p, x: getattr(x * 1, name)(2), {}, X)[0]
    torch.testing.assert_close(found, explained(lambda p, x: x**2, {}, X)[0])


def test_a_pool_of_powers_keeps_the_sum():
    x = random(2, 1, 4, 4).abs()
    found, _ = explained(lambda p, x: F.lp_pool2d(x, 2, 2).flatten(1), {}, x)
    torch.testing.assert_close(found[0].sum(), F.lp_pool2d(x, 2, 2).sum(), rtol=1e-5, atol=1e-6)


def test_glu_is_its_equations():
    by_name = explained(lambda p, x: F.glu(x), {}, X)[0]
    signal, gate = X.chunk(2, 1)
    torch.testing.assert_close(by_name[0], torch.cat([signal * gate.sigmoid(), 0 * gate], 1))


def test_a_product_of_many_is_shared_evenly():
    found, _ = explained(lambda p, x: x.prod(1, keepdim=True), {}, X)
    torch.testing.assert_close(found[0], (X.prod(1, keepdim=True) / 4).expand_as(X))


def test_constants_are_listed():
    _, listing = explained(lambda p, x: x * x.sign() + x.detach(), {}, X)
    assert [(row[3], row[-1]) for row in listing.rows if row[-1] == "constant"] == [
        ("sign", "constant"),
        ("detach", "constant"),
    ]


# -- operators that know autograd, but not torch.func ------------------------------------------------------------------


@pytest.mark.parametrize(("pool", "fallbacks"), [("roi_align", ()), ("roi_pool", ("roi_pool",))])
def test_an_operator_of_torchvision_moves_by_plain_autograd(pool, fallbacks):
    x, boxes = random(1, 3, 8, 8), torch.tensor([[0.0, 1, 1, 6, 6]], dtype=DOUBLE)

    def f(p, x):
        return getattr(torchvision.ops, pool)(x, p, 2).flatten(1)

    fmodel, params = lrpfunc.trace(f, boxes, x)
    assert lrpfunc.explain(fmodel, rules.epsilon()).fallbacks == fallbacks
    found = lrpfunc.attribute(fmodel, params, x, rules.epsilon(0), target=lambda y: y)
    torch.testing.assert_close(found, by_gradient(f, boxes, x)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pool", ["roi_align", "roi_pool"])
@pytest.mark.parametrize("chunk_size", [None, 1, 2])
def test_an_operator_of_torchvision_takes_several_targets_at_once(pool, chunk_size):
    x, boxes = random(2, 3, 8, 8), torch.tensor([[0.0, 1, 1, 6, 6], [1.0, 0, 2, 5, 7]], dtype=DOUBLE)
    fmodel, params = lrpfunc.trace(lambda p, x: getattr(torchvision.ops, pool)(x, p, 2).flatten(1), boxes, x)
    found = lrpfunc.attribute_each(fmodel, params, x, rules.epsilon(), range(12), chunk_size=chunk_size)
    expected = [lrpfunc.attribute(fmodel, params, x, rules.epsilon(), target=target) for target in range(12)]
    assert torch.equal(found, torch.stack(expected))


def test_an_operator_of_torchvision_maps_over_targets_in_targets():
    x, boxes = random(1, 3, 8, 8), torch.tensor([[0.0, 1, 1, 6, 6]], dtype=DOUBLE)
    fmodel, params = lrpfunc.trace(lambda p, x: torchvision.ops.roi_align(x, p, 2).flatten(1), boxes, x)
    _, pullback = lrpfunc.vjp(fmodel, params, x, rules.epsilon())
    seeds = random(2, 12, 3).movedim(1, 2)  # mapped along other axes than the first
    found = torch.func.vmap(torch.func.vmap(pullback, in_dims=0), in_dims=1, out_dims=1)(seeds[:, :, None])
    expected = torch.stack([torch.stack([pullback(seed[None]) for seed in row]) for row in seeds])
    torch.testing.assert_close(found, expected)


def test_what_has_no_derivative_says_so():
    x = torch.rand(1, 4)
    fmodel, params = lrpfunc.trace(lambda p, x: torch.bincount(p, weights=x[0])[None] + x[:, :1], PLACES[0], x)
    message = r"at layer 'bincount': torch has no derivative of it \(derivative for aten::bincount is not implemented\)"
    with pytest.raises(RuleError, match=message):
        lrpfunc.attribute(fmodel, params, x, rules.epsilon(), target=lambda y: y)


# -- constants keep their share ---------------------------------------------------------------------------------------


def test_a_shift_at_the_end_keeps_its_share():
    w = random(1, 4)
    found, _ = explained(lambda p, x: F.linear(x, p) * 3 + 100, w, X)
    torch.testing.assert_close(found[0], X * w * 3, rtol=1e-5, atol=1e-6)


def test_layer_norm_written_out_is_layer_norm():
    w, b = random(4), random(4) + 1

    def written_out(p, x):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w + b

    called = explained(lambda p, x: F.layer_norm(x, (4,), w, b), {}, X)[0]
    torch.testing.assert_close(explained(written_out, {}, X)[0], called, rtol=1e-4, atol=1e-4)
