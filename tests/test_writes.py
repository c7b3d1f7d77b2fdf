"""In-place operations become functional, or are refused."""

import copy
import random

import optree
import pytest
import torch
import torch.nn.functional as F

import lrpfunc
from lrpfunc.errors import TraceError
from tests.traced import Model, assert_equal, traced, x_of


def slices(self, x):
    h = self.fc(x)
    h[:, 0] = 0
    h[:, 1:] += x[:, :2]
    h[0] = h[-1] * 2
    return h


def views_of_views(self, x):
    h = self.fc(x)
    h.view(-1, 3, 1).transpose(1, 2)[:, 0, 1:][:, 0].mul_(3)
    return h * 2


def conditions(self, x):
    h = self.fc(x)
    h.masked_fill_(h > 1, 0.25)
    h[h < 0] = 7.0
    h.index_put_((torch.tensor([0]), torch.tensor([2])), torch.tensor(5.0))
    h[:, torch.tensor([0, 2])] = h[:, torch.tensor([2, 0])] + 1
    return h


def fills(self, x):
    h, other = self.fc(x), torch.empty(3)
    other.fill_(2.0)
    h[:, 1].fill_(h[0, 0])
    h[:, 2].zero_()
    h[:, 0].copy_(x[:, 0].double())
    return h + other.clamp_(max=1.5)


def chains(self, x):
    h = self.fc(x)
    first = h[:, :2]
    first.relu_().mul_(3)
    first += 1
    h.add_(h.clone(), alpha=2)
    return h


def promotions(self, x):
    h = self.fc(x)
    flags, total = h.clone().lt_(0.5), torch.zeros(3, dtype=torch.float64)
    total += h[0]
    return h * flags, total


def parts(self, x):
    h = self.fc(x)
    first, *_ = h.chunk(3, dim=1)
    first.mul_(2)
    second = h.unbind(1)[1]
    second.add_(1)
    return h


def beside_parts(self, x):
    first, second, third = self.fc(x).unbind(1)
    product = first.mul_(second)
    second.add_(third)
    return product + second.sub_(third).mul_(first)


def broadcast_and_mixed(self, x):
    h = self.fc(x)
    return h.lerp_(self.fc.bias, 0.25).masked_scatter_(self.fc.bias > 0, x)


def into_others(self, x):
    h = self.fc(x)
    out, product, wide = torch.zeros_like(h), torch.empty(h.shape), torch.empty(h.shape, dtype=torch.float64)
    values, places = torch.empty(h.shape[0]), torch.empty(h.shape[0], dtype=torch.long)
    torch.add(h, 1, alpha=2, out=h)
    torch.mul(h[:, 0], 2, out=out[:, 1])
    torch.mul(h.t(), 2, out=wide.t())
    torch.matmul(h, self.fc.weight, out=product)
    torch.max(h, 1, out=(values, places))
    return (
        torch.abs(out, out=out).neg_(),
        out,
        product,
        wide,
        values.mul_(3),
        places,
        torch.sum(h, 1, out=torch.empty(0)),
    )


def reshaping(self, x):
    h = self.fc(x)
    column = h[:, 0]
    column.unsqueeze_(1).add_(1)
    square = self.fc.weight.clone()
    square.t_().mul_(torch.arange(3))
    return h @ square, column


def into_no_grad(self, x):
    h = self.fc(x)
    with torch.no_grad():
        h.mul_(2)
        h[:, 0] = 1
    return h + 1


def without_dropout(self, x):
    h = self.fc(x)
    F.dropout(h, 0.5, False).add_(1)
    h.detach().mul_(2)
    h.contiguous().sub_(1)
    h.to(torch.float32)[:, 0].neg_()
    return F.relu6(h, inplace=True) + F.dropout(h, 0.5, False, inplace=True)


def of_the_input(self, x):
    x.relu_()
    x[:, 0] = 1
    return self.fc(x) + x


def of_state(self, x):
    self.total.add_(x.sum())
    self.count = self.count + 1
    self.fc.weight[0].mul_(2)
    return self.fc(x) * self.total + self.count


