"""Ray itself (`-m dev`): two nodes on this machine, processes that die, a node that is lost, a driver that is killed.

What blocks cost beside two processes that do a half each: `python -m tests.benchmarks.clusters`.
"""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace

import pytest

from lrpfunc.errors import InputError
from lrpfunc.pictures import distributed, merging, runs
from lrpfunc.pictures.classifiers import Standard
from lrpfunc.pictures.distributed import ray_engine
from tests.test_blocks import names
from tests.test_cli import complaint, lrp

ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")
pytestmark = [
    pytest.mark.dev,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]
BATCH, BLOCK = 4, 8


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one core each; further ones are added and removed by tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_worker_niceness", "0")  # busy machines would starve it
        made = cluster_utils.Cluster(
            initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}, connect=False
        )
        made.add_node(num_cpus=1)
        yield made
        made.shutdown()


@dataclass(frozen=True)
class Slow:
    """Preprocessing that takes its time."""

    standard: Standard
    seconds: float = 0.1

    def __call__(self, image):
        time.sleep(self.seconds)
        return self.standard(image)


@dataclass(frozen=True)
class Deadly:
    """Preprocessing that kills its process, every tenth time, as often as there are files in a folder."""

    standard: Standard
    lives: str

    def __call__(self, image):
        lives = os.listdir(self.lives)
        if lives and random.SystemRandom().random() < 0.1:
            try:
                os.unlink(os.path.join(self.lives, lives[0]))
            except FileNotFoundError:  # another process died of it
                return self.standard(image)
            os.kill(os.getpid(), signal.SIGKILL)
        return self.standard(image)


