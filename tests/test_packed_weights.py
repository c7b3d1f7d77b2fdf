"""Weights of few bits, packed here or by others, are explained as the weights that they are."""

import copy
import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import lrpfunc
from lrpfunc import composites, rules, text
from lrpfunc.errors import ParameterError
from lrpfunc.program import functions
from tests.cases import subject
from tests.test_placement import NETS, language_model, small


def test_packed_numbers_by_hand():
    fmodel, _ = lrpfunc.functionalize(nn.Linear(4, 2, bias=False), torch.ones(1, 4))
    params = {"weight": torch.tensor([[7.0, -7.0, 3.4, 0.0], [0.0, 0.0, 0.0, 0.0]])}
    program, packed = lrpfunc.quantize(fmodel, params, bits=4)
    assert packed["weight.int4"].tolist() == [[15 | 1 << 4, 11 | 8 << 4], [8 | 8 << 4, 8 | 8 << 4]]  # 7, -7, 3, 0
    assert packed["weight.scale"].tolist() == [[1.0], [0.0]]
    assert program(packed, torch.eye(4)).T.tolist() == [[7, -7, 3, 0], [0, 0, 0, 0]]
    _, packed = lrpfunc.quantize(fmodel, params, bits=4, group=2)
    torch.testing.assert_close(packed["weight.scale"], torch.tensor([[1.0, 3.4 / 7], [0.0, 0.0]]))
    program, packed = lrpfunc.quantize(fmodel, params)
    assert packed["weight.int8"].tolist() == [[127, -127, 62, 0], [0, 0, 0, 0]]  # 3.4 is 61.7 of 7 / 127
    torch.testing.assert_close(packed["weight.scale"], torch.tensor([[7 / 127], [0.0]]))


@pytest.mark.parametrize("network", NETS)
@pytest.mark.parametrize(("bits", "group"), [(8, None), (8, 1), (4, 2)])
def test_packed_weights_are_explained_as_the_weights_that_they_are(network, bits, group):
    fmodel, params, x = subject(network)
    even = {name for name, leaf in params.items() if leaf[:1].numel() % 2 == 0}
    readers = {e.name: [v.name.removeprefix("params.") for v in e.reads] for e in fmodel.equations}
    layers = [name for name, read in readers.items() if even & {r for r in read if r.endswith("weight")}]
    rules, program, packed = composites.suggest(fmodel).composite, fmodel, params
    for layer in layers:
        try:
            program, packed = lrpfunc.quantize(program, packed, layer, bits, group)
        except ParameterError as error:
            assert "has a weight" in str(error)  # noqa: PT017 (a normalization, or a table)
    restored = dict(params)
    for equation in program.equations:
        if equation.operator == "unpacked":
            of, scale = (packed[v.name.removeprefix("params.")] for v in equation.arguments[:2])
            restored[equation.name.partition(":")[0]] = functions.unpacked(of, scale, *equation.arguments[2:])
    if network not in ("recurrent", "steps"):  # whose weights are joined first
        assert any(leaf.dtype in (torch.int8, torch.uint8) for leaf in packed.values())
    for checkpoint in (None, 3):
        plain = lrpfunc.attribute(fmodel, restored, x, rules, 1, checkpoint=checkpoint)
        assert torch.equal(lrpfunc.attribute(program, packed, x, rules, 1, checkpoint=checkpoint), plain)


def test_packed_weights_are_fetched_and_saved(tmp_path):
    fmodel, params, ids = language_model()
    program, packed = lrpfunc.quantize(fmodel, params, bits=4, group=8)
    rules, target = composites.attn_lrp(), text.token(3)
    plain = lrpfunc.attribute(program, packed, ids, rules, target)
    assert torch.isfinite(plain).all()
    save_file(packed, tmp_path / "model.safetensors")
    fetched, left = lrpfunc.offload(program, packed, "cpu:0", files=tmp_path)
    assert torch.equal(lrpfunc.attribute(fetched, left, ids, rules, target, checkpoint=3), plain)
    lrpfunc.save(tmp_path / "saved", (program, packed))
    assert torch.equal(lrpfunc.attribute(*lrpfunc.load(tmp_path / "saved"), ids, rules, target), plain)


