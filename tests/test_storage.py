"""Saved work: what is loaded computes the same, also in another process; other files are refused in a line."""

import collections
import contextlib
import dataclasses
import functools
import json
import math
import os
import re
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lrpfunc
from lrpfunc import composites, rules
from lrpfunc.errors import FileError, RuleError
from lrpfunc.program import Variable
from lrpfunc.storage import names
from lrpfunc.storage.decoding import Decoder
from lrpfunc.storage.encoding import Encoder
from tests import cases
from tests.samples import SAMPLES
from tests.test_pickling import MADE, Output, with_dataclasses
from tests.traced import assert_equal, x_of


@pytest.fixture
def path(tmp_path):
    return tmp_path / "saved.safetensors"


def sent(what, path):
    lrpfunc.save(path, what)
    return lrpfunc.load(path)


def normed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    model[1].running_mean.uniform_(-1, 1)
    return model.eval()


IMAGES = x_of(2, 1, 4, 4)


# -- there and back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", dict.fromkeys(case.network for case in cases.CASES))
def test_programs_and_prepared_explanations_of_all_networks(network, path):
    """One composite that the table has for it: bit for bit what they were."""
    case = next(case for case in cases.CASES if case.network == network)
    fmodel, params, x = case.subject.fmodel, case.subject.params, case.subject.x
    again, same = sent((fmodel, params), path)
    assert str(again) == str(fmodel)
    assert again.parameter_paths == fmodel.parameter_paths
    assert_equal(same, params)
    assert_equal(lrpfunc.attribute(again, same, x, case.rules), lrpfunc.attribute(fmodel, params, x, case.rules))
    explain = lrpfunc.prepare(fmodel, params, case.rules)
    assert_equal(sent(explain, path)(x), explain(x))
    assert str(sent(fmodel, path)) == str(fmodel)


@pytest.mark.parametrize("key", SAMPLES)
def test_every_operation(key, path):
    """The program of a sample of each row of the table, its value bit for bit."""
    fmodel, params = SAMPLES[key].trace()
    again, same = sent((fmodel, params), path)
    torch.testing.assert_close(
        again(same, *SAMPLES[key].inputs), fmodel(params, *SAMPLES[key].inputs), rtol=0, atol=0, equal_nan=True
    )
    assert [e.function for e in again.equations] == [e.function for e in fmodel.equations]
    assert [e.source for e in again.equations] == [e.source for e in fmodel.equations]


def test_canonical_forms_and_their_way_back(path):
    fmodel, params = lrpfunc.functionalize(normed(), IMAGES)
    canonical = lrpfunc.canonize(fmodel, params)
    again = sent(canonical, path)
    assert str(again.report) == str(canonical.report)
    assert again.report.subjects == canonical.report.subjects
    assert_equal(again.fmodel(again.params, IMAGES), canonical.fmodel(canonical.params, IMAGES))
    assert_equal(again.restore(again.params), params)
    changed = {**again.params, "4.weight": again.params["4.weight"] * 2}
    assert_equal(again.restore(changed), canonical.restore({**canonical.params, "4.weight": changed["4.weight"]}))
    twice = sent(again, path)
    assert_equal(twice.restore(twice.params), params)


@pytest.mark.parametrize("rule", [r for r in MADE if "exp)" not in r.label], ids=lambda rule: rule.label)
def test_rules(rule):
    again = there_and_back(rule)
    assert (again.label, again.gives, again.any_layout) == (rule.label, rule.gives, rule.any_layout)
    assert again.forward.__code__ is rule.forward.__code__


def there_and_back(value):
    encoder = Encoder({})
    content = json.loads(json.dumps(encoder.encode(value), allow_nan=False))
    variables = json.loads(json.dumps(encoder.variables))
    return Decoder(encoder.tensors, variables).decode(content)


PLAIN = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.complex_numbers(allow_nan=False)
)
VALUES = st.recursive(
    PLAIN
    | st.sampled_from([torch.float32, torch.complex64, torch.strided, torch.channels_last, torch.device("cpu"), ...]),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner)
        | st.builds(slice, inner, inner, inner)
    ),
    max_leaves=20,
)


@settings(deadline=None, derandomize=True, database=None)
@given(VALUES)
def test_values(value):
    again = there_and_back(value)
    assert type(again) is type(value)
    assert again == value


