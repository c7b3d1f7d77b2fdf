"""A report in a browser: a script goes through everything by mouse and keyboard and looks at what has changed."""

import numpy as np
import pytest
from matplotlib import colormaps

from lrpfunc.pictures.report import page as report_page
from tests.browsers import decoded
from tests.test_report import HOSTILE, relevance, write_run

pytestmark = pytest.mark.dev

CLASSES = ["zero", "one", "two", "three"]
N = 12
# Predicted and explained: class i % 4, but row 5 explains class 3. Rows 2 and 7 are wrong, row 9 is of unknown class.
PREDICTED = np.arange(N) % 4
LABEL = np.where(np.isin(np.arange(N), [2, 7]), (PREDICTED + 1) % 4, PREDICTED)
LABEL[9] = -1
TARGET = np.where(np.arange(N) == 5, 3, PREDICTED)
CONFIDENT = 1 + np.array([3, 8, 1, 10, 0, 7, 11, 2, 9, 4, 6, 5])  # the predicted logit: the order of confidence
MAPS = relevance(N, 1, 8, 8) * (1 + np.arange(N))[:, None, None, None]
MAPS[:, 0, 0, 0] = 0


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    prediction = np.zeros((N, 4))
    prediction[np.arange(N), PREDICTED] = CONFIDENT
    path = write_run(
        folder / "run.h5",
        MAPS,
        prediction=prediction,
        label=LABEL,
        target=TARGET,
        # Twice the sum, but for one: the median of sum / logit is a half.
        logit=2 * MAPS.sum(axis=(1, 2, 3)) * np.where(np.arange(N) == 3, 5, 1),
        index=100 + np.arange(N)[::-1],  # the data set's order is not the file's
        file=[f"pic-{i:02}.png" for i in range(N)],
        categories=CLASSES,
    )
    return report_page.write([path], folder / "report.html").path


@pytest.fixture
def page(opened, written):
    return opened(written)


def files(page):
    return [int(text[4:6]) for text in page.locator("#gallery .file").all_text_contents()]


def search(page, text):
    """Type, and wait until the typing is taken to have stopped."""
    page.fill("#search", text)
    page.wait_for_function("() => document.getElementById('gallery').ariaBusy === 'false'")


def tallied(page):
    return page.text_content("#count")


def pixels(page, selector):
    """A canvas's pixels (H, W, 4), once it is painted."""
    page.wait_for_function("selector => document.querySelector(selector).width > 0", arg=selector)
    url = page.eval_on_selector(selector, "canvas => canvas.toDataURL()")  # as PNG, which is exact
    return decoded(url)


def heat(page, row):
    """The heatmap on the card of a row; the gallery is in the data set's order, from the last row to the first."""
    return pixels(page, f"#gallery li:nth-child({N - row}) .heat")


def coloured(values, largest, colors="seismic"):
    """What matplotlib makes of values between -largest and largest, in no fewer steps than the page has."""
    return colormaps[colors].resampled(4001)((np.clip(values / largest, -1, 1) + 1) / 2, bytes=True)


def focused(page, attribute="class"):
    return page.evaluate("name => document.activeElement.getAttribute(name)", attribute)


def expected(rows, key=lambda row: -row):
    return sorted(rows, key=key)


def test_all_rows_are_shown_in_the_order_of_the_data_set(page):
    assert files(page) == list(range(N))[::-1]
    assert tallied(page) == "showing 12 of 12"
    card = page.locator("#gallery .card").nth(N - 1 - 7)
    confidence = np.exp(CONFIDENT[7]) / (np.exp(CONFIDENT[7]) + 3)
    assert card.locator(".verdict").text_content() == f"✗ wrong: three {confidence:.1%}, is zero"
    assert "wrong" in card.locator(".verdict").get_attribute("class")
    assert page.locator(".verdict.wrong").count() == 2
    assert page.locator(".verdict.unknown").all_text_contents()[0].startswith("? unknown: one")


