"""Checkpoints as training scripts leave them: found, chosen, said and filled in, or refused in a line that says why."""

import argparse
import collections
import datetime
import enum
import functools
import io
import json
import os
import pathlib
import pickle
import random
import sys
import types
import uuid
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torchvision import models

from lrpfunc.errors import FileError, ModelError
from lrpfunc.pictures import classifiers, weights
from lrpfunc.pictures.weights import Checkpoint, choose, fill, foreign, read_state


class Net(nn.Module):
    """Layers in layers, a batch norm with its buffers, and parameters that a layer has not."""

    def __init__(self, classes=3, width=4):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        self.layer1 = nn.ModuleDict({"conv": nn.Conv2d(width, width, 3)})
        self.scale = nn.Parameter(torch.ones(width))
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        return self.head(self.layer1["conv"](self.stem(x)).mean((2, 3)) * self.scale)


def net(seed=0, **options):
    torch.manual_seed(seed)
    made = Net(**options)
    with torch.no_grad():
        for tensor in made.state_dict().values():
            tensor.copy_(torch.rand(tensor.shape) if tensor.dim() else torch.tensor(seed))
    return made


def prefixed(prefix, state):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def assert_filled(path, expected, **of):
    """A fresh model gets exactly these parameters, and its choice has these fields."""
    model = net(seed=99)
    choice = fill(model, read_state(str(path)))
    got = model.state_dict()
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor.to(got[name].dtype)), name
    assert {name: getattr(choice, name) for name in of} == of
    return choice


STATE = net(1).state_dict()
OTHER = net(2).state_dict()
OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(3), "step": torch.tensor(1.0)}}, "param_groups": [{"params": [0]}]}


class Stage(enum.Enum):
    TRAIN = 1


class Options(dict):
    """As the dicts with attributes of configuration libraries."""


class Config:
    """An object of somebody's training script."""

    def __init__(self):
        self.lr, self.inner = 0.1, {"a": [Stage.TRAIN]}


class Slots:
    __slots__ = ("a",)

    def __init__(self):
        self.a = 1


def averaged():
    return torch.optim.swa_utils.AveragedModel(net(1)).state_dict()


# -- where they lie ---------------------------------------------------------------------------------------------------

