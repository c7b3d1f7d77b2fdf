"""A report: one HTML page that holds a dataset run, to look through in a browser that needs no network.

Samples are read and written a few at a time, so that memory does not grow with the run. The page's parts lie next to
this file: `page.html.jinja`, with `page.css` and `page.js` put into it. What is shown is escaped by the template
or set as text by the script; a content security policy lets nothing run but that script, nor anything be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lrpfunc import heatmaps
from lrpfunc.errors import InputError
from lrpfunc.pictures import hdf5, shards
from lrpfunc.pictures.outfiles import outfile
from lrpfunc.pictures.sidefiles import named
from lrpfunc.pictures.workfile import check_out

if TYPE_CHECKING:
    import jinja2

SIZE = 128
SIZES = (8, 1024)
# By name; True where the middle colour stands for zero, so that positive values have the upper half to themselves.
COLORS = {"seismic": True, "bwr": True, "coldnhot": True, "viridis": False, "hot": False, "gray": False}
LEVELS = 127  # on each side of zero: relevance is kept in 255 steps, zero being one of them
TOP = 5
BLOCK_BYTES = 1 << 24
TRIED_PIXELS = 64 * 64  # up to here PNG may well be smaller than JPEG


class Summary(NamedTuple):
    """What was written: where, of how many samples (each may have several explanations), how large.

    `missing`: the sentence that names the shards that were not there, if any.
    """

    path: Path
    samples: int
    bytes: int
    missing: str = ""


def write(
    paths: Sequence[Path],
    out: Path,
    title: str = "",
    size: int = SIZE,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Write one page of the files of a run; several files are its shards.

    `size`: the longer side of the pictures, in pixels; larger ones are averaged down. A page takes some 20 KB for each
    explanation at 128 pixels, 6 KB at 64. `progress(done, of)`: called with numbers of explanations.
    Errors: `FileError` for files as `hdf5.opened` has it, for files of different runs, for an `out` that exists or has
    no folder; `InputError` for no files, one given twice, or an impossible size; `OSError` where the system refuses
    to write.
    """
    paths, out = [Path(path) for path in paths], Path(out)
    _check(paths, out, size, overwrite)
    with ExitStack() as stack:
        runs = [stack.enter_context(hdf5.opened(path)) for path in paths]
        shards.check_alike(paths, runs, "a report")
        missing = shards.missing(runs)
        results = _results(runs)
        means = _Means()
        page = {
            "title": title or f"Explanations of {runs[0].details.get('model', 'a model')}",
            "results": results,
            "missing": missing,
            "details": _details(runs),
            "errors": [error for run in runs for error in run.errors],
            "facts": _facts(runs[0], size),
            "blocks": _blocks(runs, size, means, progress),
            "means": means,  # complete once the blocks have gone by
        }
        # Names of files need not be text: what cannot be written becomes a question mark.
        with (
            named(out),
            outfile(out, overwrite) as part,
            open(part, "w", encoding="utf-8", errors="replace", newline="\n") as file,
        ):
            for piece in _template().generate(page):
                file.write(piece)
    return Summary(out, results.samples, out.stat().st_size, missing)


# -- checks -----------------------------------------------------------------------------------------------------------


def _check(paths: Sequence[Path], out: Path, size: int, overwrite: bool) -> None:
    low, high = SIZES
    if not low <= size <= high:
        raise InputError(f"a report's pictures need a size from {low} to {high} pixels, but it is {size}.")
    shards.check_files(paths, out, "a report")
    check_out(out, overwrite, "report.html")


# -- what is said of the whole run ------------------------------------------------------------------------------------


class _Results(NamedTuple):
    rows: int
    samples: int
    known: int
    right: int


def _results(runs: Sequence[hdf5.Run]) -> _Results:
    """Numbers of explanations, of samples, of those of known class and of those recognized; each sample counts once."""
    right: dict[int, bool | None] = {}
    for run in runs:
        for rows in _steps(run):
            labels, indices = run.column("label")[rows], run.column("index")[rows]
            predicted = _ranked(run.column("prediction")[rows])[:, 0]
            for index, label, best in zip(indices.tolist(), labels.tolist(), predicted.tolist(), strict=True):
                right[index] = None if label == hdf5.UNKNOWN else label == best
    known = [each for each in right.values() if each is not None]
    return _Results(sum(run.rows for run in runs), len(right), len(known), sum(known))