def test_filters_leave_what_fits(page):
    rows = np.arange(N)
    page.select_option("#label", "0")
    assert files(page) == expected(rows[LABEL == 0])
    assert tallied(page) == "showing 4 of 12"
    page.select_option("#predicted", "3")
    assert files(page) == [7]
    page.select_option("#predicted", "1")
    assert files(page) == []
    assert page.is_visible("#none")
    page.click("text=Show all")
    assert files(page) == expected(rows)
    assert not page.is_visible("#none")
    page.select_option("#target", "3")
    assert files(page) == expected(rows[TARGET == 3])
    page.select_option("#target", "")
    for result, fits in (
        ("right", LABEL == PREDICTED),
        ("wrong", (LABEL >= 0) & (LABEL != PREDICTED)),
        ("unknown", LABEL < 0),
    ):
        page.select_option("#result", result)
        assert files(page) == expected(rows[fits])
    page.select_option("#result", "")
    search(page, " PIC-1")
    assert files(page) == [11, 10]


def test_a_search_takes_several_words_of_files_and_classes(page):
    search(page, "three PIC-0")
    assert files(page) == expected([3, 5, 7, 2])  # predicted, explained or true
    search(page, "  zero   08 ")
    assert files(page) == [8]
    search(page, "zero pic-09")
    assert files(page) == []
    search(page, "unknown")
    assert files(page) == [9]


def test_names_are_found_however_their_accents_are_written(opened, tmp_path):
    path = write_run(tmp_path / "run.h5", relevance(2), file=["Zu\u0308rich.png", "Z\u00fcrich-2.png"])
    page = opened(report_page.write([path], tmp_path / "report.html").path)
    for text in ("z\u00fcrich", "ZU\u0308RICH"):
        search(page, text)
        assert page.locator("#gallery .card").count() == 2


def test_nothing_happens_while_one_types_and_all_when_one_stops(browser, written):
    context = browser.new_context()
    page = context.new_page()
    page.clock.install()
    page.goto(written.as_uri())
    page.clock.run_for(10)
    page.focus("#search")
    for letter in "pic-03":
        page.keyboard.type(letter)
        page.clock.run_for(100)
        assert len(files(page)) == N
    assert page.get_attribute("#gallery", "aria-busy") == "true"
    page.clock.run_for(60)
    assert files(page) == [3]
    assert page.get_attribute("#gallery", "aria-busy") == "false"
    page.keyboard.type("x")
    page.keyboard.press("Enter")  # waits for nothing
    assert files(page) == []
    page.fill("#search", "pic-0")
    page.keyboard.press("Enter")
    page.keyboard.type("3")
    page.click("#gallery .card")  # before the search has begun: what is shown stays until the dialog is closed
    page.clock.run_for(1000)
    assert len(files(page)) == 10
    assert page.text_content("#dialog-title") == "pic-09.png"
    page.keyboard.press("Escape")
    assert files(page) == [3]
    assert focused(page, "title") == "pic-03.png"
    context.close()


def test_show_all_clears_the_filters_and_nothing_else(page):
    for control, value in (("label", "1"), ("predicted", "1"), ("target", "1"), ("result", "right")):
        page.select_option(f"#{control}", value)
    search(page, "01")
    others = {"sort": "sum", "direction": "-1", "colors": "bwr", "range": "positive", "scale": "one"}
    for control, value in others.items():
        page.select_option(f"#{control}", value)
    assert files(page) == [1]
    page.click("text=Show all")
    assert len(files(page)) == N
    assert {control: page.input_value(f"#{control}") for control in others} == others


def test_selects_list_the_classes_that_occur(page):
    options = page.locator("#label option").all_text_contents()
    assert options == ["any", "unknown: 1", "zero: 4", "one: 2", "two: 2", "three: 3"]


@pytest.mark.parametrize(("name", "values"), [("sum", MAPS.sum(axis=(1, 2, 3))), ("confidence", CONFIDENT)])
def test_sorting_up_and_down(page, name, values):
    page.select_option("#sort", name)
    assert files(page) == np.argsort(values).tolist()
    page.select_option("#direction", "-1")
    assert files(page) == np.argsort(values)[::-1].tolist()
    page.select_option("#sort", "index")
    assert files(page) == list(range(N))


