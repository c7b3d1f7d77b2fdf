"""The queue of blocks without Ray: a stand-in answers as Ray does, and processes die when they are told to."""

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from lrpfunc.errors import FileError, InputError, MissingExtraError
from lrpfunc.pictures import distributed, merging, runs
from lrpfunc.pictures.distributed import ray_engine
from lrpfunc.pictures.distributed.ray_engine import Share

ONE_CORE = Share()


class RayError(Exception):
    """A process died."""


class RayTaskError(RayError):
    """A process raised something."""

    def __init__(self, cause):
        super().__init__("Traceback")
        self.cause = cause


@dataclass(frozen=True, eq=False)
class Reference:
    """An answer to be made."""

    name: str
    arguments: tuple
    call: Callable


class StandIn:
    """What of Ray is used, in this process: answers are made when they are asked for.

    `dies(name, arguments)`: whether the process dies at a call. `nodes`: what machines have.
    """

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, nodes=({"CPU": 2.0},), dies=lambda name, arguments: False):
        self.resources, self.dies = list(nodes), dies
        self.made, self.calls, self.options_given, self.started, self.stopped = 0, [], [], [], 0

    def nodes(self):
        return [{"Resources": each, "Alive": True} for each in self.resources]

    def is_initialized(self):
        return False

    def init(self, where, **options):
        self.started.append(where)

    def shutdown(self):
        self.stopped += 1

    def put(self, value):
        return value

    def remote(self, kind):
        def options(**given):
            self.options_given.append(given)
            return SimpleNamespace(remote=lambda: self._process(kind()))

        return SimpleNamespace(options=options)

    def _process(self, instance):
        self.made += 1

        def method(name):
            def remote(*arguments):
                self.calls.append((name, arguments))
                return Reference(name, arguments, lambda: getattr(instance, name)(*arguments))

            return SimpleNamespace(remote=remote)

        return SimpleNamespace(ready=method("ready"), do=method("do"))

    def wait(self, references, timeout):
        return references[-1:], references[:-1]  # who came last is the fastest

    def get(self, reference):
        if not isinstance(reference, Reference):
            return reference
        if self.dies(reference.name, reference.arguments):
            raise RayError("The actor died.")
        try:
            return reference.call()
        except Exception as error:
            raise RayTaskError(error) from error


@pytest.fixture
def run(folder, classifier, tmp_path, monkeypatch):
    """A run on a stand-in for Ray, into `tmp_path / "blocks"`."""
    task = distributed.Task(folder, tmp_path / "blocks", classifier, batch=4, block=8)

    def run(ray, share=ONE_CORE, **options):
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        monkeypatch.setattr(ray_engine, "_ray", lambda: ray)
        return ray_engine.run(task, options.pop("address", None), share, **options)

    return run


def blocks_given(ray):
    return [arguments[0] for name, arguments in ray.calls if name == "do"]


