"""Whether what stands in a record file has the types that a record's fields have: the file may be anybody's."""

from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any], bool]
MOST = 1 << 53
"""Numbers beyond are no counts, seconds or percents."""


def _text(value: Any) -> bool:
    """Text of one line: what is printed on a terminal and in tables may hold no control characters."""
    return isinstance(value, str) and len(value) <= 1 << 20 and value.isprintable()


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MOST


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MOST


def _list_of(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _dict_of(check: Check) -> Check:
    return lambda value: isinstance(value, dict) and all(_text(k) and check(v) for k, v in value.items())


def _with(known: Mapping[str, Check], rest: Check) -> Check:
    """A dictionary that has the known keys with values of their kinds; further ones pass `rest`."""
    return lambda value: isinstance(value, dict) and all(
        _text(k) and known.get(k, rest)(v) for k, v in value.items()
    ) and all(key in value for key in known)  # fmt: skip


def _plain(value: Any) -> bool:
    """A value as recipes and machines have them: text, a number, yes or no, or a list of these."""
    return value is None or isinstance(value, bool) or _text(value) or _number(value) or _list_of(lambda v: _text(v) or _number(v))(value)


def _square(value: Any) -> bool:
    """A confusion matrix, or none."""
    return _list_of(_list_of(_count))(value) and all(len(row) == len(value) for row in value)


_RECIPE = {
    **dict.fromkeys(("name", "model", "neuron", "surrogate", "data"), _text), **dict.fromkeys(("steps", "epochs", "seed"), _count),
}  # fmt: skip
_DATA = {
    "name": _text, "split": _text, "train": _count, "test": _count, "classes": _count, "train_fingerprint": _text, "test_fingerprint": _text
}  # fmt: skip
_EPOCH = dict.fromkeys(("train_loss", "train_accuracy", "test_loss", "test_accuracy", "lr", "seconds", "samples_per_second"), _number)
FIELDS: dict[str, Check] = {
    **dict.fromkeys(("test_accuracy", "best_epoch_accuracy", "train_seconds", "compile_seconds", "eval_seconds"), _number),
    **dict.fromkeys(("seed", "parameters", "macs_per_step"), _count),
    **dict.fromkeys(("command", "commit", "date", "precision", "weights"), _text),
    "recipe": _with(_RECIPE, _plain),
    "data": _with(_DATA, _plain),
    "machine": _with({"processor": _text, "threads": _count}, _plain),
    "versions": _dict_of(_text),
    "curve": lambda value: _list_of(_with(_EPOCH, _plain))(value) and len(value) > 0,
    "firing_rates": _dict_of(_number),
    "accuracy_by_step": _list_of(_number),
    "confusion": _square,
}
"""Field → what it must be."""


def wrong(values: Mapping[str, Any]) -> str:
    """What is wrong with a record's values, in a few words; empty where nothing is."""
    for name, check in FIELDS.items():
        if name in values and not check(values[name]):
            return f"{name} is not what a record has there"
    return ""
