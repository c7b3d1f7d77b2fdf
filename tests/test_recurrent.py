"""Recurrent layers: as they are written out, as Arras et al. have it by hand, and on tasks whose answer is known."""

import threading
from collections.abc import Callable, Mapping
from typing import NamedTuple

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lrpfunc
from lrpfunc import composites, rules
from lrpfunc.compat import recurrent_shapes
from lrpfunc.errors import InputError, RuleError, TraceError
from lrpfunc.program import fast_paths, functions
from tests.helpers import relative_error
from tests.recurrent import CellWrittenOut, WrittenOut

DOUBLE = torch.float64
TINY = 1e-13  # of a stabilizer that takes nothing


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed + sum(shape)))


def filled(module: nn.Module, scale: float = 0.7) -> nn.Module:
    """Parameters so large that gates open and close."""
    for number, parameter in enumerate(module.parameters()):
        parameter.data = random(*parameter.shape, seed=number) * scale
    return module.double().eval().requires_grad_(False)


# -- equal to what they are written out -------------------------------------------------------------------------------

SUMS = {"sum": rules.norm(TINY), "affine": rules.affine(TINY)}
EXPLAINED = {
    "epsilon": composites.epsilon(TINY),
    "epsilon 0": composites.epsilon(0),
    "epsilon zero_bias": composites.epsilon(TINY, zero_bias=True),
    "epsilon_plus": composites.epsilon_plus(TINY, TINY),
    "epsilon_alpha2_beta1": composites.epsilon_alpha2_beta1(TINY, TINY),
    "epsilon_plus_flat": composites.epsilon_plus_flat(TINY, TINY),
    "epsilon_gamma_box": composites.epsilon_gamma_box(-3.0, 3.0, TINY, stabilizer=TINY),
    "excitation_backprop": composites.excitation_backprop(TINY),
    "attn_lrp": composites.attn_lrp(),
    "attn_lrp gamma": composites.attn_lrp(0.25, stabilizer=TINY),
    "attn_lrp halves": composites.attn_lrp(gates="halve"),
    "cp_lrp": composites.cp_lrp(),
    "cp_lrp gamma": composites.cp_lrp(0.25, stabilizer=TINY),
    "halves": composites.by_kind({"linear": rules.gamma(0.3, TINY), "product": rules.halve(), **SUMS}),
    "flat": composites.by_kind({"linear": rules.flat(TINY), **SUMS}),
}
# The first step's state may be an input, whose first layer W is at that step alone: it has the rule of the other steps.
OF_FIRST_LAYERS = ("epsilon_plus_flat", "epsilon_gamma_box")

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: nn.LSTM(3, 4, batch_first=True),
    "gru": lambda: nn.GRU(3, 4),
    "rnn": lambda: nn.RNN(3, 4, bidirectional=True, batch_first=True),
    "relu": lambda: nn.RNN(3, 4, nonlinearity="relu", bias=False),
    "two layers, both ways": lambda: nn.LSTM(3, 4, 2, bidirectional=True, bias=False),
    "two layers of GRU": lambda: nn.GRU(3, 2, 2, bidirectional=True, bias=False, batch_first=True),
    "projections": lambda: nn.LSTM(3, 4, 2, proj_size=2, batch_first=True),
}


class Partly(nn.Module):
    """A layer whose inputs, by name, are given or else constants; all that it makes, the last states first."""

    def __init__(self, layer: nn.Module, values: Mapping[str, Tensor], given: tuple[str, ...]):
        super().__init__()
        self.layer, self.values, self.given = layer, values, given
        for name in values.keys() - given:
            self.register_buffer(name, values[name])

    def forward(self, *inputs):
        found = dict(zip(self.given, inputs, strict=True))
        x, *states = (found[name] if name in found else getattr(self, name) for name in self.values)
        output, ends = self.layer(x, *([] if not states else [states[0] if len(states) == 1 else tuple(states)]))
        return (*([ends] if isinstance(ends, Tensor) else ends), output)


class Pair(NamedTuple):
    """A layer and what it is written out, as programs of the same inputs; `seed`: what is explained of the outputs."""

    fused: tuple
    written: tuple
    inputs: tuple[Tensor, ...]
    seed: Callable

    def agree(self, explained: str) -> None:
        one, other = (
            lrpfunc.attribute(*program, self.inputs, EXPLAINED[explained], target=self.seed, strict=True)
            for program in (self.fused, self.written)
        )
        scale = max(float(relevance.abs().max()) for relevance in other)
        for got, expected in zip(one, other, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9 * scale)


