"""Pages of graphs and matrices in a browser: by mouse, keyboard and touch, what is drawn, said and listed.

A picture is read where its parts are said to be: the pointer goes over it, and the line below tells what is there.
"""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lrpfunc import text
from lrpfunc.circuits.graphs import Graph, Pair
from tests.browsers import decoded, grave
from tests.test_graph_files import HOSTILE, WORDS, small
from tests.test_graphs import graph_of

pytestmark = pytest.mark.dev

MATRIX = torch.tensor([[0.5, -1.0, 0.0, 0.0], [0.0, 0.25, 2.0, 0.0]])
FOUR = ["<s>", " a", " b", " c"]
# Hebrew, joined emoji, a sign that turns what follows, and what looks like HTML.
ODD = ["\u05e9\u05dc\u05d5\u05dd", "\U0001f469\u200d\U0001f469\u200d\U0001f467", "\u202eevil"]


@pytest.fixture
def shown(opened, tmp_path):
    """Opens the page of a graph."""

    def show(graph=None, tokens=WORDS, window=None, **options):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.html"
        (small() if graph is None else graph).html(tokens, path, **{"answer": " c", **options})
        return opened(path, **(window or {}))

    return show


def plain(text):
    """With a hyphen for a minus, and plain spaces."""
    return text.replace("\u2212", "-").replace("\u00a0", " ")


def texts(found):
    return [plain(text) for text in found.all_text_contents()]


def told(page, of="#graph"):
    return plain(page.text_content(f"{of} .told"))


def press(page, *keys, of="#graph"):
    page.focus(f"{of} .scroll")
    for key in keys:
        page.keyboard.press(key)


def drawn(page, of="#graph"):
    """What is on the canvas (H, W, 4), once it was painted."""
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return decoded(page.eval_on_selector(f"{of} canvas", "canvas => canvas.toDataURL()"))


def found(page, start, of="#graph"):
    """Where a cell is, on the canvas: the middle of the places at which the line tells of it."""
    script = """
        ([scroll, told, start]) => {
            const box = scroll.querySelector("canvas").getBoundingClientRect();
            const hits = [];
            const point = (x, y, kind) => scroll.dispatchEvent(
                new PointerEvent(kind, { clientX: box.left + x, clientY: box.top + y, pointerType: "mouse" }));
            for (let y = 2; y < box.height; y += 2) {
                for (let x = 2; x < box.width; x += 4) {
                    point(x, y, "pointermove");
                    if (told.textContent.startsWith(start)) hits.push([x, y]);
                }
            }
            point(0, 0, "pointerleave");
            return hits;
        }
    """
    page.locator(f"{of} .scroll").scroll_into_view_if_needed()
    parts = [page.locator(f"{of} {part}").element_handle() for part in (".scroll", ".told")]
    hits = page.evaluate(script, [*parts, start])
    assert hits, start
    return np.mean(hits, axis=0)


def click(page, start, of="#graph"):
    x, y = found(page, start, of)
    box = page.locator(f"{of} canvas").bounding_box()
    page.mouse.click(box["x"] + x, box["y"] + y)


def colour(page, place, of="#graph"):
    x, y = np.rint(place).astype(int)
    return drawn(page, of)[y, x, :3]


def heading(page, of="#graph"):
    return page.text_content(f"{of} .panel h3:first-child")


def facts(page, of="#graph"):
    terms, answers = (texts(page.locator(f"{of} .panel {tag}")) for tag in ("dt", "dd"))
    return dict(zip(terms, answers, strict=True))


def listed(page, way, of="#graph"):
    """The token and the number of each line of a list."""
    lines = page.locator(f"{of} .panel .{way} li").all()
    return [(line.locator("bdi").text_content(), plain(line.locator(".number").text_content())) for line in lines]


def of_heads(page):
    return texts(page.locator("#graph .panel .down .of-heads"))


# -- the graph by keyboard and mouse ----------------------------------------------------------------------------------