# What is saved, then the set and the prefix that must be chosen of it.
LAYOUTS = {
    "plain": (STATE, "", ""),
    "one int in it": ({"epoch": 3, **STATE, "name": "x", "none": None}, "", ""),
    "state_dict": ({"epoch": 3, "state_dict": STATE, "optimizer": OPTIMIZER}, "state_dict", ""),
    "model_state": ({"model_state": STATE, "optimizer_state": OPTIMIZER}, "model_state", ""),
    "weights": ({"weights": STATE}, "weights", ""),
    "params": ({"params": STATE}, "params", ""),
    "ema": ({"ema": STATE, "updates": 7}, "ema", ""),
    "any word": ({"Mein Modell": {"v2": {"best": STATE}}, "loss": torch.tensor(1.0)}, "Mein Modell.v2.best", ""),
    "in a list": ([STATE, OPTIMIZER], "0", ""),
    "in a tuple of dicts": ((3, {"net": STATE}), "1.net", ""),
    "with dots in keys": ({"a.b": {"c.d": STATE}}, "a.b.c.d", ""),
    "nested as the modules are": (
        {"stem": {n.removeprefix("stem."): t for n, t in STATE.items() if n.startswith("stem.")}}
        | {n: t for n, t in STATE.items() if not n.startswith("stem.")},
        "",
        "",
    ),
    "averaged": (averaged(), "", "module."),
    "averaged inside": ({"model": {"x": torch.ones(2)}, "swa": averaged()}, "swa", "module."),
    "data parallel": (prefixed("module.", STATE), "", "module."),
    "head of its own": ({"model": prefixed("module.model.", STATE)}, "model", "module.model."),
    "compiled": (prefixed("_orig_mod.", STATE), "", "_orig_mod."),
    "compiled in part": ({n.replace("stem.", "stem._orig_mod."): t for n, t in STATE.items()}, "", ""),
    "fsdp": (
        {f"_fsdp_wrapped_module.{n.replace('conv.', 'conv._fsdp_wrapped_module.')}": t for n, t in STATE.items()},
        "",
        "",
    ),
    "checkpointed": ({n.replace("layer1.", "layer1._checkpoint_wrapped_module."): t for n, t in STATE.items()}, "", ""),
    "lightning": (
        {
            "state_dict": prefixed("model.", STATE)
            | {"criterion.weight": torch.ones(3), "train_acc.tp": torch.zeros(3, dtype=torch.int64)},
            "pytorch-lightning_version": "2.5",
            "hyper_parameters": {"lr": 0.1},
            "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.9)}},
            "optimizer_states": [OPTIMIZER],
        },
        "state_dict",
        "model.",
    ),
    "lightning without a prefix": ({"state_dict": STATE | {"criterion.weight": torch.ones(3)}}, "state_dict", ""),
    "without counters": ({n: t for n, t in STATE.items() if "num_batches" not in n}, "", ""),
    "student and teacher": (
        {"teacher": prefixed("backbone.", OTHER), "student": prefixed("backbone.", STATE)},
        "student",
        "backbone.",
    ),
    "with an average": ({"state_dict_ema": OTHER, "state_dict": STATE}, "state_dict", ""),
    "average first": ({"model_ema": OTHER, "model": STATE}, "model", ""),
    "two in a row": (prefixed("ema.", OTHER) | prefixed("net.", STATE), "", "net."),
    "and a smaller model": ({"teacher": STATE, "student": net(width=3).state_dict()}, "teacher", ""),
    "parameters that want gradients": (dict(net(1).named_parameters()) | dict(net(1).named_buffers()), "", ""),
    "half": ({n: t.half() for n, t in STATE.items()}, "", ""),
    "bfloat16": ({n: t.bfloat16() if t.is_floating_point() else t for n, t in STATE.items()}, "", ""),
    "double": ({n: t.double() if t.is_floating_point() else t for n, t in STATE.items()}, "", ""),
    "sparse": (STATE | {"head.weight": STATE["head.weight"].to_sparse()}, "", ""),
    "not contiguous": (STATE | {"head.weight": STATE["head.weight"].T.contiguous().T}, "", ""),
}  # fmt: skip


def test_the_networks_of_the_table_differ_in_every_tensor():
    assert len(STATE) == 12
    assert not any(torch.equal(STATE[n], OTHER[n]) for n in STATE)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_set_that_fits_is_found(name, tmp_path):
    content, chosen, prefix = LAYOUTS[name]
    torch.save(content, tmp_path / "w.pt")
    expected = {"half": content, "bfloat16": content}.get(name, STATE)
    if name == "without counters":
        expected = content
    elif name == "half":  # counters are integers, and half a number here
        expected = {n: t for n, t in content.items() if "num_batches" not in n}
        with pytest.raises(ModelError, match=r"of another kind: stem\.1\.num_batches_tracked float16 for int64"):
            fill(net(), read_state(str(tmp_path / "w.pt")))
        torch.save(expected, tmp_path / "w.pt")
    assert_filled(tmp_path / "w.pt", expected, set=chosen, prefix=prefix)


@pytest.mark.parametrize("protocol", ["zip", "old"])
@pytest.mark.parametrize("ending", [".pt", ".safetensors", ".bin", ""])
def test_what_a_file_is_called_does_not_matter(protocol, ending, tmp_path):
    path = tmp_path / f"weights{ending}"
    torch.save({"model": STATE}, path, _use_new_zipfile_serialization=protocol == "zip")
    assert_filled(path, STATE, set="model")


@pytest.mark.parametrize("name", ["w.safetensors", "renamed.pt", "renamed.h5", "none"])
def test_safetensors_are_known_by_their_bytes(name, tmp_path):
    safetensors.torch.save_file(prefixed("ema.", OTHER) | prefixed("net.", STATE), tmp_path / name)
    choice = assert_filled(tmp_path / name, STATE, set="", prefix="net.", others=("ema",))
    assert choice.notes == (
        f"weights: {tmp_path / name}, prefix 'net.' removed",
        f"weights: 'ema' fits too: --weights {tmp_path / name}#ema takes it",
    )
    assert_filled(f"{tmp_path / name}#ema", OTHER)


