"""Data sets: which files and arrays are samples, what class each has, and which input it becomes."""

import io
import os

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lrpfunc.errors import FileError
from lrpfunc.pictures import classifiers, samples
from lrpfunc.pictures.classifiers import Classifier, Standard
from lrpfunc.pictures.samples import Loader, class_numbers, open_samples

UNKNOWN = -1


def classifier(categories=(), size=4, channels=3):
    """Preprocessing that leaves pictures of its size alone."""
    mean, std = (0.5,) * channels, (0.25,) * channels
    return Classifier("own", nn.Identity(), Standard(size, mean, std), mean, std, categories)


def picture(seed=0, size=4):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def as_input(pixels):
    """Bytes (H, W, 3) as `classifier` takes them."""
    return (torch.from_numpy(pixels.astype(np.float32)).movedim(-1, 0) / 255 - 0.5) / 0.25


def folder(root, *names):
    """A picture of its own for each name."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(number)).save(path)
    return root


# -- folders ----------------------------------------------------------------------------------------------------------


def test_images_are_found_below_a_folder_in_a_fixed_order(tmp_path):
    names = ["b/2.png", "b/10.PNG", "a/deep/er/1.bmp", "root.tif", "c/1.webp"]
    folder(tmp_path, *names)
    for other in ("a/notes.txt", "b/.hidden.png", ".git/1.png", "__MACOSX/b/2.png", "b/1.npy"):
        tmp_path.joinpath(other).parent.mkdir(parents=True, exist_ok=True)
        tmp_path.joinpath(other).touch()
    found = open_samples(tmp_path, classifier())
    assert list(found.names) == ["a/deep/er/1.bmp", "b/10.PNG", "b/2.png", "c/1.webp", "root.tif"]
    for name in ("b/2.png", "root.tif", "a/deep/er/1.bmp"):
        expected = as_input(picture(names.index(name)))
        torch.testing.assert_close(found.load(list(found.names).index(name)), expected)


def test_links_in_circles_end(tmp_path):
    folder(tmp_path, "a/1.png")
    os.symlink(tmp_path, tmp_path / "a" / "up")
    assert list(open_samples(tmp_path, classifier()).names) == ["a/1.png"]


def test_data_sets_are_told_apart_by_their_names(tmp_path):
    one = open_samples(folder(tmp_path / "one", "a/1.png", "b/2.png"), classifier())
    same = open_samples(folder(tmp_path / "same", "b/2.png", "a/1.png"), classifier())
    other = open_samples(folder(tmp_path / "other", "a/1.png", "b/3.png"), classifier())
    assert one.identity == same.identity != other.identity


@pytest.mark.parametrize(
    ("folders", "categories", "classes", "expected"),
    [
        (["cat", "Dog"], ["dog", "CAT", "cow"], 3, {"cat": 1, "Dog": 0}),
        (["straße"], ["STRASSE"], 1, {"straße": 0}),
        (["cat", "unicorn"], ["dog", "cat", "cow"], 3, {"cat": 1}),  # names count if any fits
        (["0", "2"], ["two", "1", "0"], 3, {"0": 2}),  # ... also names that are numbers
        (["0", "007", "2"], [], 8, {"0": 0, "007": 7, "2": 2}),
        (["0", "8"], [], 8, {}),  # numbers if all do
        (["0", "2", "x"], [], 3, {"0": 0, "2": 1, "x": 2}),
        (["n01", "n02", "n07"], ["tench", "goldfish", "shark"], 3, {"n01": 0, "n02": 1, "n07": 2}),
        (["n01", "n02"], ["tench", "goldfish", "shark"], 3, {}),
        (["crane", "x"], ["x", "Crane", "crane"], 3, {"x": 0}),
        ([], ["x"], 1, {}),
        (["00", "01"], [], 2, {"00": 0, "01": 1}),
    ],
)
def test_classes_of_folders(folders, categories, classes, expected):
    assert class_numbers(folders, categories, classes) == expected


def test_folders_whose_numbers_and_places_differ_need_names():
    folders = sorted(map(str, range(12)))  # 0, 1, 10, 11, 2, ...
    with pytest.raises(
        FileError, match=r"the folder '10' may be class 10 by its name or class 2 by its place.*--categor"
    ):
        class_numbers(folders, [], 12)
    assert class_numbers(folders, folders, 12) == {name: position for position, name in enumerate(folders)}
    assert class_numbers(folders, [], 13)["10"] == 10


def test_text_beside_the_samples_is_not_read(tmp_path):
    np.savez(tmp_path / "data.npz", data=np.zeros((2, 1, 3, 3)), names=np.array(["a", "b"], dtype=object))
    assert len(open_samples(tmp_path / "data.npz", classifier()).names) == 2


def test_the_label_is_that_of_the_outermost_folder(tmp_path):
    folder(tmp_path, "dog/old/1.png", "cat/dog/2.png", "3.png", "cow/4.png")
    found = open_samples(tmp_path, classifier(["cat", "dog"]))
    assert dict(zip(found.names, found.labels(2).tolist(), strict=True)) == {
        "dog/old/1.png": 1,
        "cat/dog/2.png": 0,
        "3.png": UNKNOWN,
        "cow/4.png": UNKNOWN,
    }


def test_images_without_folders_have_no_label(tmp_path):
    found = open_samples(folder(tmp_path, "1.png", "2.png"), classifier(["1.png", "2.png"]))
    assert found.labels(2).tolist() == [UNKNOWN, UNKNOWN]


def test_nothing_there(tmp_path):
    with pytest.raises(FileError, match=r"there is no folder or file .*absent"):
        open_samples(tmp_path / "absent", classifier())
    with pytest.raises(FileError, match=r"there are no images in .* or below it\. Images end in \.apng, .*\.png"):
        open_samples(tmp_path, classifier())
    tmp_path.joinpath("x.csv").touch()
    with pytest.raises(FileError, match=r"x\.csv is neither a folder of images nor a file \.pt, \.npz or \.npy"):
        open_samples(tmp_path / "x.csv", classifier())


# -- preprocessing ----------------------------------------------------------------------------------------------------


def raising(image):
    raise KeyError("two\nlines")


@pytest.mark.parametrize(
    ("preprocess", "message"),
    [
        (raising, "preprocessing failed: KeyError: "),
        (lambda image: None, r"preprocessing must give a tensor \(C, H, W\), but gave NoneType"),
        (lambda image: torch.zeros(1, 3, 4, 4), r"but gave \(1, 3, 4, 4\)"),
    ],
)
def test_preprocessing_of_ones_own_that_fails(preprocess, message):
    own = Classifier("own", nn.Identity(), preprocess)
    with pytest.raises(FileError, match=message):
        samples.preprocessed(own, Image.new("RGB", (4, 4)))


# -- arrays -----------------------------------------------------------------------------------------------------------

PICTURES = np.stack([picture(seed) for seed in range(5)])
LABELS = np.array([0, 1, 2, 1, -1])


def saved(path, kind, data, labels=None):
    """A data set in one of the ways that people store them."""
    x, y = torch.from_numpy(data), None if labels is None else torch.from_numpy(labels)
    if kind == "npz":
        np.savez(path.with_suffix(".npz"), **({"x": data} if labels is None else {"x": data, "y": labels}))
        return path.with_suffix(".npz")
    if kind == "unnamed":
        np.savez_compressed(path.with_suffix(".npz"), *([data] if labels is None else [data, labels]))
        return path.with_suffix(".npz")
    torch.save(
        {"tensor": x, "pair": (x, y), "list": [x, y], "dict": {"images": x, "labels": y, "note": "?"}}[kind], path
    )
    return path


@pytest.mark.parametrize("kind", ["pair", "list", "dict", "npz", "unnamed"])
def test_pictures_with_labels_in_a_file(kind, tmp_path):
    found = open_samples(saved(tmp_path / "data.pt", kind, PICTURES, LABELS), classifier())
    assert list(found.names) == ["0", "1", "2", "3", "4"]
    assert found.labels(3).tolist() == LABELS.tolist()
    for number, pixels in enumerate(PICTURES):
        torch.testing.assert_close(found.load(number), as_input(pixels))


@pytest.mark.parametrize("kind", ["tensor", "npz", "unnamed"])
def test_a_file_without_labels(kind, tmp_path):
    found = open_samples(saved(tmp_path / "data.pt", kind, PICTURES), classifier())
    assert found.labels(3).tolist() == [UNKNOWN] * 5
    torch.testing.assert_close(found.load(4), as_input(PICTURES[4]))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (np.moveaxis(PICTURES, -1, 1).copy(), PICTURES),
        (PICTURES[:, :2], PICTURES[:, :2]),  # 2 rows of 4
        (PICTURES[..., 0].copy(), np.repeat(PICTURES[..., :1], 3, -1)),
        (PICTURES[..., :1].copy(), np.repeat(PICTURES[..., :1], 3, -1)),
        (PICTURES[:, None, :, :, 0].copy(), np.repeat(PICTURES[..., :1], 3, -1)),
    ],
    ids=["N3HW", "NHW3", "NHW", "NHW1", "N1HW"],
)
def test_forms_of_bytes(data, expected, tmp_path):
    torch.save(torch.from_numpy(data), tmp_path / "data.pt")
    # The preprocessing crops and resizes nothing here: what it gets are the pixels.
    own = Classifier("own", nn.Identity(), lambda image: torch.from_numpy(np.array(image)).movedim(-1, 0))
    found = open_samples(tmp_path / "data.pt", own)
    for number, pixels in enumerate(expected):
        np.testing.assert_array_equal(found.load(number).movedim(0, -1), pixels)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ">f4"])
def test_numbers_are_inputs_as_they_are(dtype, tmp_path):
    data = (np.random.default_rng(0).standard_normal((3, 2, 5, 4)) * 9).astype(dtype)
    np.savez(tmp_path / "data.npz", data=data)
    found = open_samples(tmp_path / "data.npz", classifier())
    for number in range(3):
        x = found.load(number)
        assert x.dtype == torch.float32
        np.testing.assert_array_equal(x, data[number].astype(np.float32))


def test_numbers_that_are_not_finite_are_no_sample(tmp_path):
    x = torch.zeros(3, 1, 4, 4)
    x[1, 0, 2, 2], x[2, 0, 0, 0] = float("nan"), float("-inf")
    torch.save(x, tmp_path / "data.pt")
    found = open_samples(tmp_path / "data.pt", classifier())
    assert found.load(0).isfinite().all()
    for number in (1, 2):
        with pytest.raises(FileError, match="has values that are nan or infinite"):
            found.load(number)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(4, 3, 3), r"must be numbers \(N, C, H, W\), at least one, but have shape \(4, 3, 3\)"),
        (torch.zeros(0, 3, 4, 4), r"at least one, but have shape \(0, 3, 4, 4\)"),
        (
            torch.zeros(4, 3, dtype=torch.uint8),
            r"must be bytes \(N, H, W\), \(N, H, W, C\) or \(N, C, H, W\), C 1 or 3",
        ),
        (torch.zeros(4, 9, 9, 4, dtype=torch.uint8), r"C 1 or 3, at least one, but have shape \(4, 9, 9, 4\)"),
        (torch.zeros(4, 0, 9, dtype=torch.uint8), r"at least one, but have shape \(4, 0, 9\)"),
        ({"date": torch.zeros(2)}, r"under one of the names data, x, .*, but holds date\. Did you mean 'data'\?"),
        ({"data": "text"}, "but holds nothing"),
        (
            torch.zeros(2, 3, 4, 4, dtype=torch.int64),
            r"must be bytes, which are pictures, or floating.* torch\.int64\.",
        ),
        (torch.zeros(2, 3, 4, 4, dtype=torch.complex64), r"but are torch\.complex64\."),
        (["a", "b"], r"must hold a tensor, a pair \(samples, labels\) or a dict of tensors"),
        ((torch.zeros(1), torch.zeros(1), torch.zeros(1)), "must hold a tensor, a pair"),
        (7, "must hold a tensor, a pair"),
        (
            (torch.zeros(2, 3, 4, 4), torch.zeros(2)),
            r"must be 2 whole numbers, .*, but are torch.float32 of shape \(2,\)",
        ),
        ((torch.zeros(2, 3, 4, 4), torch.zeros(3, dtype=torch.int64)), r"torch.int64 of shape \(3,\)"),
        ((torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, dtype=torch.int64)), r"torch.int64 of shape \(2, 1\)"),
    ],
)
def test_files_that_hold_something_else(content, message, tmp_path):
    torch.save(content, tmp_path / "data.pt")
    with pytest.raises(FileError, match=message):
        open_samples(tmp_path / "data.pt", classifier())


def truncated(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()[:-300]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("text.pt", b"hello world"),
        ("empty.pt", b""),
        ("cut.pt", truncated(torch.zeros(2, 1, 9, 9))),
        ("text.npz", b"hello world"),
        ("empty.npz", b""),
        ("zip.npz", b"PK\x03\x04 no zip"),
    ],
)
def test_broken_files(name, content, tmp_path):
    tmp_path.joinpath(name).write_bytes(content)
    with pytest.raises(FileError, match=rf"{name} cannot be read \(\w+.*\)\. Write it by torch\.save") as caught:
        open_samples(tmp_path / name, classifier())
    assert "\n" not in str(caught.value)


class Trap:
    """A pickle that runs something when it is loaded."""

    def __reduce__(self):
        return os.mkdir, ("sprung",)


def test_files_with_code_are_refused(tmp_path):
    torch.save({"data": torch.zeros(1, 1, 2, 2), "model": Trap()}, tmp_path / "data.pt")
    with pytest.raises(FileError, match=r"reading it would run \w+\.mkdir, which is not done"):
        open_samples(tmp_path / "data.pt", classifier())
    np.savez(tmp_path / "data.npz", data=np.array([None, {}], dtype=object))
    with pytest.raises(FileError, match="allow_pickle=False"):
        open_samples(tmp_path / "data.npz", classifier())


@pytest.mark.parametrize("wrong", [3, -2])
def test_labels_out_of_range(wrong, tmp_path):
    torch.save((torch.zeros(3, 1, 2, 2), torch.tensor([0, wrong, 1])), tmp_path / "data.pt")
    found = open_samples(tmp_path / "data.pt", classifier())
    with pytest.raises(FileError, match=rf"the labels must be 0 to 2, or -1 for unknown, but one is {wrong}\."):
        found.labels(3)


# -- batches ----------------------------------------------------------------------------------------------------------


def test_a_batch_has_what_can_be_read_and_the_reasons_for_the_rest(tmp_path):
    folder(tmp_path, "a/1.png", "a/3.png", "a/4.png")
    tmp_path.joinpath("a", "2.png").write_bytes(b"nothing")
    own = classifier()
    batch = Loader(open_samples(tmp_path, own), own, (3, 4, 4))[[3, 1, 0]]
    assert batch.indices == [3, 0]
    torch.testing.assert_close(batch.inputs, torch.stack([as_input(picture(2)), as_input(picture(0))]))
    np.testing.assert_array_equal(batch.pixels.movedim(1, -1), np.stack([picture(2), picture(0)]))
    assert batch.failures == [(1, os.path.join("a", "2.png"), "is no image that Pillow can read")]


def test_a_batch_of_nothing_but_failures(tmp_path):
    torch.save(torch.full((2, 1, 4, 4), float("nan")), tmp_path / "data.pt")
    own = classifier(channels=1)
    batch = Loader(open_samples(tmp_path / "data.pt", own), own, (1, 4, 4))[[0, 1]]
    assert (batch.indices, batch.inputs.shape, batch.pixels.shape) == ([], (0, 1, 4, 4), (0, 1, 4, 4))
    assert [failure.sample for failure in batch.failures] == [0, 1]


def test_inputs_of_another_shape_are_failures(tmp_path):
    folder(tmp_path, "1.png")
    own = Classifier("own", nn.Identity(), lambda image: torch.zeros(3, image.height, image.width))
    batch = Loader(open_samples(tmp_path, own), own, (3, 5, 5))[[0]]
    assert batch.failures == [(0, "1.png", "is an input of shape (3, 4, 4), but the first one has (3, 5, 5)")]


def test_digits_come_out_of_a_folder_as_they_were(tmp_path):
    from lrpfunc import digits

    digits.write_images(tmp_path / "digits")
    shipped, own = digits.load(), classifiers.load("digits")
    found = open_samples(tmp_path / "digits", own)
    assert len(found.names) == 40
    for position, name in enumerate(found.names):
        number = int(name.split(os.sep)[1].removesuffix(".png"))
        torch.testing.assert_close(found.load(position), shipped.images[number], atol=0.51 / 255, rtol=0)
        assert found.labels(10)[position] == shipped.labels[number]


# -- lists of files ---------------------------------------------------------------------------------------------------


def test_a_list_names_images_line_by_line_wherever_they_are(tmp_path):
    root = folder(tmp_path / "images", "train/dog/a.png", "train/cat/b.png", "c.png")
    near = folder(tmp_path / "lists", "cat/d.png")
    lines = [f"{root}/train/dog/a.png", "", "../images/train/cat/b.png", "cat/d.png", "nowhere/e.png", f"{root}/c.png"]
    (near / "some.txt").write_text("\n".join(lines))
    found = open_samples(near / "some.txt", classifier(("cat", "dog")))
    assert found.names == [line for line in lines if line]
    assert list(found.labels(2)) == [1, 0, 0, UNKNOWN, UNKNOWN]
    for index, number in enumerate((0, 1, 0)):
        torch.testing.assert_close(found.load(index), as_input(picture(number)), rtol=1e-5, atol=1e-6)
    with pytest.raises(FileError, match=r"^is missing$"):
        found.load(3)
    assert len(list(found.files)) == 5


def test_an_empty_list_is_an_error(tmp_path):
    (tmp_path / "none.txt").write_text("\n \n")
    with pytest.raises(FileError, match=r"none\.txt names no images: it needs the path of one in each line\.$"):
        open_samples(tmp_path / "none.txt", classifier())
