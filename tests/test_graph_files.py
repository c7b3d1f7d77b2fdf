"""Graphs as pages and files: what they hold, beside the graph's own numbers; what is refused."""

import base64
import json
import math
import re

import numpy as np
import pytest
import torch

from lrpfunc import circuits, text
from lrpfunc.circuits.graphs import Graph, Pair
from lrpfunc.errors import InputError, MissingExtraError
from tests import test_eager_oracle as oracle
from tests.test_extras import without
from tests.test_graph_paths import dense
from tests.test_graphs import graph_of, subject

WORDS = ["<s>", " a", " b"]
HOSTILE = ["</script><img src=x onerror=alert(1)>", "<b>b</b>", "\u202eevil"]


def small() -> Graph:
    """Three streams of three tokens, made by hand: rows add up, two heads, a constant of the last token."""
    low = torch.tensor([[[0.5, 0, 0], [0, -0.25, 0], [0.5, 0.25, 0.75]]])
    top = torch.tensor([[[0.0, 0, 0], [0, -0.25, 0], [0.5, 0, 1.75]]])
    heads = torch.zeros(1, 2, 3, 3)
    heads[0, 0, 2] = torch.tensor([0.75, 0.25, 0])
    heads[0, 1, 2] = torch.tensor([-0.25, 0, 0.5])
    nothing = torch.zeros(1, 3)
    pairs = (
        Pair("model.h.0", "model.embed", low, nothing, "closed", heads=heads),
        Pair("model.h.1", "model.h.0", top, nothing, "pullbacks", "asked for"),
        Pair("target", "model.h.1", torch.tensor([[[0.0, -0.25, 2.25]]]), torch.zeros(1, 1), "one pullback"),
    )
    nodes = {
        "model.embed": low.sum(1),
        "model.h.0": torch.tensor([[0.5, -0.25, 1.75]]),
        "model.h.1": torch.tensor([[0.0, -0.25, 2.25]]),
        "target": torch.tensor([[2.0]]),
    }
    constants = {
        "model.h.0": torch.tensor([[0.0, 0, 0.25]]),
        "model.h.1": torch.zeros(1, 3),
        "target": torch.zeros(1, 1),
    }
    branches = {"model.h.0": {"model.h.0.mlp": torch.tensor([[0.0, 0.5, 1.0]])}}
    return Graph(tuple(nodes), nodes, pairs, constants, None, branches)


def sparse() -> Graph:
    """As where keep=1 is given: one edge of each token is stored."""
    return circuits.graph(*subject("gpt2"), oracle.TARGET, keep=1)


# -- the page's data --------------------------------------------------------------------------------------------------


def data_of(page: str) -> dict:
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, flags=re.DOTALL)
    return json.loads(found)


def floats(packed: str) -> list[float]:
    return np.frombuffer(base64.b64decode(packed), "<f4").tolist()


def places(packed: str) -> list[int]:
    return np.frombuffer(base64.b64decode(packed), "<u4").tolist()


def test_a_page_holds_the_nodes_edges_heads_and_constants():
    graph = small()
    found = data_of(graph.html(WORDS, answer=" c"))
    assert found["matrix"] is None
    shown = found["graph"]
    assert (shown["answer"], shown["sides"], shown["kept"], shown["edges"]) == (" c", [WORDS], 10, 10)
    assert [stream["short"] for stream in shown["streams"]] == ["embed", "h.0", "h.1", "target"]
    for stream in shown["streams"]:
        assert floats(stream["values"]) == graph.nodes[stream["name"]][0].tolist()
    assert {stream["name"]: stream["rests"] for stream in shown["streams"] if stream["rests"]} == {
        "model.h.0": {"constants": shown["streams"][1]["rests"]["constants"]}
    }
    assert floats(shown["streams"][1]["rests"]["constants"]) == [0, 0, 0.25]
    assert [(b["name"], floats(b["values"])) for b in shown["streams"][1]["branches"]] == [("mlp", [0, 0.5, 1])]
    for pair, given in zip(shown["pairs"], graph.pairs, strict=True):
        edges = torch.zeros_like(given.edges[0])
        edges[places(pair["rows"]), places(pair["columns"])] = torch.tensor(floats(pair["values"]))
        assert torch.equal(edges, given.edges[0])
    first = shown["pairs"][0]
    assert [pair["heads"] for pair in shown["pairs"]] == [2, 0, 0]
    assert floats(first["by_heads"]) == [
        number for row, column in zip(places(first["rows"]), places(first["columns"]), strict=True)
        for number in small().pairs[0].heads[0, :, row, column].tolist()
    ]  # fmt: skip


