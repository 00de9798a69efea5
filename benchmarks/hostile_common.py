"""What the fuzzers share: changes of structures and of bytes, and what counts as refused."""

import json
import os
import random
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from readers_fuzz import mutated

from spiketrain.errors import UserError, one_line

Case = Callable[[random.Random], None]
"""Writes a changed file and reads it; returns where it is read, raises `UserError` where it is refused."""
Kind = Callable[[Path], Case]
"""Makes samples in a folder; the folder's parent is where nothing may be written."""

MOST_SECONDS = 10
DEEP = "[" * 100_000
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**63, 10**30, -(2**40), 0.5, -0.0, 1e308, float("nan"), float("inf"), "", "x", "x" * 5000,
    "\x1b[2J\n",
    "../../etc/passwd", "/etc/passwd", "évil.py:build", "\ud800", [], {}, [[]], {"": None}, [1] * 50, ["a", 1, None], {"a": {"b": [1, 2]}},
)  # fmt: skip


class Payload:
    """Unpickled by anything that unpickles all: makes a file where none may be."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.place),)


def outside(folder: Path) -> Path:
    """A place that nothing may make."""
    return folder.parent / "escaped"


def tried(case: Callable[[], None]) -> tuple[str, str]:
    """("read" | "refused" | "else", text of what went wrong)."""
    signal.alarm(MOST_SECONDS)
    try:
        case()
    except UserError as error:
        text = str(error)
        clear = len(text.splitlines()) == 1 and len(one_line(error)) > 10
        return ("refused", "") if clear else ("else", f"UNCLEAR: {text[:500]!r}")
    except BaseException:
        return "else", traceback.format_exc()[-3000:]
    finally:
        signal.alarm(0)
    return "read", ""


def changed(value: Any, rng: random.Random, values: tuple[Any, ...] = VALUES) -> Any:
    """A copy of a structure of dictionaries and lists with one place in it changed, removed, doubled or added to."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        copy = dict(value)
        key = rng.choice(list(copy))
        kind = rng.randrange(8)
        if kind == 0:
            del copy[key]
        elif kind == 1:
            copy[rng.choice(("x", "", "__class__", "key " * 100))] = rng.choice(values)
        else:
            copy[key] = changed(copy[key], rng, values)
        return copy
    if isinstance(value, list) and value and rng.random() < 0.9:
        copy = list(value)
        at = rng.randrange(len(copy))
        kind = rng.randrange(6)
        if kind == 0:
            del copy[at]
        elif kind == 1:
            copy.insert(at, rng.choice(values))
        else:
            copy[at] = changed(copy[at], rng, values)
        return copy
    return rng.choice(values)


def json_bytes(value: Any, rng: random.Random) -> bytes:
    """A structure, changed one to three times, as JSON; now and then with bytes of it changed, or no JSON at all."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        value = changed(value, rng)
    data = json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    kind = rng.randrange(20)
    if kind == 0:
        return rng.choice((b"", b"\xff\xfe", DEEP.encode(), b"9" * 6000, b"{}", b"[]", b"null", b"\x80\x02}.", data[: len(data) // 2]))
    return scattered(data, rng) if kind < 6 else data


def scattered(data: bytes, rng: random.Random) -> bytes:
    """Bytes changed near the beginning (`mutated`), near the end, or anywhere."""
    if not data or rng.random() < 0.5:
        return mutated(data, rng)
    out = bytearray(data)
    for _ in range(rng.choice((1, 2, 8))):
        back = rng.random() < 0.5
        at = len(out) - 1 - rng.randrange(min(len(out), 200)) if back else rng.randrange(len(out))
        out[at] = rng.choice((0, 1, 0x7F, 0xFF, rng.randrange(256), out[at] ^ (1 << rng.randrange(8))))
    return bytes(out)
