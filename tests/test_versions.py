"""The table of versions: what is left out where, how the line of a run is read, and what old versions are told."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lrpfunc import compat
from lrpfunc.errors import VersionError
from tests import versions

TESTS = "\n".join(path.read_text() for path in sorted(Path(__file__).parent.glob("test_*.py")))


def test_what_an_old_torch_cannot_do_is_left_out_there_only():
    name = "tests/test_table.py::test_a_row_has_the_kind_of_its_equation[combinations]"
    assert list(versions.reasons_against(name, {"torch": "2.8.0+cu128"})) == [
        "torch before 2.14: it counts open sizes wrongly in combinations"
    ]
    assert list(versions.reasons_against(name, {"torch": "2.14.1"})) == []
    merged = "tests/test_zennit_parity.py::test_composite[resnet18-epsilon_plus]"
    of_merged = [len(list(versions.reasons_against(merged, {"torch": v}))) for v in ("2.9.1", "2.10.0", "2.12.1")]
    assert of_merged == [0, 1, 0]
    assert list(versions.reasons_against(name.replace("combinations", "conv2d"), {"torch": "2.8.0"})) == []


def test_what_an_old_transformers_cannot_do_is_left_out_there_only():
    name = "tests/test_eager_oracle.py::test_cp_lrp_is_the_oracles[deberta-eager]"
    (reason,) = versions.reasons_against(name, {"torch": "2.15.0", "transformers": "5.0.0"})
    assert reason.startswith("transformers before 5.23: the oracle cannot see into its scripted functions")
    assert list(versions.reasons_against(name, {"torch": "2.15.0", "transformers": "5.23.0"})) == []
    assert list(versions.reasons_against(name, {"torch": "2.15.0"})) == []


def test_nothing_is_left_out_by_the_newest():
    """Of torch, as the table has it."""
    newest = max(versions.version_of(torch_version) for torch_version, _ in versions.ROWS)
    assert all(limit.below <= newest for limit in versions.LIMITS if limit.package == "torch")


def test_what_is_installed_is_found():
    found = versions.installed()
    assert found.keys() == {"torch", "transformers", "python"}
    assert versions.version_of(found["torch"]) == versions.version_of(torch.__version__)
    assert versions.version_of(found["python"]) == sys.version_info[:2]


@pytest.mark.parametrize("limit", versions.LIMITS, ids=lambda limit: limit.tests[:40])
def test_every_limit_names_tests_that_exist(limit):
    """By the first word of each alternative, as parameters are no text in the files."""
    for alternative in limit.tests.split("|"):
        word = max(re.findall(r"\w+", alternative), key=len)
        assert word in TESTS or (Path(__file__).parent / f"{word}.py").exists()


def test_the_table_has_what_the_package_promises():
    lowest = min(versions.version_of(torch_version) for torch_version, _ in versions.ROWS)
    assert lowest == compat.MINIMUM
    project = Path(__file__).parents[1].joinpath("pyproject.toml").read_text()
    assert f'"torch>={lowest[0]}.{lowest[1]}"' in project
    pythons = {python for _, python in versions.ROWS}
    assert set(re.findall(r"Programming Language :: Python :: (3\.\d+)", project)) == pythons


def test_the_line_that_counts_is_found(tmp_path):
    log = tmp_path / "log"
    log.write_text("....\n==== 2 failed, 6900 passed, 30 skipped in 259.57s (0:04:19) ====\n")
    assert versions._summary(log) == "2 failed, 6900 passed, 30 skipped"
    log.write_text("error: no such version\n")
    assert versions._summary(log) == "no tests ran"


def test_a_row_without_an_environment_is_red(tmp_path, monkeypatch, capsys):
    def refuse(folder, torch_version, python, log):
        raise versions.subprocess.CalledProcessError(1, ["uv", "pip", "install", "-q", "--python"])

    monkeypatch.setattr(versions, "_environment", refuse)
    assert versions.main(["torch==1.0", "--python", "3.9", "--logs", str(tmp_path)]) == 1
    shown = capsys.readouterr().out.splitlines()
    assert shown[-2].split() == ["torch", "Python", "result", "took"]
    assert shown[-1].startswith("1.0      3.9     no environment: uv pip install -q failed, see ")


def test_a_run_that_hangs_is_given_up_with_all_that_it_started(tmp_path, monkeypatch):
    interpreter = tmp_path / "python"
    interpreter.write_text("#!/bin/sh\nsleep 600 & echo $!; wait\n")
    interpreter.chmod(0o755)
    monkeypatch.setattr(versions, "_environment", lambda *_: interpreter)
    monkeypatch.setattr(versions, "LONGEST", 3.0)
    outcome = versions.run("1.0", "3.11", [], tmp_path)
    log = tmp_path / "lrpfunc-torch-1.0-python-3.11.log"
    assert (outcome.result, outcome.is_green) == (f"given up after 0 min, see {log}", False)
    status = Path(f"/proc/{int(log.read_text())}/status")
    for _ in range(1000):  # it is killed, but dies when its turn comes
        if not is_alive(status):
            break
        time.sleep(0.05)
    assert not is_alive(status)


def is_alive(status):
    try:
        return "zombie" not in status.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_options():
    assert versions._options([]).rows == list(versions.ROWS)
    options = versions._options(["2.8.0", "torch==2.9.1", "--python", "3.12", "--", "-k", "laws"])
    assert options.rows == [("2.8.0", "3.12"), ("2.9.1", "3.12")]
    assert options.pytest == ["-k", "laws"]


# -- what people are told ---------------------------------------------------------------------------------------------


def test_a_python_that_is_too_old_is_told_so_in_one_line():
    code = "import sys; sys.version_info = (3, 10, 13); sys.version = '3.10.13 (main)'; import lrpfunc"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    line = found.stderr.splitlines()[-1]
    assert line == "lrpfunc.errors.VersionError: lrpfunc needs Python 3.11 or newer, but this is 3.10.13."


def test_a_torch_that_is_too_old_is_told_so_in_one_line():
    compat.check_version("2.8.0a0+git")
    compat.check_version(torch.__version__)
    with pytest.raises(VersionError) as caught:
        compat.check_version("2.7.1+cu118")
    assert str(caught.value) == "lrpfunc needs torch 2.8 or newer, but this is 2.7.1+cu118: pip install 'torch>=2.8'"
    assert isinstance(caught.value, ImportError)
