// Exits: an early-exit curve with its threshold to move, and who leaves where.

KINDS.exits = (data, box) => {
  const { exits, rule, deepest_macs: deepest } = data;
  const [threshold, accuracy, loss, macs] = ["threshold", "accuracy", "loss", "macs"].map((name) => unpack(data[name]).values);
  const shares = unpack(data.shares);
  const signs = { confidence: "leave when at least", entropy: "leave when at most", patience: "leave after agreeing exits:" };
  const units = { confidence: "confidence", entropy: "entropy (share of the largest)", patience: "exits in a row that agree" };
  let chosen = data.start;

  const say = (t) => (rule === "patience" ? String(threshold[t]) : threshold[t].toFixed(3));
  const slide = slider(`${units[rule]}, ${signs[rule]}`, threshold.length - 1, chosen, say, (t) => { chosen = t; draw(); });
  const finding = el("p", { class: "finding", role: "status" });
  const curve = el("div", { class: "plot exit-curve" }), bars = el("div", { class: "plot exit-shares" });
  const note = el("p", { class: "note" }, `Measured on ${data.images}. MACs: multiply-accumulates an image, those of exits passed in vain ` +
    `counted; 100 % is the plain network without shallow exits.`);
  box.append(el("div", { class: "controls" }, slide), finding, el("div", { class: "grid" }, curve, bars), note);

  const cost = (t) => (100 * macs[t]) / deepest;

  function draw() {
    const saved = 100 - cost(chosen), lost = loss[chosen];
    const against = Math.abs(lost) < 0.005 ? "as the deepest exit" : `${Math.abs(lost).toFixed(1)} points ${lost > 0 ? "below" : "above"} the deepest exit`;
    finding.replaceChildren(el("b", {}, `${accuracy[chosen].toFixed(1)} % right`), `, ${against}, for ${count(macs[chosen])} MACs an image: ` +
      `${Math.abs(saved).toFixed(0)} % ${saved >= 0 ? "fewer" : "more"} than the plain network`);
    const all = Array.from(macs, (_, t) => t);
    const names = all.map((t) => `threshold ${say(t)}`);
    const line = { type: "scatter", mode: "lines+markers", x: all.map(cost), y: accuracy, text: names, marker: { size: 5 },
      line: { color: THEME.palette[0], width: 2 }, hovertemplate: "%{text}<br>%{y:.1f} % right<br>%{x:.0f} % of the MACs<extra></extra>" };
    const mark = { type: "scatter", mode: "markers", x: [cost(chosen)], y: [accuracy[chosen]], hoverinfo: "skip",
      marker: { size: 14, color: THEME.palette[1], line: { color: ink(), width: 1 } } };
    const best = accuracy[chosen] + loss[chosen];
    plot(curve, [line, mark], {
      xaxis: { title: { text: "mean MACs an image (% of the plain network)" } }, yaxis: { title: { text: "images right (%)" } }, showlegend: false,
      shapes: [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: best, y1: best, line: { color: THEME.grey, width: 1, dash: "dot" } }],
      annotations: [{ xref: "paper", x: 0, y: best, text: "deepest exit", showarrow: false, xanchor: "left", yanchor: "bottom", font: { size: 11 } }],
    });
    const share = Array.from(shares.at(chosen), (s) => 100 * s);
    plot(bars, [{ type: "bar", x: exits, y: share, marker: { color: exits.map((_, k) => THEME.palette[k % THEME.palette.length]) },
      text: share.map((s) => `${s.toFixed(0)} %`), textposition: "outside", cliponaxis: false,
      customdata: data.exit_macs.map(count), hovertemplate: "%{x}<br>%{y:.1f} % of the images leave here<br>at %{customdata} MACs each<extra></extra>" }],
      { xaxis: { title: { text: "" } }, yaxis: { title: { text: "images that leave here (%)" }, range: [0, 108] }, showlegend: false });
  }

  drawn(draw);
  curve.on("plotly_click", ({ points }) => { if (points[0].curveNumber === 0) slide.set(points[0].pointIndex); });
};
