"""What goes on inside: relevance patching, and lenses on residual streams.

circuits.patching(fmodel, params, clean, corrupted, target, rules, at="*.self_attn:heads")
lens = circuits.lens(fmodel, params, prompts, rules, at=[...]); lens.save("lens.pt"); circuits.load_lens("lens.pt")
"""

from lrpfunc.circuits.lenses import Lens, lens, load_lens
from lrpfunc.circuits.patching import patched, patching

__all__ = ["Lens", "lens", "load_lens", "patched", "patching"]
