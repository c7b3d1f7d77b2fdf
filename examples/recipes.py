"""Recipes: questions that a few lines around `attribute` and `record` answer, with a picture of each.

    python examples/recipes.py --out folder

What makes two photos alike (BiLRP), what speaks for one class and not for others (CLRP, SGLRP, a difference of logits),
what looks like another photo, and where two models part. `examples/guides/recipes.md` explains them; `--guides` writes
the guide's pictures beside it. Photos and network are those of the extra `photos`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageOps

import lrpfunc
from lrpfunc import composites, heatmaps, rules
from lrpfunc.pictures import classifiers

SIDE = 224
EMBEDDING, HEAD = "reshape", "_fc"  # of EfficientNet-Lite0
CAT, CUP = "Egyptian cat", "cup"
PATCH, LINES = 32, 12

# -- the recipes ------------------------------------------------------------------------------------------------------


def patches(relevance, side):
    """The sums (..., patches) of relevance (..., channels, height, width) over squares, row by row."""
    squares = relevance.unflatten(-1, (-1, side)).unflatten(-3, (-1, side))
    return squares.sum((-5, -3, -1)).flatten(-2)


def pairs(embed, params, x, other, rules, side, most=None, chunk_size=16):
    """Relevance (patches of x, patches of other) of the inner product of two images' embeddings: BiLRP."""
    trail = lrpfunc.record(embed, params, torch.cat([x, other]), rules)
    products = trail.output[0] * trail.output[1]
    kept = products.argsort(descending=True)[:most]  # most: only so many dimensions, those with the largest products
    pooled = [patches(trail.pull_each(some)[0], side) for some in kept.split(chunk_size)]
    ours, theirs = torch.cat(pooled).unbind(1)  # (dimensions, patches)
    return ours.T @ theirs


def beyond_marginals(paired):
    """What pairs have beyond what each patch has alone: R_ij - R_i R_j / R, where both and all sum to zero."""
    return paired - paired.sum(1, keepdim=True) * paired.sum(0) / paired.sum()


def difference(this, that):
    """Why more of this class than of that."""

    def seed(y):
        relevance = torch.zeros_like(y)
        relevance[:, this], relevance[:, that] = y[:, this], -y[:, that]
        return relevance

    return seed


def against_others(this):
    """A class against all others, which share its logit with a minus: CLRP."""

    def seed(y):
        relevance = (-y[:, [this]] / (y.shape[1] - 1)).expand_as(y).clone()
        relevance[:, this] = y[:, this]
        return relevance

    return seed


def softmax_gradient(this):
    """A class against those that could be taken for it, by the derivative of its probability: SGLRP."""

    def seed(y):
        p = y.softmax(1)
        relevance = -p[:, [this]] * p
        relevance[:, this] += p[:, this]
        return relevance

    return seed


def inner_product(given):
    """What in an image gives its embedding the inner product with another one, `given`."""
    return lambda y: y * given


def cosine(given):
    """As `inner_product`, of the cosine; the lengths of both are constants."""
    return lambda y: y * given / (y.norm(dim=1, keepdim=True) * given.norm())


def turning(given):
    """What turns an embedding towards `given` and what away: the cosine, in which the length counts, too."""
    return lambda y: cosine(given)(y) - cosine(given)(y).sum(1, keepdim=True) * (y / y.norm(dim=1, keepdim=True)) ** 2


def gap(fmodel, params, other_fmodel, other_params, x):
    """A program for what one model gives more than another for the same input, and its parameters."""
    both = {"one": params, "other": other_params}
    return lrpfunc.trace(lambda both, x: fmodel(both["one"], x) - other_fmodel(both["other"], x), both, x)


# -- their pictures ---------------------------------------------------------------------------------------------------


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("recipes"), help="a folder, made if it does not exist")
    parser.add_argument("--guides", action="store_true", help="write the pictures of the guide")
    parser.add_argument("--dimensions", type=int, help="of the embedding, for pairs of patches; all unless given")
    options = parser.parse_args(arguments)
    out = Path(__file__).parent if options.guides else options.out
    out.mkdir(parents=True, exist_ok=True)
    classifier = classifiers.load("efficientnet_lite0")
    model = lrpfunc.canonize(*lrpfunc.functionalize(classifier.model, preprocessed(classifier, [collage()])))
    drawn = {
        "contrasts": contrasts(classifier, model),
        "similar": similar(classifier, model),
        "pairs": alike(classifier, model, options.dimensions),
    }
    for name, (figure, _) in drawn.items():
        heatmaps.save(figure, out / f"{name}.png", dpi=90)
    return {name: rows for name, (_, rows) in drawn.items()}


def preprocessed(classifier, images):
    return torch.stack([classifier.preprocess(image) for image in images])


def photo(name, box):
    from skimage import data

    return Image.fromarray(getattr(data, name)()).crop(box)