def values_of(layer: nn.Module, steps: int, batch: int) -> dict[str, Tensor]:
    rows = layer.num_layers * (1 + layer.bidirectional)
    values = {"x": random(*((batch, steps) if layer.batch_first else (steps, batch)), 3)}
    values["h"] = random(rows, batch, layer.proj_size or layer.hidden_size)
    return values | ({"c": random(rows, batch, layer.hidden_size)} if isinstance(layer, nn.LSTM) else {})


def pair(layer: nn.Module, values: Mapping[str, Tensor], given: tuple[str, ...], seen=(True, True, True)) -> Pair:
    inputs = tuple(values[name] for name in given)
    fused, written = (
        lrpfunc.functionalize(Partly(module, values, given), *inputs) for module in (layer, WrittenOut(layer))
    )
    outputs = fused[0](fused[1], *inputs)
    for got, expected in zip(outputs, written[0](written[1], *inputs), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    shares = [random(*y.shape, seed=9) * sees for y, sees in zip(outputs, seen[-len(outputs) :], strict=True)]
    return Pair(fused, written, inputs, lambda outputs: tuple(y * s for y, s in zip(outputs, shares, strict=True)))


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_explained_as_what_it_is_written_out(name):
    layer = filled(LAYERS[name]())
    made = pair(layer, {"x": values_of(layer, 3, 2)["x"]}, ("x",))
    for explained in EXPLAINED:
        made.agree(explained)


@pytest.mark.parametrize("name", ["lstm", "gru", "projections"])
def test_states_that_are_given(name):
    layer = filled(LAYERS[name]())
    values = values_of(layer, 2, 2)
    made = pair(layer, values, tuple(values))
    for explained in EXPLAINED.keys() - OF_FIRST_LAYERS:
        made.agree(explained)


# Whether the gates and the states of the first step depend on the input decides what its products are products of.
CONSTANTS = [
    ("lstm", ("h",)),
    ("lstm", ("c",)),
    ("lstm", ("x", "h")),
    ("gru", ("h",)),
    ("gru", ("x",)),
    ("rnn", ("h",)),
]


@pytest.mark.parametrize(("name", "given"), CONSTANTS)
def test_some_of_the_states_are_constants(name, given):
    layer = filled(LAYERS[name]())
    made = pair(layer, values_of(layer, 2, 2), given)
    for explained in ("epsilon", "excitation_backprop", "attn_lrp", "cp_lrp gamma"):
        made.agree(explained)


FLAG = st.booleans()
DRAWN = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["LSTM", "LSTM with projections", "GRU", "RNN", "RNN of ReLU"]),
        "settings": st.fixed_dictionaries({"bidirectional": FLAG, "bias": FLAG, "batch_first": FLAG}),
        "layers": st.integers(1, 2),
        "steps": st.integers(1, 4),
        "batch": st.integers(1, 2),
        "given": st.sampled_from(["x", "h", "c", "xh", "xc", "hc", "xhc"]),  # the others are constants,
        "has_states": FLAG,  # or there are none
        "seen": st.tuples(FLAG, FLAG, st.just(True)),
    }
)


def agree(drawn: Mapping) -> None:
    name, _, more = drawn["kind"].partition(" ")
    special = {"with projections": {"proj_size": 2}, "of ReLU": {"nonlinearity": "relu"}}.get(more, {})
    # Written out, what a state that is a parameter brings to the first step is the bias of a layer without one.
    bias = drawn["settings"]["bias"] or (drawn["has_states"] and drawn["given"] != "xhc")
    layer = filled(getattr(nn, name)(3, 4, drawn["layers"], **drawn["settings"] | {"bias": bias}, **special))
    values = values_of(layer, drawn["steps"], drawn["batch"])
    values = values if drawn["has_states"] else {"x": values["x"]}
    given = tuple(name for name in values if name in drawn["given"]) or ("x",)
    made = pair(layer, values, given, drawn["seen"])
    for explained in EXPLAINED:
        if explained not in OF_FIRST_LAYERS or given == ("x",):
            made.agree(explained)


@hypothesis.settings(max_examples=3, deadline=None)
@hypothesis.given(DRAWN)
def test_any_layer(drawn):
    agree(drawn)


@pytest.mark.slow
@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(DRAWN)
def test_many_layers(drawn):
    agree(drawn)


@pytest.mark.parametrize("cell", [nn.LSTMCell(3, 4), nn.GRUCell(3, 4), nn.RNNCell(3, 4, nonlinearity="relu")], ids=type)
def test_cells(cell):
    """Two steps of one, which is called twice."""

    class Twice(nn.Module):
        def __init__(self, cell):
            super().__init__()
            self.cell = cell

        def forward(self, x, *states):
            states = states if len(states) > 1 else states[0]
            for step in range(2):
                states = self.cell(x[:, step], states)
            return states if isinstance(states, tuple) else (states,)

    inputs = (random(2, 2, 3), *[random(2, 4)] * (1 + isinstance(cell, nn.LSTMCell)))
    filled(cell)
    fused, written = (lrpfunc.functionalize(Twice(each), *inputs) for each in (cell, CellWrittenOut(cell)))
    made = Pair(fused, written, inputs, lambda outputs: tuple(y * random(*y.shape) for y in outputs))
    for explained in ("epsilon", "excitation_backprop", "attn_lrp", "cp_lrp gamma"):
        made.agree(explained)


