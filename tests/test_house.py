"""The house: which folder may import which, how long files and functions are, and that each says what it is."""

import doctest
import functools
import importlib
import importlib.util
import inspect
import re

import pytest

from tests import house

# From the top down: a folder imports from what stands before it. Those of a row stand side by side.
ORDER = [
    {"errors"},
    {"compat", "extras"},
    {"digits"},
    {"program"},
    {"operations"},
    {"tracing"},
    {"canonizers", "placement"},
    {"rules"},
    {"composites"},
    {"attribution"},
    {"attributors"},
    {"storage"},
    {"heatmaps"},
    {"text", "targets"},
    {"circuits", "concepts"},
    {"pictures"},
    {"cli"},
    {"__main__"},
    {"contents"},
]
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}
OPEN_TO_ALL = {"errors", "compat"}
LEAVES = ("compat", "extras", "digits", "program")
MODULES = house.modules()
NAMES = {module.name for module in MODULES}
by_name = pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)


def folder_of(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


# -- imports ----------------------------------------------------------------------------------------------------------


@by_name
def test_imports_point_up(module):
    """Also those inside functions. The package's contents page imports what it lists, and only the end needs it."""
    folder = module.folder
    assert not folder or folder in LEVEL, f"{folder} has no place in ORDER"
    allowed = {"", *LEVEL} if not folder else OPEN_TO_ALL if folder in LEAVES else above(folder)
    wrong = {name for name in house.imports(module, NAMES) if folder_of(name) not in {folder, *allowed}}
    assert not wrong


def above(folder: str) -> set[str]:
    names = {name for name, level in LEVEL.items() if level < LEVEL[folder]}
    return names | {""} if folder in ("storage", "pictures", "cli") else names  # the version


def test_no_circle_among_modules():
    """Nor one that is put off by an import inside a function."""
    graph = {module.name: house.imports(module, NAMES) for module in MODULES}
    assert house.circle(graph) == []


def test_no_circle_among_folders():
    graph: dict[str, set[str]] = {}
    for module in MODULES:
        if module.folder:
            others = {folder_of(name) for name in house.imports(module, NAMES)} - {module.folder, ""}
            graph.setdefault(module.folder, set()).update(others)
    assert house.circle(graph) == []


def test_a_circle_is_found():
    assert house.circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["b", "c", "b"]
    assert house.circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_imports_are_read_wherever_they_stand(tmp_path):
    package = tmp_path / "pack"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("")
    (package / "b.py").write_text("")
    (package / "inner" / "__init__.py").write_text("from pack.inner import c\n")
    (package / "inner" / "c.py").write_text(
        "from typing import TYPE_CHECKING\nimport os, pack.a\nfrom . import d as e\n"
        "if TYPE_CHECKING:\n    from pack import inner\ndef f():\n    from ..b import g\n"
    )
    (package / "inner" / "d.py").write_text("")
    found = {module.name: module for module in house.modules(package)}
    c = found["pack.inner.c"]
    assert house.imports(c, set(found)) == {"pack.a", "pack.inner.d", "pack.b"}
    assert house.imports(c, set(found), lazy=False) == {"pack.a", "pack.inner.d"}
    assert house.imports(found["pack.inner"], set(found)) == {"pack.inner.c"}
    assert [row[:3] for row in house.table(package)] == [(".", "3", "0"), ("inner", "3", "8"), ("all", "6", "8")]


def test_what_is_private_to_torch_stands_in_one_file():
    """Names that begin with an underscore or with "experimental": another version of torch may not have them."""
    private = re.compile(
        r"\btorch(?!\.ops)(\.\w+)*\.(_(?!_)\w+|experimental)|\b_dynamo\w*|\._(schema|overloadname|cdata|C)\b"
    )
    found = {module.name: private.findall(module.path.read_text()) for module in MODULES}
    assert found.pop("lrpfunc.compat")
    assert {name for name, uses in found.items() if uses} == set()


# -- lengths ----------------------------------------------------------------------------------------------------------


@by_name
def test_files_and_functions_are_short(module):
    """A command's lines are its options."""
    assert module.lines <= 400
    is_command = {f for f in house.functions(module) if any(d.startswith("app.command") for d in f.decorators)}
    assert [f for f in house.functions(module) if f.lines > 50 and f not in is_command] == []


# -- what says what it is ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", house.folders(), ids=lambda path: path.name)
def test_every_folder_has_a_readme(folder):
    lines = (folder / "README.md").read_text().splitlines()
    assert 5 <= len(lines) <= 40


PUBLIC = ("", "rules", "composites", "canonizers", "heatmaps", "text", "circuits", "concepts", "attributors", "targets")


@functools.cache
def public_functions() -> dict[str, object]:
    """Those of the contents pages: of `__all__` or, without one, of whatever is imported there."""
    found: dict[str, object] = {}
    for folder in PUBLIC:
        name = f"lrpfunc.{folder}".rstrip(".")
        if folder and not importlib.util.find_spec(name):
            continue
        page = importlib.import_module(name)
        for listed in getattr(page, "__all__", [n for n in vars(page) if not n.startswith("_")]):
            value = getattr(page, listed)
            if inspect.isfunction(value) and not listed.isupper() and value not in found.values():  # DEFAULT is data
                found[f"{name}.{listed}"] = value
    return found


@functools.cache
def examples_of(module: str) -> dict[str, doctest.DocTest]:
    """What `--doctest-modules` runs of a module, by name."""
    found = doctest.DocTestFinder().find(importlib.import_module(module))
    return {example.name: example for example in found if example.examples}


@pytest.mark.parametrize("name", public_functions())
def test_every_public_function_has_an_example_that_runs(name):
    """As one of those that `pytest` takes from the modules, which is where they are run."""
    function = public_functions()[name]
    assert (function.__doc__ or "").strip()
    where = f"{function.__module__}.{function.__qualname__}"
    assert where in examples_of(function.__module__), "an example is missing: >>> import lrpfunc, torch"


def test_pytest_runs_the_examples(pytestconfig):
    assert pytestconfig.getoption("doctestmodules")
    assert set(pytestconfig.getini("testpaths")) == {"tests", "lrpfunc"}


def test_the_table_is_printed(capsys):
    house.main(house.ROOT)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["folder", "files", "lines"]
    assert lines[-2].split()[:3] == ["all", str(len(MODULES)), str(sum(module.lines for module in MODULES))]
