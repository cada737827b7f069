// Attributions: the pixels that a decision of an exit, or the relation of two images, depends on. Only Python can compute them.

KINDS.attribution = (box, host) => {
  const { data, store, ask } = host, { state } = store;
  const { names } = data, labels = Array.from(unpack(data.labels).values), predictions = unpack(data.predictions);
  const question = newestOf(ask), questionOfCheck = newestOf(ask);
  const ofClass = (c) => labels.flatMap((label, i) => (label === c ? [i] : []));
  const classes = names.map((name, c) => [c, `${name} (${ofClass(c).length})`]).filter(([c]) => ofClass(c).length);

  // --- controls -----------------------------------------------------------------------------------------------------------

  /** Controls for the image `name` of the state: a list of classes, and the number of the image within its class. */
  function chooser(name, text, optional) {
    const list = choice(text, [], null, (c) => { if (typeof c !== "string") store.set({ [name]: c === null ? null : ofClass(c)[0] }); });
    const number = el("input", { type: "number", min: 1, change: () => {
      const all = ofClass(labels[state[name]]);
      store.set({ [name]: all[Math.min(all.length, Math.max(1, Math.round(+number.value) || 1)) - 1] });
      show(); // also if the number was out of range and the image is the same
    } });
    const show = () => {
      const value = state[name], known = Number.isInteger(value);
      list.fill([...(optional ? [[null, "none"]] : []), ...(typeof value === "string" ? [[value, value]] : []), ...classes]);
      list.set(known ? labels[value] : value);
      numbered.hidden = !known;
      if (!known) return;
      number.max = ofClass(labels[value]).length;
      number.value = ofClass(labels[value]).indexOf(value) + 1;
    };
    const numbered = labelled(`number of the ${text}`, number);
    return { nodes: [list, numbered], show };
  }
  const image = chooser("image", "image", false), partner = chooser("partner", "partner", true);
  const draw_ = (some) => {
    const others = some.filter((i) => i !== state.image);
    if (others.length) store.set({ image: others[Math.floor(Math.random() * others.length)] });
    else message.textContent = `Exit ${state.exit} is correct on all other probe images.`;
  };
  const random = button("a random image", () => draw_(Array.from(labels.keys())));
  const wrong = button("a misclassified image", () => draw_(labels.flatMap((label, i) => (predictions.at(state.exit - 1)[i] !== label ? [i] : []))));
  const set = (name) => (value) => store.set({ [name]: value });
  const controls = {
    exit: choice("exit", data.exits.map((name, k) => [k + 1, name]), state.exit, set("exit")),
    target: choice("explain", [...data.targets.map((t) => [t, t]), ...names.map((name, c) => [c, name, data.whole_names[c]])], state.target, set("target")),
    method: choice("method", data.methods, state.method, set("method")),
    baseline: choice("baseline", data.baselines, state.baseline, set("baseline")),
    steps: choice("steps", data.steps.map((s) => [s, String(s)]), state.steps, set("steps")),
  };
  const undo = button("undo", () => store.undo(), { title: "Ctrl+Z" });
  box.append(el("div", { class: "controls" }, group("image", ...image.nodes, random, wrong), group("partner", ...partner.nodes), group("what is explained", controls.exit, controls.target),
    group("how", controls.method, controls.baseline, controls.steps), undo));

  // --- drawing ------------------------------------------------------------------------------------------------------

  const message = el("p", { class: "message", role: "status" });
  const finding = el("p", { class: "finding", role: "status" }), note = el("p", { class: "note" }), more = el("div", {});
  const pictures = el("div", { class: "attributions" }), table = scrolling("predictions of every exit");
  const weights = button("check: random weights", () => test("weights", "randomising the weights", showWeights));
  const deletion = button("check: delete pixels", () => test("deletion", "deleting pixels", showDeletion));
  const checks = el("div", { class: "controls" }, weights, deletion), result = el("div", { class: "check" });
  const single = el("p", { class: "note", hidden: true }, "These checks are for one image at an exit, not for a pair: remove the partner.");
  const shown = el("div", { class: "beside" }, pictures, el("div", {}, table, el("h4", {}, "Does the map depend on the network?"), checks, single, result));
  box.append(message, finding, note, more, shown);
  const curve = lineChart({ label: "probability as pixels are deleted", height: 240, say: (line, i) => [line.name, `${line.x[i].toFixed(0)} % deleted: ${line.y[i].toFixed(1)} %`] });

  let asked = null;

  function draw() {
    image.show();
    partner.show();
    for (const [name, control] of Object.entries(controls)) control.set(state[name]);
    disable(controls.target.list, state.partner !== null);
    [controls.baseline, controls.steps].forEach(({ list }) => disable(list, state.method === "grad_cam"));
    disable(undo, !store.undoable);
    const key = JSON.stringify(state);
    if (key === asked) return;
    asked = key;
    result.replaceChildren();
    questionOfCheck.forget();
    outdated(true);
    busy(box, "attributing", question("map", { ...state })).then((answer) => {
      if (answer === undefined) return;
      asked = JSON.stringify(state); // Python may have increased the number of steps
      fill(answer);
    }, (error) => {
      more.replaceChildren();
      shown.hidden = !pictures.hasChildNodes(); // a map of before stays, pale: it is not what was chosen
      message.textContent = error.message;
    });
  }

  /** Draw the answer pale while a new one is computed. */
  const outdated = (is) => [finding, note, shown].forEach((node) => node.classList.toggle("stale", is));

  function fill({ finding: said, completeness: gap, complete, rows, table: facts, testable }) {
    shown.hidden = false;
    outdated(false);
    message.textContent = "";
    finding.replaceChildren(el("b", {}, `${said}.`));
    note.textContent = `${gap} Orange increases the score, blue decreases it${rows.length > 1 ? "; one scale for both maps" : ""}. The values of a complete map add up to the score minus the score of the baseline; the completeness gap is the difference.`;
    more.replaceChildren(...(complete === false && state.steps < data.steps.at(-1) ? [button("take more steps", () => store.set({ steps: data.steps.find((s) => s > state.steps) }))] : []));
    pictures.replaceChildren(...rows.map(({ title, pngs }) => el("figure", {}, el("figcaption", {}, el("b", {}, title)),
      el("div", { class: "two" }, ...pngs.map(([png, what]) => el("figure", {}, picture(png, `${what} of ${title}`, 176), el("figcaption", {}, what)))))));
    table.replaceChildren(tableOf(facts.head, facts.rows, "Predictions of every exit"));
    [weights, deletion].forEach((test) => disable(test, !testable));
    single.hidden = testable;
  }

  function test(what, words, show) {
    busy(box, words, questionOfCheck(what, {})).then((answer) => answer && show(answer), (error) => result.replaceChildren(el("p", {}, error.message)));
  }

  function showWeights({ sentence, signed: with_, strength }) {
    const line = (name, values) => [name, ...values.map((v) => score(v))];
    const head = ["rank correlation with the map of", ...with_.map((_, i) => `draw ${i + 1}`)];
    result.replaceChildren(el("p", { role: "status" }, sentence), ...(with_.length ? [scrolling("correlations", tableOf(head, [line("signed", with_), line("strength", strength)]))] : []));
  }

  function showDeletion({ sentence, of, x, lines }) {
    const at = unpack(x).values, looks = [{ color: THEME.palette[1] }, { color: THEME.grey, dash: "dot" }];
    result.replaceChildren(el("p", { role: "status" }, sentence), curve.node);
    curve.draw({ lines: lines.map(({ name, y }, i) => ({ name, x: at, y: unpack(y).values, ...looks[i] })), x: { title: "pixels deleted (%)", low: 0, high: 100 }, y: { title: of, low: 0 } });
  }

  store.on(draw);
  draw();
  return { curve, draw, say: (text) => { message.textContent = text; } };
};