# -- as Arras et al. have it, in loops over single numbers ------------------------------------------------------------


def arrays(layer: nn.Module) -> tuple[np.ndarray, ...]:
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    return tuple(getattr(layer, name).numpy() for name in names)


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def lstm_by_hand(layer: nn.Module, x: np.ndarray, r: np.ndarray) -> tuple[np.ndarray, float]:
    """The relevance of x, one sample, where r is that of h after each step, and what the biases kept."""
    w, v, b, d = arrays(layer)
    (steps, inputs), width = x.shape, layer.hidden_size
    h, c = np.zeros((steps + 1, width)), np.zeros((steps + 1, width))
    z = np.zeros((steps, 4, width))
    for t in range(steps):
        z[t] = (w @ x[t] + v @ h[t] + b + d).reshape(4, width)
        c[t + 1] = sigmoid(z[t, 1]) * c[t] + sigmoid(z[t, 0]) * np.tanh(z[t, 2])
        h[t + 1] = sigmoid(z[t, 3]) * np.tanh(c[t + 1])
    r_x, r_h, r_c, kept = np.zeros_like(x), np.zeros(width), np.zeros(width), 0.0
    for t in reversed(range(steps)):
        arrived = r_c + r_h + r[t]  # the signal takes all: of h it is tanh(c)
        r_c, r_h = np.zeros(width), np.zeros(width)
        for j in range(width):
            r_c[j] = sigmoid(z[t, 1, j]) * c[t, j] / c[t + 1, j] * arrived[j]
            r_g = sigmoid(z[t, 0, j]) * np.tanh(z[t, 2, j]) / c[t + 1, j] * arrived[j]
            row = 2 * width + j
            for i in range(inputs):
                r_x[t, i] += w[row, i] * x[t, i] / z[t, 2, j] * r_g
            for k in range(width):
                r_h[k] += v[row, k] * h[t, k] / z[t, 2, j] * r_g
            kept += (b[row] + d[row]) / z[t, 2, j] * r_g
    return r_x, kept


