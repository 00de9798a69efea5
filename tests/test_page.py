"""The page of results in a real browser: sorted, filtered, opened, with the keyboard too, on a phone, and in the dark."""

import dataclasses
import json
import re
from pathlib import Path

import browser
import pytest

from spiketrain.cli import main
from spiketrain.page import page, write_page
from spiketrain.report import load_records

RESULTS = Path(__file__).resolve().parent.parent / "results"
ROWS = "return [...document.querySelectorAll('#runs tbody tr')].map((row) => [...row.cells].map((cell) => cell.textContent))"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    made = tmp_path_factory.mktemp("page") / "results.html"
    assert main(["report", "--results", str(RESULTS), "--html", str(made)]) == 0
    return made


@pytest.fixture(scope="module")
def driven():
    if not browser.found():
        pytest.skip("no Chromium with its driver here (Debian: chromium and chromium-driver)")
    with browser.Browser() as found:
        yield found


@pytest.fixture
def opened(driven, file):
    driven.look(1280, 900)
    driven.open(file)
    yield driven
    assert driven.errors() == []


def column(page, name):
    place = page.run("return [...document.querySelectorAll('#runs th')].findIndex((th) => th.dataset.column === arguments[0])", name)
    return [row[place] for row in page.run(ROWS)]


def test_the_page_needs_nothing_else_and_is_small(file):
    text = file.read_text()
    assert len(text.encode()) < 3e6
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?!#)\S|@import|url\(|fetch\(|XMLHttpRequest""", text)
    records = load_records(RESULTS)
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert [run["weights"] for run in data] == [record.weights for record in records]
    assert [run["test_accuracy"] for run in data] == [record.test_accuracy for record in records]


def test_a_table_of_all_rows(opened):
    records = load_records(RESULTS)
    rows = {json.dumps({k: v for k, v in r.recipe.items() if k != "seed"}, sort_keys=True) for r in records}
    assert len(opened.run(ROWS)) == len(rows)
    assert opened.run("return document.getElementById('count').textContent") == f"{len(rows)} of {len(rows)} rows, {len(records)} records"
    assert opened.run("return performance.getEntriesByName('first-contentful-paint').length") == 1


def test_sorting(opened):
    number = lambda cell: float(cell.split(" ")[0].replace(",", ""))  # noqa: E731
    start = [number(cell) for cell in column(opened, "accuracy")]
    assert start == sorted(start, reverse=True) and len(set(start)) > 3
    opened.click("th[data-column=accuracy] button")
    assert [number(cell) for cell in column(opened, "accuracy")] == sorted(start)
    assert opened.run("return document.querySelector('th[data-column=accuracy]').ariaSort") == "ascending"
    opened.click("th[data-column=model] button")
    names = column(opened, "model")
    assert names == sorted(names) and len(set(names)) > 1
    opened.click("th[data-column=energy] button")  # what is not known comes last, either way
    for _ in range(2):
        energies = column(opened, "energy")
        assert "–" not in energies[: len(energies) - energies.count("–")]
        opened.click("th[data-column=energy] button")


def test_filtering(opened):
    before = opened.run(ROWS)
    opened.run("const s = document.querySelector('[data-filter=neuron]'); s.value = 'plif'; s.dispatchEvent(new Event('change'))")
    assert set(column(opened, "neuron")) == {"plif"} and 0 < len(opened.run(ROWS)) < len(before)
    opened.click("#filters input")
    opened.press(*"resnet9")
    assert set(column(opened, "model")) == {"resnet9"}
    opened.press(*"zzz")
    assert opened.run(ROWS) == [] and "0 of" in opened.run("return document.getElementById('count').textContent")