def test_every_block_is_given_once_and_progress_is_told(run, folder, classifier, tmp_path):
    ray, told = StandIn(), []
    outcome = run(ray, progress=lambda *numbers: told.append(numbers))
    assert (outcome.rows, outcome.written, outcome.failures) == (40, 40, [])
    assert told == [(done, 40, 0) for done in (0, 8, 16, 24, 32, 40)]
    assert (ray.made, blocks_given(ray), ray.started, ray.stopped) == (2, [1, 2, 3, 4, 5], ["local"], 1)
    assert ray.options_given[0] == {"num_cpus": 1, "num_gpus": 0, "scheduling_strategy": "SPREAD"}
    runs.run(folder, tmp_path / "whole.h5", classifier, batch=4)
    merging.merge([tmp_path / "blocks"], tmp_path / "all.h5")
    assert (tmp_path / "all.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_as_many_processes_as_fit_or_as_are_wanted(run):
    ray = StandIn([{"CPU": 5.0}, {"CPU": 8.0, "GPU": 1.0}, {}])
    run(ray, Share(cpus=2))
    assert ray.made == 2 + 4
    ray = StandIn([{"CPU": 5.0}, {"CPU": 8.0, "GPU": 1.0}, {}])
    run(ray, Share(cpus=2, gpus=0.5))
    assert ray.made == 2
    ray = StandIn()
    run(ray, Share(cpus=0))  # which takes nothing away
    assert ray.made == 1
    ray = StandIn()
    run(ray, Share(processes=7))
    assert ray.made == 7


def test_a_model_whose_code_is_not_on_a_machine_is_named(run):
    class Elsewhere(StandIn):
        def get(self, reference):
            if isinstance(reference, distributed.Task):
                raise RayError("System error\n  File there\nModuleNotFoundError: No module named 'my_model'")
            return super().get(reference)

    with pytest.raises(FileError) as error:
        run(Elsewhere())
    assert str(error.value) == (
        "a process of the cluster cannot read what it is to do (ModuleNotFoundError: No module named 'my_model'): the "
        "code of the model must be there on all machines, installed or on the PYTHONPATH with which `ray start` was "
        "given."
    )


def test_a_block_of_a_dead_process_goes_to_another(run):
    deaths = {1: 3, 4: 1}

    def dies(name, arguments):
        number = arguments[0] if name == "do" else None
        deaths[number] = deaths.get(number, 0) - 1
        return deaths[number] >= 0

    ray = StandIn(dies=dies)
    assert run(ray).rows == 40
    assert ray.made == 2 + 4
    assert sorted(blocks_given(ray)) == [1, 1, 1, 1, 2, 3, 4, 4, 5]


def test_a_process_that_dies_before_it_is_ready_is_made_again(run):
    left = iter([True, True, False, True])
    ray = StandIn(dies=lambda name, arguments: name == "ready" and next(left, False))
    assert run(ray).rows == 40
    assert ray.made > 3


def test_a_block_that_kills_every_process_is_given_up_when_all_others_are_done(run, tmp_path):
    ray = StandIn(dies=lambda name, arguments: name == "do" and arguments[0] == 3)
    with pytest.raises(FileError) as error:
        run(ray)
    assert str(error.value) == (
        f"block 3 of {tmp_path / 'blocks'} killed 10 processes, perhaps for want of memory: give more "
        "--cpus-per-process, so that fewer share a machine. All other blocks are done."
    )
    assert len(list((tmp_path / "blocks").glob("block-*.h5"))) == 4
    assert run(StandIn()).written == 8


def test_processes_that_never_get_ready_are_an_error(run):
    ray = StandIn(dies=lambda name, arguments: True)
    with pytest.raises(
        FileError, match=r"^processes of the cluster die before they are ready \(The actor died\): lrpfunc"
    ):
        run(ray)
    assert ray.stopped == 1


def test_the_reason_is_what_came_last_of_a_traceback_from_elsewhere():
    text = (
        "The actor died because of an error raised in its creation task, \nTraceback\nModuleNotFoundError: no lrpfunc."
    )
    assert ray_engine._reason(RayError(text)) == "ModuleNotFoundError: no lrpfunc"
    assert ray_engine._reason(RayError("It died.\nWhy, nobody knows.")) == "It died"


def test_what_a_process_says_is_said(run, monkeypatch):
    def full(self, number):
        raise OSError(28, "No space left on device", "block")

    monkeypatch.setattr(ray_engine.Worker, "do", full)
    with pytest.raises(OSError, match="No space left on device: 'block'"):
        run(StandIn())


def test_processes_with_other_versions_are_refused(run, monkeypatch):
    given = iter(2 * [{"lrpfunc": "0.1", "torch": "2.1"}])
    mine = runs.versions()
    monkeypatch.setattr(ray_engine, "versions", lambda names: next(given, mine))
    with pytest.raises(
        FileError, match=r"^the command runs with lrpfunc 0\.1, torch 2\.1, .*, but a process has lrpfunc "
    ):
        run(StandIn())


# -- where ------------------------------------------------------------------------------------------------------------


def test_a_process_for_which_no_machine_has_room_is_an_error(run):
    with pytest.raises(InputError) as error:
        run(StandIn([{"CPU": 2.0}]), Share(gpus=1))
    assert str(error.value) == (
        "a process needs 1 CPUs and 1 GPUs, but the machines of the cluster have 2 CPUs and 0 GPUs: give "
        "--cpus-per-process and --gpus-per-process."
    )


def test_room_that_comes_is_waited_for_on_a_cluster(run, monkeypatch):
    ray = StandIn([])
    monkeypatch.setattr(ray_engine.time, "sleep", lambda seconds: ray.resources.append({"CPU": 1.0}))
    assert run(ray, address="auto").rows == 40
    assert ray.started == ["auto"]


def test_no_cluster_at_the_address_is_an_error_with_the_command_that_starts_one(run):
    def refuse(where, **options):
        raise ConnectionError("Could not find any running Ray instance.\nPlease")

    ray = StandIn()
    ray.init = refuse
    with pytest.raises(InputError) as error:
        run(ray, address="auto")
    assert str(error.value) == (
        "no Ray cluster can be used at 'auto' (Could not find any running Ray instance). `ray start --head` starts "
        "one, and `ray start --address=HEAD:6379` on other machines joins it."
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        for address in (f"127.0.0.1:{free.getsockname()[1]}", f"ray://127.0.0.1:{free.getsockname()[1]}"):
            with pytest.raises(
                InputError, match=rf"^no Ray cluster answers at '{address}' \(Connection refused\)\. `ray start"
            ):
                run(StandIn(), address=address)
    for address in ("", "ray://", "127.0.0.1:port"):
        with pytest.raises(InputError, match=r"^an address is auto, HOST:PORT or ray://HOST:PORT, but '.*' is not\.$"):
            ray_engine._knock(address)


def test_a_cluster_that_answers_is_knocked_at_and_used(run):
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        ray = StandIn()
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        assert run(ray, address=address).rows == 40
        assert ray.started == [address]


def test_ray_that_was_started_by_others_is_left_running(run):
    ray = StandIn()
    ray.is_initialized = lambda: True
    assert run(ray).rows == 40
    assert (ray.started, ray.stopped) == ([], 0)


def test_without_ray_the_command_that_installs_it_is_named(folder, classifier, tmp_path, monkeypatch):
    monkeypatch.setattr("lrpfunc.extras.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"^--engine ray needs ray: pip install 'lrpfunc\[ray\]'$"):
        ray_engine.run(distributed.Task(folder, tmp_path / "blocks", classifier))


def test_paths_are_whole_ones_elsewhere(monkeypatch, tmp_path, folder, classifier):
    monkeypatch.chdir(tmp_path)
    ray = StandIn()
    monkeypatch.setattr(ray_engine, "_ray", lambda: ray)
    relative = distributed.Task(Path(os.path.relpath(folder, tmp_path)), Path("blocks"), classifier)
    assert ray_engine.run(relative).path == tmp_path / "blocks"
