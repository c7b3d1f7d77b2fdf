"""Image files of any kind as RGB pictures, the folders that they lie in, and the reason why one is none.

Read on in this order: names, kinds, gray, dicom, nifti, reading, listing.
"""

from lrpfunc.pictures.images.gray import Window
from lrpfunc.pictures.images.kinds import ENDINGS, LONGEST, PAGED, ending, is_picture, may_be_any
from lrpfunc.pictures.images.listing import Entry, Listing, listing
from lrpfunc.pictures.images.names import numbered, page_of, printable, split_page, stem
from lrpfunc.pictures.images.reading import MAX_PIXELS, Reading, Seen, expanded, look, look_at, pages, read
