"""From modules and functions to programs: what forward does, the program computes, or tracing says why it cannot."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations

import lrpfunc
from lrpfunc import composites
from lrpfunc.errors import InputError, TraceError
from lrpfunc.operations import facts
from tests.traced import Block, Model, Pair, assert_equal, names, traced, x_of

# -- what modules are made of -----------------------------------------------------------------------------------------


def test_buffers_constants_and_plain_tensor_attributes_are_leaves():
    def forward(self, x):
        return self.fc(x) * self.scale + self.shift + torch.tensor(2.0) + torch.tensor([1.0, 2.0, 3.0])

    model = Model(forward, scale=torch.full((3,), 2.0))
    model.register_buffer("shift", torch.ones(3))
    model.register_buffer("unread", torch.ones(3))
    _, params = traced(model, x_of())
    assert sorted(params) == ["fc.bias", "fc.weight", "lifted_tensor_0", "lifted_tensor_1", "scale", "shift"]
    assert params["scale"].data_ptr() == model.scale.data_ptr()


@pytest.mark.parametrize(
    "wrap",
    [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal],
    ids=lambda wrap: wrap.__name__,
)
def test_parametrized_weights(wrap):
    torch.manual_seed(0)
    model = nn.Sequential(wrap(nn.Linear(3, 3)), nn.ReLU(), nn.Linear(3, 2)).eval().requires_grad_(False)
    fmodel, params = traced(model, x_of(), at=[(x_of(1),)])
    assert any(name.startswith("0.parametrizations.weight") for name in params)
    assert fmodel.equations[-3].operator == "linear"


def test_no_grad_parts():
    def forward(self, x):
        with torch.no_grad():
            x = self.fc(x)
        with torch.enable_grad():
            return self.fc(x)

    assert names(traced(Model(forward), x_of())[0]) == ["fc", "fc:1"]


def test_disabled_autocast_parts():
    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            angles = torch.outer(x[:, 0], self.fc.bias).sin()
        return self.fc(x) + angles

    fmodel, _ = traced(Model(forward), x_of(), at=[(x_of(5),)])
    assert fmodel.equations[-1].name == "add"


def test_enabled_autocast_is_an_error():
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.fc(x)

    with pytest.raises(
        TraceError, match=r"'wrap_with_autocast' at .* is not supported: it computes in another precision\. Remove it"
    ):
        lrpfunc.functionalize(Model(forward), x_of())


def test_operations_with_several_outputs():
    def forward(self, x):
        h = self.fc(x)
        first, *rest = h.split([1, 2], dim=1)
        values, indices = h.topk(2, dim=1)
        largest, where = h.max(dim=1)
        return first, rest, values, indices, largest, where, h.unbind(1), h.chunk(2, dim=1), h.sort(dim=1)

    traced(Model(forward), x_of(), at=[(x_of(1),), (x_of(5),)])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers(kind):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = kind(3, 4, batch_first=True, bidirectional=True), nn.Linear(8, 2)

        def forward(self, x):
            output, _ = self.rnn(x)
            return self.head(output[:, -1])

    model = Recurrent().eval().requires_grad_(False)
    fmodel, params = lrpfunc.functionalize(model, x_of(2, 5, 3))
    for x in (x_of(2, 5, 3), x_of(1, 5, 3), x_of(4, 5, 3)):  # written out, so that the last digits differ
        torch.testing.assert_close(fmodel(params, x), model(x))


def test_attention_and_transformer_layers():
    # The fused kernel that these have for evaluation is not captured; its last digits differ.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval().requires_grad_(False)
        traced(model, x_of(2, 5, 8), at=[(x_of(1, 5, 8),), (x_of(3, 5, 8),)])
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_operations_with_several_names_go_by_the_usual_one():
    def f(params, x):
        y = torch.concat([x, torch.concatenate([x, x.clip(0, 1)], 1)], 1)
        y = torch.moveaxis(y.multiply(2.0).divide(3.0).subtract(1.0), 1, 2).negative()
        return torch.true_divide(y.multiply_(params["w"]), 2.0)

    params, x = {"w": torch.tensor(3.0)}, torch.randn(2, 3, 4)
    fmodel, params = lrpfunc.trace(f, params, x)
    names = {equation.operator for equation in fmodel.equations}
    assert names == {"clamp", "cat", "mul", "div", "sub", "movedim", "neg"}
    assert torch.equal(fmodel(params, x), f(params, x))


def test_shapes_taken_from_a_tensor_carry_no_relevance():
    def forward(self, x):
        h = self.fc(x)
        return torch.zeros_like(h), h.new_full((3,), 2.0), torch.ones(1, 3).expand_as(h), h.clone().fill_(1.0)

    fmodel, _ = traced(Model(forward), x_of())
    assert [leaf.name in facts(fmodel).active for leaf in fmodel.output_leaves] == [False] * 4


# -- operations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.addmm(torch.zeros(3), x, torch.ones(6, 3)),
        lambda x: torch.baddbmm(torch.zeros(1), x[:, None], torch.ones(2, 6, 3))[:, 0],
        lambda x: torch.tensordot(x, torch.ones(6, 3), 1),
        lambda x: torch.linalg.matmul(x, torch.ones(6, 3)),
        lambda x: torch.zeros(2, 4).scatter_add(1, torch.tensor([[0, 0, 1], [1, 2, 3]]), x[:, :3]),
        lambda x: torch.zeros(2, 4).index_add(1, torch.tensor([1, 1, 3]), x[:, :3]),
        lambda x: F.fold(x.reshape(2, 2, 3), (1, 4), (1, 2)).flatten(1),
        lambda x: F.max_unpool2d(*F.max_pool2d(x[:, :4].reshape(2, 1, 2, 2), 2, return_indices=True), 2).flatten(1),
        lambda x: F.interpolate(x[:, None], scale_factor=2, mode="nearest-exact")[:, 0],
        lambda x: F.interpolate(x.reshape(2, 1, 2, 3), size=(3, 3), mode="bilinear", antialias=True).flatten(1),
        lambda x: x.topk(2, dim=1).values,
        lambda x: x.sort(dim=1).values,
        lambda x: x.take(torch.tensor([[0, 1], [6, 7]])),
        lambda x: x.clone().fill_(x[0, 0]),
        lambda x: torch.moveaxis(torch.cat(x.reshape(2, 3, 2).hsplit(3), 2), 1, 2).flatten(1),
    ],
)
def test_operations_without_a_module_have_a_kind_that_conserves_relevance(function):
    x = x_of(2, 6).abs() + 0.1
    fmodel, params = traced(Model(lambda self, x: function(x)), x)
    relevance = lrpfunc.attribute(fmodel, params, x, composites.epsilon(1e-9), strict=True)
    torch.testing.assert_close(relevance.sum(), fmodel(params, x).amax(1).sum())


# -- trace ------------------------------------------------------------------------------------------------------------


def affine(weight, bias, x):
    return F.linear(x, weight, bias).relu()


@pytest.mark.parametrize(
    ("params", "function"),
    [
        ({"w": torch.eye(3), "b": torch.ones(3)}, lambda p, x: affine(p["w"], p["b"], x)),
        ({"fc": {"w": torch.eye(3), "b": [torch.ones(3)]}}, lambda p, x: affine(p["fc"]["w"], p["fc"]["b"][0], x)),
        ([torch.eye(3), torch.ones(3)], lambda p, x: affine(*p, x)),
        ((torch.eye(3), (torch.ones(3),)), lambda p, x: affine(p[0], p[1][0], x)),
        (Pair(torch.eye(3), torch.ones(3)), lambda p, x: affine(p.left, p.right, x)),
        (torch.eye(3), lambda p, x: affine(p, None, x)),
    ],
    ids=["dict", "nested dict", "list", "tuple", "namedtuple", "tensor"],
)
def test_trace_takes_any_pytree_of_parameters(params, function):
    fmodel, same = lrpfunc.trace(function, params, x_of())
    assert_equal(same, params)
    for batch in (1, 2, 7):
        assert_equal(fmodel(same, x_of(batch)), function(params, x_of(batch)))


def test_trace_keeps_the_callers_tensors():
    params = {"w": torch.eye(3, requires_grad=True), "unread": torch.ones(3)}
    _, same = lrpfunc.trace(lambda p, x: x @ p["w"], params, x_of())
    assert set(same) == {"w", "unread"}
    assert same["w"] is params["w"]


def test_trace_of_a_functional_call():
    model = Model(lambda self, x: self.block(self.fc(x)), block=Block())
    params = dict(model.named_parameters())
    fmodel, params = lrpfunc.trace(lambda p, x: functional_call(model, p, (x,)), params, x_of())
    assert_equal(fmodel(params, x_of(5)), model(x_of(5)))
    assert names(fmodel) == ["fc", "block.fc", "relu", "add"]


def test_trace_of_a_builtin():
    fmodel, weight = lrpfunc.trace(torch.mm, torch.eye(3), x_of(3))
    assert fmodel.input_names == ("input1",)
    assert_equal(fmodel(weight, x_of(3)), x_of(3))


def test_trace_of_a_program():
    inner, params = lrpfunc.functionalize(Model(lambda self, x: self.fc(x).relu()), x_of())
    fmodel, params = lrpfunc.trace(lambda p, x: inner(p, x) * 2, params, x_of())
    assert_equal(fmodel(params, x_of(5)), inner(params, x_of(5)) * 2)


def test_errors_of_a_program_that_is_traced_pass_through():
    inner, params = lrpfunc.functionalize(Model(lambda self, x: self.fc(x)), x_of())
    with pytest.raises(InputError, match=r"input 'x' must have shape \(batch, 3\), but has \(2, 2\)\."):
        lrpfunc.trace(lambda p, x: inner(p, x[:, :2]), params, x_of())


def test_one_tensor_under_two_names_is_two_parameters():
    w = torch.eye(3)
    fmodel, _ = lrpfunc.trace(lambda p, x: x @ p["a"] + 2 * (x @ p["b"]), {"a": w, "b": w}, x_of())
    assert_equal(fmodel({"a": w, "b": 2 * w}, x_of()), x_of() + 2 * (x_of() @ (2 * w)))


def constants(params, x):
    return x * next(iter(params)) + torch.tensor([1.0, 2.0, 3.0]) + torch.tensor(2.0)


def test_constants_of_a_function_are_leaves_or_equations():
    fmodel, params = lrpfunc.trace(lambda p, x: constants(p.values(), x), {"w": torch.ones(3)}, x_of())
    assert sorted(params) == ["lifted_tensor_0", "lifted_tensor_1", "w"]
    assert_equal(fmodel(params, x_of()), constants([torch.ones(3)], x_of()))
    fmodel, params = lrpfunc.trace(constants, [torch.ones(3)], x_of())
    assert_equal(fmodel(params, x_of()), constants([torch.ones(3)], x_of()))
    assert fmodel([torch.ones(3).to("meta")], x_of().to("meta")).device.type == "meta"
    assert fmodel([torch.ones(3).double()], x_of().double()).dtype == torch.float64


# -- models that cannot be traced -------------------------------------------------------------------------------------


def decides_on_values(self, x):
    h = self.fc(x)
    if h.sum() > 0:
        return h
    return -h


def fails(self, x):
    return self.fc(x) @ torch.ones(4, 4)


def test_a_decision_on_values_is_an_error_with_its_line():
    message = (
        r"the model cannot be exported at \S*test_tracing\.py:\d+ \(`if h\.sum\(\) > 0:`\): GuardOnDataDependent"
        r".* The model decides by a value that is only known when it runs: write it with torch\.where\."
    )
    with pytest.raises(TraceError, match=message):
        lrpfunc.functionalize(Model(decides_on_values), x_of())


def test_a_failing_model_is_an_error_with_its_line(capfd):
    message = (
        r"the model cannot be exported at \S*test_tracing\.py:\d+ \(`return self\.fc\(x\) @ torch\.ones\(4, 4\)`\): "
    )
    with pytest.raises(TraceError, match=message):
        lrpfunc.functionalize(Model(fails), x_of())
    assert capfd.readouterr() == ("", "")


def test_what_is_no_module_is_refused():
    with pytest.raises(
        TraceError, match=r"functionalize needs an nn.Module, but got function\. Use lrpfunc.trace for func"
    ):
        lrpfunc.functionalize(lambda x: x, x_of())
    with pytest.raises(TraceError, match=r"trace needs a function f\(params, \*inputs\), but got dict\."):
        lrpfunc.trace({}, {}, x_of())


def test_example_inputs_without_a_tensor_are_refused():
    for inputs in ((3,), (None,), ([],)):
        with pytest.raises(TraceError, match=r"there is no tensor among the example inputs: give at least one\."):
            lrpfunc.functionalize(Model(lambda self, x: x), *inputs)


def test_parameters_must_be_tensors_with_names_of_their_own():
    with pytest.raises(TraceError, match=r"leaf 'fc.w' of params must be a tensor, but is float\."):
        lrpfunc.trace(lambda p, x: x, {"fc": {"w": 1.0}}, x_of())
    with pytest.raises(
        TraceError, match=r"two leaves of params are called 'a\.b': a dot also joins nested names\. Rename"
    ):
        lrpfunc.trace(lambda p, x: x, {"a": {"b": x_of()}, "a.b": x_of()}, x_of())


class Branches(nn.Module):
    """Takes one of two layers, as the condition says."""

    def __init__(self, condition):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.condition = nn.Linear(3, 3), nn.Linear(3, 3), condition
        self.requires_grad_(False)

    def forward(self, x):
        chosen = self.condition(x)
        return torch.cond(chosen, lambda x: self.one(x).relu(), lambda x: self.two(x) * 2, (x,))


@pytest.mark.parametrize(
    "condition", [lambda x: x.sum() > 0, lambda x: x.sum().reshape(1) > 0, lambda x: torch.tensor(x.shape[-1] > 2)]
)
def test_branches_are_both_equations_and_relevance_comes_to_the_one_taken(condition):
    model = Branches(condition)
    fmodel, params = traced(model, x_of(), at=[(x_of(5),), (-x_of(5),), (x_of(1),)])
    assert {"one", "two"} <= set(names(fmodel))
    for x in (x_of(5), -x_of(5)):
        relevance = lrpfunc.attribute(fmodel, params, x, composites.epsilon(0), lambda y: y)
        one = (model.one(x) > 0).float() @ model.one.weight
        taken = one if bool(condition(x)) else 2 * model.two.weight.sum(0)
        assert torch.allclose(relevance, x * taken, atol=1e-5)
        assert not lrpfunc.explain(fmodel, composites.epsilon(), strict=True).fallbacks


def test_a_condition_that_is_known_when_traced_leaves_one_branch():
    with pytest.warns(UserWarning, match="Pred is a Python constant"):
        fmodel, _ = traced(Branches(lambda x: x.shape[-1] > 2), x_of())
    assert names(fmodel) == ["one", "relu"]


class Recurrent(nn.Module):
    """Steps along the second axis, by a loop or torch's scan."""

    def __init__(self, loop):
        super().__init__()
        self.loop = loop
        self.hidden, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

    def step(self, state, x):
        shifted = torch.zeros_like(x)
        shifted[:, 1:] = x[:, :-1]
        state = torch.tanh(self.hidden(state) + shifted.relu_() + x)
        return state, state * 2

    def forward(self, x):
        state, steps = self.loop(self.step, x.new_zeros(x[:, 0].shape), x)
        return self.head(state) + self.head(steps).sum(1)


