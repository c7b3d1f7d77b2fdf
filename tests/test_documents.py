"""What the README and the guides show works as it stands there, in its order; what a document links to exists.

A document's blocks run one after another in one folder and, those in Python, in one namespace. A block of text behind
one that runs is what that one prints, with `...` for what is left out.
"""

import doctest
import glob
import importlib.util
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest
import typer
from typer.testing import CliRunner

from lrpfunc import cli

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
GUIDES = sorted(ROOT.glob("examples/guides/*.md"))
RUN = [README, *GUIDES]
DOCUMENTS = [*RUN, *sorted(ROOT.glob("lrpfunc/**/*.md")), *sorted(ROOT.glob("tests/**/*.md"))]
PICTURES = sorted(path for path in ROOT.glob("examples/**/*") if path.suffix in (".png", ".svg"))
SET_UP = ["pip install -e '.[photos]' && lrpfunc demo", "pip install -e '.[test]' && pytest"]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def named(paths: list[Path]):
    return pytest.mark.parametrize("path", paths, ids=name_of)


# -- what runs --------------------------------------------------------------------------------------------------------


class Block(NamedTuple):
    """A fenced block: what stands behind its backticks, its lines, and where they begin."""

    language: str
    text: str
    line: int


def blocks_in(text: str) -> list[Block]:
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return [Block(match[1], match[2], text.count("\n", 0, match.start()) + 1) for match in found]


def run_python(block: Block, path: Path, namespace: dict) -> None:
    code = compile("\n" * block.line + block.text, str(path), "exec", dont_inherit=True)  # tracebacks name the line
    exec(code, namespace)


def run_commands(block: Block) -> str:
    """Ours run here, and give what they print. Of Python's the file or module exists; its test is another one.

    What is for a cluster is done in this process, as by one rank, when its options are found to be some.
    """
    printed = ""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = [word for part in shlex.split(line, comments=True) for word in sorted(glob.glob(part)) or [part]]
        if "--engine" in words:
            printed += run_blocks(words[words.index("lrpfunc") + 1 :])
        elif words[0] == "lrpfunc":
            result = CliRunner().invoke(cli.app, words[1:])
            assert result.exit_code == 0, (line, result.output, result.exception)
            printed += result.output
        elif words[:2] == ["python", "-m"]:
            assert importlib.util.find_spec(words[2])
        elif words[0] == "python":
            assert (ROOT / words[1]).is_file()
        else:
            assert words[0] in ("pip", "pytest", "pdoc", "ray"), f"nothing runs {line!r}"
    return printed


def run_blocks(words: list[str]) -> str:
    command, *options = words
    typer.main.get_command(cli.app).commands[command].make_context(command, [*options])
    of_a_cluster = {i + k for i, word in enumerate(options) if word in ("--address", "--processes") for k in (0, 1)}
    kept = [word for i, word in enumerate(options) if i not in of_a_cluster]
    kept[kept.index("--engine") + 1] = "ranks"
    result = CliRunner().invoke(cli.app, [command, *kept], env={"RANK": "0", "WORLD_SIZE": "1"})
    assert result.exit_code == 0, (options, result.output, result.exception)
    return result.output


def check_printed(expected: Block, printed: str) -> None:
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.OutputChecker().check_output(expected.text, printed, flags), f"line {expected.line}:\n{printed}"


@named(RUN)
def test_every_block_runs(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": "document"}
    printed = None
    for block in blocks_in(path.read_text()):
        match block.language:
            case "python":
                run_python(block, path, namespace)
                printed = capsys.readouterr().out
            case "sh":
                printed = run_commands(block)
            case "text":
                assert printed is not None, f"line {block.line}: nothing printed that"
                check_printed(block, printed)
            case other:
                pytest.fail(f"line {block.line}: a block is python, sh or text, but this is {other!r}")


def test_blocks_are_found_with_their_lines():
    text = "a\n\n```sh\nb\n```\n\n```python\nc\nd\n```\n"
    assert blocks_in(text) == [Block("sh", "b\n", 3), Block("python", "c\nd\n", 7)]


def test_what_is_printed_is_compared():
    check_printed(Block("text", "a ... c\n", 1), "a  b\nc\n")
    with pytest.raises(AssertionError, match="line 1"):
        check_printed(Block("text", "a\n", 1), "b\n")


# -- the README -------------------------------------------------------------------------------------------------------


def test_the_readme_is_short():
    assert len(README.read_text().split()) <= 1500


def test_the_readme_sets_up_by_two_commands():
    lines = [
        line for block in blocks_in(README.read_text()) if block.language == "sh" for line in block.text.split("\n")
    ]
    assert [line for line in lines if line.startswith("pip")] == SET_UP


def test_the_readme_has_no_address():
    """It is the package's metadata, and its pictures and links are files beside it."""
    assert "://" not in README.read_text()


def test_the_readme_leads_to_every_guide():
    linked = {(README.parent / target).resolve() for _, target in links_in(README.read_text())}
    assert set(GUIDES) <= linked


# -- links and pictures -----------------------------------------------------------------------------------------------


def prose(text: str) -> str:
    """Without blocks and code between backticks."""
    return re.sub(r"`[^`\n]*`", "`", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE))


def links_in(text: str) -> list[tuple[str, str]]:
    """(What is shown, where it leads to) of each link and picture, but of those to the web."""
    found = re.findall(r"\[((?:!\[[^]]*\]\([^)]*\)|[^]])*)\]\(([^)\s]+)\)", prose(text))
    inner = re.findall(r"\[!\[([^]]*)\]\(([^)\s]+)\)\]", prose(text))
    return [(shown, target) for shown, target in [*found, *inner] if "://" not in target]


def anchors_in(text: str) -> set[str]:
    """The headings of a document as addresses within it."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@named(DOCUMENTS)
def test_links_lead_somewhere(path):
    for shown, target in links_in(path.read_text()):
        file, _, anchor = target.partition("#")
        leads_to = path.parent / file if file else path
        assert leads_to.exists(), f"[{shown}]({target})"
        if anchor:
            assert anchor in anchors_in(leads_to.read_text()), f"[{shown}]({target})"


@named(DOCUMENTS)
def test_pictures_say_in_words_what_they_show(path):
    for shown, _ in re.findall(r"!\[([^]]*)\]\(([^)]*)\)", prose(path.read_text())):
        assert len(shown.split()) >= 8, shown


@named(PICTURES)
def test_every_picture_is_shown_and_small(path):
    shown_by = [
        document
        for document in DOCUMENTS
        for _, target in links_in(document.read_text())
        if (document.parent / target).resolve() == path
    ]
    assert shown_by
    assert path.stat().st_size < 1_200_000


def test_links_and_anchors_are_read():
    text = "# A `b`, c\n[x](y.md#z) `[no](no)` ![p](q.png) [w](https://w)\n```sh\n[no](no)\n# no\n```\n"
    assert links_in(text) == [("x", "y.md#z"), ("p", "q.png")]
    assert anchors_in(text) == {"a-b-c"}
