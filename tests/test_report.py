"""Tables come from records, and nothing else."""

from pathlib import Path

import pytest

from spiketrain.cli import main
from spiketrain.errors import UserError
from spiketrain.recipes import RECIPES, Recipe
from spiketrain.report import BEGIN, END, load_records, table, write_table

ROOT = Path(__file__).resolve().parent.parent


def test_the_table_of_the_readme_is_what_the_records_say(tmp_path):
    copy = tmp_path / "README.md"
    copy.write_text((ROOT / "README.md").read_text())
    write_table(copy, load_records(ROOT / "results"))
    assert copy.read_text() == (ROOT / "README.md").read_text()


def test_every_promoted_record_is_of_a_recipe_there_is_and_of_its_last_epoch():
    records = load_records(ROOT / "results")
    assert records
    for record in records:
        recipe = Recipe.from_dict(record.recipe)
        assert recipe.name in RECIPES and len(record.curve) == recipe.epochs
        assert record.test_accuracy == record.curve[-1]["test_accuracy"] <= record.best_epoch_accuracy
        assert record.commit and record.weights and f"train {recipe.name}" in record.command


def test_seeds_of_one_recipe_are_one_row():
    records = [r for r in load_records(ROOT / "results") if r.recipe["name"] == "digits"]
    assert len(records) >= 3 and table(records).count("\n") == 2 and f"(n = {len(records)})" in table(records)


def test_a_file_without_markers_and_a_folder_without_records_are_named(tmp_path, capsys):
    (tmp_path / "page.md").write_text("nothing")
    with pytest.raises(UserError, match=r"page\.md"):
        write_table(tmp_path / "page.md", [])
    assert BEGIN != END
    assert main(["report", "--results", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
