"""Command lines that are wrong: unknown and impossible values for every flag, absent and unfit files, combinations that cannot be."""

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from spiketrain import cli
from spiketrain.recipes import FIELDS, field_type

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples" / "img_cls" / "bp"))
import main as old

training = importlib.import_module("spiketrain.train")  # the package has a function of that name

NUMBERS = ("", "x", "1.5x", "--", "nan", "inf", "-inf", "1e400", "0x10", "1,5", "None", "[]", "\x1b[1m", "9" * 400)
PLACES = ("--resume", "--into", "--tensorboard")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _fields() -> Iterator[list[str]]:
    """Every field of a recipe with values it cannot have."""
    for name, field in FIELDS.items():
        kind, meta = field_type(name), field.metadata
        if name == "name":
            continue
        flag = ["train", "digits", _flag(name)]
        if kind is bool:
            yield [*flag[:2], f"{_flag(name)}=yes"]
            yield [*flag, "yes"]
            continue
        yield flag
        if kind in (int, float):
            yield from ([*flag, value] for value in NUMBERS)
            yield from ([*flag, f"{bound:.0f}"] for bound in ((meta["low"] or 0) - 1,) if meta["low"] is not None)
            yield from ([*flag, f"{meta['high'] + 1:.0f}"] for _ in range(meta["high"] is not None))
        elif meta["choices"]:
            yield from ([*flag, value] for value in ("", "x", meta["choices"][0] + "x", meta["choices"][0].upper() + "_", "x" * 5000))
    for flag in (_flag(n) for n in FIELDS if n != "name"):
        yield ["train", "digits", flag + "x", "1"]
        yield ["train", "digits", flag[:-1] + "_", "1"]


def _named() -> Iterator[list[str]]:
    """Names that are none, wherever a name is expected."""
    for word in ("", "x", "digit", "DIGITS", "../digits", "digits/", "seed/", "seed/x", "\x00", "é", "x" * 3000, "digits\n"):
        yield ["train", word]
        yield ["list", word]
        yield ["bench", word, "--plan"]
        yield ["data", word, "digits"]
        yield ["data", "info", word if word not in ("digits/", "../digits") else "x/"]
        yield [word]
        for flag in ("--model", "--neuron", "--surrogate", "--encoder", "--optimizer", "--device", "--data"):
            yield ["train", "digits", flag, word]
    yield from (["train", "digits", "--model", w] for w in ("a.py:", "a.py:build", ":build", "/dev/null.py:f", "a.py:build:c"))
    yield from (["train", "digits", "--randaugment", w] for w in ("rand", "rand-m", "x", "rand-m9-q"))
    yield from (
        ["train", "digits", f, w] for f in ("--area", "--aspect") for w in ("1", "1,x", "0.9,0.1", "0,0", "-1,1", "1,2,3", "nan,1", "")
    )
    yield from (["train", "digits", f, w] for f in ("--interpolation", "--test-interpolation") for w in ("", "cubic", "random2"))
    yield from (["train", "digits", f, w] for f in ("--mean", "--std") for w in ("1,2", "x", "nan"))
    yield ["train", "digits", "--event-augment", "crop"]
    yield ["train", "digits", "--device", "cuda:99"]
    yield ["train", "digits", "--device", "meta"]


def _impossible() -> Iterator[list[str]]:
    """Flags that are right one by one."""
    yield ["train"]
    yield ["train", "digits", "mnist"]
    yield ["train", "digits", "--accumulate", "200", "--batch-size", "100"]
    yield ["train", "digits", "--frames-by", "window"]
    yield ["train", "digits", "--classes", "3"]
    yield ["train", "digits", "--data", "nowhere", "--stream"]
    yield ["train", "digits-dvs", "--event-augment", "nothing"]
    yield ["train", "digits-dvs", "--event-augment", "crop,crop-flip-rotates"]
    yield ["train", "digits", "--neuron", "plif", "--tau", "1"]
    yield ["train", "digits", "--width", "100", "--model", "resnet50"]
    yield ["train", "digits", "--epochs", "2", "--epochs"]
    yield ["train", "imnet-resnet18", "--data-root", "/nowhere"]
    yield ["train", "cifar10-small", "--data-root", "/nowhere"]
    yield ["train", "seed/dvsg-lif-qgate-dvs_convnet", "--data-root", "/nowhere"]
    yield ["bench", "digits-grid", "--plan", "--neuron", "relu"]
    yield ["bench", "digits-grid", "--plan", "--seeds", "0,x"]
    yield ["bench", "digits-grid", "--plan", "--epochs", "0.5"]
    yield ["bench", "digits-grid", "--minutes", "long"]
    yield ["data", "shard", "digits"]
    yield ["data", "simulate", "digits"]
    yield ["data", "show", "digits"]
    yield ["data", "info", "digits", "more"]
    yield ["data", "info"]
    yield []
    yield ["list"]
    yield ["eval"]
    yield ["verify"]
    yield ["report", "--results", "/nowhere"]


