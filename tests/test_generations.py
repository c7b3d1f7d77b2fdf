"""What answers rest on: rows beside `attribute` position by position, input times gradient, and numbers by hand."""

import functools

import optree
import pytest
import torch
import torch.nn.functional as F

import lrpfunc
from lrpfunc import composites, rules, text
from lrpfunc.compat import Onlooker
from lrpfunc.errors import InputError, RuleError, TargetError
from tests import transformer_zoo

close = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12)
PROMPT = 4


@functools.cache
def subject(name: str):
    """A causal language model traced with ids, and ids."""
    pytest.importorskip("transformers")
    model = transformer_zoo.build(name, torch.float64)
    ids = torch.from_numpy(transformer_zoo.random_state(name).randint(3, transformer_zoo.VOCABULARY, (2, 9)))
    return *lrpfunc.functionalize(model, ids), ids


@functools.cache
def found(name: str) -> text.Generation:
    fmodel, params, ids = subject(name)
    return text.generation(fmodel, params, ids, PROMPT, chunk_size=2)


def by_attribute(fmodel, params, ids, composite, x=None, prompt=PROMPT, target=text.token):
    """Row by row: one attribution for each token of the answer."""
    x = ids if x is None else x
    rows = []
    for position in range(prompt, ids.shape[1]):
        relevance = lrpfunc.attribute(fmodel, params, x, composite, target(ids[:, position], position=position - 1))
        rows.append(text.per_token(relevance))
    return torch.stack(rows, 1)


# -- rows -------------------------------------------------------------------------------------------------------------

FAMILIES = ("llama", "gpt2", "gemma3", "qwen3", "mixtral", "mistral")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_row_is_what_attribute_gives_for_its_token(name):
    fmodel, params, ids = subject(name)
    expected = by_attribute(fmodel, params, ids, composites.attn_lrp())
    assert expected.abs().max() > 0.1
    close(found(name).matrix, expected)


def test_a_row_is_that_of_the_sequence_cut_before_its_token():
    fmodel, params, ids = subject("llama")
    matrix = found("llama").matrix
    for position in range(PROMPT, ids.shape[1]):
        before = ids[:, :position]
        target = text.token(ids[:, position], -1)
        expected = lrpfunc.attribute(fmodel, params, before, composites.attn_lrp(), target)
        close(matrix[:, position - PROMPT, :position], expected)
        assert not matrix[:, position - PROMPT, position:].any()


@pytest.mark.parametrize("composite", [
    composites.cp_lrp(), composites.attn_lrp(gamma=0.25), composites.epsilon(1e-3), composites.epsilon_plus(),
], ids=["cp_lrp", "gamma", "epsilon", "epsilon_plus"])  # fmt: skip
def test_any_rules_may_be_given(composite):
    fmodel, params, ids = subject("gpt2")
    close(
        text.generation(fmodel, params, ids, 7, composite).matrix, by_attribute(fmodel, params, ids, composite, None, 7)
    )


@pytest.mark.parametrize("keywords", [{"chunk_size": 1}, {"chunk_size": 100}, {"checkpoint": 3}])
def test_chunks_and_segments_change_nothing(keywords):
    fmodel, params, ids = subject("llama")
    again = text.generation(fmodel, params, ids, PROMPT, **keywords)
    close(again.matrix, found("llama").matrix)


def test_a_token_at_a_time_makes_no_pattern_of_attention():
    generator = torch.Generator().manual_seed(0)
    weights, length = list(torch.randn(4, 32, 32, generator=generator) / 8), 512
    x = torch.randn(1, length, 32, generator=generator)

    def attend(p, x):
        *heads, out = p
        query, key, value = ((x @ weight).unflatten(2, (2, 16)).transpose(1, 2) for weight in heads)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return (x + mixed.transpose(1, 2).flatten(2)) @ out

    ids = torch.zeros(1, length, dtype=torch.long)
    fmodel, weights = lrpfunc.trace(attend, weights, x[:, :16])
    made, sizes = {}, []

    def see(result):
        sizes.extend(leaf.numel() for leaf in optree.tree_leaves(result) if isinstance(leaf, torch.Tensor))

    for chunk_size in (1, 2):
        sizes.clear()
        with Onlooker(see):
            made[chunk_size] = text.generation(
                fmodel, weights, ids, length - 2, composites.attn_lrp(), x=x, chunk_size=chunk_size
            )
        assert (max(sizes) < length * length) == (chunk_size == 1)
    torch.testing.assert_close(made[1].matrix, made[2].matrix, rtol=1e-4, atol=1e-6)