def test_arrays_by_the_names_of_parameters(tmp_path):
    np.savez(tmp_path / "w.npz", **{name: tensor.numpy() for name, tensor in STATE.items()})
    assert_filled(tmp_path / "w.npz", STATE)
    torch.save({"params": {name: tensor.numpy() for name, tensor in STATE.items()}}, tmp_path / "w.pt")
    assert_filled(tmp_path / "w.pt", STATE, set="params")
    odd = {
        "head.weight": np.asfortranarray(STATE["head.weight"].numpy()),
        "scale": STATE["scale"].numpy().astype(">f8"),
    }
    torch.save(STATE | odd, tmp_path / "odd.pt")
    assert_filled(tmp_path / "odd.pt", STATE)


def test_shards_are_put_together(tmp_path):
    names = sorted(STATE)
    parts = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for part, inside in parts.items():
        safetensors.torch.save_file({name: STATE[name] for name in inside}, tmp_path / part)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": {n: part for part in parts for n in parts[part]}})
    )
    assert_filled(index, STATE)
    assert_filled(tmp_path, STATE, file=str(tmp_path))
    tmp_path.joinpath("b.safetensors").unlink()
    with pytest.raises(FileError, match=r"lists the part 'b\.safetensors', which is not beside it\.$"):
        read_state(str(index))
    index.write_text(json.dumps({"weight_map": {"x": "../elsewhere.safetensors"}}))
    with pytest.raises(FileError, match=r"lists the part '\.\./elsewhere\.safetensors', which is not beside it"):
        read_state(str(index))


def test_parameters_that_are_one_need_be_there_once(tmp_path):
    def tied():
        model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
        model["b"].weight = model["a"].weight
        return model

    state = {name: torch.rand(tensor.shape) for name, tensor in tied().state_dict().items() if name != "b.weight"}
    torch.save(state, tmp_path / "w.pt")
    model = tied()
    fill(model, read_state(str(tmp_path / "w.pt")))
    assert torch.equal(model["b"].weight, state["a.weight"])


# -- what lies beside -------------------------------------------------------------------------------------------------

BESIDE = {
    "Namespace": argparse.Namespace(lr=0.1, out=pathlib.Path("runs/1")),
    "paths": [pathlib.Path("a/b"), pathlib.PurePosixPath("/x"), pathlib.PureWindowsPath("C:\\x")],
    "scalars": {"acc": np.float64(0.9), "n": np.int64(3), "b": np.bool_(True), "h": np.float16(1)},
    "arrays": {"conf": np.eye(3), "names": np.array(["a", "b"]), "mixed": np.array([1, "x", None], dtype=object)},
    "dtype": np.dtype("float32"),
    "state of numpy": np.random.get_state(),
    "generator of numpy": np.random.default_rng(3),
    "dates": [datetime.datetime.now(), datetime.date(2024, 1, 2), datetime.timedelta(1), datetime.UTC],
    "containers": [
        collections.OrderedDict(a=1), collections.defaultdict(list, a=[1]), collections.Counter("abc"),
        collections.deque([1, 2], 5), {1, 2}, frozenset("ab"), range(3), slice(1, 2), 3j, bytearray(b"x"), b"y",
    ],
    "a class of Python's": types.SimpleNamespace(a=1),
    "partial": functools.partial(dict, a=1),
    "uuid": uuid.UUID(int=5),
    "random": random.getstate(),
    "enum": {Stage.TRAIN: Stage.TRAIN},
    "of a script": Config(),
    "a dict of a script": Options(a=Options(b=1)),
    "slots": Slots(),
    "a class": {"callbacks": {Config: {"best": 1}}},
    "of torch": [torch.device("cuda:0"), torch.float16, torch.Size((1, 2)), torch.__version__, torch.Generator()],
    "scheduler": torch.optim.lr_scheduler.StepLR(torch.optim.SGD(net().parameters()), 3).state_dict(),
    "a loss": nn.CrossEntropyLoss(torch.ones(3)),
    "optimizer": torch.optim.Adam(net().parameters()).state_dict(),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "old"),
    [(name, old) for name in BESIDE for old in (False, True)[: 1 + (name != "a loss")]],  # old ones have its source
)
def test_what_training_scripts_put_beside_is_no_hindrance(name, old, tmp_path):
    content = {"args": BESIDE[name], "state_dict": STATE, "other": BESIDE[name]}
    torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=not old)
    choice = assert_filled(tmp_path / "w.pt", STATE, set="state_dict")
    made = {f"{__name__}.{kind.__name__}" for kind in (Config, Options, Slots, Stage)}
    assert set(choice.aside) <= made
    assert bool(choice.aside) == (name in {"of a script", "a dict of a script", "slots", "a class", "enum"})


