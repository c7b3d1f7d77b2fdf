"""The demos: photos where the extra is installed, else handwritten digits; pictures, and figures on their worth.

Read on in this order: flipping, photographs, digits, photos, choice.
"""

from lrpfunc.pictures.demo.choice import show
from lrpfunc.pictures.demo.flipping import area_under, patch_flipping, pixel_flipping