def test_the_logits_are_those_of_the_answer_and_constants_have_what_no_token_has():
    fmodel, params, ids = subject("gpt2")
    logits = fmodel(params, ids).logits[:, PROMPT - 1 : -1]
    expected = torch.stack(
        [torch.stack([row[i, t] for i, t in enumerate(own)]) for row, own in zip(logits, ids[:, PROMPT:], strict=True)]
    )
    close(found("gpt2").logits, expected)
    shares = logits.softmax(-1)
    expected_shares = [[row[i, t] for i, t in enumerate(own)] for row, own in zip(shares, ids[:, PROMPT:], strict=True)]
    close(found("gpt2").probabilities, torch.tensor(expected_shares, dtype=torch.float64))
    close(found("gpt2").matrix.sum(2) + found("gpt2").constants, expected)


def test_without_biases_and_positions_all_of_a_logit_arrives_at_tokens():
    pytest.importorskip("transformers")
    model = transformer_zoo.build("llama", torch.float64, bias=False)
    ids = subject("llama")[2]
    fmodel, params = lrpfunc.functionalize(model, ids)
    close(
        text.generation(fmodel, params, ids, PROMPT, composites.cp_lrp()).constants.abs().max(),
        torch.tensor(0.0).double(),
        atol=1e-4,
    )


def test_lrp_0_is_embeddings_times_gradients_by_finite_differences():
    """The function is piecewise linear around here, so that differences are exact."""
    generator = torch.Generator().manual_seed(0)
    w, head = (torch.randn(4, n, generator=generator).double() for n in (4, 6))
    f = lambda p, x: torch.relu(x.cumsum(1) @ p[0]) @ p[1]  # noqa: E731
    x, ids = torch.randn(1, 6, 4, generator=generator).double(), torch.tensor([[0, 1, 2, 3, 4, 5]])
    fmodel, params = lrpfunc.trace(f, [w, head], x)
    matrix = text.generation(fmodel, params, ids, 3, rules.epsilon(0.0), x=x).matrix
    for row, position in enumerate(range(3, 6)):
        for token in range(6):
            step = torch.zeros_like(x)
            step[:, token] = x[:, token] * 1e-6
            logits = [f(params, x + sign * step)[0, position - 1, ids[0, position]] for sign in (1, -1)]
            close(matrix[0, row, token], (logits[0] - logits[1]) / 2e-6, rtol=1e-5, atol=1e-6)


# -- what is explained, and of what -----------------------------------------------------------------------------------


@pytest.mark.parametrize("other", [5, "each"])
def test_another_token_may_be_what_the_answers_are_compared_with(other):
    fmodel, params, ids = subject("llama")
    others = torch.full_like(ids, 5) if other == 5 else (ids + 7) % 50
    answer = others[:, PROMPT:]
    compared = text.generation(fmodel, params, ids, PROMPT, other=5 if other == 5 else answer)
    rows = []
    for position in range(PROMPT, ids.shape[1]):
        target = text.contrast(ids[:, position], others[:, position], position - 1)
        rows.append(lrpfunc.attribute(fmodel, params, ids, composites.attn_lrp(), target))
    close(compared.matrix, torch.stack(rows, 1))
    logits = fmodel(params, ids).logits[:, PROMPT - 1 : -1]
    own, else_ = (logits.gather(2, tokens[:, :, None])[:, :, 0] for tokens in (ids[:, PROMPT:], answer))
    close(compared.logits, own - else_)


