"""The report shows the frames' numbers, beside their references, and trusts no name."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from synthetic_result import DOMAINS, synthetic_result

from sweep.report.evidence import comparisons, groups
from sweep.report.figures.drawing import draw_figures
from sweep.report.findings import INTERVAL_MEANINGS, finding, key_numbers
from sweep.report.page import render_html, tables_as_html, write_report
from sweep.report.references import REFERENCE_TITLES
from sweep.report.result import SweepResult
from sweep.report.tables import best_of_targets, best_pairs, chosen_pairs, headline, known_references
from sweep.report.terminal import terminal_summary
from sweep.report.text import ascii_pair, shown_name


class _Page(HTMLParser):
    """The page's tables as text, its scripts' number, and every address that it names."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.scripts: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self._is_in = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        self._is_in = tag if tag in ("td", "th", "b", "span", "script", "style") else "other"
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._is_in = "td" if tag in ("b", "span") else "other"

    def handle_data(self, data: str) -> None:
        if self._is_in in ("td", "th", "b", "span") and self.tables and self.tables[-1] and self.tables[-1][-1]:
            self.tables[-1][-1][-1] += data
        if self._is_in == "script":
            self.scripts[-1] += data
        elif self._is_in != "style":
            self.text += data

    def table_with(self, *heads: str) -> list[dict[str, str]]:
        for head, *rows in filter(None, self.tables):  # the matrix is empty until the script fills it
            if set(heads) <= set(head):
                return [dict(zip(head, row, strict=True)) for row in rows]
        raise AssertionError(f"no table with {heads}")


def _html(result: SweepResult) -> str:
    return render_html(result, [])


@pytest.fixture(scope="module")
def result() -> SweepResult:
    return synthetic_result(num_examples=2)


@pytest.fixture(scope="module")
def page(result) -> _Page:
    return _Page(_html(result))


@pytest.fixture(scope="module")
def small() -> SweepResult:
    """Every kind of table and figure, of three domains."""
    return synthetic_result(DOMAINS[:3], num_examples=2)


@pytest.fixture(scope="module")
def written(small, tmp_path_factory) -> Path:
    """The small result's report as a file, its figures beside it."""
    return write_report(small, tmp_path_factory.mktemp("report"))


def test_all_pairs_table_shows_every_chosen_test_row(result, page):
    rows = page.table_with("source", "target", "IoU@10", "similarity, explainability")
    pairs = chosen_pairs(result)
    zero = result.references.query("reference == 'zero_predictor'").set_index("domain")["e_rmse"]
    assert len(rows) == len(pairs) == 56
    for row, (_, pair) in zip(rows, pairs.iterrows(), strict=True):
        assert (row["source"], row["target"]) == (pair["source_domain"], pair["target_domain"])
        assert row["IoU@10"] == f"{pair['iou_at_10']:.3f}"
        assert row["normalised E-RMSE"] == f"{pair['normalized_e_rmse']:.3f}"
        assert row["similarity, explainability"] == f"{pair['similarity_explainability']:.3f}"
        assert row["E-RMSE of zero predictor"] == f"{zero[pair['target_domain']]:.3f}"


def test_the_headline_stands_between_all_its_references(result, page):
    rows = {row["model"]: row for row in page.table_with("model", "infidelity")}
    assert set(rows) == {"transferred, mean", *(REFERENCE_TITLES[name] for name in known_references(result))}
    means = headline(result)
    assert rows["transferred, mean"]["IoU@10"] == f"{means.loc['transferred', 'iou_at_10']:.3f}"
    assert rows["chance"]["IoU@10"] == "0.118"
    assert rows["zero predictor"]["IoU@10"] == "–"


def test_it_says_how_many_pairs_beat_the_predictors_that_explain_nothing(result, page):
    cells = result.cells.copy()
    cells.loc[cells["target_domain"] == "cars", "e_rmse"] = 0.01
    assert re.search(r"E-RMSE .*\(zero predictor [0-9.]+: better in 0 of 56, .*mean map [0-9.]+: better in 0 of 56", page.text)
    assert re.search(r"zero predictor [0-9.]+: better in 7 of 56", _Page(_html(replace(result, cells=cells))).text)
    assert "falls by shrinkage alone" in page.text