def test_classes_of_other_people_are_named_and_not_imported(tmp_path, monkeypatch):
    module = types.ModuleType("strangers")
    module.Thing = type("Thing", (), {"__module__": "strangers", "__setstate__": lambda self, state: 1 / 0})
    monkeypatch.setitem(sys.modules, "strangers", module)
    thing = module.Thing()
    thing.a = 1
    torch.save({"model": STATE, "cfg": thing}, tmp_path / "w.pt")
    monkeypatch.delitem(sys.modules, "strangers")
    choice = assert_filled(tmp_path / "w.pt", STATE, aside=("strangers.Thing",))
    assert choice.notes[-1] == "weights: the file also names classes that were not made: strangers.Thing"
    assert "strangers" not in sys.modules


def test_the_safe_list_is_as_before(tmp_path):
    before = torch.serialization.get_safe_globals()
    torch.save({"model": STATE, "cfg": Config(), "args": argparse.Namespace()}, tmp_path / "w.pt")
    read_state(str(tmp_path / "w.pt"))
    assert set(torch.serialization.get_safe_globals()) == set(before)


# -- what would run ---------------------------------------------------------------------------------------------------


class Trap:
    """A pickle that calls a function when it is loaded."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


TRAPS = {
    "os": (os.mkdir, "posix.mkdir"),
    "system": (os.system, "posix.system"),
    "eval": (eval, "builtins.eval"),
    "exec": (exec, "builtins.exec"),
    "getattr": (getattr, "builtins.getattr"),
    "import": (__import__, "builtins.__import__"),
    "open": (open, "io.open"),
    "pickle": (pickle.loads, "pickle.loads"),
    "a function of torch": (torch.hub.load, "torch.hub.load"),
    "torch's own reader": (torch.load, "torch.serialization.load"),
    "a function of numpy": (np.load, "numpy.load"),
}


@pytest.mark.parametrize("name", TRAPS)
@pytest.mark.parametrize("old", [False, True])
def test_what_would_run_is_refused_by_its_name(name, old, tmp_path):
    function, named = TRAPS[name]
    path = tmp_path / "w.pt"
    torch.save(
        {"m": STATE, "x": Trap(function, str(tmp_path / "sprung"))}, path, _use_new_zipfile_serialization=not old
    )
    with pytest.raises(FileError) as caught:
        read_state(str(path))
    assert str(caught.value) == (
        f"'{path}' holds no weights alone: reading it would run {named}, which is not done. If you trust the file, "
        "load it by torch.load(path, weights_only=False) and write torch.save(model.state_dict(), new_path)."
    )
    assert not (tmp_path / "sprung").exists()


def test_functions_of_other_packages_are_not_called(tmp_path, monkeypatch):
    called = []

    def run(word):
        called.append(word)

    module = types.ModuleType("strangers")
    run.__module__, run.__qualname__, module.run = "strangers", "run", run
    monkeypatch.setitem(sys.modules, "strangers", module)
    torch.save({"m": STATE, "x": Trap(run, "gotcha")}, tmp_path / "w.pt")
    assert_filled(tmp_path / "w.pt", STATE, aside=("strangers.run",))
    assert not called


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_a_whole_model_is_named(inside, old, tmp_path):
    path = tmp_path / "w.pt"
    torch.save({"model": net(), "epoch": 1} if inside else net(), path, _use_new_zipfile_serialization=not old)
    with pytest.raises(FileError) as caught:
        fill(net(), read_state(str(path)))
    assert str(caught.value) == (
        f"'{path}' holds a whole model of class {__name__}.Net, whose code is not run. Load it where that code is, and "
        "write its parameters alone: torch.save(model.state_dict(), path)."
    )


def test_a_whole_model_beside_its_parameters_is_no_hindrance(tmp_path):
    torch.save({"net": net(2), "net_state": STATE}, tmp_path / "w.pt")
    assert_filled(tmp_path / "w.pt", STATE, set="net_state", others=())


# -- the choice -------------------------------------------------------------------------------------------------------


def both(tmp_path):
    content = {"state_dict": prefixed("model.", STATE), "ema": {"v1": {"state_dict_ema": OTHER}}, "epoch": 3}
    torch.save(content, tmp_path / "w.pt")
    return tmp_path / "w.pt"


@pytest.mark.parametrize("pick", ["ema.v1.state_dict_ema", "ema/v1/state_dict_ema", "ema", "ema/v1/", "ema.v1"])
def test_a_set_is_picked(pick, tmp_path):
    choice = assert_filled(f"{both(tmp_path)}#{pick}", OTHER, set="ema.v1.state_dict_ema", prefix="", others=())
    assert choice.label == f"{tmp_path / 'w.pt'}#ema.v1.state_dict_ema"


def test_the_choice_is_said_and_kept(tmp_path):
    choice = assert_filled(both(tmp_path), STATE, set="state_dict", prefix="model.", others=("ema.v1.state_dict_ema",))
    path = tmp_path / "w.pt"
    assert choice.notes == (
        f"weights: {path}, set 'state_dict', prefix 'model.' removed",
        f"weights: 'ema.v1.state_dict_ema' fits too: --weights {path}#ema.v1.state_dict_ema takes it",
    )
    assert choice.label == f"{path}#state_dict.model"
    assert_filled(choice.label, STATE, set="state_dict", prefix="model.", label=choice.label)


def test_where_nothing_is_to_choose_nothing_is_said(tmp_path):
    torch.save(STATE, tmp_path / "w.pt")
    choice = assert_filled(tmp_path / "w.pt", STATE)
    assert (choice.notes, choice.label) == ((), str(tmp_path / "w.pt"))


def test_what_belongs_to_other_things_is_said(tmp_path):
    beside = {"criterion.weight": torch.ones(3), "train_acc.tp": torch.ones(2), "loss": torch.tensor(0.5)}
    torch.save({"state_dict": prefixed("net.", STATE) | beside, "optimizer": OPTIMIZER}, tmp_path / "w.pt")
    choice = assert_filled(tmp_path / "w.pt", STATE, ignored=tuple(beside))
    assert choice.notes[-1] == "weights: not of the model and left out: criterion.weight, train_acc.tp, loss"
    torch.save(STATE | beside, tmp_path / "flat.pt")
    choice = assert_filled(tmp_path / "flat.pt", STATE, ignored=tuple(beside))
    assert choice.notes == ("weights: not of the model and left out: criterion.weight, train_acc.tp, loss",)


@pytest.mark.parametrize(
    "extra", ["layer2.conv.weight", "layer1.more.weight", "head2.weight", "head_3.bias", "7.weight"]
)
@pytest.mark.parametrize("prefix", ["", "model."])
def test_more_layers_than_the_model_has_do_not_fit(extra, prefix, tmp_path):
    torch.save(prefixed(prefix, STATE | {extra: torch.ones(2)}), tmp_path / "w.pt")
    with pytest.raises(ModelError, match=rf"do not fit the model\. not of this model: {extra}\.$"):
        fill(net(), read_state(str(tmp_path / "w.pt")))


def test_an_unknown_set_has_near_misses(tmp_path):
    path = both(tmp_path)
    with pytest.raises(FileError) as caught:
        fill(net(), read_state(f"{path}#state_dct"))
    assert str(caught.value) == (
        f"'{path}' has no set 'state_dct'. Did you mean 'state_dict' or 'ema.v1.state_dict_ema'? "
        "It has ema.v1.state_dict_ema, state_dict."
    )
    torch.save(prefixed("net.", STATE), path)
    with pytest.raises(FileError, match=r"has no set 'nett'\. Did you mean 'net'\? It has net\."):
        fill(net(), read_state(f"{path}#nett"))


def test_the_sign_may_be_in_a_files_name(tmp_path):
    torch.save({"a": STATE, "b": OTHER}, tmp_path / "run#3.pt")
    assert_filled(tmp_path / "run#3.pt", STATE, set="a", label=f"{tmp_path / 'run#3.pt'}#a")
    assert_filled(f"{tmp_path / 'run#3.pt'}#b", OTHER, set="b")


def test_what_does_not_fit_is_said_of_the_nearest_set(tmp_path):
    wrong = prefixed("net.", STATE)
    wrong["net.head.weight"], wrong["net.scale"] = torch.ones(3, 5), torch.ones(4, dtype=torch.int64)
    wrong.pop("net.layer1.conv.bias")
    torch.save({"optimizer": OPTIMIZER, "sd": wrong}, tmp_path / "w.pt")
    with pytest.raises(ModelError) as caught:
        fill(net(), read_state(str(tmp_path / "w.pt")))
    assert str(caught.value) == (
        f"the weights in '{tmp_path / 'w.pt'}' (set 'sd', prefix 'net.' removed) do not fit the model. "
        "missing: layer1.conv.bias; of another shape: head.weight (3, 5) for (3, 4); "
        "of another kind: scale int64 for float32."
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.to(torch.complex64), r"of another kind: scale complex64 for float32\.$"),
        (lambda t: t.to("meta"), r"without numbers \(meta\): scale\.$"),
        (lambda t: t * float("nan"), r"with nan: scale\.$"),
        (lambda t: t > 0, r"of another kind: scale bool for float32\.$"),
    ],
)
def test_tensors_that_are_no_parameters(change, message, tmp_path):
    torch.save(STATE | {"scale": change(STATE["scale"])}, tmp_path / "w.pt")
    model = net(5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ModelError, match=message):
        fill(model, read_state(str(tmp_path / "w.pt")))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_model_that_loads_in_its_own_way_says_what_is_wrong(tmp_path):
    model = net()
    model.register_load_state_dict_pre_hook(lambda *_: 1 / 0)
    model.load_state_dict = lambda *a, **b: (_ for _ in ()).throw(RuntimeError("too old. More."))
    torch.save(STATE, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"w\.pt' cannot be loaded: RuntimeError: too old\.$"):
        fill(model, read_state(str(tmp_path / "w.pt")))


def test_a_file_that_holds_itself_ends(tmp_path):
    content = {"state_dict": STATE, "list": []}
    content["self"], content["list"] = content, [content, [content]]
    for _ in range(60):
        content = {"a": content, "b": content}
    torch.save(content, tmp_path / "w.pt")
    torch.save(
        {"model": STATE, "deep": functools.reduce(lambda inner, _: {"d": inner}, range(300), {})}, tmp_path / "d.pt"
    )
    assert_filled(tmp_path / "d.pt", STATE, set="model")
    with pytest.raises(FileError, match="must hold a state dict, names with tensors, but holds dict"):
        fill(net(), read_state(str(tmp_path / "w.pt")))


def test_what_is_chosen_does_not_depend_on_the_head(tmp_path):
    """A fine-tuned head has another size, in whatever set it lies; the number of classes is the file's."""
    torch.manual_seed(3)
    tuned = models.squeezenet1_1(weights=None, num_classes=7).state_dict()
    other = models.squeezenet1_1(weights=None, num_classes=7).state_dict()
    path = tmp_path / "w.ckpt"
    content = {
        "state_dict": prefixed("net.", tuned) | {"criterion.weight": torch.ones(7)},
        "state_dict_ema": prefixed("net.", other),
        "hyper_parameters": argparse.Namespace(lr=1),
    }
    torch.save(content, path)
    loaded = classifiers.load("squeezenet1_1", str(path))
    assert all(torch.equal(tensor, tuned[name]) for name, tensor in loaded.model.state_dict().items())
    assert loaded.categories == ()
    assert loaded.weights == f"{path}#state_dict.net"
    assert loaded.notes == (
        f"weights: {path}, set 'state_dict', prefix 'net.' removed",
        f"weights: 'state_dict_ema.net' fits too: --weights {path}#state_dict_ema.net takes it",
        "weights: not of the model and left out: criterion.weight",
    )
    picked = classifiers.load("squeezenet1_1", f"{path}#state_dict_ema")
    assert all(torch.equal(tensor, other[name]) for name, tensor in picked.model.state_dict().items())
    assert picked.weights == f"{path}#state_dict_ema.net"


