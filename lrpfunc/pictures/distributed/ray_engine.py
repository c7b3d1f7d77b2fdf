"""Blocks by Ray, which places processes on machines and says which died; what a dead one left is given to another.

A block's number goes out, and what was done comes back: samples and relevance pass by no driver. Ray is imported when
it is used.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from lrpfunc.errors import FileError, InputError
from lrpfunc.extras import extra
from lrpfunc.pictures.distributed.manifest import check_versions
from lrpfunc.pictures.distributed.tasks import Task, TextTask
from lrpfunc.pictures.distributed.worker import Worker, together
from lrpfunc.pictures.parts import blocks
from lrpfunc.pictures.runs import Outcome, Progress, versions

CONNECTING, PLACING = 10.0, 600.0  # seconds
MOST_DEATHS = 10  # of processes at one block, or in a row before they are ready
HOW = "`ray start --head` starts one, and `ray start --address=HEAD:6379` on other machines joins it."


class Share(NamedTuple):
    """What of a cluster is used: so many processes (None: as many as fit), each with CPUs and GPUs."""

    processes: int | None = None
    cpus: float = 1
    gpus: float = 0


class Process:
    """A process in the cluster; it is made where Ray wants it."""

    def ready(self, theirs: dict[str, str | None], task: list[Any]) -> int:
        """Prepare the model: how many samples there are. `task`: in a list, as another version could not read it.

        Errors: as `check_versions` and `Worker` have them; `FileError` where code of the model is not on this machine.
        """
        check_versions("the command runs", theirs, versions(name for name in theirs if name != "python"))
        ray = _ray()
        try:
            found = ray.get(task[0])
        except ray.exceptions.RayError as error:
            raise FileError(
                f"a process of the cluster cannot read what it is to do ({_reason(error)}): the code of the model must "
                "be there on all machines, installed or on the PYTHONPATH with which `ray start` was given."
            ) from error
        self.worker = Worker(found)
        return self.worker.samples

    def do(self, number: int) -> Outcome:
        """See `Worker.do`."""
        return self.worker.do(number)


def run(
    task: Task | TextTask,
    address: str | None = None,
    share: Share = Share(),  # noqa: B008 (a constant)
    progress: Progress | None = None,
) -> Outcome:
    """Do all blocks of a run on a Ray cluster.

    `address`: as `ray.init` has it, such as `auto` or `ray://head:10001`; None: that in RAY_ADDRESS, or Ray is started
    on this machine for the time being. Paths are those of the machines of the cluster, which share a file system.
    Errors: `MissingExtraError`; `InputError` if no cluster answers within 10 s or no process finds a place in 10 min;
    `FileError` for other versions there and for blocks at which processes die again and again; as `Worker.do`.
    """
    ray = _ray()
    task = task.absolute()
    with _connected(ray, address):
        patience = PLACING if address or "RAY_ADDRESS" in os.environ else 0
        _wait_for_place(ray, share, patience)
        return _Queue(ray, task, share, progress or (lambda *_: None)).done()


def _ray() -> Any:
    return extra("ray", "ray", "--engine ray")


@contextmanager
def _connected(ray: Any, address: str | None) -> Iterator[None]:
    if ray.is_initialized():  # by who called
        yield
        return
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    _knock(where)
    try:
        own = {"include_dashboard": False} if where == "local" else {}
        ray.init(where, log_to_driver=False, logging_level="ERROR", **own)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(f"no Ray cluster can be used at '{where}' ({_line(error)}). {HOW}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _knock(where: str) -> None:
    """Ask whether anyone listens at HOST:PORT, as Ray would end this process after a minute. Errors: `InputError`."""
    if where in ("local", "auto"):
        return
    try:
        parts = urlsplit(where if "://" in where else f"//{where}")
        host, port = parts.hostname or "", parts.port or (10001 if parts.scheme else 6379)
    except ValueError:
        host, port = "", 0
    if not host:
        raise InputError(f"an address is auto, HOST:PORT or ray://HOST:PORT, but '{where}' is not.")
    try:
        socket.create_connection((host, port), CONNECTING).close()
    except OSError as error:
        raise InputError(f"no Ray cluster answers at '{where}' ({_line(error)}). {HOW}") from error


def _wait_for_place(ray: Any, share: Share, patience: float) -> None:
    """Wait until a machine has what one process needs. Errors: `InputError`."""
    late = time.monotonic() + patience
    while not _places(ray, share):
        if time.monotonic() >= late:
            has = ", ".join(
                f"{_number(node, 'CPU'):g} CPUs and {_number(node, 'GPU'):g} GPUs" for node in _machines(ray)
            )
            raise InputError(
                f"a process needs {share.cpus:g} CPUs and {share.gpus:g} GPUs, but the machines of the cluster have "
                f"{has or 'nothing'}: give --cpus-per-process and --gpus-per-process."
            )
        time.sleep(1)


def _places(ray: Any, share: Share) -> int:
    """How many processes fit on all machines."""
    needs = {name: need for name, need in (("CPU", share.cpus), ("GPU", share.gpus)) if need}
    fit = [[int(_number(node, name) / need) for name, need in needs.items()] for node in _machines(ray)]
    return sum(min(counts, default=1) for counts in fit)


def _machines(ray: Any) -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _number(resources: dict[str, float], name: str) -> float:
    return resources.get(name, 0.0)


def _line(error: Exception) -> str:
    said = (getattr(error, "strerror", None) or str(error)).split("\n")[0].strip()
    return (said or type(error).__name__).rstrip(".")[:200]


def _reason(error: Exception) -> str:
    """What came last of a traceback from elsewhere, else the first line."""
    found = re.findall(r"^\w+Error: .*", str(error), re.MULTILINE)
    return found[-1].rstrip(".") if found else _line(error)


class _Queue:
    """Blocks that wait, and what each process is about to do: a block, or to get ready (None)."""

    def __init__(self, ray: Any, task: Task | TextTask, share: Share, progress: Progress):
        self._ray, self._task, self._share, self._progress = ray, task, share, progress
        self._reference = ray.put(task)
        self._waiting: deque[int] | None = None  # not known before a process has seen the data set
        self._pending: dict[Any, tuple[Any, int | None]] = {}
        self._deaths: Counter[int | None] = Counter()
        self._outcomes: dict[int, Outcome] = {}
        self._given_up: list[int] = []
        self._samples = self._failures = 0

    def done(self) -> Outcome:
        """Do all. Errors: of the first process that says one; a process that dies says nothing."""
        for _ in range(self._share.processes or _places(self._ray, self._share)):
            self._begin()
        while self._is_left:
            ready, _ = self._ray.wait(list(self._pending), timeout=PLACING)
            if not ready:
                _wait_for_place(self._ray, self._share, 0)
            for reference in ready:
                self._take(*self._pending.pop(reference), reference)
        if self._given_up:
            some = ", ".join(map(str, sorted(self._given_up)[:8]))
            raise FileError(
                f"block {some} of {self._task.folder} killed {MOST_DEATHS} processes, perhaps for want of memory: give "
                "more --cpus-per-process, so that fewer share a machine. All other blocks are done."
            )
        return together(self._task.folder, (self._outcomes[number] for number in sorted(self._outcomes)))

    @property
    def _is_left(self) -> bool:
        return self._waiting is None or bool(self._waiting) or any(block for _, block in self._pending.values())

    def _begin(self) -> None:
        """Make a process, which Ray places where there is room, now or later."""
        options = {"num_cpus": self._share.cpus, "num_gpus": self._share.gpus, "scheduling_strategy": "SPREAD"}
        process = self._ray.remote(Process).options(**options).remote()
        self._pending[process.ready.remote(versions(self._task.packages), [self._reference])] = process, None

    def _take(self, process: Any, block: int | None, reference: Any) -> None:
        """What a process has answered, and its next block."""
        errors = self._ray.exceptions
        try:
            answer = self._ray.get(reference)
        except errors.RayTaskError as error:
            raise error.cause from error
        except errors.RayError as error:  # it died, or its machine did
            self._bury(block, error)
            return
        if block is None:
            self._deaths[None] = 0
            self._know(answer)
        else:
            self._outcomes[block] = answer
            self._failures += len(answer.failures)
            done = min(len(self._outcomes) * self._task.block, self._samples)
            self._progress(done, self._samples, self._failures)
        assert self._waiting is not None
        if self._waiting:
            block = self._waiting.popleft()
            self._pending[process.do.remote(block)] = process, block

    def _know(self, samples: int) -> None:
        if self._waiting is None:
            self._samples = samples
            self._waiting = deque(block.number for block in blocks(samples, self._task.block))
            self._progress(0, samples, 0)

    def _bury(self, block: int | None, error: Exception) -> None:
        """A block of a dead process goes to the next one that is free, and a new process takes its place."""
        self._deaths[block] += 1
        if block is None and (self._deaths[block] >= MOST_DEATHS or "creation task" in str(error)):
            raise FileError(
                f"processes of the cluster die before they are ready ({_reason(error)}): lrpfunc must be installed on "
                "all machines, and the memory must suffice."
            ) from error
        if block is not None and self._deaths[block] >= MOST_DEATHS:
            self._given_up.append(block)
        elif block is not None and self._waiting is not None:
            self._waiting.appendleft(block)
        self._begin()