def test_embeddings_may_be_what_is_given_and_get_the_relevance():
    pytest.importorskip("transformers")
    model = transformer_zoo.build("llama", torch.float64)
    ids = subject("llama")[2]
    x = {"inputs_embeds": model.get_input_embeddings()(ids).detach()}
    fmodel, params = lrpfunc.functionalize(model, **x)
    close(text.generation(fmodel, params, ids, PROMPT, x=x).matrix, found("llama").matrix)


def test_prompts_that_are_padded_on_the_left_have_a_mask():
    pytest.importorskip("transformers")
    model = transformer_zoo.build("llama", torch.float64)
    ids = subject("llama")[2][:1]
    padded = torch.cat([torch.zeros(1, 2, dtype=torch.long), ids], 1)
    batch = torch.cat([padded, torch.cat([ids[:, :2], ids], 1)])
    x = {"input_ids": batch, "attention_mask": (batch != 0).long()}
    fmodel, params = lrpfunc.functionalize(model, **x)
    both = text.generation(fmodel, params, batch, PROMPT + 2, x=x)
    assert not both.matrix[0, :, :2].any()
    alone = found("llama").matrix[:1]
    close(both.matrix[:1, :, 2:], alone, rtol=1e-6, atol=1e-7)  # rotary positions begin two later


def test_a_program_with_one_named_input_takes_ids():
    pytest.importorskip("transformers")
    model, ids = transformer_zoo.build("llama", torch.float64), subject("llama")[2]
    fmodel, params = lrpfunc.functionalize(model, input_ids=ids)
    close(text.generation(fmodel, params, ids, PROMPT).matrix, found("llama").matrix)


@pytest.mark.parametrize("end", [
    lambda h, head: torch.tanh((h @ head) / 3).float().double() * 3,
    lambda h, head: torch.softmax(h @ head, -1),
    lambda h, head: (head.T @ h.mT).mT,
    lambda h, head: (h @ head).flip(0).flip(0),
], ids=["soft cap", "probabilities", "weights on the left", "moved"])  # fmt: skip
def test_logits_may_be_made_in_any_way(end):
    generator = torch.Generator().manual_seed(0)
    table, head = (torch.randn(7, 4, generator=generator).double() for _ in range(2))
    f = lambda p, ids: end(torch.relu(F.embedding(ids, p[0]).cumsum(1)), p[1].T)  # noqa: E731
    ids = torch.tensor([[0, 3, 2, 6, 1], [5, 3, 1, 1, 0]])
    fmodel, params = lrpfunc.trace(f, [table, head], ids)
    close(
        text.generation(fmodel, params, ids, 2, rules.epsilon()).matrix,
        by_attribute(fmodel, params, ids, rules.epsilon(), prompt=2),
    )


def test_bfloat16_is_near_the_exact_rows():
    fmodel, params, ids = subject("llama")
    half = {name: p.bfloat16() if p.is_floating_point() else p for name, p in params.items()}
    near = text.generation(fmodel, half, ids, PROMPT)
    assert near.matrix.dtype == torch.float32
    assert (near.matrix - found("llama").matrix).abs().max() < 0.05 * found("llama").matrix.abs().max()


def test_progress_is_told():
    fmodel, params, ids = subject("llama")
    calls = []
    text.generation(fmodel, params, ids, PROMPT, chunk_size=2, progress=lambda *numbers: calls.append(numbers))
    assert calls == [(2, 5), (4, 5), (5, 5)]


# -- sums and pictures ------------------------------------------------------------------------------------------------

BY_HAND = text.Generation(
    torch.tensor([[[1.0, 2.0, 3.0, 0.0, 0.0], [10.0, 20.0, 30.0, 40.0, 0.0]]]),
    torch.tensor([[7.0, 90.0]]),
    torch.tensor([[0.5, 0.25]]),
    3,
)
WORDS = ["The", " red", " key", " is", " red"]


def test_spans_are_sums_of_tokens_in_their_order():
    spans = {"key": [2], "all": slice(None), "first": range(2)}
    assert BY_HAND.spans(spans).tolist() == [[[3, 6, 3], [30, 100, 30]]]
    assert BY_HAND.spans(spans, answers={"answer": range(3, 5), "last": [4]}).tolist() == [
        [[33, 106, 33], [30, 100, 30]]
    ]
    assert BY_HAND.constants.tolist() == [[1, -10]]


