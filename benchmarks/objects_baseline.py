"""A linear model on the same frames as recipe `dvs128-objects`: what a spiking network has to beat.

    python benchmarks/objects_baseline.py --data-root DIR --out results/benchmarks/objects_baseline.json
"""

import argparse
import json
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from spiketrain import recipes
from spiketrain.assemble import load_data
from spiketrain.data.types import Split
from spiketrain.record import commit, versions


def features(split: Split) -> np.ndarray:
    """Activity maps: counts summed over time and polarity, `[N,H·W]`, scaled to a sum of one a sample."""
    maps = split.inputs.float().sum((1, 2)).flatten(1).numpy()
    return maps / np.maximum(maps.sum(1, keepdims=True), 1) * maps.shape[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--out", help="JSON to write")
    options = parser.parse_args()
    data = load_data(recipes.get("dvs128-objects"), options.data_root)
    accuracy = {}
    for strength in (0.0001, 0.001, 0.01, 0.1):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))
        model.fit(features(data.train), data.train.labels.numpy())
        accuracy[strength] = 100 * model.score(features(data.test), data.test.labels.numpy())
        print(f"C = {strength:g}: {accuracy[strength]:.2f} % of {len(data.test)} test windows")
    if options.out:
        record = {"accuracy_by_C": accuracy, "train": len(data.train), "test": len(data.test), "split": data.split_rule}
        record |= {"versions": versions(), "commit": commit()}
        Path(options.out).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
