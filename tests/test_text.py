"""Explanations of text: targets by hand, words of every tokenizer, and what is drawn of them, and where."""

import io
import math
import re
import subprocess
import sys
from dataclasses import dataclass
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import colormaps, font_manager, pyplot
from PIL import Image
from rich.cells import cell_len
from rich.color import Color, ColorSystem
from rich.console import Console
from torch import nn

import lrpfunc
from lrpfunc import heatmaps, text
from lrpfunc.errors import InputError, TargetError
from lrpfunc.text import files, fonts, images, rows

EPSILON = lrpfunc.rules.epsilon(0.0)
unhurried = settings(deadline=None)  # on a busy machine anything may take long

# -- targets ----------------------------------------------------------------------------------------------------------

# Two samples of three tokens from a vocabulary of four.
LOGITS = torch.tensor([
    [[1.0, 2.0, 3.0, 4.0], [8.0, 7.0, 6.0, 5.0], [-1.0, -4.0, -2.0, -3.0]],
    [[0.5, 0.0, 0.0, 9.0], [0.1, 0.2, 0.3, 0.1], [5.0, 1.0, 1.0, 6.0]],
])  # fmt: skip


def sparse(*entries):
    """Zeros but for (sample, position, token, value)."""
    expected = torch.zeros_like(LOGITS)
    for *position, value in entries:
        expected[tuple(position)] = value
    return expected


@pytest.mark.parametrize(
    ("token", "position", "entries"),
    [
        (2, -1, [(0, 2, 2, -2.0), (1, 2, 2, 1.0)]),
        (2, 0, [(0, 0, 2, 3.0)]),  # the other logit is zero
        (1, -2, [(0, 1, 1, 7.0), (1, 1, 1, 0.2)]),
        ([0, 3], 2, [(0, 2, 0, -1.0), (1, 2, 3, 6.0)]),
        ((0, 3), torch.tensor(0), [(0, 0, 0, 1.0), (1, 0, 3, 9.0)]),
        (torch.tensor([3, 0]), [0, -1], [(0, 0, 3, 4.0), (1, 2, 0, 5.0)]),
        (torch.tensor(3), torch.tensor([1, -3]), [(0, 1, 3, 5.0), (1, 0, 3, 9.0)]),
        (None, -1, [(0, 2, 0, -1.0), (1, 2, 3, 6.0)]),
        (None, [0, -2], [(0, 0, 3, 4.0), (1, 1, 2, 0.3)]),
        (np.int64(1), np.int64(1), [(0, 1, 1, 7.0), (1, 1, 1, 0.2)]),
    ],
)
def test_a_token_has_its_logit_at_its_position(token, position, entries):
    assert torch.equal(text.token(token, position)(LOGITS), sparse(*entries))


@pytest.mark.parametrize(
    ("token", "other", "position", "entries"),
    [
        (2, 0, -1, [(0, 2, 2, -2.0), (0, 2, 0, 1.0), (1, 2, 2, 1.0), (1, 2, 0, -5.0)]),
        (None, [1, 0], [0, 2], [(0, 0, 3, 4.0), (0, 0, 1, -2.0), (1, 2, 3, 6.0), (1, 2, 0, -5.0)]),
        ([1, 2], [1, 0], -1, [(1, 2, 2, 1.0), (1, 2, 0, -5.0)]),
    ],
)
def test_a_contrast_is_one_logit_less_another(token, other, position, entries):
    assert torch.equal(text.contrast(token, other, position)(LOGITS), sparse(*entries))


def test_logits_of_tokens_that_a_model_forbids_do_not_become_nan():
    logits = LOGITS.clone()
    logits[:, :, 1] = -math.inf
    assert torch.equal(text.token(2)(logits), sparse((0, 2, 2, -2.0), (1, 2, 2, 1.0)))


@dataclass
class Output:
    logits: torch.Tensor
    loss: torch.Tensor | None = None
    encoded: torch.Tensor | None = None
    ids: torch.Tensor | None = None


class Named(NamedTuple):
    encoded: torch.Tensor
    logits: torch.Tensor


class Language(nn.Module):
    """Embeddings to logits (batch, length, 5), in the pytree that `wrap` makes of them and the hidden state."""

    def __init__(self, wrap=lambda logits, hidden: logits):
        super().__init__()
        torch.manual_seed(0)
        self.mix, self.head, self.wrap = nn.Linear(3, 3, bias=False), nn.Linear(3, 5, bias=False), wrap

    def forward(self, x):
        hidden = x.cumsum(1) + self.mix(x)
        return self.wrap(self.head(hidden), hidden)


WRAPPED = {
    "dataclass": lambda logits, hidden: Output(logits, encoded=hidden, ids=hidden.argmax(-1)),
    "dict": lambda logits, hidden: {"encoded": [hidden], "logits": logits},
    "named tuple": lambda logits, hidden: Named(hidden, logits),
}


@pytest.fixture(scope="module")
def embedded():
    torch.manual_seed(1)
    return torch.randn(2, 4, 3)


def direct(x, target):
    """The relevance by LRP-0, which is input times gradient, of a network without its pytrees."""
    x = x.clone().requires_grad_()
    logits = Language()(x)
    (gradient,) = torch.autograd.grad(logits, x, target(logits.detach()) / logits.detach())
    return x.detach() * gradient


@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.parametrize("target", [text.token([1, 4], [0, -2]), text.contrast(None, 2, 2)], ids=["token", "contrast"])
def test_outputs_with_a_field_of_logits_are_explained_by_these_alone(wrapped, target, embedded):
    fmodel, params = lrpfunc.functionalize(Language(WRAPPED[wrapped]), embedded)
    relevance = lrpfunc.attribute(fmodel, params, embedded, EPSILON, target)
    expected = direct(embedded, target)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(relevance, expected, rtol=1e-4, atol=1e-5)


def test_the_other_tensors_of_an_output_get_zeros_in_its_pytree(embedded):
    fmodel, params = lrpfunc.functionalize(Language(WRAPPED["dataclass"]), embedded)
    output = fmodel(params, embedded)
    relevance = text.token(3, 1)(output)
    assert isinstance(relevance, Output)
    assert relevance.loss is None
    assert torch.equal(relevance.logits, text.token(3, 1)(output.logits))
    assert torch.equal(relevance.encoded, torch.zeros(2, 4, 3))
    assert torch.equal(relevance.ids, torch.zeros(2, 4, dtype=torch.long))


