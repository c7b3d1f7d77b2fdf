"""Explanations of lrpfunc measured by Quantus (https://github.com/understandable-machine-intelligence-lab/Quantus).

Quantus calls `explain_func(model, inputs, targets, **keywords)` with arrays and wants an array of the inputs' shape.
Needs the extra `dev`.
"""

import argparse

import numpy as np
import quantus
import torch

import lrpfunc
from lrpfunc import composites, digits

COMPOSITES = {"epsilon": composites.epsilon(), "epsilon_plus": composites.epsilon_plus()}


def explain_func(model, inputs, targets, rules=None, **_):
    """What Quantus's `explain_func` may be: any of its metrics takes it. `rules` comes from `explain_func_kwargs`."""
    x = torch.as_tensor(inputs, dtype=torch.float32)
    fmodel, params, *_ = lrpfunc.canonize(*lrpfunc.functionalize(model, x))
    return lrpfunc.attribute(fmodel, params, x, rules, target=torch.as_tensor(targets)).numpy()


def scores(rules, x, y, seed=0):
    """How faithful: the correlation of relevance with what the output loses when pixels go; and how simple."""
    model = digits.load().model
    arrays = {"x_batch": x.numpy(), "y_batch": y.numpy(), "explain_func": explain_func, "device": "cpu"}
    keywords = {"explain_func_kwargs": {"rules": rules}}
    np.random.seed(seed)  # Quantus draws the pixels by NumPy's global generator
    faithful = quantus.FaithfulnessCorrelation(
        nr_runs=100, subset_size=16, perturb_baseline="black", disable_warnings=True, return_aggregate=False
    )
    simple = quantus.Sparseness(disable_warnings=True)
    return np.array(faithful(model=model, **arrays, **keywords)), np.array(simple(model=model, **arrays, **keywords))


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=20, help="how many digits")
    options = parser.parse_args(arguments)
    _, x, y = digits.load()
    x, y = x[: options.samples], y[: options.samples]
    found = {name: scores(rules, x, y) for name, rules in COMPOSITES.items()}
    for name, (faithful, simple) in found.items():
        print(f"{name:12}  faithfulness correlation {faithful.mean():.3f}  sparseness {simple.mean():.3f}")
    return found


if __name__ == "__main__":
    main()
