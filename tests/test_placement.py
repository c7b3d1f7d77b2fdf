"""Layers on devices, parameters that are fetched, and memory that is planned: the explanation stays what it was."""

import copy
import json
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import lrpfunc
from lrpfunc import circuits, composites, rules, text
from lrpfunc.errors import FileError, InputError, ParameterError, TargetError
from lrpfunc.program import check, functions
from tests import big_models, transformer_zoo
from tests.cases import NETWORKS, subject

NETS = [pytest.param(n, marks=pytest.mark.slow if n == "torchvision_vit" else ()) for n in NETWORKS]


def write(folder, params, name="model.safetensors"):
    save_file({name: leaf.clone().contiguous() for name, leaf in params.items()}, folder / name)
    return folder


def alternating(fmodel) -> dict[str, str]:
    """Two names of one device, which count as two: every third equation is on the other one."""
    return {"*": "cpu", **dict.fromkeys(fmodel.names()[::3], "cpu:0")}


def small():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3))
    return (*lrpfunc.functionalize(model, torch.ones(1, 4)), torch.randn(6, 4))


def language_model():
    ids = torch.randint(1, 50, (2, 7), generator=torch.Generator().manual_seed(0))
    return (*lrpfunc.functionalize(transformer_zoo.build("llama"), ids), ids)


# -- one explanation, wherever it is computed -------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETS)
def test_wherever_layers_and_parameters_are_the_explanation_is_the_plain_one(network, tmp_path):
    fmodel, params, x = subject(network)
    rules = composites.suggest(fmodel).composite
    ways = [
        lrpfunc.place(fmodel, params, alternating(fmodel)),
        lrpfunc.offload(fmodel, params, alternating(fmodel)),
        lrpfunc.offload(fmodel, params, files=write(tmp_path, params)),
        lrpfunc.offload(fmodel, params, "cpu:0", files=tmp_path),
    ]
    for checkpoint in (None, 3):
        plain = lrpfunc.attribute(fmodel, params, x, rules, 1, checkpoint=checkpoint)
        for program, left in ways:
            assert torch.equal(lrpfunc.attribute(program, left, x, rules, 1, checkpoint=checkpoint), plain)


