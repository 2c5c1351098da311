"""URLs and texts without credentials, for everything that is logged, shown or kept in a run."""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")


def without_credentials(url: str) -> str:
    """A URL without user, password, query and fragment, any of which may hold a secret. Other text passes unchanged.

    A secret with an unquoted `/` in it, as AWS makes them, hides its `@` from a parser: where a user and password may stand,
    everything up to the last `@` goes.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    head = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in head and ":" not in head.rpartition("@")[0]:
        rest = rest.partition("@")[2]
    elif ":" in head and "@" in rest:
        rest = rest.rpartition("@")[2]
    return f"{scheme}://{re.split('[?#]', rest, maxsplit=1)[0]}"


def text_without_credentials(value: Any) -> str:
    """Any value as text, each URL in it without credentials; lists and mappings item by item."""
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(text_without_credentials(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {text_without_credentials(item)}" for key, item in value.items()) + "}"
    return _URL.sub(lambda match: without_credentials(match[0]), str(value))


def scrubbed(text: str, uri: str) -> str:
    """Text of an error about a URI, without the URI's credentials, whole or in part."""
    text = text.replace(uri, without_credentials(uri))
    try:
        secret = urlsplit(uri).password or ""
    except ValueError:
        secret = ""
    for form in {secret, unquote(secret)} - {""}:
        text = text.replace(form, "***")
    return text_without_credentials(text)