def test_the_first_lines_tell_each_group_by_itself_with_n_and_intervals(result, page):
    """Against SciPy's t interval of the targets' means."""
    (found,) = finding(result)
    by_target = chosen_pairs(result).groupby("target_domain")[["iou_at_10", "normalized_accuracy"]].mean()
    mean = by_target.mean()
    low, high = stats.t.interval(0.95, 7, mean["iou_at_10"], stats.sem(by_target["iou_at_10"]))
    assert found.text.startswith(f"From single domains (n = 8 targets, 56 pairs): IoU@10 {mean['iou_at_10']:.2f} [{low:.2f}, {high:.2f}]")
    assert f"{mean['normalized_accuracy']:.0%} [" in found.text and found.text.count(". ") == 0
    assert page.text.index(found.text) < page.text.index("Every pair: sources and targets")


def test_what_holds_stands_first_and_what_fails_beside_it():
    """Two sources of which one always finds the label's patches and one never; neither is mixed with the other."""
    result = synthetic_result(sources=["good", "bad"], command="universal", num_examples=0)
    cells = result.cells.copy()
    for source, value in (("bad", 0.0), ("good", 0.6)):
        is_own = cells["source_domain"] == source
        cells.loc[is_own, ["iou_at_10", "correlation"]] = np.stack([value + 0.01 * np.arange(is_own.sum()) / is_own.sum()] * 2, axis=1)
    cells["normalized_accuracy"] = 0.95
    mixed = replace(result, sources=("bad", "good"), cells=cells)
    good, bad = finding(mixed)
    assert (good.standing, bad.standing) == ("Holds", "Does not hold")
    assert good.text.startswith("From good (n = 8 targets): IoU@10 0.6") and bad.text.startswith("From bad (n = 8 targets): IoU@10 0.0")
    (first, tiles), (second, _) = key_numbers(mixed)
    assert (first, second) == ("From good: holds", "From bad: does not hold")
    overlap = chosen_pairs(mixed).query("source_domain == 'good'")["iou_at_10"].mean()
    assert tiles[0].value == f"{overlap:.3f}" and tiles[0].interval.endswith("n = 8 targets")
    inaccurate = replace(mixed, cells=cells.assign(normalized_accuracy=0.5))
    assert [found.standing for found in finding(inaccurate)] == ["Does not hold"] * 2
    rows = _Page(_html(mixed)).table_with("model", "infidelity")
    assert [row["model"] for row in rows][:2] == ["transferred from good", "transferred from bad"]
    text = terminal_summary(mixed)
    assert text.index("From good") < text.index("From bad") and "transferred, mean" not in text
    uncertain = cells["source_domain"].eq("good") & cells["target_domain"].isin(DOMAINS[:4])
    in_part = replace(mixed, cells=cells.assign(correlation=cells["correlation"].mask(uncertain, -0.4)))
    assert finding(in_part)[0].standing == "Holds in part" and finding(in_part)[0].text.startswith("From good")


def test_of_one_target_nothing_is_tested():
    (found,) = finding(synthetic_result(["signs"], sources=["cars"], num_examples=0))
    assert found.standing == "Not tested" and "n = 1 target)" in found.text and "[" not in found.text


def test_every_known_reference_is_tested_against_by_pairs_of_targets(result, page):
    """Against SciPy, of the reference rows themselves."""
    (group,) = groups(result)
    found = comparisons(result, group)
    assert set(found) == set(known_references(result))
    ours = chosen_pairs(result).groupby("target_domain")["iou_at_10"].mean()
    for name in ("prediction_only", "label_ceiling", "zero_shot"):
        theirs = result.references[result.references["reference"] == name].set_index("domain")["iou_at_10"].reindex(ours.index)
        one = found[name]["iou_at_10"]
        assert one.test.p_value == pytest.approx(stats.ttest_rel(ours, theirs).pvalue)
        assert one.test.difference.estimate == pytest.approx((ours - theirs).mean())
    assert found["prediction_only"]["e_rmse"].verdict == "better" and found["supervised"]["e_rmse"].verdict == "worse"
    assert found["zero_predictor"]["iou_at_10"].num_pairs == 0 and found["zero_predictor"]["iou_at_10"].verdict is None
    section = page.text[page.text.index("not corrected for the number of tests") :]
    assert all(REFERENCE_TITLES[name] in section for name in found)