def test_the_keys_go_from_token_to_token(shown):
    page = shown()
    steps = {
        "ArrowDown": " b (h.1, 2): relevance +2.25, 113 % of what is explained",
        "ArrowLeft": " a (h.1, 1): relevance -0.25, -13 % of what is explained",
        "ArrowRight": " b (h.1, 2): relevance +2.25",
        "Home": "<s> (h.1, 0): relevance 0, 0 % of what is explained",
        "End": " b (h.1, 2)",
        "ArrowUp": " c (explained): relevance +2, 100 % of what is explained",
    }
    for key, expected in steps.items():
        press(page, key)
        assert told(page).startswith(expected)
    press(page, "ArrowUp")  # there is nothing above
    assert told(page).startswith(" c (explained)")
    press(page, *["ArrowDown"] * 5)
    assert told(page).startswith(" b (embed, 2): relevance +0.75")
    press(page, "Home")  # constants come first
    assert told(page).startswith("constants (below h.0): relevance +0.25, 13 % of what is explained")
    press(page, "ArrowUp")
    assert told(page).startswith("<s> (h.0, 0)")


def test_a_token_that_is_chosen_shows_what_it_rests_on_and_counts_for(shown):
    page = shown()
    assert page.text_content("#graph .panel").startswith("Choose a token to see")
    press(page, "ArrowDown", "ArrowDown", "Enter")
    assert heading(page) == " b h.0, 2"
    assert facts(page) == {
        "relevance": "+1.75",
        "of what is explained": "88 %",
        "stream": "model.h.0",
        "added by mlp": "+1",
    }
    assert listed(page, "up") == [(" b", "+1.75")]
    assert listed(page, "down") == [(" b", "+0.75"), ("<s>", "+0.5"), (" a", "+0.25"), ("constants", "+0.25")]
    assert of_heads(page) == ["head 1 +0.5, stays +0.25", "head 0 +0.75, head 1 -0.25", "head 0 +0.25"]
    press(page, "Escape")
    assert page.text_content("#graph .panel").startswith("Choose a token to see")
    assert told(page) == ""


def test_lists_lead_on_and_the_keys_stay_in_them(shown):
    page = shown()
    press(page, "Enter")
    page.focus("#graph .panel .down button")
    for expected in (" b h.1, 2", " b h.0, 2", " b embed, 2"):
        page.keyboard.press("Enter")
        assert heading(page) == expected
    assert "It is what the model reads." in page.text_content("#graph .panel .down")
    page.locator("#graph .panel .up button").click()
    assert heading(page) == " b h.0, 2"


def test_a_token_by_mouse(shown):
    page = shown()
    place = found(page, " a (embed, 1)")
    click(page, " a (embed, 1)")
    assert heading(page) == " a embed, 1"
    assert listed(page, "up") == [(" a", "-0.25"), (" b", "+0.25")]
    assert told(page).startswith(" a (embed, 1): relevance 0")
    click(page, "constants (below h.0)")
    assert heading(page) == "constants below h.0"
    assert listed(page, "up") == [(" b", "+0.25")]
    assert page.locator("#graph .panel .down").count() == 0
    box = page.locator("#graph canvas").bounding_box()
    page.mouse.click(box["x"] + place[0], box["y"] + box["height"] - 8)  # the label of the column
    assert heading(page).startswith(" a ")
    page.mouse.click(box["x"] + 10, box["y"] + place[1])  # and of the row: its strongest
    assert heading(page) == "<s> embed, 0"


def test_colours_are_those_of_relevance(shown):
    page = shown()
    strong, weak = found(page, " b (h.1, 2)"), found(page, " a (h.0, 1)")
    red, blue = np.array([0xC4, 0x17, 0x1C]), np.array([0x17, 0x55, 0xC4])
    np.testing.assert_allclose(colour(page, strong), red, atol=1)  # 2.25, the largest
    np.testing.assert_allclose(colour(page, weak), 255 + (blue - 255) * 0.25 / 2.25, atol=2)
    assert texts(page.locator("#graph .legend span")) == ["-2.25", "0", "+2.25"]
    page.select_option("#scale", "row")
    np.testing.assert_allclose(colour(page, weak), 255 + (blue - 255) * 0.25 / 1.75, atol=2)
    assert page.text_content("#graph .legend .high") == "+ the largest of the layer"


