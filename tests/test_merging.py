"""Shards: joined they are the file of the run without shards, and one that is missing is named."""

import h5py
import numpy as np
import pytest

from lrpfunc.errors import FileError, InputError
from lrpfunc.pictures import hdf5, merging, runs, shards
from lrpfunc.pictures.report import page as report_page
from tests.test_report import Page, relevance, write_run
from tests.test_runs import broken, content, interrupted, left_behind  # noqa: F401 (a fixture)


@pytest.fixture(scope="module")
def written(folder, classifier, tmp_path_factory):
    """Three shards of a run with two targets, and the whole run."""
    path = tmp_path_factory.mktemp("shards")
    for number in (1, 2, 3):
        runs.run(folder, path / f"{number}.h5", classifier, part=runs.Shard(number, 3), batch=1, targets=["top2"])
    runs.run(folder, path / "whole.h5", classifier, batch=1, targets=["top2"])
    return path


def test_shards_join_to_the_file_of_the_whole_run_to_the_byte(written, tmp_path):
    told = []
    paths = [written / f"{number}.h5" for number in (2, 3, 1)]
    merged = merging.merge(paths, tmp_path / "all.h5", progress=lambda *numbers: told.append(numbers))
    assert merged == (tmp_path / "all.h5", 80, [], "")
    assert told == [(80, 80)]
    assert (tmp_path / "all.h5").read_bytes() == (written / "whole.h5").read_bytes()
    assert left_behind(tmp_path / "all.h5") == ["all.h5"]


def test_a_few_rows_at_a_time_give_the_same(written, tmp_path, monkeypatch):
    monkeypatch.setattr(merging, "BLOCK_BYTES", 4 * 64 * 7)
    merging.merge([written / f"{number}.h5" for number in (1, 2, 3)], tmp_path / "all.h5")
    assert (tmp_path / "all.h5").read_bytes() == (written / "whole.h5").read_bytes()


def test_a_finished_merge_is_a_finished_run(written, folder, classifier, tmp_path):
    merging.merge([written / f"{number}.h5" for number in (1, 2, 3)], tmp_path / "all.h5")
    outcome = runs.run(folder, tmp_path / "all.h5", classifier, batch=1, targets=["top2"], resume=True)
    assert outcome.was_finished


def test_samples_that_failed_are_joined_too(broken, classifier, tmp_path):  # noqa: F811
    paths = [tmp_path / f"{number}.h5" for number in (1, 2)]
    for number, path in enumerate(paths, start=1):
        runs.run(broken, path, classifier, part=runs.Shard(number, 2))
    runs.run(broken, tmp_path / "whole.h5", classifier)
    merged = merging.merge(paths, tmp_path / "all.h5")
    found, whole = content(tmp_path / "all.h5"), content(tmp_path / "whole.h5")
    assert [failure.file for failure in merged.failures] == ["0/000.png", "4/zzz.jpg", "9/a.png"]
    assert found.keys() == whole.keys()
    for name in ("index", "label", "file", "errors", "category", "data", "target"):
        np.testing.assert_array_equal(found[name], whole[name])
    np.testing.assert_allclose(found["attribution"], whole["attribution"], rtol=1e-4, atol=1e-6)


def test_rows_in_any_order_are_put_in_that_of_their_samples(tmp_path):
    """Numbers by hand: shards of several rows per sample, in no order."""
    values = relevance(6)
    one = write_run(tmp_path / "1.h5", values[:4], index=[6, 0, 0, 4], file=["six", "zero", "zero", "four"])
    two = write_run(tmp_path / "2.h5", values[4:], index=[5, 1], file=["the fifth", "one"])
    merging.merge([one, two], tmp_path / "all.h5")
    found = content(tmp_path / "all.h5")
    np.testing.assert_array_equal(found["attribution"], values[[1, 2, 5, 3, 4, 0]])
    assert list(found["file"]) == [b"zero", b"zero", b"one", b"four", b"the fifth", b"six"]


# -- what is missing --------------------------------------------------------------------------------------------------


def test_a_missing_shard_is_named_and_can_come_later(written, tmp_path):
    paths = [written / f"{number}.h5" for number in (1, 3)]
    sentence = "shard 2/3 is missing: have 1 and 3."
    with pytest.raises(FileError) as error:
        merging.merge(paths, tmp_path / "some.h5")
    assert str(error.value) == f"{sentence} Make what is missing, or give --incomplete to merge what there is."
    assert list(tmp_path.iterdir()) == []
    merged = merging.merge(paths, tmp_path / "some.h5", incomplete=True)
    assert (merged.rows, merged.missing) == (54, sentence)
    with h5py.File(tmp_path / "some.h5") as file:
        assert '"shard": "1+3/3"' in file.attrs["lrpfunc"]
    merging.merge([written / "2.h5", tmp_path / "some.h5"], tmp_path / "all.h5")
    assert (tmp_path / "all.h5").read_bytes() == (written / "whole.h5").read_bytes()


