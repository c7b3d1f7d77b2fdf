"""Patching and lenses: exact where the model is linear, the Jacobian under the gradient rule, the loop elsewhere."""

import functools

import pytest
import torch
from torch import nn
from torch.func import jacrev

import lrpfunc
from lrpfunc import circuits, composites, rules
from lrpfunc.errors import FileError, InputError, RuleError
from lrpfunc.operations import active_equations
from tests.cases import subject

close = functools.partial(torch.testing.assert_close, rtol=1e-8, atol=1e-10)
LAYERS = [f"model.model.layers.{i}" for i in range(1)]


@pytest.fixture(scope="module")
def llama():
    fmodel, params, x = subject("llama")
    return fmodel, params, x


# -- patching ---------------------------------------------------------------------------------------------------------


def test_patching_a_linear_model_is_exact():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 3)).double()
    clean, corrupted = torch.randn(2, 3, 4, dtype=torch.float64)
    fmodel, params = lrpfunc.functionalize(model, clean)
    found = circuits.patching(fmodel, params, clean, corrupted, 1, rules.epsilon(0), at=["0", "1"])
    for name, effect in found.items():
        values = lrpfunc.record(fmodel, params, clean, rules.epsilon(0), at=name).values[name]
        for unit in range(effect.shape[1]):
            mixed = lrpfunc.record(fmodel, params, corrupted, rules.epsilon(0), at=name).values[name].clone()
            mixed[:, unit] = values[:, unit]
            changed = circuits.patched(fmodel, params, corrupted, {name: mixed})
            close(effect[:, unit], (changed - model(corrupted))[:, 1].detach())


def test_patching_by_the_gradient_is_attribution_patching(llama):
    fmodel, params, x = llama
    corrupted = x.flip(0)
    names = [f"{LAYERS[0]}.self_attn:heads", f"{LAYERS[0]}.mlp:neurons", LAYERS[0]]
    every = composites.by_kind({"*": rules.gradient()})
    found = circuits.patching(fmodel, params, x, corrupted, 2, every, at=names)
    trails = [lrpfunc.record(fmodel, params, one, every, at=names).values for one in (x, corrupted)]
    for name in names:
        gradient = _gradient_at(fmodel, params, corrupted, name, trails[1][name])
        close(found[name], (trails[0][name] - trails[1][name]) * gradient)


def _gradient_everywhere(fmodel):
    return lambda program: {e.name: rules.gradient() for e in active_equations(program)}


def _gradient_at(fmodel, params, x, name, value):
    """Of the logit 2, by finite graphs: the program with the layer's value put in."""

    def logit(value):
        return circuits.patched(fmodel, params, x, {name: value})[:, 2].sum()

    return torch.func.grad(logit)(value)


def test_patched_equals_the_model_with_a_hook():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    x, value = torch.randn(2, 4), torch.randn(2, 6)
    fmodel, params = lrpfunc.functionalize(model, x)
    close(circuits.patched(fmodel, params, x, {"1": value}), model[2](value))
    close(circuits.patched(fmodel, params, x, {}), model(x))
    assert torch.equal(circuits.patched(fmodel, params, x, {"0": value}), model[2](model[1](value)))


def test_patching_without_a_target_explains_the_arg_max():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)).double()
    clean, corrupted = torch.randn(2, 5, 4, dtype=torch.float64)
    fmodel, params = lrpfunc.functionalize(model, clean)
    best = model(corrupted).argmax(1)
    found = circuits.patching(fmodel, params, clean, corrupted, None, rules.epsilon(0), at="0")["0"]
    rows = torch.arange(5)
    close(found.sum(1), (model(clean) - model(corrupted))[rows, best].detach())


def test_patching_of_token_ids():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, 3)).double()
    clean, corrupted = torch.tensor([[1, 0], [4, 2]]), torch.tensor([[3, 0], [4, 1]])
    fmodel, params = lrpfunc.functionalize(model, clean)
    found = circuits.patching(fmodel, params, clean, corrupted, 1, rules.epsilon(0), at="0")["0"]
    close(found.sum((1, 2)), (model(clean) - model(corrupted))[:, 1].detach())


