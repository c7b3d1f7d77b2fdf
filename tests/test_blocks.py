"""Runs in blocks, done by many processes: whoever does them and dies, merged they are the run of one process."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch

from lrpfunc.errors import FileError, InputError
from lrpfunc.pictures import classifiers, distributed, hdf5, merging, parts, runs, sidefiles
from lrpfunc.pictures.distributed import ranks, worker
from lrpfunc.pictures.report import page as report_page
from tests.examinations import examine_here
from tests.test_cli import complaint, fine, lrp
from tests.test_extras import COMMAND, loaded_by
from tests.test_report import relevance, write_run
from tests.test_runs import broken, clean_process, content, ended, forked, interrupt, prepared_once  # noqa: F401

BATCH, BLOCK = 4, 8


@pytest.fixture(scope="module")
def whole(folder, classifier, tmp_path_factory):
    """The run in one process."""
    out = tmp_path_factory.mktemp("whole") / "whole.h5"
    runs.run(folder, out, classifier, targets=["top2"], batch=BATCH)
    return out


def task(source, out, classifier, **options):
    return distributed.Task(source, out, classifier, **{"targets": ("top2",), "batch": BATCH, "block": BLOCK} | options)


def by_ranks(the_task, world):
    return [ranks.run(the_task, ranks.Place(rank, world)) for rank in range(world)]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# -- which samples are in which block ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("samples", "size"), [(40, 8), (41, 8), (1, 256), (256, 256), (257, 256), (5, 1), (0, 3)])
def test_blocks_are_neighbours_and_have_every_sample_once(samples, size):
    found = parts.blocks(samples, size)
    assert [list(block.positions(samples)) for block in found] == [
        list(range(samples))[start : start + size] for start in range(0, samples, size)
    ]
    assert [str(block) for block in found] == [f"{n}/{len(found)} of {size}" for n in range(1, len(found) + 1)]


def test_a_block_needs_a_sample():
    with pytest.raises(InputError, match=r"^a block needs one sample at least, but --block-size is 0\.$"):
        parts.blocks(8, 0)


# -- together they are the run ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 4])
def test_blocks_of_any_number_of_processes_merge_to_the_run_to_the_byte(folder, classifier, whole, tmp_path, world):
    outcomes = by_ranks(task(folder, tmp_path / "blocks", classifier), world)
    assert sum(outcome.rows for outcome in outcomes) == 80
    assert names(tmp_path / "blocks") == ["_run.json", *(f"block-{n:06}.h5" for n in range(1, 6))]
    merged = merging.merge([tmp_path / "blocks"], tmp_path / "all.h5")
    assert merged == (tmp_path / "all.h5", 80, [], "")
    assert (tmp_path / "all.h5").read_bytes() == whole.read_bytes()


def test_batches_that_end_with_their_block_are_the_same_to_rounding(folder, classifier, whole, tmp_path):
    by_ranks(task(folder, tmp_path / "blocks", classifier, block=7), 2)
    merging.merge([tmp_path / "blocks"], tmp_path / "all.h5")
    found, expected = content(tmp_path / "all.h5"), content(whole)
    for name, values in expected.items():
        if values.dtype == np.float32:
            np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-6, err_msg=name)
        else:
            np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_a_data_set_of_one_block_merges_too(folder, classifier, whole, tmp_path):
    by_ranks(task(folder, tmp_path / "blocks", classifier, block=1000), 3)
    merging.merge([tmp_path / "blocks"], tmp_path / "all.h5")
    assert (tmp_path / "all.h5").read_bytes() == whole.read_bytes()


def test_samples_that_fail_are_listed_and_a_block_may_have_nothing_else(broken, classifier, tmp_path):  # noqa: F811
    for path in sorted(broken.rglob("*.png"))[8:16]:
        path.write_bytes(b"")
    outcomes = by_ranks(task(broken, tmp_path / "blocks", classifier), 2)
    single = runs.run(broken, tmp_path / "whole.h5", classifier, targets=["top2"], batch=BATCH)
    together = worker.together(tmp_path, outcomes)
    assert list(together.failures) == list(single.failures)
    assert len(single.failures) == 11
    with hdf5.opened(tmp_path / "blocks" / "block-000002.h5") as run:
        assert (run.rows, len(run.errors)) == (0, 8)
    merged = merging.merge([tmp_path / "blocks"], tmp_path / "all.h5")
    assert merged.failures == single.failures
    assert (tmp_path / "all.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_a_report_reads_the_folder(folder, classifier, tmp_path):
    by_ranks(task(folder, tmp_path / "blocks", classifier), 1)
    (tmp_path / "blocks" / "block-000002.h5").unlink()
    summary = report_page.write([tmp_path / "blocks"], tmp_path / "report.html")
    assert (summary.samples, summary.missing) == (32, "block 2/5 is missing: have 1, 3, 4 and 5.")
    with pytest.raises(FileError, match=r"^block 2/5 is missing: have 1, 3, 4 and 5\. Make what is missing, or give"):
        merging.merge([tmp_path / "blocks"], tmp_path / "all.h5")
    merging.merge([tmp_path / "blocks"], tmp_path / "some.h5", incomplete=True)
    with h5py.File(tmp_path / "some.h5") as file:
        assert '"shard": "1+3+4+5/5 of 8"' in file.attrs["lrpfunc"]


def test_more_files_than_a_process_may_open_are_merged(folder, classifier, whole, tmp_path):
    """In a process of its own, which lowers its limit."""
    by_ranks(task(folder, tmp_path / "blocks", classifier, block=BATCH), 1)
    code = (
        "import resource, sys; from pathlib import Path; from lrpfunc.pictures import merging, shards\n"
        "shards.OTHER_FILES = 40\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (12, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))\n"
        "merging.merge([Path(sys.argv[1])], Path(sys.argv[2]))"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "blocks", tmp_path / "all.h5"], check=True)
    assert (tmp_path / "all.h5").read_bytes() == whole.read_bytes()


# -- done again -------------------------------------------------------------------------------------------------------


def test_what_is_whole_is_not_done_again(folder, classifier, whole, tmp_path):
    blocks = tmp_path / "blocks"
    first = worker.together(blocks, by_ranks(task(folder, blocks, classifier), 2))
    assert (first.written, first.was_finished) == (80, False)
    before = {path: path.read_bytes() for path in blocks.iterdir()}
    again = worker.together(blocks, by_ranks(task(folder, blocks, classifier), 3))
    assert again == first._replace(written=0, was_finished=True)
    assert {path: path.read_bytes() for path in blocks.iterdir()} == before
    (blocks / "block-000003.h5").unlink()
    assert worker.together(blocks, by_ranks(task(folder, blocks, classifier), 1)).written == 16
    assert (blocks / "block-000003.h5").read_bytes() == before[blocks / "block-000003.h5"]


def killed_and_started_again(source, out, kills):
    """Ranks that are killed at things they do to files, by chance, each time to be started again."""
    torch.set_num_threads(1)
    the_task = task(source, out, prepared_once())
    examine_here()
    chance = random.Random(1)

    def run(rank, moment):
        if moment:
            interrupt(moment, lambda: os.kill(os.getpid(), signal.SIGKILL))
        ranks.run(the_task, ranks.Place(rank, 2))

    deaths = 0
    while deaths < kills:
        children = [forked(run, rank, chance.randint(2, 40)) for rank in range(2)]
        codes = [ended(child) for child in children]
        assert set(codes) <= {0, -signal.SIGKILL}, codes
        deaths += codes.count(-signal.SIGKILL)
        if codes == [0, 0]:  # all is done: something of it gets lost
            random.Random(deaths).choice(sorted(out.glob("block-*.h5"))).unlink()
    assert [ended(forked(run, rank, 0)) for rank in range(2)] == [0, 0]


def test_processes_killed_twenty_times_lose_nothing(folder, whole, tmp_path):
    clean_process(killed_and_started_again, folder, tmp_path / "blocks", 20)
    assert {name for name in names(tmp_path / "blocks") if not name.startswith(".")} == {
        *(f"block-{n:06}.h5" for n in range(1, 6)),
        "_run.json",
    }
    merging.merge([tmp_path / "blocks"], tmp_path / "all.h5")
    assert (tmp_path / "all.h5").read_bytes() == whole.read_bytes()


LOCK = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, 2); print(1, flush=True); sys.stdin.read()"


@pytest.fixture
def holder(folder, classifier, tmp_path):
    """A worker, and a process that holds its first block, as one does that is thought to be dead."""
    one = worker.Worker(task(folder, tmp_path / "blocks", classifier))
    command = [sys.executable, "-c", LOCK, tmp_path / "blocks" / "block-000001.h5.journal"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield one, process
        process.kill()


def test_a_block_that_a_dying_process_holds_is_waited_for(holder, monkeypatch):
    one, process = holder
    slept = []
    monkeypatch.setattr(worker.time, "sleep", lambda seconds: (slept.append(seconds), process.kill(), process.wait()))
    assert one.do(1).rows == 16
    assert slept == [1]


def test_a_block_that_another_process_keeps_is_an_error(holder, monkeypatch):
    one, _ = holder
    monkeypatch.setattr(worker, "PATIENCE", -1)
    with pytest.raises(FileError, match=r"another process is writing .*block-000001\.h5\."):
        one.do(1)


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.fixture
def begun(folder, classifier, tmp_path):
    """A folder in which one of five blocks is done."""
    source, blocks = tmp_path / "source", tmp_path / "blocks"
    shutil.copytree(folder, source)
    worker.Worker(task(source, blocks, classifier)).do(1)
    return source, blocks


def refused(source, blocks, classifier, **options):
    before = {path: path.read_bytes() for path in blocks.iterdir()}
    with pytest.raises(FileError) as error:
        worker.Worker(task(source, blocks, classifier, **options))
    assert {path: path.read_bytes() for path in blocks.iterdir()} == before
    return str(error.value)


def test_a_folder_of_another_run_is_refused(begun, classifier):
    source, blocks = begun
    end = ". Give the same options, or another --out."
    assert refused(source, blocks, classifier, block=4) == f"{blocks} is of another run, with block 8 (now 4){end}"
    said = refused(source, blocks, classifier, composite="epsilon", batch=2)
    changed = "batch 4 (now 2)"
    assert said == f"{blocks} is of another run, with composite 'epsilon_plus_flat' (now 'epsilon'), {changed}{end}"
    said = refused(source, blocks, classifiers.load("digits", "random"))
    assert said == f"{blocks} is of another run, with other parameters{end}"


@pytest.mark.parametrize("change", ["size", "time", "gone"])
def test_a_source_that_changed_is_refused(begun, classifier, change):
    source, blocks = begun
    image = source / "3" / "003.png"
    if change == "size":
        status = image.stat()
        image.write_bytes(image.read_bytes() + b"more")
        os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif change == "time":
        os.utime(image, (1, 1))
    else:
        image.unlink()
        image.symlink_to("nothing")  # it has its name
    assert refused(source, blocks, classifier) == (
        f"{source} has changed since the run in {blocks} began: its files have other sizes or times (rsync -a and "
        "cp -p keep times). Begin anew with another --out."
    )


def test_another_list_of_files_is_refused(begun, classifier):
    source, blocks = begun
    (source / "3" / "003.png").unlink()
    said = refused(source, blocks, classifier)
    assert said.startswith(f"{blocks} is of another run, with samples 40 (now 39), other files.")


def test_other_versions_are_refused(begun, classifier, monkeypatch):
    source, blocks = begun
    monkeypatch.setattr(runs.importlib.metadata, "version", lambda name: {"torch": "1.0", "lrpfunc": "0.1"}.get(name))
    said = refused(source, blocks, classifier)
    versions = json.loads((blocks / "_run.json").read_text())["versions"]
    assert said.startswith(f"the run in {blocks} began with lrpfunc {versions['lrpfunc']}, torch {versions['torch']}, ")
    assert ", but a process has lrpfunc 0.1, torch 1.0, " in said
    assert said.endswith(": install the same everywhere.")


def test_what_is_in_the_way_is_left_alone(folder, classifier, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").write_text("precious")
    said = refused(folder, tmp_path / "photos", classifier)
    assert said == f"{tmp_path / 'photos'} holds something else, such as me.jpg: choose a new folder with --out."
    for content_of in ("no JSON", "[1]", "{}"):
        blocks = tmp_path / f"blocks {content_of}"
        blocks.mkdir()
        (blocks / "_run.json").write_text(content_of)
        said = refused(folder, blocks, classifier)
        assert said.startswith(f"{blocks / '_run.json'} is in the way: it is no file of an lrpfunc run.")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match=r"file is a file, and blocks need a folder: choose another --out\.$"):
        worker.Worker(task(folder, tmp_path / "file", classifier))
    with pytest.raises(FileError, match=r"^cannot write .*b: there is no folder .*a\.$"):
        worker.Worker(task(folder, tmp_path / "a" / "b", classifier))


def test_a_block_of_another_run_is_refused_and_kept(begun, classifier, tmp_path):
    source, blocks = begun
    worker.Worker(task(source, tmp_path / "other", classifier, composite="epsilon")).do(2)
    shutil.copy(tmp_path / "other" / "block-000002.h5", blocks)
    one = worker.Worker(task(source, blocks, classifier))
    before = (blocks / "block-000002.h5").read_bytes()
    with pytest.raises(
        FileError, match=r"block-000002\.h5 is of another run, with composite 'epsilon' \(now 'epsilon_plus_"
    ):
        one.do(2)
    shutil.copy(blocks / "block-000001.h5", blocks / "block-000003.h5")  # or of this one, with another number
    with pytest.raises(FileError, match=r"is of another run, with shard '1/5 of 8' \(now '3/5 of 8'\)"):
        one.do(3)
    os.truncate(blocks / "block-000003.h5", 5000)
    with pytest.raises(
        FileError, match=r"3\.h5 is no HDF5 file, or a damaged one\. Move .*3\.h5 away, and the same command makes it "
    ):
        one.do(3)
    (blocks / "block-000003.h5").unlink()
    assert one.do(3).rows == 16
    assert (blocks / "block-000002.h5").read_bytes() == before
    with pytest.raises(
        FileError, match=r"a merge needs files of one run, but .*block-000001\.h5 and .*2\.h5 differ in comp"
    ):
        merging.merge([blocks], tmp_path / "all.h5")


@pytest.mark.parametrize(("number", "words"), [(28, "No space left"), (30, "Read-only file system")])
def test_a_full_or_read_only_disk_is_told_and_nothing_is_lost(begun, classifier, monkeypatch, tmp_path, number, words):
    source, blocks = begun
    one, made = worker.Worker(task(source, blocks, classifier)), sidefiles.made

    def refuse(path):
        raise OSError(number, os.strerror(number), os.fspath(path))

    monkeypatch.setattr(sidefiles, "made", refuse)
    with pytest.raises(OSError, match=words):
        one.do(2)
    assert names(blocks) == ["_run.json", "block-000001.h5"]
    monkeypatch.setattr(sidefiles, "made", made)
    assert one.do(2).rows == 16


def test_a_folder_without_blocks_cannot_be_merged(tmp_path):
    with pytest.raises(FileError, match=r"^there are no blocks in .*: `lrpfunc dataset \.\.\. --engine ray --out "):
        merging.merge([tmp_path], tmp_path / "all.h5")


def test_blocks_are_not_mixed_with_shards(tmp_path):
    details = {"model": "net", "samples": 4}
    one = write_run(tmp_path / "1.h5", relevance(2), index=[0, 1], details=details | {"shard": "1/2 of 2"})
    two = write_run(tmp_path / "2.h5", relevance(2), index=[2, 3], details=details | {"shard": "2/2"})
    with pytest.raises(FileError, match=r"differ in size of blocks\."):
        merging.merge([one, two], tmp_path / "all.h5")


# -- ranks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "SLURM_PROCID": "0"}, (3, 8, 1)),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}, (2, 4, 0)),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"}, (0, 1, 0)),
    ],
)
def test_a_place_is_what_the_launcher_says(environment, place):
    assert ranks.place(environment) == place


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "1"}, r"^--engine ranks is for processes that a launcher starts, such as `torchrun .*are not set\.$"),
        (
            {"RANK": "4", "WORLD_SIZE": "4"},
            r"^a rank is from 0 to .*, but the launcher says RANK '4', WORLD_SIZE '4'\.$",
        ),
        ({"SLURM_PROCID": "a", "SLURM_NTASKS": "4"}, r"the launcher says SLURM_PROCID 'a', SLURM_NTASKS '4'\.$"),
    ],
)
def test_a_place_that_is_none_is_an_error(environment, message):
    with pytest.raises(InputError, match=message):
        ranks.place(environment)


def test_each_process_takes_a_device_of_its_machine(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    devices = [ranks._own("cuda", ranks.Place(rank, 8, rank % 4)) for rank in range(8)]
    assert devices == ["cuda:0", "cuda:1"] * 4
    assert ranks._own("cuda:1", ranks.Place(2, 8, 2)) == "cuda:1"
    assert ranks._own("cpu", ranks.Place(2, 8, 2)) == "cpu"


def test_more_processes_than_blocks_have_nothing_to_do(folder, classifier, tmp_path):
    told = []
    outcome = ranks.run(task(folder, tmp_path / "blocks", classifier), ranks.Place(7, 8), lambda *n: told.append(n))
    assert (outcome.rows, outcome.failures, told) == (0, [], [])


def test_progress_is_told_batch_by_batch_and_by_blocks_that_are_there(broken, classifier, tmp_path):  # noqa: F811
    told = []
    ranks.run(task(broken, tmp_path / "blocks", classifier), ranks.Place(1, 2), lambda *n: told.append(n))
    assert told == [(4, 18, 0), (8, 18, 0), (12, 18, 0), (16, 18, 0), (18, 18, 1)]
    told.clear()
    ranks.run(task(broken, tmp_path / "blocks", classifier), ranks.Place(1, 2), lambda *n: told.append(n))
    assert told == [(8, 18, 0), (16, 18, 0), (18, 18, 1)]


def test_torchrun_starts_it(broken, tmp_path):  # noqa: F811
    """Failures do not end the other processes."""
    options = ["-m", "digits", "-t", "top2", "--batch", str(BATCH), "--block-size", str(BLOCK)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "lrpfunc"]
    command += ["dataset", str(broken), *options, "--engine", "ranks", "--out", str(tmp_path / "blocks")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert ran.returncode == 0, ran.stderr
    assert sorted(ran.stdout.splitlines()) == [f"{tmp_path / 'blocks'}: {n} explanations" for n in (34, 44)]
    assert "error: 9/a.png is no image that Pillow can read" in ran.stderr
    runs.run(broken, tmp_path / "whole.h5", classifiers.load("digits"), targets=["top2"], batch=BATCH)
    merging.merge([tmp_path / "blocks"], tmp_path / "all.h5")
    assert (tmp_path / "all.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


# -- the command line -------------------------------------------------------------------------------------------------


def test_the_command_line_does_blocks_and_reads_them(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    blocks = tmp_path / "blocks"
    command = ["dataset", folder, "-m", "digits", "--engine", "ranks", "--block-size", 16, "-o", blocks]
    assert fine(*command).stdout == f"{blocks}: 40 explanations\n"
    assert (
        fine(*command, "--resume").stdout == f"nothing left to do: {blocks} was finished.\n{blocks}: 40 explanations\n"
    )
    fine("merge", blocks, "-o", tmp_path / "all.h5")
    fine("dataset", folder, "-m", "digits", "-o", tmp_path / "whole.h5")
    assert (tmp_path / "all.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert fine("report", blocks, "-o", tmp_path / "r.html").stdout.startswith(f"{tmp_path / 'r.html'}: 40 samples")
    (blocks / "block-000002.h5").unlink()
    assert "block 2/3 is missing: have 1 and 3." in complaint(lrp("merge", blocks, "-o", tmp_path / "x.h5"), 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "spark"], "error: an engine is ray or ranks, but 'spark' is none."),
        (["--block-size", "4"], "error: --block-size is for --engine ray or ranks."),
        (["--processes", "4"], "error: --processes is for --engine ray."),
        (["--engine", "ranks", "--gpus-per-process", "1"], "error: --gpus-per-process is for --engine ray."),
        (
            ["--engine", "ranks", "--shard", "1/2"],
            "error: --engine does all blocks of a data set: leave --shard out.",
        ),
        (
            ["--engine", "ranks", "--overwrite"],
            "error: blocks that are there are kept: choose another --out, or remove the folder.",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(folder, tmp_path, options, message):
    assert complaint(lrp("dataset", folder, "-m", "digits", "-o", tmp_path / "x", *options), 1) == message
    assert not (tmp_path / "x").exists()


def test_without_its_extra_the_engine_says_how_to_get_it(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("lrpfunc.extras.find_spec", lambda name: None if name == "ray" else name)
    line = complaint(lrp("dataset", folder, "-m", "digits", "-o", tmp_path / "x", "--engine", "ray"), 1)
    assert line == "error: --engine ray needs ray: pip install 'lrpfunc[ray]'"


def test_nothing_of_ray_is_imported_before_it_is_asked_for(folder, tmp_path):
    blocks = str(tmp_path / "blocks")
    command = ["lrpfunc", "dataset", str(folder), "-m", "digits", "-o", blocks, "--engine", "ranks"]
    loaded = loaded_by("import os; os.environ |= {'RANK': '0', 'WORLD_SIZE': '1'}\n" + COMMAND.format(command))
    assert "torch" in loaded
    assert not loaded & {"ray", "pyarrow", "pandas"}
    assert names(tmp_path / "blocks") == ["_run.json", "block-000001.h5"]