@pytest.mark.parametrize(
    "forward",
    [
        slices,
        views_of_views,
        conditions,
        fills,
        chains,
        promotions,
        parts,
        beside_parts,
        broadcast_and_mixed,
        into_others,
        reshaping,
        into_no_grad,
        without_dropout,
        of_the_input,
    ],
    ids=lambda forward: forward.__name__,
)
def test_in_place_operations_become_functional(forward):
    model, x = Model(forward), x_of()
    before = x.clone()
    fmodel, params = traced(model, x, at=[(x_of(1),), (x_of(7),)])
    assert_equal(x, before)
    kept = optree.tree_map(torch.clone, params)
    fmodel(params, x)
    assert_equal(x, before)
    assert_equal(params, kept)
    assert not any(
        equation.function._schema.is_mutable for equation in fmodel.equations if "aten" in str(equation.function)
    )


def test_a_comparison_in_place_makes_truth_values_before_it_is_written_back():
    fmodel, _ = traced(Model(lambda self, x: self.fc(x).lt_(0.5)), x_of())
    made = {equation.operator: equation.outputs[0].dtype for equation in fmodel.equations}
    assert made == {"linear": torch.float32, "lt": torch.bool, "to": torch.float32}


def test_writes_into_buffers_and_parameters_stay_in_the_call():
    model = Model(of_state)
    model.register_buffer("total", torch.tensor(1.0))
    model.register_buffer("count", torch.tensor(2.0))
    fmodel, params = lrpfunc.functionalize(model, x_of())
    first, second = fmodel(params, x_of()), fmodel(params, x_of())
    assert_equal(first, second)
    assert model.count == 2.0
    assert_equal(first, model(x_of()))


def stale_view(self, x):
    h = self.fc(x)
    flat = h.view(-1)
    h.add_(1)
    return flat * 2


def stale_base(self, x):
    h = self.fc(x)
    flat = h.view(-1)
    h[:, 0] = 0
    return flat


def stale_window(self, x):
    windows = self.fc(x).unfold(1, 2, 1)
    windows[:, 0].mul_(2)
    return windows


def stale_part_of_repeated(self, x):
    first, second = self.fc(x).expand(2, -1, -1).unbind(0)
    first.mul_(2)
    return second


@pytest.mark.parametrize(
    ("forward", "read", "write"),
    [
        (stale_window, r"'unfold', returned by forward", r"`windows\[:, 0\].mul_\(2\)`"),
        (stale_part_of_repeated, r"'getitem_1', returned by forward", r"`first.mul_\(2\)`"),
        (stale_view, r"'view', read at .*`return flat \* 2`\)", r"`h.add_\(1\)`"),
        (stale_base, r"'view', returned by forward", r"`h\[:, 0\] = 0`"),
    ],
)
def test_memory_read_again_under_another_name_is_an_error(forward, read, write):
    file = r"\S*test_writes\.py:\d+ \("
    message = (
        rf"{read}, shares memory that was overwritten under another name at {file}{write}\)\. Replace the in-place"
    )
    with pytest.raises(TraceError, match=message):
        lrpfunc.functionalize(Model(forward), x_of())


def bits(self, x):
    h = self.fc(x)
    h.view(torch.int32).zero_()
    return h


def strided(self, x):
    h = self.fc(x)
    h.as_strided((2,), (1,)).zero_()
    return h


@pytest.mark.parametrize(("forward", "name"), [(bits, "view"), (strided, "as_strided")])
def test_writes_through_views_that_cannot_be_followed_are_errors(forward, name):
    message = (
        rf"the in-place operation at .*zero_\(\)`\) writes through '{name}', which lrpfunc cannot follow\. Replace it"
    )
    with pytest.raises(TraceError, match=message):
        lrpfunc.functionalize(Model(forward), x_of())


def resized(self, x):
    return self.fc(x).resize_(3, 2)


def arguments_in_another_order(self, x):
    return self.fc(x).exp().polygamma_(1)


def of_lists(self, x):
    h = self.fc(x)
    torch._foreach_mul_([h, x], 2.0)
    return h


def into_lists(self, x):
    parts = torch.empty(3), torch.empty(3)
    torch.unbind_copy(self.fc(x), out=parts)
    return parts


