"""Image classifiers by name: the module, what turns a picture into its input and back, and what its classes are called.

    load("digits"), load("efficientnet_lite0"), load("resnet50"), load("timm:resnet50.a1_in1k"), load("my.module:model")

Read on in this order: classifier, parameters, shipped, torchvision_models, timm_models, factories, categories, loading.
"""

from lrpfunc.pictures.classifiers.classifier import IMAGENET_MEAN, IMAGENET_SIZE, IMAGENET_STD, Classifier, Standard
from lrpfunc.pictures.classifiers.factories import named_object
from lrpfunc.pictures.classifiers.loading import load, names
from lrpfunc.pictures.classifiers.parameters import DEFAULT, RANDOM
from lrpfunc.pictures.classifiers.shipped import DIGITS, LITE, has_photos
