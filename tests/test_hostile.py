"""Files and command lines of somebody else's: a sample of what `benchmarks/hostile.py` tries at length, and all that it ever found."""

import io
import json
import random
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from spiketrain import checkpoint, cli_bench, page, recipes, tables
from spiketrain.cli import main
from spiketrain.data import event_layouts, images
from spiketrain.data.unpack import unpack
from spiketrain.errors import UserError, one_line
from spiketrain.record import Record
from spiketrain.verify import verify

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import hostile_lines  # noqa: E402
import hostile_runs  # noqa: E402
from hostile_common import tried  # noqa: E402
from hostile_files import KINDS  # noqa: E402

from tests import hostile_bombs  # noqa: E402


@pytest.mark.parametrize("kind", KINDS)
def test_changed_files_are_read_or_refused_in_one_line(kind, tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case = KINDS[kind](inside)
        results = [tried(lambda i=i: case(random.Random(f"{kind} test {i}"))) for i in range(60)]
    assert [text for result, text in results if result == "else"] == []
    assert kind == "cache" or any(result == "refused" for result, _ in results)  # a cache that is not whole is made again
    assert [p.name for p in tmp_path.iterdir()] == ["inside"]


def test_wrong_command_lines_are_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = hostile_lines.lines(tmp_path)
    assert len(lines) > 2000
    wrong = {" ".join(words)[:100]: said for words in lines[::9] if (said := hostile_lines.said(words))}
    assert wrong == {}


def test_claimed_sizes_are_checked_before_memory_is_taken(tmp_path):
    words = [sys.executable, "-m", "tests.hostile_bombs", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    found = [line for line in done.stdout.splitlines() if ": refused: " in line]
    assert len(found) == len(hostile_bombs.BOMBS), done.stdout + done.stderr[-2000:]


def test_a_row_of_a_file_runs_no_code(tmp_path, capsys):
    (tmp_path / "model.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
    rows = tmp_path / "rows.txt"
    rows.write_text(f"digits --model {tmp_path / 'model.py'}:build\n")
    with pytest.raises(UserError, match="only where the command line itself names it"):
        cli_bench.read_rows(rows)
    rows.write_text("digits --help\n")
    with pytest.raises(UserError, match="line 1: --help"):
        cli_bench.read_rows(rows)
    rows.write_text("--epochs 3\n")
    with pytest.raises(UserError, match="a recipe's name comes first"):
        cli_bench.read_rows(rows)
    rows.write_bytes(b"digits\xff\n")
    with pytest.raises(UserError, match="no UTF-8"):
        cli_bench.read_rows(rows)
    assert main(["bench", str(rows), "--plan"]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"curve": []}, "curve"),
        ({"curve": [{"train_loss": "1"}]}, "curve"),
        ({"confusion": [[1, 2], [3]]}, "confusion"),
        ({"machine": {}}, "machine"),
        ({"recipe": {"name": "a"}}, "recipe"),
        ({"command": "a\x1b[2Jb"}, "command"),
        ({"command": "a\nb"}, "command"),
        ({"test_accuracy": True}, "test_accuracy"),
        ({"parameters": -1}, "parameters"),
        ({"firing_rates": {"a": "b"}}, "firing_rates"),
        ({"date": ["2026"]}, "date"),
    ],
    ids=str,
)
def test_a_record_has_the_types_of_a_record(tmp_path, changes, said):
    (tmp_path / "record.json").write_text(json.dumps(hostile_runs.a_record() | changes))
    with pytest.raises(UserError, match=f"not a record: {said} is not what a record has"):
        Record.load(tmp_path)


def test_numbers_that_json_does_not_have(tmp_path):
    for text in ("NaN", "Infinity", "1e999", "[" * 10_000, '"\ud800"'):
        (tmp_path / "record.json").write_bytes(text.encode("utf-8", "surrogatepass"))
        with pytest.raises(UserError, match="not a record"):
            Record.load(tmp_path)


def test_text_of_a_record_breaks_no_table_and_no_page(tmp_path):
    record = hostile_runs.a_record() | {"command": 'spiketrain "train | x', "commit": "</script><script>alert(1)</script>"}
    (tmp_path / "record.json").write_text(json.dumps(record))
    made = Record.load(tmp_path)
    row = tables.of([made]).splitlines()[-1]
    assert row.replace("\\|", "").count("|") == len(tables.HEAD) + 1
    assert "alert(1)</script>" not in page.page([made])


def test_a_record_that_took_no_time_or_names_a_long_commit(tmp_path):
    file = tmp_path / "record.json"
    file.write_text(json.dumps(hostile_runs.a_record() | {"train_seconds": 0.0}))
    assert len(tables.of([Record.load(tmp_path)]).splitlines()) == 3
    file.write_text(json.dumps(hostile_runs.a_record() | {"commit": "x" * 5000}))
    with pytest.raises(UserError, match="its commit is none") as refused:
        list(verify(tmp_path))
    assert str(refused.value) == one_line(refused.value)


def test_what_a_library_says_of_a_file_is_one_printable_line(tmp_path):
    """safetensors repeats what stands in the header."""
    header = json.dumps({"a": {"dtype": "\x1b[2J\n", "shape": [], "data_offsets": [0, 0]}}).encode()
    file = tmp_path / "weights.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UserError, match="not safetensors") as refused:
        checkpoint.load_weights(torch.nn.Linear(1, 1), file)
    assert str(refused.value).isprintable()