def test_a_page_of_some_edges_has_the_sums_of_the_others():
    graph = small()
    found = data_of(graph.html(WORDS, edges=4))["graph"]
    assert (found["kept"], found["edges"]) == (4, 10)
    # 2.25, 1.75, then three of 0.75 or with a head of 0.75: the first two in their order
    assert [floats(pair["values"]) for pair in found["pairs"]] == [[0.5, 0.75], [1.75], [2.25]]
    assert "holds the strongest 4 of 10 edges" in graph.html(WORDS, edges=4)
    assert "All 10 edges are here." in graph.html(WORDS)
    for pair, stream in zip(found["pairs"], found["streams"][1:], strict=True):
        kept = np.bincount(places(pair["rows"]), floats(pair["values"]), len(floats(stream["values"])))
        rests = [floats(one) for one in stream["rests"].values()]
        assert kept + np.sum(rests, axis=0) == pytest.approx(floats(stream["values"]))


def test_edges_that_were_not_stored_are_not_shown_either():
    graph = sparse()
    found = data_of(graph.html([str(i) for i in range(7)], sample=1))["graph"]
    for pair, stream in zip(found["pairs"], found["streams"][1:], strict=True):
        given = graph.pair(stream["name"], found["streams"][pair["lower"]]["name"])
        dropped = floats(stream["rests"]["dropped"]) if "dropped" in stream["rests"] else [0.0]
        np.testing.assert_allclose(np.broadcast_to(dropped, given.dropped[1].shape), given.dropped[1], rtol=1e-6)
        assert len(floats(pair["values"])) == int((dense(given)[1] != 0).sum())


def test_hostile_tokens_stay_text():
    matrix = torch.eye(3)
    page = small().html(HOSTILE, answer=HOSTILE[0], title=HOSTILE[0], matrix=matrix)
    assert page.count("<script") == 2
    assert page.count("</script>") == 2
    assert "<img" not in page
    assert "<b>b" not in page
    assert "\u202e" not in page
    found = data_of(page)
    assert found["graph"]["sides"] == [[*HOSTILE[:2], "\\u202eevil"]]
    assert found["matrix"]["columns"] == [*HOSTILE[:2], "\\u202eevil"]
    assert "default-src 'none'; img-src data:; script-src 'sha256-" in page


def test_a_page_is_written_too(tmp_path):
    page = small().html(WORDS, tmp_path / "graph.html")
    assert (tmp_path / "graph.html").read_text(encoding="utf-8") == page
    page = text.matrix(torch.eye(3), WORDS, path=tmp_path / "matrix.html")
    assert (tmp_path / "matrix.html").read_text(encoding="utf-8") == page


def test_sides_of_an_encoder_and_a_decoder():
    graph = graph_of("t5")
    question, answer = [f"q{i}" for i in range(7)], [f"a{i}" for i in range(5)]
    found = data_of(graph.html({"*decoder*": answer, "*": question}))["graph"]
    assert found["sides"] == [question, answer]
    sides = {stream["name"]: stream["side"] for stream in found["streams"]}
    assert sides == {name: 1 if "decoder" in name else 0 for name in graph.streams[:-1]} | {"target": None}


@pytest.mark.parametrize(("given", "message"), [
    ({"tokens": ["a"]}, "'model.embed' has 3 tokens, but 1 strings are given for it. Where streams differ"),
    ({"tokens": "abc"}, "tokens must be a sequence of strings, but are one: 'abc'."),
    ({"tokens": {"*.h.*": WORDS}}, "'model.embed' has no tokens: give the tokens of each, by patterns of names: "),
    ({"tokens": {"*": WORDS, "x*": WORDS}}, "no stream is called 'x*': there are 'model.embed', 'model.h.0', "),
    ({"sample": 1}, "the sample must be a number from 0 to 0, but is 1."),
    ({"edges": 0}, "edges must be a number of edges >= 1, but is 0."),
    ({"matrix": torch.ones(2, 4)}, "a matrix has a row for each token of the answer and a column for each of the 3 "),
    ({"tokens": {"*": WORDS}, "matrix": torch.ones(2, 3)}, "a matrix is shown beside a graph of one list of tokens."),
])  # fmt: skip
def test_what_makes_no_page_is_refused(given, message):
    with pytest.raises(InputError) as caught:
        small().html(**{"tokens": WORDS, **given})
    assert str(caught.value).startswith(message)