def test_a_report_says_which_shard_is_missing(written, tmp_path):
    summary = report_page.write([written / "3.h5"], tmp_path / "report.html")
    assert summary.missing == "shards 1/3 and 2/3 are missing: have 3."
    assert f"This is a part of the run: {summary.missing}" in Page(summary.path.read_text()).text
    whole = report_page.write([written / f"{number}.h5" for number in (1, 2, 3)], tmp_path / "whole.html")
    assert whole.missing == ""
    assert "This is a part of the run" not in whole.path.read_text()


@pytest.mark.parametrize(
    ("details", "sentence"),
    [
        ([{"shard": "1/1"}], ""),
        ([{}], ""),
        ([{"shard": "all of them"}], ""),
        ([{"shard": "1/2"}, {}], ""),
        ([{"shard": "1/2"}, {"shard": "2/2"}], ""),
        ([{"shard": "2/4"}], "shards 1/4, 3/4 and 4/4 are missing: have 2."),
        ([{"shard": "1+4/4", "samples": 9}, {"shard": "2/4"}], "shard 3/4 is missing: have 1, 2 and 4."),
        ([{"shard": "1/4", "samples": 2}], "shard 2/4 is missing: have 1."),  # the others have no samples
        (
            [{"shard": "5/99999"}],
            "shards 1/99999, 2/99999, 3/99999, 4/99999, 6/99999, 7/99999, 8/99999, 9/99999 and 99,990 more are "
            "missing: have 5.",
        ),
        (
            [{"shard": f"{'+'.join(map(str, range(2, 13)))}/12"}],
            "shard 1/12 is missing: have 2, 3, 4, 5, 6, 7, 8, 9 and 3 more.",
        ),
    ],
)
def test_the_sentence_on_what_is_missing(details, sentence):
    contents = [hdf5.Contents(hdf5.Schema(0, (1, 1, 1), 2, 1), {}, each, [], []) for each in details]
    assert shards.missing([hdf5.Run(None, None, each) for each in contents]) == sentence


# -- what cannot be joined --------------------------------------------------------------------------------------------


def test_what_is_no_merge_is_refused(written, folder, classifier, tmp_path):
    one, two, three = (written / f"{number}.h5" for number in (1, 2, 3))
    with pytest.raises(InputError, match="a merge needs two files of `lrpfunc dataset` at least, but got 1"):
        merging.merge([one], tmp_path / "all.h5")
    with pytest.raises(InputError, match="a merge needs each file once"):
        merging.merge([one, one], tmp_path / "all.h5")
    with pytest.raises(FileError, match=r"2\.h5 is one of the files to read: choose another --out"):
        merging.merge([one, two, three], two, overwrite=True)
    with pytest.raises(FileError, match=r"2\.h5 exists: choose another --out, or give --overwrite"):
        merging.merge([one, three], two)
    other = write_run(tmp_path / "other.h5", relevance(), index=[4, 5, 6, 7], failures=[(9, "a", "b")])
    failed = write_run(tmp_path / "failed.h5", relevance(), index=[0, 1, 2, 4], failures=[(7, "a", "b"), (9, "a", "b")])
    with pytest.raises(FileError, match=r"a merge needs shards that share no sample, but 3 of these are in two"):
        merging.merge([other, failed], tmp_path / "all.h5")
    out = tmp_path / "all.h5"
    interrupted(folder, out, classifier)
    with pytest.raises(FileError, match=r"all\.h5\.part is of an unfinished run, which is to write .*all\.h5: choose"):
        merging.merge([one, two, three], out, overwrite=True)
    assert left_behind(out) == ["all.h5.journal", "all.h5.part"]


@pytest.mark.parametrize(
    ("other", "what"),
    [({"composite": "gamma"}, "composite"), ({"shard": "2/3"}, "number of shards"), ({"samples": 5}, "samples")],
)
def test_files_of_different_runs_are_refused(tmp_path, other, what):
    details = {"model": "net", "shard": "1/2", "samples": 8}
    one = write_run(tmp_path / "1.h5", relevance(), details=details)
    two = write_run(tmp_path / "2.h5", relevance(), index=[4, 5, 6, 7], details=details | {"shard": "2/2"} | other)
    with pytest.raises(FileError, match=rf"a merge needs files of one run, but .* differ in {what}\. Make a merge of"):
        merging.merge([one, two], tmp_path / "all.h5")


def test_overwriting_replaces_the_file(written, tmp_path):
    (tmp_path / "all.h5").write_text("old")
    merging.merge([written / f"{number}.h5" for number in (1, 2, 3)], tmp_path / "all.h5", overwrite=True)
    assert (tmp_path / "all.h5").read_bytes() == (written / "whole.h5").read_bytes()
