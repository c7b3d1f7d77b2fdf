"""What is installed with an extra only, and the line that says so."""

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from lrpfunc import __main__, digits
from lrpfunc.errors import MissingExtraError
from lrpfunc.extras import extra, is_installed
from tests import house


def test_an_extra_is_imported():
    assert extra("json", "cli", "reading") is json
    assert is_installed("json")


def test_a_missing_extra_names_the_command_that_installs_it():
    assert not is_installed("no_such_package.inner")
    with pytest.raises(MissingExtraError) as error:
        extra("no_such_package.inner", "cli", "reading a data set")
    assert str(error.value) == "reading a data set needs no_such_package: pip install 'lrpfunc[cli]'"


def without(monkeypatch, *packages):
    """A machine on which some packages are not installed."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("lrpfunc.extras.find_spec", lambda name: None if name in packages else find_spec(name))


def test_the_command_line_without_its_extra_says_how_to_get_it(monkeypatch):
    without(monkeypatch, "typer")
    with pytest.raises(SystemExit) as stopped:
        __main__.main()
    assert stopped.value.code == "error: the command line needs typer: pip install 'lrpfunc[cli]'"


def test_hdf5_without_its_extra_says_how_to_get_it(monkeypatch, tmp_path):
    from lrpfunc.pictures import hdf5

    without(monkeypatch, "h5py")
    with pytest.raises(MissingExtraError, match=r"^reading HDF5 needs h5py: pip install 'lrpfunc\[cli\]'$"):
        hdf5.opened(tmp_path / "run.h5").__enter__()
    with pytest.raises(MissingExtraError, match=r"^writing HDF5 needs h5py: pip install 'lrpfunc\[cli\]'$"):
        hdf5.write(tmp_path / "run.h5", hdf5.Schema(1, (1, 2, 2), 2, 1), {}, [])


def test_pictures_without_torchvision_say_how_to_get_it(monkeypatch, tmp_path):
    from lrpfunc.pictures import classifiers, panels
    from lrpfunc.pictures.demo import photos

    without(monkeypatch, "torchvision")
    digits.write_images(tmp_path / "digits")
    paths = [tmp_path / "digits" / "3" / "003.png"]
    with pytest.raises(MissingExtraError) as error:
        panels.write(paths, tmp_path / "out", classifiers.load("digits"))
    assert str(error.value) == "preparing a picture needs torchvision: pip install 'lrpfunc[cli]'"
    with pytest.raises(MissingExtraError) as error:
        photos.blurred(torch.ones(1, 3, 8, 8))
    assert str(error.value) == "blurring a photo needs torchvision: pip install 'lrpfunc[cli]'"


PROJECT = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())["project"]
CORE = {re.split("[>=]", needed)[0] for needed in PROJECT["dependencies"]}
IMPORTED_AS = {"pillow": "PIL"}


@pytest.mark.parametrize("module", house.modules(), ids=lambda module: module.name)
def test_a_plain_import_is_of_what_every_user_has(module):
    """Python's own and the dependencies of the package. What an extra brings comes by `extra`, which says which."""
    allowed = {"lrpfunc", "__future__", *sys.stdlib_module_names, *(IMPORTED_AS.get(name, name) for name in CORE)}
    allowed |= {"sympy"}  # torch's
    allowed |= {"typer"} if module.folder == "cli" else set()  # `__main__` asks for it by `extra` first
    assert house.packages(module) <= allowed


# -- what is imported when --------------------------------------------------------------------------------------------


def loaded_by(code):
    """The packages that a new process has imported after some code."""
    script = f"import sys\n{code}\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}), file=sys.stderr)"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return set(found.stderr.split())


COMMAND = "sys.argv = {!r}\ntry:\n    from lrpfunc.__main__ import main; main()\nexcept SystemExit: pass"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["image", "-h"], ["dataset", "--help"], []])
def test_help_and_version_do_without_torch(arguments):
    loaded = loaded_by(COMMAND.format(["lrpfunc", *arguments]))
    assert "typer" in loaded
    assert not loaded & {"torch", "numpy", "torchvision", "matplotlib", "h5py", "optree"}


def test_the_library_imports_neither_the_command_line_nor_pictures():
    loaded = loaded_by(
        "import lrpfunc, torch\nm = torch.nn.Linear(2, 2)\nx = torch.ones(1, 2)\nlrpfunc.relevance(m, x)"
    )
    assert "torch" in loaded
    assert not loaded & {"typer", "torchvision", "matplotlib", "h5py", "skimage", "timm"}
