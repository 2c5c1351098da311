"""report.html in a real browser: it opens without an error and asks for nothing, and switch, cells, slider and keys do what they say."""

import math

import chromium
import numpy as np
import pandas as pd
import pytest
from chromium import Browser
from synthetic_result import DOMAINS, synthetic_result

from sweep.report.page import write_report
from sweep.report.references import REFERENCE_TITLES
from sweep.report.tables import chosen_pairs

if chromium.PROGRAM is None:
    pytest.skip("Chromium is not installed here", allow_module_level=True)

RESULT = synthetic_result(DOMAINS[:4], num_examples=5)
CELL = "document.querySelector('#matrix [data-pair=\"{}\"]')"
ORDER = "[...document.querySelectorAll('#matrix [data-pair]')].map((cell) => Number(cell.dataset.pair))"


@pytest.fixture(scope="module")
def page_path(tmp_path_factory):
    return write_report(RESULT, tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def page(browser, page_path):
    browser.errors.clear()
    browser.requests.clear()
    browser.open(page_path)
    yield browser
    assert browser.errors == []


def matrix(page: Browser) -> dict[int, str]:
    shown = "[...document.querySelectorAll('#matrix [data-pair]')].map((cell) => [Number(cell.dataset.pair), cell.firstChild.textContent])"
    return {number: text for number, text in page.evaluate(shown)}


def are_shown(shown: dict[int, str], values: pd.Series) -> bool:
    """Two decimals of six significant digits."""
    return len(shown) == len(values) and all(abs(float(shown[i]) - value) < 0.00501 for i, value in enumerate(values))


def canvases(page: Browser) -> list[str]:
    """What stands on the dialog's canvases, with their titles before it."""
    return page.evaluate(
        "[...document.querySelectorAll('#pair .map')].map((map) => map.textContent + map.querySelector('canvas').toDataURL())"
    )


def test_it_opens_without_an_error_and_asks_for_nothing_else(page, page_path):
    assert [address for address in page.requests if not address.startswith("data:")] == [page_path.resolve().as_uri()]
    drawn = page.evaluate("document.querySelectorAll('#gallery canvas').length")
    assert drawn == 5 * 8  # of five pictures the input, the label and six models
    assert page.evaluate("getComputedStyle(document.querySelector('.only-static')).display") == "none"


def test_the_switch_changes_the_matrix(page):
    pairs = chosen_pairs(RESULT)
    assert are_shown(matrix(page), pairs["iou_at_10"])
    colour = "getComputedStyle(document.querySelector('#matrix [data-pair=\"0\"]')).backgroundColor"
    before = page.evaluate(colour)
    for name in ("normalized_e_rmse", "similarity_explainability", "lambda2"):
        page.evaluate(f"document.querySelector('input[name=column][value={name}]').click()")
        assert are_shown(matrix(page), pairs[name])
    assert page.evaluate(colour) != before
    page.evaluate("document.querySelector('input[name=column][value=correlation]').click()")
    assert "chance 0.000" in page.evaluate("document.getElementById('bars').textContent")
    assert page.evaluate("document.querySelectorAll('#matrix .bars tr').length") == 6


def test_a_cell_opens_its_pair_with_curves_and_keys_of_its_artifacts(page):
    page.evaluate(CELL.format(4) + ".click()")
    pair = chosen_pairs(RESULT).iloc[4]
    source, target = pair["source_domain"], pair["target_domain"]
    assert page.evaluate("document.getElementById('pair').open")
    assert page.evaluate("document.getElementById('pair-title').textContent") == f"{source} → {target}"
    titles = page.evaluate("[...document.querySelectorAll('#pair .chart figcaption')].map((title) => title.firstChild.textContent)")
    assert titles == [f"{score} over lambda2" for score in ("accuracy", "E-RMSE", "correlation", "IoU@10")] + [
        "Pareto front: E-RMSE against accuracy"
    ]
    lines = page.evaluate("[...document.querySelectorAll('#pair .charts .chart')].map((one) => one.querySelectorAll('path.line').length)")
    assert lines == [3, 3, 3, 3, 0]  # a line an alpha
    assert page.evaluate("document.querySelectorAll('#pair .charts .chosen').length") == 5
    assert RESULT.artifacts[source, target]["search of the pair"] in page.evaluate("document.getElementById('pair-body').textContent")
    first = page.evaluate("document.querySelector('#pair-scores tr.own').textContent")
    assert first.startswith(f"transferred{pair['accuracy']:.3f}")
    below = page.evaluate("[...document.querySelectorAll('#pair-scores tr.of-own')].map((row) => row.textContent)")
    assert below[0].startswith(f"its 95 % interval[{pair['accuracy'] - 0.04:.3f}, {pair['accuracy'] + 0.06:.3f}]")
    assert below[1].startswith("over n test pictures120120")
    of_target = RESULT.references[RESULT.references["domain"] == target]
    for name, alpha in (("mean_map", math.nan), ("supervised", pair["alpha"])):
        is_it = (of_target["reference"] == name) & (np.isclose(of_target["alpha"], alpha) | math.isnan(alpha))
        error = of_target.loc[is_it, "e_rmse"].item()
        has_title = f"(row) => row.firstChild.textContent === '{REFERENCE_TITLES[name]}'"
        row = page.evaluate(f"[...document.querySelectorAll('#pair-scores tr')].find({has_title}).textContent")
        assert f"{error:.3f}[{error - 0.04:.3f}, {error + 0.06:.3f}]" in row


def test_the_slider_changes_the_transferred_map_and_no_other(page):
    page.evaluate(CELL.format(0) + ".click()")
    maps = len(canvases(page))
    assert maps == 6  # input, label, transferred, prediction-only, supervised, zero-shot of the target's one picture
    move = "(() => {{ const s = document.getElementById('lambda2'); s.value = {}; s.dispatchEvent(new Event('input')); return s.max; }})()"
    assert page.evaluate(move.format(0)) == "2"
    before, words = canvases(page), page.evaluate("document.querySelector('output[for=lambda2]').textContent")
    page.evaluate(move.format(2))
    after = canvases(page)
    assert [a != b for a, b in zip(before, after, strict=True)] == [False, False, True, False, False, False]
    assert words.startswith("lambda2 = 0.00") and "accuracy" in words
    assert "lambda2 1.20" in after[2] and "predicts a disc" in after[2]
    cursor = "document.querySelector('#pair .cursor').getAttribute('x1')"
    at_end = page.evaluate(cursor)
    page.evaluate(move.format(0))
    assert float(page.evaluate(cursor)) < float(at_end)


def test_the_sources_own_models_are_shown_with_the_source_that_they_are_of(page):
    example = RESULT.examples[0]
    assert {"source_prediction_only", "source_self_explaining"} <= set(example.attributions)
    for source in (name for name in RESULT.sources if name != example.domain):
        page.evaluate("document.getElementById('pair').close()")
        pairs = chosen_pairs(RESULT)
        (number,) = pairs.index[(pairs["source_domain"] == source) & (pairs["target_domain"] == example.domain)]
        page.evaluate(CELL.format(number) + ".click()")
        titles = [title for title in canvases(page) if title.startswith("source's")]
        of_one_picture = 2 if source == example.source_domain else 0
        other = RESULT.examples[4]  # of the same target, from another source
        assert len(titles) == of_one_picture + (2 if source == other.source_domain else 0)


def test_opacity_and_the_strongest_patches_change_every_map(page):
    page.evaluate(CELL.format(0) + ".click()")
    before = canvases(page)
    choose = "(() => {{ const s = document.querySelector('#pair [data-sets={}]'); s.value = '{}'; s.dispatchEvent(new Event('{}')); }})()"
    page.evaluate(choose.format("opacity", "0.3", "input"))
    paler = canvases(page)
    page.evaluate(choose.format("mode", "top", "change"))
    top = canvases(page)
    assert [a != b for a, b in zip(before, paler, strict=True)] == [a != b for a, b in zip(paler, top, strict=True)] == [False] + [True] * 5


def test_the_matrix_and_the_pair_are_reached_by_keys_alone(page):
    order = page.evaluate(ORDER)
    page.evaluate(CELL.format(order[0]) + ".focus()")
    focused = "Number(document.activeElement.dataset.pair)"
    page.press("ArrowRight")
    assert page.evaluate(focused) == order[1]
    page.press("ArrowDown")
    below = page.evaluate(focused)
    # In the column of the third domain, from the first row past the second.
    assert chosen_pairs(RESULT).loc[below, ["source_domain", "target_domain"]].tolist() == [DOMAINS[1], DOMAINS[2]]
    page.press("Enter")
    assert page.evaluate("document.getElementById('pair').open")
    page.press("ArrowRight")
    title = page.evaluate("document.getElementById('pair-title').textContent")
    following = chosen_pairs(RESULT).iloc[below + 1]
    assert title == f"{following['source_domain']} → {following['target_domain']}"
    page.evaluate("void (window.closing = new Promise((done) => document.getElementById('pair').addEventListener('close', done)))")
    page.press("Escape")
    page.evaluate("window.closing.then(() => null)")
    assert not page.evaluate("document.getElementById('pair').open") and page.evaluate(focused) == below + 1


def test_dark_and_light_follow_the_system_and_the_switch(browser, page_path):
    background = "getComputedStyle(document.body).backgroundColor"
    browser.open(page_path, is_dark=True)
    dark = browser.evaluate(background)
    browser.evaluate("document.getElementById('theme').click()")
    light = browser.evaluate(background)
    browser.open(page_path)
    assert browser.evaluate(background) == light == "rgb(255, 255, 255)" and dark == "rgb(20, 24, 29)"


@pytest.mark.parametrize("is_open", [False, True])
def test_nothing_is_wider_than_a_phone(browser, page_path, is_open):
    browser.open(page_path, 360, 740)
    if is_open:
        browser.evaluate(CELL.format(1) + ".click()")
    widths = "['html', '#pair', '#pair-body'].map((name) => document.querySelector(name).scrollWidth)"
    assert max(browser.evaluate(widths)) <= 360


def test_captions_are_no_wider_than_a_phone_and_name_their_tables(browser, page_path):
    browser.open(page_path, 360, 740)
    browser.evaluate(CELL.format(1) + ".click()")
    ends = browser.evaluate("[...document.querySelectorAll('.caption')].map((one) => one.getBoundingClientRect().right)")
    assert len(ends) == 9 and max(ends) <= 360
    named = "[...document.querySelectorAll('table[aria-labelledby]')].map((one) => one.getAttribute('aria-labelledby'))"
    found = browser.evaluate("[...document.querySelectorAll('p.caption')].filter((one) => !one.closest('.scroll')).map((one) => one.id)")
    assert sorted(browser.evaluate(named)) == sorted(found) and len(set(found)) == len(ends)
    assert browser.evaluate("document.querySelector('caption')") is None


def test_without_a_script_tables_and_figures_are_there(browser, page_path):
    browser.open(page_path, has_script=False)
    shown = "getComputedStyle(document.querySelector('{}')).display"
    # What is asked over the protocol runs all the same; the page's own script does not.
    assert browser.evaluate(shown.format(".only-static")) == "block" and browser.evaluate(shown.format(".needs-script")) == "none"
    assert browser.evaluate("document.querySelectorAll('figure img').length") == 11
    assert browser.evaluate("document.querySelectorAll('tbody tr').length") > 12


def test_a_name_from_a_user_is_only_ever_text(browser, tmp_path):
    evil = '<img src=x onerror="document.title=1">'
    result = synthetic_result([evil, "</script><script>document.title = 2</script>", "${document.title}"], num_examples=3)
    path = write_report(result, tmp_path)
    browser.errors.clear()
    browser.requests.clear()
    browser.open(path)
    browser.evaluate(CELL.format(0) + ".click()")
    assert browser.evaluate("document.title").startswith("Transferring") and browser.errors == []
    assert [address for address in browser.requests if not address.startswith("data:")] == [path.resolve().as_uri()]
    assert evil in browser.evaluate("document.getElementById('pair-title').textContent")
