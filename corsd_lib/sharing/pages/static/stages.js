// Stages: the probe images at every exit, side by side. A selection applies to all exits.

KINDS.stages = (box, host) => {
  const { data, store, ask, faces, links } = host, { state } = store;
  const { names, superclasses, exits, epochs } = data;
  const whole = wholes(names, data.whole_names), wholeSuperclasses = wholes(superclasses, data.whole_superclasses);
  const labels = unpack(data.labels).values, images = labels.length;
  const predictions = unpack(data.predictions), firstCorrect = unpack(data.first_correct);
  const fits = new Map(); // embeddings by method
  const keep = (fit) => fits.set(fit.method, { ...fit, at: unpack(fit.coordinates).at });
  data.fits.forEach(keep);
  const e = () => Math.max(0, epochs.indexOf(state.epoch));
  const correct = (k, i) => predictions.at(e(), k)[i] === labels[i];
  const positions = (kept) => Array.from({ length: images }, (_, i) => i).filter(kept);
  const question = ask && newestOf(ask), questionOfImage = ask && newestOf(ask), questionOfMarks = faces && newestOf(faces);

  // --- groups of images, by colouring ----------------------------------------------------------------------

  const MOST = 2 * THEME.palette.length; // more would not be distinct in colour and symbol
  const look = (g) => ({ color: THEME.palette[g % THEME.palette.length], symbol: Math.floor(g / THEME.palette.length) });
  const grey = { color: THEME.grey, symbol: 0, small: true };

  /** Names of the groups, their look, and a function that returns the group of image i at exit k. */
  function grouping() {
    const of = { class: (k, i) => labels[i], superclass: (k, i) => data.superclass_of_class[labels[i]], correct: (k, i) => +correct(k, i), first_correct: (k, i) => firstCorrect.at(e())[i] }[state.colour];
    if (state.colour === "correct") return { names: ["wrong at that exit", "correct at that exit"], of, look: (g) => (g ? look(0) : { color: THEME.palette[1], symbol: 4 }), shown: [0, 1] };
    if (state.colour === "first_correct") return { names: ["correct at no exit", ...exits.map((name) => `first correct at ${name}`)], of, look: (g) => (g ? look(g - 1) : grey), shown: [0, ...exits.map((_, k) => k + 1)] };
    const all = state.colour === "class" ? names : superclasses;
    const shown = state.highlight.map((name) => all.indexOf(name)).filter((g) => g >= 0), place = new Map(shown.map((g, i) => [g, i]));
    return { names: all, of, look: (g) => (place.has(g) ? look(place.get(g)) : grey), shown, place };
  }
  const texts = { class: "class", superclass: "superclass", correct: "correct or wrong at that exit", first_correct: "first exit that is correct" };

  /** Groups that are in colour at first: all if there are few, else the tidiest, which Python has chosen. */
  const opening = (name) => (name === "class" ? data.tidiest.class : name === "superclass" ? data.tidiest.superclass : []);

  // --- controls -----------------------------------------------------------------------------------------------------------

  const colours = Object.keys(texts).filter((name) => name !== "superclass" || superclasses.length);
  const epochSlider = slider("epoch", epochs.length - 1, e(), (i) => epochs[i], (i) => store.set({ epoch: epochs[i] }));
  const play = player(() => epochs.length, e, (i) => store.set({ epoch: epochs[i] }), 900);
  const colour_ = choice("colour", colours.map((name) => [name, texts[name]]), state.colour, (v) => store.set({ colour: v, highlight: opening(v) }));
  const method = choice("projection", data.methods, state.method, (v) => store.set({ method: v }));
  method.hidden = data.methods.length < 2;
  const members = choice("select a class", [[null, "none"], ...names.map((name, c) => [c, name, whole[c] === name ? null : whole[c]])], null,
    (c) => store.set({ selection: c === null ? [] : positions((i) => labels[i] === c) }));
  const more = choice("add a colour to", [[null, "…"]], null, (name) => name !== null && store.set({ highlight: [...state.highlight, name].slice(-MOST) }));
  const clear = button("clear selection", () => store.set({ selection: [] }));
  const undo = button("undo", () => store.undo(), { title: "Ctrl+Z" });
  const legend = el("div", { class: "legend", role: "group", "aria-label": "select a group" });
  const when = group("when", epochSlider, play);
  when.hidden = epochs.length < 2;
  const camera = cameraOf(() => maps.forEach(({ view }) => view.draw()));
  const bar = el("div", { class: "controls" }, group("groups in colour", colour_, more), group("picture tools", method, ...camera.tools), when, group("selection", members, clear, undo));

  // --- drawing ------------------------------------------------------------------------------------------------------

  const finding = el("p", { class: "finding", role: "status" });
  const message = el("p", { class: "message", role: "status" }, data.message ?? "");
  const maps = exits.map((_, k) => {
    const text = el("figcaption", {});
    const view = pointsView({ pick: (i) => store.set(ask ? { image: i } : { image: i, selection: [i] }), caught: (some) => store.set({ selection: some }), clear: () => store.set({ selection: [] }), hover: (i) => hover(k, i), over: (i) => maps.forEach((map) => map.view.light(i)), camera });
    return { node: el("figure", {}, view.node, text), text, view };
  });
  const summary = el("div", { class: "finding", role: "status" });
  const marked = el("div", { class: "strip" }), facts = el("div", {});
  const note = el("p", { class: "note" });
  box.append(bar, message, finding, legend, el("div", { class: "grid stage-grid" }, ...maps.map(({ node }) => node)), summary, marked, facts, note);

  function hover(k, i) {
    const prediction = predictions.at(e(), k)[i];
    const above = superclasses.length ? ` (${wholeSuperclasses[data.superclass_of_class[labels[i]]]})` : "";
    return [el("b", {}, `image ${i}: ${whole[labels[i]]}${above}`), el("br"), prediction === labels[i] ? "correct" : `predicted as ${whole[prediction]}`];
  }

  /** The same range at all exits, so that an image can be followed. */
  function range(fit) {
    const all = fit.at(e()), x = extent(all.filter((_, i) => i % 2 === 0)), y = extent(all.filter((_, i) => i % 2));
    return [[x[0], y[0]], [x[1], y[1]]];
  }

  let near = null; // neighbours of the image at every exit, from Python, with the key of image and epoch
  const nearKey = () => JSON.stringify([state.image, state.epoch]);

  function drawMaps(fit) {
    const how = grouping(), [low, high] = range(fit), chosen = state.selection.length ? new Set(state.selection) : null;
    maps.forEach(({ view, text }, k) => {
      const looks = Array.from({ length: images }, (_, i) => how.look(how.of(k, i)));
      const rings = !ask || state.image === null ? [] : [state.image, ...(near?.key === nearKey() ? near.of[k] : [])];
      view.draw({ at: fit.at(e(), k), low, high, look: (i) => looks[i], chosen, rings, label: `${exits[k]}, epoch ${state.epoch}: ${images} images as points` });
      const say = (name) => { const v = fit.quality[name][e()][k]; return v === null ? "–" : v.toFixed(2); };
      const hits = positions((i) => correct(k, i)).length / images;
      const tidier = fit.quality.knn_purity[e()][k] > fit.quality.embedding_purity[e()][k] + 0.01;
      text.replaceChildren(el("b", {}, exits[k]), `: ${percent(hits)} correct`, el("br"), `purity ${say("knn_purity")} in the picture, ${say("embedding_purity")} in the embedding${tidier ? ": the picture separates them more" : ""}`, el("br"), `trustworthiness ${say("trustworthiness")} of 1`);
    });
    const purity = fit.quality.embedding_purity[e()], last = purity.length - 1;
    const share = (v) => (v === null ? "–" : percent(v));
    finding.replaceChildren(el("b", {}, `${share(purity[0])} of the 10 nearest neighbours (in the embedding) have the same class at exit 1${last ? ` and ${share(purity[last])} at the deepest` : ""}`),
      el("br"), `Epoch ${state.epoch}, drawn by ${fit.title}`);
    note.textContent = `${fit.title}, one fit for all exits and epochs; axes have no unit. Draw around points to select them, click on one to read it, double-click or Escape to clear. Zoom is the same at all exits. ` +
      `Purity: share of a point's 10 nearest that are of its class${data.purity_limit === null ? "" : `; at most ${data.purity_limit.toFixed(2)} here`}. Trustworthiness: 1 at best, about 0.5 for positions at random.`;
  }

  function drawLegend() {
    const how = grouping(), k = state.colour === "correct" ? exits.length - 1 : 0; // if groups differ between exits, those at the deepest exit
    const entry = ({ color, symbol }, name, of) => {
      const sign = el("span", { "aria-hidden": true }, GLYPHS[symbol]), alone = of.length > 0 && same(of, state.selection);
      sign.style.color = color;
      const node = button("", () => store.set({ selection: alone ? [] : of }), { "aria-pressed": String(alone), title: alone ? "show all" : "show only these" });
      node.append(sign, ` ${name}`, el("span", { class: "count" }, ` ${of.length}`));
      return node;
    };
    const others = how.place ? positions((i) => !how.place.has(how.of(k, i))) : []; // what is grey has a name, too
    refill(legend, ...how.shown.map((g) => entry(how.look(g), how.names[g], positions((i) => how.of(k, i) === g))),
      ...(others.length ? [entry(grey, state.colour === "class" ? "other classes" : "others", others)] : []));
    more.hidden = !how.place || how.shown.length === how.names.length;
    more.fill([[null, "…"], ...how.names.filter((_, g) => how.place && !how.place.has(g)).map((name) => [name, name])]);
  }

  function summarise() {
    const chosen = state.selection;
    disable(clear, !chosen.length);
    if (!chosen.length) { summary.replaceChildren("No selection."); marked.replaceChildren(); return; }
    const counts = new Map();
    chosen.forEach((i) => counts.set(labels[i], (counts.get(labels[i]) ?? 0) + 1));
    const most = [...counts].sort((a, b) => b[1] - a[1]);
    const some = most.slice(0, 8).map(([c, m]) => `${names[c]} ${m}`).join(", ") + (most.length > 8 ? ` and ${most.length - 8} more classes` : "");
    const prediction = (k) => names[predictions.at(e(), k)[chosen[0]]], single = chosen.length === 1;
    const exit = single ? (name, k) => `${name}: ${prediction(k)}` : (name, k) => `${name}: ${chosen.filter((i) => correct(k, i)).length}`;
    summary.replaceChildren(el("b", {}, single ? `image ${chosen[0]}: ${names[labels[chosen[0]]]}` : `${chosen.length} images: ${some}`), el("br"), `${single ? "predicted as" : "correct at"} ${exits.map(exit).join(", ")}`);
  }

  const deepest = exits.length - 1;

  function thumb(i, png) {
    const ok = correct(deepest, i), text = [names[labels[i]], ok ? "✓" : `✗ ${names[predictions.at(e(), deepest)[i]]}`];
    const node = el("div", { class: `thumb ${ok ? "correct" : "wrong"}`, title: text.join(", ") });
    node.append(...(png ? [picture(png, text.join(", "), 64)] : []), ...text.map((line) => el("div", {}, line)));
    return node;
  }

  let timer = null, markedKey = null, shownKey = null, factsKey = null; // keys of what is requested and, of the thumbnails, of what is shown

  /** Show thumbnails of the selection and facts about the image, once the choice no longer changes. */
  function askImages() {
    clearTimeout(timer);
    marked.classList.toggle("stale", JSON.stringify([state.selection, state.epoch]) !== shownKey);
    facts.classList.toggle("stale", near !== null && near.key !== nearKey());
    timer = setTimeout(() => {
      const key = JSON.stringify([state.selection, state.epoch]);
      if (key !== markedKey) {
        markedKey = key;
        const show = (...nodes) => { marked.replaceChildren(...nodes); marked.classList.remove("stale"); shownKey = key; };
        if (!state.selection.length) show();
        else questionOfMarks(state.selection.slice(0, 24)).then((pngs) => pngs && key === markedKey && show(
          ...state.selection.slice(0, 24).filter((i) => pngs[i]).map((i) => thumb(i, pngs[i])), ...(state.selection.length > 24 && Object.keys(pngs).length ? [el("span", { class: "note" }, `24 of ${state.selection.length}`)] : [])), (error) => { show(); message.textContent = error.message; });
      }
      if (ask && nearKey() !== factsKey) {
        const mine = factsKey = nearKey();
        busy(box, "loading the image", questionOfImage("image", { ...state })).then((answer) => {
          if (answer === undefined || mine !== nearKey()) return;
          near = { key: mine, of: answer.rows.map(({ near: some }) => some) };
          facts.classList.remove("stale");
          tell(answer);
          drawMaps(fits.get(state.method));
        }, (error) => { factsKey = null; message.textContent = error.message; });
      }
    }, 120);
  }

  function tell({ title, png, missing, rows }) {
    const line = ({ exit, prediction, near: some, pngs }) => {
      const strip = el("div", { class: "strip" }, ...some.map((p) => {
        const node = el("div", { class: `thumb ${labels[p] === labels[state.image] ? "correct" : "wrong"}` }, ...(pngs[p] ? [picture(pngs[p], names[labels[p]], 48)] : []), el("div", {}, names[labels[p]]));
        return node;
      }));
      return [exit, prediction, `${some.filter((p) => labels[p] === labels[state.image]).length} of ${some.length}`, strip];
    };
    facts.replaceChildren(el("h4", {}, title), ...(png ? [picture(png, title, 96)] : []), ...(missing ? [el("p", { class: "note" }, missing)] : []),
      scrolling("nearest images", tableOf(["", "predicted as", "of its class", `nearest in the embedding (not in the picture), epoch ${state.epoch}`], rows.map(line))));
  }

  function draw() {
    colour_.set(state.colour);
    method.set(state.method);
    epochSlider.set(e());
    disable(undo, !store.undoable);
    const one = state.selection.length ? labels[state.selection[0]] : null;
    members.set(one !== null && same(state.selection, positions((i) => labels[i] === one)) ? one : null);
    const fit = fits.get(state.method);
    box.classList.toggle("stale", !fit);
    if (!fit) {
      busy(box, `${state.method.toUpperCase()}, some minutes the first time`, question("fit", { method: state.method })).then((answer) => {
        if (answer === undefined) return;
        keep(answer);
        message.textContent = "";
        draw();
      }, (error) => { store.undo(); message.textContent = error.message; });
      return;
    }
    question?.forget();
    drawMaps(fit);
    drawLegend();
    summarise();
    if (faces) askImages();
  }

  store.on((patch) => {
    if ("selection" in patch) links.tell("marked", { key: data.key, positions: state.selection }, host);
    draw();
  });
  camera.update();
  draw();
  return { maps, fits, draw, camera, say: (text) => { message.textContent = text; } };
};