def test_many_names_are_looked_through_in_their_number():
    """A thousand layers and their optimizer's state: each name is read a few times, not once per other name."""
    expected = {f"layer{i}.block.{j}.weight": torch.empty(1) for i in range(40) for j in range(25)}
    reads = 0

    class Counted(dict):
        def get(self, *args):
            nonlocal reads
            reads += 1
            return super().get(*args)

    tensors = prefixed("state_dict.module.", expected) | {f"opt.state.{i}.exp_avg": torch.empty(1) for i in range(2000)}
    choice = choose(Checkpoint("w.pt", tensors, frozenset({"state_dict", "opt", "opt.state"})), Counted(expected))
    assert (choice.set, choice.prefix) == ("state_dict", "module.")
    assert reads <= 2 * 7 * len(tensors)


# -- what is something else -------------------------------------------------------------------------------------------


def zipped(**entries):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name.replace("__", "/").replace("_dot_", "."), content)
    return file.getvalue()


def torched(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def exported():
    file = io.BytesIO()
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), file)
    return file.getvalue()


FOREIGN = {
    "empty": (b"", "is empty. Copy or download it again."),
    "keras.h5": (b"\x89HDF\r\n\x1a\n" + bytes(200), "is HDF5, as Keras keeps weights. lrpfunc explains PyTorch models"),
    "model.keras": (zipped(config_dot_json="{}", model_dot_weights_dot_h5=""), "is a model of Keras. lrpfunc"),
    "model.onnx": (b"\x08\x07\x12\x07pytorch\x1a\x051.0.0:\x10", "is a model of ONNX. The package onnx2torch"),
    "onnx.pt": (b"\x08\x0a:\xff\x01\n\x05input", "is a model of ONNX. The package onnx2torch"),
    "saved_model.pb": (b"\x08\x01\x12\xff\x01\n", "is a SavedModel of TensorFlow. lrpfunc explains"),
    "frozen.pb": (b"\x0a\x10\x0a\x05input", "is a protocol buffer, as .pb says. lrpfunc"),
    "model.tflite": (b"\x1c\x00\x00\x00TFL3" + bytes(90), "is a model of TFLite. lrpfunc"),
    "model.gguf": (b"GGUF\x03\x00\x00\x00" + bytes(90), "is GGUF, weights of llama.cpp. lrpfunc"),
    "ckpt.index": (bytes(40) + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb", "is the index of a TensorFlow checkpoint. lrpfunc"),
    "checkpoint": (b'model_checkpoint_path: "model.ckpt-1"\n', "is TensorFlow's list of checkpoints. lrpfunc"),
    "page.pth": (b"\n<!DOCTYPE html><html><title>404</title>", "is a web page, such as the message of a download that"),
    "page16.pth": ("\ufeff<html>".encode(), "is a web page, such as"),
    "error.pth": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is a web page, such as"),
    "error.json": (b'{"error": "Repository not found"}', "is JSON. Give the file with the weights"),
    "list.json": (b"[1, 2]", "is JSON. Give"),
    "lfs.bin": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:1",
        "is a pointer of Git LFS and not the file",
    ),
    "w.pt.gz": (b"\x1f\x8b\x08" + bytes(30), "is a gzip archive. Unpack it, and give the file with the weights in it."),
    "w.tar": (bytes(257) + b"ustar\x0000" + bytes(300), "is a tar archive. Unpack it"),
    "w.zip": (zipped(best_dot_pt="x", readme_dot_txt="y"), "is a zip archive with best.pt, readme.txt. Unpack it"),
    "none.zip": (zipped(), "is a zip archive with nothing. Unpack it"),
    "cut.pt": (torched(STATE)[:2000], "is a zip archive that breaks off, as PyTorch and others write them. Copy"),
    "w.pkl": (pickle.dumps({"a": 1}), "is a plain pickle, which may run anything. Load it where you trust it"),
    "photo.png": (b"\x89PNG\r\n\x1a\n" + bytes(50), "is a picture (PNG). Give the file with the weights"),
    "photo.jpg": (b"\xff\xd8\xff\xe0" + bytes(50), "is a picture (JPEG). Give"),
    "w.npy": (b"\x93NUMPY\x01\x00v\x00{'descr'", "is a single array of numpy. Give arrays by their parameters' names"),
    "text": (b"hello \n world", "is text, which begins with 'hello world'. Give"),
    "zeros": (bytes(100), "is no kind of weights that is known: it begins with the bytes 00 00 00 00 00 00 00 00."),
    "program.pt2": (exported, "is a program of torch.export. Save its parameters: torch.save(torch.export.load(path)"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_something_else_is_said_in_a_line(name, tmp_path):
    content, message = FOREIGN[name]
    tmp_path.joinpath(name).write_bytes(content() if callable(content) else content)
    with pytest.raises(FileError) as caught:
        read_state(str(tmp_path / name))
    assert str(caught.value).startswith(f"'{tmp_path / name}' {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_says_how_to_get_its_parameters(tmp_path, recwarn):
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "script.pt"))
    recwarn.clear()
    with pytest.raises(FileError, match=r"is TorchScript\. Save its parameters: torch\.save\(torch\.jit\.load\(path\)"):
        read_state(str(tmp_path / "script.pt"))
    assert not recwarn.list


@pytest.mark.parametrize("at", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("kind", ["old", "safetensors", "npz"])
def test_files_that_break_off_are_refused_in_a_line(kind, at, tmp_path):
    path = tmp_path / "w"
    if kind == "old":
        torch.save(STATE, path, _use_new_zipfile_serialization=False)
    elif kind == "safetensors":
        safetensors.torch.save_file(STATE, path)
    else:
        with path.open("wb") as file:
            np.savez(file, **{name: tensor.numpy() for name, tensor in STATE.items()})
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * at)])
    with pytest.raises(FileError, match=r"loaded safely|breaks off") as caught:
        read_state(str(path))
    assert "\n" not in str(caught.value)


