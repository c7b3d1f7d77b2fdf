"""`lrpfunc text`: tiny language models in folders as `save_pretrained` writes them, good ones and bad ones."""

import json
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
import torch

import lrpfunc
from lrpfunc import cli, composites, text
from lrpfunc.errors import ModelError
from lrpfunc.pictures.progress import ProgressBar
from lrpfunc.pictures.texts import answers, languages, pages
from tests import transformer_zoo
from tests.test_cli import COMMAND, complaint, fine, lrp

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

PROMPT = "The red key is red. The key is"


def trained_tokenizer(**special):
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=290, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(["The red key is red. The blue key is blue."] * 3, trainer)
    if special:
        made.post_processor = tokenizers.processors.TemplateProcessing(
            special_tokens=[("<s>", 0), ("</s>", 1)], **special
        )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


def saved(folder, tokenizer, dtype=torch.float32, family="llama", **more):
    config_class, model_class, keywords = transformer_zoo.FAMILIES[family]
    keywords = {**keywords, "vocab_size": len(tokenizer), **more}
    keywords.pop("use_cache", None)
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**keywords))
    transformer_zoo.fill(model, bias=True)
    transformers.utils.logging.disable_progress_bar()
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("models") / "tiny", trained_tokenizer())


@pytest.fixture
def folder(original, tmp_path):
    """A copy, to be spoiled."""
    return Path(shutil.copytree(original, tmp_path / "tiny"))


def changed(path, **entries):
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def run(folder, out, *more, prompt=PROMPT):
    return lrp("text", "-m", folder, "-p", prompt, "-o", out, *more)


def by_hand(folder, answer):
    """The ids, and relevance row by row by `attribute` of the model as transformers reads it."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, use_cache=False).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    prompt, ids = (tokenizer(words, return_tensors="pt")["input_ids"] for words in (PROMPT, PROMPT + answer))
    fmodel, params = lrpfunc.functionalize(model, ids)
    start = prompt.shape[1]
    targets = [text.token(int(ids[0, p]), p - 1) for p in range(start, ids.shape[1])]
    rows = [lrpfunc.attribute(fmodel, params, ids, composites.attn_lrp(), target)[0] for target in targets]
    return model, tokenizer, ids, start, torch.stack(rows) if rows else None


# -- what is explained ------------------------------------------------------------------------------------------------


def test_an_answer_is_explained_word_by_word(original, tmp_path):
    found = pages.write(str(original), PROMPT, tmp_path / "page.html", answer=" red. The")
    model, _, ids, start, rows = by_hand(original, " red. The")
    assert found.words[start:] == [" red", ".", " The"]
    assert "".join(found.words) == PROMPT + " red. The"
    torch.testing.assert_close(found.generation.matrix[0], rows, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        shares = model(ids).logits[0].softmax(-1)
    expected = [float(shares[p - 1, ids[0, p]]) for p in range(start, ids.shape[1])]
    assert found.generation.probabilities[0].tolist() == pytest.approx(expected, rel=1e-4)
    assert found.candidates == []
    page = (tmp_path / "page.html").read_text()
    assert "default-src 'none'" in page
    assert "What each word rests on: tiny, attn_lrp" in page
    assert "What an answer rests on" in page


def test_without_an_answer_the_next_word_is_explained_and_candidates_are_listed(original, tmp_path):
    found = pages.write(str(original), PROMPT, tmp_path / "page.html")
    model, tokenizer, ids, start, _ = by_hand(original, "")
    with torch.no_grad():
        logits = model(ids).logits[0, -1]
    best = logits.topk(5).indices
    assert [c.logit for c in found.candidates] == pytest.approx(logits[best].tolist(), rel=1e-4)
    assert [c.probability for c in found.candidates] == pytest.approx(logits.softmax(-1)[best].tolist(), rel=1e-4)
    assert found.words[-1] == found.candidates[0].word
    assert found.words[-1] == text.words(tokenizer.convert_ids_to_tokens(best[:1].tolist()))[0]
    fmodel, params = lrpfunc.functionalize(model, ids)
    expected = lrpfunc.attribute(fmodel, params, ids, composites.attn_lrp(), text.token(None, -1))[0]
    torch.testing.assert_close(found.generation.matrix[0, 0, :start], expected, rtol=1e-4, atol=1e-6)


def test_the_model_may_write_the_answer(original, tmp_path):
    """Greedily, as transformers' own loop does; what ends it is no word of the answer, but it is if it comes first."""
    found = pages.write(str(original), PROMPT, tmp_path / "page.html", words=5)
    model, _, ids, start, _ = by_hand(original, "")
    written = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)[0]
    read = languages.load(str(original))
    assert found.words == read.words(written.tolist())
    expected = text.generation(*lrpfunc.functionalize(model, written[None]), written[None], start)
    torch.testing.assert_close(found.generation.matrix, expected.matrix, rtol=1e-4, atol=1e-6)
    assert len(found.candidates) == 5
    explainer = answers.TextExplainer(read, composites.attn_lrp())
    one, fourth = int(written[start]), int(written[start + 3])
    for ends, length in (({one}, 1), ({fourth}, 3), ({fourth, one}, 1), ({10**6}, 5), (set(), 5)):
        model.generation_config.eos_token_id = list(ends)
        read.model.generation_config.eos_token_id = list(ends)
        if fourth in written[start : start + 3].tolist():
            length = min(length, written[start:].tolist().index(fourth))
        (one_answer,) = explainer.answered([languages.Written(ids, start)], 5)
        assert one_answer.ids[0].tolist() == written[: start + length].tolist(), ends