def _files(folder: Path) -> Iterator[list[str]]:
    """Files that are absent, folders, devices, pipes in place of files, and files that are something else."""
    (folder / "empty").write_bytes(b"")
    (folder / "text.json").write_text("hello")
    (folder / "list.json").write_text("[1]")
    (folder / "record.json").write_text("{}")
    (folder / "binary").write_bytes(bytes(range(256)))
    (folder / "folder").mkdir(exist_ok=True)
    places = [str(folder / n) for n in ("absent", "empty", "text.json", "list.json", "record.json", "binary", "folder", "empty/x")]
    for place in [*places, "/dev/null", "/dev/zero", "\x00", "x" * 5000, ""]:
        for command in ("eval", "verify", "analyze"):
            yield [command, place]
        yield ["train", "--resume", place] if place else ["train", "--resume"]
        yield ["data", "shard", place, str(folder / "out")]
        if place not in ("", places[-2]):
            yield ["report", "--results", place] if place != str(folder) else ["report"]
            into = place if not place.endswith("absent") and place != "\x00" else ""  # no shell passes a zero byte
            yield ["train", "digits", "--into", into] if into else ["train", "digits", "--into"]
            yield ["old", "-c", place] if place != str(folder / "empty") and place != "/dev/null" else ["old", "-c"]
    for place in places[1:6]:
        yield ["bench", place, "--plan"]
    yield ["data", "shard", str(folder / "folder"), str(folder / "binary")]


def _old() -> Iterator[list[str]]:
    """The older script's options."""
    import options

    for option in options.EVERY:
        if option.dest in ("dry_run", "download"):
            continue
        flag = option.flag
        yield ["old", flag + "x", "1", "--dry-run"]
        if option.type in (int, float):
            yield from (["old", flag, value, "--dry-run"] for value in NUMBERS if value not in ("nan", "inf", "-inf", "1e400", "9" * 400))
        if option.type is not bool:
            yield ["old", flag]
        if option.kind == "refused":
            yield ["old", flag, *{bool: [], list: ["7", "8"], str: ["x"]}.get(option.type, ["7"]), "--dry-run"]
    for flag in ("--dataset", "--model", "--node-type", "--act-fun", "--opt", "--sched", "--loss-fn", "--encode", "--remode"):
        yield from (["old", flag, word, "--dry-run"] for word in ("", "x", "os.system", "__import__('os')", "x" * 3000))
    yield ["old", "extra"]


def lines(folder: Path) -> list[list[str]]:
    """All of them, without doubles; "old" in front means the older script."""
    found = [*_fields(), *_named(), *_impossible(), *_files(folder), *_old()]
    return [list(words) for words in dict.fromkeys(tuple(w) for w in found)]


class Accepted(Exception):
    """A command line that got as far as training."""


def _stop(*_: object) -> None:
    raise Accepted


def said(words: list[str]) -> str:
    """Empty where a command line is refused with status 2 and one line; else what happened."""
    program, arguments = (old.main, words[1:]) if words[:1] == ["old"] else (cli.main, words)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), mock.patch.object(training, "warm_up", _stop):
        try:
            status: object = program(arguments)
        except Accepted:
            return "accepted"
        except BaseException as error:
            return f"{type(error).__name__}: {error}"
    spoken = [line for line in err.getvalue().splitlines() if not line.startswith(("no GPU on this machine", "framing"))]
    if status != 2:
        return f"status {status}: {(err.getvalue() or out.getvalue())[:200]}"
    clear = len(spoken) == 1 and spoken[0].startswith(("spiketrain: ", "main.py: ")) and spoken[0].isprintable() and len(spoken[0]) < 1000
    return "" if clear else f"not one clear line: {err.getvalue()[:300]!r}"


def tried(folder: Path) -> Iterator[tuple[list[str], str]]:
    """Every command line with what is wrong in how it was refused, empty where nothing is; all run in the folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        for words in lines(folder):
            yield words, said(words)
    finally:
        os.chdir(before)