def test_the_outputs_of_transformers_are_explained(embedded):
    outputs = pytest.importorskip("transformers.modeling_outputs")
    wrap = lambda logits, hidden: outputs.CausalLMOutput(logits=logits, hidden_states=(hidden, hidden * 2))  # noqa: E731
    fmodel, params = lrpfunc.functionalize(Language(wrap), embedded)
    relevance = lrpfunc.attribute(fmodel, params, embedded, EPSILON, text.token(1))
    torch.testing.assert_close(relevance, direct(embedded, text.token(1)), rtol=1e-4, atol=1e-5)


def test_targets_map_over_tokens_and_positions_whose_values_are_not_known(embedded):
    fmodel, params = lrpfunc.functionalize(Language(), embedded)

    def explain(token, position):
        return lrpfunc.attribute(fmodel, params, embedded, EPSILON, text.contrast(token, 0, position))

    tokens, positions = torch.tensor([[1, 2], [3, 4], [2, 1]]), torch.tensor([0, -1, -2])
    mapped = torch.func.vmap(explain)(tokens, positions)
    for token, position, relevance in zip(tokens, positions, mapped, strict=True):
        torch.testing.assert_close(relevance, explain(token, position))
        assert relevance.any()


def test_unknown_values_out_of_range_give_zeros():
    mapped = torch.func.vmap(lambda t, p: text.token(t, p)(LOGITS), in_dims=(0, 0))
    tokens, positions = torch.tensor([-1, 4, 1, 1]), torch.tensor([0, 0, 3, -4])
    assert torch.equal(mapped(tokens, positions), torch.zeros(4, *LOGITS.shape))
    best = torch.func.vmap(lambda p: text.token(None, p)(LOGITS))(torch.tensor([3, -4, -1]))
    assert torch.equal(best[:2], torch.zeros(2, *LOGITS.shape))
    assert torch.equal(best[2], text.token(None)(LOGITS))


def test_targets_compile(embedded):
    def explained(logits, token, position):
        return text.contrast(None, token, position)(logits)

    compiled = torch.compile(explained, fullgraph=True, backend="aot_eager")
    for token, position in (
        (torch.tensor([1, 0]), torch.tensor([0, -1])),
        (torch.tensor([3, 2]), torch.tensor([1, 2])),
    ):
        assert torch.equal(compiled(LOGITS, token, position), explained(LOGITS, token, position))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (text.token(0, 12), r"position 12 is outside the sequence of 3 tokens, 0 to 2\."),
        (text.token(0, -4), r"position -4 is outside the sequence of 3 tokens, 0 to 2\."),
        (text.token(0, [0, 3]), r"position 3 is outside the sequence of 3 tokens, 0 to 2\."),
        (text.token(None, torch.tensor([0, 3])), r"position 3 is outside the sequence of 3 tokens, 0 to 2\."),
        (text.token(4), r"token 4 is outside the vocabulary of 4 tokens, 0 to 3\."),
        (text.token([0, -100]), r"token -100 is outside the vocabulary of 4 tokens, 0 to 3\."),
        (text.contrast(0, torch.tensor([1, -1])), r"token -1 is outside the vocabulary of 4 tokens, 0 to 3\."),
        (text.token([0, 1, 2]), r"a list as token must have one per sample, 2, but has 3\."),
        (text.token(0, [0]), r"a list as position must have one per sample, 2, but has 1\."),
        (text.token(torch.tensor([0, 1, 2])), r"a tensor as token must have shape \(2,\), but has \(3,\)\."),
        (text.token(0, torch.zeros(2, 1).long()), r"a tensor as position must have shape \(2,\), but has \(2, 1\)\."),
        (text.token(0, torch.zeros(2)), r"a tensor as position must hold integers, but is torch\.float32\."),
        (text.token("cat"), r"token must be an int, or a list or tensor with one per sample, but is 'cat'\."),
        (text.token([0, 1.0]), r"token must be an int, or a list or tensor with one per sample, but is \[0, 1\.0\]\."),
        (text.token(0, None), r"position must be an int, or a list or tensor with one per sample, but is None\."),
        (text.contrast(0, None), r"token must be an int, or a list or tensor with one per sample, but is None\."),
        (text.token(True), r"token must be an int, or a list or tensor with one per sample, but is True\."),
    ],
)
def test_bad_tokens_and_positions_are_refused(target, message):
    with pytest.raises(TargetError, match=f"^{message}$"):
        target(LOGITS)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (LOGITS[0], r"of shape \(batch, length, vocabulary\), but they are \(3, 4\) in torch\.float32\. The class of a "
                    r"classifier is given as it is: target=1\.$"),
        (LOGITS[None], r"but they are \(1, 2, 3, 4\) in torch\.float32\.$"),
        (LOGITS.long(), r"but they are \(2, 3, 4\) in torch\.int64\.$"),
        ({"scores": LOGITS}, r"the output, a dict, has no tensor in a field `logits`: give a function as target"),
        ((LOGITS,), r"the output, a tuple, has no tensor in a field `logits`"),
        (Output(None), r"the output, a Output, has no tensor in a field `logits`"),
        (SimpleNamespace(logits=LOGITS), r"SimpleNamespace is a structure that no program has returned yet"),
    ],
)  # fmt: skip
def test_outputs_without_logits_of_tokens_are_refused(output, message):
    with pytest.raises(TargetError, match=message):
        text.token(0)(output)


def test_a_token_against_itself_is_refused():
    with pytest.raises(TargetError, match=r"^token 3 is contrasted with itself, which leaves nothing: give another"):
        text.contrast(3, 3)


@pytest.mark.parametrize("target", [text.token(None), text.contrast(None, 1)])
def test_no_logit_is_the_largest_where_one_is_nan(target):
    with pytest.raises(TargetError, match=r"^the logits are nan, so none is the largest: name the token"):
        target(torch.full((1, 2, 3), math.nan))


# -- sums -------------------------------------------------------------------------------------------------------------


def test_relevance_per_token_is_summed_over_the_width():
    relevance = torch.tensor([[[1.0, 2.0, -5.0], [0.5, 0.0, 0.25]]])
    assert text.per_token(relevance).tolist() == [[-2.0, 0.75]]
    summed = relevance.sum(-1)
    assert text.per_token(summed) is summed


@pytest.mark.parametrize("shape", [(3,), (1, 2, 3, 4)])
def test_relevance_per_token_of_another_rank_is_an_error(shape):
    with pytest.raises(InputError, match=rf"\(batch, length, width\).* but has shape {re.escape(str(shape))}\."):
        text.per_token(torch.zeros(shape))


