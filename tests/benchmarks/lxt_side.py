"""A process that measures the gradient or LXT, in LXT's environment: tests/lxt_reference.py says how to make one.

For each line that comes in, "seconds" or "peak", one goes out, with a call's duration or memory in JSON.
`tests/benchmarks/attention.py` starts it and takes turns with it.
"""

import contextlib
import json
import sys
from functools import partial

import torch
from torch import Tensor, nn

from tests.benchmarks import networks
from tests.benchmarks.measure import Call, peak, seconds

MEASURES = {"seconds": seconds, "peak": peak}


def main(method: str, name: str, size: str, batch: str, device: str, threads: str) -> None:
    answers = sys.stdout
    torch.set_num_threads(int(threads))
    with contextlib.redirect_stdout(sys.stderr):  # libraries may print
        call = set_up(method, name, int(size), int(batch), torch.device(device))
        for line in sys.stdin:
            print(json.dumps(MEASURES[line.strip()](call, torch.device(device))), file=answers, flush=True)


def set_up(method: str, name: str, size: int, batch: int, device: torch.device) -> Call:
    """The gradient, or with patches LXT: "attn_lrp", "cp_lrp", or "attn_lrp_gamma", by its bridge to zennit."""
    x = {key: tensor.to(device) for key, tensor in networks.inputs(name, size, batch).items()}
    if method == "gradient":
        return partial(networks.gradient, networks.build(name, size).to(device), x)
    from lxt.efficient import monkey_patch_zennit

    from tests.lxt_reference import gamma, patch

    patch("llama" if name in networks.LLAMAS else "torchvision_vit", method.removesuffix("_gamma"))
    model = networks.build(name, size).to(device)
    if method.endswith("_gamma"):
        monkey_patch_zennit()
        gamma().register(model)
    return partial(relevance, model, x)


def relevance(model: nn.Module, x: dict[str, Tensor]) -> Tensor:
    (values,) = x.values()
    return values * networks.gradient(model, x)


if __name__ == "__main__":
    main(*sys.argv[1:])
