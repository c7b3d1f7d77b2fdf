"""Which demo is shown: photos where the extra `photos` is installed, else digits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lrpfunc import heatmaps
from lrpfunc.errors import InputError
from lrpfunc.pictures.classifiers import has_photos
from lrpfunc.pictures.demo import digits as digits_demo
from lrpfunc.pictures.demo import photos as photos_demo
from lrpfunc.pictures.demo.photographs import PHOTOS
from lrpfunc.pictures.outfiles import outfile
from lrpfunc.pictures.progress import ProgressBar

if TYPE_CHECKING:
    from rich.console import Console

DIGITS = 6
HINT = "Digits are shown. For photos: pip install 'lrpfunc[photos]'"


def show(
    out: Path,
    console: Console,
    photos: int | None = None,
    digits: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Run a demo, write its picture to `out` and print its tables. A count of photos or digits chooses the demo.

    Errors: `InputError` for both counts; `FileError` for a picture that exists, without `overwrite`; those of
    `heatmaps.check_path`, `digits.measure` and `photos.measure`.
    """
    if photos is not None and digits is not None:
        raise InputError("the demo has either photos or digits: give one of --photos and --digits.")
    with outfile(heatmaps.check_path(out), overwrite) as part:
        _measured(part, console, photos, digits, seed)


def _measured(path: Path, console: Console, photos: int | None, digits: int | None, seed: int) -> None:
    if photos is None and (digits is not None or not has_photos()):
        digits_demo.tables(digits_demo.measure(path, DIGITS if digits is None else digits, seed), console)
        if digits is None:
            console.print(HINT, soft_wrap=True, markup=False, highlight=False)
        return
    with ProgressBar("explaining and flipping") as bar:
        seen = photos_demo.measure(path, len(PHOTOS) if photos is None else photos, seed, bar)
    photos_demo.tables(seen, console)
