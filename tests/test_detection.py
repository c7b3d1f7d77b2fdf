"""The examples of detection and segmentation: what is explained is what was found, and relevance lies at the thing."""

import pytest
import torch
from PIL import Image

from lrpfunc import targets
from tests.test_examples import load

detection, segmentation = load("detection"), load("segmentation")


def scenes(draw, count=6):
    return [draw(torch.Generator().manual_seed(seed))[0] for seed in range(100, 100 + count)]


def mean_shares(example, seen):
    assert len(seen) >= 5
    return torch.tensor([example.shares(one) for one in seen]).mean(0).tolist()


# -- detection --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def detector():
    return detection.trained(200)


def test_scenes_have_things_in_their_boxes():
    picture, boxes, labels = detection.scene(torch.Generator().manual_seed(3), strokes=0)
    assert picture.shape == (3, 96, 96)
    assert picture.amin() >= 0
    assert picture.amax() <= 1
    assert labels.shape == (3,)
    for left, top, right, bottom in boxes.int().tolist():
        thing = picture[:, (top + bottom) // 2, (left + right) // 2]
        around = picture[:, top - 2, left - 2]
        assert (thing - around).abs().amax() > 0.2
        assert 14 <= bottom - top <= 33


def test_a_box_that_was_found_is_the_candidate_whose_score_it_has(detector):
    """Suppression leaves the best of those that overlap: what `targets.box` takes."""
    (picture,) = scenes(detection.scene, 1)
    with torch.no_grad():
        (found,) = detector([picture])
        output = targets.heads(detector)(detector.transform([picture])[0].tensors)
    for box, label, score in [*zip(found["boxes"], found["labels"].tolist(), found["scores"], strict=True)][:3]:
        relevance = targets.box(label, box)(output)["logits"]
        ((_, index, at),) = relevance.nonzero().tolist()
        assert at == label
        torch.testing.assert_close(relevance[0, index, at].sigmoid(), score)
        torch.testing.assert_close(output["boxes"][0, index].clamp(0, 96), box)


def test_relevance_lies_in_the_box_more_than_beside_it_and_more_than_that_of_the_gradient(detector):
    seen = detection.see(detector, scenes(detection.scene), 0.2)
    inside, beside, gradient, _ = mean_shares(detection, seen)
    assert inside > 2.5 * beside
    assert inside > 1.2 * gradient


def test_shares_by_hand():
    relevance = torch.zeros(3, 96, 96)
    relevance[0, 10:14, 20:24] = 1
    relevance[2, 10:14, 24:28] = -0.5
    box = torch.tensor([20.0, 10.0, 24.0, 14.0])
    assert detection.share(relevance, box) == pytest.approx(2 / 3)
    assert detection.beside(box).tolist() == [24, 10, 28, 14]
    assert detection.share(relevance, detection.beside(box)) == pytest.approx(1 / 3)
    assert detection.beside(box + 60).tolist() == [76, 70, 80, 74]


def test_the_picture_of_boxes(detector, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(detection, "trained", lambda steps: detector)
    seen = detection.main(["--out", str(tmp_path / "detection.png")])
    assert seen
    assert "of relevance in the box" in capsys.readouterr().out
    with Image.open(tmp_path / "detection.png") as picture:
        picture.load()
        assert picture.height > 400


# -- segmentation -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    return {
        "pictures": segmentation.trained(segmentation.deeplab(), segmentation.scene, 400, batch=8),
        "volumes": segmentation.trained(segmentation.UNet(), segmentation.volume, 70, batch=4),
    }


@pytest.mark.parametrize(("name", "better"), [("pictures", 1.15), ("volumes", 1.02)])
def test_relevance_lies_at_the_mask_more_than_that_of_the_gradient(networks, name, better):
    draw = {"pictures": segmentation.scene, "volumes": segmentation.volume}[name]
    seen = segmentation.see(networks[name], scenes(draw))
    inside, beside, gradient, _ = mean_shares(segmentation, seen)
    assert inside > 5 * beside
    assert inside > better * gradient


def test_a_mask_is_what_hangs_together():
    region = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 1]]).bool()
    expected = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]).bool()
    assert torch.equal(segmentation.hanging_together(region, 6), expected)
    one = torch.zeros(3, 4, 4, dtype=torch.bool)
    one[1, 1, 1] = True
    assert segmentation.grown(one).sum() == 27
    assert torch.equal(segmentation.beside(one).nonzero(), torch.tensor([[1, 1, 3]]))


def test_the_picture_of_masks(networks, tmp_path, monkeypatch, capsys):
    made = iter(networks.values())
    monkeypatch.setattr(segmentation, "trained", lambda *_, batch: next(made))
    first, second = segmentation.main(["--out", str(tmp_path / "segmentation.png")])
    assert first.relevance.shape == (3, 64, 64)
    assert second.relevance.shape == (1, 12, 32, 32)
    assert "ten balls" in capsys.readouterr().out
    with Image.open(tmp_path / "segmentation.png") as picture:
        picture.load()
        assert picture.height > 400
