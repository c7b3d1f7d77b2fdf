"""What older torch and transformers cannot do, and the suite under each version of torch and Python, as a table.

`python -m tests.versions [torch==2.8.0 ...] [--python 3.11 ...] [-- pytest arguments]` makes an environment for each in
a folder of its own (uv, five minutes and five GB each, which it removes), installs lrpfunc with the extra `test` and
runs the tests. Without arguments: `ROWS`, an hour and a half.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import IO, NamedTuple

ROOT = Path(__file__).parents[1]
LONGEST = 3600.0  # seconds: a run waits for ever for a worker that crashed (pytest-xdist, by file)

# The lowest and the highest torch, and some between; each Python at least once.
ROWS = (
    ("2.8.0", "3.11"),
    ("2.9.1", "3.12"),
    ("2.10.0", "3.11"),
    ("2.12.1", "3.11"),
    ("2.14.1", "3.13"),
    ("2.15.0", "3.11"),
    ("2.15.0", "3.12"),
    ("2.15.0", "3.13"),
)


class Limit(NamedTuple):
    """Tests that a package before `below`, and from `since` on, cannot pass: a pattern of their names, and why."""

    below: tuple[int, int]
    tests: str
    why: str
    package: str = "torch"
    since: tuple[int, int] = (0, 0)


LIMITS = (
    Limit(
        (2, 12),
        r"test_compiling\.py|test_a_prepared_explanation_compiles|test_targets_compile|test_torch_compile_|"
        r"test_a_canonical_attribution_compiles|test_a_record_compiles|in_compiled_code|"
        r"test_explanations_under_transforms_take_other_sizes",
        "its compiler cannot follow frozen dataclasses, named tuples told by identity and optree",
    ),
    Limit(
        (2, 9),
        r"test_open_sizes\.py.*(u-net|conditions|\[(even|both|max_pool2d|down1|up2|mix1)\]|_makes_batches_|_a_layer_fixes_)",
        "it fixes sizes that conditions bind, or says another reason why they cannot stay open",
    ),
    Limit((2, 12), r"test_sizes_that_do_not_fit_.*\[a table\]", "it says of a slice that it must be between two sizes"),
    Limit((2, 9), r"test_complex_values_move\[(filter|spectral)", "its vmap of real Fourier transforms fails in MKL"),
    Limit((2, 9), r"test_arguments_that_turn_signs\[alpha by position\]", "it has no such overload of add to trace"),
    Limit((2, 9), r"without_a_twin_are_errors\[into_lists", "it cannot trace unbind_copy(out=)"),
    Limit((2, 14), r"test_transforms_inside_forward", "it says nothing of what goes wrong there"),
    Limit((2, 10), r"test_vmap_is_what_it_maps", "it cannot export vmap, or not of masks"),
    Limit(
        (2, 12),
        r"test_composite_options\[.*-merged-|test_composite\[(resnet18|vgg11_bn)-",
        "it refuses the eps of 0 that zennit gives merged batch norms",
        since=(2, 10),
    ),
    Limit(
        (2, 14),
        r"\[(True-|False-)?combinations\]|test_every_pullback_has_a_sample",
        "it counts open sizes wrongly in combinations",
    ),
    Limit((2, 14), r"test_tracing_within_a_trace", "it stumbles over a generator in the inner trace first"),
    Limit((2, 14), r"test_a_scan_is_its_steps", "it gives scan's results wrong shapes for steps along another axis"),
    Limit((2, 14), r"test_what_has_no_derivative_says_so", "it takes what has no derivative for a constant"),
    Limit((2, 15), r"become_functional\[into_others\]", "it fixes the size of max(out=)"),
    Limit(
        (3, 14),
        r"test_a_batch_norm_of_an_empty_batch_is_left",
        "torch crashes at times in a batch norm without channels, as seen with 2.15 on 3.13.0",
        "python",
        since=(3, 13),
    ),
    Limit(
        (5, 0),
        r"[\[-](mixtral|qwen2_moe|qwen3_moe|deepseek_v2|deepseek_v3|gpt_oss|jamba|minimax)\b",
        "experts are called one by one, as tokens choose them",
        "transformers",
    ),
    Limit((5, 0), r"[\[-](falcon_h1|bamba)\b", "they decide by the values of a mask while they run", "transformers"),
    Limit(
        (5, 0),
        r"test_bfloat16_stays_finite.*-(bert|gpt2)\]",
        "a mask has the lowest float32, above bfloat16's",
        "transformers",
    ),
    Limit(
        (5, 4), r"test_a_sequence_longer_than_the_models_positions", "its models do not say how many", "transformers"
    ),
    Limit(
        (5, 23),
        r"_is_the_oracles\[deberta-",
        "the oracle cannot see into its scripted functions, which round to float32",
        "transformers",
    ),
)


def version_of(text: str) -> tuple[int, int]:
    major, minor = re.findall(r"\d+", text)[:2]
    return int(major), int(minor)


def reasons_against(test: str, installed: Mapping[str, str]) -> Iterator[str]:
    """Why a test cannot pass under the versions of packages that are installed."""
    for limit in LIMITS:
        version = installed.get(limit.package)
        if version and limit.since <= version_of(version) < limit.below and re.search(limit.tests, test):
            yield f"{limit.package} before {limit.below[0]}.{limit.below[1]}: {limit.why}"


def installed() -> dict[str, str]:
    """The versions here of the packages that have limits."""
    names = {limit.package for limit in LIMITS}
    versions = {name: metadata.version(name) for name in names if name != "python" and find_spec(name)}
    return versions | {"python": platform.python_version()}


# -- the table --------------------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    torch: str
    python: str
    result: str
    seconds: float
    is_green: bool


def main(arguments: Sequence[str]) -> int:
    options = _options(arguments)
    outcomes = []
    for torch_version, python in options.rows:
        outcome = run(torch_version, python, options.pytest, Path(options.logs))
        outcomes.append(outcome)
        print(_line(*outcome[:3], f"{outcome.seconds / 60:.1f} min"), flush=True)
    print()
    print(_line("torch", "Python", "result", "took"))
    for outcome in outcomes:
        print(_line(*outcome[:3], f"{outcome.seconds / 60:.1f} min"))
    return 0 if all(outcome.is_green for outcome in outcomes) else 1


def _line(*cells: str) -> str:
    return "{:8} {:7} {:60} {}".format(*cells)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.versions", description=__doc__.split("\n")[0])
    parser.add_argument("torch", nargs="*", help="versions, as in torch==2.8.0 or 2.8.0; all of ROWS without")
    parser.add_argument("--python", action="append", help="versions, with each torch; 3.11 without")
    parser.add_argument("--logs", default=tempfile.gettempdir(), help="the folder for what pytest says")
    own, _, rest = _split(arguments)
    options = parser.parse_args(own)
    named = [text.removeprefix("torch==") for text in options.torch]
    options.rows = [(t, p) for t in named for p in options.python or ["3.11"]] if named else list(ROWS)
    options.pytest = rest
    return options


def _split(arguments: Sequence[str]) -> tuple[list[str], str, list[str]]:
    given = list(arguments)
    place = given.index("--") if "--" in given else len(given)
    return given[:place], "--", given[place + 1 :]


def run(torch_version: str, python: str, pytest: Sequence[str], logs: Path) -> Outcome:
    """Run the suite in a new environment. What was said is in `logs`."""
    start = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix=f"torch-{torch_version}-"))
    log = logs / f"lrpfunc-torch-{torch_version}-python-{python}.log"
    try:
        with log.open("w") as file:
            interpreter = _environment(folder, torch_version, python, file)
            code = run_for([interpreter, "-m", "pytest", "-p", "no:cacheprovider", *pytest], LONGEST, file)
        passed, result = code == 0, _summary(log)
    except subprocess.CalledProcessError as error:
        passed, result = False, f"no environment: {' '.join(map(str, error.cmd[:4]))} failed, see {log}"
    except subprocess.TimeoutExpired as error:
        passed, result = False, f"given up after {error.timeout / 60:.0f} min, see {log}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Outcome(torch_version, python, result, time.monotonic() - start, passed)


def run_for(command: Sequence[str | Path], seconds: float, log: IO[str]) -> int:
    """The code that a command ends with. Errors: `TimeoutExpired`, with all that it started ended too."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        return process.wait(seconds)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _environment(folder: Path, torch_version: str, python: str, log) -> Path:
    """An environment with a version of torch and all that the tests need. Errors: `CalledProcessError`."""
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if uv is None:
        sys.exit("python -m tests.versions needs uv: pip install 'lrpfunc[dev]'")
    interpreter = folder / "bin" / "python"
    known = Path.home() / ".pyenv" / "versions"  # where uv does not look by itself
    here = sorted(known.glob(f"{python}.*")) if known.is_dir() else []
    wanted = str(here[-1] / "bin" / "python") if here else python
    subprocess.run([uv, "venv", "-q", "--python", wanted, folder], check=True, stdout=log, stderr=log)
    # setuptools: torch's own database of operations imports it, and before 2.14 does not ask for it.
    packages = [f"torch=={torch_version}", "setuptools", "-e", f"{ROOT}[test]"]
    install = [uv, "pip", "install", "-q", "--python", interpreter, *packages]
    subprocess.run(install, check=True, stdout=log, stderr=log)
    return interpreter


def _summary(log: Path) -> str:
    """The last line of pytest that counts."""
    lines = [line for line in log.read_text().splitlines() if re.search(r"\d+ (passed|failed|error)", line)]
    return re.sub(r" in [\d.]+s.*", "", lines[-1].strip("= ")) if lines else "no tests ran"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
