"""The description in the record says what matters in few words, and shows names as they are."""

import re
from dataclasses import replace
from html import unescape

import pytest
from synthetic_result import DOMAINS, synthetic_result

from sweep.report.description import description_markdown
from sweep.report.page import render_html
from sweep.report.result import SweepResult
from sweep.report.tables import best_pairs, reference_of_pairs


@pytest.fixture(scope="module")
def result() -> SweepResult:
    return synthetic_result(num_examples=1)


@pytest.fixture(scope="module")
def small() -> SweepResult:
    return synthetic_result(DOMAINS[:3], num_examples=1)


def told(result: SweepResult, **search: str) -> SweepResult:
    """The same with these settings of the search."""
    return replace(result, provenance={**result.provenance, **{f"search.{name}": value for name, value in search.items()}})


def _table(text: str) -> list[list[str]]:
    return [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]


def test_the_best_pairs_stand_beside_the_references_of_their_targets(result):
    head, rule, *rows = _table(description_markdown(result, num_pairs=3))
    best = best_pairs(result, 3)
    assert len(rows) == 3 and {len(row) for row in [head, rule, *rows]} == {len(head)}
    mean_map, zero = reference_of_pairs(result, "mean_map", "iou_at_10"), reference_of_pairs(result, "zero_predictor", "e_rmse")
    for row, (index, pair) in zip(rows, best.iterrows(), strict=True):
        assert row[0].replace("\\", "") == f"{pair['source_domain']} → {pair['target_domain']}"
        assert row[head.index("IoU@10")] == f"{pair['iou_at_10']:.3f}"
        assert row[head.index("mean map")] == f"{mean_map[index]:.3f}"
        assert row[head.index("zero predictor")] == f"{zero[index]:.3f}"


def test_five_pairs_are_listed_of_several_sources_and_many_targets():
    result = synthetic_result(sources=["concepts", "others", "concepts,others"], command="universal", num_examples=1)
    result = told(result, objective="e_rmse", merge="atlas_rows:explanation_weight=0.5,num_steps=120,learning_rate=0.03,num_pictures=256")
    assert len(_table(description_markdown(result))) == 2 + 5


@pytest.mark.parametrize(
    ("objective", "merge"),
    [("accuracy_bound", "addition"), ("infidelity", "atlas:num_steps=60"), ("e_rmse", "ties:share=0.2"), ("few_labels", "addition")],
)
def test_it_says_what_is_taken_of_the_targets_own_domain(small, objective, merge):
    """By the record and by the report alike: that no explanation label is, only where the objective reads none."""
    this = told(replace(small, examples=()), objective=objective, merge=merge)
    for written in (description_markdown(this).replace("\\", ""), unescape(re.sub(r"<.*?>", "", render_html(this, [])))):
        text = " ".join(written.split())
        assert ("No explanation label of the target's domain has a part" in text) == (objective in ("accuracy_bound", "infidelity"))
        chosen = f"chosen with explanation labels of the target's own validation pictures (objective {objective})"
        assert (chosen in text) == (objective not in ("accuracy_bound", "infidelity"))
        learned = f"rule {merge} each part of the vector has a coefficient, which is learned on the target's own pictures, without labels"
        assert (learned in text) == merge.startswith("atlas")
        assert (f"merge rule {merge} edits the vector" in text) == merge.startswith("ties")


def test_the_pictures_say_the_rule_that_their_models_are_merged_by(small):
    page = render_html(told(small, objective="e_rmse", merge="ties:share=0.2"), [])
    assert "domain added by the merge rule ties:share=0.2;" in page and "added by the merge rule" not in render_html(small, [])


def test_it_names_what_to_open(result):
    text = description_markdown(result)
    assert "all pairs of 8 domains" in text and "`report.html`" in text and "`figures/examples_1.png`" in text
    assert "examples_1" not in description_markdown(replace(result, examples=()))


def test_a_name_is_text_and_never_markdown():
    evil = "a|b <img src=x> [x](y) `c` *d*"
    text = description_markdown(synthetic_result([evil, "plain"], num_examples=0))
    head, _, *rows = _table(text.replace("\\|", "/"))
    assert {len(row) for row in rows} == {len(head)}
    assert "<img" not in text and "[x](" not in text.replace("\\[", "")


@pytest.mark.parametrize("name", ["_*<>" + "*_" * 40, "<" * 60])
def test_it_is_short_whatever_the_names_and_the_warnings(name):
    names = [f"{i}{name}" for i in range(12)]
    result = synthetic_result(names, alphas=[0.5], lambdas=[0.0, 1.0], select="test", sources=[f"{n}+{n}+{n}" for n in names])
    cells = result.cells[result.cells["target_domain"] != names[0]]
    result = replace(result, cells=cells, references=result.references.iloc[:5], suite="_" * 300)
    text = description_markdown(result)
    assert text.count("> **Warning.**") == 3 and len(text) < 4000


def test_other_experiments_say_from_how_many_sources_to_how_many_targets():
    result = synthetic_result(DOMAINS[:3], sources=["others"], command="universal", num_examples=0)
    assert "from 1 source to 3 target domains" in description_markdown(result)
