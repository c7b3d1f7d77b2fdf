"""Layers on devices, parameters that are fetched, and memory that is planned: the explanation stays what it was."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import lrpfunc
from lrpfunc import circuits, composites, rules, text
from lrpfunc.errors import FileError, InputError, ParameterError, TargetError
from lrpfunc.program import check
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


def test_files_that_change_are_not_read(tmp_path):
    """What was written meanwhile may be another model, of which half an explanation would be."""
    fmodel, params, x = small()
    program, left = lrpfunc.offload(fmodel, params, files=write(tmp_path, params))
    write(tmp_path, {name: 2 * leaf for name, leaf in params.items()})
    os.utime(tmp_path / "model.safetensors", ns=(0, 10**18))  # however coarse the clock of the disk is
    with pytest.raises(FileError, match=r"^.*model\.safetensors has changed since its parameters were offloaded"):
        lrpfunc.attribute(program, left, x, rules.epsilon())
    again, left = lrpfunc.offload(fmodel, params, files=tmp_path)
    assert torch.equal(again(left, x), fmodel({name: 2 * leaf for name, leaf in params.items()}, x))


def test_files_of_another_model(tmp_path):
    """Else all parameters would stay in memory, and nobody would know."""
    fmodel, params, _ = small()
    write(tmp_path, {f"model.{name}": leaf for name, leaf in params.items()})
    with pytest.raises(ParameterError, match=r"^the files have none of the parameters, such as '0.bias'\. Did"):
        lrpfunc.offload(fmodel, params, files=tmp_path)


def test_parameters_without_numbers_go_nowhere():
    fmodel, params, x = small()
    on_meta = {name: leaf.to("meta") for name, leaf in params.items()}
    program, left = lrpfunc.place(fmodel, on_meta, "cuda:0")
    assert all(leaf.is_meta for leaf in left.values())
    found = lrpfunc.footprint(program, left, x.to("meta"), rules.epsilon())
    assert found.parameters == sum(leaf.nbytes for leaf in params.values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is such a device")
def test_devices_that_are_elsewhere():
    fmodel, params, _ = small()
    with pytest.raises(ParameterError, match=r"^parameters cannot go to cuda:0: .+\.$"):
        lrpfunc.place(fmodel, params, "cuda:0")


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
