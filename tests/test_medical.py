"""DICOM, NIfTI and HEIC as pictures: windows, frames, slices, colours; made by hand, and pydicom's own files."""

import gzip

import numpy as np
import pytest
from PIL import Image

from lrpfunc.errors import FileError
from lrpfunc.pictures import images
from lrpfunc.pictures.images import Reading, Window
from lrpfunc.pictures.images import dicom as dicom_files

RAMP = np.arange(12).reshape(3, 4)  # rows and columns differ


def pixels(path, **options):
    """A picture as bytes, gray if all its channels agree, and what is said of it."""
    seen = images.look(path, Reading(**options))
    values = np.asarray(seen.image)
    assert values.dtype == np.uint8
    is_gray = (values == values[..., :1]).all()
    return (values[..., 0] if is_gray else values), seen.notices


# -- DICOM ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pydicom():
    return pytest.importorskip("pydicom")


def written(path, values, stored=12, signed=False, **elements):
    """A DICOM file with some pixels and whatever else is said of them."""
    import pydicom
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    values = np.asarray(values)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    made = pydicom.Dataset()
    made.file_meta, made.SOPClassUID, made.SOPInstanceUID = meta, CTImageStorage, meta.MediaStorageSOPInstanceUID
    is_color = elements.get("PhotometricInterpretation") == "RGB"
    made.Rows, made.Columns = values.shape[-3:-1] if is_color else values.shape[-2:]
    made.SamplesPerPixel, made.PhotometricInterpretation = 3 if is_color else 1, "MONOCHROME2"
    if is_color:
        made.PlanarConfiguration = 0
    made.BitsAllocated = 8 if stored <= 8 else 16
    made.BitsStored, made.HighBit, made.PixelRepresentation = stored, stored - 1, int(signed)
    for name, value in elements.items():
        setattr(made, name, value)
    kind = {(8, False): "u1", (16, False): "<u2", (16, True): "<i2"}[made.BitsAllocated, signed]
    made.PixelData = values.astype(kind).tobytes()
    made.save_as(path, enforce_file_format=True)
    return path


def expected(values, low, high):
    return np.round(np.clip((values - low) / (high - low), 0, 1) * 255)


def test_the_window_of_a_file_is_taken(pydicom, tmp_path):
    """Center 5, width 8: DICOM's own formula, PS3.3 C.11.2.1.2.1, written out."""
    path = written(tmp_path / "a.dcm", RAMP, WindowCenter=5, WindowWidth=8)
    got, said = pixels(path)
    by_hand = [[0 if x <= 1.0 else 255 if x > 8.0 else ((x - 4.5) / 7 + 0.5) * 255 for x in row] for row in RAMP]
    np.testing.assert_array_equal(got, np.round(by_hand))
    assert said == ()


@pytest.mark.parametrize(
    ("elements", "values"),
    [
        ({"VOILUTFunction": "LINEAR_EXACT"}, expected(RAMP, 1, 9)),
        ({"VOILUTFunction": "SIGMOID"}, np.round(255 / (1 + np.exp(-4 * (RAMP - 5) / 8)))),
        ({"WindowCenter": [5, 100], "WindowWidth": [8, 300]}, expected(RAMP, 1, 8)),  # the first of several
        ({"RescaleSlope": 2, "RescaleIntercept": -10}, expected(RAMP * 2 - 10, 1, 8)),
        ({"PhotometricInterpretation": "MONOCHROME1"}, 255 - expected(RAMP, 1, 8)),
    ],
    ids=str,
)
def test_what_a_file_says_of_its_window(elements, values, pydicom, tmp_path):
    path = written(tmp_path / "a.dcm", RAMP, **({"WindowCenter": 5, "WindowWidth": 8} | elements))
    np.testing.assert_array_equal(pixels(path)[0], values)


def test_without_a_window_the_range_is_shown_and_said(pydicom, tmp_path):
    values = RAMP * 100 - 500
    values[0, 0] = -2000  # around what was scanned
    path = written(tmp_path / "a.dcm", values, 16, True, RescaleSlope=1, RescaleIntercept=-24, PixelPaddingValue=-2000)
    path = path.rename(tmp_path / "renamed.png")  # its bytes say what it is
    got, said = pixels(path)
    np.testing.assert_array_equal(got, expected(values - 24, -424, 576))
    assert said == (
        "it asks for no window, so its values are shown from -424 to 576; --window -424,576 says so for all files",
    )
    got, said = pixels(path, window=Window(-100, 200))
    np.testing.assert_array_equal(got, expected(values - 24, -100, 200))
    assert said == ()