def test_colours_are_those_of_the_colour_map(page):
    values = MAPS[11, 0]
    for colors in ("seismic", "bwr", "viridis", "gray"):
        page.select_option("#colors", colors)
        shown = heat(page, 11)
        assert (shown[..., 3] == 255).all()
        # One step of 127 on each side of zero changes a colour by at most 6.
        np.testing.assert_allclose(shown[..., :3], coloured(values, np.abs(values).max(), colors)[..., :3], atol=6)
    page.select_option("#colors", "coldnhot")
    assert heat(page, 11)[0, 0].tolist() == [0, 0, 0, 255]  # zero is black


def test_the_range_of_positive_values(page):
    values = MAPS[11, 0]
    largest = np.abs(values).max()
    page.select_option("#range", "positive")
    shown = heat(page, 11)[..., :3]
    assert (shown[values <= 0] == 255).all()  # white, the middle of the colour map, stays zero
    np.testing.assert_allclose(shown, coloured(np.maximum(values, 0), largest)[..., :3], atol=6)
    page.select_option("#colors", "gray")
    # A map without a middle colour is used from end to end.
    whole = 255 * np.maximum(values, 0) / largest
    np.testing.assert_allclose(heat(page, 11)[..., 0], whole, atol=2)
    assert page.text_content("#low") == "0 and below"


def test_one_scale_for_all_follows_what_is_shown(page):
    largest = np.abs(MAPS).max(axis=(1, 2, 3))
    assert largest[8] < largest.max()
    page.select_option("#scale", "one")
    np.testing.assert_allclose(heat(page, 8)[..., :3], coloured(MAPS[8, 0], largest.max())[..., :3], atol=6)
    assert f"m is {largest.max():.4g} for samples" in page.text_content("#meaning")
    search(page, "pic-08")
    alone = pixels(page, "#gallery li:nth-child(1) .heat")[..., :3]
    np.testing.assert_allclose(alone, coloured(MAPS[8, 0], largest[8])[..., :3], atol=6)


def test_the_overlay_is_as_opaque_as_relevance_is_large(page):
    values = MAPS[11, 0]
    heat(page, 11)
    shown = pixels(page, "#gallery li:nth-child(1) .over")
    np.testing.assert_allclose(shown[..., 3], 255 * np.abs(values) / np.abs(values).max(), atol=2)
    filters = "img => [getComputedStyle(img).filter, img.naturalWidth]"
    assert page.eval_on_selector("#gallery .stack img", filters) == ["grayscale(1)", 8]


def test_the_legend_shows_the_colours_in_use(page):
    page.select_option("#colors", "bwr")
    assert pixels(page, "#legend canvas")[0, [0, 127, 254], :3].tolist() == [[0, 0, 255], [255, 255, 255], [255, 0, 0]]
    page.select_option("#range", "positive")
    assert pixels(page, "#legend canvas")[0, [0, -1], :3].tolist() == [[255, 255, 255], [255, 0, 0]]


def test_a_class_mean_is_its_mean_and_filters_the_gallery(page):
    rows = np.flatnonzero(TARGET == 3)
    mean = np.mean([MAPS[row, 0] / np.abs(MAPS[row, 0]).max() for row in rows], axis=0)
    shown = pixels(page, "#means li:nth-child(4) canvas")[..., :3]
    np.testing.assert_allclose(shown, coloured(mean, np.abs(mean).max())[..., :3], atol=6)
    third = page.locator(".mean").nth(3)
    assert third.text_content() == "threemean of 4"
    third.click()
    assert files(page) == expected(rows)
    assert third.get_attribute("aria-pressed") == "true"
    assert page.input_value("#target") == "3"
    third.press("Enter")
    assert len(files(page)) == N
    assert third.get_attribute("aria-pressed") == "false"
    page.select_option("#colors", "gray")
    assert (pixels(page, "#means li:nth-child(4) canvas")[..., :3] != shown).any()


def plotted(page):
    page.wait_for_function("() => document.getElementById('plot').ariaBusy === 'false'")
    return pixels(page, "#plot")


def ratio(page):
    plotted(page)
    return page.text_content("#ratio")