@pytest.mark.parametrize(("spans", "answers", "message"), [
    ({}, None, 'spans are tokens by name, such as {"question": range(3, 9)}, but there are none.'),
    ([range(2)], None, 'spans are tokens by name, such as {"question": range(3, 9)}, but there are none.'),
    ({"a": [5]}, None, "'a' has the token 5, but they go from 0 to 4."),
    ({"a": [-1]}, None, "'a' has the token -1, but they go from 0 to 4."),
    ({"a": ["b"]}, None, "'a' has the token 'b', but they go from 0 to 4."),
    ({"a": [0]}, {"b": range(2, 4)}, "'b' has the token 2, but they go from 3 to 4."),
])  # fmt: skip
def test_spans_that_are_not_there_are_refused(spans, answers, message):
    with pytest.raises(InputError) as caught:
        BY_HAND.spans(spans, answers)
    assert str(caught.value) == message


def test_rows_are_what_stands_before_each_token_of_the_answer():
    rows = BY_HAND.rows(WORDS)
    assert rows["tokens"] == [WORDS[:3], WORDS[:4]]
    assert [row.tolist() for row in rows["relevance"]] == [[1, 2, 3], [10, 20, 30, 40]]
    assert rows["titles"] == ["is +7", "red +90"]
    assert "is +7" in text.html(**rows)


@pytest.mark.parametrize(("words", "sample", "message"), [
    (WORDS[:4], 0, "5 tokens, prompt and answer, need a word each, but there are 4."),
    (WORDS, 1, "the sample must be a number from 0 to 0, but is 1."),
    (WORDS, True, "the sample must be a number from 0 to 0, but is True."),
    ("abcde", 0, "tokens must be a sequence of strings, but are one: 'abcde'."),
])  # fmt: skip
def test_rows_that_do_not_fit_are_refused(words, sample, message):
    with pytest.raises(InputError) as caught:
        BY_HAND.rows(words, sample)
    assert str(caught.value) == message


def test_a_generation_is_a_pytree():
    doubled = torch.utils._pytree.tree_map(lambda tensor: tensor * 2, BY_HAND)
    assert isinstance(doubled, text.Generation)
    assert doubled.prompt_length == 3
    assert torch.equal(doubled.matrix, 2 * BY_HAND.matrix)


@pytest.mark.parametrize(("words", "expected"), [
    (["The", " key", ".", " It", " is", " 1", ".", "5", "."], {"The key.": range(3), "It is 1.5.": range(3, 9)}),
    (["No", "!", "”", " Yes", "?", ")", " a"], {"No!”": range(3), "Yes?)": range(3, 6), "a": range(6, 7)}),
    (["a", "⏎", "⏎", "b⏎", "c"], {"a": range(3), "b": range(3, 4), "c": range(4, 5)}),
    (["红", "色", "。", "钥匙", "？", "」", "是"], {"红色。": range(3), "钥匙？」": range(3, 6), "是": range(6, 7)}),  # noqa: RUF001
    (["a.", " a.", " a."], {"a.": range(1), "a. (2)": range(1, 2), "a. (3)": range(2, 3)}),
    (["a", ".", " ", " b"], {"a.": range(3), "b": range(3, 4)}),
    (["ab. c", " d"], {"ab. c": range(1), "d": range(1, 2)}),
    (["a", ". b", " c"], {"a. b": range(2), "c": range(2, 3)}),
    ([], {}),
])  # fmt: skip
def test_sentences_are_spans_of_words(words, expected):
    assert text.sentences(words) == expected


def test_sentences_go_into_spans():
    spans = text.sentences(["The", ".", " A", " key", "."])
    assert BY_HAND.spans(spans).tolist() == [[[3, 3], [30, 70]]]


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt_length", [0, 9, 10, -1, True, 2.0, None])
def test_a_prompt_that_leaves_no_answer_is_refused(prompt_length):
    fmodel, params, ids = subject("llama")
    with pytest.raises(TargetError) as caught:
        text.generation(fmodel, params, ids, prompt_length)
    assert str(caught.value) == (
        f"prompt_length must leave an answer to explain, 1 to 8 of 9 tokens, but is {prompt_length!r}."
    )


