"""Task vectors out of MLflow: the file that a child run of a sweep holds."""

from __future__ import annotations

from pathlib import Path

from sweep.record.tracker import Tracker, TrackingError

RUNS = "runs:/"
_DIRECTORY = "vectors"
_FILE = "explainability_vector.safetensors"


def fetch_vector(reference: str, directory: Path, tracking_uri: str | None = None) -> Path:
    """The vector that `runs:/RUN_ID` or `runs:/RUN_ID/PATH` names, as a file below a directory; of a run alone its explainability vector.

    Raises TrackingError where the run or the file is not there, with what there is.
    """
    run_id, _, path = reference.removeprefix(RUNS).strip("/").partition("/")
    if not run_id:
        raise TrackingError(f"{reference!r} names no run: write runs:/RUN_ID, of a fine-tuning's child run")
    from mlflow.exceptions import MlflowException

    client = Tracker(tracking_uri, "").reader()
    try:
        client.get_run(run_id)
        there = [entry.path for entry in client.list_artifacts(run_id, _DIRECTORY)]
        wanted = path or f"{_DIRECTORY}/{_FILE}"
        if wanted not in there and not path:
            raise TrackingError(
                f"the run {run_id} holds no explainability vector ({', '.join(there) or 'no vectors'}): "
                "give the child run of a self-explaining fine-tuning"
            )
        return Path(client.download_artifacts(run_id, wanted, str(directory)))
    except (MlflowException, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        fix = "check the id, or give the --tracking-uri that it is of"
        raise TrackingError(f"{reference} cannot be had ({type(error).__name__}: {reason}): {fix}") from None
