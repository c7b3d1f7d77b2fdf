"""Reports of every kind in Chromium and Firefox: what cards and dialogs say, by keyboard, wide and narrow, light and
dark, and that axe-core finds nothing serious.
"""

import itertools

import numpy as np
import pytest

from lrpfunc.pictures.outputs import BINARY, LABELS, VALUES, Meaning
from lrpfunc.pictures.report import page as report_page
from tests.browsers import decoded, grave
from tests.test_report import relevance, write_run
from tests.test_report_page import coloured, pixels, plotted, search

pytestmark = pytest.mark.dev

N = 6
ONE, OTHER = relevance(N, 1, 8, 8), relevance(N, 1, 8, 8, seed=1)
FAILURES = [(9, "broken.png", "it is cut off")]
LOOKS = [(1400, 900, "light"), (390, 844, "dark")]
STATES = ["classes", "comparison", "binary", "labels", "values", "values compared", "empty", "right to left"]
HEBREW = "\u05ea\u05de\u05d5\u05e0\u05d4"


def run(folder, name, maps, composite, meaning=None, **columns):
    details = {"model": "net", "composite": composite, "output": (meaning or Meaning("classes")).as_json()}
    return write_run(folder / f"{name}.h5", maps, details=details, failures=FAILURES, **columns)


def classes(folder, name, maps=ONE, composite="epsilon", shift=0, **columns):
    """Three classes: predicted 0, 1, 2, 0, 1, 2, or one further in the last three rows; true 0, 1, 2, 0, 1, -1."""
    predicted = (np.arange(N) + shift * (np.arange(N) > 2)) % 3
    columns = {"label": [0, 1, 2, 0, 1, -1], "categories": ["cat", "dog", "bird"], **columns}
    return run(folder, name, maps, composite, prediction=4 * np.eye(3)[predicted], **columns)


def binary(folder, name):
    logits = np.array([-1.92, 2, 1, 0, -1, 3])[:, None]
    columns = {"target": np.ones(N, int), "label": [1, 1, 0, 0, 0, -1], "categories": ["not ill", "ill"]}
    return run(folder, name, ONE, "epsilon", Meaning(BINARY), prediction=logits, logit=logits[:, 0], **columns)


def labels(folder, name):
    prediction = [[3, 1, -2], [-1, -2, -3], [-1, 4, 2], [1, 2, 3], [-1, -1, 5], [0, -1, -1]]
    columns = {"label": [1, 0, 1, 2, 0, -1], "categories": ["cat", "dog", "bird"]}
    return run(folder, name, ONE, "epsilon", Meaning(LABELS), prediction=prediction, **columns)