# -- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        # byte-level BPE
        (["The", "Ġcat", ".", "ĊĊ", "ĠĠ", "ĉ"], ["The", " cat", ".", "⏎⏎", "  ", "\t"]),
        (["Ġcaf", "Ã©", "<|endoftext|>"], [" caf", "é", "<|endoftext|>"]),
        (["Ġ", "æ¼", "¢"], [" ", "漢", ""]),  # the bytes of one letter in two tokens
        (["ðŁ", "ĺ", "Ģ", "Ġa", "æ¼", "¢b"], ["😀", "", "", " a", "漢", "b"]),
        (["Ġæ¼", "a", "¢", "Ġæ"], ["Ġæ¼", "a", "¢", "Ġæ"]),  # no letters
        (["ðŁĳ©", "âĢį", "ðŁĳ§"], ["👩", "\u200d", "👧"]),  # one joined letter
        (["##", "ĠTitle"], ["##", " Title"]),  # a heading, no continued word
        (["un", "done"], ["un", "done"]),
        (["<begin▁of▁sentence>", "A", "Ġb"], ["<begin▁of▁sentence>", "A", " b"]),
        # SentencePiece
        (["<s>", "▁The", "▁cat", "s", "▁▁", "<0x0A>", "</s>"], ["<s>", " The", " cat", "s", "  ", "⏎", "</s>"]),
        (["▁Ã", "©"], [" Ã", "©"]),  # letters, and no bytes
        (["▁", "<0xE6>", "<0xBC>", "<0xA2>", "<0x41>", "b"], [" ", "漢", "", "", "A", "b"]),
        (["▁", "<0xE6>", "<0x41>", "▁b"], [" ", "<0xE6>", "A", " b"]),
        (["<0xE6>", "<0xBC>", "<0xA2>"], ["漢", "", ""]),
        # WordPiece
        (["[CLS]", "play", "##ing", "chess", "[SEP]", "[PAD]"], ["[CLS]", " play", "ing", " chess", "[SEP]", "[PAD]"]),
        (["the", "emb", "##ed", "[unused1]"], ["the", " emb", "ed", "[unused1]"]),
        (["[CLS]", "#", "###"], ["[CLS]", " #", "#"]),
        (["[CLS]", "Ã©"], ["[CLS]", " Ã©"]),
        # no tokenizer that we know
        (["naïve", "a b"], ["naïve", "a b"]),
        ([], []),
    ],
)  # fmt: skip
def test_words_are_what_the_pieces_of_a_tokenizer_mean(tokens, expected):
    assert text.words(tokens) == expected


def test_words_of_byte_level_pieces_are_the_text_that_they_were_made_of():
    pretokenizer = pytest.importorskip("tokenizers").pre_tokenizers.ByteLevel(add_prefix_space=False)

    @unhurried
    @given(st.text(st.characters(exclude_categories=["Cs"])))
    def check(written):
        pieces = [piece for piece, _ in pretokenizer.pre_tokenize_str(written)]
        # What looks like the signs of another tokenizer is not told from them.
        if "[CLS]" not in pieces and not any(re.match("##[^#]", piece) for piece in pieces):
            assert "".join(text.words(pieces)) == written.replace("\n", "⏎")

    check()


@unhurried
@given(st.lists(st.text(max_size=5), max_size=5))
def test_words_are_as_many_as_tokens_whatever_these_are(tokens):
    assert len(text.words(tokens)) == len(tokens)


@pytest.mark.parametrize("function", [text.words, lambda tokens: text.html(tokens, [0.0, 1.0])])
def test_tokens_that_are_no_strings_are_an_error(function):
    message = r"tokens must be strings, as `tokenizer\.convert_ids_to_tokens` gives them, but token 1 is 7\."
    with pytest.raises(InputError, match=message):
        function(["a", 7])
    with pytest.raises(InputError, match=r"tokens must be a sequence of strings, but are one: 'cat'\."):
        function("cat")


# -- what is drawn ----------------------------------------------------------------------------------------------------

WORDS = ["The", " cat", " sat"]
VALUES = [-2.0, 0.0, 1.0]
BLUE, WHITE, RED = "#0000ff", "#ffffff", "#ff0000"


def rendered(*arguments, **keywords):
    """The words, backgrounds and inks of `render`, and what stands between them."""
    drawn = text.render(*arguments, **keywords)
    spans = [(drawn.plain[s.start : s.end], s.style) for s in drawn.spans if getattr(s.style, "bgcolor", None)]
    return [(word, style.bgcolor.name, style.color.name) for word, style in spans]