def test_numbers_that_json_does_not_know_and_tensors_of_all_kinds():
    assert math.isnan(there_and_back([float("nan")])[0])
    shared = torch.arange(6.0).reshape(2, 3)
    given_tensors = {
        "complex": torch.tensor([1 + 2j]).conj(),
        "turned": shared.t(),
        "expanded": torch.ones(1).expand(3),
        "empty": torch.empty(0, 2),
        "number": torch.tensor(3, dtype=torch.int16),
        "truth": torch.tensor([True]),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "negative": torch.tensor([1 + 2j]).imag.neg(),
    }
    for name, tensor in given_tensors.items():
        again = there_and_back(tensor)
        assert torch.equal(again, tensor), name
        assert again.dtype == tensor.dtype
    one, other, same = there_and_back([shared, shared.clone(), shared])
    assert one is same
    assert one is not other


def test_tied_parameters_are_one_in_the_file_and_stay_one(path):
    weight = torch.randn(3, 3)
    fmodel, params = lrpfunc.trace(lambda p, x: x @ p["a"] @ p["b"], {"a": weight, "b": weight}, x_of())
    again, same = sent((fmodel, params), path)
    assert same["a"] is same["b"]
    assert len(safetensors.torch.load_file(path)) == 1
    assert_equal(again(same, x_of()), fmodel(params, x_of()))


def test_views_of_one_memory(path):
    whole = torch.randn(2, 3, 3)
    fmodel, params = lrpfunc.trace(lambda p, x: x @ p["a"] @ p["b"], {"a": whole[0], "b": whole[1].t()}, x_of())
    again, same = sent((fmodel, params), path)
    assert_equal(again(same, x_of()), fmodel(params, x_of()))


def test_parameters_of_any_structure(path):
    tree = {"layers": [(torch.eye(3), None), (torch.ones(3, 2), torch.zeros(2))], "scale": torch.tensor(2.0)}

    def f(p, x):
        return (x @ p["layers"][0][0] @ p["layers"][1][0] + p["layers"][1][1]) * p["scale"]

    fmodel, params = lrpfunc.trace(f, tree, x_of())
    again, same = sent((fmodel, params), path)
    assert_equal(same, params)
    assert_equal(again(same, x_of()), fmodel(params, x_of()))
    assert set(safetensors.torch.load_file(path)) == {"layers.0.0", "layers.1.0", "layers.1.1", "scale"}
    explain = lrpfunc.prepare(fmodel, params, rules.epsilon())
    assert_equal(sent(explain, path)(x_of()), explain(x_of()))


def test_explanations_with_ranges_and_tensors_in_rules(path):
    canonical = lrpfunc.canonize(*lrpfunc.functionalize(normed(), IMAGES))
    box = composites.epsilon_gamma_box(torch.full((1, 1, 1), -3.0), 3.0)
    explain = lrpfunc.prepare(canonical.fmodel, canonical.params, box, input_range=(-3, 3))
    again = sent(explain, path)
    assert again.plan.ranges == explain.plan.ranges
    assert_equal(again(IMAGES, at=["0"]), explain(IMAGES, at=["0"]))
    assert_equal(again.each(IMAGES, [0, 2]), explain.each(IMAGES, [0, 2]))


def test_the_file_is_a_state_dict_under_the_parameters_names(path):
    fmodel, params = lrpfunc.functionalize(normed(), IMAGES)
    lrpfunc.save(path, (fmodel, params))
    assert_equal(safetensors.torch.load_file(path), {name: params[name] for name in sorted(params)})


SCRIPT = """
import sys, torch, lrpfunc, tests.test_pickling
given, expected = torch.load(sys.argv[2], weights_only=False)
fmodel, params = lrpfunc.load(sys.argv[1])
assert torch.equal(fmodel(params, given).logits, expected)
"""


def test_another_process_has_all_that_it_needs(path, tmp_path):
    given_output, params = Output(x_of(2, 4)), {"w": torch.eye(4) * 2}
    fmodel, params = lrpfunc.trace(with_dataclasses, params, given_output)
    lrpfunc.save(path, (fmodel, params))
    torch.save((given_output, fmodel(params, given_output).logits), tmp_path / "given.pt")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", SCRIPT, str(path), str(tmp_path / "given.pt")]
    found = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


# -- what is refused --------------------------------------------------------------------------------------------------


def test_what_is_no_program_cannot_be_saved(path):
    with pytest.raises(
        FileError,
        match=r"^save takes a program, \(fmodel, params\), what canonize returned or what prepare returned, but got "
        r"Linear\.$",
    ):
        lrpfunc.save(path, nn.Linear(2, 2))
    assert not path.exists()


