"""The file of a dataset run: rows of explanations, in the form that ViRelAy reads, and what else is known.

Read on in this order: schema, writing, structure, examination, reading.
"""

from lrpfunc.pictures.hdf5.examination import examined
from lrpfunc.pictures.hdf5.reading import Column, Run, opened
from lrpfunc.pictures.hdf5.schema import (
    CATEGORIES,
    DETAILS,
    ERRORS,
    KINDS,
    MAGIC,
    UNKNOWN,
    Contents,
    Failure,
    Schema,
)
from lrpfunc.pictures.hdf5.writing import Columns, Writer, is_begun, made, write
