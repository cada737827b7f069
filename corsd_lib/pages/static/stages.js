// Stages: the probe images at every exit side by side; what is selected in one is selected in all.

KINDS.stages = (data, box) => {
  const { names, superclasses, exits, epochs, start } = data;
  const whole = wholes(names, data.whole_names), wholeSuperclasses = wholes(superclasses, data.whole_superclasses);
  const title = (name, full) => (full === undefined || full === name ? null : full); // what hover says of a short name
  const labels = unpack(data.labels).values, images = labels.length;
  const coordinates = unpack(data.coordinates), guesses = unpack(data.guesses), firstRight = unpack(data.first_right);
  const state = { epoch: epochs.indexOf(start.epoch), colour: start.colour, selection: start.selection };
  const right = (k, i) => guesses.at(state.epoch, k)[i] === labels[i];

  // --- groups of images by what they are coloured by ----------------------------------------------------------------------

  const GLYPHS = ["●", "◆", "■", "▲", "✕", "✚"];
  const looks = THEME.palette.length * THEME.symbols.length;
  const look = (g) => ({
    color: THEME.palette[g % THEME.palette.length],
    symbol: THEME.symbols[Math.floor(g / THEME.palette.length) % THEME.symbols.length],
  });
  const grey = { color: THEME.grey, symbol: "x" };

  /** Names of groups, their looks, and the group of image i at exit k. */
  const groupings = {
    class: () => ({ names, whole, look, of: (k, i) => labels[i] }),
    superclass: () => ({ names: superclasses, whole: wholeSuperclasses, look, of: (k, i) => data.superclass_of_class[labels[i]] }),
    right: () => ({ names: ["wrong at that exit", "right at that exit"], of: (k, i) => +right(k, i),
      look: (g) => (g ? look(0) : { color: THEME.palette[1], symbol: "x" }) }),
    first_right: () => ({ names: ["right at no exit", ...exits.map((name) => `first right at ${name}`)],
      of: (k, i) => firstRight.at(state.epoch)[i], look: (g) => (g ? look(g - 1) : grey) }),
  };
  const texts = { class: "class", superclass: "superclass", right: "right or wrong", first_right: "first exit that is right" };

  // --- controls -----------------------------------------------------------------------------------------------------------

  const colours = Object.keys(groupings).filter((name) => name !== "superclass" || superclasses.length);
  const epochSlider = slider("epoch", epochs.length - 1, state.epoch, (i) => epochs[i], (i) => { state.epoch = i; draw(); });
  const members = choice("select a class", [["", "none"], ...names.map((name, c) => [c, name, title(name, whole[c])])], "", (c) => {
    select(c === "" ? [] : positions((i) => labels[i] === +c));
  });
  const clear = el("button", { type: "button", click: () => { members.list.value = ""; select([]); } }, "select nothing");
  const legend = el("div", { class: "legend", role: "group", "aria-label": "select a group" });
  const parts = epochs.length > 1 ? [epochSlider, player(epochSlider)] : [];
  const colour = choice("colour", colours.map((name) => [name, texts[name]]), state.colour, (v) => { state.colour = v; draw(); });
  const controls = el("div", { class: "controls" }, colour, ...parts, members, clear);

  const positions = (kept) => Array.from({ length: images }, (_, i) => i).filter(kept);

  function select(selection) {
    state.selection = selection;
    draw(); // whole: plotly forgets selected points when the outline that was drawn around them goes
  }

  // --- what is drawn ------------------------------------------------------------------------------------------------------

  const maps = exits.map(() => ({ node: el("figure", {}), text: el("figcaption", {}), div: el("div", { class: "plot stage" }) }));
  maps.forEach(({ node, text, div }) => node.append(text, div));
  const summary = el("div", { class: "finding", role: "status" });
  box.append(controls, legend, el("div", { class: "grid" }, ...maps.map(({ node }) => node)), summary, el("p", { class: "note" },
    `${data.method}, one fit for all exits and epochs; axes have no unit. Draw around points to select them, click on one to read it, double-click to clear. ` +
    `Purity: share of a point's 10 nearest that are of its class, in the picture and (in brackets) in the embedding that it is a picture of` +
    `${data.purity_limit === null ? "" : `; at most ${data.purity_limit.toFixed(2)} here`}. Trust: trustworthiness, 1 at best, about 0.5 for positions at random; a neighbour that the embedding does not have costs the more the farther away it is there.`));

  /** The same range at all exits, so that an image can be followed. */
  function ranges() {
    const points = coordinates.at(state.epoch);
    return [0, 1].map((axis) => {
      let low = Infinity, high = -Infinity;
      for (let i = axis; i < points.length; i += 2) {
        low = Math.min(low, points[i]);
        high = Math.max(high, points[i]);
      }
      const edge = 0.05 * (high - low || 1);
      return [low - edge, high + edge];
    });
  }

  function hover(k) {
    return positions(() => true).map((i) => {
      const guess = guesses.at(state.epoch, k)[i];
      const found = guess === labels[i] ? "right" : `taken for ${wrapped(whole[guess])}`;
      const group = superclasses.length ? ` (${wrapped(wholeSuperclasses[data.superclass_of_class[labels[i]]])})` : "";
      return `image ${i}: ${wrapped(whole[labels[i]])}${group}<br>${found}`;
    });
  }

  function picture(k, div, range) {
    const grouping = groupings[state.colour](), at = coordinates.at(state.epoch, k);
    const points = Array.from({ length: images }, (_, i) => grouping.look(grouping.of(k, i)));
    const trace = {
      type: "scatter", mode: "markers", x: Float32Array.from(labels, (_, i) => at[2 * i]), y: Float32Array.from(labels, (_, i) => at[2 * i + 1]),
      marker: { size: 6, color: points.map((p) => p.color), symbol: points.map((p) => p.symbol), opacity: 0.75 },
      selected: { marker: { opacity: 1, size: 9 } }, unselected: { marker: { opacity: 0.12 } },
      selectedpoints: state.selection.length ? state.selection : null,
      text: hover(k), hovertemplate: "%{text}<extra></extra>",
    };
    const axis = { showticklabels: false, zeroline: false, ticks: "" };
    plot(div, [trace], {
      xaxis: { ...axis, range: range[0], constrain: "domain" }, yaxis: { ...axis, range: range[1], scaleanchor: "x", constrain: "domain" },
      dragmode: "lasso", clickmode: "event+select", showlegend: false, hovermode: "closest",
    });
  }

  function caption(k, text) {
    const say = (name) => { const v = data.quality[name][state.epoch][k]; return v === null ? "–" : v.toFixed(2); };
    const hits = positions((i) => right(k, i)).length / images;
    text.replaceChildren(el("b", {}, `${exits[k]}, epoch ${epochs[state.epoch]}`), el("br"),
      `${percent(hits)} right, purity ${say("knn_purity")} (${say("embedding_purity")}), trust ${say("trustworthiness")}`);
  }

  function drawLegend() {
    const grouping = groupings[state.colour]();
    legend.hidden = grouping.names.length > looks;
    if (legend.hidden) return;
    legend.replaceChildren(...grouping.names.map((name, g) => {
      const { color, symbol } = grouping.look(g);
      const sign = el("span", { "aria-hidden": true }, GLYPHS[THEME.symbols.indexOf(symbol)]);
      sign.style.color = color;
      const group = state.colour === "right" ? exits.length - 1 : 0; // of the deepest exit, where exits differ
      const said = { type: "button", title: title(name, grouping.whole?.[g]) };
      return el("button", { ...said, click: () => select(positions((i) => grouping.of(group, i) === g)) }, sign, ` ${name}`);
    }));
  }

  function summarise() {
    const chosen = state.selection;
    if (!chosen.length) return summary.replaceChildren("Nothing is selected.");
    const counts = new Map();
    chosen.forEach((i) => counts.set(labels[i], (counts.get(labels[i]) ?? 0) + 1));
    const most = [...counts].sort((a, b) => b[1] - a[1]);
    const some = most.slice(0, 8).map(([c, n]) => `${names[c]} ${n}`).join(", ") + (most.length > 8 ? ` and ${most.length - 8} more classes` : "");
    const guess = (k) => names[guesses.at(state.epoch, k)[chosen[0]]];
    const exit = chosen.length === 1
      ? (name, k) => `${name}: ${guess(k)}`
      : (name, k) => `${name}: ${chosen.filter((i) => right(k, i)).length}`;
    const what = chosen.length === 1 ? `image ${chosen[0]}: ${names[labels[chosen[0]]]}` : `${chosen.length} images: ${some}`;
    summary.replaceChildren(el("b", {}, what), el("br"), `${chosen.length === 1 ? "taken for" : "right at"} ${exits.map(exit).join(", ")}`);
  }

  let drawing = false; // plotly tells of a selection of nothing as the outline around the last one goes

  function draw() {
    const range = ranges();
    drawing = true;
    exits.forEach((_, k) => { caption(k, maps[k].text); picture(k, maps[k].div, range); });
    drawing = false;
    drawLegend();
    summarise();
  }

  drawn(draw);
  maps.forEach(({ div }) => {
    // Later: plotly still adds its outline after it has told.
    const told = (selection) => { if (!drawing) setTimeout(() => select(selection)); };
    div.on("plotly_selected", (event) => { if (event?.points) told(event.points.map((p) => p.pointIndex)); });
    div.on("plotly_deselect", () => told([]));
  });
};