def test_what_is_written_ends_where_the_model_does(tmp_path):
    folder = saved(tmp_path / "short", trained_tokenizer(), max_position_embeddings=16)
    read = languages.load(str(folder))
    explainer = answers.TextExplainer(read, composites.attn_lrp())
    (written,) = explainer.answered([languages.Written(torch.full((1, 14), 40), 14)], 5)
    assert written.ids.shape == (1, 16)
    with pytest.raises(ModelError, match=r"^the prompt is 16 tokens, all that short reads: give fewer words\.$"):
        explainer.answered([languages.Written(torch.full((1, 16), 40), 16)], 5)


@pytest.mark.parametrize("other", [None, " blue"])
def test_a_word_of_the_answer_through_layers(original, tmp_path, other):
    found = pages.write(str(original), PROMPT, tmp_path / "page.html", " red. The", other, graph=2)
    graph, row = found.graph, found.generation.matrix[0, 1]
    assert found.graphed == "."
    torch.testing.assert_close(graph.nodes["target"][0, 0], found.generation.logits[0, 1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(graph.nodes[graph.streams[0]][0], row, rtol=1e-4, atol=1e-5)
    page = (tmp_path / "page.html").read_text()
    assert page.index("Tokens through layers") < page.index("What an answer rests on")


def test_a_long_graph_keeps_the_strongest_edges(original, tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "LONG", 4)
    monkeypatch.setattr(pages, "KEPT", 2)
    graph = pages.write(str(original), PROMPT, tmp_path / "page.html", graph=1).graph
    *pairs, _ = graph.pairs  # the target is one token
    assert all(pair.edges.is_sparse for pair in pairs)
    assert max(pair.edges._nnz() for pair in pairs) <= 2 * graph.nodes[graph.streams[0]].shape[1]


def test_another_word_may_be_what_it_is_compared_with(original, tmp_path):
    found = pages.write(str(original), PROMPT, tmp_path / "page.html", answer=" red", other=" blue", composite="cp_lrp")
    model, tokenizer, ids, start, _ = by_hand(original, " red")
    fmodel, params = lrpfunc.functionalize(model, ids)
    target = text.contrast(int(ids[0, start]), tokenizer(" blue")["input_ids"][0], start - 1)
    expected = lrpfunc.attribute(fmodel, params, ids, composites.cp_lrp(), target)[0]
    torch.testing.assert_close(found.generation.matrix[0, 0], expected, rtol=1e-4, atol=1e-6)
    assert "rests on, and not &#39; blue&#39;: tiny, cp_lrp" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("special", [{"single": "<s> $A"}, {"single": "<s> $A </s>"}])
def test_a_prompt_begins_as_the_tokenizer_has_it_and_does_not_end(special, tmp_path):
    folder = saved(tmp_path / "tiny", trained_tokenizer(**special))
    read = languages.load(str(folder))
    assert read.words(read.written("The key", " is").ids[0].tolist()) == ["<s>", "The", " key", " is"]
    assert read.written("The key", " is").prompt_length == 3
    assert read.words(read.written("The key", "").ids[0].tolist()) == ["<s>", "The", " key"]


def test_a_token_across_prompt_and_answer_is_cut(original):
    read = languages.load(str(original))
    written = read.written("The re", "d key")
    words = read.words(written.ids[0].tolist())
    assert "".join(words) == "The red key"
    assert "".join(words[: written.prompt_length]) == "The re"


@pytest.mark.parametrize("family", ["gpt2", "mixtral"])
def test_families_are_read_as_they_are(family, tmp_path):
    folder = saved(
        tmp_path / family, trained_tokenizer(), family=family, **{"gpt2": {"n_positions": 64}}.get(family, {})
    )
    found = pages.write(str(folder), PROMPT, tmp_path / "page.html", answer=" red")
    assert found.generation.matrix.abs().sum() > 0


def test_weights_of_float16_are_read_as_float32(tmp_path):
    folder = saved(tmp_path / "tiny", trained_tokenizer(), dtype=torch.float16)
    read = languages.load(str(folder))
    assert read.model.dtype == torch.float32
    assert read.notes == (
        "the weights are float16, which overflows, and are read as float32: --dtype bfloat16 takes half.",
    )
    assert languages.load(str(folder), "float16").model.dtype == torch.float16
    assert languages.load(str(folder), "bfloat16").notes == ()
    answer = fine("text", "-m", folder, "-p", "The", "-o", tmp_path / "x.html")
    assert answer.stderr == f"note: {read.notes[0]}\n"


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_lists_what_may_come_next(original, tmp_path):
    answer = fine("text", "-m", original, "-p", PROMPT, "-o", tmp_path / "page.html")
    lines = answer.stdout.splitlines()
    assert lines[0].split() == ["next", "word", "probability", "logit"]
    assert all(re.search(r" \d+\.\d\d% +-?[\d.e-]+ *$", line) for line in lines[1:6])
    assert lines[7].split() == ["sentence", "of", "the", "prompt", "relevance"]
    assert [re.split(r"  +", line)[0] for line in lines[8:10]] == ["The red key is red.", "The key is"]
    assert lines[-1] == f"page: {tmp_path / 'page.html'}"
    assert answer.stderr == ""


def test_the_command_lists_what_the_model_writes(original, tmp_path):
    answer = fine("text", "-m", original, "-p", "The key is", "-o", tmp_path / "x.html", "--words", 3)
    lines = answer.stdout.splitlines()
    assert lines[0].split()[:2] == ["next", "word"]
    assert [line == "" for line in lines].count(True) == 1
    assert lines[7].split()[0] == "word"
    assert len(lines) == 12
    options = ("-a", " red", "--words", 3)
    ended = lrp("text", "-m", original, "-p", "The", "-o", tmp_path / "y.html", *options)
    assert complaint(ended) == "error: --words is for what the model writes: leave it or --answer out."


def test_the_command_lists_an_answer_word_by_word(original, tmp_path):
    out = tmp_path / "page.html"
    options = ("-a", " red. The", "-c", "cp_lrp", "--dtype", "float64", "--device", "cpu", "--chunk", 1)
    answer = fine("text", "-m", original, "-p", "The key is", "-o", out, *options)
    lines = answer.stdout.splitlines()
    assert lines[0].split() == ["word", "probability", "explained", "of", "the", "prompt", "most", "by"]
    assert [line.split()[0] for line in lines[1:4]] == ["red", ".", "The"]
    assert lines[4] == f"page: {out}"
    assert "exists: choose another --out, or give --overwrite." in complaint(run(original, out), cli.BAD_PATH)
    assert fine("text", "-m", original, "-p", "The", "-o", out, "--overwrite")


def test_a_prompt_may_come_from_the_standard_input(original, tmp_path):
    command = [*COMMAND, "text", "--model", str(original), "--prompt", "-", "--out", str(tmp_path / "x.html")]
    done = subprocess.run(command, input="The red key is", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"page: {tmp_path / 'x.html'}\n")
    assert done.stderr == ""
    assert "> key</span>" in (tmp_path / "x.html").read_text()


def test_progress_is_shown(original, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(ProgressBar, "__call__", lambda self, done, total, failures=0: calls.append((done, total)))
    run(original, tmp_path / "x.html", "-a", " red key is", "--chunk", 2)
    assert calls == [(2, 3), (3, 3)]


def test_words_that_look_like_commands_are_text(original, tmp_path):
    answer = fine(
        "text", "-m", original, "-p", "<script>\x1b[31m</b>", "-a", "\u202e&<i>\x1b", "-o", tmp_path / "x.html"
    )
    page = (tmp_path / "x.html").read_text()
    assert "\x1b" not in page + answer.stdout
    assert "<script>\\x1b" not in page  # as text, a letter at a time
    assert "</b>" not in page
    assert "\u202e" not in answer.stdout


def test_nothing_is_asked_of_the_network(original, tmp_path, monkeypatch):
    def connect(*arguments):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    fine("text", "-m", original, "-p", PROMPT, "-o", tmp_path / "x.html")
    assert "HF_HUB_OFFLINE" not in os.environ


def test_transformers_says_what_it_said_before(original):
    logging = transformers.utils.logging
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    languages.load(str(original))
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "message"), [
    ("meta-llama/Llama-3.2-1B", "there is no folder meta-llama/Llama-3.2-1B, and nothing is downloaded here: "
     "hf download meta-llama/Llama-3.2-1B --local-dir FOLDER gets it from the hub."),
    ("gpt2", "there is no folder gpt2, and nothing is downloaded here: see its name."),
    ("./a/b", "there is no folder ./a/b, and nothing is downloaded here: see its name."),
])  # fmt: skip
def test_a_name_that_would_be_downloaded_is_refused(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert complaint(run(name, "x.html"), cli.BAD_PATH) == f"error: {message}"
    assert not list(tmp_path.iterdir())


SPOILED = {
    "a file": (
        lambda folder: shutil.rmtree(folder) or folder.write_text("x"), cli.BAD_PATH,
        "is a file: --model takes the folder of a language model, with config.json in it."
    ),
    "no config": (
        lambda folder: (folder / "config.json").unlink(), cli.BAD_PATH,
        "has no config.json: it is no folder of a language model, as save_pretrained writes it."
    ),
    "no JSON": (
        lambda folder: (folder / "config.json").write_text("{"), cli.BAD_PATH, "config.json cannot be read as JSON (Exp"
    ),
    "no object": (
        lambda folder: (folder / "config.json").write_text("[]"), cli.BAD_PATH,
        "config.json holds no object, but a list."
    ),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(), cli.BAD_PATH,
        "has no weights in safetensors. model.save_pretrained(folder) writes them."
    ),
    "pickles": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), cli.BAD_PATH,
        "has no weights in safetensors. There is pytorch_model.bin, but such files may run code, or are of another "
    ),
    "no tokenizer": (
        lambda folder: (folder / "tokenizer.json").unlink(), cli.BAD_PATH,
        "has no tokenizer, such as tokenizer.json: tokenizer.save_pretrained(folder) writes one, or copy the files from"
    ),
    "a broken tokenizer": (
        lambda folder: (folder / "tokenizer.json").write_text("{}"), cli.FAILED,
        "cannot be read: KeyError: 'added_tokens'."
    ),
    "remote code": (
        lambda folder: changed(folder / "config.json", model_type="mine", auto_map={"AutoConfig": "mine.Config"}),
        cli.FAILED,
        "wants to run code of its own (auto_map in config.json), which is not done: models that transformers "
    ),
    "remote tokenizer": (
        lambda folder: changed(
            folder / "tokenizer_config.json", tokenizer_class="Mine", auto_map={"AutoTokenizer": ["mine.Mine", None]}
        ),
        cli.FAILED, "wants to run code of its own (auto_map in tokenizer_config.json), which is not done."
    ),
    "unknown": (
        lambda folder: changed(folder / "config.json", model_type="mine"), cli.FAILED,
        "cannot be read as a causal language model: ValueError: The checkpoint you are trying to load has model type"
    ),
    "an encoder and decoder": (
        lambda folder: changed(folder / "config.json", model_type="t5"), cli.FAILED,
        "cannot be read as a causal language model: its kind of model is none that writes word after word."
    ),
    "other sizes": (
        lambda folder: changed(folder / "config.json", hidden_size=64), cli.FAILED,
        "cannot be read as a causal language model: its weights have other sizes than its config.json says."
    ),
    "missing weights": (
        lambda folder: changed(folder / "config.json", num_hidden_layers=3, layer_types=None), cli.FAILED,
        "lack model.layers.2.input_layernorm.weight and 8 more, which would be random: they are of another model"
    ),
    "broken weights": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"abc"), cli.FAILED,
        "cannot be read as a causal language model: SafetensorError: Error while deserializing header: header too"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILED)