class Page(HTMLParser):
    """What a browser finds: every tag, and the text and attributes of each token."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.tokens, self.text, self.inside = [], [], "", False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        if tag == "span" and "title" in attributes:
            self.inside = True
            self.tokens.append({"word": "", **attributes})

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "span"

    def handle_data(self, data):
        self.text += data
        if self.inside:
            self.tokens[-1]["word"] += data


def paged(*arguments, **keywords):
    """As `rendered`, from the page."""
    pattern = re.compile(r"background:(#\w{6});color:(#\w{6})")
    tokens = Page(text.html(*arguments, **keywords)).tokens
    return [(token["word"], *pattern.fullmatch(token["style"]).groups()) for token in tokens]


BOTH = pytest.mark.parametrize("drawn", [rendered, paged])


@BOTH
@pytest.mark.parametrize("form", [list, torch.tensor, np.array, lambda v: torch.tensor(v, dtype=torch.bfloat16)])
def test_the_colours_run_from_the_largest_magnitude_below_zero_to_that_above(drawn, form):
    # Of -2 .. 2, the value 1 lies three quarters up: bwr is (1, 0.5, 0.5) there, step 192 of 256.
    half = "#" + bytes(colormaps["bwr"].resampled(257)(192, bytes=True)[:3]).hex()
    expected = [("The", BLUE, "#ffffff"), (" cat", WHITE, "#000000"), (" sat", half, "#000000")]
    assert drawn(WORDS, form(VALUES), colors="bwr") == expected


def test_relevance_with_a_gradient_is_drawn_like_any():
    assert rendered(WORDS, torch.tensor(VALUES, requires_grad=True)) == rendered(WORDS, VALUES)


@BOTH
def test_a_limit_is_the_end_of_the_colours_and_what_lies_beyond_has_theirs(drawn):
    colors = [color for _, color, _ in drawn(["a", "b", "c", "d"], [-9.0, -1.0, 0.0, 1.0], colors="bwr", limit=1)]
    assert colors == [BLUE, BLUE, WHITE, RED]


@BOTH
def test_relevance_that_is_zero_everywhere_has_the_colour_of_zero(drawn):
    assert [color for _, color, _ in drawn(WORDS, [0.0, -0.0, 0.0], colors="bwr")] == [WHITE] * 3


@BOTH
def test_a_mask_leaves_tokens_out_and_what_they_hold_does_not_count(drawn):
    mask = torch.tensor([1, 0, 1, 0])
    got = drawn(["a", "b", "c", "[PAD]"], [1.0, 100.0, -1.0, math.nan], mask, colors="bwr")
    assert [(word, color) for word, color, _ in got] == [("a", RED), ("c", BLUE)]


@BOTH
def test_several_sequences_share_a_scale_unless_each_is_to_have_its_own(drawn):
    tokens, relevance = [["a", "b"], ["c", "d"]], torch.tensor([[1.0, -1.0], [4.0, 0.0]])
    quarter, three_eighths = ("#" + bytes(colormaps["bwr"].resampled(257)(i, bytes=True)[:3]).hex() for i in (96, 160))
    assert [color for _, color, _ in drawn(tokens, relevance, colors="bwr")] == [three_eighths, quarter, RED, WHITE]
    each = drawn(tokens, relevance, colors="bwr", scale="each")
    assert [(word, color) for word, color, _ in each] == [("a", RED), ("b", BLUE), ("c", RED), ("d", WHITE)]


def test_several_sequences_may_differ_in_length_and_have_masks():
    tokens = [("a",), ("b", "c")]
    got = rendered(tokens, [torch.tensor([1.0]), [2.0, 9.0]], [[True], [True, False]], colors="bwr")
    assert [(word, color) for word, color, _ in got][1] == ("b", RED)
    assert len(got) == 2


def contrast_of(background, ink):
    """The contrast ratio that the Web Content Accessibility Guidelines define, 21 for black on white."""

    def luminance(color):
        channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted([luminance(background), luminance(ink)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colors", ["seismic", "bwr", "coldnhot", "coolio", "gray", "viridis", "zennit:seismic"])
def test_words_are_readable_on_every_colour(colors):
    levels = np.linspace(-1, 1, 257)
    drawn = rendered(["word"] * 257, levels, colors=colors)
    assert len({background for _, background, _ in drawn}) > 100
    for _, background, ink in drawn:
        assert contrast_of(background, ink) >= 4.5  # what the guidelines ask for
        # And where a terminal has only 16 colours, word and background never become one.
        few = [Color.parse(color).downgrade(ColorSystem.STANDARD).number for color in (background, ink)]
        assert few[0] != few[1]


HOSTILE = [
    "\x1b[31mred",
    "\x9b2J",
    "a\rb",
    "c\u202ed",
    "\x07",
    "",
    "e\nf",
    "g\u200dh\u200ci",
    "\ud800",
    "\xa0j",
    "k\r\nl",
    "\u200d",
]
TAMED = [
    r"\x1b[31mred",
    r"\x9b2J",
    r"a\rb",
    r"c\u202ed",
    r"\x07",
    "∅",
    "e⏎f",
    "g\u200dh\u200ci",
    r"\ud800",
    "\xa0j",
    "k⏎l",
    "∅",
]


@BOTH
def test_control_characters_are_shown_and_do_nothing(drawn):
    assert [word for word, _, _ in drawn(HOSTILE, range(len(HOSTILE)))] == TAMED


@unhurried
@given(st.lists(st.text(max_size=4), min_size=1, max_size=4), st.text(max_size=4))
def test_nothing_but_colours_reaches_a_terminal(tokens, title):
    for color_system in ("truecolor", None):
        console = Console(file=io.StringIO(), force_terminal=True, color_system=color_system, width=80)
        text.show([tokens], [[1.0] * len(tokens)], titles=[title], console=console)
        printed = re.sub(r"\x1b\[[\d;]*m", "", console.file.getvalue())
        controls = {chr(i) for i in (*range(32), *range(127, 160))} | set("\u202a\u202b\u202d\u202e\u2066\u2067\u2068")
        assert not controls & set(printed.replace("\n", ""))


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [text.render, text.show, text.html, text.image])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (WORDS, [1.0, 2.0]),
            r"relevance must have one number per token, shape \(3,\), but has \(2,\)\. `text\.per_tok",
        ),
        ((WORDS, torch.zeros(1, 3)), r"relevance must have one number per token, shape \(3,\), but has \(1, 3\)\."),
        ((WORDS, VALUES, [1, 0]), r"mask must have one number per token, shape \(3,\), but has \(2,\)\."),
        ((WORDS, VALUES, [0, 0, 0]), r"there are no tokens to show: the mask leaves all of them out\."),
        (([], []), r"there are no tokens to show\."),
        ((WORDS, [0.0, math.nan, 1.0]), r"relevance must be finite, but is nan at token 1 \(' cat'\)\. A larger stab"),
        ((WORDS, [math.nan, 1.0, -math.inf]), r"but is nan at token 0 \('The'\) and not finite at 1 more\."),
        ((WORDS, [1.0, -math.inf, 0.0]), r"but is -inf at token 1 \(' cat'\)\."),
        ((WORDS, None), r"relevance must be numbers, but is None\."),
        ((WORDS, "abc"), r"relevance must be numbers, but is 'abc'\."),
        ((WORDS, ["a", "b", "c"]), r"relevance must be numbers, but is \['a', 'b', 'c'\]\."),
        ((WORDS, torch.ones(3, dtype=torch.complex64)), r"relevance must be real numbers, but is complex\."),
        ((WORDS, VALUES, "abc"), r"mask must be numbers, but is 'abc'\."),
        (([WORDS, WORDS], [VALUES]), r"2 sequences need one relevance each, but got 1\."),
        (([WORDS], [VALUES], [[1, 1, 1]] * 2), r"1 sequences need one mask each, but got 2\."),
        (([WORDS, "cat"], [VALUES, VALUES]), r"tokens must be a sequence of strings, but are one: 'cat'\."),
        ((WORDS, VALUES, None, ["a", "b"]), r"titles must be a list with one per sequence, 1, but are \['a', 'b'\]\."),
        ((WORDS, VALUES, None, "a"), r"titles must be a list with one per sequence, 1, but are 'a'\."),
    ],
)
def test_what_does_not_fit_is_refused(function, arguments, message):
    with pytest.raises(InputError, match=message):
        function(*arguments)


@pytest.mark.parametrize("function", [text.render, text.show, text.html, text.image])
@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"limit": 0}, "limit must be a finite number above zero, but is 0"),
        ({"limit": -1.0}, "limit must be a finite number above zero, but is -1.0"),
        ({"limit": math.nan}, "limit must be a finite number above zero, but is nan"),
        ({"limit": math.inf}, "limit must be a finite number above zero, but is inf"),
        ({"scale": "joint"}, "scale must be 'all' or 'each', but is 'joint'"),
        ({"scale": "each", "limit": 1.0}, "limit sets one scale for all, and scale='each' asks for several"),
        ({"colors": "seismik"}, "no colour map is called 'seismik'"),
    ],
)
def test_bad_scales_and_colours_are_refused(function, keywords, message):
    with pytest.raises(InputError, match=message):
        function(WORDS, VALUES, **keywords)


# -- the terminal -----------------------------------------------------------------------------------------------------


def shown(*arguments, color_system=None, no_color=None, **keywords):
    console = Console(file=io.StringIO(), force_terminal=True, color_system=color_system, no_color=no_color, width=80)
    text.show(*arguments, console=console, **keywords)
    return console.file.getvalue()


def test_a_text_is_the_words_with_breaks_where_lines_broke_and_titles_above():
    assert text.render(["a", " b⏎", "c ", "⏎"], [1, 2, 3, 4]).plain == "a b⏎\nc ⏎"
    assert text.render(["a", " "], [1, 2]).plain == "a "
    assert text.render([["a"], ["b"]], [[1], [2]], titles=["one", ""]).plain == "one\na\n\nb"
    each = text.render([["a"], ["b"]], [[1], [-2]], titles=["one", ""], scale="each")
    assert each.plain == "one (max +1)\na\n\n(max +2)\nb"


def test_a_terminal_with_colours_shows_words_on_them_and_a_legend():
    printed = shown(WORDS, VALUES, color_system="truecolor", colors="bwr")
    assert "\x1b[38;2;255;255;255;48;2;0;0;255mThe\x1b[0m" in printed
    assert "\x1b[38;2;0;0;0;48;2;255;255;255m cat\x1b[0m" in printed
    legend = printed.splitlines()[-1]
    assert legend.startswith("relevance -2 \x1b[48;2;0;0;255m \x1b[0m")
    assert legend.endswith("\x1b[48;2;255;0;0m \x1b[0m +2")
    each = shown([["a"], ["b"]], [[1], [-2]], color_system="truecolor", scale="each")
    assert re.search(r"relevance -max .* \+max$", each.splitlines()[-1])


TABLE = """\
The   -2  ----------
 cat   0
 sat  +1  +++++
