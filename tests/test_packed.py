"""Pictures in tar archives, Parquet and Arrow: the run is that on the files they were made of; damage has a name."""

import io
import json
import os
import shutil
import tarfile

import numpy as np
import pytest
import torch

from lrpfunc.errors import FileError, MissingExtraError
from lrpfunc.pictures import distributed, merging, runs
from lrpfunc.pictures.distributed import ranks
from lrpfunc.pictures.samples import Loader, contents, open_samples
from tests.test_runs import broken, content  # noqa: F401 (a fixture)


def pictures(folder):
    """(Name, bytes, class) of each, in their order."""
    return [(f"{p.parent.name}-{p.name}", p.read_bytes(), int(p.parent.name)) for p in sorted(folder.rglob("*.*"))]


def write_tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            about = tarfile.TarInfo(name)
            about.size = len(data)
            archive.addfile(about, io.BytesIO(data))
    return path


def shards(folder, to, each=15):
    """Archives as WebDataset has them, the class in front of or behind its picture."""
    to.mkdir()
    found = pictures(folder)
    for start in range(0, len(found), each):
        members = [(name, data) for name, data, _ in found[start : start + each]]
        members += [
            (f"{name.partition('.')[0]}.cls", b"%d\n" % number) for name, _, number in found[start : start + each]
        ]
        write_tar(to / f"shard-{start:06}.tar", sorted(members))
    return to


def tables(folder, to, each=15, group=4, kind="parquet", extra=None):
    """Tables as `datasets` has them: a struct of bytes and path, a number, and the names of classes in the metadata."""
    arrow = pytest.importorskip("pyarrow")
    parquet, ipc = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow.ipc")
    to.mkdir()
    found = pictures(folder)
    for start in range(0, len(found), each):
        rows = found[start : start + each]
        columns = {"image": [{"bytes": data, "path": name} for name, data, _ in rows], "label": [r[2] for r in rows]}
        table = arrow.table(columns).replace_schema_metadata(extra)
        path = to / f"train-{start:05}.{kind}"
        if kind == "parquet":
            parquet.write_table(table, path, row_group_size=group)
        else:
            make = ipc.new_stream if start else ipc.new_file  # either is read
            with make(str(path), table.schema) as writer:
                writer.write_table(table, max_chunksize=group)
    return to


MAKE = {
    "tar": shards,
    "parquet": tables,
    "arrow": lambda folder, to: tables(folder, to, kind="arrow"),
}


@pytest.mark.parametrize("kind", MAKE)
def test_a_run_is_that_on_the_files(kind, broken, classifier, tmp_path):  # noqa: F811
    source = MAKE[kind](broken, tmp_path / "packed")
    packed = runs.run(source, tmp_path / "packed.h5", classifier, targets=["top", "label"], workers=kind == "tar")
    runs.run(broken, tmp_path / "files.h5", classifier, targets=["top", "label"])
    found, expected = content(tmp_path / "packed.h5"), content(tmp_path / "files.h5")
    for name in ("attribution", "prediction", "label", "index", "target", "logit", "relevance_sum", "data"):
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    name = {"tar": "shard-000000.tar/0-000.png"}.get(kind, f"train-00000.{kind}#0")
    assert (packed.failures[0].sample, packed.failures[0].file) == (0, name)
    assert [failure.reason for failure in packed.failures] == ["is no image that Pillow can read"] * 3


