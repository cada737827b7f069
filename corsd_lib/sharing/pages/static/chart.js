// Line and bar charts as SVG: axes, a legend that isolates lines on click, and tooltips.

const DASHES = { solid: null, dot: "2 4", dash: "7 4", dashdot: "7 3 2 3" };

/** A linear mapping of [low, high] to [from, to]; with `log` logarithmic. */
function scaleOf(low, high, from, to, log = false) {
  const f = log ? Math.log10 : (x) => x;
  const a = f(low), b = f(high);
  const map = (x) => from + ((f(x) - a) / (b - a || 1)) * (to - from);
  map.ticks = (count) => {
    if (!log) return ticks(low, high, count);
    const all = [];
    for (let p = Math.floor(a); p <= b; p++) for (const m of b - a > 3 ? [1] : [1, 2, 5]) all.push(m * 10 ** p);
    const inside = all.filter((t) => t >= low * 0.999 && t <= high * 1.001);
    if (inside.length < 2) return ticks(low, high, count); // a range within a decade may contain one of them or none
    return inside.filter((_, i) => i % Math.ceil(inside.length / count) === 0);
  };
  return map;
}

/** A short piece of a line for a legend. */
const lineSign = (color, dash = "solid") => svg("svg", { width: 22, height: 8, "aria-hidden": "true" },
  svg("line", { x1: 0, x2: 22, y1: 4, y2: 4, stroke: color, "stroke-width": 3, "stroke-dasharray": DASHES[dash] }));

const shortNumber = (x) => (Math.abs(x) >= 1e4 || (x !== 0 && Math.abs(x) < 1e-3) ? x.toExponential(0) : String(+x.toPrecision(4))).replace("-", "−");

/**
 * `draw({lines, x, y, verticals, horizontals, marks})`: lines [{name, x, y, color, dash, points, group}]; axes x and y
 * {title, low, high, log}, where the range defaults to that of the data; verticals [{at}], horizontals [{at, text}];
 * marks [{x, y, color, text}]. `say(line, i)` returns the hover text of a point. `pick(line, i)` is called on a click. Without
 * `legends` no legend is drawn.
 */
