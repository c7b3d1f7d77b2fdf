"""The API reference: it is made without a warning, and each public name is in it with its signature and an example."""

import html
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lrpfunc.errors import LrpError
from tests.test_documents import blocks_in

ROOT = Path(__file__).parents[1]
FOLDERS = ("rules", "composites", "canonizers", "attributors", "circuits", "heatmaps", "text", "errors")
PAGES = ("lrpfunc", *(f"lrpfunc.{name}" for name in FOLDERS))


def documented(page: str) -> list[str]:
    """The names on a page, but for those of other pages. Of errors there is no list: all are public."""
    module = importlib.import_module(page)
    names = getattr(module, "__all__", [name for name, value in vars(module).items() if is_error(value)])
    return [name for name in names if not inspect.ismodule(getattr(module, name))]


def is_error(value: object) -> bool:
    return inspect.isclass(value) and issubclass(value, LrpError)


def docstring(page: str, name: str) -> str:
    return inspect.getdoc(getattr(importlib.import_module(page), name)) or ""


NAMES = [(page, name) for page in PAGES for name in documented(page)]


@pytest.mark.parametrize(("page", "name"), NAMES)
def test_every_public_name_says_what_it_is_and_has_an_example(page, name):
    value = getattr(importlib.import_module(page), name)
    text = docstring(page, name)
    assert text
    if not is_error(value) or value is LrpError:
        assert ">>>" in text
    if not inspect.isclass(value):
        parameters = inspect.signature(value).parameters if inspect.isfunction(value) else ("program", "params")
        described = " ".join(re.findall(r"^    ?([\w*, ]+):", text.partition("Args:")[2], flags=re.MULTILINE))
        assert [p for p in parameters if not re.search(rf"\b{p}\b", described)] == []


# -- pdoc -------------------------------------------------------------------------------------------------------------


def command() -> list[str]:
    """As `tests/README.md` has it."""
    blocks = blocks_in((ROOT / "tests" / "README.md").read_text())
    (line,) = [block.text.strip() for block in blocks if block.text.startswith("pdoc")]
    return [word.strip("'") for word in line.split()]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    pytest.importorskip("pdoc")
    out = tmp_path_factory.mktemp("api")
    words = command()
    words[words.index("-o") + 1] = str(out)
    run = [sys.executable, "-W", "error", "-m", *words]
    result = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert not result.stderr.strip()
    return out


@pytest.mark.dev
def test_the_reference_has_a_page_for_each_contents_page_and_no_other(written):
    pages = {path.relative_to(written).with_suffix("").as_posix().replace("/", ".") for path in written.rglob("*.html")}
    assert pages - {"index"} == set(PAGES)


@pytest.mark.dev
@pytest.mark.parametrize("page", PAGES)
def test_the_reference_has_every_public_name(written, page):
    text = (written / page.replace(".", "/")).with_suffix(".html").read_text()
    for name in documented(page):
        _, found, rest = text.partition(f'<section id="{name}">')
        assert found, name
        section = html.unescape(re.sub(r"<[^>]*>", "", rest.partition("</section>")[0]))
        example = re.search(r">>> .*", docstring(page, name))
        assert re.search(rf"(def|class)\s+{name}\s*[(:]", section), name
        assert example is None or re.sub(r"\s", "", example[0]) in re.sub(r"\s", "", section), name
        assert "Args:" not in section, name  # it would be a list that pdoc has not understood
