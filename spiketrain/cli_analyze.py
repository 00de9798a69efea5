"""`spiketrain analyze`: what a trained network does inside, as JSON, a picture and a few lines."""

import argparse
from pathlib import Path
from typing import Any

from spiketrain.errors import UserError

SAMPLES = 1000


def add(commands: Any, **options: Any) -> argparse.ArgumentParser:
    """Adds the command `analyze` to the main parser."""
    about = "spikes, potentials, operations and energy, robustness of a trained network"
    parser: argparse.ArgumentParser = commands.add_parser("analyze", help=about, **options)
    parser.add_argument("record", metavar="RECORD", help="a run's folder, or the record.json in it, with the weights beside it")
    parser.add_argument("--samples", type=int, default=SAMPLES, metavar="N", help="test samples to use, of every class as many; 0: all")
    parser.add_argument("--out", metavar="DIR", help="where analysis.json and analysis.png go (default: beside the record)")
    parser.add_argument("--data-root", metavar="DIR", help="where data sets lie")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1 … (default: auto)")
    parser.add_argument("--model", metavar="FILE.py:FUNCTION", help="the model's own file, where it has one: its code is run")
    return parser


def run(options: argparse.Namespace) -> int:
    """Runs `spiketrain analyze`."""
    from spiketrain.cli import allow

    allow(options.model)
    if options.samples < 0:
        raise UserError(f"--samples {options.samples}: a number of samples, or 0 for all of them")
    found, files = write(options.record, options.samples, options.data_root, options.device, options.out)
    print(f"{'layer':<22} {'rate':>7} {'silent':>7} {'saturated':>9}")
    for layer in found["layers"]:
        print(f"{layer['name']:<22} {layer['rate']:7.4f} {100 * layer['silent']:6.1f}% {100 * layer['saturated']:8.1f}%")
    _operations(found["operations"], found["caveat"])
    print("accuracy     " + ", ".join(f"T={t}: {a:.2f}" for t, a in enumerate(found["accuracy_by_steps"], 1)))
    for row in found["robustness"]:
        print(f"  {row['kind']:<18} {row['level']:<5g} {row['accuracy']:6.2f} %")
    print(f"picture      {files[0]}")
    print(files[1])
    return 0


def write(
    record: str | Path, samples: int = SAMPLES, data_root: str | None = None, device: str = "auto", out: str | None = None
) -> tuple[dict[str, Any], tuple[Path, Path]]:
    """Analyses the network of a record; returns what was found, and the picture and the JSON file written (beside the record)."""
    from spiketrain.analyze import SPAN, analyze, save
    from spiketrain.pictures import draw_analysis
    from spiketrain.trained import open_record

    trained = open_record(record, data_root, device)
    found = analyze(trained, samples)
    folder = Path(out) if out else trained.record.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be made ({error.strerror})") from error
    picture = draw_analysis(found, SPAN, folder / "analysis.png")
    return found, (picture, save(found, folder))


def _operations(found: dict[str, Any], caveat: str) -> None:
    print(f"{'linear layer':<22} {'input':>7} {'MACs':>13} {'SOPs estimate':>14} {'SOPs exact':>13} {'nJ':>9}")
    for row in found["layers"]:
        counts = f"{row['macs']:13,} {row['sops_estimate']:14,} {row['sops']:13,} {row['energy_nj']:9,.1f}"
        print(f"{row['name']:<22} {row['input']:>7} {counts}")
    ours, ann = (found["totals"][key] / 1e3 for key in ("energy_nj", "ann_energy_nj"))
    print(f"energy       {ours:.3f} µJ an inference; the same network as an ANN: {ann:.3f} µJ")
    if (every := found["totals"].get("energy_nj_first_layer_every_step")) is not None:
        print(f"             {every / 1e3:.3f} µJ with the first layer computed at every step")
    print(f"neurons      {found['totals']['neuron_updates']:,} updates an inference, not in the energy")
    print(f"             {caveat}")