def test_folders_that_cannot_be_used_are_refused_in_a_line(case, folder, tmp_path):
    spoil, code, message = SPOILED[case]
    spoil(folder)
    line = complaint(run(folder, tmp_path / "x.html"), code)
    assert message in line
    assert str(folder) in line
    assert not (tmp_path / "x.html").exists()


def test_code_of_a_folder_is_never_run(folder, tmp_path):
    """Of a kind that transformers has itself, its own code is taken."""
    trap = f"open({str(tmp_path / 'sprung')!r}, 'w')\n"
    for name in ("modeling_mine.py", "configuration_mine.py", "tokenization_mine.py"):
        (folder / name).write_text(trap)
    of_own = {"AutoConfig": "configuration_mine.C", "AutoModelForCausalLM": "modeling_mine.M"}
    changed(folder / "config.json", auto_map=of_own)
    fine("text", "-m", folder, "-p", PROMPT, "-o", tmp_path / "x.html")
    changed(folder / "config.json", model_type="mine")
    complaint(run(folder, tmp_path / "y.html"))
    assert not (tmp_path / "sprung").exists()


def test_weights_without_a_use_are_noted(folder, tmp_path):
    changed(folder / "config.json", num_hidden_layers=1, layer_types=None)
    answer = fine("text", "-m", folder, "-p", PROMPT, "-o", tmp_path / "x.html")
    assert re.fullmatch(
        r"note: 9 of the weights are of no use to the model, such as model\.layers\.1\..*\n", answer.stderr
    )