def scanned(step, state, x):
    from torch._higher_order_ops.scan import scan

    return scan(step, state, x, dim=1)


def looped(step, state, x):
    steps = []
    for t in range(x.shape[1]):
        state, made = step(state, x[:, t])
        steps.append(made)
    return state, torch.stack(steps, 1)


def test_a_scan_is_its_steps_one_after_another():
    torch.manual_seed(0)
    x, modules = torch.randn(2, 4, 3, dtype=torch.float64), [Recurrent(loop).double() for loop in (scanned, looped)]
    modules[1].load_state_dict(modules[0].state_dict())
    found = []
    for module in modules:
        fmodel, params = lrpfunc.functionalize(module, x)
        torch.testing.assert_close(fmodel(params, x[:1]), module(x[:1]), rtol=1e-12, atol=1e-12)  # the batch is open
        assert not lrpfunc.explain(fmodel, composites.epsilon(), strict=True).fallbacks
        found.append(lrpfunc.attribute(fmodel, params, x, composites.epsilon(), target=1))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)


def test_a_map_is_its_steps_one_after_another():
    from torch._higher_order_ops.map import map as each

    fmodel, params = traced(Model(lambda self, x: each(lambda row: self.fc(row).relu(), x)), x_of(), at=[])
    assert fmodel.input_leaves[0].value.shape == tuple(x_of().shape)  # as many steps as samples
    relevance = lrpfunc.attribute(fmodel, params, x_of(), composites.epsilon(), target=1)
    plain, plain_params = traced(Model(lambda self, x: self.fc(x).relu()), x_of())
    expected = lrpfunc.attribute(plain, plain_params, x_of(), composites.epsilon(), target=1)
    torch.testing.assert_close(relevance, expected)


