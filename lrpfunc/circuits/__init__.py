"""What goes on inside: graphs of tokens through layers, relevance patching, and lenses on residual streams.

graph = circuits.graph(fmodel, params, ids, target=(-1, token)); graph.nodes; graph.html(tokens, "page.html")
circuits.patching(fmodel, params, clean, corrupted, target, rules, at="*.self_attn:heads")
lens = circuits.lens(fmodel, params, prompts, rules, at=[...]); lens.save("lens.pt"); circuits.load_lens("lens.pt")
"""

from lrpfunc.circuits.graphs import Graph, Pair
from lrpfunc.circuits.lenses import Lens, lens, load_lens
from lrpfunc.circuits.patches import patched, patching
from lrpfunc.circuits.paths import Path
from lrpfunc.circuits.walks import graph

__all__ = ["Graph", "Lens", "Pair", "Path", "graph", "lens", "load_lens", "patched", "patching"]
