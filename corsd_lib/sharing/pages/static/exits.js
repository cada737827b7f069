// Exits: an early-exit curve with a movable threshold, the share that leaves at each exit, and images that leave there.

const SIGNS = { confidence: "confidence at least", entropy: "entropy at most", patience: "exits in agreement, at least" };

KINDS.exits = (box, host) => {
  const { data, store, ask } = host, { state } = store;
  const { exits, deepest_macs: deepest, exit_macs: costs } = data;
  const curves = new Map(); // by split and rule
  const key = () => `${state.split}/${state.rule}`;
  const keep = (packed) => {
    const columns = Object.fromEntries(["threshold", "accuracy", "accuracy_drop", "macs"].map((name) => [name, unpack(packed[name]).values]));
    curves.set(`${packed.split}/${packed.rule}`, { ...packed, ...columns, shares: unpack(packed.shares) });
  };
  data.curves.forEach(keep);
  const others = (data.others ?? []).map((other) => ({ ...other, macs: unpack(other.macs).values, accuracy: unpack(other.accuracy).values, threshold: unpack(other.threshold).values }));
  const question = ask && newestOf(ask), questionOfImages = ask && newestOf(ask);

  // --- controls -----------------------------------------------------------------------------------------------------------

  /** Show another curve at its cheapest threshold, which Python chooses if it is not known here. */
  function other(patch) {
    const c = curves.get(`${patch.split ?? state.split}/${patch.rule ?? state.rule}`), here = c && (patch.split ?? state.split) !== "test";
    store.set({ ...patch, threshold: here ? c.threshold[cheapestOf(c)] : null });
  }

  const rule = choice("rule", data.rules.map((r) => [r, r]), state.rule, (v) => other({ rule: v }));
  const split = choice("images", data.splits, state.split, (v) => other({ split: v }));
  split.hidden = !ask;
  rule.hidden = data.rules.length < 2;
  const say = (t) => { const c = curves.get(key()); return c ? (state.rule === "patience" ? String(c.threshold[t]) : c.threshold[t].toFixed(3)) : ""; };
  const slide = slider(SIGNS[state.rule], 1, 0, say, (t) => store.set({ threshold: curves.get(key()).threshold[t] }));
  const loss = el("input", { type: "number", min: 0, max: 100, step: 0.5, value: state.max_accuracy_drop, change: () => {
    store.set({ max_accuracy_drop: Math.min(100, Math.max(0, +loss.value || 0)) });
    loss.value = state.max_accuracy_drop; // also if the number was out of range and the state is the same
  } });
  const cheapest = button("cheapest threshold", () => choose(), { title: "with at most this accuracy drop, in percentage points" });
  const undo = button("undo", () => store.undo(), { title: "Ctrl+Z" });
  const finding = el("p", { class: "finding", role: "status" });
  const message = el("p", { class: "message", role: "status" });
  const curve = lineChart({ label: "accuracy over cost", height: 340, pick: (line, i) => { if (line.own) store.set({ threshold: curves.get(key()).threshold[i] }); },
    say: (line, i) => [line.name, `threshold ${line.threshold[i].toFixed(3)}`, `${line.y[i].toFixed(1)} % correct`, `${line.x[i].toFixed(0)} % of the MACs`] });
  const bars = barChart({ label: "fraction of the images that leave at each exit" });
  const table = scrolling("exits"), note = el("p", { class: "note" }), strips = el("div", { class: "strips" });
  box.append(el("div", { class: "controls" }, group("which images leave", rule, split, slide), group("choose", labelled("maximum accuracy drop (points)", loss), cheapest, undo)),
    message, finding, el("div", { class: "beside" }, curve.node, el("div", {}, el("h4", {}, "Images that leave at each exit"), bars.node, table)), note, strips);

  // --- drawing ------------------------------------------------------------------------------------------------------

  const cost = (macs) => (100 * macs) / deepest;

  /** Index of the threshold of the curve that is nearest to the chosen one. */
  const placeOf = (c) => c.threshold.reduce((best, t, i) => (Math.abs(t - state.threshold) < Math.abs(c.threshold[best] - state.threshold) ? i : best), 0);

  /** Index of the cheapest threshold that loses at most `loss` points, or of the most accurate one if there is none. */
  function cheapestOf(c) {
    const fits = Array.from(c.threshold.keys()).filter((t) => c.accuracy_drop[t] <= state.max_accuracy_drop + 1e-6);
    const of = fits.length ? fits : Array.from(c.threshold.keys()).filter((t) => c.accuracy_drop[t] === extent(c.accuracy_drop)[0]);
    return of.reduce((best, t) => (c.macs[t] < c.macs[best] ? t : best), of[0]);
  }

  /** Choose the cheapest threshold: `store.set` as a choice of the user, `store.follow` as a consequence of another choice. */
  function choose(apply = store.set) {
    const c = curves.get(key());
    if (!ask || (c && state.split !== "test")) return apply({ threshold: c.threshold[cheapestOf(c)] });
    busy(box, "choosing", question("choose", { ...state })).then((answer) => { if (answer !== undefined) apply(answer); }, said);
  }

  const said = (error) => { message.textContent = error.message; };
  let timer = null; // of the request for images

  function draw() {
    clearTimeout(timer);
    questionOfImages?.forget(); // an answer for an earlier state
    rule.set(state.rule);
    split.set(state.split);
    loss.value = state.max_accuracy_drop;
    disable(undo, !store.undoable);
    const c = curves.get(key()), here = c && state.threshold !== null ? Math.abs(c.threshold[placeOf(c)] - state.threshold) < 1e-5 : c;
    box.classList.toggle("stale", !here);
    if (!c || (ask && !here)) {
      busy(box, "evaluating the network", question("curve", { ...state })).then((answer) => {
        if (answer === undefined) return;
        keep(answer);
        message.textContent = "";
        draw();
      }, (error) => { store.undo(); said(error); });
      return;
    }
    if (state.threshold === null) { choose(store.follow); return; }
    const t = placeOf(c);
    slide.size(c.threshold.length - 1);
    slide.querySelector("label").textContent = SIGNS[state.rule];
    slide.set(t);
    tell(c, t);
    const line = { name: data.name, own: true, x: Array.from(c.macs, cost), y: c.accuracy, threshold: c.threshold, color: THEME.palette[0], points: true };
    const beside = others.filter((o) => o.rule === state.rule && o.split === state.split).map((o, i) => ({
      name: o.name, x: Array.from(o.macs, (m) => (100 * m) / o.deepest_macs), y: o.accuracy, threshold: o.threshold, color: THEME.palette[(i + 2) % 6], dash: "dash", points: false }));
    const best = c.accuracy[t] + c.accuracy_drop[t];
    curve.draw({ lines: [line, ...beside], x: { title: "mean MACs per image (% of the plain network)" }, y: { title: "images correct (%)" },
      horizontals: [{ at: best, text: "deepest exit" }], marks: [{ x: cost(c.macs[t]), y: c.accuracy[t], color: THEME.palette[1], text: `threshold ${say(t)}` }] });
    const share = Array.from(c.shares.at(t));
    const colours = exits.map((_, k) => THEME.palette[k % THEME.palette.length]);
    bars.draw(exits.map((name, k) => ({ name, share: share[k], text: percent(share[k]), color: colours[k] })));
    table.replaceChildren(tableOf(["", "MACs per image", "share"], exits.map((name, k) => [name, count(costs[k]), percent(share[k], 1)])));
    note.textContent = `Measured on ${c.images}. ${c.caution ?? ""} MACs: multiply-accumulates per image, including the exits before the one taken; 100 % is the plain network without shallow exits.`;
    if (ask) showImages();
  }

  function tell(c, t) {
    const saved = 100 - cost(c.macs[t]), lost = c.accuracy_drop[t];
    const against = Math.abs(lost) < 0.005 ? "as the deepest exit" : `${Math.abs(lost).toFixed(1)} points ${lost > 0 ? "below" : "above"} the deepest exit`;
    finding.replaceChildren(el("b", {}, `${c.accuracy[t].toFixed(1)} % correct`), `, ${against}, for ${count(c.macs[t])} MACs per image: ` +
      `${Math.abs(saved).toFixed(0)} % ${saved >= 0 ? "fewer" : "more"} than the plain network`);
  }

  const imagesKey = () => JSON.stringify([state.rule, state.split, state.threshold]);
  let filled = null; // key of the images that are shown

  /** Show images that leave at each exit, the most confident first, once the threshold is no longer moved; until then those of before, pale. */
  function showImages() {
    const wanted = imagesKey();
    strips.classList.toggle("stale", wanted !== filled);
    if (wanted === filled) return;
    timer = setTimeout(() => busy(box, "loading images", questionOfImages("images", { ...state })).then((answer) => {
      if (!answer) return;
      filled = wanted;
      strips.classList.remove("stale");
      fill(answer);
    }, said), 150);
  }

  function fill({ exits: rows, missing }) {
    const thumb = ({ png, lines, correct }) => {
      const node = el("div", { class: `thumb ${correct ? "correct" : "wrong"}`, title: lines.join(", ") });
      node.append(...(png ? [picture(png, lines.join(", "), 64)] : []), ...lines.map((line) => el("div", {}, line)));
      return node;
    };
    strips.replaceChildren(...(missing ? [el("p", { class: "note" }, missing)] : []),
      ...rows.map(({ name, count: all, correct, classes, images }) => {
        const some = images.length && images.length < all ? `; ${images.length} of them, from the most to the least confident` : "";
        const title = `Leaving at ${name}: ${all.toLocaleString("en")} images${all ? `, ${correct.toFixed(1)} % correct` : ""}${some}`;
        return el("div", {}, el("h4", {}, title), images.length ? el("div", { class: "strip" }, ...images.map(thumb)) : el("p", { class: "note" }, classes));
      }));
  }

  store.on(draw);
  draw();
  return { curve, bars, curves, draw, say: (text) => { message.textContent = text; } };
};
