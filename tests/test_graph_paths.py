"""Graphs pruned, their strongest paths and the flow between spans, beside all paths one by one and sums of slices."""

import functools

import pytest
import torch

from lrpfunc import circuits
from lrpfunc.errors import InputError
from tests import test_eager_oracle as oracle
from tests.test_graphs import graph_of, subject

close = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12)
LOWER, UPPER, TOP = ("model.transformer.add:1", "model.transformer.h.0", "model.transformer.h.1")


def dense(pair: circuits.Pair) -> torch.Tensor:
    return pair.edges.to_dense() if pair.edges.is_sparse else pair.edges


# -- pruned -----------------------------------------------------------------------------------------------------------


def fewest(values: list[float], mass: float) -> list[int]:
    """Which of some values are the fewest that have a share of the sum of their sizes."""
    order = sorted(range(len(values)), key=lambda i: -abs(values[i]))
    total, found = sum(map(abs, values)), []
    while sum(abs(values[i]) for i in found) < mass * total * (1 - 1e-12):
        found.append(order[len(found)])
    return sorted(found)


@pytest.mark.parametrize("keep", [None, 3])
@pytest.mark.parametrize("mass", [0.3, 0.9, 1])
def test_the_fewest_edges_with_a_share_of_the_relevance_are_kept(mass, keep):
    found = circuits.graph(*subject("gpt2"), oracle.TARGET, keep=keep)
    pruned = found.prune(mass)
    for sample in range(2):
        reached = {"target": {0}}
        for upper, lower in (("target", TOP), (TOP, UPPER), (UPPER, LOWER)):
            whole, kept = dense(found.pair(upper, lower))[sample], dense(pruned.pair(upper, lower))[sample]
            reachable = torch.zeros_like(whole)
            reachable[list(reached[upper])] = whole[list(reached[upper])]
            expected = torch.zeros_like(whole).flatten()
            chosen = fewest(reachable.flatten().tolist(), mass)
            expected[chosen] = reachable.flatten()[chosen]
            assert torch.equal(kept, expected.reshape(whole.shape))
            reached[lower] = set(kept.any(0).nonzero().flatten().tolist())
    assert pruned.streams == found.streams
    assert [pair.lower for pair in pruned.pairs] == [pair.lower for pair in found.pairs]


@pytest.mark.parametrize("mass", [0.5, 0.9])
def test_rows_of_a_pruned_graph_add_up(mass):
    pruned = graph_of("t5").prune(mass).prune(mass)
    for upper in pruned.streams:
        if below := pruned.below(upper):
            total = sum(dense(pair).sum(2) + pair.dropped for pair in below) + pruned.constants[upper]
            close(total, pruned.nodes[upper])
    assert sum(pair.edges.values().numel() for pair in pruned.pairs) < sum(
        p.edges.numel() for p in graph_of("t5").pairs
    )


@pytest.mark.parametrize("mass", [0, -0.1, 1.5, True, "most"])
def test_what_is_no_share_is_refused(mass):
    with pytest.raises(InputError, match=r"^mass must be a share of all relevance, such as 0\.9, but is "):
        graph_of("gpt2").prune(mass)


# -- paths ------------------------------------------------------------------------------------------------------------


def all_paths(graph: circuits.Graph, stream: str, token: int, sample: int) -> list[circuits.Path]:
    """Every path from a token to the target, one by one, the strongest first."""
    if stream == "target":
        return [circuits.Path(1.0, (("target", 0),))]
    found = []
    for pair in graph.pairs:
        if pair.lower != stream:
            continue
        leaving = graph.constants[pair.upper][sample].abs()
        for other in graph.below(pair.upper):
            leaving = leaving + dense(other)[sample].abs().sum(1) + other.dropped[sample].abs()
        for above, edge in enumerate(dense(pair)[sample][:, token].abs().tolist()):
            if edge:
                share = edge / float(leaving[above])
                found += [
                    circuits.Path(share * path.strength, ((stream, token), *path.tokens))
                    for path in all_paths(graph, pair.upper, above, sample)
                ]
    return sorted(found, key=lambda path: -path.strength)