"""


def test_without_colours_it_is_a_table_of_numbers_and_signs():
    assert shown(WORDS, VALUES) == TABLE
    assert shown(WORDS, VALUES, color_system="truecolor", no_color=True) == TABLE


def test_no_color_and_a_pipe_give_the_table(monkeypatch, capsys):
    text.show(WORDS, VALUES)
    assert capsys.readouterr().out == TABLE
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    text.show(WORDS, VALUES)
    assert capsys.readouterr().out == TABLE
    monkeypatch.delenv("NO_COLOR")
    text.show(WORDS, VALUES)
    assert "\x1b[38;5;" in capsys.readouterr().out


def test_a_table_has_titles_and_aligns_wide_letters():
    lines = shown([["漢字", "a"], ["b"]], [[0.001, -123456], [1]], titles=["one", "two"], limit=200000).splitlines()
    assert lines[0] == "one"
    assert lines[3:5] == ["", "two"]
    assert [lines[1].split(), lines[5].split()] == [["漢字", "+0.001"], ["b", "+1"]]
    assert lines[2].split() == ["a", "-1.23e+05", "------"]
    assert cell_len(lines[1]) == cell_len(lines[2]) - len("  ------") == cell_len(lines[5])


def test_long_words_are_not_cut_in_a_table():
    assert "x" * 300 in shown(["x" * 300], [1.0])


# -- pages ------------------------------------------------------------------------------------------------------------


def test_a_page_has_the_number_of_each_token_and_the_ends_of_the_colours():
    page = Page(text.html(WORDS, [-1234.5678, 0.0, 1e-7], title="Why?", titles=["first"]))
    assert [token["title"] for token in page.tokens] == ["-1235", "0", "+1e-07"]
    assert [token["word"] for token in page.tokens] == WORDS
    assert page.tags.count("title") == page.tags.count("h1") == 1
    assert page.text.count("Why?") == 2
    assert "first" in page.text
    assert "-1.23e+03" in page.text
    assert "+1.23e+03" in page.text


def test_a_page_says_the_end_of_each_scale_where_they_differ():
    page = Page(text.html([["a"], ["b"]], [[1.0], [-3.0]], titles=["one", ""], scale="each"))
    for words in ("one (max +1)", "(max +3)", "-max", "+max"):
        assert words in page.text
    assert "max" not in Page(text.html([["a"], ["b"]], [[1.0], [-3.0]], titles=["one", ""])).text.split("}")[-1]


def test_a_page_is_whole_and_loads_and_runs_nothing():
    page = text.html(WORDS, VALUES)
    assert page.startswith("<!DOCTYPE html>")
    assert page.rstrip().endswith("</html>")
    tags = Page(page).tags
    assert not {"script", "img", "iframe", "object", "form"} & set(tags)
    assert "http://" not in page
    assert "https://" not in page
    assert "default-src 'none'" in page
    assert "<title>Relevance</title>" in page


def test_a_fragment_is_a_part_of_a_page_with_the_same_picture():
    page, fragment = text.html(WORDS, VALUES), text.html(WORDS, VALUES, fragment=True)
    assert fragment.strip() in page
    assert not {"html", "head", "body", "meta"} & set(Page(fragment).tags)
    # Its style must not reach what else is on the page: each rule begins with the class of the fragment.
    style = re.search(r"<style>(.*?)</style>", fragment, re.DOTALL)[1]
    selectors = [part for rule in re.findall(r"([^{}]+)\{", style) for part in rule.split(",")]
    assert len(selectors) > 5
    assert all(selector.strip().startswith(".lrpfunc-text") for selector in selectors)


@unhurried
@given(st.lists(st.text("<>&\"'/=scriptonlad {}%-!", max_size=12), min_size=1, max_size=3), st.text("<>&\"'{}%/h1"))
def test_whatever_is_in_a_token_or_title_is_text(words, title):
    page = Page(text.html([words], [[1.0] * len(words)], title=title, titles=[title]))
    assert [token["word"] for token in page.tokens] == [word or "∅" for word in words]
    plain = Page(text.html([["a"] * len(words)], [[1.0] * len(words)], title="a", titles=["a"]))
    assert set(page.tags) <= set(plain.tags)
    assert page.text.count(title) >= 3 or not title


def test_lines_break_in_a_page_where_they_broke_in_the_text():
    assert Page(text.html(["a⏎", "b⏎"], [1.0, 2.0])).tags.count("br") == 1


# -- images -----------------------------------------------------------------------------------------------------------


def colors_in(picture):
    return {"#" + bytes(color).hex() for _, color in picture.getcolors(picture.width * picture.height)}


def test_an_image_has_the_colours_of_the_words_and_of_the_legend():
    picture = text.image(WORDS, [1.0, -0.5, 0.25], limit=1.0, colors="bwr")
    assert picture.mode == "RGB"
    assert picture.width == 800
    backgrounds = [color for _, color, _ in rendered(WORDS, [1.0, -0.5, 0.25], limit=1.0, colors="bwr")]
    counts = {"#" + bytes(color).hex(): n for n, color in picture.getcolors(10**6)}
    for word, background in zip(WORDS, backgrounds, strict=True):
        # At 18 pixels a letter takes some 10 x 28, of which most is background.
        assert counts[background] > 150 * len(word.strip())
    assert {BLUE, RED} <= colors_in(picture)  # blue is in the legend alone


@pytest.mark.parametrize("width", [270, 300, 330, 360])
def test_words_go_on_in_the_next_line_and_none_is_cut_off(width):
    picture, twice = (text.image(["word"] * n, [1.0] * n, colors="bwr", width=width) for n in (40, 80))
    assert twice.height > picture.height + 100
    pixels = np.asarray(twice)
    assert (pixels[:, -18:] == 255).all()  # the margin stays free
    assert (pixels[:, :18] == 255).all()
    red = (pixels == (255, 0, 0)).all(-1).sum()
    assert red == pytest.approx(2 * (np.asarray(picture) == (255, 0, 0)).all(-1).sum(), rel=0.05)


def test_a_word_longer_than_a_line_is_cut_into_lines():
    picture = text.image(["x" * 400], [1.0], colors="bwr", width=300)
    one = text.image(["x"], [1.0], colors="bwr", width=300)
    red, red_of_one = ((np.asarray(each) == (255, 0, 0)).all(-1).sum() for each in (picture, one))
    assert picture.height > one.height + 200
    assert red > 200 * red_of_one * 0.4
    assert (np.asarray(picture)[:, -18:] == 255).all()


def test_a_title_is_broken_between_words():
    lines = {
        title: text.image([["a"]], [[0.0]], titles=[title], width=300) for title in ("i" * 30 + " " + "m" * 14, "")
    }
    pixels = np.asarray(lines["i" * 30 + " " + "m" * 14])
    assert pixels.shape[0] == lines[""].height + 2 * 32
    first, second = pixels[18:50], pixels[50:82]
    ends = [np.flatnonzero((line < 200).any((0, 2))).max() for line in (first, second)]
    # Thirty letters i of 5 pixels, then fourteen m of 17.5: cut anywhere, the first line would be full.
    assert ends[0] < 200 < ends[1]


def test_titles_and_sequences_make_an_image_taller():
    heights = [
        text.image([WORDS], [VALUES]).height,
        text.image([WORDS], [VALUES], titles=["one"]).height,
        text.image([WORDS], [VALUES], titles=["one"], title="all").height,
        text.image([WORDS] * 2, [VALUES] * 2, titles=["one", "two"], title="all").height,
    ]
    assert np.diff(heights).tolist() == [32, 32, 73]  # lines of 1.75 * 18; a gap of half of 18


def test_a_line_break_ends_a_line():
    assert text.image(["a⏎", "b"], [1.0, 2.0]).height == text.image(["a", "b"], [1.0, 2.0]).height + 32
    assert text.image(["a", "b⏎"], [1.0, 2.0]).height == text.image(["a", "b"], [1.0, 2.0]).height


@pytest.mark.parametrize("word", ["漢字", "مرحبا", "שלום", "😀", "\ud800", "e\u0301", "\u200d"])
def test_any_script_can_be_drawn(word):
    assert RED in colors_in(text.image([word], [1.0], colors="bwr"))


def note_below(word, **keywords):
    """How many lines taller an image is for its note."""
    return (text.image([word], [1.0], **keywords).height - text.image(["a"], [1.0]).height) // 32


@pytest.fixture
def installed(monkeypatch):
    """Have other fonts installed."""

    def install(*paths):
        monkeypatch.setattr(fonts, "installed", lambda: paths)
        fonts.covering.cache_clear()

    yield install
    fonts.covering.cache_clear()


def test_letters_that_a_font_lacks_are_drawn_by_another_one_that_has_them(installed):
    """STIX has no Arabic, which DejaVu has."""
    assert not set("سلام") <= fonts.letters_of(font_manager.findfont("STIXGeneral"))
    installed(fonts.found("DejaVu Sans"))
    mixed, own = (np.asarray(text.image(["سلام"], [1.0], font=font)) for font in ("STIXGeneral", "DejaVu Sans"))
    line = slice(18, 46)
    assert np.array_equal(mixed[line], own[line])
    assert note_below("سلام", font="STIXGeneral") == note_below("سلام") == 0


def test_letters_that_no_font_has_are_named_below(installed):
    installed()
    assert note_below("漢字") == 2
    said = "Boxes are letters that no font here has (U+5B57 U+6F22): install one that has them, such as Noto's."
    assert fonts.note(dict.fromkeys("漢字")) == said
    assert "U+004C and 1 more)" in fonts.note("ABCDEFGHIJKLM")
    figure = text.layers(["a", "漢字"], {"b": [1.0, 2.0]})
    assert figure.axes[0].get_xlabel() == said
    assert not text.layers(["a", "سلام"], {"b": [1.0, 2.0]}).axes[0].get_xlabel()


@pytest.mark.parametrize("word", ["a\ufe0f", "\u200d", "\u3000", "\xa0"])
def test_what_is_not_seen_needs_no_font(word):
    assert fonts.covering(frozenset(word), fonts.found("DejaVu Sans"))[1] == frozenset()


def test_a_font_of_pictures_or_what_is_none_is_not_chosen(tmp_path, monkeypatch, installed):
    wrong, dejavu, first = tmp_path / "wrong.ttf", fonts.found("DejaVu Sans"), fonts.found("STIXGeneral")
    wrong.write_bytes(b"nothing")
    assert fonts.letters_of(str(wrong)) == frozenset()
    installed(str(wrong), dejavu)
    assert fonts.covering(frozenset("س"), first) == (dejavu, frozenset())
    monkeypatch.setattr(fonts, "_is_scalable", lambda path: path != dejavu)
    installed(str(wrong), dejavu)
    assert fonts.covering(frozenset("س"), first) == (first, frozenset("س"))


def places_of(words, width=800):
    """The left end of each word's box, by their colours, and its line."""
    values = np.linspace(0.3, 1, len(words))
    shown = rows.rows(words, values)
    measures = images._Measures(width, 18, fonts.Fonts("DejaVu Sans", 18))
    boxes = list(images._boxes(shown, "", "bwr", measures))
    return {box.text: box.x for box in boxes}


