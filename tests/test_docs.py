"""The tables of docs/scale.md, security.md, performance.md and techniques.md are those of the records."""

import json
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import performance  # noqa: E402
import scale_docs  # noqa: E402


@pytest.mark.parametrize("page", scale_docs.BLOCKS)
def test_the_pages_have_the_numbers_of_the_records(page):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert scale_docs.filled(text, scale_docs.BLOCKS[page]) == text


@pytest.mark.parametrize("page", performance.PAGES)
def test_the_pages_of_speed_and_techniques_have_the_numbers_of_the_records(page):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert performance.filled(text, ROOT / "results" / "benchmarks") == text


def test_a_table_appears_with_its_record(tmp_path, monkeypatch):
    monkeypatch.setattr(scale_docs, "file_of", lambda name: tmp_path / f"{name}.json")
    blocks = {name: scale_docs.BLOCKS["scale.md"][name] for name in ("losses", "speed", "zero", "share")}
    page = "".join(f"<!-- {name}: begin -->\nold\n<!-- {name}: end -->\n" for name in blocks)
    assert scale_docs.filled(page, blocks).count("No record yet") == 4
    loss = {"optimizer": "sgd", "dtype": "float64", "first_step": 1e-16, "largest": 2.5e-12, "first_loss": 2.3, "last_loss": 1.5}
    speed = {"network": "digits_convnet", "one_process_ms": 10.0, "two_processes_ms": 11.0, "ratio": 0.909}
    commands = {part: f"processes.py --only {part}" for part in ("losses", "speed")}
    made = {"command": commands["speed"], "commands": commands, "losses": [loss], "speed": [speed]}
    (tmp_path / "processes.json").write_text(json.dumps(made))
    text = scale_docs.filled(page, blocks)
    assert "| sgd | float64 | 1.0e-16 | 2.5e-12 | 2.300 → 1.500 |" in text and "| digits_convnet | 10.0 | 11.0 | 0.91 |" in text
    assert text.count("No record yet") == 2
    assert all(text.count(f"`python benchmarks/{command}`") == 1 for command in commands.values())
    shutil.rmtree(tmp_path)
    assert scale_docs.filled(text, blocks).count("No record yet") == 4
