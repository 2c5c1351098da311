"""Which test files are run together: `make test` runs three of these groups at a time, and all other files as one more.

Engines and losses start Ray: whole sweeps, and what kills, outages and models of several workers do to their parts. Quality trains for
minutes. The others are small sweeps in one process and what else is slow; files that share a fixture of sweeps stand together.
"""

GROUPS = {
    "engines": ("test_end_to_end.py", "test_cluster_of_nodes.py"),
    "losses": ("test_label_kills.py", "test_workers_of_a_model.py", "test_outages.py"),
    "quality": ("test_quality.py",),
    "slow": (
        *("test_label_learning.py", "test_imagenet_path.py"),
        *("test_atlas.py", "test_recommend.py", "test_transfer_merge.py", "test_universal.py"),  # `two_seeds`
    ),
    "sweeps": (
        *("test_report.py", "test_extending.py", "test_real_pictures.py", "test_own_image_sets.py", "test_tutorial.py"),
        *("test_compare.py", "test_gc.py", "test_merge_search.py", "test_status.py", "test_why.py", "test_children.py"),  # `two_sweeps`
    ),
}
