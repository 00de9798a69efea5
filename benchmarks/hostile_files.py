"""The kinds of files that `hostile.py` changes."""

import hostile_data as data
import hostile_runs as runs
from hostile_common import Kind

KINDS: dict[str, Kind] = {
    "checkpoint": runs.checkpoints, "weights": runs.weights, "record": runs.records, "analysis": runs.analyses, "recipe": runs.recipe_files,
    "rows": runs.rows, "config": runs.configs,
    "image-set": data.image_sets, "jpeg": data.jpegs, "shards": data.tar_shards, "archive": data.archives,
    "cache": data.caches, "events": data.events,
}  # fmt: skip
