"""What a pass of ours is: one record, and the loop that calls it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lrpfunc.canonizers.draft import Draft, Parameters
from lrpfunc.operations import Facts, Immovable
from lrpfunc.program import Equation, Program


@dataclass(frozen=True)
class Subject:
    """What passes are about, such as batch norms. Several passes can be about one subject.

    `name` and `short` are for messages; both take an s as their plural. `candidates` gives the equations that are
    to be folded, `width` the number of channels of one of them.
    """

    name: str
    short: str
    candidates: Callable[[Program], Sequence[Equation]]
    width: Callable[[Facts, Equation], int | str]


@dataclass(frozen=True)
class Fold:
    """A pass as a record: it folds one candidate after another into other equations, or says why it cannot.

    It is called as any pass, `(program, params) -> (program, params)`, under its `name` and with `doc` as docstring.
    `find(known, equation)` gives what would take up a candidate, and raises `Immovable` with the reason if nothing
    can. `side` says where it looks, and so where the reason belongs: "before it" or "behind it". `touched(found)`
    gives the equations that would change beside the candidate, so that no equation changes twice in one round.
    `merge(draft, equation, found)` makes the changes.
    """

    name: str
    about: Subject = field(repr=False)
    side: str = field(repr=False)
    find: Callable[[Facts, Equation], Any] = field(repr=False)
    touched: Callable[[Any], Sequence[Equation]] = field(repr=False)
    merge: Callable[[Draft, Equation, Any], None] = field(repr=False)
    doc: str = field(repr=False)

    def __post_init__(self):
        object.__setattr__(self, "__name__", self.name)
        object.__setattr__(self, "__doc__", self.doc)

    def __call__(self, program: Program, params: Parameters) -> tuple[Program, Parameters]:
        """Fold all candidates, again until nothing changes: one may make room for another."""
        while True:
            draft = Draft(program, params)
            for equation in self.about.candidates(program):
                try:
                    found = self.find(draft.facts, equation)
                except Immovable:
                    continue
                if draft.is_unchanged([equation, *self.touched(found)]):  # else in the next round
                    self.merge(draft, equation, found)
            if not draft.has_changes:
                return program, params
            program, params = draft.finish()