def causal(self, x):
    """Of the tokens before, by a mask that `vmap` makes of a function of two positions, as transformers 4 does."""
    where = torch.arange(x.shape[1])
    mask = torch.vmap(torch.vmap(lambda query, key: key <= query, (None, 0)), (0, None))(where, where)
    x = self.fc(x)
    return F.scaled_dot_product_attention(x, x, x, attn_mask=mask).sum(1)


def squares(self, x):
    return torch.vmap(lambda row: row * row + 1)(self.fc(x)).sum(1)


@pytest.mark.parametrize(
    ("mapped", "plain"),
    [
        (causal, lambda self, x: F.scaled_dot_product_attention(*[self.fc(x)] * 3, is_causal=True).sum(1)),
        (squares, lambda self, x: (self.fc(x) * self.fc(x) + 1).sum(1)),
    ],
    ids=["mask", "product"],
)
def test_vmap_is_what_it_maps_for_the_whole_batch(mapped, plain):
    """Where no layer is mapped, see `test_refusals.py`."""
    x = x_of(2, 5, 3, dtype=torch.float64)
    models = [Model(forward).double() for forward in (mapped, plain)]
    (fmodel, params), (other, others) = (traced(model, x, at=[(x_of(3, 4, 3).double(),)]) for model in models)
    assert not lrpfunc.explain(fmodel, composites.attn_lrp(), strict=True).fallbacks
    expected = lrpfunc.attribute(other, others, x, composites.attn_lrp(), target=1)
    torch.testing.assert_close(lrpfunc.attribute(fmodel, params, x, composites.attn_lrp(), target=1), expected)


