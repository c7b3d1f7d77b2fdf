"""Right for the right reasons: train a hand-written function with a penalty on its explanation.

No module at all: two layers on a dict of tensors. In the training data the last feature gives the label away; the
penalty on its relevance makes the network look elsewhere. Source: Ross et al. 2017, arXiv:1703.03717.
"""

import torch
import torch.nn.functional as F
from torch.func import grad, vmap

import lrpfunc

RULES = lrpfunc.composites.epsilon(1e-2)


def network(params, x):
    return torch.relu(x @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]


def train(params, x, y, penalty, steps=400, rate=0.05):
    fmodel, params = lrpfunc.trace(network, params, x)

    def loss(params):
        relevance = lrpfunc.attribute(fmodel, params, x, RULES, target=y)
        return F.cross_entropy(fmodel(params, x), y) + penalty * relevance[:, -1].square().mean()

    for _ in range(steps):
        gradient = grad(loss)(params)
        params = {name: p - rate * gradient[name] for name, p in params.items()}
    per_sample = vmap(lambda x, y: lrpfunc.attribute(fmodel, params, x[None], RULES, y)[0])
    return params, per_sample(x, y)


def data(leak, n=256, features=6):
    x = torch.randn(n, features)
    y = (x[:, 0] + x[:, 1] > 0).long()
    if leak:
        x[:, -1] = 2.0 * y - 1.0
    return x, y


def experiment(penalty, seed=0):
    """The share of relevance that the leak gets after training, and the accuracy where there is no leak."""
    torch.manual_seed(seed)
    params = {
        "w1": torch.randn(6, 16) * 0.4,
        "b1": torch.zeros(16),
        "w2": torch.randn(16, 2) * 0.4,
        "b2": torch.zeros(2),
    }
    params, relevance = train(params, *data(leak=True), penalty)
    x, y = data(leak=False)
    mean = relevance.abs().mean(0)
    return (mean[-1] / mean.sum()).item(), (network(params, x).argmax(1) == y).float().mean().item()


if __name__ == "__main__":
    for penalty in (0.0, 1.0):
        share, accuracy = experiment(penalty)
        print(
            f"penalty {penalty:.0f}: {share:5.1%} of the relevance on the leak, {accuracy:.1%} right without the leak"
        )
