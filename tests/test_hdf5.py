"""Files of runs: what is refused, with its sentence; and reading one can neither hang, crash nor reach elsewhere."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from lrpfunc.errors import FileError
from lrpfunc.pictures import hdf5, outputs
from lrpfunc.pictures.hdf5 import examination, structure
from lrpfunc.pictures.report import page as report_page
from tests import hdf5_fuzz
from tests.examinations import examined_here
from tests.test_report import relevance, write_run

NOT_OURS = "is an HDF5 file, but not one that `lrpfunc dataset` wrote: "


@pytest.fixture
def path(tmp_path):
    return hdf5_fuzz.write_good(tmp_path / "run.h5")


def content(path):
    with hdf5.opened(path) as run:
        columns = {name: run.column(name)[:] for name in run.schema.columns()}
        return run.schema, run.details, run.categories, run.errors, columns


def test_what_is_written_is_read(path):
    """h5py reads the same. A row after the other gives the same as all at once."""
    schema, details, categories, errors, columns = content(path)
    assert schema == (6, (3, 5, 7), 4, 9)
    assert details == hdf5_fuzz.DETAILS
    assert categories == ["cat", "dog", "a long name " * 9, "ä"]
    assert errors == [(21, "dog/7.png", "is cut off"), (31, "dog/8.png", "is empty")]
    with h5py.File(path) as file, hdf5.opened(path) as run:
        for name, values in columns.items():
            np.testing.assert_array_equal(values, file[name][:])
            assert values.dtype == file[name].dtype
            np.testing.assert_array_equal(values, np.concatenate([run.column(name)[i : i + 1] for i in range(6)]))
            assert len(run.column(name)) == 6
            assert run.column(name)[4:2].shape == (0, *values.shape[1:])


def test_a_file_that_the_library_writes_itself_is_read(path):
    """Other places and other pages in it, as those of older versions have."""
    before = content(path)
    other = path.with_name("other.h5")
    with h5py.File(path) as old, h5py.File(other, "w") as new:
        for name in reversed(list(old)):
            new.create_dataset(name, data=old[name][:], dtype=old[name].dtype)
        new.attrs[hdf5.DETAILS] = old.attrs[hdf5.DETAILS]
        new["something of one's own"] = [1, 2]
    after = content(other)
    assert before[:4] == after[:4]
    for name, values in before[4].items():
        np.testing.assert_array_equal(values, after[4][name])


def test_kinds_of_outputs_are_the_same_everywhere():
    assert tuple(hdf5.KINDS) == outputs.KINDS
    for kind, is_two in hdf5.KINDS.items():
        contents = hdf5.Contents(hdf5.Schema(1, (1, 1, 1), 1, 1), {}, {"output": {"kind": kind}}, [], [])
        assert contents.choices == outputs.Meaning(kind).choices(1) == 1 + is_two


# -- refused ----------------------------------------------------------------------------------------------------------


def replaced(name, **dataset):
    def edit(file):
        del file[name]
        file.create_dataset(name, **dataset)

    return edit


def linked(name, link):
    def edit(file):
        del file[name]
        file[name] = link

    return edit


def detailed(text):
    def edit(file):
        file.attrs[hdf5.DETAILS] = text if isinstance(text, (str, np.ndarray, int)) else json.dumps(text)

    return edit


def virtual(file):
    layout = h5py.VirtualLayout((6,), "<i8")
    layout[:] = h5py.VirtualSource("secret.h5", "label", (6,))
    del file["label"]
    file.create_virtual_dataset("label", layout)


def no_places(file):
    for name in file:
        if name not in (hdf5.CATEGORIES, hdf5.ERRORS):
            shape, dtype = file[name].shape, file[name].dtype
            del file[name]
            file.create_dataset(name, shape, dtype)


TEXT = h5py.string_dtype()
FAILURE = np.dtype([("index", "<i8"), ("file", TEXT), ("reason", TEXT)])
REFUSED = {
    "missing": (lambda file: file.__delitem__("target"), "it has no 'target'"),
    "soft": (linked("label", h5py.SoftLink("/index")), "'label' is a link to something else"),
    "outer": (linked("label", h5py.ExternalLink("secret.h5", "/label")), "'label' is a link to something else"),
    "group": (linked("label", np.dtype("i8")), "'label' is no dataset"),
    "virtual": (virtual, "the values of 'label' are to come from another file"),
    "external": (
        replaced("label", shape=(6,), dtype="<i8", external=[("secret", 0, 48)]),
        "the values of 'label' are to come from another file",
    ),
    "chunks": (replaced("label", shape=(6,), dtype="<i8", chunks=(2,)), "'label' is in pieces or compressed"),
    "gzip": (
        replaced("data", data=np.zeros((6, 3, 5, 7), "u1"), compression="gzip"),
        "'data' is in pieces or compressed",
    ),
    "vast": (replaced("label", shape=(1 << 40,), dtype="<i8"), "'label' would be larger than the file"),
    "empty": (replaced("label", data=h5py.Empty("<i8")), "'label' would be larger than the file"),
    "ranks": (replaced("attribution", shape=(6, 3, 35), dtype="<f4"), "'attribution' needs four dimensions and"),
    "no pixels": (
        replaced("attribution", shape=(6, 3, 0, 7), dtype="<f4"),
        "rows of relevance (3, 0, 7), 4 classes and names of 9 bytes are not in use",
    ),
    "length": (
        replaced("label", shape=(5,), dtype="<i8"),
        "'label' should be i8 of shape (6,), but is int64 of (5,)",
    ),
    "type": (replaced("label", shape=(6,), dtype="<i4"), "'label' should be i8 of shape (6,), but is int32 of (6,)"),
    "places": (no_places, "it has rows, but no values in them"),
    "no details": (lambda file: file.attrs.__delitem__(hdf5.DETAILS), "it has no attribute 'lrpfunc'"),
    "number": (detailed(7), "its attribute 'lrpfunc' is no text"),
    "texts": (detailed(np.array(["{}", "{}"], dtype=object)), "its attribute 'lrpfunc' is no text"),
    "no JSON": (detailed("{"), "its attribute 'lrpfunc' is no JSON"),
    "nan": (detailed('{"a": NaN}'), "its attribute 'lrpfunc' is no JSON"),
    "infinity": (detailed('{"a": [-1e999]}'), "its attribute 'lrpfunc' is no JSON"),
    "nested": (detailed("[" * 9000 + "]" * 9000), "its attribute 'lrpfunc' is no JSON"),
    "list": (detailed([1]), "its attribute 'lrpfunc' should be a JSON object, nested 8 deep at most"),
    "deep": (
        detailed(json.loads('{"a":' * 9 + "1" + "}" * 9)),
        "its attribute 'lrpfunc' should be a JSON object, nested 8 deep at most",
    ),
    "detail": (detailed({"samples": "7"}), "its detail 'samples' should be int, but is '7'"),
    "meaning": (detailed({"output": {"kind": "odd"}}), "its detail 'output' is {'kind': 'odd'}, which means nothing"),
    "one logit": (
        detailed({"output": {"kind": "binary", "unit": "", "are_probabilities": False}}),
        "of one logit for or against a class there is one, but it has 4",
    ),
    "categories": (
        replaced(hdf5.CATEGORIES, data=np.arange(4)),
        "'category' should be a list of texts, but is int64 of shape (4,)",
    ),
    "errors": (replaced(hdf5.ERRORS, data=np.arange(4)), "'errors' should be a list of (index, file, reason), but is"),
    "negative": (
        replaced(hdf5.ERRORS, data=np.array([(-1, "a", "b")], dtype=FAILURE)),
        "a number in 'errors' is negative",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_lrpfunc_does_not_write_is_refused(kind, path):
    edit, sentence = REFUSED[kind]
    with h5py.File(path, "r+") as file:
        edit(file)
    with path.open("rb", buffering=0) as file, pytest.raises(FileError) as error:
        examined_here(path, file)
    assert str(error.value).startswith(NOT_OURS + sentence)


def test_columns_that_overlap_are_refused(path):
    data = bytearray(path.read_bytes())
    with h5py.File(path) as file:
        index, label = (file[name].id.get_offset().to_bytes(8, "little") for name in ("index", "label"))
    assert data.count(index) == 1
    path.write_bytes(data.replace(index, label))
    with pytest.raises(FileError, match=f"{NOT_OURS}its columns overlap"), hdf5.opened(path):
        pass


def test_long_details_are_refused(path):
    with h5py.File(path, "w", libver="latest") as file:
        file.attrs[hdf5.DETAILS] = json.dumps({"a": "x" * (1 << 20)})
    with pytest.raises(FileError, match=r"attribute 'lrpfunc' is longer than 1048576 bytes"), hdf5.opened(path):
        pass


def test_one_text_that_many_entries_are_is_refused(tmp_path):
    """64 entries of a text of 50 KB stand in a file of 60 KB."""
    path = write_run(
        tmp_path / "run.h5", relevance(), failures=[(i, "", "x" * 50_000 if i == 0 else "") for i in range(64)]
    )
    with h5py.File(path) as file:
        offset = file[hdf5.ERRORS].id.get_offset()
    data = bytearray(path.read_bytes())
    data[offset : offset + 64 * 40] = data[offset : offset + 40] * 64
    path.write_bytes(data)
    with pytest.raises(FileError, match=f"{NOT_OURS}its texts are longer than the file"), hdf5.opened(path):
        pass


@pytest.mark.parametrize(
    ("column", "value", "sentence"),
    [
        ("label", -2, "'label' should be from -1 to 3, but one is -2"),
        ("label", 4, "'label' should be from -1 to 3, but one is 4"),
        ("target", -1, "'target' should be from 0 to 3, but one is -1"),
        ("target", 4, "'target' should be from 0 to 3, but one is 4"),
        ("index", -1, "'index' should be from 0 to 4611686018427387903, but one is -1"),
    ],
)
def test_numbers_that_point_beside_something_are_refused(column, value, sentence, path, monkeypatch):
    monkeypatch.setattr(hdf5.reading, "CHECKED_ROWS", 2)
    with h5py.File(path, "r+") as file:
        file[column][5] = value
    with pytest.raises(FileError, match=sentence), hdf5.opened(path):
        pass


def test_of_one_logit_there_are_two_choices(tmp_path):
    output = {"kind": "binary", "unit": "", "are_probabilities": False}
    options = {"prediction": np.ones((4, 1)), "details": {"output": output}, "logit": [1] * 4}
    path = write_run(tmp_path / "run.h5", relevance(), target=[0] * 4, label=[0, 1, 1, -1], **options)
    with hdf5.opened(path) as run:
        assert run.column("label")[:].tolist() == [0, 1, 1, -1]
    names = {"target": [0] * 4, "label": [0] * 4, "categories": ["cat", "no cat", "what"]}
    path = write_run(tmp_path / "names.h5", relevance(), **options, **names)
    with pytest.raises(FileError, match="it has 2 classes, but 3 names for them"), hdf5.opened(path):
        pass


def test_damage_is_told_from_foreign_files(path):
    data = path.read_bytes()
    path.write_bytes(data[:-20])
    with pytest.raises(FileError, match=r"run\.h5 is no HDF5 file, or a damaged one\."), hdf5.opened(path):
        pass
    path.write_bytes(data.replace(b"TREE", b"FREE"))
    with pytest.raises(FileError, match=r"run\.h5 is damaged: parts of it cannot be read\."), hdf5.opened(path):
        pass


# -- the other process ------------------------------------------------------------------------------------------------


def answering(code, monkeypatch):
    """The examining process does something else."""
    monkeypatch.setattr(examination, "CODE", f"import os, time, signal; print('ready', flush=True); {code}")


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "reading it crashes, or needs too much memory"),
        ("os.kill(os.getpid(), signal.SIGXCPU)", "reading it does not come to an end"),
        ("raise MemoryError", "reading it crashes, or needs too much memory"),
        ("print('{')", "reading it crashes, or needs too much memory"),
        ("print('x' * 10 ** 9)", "reading it crashes, or needs too much memory"),
    ],
)
def test_its_death_is_a_sentence(code, sentence, path, monkeypatch):
    answering(code, monkeypatch)
    monkeypatch.setattr(structure, "BASE_BYTES", 10_000)
    with pytest.raises(FileError, match=rf"run\.h5 is no HDF5 file, or a damaged one: {sentence}\."), hdf5.opened(path):
        pass


def test_one_that_only_waits_is_ended(path, monkeypatch):
    answering("time.sleep(1000)", monkeypatch)
    monkeypatch.setattr(examination, "SECONDS", 3.0)
    with pytest.raises(FileError, match="reading it does not come to an end"), hdf5.opened(path):
        pass


def test_one_that_cannot_start_is_told_from_a_bad_file(path, monkeypatch):
    monkeypatch.setattr(examination, "CODE", "import no_such_module")
    with pytest.raises(FileError, match=r"run\.h5 cannot be examined: no process could be started for it \(.*python"):
        hdf5.opened(path).__enter__()
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(FileNotFoundError, match="/no/such/python"), hdf5.opened(path):
        pass


def test_a_heap_of_zeros_which_the_library_reads_for_ever_is_refused(path, monkeypatch):
    monkeypatch.setattr(
        examination, "CODE", examination.CODE.replace("structure.main()", "structure.SECONDS = 0; structure.main()")
    )
    data = bytearray(path.read_bytes())
    heap = data.index(b"GCOL") + 24
    data[heap : heap + 200] = bytes(200)
    path.write_bytes(data)
    with pytest.raises(FileError, match=r"run\.h5 is (damaged|no HDF5 file, or a damaged one)"), hdf5.opened(path):
        pass


def test_it_can_open_nothing_and_takes_little(path):
    """The limits that it has set itself, seen from within."""
    code = (
        "import io, json, os, resource, sys; from lrpfunc.pictures.hdf5 import structure\n"
        f"structure._limit({1 << 20})\n"
        "found = {'cpu': resource.getrlimit(resource.RLIMIT_CPU)[0]}\n"
        "try: open('/etc/hostname')\n"
        "except OSError as error: found['open'] = error.errno\n"
        "try: bytearray(1 << 28)\n"
        "except MemoryError: found['memory'] = 'refused'\n"
        "print(json.dumps(found))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, close_fds=True)
    found = json.loads(run.stdout)
    assert found["open"] == 24  # too many open files
    assert found["memory"] == "refused"
    assert 5 < found["cpu"] < 20


def test_nobody_s_current_folder_is_imported_from(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("json", "h5py", "numpy"):
        (tmp_path / f"{name}.py").write_text("open('was here', 'w')")
    content(path)
    assert not (tmp_path / "was here").exists()


def test_a_file_that_becomes_shorter_is_an_error(path):
    with hdf5.opened(path) as run:
        os.truncate(path, 3000)
        with pytest.raises(FileError, match=r"run\.h5 became shorter while it was read"):
            run.column("data")[:]


def test_what_is_no_file_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("absent", "pipe", "."):
        with pytest.raises(FileError, match="there is no file"), hdf5.opened(tmp_path / name):
            pass


# -- files by chance --------------------------------------------------------------------------------------------------


def test_files_by_chance_are_read_or_refused(tmp_path):
    """A few of those that `python -m tests.hdf5_fuzz` makes; in a process whose memory can be bounded."""
    command = [sys.executable, "-W", "error", "-m", "tests.hdf5_fuzz", "15", "4"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.splitlines()[-1].startswith("15 files of seed 4: 0 wrong")


@pytest.mark.slow
def test_two_thousand_files_by_chance():
    assert hdf5_fuzz.main(2000, 0) == 0


def test_the_fuzzer_sees_what_leaks(tmp_path):
    """A page that does hold the marker: as text, as a number, in a picture."""
    marker = np.frombuffer(hdf5_fuzz.MARKER * 1000, dtype="u1")
    for column, values in {
        "file": ["x" + hdf5_fuzz.MARKER.decode()],
        "logit": marker[3:7].view("<f4"),
        "data": marker[: 3 * 5 * 7].reshape(1, 3, 5, 7),
    }.items():
        run = write_run(tmp_path / f"{column}.h5", relevance(1, 3, 5, 7), **{column: values})
        summary = report_page.write([run], tmp_path / f"{column}.html")
        assert hdf5_fuzz.leaks(summary.path.read_text()), column


@pytest.mark.parametrize("change", [*hdf5_fuzz.OF_PARTS, *hdf5_fuzz.OF_BYTES, *hdf5_fuzz.OF_ATTRIBUTES])
def test_the_fuzzer_changes_files(change, path, tmp_path):
    (tmp_path / "secret").write_bytes(bytes(5000))
    hdf5_fuzz.write_good(tmp_path / "other.h5")
    before, after = path.read_bytes(), set()
    for seed in range(3):
        change(path, random.Random(seed), tmp_path / "secret")
        after.add(path.read_bytes())
        path.write_bytes(before)
    assert after != {before}