def test_bytes_without_a_window_are_as_they_are(pydicom, tmp_path):
    got, said = pixels(written(tmp_path / "a.dcm", RAMP * 20, 8))
    np.testing.assert_array_equal(got, RAMP * 20)
    assert said == ()
    got, _ = pixels(written(tmp_path / "m.dcm", RAMP * 20, 8, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(got, 255 - RAMP * 20)


def test_a_table_instead_of_a_window(pydicom, tmp_path):
    table = pydicom.Dataset()
    table.LUTDescriptor, table.LUTData = [12, 0, 8], np.arange(200, 80, -10, dtype="<u2").tobytes()
    path = written(tmp_path / "a.dcm", RAMP, VOILUTSequence=pydicom.Sequence([table]))
    np.testing.assert_array_equal(pixels(path)[0], 200 - 10 * RAMP)


def test_colours(pydicom, tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (3, 4, 3))
    path = written(tmp_path / "a.dcm", values, 8, PhotometricInterpretation="RGB")
    np.testing.assert_array_equal(pixels(path)[0], values)


def test_frames_are_pages(pydicom, tmp_path):
    frames = np.stack([RAMP, RAMP[::-1], RAMP * 0 + 7])
    path = written(tmp_path / "a.dcm", frames, NumberOfFrames=3, WindowCenter=6, WindowWidth=12)
    pages = images.pages(path)
    assert [page.name for page in pages] == ["a.dcm#1", "a.dcm#2", "a.dcm#3"]
    for page, frame in zip(pages, frames, strict=True):
        np.testing.assert_array_equal(pixels(page)[0], expected(frame, 0, 11))
    np.testing.assert_array_equal(pixels(path)[0], pixels(pages[0])[0])
    with pytest.raises(FileError, match="has 3 frames, and none with the number 4"):
        images.read(f"{path}#4")


def test_frames_with_windows_of_their_own(pydicom, tmp_path):
    def group(**elements):
        inner, outer = pydicom.Dataset(), pydicom.Dataset()
        for name, value in elements.items():
            setattr(inner, name, value)
        name = "FrameVOILUTSequence" if "WindowCenter" in elements else "PixelValueTransformationSequence"
        setattr(outer, name, pydicom.Sequence([inner]))
        return outer

    windows = [group(WindowCenter=5, WindowWidth=8), group(WindowCenter=10, WindowWidth=4)]
    path = written(
        tmp_path / "a.dcm",
        np.stack([RAMP, RAMP]),
        NumberOfFrames=2,
        PerFrameFunctionalGroupsSequence=pydicom.Sequence(windows),
        SharedFunctionalGroupsSequence=pydicom.Sequence([group(RescaleSlope=2, RescaleIntercept=0)]),
    )
    np.testing.assert_array_equal(pixels(f"{path}#1")[0], expected(RAMP * 2, 1, 8))
    np.testing.assert_array_equal(pixels(f"{path}#2")[0], expected(RAMP * 2, 8, 11))


def test_dicom_that_is_no_picture_or_broken(pydicom, tmp_path, monkeypatch):
    path = written(tmp_path / "a.dcm", RAMP)
    with pytest.raises(FileError, match=r"is too large: 4 x 3 pixels, and 11 are allowed \(--max-pixels N allows N"):
        images.read(path, Reading(max_pixels=11))
    text = tmp_path / "text.dcm"
    text.write_text("hello, this is no DICOM at all")
    with pytest.raises(FileError, match=r"is DICOM without a picture|cannot be read"):
        images.read(text)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with pytest.raises(FileError, match="cannot be read: "):
        images.read(path)
    monkeypatch.setattr(dicom_files, "LARGEST_DEFLATED", 10)
    made = pydicom.dcmread(written(tmp_path / "b.dcm", RAMP))
    made.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    made.save_as(tmp_path / "deflated.dcm", enforce_file_format=True)
    with pytest.raises(FileError, match="is deflated DICOM of more than a megabyte"):
        images.read(tmp_path / "deflated.dcm")
    monkeypatch.undo()
    np.testing.assert_array_equal(*(pixels(tmp_path / name)[0] for name in ("deflated.dcm", "b.dcm")))


# Files of pydicom's own tests: compressed in every way, odd, without pixels. What is said, or the mean of the picture.
SAMPLES = {
    "MR_small.dcm": 113.1, "MR_small_RLE.dcm": 113.1, "MR_small_jp2klossless.dcm": 113.1,
    "MR_small_jpeg_ls_lossless.dcm": 113.1, "MR_small_bigendian.dcm": 113.1, "MR_small_implicit.dcm": 113.1,
    "SC_rgb_rle.dcm": 127.7, "SC_rgb_jpeg_gdcm.dcm": 127.7, "SC_rgb_rle_16bit.dcm": 127.7,
    "SC_rgb_rle_32bit.dcm": 127.7,
    "SC_ybr_full_422_uncompressed.dcm": 127.7, "examples_palette.dcm": 20.5, "liver_1frame.dcm": 35.2,
    "rtdose.dcm": 121.5, "image_dfl.dcm": 127.1,
    "JPGExtended.dcm": r"cannot be decoded \(JPEG Extended .*\)\. Write it uncompressed: gdcmconv --raw",
    "rtplan.dcm": r"is DICOM without a picture \(RT Plan Storage\)", "badVR.dcm": "cannot be read: invalid literal",
    "MR_truncated.dcm": "cannot be read: ", "waveform_ecg.dcm": "is DICOM without a picture",
}  # fmt: skip


@pytest.mark.parametrize("name", SAMPLES)
def test_files_of_others(name, pydicom):
    pytest.importorskip("gdcm")
    from pydicom.data import get_testdata_file

    path = get_testdata_file(name, download=False)
    if isinstance(SAMPLES[name], str):
        with pytest.raises(FileError, match=SAMPLES[name]):
            images.read(path)
    else:
        assert np.asarray(images.read(path)).mean() == pytest.approx(SAMPLES[name], abs=0.06)


# -- NIfTI ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nibabel():
    return pytest.importorskip("nibabel")


def volume(nibabel, path, values, low=0, high=0):
    image = nibabel.Nifti1Image(np.asarray(values), np.eye(4))
    image.header["cal_min"], image.header["cal_max"] = low, high
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float64])
def test_slices_are_pages(dtype, ending, nibabel, tmp_path):
    values = np.random.default_rng(0).integers(-50, 1000, (4, 5, 3)).astype(dtype)
    path = volume(nibabel, tmp_path / f"brain{ending}", values)
    pages = images.pages(path)
    assert [page.name for page in pages] == [f"brain{ending}#{i}" for i in (1, 2, 3)]
    values = values.astype(np.float64)
    low, high = values.min(), values.max()  # of the volume: its slices can be compared
    for k, page in enumerate(pages):
        got, said = pixels(page)
        assert got.shape == (5, 4)
        for x in range(4):
            for y in range(5):  # x to the right, y upwards
                assert abs(int(got[4 - y, x]) - 255 * (values[x, y, k] - low) / (high - low)) <= 0.51
        assert said[0].startswith(f"it asks for no window, so its values are shown from {low:g} to {high:g}; --window")
    np.testing.assert_array_equal(
        pixels(pages[1], window=Window(0, 100))[0], expected(np.rot90(values[..., 1]), 0, 100)
    )
    with pytest.raises(FileError, match="has 3 slices, and none with the number 4"):
        images.read(f"{path}#4")


