"""Dataset runs: what is in the file, and that nothing is lost or doubled whatever happens on the way."""

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import traceback
from dataclasses import dataclass, replace

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

import lrpfunc
from lrpfunc import composites
from lrpfunc.errors import FileError, InputError, TargetError
from lrpfunc.pictures import classifiers, hdf5, journal, parts, runs
from lrpfunc.pictures.classifiers import Standard
from tests.examinations import examine_here

BROKEN = b"this is no image"


@pytest.fixture
def broken(folder, tmp_path):
    """The same with three files that are no images, one of them first."""
    path = tmp_path / "broken"
    shutil.copytree(folder, path)
    for name in ("0/000.png", "4/zzz.jpg", "9/a.png"):
        path.joinpath(name).write_bytes(BROKEN)
    return path


def content(path):
    """All datasets of a file."""
    with h5py.File(path, "r") as file:
        return {name: file[name][:] for name in file}


def assert_same(got, expected):
    got, expected = content(got), content(expected)
    assert got.keys() == expected.keys()
    for name in expected:
        assert got[name].dtype == expected[name].dtype
        np.testing.assert_array_equal(got[name], expected[name], err_msg=name)


def left_behind(out):
    return sorted(path.name for path in out.parent.glob(f"{out.name}*"))


# -- what is in the file ----------------------------------------------------------------------------------------------