@pytest.mark.parametrize(("more", "code", "message"), [
    (["-c", "atn_lrp"], cli.FAILED, "no composite for text is called 'atn_lrp'. Did you mean 'attn_lrp'"),
    (["-c", "absent_texts:it"], cli.FAILED, "there is no module 'absent_texts'"),
    (["--device", "abacus"], cli.FAILED, "the device 'abacus' cannot be used here"),
    (["--other", " red key"], cli.FAILED, "--other takes one token, but ' red key' is 2 (' red', ' key')"),
    (["--other", ""], cli.FAILED, "--other takes one token, but '' is 0 (none): begin with a space, perhaps."),
    (["-a", " red.", "--graph", "3"], cli.FAILED, "--graph takes a word of the answer, 1 to 2, but got 3."),
    (["--graph", "0"], cli.FAILED, "--graph takes a word of the answer, 1 to 1, but got 0."),
    (["-p", ""], cli.FAILED, "the prompt has no tokens: give some words."),
])  # fmt: skip
def test_options_that_cannot_be_are_one_line(more, code, message, original, tmp_path):
    assert message in complaint(run(original, tmp_path / "x.html", *more), code)


def test_an_answer_that_is_too_long_for_a_page_is_refused_before_the_work(original, tmp_path, monkeypatch):
    monkeypatch.setattr("lrpfunc.text.grids.pages.NUMBERS", 20)
    monkeypatch.setattr(text, "generation", None)
    line = complaint(run(original, tmp_path / "x.html", "-a", " red key" * 5))
    assert re.fullmatch(
        r"error: a page would hold \d+ numbers, but more than 20 are slow to open\. A shorter prompt or answer has "
        r"fewer\.",
        line,
    )