def test_patching_of_a_model_whose_output_is_a_structure():
    torch.manual_seed(0)
    layer, (clean, corrupted) = torch.randn(4, 3), torch.randn(2, 2, 5, 4)
    fmodel, params = lrpfunc.trace(lambda p, x: {"logits": (x @ p) @ torch.eye(3), "hidden": None}, layer, clean)
    name = fmodel.names("matmul*")[0]
    found = circuits.patching(fmodel, params, clean, corrupted, (-1, 2), rules.epsilon(0), at=name)[name]
    expected = (clean - corrupted)[:, -1] @ layer
    torch.testing.assert_close(found.sum((1, 2)), expected[:, 2])
    pooled, params = lrpfunc.trace(lambda p, x: {"logits": x.mean(1) @ p}, layer, clean)
    found = circuits.patching(pooled, params, clean, corrupted, None, rules.epsilon(0), at="mean")["mean"]
    best = (corrupted.mean(1) @ layer).argmax(1)
    expected = (clean - corrupted).mean(1) @ layer
    torch.testing.assert_close(found.sum(1), expected[[0, 1], best])


def test_a_function_as_target_is_that_of_attribute():
    """Of a difference of two logits, whatever these are."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)).double()
    clean, corrupted = torch.randn(2, 5, 4, dtype=torch.float64)
    fmodel, params = lrpfunc.functionalize(model, clean)
    signs = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)
    found = circuits.patching(fmodel, params, clean, corrupted, lambda y: y * signs, rules.epsilon(0), at="0")["0"]
    close(found.sum(1), ((model(clean) - model(corrupted)) @ signs).detach())


def test_a_function_as_target_where_the_output_is_zero():
    """The corrupted run's logit is zero: what the clean values would add is not."""
    model = nn.Sequential(nn.Linear(4, 5, bias=False), nn.Linear(5, 3, bias=False)).double()
    clean, corrupted = torch.ones(2, 4, dtype=torch.float64), torch.zeros(2, 4, dtype=torch.float64)
    fmodel, params = lrpfunc.functionalize(model, clean)
    signs = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)
    found = circuits.patching(fmodel, params, clean, corrupted, lambda y: y * signs, rules.epsilon(0), at="0")["0"]
    close(found.sum(1), (model(clean) @ signs).detach())


def test_the_inputs_are_not_asked_for(recwarn):
    fmodel, params, x = subject("branches")
    circuits.patching(fmodel, params, x, x.flip(0), 1, composites.epsilon_plus_flat(), at="narrow")
    assert not recwarn.list
    trail = lrpfunc.record(fmodel, params, x, composites.epsilon_plus_flat(), at="narrow")
    nothing, inner = trail.pull(1, inputs=False)
    several, inside = trail.pull_each([1, 2], inputs=False)
    assert nothing is several is None
    close(inside["narrow"][0], inner["narrow"])


def test_runs_of_other_shapes():
    fmodel, params = lrpfunc.functionalize(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.ones(2, 4))
    with pytest.raises(InputError, match=r"runs of the same shapes, but '0' is \(2, 3\) in the clean run and \(5, 3\)"):
        circuits.patching(fmodel, params, torch.ones(2, 4), torch.ones(5, 4), 0, rules.epsilon(), at="0")


def test_values_that_do_not_fit():
    fmodel, params = lrpfunc.functionalize(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.ones(2, 4))
    with pytest.raises(InputError, match=r"'0' gives instead must be a .* torch.float32 \(2, 3\), but is .* \(3,\)"):
        circuits.patched(fmodel, params, torch.ones(2, 4), {"0": torch.ones(3)})
    with pytest.raises(InputError, match="but is NoneType"):
        circuits.patched(fmodel, params, torch.ones(2, 4), {"0": None})
    with pytest.raises(InputError, match=r"must be a tensor torch.float32 \(2, 3\), but is torch.float64 \(2, 3\)"):
        circuits.patched(fmodel, params, torch.ones(2, 4), {"0": torch.ones(2, 3).double()})
    with pytest.raises(InputError, match="must be a mapping of names to tensors, but is list"):
        circuits.patched(fmodel, params, torch.ones(2, 4), ["0"])
    with pytest.raises(RuleError, match="no layer is called '7'"):
        circuits.patched(fmodel, params, torch.ones(2, 4), {"7": torch.ones(2, 3)})


# -- lenses -----------------------------------------------------------------------------------------------------------


class Stream(nn.Module):
    """Residual blocks of attention and an MLP."""

    def __init__(self, layers=3, width=6):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(_Block(width) for _ in range(layers))
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x)[:, -1]


class _Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.q, self.v, self.up, self.down = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x):
        pattern = torch.softmax(self.q(x) @ x.transpose(1, 2), -1)
        x = x + pattern @ self.v(x)
        return x + self.down(nn.functional.gelu(self.up(x)))


@pytest.fixture(scope="module")
def stream():
    model = Stream().double().eval()
    prompts = torch.randn(5, 4, 6, dtype=torch.float64)
    return model, *lrpfunc.functionalize(model, prompts), prompts


