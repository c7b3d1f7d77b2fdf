"""What became of the equations that passes are about, and why some of them stayed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lrpfunc.canonizers.folds import Subject
from lrpfunc.canonizers.passes import PASSES
from lrpfunc.operations import Facts, Immovable, facts
from lrpfunc.program import Equation, Program, format_table

LEFT = "left"
UNREAD = ("gone", "nothing reads it")


class Fate(NamedTuple):
    """What became of an equation, and into what or why.

    Of a batch norm: "merged", "merged right", "merged parallel", "threshold", "replaced", "gone" or "left". Of a sum of
    parallel branches: "merged parallel", "replaced", "gone" or "left".

    >>> import lrpfunc, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).eval()
    >>> lrpfunc.canonize(*lrpfunc.functionalize(model, torch.ones(1, 2))).report.fates["1"]
    Fate(became='merged', where='0')
    """

    became: str
    where: str


@dataclass(frozen=True, repr=False)
class Report:
    """What became of each batch norm (and whatever else passes are about), by name; `print` shows it as a table.

    `subjects` has the names by what they are the names of: {"batch norm": ("bn1", "bn2")}.

    >>> from lrpfunc.canonizers import Fate, Report
    >>> report = Report({"bn": Fate("left", "before it: an input; behind it: an output")}, {"batch norm": ("bn",)})
    >>> print(report)
    batch norm  became  where
    bn          left    before it: an input; behind it: an output
    >>> report.left
    {'bn': 'before it: an input; behind it: an output'}
    """

    fates: Mapping[str, Fate]
    subjects: Mapping[str, Sequence[str]]

    @property
    def left(self) -> dict[str, str]:
        """Those that stayed, and why."""
        return {name: fate.where for name, fate in self.fates.items() if fate.became == LEFT}

    def __str__(self) -> str:
        return "\n\n".join(self._table(subject, names) for subject, names in self.subjects.items())

    def _table(self, subject: str, names: Sequence[str]) -> str:
        if not names:
            return f"no {subject}s"
        return format_table((subject, "became", "where"), [(name, *self.fates[name]) for name in names])

    def __repr__(self) -> str:
        return str(self)


def report_on(before: Program, after: Program) -> Report:
    """What became of all that passes are about, between two programs."""
    known = facts(after)
    fates: dict[str, Fate] = {}
    subjects: dict[str, Sequence[str]] = {}
    for about in dict.fromkeys(one.about for one in PASSES):
        left = {equation.name: equation for equation in about.candidates(after)}
        known_before = left.keys() | {equation.name for equation in about.candidates(before)}
        names = tuple(equation.name for equation in before.equations if equation.name in known_before)
        if not names and subjects:
            continue  # that there are no batch norms is worth saying, that there is nothing else to fold is not
        subjects[about.name] = names
        for name in names:
            is_left = name in left
            why = _obstacles(known, left[name], about) if is_left else ""
            fates[name] = Fate(LEFT, why) if is_left else Fate(*after.notes.get(name, UNREAD))
    return Report(fates, subjects)


def _obstacles(known: Facts, equation: Equation, about: Subject) -> str:
    found = {}
    for one in PASSES:
        if one.about == about:
            try:
                one.find(known, equation)
            except Immovable as obstacle:
                found[one.side] = str(obstacle)
            else:
                return "no pass was told to fold it"
    return "; ".join(f"{side}: {why}" for side, why in found.items())
