"""The samples of a data set: image files in folders, or arrays in a file, as inputs of a classifier.

Read on in this order: sample, folders, arrays, opening, notices, batches.
"""

from lrpfunc.pictures.samples.batches import Batch, Loader
from lrpfunc.pictures.samples.folders import class_numbers
from lrpfunc.pictures.samples.notices import Notices
from lrpfunc.pictures.samples.opening import kind_of, open_samples
from lrpfunc.pictures.samples.sample import Sample, Samples, contents, preprocessed
