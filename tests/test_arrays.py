"""Samples in files of arrays: mapped and not read, odd ones refused at the start by name, or taken as they are."""

import io
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from lrpfunc.errors import FileError
from lrpfunc.pictures.classifiers import Classifier
from lrpfunc.pictures.samples import open_samples


def plain(**options):
    """A classifier that leaves inputs alone."""
    return Classifier("own", nn.Identity(), lambda image: torch.from_numpy(np.array(image)).movedim(-1, 0), **options)


INPUTS = np.random.default_rng(0).standard_normal((5, 2, 3, 4)).astype(np.float32)
PICTURES = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 3), dtype=np.uint8)


def assert_loaded(path, expected):
    found = open_samples(path, plain())
    assert list(found.names) == [str(i) for i in range(len(expected))]
    for number, values in enumerate(expected):
        got = found.load(number)
        want = np.moveaxis(values, -1, 0) if values.dtype == np.uint8 else values.astype(np.float32)
        np.testing.assert_array_equal(got, want)
        assert got.is_contiguous() or values.dtype == np.uint8
    return found


@pytest.mark.parametrize("data", [INPUTS, PICTURES, INPUTS.astype(">f8"), np.asfortranarray(INPUTS), INPUTS[:, ::-1]])
@pytest.mark.parametrize("kind", ["npy", "npz", "packed"])
def test_arrays_stay_in_their_file(data, kind, tmp_path):
    path = tmp_path / ("a.npy" if kind == "npy" else "a.npz")
    labels = np.arange(5) % 3
    {"npy": lambda p, data, label: np.save(p, data), "npz": np.savez, "packed": np.savez_compressed}[kind](
        path, data=data, label=labels
    )
    found = assert_loaded(path, data)
    assert isinstance(found.inputs, np.memmap) == (kind != "packed")
    assert found.labels(3).tolist() == ([-1] * 5 if kind == "npy" else labels.tolist())


def test_what_does_not_fit_into_memory_is_read_sample_by_sample(tmp_path):
    """A hundred gigabytes of nothing: a file with a hole."""
    header = io.BytesIO()
    shape = (50_000, 3, 800, 800)
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    path = tmp_path / "a.npy"
    with path.open("wb") as file:
        file.write(header.getvalue())
        file.truncate(len(header.getvalue()) + int(np.prod(shape, dtype=object)))
    assert open_samples(path, plain()).load(49_999).shape == (3, 800, 800)


LEAF = torch.from_numpy(INPUTS)


@pytest.mark.parametrize(
    ("name", "tensor", "expected"),
    [
        ("wants gradients", LEAF.clone().requires_grad_(), INPUTS),
        ("a parameter", nn.Parameter(LEAF), INPUTS),
        ("not contiguous", LEAF.movedim(1, -1).contiguous().movedim(-1, 1), INPUTS),
        ("every second", LEAF.repeat_interleave(2, 0)[::2], INPUTS),
        ("channels last", LEAF.to(memory_format=torch.channels_last), INPUTS),
        ("expanded inside", LEAF[:, :1].expand(5, 2, 3, 4), np.repeat(INPUTS[:, :1], 2, 1)),
        ("double", LEAF.double(), INPUTS),
        ("half", LEAF.half(), INPUTS.astype(np.float16)),
        ("bfloat16", LEAF.bfloat16(), LEAF.bfloat16().float().numpy()),
        ("float8", LEAF.to(torch.float8_e4m3fn), LEAF.to(torch.float8_e4m3fn).float().numpy()),
        ("bytes not contiguous", torch.from_numpy(PICTURES).transpose(1, 2), PICTURES.transpose(0, 2, 1, 3)),
        ("bytes expanded", torch.from_numpy(PICTURES)[..., :1].expand(5, 3, 4, 3), np.repeat(PICTURES[..., :1], 3, -1)),
    ],
)
def test_odd_tensors_are_taken(name, tensor, expected, tmp_path):
    torch.save(tensor, tmp_path / "a.pt")
    assert_loaded(tmp_path / "a.pt", expected)
    if name == "float8":
        return  # which older files have no name for
    torch.save(
        {"x": tensor, "y": torch.zeros(5, dtype=torch.uint8)}, tmp_path / "b.pt", _use_new_zipfile_serialization=False
    )
    assert_loaded(tmp_path / "b.pt", expected)