function lineChart({ label, height = 280, say, pick = null, legends = true }) {
  const drawing = svg("svg", { role: "img", "aria-label": label });
  const legend = el("div", { class: "legend", role: "group", "aria-label": `lines of ${label}` });
  const node = el("div", { class: "chart" }, legend, drawing);
  const tip = tooltip(node);
  let spec = null, alone = null, x = null, y = null, areas = [];

  const shown = () => spec.lines.filter((line) => alone === null || (line.group ?? line.name) === alone);

  function range(axis, values) {
    let [low, high] = extent(values);
    if (axis.log) low = Math.max(low, high * 1e-6);
    else if (high === low) [low, high] = [low - 0.5, high + 0.5];
    else [low, high] = [low - 0.03 * (high - low), high + 0.03 * (high - low)];
    return [axis.low ?? low, axis.high ?? high];
  }

  function draw(next) {
    if (next) spec = next;
    if (!spec || wide() === 0) return;
    const width = wide(), left = 52, right = 10, top = 8, bottom = spec.x.title ? 40 : 24;
    const lines = shown();
    const many = (of) => lines.flatMap((line) => Array.from(line[of])).concat((spec.marks ?? []).map((m) => m[of])).filter((v) => Number.isFinite(v) && (!spec[of].log || v > 0));
    x = scaleOf(...range(spec.x, many("x")), left, width - right, spec.x.log);
    y = scaleOf(...range(spec.y, many("y").concat((spec.horizontals ?? []).map((h) => h.at))), height - bottom, top, spec.y.log);
    drawing.setAttribute("viewBox", `0 0 ${width} ${height}`);
    drawing.setAttribute("width", width);
    drawing.setAttribute("height", height);
    const parts = [];
    for (const t of x.ticks(Math.max(2, Math.min(8, width / 80)))) {
      parts.push(svg("text", { x: x(t), y: height - bottom + 16, class: "tick", "text-anchor": "middle" }, shortNumber(t)));
    }
    for (const t of y.ticks(5)) {
      parts.push(svg("line", { x1: left, x2: width - right, y1: y(t), y2: y(t), class: "grid-line" }));
      parts.push(svg("text", { x: left - 6, y: y(t) + 4, class: "tick", "text-anchor": "end" }, shortNumber(t)));
    }
    if (spec.x.title) parts.push(svg("text", { x: (left + width - right) / 2, y: height - 6, class: "title", "text-anchor": "middle" }, spec.x.title));
    const middle = (top + height - bottom) / 2;
    parts.push(svg("text", { x: 12, y: middle, class: "title", "text-anchor": "middle", transform: `rotate(-90 12 ${middle})` }, spec.y.title));
    for (const v of spec.verticals ?? []) parts.push(svg("line", { x1: x(v.at), x2: x(v.at), y1: top, y2: height - bottom, class: "mark-line" }));
    for (const h of spec.horizontals ?? []) {
      parts.push(svg("line", { x1: left, x2: width - right, y1: y(h.at), y2: y(h.at), class: "mark-line" }));
      parts.push(svg("text", { x: left + 4, y: y(h.at) - 4, class: "tick" }, h.text));
    }
    for (const line of lines) {
      const places = Array.from(line.x, (v, i) => [x(v), y(line.y[i])]).filter(([, v]) => Number.isFinite(v));
      const path = places.map(([u, v], i) => `${i ? "L" : "M"}${u.toFixed(1)} ${v.toFixed(1)}`).join("");
      parts.push(svg("path", { d: path, fill: "none", stroke: line.color, "stroke-width": 2, "stroke-dasharray": DASHES[line.dash ?? "solid"], "data-name": line.name }));
      if (line.points || places.length === 1) parts.push(...places.map(([u, v]) => svg("circle", { cx: u, cy: v, r: 3, fill: line.color })));
    }
    for (const m of spec.marks ?? []) {
      parts.push(svg("circle", { cx: x(m.x), cy: y(m.y), r: 7, fill: m.color, class: "mark" }));
      const low = y(m.y) + 26 > height - bottom, late = x(m.x) + 22 + widthOf(m.text ?? "") > width; // the text stays within the axes
      if (m.text) parts.push(svg("text", { x: x(m.x) + (late ? -11 : 11), y: y(m.y) + (low ? -10 : 20), class: "tick strong", "text-anchor": late ? "end" : "start" }, m.text));
    }
    drawing.replaceChildren(...parts);
    areas = lines;
    drawLegend();
  }

  function drawLegend() {
    const signs = new Map(); // line that represents a group in the legend: the solid one, else the first
    for (const line of spec.lines) {
      const name = line.group ?? line.name;
      if (!signs.has(name) || (line.dash ?? "solid") === "solid") signs.set(name, line);
    }
    const groups = [...signs];
    legend.hidden = groups.length < 2 || !legends;
    refill(legend, ...groups.map(([name, line]) => {
      const pressed = alone === name;
      const said = { "aria-pressed": String(pressed), title: pressed ? "show all" : "show only this one" };
      const node = button(` ${name}`, () => { alone = pressed ? null : name; draw(); }, said);
      node.prepend(lineSign(line.color, line.dash));
      return node;
    }));
  }

  function nearestPoint([u, v]) {
    let best = null, least = 40 ** 2;
    for (const line of areas) {
      for (let i = 0; i < line.x.length; i++) {
        const d = (x(line.x[i]) - u) ** 2 + (y(line.y[i]) - v) ** 2;
        if (d < least) [best, least] = [[line, i], d];
      }
    }
    return best;
  }

  drawing.addEventListener("pointermove", (event) => {
    const best = x && nearestPoint(placeIn(drawing, event));
    if (!best) return tip.hide();
    const [line, i] = best;
    const offset = drawing.offsetTop ?? 0;
    tip.show(x(line.x[i]), y(line.y[i]) + legend.offsetHeight + offset, ...[say(line, i)].flat().flatMap((text, k) => (k ? [el("br"), text] : [text])));
  });
  drawing.addEventListener("pointerleave", () => tip.hide());
  if (pick) drawing.addEventListener("click", (event) => { const best = x && nearestPoint(placeIn(drawing, event)); if (best) pick(...best); });
  const wide = redrawn(node, () => draw());
  return { node, draw, get shown() { return spec; } };
}

/** Horizontal bars: `draw([{name, share, text, color}])`, shares in [0, 1]. */
function barChart({ label }) {
  const node = el("div", { class: "bars", role: "list", "aria-label": label });
  let spec = [];
  function draw(bars) {
    spec = bars;
    node.replaceChildren(...bars.map(({ name, share, text, color, title = null }) => {
      const fill = el("div", { class: "fill" });
      fill.style.width = `${100 * share}%`;
      fill.style.background = color;
      return el("div", { class: "bar", role: "listitem", title }, el("span", { class: "name" }, name), el("div", { class: "track" }, fill), el("span", { class: "value" }, text));
    }));
  }
  return { node, draw, get shown() { return spec; } };
}