def loops(self, x):
    from torch._higher_order_ops.while_loop import while_loop

    return while_loop(lambda y: y.sum() < 3, lambda y: (y * 2,), (x,))[0]


def test_a_loop_of_unknown_length_is_an_error():
    way = r"how often it runs is only known when it runs\. Write a for loop over a fixed number of steps\."
    where = r"'while_loop' at \S*test_tracing\.py:\d+ \(`return .*"
    with pytest.raises(TraceError, match=f"{where} is not supported: {way}"):
        lrpfunc.functionalize(Model(loops), x_of())


def standardized(self, x):
    w = F.batch_norm(self.fc.weight[None], None, None, training=True, eps=1e-3)[0]
    return F.linear(x, w, self.fc.bias)


def test_weights_may_be_standardized_and_values_not():
    fmodel, params = traced(Model(standardized), x_of(), at=[(x_of(5),)])
    assert [equation.name for equation in lrpfunc.operations.active_equations(fmodel)] == ["linear"]
    relevance = lrpfunc.attribute(fmodel, params, x_of(), composites.epsilon(0), target=1)
    w = F.batch_norm(params["fc.weight"][None], None, None, training=True, eps=1e-3)[0]
    assert torch.allclose(relevance, x_of() * w[1], atol=1e-6)
    canonical = lrpfunc.canonize(fmodel, params)
    assert_equal(canonical.fmodel(canonical.params, x_of()), fmodel(params, x_of()))
    with pytest.raises(TraceError, match=r"batch norm '\S+' is in training mode, in which samples of a batch depend"):
        lrpfunc.functionalize(Model(lambda self, x: F.batch_norm(self.fc(x), None, None, training=True)), x_of())


