"""Models that do not fit a device: where layers are computed, and where and how their parameters are kept."""

from lrpfunc.placement.devices import META, offload, place, without_numbers
from lrpfunc.placement.packing import quantize, unpack