def test_the_plot_follows_the_filter_and_opens_samples(page):
    assert ratio(page) == "Median of sum / logit: 0.5."
    everything = plotted(page)
    page.select_option("#result", "wrong")
    wrong = plotted(page)
    assert (everything != wrong).any()
    page.click("text=Show all")
    search(page, "pic-03")
    assert ratio(page) == "Median of sum / logit: 0.1."
    # Where the only mark is: its colour is that of what is right.
    colour = page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--right')")
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    rows, columns = np.nonzero(np.abs(plotted(page)[..., :3] - rgb).max(axis=-1) < 40)
    box = page.locator("#plot").bounding_box()
    x, y = box["x"] + columns.mean(), box["y"] + rows.mean()
    page.mouse.move(x + 3, y)
    total = MAPS[3].sum()
    assert page.text_content("#point").startswith(f"pic-03.png: logit {10 * total:.4g}")
    page.mouse.move(x, y - 60 if y > box["y"] + 90 else y + 60)
    assert page.text_content("#point") == ""
    page.mouse.click(x, y)
    assert page.text_content("#dialog-title") == "pic-03.png"


def test_the_plot_by_keyboard(page):
    plotted(page)
    page.focus("#plot")
    order = np.argsort(2 * MAPS.sum(axis=(1, 2, 3)) * np.where(np.arange(N) == 3, 5, 1))
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.text_content("#point").startswith(f"pic-{order[1]:02}.png")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    assert page.text_content("#dialog-title") == f"pic-{order[0]:02}.png"


def test_a_sample_by_keyboard(page):
    page.focus("#gallery .card")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert page.is_visible("#dialog")
    assert page.text_content("#dialog-title") == "pic-10.png"
    facts = dict(zip(*(page.locator(f"#facts {tag}").all_text_contents() for tag in ("dt", "dd")), strict=True))
    assert facts["Shown"] == "2 of 12"
    assert facts["Place in data set"] == "101"
    assert facts["Result"] == "✓ right"
    assert facts["True class"] == "two"
    assert float(facts["Relevance sum"]) == pytest.approx(MAPS[10].sum(), rel=1e-5)
    assert facts["Sum / logit"] == "0.5"
    assert page.locator(".top td:first-child").all_text_contents() == ["two", "zero", "one", "three"]
    confidence = np.exp(CONFIDENT[10]) / (np.exp(CONFIDENT[10]) + 3)
    assert page.locator(".top td:last-child").first.text_content() == f"{confidence:.1%}"
    values = MAPS[10, 0]
    shown = pixels(page, "#dialog .heat")[..., :3]
    np.testing.assert_allclose(shown, coloured(values, np.abs(values).max())[..., :3], atol=6)
    page.keyboard.press("ArrowLeft")
    assert page.text_content("#dialog-title") == "pic-11.png"
    assert page.is_disabled("#previous")
    page.keyboard.press("ArrowLeft")
    for row in (10, 9, 8):
        page.keyboard.press("ArrowRight")
        assert page.text_content("#dialog-title") == f"pic-{row:02}.png"
    page.keyboard.press("Escape")
    assert not page.is_visible("#dialog")
    assert focused(page, "title") == "pic-08.png"  # the card of the sample seen last


def test_the_keys_still_work_when_the_last_sample_disables_the_button_in_focus(page):
    page.click("#gallery li:nth-child(11) .card")
    page.focus("#next")
    page.keyboard.press("Enter")
    assert page.is_disabled("#next")
    page.keyboard.press("ArrowLeft")
    assert page.text_content("#dialog-title") == "pic-01.png"


def test_a_sample_by_mouse_in_the_order_and_filter_at_hand(page):
    page.select_option("#predicted", "2")
    page.select_option("#direction", "-1")
    page.click("#gallery .card")
    assert page.text_content("#dialog-title") == "pic-02.png"
    page.click("#next")
    assert page.text_content("#dialog-title") == "pic-06.png"
    page.click("#previous")
    page.click("#close")
    assert not page.is_visible("#dialog")
    assert focused(page, "title") == "pic-02.png"