def gru_by_hand(layer: nn.Module, x: np.ndarray, r: np.ndarray, before: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The relevance of x and of the state before the first step."""
    w, v, b, d = (a.reshape(3, layer.hidden_size, -1) for a in arrays(layer))
    states, values = [before], []
    for row in x:
        one, other = ((a @ given[:, None] + c)[..., 0] for a, c, given in ((w, b, row), (v, d, states[-1])))
        reset, update = sigmoid(one[0] + other[0]), sigmoid(one[1] + other[1])
        total = one[2] + reset * other[2]
        values.append((reset, update, total))
        states.append((1 - update) * np.tanh(total) + update * states[-1])
    r_x, r_h = np.zeros_like(x), np.zeros_like(before)
    for t in reversed(range(len(x))):
        (reset, update, total), arrived = values[t], r_h + r[t]
        r_n = (1 - update) * np.tanh(total) / states[t + 1] * arrived
        r_h = update * states[t] / states[t + 1] * arrived
        for j, share in enumerate(r_n / total):
            r_x[t] += w[2, j] * x[t] * share
            r_h += reset[j] * v[2, j] * states[t] * share
    return r_x, r_h


def rnn_by_hand(layer: nn.Module, x: np.ndarray, r: np.ndarray) -> np.ndarray:
    w, v, b, d = arrays(layer)
    h, sums = [np.zeros(layer.hidden_size)], []
    for row in x:
        sums.append(w @ row + v @ h[-1] + b + d)
        h.append(np.tanh(sums[-1]))
    r_x, r_h = np.zeros_like(x), np.zeros_like(h[0])
    for t in reversed(range(len(x))):
        shares = (r_h + r[t]) / sums[t]
        r_x[t], r_h = w.T @ shares * x[t], v.T @ shares * h[t]
    return r_x


@pytest.mark.parametrize("entries", [composites.epsilon(TINY), composites.cp_lrp()], ids=["epsilon", "cp_lrp"])
def test_lstm_by_hand(entries):
    layer, x, r = filled(nn.LSTM(3, 4)), random(5, 1, 3), random(5, 1, 4)
    fmodel, params = lrpfunc.functionalize(layer, x)
    relevance = lrpfunc.attribute(
        fmodel, params, x, entries, target=lambda y: (r, tuple(map(torch.zeros_like, y[1]))), strict=True
    )
    expected, kept = lstm_by_hand(layer, x[:, 0].numpy(), r[:, 0].numpy())
    np.testing.assert_allclose(relevance[:, 0], expected, rtol=1e-9, atol=1e-11)
    assert relevance.sum().item() + kept == pytest.approx(r.sum().item(), abs=1e-9)


def test_gru_by_hand():
    layer, inputs, r = filled(nn.GRU(3, 4)), (random(5, 1, 3), random(1, 1, 4)), random(5, 1, 4)
    fmodel, params = lrpfunc.functionalize(layer, *inputs)
    found = lrpfunc.attribute(
        fmodel, params, inputs, composites.epsilon(TINY), target=lambda y: (r, torch.zeros_like(y[1])), strict=True
    )
    expected = gru_by_hand(layer, inputs[0][:, 0].numpy(), r[:, 0].numpy(), inputs[1][0, 0].numpy())
    for got, by_hand in zip((found[0][:, 0], found[1][0, 0]), expected, strict=True):
        np.testing.assert_allclose(got, by_hand, rtol=1e-9, atol=1e-11)


def test_rnn_by_hand():
    layer, x, r = filled(nn.RNN(3, 4)), random(5, 1, 3), random(5, 1, 4)
    fmodel, params = lrpfunc.functionalize(layer, x)
    relevance = lrpfunc.attribute(
        fmodel, params, x, composites.epsilon(TINY), target=lambda y: (r, torch.zeros_like(y[1])), strict=True
    )
    np.testing.assert_allclose(relevance[:, 0], rnn_by_hand(layer, x[:, 0].numpy(), r[:, 0].numpy()), rtol=1e-9)


def test_halves_by_hand():
    """One unit, one step from c' = 2: z = (0, 0, 1, 0), so that i = f = o = 1/2, and c = 1 + tanh(1) / 2."""
    cell = nn.LSTMCell(1, 1, bias=False).double().requires_grad_(False)
    cell.weight_ih.copy_(torch.tensor([[0.0], [0.0], [1.0], [0.0]]))
    cell.weight_hh.zero_()
    inputs = (torch.ones(1, 1, dtype=DOUBLE), (torch.zeros(1, 1, dtype=DOUBLE), torch.full((1, 1), 2.0, dtype=DOUBLE)))
    fmodel, params = lrpfunc.functionalize(cell, *inputs)
    entries = composites.by_kind({"recurrent": rules.recurrent(rules.epsilon(0), "both", 0)})
    of_x, (of_h, of_c) = lrpfunc.attribute(
        fmodel, params, inputs, entries, target=lambda y: (torch.full_like(y[0], 8.0), torch.zeros_like(y[1]))
    )
    new = np.tanh(1) / 2 / (1 + np.tanh(1) / 2)
    # Half of 8 goes to the output gate, whose sum is zero; c shares the other half, of which each signal has one half.
    assert (of_x.item(), of_h.item(), of_c.item()) == pytest.approx((8 / 2 * new / 2, 0, 8 / 2 * (1 - new) / 2))


# -- tasks whose answer is known --------------------------------------------------------------------------------------


def sequences(count: int, steps: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers, each in one of three features: a's, b's, and that of all others; where a and b are; a + b and a - b."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.rand(count, steps, generator=generator) / 2 + 0.5
    values = sizes * (torch.randint(0, 2, (count, steps), generator=generator) * 2 - 1)
    places = torch.rand(count, steps, generator=generator).argsort(1)[:, :2].sort(1).values
    marks = torch.nn.functional.one_hot(places, steps)
    a, b = values.gather(1, places).unbind(1)
    marked = [*marks.unbind(1), 1 - marks.sum(1)]
    return torch.stack([values * mark for mark in marked], -1), places, torch.stack([a + b, a - b], 1)


class Sums(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 8, batch_first=True, bias=False), nn.Linear(8, 2, bias=False)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


@pytest.fixture(scope="module")
def trained() -> Sums:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Sums()
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=600)
    for step in range(600):
        x, _, expected = sequences(128, 6, step + 1)
        loss = (model(x) - expected).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.double().eval().requires_grad_(False)


@pytest.mark.parametrize("task", [0, 1], ids=["add", "subtract"])
def test_relevance_is_at_the_numbers_that_are_added_or_subtracted(trained, task):
    """Arras et al. 2019, doi:10.1007/978-3-030-28954-6_10, section 4.1; of all lengths in one trace."""
    fmodel, params = lrpfunc.functionalize(trained, torch.zeros(2, 6, 3, dtype=DOUBLE))
    for steps in (4, 6, 10):
        x, places, expected = sequences(400, steps, 10**6)
        x, output = x.double(), trained(x.double())[:, task]
        assert relative_error(output, expected[:, task]) < 0.15
        of_steps = lrpfunc.attribute(fmodel, params, x, composites.epsilon(TINY), target=task, strict=True).sum(-1)
        torch.testing.assert_close(of_steps.sum(1), output, rtol=1e-9, atol=1e-9)
        of_numbers = of_steps.gather(1, places)
        assert (of_numbers.abs().sum() / of_steps.abs().sum()).item() > 0.95
        numbers = x.sum(-1).gather(1, places) * torch.tensor([1, -1 if task else 1])
        for number in range(2):
            pair = torch.stack([of_numbers[:, number], numbers[:, number]])
            assert torch.corrcoef(pair)[0, 1] > 0.9


# -- any number of steps, either axis first ---------------------------------------------------------------------------


class Last(nn.Module):
    """The last output of a recurrent layer, with a head."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(layer.hidden_size * (1 + layer.bidirectional), 3)

    def forward(self, x):
        output = self.layer(x)[0]
        return self.head(output[:, -1] if self.layer.batch_first else output[-1])


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind_of", [nn.LSTM, nn.GRU, nn.RNN])
def test_one_trace_takes_any_number_of_steps_and_samples(kind_of, batch_first):
    model = filled(Last(kind_of(3, 4, batch_first=batch_first, bidirectional=True)))

    def sequence(samples: int, steps: int) -> Tensor:
        x = random(samples, steps, 3)
        return x if batch_first else x.transpose(0, 1).contiguous()

    fmodel, params = lrpfunc.functionalize(model, sequence(2, 4))
    for samples, steps in ((1, 1), (3, 2), (2, 9)):
        x = sequence(samples, steps)
        again, _ = lrpfunc.functionalize(model, x)
        assert fmodel(params, x).shape == (samples, 3)
        torch.testing.assert_close(fmodel(params, x), model(x), rtol=1e-12, atol=1e-12)
        one, other = (lrpfunc.attribute(f, params, x, composites.epsilon(), target=1) for f in (fmodel, again))
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    first = fmodel.input_leaves[0].value.shape
    assert first == (("batch", "length", 3) if batch_first else ("length", "batch", 3))
    with pytest.raises(InputError, match=r"a recurrent layer needs a sequence of one step or more, but got none\."):
        fmodel(params, sequence(2, 0))


def test_a_sequence_without_a_batch():
    layer, x = filled(nn.GRU(3, 4)), random(5, 3)
    fmodel, params = lrpfunc.functionalize(layer, x)
    assert fmodel.input_leaves[0].value.shape == ("length", 3)
    batched, _ = lrpfunc.functionalize(layer, x[:, None])
    for steps in (5, 2):
        given = random(steps, 3)
        one = lrpfunc.attribute(fmodel, params, given, composites.epsilon(), target=lambda y: (y[0], y[1]))
        other = lrpfunc.attribute(batched, params, given[:, None], composites.epsilon(), target=lambda y: (y[0], y[1]))
        torch.testing.assert_close(one, other[:, 0], rtol=1e-12, atol=1e-12)


# -- what is said of them ---------------------------------------------------------------------------------------------


def test_what_is_listed():
    fmodel, _ = lrpfunc.functionalize(Last(nn.LSTM(3, 4, batch_first=True)).eval(), torch.zeros(2, 5, 3))
    rows = lrpfunc.explain(fmodel, composites.epsilon(0.01), strict=True).rows
    assert [(row[1], row[2], row[-1]) for row in rows if row[2] != "movement"] == [
        ("layer.weight_ih_l0", "dense", "epsilon(0.01)"),
        ("layer.weight_hh_l0", "recurrent", "recurrent(epsilon(0.01), stabilizer=0.01)"),
        ("head", "dense", "epsilon(0.01)"),
    ]


def test_what_is_suggested():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.last = nn.Embedding(7, 3), Last(nn.LSTM(3, 4, batch_first=True))

        def forward(self, ids):
            return self.last(self.table(ids))

    fmodel, _ = lrpfunc.functionalize(Reader().eval(), torch.tensor([[1, 2, 3]]))
    assert str(composites.suggest(fmodel)) == (
        "composites.epsilon(): the gates of recurrent layers count as constants there."
    )
    hear, last = nn.Conv1d(2, 3, 3), Last(nn.LSTM(3, 4, batch_first=True)).eval()
    fmodel, _ = lrpfunc.trace(lambda p, x: last(hear(x).relu().transpose(1, 2)), {}, torch.zeros(2, 2, 5))
    assert composites.suggest(fmodel).call == "epsilon_plus_flat()"


GIVEN = {
    "one rule": (rules.zplus(), "recurrent(zplus())"),
    "a name": ({"layer.weight_hh_l0": rules.gamma(), "*": rules.epsilon()}, "recurrent(gamma(0.25))"),
    "a module": ({"layer": rules.flat(), "head": rules.epsilon()}, "recurrent(flat())"),
    "its own rule": ({"layer.weight_hh_l0": rules.recurrent(to="both")}, "recurrent(epsilon(1e-06), 'both')"),
    "nothing": ({}, "recurrent(epsilon(1e-06))"),
    "its kind": (composites.by_kind({"recurrent": rules.zplus()}), "recurrent(zplus())"),
    "dense": (composites.by_kind({"dense": rules.zplus(), "*": rules.gradient()}), "recurrent(zplus())"),
    "product": (composites.by_kind({"product": rules.halve()}), "recurrent(epsilon(1e-06), 'both')"),
    "gate": (composites.by_kind({"product": rules.gate()}), "recurrent(epsilon(1e-06))"),
    "sum": (composites.by_kind({"sum": rules.norm(0.5)}), "recurrent(epsilon(1e-06), stabilizer=0.5)"),
    "the gradient": (composites.by_kind({"*": rules.gradient()}), "gradient()"),
    "cp_lrp": (composites.cp_lrp(), "recurrent(epsilon(0), stabilizer=0)"),
    "attn_lrp": (composites.attn_lrp(gamma=0.5), "recurrent(gamma(0.5), stabilizer=0)"),
    "excitation": (composites.excitation_backprop(), "recurrent(zplus())"),
    "first layer": (composites.epsilon_plus_flat(), "recurrent(epsilon(1e-06))"),
}


@pytest.mark.parametrize("given", GIVEN)
def test_a_rule_of_layers_is_that_of_the_linear_part(given):
    entries, label = GIVEN[given]
    fmodel, _ = lrpfunc.functionalize(Last(nn.GRU(3, 4)).eval(), torch.zeros(5, 2, 3))
    assigned = composites.assign(fmodel, entries)
    assert assigned["layer.weight_hh_l0"].label == label
    if given == "first layer":
        assert assigned["layer.weight_ih_l0"].label == "flat()"


@pytest.mark.parametrize("kind_of", [nn.LSTM, nn.GRU, nn.RNN])
def test_relevance_that_explodes_from_step_to_step_is_an_error(kind_of):
    """Not nan, nor numbers whose sum is nothing but rounding; a few steps, and the default, are fine."""
    model, x = filled(Last(kind_of(3, 16, batch_first=True)), 0.3), random(2, 300, 3)
    fmodel, params = lrpfunc.functionalize(model, x)
    entries = composites.epsilon(1e-9, zero_bias=True)
    message = (
        r"\(epsilon\(1e-09, zero_bias=True\), stabilizer=1e-09\) at layer 'layer.weight_hh_l0': relevance exploded: "
        r"more than 1e\+09 times what came to the steps would leave. Where terms of a sum cancel, each gets a multiple "
        r'of what came, at every step again: take recurrent\(to="signal"\), and leave biases in \(zero_bias=False\).'
    )
    with pytest.raises(RuleError, match=message):
        lrpfunc.attribute(fmodel, params, x, entries)
    assert lrpfunc.attribute(fmodel, params, x[:, :3], entries).isfinite().all()
    for given in (composites.epsilon(), composites.attn_lrp(), composites.cp_lrp()):
        relevance, output = lrpfunc.attribute(fmodel, params, x, given), model(x).amax(1)
        assert (relevance.abs().sum((1, 2)) < 100 * output.abs()).all()


def test_the_gradient_of_a_recurrent_layer_is_the_gradient():
    model, x = filled(Last(nn.LSTM(3, 4))), random(4, 2, 3)
    fmodel, params = lrpfunc.functionalize(model, x)
    entries = composites.by_kind({"*": rules.gradient()})
    found = lrpfunc.attribute(fmodel, params, x, entries, target=lambda y: torch.ones_like(y))
    torch.testing.assert_close(found, torch.func.grad(lambda x: model(x).sum())(x), rtol=1e-10, atol=1e-12)


def test_the_ledger_adds_up_and_parameters_have_what_they_kept():
    """The relevance of W' h' is what passed on to the states, that of the biases what the steps absorbed."""
    model, x = filled(Last(nn.LSTM(3, 4, batch_first=True))), random(2, 4, 3)
    fmodel, params = lrpfunc.functionalize(model, x)
    found = lrpfunc.ledger(fmodel, params, x, composites.epsilon(TINY), target=1)
    entries = {entry.name: entry for entry in found.entries}
    assert found.arrived + found.absorbed == pytest.approx(found.seed)
    of_params = lrpfunc.parameter_relevance(fmodel, params, x, composites.epsilon(TINY), target=1)
    for name in ("hh", "ih"):
        absorbed = entries[f"layer.weight_{name}_l0"].absorbed
        assert absorbed == pytest.approx(of_params[f"layer.bias_{name}_l0"].sum().item())
    assert found.arrived == pytest.approx(of_params["layer.weight_ih_l0"].sum().item())
    expected = written_parameters(model.layer, model.head, x)
    for name in ("weight_hh_l0", "bias_hh_l0"):
        torch.testing.assert_close(of_params[f"layer.{name}"], expected[name], rtol=1e-8, atol=1e-10)


def written_parameters(layer: nn.Module, head: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What the parameters of an LSTM have of the relevance of logit 1.

    Without stabilizers it is value times gradient in the model in which gates, and tanh(z) / z, are constants.
    """
    given = {name: parameter.clone().requires_grad_() for name, parameter in layer.named_parameters()}
    w, v, b, d = (given[name] for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"))
    h = c = torch.zeros(len(x), layer.hidden_size, dtype=DOUBLE)
    for row in x.unbind(1):
        i, f, g, o = (row @ w.T + b + h @ v.T + d).chunk(4, -1)
        i, f, o, slope = i.sigmoid().detach(), f.sigmoid().detach(), o.sigmoid().detach(), (g.tanh() / g).detach()
        c = f * c + i * slope * g
        h = o * c * (c.tanh() / c).detach()
    head(h)[:, 1].sum().backward()
    return {name: parameter.detach() * parameter.grad for name, parameter in given.items()}


def test_a_projection_has_relevance_too():
    layer, x = filled(nn.LSTM(3, 4, proj_size=2, bias=False)), random(4, 2, 3)
    fmodel, params = lrpfunc.functionalize(layer, x)
    found = lrpfunc.parameter_relevance(
        fmodel, params, x, composites.epsilon(TINY), target=lambda y: (y[0], tuple(map(torch.zeros_like, y[1])))
    )
    # All that comes to a hidden state comes through the projection: from the outputs, and from later steps by W'.
    total = layer(x)[0].sum() + found["weight_hh_l0"].sum()
    assert found["weight_hr_l0"].sum().item() == pytest.approx(total.item())
    assert found["weight_ih_l0"].sum().item() == pytest.approx(layer(x)[0].sum().item())


# -- fast paths -------------------------------------------------------------------------------------------------------

OF_LAYERS = {
    "epsilon": rules.epsilon(),
    "epsilon 0": rules.epsilon(0),
    "zero_bias": rules.epsilon(1e-2, zero_bias=True),
    "zplus": rules.zplus(),
    "alpha_beta": rules.alpha_beta(3, 2),
    "gamma": rules.gamma(0.3),
    "gamma 0": rules.gamma(0.3, 0),
    "by rows": rules.epsilon(rules.stabilizer(0.1, norm_scale=True)),
    "zbox": rules.zbox(-1.0, 1.0),
    "wsquare": rules.wsquare(),
    "gradient": rules.gradient(),
}


@pytest.mark.parametrize("to", ["signal", "both"])
@pytest.mark.parametrize("name", OF_LAYERS)
def test_closed_forms_are_the_rules_step_by_step(name, to, monkeypatch):
    model, x = filled(Last(nn.LSTM(3, 4, batch_first=True))), random(3, 5, 3)
    fmodel, params = lrpfunc.functionalize(model, x)
    stabilizer = rules.stabilizer(0.1, norm_scale=True) if name == "by rows" else 1e-6
    entries = composites.by_kind({"recurrent": rules.recurrent(OF_LAYERS[name], to, stabilizer)})
    fast = lrpfunc.attribute(fmodel, params, x, entries, target=1)
    monkeypatch.setattr(fast_paths, "taken", False)
    step_by_step = lrpfunc.attribute(fmodel, params, x, entries, target=1)
    torch.testing.assert_close(fast, step_by_step, rtol=1e-9, atol=1e-9 * float(fast.abs().max()))
    one = lrpfunc.attribute(fmodel, params, x[:1], entries, target=1)
    torch.testing.assert_close(fast[:1], one, rtol=1e-9, atol=1e-9 * float(fast.abs().max()))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("reverse", [True, False])
@pytest.mark.parametrize("shape", [(2, 5), (40, 1), (1, 1)])
def test_the_kernel_of_lstms_gives_what_its_steps_give(shape, reverse, bias, monkeypatch):
    gates, states = random(*shape, 16).float(), [random(shape[0], 4).float(), random(shape[0], 4, seed=1).float()]
    given = (gates, states, random(16, 4).float(), random(16).float() if bias else None, 1, reverse)
    called = []
    monkeypatch.setattr(torch, "lstm", lambda *args, lstm=torch.lstm: called.append(args) or lstm(*args))
    by_kernel = functions.lstm_steps(*given)
    assert called
    monkeypatch.setattr(fast_paths, "taken", False)
    torch.testing.assert_close(by_kernel, functions.lstm_steps(*given), rtol=1e-5, atol=1e-6)
    assert len(called) == 1


# -- what is refused --------------------------------------------------------------------------------------------------


def test_dropout_in_training_mode():
    model = Last(nn.LSTM(3, 4, 2, dropout=0.5, batch_first=True))
    with pytest.raises(
        TraceError,
        match=r"^layer 'layer' is in training mode with dropout .* random numbers\. Call model\.eval\(\) first",
    ):
        lrpfunc.functionalize(model.train(), torch.zeros(2, 3, 3))
    lrpfunc.functionalize(model.eval(), torch.zeros(2, 3, 3))
    lrpfunc.functionalize(Last(nn.LSTM(3, 4)).train(), torch.zeros(2, 3, 3))


def test_weights_that_depend_on_the_input():
    """What moves relevance to them is not known: it is marked, and refused by `strict`."""

    def model(params, x, weight):
        return torch.rnn_tanh_cell(x, torch.ones(2, 4, dtype=DOUBLE), params["w"], weight)

    inputs = (random(2, 3), random(4, 4))
    fmodel, params = lrpfunc.trace(model, {"w": random(4, 3)}, *inputs)
    (steps,) = (equation for equation in fmodel.equations if equation.operator == "rnn_tanh_steps")
    assert lrpfunc.explain(fmodel, composites.epsilon()).fallbacks == (steps.name,)
    with pytest.raises(RuleError, match=rf"no rule for '{steps.name}' \(rnn_tanh_steps\): strict=True"):
        lrpfunc.explain(fmodel, composites.epsilon(), strict=True)
    with pytest.raises(RuleError, match=rf"'{steps.name}' \(rnn_tanh_steps\) is not the steps of a recurrent layer"):
        lrpfunc.attribute(fmodel, params, inputs, {steps.name: rules.recurrent()}, target=0)


def test_the_rule_needs_a_recurrent_layer():
    fmodel, params = lrpfunc.functionalize(nn.Sequential(nn.Linear(3, 4)), torch.zeros(2, 3))
    with pytest.raises(RuleError, match=r"at layer '0': '0' \(linear\) is not the steps of a recurrent layer, but"):
        lrpfunc.attribute(fmodel, params, torch.zeros(2, 3), {"0": rules.recurrent()})


def test_a_rule_may_stop_relevance_between_steps():
    """Then each step has what its own input brought to its own output."""

    def stopped(operation, *inputs):
        return operation(*inputs), None

    stop = rules.Rule("stop()", stopped, lambda operation, residuals, flow: None)
    layer, x = filled(nn.RNN(3, 4)), random(4, 1, 3)
    fmodel, params = lrpfunc.functionalize(layer, x)
    steps = {"weight_hh_l0": rules.recurrent(stop, stabilizer=TINY)}
    entries = composites.first_match(steps, composites.epsilon(TINY))
    seed = random(4, 1, 4)
    found = lrpfunc.attribute(fmodel, params, x, entries, target=lambda y: (seed, torch.zeros_like(y[1])))
    states = torch.cat([torch.zeros(1, 1, 4, dtype=DOUBLE), layer(x)[0][:-1]])
    brought = x @ layer.weight_ih_l0.T + layer.bias_ih_l0
    sums = brought + states @ layer.weight_hh_l0.T + layer.bias_hh_l0
    torch.testing.assert_close(found, x * ((seed / sums) @ layer.weight_ih_l0), rtol=1e-9, atol=1e-10)


def test_other_threads_trace_no_shapes_alone():
    """What stands in for torch's decompositions while a thread traces is for that thread."""
    from torch._decomp import decompositions

    layer, x, seen = filled(nn.GRU(3, 4)), random(4, 2, 3), []
    before = decompositions.one_layer_rnn

    def decompose():
        params = list(layer.parameters())
        seen.append(
            decompositions.one_layer_rnn(x, torch.zeros(2, 4, dtype=DOUBLE), params, True, decompositions.gru_cell)[0]
        )

    with recurrent_shapes():
        decompose()
        thread = threading.Thread(target=decompose)
        thread.start()
        thread.join()
    assert decompositions.one_layer_rnn is before
    assert seen[0].isnan().all()
    torch.testing.assert_close(seen[1], layer(x)[0])
