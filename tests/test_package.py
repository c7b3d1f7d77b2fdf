"""The package as people get it: what is built, and what works where nothing but it is installed.

The tests link the installed packages that the wheel asks for into a fresh environment, offline and in seconds.
`python -m tests.test_package` has uv install them instead, as `pip install lrpfunc` would; that takes minutes and GB.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CACHES = {"__pycache__", ".pytest_cache", ".hypothesis", ".git", ".venv", "dist"}

pytestmark = pytest.mark.dev


def said(*command: object, cwd: Path, code: int = 0) -> str:
    """What a command prints, in a folder where no lrpfunc lies, and its errors. It must end with `code`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=clean, capture_output=True, text=True)
    assert done.returncode == code, (command, done.stdout, done.stderr)
    return done.stdout + done.stderr


# -- what is built ----------------------------------------------------------------------------------------------------


def build(folder: Path) -> tuple[Path, Path]:
    """The sdist, and the wheel that is built of it. hatchling is in the extra `dev`, so nothing is downloaded."""
    said(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    for package in ("build", "hatchling", "twine", "uv"):
        pytest.importorskip(package)
    return build(tmp_path_factory.mktemp("dist"))


def in_wheel(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


def in_tree(folder: Path) -> set[str]:
    """The files below a folder of the sources, from the root on."""
    paths = (path for path in folder.rglob("*") if path.is_file() and not CACHES & set(path.parts))
    return {path.relative_to(ROOT).as_posix() for path in paths}


def test_the_files_are_fit_for_an_index(built, tmp_path):
    report = said(sys.executable, "-m", "twine", "--no-color", "check", "--strict", *built, cwd=tmp_path)
    assert report.count("PASSED") == 2


def test_the_wheel_holds_the_package_and_nothing_else(built):
    """With all that is no Python: the marker of types, the page and its template, the digits, each folder's README."""
    names = set(in_wheel(built[1]))
    ours = {name for name in names if ".dist-info/" not in name}
    assert ours == in_tree(ROOT / "lrpfunc")
    expected = (
        "py.typed text/page.html.jinja pictures/report/script/plot.js digits/data/digits.safetensors rules/README.md"
    )
    assert {f"lrpfunc/{name}" for name in expected.split()} <= ours
    assert [name for name in names if name.endswith("licenses/LICENSE")]


def test_the_wheel_is_small(built):
    assert built[1].stat().st_size < 1e6


def test_the_sdist_holds_the_sources_and_their_tests(built):
    with tarfile.open(built[0]) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert {"README.md", "LICENSE", "pyproject.toml"} <= names
    assert in_tree(ROOT / "lrpfunc") | in_tree(ROOT / "tests") <= names
    assert not [name for name in names if CACHES & set(name.split("/"))]


def test_sdist_and_tree_give_the_same_wheel(built, tmp_path):
    said(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path, ROOT, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    assert in_wheel(wheel) == in_wheel(built[1])


def test_what_the_index_shows(built):
    (name,) = (name for name in in_wheel(built[1]) if name.endswith("/METADATA"))
    text = in_wheel(built[1])[name].decode()
    about = metadata.PathDistribution(_Member(text)).metadata
    assert (about["Name"], about["License-Expression"]) == ("lrpfunc", "BSD-3-Clause")
    assert about["Requires-Python"] == ">=3.11"
    assert about["Description-Content-Type"] == "text/markdown"
    assert 40 < len(about["Summary"]) < 120
    extras = {"cli", "photos", "timm", "medical", "heif", "parquet", "remote", "ray", "transformers", "graphs"}
    assert set(about.get_all("Provides-Extra")) == extras | {"test", "dev"}
    assert about.get_payload().lstrip().startswith("# lrpfunc")
    assert re.findall(r"https?://[^ )]+", about.get_payload()) == []


class _Member:
    """A folder of metadata that is one text."""

    def __init__(self, text: str) -> None:
        self.text = text

    def joinpath(self, name: str) -> _Member:
        return self

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.text


# -- where nothing else is installed ----------------------------------------------------------------------------------


def uv() -> str:
    from uv import find_uv_bin

    return find_uv_bin()


def fresh(folder: Path) -> Path:
    """The interpreter of a new environment."""
    said(uv(), "venv", "--quiet", "--python", sys.executable, folder, cwd=folder.parent)
    return folder / ("Scripts" if os.name == "nt" else "bin") / "python"


def linked(folder: Path, wheel: Path, extra: str) -> Path:
    """An environment with the wheel, and links to what the wheel asks for with an extra of it, of what is here."""
    interpreter = fresh(folder)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    for distribution in closure(wheel, extra):
        for entry in {Path(file).parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            place = packages / entry
            if not place.exists():
                place.symlink_to(Path(distribution.locate_file(entry)))
    said(uv(), "pip", "install", "-q", "--offline", "--no-deps", "--python", interpreter, wheel, cwd=folder)
    return interpreter


def closure(wheel: Path, extra: str) -> Iterable[metadata.Distribution]:
    """What a wheel needs, and what that needs, of what is installed here."""
    (about,) = (text for name, text in in_wheel(wheel).items() if name.endswith("/METADATA"))
    itself = metadata.PathDistribution(_Member(about.decode()))
    found, open_ends = {("lrpfunc", extra): itself}, [("lrpfunc", extra)]
    while open_ends:
        name, wanted = open_ends.pop()
        for needed in needs(found[name, wanted], wanted):
            if needed not in found:
                found[needed] = itself if needed[0] == "lrpfunc" else metadata.distribution(needed[0])
                open_ends.append(needed)
    return [distribution for distribution in found.values() if distribution is not itself]


def needs(distribution: metadata.Distribution, extra: str) -> Iterator[tuple[str, str]]:
    """What a distribution asks for on this machine: names, each without an extra and with those asked for."""
    from packaging.requirements import Requirement

    for requirement in map(Requirement, distribution.requires or ()):
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            yield from ((requirement.name, one) for one in ("", *requirement.extras))


SMALL = """
import lrpfunc, sys, torch
model = torch.nn.Sequential(torch.nn.Linear(16, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
relevance = lrpfunc.relevance(model, torch.ones(1, 16))
lrpfunc.heatmaps.heatmap(relevance.reshape(1, 1, 4, 4))[0].save("map.png")
lrpfunc.text.save("words.html", ["a", "b"], torch.tensor([1.0, -1.0]))
from lrpfunc.pictures import selfcheck
assert selfcheck.run().holds
print(lrpfunc.__file__)
"""


def try_alone(interpreter: Path, folder: Path) -> None:
    """`pip install lrpfunc` alone: relevance, a heatmap and the laws; of the command line, how to get it."""
    assert Path(said(interpreter, "-c", SMALL, cwd=folder).splitlines()[-1]).is_relative_to(interpreter.parents[1])
    assert (folder / "map.png").is_file()
    line = "error: the command line needs typer: pip install 'lrpfunc[cli]'\n"
    assert said(interpreter.with_name("lrpfunc"), "--help", cwd=folder, code=1) == line
    for package in ("typer", "torchvision", "h5py", "skimage", "timm", "transformers"):
        assert "ModuleNotFoundError" in said(interpreter, "-c", f"import {package}", cwd=folder, code=1)


def try_photos(interpreter: Path, folder: Path) -> None:
    """`pip install 'lrpfunc[photos]'`: the commands."""
    command = interpreter.with_name("lrpfunc")
    assert "demo" in said(command, "--help", cwd=folder)
    assert said(command, "check", cwd=folder).splitlines()[-1] == "all laws hold"
    said(command, "demo", "--digits", 2, cwd=folder)
    assert (folder / "lrpfunc-demo.png").is_file()
    said(command, "digits", "digits", cwd=folder)
    said(command, "image", "digits/3/003.png", "--model", "digits", "--out", "out", cwd=folder)
    said(command, "image", "digits/3/003.png", "--model", "efficientnet_lite0", "--out", "photos", cwd=folder)
    said(command, "dataset", "digits", "--model", "digits", "--out", "run.h5", cwd=folder)
    said(command, "report", "run.h5", cwd=folder)
    assert len(list((folder / "out").iterdir())) == len(list((folder / "photos").iterdir())) == 3
    assert (folder / "report.html").is_file()


@pytest.mark.parametrize(("extra", "attempt"), [("", try_alone), ("photos", try_photos)])
@pytest.mark.skipif(os.name == "nt", reason="links need a right there")
def test_it_works_where_nothing_else_is_installed(built, tmp_path, extra, attempt):
    interpreter = linked(tmp_path / "environment", built[1], extra)
    attempt(interpreter, tmp_path)


def main() -> None:
    """All packages anew, out of uv's cache or the index: one environment with the extra, and one without."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sdist, wheel = build(folder)
        print(said(sys.executable, "-m", "twine", "--no-color", "check", "--strict", sdist, wheel, cwd=folder), end="")
        for extra, attempt in (("", try_alone), ("[photos]", try_photos)):
            place = folder / (extra.strip("[]") or "alone")
            place.mkdir()
            interpreter = fresh(place / "environment")
            said(uv(), "pip", "install", "-q", "--python", interpreter, f"lrpfunc{extra} @ {wheel.as_uri()}", cwd=place)
            attempt(interpreter, place)
            if extra:
                print(said(interpreter.with_name("lrpfunc"), "demo", cwd=place), end="")
            print(f"lrpfunc{extra}: installed alone, works")


if __name__ == "__main__":
    main()
