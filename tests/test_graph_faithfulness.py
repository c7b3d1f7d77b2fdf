"""The example that asks whether graphs tell the truth: its tasks, its truth beside hooks, its scores beside scipy's."""

import itertools

import pytest
import torch

import lrpfunc
from tests.test_examples_inside import load


@pytest.fixture(scope="module")
def example():
    return load("graph_faithfulness")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def learned(example):
    """A network that goes on with sequences, its program, and some runs."""
    task = example.TASKS["induction"]
    model = example.train(task, 150, seed=0)
    runs = task.runs(6, generator())
    fmodel, params = lrpfunc.functionalize(model, runs.clean)
    return model, fmodel, {name: tensor.detach() for name, tensor in params.items()}, runs


# -- tasks ------------------------------------------------------------------------------------------------------------


def answers(example, name: str, ids: list[int]) -> int:
    """What is right, by hand."""
    if name == "induction":
        said, again = ids[: example.SAID], ids[example.SAID :]
        return said[said.index(again[-1]) + 1]
    if name == "indirect object":
        return (ids[0] + ids[2]) - ids[6]
    if name == "brackets":
        inside = ids[ids.index(example.OPEN) + 1 : ids.index(example.CLOSE)]
        weights = {example.EVIDENCE + i: weight for i, weight in enumerate(example.WEIGHTS.tolist())}
        return example.POSITIVE if sum(weights.get(each, 0) for each in inside) > 0 else example.NEGATIVE
    a, b = (10 * ids[i] + ids[i + 1] for i in (0, 3))
    assert ids[6] == (a + b) % 10
    return (a + b) // 10 % 10


@pytest.mark.parametrize("name", ["induction", "indirect object", "brackets", "addition"])
def test_answers_are_right_and_corruption_changes_them(example, name):
    runs = example.TASKS[name].runs(40, generator())
    assert len(runs.clean) == 40
    assert (runs.answer != runs.other).all()
    assert (runs.clean != runs.corrupted).any(1).all()
    for ids, right in ((runs.clean, runs.answer), (runs.corrupted, runs.other)):
        assert ids.shape[1] <= example.TASKS[name].length
        assert [answers(example, name, each) for each in ids.tolist()] == right.tolist()


@pytest.mark.parametrize("name", ["induction", "indirect object", "brackets", "addition"])
def test_lessons_ask_for_what_can_be_known(example, name):
    task = example.TASKS[name]
    ids, follow = task.lessons(20, generator())
    assert ids.shape == follow.shape
    assert ids.max() < task.vocabulary
    asked = follow != example.IGNORED
    assert asked.any(1).all()
    within = asked[:, :-1]
    assert (follow[:, :-1][within] == ids[:, 1:][within]).all()
    if name != "addition":
        assert [answers(example, name, each) for each in ids.tolist()] == follow[:, -1].tolist()


# -- the truth --------------------------------------------------------------------------------------------------------


def test_effects_of_edges_and_nodes_are_what_hooks_find(example, learned):
    model, _, _, runs = learned
    others = example.streams(model, runs.corrupted)
    found = example.truth(model, runs, others)
    rows = torch.arange(len(runs.answer))

    @torch.no_grad()
    def margins() -> torch.Tensor:
        logits = model(runs.clean)[:, -1]
        return logits[rows, runs.answer] - logits[rows, runs.other]

    before, tokens = margins(), runs.clean.shape[1]
    for layer, (lower, upper) in itertools.product((0, 1), [(8, 10), (3, 10), (3, 4), (5, 5)]):
        block, sent = model.blocks[layer], {}

        def swap(module, given, lower=lower, layer=layer):
            changed = given[0].clone()
            changed[:, lower] = others[layer][:, lower]
            return (changed,)

        def keep(module, given, output, sent=sent):
            sent["all"] = output

        def send(module, given, output, sent=sent, upper=upper):
            received = output.clone()
            received[:, upper] = sent["all"][:, upper]
            return received

        hooks = [block.register_forward_pre_hook(swap), block.register_forward_hook(keep)]
        torch.testing.assert_close(found["nodes"][:, layer, lower], before - margins(), rtol=1e-4, atol=1e-4)
        for hook in hooks:
            hook.remove()
        hook = block.register_forward_hook(send)
        torch.testing.assert_close(found["edges"][:, layer, upper, lower], before - margins(), rtol=1e-4, atol=1e-4)
        hook.remove()
    assert not found["edges"].flatten(2)[:, :, torch.ones(tokens, tokens).triu(1).flatten().bool()].any()