def test_the_page_has_the_best_source_of_each_target(result, page):
    rows = page.table_with("target", "best source", "mean map's overlap")
    best = best_of_targets(result)
    assert [(row["target"], row["best source"]) for row in rows] == list(zip(best["target_domain"], best["source_domain"], strict=True))
    assert [row["mean map's overlap"] == "beaten" for row in rows] == best["mean map's overlap"].tolist()


def test_the_best_pairs_have_their_intervals_and_the_page_says_what_each_kind_is_over(result, page):
    for overlap in best_pairs(result)["iou_at_10"]:
        assert f"{overlap:.3f}[{overlap - 0.04:.3f}, {overlap + 0.06:.3f}]" in page.text
    assert all(kind in page.text for kind in INTERVAL_MEANINGS)


def test_every_setting_is_in_the_provenance_table(result, page):
    shown = {row["setting"]: row["value"] for row in page.table_with("setting", "value")}
    expected = {"sweep_key": result.sweep_key, "command": "all_pairs", "suite": result.suite, **result.provenance}
    assert shown == {name: str(value) for name, value in expected.items()}


def test_the_tables_can_be_looked_at_as_pages_of_their_own(result):
    pages = tables_as_html(replace(result, provenance={**result.provenance, "select": "validation"}))
    assert set(pages) == {"cells", "references", "similarities", "paper_points", "intervals", "reference_intervals"}
    for name, text in pages.items():
        frame, page = getattr(result, name), _Page(text)
        assert all(address.startswith("data:") for address in page.addresses) and len(page.scripts) == 1
        (rows,) = [table[1:] for table in page.tables]
        head = page.tables[0][0]
        assert set(head) == set(frame.columns) and len(rows) == len(frame)
        shown = dict(zip(head, rows[-1], strict=True))
        for column, value in frame.iloc[-1].items():
            expected = str(value) if not isinstance(value, float) else "–" if np.isnan(value) else f"{value:.4f}"
            assert shown[column] == expected


def test_selection_on_test_raises_a_banner_everywhere(page):
    on_test = synthetic_result(DOMAINS[:3], select="test", num_examples=0)
    assert "too good" not in page.text
    assert "chosen on the test split" in _Page(_html(on_test)).text
    assert terminal_summary(on_test).startswith("WARNING: Alpha and lambda2 were chosen on the test split")


def test_a_name_is_text_and_never_markup():
    evil = '<img src=x onerror="alert(1)">'
    result = synthetic_result([evil, "</script><script>alert(2)</script>"], num_examples=1)
    example = replace(result.examples[0], class_name="<b>&amp;")
    provenance = {**result.provenance, "<u>": "</table>"}
    result = replace(result, suite="<i>mine</i>", provenance=provenance, examples=[example])
    page = _Page(render_html(result, draw_figures(result)))
    data, script = page.scripts
    assert "alert" not in script and not set("<>&") & set(data)
    assert json.loads(data)["targets"] == list(result.targets) and json.loads(data)["examples"][0]["class_name"] == "<b>&amp;"
    assert {row["source"] for row in page.table_with("source", "similarity, explainability")} == set(result.sources)
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert {"setting": "<u>", "value": "</table>"} in page.table_with("setting", "value")


def test_of_a_union_whole_members_are_shown_and_short_names_leave_room_for_long_ones():
    assert ascii_pair("cars+textures+scenes", "land_cover") == "cars+textures+scenes -> land_cover"
    assert ascii_pair("cars+textures+scenes+land_cover", "traffic_signs") == "cars+3 more -> traffic_signs"
    assert ascii_pair("aerial_objects+traffic_signs", "aerial_objects") == "aerial_obj~+1 more -> aerial_objects"
    assert ascii_pair("x" * 40, "y" * 40) == "x" * 15 + "~ -> " + "y" * 15 + "~"
    assert shown_name("cars+textures+scenes+land_cover") == "cars+textures+2 more"


def test_a_name_cannot_command_the_terminal():
    text = terminal_summary(synthetic_result(["\x1b[31mred\x07", "naïve " * 20], num_examples=0))
    assert text.isascii() and all(c == "\n" or c.isprintable() for c in text)
    assert max(map(len, text.splitlines())) <= 100