ODD = r"samples in .* must be bytes, which are pictures, or floating-point numbers, .*, but are "


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LEAF.to_sparse(), ODD + r"sparse torch\.float32\."),
        (lambda: LEAF.flatten(1).to_sparse_csr(), ODD + r"sparse_csr torch\.float32\."),
        (lambda: LEAF.to("meta"), ODD + r"meta torch\.float32\."),
        (lambda: torch.nested.nested_tensor([LEAF[0], LEAF[1]]), ODD + r"nested torch\.float32\."),
        (lambda: torch.quantize_per_tensor(LEAF, 0.1, 0, torch.qint8), ODD + r"torch\.qint8\."),
        (lambda: torch.quantize_per_tensor(LEAF, 0.1, 0, torch.quint8), ODD + r"torch\.quint8\."),
        (lambda: LEAF.to(torch.complex64), ODD + r"torch\.complex64\."),
        (lambda: LEAF > 0, ODD + r"torch\.bool\."),
        (lambda: LEAF.int(), ODD + r"torch\.int32\."),
        (
            lambda: LEAF[:1].expand(10**9, 2, 3, 4),
            r"the 1000000000 samples in .* are one and the same in memory \(expanded\)\. Save tensor\.clone\(\), or",
        ),
    ],
)
def test_odd_tensors_are_refused_at_the_start(make, message, tmp_path):
    torch.save(make(), tmp_path / "a.pt")
    with pytest.raises(FileError, match=message):
        open_samples(tmp_path / "a.pt", plain())


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: torch.zeros(5, dtype=torch.complex64), r"torch\.complex64"),
        (lambda: torch.zeros(5, dtype=torch.int64).to_sparse(), r"sparse torch\.int64"),
        (lambda: torch.zeros(5, dtype=torch.int64, device="meta"), r"meta torch\.int64"),
        (lambda: torch.quantize_per_tensor(torch.zeros(5), 0.1, 0, torch.qint8), r"torch\.qint8"),
    ],
)
def test_odd_labels_are_refused(make, what, tmp_path):
    torch.save((LEAF, make()), tmp_path / "a.pt")
    with pytest.raises(FileError, match=rf"must be 5 whole numbers, one per sample, but are {what} of shape \(5,\)"):
        open_samples(tmp_path / "a.pt", plain())


@pytest.mark.parametrize("labels", [torch.tensor([True, False, True, True, False]), torch.ones(1).int().expand(5)])
def test_odd_labels_are_taken(labels, tmp_path):
    torch.save((LEAF, labels), tmp_path / "a.pt")
    assert open_samples(tmp_path / "a.pt", plain()).labels(2).tolist() == labels.int().tolist()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (INPUTS.astype(np.complex64), ODD + r"complex64\."),
        (INPUTS.astype(int), ODD + r"int64\."),
        (INPUTS > 0, ODD + r"bool\."),
        (np.zeros((2, 1, 1, 1), "M8[s]"), ODD + r"datetime64\[s\]\."),
        (np.zeros((2, 1, 1, 1), [("a", "f4")]), ODD + r"\[\('a', '<f4'\)\]\."),
        (np.full((2, 1, 1, 1), "x"), ODD + r"<U1\."),
        (INPUTS[0], r"must be numbers \(N, C, H, W\), at least one, but have shape \(2, 3, 4\)\."),
        (INPUTS[:0], r"at least one, but have shape \(0, 2, 3, 4\)\."),
        (np.array(None), r"cannot be read \(ValueError: .*(allow_pickle|Python objects)"),
    ],
)
@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_odd_arrays_are_refused_at_the_start(data, message, kind, tmp_path):
    path = tmp_path / f"a.{kind}"
    np.save(path, data, allow_pickle=True) if kind == "npy" else np.savez(path, x=data)
    with pytest.raises(FileError, match=message):
        open_samples(path, plain())


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"text", b"\x93NUMPY\x01\x00\x04\x00{'a'"])
def test_broken_arrays_are_refused_in_a_line(content, tmp_path):
    tmp_path.joinpath("a.npy").write_bytes(content)
    with pytest.raises(FileError, match=r"a\.npy cannot be read \(\w+.*\)\. Write it by") as caught:
        open_samples(tmp_path / "a.npy", plain())
    assert "\n" not in str(caught.value)


def test_an_array_that_says_more_than_there_is(tmp_path):
    np.save(tmp_path / "a.npy", INPUTS)
    whole = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(whole.replace(b"(5, 2, 3, 4)", b"(5000000, 2)"))
    with pytest.raises(FileError, match="cannot be read"):
        open_samples(tmp_path / "a.npy", plain())
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", whole.replace(b"(5, 2, 3, 4)", b"(5000000, 2)"))
    with pytest.raises(FileError, match="cannot be read"):
        open_samples(tmp_path / "a.npz", plain())


def test_an_array_ends_where_its_entry_does(tmp_path):
    """What follows in the archive is no part of it."""
    file = io.BytesIO()
    np.save(file, INPUTS)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", file.getvalue().replace(b"(5, 2, 3, 4)", b"(9, 2, 3, 4)"))
        archive.writestr("secret.npy", bytes(10_000))
    with pytest.raises(FileError, match=r"a\.npz cannot be read \(ValueError: .*x\.npy"):
        open_samples(tmp_path / "a.npz", plain())


def test_numbers_beyond_float32_are_no_sample(tmp_path):
    np.save(tmp_path / "a.npy", np.full((2, 1, 1, 1), 1e300))
    with pytest.raises(FileError, match="has values that are nan or infinite"):
        open_samples(tmp_path / "a.npy", plain()).load(0)
