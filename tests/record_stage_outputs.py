"""Write down what stages compute now: `python tests/record_stage_outputs.py`, after a version was raised (see test_stage_versions.py)."""

from __future__ import annotations

import json
import os
import re

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as in the tests
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from stage_outputs import RECORD, computed

if __name__ == "__main__":
    text = json.dumps(computed(), indent=1, sort_keys=True)
    RECORD.write_text(re.sub(r"\[[^][{}]*\]", lambda match: " ".join(match[0].split()), text) + "\n")  # a list a line
    print(f"{RECORD} is written")
