"""Files of weights, as training scripts leave them, and models filled with what fits them.

Read on in this order: foreign, pickles, reading, sets, filling.
"""

from lrpfunc.pictures.weights.filling import fill, put
from lrpfunc.pictures.weights.pickles import first_sentence, unpickled
from lrpfunc.pictures.weights.reading import Checkpoint, is_file, read_state
from lrpfunc.pictures.weights.sets import Choice, choose