@pytest.mark.parametrize(
    ("forward", "who"),
    [
        (resized, "the in-place operation 'resize_'"),
        (arguments_in_another_order, "the in-place operation 'polygamma_'"),
        (of_lists, "the in-place operation '_foreach_mul_'"),
        (into_lists, "'unbind_copy' with out="),
    ],
)
def test_in_place_operations_without_a_twin_are_errors(forward, who):
    with pytest.raises(TraceError, match=rf"{who} at .*test_writes.* has no functional twin\. Replace it"):
        lrpfunc.functionalize(Model(forward), x_of())


def reshaped(self, x):
    h = torch.zeros(6)
    torch.sum(self.fc(x), 0, keepdim=True, out=h[:4])
    return h


@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized:UserWarning")
def test_a_result_does_not_give_a_part_of_a_tensor_another_shape():
    message = r"'sum' at .*test_writes.* writes a result of another shape into a part of a tensor\. Give it a tensor"
    with pytest.raises(TraceError, match=message):
        lrpfunc.functionalize(Model(reshaped), x_of())


def test_what_torch_cannot_shape_is_an_error():
    def singular_values(params, x):
        return torch.linalg.svd(x, out=(torch.empty(0, 0), torch.empty(0), torch.empty(0, 0)))

    message = r"'linalg_svd' with out= at .*test_writes.* has no shape that torch could tell: .*\. Replace it by one"
    with pytest.raises(TraceError, match=message):
        lrpfunc.trace(singular_values, {}, torch.empty(0, 0))


def test_conjugates_are_resolved_where_they_are_written():
    def parts(params, x):
        out = torch.empty(4, dtype=torch.complex64)
        return torch.view_as_real(torch.fft.ifft(x, out=out))

    program, params = lrpfunc.trace(parts, {}, torch.ones(4))
    assert_equal(program(params, torch.arange(4.0)), parts({}, torch.arange(4.0)))


VIEWS = [
    lambda t: t[..., :2],
    lambda t: t.select(-1, 0).unsqueeze(-1),
    lambda t: t.transpose(0, -1),
    lambda t: t.reshape(-1),
    lambda t: t.chunk(2, -1)[0],
    lambda t: t.unbind(-1)[-1].unsqueeze(-1),
    lambda t: t.detach(),
    lambda t: t.contiguous(),
    lambda t: t.flip(-1),
    lambda t: t.diagonal() if t.dim() > 1 else t,
    lambda t: t.expand_as(t),
    lambda t: t * 2 + 1,
]
WRITES = [
    lambda t, n, others: t.add_(n),
    lambda t, n, others: t.relu_().mul_(n),
    lambda t, n, others: t.copy_(others[n % len(others)] * 1),
    lambda t, n, others: t[..., 0].fill_(n),
    lambda t, n, others: t.masked_fill_(t > 0.1, n),
    lambda t, n, others: t.unsqueeze_(0).neg_().squeeze_(0),
    lambda t, n, others: t.lt_(0.3),
    lambda t, n, others: torch.mul(t, n, out=t),
]


@pytest.mark.parametrize("seed", range(40))
def test_random_views_and_writes_compute_the_same_or_are_refused(seed):
    def forward(self, x):
        draw, pool = random.Random(seed), [x, x @ self.weight, self.shift]
        for _ in range(draw.randint(3, 9)):
            tensor = draw.choice(pool)
            if draw.random() < 0.5:
                pool.append(draw.choice(VIEWS)(tensor))
                continue
            with torch.enable_grad() if draw.random() < 0.2 else torch.no_grad():
                draw.choice(WRITES)(tensor, draw.randint(0, 5), [t for t in pool if t.shape == tensor.shape])
        return [draw.choice(pool) * 1 for _ in range(2)]

    model = Model(forward, weight=torch.linspace(-1, 1, 16).reshape(4, 4))
    model.register_buffer("shift", torch.linspace(-1, 1, 4))
    x, state, refusal = x_of(4, 4), copy.deepcopy(model.state_dict()), "shares memory that was overwritten, or not"
    with torch.no_grad():
        expected = copy.deepcopy(model)(x.clone())
        try:
            fmodel, params = lrpfunc.functionalize(model, x)
            assert_equal(fmodel(params, x), expected)
        except TraceError as error:
            refusal = str(error)
    assert "shares memory that was overwritten" in refusal
    assert_equal(model.state_dict(), state)