def _details(runs: Sequence[hdf5.Run]) -> dict[str, Any]:
    """What is known of the runs, once where all agree, else for each."""
    names = list(dict.fromkeys(name for run in runs for name in run.details))
    values = {name: [run.details.get(name) for run in runs] for name in names}
    return {name: each[0] if all(value == each[0] for value in each) else each for name, each in values.items()}


def _facts(run: hdf5.Run, size: int) -> dict[str, Any]:
    """What the script needs to know beforehand."""
    height, width = _fitted(run.schema.image[-2:], size)
    colors = [[name, diverging, _table(name)] for name, diverging in COLORS.items()]
    return {"categories": run.categories, "height": height, "width": width, "levels": LEVELS, "colors": colors}


def _table(name: str) -> str:
    """A colour map's RGB bytes in base64: as many colours as there are levels, zero's in the middle."""
    steps = np.arange(2 * LEVELS + 1)
    return _base64(heatmaps.colormap(name).resampled(len(steps))(steps, bytes=True)[:, :3].tobytes())


# -- rows -------------------------------------------------------------------------------------------------------------


class _Block(NamedTuple):
    """Some rows: what the script filters and sorts by, and apart from it the pictures, read when they are shown."""

    rows: list[list[Any]]
    pictures: list[str]


class _Means:
    """Mean maps of the explained classes, each map divided by its largest magnitude first, so that all count alike."""

    def __init__(self) -> None:
        self._sums: dict[int, np.ndarray] = {}
        self._counts: dict[int, int] = {}

    def add(self, target: int, share: np.ndarray) -> None:
        self._sums[target] = self._sums.get(target, np.float32(0)) + share.astype(np.float32)
        self._counts[target] = self._counts.get(target, 0) + 1

    def __iter__(self) -> Iterator[list[Any]]:
        """Class, number of maps, largest magnitude of the mean, the mean."""
        for target in sorted(self._sums):
            packed, largest = _packed(self._sums[target].astype(np.float64) / self._counts[target])
            yield [target, self._counts[target], _number(largest), packed]


def _blocks(
    runs: Sequence[hdf5.Run], size: int, means: _Means, progress: Callable[[int, int], None] | None
) -> Iterator[_Block]:
    done, total = 0, sum(run.rows for run in runs)
    for run in runs:
        for rows in _steps(run):
            yield _block(run, rows, size, means)
            done += rows.stop - rows.start
            if progress is not None:
                progress(done, total)


