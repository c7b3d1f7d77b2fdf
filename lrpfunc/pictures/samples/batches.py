"""Samples as batches, read by worker processes; what cannot be read is said beside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lrpfunc.errors import FileError, LrpError
from lrpfunc.pictures import images
from lrpfunc.pictures.classifiers import Classifier
from lrpfunc.pictures.hdf5 import Failure
from lrpfunc.pictures.samples.sample import Sample, Samples


class Batch(NamedTuple):
    """Samples that could be read, as inputs (n, C, H, W) and as seen, bytes (n, C, H, W), and those that could not.

    `notices`: what to say of how they were read, with their names.
    """

    indices: list[int]
    inputs: Tensor
    pixels: Tensor
    failures: list[Failure]
    notices: list[tuple[str, str]]


class Loader:
    """Reads lists of samples as batches; worker processes have a copy each."""

    def __init__(self, samples: Samples, classifier: Classifier, shape: tuple[int, ...]):
        self.samples, self.classifier, self.shape = samples, classifier, shape

    def __getitem__(self, indices: Sequence[int]) -> Batch | OSError:
        """The samples at some positions; an error that ends the run as it is, as worker processes raise none whole."""
        try:
            return self._batch(indices)
        except OSError as error:
            return error

    def _batch(self, indices: Sequence[int]) -> Batch:
        good, inputs, failures = [], [], []
        notices: list[tuple[str, str]] = []
        for index in indices:
            try:
                sample = self._sample(index)
                inputs.append(sample.x)
                good.append(index)
                notices += [(self.samples.names[index], text) for text in sample.notices]
            except LrpError as error:
                failures.append(Failure(index, images.printable(self.samples.names[index]), str(error)))
        stacked = torch.stack(inputs) if inputs else torch.empty(0, *self.shape)
        pixels = (self.classifier.pixels(stacked) * 255).round().to(torch.uint8)
        return Batch(good, stacked, pixels, failures, notices)

    def _sample(self, index: int) -> Sample:
        sample = self.samples.sample(index)
        if tuple(sample.x.shape) != self.shape:
            raise FileError(f"is an input of shape {tuple(sample.x.shape)}, but the first one has {self.shape}")
        return sample
