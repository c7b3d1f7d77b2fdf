"""One sample, and what any data set can do."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from lrpfunc.errors import FileError, MissingExtraError
from lrpfunc.pictures.classifiers import Classifier
from lrpfunc.pictures.remote import Place, versions


class Sample(NamedTuple):
    """An input (C, H, W), and what to say of how it was read."""

    x: Tensor
    notices: tuple[str, ...] = ()


class Samples(Protocol):
    """Samples in a fixed order.

    `names` says which; `identity` is what tells this data set from others; `notes` is what to say of it, in lines;
    `files` are those that samples are read from.
    """

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def identity(self) -> str: ...

    @property
    def notes(self) -> Sequence[str]: ...

    @property
    def files(self) -> Iterable[Place]: ...

    def labels(self, classes: int, names: Sequence[str] | None = None) -> np.ndarray:
        """The class (N,) of each sample for a model of so many classes, -1 where it is not known.

        `names`: of the classes; the classifier's own, unless given.
        """

    def sample(self, index: int) -> Sample:
        """One sample. Errors: `FileError` with the reason if it cannot be had."""

    def load(self, index: int) -> Tensor:
        """Its input alone."""


def contents(samples: Samples) -> str:
    """A digest of the sizes and times of a data set's files: as far as these tell, it changes with what is in them."""
    digest = hashlib.sha256()
    for version in versions(samples.files):
        digest.update(f"{version}\n".encode())
    return digest.hexdigest()


def preprocessed(classifier: Classifier, image: Any) -> Tensor:
    """The input (C, H, W) of an RGB picture.

    Errors: `FileError` if preprocessing fails or gives something else; `MissingExtraError`.
    """
    try:
        x = classifier.preprocess(image)
    except MissingExtraError:  # which other images would meet, too
        raise
    except Exception as error:  # the user's own code may raise anything, and one image must not end a long run
        raise FileError(f"preprocessing failed: {type(error).__name__}: {error}") from error
    if not isinstance(x, Tensor) or x.dim() != 3:
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise FileError(f"preprocessing must give a tensor (C, H, W), but gave {got}")
    if not is_plain(x):
        raise FileError(f"preprocessing must give numbers, but gave {kind(x)}")
    x = x.detach().cpu()
    if not x.isfinite().all():
        raise FileError("preprocessing gave values that are nan or infinite")
    return x


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor holds real numbers, one beside the other."""
    is_odd = tensor.is_nested or tensor.is_meta or tensor.is_quantized or tensor.is_complex()
    return tensor.layout == torch.strided and not is_odd


def kind(tensor: Tensor) -> str:
    """What a tensor is, in words: 'torch.int64', 'sparse torch.float32'."""
    layout = str(tensor.layout).removeprefix("torch.").removesuffix("_coo") if tensor.layout != torch.strided else ""
    nested = "nested" if tensor.is_nested else ""
    meta = "meta" if tensor.is_meta else ""
    return " ".join(word for word in (nested or layout, meta, str(tensor.dtype)) if word)