def _steps(run: hdf5.Run) -> Iterator[slice]:
    """Slices of rows that fit into memory with ease."""
    row_bytes = 4 * (math.prod(run.schema.image) + run.schema.classes)
    step = min(max(1, BLOCK_BYTES // row_bytes), 256)
    for start in range(0, run.rows, step):
        yield slice(start, min(start + step, run.rows))


def _block(run: hdf5.Run, rows: slice, size: int, means: _Means) -> _Block:
    column = {name: run.column(name)[rows] for name in run.schema.columns()}
    probabilities = _softmax(column["prediction"])
    ranked = _ranked(column["prediction"])[:, :TOP]
    full = column["attribution"].sum(axis=1, dtype=np.float64)
    finite = np.isfinite(full).all(axis=(1, 2))
    full[~finite] = 0.0
    magnitudes = np.abs(full).max(axis=(1, 2))
    maps, images = _averaged(full, size), _averaged(_displayed(column["data"]), size)
    block = _Block([], [])
    for i, target in enumerate(column["target"].tolist()):
        if finite[i]:
            means.add(target, maps[i] / (magnitudes[i] or 1.0))
        packed, largest = _packed(maps[i])
        block.pictures.append(f"{_image(images[i])} {packed}")
        block.rows.append(
            [
                int(column["index"][i]),
                column["file"][i].decode(errors="replace"),
                int(column["label"][i]),
                target,
                _number(column["logit"][i]),
                _number(column["relevance_sum"][i]),
                _number(probabilities[i, target]) if 0 <= target < run.schema.classes else None,
                ranked[i].tolist(),
                [_number(p) for p in probabilities[i, ranked[i]]],
                _number(largest) if finite[i] else None,
            ]
        )
    return block


def _softmax(logits: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # infinite logits have no probabilities: nan
        shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
        return shifted / shifted.sum(axis=1, keepdims=True)


def _ranked(logits: np.ndarray) -> np.ndarray:
    """Classes by falling logit, the lower number first among equals, as arg-max has it."""
    return np.argsort(-logits, axis=1, kind="stable")


def _number(value: float) -> float | None:
    """For JSON: as many digits as a float32 has, and none where there is no number."""
    return float(f"{value:.7g}") if np.isfinite(value) else None


# -- pictures ---------------------------------------------------------------------------------------------------------


def _displayed(data: np.ndarray) -> np.ndarray:
    """Images (N, H, W, 1 or 3) of the channels: RGB of three or four, else their mean in gray."""
    channels = data[:, :3] if data.shape[1] in (3, 4) else data.mean(axis=1, keepdims=True)
    return np.moveaxis(channels, 1, -1).astype(np.float64)


def _fitted(shape: tuple[int, ...], size: int) -> tuple[int, int]:
    """Height and width, at most `size`, in proportion."""
    height, width = shape
    factor = min(1.0, size / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def _averaged(maps: np.ndarray, size: int) -> np.ndarray:
    """Maps (N, H, W) or (N, H, W, C) averaged by area, so that no pixel of (H, W) counts more than another."""
    shape = maps.shape[1:3]
    fitted = _fitted(shape, size)
    if fitted == shape:
        return maps
    down, across = (_shares(n, m) for n, m in zip(shape, fitted, strict=True))
    return np.einsum("ih,nhw...,jw->nij...", down, maps, across, optimize=True)


def _shares(pixels: int, fitted: int) -> np.ndarray:
    """(fitted, pixels): how much of each large pixel each small one fills; rows sum to one."""
    edges = np.arange(fitted + 1)[:, None] * pixels / fitted
    starts = np.arange(pixels)
    overlap = np.minimum(edges[1:], starts + 1) - np.maximum(edges[:-1], starts)
    return np.clip(overlap, 0.0, None) * fitted / pixels


def _packed(values: np.ndarray) -> tuple[str, float]:
    """A map as bytes, deflated, in base64, and its largest magnitude m: byte b stands for m (b - 128) / 127.

    Raw bytes and no image: browsers that guard against fingerprinting alter what a script reads back from images.
    """
    largest = float(np.abs(values).max())
    levels = np.rint(values * (LEVELS / (largest or 1.0))) + (LEVELS + 1)
    return _base64(zlib.compress(levels.astype(np.uint8).tobytes())), largest


def _image(pixels: np.ndarray) -> str:
    """A data URL of an image (H, W, 1 or 3): JPEG, or PNG where that is smaller."""
    from PIL import Image

    levels = np.rint(pixels).astype(np.uint8)
    picture = Image.fromarray(levels if levels.shape[-1] == 3 else levels[..., 0])
    formats = ("PNG", "JPEG") if picture.width * picture.height <= TRIED_PIXELS else ("JPEG",)
    coded = {}
    for name in formats:
        buffer = io.BytesIO()
        picture.save(buffer, name, quality=85, optimize=True)
        coded[name] = buffer.getvalue()
    smallest = min(coded, key=lambda name: len(coded[name]))
    return f"data:image/{smallest.lower()};base64,{_base64(coded[smallest])}"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


# -- the template -----------------------------------------------------------------------------------------------------


def _template() -> jinja2.Template:
    import jinja2

    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    # Compact, in the order given, and with no nan, which is not JSON.
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    for part in ("css", "js"):
        text = (folder / f"page.{part}").read_text(encoding="utf-8")
        # A browser runs only what has the hash that the page's policy names.
        digest = hashlib.sha256(text.encode()).digest()
        environment.globals[part] = {"text": text, "hash": f"sha256-{_base64(digest)}"}
    return environment.get_template("page.html.jinja")