def is_joined(page, one, other):
    """Whether there is a line in the middle between two cells."""
    x, y = np.rint((found(page, one) + found(page, other)) / 2).astype(int)
    return bool((drawn(page)[y, x - 6 : x + 6, :3] != 255).any())


def test_edges_are_drawn_and_the_threshold_takes_the_weak_ones_away(shown):
    page = shown()
    assert page.text_content("#count") == "11 of 11 edges drawn, those to constants among them"
    assert plain(page.text_content("#least")) == "any size"
    weak = (" a (h.1, 1)", " a (h.0, 1)")
    assert is_joined(page, *weak)
    page.focus("#threshold")
    page.keyboard.press("End")
    assert page.text_content("#count").startswith("1 of 11 edges drawn")
    assert plain(page.text_content("#least")) == "2.25, 112 % of what is explained"
    assert not is_joined(page, *weak)
    page.fill("#threshold", "50")
    # halfway, by ratio, between 0.25 and 2.25: 0.75
    assert page.text_content("#count").startswith("3 of 11 edges drawn")
    assert page.get_attribute("#threshold", "aria-valuetext").startswith("0.75, ")
    press(page, "ArrowDown", "ArrowLeft", "Enter")  # of the token that is chosen all are drawn
    assert is_joined(page, *weak)


def test_heads_are_switched_on_and_off(shown):
    page = shown()
    press(page, "ArrowDown", "ArrowDown", "Enter")
    page.click("#heads summary")
    chips = page.locator("#chips button")
    assert chips.all_text_contents() == ["stays", "0", "1"]
    assert page.locator("#heads-of option").all_text_contents() == ["all layers", "h.0"]
    chips.nth(1).click()  # head 0
    assert [button.get_attribute("aria-pressed") for button in chips.all()] == ["true", "false", "true"]
    assert listed(page, "down") == [(" b", "+0.75"), ("<s>", "-0.25"), ("constants", "+0.25")]
    assert of_heads(page) == ["head 1 +0.5, stays +0.25", "head 1 -0.25"]
    assert page.text_content("#count").startswith("10 of 10 edges")
    assert facts(page)["relevance"] == "+1.75"  # of the node, which stays
    page.click("#heads-none")
    assert listed(page, "down") == [("constants", "+0.25")]
    page.keyboard.press("Shift+Tab")  # back to "all"
    page.keyboard.press("Enter")
    assert page.text_content("#count").startswith("11 of 11 edges")
    page.locator("#chips button").first.click()  # what stays
    assert listed(page, "down")[:2] == [("<s>", "+0.5"), (" b", "+0.5")]


def test_a_head_that_is_on_in_some_layers_is_mixed(shown):
    graph = small()
    first, second, last = graph.pairs
    heads = torch.zeros(1, 2, 3, 3)
    heads[0, 1, 2, 2] = 1.0
    pairs = (first, replace(second, heads=heads), last)
    page = shown(replace(graph, pairs=pairs))
    page.click("#heads summary")
    assert page.locator("#heads-of option").all_text_contents() == ["all layers", "h.0", "h.1"]
    page.select_option("#heads-of", label="h.1")
    page.locator("#chips button").nth(2).click()
    page.select_option("#heads-of", label="all layers")
    assert page.locator("#chips button").nth(2).get_attribute("aria-pressed") == "mixed"
    page.locator("#chips button").nth(2).click()
    assert page.locator("#chips button").nth(2).get_attribute("aria-pressed") == "true"


def test_a_graph_without_heads_has_no_switches(shown):
    graph = small()
    page = shown(graph.prune(0.9))
    assert not page.is_visible("#heads")
    assert "not shown" in columns(page)


