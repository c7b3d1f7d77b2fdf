"""Where relevance went, as a figure: the ledger of an explanation, drawn from the output to the inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lrpfunc.attribution import Entry, Ledger, Target, ledger
from lrpfunc.composites import Entries
from lrpfunc.heatmaps import checks
from lrpfunc.heatmaps.figures import new_figure, tail, write_title
from lrpfunc.operations import CONVOLUTION, DENSE
from lrpfunc.program import Program

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

NOTICEABLE = 1e-3  # of the seed, or of the largest share if that is larger
PASSED, ABSORBED, ADDED = "0.82", "tab:red", "tab:blue"


def flow(
    fmodel: Program,
    params,
    x,
    rules: Entries,
    target: Target = None,
    title: str = "",
    figure: Figure | SubFigure | None = None,
) -> Any:
    """A figure of the ledger, the output at the top: what each layer gets and passes on, and what is left in all.

    Left: all relevance that is still on its way, from the seed to what arrives at the inputs, with what each layer
    absorbs: red, or blue where that is below zero. Right: what arrives at the layer and what it passes on. Equations
    without weights that absorb less than 0.1% of the seed are not shown; the total counts them. Sums are over the
    batch.

    Args:
        fmodel: as in `attribute`, as are the next four.
        params: the pytree of parameters.
        x: the input, or a tuple of them.
        rules: a composite, `{name pattern: rule}`, or one rule.
        target: what is explained; None for the arg-max.
        title: stands above all.
        figure: as in `show`.
    Errors: those of `attribute`; `InputError` for a title or a figure that is none.

    >>> import lrpfunc, torch
    >>> from lrpfunc import heatmaps
    >>> fmodel, params = lrpfunc.functionalize(torch.nn.Linear(3, 2), torch.randn(4, 3))
    >>> drawn = heatmaps.flow(fmodel, params, torch.randn(4, 3), lrpfunc.rules.epsilon(), target=1)
    >>> [label.get_text() for label in drawn.axes[0].get_yticklabels()]
    ['output', 'linear', 'inputs']
    """
    figure, title = checks.canvas(figure), checks.text("the title", title)  # before long work
    return draw(ledger(fmodel, params, x, rules, target), title, figure)


def draw(account: Ledger, title: str, figure: Figure | SubFigure | None) -> Any:
    shown = _noticeable(account)
    figure = new_figure(9.5, 0.2 * len(shown) + 1.9) if figure is None else figure
    total, parts = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    _draw_total(total, account, shown)
    _draw_parts(parts, shown)
    positions = range(len(shown) + 2)
    total.set_yticks(positions, ["output", *(tail(entry.name) for entry, _ in shown), "inputs"], fontsize=8)
    total.set_ylim(len(shown) + 1.6, -0.6)
    rules = parts.secondary_yaxis("right")
    rules.set_yticks(positions, ["", *(_head(entry.rule) for entry, _ in shown), ""], fontsize=7.5, color="0.35")
    for axis in (total, parts, rules):
        axis.tick_params(axis="y", length=0)
        axis.spines[:].set_visible(False)
    for axis in (total, parts):
        axis.axvline(0, color="0.3", linewidth=0.8)
        axis.grid(axis="x", color="0.92", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.tick_params(axis="x", labelsize=8, length=0)
    write_title(figure, title)
    figure.supxlabel(_legend(account, len(account.entries) - len(shown)), fontsize=8.5, color="0.3")
    return figure


def _noticeable(account: Ledger) -> list[tuple[Entry, float]]:
    """The entries to show, each with all the relevance that is on its way after it."""
    scale = max([abs(account.seed), *(abs(entry.absorbed) for entry in account.entries)])
    left, shown = account.seed, []
    for entry in account.entries:
        left -= entry.absorbed
        if entry.kind in (CONVOLUTION, DENSE) or abs(entry.absorbed) > NOTICEABLE * scale:
            shown.append((entry, left))
    return shown


def _draw_total(axis: Any, account: Ledger, shown: Sequence[tuple[Entry, float]]) -> None:
    """What is left after each entry as a bar, and at its end what the entry absorbed."""
    left = [account.seed, *(after for _, after in shown), account.arrived]
    absorbed = [0.0, *(entry.absorbed for entry, _ in shown), 0.0]
    colors = [ABSORBED if share > 0 else ADDED for share in absorbed]
    axis.barh(range(len(left)), left, color=["0.45", *[PASSED] * len(shown), "0.45"], height=0.8)
    axis.barh(range(len(left)), absorbed, left=left, color=colors, height=0.8)
    reach = max(max(map(abs, left)), max(abs(after + share) for after, share in zip(left, absorbed, strict=True)))
    for i, (after, share) in enumerate(zip(left, absorbed, strict=True)):
        at_end = i in (0, len(left) - 1)
        if at_end or abs(share) > 0.01 * reach:
            end = max(after, after + share, 0.0)
            text = _short(after) if at_end else _short(-share, "+")
            color = "0.2" if at_end else colors[i]
            axis.text(end + 0.01 * reach, i, text, va="center", fontsize=7.5, color=color)
    axis.margins(x=0.1)
    axis.set_title("still on its way, in all layers together", fontsize=9, loc="left")


def _draw_parts(axis: Any, shown: Sequence[tuple[Entry, float]]) -> None:
    """What arrived at each entry and what it passed on."""
    for i, (entry, _) in enumerate(shown, start=1):
        axis.barh(i - 0.2, entry.arrived, color="0.65", height=0.36)
        axis.barh(i + 0.2, entry.passed_on, color="0.3", height=0.36)
    axis.set_title("arrived at the layer (light), passed on (dark)", fontsize=9, loc="left")


def _legend(account: Ledger, hidden: int) -> str:
    parts = [
        f"seed {_short(account.seed)}",
        f"at the inputs {_short(account.arrived)}",
        f"absorbed {_short(account.absorbed)} (red; blue: below zero)",
        "summed over the batch",
    ]
    return ", ".join(parts) + f"\nnot shown: {hidden} without weights that absorb nothing noticeable" * (hidden > 0)


def _short(value: float, sign: str = "") -> str:
    """Three digits at least, and no powers of ten where thousands can be read."""
    return format(value, f"{sign},.0f" if 1000 <= abs(value) < 1e6 else f"{sign}.3g")


def _head(rule: str, length: int = 30) -> str:
    return rule if len(rule) <= length else f"{rule[:length]}…"