def test_promoted_records_are_records():
    files = [f for f in (ROOT / "results").rglob("*.json") if "benchmarks" not in f.parts and "analysis" not in f.parts]
    assert len(files) > 5
    for file in files:
        Record.load(file)


def test_a_pipe_or_a_device_is_not_waited_for(tmp_path):
    import os

    os.mkfifo(tmp_path / "record.json")
    with pytest.raises(UserError, match="not a regular file"):
        Record.load(tmp_path)
    with pytest.raises(UserError, match="not a regular file"):
        Record.load("/dev/zero")


def test_a_yaml_file_of_references_is_not_written_out(tmp_path):
    import main as old  # the older script, whose folder `hostile_runs` has put on the path

    deep = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 40))
    for text in ("lr: !!python/object/apply:os.getcwd []", "lr: 2001-99-99", "[" * 2000, deep, "lr: &z [*z]"):
        (tmp_path / "a.yaml").write_text(text)
        with pytest.raises(UserError) as error:
            old.parse(["-c", str(tmp_path / "a.yaml")])
        assert len(one_line(error.value)) < 1000
    assert yaml.safe_load("lr: &z [*z]")["lr"]


@pytest.mark.parametrize("name", ["../out.txt", "/tmp/out.txt", "a/../../out.txt", "..\\out.txt", "C:\\out.txt"])
def test_archives_stay_in_their_folder(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("good.txt", "x")
        archive.writestr(name, "x")
    with pytest.raises(UserError, match="leads out of the folder"):
        unpack(tmp_path / "a.zip", tmp_path / "in")
    assert not (tmp_path / "in").exists()


@pytest.mark.parametrize("kind", ["symlink", "hard link", "device", "fifo"])
def test_archives_hold_files_only(tmp_path, kind):
    import tarfile

    header = tarfile.TarInfo("a")
    header.type = {"symlink": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE, "device": tarfile.CHRTYPE, "fifo": tarfile.FIFOTYPE}[kind]
    header.linkname = "../../etc"
    for ending, mode in ((".tar", "w"), (".tar.gz", "w:gz"), (".tar.xz", "w:xz")):
        with tarfile.open(tmp_path / f"a{ending}", mode) as archive:
            archive.addfile(header)
        with pytest.raises(UserError, match="only plain files"):
            unpack(tmp_path / f"a{ending}", tmp_path / "in")


def test_a_whole_archive_is_unpacked(tmp_path):
    import tarfile

    for ending, mode in ((".tar", "w"), (".tar.gz", "w:gz"), (".tar.bz2", "w:bz2"), (".tar.xz", "w:xz")):
        with tarfile.open(tmp_path / f"a{ending}", mode) as archive:
            header = tarfile.TarInfo("b/c.txt")
            header.size = 3
            archive.addfile(header, io.BytesIO(b"abc"))
        unpack(tmp_path / f"a{ending}", tmp_path / ending)
        assert (tmp_path / ending / "b" / "c.txt").read_bytes() == b"abc"


def test_lists_of_recordings_name_nothing_outside(tmp_path):
    (tmp_path / "trials_to_train.txt").write_text("../../../etc/passwd\n")
    (tmp_path / "trials_to_test.txt").write_text("a.aedat\n")
    with pytest.raises(UserError) as error:
        event_layouts.gesture_aedat(".")(tmp_path, ["a"])
    assert str(tmp_path) in str(error.value) and "etc" not in str(error.value)


def test_a_processed_mnist_is_not_loaded(tmp_path):
    (tmp_path / "MNIST" / "processed").mkdir(parents=True)
    for name in ("training.pt", "test.pt"):
        torch.save((torch.zeros(2, 28, 28, dtype=torch.uint8), torch.zeros(2)), tmp_path / "MNIST" / "processed" / name)
    with pytest.raises(UserError, match="of an old version"):
        images.IMAGE_SETS["mnist"].load(tmp_path, False)


def test_a_width_that_no_memory_holds(capsys):
    assert main(["train", "digits", "--model", "resnet50", "--width", "100"]) == 2
    assert "do not fit in this machine" in capsys.readouterr().err
    with pytest.raises(UserError, match="seed must be at most"):
        recipes.get("digits").but(seed=10**30)
    with pytest.raises(UserError, match="of 301 digits"):
        recipes.get("digits").but(limit=10**300)


def test_a_message_is_one_printable_line():
    text = one_line(UserError("a\nb\x1b[31m" + "x" * 5000))
    assert text.startswith("a b\\x1b[31m") and len(text) < 700 and text.isprintable()


def test_a_small_image_that_is_truncated_or_of_another_kind(tmp_path):
    stream = io.BytesIO()
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(stream, "PNG")
    for data in (b"", b"\xff\xd8", b"\xff\xd8\xff\xe0", stream.getvalue()[:40], b"\xff\xd8" + b"\xff" * 100, b"GIF89a" + bytes(20)):
        (tmp_path / "a.png").write_bytes(data)
        with pytest.raises(UserError, match="not a whole image"):
            images.read_image(tmp_path / "a.png")
