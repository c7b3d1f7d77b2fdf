"""How long calls take and how much memory they need, side by side. What comes out is plain data, as JSON has it."""

import ctypes
import gc
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

Call = Callable[[], object]
SetUp = Callable[[], Call]


def measure(contenders: Mapping[str, SetUp], rounds: int, device: torch.device, memory=False, units: int = 1) -> dict:
    """{name: {"seconds": one per round, "peak": bytes if `memory` asks for them, "error": why there is nothing}}.

    Every contender is called once per round, so that what else the machine does slows all of them alike. A first round
    warms up and is not counted, unless no other is asked for. Who fails in it is out. `units`: how many samples, say,
    a call deals with; the seconds are those of one.
    """
    measured, calls = {}, {}
    for name, set_up in contenders.items():
        measured[name] = {"seconds": [], "peak": [], "error": ""}
        try:
            call = set_up()
            first = seconds(call, device) / units
        except Exception as error:
            measured[name]["error"] = f"{type(error).__name__}: {' '.join(str(error).split())}"
        else:
            calls[name] = call
            measured[name]["seconds"] = [] if rounds else [first]
    for _ in range(rounds):
        for name, call in calls.items():
            measured[name]["seconds"].append(seconds(call, device) / units)
    for name, call in calls.items() if memory else ():
        measured[name]["peak"] = peak(call, device)
    return measured


def seconds(call: Call, device: torch.device) -> float:
    """A call's duration. One that returns a float has timed itself."""
    synchronize(device)
    start = time.perf_counter()
    result = call()
    synchronize(device)
    return result if isinstance(result, float) else time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak(call: Call, device: torch.device) -> list[int]:
    """How far a call raises the memory in use, in bytes. Of a process only Linux says; elsewhere the list is empty.

    A call that has a method `peak` says it itself.
    """
    if own := getattr(call, "peak", None):
        return own()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return [torch.cuda.max_memory_allocated(device) - before]
    if not sys.platform.startswith("linux"):
        return []
    ctypes.CDLL(None).malloc_trim(0)  # what malloc keeps for later would hide what the call takes
    Path("/proc/self/clear_refs").write_text("5")  # from here the high-water mark counts anew
    before = resident("VmRSS")
    call()
    return [resident("VmHWM") - before]


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