def test_other_protocols_of_pickle(tmp_path):
    torch.save(STATE, tmp_path / "w.pt", pickle_protocol=5)
    with pytest.raises(
        FileError, match=r"is written in a protocol of pickle that cannot be read safely\. Write it anew"
    ):
        read_state(str(tmp_path / "w.pt"))


def test_archives_that_unpack_to_far_more_than_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(foreign, "UNPACKED", 1000)
    np.savez_compressed(tmp_path / "w.npz", a=np.zeros(10**6))
    with pytest.raises(FileError, match=r"is an archive that unpacks to 8,000,128 bytes\. Pack it anew without compr"):
        read_state(str(tmp_path / "w.npz"))
    np.savez_compressed(tmp_path / "good.npz", a=np.random.default_rng(0).random(10**4))
    assert list(read_state(str(tmp_path / "good.npz")).tensors) == ["a"]


def test_folders(tmp_path):
    with pytest.raises(FileError, match=r"is a folder\. Give a file\.$"):
        read_state(str(tmp_path))
    for name in ("b.pt", "a.ckpt"):
        tmp_path.joinpath(name).touch()
    with pytest.raises(FileError, match=r"is a folder\. Give a file in it: a\.ckpt, b\.pt\.$"):
        read_state(str(tmp_path))
    tmp_path.joinpath("__0_0.distcp").touch()
    with pytest.raises(
        FileError, match=r"is a distributed checkpoint\. Make a file of it: python -m torch\.distributed"
    ):
        read_state(str(tmp_path))
    tmp_path.joinpath("saved_model.pb").touch()
    with pytest.raises(FileError, match="is a SavedModel of TensorFlow"):
        read_state(str(tmp_path))
    torch.save(STATE, tmp_path / "pytorch_model.bin")
    assert_filled(tmp_path, STATE)


def test_no_file_and_no_regular_file(tmp_path):
    with pytest.raises(FileError, match=r"^there is no file 'absent\.pt' to take weights from\.$"):
        read_state("absent.pt#ema")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileError, match="pipe' is no file to take weights from"):
        read_state(str(tmp_path / "pipe"))


def test_what_is_a_file_and_what_a_word(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tmp_path.joinpath("best").touch()
    assert all(map(weights.is_file, ("best", "best#ema", "w.pt", "w.pt#ema")))
    assert not any(map(weights.is_file, ("IMAGENET1K_V1", "other#ema")))