def test_a_language_model_is_explained_from_sharded_files(tmp_path):
    """Token ids, a table that is the last layer as well, masks and places made of sizes."""
    fmodel, params, ids = language_model()
    names = list(params)
    write(tmp_path, {name: params[name] for name in names[::2]}, "model-1.safetensors")
    write(tmp_path, {name: params[name] for name in names[1::2]}, "model-2.safetensors")
    index = {"weight_map": {name: f"model-{1 + i % 2}.safetensors" for i, name in enumerate(names)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    write(tmp_path, params, "consolidated.safetensors")  # not in the index
    without_numbers = {name: leaf.to("meta") for name, leaf in params.items()}
    program, left = lrpfunc.offload(fmodel, without_numbers, files=tmp_path)
    assert left == {}
    rules, target = composites.attn_lrp(), text.token(3)
    plain, inner = lrpfunc.attribute(fmodel, params, ids, rules, target, at="model.layers.0")
    for checkpoint in (None, 4, 100):
        got, at = lrpfunc.attribute(program, left, ids, rules, target, at="model.layers.0", checkpoint=checkpoint)
        assert torch.equal(got, plain)
        assert torch.equal(at["model.layers.0"], inner["model.layers.0"])


def test_blocks_of_a_language_model_are_on_devices_by_their_paths():
    fmodel, params, ids = language_model()
    devices = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "cpu:0", "lm_head": "cpu:0"}
    program, placed = lrpfunc.place(fmodel, params, devices)
    moved = [e.arguments[0].shape for e in program.equations if e.operator == "moved"]
    stream = ("batch", "length", transformer_zoo.WIDTH)
    assert moved.count(stream) == 1  # the residual stream, between the blocks
    rules, target = composites.attn_lrp(), text.token(3)
    plain = lrpfunc.attribute(fmodel, params, ids, rules, target)
    assert torch.equal(lrpfunc.attribute(program, placed, ids, rules, target), plain)


def test_what_stands_on_explanations_takes_such_programs_as_well(tmp_path):
    fmodel, params, x = small()
    program, left = lrpfunc.offload(fmodel, params, alternating(fmodel), files=write(tmp_path, params))
    epsilon = rules.epsilon()
    assert torch.equal(program(left, x), fmodel(params, x))
    trail = lrpfunc.record(program, left, x, epsilon, at="2")
    relevance, inner = trail.pull(1)
    below, _ = trail.pull({"2": inner["2"]}, edit={"2": torch.ones(5)})
    torch.testing.assert_close(below, relevance)
    plain = lrpfunc.attribute(fmodel, params, x, epsilon, 1)
    assert torch.equal(lrpfunc.prepare(program, left, epsilon)(x, 1), plain)
    each = torch.func.vmap(lambda one: lrpfunc.attribute(program, left, one[None], epsilon, 1)[0])(x)
    torch.testing.assert_close(each, plain)
    one, other = (
        torch.func.grad(lambda x, f=f, p=p: lrpfunc.with_rules(f, epsilon)(p, x)[:, 1].sum())(x)
        for f, p in ((program, left), (fmodel, params))
    )
    assert torch.equal(one, other)
    assert torch.equal(lrpfunc.attribute(pickle.loads(pickle.dumps(program)), left, x, epsilon, 1), plain)


def test_graphs_of_tokens_fetch_what_they_need():
    fmodel, params, ids = language_model()
    program, left = lrpfunc.offload(fmodel, params, "cpu:0")
    rules, target = composites.attn_lrp(), text.token(3)
    one, other = (circuits.graph(f, p, ids[:1], target, rules) for f, p in ((fmodel, params), (program, left)))
    assert torch.equal(one.inputs, other.inputs)
    assert all(torch.equal(one.nodes[name], other.nodes[name]) for name in one.streams)


def test_factories_follow_the_dtype_that_parameters_have_in_files(tmp_path):
    fmodel, _ = lrpfunc.trace(lambda p, x: x @ p["w"] + x.new_ones(3), {"w": torch.eye(3)}, torch.ones(1, 3))
    double = {"w": 2 * torch.eye(3, dtype=torch.float64)}
    program, left = lrpfunc.offload(fmodel, double, files=write(tmp_path, double))
    x = torch.ones(1, 3, dtype=torch.float64)
    assert program(left, x).dtype == torch.float64
    assert torch.equal(program(left, x), fmodel(double, x))


def test_parameters_that_several_layers_read_are_fetched_for_each():
    def tied(p, x):
        return (x @ p["w"]).relu() @ p["w"].T

    fmodel, params = lrpfunc.trace(tied, {"w": torch.randn(3, 3)}, torch.ones(1, 3))
    program, _ = lrpfunc.offload(fmodel, params, "cpu:0")
    check(program)
    assert [e.name for e in program.equations if e.operator == "moved"] == ["moved", "w:1", "w:2"]


def test_nothing_is_fetched_that_is_there():
    fmodel, params, _ = small()
    program, _ = lrpfunc.offload(fmodel, params)
    assert [e.name for e in program.equations if e.operator == "moved"] == ["moved"]  # the input, wherever it is


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [lrpfunc.place, lrpfunc.offload])
def test_devices_that_there_are_not(function):
    fmodel, params, _ = small()
    with pytest.raises(ParameterError, match=r"^'gpu' is no device of torch, such as 'cpu' or 'cuda:0'\.$"):
        function(fmodel, params, "gpu")
    with pytest.raises(ParameterError, match=r"^None is no device of torch"):
        function(fmodel, params, {"0": None})
    with pytest.raises(ParameterError, match=r"^no layer matches the pattern '7'\. .*`print\(fmodel\)` lists all"):
        function(fmodel, params, {"7": "cpu"})
    with pytest.raises(ParameterError, match=r"^devices are one device, or \{name pattern: device\} with one pattern"):
        function(fmodel, params, {})
    with pytest.raises(ParameterError, match=r"^a program is needed, as functionalize returns it first, but got"):
        function(nn.Linear(2, 2), params, "cpu")