def test_a_row_opened_with_the_keyboard_has_its_story(opened):
    opened.run("document.querySelector('[data-filter=model]').value = 'resnet9'")
    opened.run("document.querySelector('[data-filter=model]').dispatchEvent(new Event('change'))")
    opened.click("#filters select:last-of-type")
    opened.press("Escape")
    opened.run("document.querySelector('#runs th:last-child button').focus()")
    opened.press("Tab", "Enter")
    assert opened.run("return document.querySelector('#runs tbody tr').className") == "open"
    assert opened.run("return document.activeElement.tagName") == "H2"
    titles = opened.run("return [...document.querySelectorAll('#detail h3')].map((h) => h.textContent)")
    for part in ("accuracy by epoch", "loss", "firing rate by layer", "spikes over time", "potential", "operations", "confusion",
                 "accuracy by class", "accuracy by steps", "under damage", "t-SNE", "environment"):  # fmt: skip
        assert any(part in title for title in titles), part
    inked = """return [...document.querySelectorAll('#detail canvas')].map((c) =>
        c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((v) => v))"""
    assert opened.run(inked) == [True] * 6
    seeds = opened.run("return [...document.querySelectorAll('#detail .u-legend th')].map((th) => th.textContent)")
    assert {"test, seed 0", "test, seed 1", "test, seed 2"} <= set(seeds)
    command = opened.run("return document.querySelector('#detail code').textContent")
    assert command.startswith("spiketrain train digits") and "resnet9" in command
    opened.press("Escape")
    assert opened.run("return document.getElementById('detail').hidden")
    assert opened.run("return document.activeElement.dataset.row") is not None  # where one was before


def test_a_point_of_a_plot_opens_its_row(opened):
    for name in ("time", "energy", "steps"):
        assert opened.run(f"return document.querySelectorAll('#plot-{name} canvas').length") == 1
    place = opened.run("""const canvas = document.querySelector('#plot-time canvas');
        canvas.scrollIntoView();
        const box = canvas.getBoundingClientRect();
        const { data, width } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
        for (let i = 0; i < data.length; i += 4) {  // a point is what has a colour; lines and letters are grey
            const [low, high] = [Math.min(...data.slice(i, i + 3)), Math.max(...data.slice(i, i + 3))];
            if (high - low > 60 && data[i + 3] > 200) return [box.left + (i / 4) % width, box.top + Math.floor(i / 4 / width) + 2];
        }""")
    opened.point(*place)
    assert "%" in opened.run("return document.getElementById('point').textContent")
    opened.point(*place, click=True)
    assert not opened.run("return document.getElementById('detail').hidden")


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_in_the_light_and_in_the_dark(driven, file, dark):
    driven.look(390, 844, dark)
    driven.open(file, "#row-0")
    assert not driven.run("return document.getElementById('detail').hidden")
    assert driven.run("return document.documentElement.scrollWidth") <= 390  # the table scrolls by itself, the page does not
    assert all(width <= 390 for width in driven.run("return [...document.querySelectorAll('canvas')].map((c) => c.clientWidth)"))
    paper = driven.run("return getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(22, 22, 26)" if dark else "rgb(255, 255, 255)")
    assert driven.errors() == []


def test_text_of_a_record_is_never_code(driven, tmp_path):
    evil = "</script><script>window.bad = 1</script><img src=x onerror='window.bad = 1'>"
    first = load_records(RESULTS)[0]
    record = dataclasses.replace(first, recipe=first.recipe | {"name": evil}, machine={"processor": evil}, command=evil)
    write_page([record], tmp_path / "page.html")
    driven.open(tmp_path / "page.html", "#row-0")
    assert driven.run("return window.bad ?? null") is None and driven.run("return document.images.length") == 0
    assert evil in driven.run("return document.querySelector('#detail h2').textContent")
    assert driven.errors() == []


def test_an_analysis_that_is_none_is_named(tmp_path, capsys):
    (tmp_path / "analysis").mkdir()
    source = RESULTS / "digits-s0.json"
    (tmp_path / source.name).write_text(source.read_text())
    (tmp_path / "analysis" / source.name).write_text("{}")
    assert main(["report", "--results", str(tmp_path), "--html", str(tmp_path / "x.html")]) == 2
    assert f"analysis/{source.name}: not an analysis" in capsys.readouterr().err
    weights = json.loads(source.read_text())["weights"]
    (tmp_path / "analysis" / source.name).write_text(json.dumps({"weights": weights, "operations": {}}))
    assert main(["report", "--results", str(tmp_path), "--html", str(tmp_path / "x.html")]) == 2
    assert "write it again" in capsys.readouterr().err


def test_another_weights_analysis_is_left_out(tmp_path):
    record = load_records(RESULTS)[0]
    file = tmp_path / "record.json"
    file.write_text(Path(record.path).read_text())
    (tmp_path / "analysis.json").write_text(json.dumps({"weights": "another"}))
    assert '"analysis":null' in page([dataclasses.replace(record, path=str(file))])