@pytest.mark.parametrize(("ids", "message"), [
    (torch.zeros(1, 9), r"ids are integers \(batch, length\), .* but are \(1, 9\) of torch.float32\."),
    (torch.zeros(9, dtype=torch.long), r"but are \(9,\) of torch.int64\."),
    ([[1, 2]], r"but are \[\[1, 2\]\]\."),
    (torch.full((1, 9), 3), None),
])  # fmt: skip
def test_ids_are_integers_by_sample(ids, message):
    fmodel, params, _ = subject("llama")
    if message is None:
        assert text.generation(fmodel, params, ids, 8).matrix.shape == (1, 1, 9)
        return
    with pytest.raises(TargetError, match=message):
        text.generation(fmodel, params, ids, 4)


@pytest.mark.parametrize(("other", "message"), [
    (50, "token 50 is outside the vocabulary of 50 tokens, 0 to 49."),
    (-100, "token -100 is outside the vocabulary of 50 tokens, 0 to 49."),
    (torch.zeros(2, 4, dtype=torch.long), "one for each token of the answer, (2, 5), but is (2, 4)."),
    ("a", "one for each token of the answer, (2, 5), but is 'a'."),
])  # fmt: skip
def test_other_tokens_that_there_are_not_are_refused(other, message):
    fmodel, params, ids = subject("llama")
    with pytest.raises(TargetError) as caught:
        text.generation(fmodel, params, ids, PROMPT, other=other)
    assert message in str(caught.value)


def test_a_token_of_the_answer_outside_of_the_vocabulary_is_refused():
    fmodel, params, ids = subject("llama")
    wrong = torch.cat([ids[:, :-1], torch.full((2, 1), 50)], 1)
    model = transformer_zoo.build("llama", torch.float64)
    x = model.get_input_embeddings()(ids).detach()
    fmodel, params = lrpfunc.functionalize(model, inputs_embeds=x)
    with pytest.raises(TargetError, match=r"^token 50 is outside the vocabulary of 50 tokens, 0 to 49\.$"):
        text.generation(fmodel, params, wrong, PROMPT, x={"inputs_embeds": x})


def test_a_model_that_reads_what_follows_is_refused():
    transformers = pytest.importorskip("transformers")
    model = transformers.BertForMaskedLM(transformers.BertConfig(**transformer_zoo.FAMILIES["bert"][2]))
    transformer_zoo.fill(model, bias=True)
    ids = subject("llama")[2]
    fmodel, params = lrpfunc.functionalize(model.double().eval(), ids)
    with pytest.raises(
        InputError,
        match=r"^the model is not causal: token 4, which is to be explained, has relevance "
        r"at token 4, which does not stand before it\. Of a model that reads what follows, explain",
    ):
        text.generation(fmodel, params, ids, PROMPT)


def test_a_little_of_what_follows_is_enough_also_in_half_precision():
    """A thousandth of the next token, beside the sum of those before."""
    ids = torch.tensor([[0, 1, 2, 0]])

    def f(p, ids):
        x = F.embedding(ids, p)
        return x.cumsum(1) + 1e-3 * x.roll(-1, 1)

    for dtype in (torch.float32, torch.bfloat16):
        fmodel, params = lrpfunc.trace(f, torch.ones(3, 3, dtype=dtype), ids)
        with pytest.raises(
            InputError, match="the model is not causal: token 2, which is to be explained, has relevance at"
        ):
            text.generation(fmodel, params, ids, 2)