def test_what_a_volume_asks_for_and_what_is_none(nibabel, tmp_path):
    values = np.arange(24.0, dtype=np.float32).reshape(2, 3, 4)
    values[0, 0, 0] = np.nan
    got, said = pixels(volume(nibabel, tmp_path / "a.nii", values, 5, 10))
    np.testing.assert_array_equal(got, expected(np.rot90(np.nan_to_num(values[..., 0], nan=5)), 5, 10))
    assert said == ()
    got, said = pixels(volume(nibabel, tmp_path / "b.nii", values))
    np.testing.assert_array_equal(got, expected(np.rot90(np.nan_to_num(values[..., 0], nan=1)), 1, 23))
    got, said = pixels(volume(nibabel, tmp_path / "c.nii", (np.nan_to_num(values) * 10).astype(np.uint8)))
    assert (said, got.max()) == ((), 200)
    with pytest.raises(FileError, match=r"has values that are nan or infinite"):
        images.read(volume(nibabel, tmp_path / "d.nii", values * np.inf))


def test_further_axes_follow_each_other(nibabel, tmp_path):
    values = np.random.default_rng(1).integers(0, 256, (2, 3, 4, 2, 3)).astype(np.uint8)
    path = volume(nibabel, tmp_path / "a.nii.gz", values)
    pages = images.pages(path)
    assert len(pages) == 24
    flat = values.reshape(2, 3, 4, 6)
    for number in (0, 3, 4, 11, 23):
        np.testing.assert_array_equal(pixels(pages[number])[0], np.rot90(flat[:, :, number % 4, number // 4]))
    assert images.pages(volume(nibabel, tmp_path / "flat.nii", values[..., 0, 0, 0])) == [tmp_path / "flat.nii"]
    np.testing.assert_array_equal(pixels(tmp_path / "flat.nii")[0], np.rot90(values[..., 0, 0, 0]))


def test_colours_of_a_volume(nibabel, tmp_path):
    values = np.random.default_rng(1).integers(0, 256, (2, 3, 4, 3)).astype(np.uint8)
    packed = values.view([(name, "u1") for name in "RGB"])[..., 0]
    np.testing.assert_array_equal(
        pixels(f"{volume(nibabel, tmp_path / 'a.nii', packed)}#2")[0], np.rot90(values[:, :, 1])
    )


def test_volumes_that_are_broken_or_too_large(nibabel, tmp_path):
    path = volume(nibabel, tmp_path / "a.nii", np.zeros((20, 30, 40), np.int16))
    with pytest.raises(FileError, match=r"is too large: 20 x 1,200 pixels, and 9,999 are allowed"):
        images.read(path, Reading(max_pixels=9999))
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    with pytest.raises(FileError, match="cannot be read: "):
        images.read(path)
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(whole)[:60])
    with pytest.raises(FileError, match="cannot be read: "):
        images.read(tmp_path / "b.nii.gz")
    (tmp_path / "c.nii").write_bytes(b"nothing of the kind")
    with pytest.raises(FileError, match="cannot be read: "):
        images.read(tmp_path / "c.nii")


# -- HEIC -------------------------------------------------------------------------------------------------------------


def test_pictures_of_phones(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    before = dict(Image.registered_extensions())
    smooth = np.linspace(0, 255, 64).astype(np.uint8)
    picture = Image.fromarray(
        np.stack([np.tile(smooth, (48, 1)), np.tile(smooth[::-1], (48, 1)), np.full((48, 64), 90, np.uint8)], -1)
    )
    for name in ("a.heic", "no-ending"):
        pillow_heif.from_pillow(picture).save(tmp_path / name, quality=95, format="HEIF")
        np.testing.assert_allclose(np.asarray(images.read(tmp_path / name)), np.asarray(picture), atol=12)
    with pytest.raises(FileError, match=r"is too large: 64 x 48 pixels"):
        images.read(tmp_path / "a.heic", Reading(max_pixels=1000))
    (tmp_path / "cut.heic").write_bytes((tmp_path / "a.heic").read_bytes()[:200])
    with pytest.raises(FileError, match="cannot be read: "):
        images.read(tmp_path / "cut.heic")
    assert Image.registered_extensions() == before  # nothing of Pillow's is changed


# -- without the extras -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.dcm", bytes(128) + b"DICM" + bytes(50), "reading DICOM needs pydicom: pip install 'lrpfunc[medical]'"),
        ("b.nii", bytes(400), "reading NIfTI needs nibabel: pip install 'lrpfunc[medical]'"),
        (
            "c.heic",
            b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
            "reading HEIC needs pillow_heif: pip install 'lrpfunc[heif]'",
        ),
    ],
)
def test_a_missing_extra_is_that_files_error(name, content, message, tmp_path, monkeypatch):
    monkeypatch.setattr("lrpfunc.extras.find_spec", lambda name: None)
    tmp_path.joinpath(name).write_bytes(content)
    with pytest.raises(FileError) as caught:
        images.read(tmp_path / name)
    assert str(caught.value) == f"cannot be read: {message}"
    assert images.pages(tmp_path / name) == [tmp_path / name]