def test_words_stand_where_their_script_has_them():
    found = places_of(["a", " b", " אחד", " שתיים", " c"])
    assert found["a"] < found[" b"] < found[" שתיים"] < found[" אחד"] < found[" c"]
    assert found["a"] == 18
    found = places_of(["אחד", " שתיים", " a", " b", " שלוש", "."])
    assert found["אחד"] > found[" שתיים"] > found[" b"] > found[" a"] > found[" שלוש"] > found["."]
    picture = np.asarray(text.image(["אחד"], [1.0], colors="bwr"))
    red = np.flatnonzero((picture[18:46] == (255, 0, 0)).all(-1).any(0))
    assert red.max() in (780, 781)  # up to the margin on the right


def test_twenty_thousand_tokens_are_pages_of_a_pdf_and_one_page_of_html(tmp_path):
    tokens, relevance = [f" tok{i % 100}" for i in range(20_000)], np.arange(20_000.0)
    assert len(Page(text.html(tokens, relevance)).tokens) == 20_000
    path = text.save(tmp_path / "long.pdf", tokens[:2000], relevance[:2000])
    assert path.read_bytes().count(b"/Type /Page\n") in (5, 6)
    pages = images.pages(tokens[:2000], relevance[:2000], lines=10)
    assert len({page.height for page in pages[:-1]}) == 1
    assert (sum(page.height for page in pages) - text.image(tokens[:2000], relevance[:2000]).height) % (
        len(pages) - 1
    ) == 0
    for ending, most in (("webp", 16383), ("jpg", 65500), ("gif", 65535)):
        with pytest.raises(InputError) as caught:
            files._check_height(most + 1, tmp_path / f"a.{ending}")
        assert str(caught.value) == (
            f"cannot write {tmp_path}/a.{ending}: the image is {most + 1} pixels high, and .{ending} takes {most}. "
            "Write .html, .pdf (in pages) or .png, or show fewer tokens."
        )
    with pytest.raises(InputError, match=r"pixels high, and \.webp takes 16383"):
        text.save(tmp_path / "a.webp", ["a⏎"] * 520, [1.0] * 520)
    assert not (tmp_path / "a.webp").exists()