def columns(page):
    """What the keys come by in the lowest row, from the left."""
    press(page, *["ArrowDown"] * 5, "Home")
    names = []
    for _ in range(20):
        word = page.text_content("#graph .told bdi")
        names.append(word)
        press(page, "ArrowRight")
        if page.text_content("#graph .told bdi") == word:
            break
    return names


def test_how_edges_were_found_is_said(shown):
    page = shown()
    page.click("main > details summary")
    assert page.locator("main > details td").all_text_contents() == [
        "model.embed", "model.h.0", "closed", "model.h.0", "model.h.1", "pullbacks: asked for",
        "model.h.1", "target", "one pullback",
    ]  # fmt: skip


def test_an_encoder_stands_beside_its_decoder(shown):
    question, answer = [f"q{i}" for i in range(7)], [f"a{i}" for i in range(5)]
    page = shown(graph_of("t5"), {"*decoder*": answer, "*": question})
    press(page, *["ArrowDown"] * 4, "ArrowDown", *["ArrowDown"] * 3)
    press(page, *["ArrowLeft"] * 6)
    assert told(page).startswith("q0 (inputs_embeds, 0)")
    press(page, "ArrowUp", "ArrowUp", "Enter")
    assert told(page).startswith("q0 (encoder.block.1, 0)")
    assert {"a0", "a4"} <= {word for word, _ in listed(page, "up")}  # of the cross attention


# -- the matrix -------------------------------------------------------------------------------------------------------


@pytest.fixture
def matrix_page(opened, tmp_path):
    text.matrix(MATRIX, FOUR, path=tmp_path / "matrix.html")
    return opened(tmp_path / "matrix.html")


def test_a_matrix_by_keyboard(matrix_page):
    page = matrix_page
    press(page, "ArrowRight", of="#matrix")
    assert told(page, "#matrix") == " b (0 of the answer) rests on  a (1): -1"
    press(page, "ArrowDown", "ArrowRight", "Enter", of="#matrix")
    assert heading(page, "#matrix") == " c 1 of the answer"
    assert facts(page, "#matrix") == {"sum of its row": "+2.25"}
    assert listed(page, "down", "#matrix") == [(" b", "+2"), (" a", "+0.25")]
    assert listed(page, "up", "#matrix") == [(" c", "+2")]
    press(page, "ArrowUp", "ArrowLeft", "Enter", of="#matrix")
    assert listed(page, "up", "#matrix") == [(" b", "-1"), (" c", "+0.25")]
    press(page, "Escape", of="#matrix")
    assert page.text_content("#matrix .panel").startswith("Choose a cell")


def test_the_text_has_the_colours_of_the_row_that_is_chosen(matrix_page):
    page = matrix_page
    spans = page.locator("#text span")
    assert "".join(spans.all_text_contents()) == "".join(FOUR)
    colours = "spans => spans.map(span => getComputedStyle(span).backgroundColor)"
    assert len(set(spans.evaluate_all(colours))) == 1
    spans.nth(3).click()  # the second token of the answer
    assert heading(page, "#matrix") == " c 1 of the answer"
    painted = spans.evaluate_all(colours)
    assert painted[2] != painted[1] != painted[0] == painted[3]
    assert spans.nth(2).get_attribute("title") == "+2"
    assert page.locator("#text .is-row").all_text_contents() == [" c"]
    spans.nth(1).click()  # what counts on a token of the prompt
    assert listed(page, "up", "#matrix") == [(" b", "-1"), (" c", "+0.25")]


def test_cells_of_a_matrix_have_their_colours(matrix_page):
    page = matrix_page
    blue = np.array([0x17, 0x55, 0xC4])
    np.testing.assert_allclose(
        colour(page, found(page, " b (0 of the answer) rests on  a", "#matrix"), "#matrix"),
        255 + (blue - 255) / 2,
        atol=2,
    )
    click(page, " c (1 of the answer) rests on  b", "#matrix")
    assert heading(page, "#matrix") == " c 1 of the answer"