def test_packed_weights_take_their_own_memory_and_a_segments():
    model = nn.Sequential(*[nn.Linear(64, 64, bias=False) for _ in range(8)])
    fmodel, params = lrpfunc.functionalize(model, torch.ones(1, 64))
    x, layer = torch.ones(1, 64), 64 * 64 * 4
    for bits in (8, 4):
        program, packed = lrpfunc.quantize(fmodel, params, bits=bits)
        found = lrpfunc.footprint(program, packed, x, rules.epsilon(), checkpoint=8)
        assert found.parameters == 8 * (layer * bits // 32 + 64 * 4)
        assert found.working < 4 * layer


def test_weights_that_cannot_be_packed():
    fmodel, params, _ = small()
    with pytest.raises(ParameterError, match=r"^weights are packed to 8 or 4 bits, but bits is 2\.$"):
        lrpfunc.quantize(fmodel, params, bits=2)
    with pytest.raises(ParameterError, match=r"^group must divide the 4 numbers in a row of '0.weight', but is 3\.$"):
        lrpfunc.quantize(fmodel, params, group=3)
    with pytest.raises(ParameterError, match=r"^two numbers of 4 bits are a byte, but a row of '2.weight' has 5: "):
        lrpfunc.quantize(fmodel, params, bits=4)
    with pytest.raises(ParameterError, match=r"^no layer of the name '1' has a weight\. .*`print\(fmodel\)` lists all"):
        lrpfunc.quantize(fmodel, params, "1")
    traced, pair = lrpfunc.trace(lambda p, x: x @ p[0], (torch.ones(2, 2),), torch.ones(1, 2))
    with pytest.raises(ParameterError, match=r"^weights are packed by their names: parameters must be a flat dict"):
        lrpfunc.quantize(traced, pair)


def state(shape, blocksize, **more):
    """How bitsandbytes says in a tensor how it packed another one."""
    text = json.dumps({"blocksize": blocksize, "shape": shape, **more})
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def packed_by_others():
    """A small network, its parameters as bitsandbytes would have them, and as they are when they are unpacked."""
    fmodel, params, x = small()
    generator = torch.Generator().manual_seed(0)
    packed, weights = dict(params), dict(params)
    packed["0.weight"] = torch.randint(-127, 128, (5, 4), generator=generator, dtype=torch.int8)
    packed["0.SCB"] = torch.rand(5, generator=generator)
    weights["0.weight"] = packed["0.weight"] * packed["0.SCB"][:, None] / 127
    places = torch.randint(0, 16, (3, 5, 2), generator=generator)  # of 30 numbers of 4 bits
    table, blocks = torch.linspace(-1, 1, 16), torch.rand(3, generator=generator)
    fmodel, more = lrpfunc.functionalize(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6)), torch.ones(1, 4))
    packed, weights = ({name: p[name] for name in p if not name.startswith(("2", "4"))} for p in (packed, weights))
    packed |= {
        "2.weight": (places[..., 0] << 4 | places[..., 1]).to(torch.uint8).reshape(-1, 1),
        "2.weight.absmax": blocks,
        "2.weight.quant_map": table,
        "2.weight.quant_state.bitsandbytes__nf4": state([6, 5], 10),
        "2.bias": more["2.bias"],
    }
    weights |= {"2.weight": (table[places] * blocks[:, None, None]).reshape(6, 5), "2.bias": more["2.bias"]}
    return fmodel, packed, weights, x


def test_layouts_of_others_are_explained_as_the_weights_that_they_are():
    fmodel, packed, weights, x = packed_by_others()
    program, left = lrpfunc.unpack(fmodel, packed)
    assert set(left) == {"0.weight.int8", "0.weight.scale", "0.bias", "2.bias"} | {
        f"2.weight.{part}" for part in ("int4", "scale", "table")
    }
    plain = lrpfunc.attribute(fmodel, weights, x, rules.gamma(), 1)
    torch.testing.assert_close(lrpfunc.attribute(program, left, x, rules.gamma(), 1), plain)
    fetched = lrpfunc.offload(program, left, "cpu:0")
    torch.testing.assert_close(lrpfunc.attribute(*fetched, x, rules.gamma(), 1, checkpoint=2), plain)