def test_the_page_needs_nothing_but_itself(small, written):
    text = written.read_text(encoding="utf-8")
    page = _Page(text)
    assert page.addresses and all(address.startswith(("#", "data:")) for address in page.addresses)
    assert not re.search(r"https?://|url\(|@import", text)
    anchors = set(re.findall(r'id="([^"]+)"', text))
    assert {a[1:] for a in page.addresses if a.startswith("#")} <= anchors
    names = {file.stem for file in (written.parent / "figures").iterdir()}
    assert names == {
        "trade_off", "similarity_correlations", "coefficient_curves", "examples_1", "matrix_normalized_e_rmse",
        "matrix_normalized_accuracy", "matrix_iou_at_10", "matrix_correlation", "matrix_similarity_prediction_only",
        "matrix_similarity_explainability", "matrix_lambda2",
    }  # fmt: skip
    assert text.count("data:image/png;base64,") == len(names) + len(small.examples)


def test_the_same_result_gives_the_same_page(small, written, tmp_path):
    small.to_directory(tmp_path / "result")
    again = write_report(SweepResult.from_directory(tmp_path / "result"), tmp_path / "b").read_bytes()
    assert written.read_bytes() == again


def test_terminal_summary_lists_the_best_pairs_and_every_reference(result):
    text = terminal_summary(result, num_pairs=3)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100 and text.isascii()
    start = next(index for index, line in enumerate(lines) if line.startswith("source -> target")) + 1
    for line, (_, pair) in zip(lines[start : start + 3], best_pairs(result, 3).iterrows(), strict=True):
        assert line.startswith(f"{pair['source_domain']} -> {pair['target_domain']} ")
        assert line.endswith(f" {pair['iou_at_10']:.3f}")
    for name in known_references(result):
        assert any(line.startswith(REFERENCE_TITLES[name]) for line in lines)
    assert re.search(r"zero predictor [0-9.]+: better in 0 of 56", " ".join(text.split()))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "result",
    [
        synthetic_result(["a", "b"], alphas=[0.5], lambdas=[0.8], num_examples=1),
        synthetic_result([f"_{i} $x^{{$ a long name of a domain" for i in range(11)], alphas=[0.5], lambdas=[0.0, 0.8], num_examples=0),
        synthetic_result(
            DOMAINS[:3],
            sources=["cars", "cars+textures+scenes+land_cover", "imagenet"],
            alphas=[i / 10 for i in range(1, 10)],
            lambdas=np.linspace(0, 1.2, 13).tolist(),
            num_examples=2,
        ),
        synthetic_result(DOMAINS[:3], sources=["others"], alphas=[0.5], lambdas=np.linspace(0, 1.2, 60).tolist(), num_examples=9),
        synthetic_result(["signs"], sources=["cars"], num_examples=1),
        synthetic_result([f"t{i}" for i in range(27)], sources=["a", "b"], alphas=[0.5], lambdas=[0.0, 1.0], num_examples=0),
    ],
    ids=[
        "two domains, one point", "odd names", "the paper's grid and unions", "a free sampler and others", "one pair", "many targets",
    ],
)
def test_every_shape_of_sweep_is_drawn(result, tmp_path):
    write_report(result, tmp_path)
    for path in (tmp_path / "figures").iterdir():
        assert Image.open(BytesIO(path.read_bytes())).size > (300, 200)
    assert max(map(len, terminal_summary(result).splitlines())) <= 100


@pytest.mark.filterwarnings("error")
def test_gaps_are_shown_as_gaps_and_counted(result, tmp_path):
    cells = result.cells.copy()
    cells.loc[cells["target_domain"] == "cars", ["correlation", "iou_at_10", "normalized_accuracy"]] = np.nan
    is_lost = (cells["source_domain"] == "cars") & (cells["target_domain"] == "scenes") & (cells["split"] == "test")
    references = result.references[result.references["reference"] == "supervised"]
    gappy = replace(result, cells=cells[~is_lost], references=references, similarities=result.similarities.iloc[:0])
    page = _Page(write_report(gappy, tmp_path).read_text(encoding="utf-8"))
    rows = page.table_with("source", "target", "similarity, explainability")
    assert len(rows) == 55
    assert all(row["correlation"] == "–" for row in rows if row["target"] == "cars")
    assert "1 of 56 pairs have no result" in page.text and "correlation 7" in page.text
    assert "missing for some domains: zero predictor, mean map" in page.text
    assert not re.search(r"\bnan\b", page.text, re.IGNORECASE)
