"""Results as tables to read. A result is plain data: what a `Table` says, and rows of labels and measurements."""

import math
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import linear_regression, median

import torch
from rich.console import Console
from rich.table import Table

WIDTH = 180  # in a narrower place rich cuts figures off


def console() -> Console:
    wide = Console()
    return wide if wide.width >= WIDTH else Console(width=WIDTH)


def describe(device: torch.device) -> str:
    """Where and how something was measured."""
    processor = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return f"{processor}, torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.get_default_dtype()}"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def show(result: Mapping, where: str, out: Console) -> None:
    """Times, peak memory if it was measured, and why cells are empty."""
    time = f"time per {result['unit']}" if result["unit"] else "time"
    others = "".join(f" (of '{name}' to '{own}')" for name, own in result.get("baselines", {}).items() if own)
    against = f", ratio to '{result['baseline']}'{others}" if result["baseline"] else ""
    spread = " of the same round: median (min-max)" if against else "; medians"
    titles = {"seconds": f"{time}{against}{spread}", "peak": f"peak memory above what was in use before{against}"}
    memory = any(cell["peak"] for row in result["rows"] for cell in row["measured"].values())
    for key in ("seconds", "peak") if memory else ("seconds",):
        out.print(f"\n[bold]{result['title']}[/bold]: {titles[key]}\n{where}", highlight=False)
        out.print(_grid(result, key))
        for line in _growth(result, key):
            out.print(line, markup=False, highlight=False, soft_wrap=True)
    for line in _reasons(result):
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def _grid(result: Mapping, key: str) -> Table:
    names = list(result["rows"][0]["measured"])
    grid = Table(*result["header"])
    for name in names:
        grid.add_column(name, justify="right", no_wrap=True)
    for row in result["rows"]:
        grid.add_row(*row["labels"], *(_cell(result, row["measured"], name, key) for name in names))
    return grid


def _cell(result: Mapping, measured: Mapping, name: str, key: str) -> str:
    values = measured[name][key]
    if not values:
        return "-"
    baseline = _baseline(result, name)
    against = [] if name == baseline else ratios(measured, name, baseline, key)
    value = _duration(median(values)) if key == "seconds" else f"{median(values) / 2**20:.0f} MiB"
    if not against:
        return value
    spread = f" ({min(against):.2f}-{max(against):.2f})" if len(against) > 1 else ""
    return f"{f'{value}  ' if result['unit'] else ''}{median(against):.2f}{spread}"


def _growth(result: Mapping, key: str) -> Iterator[str]:
    """By which power of a label the figures of each contender grow, where other labels are the same: least squares."""
    if not (grows := result.get("grows")):
        return
    place = result["header"].index(grows)
    series: dict[tuple, list[tuple[float, Mapping]]] = {}
    for row in result["rows"]:
        others = tuple(label for position, label in enumerate(row["labels"]) if position != place)
        series.setdefault(others, []).append((math.log(float(row["labels"][place])), row["measured"]))
    for others, points in series.items():
        powers = []
        for name in points[0][1]:
            known = [(at, math.log(median(cells[name][key]))) for at, cells in points if any(cells[name][key])]
            if len({at for at, _ in known}) > 1:
                powers.append(f"{name} {linear_regression(*zip(*known, strict=True)).slope:.2f}")
        if powers:
            yield f"{' '.join(others)}: grows with {grows} to the power of: {', '.join(powers)}"


def _baseline(result: Mapping, name: str) -> str:
    return result.get("baselines", {}).get(name, result["baseline"])  # older results have no others


def ratios(measured: Mapping, name: str, baseline: str, key: str) -> list[float]:
    """A contender's figures by the baseline's, round by round; none if either is missing."""
    others = measured[baseline][key] if baseline in measured else []
    return [own / other for own, other in zip(measured[name][key], others, strict=False) if other]


def _duration(seconds: float) -> str:
    unit, scale = next((u, s) for u, s in (("s", 1), ("ms", 1e3), ("µs", 1e6)) if seconds * s >= 1 or u == "µs")
    return f"{seconds * scale:.3g} {unit}"


def _reasons(result: Mapping) -> Iterator[str]:
    found: dict[str, tuple[dict, dict]] = {}  # dicts as ordered sets
    for row in result["rows"]:
        for name, cell in row["measured"].items():
            if cell["error"]:
                names, labels = found.setdefault(cell["error"], ({}, {}))
                names[name] = labels[" ".join(row["labels"][:1])] = None
    for error, (names, labels) in found.items():
        yield f"- {', '.join(names)} ({', '.join(labels)}): {error[:200]}"


def changes(old: Mapping[str, Mapping], new: Mapping[str, Mapping]) -> Table:
    """The ratios that two runs share, before and after. Where a table has no baseline, the seconds."""
    before = dict(_medians(old))
    grid = Table("case", "contender", "ratio of", "before", "after", "change")
    for key, after in _medians(new):
        if key in before:
            grid.add_row(*key, f"{before[key]:.2f}", f"{after:.2f}", f"{after / before[key] - 1:+.0%}")
    return grid


def _medians(results: Mapping[str, Mapping]) -> Iterator[tuple[tuple[str, str, str], float]]:
    for table, result in results.items():
        for row in result["rows"]:
            for name, cell in row["measured"].items():
                for key in ("seconds", "peak"):
                    baseline = _baseline(result, name)
                    values = ratios(row["measured"], name, baseline, key) if baseline else cell[key]
                    if values and name != baseline:
                        yield (" ".join((table, *row["labels"])), name, key), median(values)