def test_an_answer_that_is_not_among_the_tokens_follows_them(opened, tmp_path):
    text.matrix(MATRIX, FOUR, answer=[" x", "⏎"], path=tmp_path / "matrix.html")
    page = opened(tmp_path / "matrix.html")
    assert page.text_content("#text").endswith(" c\n→  x⏎")
    page.locator("#text span").nth(4).click()
    assert heading(page, "#matrix") == " x 0 of the answer"


def test_a_graph_and_a_matrix_on_one_page(shown):
    page = shown(matrix=MATRIX[:, :3], title="Both")
    assert page.text_content("h1") == "Both"
    press(page, "ArrowDown", "Enter")
    press(page, "Enter", of="#matrix")
    assert heading(page) == " b h.1, 2"
    assert heading(page, "#matrix") == " a 0 of the answer"


# -- strangers' tokens ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [HOSTILE, ODD])
def test_odd_tokens_are_shown_and_do_nothing(shown, tokens):
    page = shown(tokens=tokens, answer=tokens[0], title=tokens[1], matrix=torch.eye(3))
    seen = [word.replace("\u202e", "\\u202e") for word in tokens]
    assert page.text_content("h1") == tokens[1]
    assert columns(page)[1:] == seen
    press(page, "Enter")
    assert heading(page).startswith(seen[2])
    assert [word for word, _ in listed(page, "up")] == [seen[2]]
    assert page.locator("#text span").all_text_contents() == seen
    press(page, "Enter", of="#matrix")
    assert page.locator("img, b").count() == 0


def test_the_policy_stops_code_that_is_not_the_pages(browser, tmp_path):
    small().html(WORDS, tmp_path / "graph.html")
    context = browser.new_context()  # of its own: what is stopped is told on the console
    page = context.new_page()
    page.goto((tmp_path / "graph.html").as_uri())
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=data: onerror=\"window.ran = true\">')")
    page.wait_for_timeout(200)
    assert page.evaluate("window.ran") is None
    context.close()


def test_without_scripts_the_page_says_why_it_is_bare(shown):
    page = shown(window={"java_script_enabled": False})
    assert "draws with JavaScript" in page.locator("noscript").inner_text()


# -- windows ----------------------------------------------------------------------------------------------------------

LONG = 700


def long_graph() -> Graph:
    """Two streams of many tokens; each one rests on itself and on the first."""
    edges = torch.eye(LONG)[None] * torch.linspace(0.1, 1, LONG)
    edges[0, :, 0] += 0.5
    nodes = {"h.0": edges.sum(1), "h.1": edges.sum(2), "target": edges.sum()[None, None]}
    pairs = (
        Pair("h.1", "h.0", edges, torch.zeros(1, LONG), "closed"),
        Pair("target", "h.1", nodes["h.1"][:, None], torch.zeros(1, 1), "one pullback"),
    )
    constants = {"h.1": torch.zeros(1, LONG), "target": torch.zeros(1, 1)}
    return Graph(("h.0", "h.1", "target"), nodes, pairs, constants, None)


