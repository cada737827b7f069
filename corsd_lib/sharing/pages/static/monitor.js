// A training as it goes: accuracy of every exit, terms of the loss, and a relation as it forms; a button that stops it.

KINDS.monitor = (box, host) => {
  const { store, ask } = host, { state } = store;
  let feed = host.feed((news) => { feed = news; draw(); });

  const stop = button("■ stop", () => stopped(), { title: "finish the step, save the run, and stop" });
  const resume = button("▶ resume", () => busy(box, "resume", ask("resume", {})), { title: "resume the stopped training" });
  const exit = choice("relation of", [], null, (v) => store.set({ exit: v }));
  const parts = el("div", { class: "legend", role: "group", "aria-label": "terms of the loss" });
  const title = el("p", { class: "finding", role: "status" }), status = el("p", { class: "note", role: "status" });
  const accuracy = lineChart({ label: "accuracy of every exit", height: 280, say: (line, i) => [line.name, `epoch ${line.x[i]}: ${line.y[i].toFixed(1)} %`] });
  const loss = lineChart({ label: "terms of the loss", height: 280, legends: false, say: (line, i) => [line.name, `epoch ${line.x[i]}: ${line.y[i].toPrecision(3)}`] });
  const map = matrixView({ pick() {}, move() {}, clear() {} });
  map.limit(320);
  const caption = el("figcaption", {}), table = scrolling("exits");
  const figure = el("figure", {}, caption, map.node);
  const buttons = ask ? [group("training", stop, resume)] : [];
  const curves = el("h4", {});
  const all = el("div", { class: "beside" }, el("div", {}, curves, accuracy.node,
    el("h4", {}, "Terms of the loss, unweighted; total: their weighted sum"), parts, loss.node), el("div", {}, figure, table));
  box.append(el("div", { class: "controls" }, ...buttons, group("relation", exit)), title, status, all);

  /** Stop the training of the monitor, or interrupt the kernel that trains in a cell and hears nothing else. */
  function stopped() {
    disable(stop, true);
    if (!feed.kernel) return busy(box, "stop", ask("stop", {}));
    status.textContent = "Stopping: the current step is finished and the run is saved.";
    interrupt(feed.kernel).catch(() => { status.textContent = "The kernel cannot be interrupted from here: press ■ in the notebook, or Ctrl-C."; });
    return undefined;
  }

  const column = (name) => unpack(feed.columns[name]).values;

  function draw() {
    const there = feed.columns !== undefined;
    status.textContent = feed.status;
    disable(stop, !(feed.running || feed.kernel));
    disable(resume, !feed.resumable || feed.running);
    all.hidden = !there;
    exit.hidden = !there;
    title.replaceChildren(there ? el("b", {}, feed.title) : "No epoch yet.");
    if (!there) return;
    exit.fill(feed.exits.map((name, k) => [k + 1, name]));
    exit.set(state.exit);
    const x = column("epoch"), color = (k) => THEME.palette[k % THEME.palette.length];
    const dash = (k) => Object.keys(DASHES)[Math.floor(k / THEME.palette.length) % 4];
    const of = (prefix) => Object.keys(feed.columns).filter((name) => name.startsWith(prefix));
    const validated = of("val_top1.").length > 0;
    curves.textContent = `Images correct (%)${validated ? ", dotted: validation" : ""}`;
    accuracy.draw({ lines: [["train_top1.", "solid"], ["val_top1.", "dot"]].flatMap(([prefix, style]) => of(prefix).map((name, k) => (
      { name: `${feed.exit_names[k]}, ${prefix === "val_top1." ? "validation" : "train"}`, group: feed.exit_names[k], x, y: column(name), color: color(k), dash: style }))),
      x: { title: "epoch", low: 0 }, y: { title: "images correct (%)", low: 0, high: 100 } });
    const shown = feed.parts.map((name, k) => [name, k]).filter(([name]) => state.parts.includes(name));
    loss.draw({ lines: shown.map(([name, k]) => ({ name, x, y: column(`loss.${name}`), color: color(k), dash: dash(k) })), x: { title: "epoch", low: 0 }, y: { title: "value", log: true } });
    parts.hidden = feed.parts.length < 2;
    refill(parts, ...feed.parts.map((name, k) => {
      const node = button(` ${name}`, () => toggle(name), { "aria-pressed": String(state.parts.includes(name)), title: "show or hide" });
      node.prepend(lineSign(color(k), dash(k)));
      return node;
    }));
    drawRelation();
    const last = (prefix, k) => { const name = of(prefix)[k]; return name ? `${column(name).at(-1).toFixed(1)} %` : "–"; };
    table.replaceChildren(tableOf(["", "train", ...(validated ? ["validation"] : [])], feed.exit_names.map((name, k) => [name, last("train_top1.", k), ...(validated ? [last("val_top1.", k)] : [])]), "images correct"));
  }

  const toggle = (name) => store.set({ parts: feed.parts.filter((part) => (part === name ? !state.parts.includes(part) : state.parts.includes(part))) });

  function drawRelation() {
    const { shape: [, n], at } = unpack(feed.relations), scores = decoded(at(Math.min(state.exit, feed.exits.length) - 1), 254);
    const { within, between } = groupMeans(scores, Array.from({ length: n }, (_, c) => c));
    caption.replaceChildren(el("b", {}, `Relation after epoch ${feed.epoch}: ${score(within)} within a class, ${score(between)} between`));
    map.draw({ n, values: scores, low: 0, high: 1, scale: "scale", names: (i) => feed.names[i], axes: ["first image", "second image"], label: caption.textContent,
      cell: (i, j) => ({ title: `${feed.names[i]} with ${feed.names[j]}`, value: `relation ${score(scores[i * n + j], 3)}` }) });
  }

  store.on(draw);
  draw();
  return { accuracy, loss, map, draw };
};

/** Interrupt a kernel through the Jupyter server that this page is of, by its public interface. */
async function interrupt(kernel) {
  const config = JSON.parse(document.getElementById("jupyter-config-data").textContent);
  const token = document.cookie.match(/(?:^|; )_xsrf=([^;]+)/)?.[1];
  const headers = { ...(token ? { "X-XSRFToken": decodeURIComponent(token) } : {}), ...(config.token ? { Authorization: `token ${config.token}` } : {}) };
  const answer = await fetch(`${config.baseUrl}api/kernels/${kernel}/interrupt`, { method: "POST", credentials: "same-origin", headers });
  if (!answer.ok) throw new Error(answer.statusText);
}