def test_no_other_card_has_the_focus_meanwhile(page):
    page.click("#gallery .card")
    page.keyboard.press("ArrowRight")
    title = page.text_content("#dialog-title")
    # In one script: a browser tells that a dialog is closed only afterwards.
    script = "() => { document.getElementById('close').click(); return document.activeElement.title; }"
    assert page.evaluate(script) == title


def test_arrow_keys_go_through_the_gallery(page):
    tops = page.eval_on_selector_all("#gallery .card", "cards => cards.map(card => card.getBoundingClientRect().top)")
    across = tops.count(tops[0])
    assert 1 < across < N
    page.focus("#gallery .card")
    steps = {"ArrowDown": across, "ArrowRight": across + 1, "ArrowUp": 1, "ArrowLeft": 0, "End": N - 1, "Home": 0}
    for key, position in steps.items():
        page.keyboard.press(key)
        assert focused(page, "title") == f"pic-{N - 1 - position:02}.png", key
    # The gallery is one stop on the way of Tab, with a ring that shows where one is.
    assert page.locator('.card[tabindex="0"]').count() == 1
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_controls_that_stick_to_the_top_do_not_cover_the_card_in_focus(page):
    page.focus("#gallery .card")
    page.keyboard.press("End")
    for _ in range(N - 1):
        page.keyboard.press("ArrowLeft")
        box, controls = (page.locator(which).bounding_box() for which in (".card:focus", "#controls"))
        assert box["y"] >= controls["y"] + controls["height"]


def test_every_control_can_be_reached_with_tab(page):
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
    wanted = ["search", "label", "predicted", "target", "result", "sort", "direction", "colors", "range", "scale"]
    assert [name for name in reached if name in wanted][: len(wanted)] == wanted
    assert reached.count("mean") >= len(CLASSES)
    assert "plot" in reached
    assert any("card" in name.split() for name in reached)
    unnamed = "all => all.filter(c => !c.labels.length || !c.labels[0].textContent.trim()).length"
    assert page.eval_on_selector_all("#controls select, #controls input", unnamed) == 0


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """3,000 rows, whose pictures are small so that the test is."""
    folder = tmp_path_factory.mktemp("many")
    label = np.arange(3000) % 7 % 3
    path = write_run(
        folder / "run.h5", relevance(3000, 1, 4, 4), label=label, file=[f"{i:04}.png" for i in range(3000)]
    )
    return report_page.write([path], folder / "report.html").path


def test_thousands_of_samples(opened, many):
    page = opened(many)
    made = page.locator("#gallery .card")
    assert tallied(page) == "showing 3,000 of 3,000"
    assert 0 < made.count() < 300
    first = made.count()
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    page.wait_for_function("n => document.querySelectorAll('#gallery .card').length > n", arg=first)
    pixels(page, f"#gallery li:nth-child({first}) .heat")  # decoded, being on screen
    page.wait_for_function("document.querySelector('#gallery .heat').width === 0")  # and let go, being far from it
    assert made.count() < 3000
    search(page, "2999")
    assert made.count() == 1
    assert tallied(page) == "showing 1 of 3,000"
    search(page, "")
    page.select_option("#label", "2")
    expected_count = int((np.arange(3000) % 7 % 3 == 2).sum())
    assert tallied(page) == f"showing {expected_count:,} of 3,000"


def test_more_samples_by_keyboard(opened, many):
    page = opened(many)
    made = page.locator("#gallery .card").count()
    assert page.text_content("#more") == f"Show 60 more of {3000 - made:,}"
    page.eval_on_selector("#more", "button => button.click()")
    assert page.locator("#gallery .card").count() >= made + 60
    assert focused(page, "title") == f"{made:04}.png"
    last = page.locator("#gallery .card").count() - 1
    page.keyboard.press("End")
    page.keyboard.press("ArrowRight")
    assert int(focused(page, "title")[:4]) > last


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_window(opened, tmp_path, width):
    long = "x" * 150
    path = write_run(
        tmp_path / "run.h5",
        relevance(),
        categories=[long, "b", "c"],
        file=[long] * 4,
        details={"model": long},
        failures=[(4, long, long)],
    )
    page = opened(report_page.write([path], tmp_path / "report.html").path, width=width, height=740)
    for each in page.locator("summary").all():
        each.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator("#gallery .card").first.click()
    inside = "dialog => [dialog.scrollWidth - dialog.clientWidth, dialog.getBoundingClientRect().right]"
    excess, right = page.eval_on_selector("#dialog", inside)
    assert excess <= 0
    assert right <= width