# -- purity -----------------------------------------------------------------------------------------------------------


class Impure(nn.Module):
    """A model that changes itself wherever it can while it runs."""

    def __init__(self, fail: bool):
        super().__init__()
        self.fc, self.drop = nn.Linear(3, 3), nn.Dropout()
        self.bn = nn.BatchNorm1d(3)
        self.register_buffer("count", torch.zeros(()))
        self.calls, self.seen, self.notes, self.fail = 0, [], {"last": None}, fail

    def forward(self, x):
        self.calls += 1
        self.count += 1
        self.seen.append(x)
        self.notes["last"] = x
        self.cache = x * 2
        x.relu_()
        if self.fail and x.sum() > 0:
            return x
        return self.bn(self.drop(self.fc(x))) + self.cache


def state_of(model: nn.Module) -> list:
    """Everything that a module holds: identities of modules and attributes, contents of containers, bits of tensors."""
    state = []
    for name, module in model.named_modules():
        for key, value in sorted(vars(module).items()):
            contents = (
                list(value.items()) if isinstance(value, dict) else list(value) if isinstance(value, list) else value
            )
            state.append((name, key, id(value), repr(contents)))
    return [
        *state,
        *((n, id(t), t.data_ptr(), t.requires_grad, t.tolist()) for n, t in model.state_dict(keep_vars=True).items()),
    ]


