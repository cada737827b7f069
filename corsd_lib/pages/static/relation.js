// Relations: a heatmap a run, one set of controls for all, and the pair of classes that was clicked on.

KINDS.relation = (data, box) => {
  const { names, orders, start } = data;
  const whole = wholes(names, data.whole_names), cut = Object.keys(data.whole_names).length > 0;
  const title = (...classes) => (cut ? classes.map((c) => whole[c]).join(" with ") : null); // what hover says of short names
  const runs = data.runs.map((run) => ({ ...run, codes: unpack(run.codes) }));
  const epochs = [...new Set(runs.flatMap((run) => run.epochs))].sort((a, b) => a - b);
  const widest = runs.reduce((a, b) => (b.exits.length > a.exits.length ? b : a));
  const most = widest.exits.length;
  const state = {
    exit: most - runs[0].exits.length + start.exit, // counted as in the run with the most exits
    epoch: epochs.indexOf(start.epoch),
    order: start.order,
    against: start.against,
    pair: start.selection ?? null,
    found: null,
  };

  // --- scores -----------------------------------------------------------------------------------------------------------

  /** What a run shows: its own exit counted from the deepest, and its last snapshot up to the epoch. */
  const exitOf = (run) => Math.max(0, run.exits.length - 1 - (most - state.exit));
  const epochOf = (run) => Math.max(0, run.epochs.findLastIndex((epoch) => epoch <= epochs[state.epoch]));

  const value = (run, code) => (code > run.levels ? NaN : code / run.levels);

  /** Scores (C * C) of a run's snapshot and exit, classes by label. */
  const scores = (run, epoch, exit) => Float32Array.from(run.codes.at(epoch, exit), (code) => value(run, code));

  /** What is subtracted from a run's scores of a snapshot and exit, or null. */
  function reference(run, epoch, exit) {
    if (state.against === "deepest") return scores(run, epoch, run.exits.length - 1);
    if (state.against === "first") return scores(run, 0, exit);
    if (state.against === "nothing") return null;
    const other = runs[+state.against];
    return scores(other, epochOf(other), exitOf(other));
  }

  function shown(run, epoch = epochOf(run), exit = exitOf(run)) {
    const own = scores(run, epoch, exit), other = reference(run, epoch, exit);
    return other ? own.map((s, i) => s - other[i]) : own;
  }

  /** The largest difference at any exit and epoch, so that colours mean the same at all of them. */
  function reach() {
    let largest = 0;
    for (const run of runs) {
      run.epochs.forEach((_, e) => run.exits.forEach((_, k) => {
        for (const d of shown(run, e, k)) if (Math.abs(d) > largest) largest = Math.abs(d);
      }));
    }
    return Math.max(0.1, Math.ceil(largest * 10) / 10);
  }

  /** Mean of the entries of (C * C) that `kept(row, column)` keeps and that have a score. */
  function mean(matrix, kept) {
    let sum = 0, n = 0;
    matrix.forEach((s, i) => {
      if (!Number.isNaN(s) && kept(Math.floor(i / names.length), i % names.length)) { sum += s; n += 1; }
    });
    return sum / n;
  }

  function strongest(matrix) {
    let best = null;
    matrix.forEach((s, i) => {
      const other = Math.floor(i / names.length) !== i % names.length;
      if (other && !Number.isNaN(s) && (best === null || s > matrix[best])) best = i;
    });
    return best === null ? null : [Math.floor(best / names.length), best % names.length];
  }

  // --- controls -----------------------------------------------------------------------------------------------------------

  const exits = widest.exits.map((name, k) => [k + 1, name]);
  const against = [["nothing", "nothing"], ["deepest", "deepest exit"], ["first", `epoch ${epochs[0]}, the first`],
    ...(runs.length > 1 ? runs.map((run, i) => [i, run.name]) : [])];
  const orderNames = { label: "label", superclass: "superclass", cluster: "cluster", superclass_cluster: "superclass, then cluster" };
  const classes = [["", "none"], ...names.map((name, c) => [c, name, title(c)])];
  const set = (name, change = (v) => v) => (v) => { state[name] = change(v); draw(); };

  const epochSlider = slider("epoch", epochs.length - 1, state.epoch, (i) => epochs[i], set("epoch"));
  const first = choice("first class", classes, "", () => pick());
  const second = choice("second class", classes, "", () => pick());
  const list = el("datalist", { id: `classes-${++ids}` }, ...names.map((name) => el("option", { value: name })));
  const search = el("input", { type: "search", list: list.id, placeholder: "part of a name", input: () => find(search.value) });
  const controls = el("div", { class: "controls" },
    choice("exit", exits, state.exit, set("exit", Number)), epochSlider, player(epochSlider),
    choice("order of classes", Object.keys(orders).map((o) => [o, orderNames[o]]), state.order, set("order")),
    choice("difference to", against, state.against, set("against")),
    labelled("find a class", search), list);

  function pick() {
    if (first.list.value !== "" && second.list.value !== "") select([+first.list.value, +second.list.value]);
  }

  function select(pair) {
    state.pair = pair;
    [first.list.value, second.list.value] = pair ?? ["", ""];
    draw();
  }

  function find(text) {
    const wanted = text.trim().toLowerCase();
    const exact = names.findIndex((name, c) => [name, whole[c]].some((n) => n.toLowerCase() === wanted));
    const part = whole.findIndex((name) => name.toLowerCase().includes(wanted));
    state.found = wanted === "" ? null : exact >= 0 ? exact : part;
    draw();
  }

  // --- what is drawn ------------------------------------------------------------------------------------------------------

  const maps = runs.map(() => ({ node: el("figure", {}), text: el("figcaption", {}), div: el("div", { class: "plot matrix" }) }));
  maps.forEach(({ node, text, div }) => node.append(text, div));
  const found = el("p", { class: "found", role: "status" });
  const pairText = el("p", { class: "finding", role: "status" });
  const curve = el("div", { class: "plot curve" });
  const table = scrolling("scores of the pair");
  const pair = el("div", { class: "pair" }, el("div", { class: "controls" }, first, second), pairText, curve, table);
  const all = el("div", { class: "grid" }, ...maps.map(({ node }) => node));
  box.append(controls, found, el("div", { class: runs.length > 1 ? "below" : "beside" }, all, pair), ...paragraph(data.text));

  const label = (c) => plain(names[c]);
  const frame = (x0, x1, y0, y1, color, width) =>
    ({ type: "rect", x0: x0 - 0.5, x1: x1 + 0.5, y0: y0 - 0.5, y1: y1 + 0.5, line: { color, width } });

  /** Boundaries of superclasses, the class that was found, and the pair. */
  function shapes(order) {
    const marks = [], last = order.length - 1;
    if (state.order.startsWith("superclass")) {
      for (let i = 1; i <= last; i++) {
        if (data.superclass_of_class[order[i]] === data.superclass_of_class[order[i - 1]]) continue;
        const line = { color: ink(), width: 1 };
        marks.push({ type: "line", x0: i - 0.5, x1: i - 0.5, y0: -0.5, y1: last + 0.5, line });
        marks.push({ type: "line", x0: -0.5, x1: last + 0.5, y0: i - 0.5, y1: i - 0.5, line });
      }
    }
    if (state.found !== null && state.found >= 0) {
      const at = order.indexOf(state.found);
      marks.push(frame(0, last, at, at, THEME.palette[4], 2), frame(at, at, 0, last, THEME.palette[4], 2));
    }
    if (state.pair) {
      const [row, column] = state.pair.map((c) => order.indexOf(c));
      marks.push(frame(column, column, row, row, THEME.palette[1], 3));
    }
    return marks;
  }

  function heatmap(run, div, range) {
    const order = orders[state.order], matrix = shown(run);
    const z = order.map((c) => Float32Array.from(order, (d) => matrix[c * names.length + d]));
    const labels = order.map(label), difference = state.against !== "nothing";
    const bar = { title: { text: difference ? "difference" : run.score, side: "right" }, thickness: 12, outlinewidth: 0, len: 0.9 };
    const texts = cut ? order.map((c) => order.map((d) => `${wrapped(whole[c])} with ${wrapped(whole[d])}`)) : undefined;
    const trace = {
      type: "heatmap", hovertext: texts, z, x: labels, y: labels, zmin: difference ? -range : 0, zmax: range,
      colorscale: difference ? THEME.diverging : THEME.scale, colorbar: bar, hoverongaps: false,
      hovertemplate: `${cut ? "%{hovertext}" : "%{y} with %{x}"}<br>${difference ? "difference %{z:+.2f}" : `${run.score} %{z:.2f}`}<extra></extra>`,
    };
    const every = names.length <= 20 ? { dtick: 1 } : {};
    const axis = { type: "category", constrain: "domain", showgrid: false, ...every };
    plot(div, [trace], {
      xaxis: { ...axis, title: { text: "class of the second image" } },
      yaxis: { ...axis, title: { text: "class of the first image" }, autorange: "reversed", scaleanchor: "x" },
      shapes: shapes(order),
    });
  }

  function caption(run, text) {
    const matrix = shown(run);
    const within = mean(matrix, (c, d) => c === d), between = mean(matrix, (c, d) => c !== d);
    const where = `${runs.length > 1 ? `${run.name}: ` : ""}${run.exits[exitOf(run)]}, epoch ${run.epochs[epochOf(run)]}`;
    const sign = (s) => (Number.isNaN(s) ? "–" : `${s < 0 ? "−" : "+"}${Math.abs(s).toFixed(2)}`);
    const finding = state.against === "nothing"
      ? `${run.score} ${score(within)} within a class, ${score(between)} between classes`
      : `against ${against.find(([v]) => String(v) === state.against)[1]}: ${sign(within)} within a class, ${sign(between)} between classes`;
    text.replaceChildren(el("b", {}, where), el("br"), finding);
  }

  function related() {
    if (state.found === null) return "";
    if (state.found < 0) return `No class has “${search.value.trim()}” in its name.`;
    const run = runs[0], matrix = scores(run, epochOf(run), exitOf(run));
    const others = names.map((_, d) => [d, matrix[state.found * names.length + d]])
      .filter(([d, s]) => d !== state.found && !Number.isNaN(s)).sort((a, b) => b[1] - a[1]);
    const say = (some) => some.map(([d, s]) => `${names[d]} ${score(s)}`).join(", ");
    const to = runs.length > 1 ? ` (${run.name})` : "";
    return `${names[state.found]}${to}: most related to ${say(others.slice(0, 3))}; least to ${say(others.slice(-3).reverse())}.`;
  }

  function drawPair() {
    if (!state.pair) {
      pairText.textContent = "Click on a cell, or choose two classes.";
      curve.hidden = table.hidden = true;
      return;
    }
    curve.hidden = table.hidden = false;
    const [c, d] = state.pair;
    const of = (run, e, k, i, j) => value(run, run.codes.at(e, k)[i * names.length + j]);
    pairText.replaceChildren(el("b", { title: title(c, d) }, `${names[c]} with ${names[d]}`), ` at every exit and epoch`);
    const many = runs.length > 1, dashes = ["solid", "dot", "dash", "dashdot"];
    const lines = runs.flatMap((run, r) => run.exits.map((name, k) => ({
      type: "scatter", mode: "lines+markers", x: run.epochs, y: run.epochs.map((_, e) => of(run, e, k, c, d)),
      name: plain(many ? `${run.name}, ${name}` : name), marker: { size: 5 },
      line: { color: THEME.palette[k % THEME.palette.length], dash: dashes[r % dashes.length], width: 2 },
      hovertemplate: "epoch %{x}<br>%{y:.2f}<extra>%{fullData.name}</extra>",
    })));
    const now = epochs[state.epoch];
    plot(curve, lines, {
      xaxis: { title: { text: "epoch" }, rangemode: "tozero" },
      yaxis: { title: { text: runs[0].score }, range: [-0.02, 1.02] },
      legend: { orientation: "h", y: -0.3, yanchor: "top", x: 0, font: { size: 11 } },
      shapes: [{ type: "line", x0: now, x1: now, yref: "paper", y0: 0, y1: 1, line: { color: THEME.grey, width: 1, dash: "dot" } }],
    });
    tabulate(c, d, of);
  }

  /** The pair at every exit at the epoch that is shown, both ways round: a trained relation need not be symmetric. */
  function tabulate(c, d, of) {
    const ways = c === d ? [[c, d]] : [[c, d], [d, c]];
    const head = el("tr", {}, el("th", { scope: "col" }, `epoch ${epochs[state.epoch]}`),
      ...ways.map(([i, j]) => el("th", { scope: "col", title: title(i, j) }, `${names[i]} → ${names[j]}`)));
    const rows = runs.flatMap((run) => run.exits.map((name, k) => el("tr", {},
      el("th", { scope: "row" }, runs.length > 1 ? `${run.name}, ${name}` : name),
      ...ways.map(([i, j]) => el("td", {}, score(of(run, epochOf(run), k, i, j)))))));
    table.replaceChildren(el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows)));
  }

  function draw() {
    const range = state.against === "nothing" ? 1 : reach();
    runs.forEach((run, r) => {
      const { node, text, div } = maps[r];
      node.hidden = String(r) === state.against; // a run has no difference to itself
      if (node.hidden) return;
      caption(run, text);
      heatmap(run, div, range);
    });
    found.textContent = related();
    drawPair();
  }

  state.pair ??= strongest(scores(runs[0], epochOf(runs[0]), exitOf(runs[0])));
  [first.list.value, second.list.value] = state.pair ?? ["", ""];
  drawn(draw);
  maps.forEach(({ div }) => div.on("plotly_click", ({ points }) => {
    const [row, column] = points[0].pointIndex ?? points[0].pointNumber;
    select([orders[state.order][row], orders[state.order][column]]);
  }));
};