def test_rules_and_stabilizers_of_ones_own_are_code(path):
    fmodel, params = lrpfunc.functionalize(nn.Linear(3, 2), x_of())
    mine = rules.zplus()._replace(label="mine()")
    with pytest.raises(
        RuleError,
        match=r"^rule 'mine\(\)' is code of your own, which a file without code cannot hold\. Save the program with "
        r"its parameters, and prepare it again when it is loaded\.$",
    ):
        lrpfunc.save(path, lrpfunc.prepare(fmodel, params, mine))
    with pytest.raises(
        RuleError, match=r"^stabilizer 'exp' is code of your own, which a file without code cannot hold\. "
    ):
        lrpfunc.save(path, lrpfunc.prepare(fmodel, params, rules.epsilon(torch.exp)))
    assert not list(path.parent.iterdir())


@dataclasses.dataclass
class Local:
    logits: torch.Tensor


def test_what_a_file_cannot_hold(path):
    encoder = Encoder({})
    for value, message in [
        (object(), r"^a file cannot hold <object object at .*>, of class object\.$"),
        ({1, 2}, r"^a file cannot hold \{1, 2\}, of class set\.$"),
        (
            torch.empty(2, device="meta"),
            r"^a file holds dense tensors with values, but one is torch\.strided on meta\.$",
        ),
        (torch.eye(2).to_sparse(), r"^a file holds dense tensors with values, but one is torch\.sparse_coo on cpu\.$"),
        (os.system, r"^'posix:system' is no function of programs$"),
        (lambda x: x, r"^'tests\.test_storage:.*<lambda>' is no function of programs$"),
        (nn.Linear, r"^'torch\.nn\.modules\.linear:Linear' is no dataclass and no named tuple$"),
    ]:
        with pytest.raises(FileError, match=message):
            encoder.encode(value)


def test_a_class_that_another_one_hides():
    hidden = dataclasses.make_dataclass("Local", ["logits"], namespace={"__module__": __name__})
    with pytest.raises(FileError, match=r"^a file cannot hold 'tests\.test_storage:Local', which is another one by "):
        Encoder({}).encode(hidden)


def test_places_that_cannot_be_written(path, tmp_path):
    fmodel, params = lrpfunc.functionalize(nn.Linear(3, 2), x_of())
    absent = tmp_path / "absent" / "saved.safetensors"
    with pytest.raises(FileError, match=rf"^{re.escape(str(absent))} cannot be written: No such file or directory\.$"):
        lrpfunc.save(absent, (fmodel, params))
    path.mkdir()
    with pytest.raises(FileError, match=rf"^{re.escape(str(path))} cannot be written: .*directory"):
        lrpfunc.save(path, (fmodel, params))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_file_that_is_there_is_replaced_as_a_whole(path):
    fmodel, params = lrpfunc.functionalize(nn.Linear(3, 2), x_of())
    path.write_text("something else")
    lrpfunc.save(path, (fmodel, params))
    assert_equal(lrpfunc.load(path)[1], params)
    before = path.read_bytes()
    with pytest.raises(RuleError):
        lrpfunc.save(path, lrpfunc.prepare(fmodel, params, rules.epsilon(torch.exp)))
    assert path.read_bytes() == before


