"""A small convolutional network for scikit-learn's handwritten digits, with its checkpoint and some digits to explain.

    model, images, labels = digits.load()

`examples/train_digits.py` trains it and writes both files in `data`; the package ships them, so nothing here needs
scikit-learn. Read on in this order: network, samples.
"""

from lrpfunc.digits.network import CHECKPOINT, DigitsNet, single_thread
from lrpfunc.digits.samples import SAMPLES, Digits, load, scaled, split, write_images