def test_rows_are_what_attribute_gives_for_the_preprocessed_images(folder, classifier, tmp_path):
    out = tmp_path / "run.h5"
    outcome = runs.run(folder, out, classifier, composite="epsilon_plus", batch=7)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    x = torch.stack([1 - torch.from_numpy(np.array(Image.open(folder / name)))[None] / 255 for name in names])
    fmodel, params, *_ = lrpfunc.canonize(*lrpfunc.functionalize(classifier.model, x))
    logits = classifier.model(x).detach()
    relevance = lrpfunc.attribute(fmodel, params, x, composites.epsilon_plus())
    found = content(out)
    assert outcome == (out, 40, [], 40, 0, False, ())
    assert [name.decode() for name in found["file"]] == names
    np.testing.assert_allclose(found["attribution"], relevance, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["prediction"], logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found["label"], [int(name[0]) for name in names])
    np.testing.assert_array_equal(found["target"], logits.argmax(1))
    np.testing.assert_array_equal(found["index"], np.arange(40))
    np.testing.assert_allclose(found["logit"], logits.amax(1), rtol=1e-4)
    np.testing.assert_allclose(found["relevance_sum"], relevance.sum((1, 2, 3)), rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(found["data"][:, 0], [np.array(Image.open(folder / name)) for name in names])
    assert [name.decode() for name in found["category"]] == list("0123456789")
    assert len(found["errors"]) == 0
    assert left_behind(out) == ["run.h5"]


def test_details_say_how_the_file_came_about(folder, classifier, tmp_path):
    runs.run(folder, tmp_path / "run.h5", classifier, composite="epsilon", targets=["top2"], canonize=False)
    with hdf5.opened(tmp_path / "run.h5") as run:
        details = run.details
    assert details["model"] == "digits"
    assert details["composite"] == "epsilon"
    assert details["targets"] == ["top2"]
    assert details["canonized"] is False
    assert details["samples"] == 40
    assert details["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_several_targets_are_several_rows_of_a_sample(folder, classifier, tmp_path):
    runs.run(folder, tmp_path / "several.h5", classifier, targets=["top2", "3", "label"], batch=11)
    found = content(tmp_path / "several.h5")
    np.testing.assert_array_equal(found["index"], np.repeat(np.arange(40), 4))
    order = found["prediction"][::4].argsort(1)[:, ::-1]
    expected = np.stack([order[:, 0], order[:, 1], np.full(40, 3), found["label"][::4]], axis=1)
    np.testing.assert_array_equal(found["target"].reshape(40, 4), expected)
    for column, target in enumerate(["top", None, "3", "label"]):
        if target is not None:
            out = tmp_path / f"{target}.h5"
            runs.run(folder, out, classifier, targets=[target], batch=11)
            alone = content(out)
            for name in ("attribution", "logit", "relevance_sum", "prediction", "data", "file"):
                each = found[name].reshape(40, 4, *found[name].shape[1:])[:, column]
                if each.dtype == np.float32:
                    np.testing.assert_allclose(each, alone[name], rtol=1e-4, atol=1e-5, err_msg=name)
                else:
                    np.testing.assert_array_equal(each, alone[name], err_msg=name)


def test_what_cannot_be_read_is_listed_and_everything_else_is_there(broken, folder, classifier, tmp_path):
    runs.run(folder, tmp_path / "whole.h5", classifier, batch=8)
    outcome = runs.run(broken, tmp_path / "run.h5", classifier, batch=8)
    assert [(f.sample, f.file, f.reason) for f in outcome.failures] == [
        (0, "0/000.png", "is no image that Pillow can read"),
        (20, "4/zzz.jpg", "is no image that Pillow can read"),
        (41, "9/a.png", "is no image that Pillow can read"),
    ]
    with hdf5.opened(tmp_path / "run.h5") as run:
        assert run.errors == outcome.failures
    found, whole = content(tmp_path / "run.h5"), content(tmp_path / "whole.h5")
    assert outcome.rows == len(found["file"]) == 39
    assert list(found["file"]) == list(whole["file"][1:])
    np.testing.assert_allclose(found["attribution"], whole["attribution"][1:], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(found["index"], [i for i in range(42) if i not in (0, 20, 41)])
    assert left_behind(tmp_path / "run.h5") == ["run.h5"]


def test_worker_processes_change_nothing(broken, classifier, tmp_path):
    runs.run(broken, tmp_path / "none.h5", classifier, workers=0, batch=8)
    runs.run(broken, tmp_path / "two.h5", classifier, workers=2, batch=8)
    assert_same(tmp_path / "two.h5", tmp_path / "none.h5")


@pytest.mark.parametrize("of", [2, 3, 7])
def test_shards_are_disjoint_and_complete(folder, classifier, tmp_path, of):
    indices = []
    for number in range(1, of + 1):
        out = tmp_path / f"{number}.h5"
        runs.run(folder, out, classifier, part=runs.Shard(number, of))
        indices.append(content(out)["index"])
        np.testing.assert_array_equal(indices[-1], np.arange(number - 1, 40, of))
    np.testing.assert_array_equal(np.sort(np.concatenate(indices)), np.arange(40))


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "1/0", "a/b", "-1/4"])
def test_a_shard_that_is_none_is_an_error(text):
    with pytest.raises(InputError, match="with I from 1 to N"):
        parts.shard(text)


def test_samples_with_relevance_that_is_not_finite_are_errors(classifier, tmp_path):
    x = torch.rand(5, 1, 8, 8)
    x[2] = 3e38
    torch.save({"data": x, "label": torch.arange(5)}, tmp_path / "x.pt")
    outcome = runs.run(tmp_path / "x.pt", tmp_path / "run.h5", classifier)
    assert [(f.sample, f.reason) for f in outcome.failures] == [(2, "its prediction or relevance is nan or infinite")]
    np.testing.assert_array_equal(content(tmp_path / "run.h5")["index"], [0, 1, 3, 4])


def test_samples_without_a_class_cannot_be_explained_by_it(folder, classifier, tmp_path):
    some = tmp_path / "some"
    shutil.copytree(folder, some)
    some.joinpath("7").rename(some / "unheard of")
    outcome = runs.run(some, tmp_path / "run.h5", classifier, targets=["label"])
    assert {f.reason for f in outcome.failures} == {"its class is not known, which is the target"}
    assert {f.file.split("/")[0] for f in outcome.failures} == {"unheard of"}
    assert (outcome.rows, outcome.unknown) == (36, 4)
    assert (content(tmp_path / "run.h5")["label"] == content(tmp_path / "run.h5")["target"]).all()


def test_progress_is_told_batch_by_batch(broken, classifier, tmp_path):
    told = []
    runs.run(broken, tmp_path / "run.h5", classifier, batch=20, progress=lambda *numbers: told.append(numbers))
    assert told == [(20, 42, 1), (40, 42, 2), (42, 42, 3)]


def test_names_that_are_no_unicode_are_kept(folder, classifier, tmp_path):
    odd = tmp_path / "odd"
    odd.mkdir()
    for name in (b"caf\xe9.png", "grüße <b>&.png".encode(), b"two\nlines.png"):
        shutil.copy(folder / "3" / "003.png", os.fsencode(odd) + b"/" + name)
    for name in (b"br\xe9k.png", b"\x1b[31mred.png"):
        odd.joinpath(os.fsdecode(name)).write_bytes(BROKEN)
    outcome = runs.run(odd, tmp_path / "run.h5", classifier)
    assert [f.file for f in outcome.failures] == ["\\x1b[31mred.png", "br\ufffdk.png"]
    assert set(content(tmp_path / "run.h5")["file"]) == {b"caf\xe9.png", "grüße <b>&.png".encode(), b"two\nlines.png"}


# -- what is in the way -----------------------------------------------------------------------------------------------


def test_an_existing_file_is_kept_unless_told_otherwise(folder, classifier, tmp_path):
    out = tmp_path / "run.h5"
    out.write_text("precious")
    with pytest.raises(FileError, match=r"run\.h5 exists: choose another --out, or give --overwrite"):
        runs.run(folder, out, classifier)
    assert out.read_text() == "precious"
    assert left_behind(out) == ["run.h5"]
    assert runs.run(folder, out, classifier, overwrite=True).rows == 40


def test_bad_paths_are_errors_before_any_work(folder, classifier, tmp_path):
    with pytest.raises(FileError, match="is a folder: name a file in it"):
        runs.run(folder, tmp_path, classifier)
    with pytest.raises(FileError, match="there is no folder"):
        runs.run(folder, tmp_path / "missing" / "run.h5", classifier)
    with pytest.raises(InputError, match="either resumed or begun anew"):
        runs.run(folder, tmp_path / "run.h5", classifier, resume=True, overwrite=True)
    with pytest.raises(InputError, match="batch must be >= 1 and workers >= 0, but are 0 and 0"):
        runs.run(folder, tmp_path / "run.h5", classifier, batch=0)
    with pytest.raises(TargetError, match="no class is called 'seven'"):
        runs.run(folder, tmp_path / "run.h5", classifier, targets=["seven"])
    assert left_behind(tmp_path / "run.h5") == []


def test_a_data_set_without_anything_readable_is_an_error(classifier, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    data.joinpath("a.png").write_bytes(BROKEN)
    data.joinpath("b.png").touch()
    with pytest.raises(FileError, match=r"none of the 2 samples can be read: b\.png is empty\."):
        runs.run(data, tmp_path / "run.h5", classifier)
    with pytest.raises(FileError, match=r"none of the 0 samples can be read: there are none in this shard\."):
        runs.run(data, tmp_path / "run.h5", classifier, part=runs.Shard(3, 3))


def test_another_process_at_the_same_file_is_kept_out(folder, classifier, tmp_path):
    out = tmp_path / "run.h5"
    code = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, 2); print(1, flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, f"{out}.journal"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        other.stdout.readline()
        with pytest.raises(FileError, match="another process is writing"):
            runs.run(folder, out, classifier)
        other.kill()
    assert runs.run(folder, out, classifier).rows == 40


def interrupted(folder, out, classifier, after=2, **options):
    """Run until some batches are done, then stop as by Ctrl+C."""
    calls = []

    def stop(*numbers):
        calls.append(numbers)
        if len(calls) == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.run(folder, out, classifier, batch=8, progress=stop, **options)


def test_an_unfinished_run_is_neither_overwritten_nor_mixed_with_another(folder, classifier, tmp_path):
    out = tmp_path / "run.h5"
    interrupted(folder, out, classifier)
    assert left_behind(out) == ["run.h5.journal", "run.h5.part"]
    with pytest.raises(
        FileError, match=r"part is of an unfinished run\. Give --resume to go on with it, or --overwrite"
    ):
        runs.run(folder, out, classifier, batch=8)
    with pytest.raises(
        FileError, match=r"of another run, with composite 'epsilon_plus_flat' \(now 'epsilon'\), batch 8"
    ):
        runs.run(folder, out, classifier, composite="epsilon", resume=True)
    told = []
    outcome = runs.run(folder, out, classifier, batch=8, resume=True, progress=lambda *n: told.append(n))
    assert told == [(24, 40, 0), (32, 40, 0), (40, 40, 0)]
    assert (outcome.rows, outcome.written) == (40, 24)
    runs.run(folder, tmp_path / "whole.h5", classifier, batch=8)
    assert_same(out, tmp_path / "whole.h5")


def test_another_model_or_data_set_is_another_run(folder, broken, classifier, tmp_path):
    out = tmp_path / "run.h5"
    interrupted(folder, out, classifier)
    changes = {
        "other parameters": classifiers.load("digits", "random"),
        "other names of classes": replace(classifier, categories=tuple("9876543210")),
        r"mean \[1.0\] \(now \[0.5\]\), std \[-1.0\] \(now \[0.5\]\)": replace(classifier, mean=(0.5,), std=(0.5,)),
    }
    for message, other in changes.items():
        with pytest.raises(FileError, match=f"of another run, with {message}"):
            runs.run(folder, out, other, batch=8, resume=True)
    with pytest.raises(FileError, match=r"of another run, with samples 40 \(now 42\), other files"):
        runs.run(broken, out, classifier, batch=8, resume=True)


def test_other_values_in_a_file_of_arrays_are_another_run(classifier, tmp_path):
    out, source = tmp_path / "run.h5", tmp_path / "x.pt"
    torch.save(torch.rand(40, 1, 8, 8), source)
    size = source.stat().st_size
    interrupted(source, out, classifier)
    torch.save(torch.rand(40, 1, 8, 8), source)
    assert source.stat().st_size == size
    with pytest.raises(FileError, match="of another run, with other files"):
        runs.run(source, out, classifier, batch=8, resume=True)


def test_a_finished_run_is_resumed_by_doing_nothing(broken, classifier, tmp_path):
    out = tmp_path / "run.h5"
    first = runs.run(broken, out, classifier)
    before = out.read_bytes()
    again = runs.run(broken, out, classifier, resume=True)
    assert out.read_bytes() == before
    assert again == first._replace(written=0, was_finished=True)
    assert left_behind(out) == ["run.h5"]
    with pytest.raises(FileError, match="of another run"):
        runs.run(broken, out, classifier, composite="epsilon", resume=True)


def test_resume_without_anything_to_resume_begins(folder, classifier, tmp_path):
    assert runs.run(folder, tmp_path / "run.h5", classifier, resume=True).written == 40


def test_overwriting_begins_anew(folder, classifier, tmp_path):
    out = tmp_path / "run.h5"
    interrupted(folder, out, classifier, composite="epsilon")
    assert runs.run(folder, out, classifier, overwrite=True).written == 40
    assert left_behind(out) == ["run.h5"]


@dataclass(frozen=True)
class Deadly:
    """Preprocessing that kills the process that does it, as a lack of memory may, unless it is this one."""

    standard: Standard
    main: int

    def __call__(self, image):
        if os.getpid() != self.main:
            os.kill(os.getpid(), 9)
        return self.standard(image)


def test_a_reading_process_that_dies_is_an_error_and_no_loss(folder, classifier, tmp_path):
    deadly = replace(classifier, preprocess=Deadly(classifier.preprocess, os.getpid()))
    with pytest.raises(FileError, match=r"a process that reads images died \(DataLoader worker .*--resume goes on"):
        runs.run(folder, tmp_path / "run.h5", deadly, workers=1)
    outcome = runs.run(folder, tmp_path / "run.h5", deadly, workers=0, resume=True)
    assert (outcome.rows, outcome.failures) == (40, [])


def test_an_error_in_a_reading_process_is_not_taken_for_its_death(folder, classifier, tmp_path):
    def fail(self, indices):
        raise RuntimeError("of its own")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs.Loader, "__getitem__", fail)
        with pytest.raises(RuntimeError, match="of its own"):
            runs.run(folder, tmp_path / "run.h5", classifier, workers=1)


def test_a_journal_that_another_process_has_removed_is_not_taken_for_a_lock(folder, classifier, tmp_path, monkeypatch):
    out, lock = tmp_path / "run.h5", journal._lock
    calls = []

    def late(descriptor, path):
        """Between opening the journal and locking it, another process finishes the run and removes it."""
        calls.append(descriptor)
        if len(calls) == 1:
            (tmp_path / "run.h5.journal").unlink()
            out.write_text("of another process")
        lock(descriptor, path)

    monkeypatch.setattr(journal, "_lock", late)
    with pytest.raises(FileError, match=r"run\.h5 exists"):
        runs.run(folder, out, classifier)
    assert len(calls) == 2
    assert out.read_text() == "of another process"
    assert left_behind(out) == ["run.h5"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_will_do(number, folder, classifier, tmp_path, monkeypatch):
    def no_locks(*arguments):
        raise OSError(number, "no locks")

    monkeypatch.setattr("fcntl.lockf", no_locks)
    assert runs.run(folder, tmp_path / "run.h5", classifier).rows == 40


def test_a_link_stays_and_what_is_no_file_is_left_alone(folder, classifier, tmp_path):
    real, link = tmp_path / "real" / "run.h5", tmp_path / "link.h5"
    real.parent.mkdir()
    link.symlink_to(real)
    runs.run(folder, link, classifier)
    assert link.is_symlink()
    assert content(real)["file"].size == 40
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileError, match="is no regular file: choose another --out"):
        runs.run(folder, tmp_path / "pipe", classifier, overwrite=True)


def test_a_damaged_journal_is_an_error(folder, classifier, tmp_path):
    out = tmp_path / "run.h5"
    interrupted(folder, out, classifier)
    journal = tmp_path / "run.h5.journal"
    text = journal.read_bytes()
    journal.write_bytes(text.replace(b'"batch": 0', b'"batch": 5'))
    with pytest.raises(FileError, match=r"journal is damaged: begin anew with --overwrite"):
        runs.run(folder, out, classifier, batch=8, resume=True)


def test_another_hdf5_file_is_told_from_a_run(tmp_path):
    path = tmp_path / "other.h5"
    for details in (None, "no JSON", "[1]"):
        with h5py.File(path, "w") as file:
            if details is not None:
                file.attrs[hdf5.DETAILS] = details
                for name, (shape, dtype) in hdf5.Schema(1, (1, 2, 2), 3, 4).columns().items():
                    file.create_dataset(name, (1, *shape), dtype)
                file["category"], file["errors"] = [1], [1]
        with (
            pytest.raises(FileError, match="is an HDF5 file, but not one that `lrpfunc dataset` wrote"),
            hdf5.opened(path),
        ):
            pass
    path.write_text("no HDF5")
    with pytest.raises(FileError, match="is no HDF5 file, or a damaged one"), hdf5.opened(path):
        pass
    with pytest.raises(FileError, match="there is no file"), hdf5.opened(tmp_path / "missing.h5"):
        pass


def test_no_space_left_is_known_at_the_start(folder, classifier, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        runs.run(folder, tmp_path / "run.h5", classifier)
    assert left_behind(tmp_path / "run.h5") == []


# -- killed -----------------------------------------------------------------------------------------------------------


def clean_process(function, *arguments):
    """Do something in a process in which autograd has no threads yet, for these could not be forked."""
    processes = multiprocessing.get_context("forkserver")
    # What a run imports, once instead of in each process.
    modules = [
        "torch._dynamo",
        "torch.export._trace",
        "torch.utils.data",
        "torchvision.transforms",
        "PIL.PngImagePlugin",
    ]
    processes.set_forkserver_preload([*modules, "tests.test_runs"])
    process = processes.Process(target=function, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == 0


def forked(function, *arguments):
    """A process that does something and has no exit code but 0 if that goes well."""
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)  # torch makes its threads anew: before autograd's, as two at once may abort
            function(*arguments)
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    return child


def ended(child):
    """How a process ends: its exit code, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def interrupt(moment, action):
    """Do something else at the n-th thing that this process does to files, in the midst of it if that is writing."""
    count = [0]

    def at(function, name):
        def call(*arguments, **options):
            count[0] += 1
            if count[0] == moment:
                if name == "pwrite":
                    descriptor, data, offset = arguments
                    function(descriptor, data[: len(data) // 2], offset)
                action()
            return function(*arguments, **options)

        return call

    for name in ("pwrite", "replace", "ftruncate", "unlink", "posix_fallocate", "fsync", "fdatasync"):
        setattr(os, name, at(getattr(os, name), name))


def prepared_once():
    """A classifier that no run in this process traces again, which would take minutes."""
    torch.set_num_threads(1)
    classifier = classifiers.load("digits")
    ready = runs.explainer(classifier, torch.rand(1, 1, 8, 8))
    runs.explainer = lambda *arguments: ready
    return classifier


@dataclass(frozen=True)
class Noting:
    """Preprocessing that notes each image that it sees."""

    log: str
    standard: Standard

    def __call__(self, image):
        descriptor = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, b".")
        os.close(descriptor)
        return self.standard(image)


KILLS, BATCH = 20, 4


def kill_again_and_again(source, folder):
    """Kill runs from outside, each at a moment that it has told of and at which it waits; then let one end."""
    classifier = prepared_once()
    out, log = folder / "run.h5", folder / "log"
    noting = replace(classifier, preprocess=Noting(str(log), classifier.preprocess))

    def run(out, moment=0, tell=None):
        if moment:

            def wait():
                os.write(tell, b".")
                while True:
                    signal.pause()

            interrupt(moment, wait)
        runs.run(source, out, noting, targets=["top2"], batch=BATCH, resume=True)

    chance = random.Random(0)
    for _ in range(KILLS):
        told, tell = os.pipe()
        child = forked(run, out, chance.randint(1, 25), tell)
        os.close(tell)
        assert os.read(told, 1) == b"."  # nothing would come if the run had ended
        os.close(told)
        os.kill(child, signal.SIGKILL)
        assert ended(child) == -signal.SIGKILL
        assert not out.exists()
        part = folder / "run.h5.part"
        if part.exists():
            with h5py.File(part, "r") as file:
                assert "attribution" in file
    assert ended(forked(run, out)) == 0
    reads = log.stat().st_size
    assert ended(forked(run, folder / "whole.h5")) == 0
    whole_reads = log.stat().st_size - reads
    # Each kill costs a batch at most, and each start one image more, whose size it wants to know.
    assert whole_reads < reads <= whole_reads + KILLS * (BATCH + 1)


def test_a_run_killed_twenty_times_ends_like_an_undisturbed_one(broken, tmp_path):
    for path in list(broken.glob("*/*")):  # more images, so that there is something to kill
        for copy in "ab":
            shutil.copy(path, path.with_name(f"{copy}{path.name}"))
    clean_process(kill_again_and_again, broken, tmp_path)
    assert_same(tmp_path / "run.h5", tmp_path / "whole.h5")
    assert left_behind(tmp_path / "run.h5") == ["run.h5"]


def die_at_every_moment(source, folder, batch):
    """One death after the other, each followed by a resumed run and a comparison; a score of them, or it fails."""
    classifier = prepared_once()
    examine_here()

    def run(out, moment=0, resume=False):
        if moment:
            interrupt(moment, lambda: os._exit(9))
        runs.run(source, out, classifier, batch=batch, resume=resume)

    assert ended(forked(run, folder / "whole.h5")) == 0
    moment, code = 0, 9
    while code:
        moment += 1
        out = folder / f"{moment}.h5"
        code = ended(forked(run, out, moment))
        assert code in (0, 9), code
        assert ended(forked(run, out, 0, True)) == 0
        assert_same(out, folder / "whole.h5")
        assert set(left_behind(out)) <= {out.name, f"{out.name}.part.new", f"{out.name}.part.copy"}
    assert moment > 20


@pytest.mark.parametrize(("kind", "batch"), [("whole", 2), ("broken", 4)])
def test_a_death_at_any_moment_costs_nothing(kind, batch, folder, broken, tmp_path):
    """The moments by one and one: before each system call that changes a file, and in the middle of each write.

    Two batches have all moments that there are. Each has an image that can be read.
    """
    few = tmp_path / "few"
    names = ["1/001.png", "3/003.png", "5/005.png", "8/008.png"]
    for name in names if kind == "whole" else ["0/000.png", "4/zzz.jpg", "9/a.png", *names]:
        few.joinpath(name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy((folder if kind == "whole" else broken) / name, few / name)
    clean_process(die_at_every_moment, few, tmp_path, batch)


def test_a_journal_cut_in_the_middle_of_a_line_is_mended(folder, classifier, tmp_path):
    out = tmp_path / "run.h5"
    interrupted(folder, out, classifier, after=3)
    journal = tmp_path / "run.h5.journal"
    text = journal.read_bytes()
    assert [json.loads(line)["rows"] for line in text.splitlines()[2:]] == [8, 16, 24]
    journal.write_bytes(text[:-5])
    assert runs.run(folder, out, classifier, batch=8, resume=True).written == 24
    runs.run(folder, tmp_path / "whole.h5", classifier, batch=8)
    assert_same(out, tmp_path / "whole.h5")
