"""What a run was and what came out of it, as JSON. `Record.save` and `Record.load` are inverses."""

import dataclasses
import json
import os
import platform
import shlex
import subprocess
import sys
import typing
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from spiketrain import record_check
from spiketrain.errors import UserError
from spiketrain.files import read_json

FILE = "record.json"
PACKAGES = ("spiketrain", "torch", "torchvision", "timm", "numpy")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One run. Accuracies are percent of the whole test part, one view; times are seconds.

    - test_accuracy: of the last epoch; best_epoch_accuracy: the best epoch's, on the same test part, for comparison only;
    - curve: one entry an epoch; firing_rates: spikes per neuron and step, by layer, at the last evaluation;
    - train_seconds: training alone; compile_seconds: the warm-up before it; evaluation is in neither;
    - data: name, split rule, counts, classes and fingerprints; weights: SHA-256 of weights.safetensors.
    """

    test_accuracy: float
    best_epoch_accuracy: float
    train_seconds: float
    compile_seconds: float
    eval_seconds: float
    seed: int
    command: str
    recipe: dict[str, Any]
    data: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, str]
    commit: str
    date: str
    precision: str
    parameters: int
    macs_per_step: int
    curve: list[dict[str, float]]
    firing_rates: dict[str, float]
    accuracy_by_step: list[float] = field(default_factory=list)
    confusion: list[list[int]] = field(default_factory=list)
    weights: str = ""
    path: str = dataclasses.field(default="", compare=False)

    def save(self, folder: Path) -> "Record":
        """Writes `folder/record.json` as a whole or not at all; returns the record with its path."""
        values = {k: v for k, v in dataclasses.asdict(self).items() if k != "path"}
        write_whole(folder / FILE, json.dumps(values, indent=1, ensure_ascii=False).encode() + b"\n")
        return dataclasses.replace(self, path=str(folder / FILE))

    @staticmethod
    def load(path: str | Path) -> "Record":
        """The record in a file or a run's folder; `UserError` where it is absent or not one."""
        file = Path(path) / FILE if Path(path).is_dir() else Path(path)
        if not file.exists():
            raise UserError(f"{file}: no record there (a finished run's folder, or its record.json, is expected)")
        values = read_json(file, "record")
        fields = {f.name: f for f in dataclasses.fields(Record) if f.name != "path"}
        if not isinstance(values, dict) or set(values) != set(fields):
            wrong = sorted(set(fields) ^ set(values)) if isinstance(values, dict) else []
            raise UserError(f"{file}: not a record of this version (differs in: {', '.join(wrong)[:200]})")
        if problem := record_check.wrong(values):
            raise UserError(f"{file}: not a record: {problem}")
        return Record(**values, path=str(file))

    @property
    def folder(self) -> Path:
        """Where the record lies, with the weights beside it."""
        return Path(self.path).parent


def _is(value: Any, kind: Any) -> bool:
    """Whether a value from JSON is of a type such as `dict[str, float]`; an int will do for a float."""
    origin, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin is Any:
        return True
    if origin is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if not isinstance(value, origin) or isinstance(value, bool):
        return False
    return not inner or all(_is(v, inner[-1]) for v in (value.values() if origin is dict else value))


def write_whole(file: Path, content: bytes) -> None:
    """Writes beside the file and renames: a reader sees the old content or the new one, also after a loss of power."""
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(file)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(f"{file}: cannot be written ({error.strerror or error}): free some space or choose another --output") from error


def machine(device: torch.device) -> dict[str, Any]:
    """Processor, cores in use, memory, accelerator, system."""
    found: dict[str, Any] = {"processor": _processor(), "threads": torch.get_num_threads(), "system": platform.system()}
    found["capability"] = torch.backends.cpu.get_cpu_capability()
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found["memory_gib"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    if device.type == "cuda":
        found["accelerator"] = torch.cuda.get_device_name(device)
    return found


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide a run."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def commit() -> str:
    """Commit of the source that runs, with "+changes" where it was edited; empty outside a checkout."""
    source = Path(__file__).resolve().parent.parent
    if not (source / ".git").exists():
        return ""
    try:
        head = _git(source, "rev-parse", "HEAD")
        return head + ("+changes" if _git(source, "status", "--porcelain", "--untracked-files=no", "--", "spiketrain") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def command_line() -> str:
    """The command that is running, as a shell would take it."""
    program = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
    return shlex.join(["spiketrain" if program == "__main__.py" else program, *sys.argv[1:]])


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