@pytest.mark.parametrize(("name", "keep"), [("gpt2", None), ("gpt2", 2), ("t5", None), ("bert", None)])
def test_paths_are_the_strongest_of_all(name, keep):
    found = graph_of(name) if keep is None else circuits.graph(*subject(name), oracle.TARGET, keep=keep)
    for stream in found.streams[:-1]:
        for token, sample in ((0, 0), (2, 1)):
            expected = all_paths(found, stream, token, sample)[:4]
            paths = found.paths(stream, token, count=4, sample=sample)
            assert [path.tokens for path in paths] == [path.tokens for path in expected]
            assert [path.strength for path in paths] == pytest.approx([path.strength for path in expected], rel=1e-9)


def test_no_path_leads_from_a_token_that_the_target_never_saw():
    """Llama's last token is explained."""
    found = graph_of("llama")
    assert found.paths("model.model.layers.1", 0) == []
    assert len(found.paths("model.model.layers.1", 6)) == 1
    assert found.paths("target", 0) == [circuits.Path(1.0, (("target", 0),))]


@pytest.mark.parametrize(("given", "message"), [
    ({"stream": "model.transformer.h.9", "token": 0}, "there is no stream 'model.transformer.h.9'. Did you mean"),
    ({"stream": TOP, "token": 7}, "the token must be a number from 0 to 6, but is 7."),
    ({"stream": TOP, "token": -1}, "the token must be a number from 0 to 6, but is -1."),
    ({"stream": TOP, "token": 0, "sample": 2}, "the sample must be a number from 0 to 1, but is 2."),
    ({"stream": TOP, "token": 0, "count": 0}, "count must be a number of paths >= 1, but is 0."),
])  # fmt: skip
def test_tokens_that_there_are_not_are_refused(given, message):
    with pytest.raises(InputError) as caught:
        graph_of("gpt2").paths(**given)
    assert str(caught.value).startswith(message)


# -- spans ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [None, 3])
def test_spans_are_sums_of_their_tokens(keep):
    found = circuits.graph(*subject("gpt2"), oracle.TARGET, keep=keep)
    spans = found.spans({"instruction": range(2), "answer": slice(5, 7), "context": [2, 4]})
    slices = [[0, 1], [5, 6], [2, 4], [3]]
    for name in (LOWER, UPPER, TOP):
        close(spans.nodes[name], torch.stack([found.nodes[name][:, own].sum(1) for own in slices], 1))
    close(spans.nodes["target"], found.nodes["target"])
    for pair in spans.pairs:
        rows = [[0]] if pair.upper == "target" else slices
        whole = dense(found.pair(pair.upper, pair.lower))
        for i, upper in enumerate(rows):
            for j, lower in enumerate(slices):
                close(pair.edges[:, i, j], whole[:, upper][:, :, lower].sum((1, 2)))
        close(pair.edges.sum(2) + pair.dropped + spans.constants[pair.upper], spans.nodes[pair.upper])


def test_spans_are_of_the_streams_that_are_named():
    found = graph_of("t5")
    encoder = [name for name in found.streams if "decoder" not in name and name != "target"]
    spans = found.spans({"start": range(3)}, streams=encoder)
    for pair in spans.pairs:
        sizes = [2 if name in encoder else found.nodes[name].shape[1] for name in (pair.upper, pair.lower)]
        assert list(pair.edges.shape[1:]) == sizes
    assert spans.spans({"all": range(2)}, streams=encoder[:1]).nodes[encoder[0]].shape == (2, 2)


@pytest.mark.parametrize(("spans", "streams", "message"), [
    ({}, None, 'spans are tokens by name, such as {"question": range(3, 9)}, but there are none.'),
    ({"a": [0, 1], "b": [1]}, None, "token 1 is in 'a' and in 'b': spans must not overlap."),
    (
        {"a": [6]}, None,
        "'a' has the token 6, but 'decoder_inputs_embeds' has 5 tokens: say by streams= which spans are of.",
    ),
    ({"a": [-1]}, ["inputs_embeds"], "'a' has the token -1, but 'inputs_embeds' has 7 tokens: say by streams= which "),
    ({"a": [0]}, ["inputs_embed"], "there is no stream 'inputs_embed'. Did you mean 'inputs_embeds'"),
])  # fmt: skip
def test_spans_that_are_none_are_refused(spans, streams, message):
    with pytest.raises(InputError) as caught:
        graph_of("t5").spans(spans, streams)
    assert str(caught.value).startswith(message)