def test_a_last_block_of_4_bits_may_be_smaller():
    """Ten rows of ten in blocks of 64: the second has 36 numbers, though 100 would be two blocks of 50 as well."""
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(0, 16, (100,), generator=generator)
    table, scales = torch.linspace(-1, 1, 16), torch.tensor([2.0, 3.0])
    fmodel, _ = lrpfunc.functionalize(nn.Linear(10, 10, bias=False), torch.ones(1, 10))
    packed = {
        "weight": (places[::2] << 4 | places[1::2]).to(torch.uint8)[:, None],
        "weight.absmax": scales,
        "weight.quant_map": table,
        "weight.quant_state.bitsandbytes__nf4": state([10, 10], 64),
    }
    program, left = lrpfunc.unpack(fmodel, packed)
    expected = (table[places] * torch.where(torch.arange(100) < 64, 2.0, 3.0)).reshape(10, 10)
    assert torch.equal(program(left, torch.eye(10)).T, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_that_others_packed_have_the_dtype_of_the_model(dtype):
    """Their scales are float32 whatever that is, and such a scale is the first leaf."""
    model = nn.Sequential(nn.Linear(4, 5, bias=False), nn.ReLU(), nn.Linear(5, 3)).to(dtype)
    x = torch.randn(6, 4, dtype=dtype)
    fmodel, params = lrpfunc.functionalize(model, x)
    numbers = torch.randint(-127, 128, (5, 4), dtype=torch.int8)
    scales = torch.rand(5)
    program, left = lrpfunc.unpack(fmodel, params | {"0.weight": numbers, "0.SCB": scales})
    weights = params | {"0.weight": (numbers * (scales[:, None] / 127)).to(dtype)}
    plain = lrpfunc.attribute(fmodel, weights, x, rules.gamma(), 1)
    for one in ((program, left), lrpfunc.offload(program, left, "cpu:0")):
        assert torch.equal(lrpfunc.attribute(*one, x, rules.gamma(), 1), plain)


def test_scales_that_are_packed_themselves():
    """Double quantization by hand: scales are places in a table, times a number for each block of them, and a shift."""
    fmodel, packed, *_ = packed_by_others()
    packed["2.weight.absmax"] = torch.tensor([3, 0, 255], dtype=torch.uint8)
    packed["2.weight.nested_absmax"] = torch.tensor([2.0, 4.0])
    packed["2.weight.nested_quant_map"] = torch.linspace(0, 1, 256)
    packed["2.weight.quant_state.bitsandbytes__nf4"] = state([6, 5], 10, nested_blocksize=2, nested_offset=0.5)
    _, left = lrpfunc.unpack(fmodel, packed)
    torch.testing.assert_close(left["2.weight.scale"], torch.tensor([2 * 3 / 255 + 0.5, 0.5, 4.5]))


@pytest.mark.dev
def test_tensors_of_torchao_and_bitsandbytes_are_explained_as_what_they_give_themselves():
    quantization, bnb = pytest.importorskip("torchao.quantization"), pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 32)).eval().requires_grad_(False)
    x = torch.randn(3, 128)
    fmodel, params = lrpfunc.functionalize(model, x)
    ways = []
    of_torchao = copy.deepcopy(model)
    quantization.quantize_(of_torchao, quantization.Int8WeightOnlyConfig())
    ways.append((of_torchao, {f"{i}.weight": of_torchao[i].weight.dequantize() for i in (0, 2)}))
    for kind in ("nf4", "fp4"):
        of_bnb, weights = copy.deepcopy(model), {}
        for i in (0, 2):
            layer = bnb.nn.Linear4bit(model[i].in_features, model[i].out_features, quant_type=kind)
            layer.weight = bnb.nn.Params4bit(model[i].weight.clone(), requires_grad=False, quant_type=kind)
            layer.bias = model[i].bias
            of_bnb[i] = layer.to("cpu")
            weights[f"{i}.weight"] = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        ways.append((of_bnb, weights))
    for packed, weights in ways:
        plain = lrpfunc.attribute(fmodel, params | weights, x, rules.gamma(), 1)
        program, left = lrpfunc.unpack(fmodel, dict(packed.state_dict()))
        assert torch.equal(lrpfunc.attribute(program, left, x, rules.gamma(), 1, checkpoint=2), plain)


def test_layouts_that_do_not_fit():
    fmodel, packed, *_ = packed_by_others()
    with pytest.raises(ParameterError, match=r"^params lacks the leaf '0.bias'\."):
        lrpfunc.unpack(fmodel, {name: leaf for name, leaf in packed.items() if name != "0.bias"})
    name = "2.weight.quant_state.bitsandbytes__nf4"
    for changed in ({"2.weight.absmax": torch.ones(4)}, {name: state([6, 5], 8)}, {name: state([5, 6], 10)}):
        with pytest.raises(ParameterError, match=r"^'2.weight' must have shape \(6, 5\), but \d blocks of (8|10) "):
            lrpfunc.unpack(fmodel, packed | changed)
    with pytest.raises(ParameterError, match=r"^'0.weight' is not packed row by row, but in the order 2 of an"):
        lrpfunc.unpack(fmodel, packed | {"0.weight_format": torch.tensor(2)})
    with pytest.raises(
        ParameterError, match=r"^'2.weight' must have shape \(6, 5\), but has \(15, 1\), and is packed in"
    ):
        lrpfunc.unpack(fmodel, {name: leaf for name, leaf in packed.items() if name != "2.weight.absmax"})
    with pytest.raises(ParameterError, match=r"^params lacks '2.weight.quant_state.bitsandbytes__...', which says how"):
        lrpfunc.unpack(fmodel, {key: leaf for key, leaf in packed.items() if key != name})
    with pytest.raises(ParameterError, match=r"^weights are unpacked by their names: parameters must be a flat dict"):
        lrpfunc.unpack(fmodel, list(packed.values()))
