"""Files examined in this process, for tests of other things that would start hundreds."""

import h5py

from lrpfunc.errors import FileError
from lrpfunc.pictures import hdf5
from lrpfunc.pictures.hdf5 import examination, reading, structure


def examined_here(path, file):
    """What the other process would find, without one."""
    try:
        with h5py.File(structure.Source(file.fileno(), "rb", closefd=False), "r") as opened:
            return examination.contents(list(structure.described(opened, file.seek(0, 2))))
    except (OSError, structure.RefusedError) as error:
        raise FileError(str(error)) from error


def examine_here():
    """From now on, in this process."""
    hdf5.examined = reading.examined = examined_here
