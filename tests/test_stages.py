"""The stages in this process, without Ray, on a store that is not a local disk: the same code as on a cluster."""

from __future__ import annotations

from core.metrics import e_rmse
from sweep import run as command_line
from sweep.commands.all_pairs import make_plan
from sweep.engines.trials import compute_pair
from sweep.stages import computations as stages
from sweep.stages.assembly import compute_result, load_result
from sweep.stages.plan import LABEL_SPLITS
from sweep.store.artifacts import Store

ARGUMENTS = [
    *("all_pairs", "--suite", "miniature", "--domains", "clean_digits", "street_digits", "--alphas", "0.5", "--num-steps", "2"),
    *("--max-train-pictures", "20", "--max-test-pictures", "12", "--max-test-labels", "4", "--budget", "104", "--test-budget", "104"),
    *("--search", "grid", "--lambdas", "0,0.8", "--precision", "float32"),
]


def test_every_stage_on_a_remote_store(tmp_path):
    plan = make_plan(command_line.config_from(command_line._parser().parse_args(ARGUMENTS)))
    store = Store("memory://stages", str(tmp_path / "cache"))
    for domain in plan.domains:
        stages.compute_pictures(plan, store, domain)
        assert stages.count_pictures(plan, store, domain) == {"train": 18, "validation": 2, "test": 12}
        stages.compute_model(plan, store, domain, 1.0)
        for split in LABEL_SPLITS:
            number = len(stages.load_pictures(plan, store, domain, "test" if split == "ceiling" else split))
            for bounds in plan.shard_ranges(number, split):
                stages.compute_label_shard(plan, store, domain, split, *bounds)
        stages.compute_model(plan, store, domain, 0.5)
    for pair in plan.config.pairs:
        compute_pair(plan, store, *pair)
    compute_result(plan, store)
    result = load_result(store.open(plan.result().key))
    assert len(result.cells) == 2 * (2 + 1)
    assert len(result.examples) == 4 and result.provenance["select"] == "validation"
    label, ceiling = (stages.load_labels(plan, store, "clean_digits", split).attributions for split in ("test", "ceiling"))
    row = result.references.query("domain == 'clean_digits' and reference == 'label_ceiling'").iloc[0]
    assert abs(row["e_rmse"] - e_rmse(ceiling, label[: len(ceiling)])) < 1e-6
