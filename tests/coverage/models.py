"""Which models are examined: those of other tests, and more, of torchvision, timm and Hugging Face."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from importlib.util import find_spec
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from tests import eager_oracle, test_attention_models, test_models, transformer_zoo
from tests.coverage.measure import Model
from tests.coverage.pictures import PICTURES
from tests.coverage.signals import SIGNALS
from tests.coverage.specs import Spec, random
from tests.coverage.texts import TEXTS
from tests.helpers import randomize
from tests.test_eager_oracle import FAMILIES
from tests.test_eager_oracle import inputs as inputs_of_family

SEGMENTATION = torchvision.models.list_models(module=torchvision.models.segmentation)
VIDEO = {
    **dict.fromkeys(("mc3_18", "r2plus1d_18", "r3d_18"), (4, 32)),
    "s3d": (16, 224),
    "mvit_v1_b": (16, 224),
    "mvit_v2_s": (16, 224),
    "swin3d_t": (4, 64),
}  # frames, and their size

TIMM = (
    "caformer_s18", "coat_tiny", "convformer_s18", "convit_tiny", "convmixer_768_32", "cspresnet50", "darknet53",
    "davit_tiny", "dpn68", "eca_botnext26ts_256", "edgenext_xx_small", "efficientformer_l1", "efficientformerv2_s0",
    "efficientvit_b0", "efficientvit_m0", "ese_vovnet19b_dw", "fasternet_t0", "fastvit_t8", "fbnetc_100",
    "focalnet_tiny_srf", "gcvit_xxtiny", "gernet_s", "ghostnetv2_100", "gmixer_12_224", "gmlp_ti16_224",
    "halonet26t", "hgnetv2_b0", "hiera_tiny_224", "inception_next_atto", "inception_v4", "lambda_resnet26t",
    "lcnet_050", "mambaout_femto", "mixnet_s", "mobileone_s0", "mobilevit_xxs", "mobilevitv2_050",
    "mobilenetv4_hybrid_medium", "nest_tiny", "nextvit_small", "nf_regnet_b0", "pit_ti_224", "poolformer_s12",
    "rdnet_tiny", "repghostnet_050", "repvgg_a0", "repvit_m0_9", "res2net50_26w_4s", "resmlp_12_224", "resnest14d",
    "rexnet_100", "selecsls42", "sequencer2d_s", "shvit_s1", "skresnet18", "starnet_s1", "swiftformer_xs",
    "swin_tiny_patch4_window7_224", "tinynet_e", "tiny_vit_5m_224", "tnt_s_patch16_224", "tresnet_m",
    "twins_svt_small", "visformer_tiny", "vitamin_small_224", "volo_d1_224", "xception41",
)  # fmt: skip
TIMM_OF_TESTS = [name.removeprefix("timm/") for name in (*test_models.TIMM, *test_attention_models.TIMM)]
SMALLEST = 96  # pixels, which all take that have no size of their own
# As deep as is needed to have all that the model is made of.
SHALLOW: dict[str, dict[str, Any]] = {
    "beit_base_patch16_224": {"depth": 2},
    "deit3_small_patch16_224": {"depth": 2},
    "eva02_tiny_patch14_224": {"depth": 2},
    "xcit_nano_12_p16_224": {"depth": 2},
}


class Numbers(nn.Module):
    """A model that is called by names and gives a row of numbers for each sample: of the last token, if of several.

    `fixed`: integers that are no inputs. None: the model itself is called by positions.
    """

    def __init__(self, model: nn.Module, fixed: Mapping[str, list] | None = None):
        super().__init__()
        self.model, self.fixed = model, fixed

    def forward(self, **x):
        with eager_oracle.InDouble():
            if self.fixed is None:
                return _numbers(self.model(*x.values()))
            return _numbers(self.model(**x, **{name: torch.tensor(value) for name, value in self.fixed.items()}))


MAIN = ("logits", "logits_per_image", "out", "prediction_outputs", "prediction_logits", "last_hidden_state")


def _numbers(output) -> Tensor:
    if isinstance(output, Mapping):
        output = next((output[key] for key in MAIN if output.get(key) is not None), list(output.values()))
    while isinstance(output, (list, tuple)):
        output = next(v for v in output if not isinstance(v, Tensor) or v.is_floating_point())
    return output[:, -1] if output.dim() == 3 else output.flatten(1)


def models() -> list[Model]:
    """All of them, library by library. What is not installed is found out when it is made."""
    return [*_of_torchvision(), *_of_timm(), *_of_hugging_face()]


LIBRARIES = ("torchvision", "timm", "transformers")


def missing() -> list[str]:
    """The libraries that are not installed."""
    return [name for name in LIBRARIES if find_spec(name) is None]


def selected(words: Sequence[str]) -> list[Model]:
    """Those of a library, or with a name or pattern; all without words. Errors: `ValueError` for a word without any."""
    known = models()
    chosen: dict[str, Model] = {}
    for word in words or ["*"]:
        found = [m for m in known if word == m.library or fnmatch(m.name, word) or fnmatch(m.title, word)]
        if not found:
            raise ValueError(f"no model, library or pattern {word!r}: --list has all names")
        chosen.update({model.title: model for model in found})
    return list(chosen.values())


# -- torchvision ------------------------------------------------------------------------------------------------------


def _of_torchvision() -> Iterator[Model]:
    for name in test_models.TORCHVISION:
        yield Model("torchvision", name, functools.partial(_classifier, name))
    for name in SEGMENTATION:
        yield Model("torchvision", name, functools.partial(_segmenter, name))
    for name in VIDEO:
        yield Model("torchvision", name, functools.partial(_of_video, name))


def _classifier(name: str):
    size = test_models.SIZES.get(name, 56 if name == "vit_h_14" else 64)
    return _pictured(test_models.build(name, size), (3, size, size))


def _segmenter(name: str):
    return _pictured(randomize(torchvision.models.get_model(name, weights=None, weights_backbone=None)), (3, 64, 64))


def _of_video(name: str):
    frames, size = VIDEO[name]
    return _pictured(randomize(torchvision.models.get_model(name, weights=None)), (3, frames, size, size))


def _pictured(model: nn.Module, shape: tuple[int, ...]):
    return Numbers(model.double()), {"x": random(1, *shape)}


# -- timm -------------------------------------------------------------------------------------------------------------


def _of_timm() -> Iterator[Model]:
    for name in (*TIMM_OF_TESTS, *TIMM):
        yield Model("timm", name, functools.partial(_timm, name))


def _timm(name: str):
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name, **SHALLOW.get(name, {}))
    given = model.default_cfg
    free = (3, SMALLEST, SMALLEST)
    size = given["input_size"] if given.get("fixed_input_size") else given.get("min_input_size") or free
    return _pictured(randomize(model), size)


# -- Hugging Face -----------------------------------------------------------------------------------------------------


def _of_hugging_face() -> Iterator[Model]:
    for name, spec in (FAMILIES | TEXTS | PICTURES | SIGNALS).items():
        yield Model("transformers", name, functools.partial(_transformer, Spec(*spec)))


def _transformer(spec: Spec):
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, spec.config)(**spec.keywords)
    model = getattr(transformers, spec.model)._from_config(config)
    transformer_zoo.fill(model, bias=True)
    numbers = Numbers(model.double().eval(), spec.fixed)
    x = inputs_of_family(numbers, batch=1) if spec.inputs is None else spec.inputs
    return numbers, {name: v.double() if v.is_floating_point() else v for name, v in x.items()}
