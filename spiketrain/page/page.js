"use strict";
(() => {
  const runs = JSON.parse(document.getElementById("data").textContent);
  const COLOURS = ["#d1495b", "#2e86ab", "#3b9c6b", "#e09f3e", "#7b5ea7", "#4f6d7a", "#c06e52", "#8a9a3b"];

  // ---- elements: text goes in as text, never as HTML ----
  const make = (tag, properties = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [key, value] of Object.entries(properties)) {
      if (key in element) element[key] = value; else element.setAttribute(key, value);
    }
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  };
  const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
  const deviation = (values) => Math.sqrt(values.map((v) => (v - mean(values)) ** 2).reduce((a, b) => a + b, 0) / (values.length - 1));
  const number = (value, digits) => value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  const seconds = (value) => (value < 120 ? `${number(value, 0)} s` : value < 7200 ? `${number(value / 60, 1)} min` : `${number(value / 3600, 1)} h`);

  // ---- rows: a recipe with all of its seeds ----
  const key = (run) => JSON.stringify(Object.entries(run.recipe).filter(([name]) => name !== "seed").sort());
  const groups = Object.values(Object.groupBy ? Object.groupBy(runs, key)
    : runs.reduce((all, run) => ({ ...all, [key(run)]: [...(all[key(run)] || []), run] }), {}));
  const rows = groups.map((seeds, index) => {
    const first = seeds[0], rates = seeds.flatMap((run) => Object.values(run.firing_rates));
    const energies = seeds.filter((run) => run.analysis).map((run) => run.analysis.operations.totals.energy_nj / 1e3);
    return {
      index, seeds, data: first.data.name, recipe: first.recipe.name, model: first.recipe.model, neuron: first.recipe.neuron,
      surrogate: first.recipe.surrogate, steps: first.recipe.steps, accuracy: mean(seeds.map((run) => run.test_accuracy)),
      spread: seeds.length > 1 ? deviation(seeds.map((run) => run.test_accuracy)) : null, parameters: first.parameters,
      rate: rates.length ? mean(rates) : null, energy: energies.length ? mean(energies) : null, time: mean(seeds.map((run) => run.train_seconds)),
    };
  });
  const columns = [
    ["recipe", "recipe"], ["data", "data"], ["model", "network"], ["neuron", "neuron"], ["surrogate", "surrogate"],
    ["steps", "T", (row) => row.steps], ["accuracy", "accuracy %", (row) => number(row.accuracy, 2) + (row.spread === null ? "" : ` ± ${number(row.spread, 2)}`)],
    ["count", "n", (row) => row.seeds.length], ["parameters", "parameters", (row) => number(row.parameters, 0)],
    ["rate", "firing rate", (row) => (row.rate === null ? "–" : number(row.rate, 3))],
    ["energy", "energy µJ", (row) => (row.energy === null ? "–" : number(row.energy, 3))], ["time", "training", (row) => seconds(row.time)],
  ];
  rows.forEach((row) => { row.count = row.seeds.length; });
  const numeric = new Set(["steps", "accuracy", "count", "parameters", "rate", "energy", "time"]);
  const state = { sort: "accuracy", down: true, text: "", chosen: {}, open: null };

  // ---- table ----
  const head = document.querySelector("#runs thead"), body = document.querySelector("#runs tbody");
  head.append(make("tr", {}, ...columns.map(([name, title]) => {
    const button = make("button", { type: "button", textContent: title });
    button.addEventListener("click", () => { state.down = state.sort === name ? !state.down : numeric.has(name); state.sort = name; draw(); });
    return make("th", { scope: "col", className: numeric.has(name) ? "number" : "", "data-column": name }, button);
  })));
  const shown = () => rows.filter((row) => Object.entries(state.chosen).every(([name, value]) => !value || String(row[name]) === value)
    && JSON.stringify([row.recipe, row.data, row.model, row.neuron, row.surrogate]).toLowerCase().includes(state.text));
  const compare = (a, b) => {
    const [x, y] = [a[state.sort], b[state.sort]];
    if (x === null || y === null) return (x === null) - (y === null);
    return (numeric.has(state.sort) ? x - y : String(x).localeCompare(String(y))) * (state.down ? -1 : 1);
  };
  const draw = () => {
    const found = shown().sort(compare);
    head.querySelectorAll("th").forEach((th) => {
      const own = th.dataset.column === state.sort;
      if (own) th.setAttribute("aria-sort", state.down ? "descending" : "ascending"); else th.removeAttribute("aria-sort");
    });
    body.replaceChildren(...found.map((row) => {
      const cells = columns.map(([name, , text], i) => {
        const content = text ? String(text(row)) : String(row[name]);
        if (i > 0) return make("td", { className: numeric.has(name) ? "number" : "", textContent: content });
        const button = make("button", { type: "button", textContent: content, "aria-expanded": String(state.open === row.index) });
        button.addEventListener("click", () => open(state.open === row.index ? null : row.index));
        return make("td", {}, button);
      });
      return make("tr", { className: state.open === row.index ? "open" : "" }, ...cells);
    }));
    document.getElementById("count").textContent = `${found.length} of ${rows.length} rows, ${runs.length} records`;
    scatter(found);
  };

  // ---- filters ----
  const filters = document.getElementById("filters");
  const search = make("input", { type: "search", placeholder: "search", "aria-label": "search" });
  search.addEventListener("input", () => { state.text = search.value.toLowerCase(); draw(); });
  filters.append(search);
  for (const name of ["data", "model", "neuron", "surrogate", "steps"]) {
    const values = [...new Set(rows.map((row) => String(row[name])))].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
    if (values.length < 2) continue;
    const title = columns.find(([column]) => column === name)[1];
    const select = make("select", { "aria-label": title, "data-filter": name }, make("option", { value: "", textContent: `every ${title}` }),
      ...values.map((value) => make("option", { value, textContent: value })));
    select.addEventListener("change", () => { state.chosen[name] = select.value; draw(); });
    filters.append(select);
  }

  // ---- charts ----
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const axis = (label, extra = {}) => ({ label, stroke: style("--soft"), grid: { stroke: style("--line"), width: 1 }, ticks: { stroke: style("--line") },
    font: "12px system-ui", labelFont: "12px system-ui", labelSize: 20, size: 46, ...extra });
  const charts = new Map();
  const chart = (place, options, data) => {
    charts.get(place)?.destroy();
    const width = Math.max(240, place.clientWidth || 320);
    charts.set(place, new uPlot({ width, height: 250, cursor: { drag: { x: false, y: false } }, ...options }, data, place));
  };
  const curve = (place, seeds, names, label) => {
    const length = Math.max(...seeds.map((run) => run.curve[names[0]].length));
    const epochs = Array.from({ length }, (_, i) => i + 1);
    const series = seeds.flatMap((run) => names.map((name) => ({
      label: `${name.startsWith("train") ? "training" : "test"}, seed ${run.seed}`, width: 1.5,
      stroke: name.startsWith("train") ? style("--soft") : COLOURS[seeds.indexOf(run) % COLOURS.length],
    })));
    const values = seeds.flatMap((run) => names.map((name) => run.curve[name]));
    chart(place, { scales: { x: { time: false } }, axes: [axis("epoch"), axis(label)], series: [{ label: "epoch" }, ...series] }, [epochs, ...values]);
  };
  const AGAINST = { time: "training time (s)", energy: "energy of an inference (µJ)", steps: "steps T", parameters: "parameters", rate: "firing rate" };
  const against = document.getElementById("against");
  against.append(...Object.entries(AGAINST).map(([value, textContent]) => make("option", { value, textContent })));
  against.addEventListener("change", () => scatter(shown()));
  const scatter = (found) => {
    const name = against.value, place = document.getElementById("scatter"), legend = document.getElementById("legend");
    const points = found.filter((row) => row[name] !== null).sort((a, b) => a[name] - b[name]);
    legend.replaceChildren();
    if (!points.length) { charts.get(place)?.destroy(); charts.delete(place); place.textContent = "No record of this yet: run spiketrain analyze."; return; }
    place.replaceChildren();
    const kinds = [...new Set(points.map((row) => `${row.data}: ${row.neuron}, ${row.surrogate}`))];
    const colour = (kind) => COLOURS[kinds.indexOf(kind) % COLOURS.length];
    legend.append(...kinds.map((kind) => { const dot = make("i"); dot.style.background = colour(kind); return make("li", {}, dot, kind); }));
    const x = points.map((row) => row[name]);
    const series = kinds.map((kind) => ({ label: kind, paths: () => null, points: { show: true, size: 9, fill: colour(kind), stroke: colour(kind) } }));
    const y = kinds.map((kind) => points.map((row) => (`${row.data}: ${row.neuron}, ${row.surrogate}` === kind ? row.accuracy : null)));
    const spread = (values) => { const [low, high] = [Math.min(...values), Math.max(...values)]; const room = (high - low || high || 1) * 0.06; return [low - room, high + room]; };
    chart(place, { height: 320, legend: { show: false }, scales: { x: { time: false, range: () => spread(x) }, y: { range: () => spread(points.map((row) => row.accuracy)) } },
      axes: [axis(AGAINST[name]), axis("accuracy (%)", { size: 56 })], series: [{}, ...series] }, [x, ...y]);
  };

  // ---- one row, opened ----
  const block = (title, ...children) => make("div", {}, make("h3", { textContent: title }), ...children);
  const bars = (pairs, format) => {
    const most = Math.max(...pairs.map(([, value]) => value), 1e-12);
    return make("table", { className: "bars" }, make("tbody", {}, ...pairs.map(([name, value]) => {
      const bar = make("div", { className: "bar" });
      bar.style.width = `${(100 * value) / most}%`;
      return make("tr", {}, make("td", { textContent: name }), make("td", { className: "number", textContent: format(value) }), make("td", {}, bar));
    })));
  };
  const matrix = (table) => {
    const cells = (row, i) => row.map((count, j) => {
      const share = count / Math.max(1, row.reduce((a, b) => a + b, 0));
      const cell = make("td", { textContent: count || "", title: `true ${i}, predicted ${j}: ${count}` });
      cell.style.background = `rgb(var(--mark) / ${share.toFixed(3)})`;
      return cell;
    });
    return make("div", { className: "scroll", tabIndex: 0 }, make("table", { className: "matrix" }, make("tbody", {},
      make("tr", {}, make("th"), ...table.map((_, j) => make("th", { textContent: j }))),
      ...table.map((row, i) => make("tr", {}, make("th", { textContent: i }), ...cells(row, i))))));
  };
  const facts = (pairs) => make("table", { className: "facts" }, make("tbody", {}, ...pairs.map(([name, value]) =>
    make("tr", {}, make("td", { textContent: name }), make("td", { textContent: value })))));
  const operations = (found) => {
    const heads = ["layer", "MACs", "SOPs", "nJ"];
    return [make("div", { className: "scroll", tabIndex: 0 }, make("table", { className: "ops" }, make("thead", {}, make("tr", {}, ...heads.map((h) => make("th", { textContent: h })))),
      make("tbody", {}, ...found.operations.layers.map((row) => make("tr", {}, make("td", { textContent: row.name }),
        ...[row.macs, row.sops].map((v) => make("td", { className: "number", textContent: number(v, 0) })), make("td", { className: "number", textContent: number(row.energy_nj, 1) })))))),
      make("p", { textContent: found.caveat })];
  };
  const detail = document.getElementById("detail");
  const open = (index) => {
    state.open = index;
    draw();
    detail.hidden = index === null;
    if (index === null) { history.replaceState(null, "", " "); return; }
    const row = rows[index], first = row.seeds[0], analysed = row.seeds.find((run) => run.analysis);
    const close = make("button", { type: "button", textContent: "close" });
    close.addEventListener("click", () => { open(null); });
    const accuracy = make("div", { className: "chart" }), loss = make("div", { className: "chart" }), spikes = make("div", { className: "chart" }), damage = make("div", { className: "chart" });
    const table = first.confusion.map((line, i) => line.map((_, j) => row.seeds.reduce((sum, run) => sum + run.confusion[i][j], 0)));
    const perClass = table.map((line, i) => [String(i), (100 * line[i]) / Math.max(1, line.reduce((a, b) => a + b, 0))]);
    const rates = Object.keys(first.firing_rates).map((name) => [name, mean(row.seeds.map((run) => run.firing_rates[name] ?? 0))]);
    const grid = make("div", { className: "grid" }, block("accuracy by epoch (%)", accuracy), block("loss by epoch", loss),
      rates.length ? block("firing rate by layer", bars(rates, (v) => number(v, 4))) : null,
      analysed ? block("spikes over time: firing rate by step", spikes) : null,
      table.length ? block(`confusion, all seeds (row: true)`, matrix(table)) : null,
      table.length ? block("accuracy by class (%)", bars(perClass, (v) => number(v, 1))) : null,
      analysed ? block("operations of an inference", ...operations(analysed.analysis)) : null,
      analysed ? block("accuracy by steps (%)", damage) : null,
      block("environment", facts([["commit", first.commit], ["machine", Object.values(first.machine).join(", ")], ["versions", Object.entries(first.versions).map((v) => v.join(" ")).join(", ")],
        ["data", `${first.data.name}, split ${first.data.split}, ${first.data.train} + ${first.data.test}`], ["precision", first.precision],
        ["seeds", row.seeds.map((run) => `${run.seed}: ${number(run.test_accuracy, 2)} %`).join("; ")], ["date", first.date]])));
    detail.replaceChildren(make("header", {}, make("h2", { textContent: `${row.recipe}: ${row.model}, ${row.neuron}, ${row.surrogate}`, tabIndex: -1 }), close),
      make("pre", { tabIndex: 0 }, make("code", { textContent: first.portable })), grid);
    curve(accuracy, row.seeds, ["train_accuracy", "test_accuracy"], "%");
    curve(loss, row.seeds, ["train_loss", "test_loss"], "loss");
    if (analysed) {
      const layers = analysed.analysis.layers, steps = layers[0].rate_by_step.map((_, t) => t + 1);
      chart(spikes, { scales: { x: { time: false } }, axes: [axis("step"), axis("rate")],
        series: [{ label: "step" }, ...layers.map((layer, i) => ({ label: layer.name, stroke: COLOURS[i % COLOURS.length], width: 1.5 }))] }, [steps, ...layers.map((layer) => layer.rate_by_step)]);
      const by = analysed.analysis.accuracy_by_steps;
      chart(damage, { scales: { x: { time: false } }, axes: [axis(`steps (trained with ${analysed.analysis.steps})`), axis("%")],
        series: [{ label: "steps" }, { label: "accuracy", stroke: COLOURS[0], width: 1.5, points: { show: true } }] }, [by.map((_, t) => t + 1), by]);
    }
    history.replaceState(null, "", `#row-${index}`);
    detail.querySelector("h2").focus({ preventScroll: true });
    detail.scrollIntoView({ block: "nearest", behavior: "auto" });
  };

  const accuracies = rows.map((row) => row.data);
  document.getElementById("summary").textContent = `${runs.length} records, ${rows.length} rows, ${new Set(accuracies).size} data set${new Set(accuracies).size === 1 ? "" : "s"}.`;
  draw();
  const wanted = /^#row-(\d+)$/.exec(location.hash);
  if (wanted && rows[Number(wanted[1])]) open(Number(wanted[1]));
  document.addEventListener("keydown", (event) => { if (event.key === "Escape" && state.open !== null) open(null); });
  let timer = 0;
  const again = () => { clearTimeout(timer); timer = setTimeout(() => { const row = state.open; draw(); if (row !== null) open(row); }, 150); };
  window.addEventListener("resize", again);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
})();
