"""Tables come from records, and nothing else."""

import json
import re
import shlex
import statistics
from pathlib import Path

import pytest

from spiketrain import tables
from spiketrain.cli import main, recipe_of
from spiketrain.errors import UserError
from spiketrain.recipes import RECIPES, Recipe, seed
from spiketrain.report import load_records

ROOT = Path(__file__).resolve().parent.parent
FILES = ("README.md", "docs/results.md")


def lines_of(text):
    """Heading → cell, of every row of every table in a text that has a command and an accuracy."""
    head = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")] if line.startswith("|") else []
        if not cells:
            head = []
        elif not head:
            head = cells
        elif "accuracy (%)" in head and not cells[0].startswith("---"):
            yield dict(zip(head, cells, strict=True))


def on(machine):
    return machine.get("accelerator") or f"{machine['threads']} cores, {machine['processor']}"


def check(text, records):
    """Every figure of a table against the records, read here on their own; `AssertionError` at the first that has none."""
    older = {row.name: row for row in seed.rows()}
    for line in lines_of(text):
        words = shlex.split(line["command"].strip("`"))
        assert words[:2] == ["spiketrain", "train"]
        recipe = recipe_of(words[2:])  # a command that does not parse raises
        runs = [r for r in records if Recipe.from_dict(r["recipe"]).but(seed=recipe.seed) == recipe]
        known = {"data set": recipe.data, "T": str(recipe.steps), "batch size": str(recipe.batch_size)}
        known["neuron, surrogate"] = f"{recipe.neuron}, {recipe.surrogate}"
        assert known.items() <= line.items()
        if row := older.get(recipe.name):
            assert line["older table (%)"].startswith(f"{row.accuracy:.2f}")
        if line["accuracy (%)"] == "no record":
            assert not runs
            measured = ("firing rate", "SOPs (M)", "energy (µJ)", "images/s", "minutes", "on", "commit")
            assert all(line.get(key, "–") == "–" for key in measured)
            continue
        runs = [r for r in runs if on(r["machine"]) == line["on"].rsplit(", ", 1)[0]]
        figure = re.fullmatch(r"([\d.]+)(?: ± ([\d.]+))? \(n = (\d+)\)", line["accuracy (%)"])
        assert figure, line
        by_seed = {r["seed"]: r for r in reversed(runs)}
        last = [r["curve"][-1]["test_accuracy"] for r in by_seed.values()]
        assert int(figure[3]) == len(last) > 0
        assert float(figure[1]) == pytest.approx(statistics.mean(last), abs=0.006)
        assert float(figure[2] or 0) == pytest.approx(statistics.stdev(last) if len(last) > 1 else 0, abs=0.006)
        assert float(line["minutes"]) == pytest.approx(statistics.mean(r["train_seconds"] for r in by_seed.values()) / 60, abs=0.006)
        assert line["parameters"] == f"{runs[0]['parameters']:,}"


@pytest.fixture(scope="module")
def stored():
    return [json.loads(Path(r.path).read_text()) for r in load_records(ROOT / "results")]


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_written_again_byte_for_byte(name, tmp_path):
    copy = tmp_path / "copy.md"
    copy.write_bytes((ROOT / name).read_bytes())
    assert main(["report", "--results", str(ROOT / "results"), "--into", str(copy)]) == 0
    assert copy.read_bytes() == (ROOT / name).read_bytes()


@pytest.mark.parametrize("name", FILES)
def test_every_figure_has_a_record_and_every_command_parses(name, stored):
    text = (ROOT / name).read_text()
    assert len(list(lines_of(text))) >= 4
    check(text, stored)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (r"(\n\| digits \|.*?)\d+\.\d+ ± ", r"\g<1>97.57 ± "),
        (r"no record \| 96\.04", "96.10 (n = 1) | 96.04"),
        (r"train digits`", "train digits --neurn lif`"),
        (r"train digits`", "train digits --epochs 3`"),
        (r"(train digits-dvs`)", r"\1 |"),
    ],
)
def test_a_figure_without_a_record_and_a_wrong_command_are_found(old, new, stored):
    text, count = re.subn(old, new, (ROOT / "docs/results.md").read_text(), count=1)
    assert count == 1
    with pytest.raises((AssertionError, UserError, ValueError)):
        check(text, stored)


def test_all_rows_of_the_older_table_and_all_recipes_are_there():
    commands = [shlex.split(line["command"].strip("`"))[2] for line in lines_of((ROOT / "docs/results.md").read_text())]
    assert set(commands) >= {row.name for row in seed.rows()} | {name for name in RECIPES if not name.startswith("seed/")}


def test_every_promoted_record_is_of_a_recipe_there_is_and_of_its_last_epoch():
    records = load_records(ROOT / "results")
    assert records
    for record in records:
        recipe = Recipe.from_dict(record.recipe)
        assert recipe.name in RECIPES and len(record.curve) == recipe.epochs
        assert record.test_accuracy == record.curve[-1]["test_accuracy"] <= record.best_epoch_accuracy
        assert record.commit and record.weights and f"train {recipe.name}" in record.command


def test_two_records_of_one_seed_are_one(tmp_path, capsys):
    source = (ROOT / "results/digits-s0.json").read_bytes()
    for name in ("digits-s0.json", "digits-s0-again.json"):
        (tmp_path / name).write_bytes(source)
    assert main(["report", "--results", str(tmp_path)]) == 0
    assert "(n = 1)" in capsys.readouterr().out


def test_each_kind_of_machine_has_a_row(tmp_path):
    """A mean of minutes is of one."""
    record = json.loads((ROOT / "results/digits-s0.json").read_bytes())
    for name, processor, seed_number in (("a-s0", "one", 0), ("b-s1", "one", 1), ("c-s2", "another", 2)):
        machine = record["machine"] | {"processor": processor}
        (tmp_path / f"{name}.json").write_text(json.dumps(record | {"machine": machine, "seed": seed_number}))
    rows = [line for line in lines_of(tables.short(tmp_path)) if line["accuracy (%)"] != "no record"]
    threads = record["machine"]["threads"]
    assert [(row["on"].rsplit(", ", 1)[0], row["accuracy (%)"][-7:]) for row in rows] == [
        (f"{threads} cores, another", "(n = 1)"), (f"{threads} cores, one", "(n = 2)"),
    ]  # fmt: skip


def test_curves_as_csv_have_a_line_an_epoch(tmp_path, capsys):
    assert main(["report", "--results", str(ROOT / "results"), "--csv", str(tmp_path / "curves.csv")]) == 0
    lines = (tmp_path / "curves.csv").read_text().splitlines()
    assert lines[0].startswith("recipe,seed,") and len(lines) == 1 + sum(len(r.curve) for r in load_records(ROOT / "results"))


def test_what_is_no_file_with_markers_or_no_folder_of_records_is_named(tmp_path, capsys):
    (tmp_path / "page.md").write_text("nothing")
    with pytest.raises(UserError, match=r"page\.md.*all-results"):
        tables.write(tmp_path / "page.md", ROOT / "results")
    for words in (["--results", str(tmp_path)], ["--into", str(tmp_path / "none.md")], ["--html", str(tmp_path / "no" / "x.html")]):
        results = [] if "--results" in words else ["--results", str(ROOT / "results")]
        assert main(["report", *words, *results]) == 2
        err = capsys.readouterr().err
        assert str(tmp_path) in err and err.count("\n") == 1
