"""Which test files are run together: `make test` runs these groups and, as one more, all other files, beside each other.

Files that share a fixture of sweeps stand together, and none of the groups takes much longer than the others.
"""

GROUPS = {
    # On Ray: whole sweeps, and what kills, outages and models of several workers do to their parts. The last is two processes without Ray.
    "engines": (
        *("test_cluster_of_nodes.py", "test_end_to_end.py", "test_label_kills.py", "test_outages.py", "test_workers_of_a_model.py"),
        "test_imagenet_path.py",
    ),
    # In one process: sweeps, what trains for minutes, and what else takes a minute.
    "sweeps": (
        *("test_quality.py", "test_label_learning.py", "test_real_pictures.py", "test_own_image_sets.py"),
        *("test_atlas.py", "test_recommend.py", "test_transfer_merge.py", "test_universal.py"),  # `two_seeds`
        *("test_compare.py", "test_gc.py", "test_merge_search.py", "test_status.py", "test_why.py", "test_children.py"),  # `two_sweeps`
        *("test_report.py", "test_extending.py", "test_tutorial.py"),
    ),
}