def test_files_that_do_not_fit(tmp_path):
    fmodel, params, _ = small()
    write(tmp_path, {"0.weight": torch.ones(4, 5)})
    with pytest.raises(ParameterError, match=r"^'0.weight' must have shape \(5, 4\), but has \(4, 5\) in .*mod"):
        lrpfunc.offload(fmodel, params, files=tmp_path)
    write(tmp_path, {"0.weight": params["0.weight"]})
    left = {name: leaf.to("meta") for name, leaf in params.items()}
    with pytest.raises(ParameterError, match=r"^'0.bias' has no numbers, and is in none of the files: give params\["):
        lrpfunc.offload(fmodel, left, files=tmp_path)
    traced, pair = lrpfunc.trace(lambda p, x: x * p[0], (torch.ones(1),), torch.ones(1))
    with pytest.raises(ParameterError, match=r"^parameters come from files by their names: they must be a flat dict"):
        lrpfunc.offload(traced, pair, files=tmp_path)


def test_files_that_cannot_be_read(tmp_path):
    fmodel, params, _ = small()
    with pytest.raises(FileError, match=r"^there is no file .*nothing\.safetensors\.$"):
        lrpfunc.offload(fmodel, params, files=tmp_path / "nothing.safetensors")
    with pytest.raises(FileError, match=r"^there is no safetensors file in "):
        lrpfunc.offload(fmodel, params, files=tmp_path)
    (tmp_path / "a.safetensors").write_text("something else")
    with pytest.raises(FileError, match=r"a\.safetensors cannot be read: "):
        lrpfunc.offload(fmodel, params, files=tmp_path)
    write(tmp_path, params, "a.safetensors")
    write(tmp_path, params, "b.safetensors")
    with pytest.raises(FileError, match=r"^'0.bias' is in .*a\.safetensors and in .*b\.safetensors: say which"):
        lrpfunc.offload(fmodel, params, files=tmp_path)
    program, left = lrpfunc.offload(fmodel, params, files=[tmp_path / "a.safetensors"])
    (tmp_path / "a.safetensors").unlink()
    with pytest.raises(FileError, match=r"^there is no file .*a\.safetensors\.$"):
        program(left, torch.ones(1, 4))
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(FileError, match=r"index\.json is no index of safetensors files\.$"):
        lrpfunc.offload(fmodel, params, files=tmp_path)


def test_a_program_that_reads_files_is_not_saved(tmp_path):
    """Whoever loads it would read files of their own."""
    fmodel, params, _ = small()
    with pytest.raises(FileError, match=r"^a file cannot hold Stored\('.*', '0\.weight'\), of class Stored\.$"):
        lrpfunc.save(tmp_path / "p", lrpfunc.offload(fmodel, params, files=write(tmp_path, params)))


# -- memory -----------------------------------------------------------------------------------------------------------


def test_a_footprint_by_hand():
    """One layer under LRP-0: z and its stabilized copy, the seed and what comes back."""
    fmodel, params = lrpfunc.trace(lambda p, x: x @ p["w"], {"w": torch.ones(100, 1)}, torch.ones(1, 100))
    found = lrpfunc.footprint(fmodel, params, torch.ones(50, 100), rules.epsilon(0), target=0)
    assert found.parameters == 100 * 4
    c, relevance = 50 * 100 * 4, 50 * 100 * 4
    assert c + relevance <= found.working <= c + relevance + 10 * 50 * 8  # some columns of outputs
    assert found.total == found.parameters + found.working


