"""Every example runs, and shows what it says."""

import importlib.util
import math
from pathlib import Path

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
    treatments = {"DigitsNet": {"folded", *ablation.LEFT}, "DenseNet": {*ablation.CANONIZED, *ablation.LEFT}}
    assert set(ablated) == {
        (network, composite, treatment)
        for network, expected in treatments.items()
        for composite in ablation.COMPOSITES
        for treatment in expected
    }
    for row in ablated.values():
        assert 0 < row.area < 1
        assert all(map(math.isfinite, row.totals))
        changes = [comparison.area for comparison in row.against.values()]
        assert all(change.least <= change.mean <= change.most for change in changes)


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
    for network, canonized in (("DigitsNet", "folded"), ("DenseNet", "folded, constants apart")):
        row = ablated[network, "epsilon", "input times gradient"]
        change = row.against[canonized].area
        assert abs(change.mean) < 1e-3
        assert row.totals == pytest.approx(ablated[network, "epsilon", canonized].totals, rel=0.02)


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
    assert set(sizes) == {"heatmap.png", "overlay.png", "grid.png", "show.png", "flow.png"}
    assert sizes["heatmap.png"] == sizes["overlay.png"] == (8, 8)
    assert sizes["grid.png"] == (4 * 84 - 4, 3 * 84 - 4)


def test_the_pictures_of_the_readme_are_small_and_as_they_would_be_written_now(tmp_path):
    example = load("heatmaps")
    model, x, _ = digits.load()
    fmodel, params, *_ = lrpfunc.canonize(*lrpfunc.functionalize(model, x))
    example.write_readme(fmodel, params, x[10:20], tmp_path)
    for name in ("heatmaps.png", "flow.png"):
        assert (EXAMPLES / name).stat().st_size < 60_000
        with Image.open(EXAMPLES / name) as kept, Image.open(tmp_path / name) as now:
            assert kept.size == now.size
    # Other machines round otherwise, and other fonts are drawn otherwise: the colours of heatmaps by a few steps.
    with Image.open(EXAMPLES / "heatmaps.png") as kept, Image.open(tmp_path / "heatmaps.png") as now:
        assert np.abs(np.asarray(kept, dtype=int) - np.asarray(now, dtype=int)).max() <= 8


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
                assert (
                    [label.name for label in sample.labels]
                    == [label.name for label in attribution.labels]
                    == [expected]
                )
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
