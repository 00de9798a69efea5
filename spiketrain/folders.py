"""The folder of a run: a new one, the one that is named, or the one that a restarted group of processes had begun."""

import datetime
import json
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from spiketrain import checkpoint, processes, record
from spiketrain.errors import UserError
from spiketrain.recipes import Recipe
from spiketrain.record import Record, write_whole

AGENT = ".torchrun.json"
"""In a run's folder: which torchrun began it."""


@dataclass(frozen=True)
class Place:
    """Where a run is to be: its folder (None: a new one, once it is known that the run can begin), and what is in it already."""

    folder: Path | None = None
    checkpoint: Path | None = None
    record: Record | None = None


def find(recipe: Recipe, output: Path, resume: Path | None, into: Path | None) -> Place:
    """The run's place. A run that torchrun started has a folder named after its id, where a restart finds it."""
    if resume:
        path = checkpoint.latest(resume)
        checkpoint.tidy(path.parent)
        return Place(path.parent, path)
    folder = into or _of_torchrun(recipe, output)
    if not folder:
        return Place()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.tidy(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror}): choose another --into") from error
    if (folder / record.FILE).exists():
        made = Record.load(folder)
        if Recipe.from_dict(made.recipe) != recipe:
            raise UserError(f"{made.path}: is of another recipe: choose another --into")
        return Place(folder, record=made)
    return Place(folder, checkpoint.latest(folder) if checkpoint.has(folder) else None)


def new(output: Path, recipe: Recipe) -> Path:
    """A new folder for a run, named by recipe, seed and time."""
    name = f"{_title(recipe)}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    for i in range(1000):
        folder = output / (f"{name}-{i}" if i else name)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if output.exists() and not output.is_dir():
                break
        except OSError as error:
            raise UserError(f"{folder}: cannot be made ({error.strerror}): choose another --output") from error
        else:
            if processes.launched():
                write_whole(folder / AGENT, json.dumps(_agent()).encode())
            return folder
    raise UserError(f"{output}: is not a folder: choose another --output")


def _title(recipe: Recipe) -> str:
    return f"{recipe.name.replace('/', '-')}-s{recipe.seed}"


def _of_torchrun(recipe: Recipe, output: Path) -> Path | None:
    """The folder by torchrun's --rdzv-id; without one, what the same torchrun began before this restart."""
    if not processes.launched():
        return None
    run_id = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    if run_id != "none":
        safe = re.sub(r"[^\w.-]", "-", run_id)
        return output / f"{_title(recipe)}-{safe}"
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        for file in sorted(output.glob(f"{_title(recipe)}-*/{AGENT}"), reverse=True):
            if json.loads(file.read_text()) == _agent():
                return file.parent
    return None


def _agent() -> dict[str, str]:
    return {"host": platform.node(), "process": str(os.getppid())}