def test_a_page_has_its_ending(original, tmp_path):
    line = complaint(run(original, tmp_path / "x.png"), cli.BAD_PATH)
    assert line == f"error: {tmp_path / 'x.png'} is a page: give it a name that ends in .html."


def test_a_dtype_that_there_is_not_is_refused(original):
    with pytest.raises(lrpfunc.errors.ModelError, match="the dtype 'float23' is none of auto, float32, bfloat16"):
        languages.load(str(original), "float23")


def test_a_tokenizer_of_another_model_is_refused(folder, tmp_path):
    tokenizer = trained_tokenizer()
    tokenizer.add_tokens(["fresh"])
    tokenizer.save_pretrained(folder)
    line = complaint(run(folder, tmp_path / "x.html", prompt="a fresh key"))
    assert re.search(r"gives the token \d+, but the model has \d+: they do not belong together\.$", line)


def test_tokens_that_the_tokenizer_does_not_have_go_by_their_numbers(tmp_path):
    tokenizer = trained_tokenizer()
    folder = saved(tmp_path / "tiny", tokenizer, family="llama")
    read = languages.load(str(folder))
    assert read.words([len(tokenizer), tokenizer.convert_tokens_to_ids("k")]) == [f"<{len(tokenizer)}>", "k"]


def test_a_model_that_reads_what_follows_is_refused(tmp_path):
    tokenizer = trained_tokenizer()
    folder = tmp_path / "bert"
    config = transformers.BertConfig(**{**transformer_zoo.FAMILIES["bert"][2], "vocab_size": len(tokenizer)})
    model = transformers.BertForMaskedLM(config)
    transformer_zoo.fill(model, bias=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    assert "the model is not causal: token 3, which is to be" in complaint(
        run(folder, tmp_path / "x.html", prompt="The key is")
    )


def test_float16_that_overflows_says_so(tmp_path):
    folder = saved(tmp_path / "tiny", trained_tokenizer())
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] *= 1e5
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    line = complaint(run(folder, tmp_path / "x.html", "--dtype", "float16"))
    assert "float16" in line


def test_without_transformers_a_line_says_how_to_install_it(original, tmp_path, monkeypatch):
    monkeypatch.setattr("lrpfunc.extras.find_spec", lambda name: None)
    line = complaint(run(original, tmp_path / "x.html"))
    assert line == "error: reading a language model needs transformers: pip install 'lrpfunc[transformers]'"


def test_memory_that_is_used_up_says_what_takes_less(original, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr(pages, "write", full)
    line = complaint(run(original, tmp_path / "x.html"))
    assert line == "error: the memory is used up. Fewer words at once need less: --chunk; so does --dtype bfloat16."


def test_halves_of_characters_are_refused(original, tmp_path):
    """As arguments of commands have them whose bytes are no text."""
    for options in (("-p", "The\udcff"), ("-p", "The", "-a", "\ud800")):
        ended = lrp("text", "-m", original, "-o", tmp_path / "x.html", *options)
        what = "answer" if "-a" in options else "prompt"
        assert complaint(ended) == f"error: the {what} is no text: it has halves of characters (surrogates)."