def collage():
    """A cat at the left and a cup at the right of one picture."""
    whole = Image.new("RGB", (SIDE, SIDE))
    for i, one in enumerate([photo("cat", (100, 20, 350, 300)), photo("coffee", (150, 40, 480, 400))]):
        whole.paste(ImageOps.fit(one, (SIDE // 2, SIDE)), (i * SIDE // 2, 0))
    return whole


def motorcycles():
    """A motorcycle from two places, the second time mirrored."""
    from skimage import data

    left, right, _ = data.stereo_motorcycle()
    return [ImageOps.fit(one, (SIDE, SIDE)) for one in (Image.fromarray(left), ImageOps.mirror(Image.fromarray(right)))]


def share_at_the_left(relevance):
    """Of what is positive in relevance (..., channels, height, width), the share in the left half: the cat's."""
    positive = relevance.sum(-3).clamp(min=0)
    return (positive[..., : positive.shape[-1] // 2].sum() / positive.sum()).item()


def contrasts(classifier, model):
    """The cat and the cup in one picture, each by itself and against others; prints the cat's shares."""
    picture = collage()
    x = preprocessed(classifier, [picture])
    cat, cup = (classifier.categories.index(name) for name in (CAT, CUP))
    rows, drawn = {}, []
    for head in (rules.zplus(), rules.epsilon()):
        composite = composites.epsilon_plus_flat(entries={HEAD: head})
        for name, this, that in ((CAT, cat, cup), (CUP, cup, cat)):
            targets = {
                "by itself": this,
                "against the other": difference(this, that),
                "CLRP": against_others(this),
                "SGLRP": softmax_gradient(this),
            }
            maps = [lrpfunc.attribute(model.fmodel, model.params, x, composite, target) for target in targets.values()]
            rows[f"{name}, {head.label} at the head"] = dict(zip(targets, map(share_at_the_left, maps), strict=True))
            drawn.append([picture, *(heatmaps.overlay(picture, one[0], quantile=0.99) for one in maps)])
    report("of what is positive, at the cat's side", rows)
    columns = ("", "by itself", "against\nthe other", "against all\n(CLRP)", "against rivals\n(SGLRP)")
    return heatmaps.figure(drawn[:2], columns, rows=(CAT, CUP)), rows


def similar(classifier, model):
    """What in the picture of both looks like a photo of one; prints the cat's shares."""
    picture, given = collage(), [photo("cat", (0, 0, 451, 300)), photo("coffee", (0, 0, 600, 400))]
    given = [ImageOps.mirror(ImageOps.fit(one, (SIDE, SIDE))) for one in given]
    embed, _ = model.fmodel.cut(EMBEDDING)
    x = preprocessed(classifier, [picture])
    rows, drawn = {}, []
    for name, one in zip((CAT, CUP), given, strict=True):
        embedding = embed(model.params, preprocessed(classifier, [one]))
        targets = {"cosine": cosine(embedding), "turning": turning(embedding)}
        maps = [
            lrpfunc.attribute(embed, model.params, x, composites.epsilon_plus_flat(), target)
            for target in targets.values()
        ]
        rows[name] = dict(zip(targets, map(share_at_the_left, maps), strict=True))
        drawn.append([one, picture, *(heatmaps.overlay(picture, one[0], quantile=0.99) for one in maps)])
    report("of what is positive, at the cat's side", rows)
    return heatmaps.figure(drawn, ("the given photo", "the picture", "alike by\nthe cosine", "turns towards it")), rows


def alike(classifier, model, most=None):
    """The pairs of patches that make the two photos of the motorcycle alike; prints how many are of one place."""
    photos = motorcycles()
    x, other = preprocessed(classifier, photos).split(1)
    embed, _ = model.fmodel.cut(EMBEDDING)
    composite = composites.epsilon_gamma_box(*classifier.input_range())
    found = pairs(embed, model.params, x, other, composite, PATCH, most)
    figure = heatmaps.new_figure(6.4, 6)
    rows = {}
    for axis, (name, each) in zip(
        figure.subplots(2), {"BiLRP": found, "beyond the marginals": beyond_marginals(found)}.items(), strict=True
    ):
        rows[name] = {"one place": connect(axis, photos, each)}
        axis.set_title(name, fontsize=9)
    report(f"of {LINES} pairs", rows)
    return figure, rows


def connect(axis, photos, paired):
    """Draw lines between patches with the largest relevance, and give the share that meets the same place, mirrored."""
    gap, across = SIDE // 6, SIDE // PATCH
    whole = Image.new("RGB", (2 * SIDE + gap, SIDE), "white")
    for i, one in enumerate(photos):
        whole.paste(one, (i * (SIDE + gap), 0))
    axis.imshow(whole)
    axis.set_axis_off()
    values, places = paired.flatten().topk(LINES)
    one_place = 0
    for value, place in zip(values.tolist(), places.tolist(), strict=True):
        (row, column), (other_row, other_column) = (divmod(i, across) for i in divmod(place, across**2))
        ends = [(column + 0.5) * PATCH, SIDE + gap + (other_column + 0.5) * PATCH]
        heights = [(row + 0.5) * PATCH, (other_row + 0.5) * PATCH]
        axis.plot(ends, heights, "-o", color="#1060e0", linewidth=2.5 * value / values[0].item(), markersize=3)
        one_place += max(abs(row - other_row), abs(across - 1 - column - other_column)) <= 1
    return one_place / LINES


def report(title, rows):
    print(title)
    for name, row in rows.items():
        print(f"  {name:36}", *(f"{what} {share:.0%}   " for what, share in row.items()))


if __name__ == "__main__":
    main()
