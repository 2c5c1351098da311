"""Manifests: what an artifact consists of. What is read is checked to the last field, since others may have written it.

A manifest has: key, stage, params, inputs, files {name: {size, sha256}}, meta, started and created (s since the epoch), seconds, host;
in a bucket also the directory beside it that holds the files.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

MANIFEST = "manifest.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DIRECTORY = re.compile(r"[0-9a-f]{32}")
_LONGEST_NAME = 255  # bytes; of a file's name on common filesystems


def as_bytes(manifest: Mapping[str, Any]) -> bytes:
    """The file of a manifest."""
    return json.dumps(manifest, indent=1, sort_keys=True).encode()


def parse_manifest(content: bytes, key: str) -> dict[str, Any]:
    """The manifest of the artifact `key` in a file. Raises ValueError for anything that this store would not have written."""
    try:
        manifest = json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(manifest, dict):
        raise ValueError("it is no mapping")
    for field, is_valid in _FIELDS.items():
        if field not in manifest or not is_valid(manifest[field]):
            raise ValueError(f"its {field!r} is missing or wrong")
    if manifest["key"] != key:
        raise ValueError(f"it is of the artifact {manifest['key']!r}")
    if "directory" in manifest and not _matches(_DIRECTORY, manifest["directory"]):
        raise ValueError("its 'directory' is wrong")
    return manifest


def sha256_of(path: Path) -> str:
    """The checksum of a local file, as manifests hold it."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_safe_name(name: Any) -> bool:
    """Whether a name of a file stays in the artifact's directory and can be written on common filesystems."""
    if not isinstance(name, str) or name in ("", MANIFEST) or "\0" in name or "\\" in name:
        return False
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or str(path) != name or not path.parts:
        return False
    try:
        return all(len(part.encode()) <= _LONGEST_NAME for part in path.parts)
    except UnicodeEncodeError:
        return False


def _are_files(value: Any) -> bool:
    return isinstance(value, dict) and all(is_safe_name(name) and _are_facts(facts) for name, facts in value.items())


def _are_facts(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) != {"size", "sha256"}:
        return False
    return type(value["size"]) is int and value["size"] >= 0 and _matches(_SHA256, value["sha256"])


def _matches(pattern: re.Pattern[str], value: Any) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf


_FIELDS: Mapping[str, Callable[[Any], bool]] = {
    "key": _is_text,
    "stage": _is_text,
    "params": _is_mapping,
    "inputs": _are_texts,
    "files": _are_files,
    "meta": _is_mapping,
    "started": _is_number,
    "created": _is_number,
    "seconds": _is_number,
    "host": _is_text,
}