def test_an_output_without_logits_of_all_tokens_is_refused():
    f = lambda p, ids: F.embedding(ids, p)  # noqa: E731
    ids = torch.tensor([[0, 1, 2]])
    fmodel, params = lrpfunc.trace(lambda p, ids: f(p, ids)[:, -1:], torch.eye(3), ids)
    with pytest.raises(
        TargetError, match=r"^logits must be of all tokens, \(1, 3\), but those of the model are \(1, 1\)"
    ):
        text.generation(fmodel, params, ids, 2)
    fmodel, params = lrpfunc.trace(lambda p, ids: f(p, ids).sum(1), torch.eye(3), ids)
    with pytest.raises(
        TargetError, match=r"a token is explained at logits of shape \(batch, length, vocabulary\), but"
    ):
        text.generation(fmodel, params, ids, 2)
    fmodel, params = lrpfunc.trace(lambda p, ids: (f(p, ids), f(p, ids)), torch.eye(3), ids)
    with pytest.raises(TargetError, match="the output, a tuple, has no tensor in a field `logits`"):
        text.generation(fmodel, params, ids, 2)


def test_inputs_that_do_not_count_tokens_are_refused():
    f = lambda p, x, y: (x @ p).reshape(1, 4, 3) + y  # noqa: E731
    ids, x, y = torch.tensor([[0, 1, 2, 0]]), torch.ones(1, 5), torch.ones(1, 4, 1)
    fmodel, params = lrpfunc.trace(f, torch.ones(5, 12), x, y)
    message = r"^the input 'x' gets relevance, too, but is \(1, 5\), while tokens are \(1, 4\): it would have no column"
    with pytest.raises(InputError, match=message):
        text.generation(fmodel, params, ids, 2, x=(x, y))
    fmodel, params = lrpfunc.trace(lambda p, x: (p + x[0, 0]).expand(1, 4, 3), torch.ones(4, 3), x)
    with pytest.raises(InputError, match="gets relevance, too"):
        text.generation(fmodel, params, ids, 2, x=x)


def test_a_decoder_is_not_explained_without_its_encoder():
    pytest.importorskip("transformers")
    model, ids = transformer_zoo.build("t5", torch.float64), subject("llama")[2]
    x = {"input_ids": ids, "decoder_input_ids": ids[:, :5]}
    fmodel, params = lrpfunc.functionalize(model, **x)
    with pytest.raises(InputError, match=r"the input 'input_ids' gets relevance, too, but is \(2, 9\), while tokens"):
        text.generation(fmodel, params, ids[:, :5], 2, x=x)


def test_an_answer_that_depends_on_no_input_is_refused():
    ids = torch.tensor([[0, 1, 2, 0]])
    f = lambda p, x: {"logits": p.expand(1, 4, 3) * 1, "other": p[0, x]}  # noqa: E731
    fmodel, params = lrpfunc.trace(f, torch.ones(4, 3), ids)
    message = r"^no input gets relevance by token, \(1, 4\) or \(1, 4, 'width'\): the inputs are \(1, 4\)\.$"
    with pytest.raises(InputError, match=message):
        text.generation(fmodel, params, ids, 2)


def test_relevance_that_overflows_in_float16_is_an_error():
    f = lambda p, ids: F.embedding(ids, p[0]).cumsum(1) @ p[1]  # noqa: E731
    ids = torch.tensor([[0, 1, 2]])
    fmodel, params = lrpfunc.trace(f, [torch.eye(3).half(), torch.full((3, 3), 3e4).half()], ids)
    with pytest.raises(
        InputError, match=r"^the relevance of answer token 0 is not finite: float16 ends at 65504\. Cast"
    ):
        text.generation(fmodel, params, ids, 1, rules.gamma(10.0))


def test_relevance_that_is_not_finite_is_an_error():
    fmodel, params, ids = subject("llama")
    wrong = {name: p * torch.nan if "lm_head" in name else p for name, p in params.items()}
    with pytest.raises(InputError, match="is not finite: the model gives nan or infinity, or a rule divides by zero"):
        text.generation(fmodel, wrong, ids, PROMPT)


def test_chunks_are_numbers_of_tokens():
    fmodel, params, ids = subject("llama")
    with pytest.raises(TargetError, match="chunk_size must be a number of targets >= 1, but is 0"):
        text.generation(fmodel, params, ids, PROMPT, chunk_size=0)
    with pytest.raises(RuleError, match="checkpoint must be a number of segments"):
        text.generation(fmodel, params, ids, PROMPT, checkpoint=0)
