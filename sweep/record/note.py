"""What stands at the top of a run's page in MLflow's UI, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from sweep.record.entities import MAX_TAG_LENGTH
from sweep.store.credentials import text_without_credentials

NOTE_TAG = "mlflow.note.content"
CUT = "\n\n*(cut here: see the report)*"


def running_note(what: str) -> str:
    """The note of a sweep that has not ended. what: a sentence or two that say what the sweep is, Markdown."""
    return f"""{what}

**Not finished yet.** Runs appear below this one as their stages finish; filter them by `tags.stage = "finetune"` (a model with its vector
and curves), `"label"` (the labels of a split), `"pair"` (the best point of a source and a target). Progress with an estimate is on the
terminal of the sweep. At the end `report.html`, the figures and the tables come under *Artifacts* of this run, and the best pairs here.
If the status is `KILLED` or `FAILED`: the same command continues from what is finished."""


def with_links(note: str, links: Sequence[str]) -> str:
    """A note with links behind its first paragraph: the UI shows some 90 pixels of a note and hides the rest behind "Show more"."""
    first, _, rest = note.strip().partition("\n\n")
    return "\n\n".join([first, *(["Look at " + ", ".join(links)] if links else []), *([rest] if rest else [])])


def fitting(note: str) -> str:
    """A note without credentials and as long as MLflow takes; a longer one is cut at the end of a line."""
    note = text_without_credentials(note)
    if len(note) <= MAX_TAG_LENGTH:
        return note
    return note[: MAX_TAG_LENGTH - len(CUT)].rpartition("\n")[0] + CUT