@pytest.mark.parametrize(("drawn", "message"), [
    (lambda: text.html([["a"]], None), "relevance must be numbers, but is None."),
    (lambda: text.html([["a"]], "a"), "1 sequences need one relevance each, but got 'a'."),
    (lambda: text.html([["a"]], {"a": 1}), "1 sequences need one relevance each, but got {'a': 1}."),
    (lambda: text.html([["a"]], 3.0), "1 sequences need one relevance each, but got 3.0."),
    (lambda: text.layers(["a"], [1.0]), "relevances are {layer: relevance}, but got list."),
    (lambda: text.layers(["a"], None), "relevances are {layer: relevance}, but got NoneType."),
    (lambda: text.layers(["a"], {"l": [1j]}), "relevance must be real numbers, but is complex."),
    (lambda: text.layers(["a"], {"l": ["1"]}), "relevance must be numbers, but is ['1']."),
    (lambda: text.per_token([[1.0]]), "relevance per token is summed from a tensor, but got list."),
    (lambda: text.per_token(None), "relevance per token is summed from a tensor, but got NoneType."),
])  # fmt: skip
def test_odd_relevance_is_refused(drawn, message):
    with pytest.raises(InputError) as caught:
        drawn()
    assert str(caught.value) == message


def test_sparse_relevance_is_drawn_as_any():
    assert text.html(WORDS, torch.tensor(VALUES).to_sparse()) == text.html(WORDS, VALUES)


def test_a_font_may_be_a_family_or_a_file():
    path = font_manager.findfont("DejaVu Sans Mono")
    family, file = (text.image(WORDS, VALUES, font=font) for font in ("DejaVu Sans Mono", path))
    assert np.array_equal(family, file)
    assert not np.array_equal(family, text.image(WORDS, VALUES))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"font": "Nonesuch Sans"}, "there is no font 'Nonesuch Sans': name a family that matplotlib finds, or a file"),
        ({"font": __file__}, "there is no font '.*test_text.py'"),
        ({"size": 0}, "a font needs a size of one pixel at least, but got 0"),
        ({"width": 40}, "a width of 40 pixels does not hold one letter of 18: make it wider"),
        ({"width": 0}, "a width of 0 pixels does not hold one letter of 18: make it wider"),
    ],
)
def test_an_image_that_cannot_be_drawn_is_an_error(keywords, message):
    with pytest.raises(InputError, match=message):
        text.image(WORDS, VALUES, **keywords)


# -- files ------------------------------------------------------------------------------------------------------------


def test_the_ending_of_a_path_says_what_is_written(tmp_path):
    arguments = ([WORDS], [VALUES], None, ["one"], "all", "bwr", 4.0)
    page, table = (text.save(tmp_path / name, *arguments) for name in ("a.HTML", "a.txt"))
    assert page == tmp_path / "a.HTML"
    assert page.read_text("utf-8") == text.html(*arguments)
    assert table.read_text("utf-8") == "all\n\none\nThe   -2  -----\n cat   0\n sat  +1  ++\n"
    assert text.save(tmp_path / "b.txt", WORDS, VALUES).read_text("utf-8") == TABLE
    for ending in ("png", "bmp", "tiff"):
        with Image.open(text.save(tmp_path / f"a.{ending}", *arguments)) as picture:
            assert np.array_equal(picture.convert("RGB"), text.image(*arguments))
    for ending in ("jpg", "jpeg", "webp", "gif", "tif"):
        with Image.open(text.save(str(tmp_path / f"a.{ending}"), *arguments)) as picture:
            assert picture.size == text.image(*arguments).size
    assert text.save(tmp_path / "a.pdf", *arguments).read_bytes().startswith(b"%PDF")