NAMES = ["layers.0", "layers.1", "layers.2"]


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_under_the_gradient_a_lens_is_the_jacobian(stream, chunk_size):
    model, fmodel, params, prompts = stream
    found = circuits.lens(
        fmodel, params, prompts.split([2, 3]), _gradient_everywhere(fmodel), at=NAMES, chunk_size=chunk_size
    )
    assert (found.n_prompts, found.source_layers, found.d_model) == (5, ("layers.0", "layers.1"), 6)
    for number, layer in enumerate(found.source_layers):
        total = torch.zeros(6, 6, dtype=torch.float64)
        for prompt in prompts:
            h = prompt[None]
            for block in model.layers[: number + 1]:
                h = block(h)

            def after(last, h=h, number=number):
                h = torch.cat([h[:, :-1], last[None, None]], 1)
                for block in model.layers[number + 1 :]:
                    h = block(h)
                return h[0, -1]

            total += jacrev(after)(h[0, -1]).detach()
        torch.testing.assert_close(found.J[number], total / 5, rtol=1e-10, atol=1e-10)
        residual = torch.randn(2, 6, dtype=torch.float64)
        close(found(layer, residual), residual @ (total / 5).T)


def test_under_a_composite_a_row_is_a_pullback(stream):
    _, fmodel, params, prompts = stream
    found = circuits.lens(fmodel, params, [prompts], composites.cp_lrp(), at=NAMES, position=1)
    trail = lrpfunc.record(fmodel, params, prompts, composites.cp_lrp(), at=NAMES)
    for i in (0, 4):
        start = torch.zeros_like(trail.values["layers.2"])
        start[:, 1, i] = 1
        _, inner = trail.pull({"layers.2": lrpfunc.Flow(coefficient=start)}, form="coefficient")
        close(found.J[0, i], inner["layers.0"][:, 1].mean(0))


@pytest.mark.parametrize("position", [7, -5, 1.5, None, True])
def test_a_position_that_there_is_not(stream, position):
    _, fmodel, params, prompts = stream
    with pytest.raises(InputError, match=f"a number from -4 to 3 at 'layers.0', but is {position}"):
        circuits.lens(fmodel, params, [prompts], composites.cp_lrp(), at=NAMES, position=position)


def test_a_lens_is_saved_and_read(stream, tmp_path):
    _, fmodel, params, prompts = stream
    found = circuits.lens(fmodel, params, [prompts], composites.cp_lrp(), at="layers.?:residual")
    assert found.source_layers == ("layers.0:residual", "layers.1:residual")
    found.save(tmp_path / "lens.pt")
    kept = torch.load(tmp_path / "lens.pt", weights_only=True)
    assert list(kept) == ["J", "n_prompts", "source_layers", "d_model"]
    again = circuits.load_lens(tmp_path / "lens.pt")
    assert torch.equal(again.J, found.J)
    assert (again.n_prompts, again.source_layers) == (found.n_prompts, found.source_layers)


@pytest.mark.parametrize(
    "content",
    [{"J": torch.ones(1, 2, 2)}, {"J": torch.ones(1, 2, 3), "n_prompts": 1, "source_layers": ["a"], "d_model": 2}, [1]],
)
def test_files_that_are_no_lens(content, tmp_path):
    torch.save(content, tmp_path / "lens.pt")
    with pytest.raises(FileError, match=r"lens\.pt is no lens"):
        circuits.load_lens(tmp_path / "lens.pt")
    with pytest.raises(FileError, match=r"absent\.pt is no lens that can be read: FileNotFoundError"):
        circuits.load_lens(tmp_path / "absent.pt")


def test_lenses_that_cannot_be(stream):
    _, fmodel, params, prompts = stream
    with pytest.raises(InputError, match="a lens needs one prompt and one source layer at least"):
        circuits.lens(fmodel, params, [], composites.cp_lrp(), at=NAMES)
    with pytest.raises(InputError, match="a lens needs one prompt and one source layer"):
        circuits.lens(fmodel, params, [prompts], composites.cp_lrp(), at="layers.1")
    with pytest.raises(InputError, match=r"must be \(batch, length, 4\), but 'layers.0' is \(5, 4, 6\)"):
        circuits.lens(fmodel, params, [prompts], composites.cp_lrp(), at=["layers.0", "head"])
    made = circuits.Lens(torch.eye(3)[None], 1, ("a",))
    with pytest.raises(InputError, match="the lens has no layer 'b', but a"):
        made("b", torch.ones(3))
    with pytest.raises(InputError, match=r"takes residuals \(\.\.\., 3\), but got \(2, 4\)"):
        made("a", torch.ones(2, 4))