def test_two_inputs_need_tokens_each():
    graph = graph_of("t5")
    words = [f"q{i}" for i in range(7)]
    with pytest.raises(InputError, match=r"^'decoder_inputs_embeds' has 5 tokens, but 7 strings are given for it"):
        graph.html(words)
    spans = graph.spans({"first": [0]})
    with pytest.raises(InputError, match=r"^'inputs_embeds' and 'decoder_inputs_embeds' are two inputs: give the tok"):
        spans.html(["first", "rest"])


def test_relevance_that_is_not_finite_is_refused():
    graph = small()
    graph.pairs[1].edges[0, 0, 0] = math.inf
    with pytest.raises(InputError, match=r"^relevance must be finite, but that of the edges from 'model.h.0' to 'mod"):
        graph.html(WORDS)
    graph.nodes["target"][0, 0] = math.nan
    with pytest.raises(InputError, match=r"^relevance must be finite, but that of 'target' is not\.$"):
        graph.html(WORDS)


def test_pages_that_would_be_too_large_are_refused(monkeypatch):
    monkeypatch.setattr("lrpfunc.text.grids.pages.NUMBERS", 49)
    message = r"^a page would hold 50 numbers, but more than 49 are slow to open\. A lower edges=, or sums over spans"
    with pytest.raises(InputError, match=message):  # 10 nodes, 10 edges of three numbers, 5 of two heads
        small().html(WORDS)
    small().html(WORDS, edges=4)
    with pytest.raises(InputError, match=r"^a page would hold 64 numbers, .* Give some rows of it, "):
        text.matrix(torch.ones(8, 8), ["a"] * 8)


@pytest.mark.parametrize(("given", "message"), [
    ({"relevance": torch.ones(3)}, "a matrix has a row for each token of the answer and a column for each of the 3 "),
    ({"relevance": torch.ones(2, 2)}, "a matrix has a row for each token of the answer and a column for each of the "),
    ({"relevance": torch.ones(0, 3)}, "a matrix has a row for each token of the answer and a column for each of the "),
    ({"relevance": torch.ones(4, 3)}, "the matrix has 4 rows, but the answer has 3 tokens."),
    ({"answer": ["a"]}, "the matrix has 2 rows, but the answer has 1 tokens."),
    ({"relevance": torch.full((2, 3), math.nan)}, "relevance must be finite. "),
    ({"limit": 0.0}, "limit must be a finite number above zero, but is 0.0."),
    ({"tokens": [1, 2, 3]}, "tokens must be strings, as "),
])  # fmt: skip
def test_what_makes_no_matrix_is_refused(given, message):
    with pytest.raises(InputError) as caught:
        text.matrix(**{"relevance": torch.ones(2, 3), "tokens": WORDS, **given})
    assert str(caught.value).startswith(message)


def test_a_matrix_names_its_rows_and_ends():
    found = data_of(text.matrix(torch.tensor([[0.5, -2, 0], [0, 0, 1]]), WORDS))["matrix"]
    assert (found["rows"], found["columns"], found["limit"]) == ([" a", " b"], WORDS, 2.0)
    assert floats(found["values"]) == [0.5, -2, 0, 0, 0, 1]
    found = data_of(text.matrix([[0, 0, 0]], WORDS, answer=["\n"]))["matrix"]
    assert (found["rows"], found["limit"]) == (["⏎"], 1.0)
    assert data_of(text.matrix(np.array([[1e300, 0, 0]]), WORDS, limit=3))["matrix"]["limit"] == 3


# -- networkx ---------------------------------------------------------------------------------------------------------


