"""What graphs take of memory: told before, by the sizes that tensors have; large masks are not kept for each layer."""

import pytest
import torch
from torch.nn import functional as F

import lrpfunc
from lrpfunc import circuits, composites
from lrpfunc.attribution.stretches import Stretches
from lrpfunc.circuits import memory
from lrpfunc.circuits.streams import streams
from lrpfunc.errors import InputError
from lrpfunc.operations import masks
from tests.test_graphs import oracle, subject

# -- estimates --------------------------------------------------------------------------------------------------------


def test_edges_count_by_what_is_stored_of_them():
    pair = memory.Edges(batch=2, upper=7, lower=5, heads=4)
    assert pair._replace(heads=0).size(None, 4) == 2 * 7 * 5 * 4
    assert pair.size(None, 4) == 2 * 7 * 5 * 4 * (1 + 4)
    assert pair._replace(heads=0).size(3, 4) == 2 * 7 * 3 * (4 + 24)
    assert pair._replace(heads=0).size(9, 4) == 2 * 7 * 5 * (4 + 24)
    assert pair._replace(heads=0).size(0.1, 4) == 2 * 10 * (4 + 24)
    assert pair._replace(heads=0).size(0.001, 4) == 2 * 7 * 5 * (4 + 24)


def walked(layers=None):
    fmodel, params, x = subject("llama")
    found = streams(fmodel, layers)
    return Stretches(fmodel, params, x, composites.attn_lrp(), tuple(found.values()))


def test_what_a_block_makes_is_counted_by_the_sizes_of_its_variables():
    way = walked()
    sizes, last = memory.Sizes(way), way.places[-1]
    passed = way.plan.program.bind(dict(subject("llama")[1]), lrpfunc.attribution.interpreter.unpack(
        way.plan.program, subject("llama")[2])[0])  # fmt: skip
    made = {}
    for equation in way.plan.program.equations:
        way.plan.program.store(equation, equation.evaluate(passed), passed)
        made |= {v.name: passed[v.name].numel() for v in equation.outputs if v.is_tensor and v.is_floating}
    own = [v.name for step in way.steps(last) for v in step.equation.outputs if v.name in made]
    assert len(own) > 20
    assert sizes.made(way.steps(last), 8) == 8 * sum(made[name] for name in own)


def test_graphs_that_do_not_fit_are_refused_before_they_are_sought(monkeypatch):
    arguments = *subject("llama"), oracle.TARGET
    monkeypatch.setattr(memory, "ELEMENTS", 0)
    monkeypatch.setattr(memory, "RECORD", 0)
    monkeypatch.setattr(memory, "free_memory", lambda device: 1000)
    with pytest.raises(InputError) as caught:
        circuits.graph(*arguments)
    assert str(caught.value) == (
        "the graph takes 1.57e-06 GB, but 1e-06 GB are free: 1.57e-06 GB for the edges of 2 pairs of streams of up to "
        "7 tokens, 0 GB to find them. keep=32 stores the strongest edges of each token, and fewer streams (layers=) or "
        "a shorter input take less."
    )  # 2 pairs of 2 x 7 x 7 edges of 8 bytes
    with pytest.raises(InputError, match=r"takes 4\.48e-06 GB, .* 1\.79e-06 GB for .*\. A stricter keep, fewer"):
        circuits.graph(*arguments, keep=2)
    with pytest.raises(InputError, match=r"7\.84e-06 GB for the edges"):  # and of four heads
        circuits.graph(*arguments, split=True)
    circuits.graph(*arguments, keep=0.5)


def test_what_is_needed_besides_edges_counts(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 200 * 10**6)
    circuits.graph(*subject("llama"), oracle.TARGET)
    monkeypatch.setattr(memory, "RECORD", 10**4)
    with pytest.raises(InputError, match=r"1\.57e-06 GB for the edges of 2 .*, \d\.?\d* GB to find them"):
        circuits.graph(*subject("llama"), oracle.TARGET)


