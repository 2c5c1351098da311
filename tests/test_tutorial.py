"""docs/tutorial.md as it stands: its commands and its Python, in order, in one directory; the sweeps made smaller."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from in_process import engines_here
from transfers import write_pictures

from sweep import run as command_line

TUTORIAL = Path(__file__).parent.parent / "docs" / "tutorial.md"
COMMAND = "python -m sweep.run "
SMALLER = [
    *("--max-train-pictures", "30", "--max-test-pictures", "12", "--max-test-labels", "4", "--max-validation-labels", "4"),
    *("--num-steps", "4", "--num-source-steps", "4", "--budget", "104", "--test-budget", "104", "--alphas", "0.5", "--num-trials", "4"),
]
"""What the test adds to the sweep's commands."""


def blocks() -> list[tuple[str, str]]:
    """Language and text of the fenced blocks, in order."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", TUTORIAL.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def test_the_tutorial_works_from_the_first_command_to_the_last(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    engines_here(monkeypatch, draws_all=True)
    write_pictures(tmp_path / "my_pictures" / "train", 60, split="train")
    write_pictures(tmp_path / "my_pictures" / "test", 12)
    ran = []
    for language, text in blocks():
        if language == "python":
            exec(compile(text, str(TUTORIAL), "exec"), {})
        for line in text.splitlines():
            if not line.startswith(COMMAND):
                continue
            arguments = shlex.split(line.removeprefix(COMMAND))
            smaller = SMALLER if arguments[0] == "universal" else []
            assert command_line.main([*arguments, *smaller]) == 0, line + capsys.readouterr().err
            ran.append(arguments[0])
    assert ran == ["universal", "universal", "status", "gc", "recommend", "transfer", "explain", "explain", "publish", "export", "export"]
    assert (tmp_path / "explanations" / "contact_sheet.png").is_file() and (tmp_path / "for_the_hub" / "config.json").is_file()
    assert "mlflow models serve -m models:/mine/1" in capsys.readouterr().out