def test_networkx_has_the_nodes_and_edges():
    networkx = pytest.importorskip("networkx")
    graph = small()
    made = graph.networkx(WORDS, answer=" c")
    assert isinstance(made, networkx.DiGraph)
    assert made.nodes["model.h.0", 2] == {"layer": 1, "token": " b", "relevance": 1.75}
    assert made.nodes["target", 0] == {"layer": 3, "token": " c", "relevance": 2.0}
    assert made.edges[("model.embed", 0), ("model.h.0", 2)] == {"relevance": 0.5, "heads": [0.75, -0.25]}
    assert made.edges[("model.h.0", 2), ("model.h.1", 2)] == {"relevance": 1.75}
    assert made.edges[("constants", "model.h.0"), ("model.h.0", 2)] == {"relevance": 0.25}
    assert made.number_of_edges() == 11
    assert made.number_of_nodes() == 11
    assert networkx.is_directed_acyclic_graph(made)


@pytest.mark.parametrize("edges", [None, 12])
def test_what_comes_to_a_node_of_networkx_adds_up_to_it(edges):
    pytest.importorskip("networkx")
    graph = sparse()
    made = graph.networkx([str(i) for i in range(7)], sample=1, edges=edges)
    for stream in graph.streams[1:]:
        for position, relevance in enumerate(graph.nodes[stream][1].tolist()):
            arrived = sum(edge["relevance"] for _, _, edge in made.in_edges((stream, position), data=True))
            assert arrived == pytest.approx(relevance, rel=1e-9, abs=1e-5)


# -- parquet ----------------------------------------------------------------------------------------------------------