def test_tokens_are_not_pulled_back_where_they_do_not_fit(monkeypatch):
    arguments = *subject("llama"), oracle.TARGET
    monkeypatch.setattr(memory, "check_memory", lambda *others: None)
    way = walked()
    each = int(memory.SEED * memory.Sizes(way).made(way.steps(way.places[-1]), 8)) + memory.PATTERNS * 8 * 2 * 4 * 7 * 7
    monkeypatch.setattr(memory, "free_memory", lambda device: 3 * each)
    with pytest.raises(InputError) as caught:
        circuits.graph(*arguments, method="pullbacks")
    assert str(caught.value) == (
        f"to pull back 7 tokens of 'model.model.layers.1' at once takes {7 * each / 1e9:.3g} GB, but "
        f"{3 * each / 1e9:.3g} GB are free. chunk_size=3 takes less."
    )
    circuits.graph(*arguments, method="pullbacks", chunk_size=3)
    monkeypatch.setattr(memory, "free_memory", lambda device: each // 2)
    with pytest.raises(InputError, match=r"GB are free\. A shorter input takes less\.$"):
        circuits.graph(*arguments, method="pullbacks", chunk_size=1)


def test_a_share_is_refused_once_it_is_seen_to_keep_too_much(monkeypatch):
    monkeypatch.setattr(memory, "check_memory", lambda *others: None)
    monkeypatch.setattr(memory, "free_memory", lambda device: 400)
    with pytest.raises(InputError) as caught:
        circuits.graph(*subject("llama"), oracle.TARGET, keep=1e-9)
    assert str(caught.value) == (
        "keep=1e-09 stores 14 edges of a pair, and as many of 1 more take 4.48e-07 GB, but 4e-07 GB are free: a larger "
        "share or a number, keep=32, takes less."
    )  # of two samples, of the last token to seven


def test_free_memory_is_what_the_system_says(monkeypatch, tmp_path):
    said = tmp_path / "meminfo"
    said.write_text("MemTotal: 8 kB\nMemAvailable:      3 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", said)
    assert memory.free_memory(torch.device("cpu")) == 3 * 1024
    said.write_text("MemTotal: 8 kB\n")
    assert memory.free_memory(torch.device("cpu")) is None
    assert memory.free_memory(torch.device("meta")) is None


# -- masks ------------------------------------------------------------------------------------------------------------

CAUSAL = torch.ones(5, 5, dtype=torch.bool).tril()
MASKS = {
    "causal": CAUSAL,
    "of each sample": CAUSAL.expand(2, 1, 5, 5),
    "window": CAUSAL & CAUSAL.mT.roll(1, 0).logical_not().logical_or(torch.eye(5, dtype=torch.bool)),
    "padded": CAUSAL & torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]], dtype=torch.bool)[:, None, None],
}


def attend(mask):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 5, 4, generator=generator, dtype=torch.float64)
    p = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    f = lambda p, x, mask: F.scaled_dot_product_attention(x @ p, x, x * 2, mask, scale=0.7) @ p  # noqa: E731
    fmodel, p = lrpfunc.trace(f, p, x, mask)
    return fmodel, p, (x, mask)


@pytest.mark.parametrize("mask", MASKS)
def test_large_masks_change_nothing(monkeypatch, mask):
    arguments = *attend(MASKS[mask]), composites.attn_lrp()
    expected = lrpfunc.attribute(*arguments, (2, 3, 1))[0]
    seen = []
    usual = masks.record
    monkeypatch.setattr(masks, "record", lambda operation, x: (seen.append(operation), usual(operation, x))[1])
    monkeypatch.setattr(masks, "LARGE", 1)
    monkeypatch.setattr(masks, "ROWS", 2)
    trail = lrpfunc.record(*arguments)
    for _ in range(2):
        found, _ = trail.pull((2, 3, 1))
        torch.testing.assert_close(found[0], expected, rtol=1e-12, atol=1e-12, equal_nan=True)
    (operation,) = seen
    if mask in ("causal", "of each sample"):
        assert operation.arguments[3:] == [None, 0.0, True]
    else:
        assert operation.arguments[3].dtype == torch.float64


def test_a_mask_in_floats_is_not_kept(monkeypatch):
    monkeypatch.setattr(masks, "LARGE", 1)
    made = []
    usual = masks.in_floats
    monkeypatch.setattr(masks, "in_floats", lambda *given: made.append(1) or usual(*given))
    trail = lrpfunc.record(*attend(MASKS["window"]), composites.attn_lrp())
    assert len(made) == 1
    trail.pull((2, 3, 1))
    assert len(made) == 2  # anew, where the flow moves back


def test_rectangles_and_later_tokens_are_no_causal_masks(monkeypatch):
    monkeypatch.setattr(masks, "ROWS", 2)
    assert masks.hides_what_is_to_come(CAUSAL)
    assert not masks.hides_what_is_to_come(CAUSAL[:4])
    assert not masks.hides_what_is_to_come(CAUSAL.mT)
    for row, column in ((0, 1), (4, 0)):
        changed = CAUSAL.clone()
        changed[row, column] ^= True
        assert not masks.hides_what_is_to_come(changed)