@pytest.fixture(scope="module")
def whole(folder, classifier, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "whole.h5"
    runs.run(folder, out, classifier, batch=BATCH)
    return out


def task(folder, out, classifier, preprocess=None):
    classifier = replace(classifier, preprocess=preprocess or classifier.preprocess)
    return distributed.Task(folder, out, classifier, batch=BATCH, block=BLOCK)


def merged(blocks):
    """The merged file, but for how the preprocessing is described."""
    out = blocks.with_suffix(".h5")
    merging.merge([blocks], out)
    return out


def assert_is(blocks, whole):
    from tests.test_runs import assert_same

    assert [name for name in names(blocks) if name.startswith("block")] == [f"block-{n:06}.h5" for n in range(1, 6)]
    assert_same(merged(blocks), whole)


def test_a_cluster_makes_the_file_of_one_process_to_the_byte(cluster, folder, classifier, whole, tmp_path):
    told = []
    outcome = ray_engine.run(
        task(folder, tmp_path / "blocks", classifier), cluster.address, progress=lambda *n: told.append(n)
    )
    assert (outcome.rows, outcome.written) == (40, 40)
    assert told == [(done, 40, 0) for done in (0, 8, 16, 24, 32, 40)]
    assert merged(tmp_path / "blocks").read_bytes() == whole.read_bytes()
    assert names(tmp_path / "blocks") == ["_run.json", *(f"block-{n:06}.h5" for n in range(1, 6))]
    assert not ray.is_initialized()
    again = ray_engine.run(task(folder, tmp_path / "blocks", classifier), cluster.address)
    assert (again.written, again.was_finished) == (0, True)


def test_processes_that_read_are_started_by_processes_of_the_cluster(cluster, folder, classifier, whole, tmp_path):
    the_task = task(folder, tmp_path / "blocks", classifier)._replace(workers=1)
    ray_engine.run(the_task, cluster.address)
    assert merged(tmp_path / "blocks").read_bytes() == whole.read_bytes()


def test_prompts_are_explained_as_in_one_process_to_the_byte(cluster, tmp_path):
    from tests.test_text_runs import GIVEN, by_ranks, contents_of, lines, saved, trained_tokenizer

    source, model = lines(tmp_path / "prompts.jsonl", GIVEN), saved(tmp_path / "tiny", trained_tokenizer())
    told, the_task = [], distributed.TextTask(source, tmp_path / "blocks", str(model), batch=4, block=3)
    outcome = ray_engine.run(the_task, cluster.address, progress=lambda *n: told.append(n))
    assert (outcome.rows, outcome.failures, told[-1]) == (7, [], (7, 7, 0))
    by_ranks(the_task._replace(folder=tmp_path / "alone"))
    assert contents_of(tmp_path / "blocks") == contents_of(tmp_path / "alone")


@pytest.mark.parametrize("times", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_processes_killed_again_and_again_lose_nothing(
    cluster, folder, classifier, whole, tmp_path, monkeypatch, times
):
    lives = tmp_path / "lives"
    lives.mkdir()
    for number in range(times):
        lives.joinpath(str(number)).touch()
    monkeypatch.setattr(ray_engine, "MOST_DEATHS", 21)
    the_task = task(folder, tmp_path / "blocks", classifier, Deadly(classifier.preprocess, str(lives)))
    outcomes = [ray_engine.run(the_task, cluster.address)]
    while os.listdir(lives):  # chance was kind: something gets lost
        (tmp_path / "blocks" / f"block-{len(os.listdir(lives)) % 5 + 1:06}.h5").unlink()
        outcomes.append(ray_engine.run(the_task, cluster.address))
    assert outcomes[-1].rows == 40
    assert_is(tmp_path / "blocks", whole)


def test_a_node_lost_in_the_middle_costs_nothing(cluster, folder, classifier, whole, tmp_path):
    lost = cluster.add_node(num_cpus=2)
    removed = []

    def progress(done, samples, failures):
        if done >= 8 and not removed:
            removed.append(done)
            cluster.remove_node(lost, allow_graceful=False)

    the_task = task(folder, tmp_path / "blocks", classifier, Slow(classifier.preprocess))
    outcome = ray_engine.run(the_task, cluster.address, progress=progress)
    assert removed == [8]
    assert outcome.rows == 40
    assert_is(tmp_path / "blocks", whole)


DRIVER = """import sys; from pathlib import Path; from dataclasses import replace
from lrpfunc.pictures import classifiers, distributed; from lrpfunc.pictures.distributed import ray_engine
from tests.test_ray import Slow, task
classifier = classifiers.load("digits")
the_task = task(Path(sys.argv[1]), Path(sys.argv[2]), classifier, Slow(classifier.preprocess))
print(ray_engine.run(the_task, sys.argv[3]).written)
"""


def test_a_driver_killed_in_the_middle_is_started_again(cluster, folder, classifier, whole, tmp_path):
    blocks = tmp_path / "blocks"
    command = [sys.executable, "-c", DRIVER, folder, blocks, cluster.address]
    with subprocess.Popen(command) as driver:
        while not list(blocks.glob("block-*.h5")):
            assert driver.poll() is None
            time.sleep(0.05)
        driver.kill()
    assert len(list(blocks.glob("block-*.h5"))) < 5
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 0 < int(again.stdout.split()[-1]) < 40
    assert_is(blocks, whole)


def test_a_cluster_without_room_for_a_process_says_what_it_has(cluster, folder, classifier, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_engine, "PLACING", 0.5)
    with pytest.raises(
        InputError, match=r"^a process needs 1 CPUs and 1 GPUs, but the machines of the cluster have 1 CPUs"
    ):
        ray_engine.run(task(folder, tmp_path / "blocks", classifier), cluster.address, ray_engine.Share(gpus=1))


def test_what_a_process_says_is_the_error(cluster, folder, classifier, tmp_path):
    (tmp_path / "blocks").mkdir()
    (tmp_path / "blocks" / "me.jpg").touch()
    command = ["dataset", folder, "-m", "digits", "-o", tmp_path / "blocks", "--engine", "ray", "--address"]
    line = complaint(lrp(*command, cluster.address), 2)
    assert line == f"error: {tmp_path / 'blocks'} holds something else, such as me.jpg: choose a new folder with --out."


def test_ray_is_started_on_this_machine_where_there_is_no_cluster(folder, whole, tmp_path):
    command = [sys.executable, "-m", "lrpfunc", "dataset", folder, "-m", "digits", "--batch", str(BATCH)]
    command += ["-o", tmp_path / "blocks", "--engine", "ray", "--block-size", str(BLOCK), "--processes", "2"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    ran = subprocess.run(
        command, capture_output=True, text=True, env=environment | {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    )
    assert (ran.returncode, ran.stdout) == (0, f"{tmp_path / 'blocks'}: 40 explanations\n"), ran.stderr
    assert merged(tmp_path / "blocks").read_bytes() == whole.read_bytes()