def test_parquet_has_the_nodes_and_edges(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    paths = small().parquet(tmp_path, WORDS, answer=" c")
    assert paths == (tmp_path / "nodes.parquet", tmp_path / "edges.parquet")
    nodes, edges = (parquet.read_table(path).to_pylist() for path in paths)
    assert len(nodes) == 10
    assert nodes[5] == {
        "stream": "model.h.0", "layer": 1, "position": 2, "token": " b", "relevance": 1.75, "constants": 0.25,
        "dropped": 0.0,
    }  # fmt: skip
    assert nodes[9]["token"] == " c"
    assert len(edges) == 10
    assert edges[2] == {
        "upper": "model.h.0", "upper_position": 2, "lower": "model.embed", "lower_position": 0, "relevance": 0.5,
        "heads": [0.75, -0.25],
    }  # fmt: skip
    assert edges[-1]["heads"] is None


def test_parquet_of_a_sparse_graph(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    graph = sparse()
    nodes, edges = (parquet.read_table(path) for path in graph.parquet(tmp_path, [str(i) for i in range(7)], sample=1))
    assert "heads" not in edges.column_names
    stored = sum(int((dense(pair)[1] != 0).sum()) for pair in graph.pairs)
    assert edges.num_rows == stored
    total = sum(float(pair.dropped[1].sum()) for pair in graph.pairs)
    assert sum(nodes["dropped"].to_pylist()) == pytest.approx(total)
    with pytest.raises(InputError, match=r"none is no folder: make it first, nodes.parquet and edges.parquet go there"):
        graph.parquet(tmp_path / "none", ["a"] * 7)


def test_files_without_the_extra_say_how_to_get_it(monkeypatch, tmp_path):
    without(monkeypatch, "networkx", "pyarrow")
    with pytest.raises(MissingExtraError, match=r"^a graph for networkx needs networkx: pip install 'lrpfunc\["):
        small().networkx(WORDS)
    with pytest.raises(MissingExtraError, match=r"^writing parquet needs pyarrow: pip install 'lrpfunc\[graphs\]'$"):
        small().parquet(tmp_path, WORDS)


# -- circuit-tracer ---------------------------------------------------------------------------------------------------

# The fields of circuit_tracer/frontend/graph_models.py, version 0.5, and their types.
METADATA = {"slug": str, "scan": str, "transcoder_list": list, "prompt_tokens": list, "prompt": str}
QPARAMS = {"pinnedIds": list, "supernodes": list, "linkType": str, "clickedId": str, "sg_pos": str}
NODE = {
    "node_id": str, "feature": int, "layer": str, "ctx_idx": int, "feature_type": str, "token_prob": float,
    "is_target_logit": bool, "run_idx": int, "reverse_ctx_idx": int, "jsNodeId": str, "clerp": str,
    "influence": float | None, "activation": float | None,
}  # fmt: skip


def check(found: dict, fields: dict) -> None:
    assert {name: isinstance(found[name], kind) for name, kind in fields.items()} == dict.fromkeys(fields, True)


def test_circuit_tracer_has_the_documented_fields():
    found = small().circuit_tracer(WORDS, answer=" c", probability=0.25, name="small")
    assert list(found) == ["metadata", "qParams", "nodes", "links"]
    check(found["metadata"], METADATA)
    check(found["qParams"], QPARAMS)
    for node in found["nodes"]:
        assert set(node) == set(NODE)
        check(node, NODE)
    assert found["metadata"]["prompt_tokens"] == WORDS
    assert found["metadata"]["prompt"] == "<s> a b"
    by_id = {node["node_id"]: node for node in found["nodes"]}
    assert len(by_id) == len(found["nodes"]) == 11
    assert [by_id[f"E_{i}_{i}"]["feature_type"] for i in range(3)] == ["embedding"] * 3
    assert (by_id["0_0_2"]["layer"], by_id["0_0_2"]["ctx_idx"], by_id["0_0_2"]["activation"]) == ("0", 2, 1.75)
    logit = by_id["2_0_2"]
    assert (logit["clerp"], logit["token_prob"], logit["is_target_logit"]) == ('Output " c" (p=0.250)', 0.25, True)
    # shares of 0.5 + 0.25 + 1.75 + 0.25 + 2.25 = 5, the largest first
    assert [by_id[f"1_0_{i}"]["influence"] for i in (2, 1)] == pytest.approx([0.45, 1.0])
    assert by_id["0_0_2"]["influence"] == pytest.approx(0.8)
    assert {(link["source"], link["target"]): link["weight"] for link in found["links"]}["E_0_0", "0_0_2"] == 0.5
    assert by_id["constant_0_2"]["feature_type"] == "constant"


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_what_comes_to_a_node_of_circuit_tracer_adds_up_to_it(name):
    graph = sparse() if name == "gpt2" else graph_of(name)
    question, answer = [f"q{i}" for i in range(7)], [f"a{i}" for i in range(5)]
    tokens = {"*decoder*": answer, "*": question} if name == "t5" else question
    found = graph.circuit_tracer(tokens, sample=1, edges=40)
    arrived: dict[str, float] = {}
    for link in found["links"]:
        arrived[link["target"]] = arrived.get(link["target"], 0.0) + link["weight"]
    ids = [node["node_id"] for node in found["nodes"]]
    assert len(set(ids)) == len(ids)
    assert {link[end] for link in found["links"] for end in ("source", "target")} <= set(ids)
    for node in found["nodes"]:
        if node["feature_type"] in ("residual stream", "logit"):
            assert arrived.get(node["node_id"], 0.0) == pytest.approx(node["activation"], rel=1e-9, abs=1e-5)
    if name == "t5":
        assert found["metadata"]["prompt_tokens"] == question + answer
        assert {node["ctx_idx"] for node in found["nodes"] if node["feature_type"] == "embedding"} == set(range(12))


@pytest.mark.dev
def test_circuit_tracer_reads_it_back(tmp_path):
    """Their schema, from the file in their package: importing that would import all that it needs."""
    pytest.importorskip("pydantic")
    models = their_models()
    path = tmp_path / "small.json"
    found = small().circuit_tracer(HOSTILE, path, answer=" c")
    read = models.Model.model_validate_json(path.read_text(encoding="utf-8"))
    assert read.model_dump(include={"nodes", "links"}) == {"nodes": found["nodes"], "links": found["links"]}
    assert read.metadata.model_dump() == found["metadata"]
    for link in read.links:
        models.Link(**link)


def their_models():
    import importlib.util
    import sys

    spec = importlib.util.find_spec("circuit_tracer")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("circuit-tracer is not installed: pip install --no-deps circuit-tracer")
    path = f"{spec.submodule_search_locations[0]}/frontend/graph_models.py"
    found = importlib.util.spec_from_file_location("their_graph_models", path)
    module = importlib.util.module_from_spec(found)
    sys.modules["their_graph_models"] = module
    found.loader.exec_module(module)
    return module


@pytest.mark.parametrize("probability", [-0.1, 1.5, "much"])
def test_what_is_no_probability_is_refused(probability):
    with pytest.raises(InputError, match=r"^the probability must be a number from 0 to 1, but is "):
        small().circuit_tracer(WORDS, probability=probability)