def test_many_tokens_are_scrolled_through_and_labels_stay(shown):
    page = shown(long_graph(), [f" w{i}" for i in range(LONG)], edges=1500)
    assert f"holds the strongest 1,500 of {3 * LONG - 1:,} edges" in page.text_content("#left-out")
    assert 100 <= int(page.text_content("#count").split()[0]) < 200
    left = page.evaluate("document.querySelector('.scroll').scrollLeft")
    assert left > 0  # the target, which is seen at first
    press(page, "ArrowDown", "ArrowDown", "End")
    assert told(page).startswith(f" w{LONG - 1} (h.0, {LONG - 1})")
    at_the_end = drawn(page)
    press(page, "Home", "ArrowRight")
    assert told(page).startswith(" w0 (h.0, 0)")
    assert page.evaluate("document.querySelector('.scroll').scrollLeft") < left
    at_the_start = drawn(page)
    labels = slice(0, 40)  # of the layers, in sight wherever one is
    upper = at_the_start.shape[0] // 2
    assert (at_the_start[:upper, labels] == at_the_end[:upper, labels]).all()
    assert (at_the_start != at_the_end).any()
    page.keyboard.press("Enter")
    assert listed(page, "up")[0] == (" w0", "+0.6")
    assert plain(page.locator("#graph .panel .up > .note").text_content()).startswith("and ")


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_window(shown, width):
    long = "x" * 150
    page = shown(
        tokens=[long] * 3, answer=long, title=long, matrix=torch.eye(3), window={"width": width, "height": 740}
    )
    press(page, "ArrowDown", "Enter")
    press(page, "Enter", of="#matrix")
    page.click("#heads summary")
    page.click("main > details summary")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_by_touch_on_a_phone(shown):
    phone = {"width": 390, "height": 844, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
    page = shown(long_graph(), [f" w{i}" for i in range(LONG)], edges=1000, window=phone)
    box = page.locator("#graph canvas").bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] - 20, box["y"] + 100)
    first = heading(page)
    assert "h.1, " in first
    page.touchscreen.tap(box["x"] + box["width"] - 20 - 48, box["y"] + 100)  # cells are as wide as a finger
    numbers = [int(words.rsplit(", ", 1)[1]) for words in (first, heading(page))]
    assert numbers[0] - numbers[1] == 1
    heights = page.locator("#graph .panel button").evaluate_all("all => all.map(each => each.offsetHeight)")
    assert min(heights) >= 44
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.evaluate("document.querySelector('.scroll').scrollLeft = 0")
    assert told(page) != ""


def test_dark_and_light(shown):
    light, dark = (shown(window={"color_scheme": scheme}) for scheme in ("light", "dark"))
    assert light.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert max(map(int, dark.evaluate("getComputedStyle(document.body).backgroundColor")[4:-1].split(","))) < 50
    place = found(light, " b (h.1, 2)")
    before = colour(light, place)
    assert (before != colour(dark, found(dark, " b (h.1, 2)"))).any()
    light.emulate_media(color_scheme="dark")
    assert (colour(light, place) != before).any()


@pytest.mark.parametrize(("scheme", "width"), list(itertools.product(["light", "dark"], [390, 1280])))
def test_axe_finds_nothing_serious(shown, axe, scheme, width):
    page = shown(matrix=torch.eye(3), window={"color_scheme": scheme, "width": width, "height": 844})
    page.click("#heads summary")
    page.click("main > details summary")
    press(page, "ArrowDown", "ArrowDown", "Enter")
    press(page, "Enter", of="#matrix")
    page.evaluate(axe)
    assert grave(page.evaluate("async () => (await axe.run(document)).violations")) == []


def test_a_graph_that_explains_nothing_is_drawn(shown):
    graph = small()
    for tensor in (*graph.nodes.values(), *graph.constants.values(), *(pair.edges for pair in graph.pairs)):
        tensor.zero_()
    graph.pairs[0].heads.zero_()
    page = shown(graph)
    press(page, "Enter")
    assert told(page) == " c (explained): relevance 0"
    assert page.text_content("#count").startswith("0 of 0 edges drawn")
    assert math.isfinite(float(page.input_value("#threshold")))


def test_firefox_draws_it_too(firefox, tmp_path):
    small().html(WORDS, tmp_path / "graph.html", answer=" c", matrix=torch.eye(3))
    firefox.open(tmp_path / "graph.html", 1000, 800)
    firefox.do("document.querySelector('#graph .scroll').focus()")
    firefox.press("ARROW_DOWN", "ARROW_DOWN", "ENTER")
    assert firefox.do("return document.querySelector('#graph .panel h3').textContent") == " b h.0, 2"
    firefox.do("document.querySelector('#text span').click()")
    assert firefox.do("return document.querySelector('#matrix .panel h3').textContent").endswith("of the answer")