@pytest.mark.parametrize("kind", MAKE)
def test_blocks_of_it_merge_to_the_run_to_the_byte(kind, folder, classifier, tmp_path):
    source = MAKE[kind](folder, tmp_path / "packed")
    task = distributed.Task(source, tmp_path / "blocks", classifier, batch=4, block=8)
    for rank in range(2):
        ranks.run(task, ranks.Place(rank, 2))
    merging.merge([tmp_path / "blocks"], tmp_path / "all.h5")
    runs.run(source, tmp_path / "whole.h5", classifier, batch=4)
    assert (tmp_path / "all.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
    os.utime(next(source.iterdir()), (1, 1))
    with pytest.raises(FileError, match=r"packed has changed since the run in .* began"):
        distributed.worker.Worker(task)


@pytest.mark.parametrize("kind", MAKE)
def test_one_file_is_a_data_set_too(kind, folder, classifier, tmp_path):
    source = sorted(MAKE[kind](folder, tmp_path / "packed").iterdir())[-1]
    samples = open_samples(source, classifier)
    assert len(samples.names) == 40 % 15
    assert list(samples.labels(10)) == [7, 7, 8, 8, 8, 8, 9, 9, 9, 9]
    assert samples.load(0).shape == (1, 8, 8)
    assert len(contents(samples)) == 64


# -- tar --------------------------------------------------------------------------------------------------------------


def test_members_of_an_archive(folder, classifier, tmp_path):
    image = (folder / "3" / "003.png").read_bytes()
    members = [
        ("./7/a.png", image), ("b.c.png", image), ("b.cls", b"5"), ("x/.hidden.png", image), ("c.jpeg", b""),
        ("c.cls", b"4"), ("notes.txt", b"none"), ("d.png", image), ("e.PNG", image), ("e.cls", b"unheard of"),
    ]  # fmt: skip
    samples = open_samples(write_tar(tmp_path / "x.tar", members), classifier)
    assert samples.names == [f"x.tar/{name}" for name in ("./7/a.png", "b.c.png", "c.jpeg", "d.png", "e.PNG")]
    assert list(samples.labels(10)) == [7, 5, 4, -1, -1]
    np.testing.assert_array_equal(samples.load(1), samples.load(0))
    with pytest.raises(FileError, match=r"^is empty$"):
        samples.sample(2)


def test_archives_that_are_none(folder, classifier, tmp_path):
    path = tmp_path / "x.tar"
    path.write_text("no archive")
    with pytest.raises(FileError, match=r"x\.tar is no tar archive, or a damaged or compressed one \("):
        open_samples(path, classifier)
    write_tar(path, [("a.txt", b"b")])
    with pytest.raises(FileError, match=r"^there are no images in .*x\.tar\. Images end in \.apng, "):
        open_samples(path, classifier)
    write_tar(path, [("1/a.png", (folder / "3" / "003.png").read_bytes())])
    samples = open_samples(path, classifier)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(FileError, match=r"^is cut off, as x\.tar is$"):
        samples.sample(0)


def test_labels_that_no_class_has_are_an_error(folder, classifier, tmp_path):
    image = (folder / "3" / "003.png").read_bytes()
    samples = open_samples(write_tar(tmp_path / "x.tar", [("a.png", image), ("a.cls", b"10")]), classifier)
    with pytest.raises(FileError, match=r"^the labels must be 0 to 9, or -1 for unknown, but one is 10\.$"):
        samples.labels(10)


# -- tables -----------------------------------------------------------------------------------------------------------


def test_names_of_classes_are_the_models_if_it_has_such(folder, classifier, tmp_path):
    def features(names):
        about = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        return {b"huggingface": json.dumps(about).encode()}

    turned = open_samples(tables(folder, tmp_path / "a", extra=features(list("9876543210"))), classifier)
    expected = np.repeat(np.arange(10), 4)
    np.testing.assert_array_equal(turned.labels(10), 9 - expected)
    other = open_samples(tables(folder, tmp_path / "b", extra=features(["zero", "one", "two"])), classifier)
    np.testing.assert_array_equal(other.labels(10), expected)


def test_columns_are_found_by_their_names_and_kinds(folder, classifier, tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    image = (folder / "3" / "003.png").read_bytes()
    path = tmp_path / "x.parquet"
    parquet.write_table(arrow.table({"image": ["a path"], "jpg": [image], "cls": ["3"]}), path)
    samples = open_samples(path, classifier)
    assert list(samples.labels(10)) == [3]
    assert samples.load(0).shape == (1, 8, 8)
    parquet.write_table(arrow.table({"image": ["a path"], "x": [1]}), path)
    with pytest.raises(
        FileError, match=r"x\.parquet must hold the bytes of pictures in a column image, .*, but has image, x"
    ):
        open_samples(path, classifier)
    parquet.write_table(arrow.table({"image": [{"bytes": None, "path": "a"}, {"bytes": image, "path": "b"}]}), path)
    samples = open_samples(path, classifier)
    assert list(samples.labels(10)) == [-1, -1]
    with pytest.raises(FileError, match=r"^has no bytes: the table says where the picture is, and not what$"):
        samples.sample(0)
    assert Loader(samples, classifier, (1, 8, 8))[[0, 1]].indices == [1]
    wrong = arrow.array([b"\xff"]).view(arrow.string())
    parquet.write_table(arrow.table({"image": [image], "label": wrong}), path)
    with pytest.raises(FileError, match=r"x\.parquet is damaged: its 'label' cannot be read \(.*\)\. Write it anew"):
        open_samples(path, classifier)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_tables_that_are_none(kind, classifier, tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / f"x.{kind}").write_text("no table")
    with pytest.raises(FileError, match=rf"x\.{kind} cannot be read: it is damaged, or something else \("):
        open_samples(tmp_path / f"x.{kind}", classifier)


def test_without_its_extra_a_table_says_how_to_get_it(classifier, tmp_path, monkeypatch):
    monkeypatch.setattr("lrpfunc.extras.find_spec", lambda name: None)
    (tmp_path / "x.parquet").write_text("")
    with pytest.raises(MissingExtraError) as error:
        open_samples(tmp_path / "x.parquet", classifier)
    assert str(error.value) == "reading Parquet and Arrow needs pyarrow: pip install 'lrpfunc[parquet]'"


# -- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_of_images_stays_one(folder, classifier, tmp_path):
    shutil.copytree(folder, tmp_path / "images")
    write_tar(tmp_path / "images" / "x.tar", [("a.png", b"")])
    assert len(open_samples(tmp_path / "images", classifier).names) == 40


def test_a_folder_of_several_kinds_is_refused(classifier, tmp_path):
    (tmp_path / "x.parquet").write_text("")
    write_tar(tmp_path / "x.tar", [("a.png", b"")])
    with pytest.raises(
        FileError, match=r"holds \.parquet and \.tar files: give the folder of one kind, or one file\.$"
    ):
        open_samples(tmp_path, classifier)


def test_a_class_that_only_some_files_have_is_read_there(folder, classifier, tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    image = pictures(folder)[0][1]
    (tmp_path / "tables").mkdir()
    parquet.write_table(arrow.table({"image": [image] * 2}), tmp_path / "tables" / "a.parquet")
    parquet.write_table(arrow.table({"label": [3], "image": [image]}), tmp_path / "tables" / "b.parquet")
    parquet.write_table(arrow.table({"label": [4]}), tmp_path / "tables" / "c.parquet")
    samples = open_samples(tmp_path / "tables", classifier)
    assert samples.labels(10).tolist() == [-1, -1, 3, 4]
    assert torch.equal(samples.load(0), samples.load(2))
    with pytest.raises(FileError, match=r"^has no bytes: the table says where the picture is, and not what$"):
        samples.load(3)