def values(folder, name, maps=ONE, shift=0.0):
    numbers = np.array([3.2, -1, 0, 10, 5, 2])[:, None] + shift
    columns = {"target": np.zeros(N, int), "label": -np.ones(N, int), "categories": ["age"]}
    return run(folder, name, maps, "epsilon", Meaning(VALUES, unit="years"), prediction=numbers, **columns)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A page of each kind."""
    folder = tmp_path_factory.mktemp("pages")
    sources = {
        "classes": [classes(folder, "1")],
        "comparison": [classes(folder, "2"), classes(folder, "3", OTHER, "epsilon_plus", shift=1)],
        "binary": [binary(folder, "4")],
        "labels": [labels(folder, "5")],
        "values": [values(folder, "6")],
        "values compared": [values(folder, "7"), values(folder, "8", OTHER, 0.5)],
        "empty": [run(folder, "9", np.zeros((0, 1, 8, 8)), "epsilon")],
        "right to left": [classes(folder, "10", categories=[HEBREW, "dog", "bird"], file=[f"{HEBREW}.png"] * N)],
    }
    written = {}
    for name, (first, *beside) in sources.items():
        written[name] = report_page.write([first], folder / f"{name}.html", beside=beside).path
    assert list(written) == STATES
    return written


def texts(page, selector):
    return page.locator(f"#gallery {selector}").all_text_contents()


# -- what is said -----------------------------------------------------------------------------------------------------


def facts(page, which="#facts"):
    terms, answers = (page.locator(which).first.locator(tag).all_text_contents() for tag in ("dt", "dd"))
    return dict(zip(terms, answers, strict=True))


def test_one_logit(opened, pages):
    page = opened(pages["binary"])
    assert texts(page, ".verdict")[:2] == ["✗ wrong: not ill 87.2%, is ill", "✓ right: ill 88.1%"]
    assert texts(page, ".numbers")[0].startswith("explains ill 12.8% · logit -1.92")
    assert page.locator("#predicted option").all_text_contents() == ["any", "not ill: 3", "ill: 3"]
    page.locator("#gallery .card").first.click()
    assert facts(page)["Explained class"] == "ill, 12.8%"
    assert facts(page)["Predicted class"] == "not ill, 87.2%"
    assert page.locator("#dialog .top td").all_text_contents() == ["not ill", "87.2%", "ill", "12.8%"]


def test_several_labels(opened, pages):
    page = opened(pages["labels"])
    assert texts(page, ".verdict") == [
        "✓ right: cat 95.3%, dog 73.1%",
        "✗ wrong: no label, at most cat 26.9%, is cat 26.9%",
        "✓ right: dog 98.2%, bird 88.1%",
        "✓ right: bird 95.3%, dog 88.1%, cat 73.1%",
        "✗ wrong: bird 99.3%, is cat 26.9%",
        "? unknown: cat 50.0%",
    ]
    assert page.locator("#predicted option").all_text_contents() == ["any", "cat: 3", "dog: 3", "bird: 3"]
    page.select_option("#predicted", "1")
    assert texts(page, ".file") == ["0.png", "2.png", "3.png"]
    page.locator("#gallery .card").first.click()
    assert facts(page)["Labels of 50% or more"] == "cat, dog"


def test_values(opened, pages):
    page = opened(pages["values"])
    assert texts(page, ".verdict")[0] == "age: 3.2 years"
    assert texts(page, ".numbers")[0] == f"relevance {ONE[0].sum():.4g}"
    page.select_option("#sort", "logit")
    assert texts(page, ".file") == [f"{i}.png" for i in (1, 2, 5, 0, 4, 3)]
    assert page.text_content("#high") == "m, raises the value"
    plotted(page)
    page.locator("#gallery .card").nth(3).click()
    assert facts(page)["Value in years"] == "3.2"
    assert "Result" not in facts(page)
    assert page.locator("#dialog .top td").all_text_contents() == ["age", "3.2 years"]
    page.keyboard.press("Escape")
    search(page, "age 0")
    assert texts(page, ".file") == ["0.png"]


# -- two runs ---------------------------------------------------------------------------------------------------------


def correlations():
    return [np.corrcoef(one.sum(0).ravel(), other.sum(0).ravel())[0, 1] for one, other in zip(ONE, OTHER, strict=True)]


def test_cards_show_both_runs(opened, pages):
    page = opened(pages["comparison"])
    first, fourth = page.locator("#gallery .card").first, page.locator("#gallery .card").nth(3)
    assert first.locator(".verdict").all_text_contents() == ["A ✓ right: cat 96.5%", "B ✓ right: cat 96.5%"]
    assert fourth.locator(".verdict").all_text_contents() == ["A ✓ right: cat 96.5%", "B ✗ wrong: dog 96.5%, is cat"]
    said = f"correlation {float(f'{correlations()[0]:.3g}'):g} · explains cat"
    assert first.locator(".numbers").text_content() == said
    assert fourth.locator(".numbers").text_content().endswith(" · explains cat (A), dog (B)")
    for side, maps in enumerate((ONE, OTHER)):
        shown = pixels(page, f"#gallery li:first-child .heat[data-side='{side}']")[..., :3]
        np.testing.assert_allclose(shown, coloured(maps[0, 0], np.abs(maps[0, 0]).max())[..., :3], atol=6)
    page.select_option("#scale", "one")
    most = max(np.abs(ONE).max(), np.abs(OTHER).max())
    for side, maps in enumerate((ONE, OTHER)):
        shown = pixels(page, f"#gallery li:first-child .heat[data-side='{side}']")[..., :3]
        np.testing.assert_allclose(shown, coloured(maps[0, 0], most)[..., :3], atol=6)


def test_samples_are_found_by_what_changed(opened, pages):
    page = opened(pages["comparison"])

    def chosen(**values):
        for control, value in values.items():
            page.select_option(f"#{control}", value)
        found = [int(text[0]) for text in texts(page, ".file")]
        for control in values:
            page.select_option(f"#{control}", "")
        return found

    assert chosen(result="right-right") == [0, 1, 2]
    assert chosen(result="right-wrong") == [3, 4]
    assert chosen(result="unknown-unknown") == [5]
    assert chosen(change="other") == [3, 4, 5]
    assert chosen(change="same") == [0, 1, 2]
    assert chosen(**{"predicted-b": "1"}) == [1, 3]
    assert chosen(predicted="0") == [0, 3]
    page.select_option("#sort", "correlation")
    assert [int(text[0]) for text in texts(page, ".file")] == np.argsort(correlations()).tolist()
    page.select_option("#direction", "-1")
    assert [int(text[0]) for text in texts(page, ".file")] == np.argsort(correlations())[::-1].tolist()


def test_a_sample_of_both_runs(opened, pages):
    page = opened(pages["comparison"])
    page.locator("#gallery .card").nth(3).click()
    assert facts(page)["True class"] == "cat"
    assert float(facts(page)["Correlation of the maps"]) == pytest.approx(correlations()[3], abs=1e-4)
    assert facts(page)["Predictions"] == "different"
    assert facts(page)["Change of the logit"] == "none: each explains another class"
    sides = page.locator("#dialog .of-side")
    assert [each.locator("dd").first.text_content() for each in sides.all()] == ["✓ right", "✗ wrong"]
    assert page.locator("#dialog table").nth(1).locator("td").all_text_contents()[:2] == ["dog", "96.5%"]
    for side, maps in enumerate((ONE, OTHER)):
        shown = pixels(page, f"#dialog .heat[data-side='{side}']")[..., :3]
        np.testing.assert_allclose(shown, coloured(maps[3, 0], np.abs(maps[3, 0]).max())[..., :3], atol=6)
        assert page.locator("#dialog .over").nth(side).get_attribute("aria-label").endswith(f"({'AB'[side]})")
    assert page.eval_on_selector_all("#dialog img", "all => all.map(image => image.naturalWidth)") == [8] * 4
    page.keyboard.press("Escape")
    page.select_option("#sort", "change")
    assert texts(page, ".file")[3:] == ["3.png", "4.png", "5.png"]  # where there is none, last


def test_the_plot_tells_both_runs_apart(opened, pages):
    page = opened(pages["comparison"])
    shown = plotted(page)[..., :3]
    for name in ("first", "second"):
        colour = page.evaluate(f"getComputedStyle(document.documentElement).getPropertyValue('--{name}')")
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(shown - rgb).max(axis=-1) < 40).sum() > 20
    page.focus("#plot")
    said = set()
    for _ in range(2 * N):
        page.keyboard.press("ArrowRight")
        said.add(page.text_content("#point").split(":")[0])
    assert said == {f"{i}.png ({letter})" for i, letter in itertools.product(range(N), "AB")}


def test_values_of_both_runs(opened, pages):
    page = opened(pages["values compared"])
    assert texts(page, ".verdict")[:2] == ["A age: 3.2 years", "B age: 3.7 years"]
    assert " · value +0.5 · explains age" in texts(page, ".numbers")[0]
    page.locator("#gallery .card").first.click()
    assert facts(page)["Change of the value in years"] == "0.5"


# -- names ------------------------------------------------------------------------------------------------------------


def test_names_from_right_to_left_stay_by_themselves(opened, pages):
    page = opened(pages["right to left"])
    style = "node => [getComputedStyle(node).direction, getComputedStyle(node).unicodeBidi]"
    assert page.eval_on_selector("#gallery .file", style) == ["rtl", "isolate"]
    assert page.eval_on_selector("#gallery .verdict bdi", style) == ["rtl", "isolate"]
    assert page.eval_on_selector("#gallery .verdict", style)[0] == "ltr"
    assert page.locator("#target option").all_text_contents()[1] == f"\u2068{HEBREW}\u2069: 2"
    # What follows the name stands to its right.
    places = """card => ['bdi', null].map(name => {
        const line = card.querySelector('.verdict'), range = document.createRange();
        range.selectNode(name ? line.querySelector(name) : line.lastChild);
        return range.getBoundingClientRect().left;
    })"""
    name, after = page.eval_on_selector("#gallery .card", places)
    assert after > name


# -- access, in both browsers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height", "scheme"), LOOKS)
@pytest.mark.parametrize("state", STATES)
def test_nothing_grave_for_axe_in_chromium(opened, pages, axe, state, width, height, scheme):
    page = opened(pages[state], width=width, height=height, color_scheme=scheme)
    page.evaluate(axe)

    def check():
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert grave(page.evaluate("async () => (await axe.run(document)).violations")) == []

    for each in page.locator("summary").all():
        each.click()
    check()
    if state == "empty":
        return
    page.locator("#gallery .card").first.click()
    pixels(page, "#dialog .heat")
    check()
    page.keyboard.press("Escape")
    search(page, "nothing like it")
    assert page.is_visible("#none")
    check()


@pytest.mark.parametrize(("width", "height", "scheme"), LOOKS)
@pytest.mark.parametrize("state", STATES)
def test_nothing_grave_for_axe_in_firefox(firefox, pages, axe, state, width, height, scheme):
    firefox.open(pages[state], width, height, scheme == "dark")
    assert firefox.do("return matchMedia('(prefers-color-scheme: dark)').matches") == (scheme == "dark")
    firefox.do("for (const each of document.querySelectorAll('details')) each.open = true")

    def check():
        assert firefox.do("return [innerWidth, document.documentElement.scrollWidth <= innerWidth]") == [width, True]
        assert grave(firefox.axe(axe)) == []

    check()
    if state == "empty":
        return
    firefox.do("document.querySelector('#gallery .card').click()")
    firefox.wait("document.querySelector('#dialog .heat').width > 0")
    check()


def test_axe_would_find_what_is_grave(opened, firefox, pages, axe):
    spoil = "document.body.append(document.createElement('button'))"  # that has no name
    page = opened(pages["classes"])
    page.evaluate(f"{{ {spoil} }}")
    page.evaluate(axe)
    firefox.open(pages["classes"], 1400, 900)
    firefox.do(spoil)
    for found in (page.evaluate("async () => (await axe.run(document)).violations"), firefox.axe(axe)):
        assert [(name, impact) for name, impact, _ in grave(found)] == [("button-name", "critical")]


def test_firefox_by_keyboard(firefox, pages):
    firefox.open(pages["comparison"], 1400, 900)
    assert firefox.do("return document.getElementById('count').textContent") == f"showing {N} of {N}"
    active = "const active = document.activeElement; return active.id || active.className"
    reached = []
    for _ in range(40):
        firefox.press("TAB")
        reached.append(firefox.do(active))
        if reached[-1] == "search":
            break
    firefox.press(*"dog 4")
    firefox.wait("document.querySelectorAll('#gallery .card').length === 1")
    firefox.press("BACK_SPACE", "BACK_SPACE", "ENTER")
    assert firefox.do("return document.querySelectorAll('#gallery .card').length") == 3
    while firefox.do(active) != "card" and len(reached) < 100:
        firefox.press("TAB")
        reached.append(firefox.do(active))
    controls = ["search", "label", "predicted", "predicted-b", "target", "result", "change", "sort", "direction"]
    wanted = [*controls, "colors", "range", "scale", "all", "mean", "plot", "card"]
    assert [each for each in dict.fromkeys(reached) if each in wanted] == wanted
    firefox.press("ARROW_RIGHT", "ENTER")
    title = "return document.getElementById('dialog-title').textContent"
    assert firefox.do(title) == "3.png"
    firefox.press("ARROW_RIGHT")
    assert firefox.do(title) == "4.png"
    firefox.press("ESCAPE")
    assert firefox.do("return [document.getElementById('dialog').open, document.activeElement.title]") == [
        False,
        "4.png",
    ]


def test_firefox_paints_the_same_colours(firefox, pages):
    firefox.open(pages["comparison"], 1400, 900)
    for side, maps in enumerate((ONE, OTHER)):
        selector = f"#gallery li:first-child .heat[data-side='{side}']"
        firefox.do("document.getElementById('gallery').scrollIntoView()")
        firefox.wait("document.querySelector(arguments[0]).width > 0", selector)
        shown = decoded(firefox.do("return document.querySelector(arguments[0]).toDataURL()", selector))[..., :3]
        np.testing.assert_allclose(shown, coloured(maps[0, 0], np.abs(maps[0, 0]).max())[..., :3], atol=6)