def test_files_of_others(path):
    name = re.escape(str(path))
    with pytest.raises(FileError, match=rf"^there is no file {name}\.$"):
        lrpfunc.load(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(FileError, match=rf"^{name} is no file of lrpfunc\.save, or a damaged one \(.*\)\.$"):
        lrpfunc.load(path)
    safetensors.torch.save_file({"w": torch.ones(2)}, path)
    with pytest.raises(FileError, match=rf"^{name} holds tensors, but no program: lrpfunc\.save did not write it\.$"):
        lrpfunc.load(path)
    for header in ("{", "[]", "{}", '{"format": "1"}', "3"):
        safetensors.torch.save_file({"w": torch.ones(2)}, path, {"lrpfunc": header})
        with pytest.raises(FileError, match=rf"^{name} is damaged: its header cannot be read\.$"):
            lrpfunc.load(path)


@functools.cache
def linear():
    return lrpfunc.functionalize(nn.Linear(3, 2), x_of())


def edited(path, change):
    """A saved linear layer whose header was changed."""
    lrpfunc.save(path, linear())
    with safetensors.safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["lrpfunc"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    safetensors.torch.save_file(tensors, path, {"lrpfunc": change(json.dumps(header))})


VERSIONS = f"lrpfunc {lrpfunc.__version__} and torch {torch.__version__}"
BY = rf"\(saved by {re.escape(VERSIONS)}\) cannot be loaded: "


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"format": 1', '"format": 7', r"its format is 7, and this lrpfunc reads up to 1: update it\."),
        ("aten::linear.default", "aten::fancy.default", r"this torch \(.*\) has no operator 'aten::fancy\.default'\."),
        ("aten::linear.default", "aten::from_file.default", r"'aten::from_file\.default' reads a file, which no model"),
        ('"operator": "aten::linear.default"', '"function": "os:system"', r"'os:system' is no function of programs\."),
        ('"operator": "aten::linear.default"', '"pickle": "x"', r"nothing is known of 'pickle'\."),
        ('"kind": "traced"', '"kind": "new"', r"nothing is known of the kind 'new'\."),
        ('"kind": "traced"', '"kind": "prepared"', r"it is damaged\."),
        ('"class": "Program"', '"class": "pathlib:Path"', r"'pathlib:Path' is no dataclass and no named tuple\."),
        ('"class": "Program"', '"class": "Flow2"', r"there is no class 'Flow2'"),
        (
            '"class": "Program"',
            '"class": "this_is_no_module:Thing"',
            r"there is no class Thing of this_is_no_module\. Import this_is_no_module first, if you trust it\.",
        ),
        ('"variable": "inputs.0"', '"variable": "elsewhere"', r"it is damaged\."),
        ('"tensor": "weight"', '"tensor": "wait"', r"it is damaged\."),
        ('"torch": "float32"', '"torch": "load"', r"torch has no dtype or layout 'load'\."),
    ],
)
def test_a_changed_header_is_one_line(path, old, new, message):
    edited(path, lambda text: text.replace(old, new))
    with pytest.raises(FileError, match=rf"^{re.escape(str(path))} {BY}{message}"):
        lrpfunc.load(path)


def test_an_ill_formed_program_is_refused(path):
    """Equations whose results nobody makes."""
    made, nothing = '"outputs": {"tuple": [{"variable": "linear.0"}]}', '"outputs": {"tuple": []}'
    edited(path, lambda text: text.replace(made, nothing))
    with pytest.raises(FileError, match=rf"^{re.escape(str(path))} {BY}the file made an ill-formed program: "):
        lrpfunc.load(path)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_mutations_of_a_header_give_no_other_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("mutated") / "saved.safetensors"

    def mutate(text):
        for _ in range(data.draw(st.integers(1, 3))):
            start = data.draw(st.integers(0, len(text) - 1))
            length = data.draw(st.integers(0, 6))
            text = text[:start] + data.draw(st.text('{}[]":,0123456789abc.', max_size=3)) + text[start + length :]
        return text

    edited(path, mutate)
    with contextlib.suppress(FileError):
        lrpfunc.load(path)


def test_bytes_cut_or_turned_over_are_refused(path):
    lrpfunc.save(path, lrpfunc.functionalize(nn.Linear(3, 2), x_of()))
    whole = path.read_bytes()
    for length in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(FileError, match=r"^\S+ is no file of lrpfunc\.save, or a damaged one"):
            lrpfunc.load(path)


def test_names_that_are_no_classes_or_functions():
    for name in (
        "math:__loader__",
        "operator:attrgetter",
        "operator:methodcaller",
        "torch:load",
        "torch:symeig",
        "x",
        "",
    ):
        with pytest.raises(FileError, match=r" is no function of programs$"):
            names.function_named(name)
    assert names.function_named("operator:mul")(2, 3) == 6
    assert names.function_named("math:floor")(2.5) == 2
    with pytest.raises(FileError, match=r"has no operator 'linear'$"):
        names.operator_named("linear")
    point = collections.namedtuple("point", "x y")
    with pytest.raises(FileError, match=r"^there is no class point of tests\.test_storage$"):
        Encoder({}).encode(point(1, 2))
    assert isinstance(there_and_back(Variable("a", (2, "batch"), torch.float32)), Variable)


def test_tensors_go_where_they_are_wanted(path):
    lrpfunc.save(path, lrpfunc.functionalize(nn.Linear(3, 2), x_of()))
    assert lrpfunc.load(path, device=torch.device("cpu"))[1]["weight"].device.type == "cpu"
    with pytest.raises(FileError, match=r"saved\.safetensors is no file of lrpfunc\.save, or a damaged one|cannot be"):
        lrpfunc.load(path, device="nowhere")