@pytest.mark.parametrize("fail", [False, True])
def test_nothing_is_changed_by_tracing(fail):
    model = Impure(fail).eval()
    model.drop.train()
    model.fc.register_forward_hook(lambda module, inputs, output: output * 2)
    x = x_of()
    before, input_before, generator_before = state_of(model), x.clone(), torch.get_rng_state()
    if fail:
        with pytest.raises(TraceError, match="cannot be exported"):
            lrpfunc.functionalize(model, x)
    else:
        fmodel, params = lrpfunc.functionalize(model, x)
        fmodel(params, x)
    assert state_of(model) == before
    assert_equal(x, input_before)
    assert_equal(torch.get_rng_state(), generator_before)
    assert torch.is_grad_enabled()


def test_functions_leave_their_parameters_and_inputs_alone():
    def function(params, x):
        params["w"].mul_(2)
        x.add_(1)
        return x @ params["w"]

    params, x = {"w": torch.eye(3)}, x_of()
    fmodel, same = lrpfunc.trace(function, params, x)
    fmodel(same, x)
    assert_equal(params, {"w": torch.eye(3)})
    assert_equal(x, x_of())
    assert_equal(fmodel(same, x), (x_of() + 1) @ (2 * torch.eye(3)))


def test_params_share_storage_with_the_module_and_require_no_gradient():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
    _, params = lrpfunc.functionalize(model, x_of())
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in params:
            assert params[name].data_ptr() == tensor.data_ptr()
    assert len(params) == 7
    assert not any(p.requires_grad for p in params.values())


def test_hooks_are_part_of_the_function():
    model = Model(lambda self, x: self.fc(x))
    model.fc.register_forward_hook(lambda module, inputs, output: output * 2)
    traced(model, x_of())
