// Relations: a heatmap for each run, one set of controls for all, the selected pair, and the most notable pairs.

const DEEPEST = "deepest exit", OTHER = "other run";
const ORDER_NAMES = { label: "label", superclass: "superclass", cluster: "cluster", superclass_cluster: "superclass, then cluster" };

KINDS.relation = (box, host) => {
  const { data, store, ask, faces: facesOf_, links } = host;
  const { names, orders, superclasses, superclass_of_class: above, kinds } = data;
  const { state } = store, n = names.length;
  const whole = wholes(names, data.whole_names), labels = data.labels ? unpack(data.labels).values : [];
  const runs = data.runs.map((run, place) => {
    const codes = unpack(run.codes), known = new Map();
    run.epochs.forEach((epoch, e) => known.set(`${run.stored}/${epoch}`, { at: (k) => codes.at(e, k), levels: run.levels }));
    return { ...run, place, known, all: run.all_epochs ?? run.epochs };
  });
  const [mine] = runs;
  const epochs = ask ? mine.all : [...new Set(runs.flatMap((run) => run.epochs))].sort((a, b) => a - b);
  const many = runs.length > 1;
  const question = ask && newestOf(ask), questionOfImages = ask && newestOf(ask), questionOfPair = ask && newestOf(ask);

  // --- scores -----------------------------------------------------------------------------------------------------------

  const kindOf = (run) => (run.kinds[state.kind] ? state.kind : run.stored);
  /** Names of the kinds of relation of these runs, once if all are the same: a run without trained relations has the cosine. */
  const kindsOf = (some, between) => [...new Set(some.map((run) => data.kind_names[kindOf(run)]))].join(between);
  const exitsOf = (run) => run.kinds[kindOf(run)];
  const epochOf = (run) => nearest(run.all, state.epoch);
  /** Index of the exit of a run that is as far from its deepest exit as the chosen exit is from that of the first run. */
  const exitOf = (run) => Math.min(exitsOf(run).length, Math.max(1, state.exit + exitsOf(run).length - exitsOf(mine).length)) - 1;

  const kept = new Map(), most = Math.max(6, 2e6 / (n * n)); // cache of decoded scores, the most recently used ones last

  /** Scores (n * n) of classes by label; undefined if they have not been received. */
  function scores(run, epoch, exit, kind = kindOf(run)) {
    const codes = run.known.get(`${kind}/${epoch}`), key = `${run.place}/${kind}/${epoch}/${exit}`;
    if (!codes) return undefined;
    const found = kept.get(key) ?? decoded(codes.at(exit), codes.levels);
    kept.delete(key);
    kept.set(key, found);
    if (kept.size > most) kept.delete(kept.keys().next().value);
    return found;
  }

  /** The score of just the classes c and d. */
  function scoreOf(run, epoch, exit, c, d) {
    const codes = run.known.get(`${kindOf(run)}/${epoch}`);
    return codes && decoded(codes.at(exit).subarray(c * n + d, c * n + d + 1), codes.levels)[0];
  }

  /** Run, epoch and exit that are subtracted from a run, or null. */
  function reference(run) {
    const { reference } = state;
    if (reference === null) return null;
    if (reference === DEEPEST) return [run, epochOf(run), exitsOf(run).length - 1];
    const other = reference === OTHER ? runs[1] : String(reference).startsWith("run ") ? runs[+reference.slice(4)] : null;
    return other ? [other, epochOf(other), exitOf(other)] : [run, nearest(run.all, reference), exitOf(run)];
  }

  /** Scores by class as they are shown, minus the reference; undefined if some have not been received. */
  function shownScores(run) {
    const own = scores(run, epochOf(run), exitOf(run)), to = reference(run);
    if (!to) return own;
    const others = scores(...to);
    return own && others && difference(own, others);
  }

  /** Epochs that a view needs and that have not been received. */
  const missing = () => [...new Set(runs.flatMap((run) => {
    const wanted = [[run, epochOf(run)], ...(reference(run) ? [reference(run)] : [])];
    return wanted.filter(([r, epoch]) => !r.known.has(`${kindOf(r)}/${epoch}`)).map(([r, epoch]) => `${r.place}/${kindOf(r)}/${epoch}`);
  }))];

  function keep(answer) {
    for (const { run, kind, epoch, codes, levels } of answer) {
      const packed = unpack(codes);
      runs[run].known.set(`${kind}/${epoch}`, { at: (k) => packed.at(k), levels });
    }
  }

  // --- cells of a map in display order ---------------------------------------------------------------------

  const inScope = (c) => state.superclass === null || data.superclass_names[above[c]] === state.superclass;

  function classCells(run) {
    const rows = orders[state.order].filter(inScope), values = shownScores(run);
    return values && { level: "class", rows, values: ordered(values, n, rows), groups: rows.map((c) => above[c]), classes: rows };
  }

  const related = new Map(); // cache of scores (m * m) of probe images by `imageKey`, the newest last
  const every = Array.from(labels, (_, p) => p);
  const inView = (some) => balanced(some.filter((p) => inScope(labels[p])).sort((a, b) => a - b), labels, data.most_images);

  /** The images that are requested together: all if there are few, so that changes of scope, marks and order need no request. */
  const base = () => (every.length <= data.most_images ? every : imageRows());
  const imageRows = () => inView(state.marked.length ? state.marked : every);
  const imageKey = (run, epoch, exit, some) => `${run.place}/${kindOf(run)}/${epoch}/${exit}/${some === every ? "" : some}`;

  /** Scores that a view of images needs: [run, epoch, exit] of those that are shown and of those that are subtracted. */
  const wantedOfImages = () => [[mine, epochOf(mine), exitOf(mine)], ...(reference(mine) ? [reference(mine)] : [])];

  function imageCells() {
    const some = base(), place = new Map(some.map((p, i) => [p, i])), ranks = new Map(orders[state.order].map((c, i) => [c, i]));
    const rows = imageRows().sort((a, b) => ranks.get(labels[a]) - ranks.get(labels[b]) || a - b);
    const found_ = wantedOfImages().map((of) => related.get(imageKey(...of, some)));
    if (!rows.length || found_.includes(undefined)) return null;
    const [own, others] = found_.map((scores_) => ordered(scores_, some.length, rows.map((p) => place.get(p))));
    return { level: "image", rows, classes: rows.map((p) => labels[p]), values: others ? difference(own, others) : own };
  }

  const BLOCK = 250_000; // pairs of images in one request, so that other requests wait only for a moment

  /** Request the scores of a view of images, block by block; undefined if something else was requested meanwhile. */
  async function relate(some) {
    const m = some.length, step = Math.max(1, Math.floor(BLOCK / m));
    for (const [run, epoch, exit] of wantedOfImages().filter((of) => !related.has(imageKey(...of, some)))) {
      const key = imageKey(run, epoch, exit, some), values = new Float32Array(m * m), about = { run: run.place, kind: kindOf(run), epoch, exit: exit + 1 };
      for (let from = 0; from < m; from += step) {
        const answer = await questionOfImages("images", { ...about, rows: some.slice(from, from + step), columns: some });
        if (answer === undefined) return undefined;
        values.set(decoded(unpack(answer.codes).values, answer.levels), from * m);
      }
      related.set(key, values);
      if (related.size > most) related.delete(related.keys().next().value);
    }
    return true;
  }

  function nameOf(cells, i) {
    const row = cells.rows[i];
    return cells.level === "class" ? names[row] : `${names[cells.classes[i]]} #${row}`;
  }
  const wholeOf = (cells, i) => (cells.level === "class" ? whole[cells.rows[i]] : `${whole[cells.classes[i]]} #${cells.rows[i]}`);

  // --- controls -----------------------------------------------------------------------------------------------------------

  const set = (name) => (value) => store.set({ [name]: value });
  const least = ask ? 1 : 1 + exitsOf(mine).length - Math.max(...runs.map((run) => exitsOf(run).length));
  const widest = () => runs.reduce((a, b) => (exitsOf(b).length > exitsOf(a).length ? b : a));
  const exitOptions = () => (ask ? exitsOf(mine).map((name, k) => [k + 1, name]) : exitsOf(widest()).map((name, k) => [k + least, name]));
  const others = runs.length === 2 && state.reference !== "run 0" ? [[OTHER, runs[1].name]] : runs.map((run, r) => [`run ${r}`, run.name]);
  const referenceOptions = [[null, "nothing"], [DEEPEST, DEEPEST], ...(many ? others : []), ...epochs.map((e) => [e, `epoch ${e}`])];
  const controls = {
    exit: choice("exit", exitOptions(), state.exit, set("exit")),
    kind: choice("relation", kinds, state.kind, set("kind")),
    level: choice("cells are", [["class", "classes"], ["image", "images"]], state.level, set("level")),
    order: choice("order of classes", Object.keys(orders).map((o) => [o, ORDER_NAMES[o]]), state.order, set("order")),
    superclass: choice("superclass", [[null, "all"], ...data.superclass_names.map((name, g) => [name, superclasses[g]])], state.superclass, set("superclass")),
    reference: choice("subtract", referenceOptions, state.reference, set("reference")),
    colours: choice("colours", [["fixed", "fixed range"], ["fitted", "fitted range"]], state.colours, set("colours")),
  };
  const epochSlider = slider("epoch", epochs.length - 1, epochs.indexOf(state.epoch), (i) => epochs[i], (i) => store.set({ epoch: epochs[i] }));
  const play = player(() => epochs.length, () => epochs.indexOf(state.epoch), (i) => store.set({ epoch: epochs[i] }));
  const list = el("datalist", { id: newId() }, ...names.map((name) => el("option", { value: name })));
  const search = el("input", { type: "search", list: list.id, placeholder: "part of a name", input: () => search_() });
  const undo = button("undo", () => store.undo(), { title: "Ctrl+Z" });
  const resetView = button("reset view", () => maps.forEach(({ map }) => map.reset()), { disabled: true });
  const forget = button("", () => store.set({ marked: [] }), { hidden: true });
  const copy = button(ask ? "copy as Python" : "copy as link", () => copied());
  if (!ask) [controls.kind, controls.level].forEach((c) => { c.hidden = true; });
  controls.superclass.hidden = !superclasses.length;
  const bar = el("div", { class: "controls" },
    group("which relation", controls.exit, controls.kind, controls.level, controls.superclass),
    group("when", epochSlider, play),
    group("display", controls.order, controls.reference, controls.colours),
    group("find", labelled("find a class", search), list, forget, resetView, undo, copy));

  function copied() {
    const asked = Object.fromEntries(["kind", "level", "exit", "epoch", "order", "superclass", "reference", "selection"].map((k) => [k, state[k]]));
    const python = (v) => (v === null ? "None" : Array.isArray(v) ? `(${v.join(", ")})` : JSON.stringify(v));
    const line = `${Object.keys(asked).map((k) => `explorer.${k}`).join(", ")} = ${Object.values(asked).map(python).join(", ")}`;
    const text = ask ? line : links.address(state);
    const told = (said) => { copy.textContent = said; setTimeout(() => { copy.textContent = ask ? "copy as Python" : "copy as link"; }, 1500); };
    (navigator.clipboard?.writeText(text) ?? Promise.reject()).then(() => told("copied"), () => { note(text); told("shown below"); });
  }

  // --- drawing ------------------------------------------------------------------------------------------------------

  let searched = []; // classes that match the search
  const maps = runs.map((run) => {
    const text = el("figcaption", { role: "status" });
    const map = matrixView({
      pick: (i, j) => pick(run, i, j),
      move: (i, j) => step(run, i, j),
      clear: () => store.set({ selection: null, images: null }),
      zoomed: (is) => { disable(resetView, !is); },
      images: facesOf_ ? (at, faces) => showFaces(run, at, faces) : null,
    });
    return { run, text, map, node: el("figure", {}, text, map.node), cells: null };
  });
  const message = el("p", { class: "message", role: "status" });
  const note = (text) => { message.textContent = text; };
  const first = choice("first class", [], null, (c) => select(c, second.list.value === "null" ? null : JSON.parse(second.list.value)));
  const second = choice("second class", [], null, (d) => select(JSON.parse(first.list.value), d));
  for (const control of [first, second]) control.fill([[null, "none"], ...names.map((name, c) => [c, name, whole[c] === name ? null : whole[c]])]);
  const pairText = el("p", { class: "finding", role: "status" });
  const curve = lineChart({ label: "relation of the pair over the epochs", height: 240,
    say: (line, i) => [line.name, `epoch ${line.x[i]}: ${score(line.y[i], 3)}`], pick: (line, i) => store.set({ epoch: nearest(epochs, line.x[i]) }) });
  const table = scrolling("scores of the pair");
  const imagesOfPair = el("div", { class: "pair-images" });
  const tops = el("div", { class: "tops" });
  const topChoice = choice("pairs", topOptions(), "related", () => drawTops());
  const pair = el("div", { class: "pair" }, el("h4", {}, "The pair"), el("div", { class: "controls" }, first, second), pairText, curve.node, table, imagesOfPair);
  const side = el("div", { class: "side" }, pair, el("div", {}, el("h4", {}, "Notable pairs"), topChoice, tops));
  const all = el("div", { class: many ? "grid" : "" }, ...maps.map(({ node }) => node));
  box.append(bar, message, el("div", { class: many ? "below" : "beside" }, all, side), ...paragraph(data.text));

  function topOptions() {
    return [["related", "most related"], ["surprising", "more than both classes' popularity explains"], ["changed", `most changed since epoch ${epochs[0]}`],
      ["exits", "most different from the deepest exit"], ...(many ? [["runs", `most different from ${runs[1].name}`]] : [])];
  }

  function caption(entry) {
    const { run, text, cells } = entry;
    const to = reference(run);
    const where = `${many ? `${run.name}: ` : ""}${exitsOf(run)[exitOf(run)]}, epoch ${epochOf(run)}`;
    const minus = to ? ` minus ${many && to[0] !== run ? `${to[0].name}: ` : ""}${exitsOf(to[0])[to[2]]}, epoch ${to[1]}` : "";
    const scope = [...(state.superclass ? [state.superclass] : []), ...(cells.level === "image" ? [`${cells.rows.length} of ${state.marked.length || labels.length} ${state.marked.length ? "marked" : "probe"} images`] : [])];
    const { within, between } = groupMeans(cells.values, cells.classes), form = to ? signed : score;
    const said = [[within, "within a class"], [between, "between classes"]].filter(([v]) => !Number.isNaN(v)).map(([v, w]) => `${form(v)} ${w}`);
    const kind = kindsOf([run, ...(to ? [to[0]] : [])], " minus ");
    text.replaceChildren(el("b", {}, said.length ? `${kind} ${said.join(", ")}` : "No pair has a relation here"), el("br"), where + minus + (scope.length ? `; ${scope.join(", ")}` : ""));
  }

  function drawMap(entry) {
    const { run, map, cells } = entry, size = cells.rows.length, isDifference = reference(run) !== null;
    const place = new Map(cells.rows.map((row, i) => [row, i]));
    const chosen = cells.level === "class" ? state.selection : state.images;
    const frame = chosen && chosen.every((row) => place.has(row)) ? chosen.map((row) => place.get(row)) : null;
    const [low, high] = colourRange(cells.values, size, state.colours === "fitted", isDifference);
    const parted = cells.level === "image" ? spans(cells.classes) : state.order.startsWith("superclass") ? spans(cells.groups) : null;
    const naming = cells.level === "image" ? (g) => names[g] : (g) => superclasses[g] ?? "";
    const marked = cells.level === "class" ? new Set(state.marked.map((p) => labels[p])) : new Set();
    const form = isDifference ? (v) => `difference of ${kindsOf([run, reference(run)[0]], " and ")} ${signed(v, 3)}` : (v) => `${data.kind_names[kindOf(run)]} ${score(v, 3)}`;
    map.draw({
      n: size, values: cells.values, low, high, scale: isDifference ? "diverging" : "scale",
      names: (i) => nameOf(cells, i),
      groups: parted && superclasses.length + (cells.level === "image") > 0 && parted.length <= 60 && (parted.length > 1 || cells.level === "image") ? parted.map((s) => ({ name: naming(s.group), from: s.from, to: s.to })) : null,
      lines: parted ? parted.slice(1).map((s) => s.from) : [],
      cell: (i, j) => ({ title: `${wholeOf(cells, i)} with ${wholeOf(cells, j)}`, value: form(cells.values[i * size + j]) }),
      frame, rows: cells.level === "class" ? searched.flatMap((c) => (place.has(c) ? [place.get(c)] : [])) : [],
      rings: cells.rows.flatMap((row, i) => (marked.has(row) ? [i] : [])),
      axes: cells.level === "class" ? ["class of the first image", "class of the second image"] : ["first image", "second image"],
      label: `${entry.text.textContent}. Arrow keys move the selected cell${frame ? `, ${nameOf(cells, frame[0])} with ${nameOf(cells, frame[1])}` : ""}.`,
    });
  }

  function draw() {
    lineUp();
    if (ask) complete();
    for (const entry of maps) {
      const hidden = state.level === "image" ? entry !== maps[0] : reference(entry.run)?.[0] === entry.run && String(state.reference).startsWith("run ") || (state.reference === OTHER && entry !== maps[0]);
      entry.node.hidden = hidden;
      if (hidden) continue;
      const cells = state.level === "image" ? imageCells() : classCells(entry.run);
      entry.node.classList.toggle("stale", !cells); // the old picture stays, pale, until the new one is ready
      if (!cells) continue;
      entry.cells = cells;
      caption(entry);
      drawMap(entry);
    }
    drawPair();
    clearTimeout(listing);
    listing = setTimeout(drawTops, 0); // after the picture, which is more urgent
  }
  let listing = null;

  /** Set the controls to the state. */
  function lineUp() {
    controls.exit.fill(exitOptions());
    for (const [name, control] of Object.entries(controls)) control.set(state[name]);
    epochSlider.set(epochs.indexOf(nearest(epochs, state.epoch)));
    disable(undo, !store.undoable);
    forget.hidden = !state.marked.length;
    forget.textContent = `clear ${state.marked.length} marks`;
    first.set(state.selection?.[0] ?? null);
    second.set(state.selection?.[1] ?? null);
  }

  let relating = "", relatingImages = ""; // scores that are being requested

  /** Request scores from Python that are shown and have not been received: those of classes are shown beside images, too. */
  function complete() {
    const wanted = missing();
    if (wanted.join() !== relating) {
      relating = wanted.join();
      if (relating) wait("relating classes", question("classes", { wanted }), keep, () => { relating = ""; });
      else question.forget();
    }
    const some = state.level === "image" ? base() : [];
    if (state.level === "image" && !some.length) note(`No ${state.marked.length ? "marked" : "probe"} image is of ${state.superclass}.`);
    const keys = some.length ? wantedOfImages().map((of) => imageKey(...of, some)).filter((key) => !related.has(key)).join() : "";
    if (keys === relatingImages) return;
    relatingImages = keys;
    if (keys) wait(`relating ${some.length.toLocaleString("en")} images`, relate(some), () => {}, () => { relatingImages = ""; });
    else questionOfImages.forget();
  }

  /** Store an answer and draw. After an error show its message and undo the choice. */
  function wait(what, promise, take, failed = () => {}) {
    busy(box, what, promise).then((answer) => {
      if (answer === undefined) return;
      take(answer);
      note("");
      draw();
    }, (error) => {
      failed();
      store.undo();
      note(error.message);
    });
  }

  // --- the pair -----------------------------------------------------------------------------------------------------------

  function select(c, d) {
    if (c === null || d === null) return;
    const seen = inScope(c) && inScope(d); // a pair that is not in the chosen superclass is shown among all classes
    store.set({ selection: [c, d], images: null, ...(seen ? {} : { superclass: null }) });
  }

  function pick(run, i, j) {
    const { cells } = maps[run.place];
    const chosen = [cells.rows[i], cells.rows[j]];
    if (cells.level === "class") store.set({ selection: chosen, images: same(chosen, state.selection) ? state.images : null });
    else if (i !== j) store.set({ images: chosen, selection: [cells.classes[i], cells.classes[j]] });
    if (ask && same(chosen, state.selection)) opened();
  }

  function step(run, di, dj) {
    const { cells } = maps[run.place], last = cells.rows.length - 1;
    const now = (cells.level === "class" ? state.selection : state.images) ?? [cells.rows[0], cells.rows[0]];
    const [i, j] = now.map((row) => Math.max(0, cells.rows.indexOf(row)));
    const clip = (v) => Math.min(last, Math.max(0, v));
    if (cells.level === "class") store.set({ selection: [cells.rows[clip(i + di)], cells.rows[clip(j + dj)]], images: null });
    else {
      const next = [clip(i + di), clip(j + dj)], past = [clip(next[0] + di), clip(next[1] + dj)];
      pick(run, ...(next[0] === next[1] ? past : next)); // an image with itself is no pair
    }
  }

  const dashes = ["solid", "dot", "dash", "dashdot"];

  /** Known scores of classes c and d of a run at an exit: {x: epochs, y: scores}. */
  function history(run, exit, c, d) {
    const here = run.all.filter((epoch) => run.known.has(`${kindOf(run)}/${epoch}`));
    return { x: here, y: here.map((epoch) => scoreOf(run, epoch, exit, c, d)) };
  }

  function drawPair() {
    const chosen = state.selection;
    curve.node.hidden = table.hidden = imagesOfPair.hidden = !chosen;
    if (!chosen) { pairText.textContent = "Click a cell, or choose two classes."; return; }
    const [c, d] = chosen, kind = kindsOf(runs, " and ");
    const now = runs.map((run) => scoreOf(run, epochOf(run), exitOf(run), c, d)).filter((v) => v !== undefined);
    pairText.replaceChildren(el("b", { title: whole[c] !== names[c] || whole[d] !== names[d] ? `${whole[c]} with ${whole[d]}` : null }, `${names[c]} with ${names[d]}`),
      now.length ? `: ${kind} ${now.map((v) => score(v, 3)).join(" and ")}` : "");
    curve.draw({
      lines: runs.flatMap((run, r) => exitsOf(run).map((name, k) => ({
        name: many ? `${run.name}, ${name}` : name, ...history(run, k, c, d), points: true,
        color: THEME.palette[k % THEME.palette.length], dash: dashes[r % dashes.length],
      }))),
      x: { title: "epoch", low: 0, high: 1.03 * Math.max(1, ...epochs) }, y: { title: kind, low: 0, high: 1 }, verticals: [{ at: state.epoch }],
    });
    curve.node.classList.toggle("stale", !now.length);
    tabulate(c, d);
    if (ask) showImages();
  }

  /** Table of the pair at every exit at the current epoch, in both directions, because a trained relation may not be symmetric. */
  function tabulate(c, d) {
    const ways = c === d ? [[c, d]] : [[c, d], [d, c]];
    const said = (value) => (value === undefined ? "…" : score(value, 3));
    const rows = runs.flatMap((run) => exitsOf(run).map((name, k) => [many ? `${run.name}, ${name}` : name,
      ...ways.map(([i, j]) => said(scoreOf(run, epochOf(run), k, i, j)))]));
    table.replaceChildren(tableOf([`epoch ${epochOf(mine)}`, ...ways.map(([i, j]) => `${names[i]} → ${names[j]}`)], rows));
  }

  let openedPair = null, filledPair = null, wantsImages = false;

  /** Show the images of the pair, now and later, because the user has requested them. */
  function opened() {
    wantsImages = true;
    showImages();
  }

  function showImages() {
    if (!wantsImages && !state.images) {
      imagesOfPair.replaceChildren(button("show its images", opened));
      imagesOfPair.classList.remove("stale");
      return;
    }
    const key = JSON.stringify([state.selection, state.images, state.kind, state.exit, state.epoch]);
    imagesOfPair.classList.toggle("stale", key !== filledPair); // those of before stay, pale, until the new ones are there
    if (key === openedPair) return;
    openedPair = key;
    const shown = () => { filledPair = key; imagesOfPair.classList.remove("stale"); };
    busy(box, "loading images", questionOfPair("pair", { ...state })).then((answer) => {
      if (answer === undefined || key !== openedPair) return;
      fillImages(answer);
      shown();
    }, (error) => { openedPair = null; imagesOfPair.replaceChildren(el("p", { class: "note" }, error.message)); shown(); });
  }

  function fillImages({ images, missing: none, table: scored, ranked, note: noted }) {
    const figure = ({ png, title, caption: said, correct }) => el("figure", { class: correct ? "correct" : "wrong" },
      ...(png ? [picture(png, title, 128)] : []), el("figcaption", {}, el("b", {}, title), el("br"), said));
    const strip = (title, pairs) => (pairs.length ? [el("div", { class: "strip-title" }, title), el("div", { class: "strip" }, ...pairs.map(({ pair: chosen, score: s, pngs, titles }) =>
      button("", () => store.set({ images: chosen }), { class: "thumb-pair", title: titles.join(" with "), "aria-pressed": String(same(chosen, state.images)) })).map((node, i) => {
        const { pngs, titles, pair: chosen, score: s } = pairs[i];
        node.append(...(pngs ?? []).map((png, k) => picture(png, titles[k], 48)), el("span", {}, `#${chosen[0]}, #${chosen[1]}: ${score(s, 3)}`));
        return node;
      }))] : []);
    const pixels = el("div", { class: "pixels" });
    const buttons = images.length ? el("div", { class: "controls" },
      button("which pixels relate them?", () => busy(box, "computing the attribution", questionOfPair("pixels", { ...state })).then((answer) => answer && fillPixels(pixels, answer), (error) => pixels.replaceChildren(error.message))),
      button("all images of these classes", () => store.set({ level: "image", superclass: null, marked: Array.from(labels.keys()).filter((p) => state.selection.includes(labels[p])) }))) : "";
    refill(imagesOfPair, el("div", { class: "two" }, ...images.map(figure)), ...(none ? [el("p", { class: "note" }, none)] : []),
      ...(scored ? [scrolling("relation of the two images", tableOf(scored.head, scored.rows, scored.caption))] : []), ...(noted ? [el("p", { class: "note" }, noted)] : []),
      ...strip("most related", ranked.most), ...strip("least related", ranked.least), buttons, pixels);
  }

  function fillPixels(node, { rows, text }) {
    node.replaceChildren(...rows.map(({ title, pngs }) => el("figure", {}, el("figcaption", {}, title), el("div", { class: "two" }, ...pngs.map(([png, alt]) => picture(png, alt, 128))))),
      el("p", { class: "note" }, text));
  }

  // --- thumbnails on hover ------------------------------------------------------------------------------------------------

  const faces = new Map(); // PNG by position, requested once
  const positionOf = (cells, i) => (cells.level === "image" ? cells.rows[i] : Array.from(labels).indexOf(cells.rows[i]));
  let hovered = null;

  function showFaces(run, [i, j], node) {
    const { cells } = maps[run.place];
    const wanted = [positionOf(cells, i), positionOf(cells, j)].filter((p) => p >= 0);
    const fill = () => node.replaceChildren(...wanted.flatMap((p) => (faces.get(p) ? [picture(faces.get(p), names[labels[p]], 48)] : [])));
    const news = wanted.filter((p) => !faces.has(p));
    if (!news.length) return fill();
    clearTimeout(hovered);
    hovered = setTimeout(() => { // only if the mouse stays there
      facesOf_(news).then((pngs) => { news.forEach((p) => faces.set(p, pngs[p] ?? null)); fill(); }, () => {});
    }, 120);
  }

  // --- notable pairs -------------------------------------------------------------------------------------------------

  function topValues() {
    const what = JSON.parse(topChoice.list.value), own = scores(mine, epochOf(mine), exitOf(mine));
    if (!own) return null;
    if (what === "related") return [own, false];
    if (what === "surprising") return [surprise(own, n), false];
    const other = { changed: () => scores(mine, mine.all[0], exitOf(mine)), exits: () => scores(mine, epochOf(mine), exitsOf(mine).length - 1), runs: () => scores(runs[1], epochOf(runs[1]), exitOf(runs[1])) }[what]();
    return other ? [difference(own, other), true] : null;
  }

  function drawTops() {
    const found_ = topValues();
    if (!found_) { tops.replaceChildren(el("p", { class: "note" }, "The scores are not loaded yet.")); return; }
    const [values, bothWays] = found_;
    const what = JSON.parse(topChoice.list.value), form = what === "related" ? (v) => score(v, 3) : (v) => signed(v, 3);
    const scope = state.superclass === null ? values : within(values, n, names.map((_, c) => inScope(c)));
    refill(tops, el("ol", {}, ...topPairs(scope, n, 10, bothWays).map(({ row, column, value }) => el("li", {},
      button(`${names[row]} with ${names[column]}`, () => select(row, column), { "aria-pressed": String(same(state.selection, [row, column])) }), ` ${form(value)}`))));
  }

  // --- search and links ---------------------------------------------------------------------------------------------------

  function search_() {
    const text = search.value, hits = found(names, text).concat(found(whole, text)).filter((c, i, a) => a.indexOf(c) === i);
    searched = hits;
    if (!text.trim()) note("");
    else if (!hits.length) note(`No class has “${text.trim()}” in its name.`);
    else if (hits.length > 1) note(`${hits.length} classes: ${hits.slice(0, 12).map((c) => names[c]).join(", ")}${hits.length > 12 ? ", …" : ""}.`);
    else {
      const [c] = hits, matrix = scores(mine, epochOf(mine), exitOf(mine));
      const related = matrix ? names.map((_, d) => [d, matrix[c * n + d]]).filter(([d, s]) => d !== c && !Number.isNaN(s)).sort((a, b) => b[1] - a[1]) : [];
      const say = (some) => some.map(([d, s]) => `${names[d]} ${score(s)}`).join(", ");
      note(related.length ? `${names[c]}${many ? ` (${mine.name})` : ""}: most related to ${say(related.slice(0, 3))}; least to ${say(related.slice(-3).reverse())}.` : "");
      if (related.length) select(c, related[0][0]);
    }
    draw();
  }

  links.hear("marked", ({ key, positions }) => { if (key === data.key) store.adopt({ marked: positions }); }, host);
  store.on(draw);
  draw();
  return { maps, runs, curve, draw, say: note, shown: () => maps[0].map.shown };
};