def test_segments_have_a_smaller_footprint_and_fetched_parameters_one_segments(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(16)])
    fmodel, params = lrpfunc.functionalize(model, torch.ones(1, 64))
    x, layer = torch.ones(256, 64), 64 * 64 * 4
    plain = lrpfunc.footprint(fmodel, params, x, rules.epsilon())
    split = lrpfunc.footprint(fmodel, params, x, rules.epsilon(), checkpoint=4)
    assert split.parameters == plain.parameters == 16 * (layer + 64 * 4)
    assert split.working < 0.6 * plain.working
    offloaded = lrpfunc.offload(fmodel, params, "cuda")
    values = split.working
    for count in (1, 4, 16):
        fetched = lrpfunc.footprint(*offloaded, x[:1], rules.epsilon(), checkpoint=count)
        assert 16 / count * layer <= fetched.working <= (16 / count + 1) * layer + 16 * 64 * 4 * 8
    assert lrpfunc.footprint(*offloaded, x, rules.epsilon(), checkpoint=4).working < values + 10 * layer
    from_files = lrpfunc.footprint(
        *lrpfunc.offload(fmodel, params, files=write(tmp_path, params)), x[:1], rules.epsilon(), checkpoint=16
    )
    assert from_files.parameters == 0
    assert from_files.working < 3 * layer


def test_a_footprint_changes_nothing_and_needs_no_numbers():
    fmodel, params, x = small()
    before = lrpfunc.attribute(fmodel, params, x, rules.epsilon())
    on_meta = {name: leaf.to("meta") for name, leaf in params.items()}
    with_numbers = lrpfunc.footprint(fmodel, params, x, rules.epsilon())
    assert lrpfunc.footprint(fmodel, on_meta, x.to("meta"), rules.epsilon()) == with_numbers
    assert torch.equal(lrpfunc.attribute(fmodel, params, x, rules.epsilon()), before)


def test_footprints_that_cannot_be_told():
    fmodel, params, x = small()
    with pytest.raises(TargetError, match="9"):
        lrpfunc.footprint(fmodel, params, x, rules.epsilon(), target=9)
    with pytest.raises(InputError, match=r"^memory cannot be told without numbers, as something depends on them: "):
        lrpfunc.footprint(fmodel, params, x, rules.epsilon(), target=lambda y: y * float(y.max()))


@pytest.mark.slow
def test_measured_memory_is_that_of_a_segment_and_as_planned():
    """All relevance is the same to rounding, as kernels take their way by how memory is aligned."""
    found = big_models.measure()
    (_, _, whole), *others = found
    for way, checkpoint, one in others:
        torch.testing.assert_close(torch.tensor(one["relevance"]), torch.tensor(whole["relevance"]))
        assert one["measured"] < 1.3 * one["planned"] + 50e6, (way, checkpoint)
    least = min(one["measured"] for way, _, one in found if way == "files")
    assert least < whole["measured"] / 4


# -- weights of few bits ----------------------------------------------------------------------------------------------


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
    fetched, left = lrpfunc.offload(program, packed, "cpu:0", files=write(tmp_path, packed))
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


def test_scales_that_are_packed_themselves():
    """Double quantization by hand: scales are places in a table, times a number for each block of them, and a shift."""
    fmodel, packed, *_ = packed_by_others()
    state = json.dumps({"nested_blocksize": 2, "nested_offset": 0.5}).encode()
    packed["2.weight.absmax"] = torch.tensor([3, 0, 255], dtype=torch.uint8)
    packed["2.weight.nested_absmax"] = torch.tensor([2.0, 4.0])
    packed["2.weight.nested_quant_map"] = torch.linspace(0, 1, 256)
    packed["2.weight.quant_state.bitsandbytes__nf4"] = torch.tensor(list(state), dtype=torch.uint8)
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
    with pytest.raises(ParameterError, match=r"^'2.weight' has 30 numbers of 4 bits, which do not fill 4 blocks\.$"):
        lrpfunc.unpack(fmodel, packed | {"2.weight.absmax": torch.ones(4)})
    with pytest.raises(
        ParameterError, match=r"^'2.weight' must have shape \(6, 5\), but has \(15, 1\), and is packed in"
    ):
        lrpfunc.unpack(fmodel, {name: leaf for name, leaf in packed.items() if name != "2.weight.absmax"})
    with pytest.raises(ParameterError, match=r"^params lacks '2.weight.quant_state.bitsandbytes__...', which says how"):
        lrpfunc.unpack(fmodel, packed | {"2.weight.nested_absmax": torch.ones(1)})
    with pytest.raises(ParameterError, match=r"^weights are unpacked by their names: parameters must be a flat dict"):
        lrpfunc.unpack(fmodel, list(packed.values()))