def test_a_path_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(
        InputError, match=r"cannot write .*a\.svg: its ending must name a format, one of html, txt, png, "
    ):
        text.save(tmp_path / "a.svg", WORDS, VALUES)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        text.save(tmp_path / "missing" / "a.html", WORDS, VALUES)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        text.save(tmp_path, WORDS, VALUES)
    with pytest.raises(InputError, match="must be finite"):
        text.save(tmp_path / "a.html", WORDS, [math.nan] * 3)
    assert not list(tmp_path.iterdir())


# -- layers -----------------------------------------------------------------------------------------------------------


def drawn(figure):
    """The values of a figure of layers, its ends, and the names of rows and columns."""
    axis = figure.axes[0]
    (image,) = axis.images
    assert image.origin == "lower"  # the first row is at the bottom
    names = [[label.get_text() for label in labels] for labels in (axis.get_yticklabels(), axis.get_xticklabels())]
    return np.asarray(image.get_array()), image.get_clim(), *names


def test_layers_are_rows_from_the_bottom_and_heads_a_row_each():
    relevances = {
        "embed": torch.tensor([1.0, 2.0, 3.0]),
        "mlp": torch.tensor([[1.0, 1.0], [2.0, -4.0], [0.0, 0.5]]),
        "attn": [[[1.0, 0.0], [0.0, 0.0], [0.5, 0.0]], [[0.0, 0.0], [0.0, -1.0], [-0.5, 0.5]]],
    }
    figure = text.layers(["The", " cat", " "], relevances, title="$x$")
    values, limits, names, words = drawn(figure)
    assert values.tolist() == [[1, 2, 3], [2, -2, 0.5], [1, 0, 0.5], [0, -1, 0]]
    assert limits == (-3, 3)
    assert names == ["embed", "mlp", "attn.0", "attn.1"]
    assert words == ["The", "cat", "␣"]
    assert [line.get_ydata()[0] for line in figure.axes[0].lines] == [0.5, 1.5]
    assert figure.axes[1].get_ylabel() == "relevance"
    assert figure._suptitle.get_text() == "$x$"


def test_each_layer_may_have_its_own_scale():
    relevances = {"a": [2.0, -4.0], "b": [[[1.0], [0.0]], [[0.0], [0.5]]], "c": [0.0, 0.0]}
    figure = text.layers(["x", "y"], relevances, scale="each")
    values, limits, *_ = drawn(figure)
    assert values.tolist() == [[0.5, -1], [1, 0], [0, 0.5], [0, 0]]
    assert limits == (-1, 1)
    assert figure.axes[1].get_ylabel() == "relevance / largest magnitude of its layer"
    assert drawn(text.layers(["x", "y"], relevances, limit=8))[1] == (-8, 8)


def test_a_mask_leaves_tokens_out_of_a_figure_of_layers():
    relevances = {"a": [1.0, math.nan, 9.0], "b": torch.tensor([[1.0, 1.0], [math.inf, 0.0], [0.0, 0.0]])}
    values, limits, _, words = drawn(text.layers(["x", "[PAD]", "y"], relevances, mask=torch.tensor([1, 0, 1])))
    assert values.tolist() == [[1, 9], [2, 0]]
    assert limits == (-9, 9)
    assert words == ["x", "y"]


def test_names_are_thinned_out_where_there_are_many():
    tokens = [f"token{i}" for i in range(300)]
    relevances = {f"layer{i}": torch.ones(300) for i in range(200)}
    values, _, names, words = drawn(text.layers(tokens, relevances))
    assert values.shape == (200, 300)
    assert words == tokens[::4]  # 0.17 of 16 inches each: 94 fit, so every fourth of 300
    assert names == list(relevances)[::4]  # 64 of 200 fit into 11 inches


def test_long_names_keep_what_tells_them_apart():
    _, _, names, words = drawn(text.layers(["w" * 40], {"a" * 50 + ".query": [1.0]}))
    assert names == ["…" + "a" * 38 + ".query"]
    assert words == ["w" * 18 + "…"]


def test_a_figure_of_layers_can_be_written_and_drawn_into_another(tmp_path):
    words, relevances = ["漢字", "$a", "\x1b"], {"$b": torch.ones(2, 3, 4)}
    path = heatmaps.save(text.layers(words, relevances, title="$"), tmp_path / "layers.png")
    with Image.open(path) as picture:
        assert picture.width > 300
    assert not pyplot.get_fignums()
    made = text.layers(["a"], {"b": [1.0]})
    part = made.subfigures(1, 1)
    assert text.layers(["a"], {"b": [1.0]}, figure=part) is part
    assert len(part.axes) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((WORDS, {}), r"a figure of layers needs one layer at least, but relevances is empty\."),
        ((WORDS, {"a": [1.0, 2.0]}),
         r"relevance of layer 'a' must have shape \(3,\), \(3, width\) or \(heads, 3, width\), but has \(2,\)\. "
         r"Of a batch, index one sample\."),
        ((WORDS, {"a": torch.ones(12, 4)}), r"but has \(12, 4\)"),
        ((WORDS, {"a": torch.ones(3, 4, 3)}), r"but has \(3, 4, 3\)"),
        ((WORDS, {"a": torch.ones(1, 1, 3, 1)}), r"but has \(1, 1, 3, 1\)"),
        ((WORDS, {"a": VALUES, "b": [0.0, math.nan, math.inf]}),
         r"relevance of layer 'b' must be finite, but 2 of 3 values are nan or infinite\."),
        ((WORDS, {"a": VALUES}, [1, 1]), r"mask must have one number per token, shape \(3,\), but has \(2,\)\."),
        ((WORDS, {"a": VALUES}, [0, 0, 0]), r"there are no tokens to show\."),
        (([], {"a": []}), r"there are no tokens to show\."),
        (([1, 2, 3], {"a": VALUES}), r"tokens must be strings"),
        ((WORDS, {"a": VALUES}, None, "", "seismic", -1.0), r"limit must be a finite number above zero, but is -1\.0"),
    ],
)  # fmt: skip
def test_what_does_not_fit_into_a_figure_of_layers_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        text.layers(*arguments)


# -- imports ----------------------------------------------------------------------------------------------------------


def test_what_draws_is_imported_where_it_is_used_and_no_tokenizer_ever():
    code = "import sys; from lrpfunc import text; print(*sys.modules)"
    modules = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert "lrpfunc.text.pages" in modules
    assert not {"rich", "PIL", "matplotlib", "jinja2", "transformers", "tokenizers"} & modules
