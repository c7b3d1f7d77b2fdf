"""What the README shows works as it stands there."""

import re
from pathlib import Path

import torch

README = Path(__file__).parents[1].joinpath("README.md").read_text()


def test_the_code_of_the_readme_runs():
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 5
    # Pretrained weights and eight large images are the reader's; here a small stand-in does.
    code = "\n".join(blocks).replace('weights="DEFAULT"', "weights=None").replace("8, 3, 224, 224", "2, 3, 64, 64")
    weight, bias = torch.randn(2, 64), torch.randn(2)
    code = code.replace("x, weight, bias)  #", "x.flatten(1)[:, :64], weight, bias)  #")
    namespace = {"weight": weight, "bias": bias}
    exec(code, namespace)
    assert namespace["relevance"].shape == (2, 3, 64, 64)
    assert namespace["relevance"].any()
