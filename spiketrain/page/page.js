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
    ["recipe", "recipe"], ["accuracy", "accuracy %", (row) => number(row.accuracy, 2) + (row.spread === null ? "" : ` ± ${number(row.spread, 2)}`)],
    ["data", "data"], ["model", "network"], ["neuron", "neuron"], ["surrogate", "surrogate"], ["steps", "T", (row) => row.steps],
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
        const button = make("button", { type: "button", textContent: content, "aria-expanded": String(state.open === row.index), "data-row": row.index });
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
    charts.set(place, new uPlot({ width, height: 250, ...options, cursor: { drag: { x: false, y: false }, ...options.cursor } }, data, place));
  };
  const whole = { incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500] };
  const latest = (plot) => { if (plot.cursor.idx === null || plot.cursor.idx === undefined) plot.setLegend({ idx: plot.data[0].length - 1 }); };
  const told = { hooks: { ready: [latest], setCursor: [latest] } };  // the legend has the last values, and those under the cursor while there is one
  const shade = (i, n) => (n <= COLOURS.length ? COLOURS[i] : `hsl(${Math.round(250 - (230 * i) / (n - 1))} 60% 52%)`);
  const curve = (place, seeds, names, label) => {
    const length = Math.max(...seeds.map((run) => run.curve[names[0]].length));
    const epochs = Array.from({ length }, (_, i) => i + 1);
    const series = seeds.flatMap((run) => names.map((name) => ({
      label: `${name.startsWith("train") ? "training" : "test"}, seed ${run.seed}`, width: 1.5, value: (_, v) => (v === null ? "" : number(v, 2)),
      stroke: name.startsWith("train") ? style("--soft") : COLOURS[seeds.indexOf(run) % COLOURS.length],
    })));
    const values = seeds.flatMap((run) => names.map((name) => run.curve[name]));
    chart(place, { ...told, scales: { x: { time: false } }, axes: [axis("epoch", whole), axis(label)], series: [{ label: "epoch" }, ...series] }, [epochs, ...values]);
  };
  const AGAINST = { time: "training time (s)", energy: "energy (µJ)", steps: "steps T" };
  const kind = (row) => `${row.data}: ${row.model}`;
  const kinds = [...new Set(rows.map(kind))].sort();
  const colour = (name) => COLOURS[kinds.indexOf(name) % COLOURS.length];
  const plots = document.getElementById("plots"), hint = document.getElementById("point"), unhinted = hint.textContent;
  plots.append(...Object.entries(AGAINST).map(([name, title]) => make("div", {}, make("h3", { textContent: `accuracy (%) against ${title}` }), make("div", { id: `plot-${name}`, className: "chart" }))));
  const scatter = (found) => {
    Object.keys(AGAINST).forEach((name) => points(found, name));
    document.getElementById("legend").replaceChildren(...kinds.filter((name) => found.some((row) => kind(row) === name)).map((name) => {
      const dot = make("i");
      dot.style.background = colour(name);
      return make("li", {}, dot, name);
    }));
  };
  const room = (values, log) => {  // a range with some room around it
    const [low, high] = [Math.min(...values), Math.max(...values)];
    if (log) return [low / 1.4, high * 1.4];
    const more = (high - low || Math.abs(high) || 1) * 0.08;
    return [low - more, high + more];
  };
  const points = (found, name) => {
    const place = document.getElementById(`plot-${name}`), dots = found.filter((row) => row[name] !== null).sort((a, b) => a[name] - b[name]);
    charts.get(place)?.destroy();
    charts.delete(place);
    place.textContent = dots.length ? "" : "No row here has been looked into: spiketrain analyze.";
    if (!dots.length) return;
    const x = dots.map((row) => row[name]), heights = dots.map((row) => row.accuracy), log = name !== "steps" && x[x.length - 1] > 30 * x[0];
    const shown = [...new Set(dots.map(kind))];
    const nearest = (plot) => {
      const away = (row) => Math.hypot(plot.valToPos(row[name], "x") - plot.cursor.left, plot.valToPos(row.accuracy, "y") - plot.cursor.top);
      const best = dots.reduce((a, b) => (away(b) < away(a) ? b : a));
      return plot.cursor.left >= 0 && away(best) < 24 ? best : null;
    };
    const say = (plot) => {
      const row = nearest(plot);
      hint.textContent = row ? `${row.recipe}: ${row.model}, ${row.neuron}, ${row.surrogate}, T = ${row.steps}: ${number(row.accuracy, 2)} %, ${seconds(row.time)}` : unhinted;
      plot.over.style.cursor = row ? "pointer" : "";
    };
    chart(place, { legend: { show: false }, hooks: { setCursor: [say] },
      scales: { x: { time: false, distr: log ? 3 : 1, range: () => room(x, log) }, y: { range: () => room(heights) } }, cursor: { y: false, x: false, points: { show: false } },
      axes: [axis(AGAINST[name], name === "steps" ? whole : {}), axis("", { size: 56 })],
      series: [{}, ...shown.map((one) => ({ label: one, paths: () => null, points: { show: true, size: 9, fill: `${colour(one)}99`, stroke: colour(one) } }))] },
    [x, ...shown.map((one) => dots.map((row) => (kind(row) === one ? row.accuracy : null)))]);
    charts.get(place).over.addEventListener("click", () => { const row = nearest(charts.get(place)); if (row) open(row.index); });
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
      if (share > 0.5) cell.style.color = "var(--paper)";
      return cell;
    });
    return make("div", { className: "scroll", tabIndex: 0 }, make("table", { className: "matrix" }, make("tbody", {},
      make("tr", {}, make("th"), ...table.map((_, j) => make("th", { textContent: j }))),
      ...table.map((row, i) => make("tr", {}, make("th", { textContent: i }), ...cells(row, i))))));
  };
  const facts = (pairs) => make("table", { className: "facts" }, make("tbody", {}, ...pairs.map(([name, value]) =>
    make("tr", {}, make("td", { textContent: name }), make("td", { textContent: value })))));
  const layerTable = (rates, layers) => {  // firing rates, and where the network has been looked into, which neurons never or always fire
    const most = Math.max(...rates.map(([, rate]) => rate), 1e-12), share = (value) => (value === undefined ? "" : `${number(100 * value, 1)} %`);
    const lines = rates.map(([name, rate]) => {
      const bar = make("div", { className: "bar" }), layer = layers.find((one) => one.name === name) || {};
      bar.style.width = `${(100 * rate) / most}%`;
      return make("tr", {}, make("td", { textContent: name }), make("td", { className: "number", textContent: number(rate, 4) }), make("td", { className: "wide" }, bar),
        ...(layers.length ? [layer.silent, layer.saturated].map((value) => make("td", { className: "number", textContent: share(value) })) : []));
    });
    const heads = ["layer", "rate", "", ...(layers.length ? ["silent", "always on"] : [])];
    return make("table", { className: "ops" }, make("thead", {}, make("tr", {}, ...heads.map((h) => make("th", { scope: "col", textContent: h })))), make("tbody", {}, ...lines));
  };
  const operations = (found) => {
    const total = found.operations.totals, heads = ["layer", "MACs", "SOPs", "estimate", "nJ"];
    const lines = found.operations.layers.map((row) => make("tr", {}, make("td", { textContent: row.name }),
      ...[row.macs, row.sops, row.sops_estimate].map((v) => make("td", { className: "number", textContent: number(v, 0) })), make("td", { className: "number", textContent: number(row.energy_nj, 1) })));
    return [make("div", { className: "scroll", tabIndex: 0 }, make("table", { className: "ops" }, make("thead", {}, make("tr", {}, ...heads.map((h) => make("th", { scope: "col", textContent: h })))), make("tbody", {}, ...lines))),
      make("p", { textContent: `${number(total.energy_nj / 1e3, 3)} µJ an inference; the same network as an ANN ${number(total.ann_energy_nj / 1e3, 3)} µJ. ${number(total.neuron_updates, 0)} neuron updates are not in it. ${found.caveat}` })];
  };
  const lines = (place, label, unit, x, series, axisOptions = {}) => chart(place, { ...told, scales: { x: { time: false } }, axes: [axis(label, axisOptions), axis(unit)],
    series: [{ label }, ...series.map(([name], i) => ({ label: name, stroke: shade(i, series.length), width: 1.5 }))] }, [x, ...series.map(([, values]) => values)]);
  const inside = (found, places) => {  // the charts of an analysis
    const steps = found.layers[0].rate_by_step.map((_, t) => t + 1), bins = found.layers.find((layer) => layer.potentials.length)?.potentials.length;
    lines(places.spikes, "step", "rate", steps, found.layers.map((layer) => [layer.name, layer.rate_by_step]), whole);
    lines(places.steps, `steps shown (trained with ${found.steps})`, "%", found.accuracy_by_steps.map((_, t) => t + 1), [["accuracy", found.accuracy_by_steps]], whole);
    if (bins) {
      const [low, high] = found.span, centre = Array.from({ length: bins }, (_, i) => low + ((high - low) * (i + 0.5)) / bins);
      lines(places.potentials, "u / threshold", "share", centre, found.layers.filter((layer) => layer.potentials.length).map((layer) => [layer.name, layer.potentials]));
    }
    const x = found.features.x;
    if (x) {
      const order = x.map((_, i) => i).sort((a, b) => x[a] - x[b]), labels = [...new Set(found.features.label)].sort((a, b) => a - b);
      chart(places.features, { scales: { x: { time: false } }, legend: { show: labels.length <= 12, live: false }, cursor: { show: false }, axes: [{ show: false }, { show: false }],
        series: [{}, ...labels.map((k, i) => ({ label: found.classes[k], stroke: shade(i, labels.length), paths: () => null, points: { show: true, size: 4, fill: shade(i, labels.length) } }))] },
      [order.map((i) => x[i]), ...labels.map((k) => order.map((i) => (found.features.label[i] === k ? found.features.y[i] : null)))]);
    }
  };
  const damages = (found) => make("table", { className: "ops" }, make("thead", {}, make("tr", {}, ...["damage", "level", "accuracy"].map((h) => make("th", { scope: "col", textContent: h })))),
    make("tbody", {}, ...found.robustness.map((row, i, all) => make("tr", {}, make("td", { textContent: all[i - 1]?.kind === row.kind ? "" : row.kind }),
      make("td", { className: "number", textContent: row.level }), make("td", { className: "number", textContent: number(row.accuracy, 1) })))));
  const detail = document.getElementById("detail");
  const open = (index, quiet = false) => {
    const before = state.open;
    state.open = index;
    draw();
    detail.hidden = index === null;
    history.replaceState(null, "", index === null ? " " : `#row-${index}`);
    if (index === null) {
      detail.replaceChildren();
      body.querySelector(`[data-row="${before}"]`)?.focus();
      return;
    }
    fill(rows[index]);
    if (quiet) return;
    detail.querySelector("h2").focus({ preventScroll: true });
    detail.scrollIntoView({ block: "start" });
  };
  const fill = (row) => {
    const first = row.seeds[0], found = row.seeds.find((run) => run.analysis)?.analysis;
    const close = make("button", { type: "button", textContent: "close" });
    close.addEventListener("click", () => { open(null); });
    const place = () => make("div", { className: "chart" });
    const accuracy = place(), loss = place(), places = { spikes: place(), steps: place(), potentials: place(), features: place() };
    const classes = found ? found.classes : first.confusion.map((_, i) => String(i));
    const table = first.confusion.map((line, i) => line.map((_, j) => row.seeds.reduce((sum, run) => sum + run.confusion[i][j], 0)));
    const perClass = table.map((line, i) => [classes[i] ?? String(i), (100 * line[i]) / Math.max(1, line.reduce((a, b) => a + b, 0))]);
    const rates = Object.keys(first.firing_rates).map((name) => [name, mean(row.seeds.map((run) => run.firing_rates[name] ?? 0))]);
    const grid = make("div", { className: "grid" }, block("accuracy by epoch (%)", accuracy), block("loss by epoch", loss),
      rates.length ? block("firing rate by layer", layerTable(rates, found ? found.layers : [])) : null,
      ...(found ? [block("spikes over time: firing rate by step", places.spikes), block("potential before the reset", places.potentials), block("operations and energy of an inference", ...operations(found))] : []),
      table.length ? block("confusion, all seeds (row: true, column: predicted)", matrix(table)) : null,
      table.length ? block("accuracy by class (%)", bars(perClass, (v) => number(v, 1))) : null,
      ...(found ? [block("accuracy by steps (%)", places.steps), block("accuracy under damage (%)", damages(found)), found.features.x ? block("t-SNE of what enters the last layer", places.features) : null] : []),
      block("environment", facts([["commit", first.commit], ["machine", Object.entries(first.machine).map((v) => v.join(" ")).join(", ")], ["versions", Object.entries(first.versions).map((v) => v.join(" ")).join(", ")],
        ["data", `${first.data.name}, split ${first.data.split}, ${first.data.train} + ${first.data.test}`], ["precision", first.precision], ["division", first.recipe.division],
        ["seeds", row.seeds.map((run) => `${run.seed}: ${number(run.test_accuracy, 2)} %`).join("; ")], ...(first.older ? [["older table", `${number(first.older, 2)} % (best epoch on the test part)`]] : []),
        ["date", first.date], ...(found ? [["analysis", `of seed ${row.seeds.find((run) => run.analysis).seed}, ${found.samples} test samples`]] : [])])));
    detail.replaceChildren(make("header", {}, make("h2", { textContent: `${row.recipe}: ${row.model}, ${row.neuron}, ${row.surrogate}`, tabIndex: -1 }), close),
      make("pre", { tabIndex: 0 }, make("code", { textContent: first.portable })), grid);
    curve(accuracy, row.seeds, ["train_accuracy", "test_accuracy"], "%");
    curve(loss, row.seeds, ["train_loss", "test_loss"], "loss");
    if (found) inside(found, places);
  };

  const sets = new Set(rows.map((row) => row.data)).size;
  document.getElementById("summary").textContent = `${runs.length} records, ${rows.length} rows, ${sets} data set${sets === 1 ? "" : "s"}.`;
  draw();
  const wanted = /^#row-(\d+)$/.exec(location.hash);
  if (wanted && rows[Number(wanted[1])]) open(Number(wanted[1]));
  document.addEventListener("keydown", (event) => { if (event.key === "Escape" && state.open !== null) open(null); });
  let timer = 0, width = document.body.clientWidth;
  window.addEventListener("resize", () => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      if (document.body.clientWidth === width) return;  // a phone's address bar comes and goes
      width = document.body.clientWidth;
      charts.forEach((plot, place) => { if (place.isConnected) plot.setSize({ width: Math.max(240, place.clientWidth), height: plot.height }); });
    }, 150);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (state.open === null) draw(); else open(state.open, true); });
})();
