"""Reading files that may come from anybody: a regular file, of no more bytes than such a file has, in one line where it is not one."""

import json
import os
import stat
from pathlib import Path
from typing import Any

from spiketrain.errors import UserError

MOST_JSON = 64 << 20
"""Bytes of a JSON file: a record of a thousand classes has 8 MB, most of it the confusion matrix."""


def read_bytes(file: str | Path, most: int, what: str = "file") -> bytes:
    """The content of a regular file of at most `most` bytes.

    Raises `UserError` for anything else: a pipe would be waited for, a device would never end.
    """
    try:
        handle = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise UserError(f"{file}: not a regular file: a {what} is expected")
            if status.st_size > most:
                raise UserError(f"{file}: {status.st_size:,} bytes are more than a {what} has ({most:,})")
            with open(handle, "rb", closefd=False) as stream:
                return stream.read(most + 1)[:most]
        finally:
            os.close(handle)
    except FileNotFoundError:
        raise UserError(f"{file}: not there: a {what} is expected") from None
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def read_text(file: str | Path, most: int, what: str = "file") -> str:
    """The same, as UTF-8."""
    try:
        return read_bytes(file, most, what).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not a {what}: byte {error.start} is no UTF-8 text") from None


def read_json(file: str | Path, what: str, most: int = MOST_JSON) -> Any:
    """The same, parsed. Numbers that JSON does not have (NaN, Infinity) are refused."""
    try:
        return json.loads(read_text(file, most, what), parse_constant=_no_number, parse_float=_number)
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file}: not a {what}: {str(error)[:120]}") from None


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number")


def _number(text: str) -> float:
    value = float(text)
    return value if abs(value) != float("inf") else _no_number(text)
