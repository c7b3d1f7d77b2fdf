"""Other ways to attribute, to stand beside relevance: gradients, their averages, and occlusion.

    explain = functools.partial(attributors.gradient, fmodel, params, target=3)
    attributors.smooth_grad(explain, x); attributors.integrated_gradients(explain, x)
    attributors.smooth_grad(lrpfunc.prepare(fmodel, params, rules), x)     # of relevance, too
    attributors.occlusion(attributors.score(fmodel, params, x, 3), x, window=16)

Each is a pure function; `vmap` and `jvp` go through where they go through what is explained.
"""

from lrpfunc.attributors.averages import integrated_gradients, smooth_grad
from lrpfunc.attributors.gradients import gradient, score
from lrpfunc.attributors.windows import occlusion

__all__ = ["gradient", "integrated_gradients", "occlusion", "score", "smooth_grad"]
