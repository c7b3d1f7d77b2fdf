"""What kind of picture a file is: by its ending in a folder, and by its first bytes when it is read."""

from __future__ import annotations

from pathlib import Path, PurePath

# fmt: off
ENDINGS = frozenset((
    ".apng", ".avif", ".bmp", ".dcm", ".dib", ".dicom", ".gif", ".heic", ".heif", ".hif", ".ico", ".ima", ".j2k",
    ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".nii", ".nii.gz", ".pbm", ".pcx", ".pgm", ".png", ".pnm", ".ppm",
    ".tga", ".tif", ".tiff", ".webp",
))
# fmt: on
PAGED = frozenset((".dcm", ".dicom", ".ima", ".nii", ".nii.gz", ".tif", ".tiff"))  # may have several pages
PILLOW, DICOM, NIFTI, HEIF, AVIF, TIFF = "Pillow", "DICOM", "NIfTI", "HEIC", "AVIF", "TIFF"
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
AVIF_BRANDS = (b"avif", b"avis")
# Of files without an ending. DICOM's stand behind 128 bytes that mean nothing.
SIGNATURES = (
    b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+",
    b"\x00\x00\x00\x0cjP  ", b"\xff\x4f\xff\x51",
)  # fmt: skip
LONGEST = 132  # bytes that tell


def ending(path: PurePath) -> str:
    """The ending in small letters; of packed volumes the last two."""
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") and name != ".nii.gz" else path.suffix.lower()


def may_be_any(path: PurePath) -> bool:
    """Whether a name does not say what a file is: without an ending, or with numbers, as DICOM files are called."""
    name = ending(path)
    return (not name or name[1:].isdecimal()) and path.name != "DICOMDIR"


def kind(path: Path) -> str:
    """Who reads a file: one of the words above. Errors: `OSError`."""
    head = first_bytes(path)
    brands = _brands(head)
    if any(brand in AVIF_BRANDS for brand in brands):  # some say that they are both
        return AVIF
    if any(brand in HEIF_BRANDS for brand in brands):
        return HEIF
    if head[128:132] == b"DICM":
        return DICOM
    if head[:4] in (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"):
        return TIFF
    if is_picture(head):
        return PILLOW
    named = {".nii": NIFTI, ".nii.gz": NIFTI, ".dcm": DICOM, ".dicom": DICOM, ".ima": DICOM}
    return named.get(ending(path), PILLOW)


def first_bytes(path: Path) -> bytes:
    """As much of a file as tells what it is. Errors: `OSError`."""
    with path.open("rb") as file:
        return file.read(LONGEST)


def is_picture(head: bytes) -> bool:
    """Whether a file that begins so is a picture, whatever it is called."""
    is_webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    is_bitmap = head[:2] == b"BM" and head[6:10] == bytes(4)
    known = (*HEIF_BRANDS, *AVIF_BRANDS)
    return (
        head.startswith(SIGNATURES)
        or is_webp
        or is_bitmap
        or head[128:132] == b"DICM"
        or any(brand in known for brand in _brands(head))
    )


def _brands(head: bytes) -> list[bytes]:
    """What a file of the family of MP4 says that it is."""
    if head[4:8] != b"ftyp":
        return []
    end = min(int.from_bytes(head[:4], "big"), len(head))
    return [head[8:12], *(head[i : i + 4] for i in range(16, end, 4))]
