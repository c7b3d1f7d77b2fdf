"""What the README shows works as it stands there."""

import glob
import re
import shlex
from pathlib import Path

import torch
from typer.testing import CliRunner

from lrpfunc import cli

README = Path(__file__).parents[1].joinpath("README.md").read_text()


def test_the_code_of_the_readme_runs():
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 8
    # Pretrained weights and eight large images are the reader's; here a small stand-in does.
    of_text = [block for block in blocks if "transformers" in block]
    code = (
        "\n".join(block for block in blocks if block not in of_text)
        .replace('weights="DEFAULT"', "weights=None")
        .replace("8, 3, 224, 224", "2, 3, 64, 64")
    )
    weight, bias = torch.randn(2, 64), torch.randn(2)
    code = code.replace("x, weight, bias)  #", "x.flatten(1)[:, :64], weight, bias)  #")
    namespace = {"weight": weight, "bias": bias}
    exec(code, namespace)
    assert namespace["relevance"].shape == (2, 3, 64, 64)
    assert namespace["relevance"].any()


def test_the_code_about_text_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = [
        block for block in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL) if "transformers" in block
    ]
    namespace: dict = {}
    exec(code, namespace)
    assert namespace["relevance"].shape == (1, 4)
    assert "red" in capsys.readouterr().out
    assert "red" in Path("next.html").read_text()


def test_the_commands_of_the_readme_run_one_after_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("lrpfunc ")]
    assert [line.split()[1] for line in lines] == ["digits", "image", "inspect", "dataset", "report"]
    for line in lines:  # of a pattern the first image: more of them are in test_panels
        words = [word for part in shlex.split(line)[1:] for word in sorted(glob.glob(part))[:1] or [part]]
        result = CliRunner().invoke(cli.app, words)
        assert result.exit_code == 0, (line, result.output)
    assert (
        len(list(Path("heatmaps").glob("*.panel.png"))) == 2 * 2
    )  # the first image of each pattern, and the two highest classes
    assert Path("run.h5").exists()
    assert Path("report.html").exists()
