"""How names and numbers are written: those that users gave are made short, and harmless where they are shown."""

import math
import time

PAIR_LENGTH = 36


def shown_name(name: str, length: int = 20) -> str:
    """For a figure: on one line, printable and short. A leading underscore would hide it from a legend."""
    printable = "".join(c if c.isprintable() else " " for c in name)
    return _cut(" " + printable if printable.startswith("_") else printable, length, "…")


def ascii_text(text: str, length: int) -> str:
    """For the terminal: nothing that it would obey or fail to show. An escape sequence in a folder's name stays text."""
    return _cut("".join(c if " " <= c <= "~" else "?" for c in text), length, "~")


def ascii_pair(source: str, target: str) -> str:
    """`source -> target` in PAIR_LENGTH characters; a short name leaves its room to a long one."""
    room = PAIR_LENGTH - len(" -> ")
    shown_target = ascii_text(target, max(room // 2, room - len(source)))
    return f"{ascii_text(source, room - len(shown_target))} -> {shown_target}"


def number(value: float, digits: int = 3, dash: str = "–") -> str:
    """Fixed digits; a dash where there is no number."""
    return f"{value:.{digits}f}" if math.isfinite(value) else dash


def duration(seconds: float) -> str:
    """`42 s`, `3:07`, `2:05:00`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def size(num_bytes: float) -> str:
    """`532 bytes`, `3.1 kB`, `20 MB`, `1.4 GB`, in powers of 1000."""
    units = iter(("bytes", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while num_bytes >= 999.5 and unit != "TB":
        num_bytes, unit = num_bytes / 1000, next(units)
    return f"{num_bytes:.0f} {unit}" if unit == "bytes" or num_bytes >= 10 else f"{num_bytes:.1f} {unit}"


def counted(number_of: int, what: str) -> str:
    """`1 lease`, `2 leases`. what: one of them; `engine's directory` becomes `engine's directories`."""
    plural = f"{what[:-1]}ies" if what.endswith("y") else f"{what}s"
    return f"{number_of} {what if number_of == 1 else plural}"


def moment(seconds: float) -> str:
    """Local time of seconds since the epoch, to the minute."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _cut(name: str, length: int, ellipsis: str) -> str:
    """At most `length` characters. Of several domains taken together whole names are kept: `cars+textures+3 more`."""
    if len(name) <= length:
        return name
    members = name.split("+")
    for num_kept in range(len(members) - 1, 0, -1):
        kept, more = "+".join(members[:num_kept]), f"+{len(members) - num_kept} more"
        if len(kept) + len(more) <= length:
            return kept + more
        if num_kept == 1 and length > 2 * len(more):
            return kept[: length - len(more) - 1] + ellipsis + more
    return name[: length - 1] + ellipsis