def test_candidates_are_all_that_may_have_an_effect(example, learned):
    model, _, _, runs = learned
    others = example.streams(model, runs.corrupted)
    differs = torch.stack(
        [(x - y).abs().amax(-1) > 1e-4 for x, y in zip(example.streams(model, runs.clean), others, strict=True)], 1
    )
    chosen, true = example.candidates(differs), example.truth(model, runs, others)
    assert chosen["edges"].shape == true["edges"].shape
    apart = ~torch.eye(differs.shape[-1], dtype=torch.bool)
    assert (true["edges"] * ~chosen["edges"] * apart).abs().max() < 1e-3
    assert (true["nodes"] * ~chosen["nodes"]).abs().max() < 1e-3


# -- what explanations say --------------------------------------------------------------------------------------------


def test_edges_find_what_true_patching_finds_and_permuted_ones_do_not(example, learned):
    model, fmodel, params, runs = learned
    others = example.streams(model, runs.corrupted)
    true = example.truth(model, runs, others)
    differs = [(x - y).abs().amax(-1) > 1e-4 for x, y in zip(example.streams(model, runs.clean), others, strict=True)]
    chosen = example.candidates(torch.stack(differs, 1))
    found = example.estimates(fmodel, params, runs, others, generator())
    for method in ("graph, attn_lrp", "patching, attn_lrp"):
        edges = found[method]["edges"]
        score, area = example.compared(found[method], true, chosen)["edges"]
        assert score > 0.7
        assert area > 0.95
        for seed in range(4):
            order = torch.randperm(runs.clean.shape[1], generator=generator(seed))
            for permuted in (edges[..., order], edges[..., order, :], edges.flip(1)):  # senders, receivers, layers
                other = example.compared({**found[method], "edges": permuted}, true, chosen)["edges"]
                assert other[0] < score - 0.2
    assert abs(example.compared(found["random"], true, chosen)["edges"][0]) < 0.2


def test_differences_along_edges_sum_up_to_those_of_nodes(example, learned):
    """Each token's own coefficient is what it gets from all above it, by the gradient, which is linear."""
    model, fmodel, params, runs = learned
    others = example.streams(model, runs.corrupted)
    found = example.of_differences(fmodel, params, runs, example.GRADIENT, others)
    torch.testing.assert_close(found["edges"].sum(2), found["nodes"], rtol=1e-4, atol=1e-4)
    patched = example.circuits.patching(
        fmodel, params, runs.corrupted, runs.clean, lambda y: y * example.cotangent(runs)(y), example.GRADIENT,
        at=example.AT[:-1],
    )  # fmt: skip
    nodes = torch.stack([-each.sum(-1) for each in patched.values()], 1)
    torch.testing.assert_close(found["nodes"], nodes, rtol=1e-4, atol=1e-4)


def test_attention_is_that_of_the_module(example, learned):
    model, fmodel, params, runs = learned
    found = example.of_attention(fmodel, params, runs)
    x = model.embed(runs.clean)
    q, k, _ = model.blocks[0].attention.qkv(model.blocks[0].norm1(x)).chunk(3, -1)
    q, k = (part.unflatten(-1, (example.HEADS, -1)).transpose(1, 2) for part in (q, k))
    scores = (q @ k.mT * 0.25).masked_fill(torch.ones(11, 11).triu(1).bool(), -torch.inf)
    torch.testing.assert_close(found["raw attention"]["edges"][:, 0], scores.softmax(-1).mean(1))
    rolled = found["rollout"]["edges"]
    torch.testing.assert_close(rolled[:, 1].sum((1, 2)), torch.ones(6))
    torch.testing.assert_close(rolled[:, 0].sum(2), rolled[:, 1].sum(1))  # what arrives goes on


# -- scores -----------------------------------------------------------------------------------------------------------


def test_rank_correlations_and_areas_are_those_of_others(example):
    stats, metrics = pytest.importorskip("scipy.stats"), pytest.importorskip("sklearn.metrics")
    one, other = torch.randint(6, (2, 30), generator=generator()).double()
    expected = stats.spearmanr(one.numpy(), other.numpy()).statistic
    assert example.spearman(one, other) == pytest.approx(expected)
    counts = other > 3
    assert example.area(one, counts) == pytest.approx(metrics.roc_auc_score(counts.numpy(), one.numpy()))


def test_the_example_runs(example, capsys):
    rows = example.main(["--quick", "--task", "addition"])
    said = capsys.readouterr().out
    assert said.startswith("addition: right in ")
    assert "edges, replaced by the mean over runs" in said
    assert {(row.replacement, row.what) for row in rows} == {
        (kind, what) for kind in ("corrupted", "mean") for what in ("edges", "nodes")
    }
    assert all(row.error == 0 for row in rows)  # of one network
    assert len({row.method for row in rows}) == 9