def test_dark_and_light(opened, written):
    colour = "getComputedStyle(document.body).backgroundColor"
    light, dark = opened(written, color_scheme="light"), opened(written, color_scheme="dark")
    assert light.evaluate(colour) == "rgb(255, 255, 255)"
    assert max(map(int, dark.evaluate(colour)[4:-1].split(","))) < 50
    assert (plotted(light) != plotted(dark)).any()
    before = light.eval_on_selector("#plot", "plot => plot.toDataURL()")
    light.emulate_media(color_scheme="dark")
    light.wait_for_function("before => document.getElementById('plot').toDataURL() !== before", arg=before)


def test_hostile_names_are_shown_and_do_nothing(opened, tmp_path):
    path = write_run(
        tmp_path / "run.h5",
        relevance(),
        categories=[HOSTILE, HOSTILE, "<b>c</b>"],
        file=[HOSTILE] * 4,
        details={"model": HOSTILE},
        failures=[(4, HOSTILE, HOSTILE)],
    )
    page = opened(report_page.write([path], tmp_path / "report.html").path)
    for select in ("#label", "#predicted", "#target"):
        page.select_option(select, "0")
    assert HOSTILE in page.text_content("h1")
    assert page.locator("#gallery .card").first.get_attribute("title") == HOSTILE
    # Two classes of one name are told apart by number.
    assert page.locator("#means .name").all_text_contents()[:2] == [f"{HOSTILE} (0)", f"{HOSTILE} (1)"]
    page.locator("#gallery .card").first.click()
    assert page.text_content("#dialog-title") == HOSTILE
    assert page.locator(".top td").first.text_content() == f"{HOSTILE} (0)"
    page.keyboard.press("Escape")
    plotted(page)
    page.focus("#plot")
    page.keyboard.press("ArrowRight")
    assert HOSTILE in page.text_content("#point")
    assert page.locator("img[src='x'], b").count() == 0


def test_the_policy_stops_code_that_is_not_the_pages(browser, written):
    # With a context of its own: what is stopped is told on the console.
    context = browser.new_context()
    page = context.new_page()
    page.goto(written.as_uri())
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=data: onerror=\"window.ran = true\">')")
    page.wait_for_timeout(200)
    assert page.evaluate("window.ran") is None
    context.close()


def test_without_scripts_the_page_says_why_it_is_bare(opened, written):
    page = opened(written, java_script_enabled=False)
    assert "draws its pictures with JavaScript" in page.locator("noscript").inner_text()


def test_an_empty_run(opened, tmp_path):
    path = write_run(tmp_path / "run.h5", np.zeros((0, 3, 4, 4)))
    page = opened(report_page.write([path], tmp_path / "report.html").path)
    assert page.is_visible("#nothing")


def test_samples_that_are_not_finite(opened, tmp_path):
    attribution = relevance(3)
    attribution[1, 0, 0, 0] = np.nan
    path = write_run(tmp_path / "run.h5", attribution, prediction=[[1, 0], [np.inf, 0], [0, 2]], label=[0, 0, 1])
    page = opened(report_page.write([path], tmp_path / "report.html").path)
    page.select_option("#sort", "sum")
    for direction in ("1", "-1"):
        page.select_option("#direction", direction)
        assert files_of(page)[-1] == "1.png"
    assert "relevance not finite" in page.locator("#gallery .numbers").last.text_content()
    page.locator("#gallery .card").last.click()
    assert page.text_content("#dialog-title") == "1.png"
    page.keyboard.press("Escape")
    page.select_option("#scale", "one")
    assert (pixels(page, "#gallery li:nth-child(3) .heat") == 255).all()


def files_of(page):
    return page.locator("#gallery .file").all_text_contents()
