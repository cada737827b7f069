// A matrix as a heatmap on a canvas: 1,000 x 1,000 cells are drawn in milliseconds.

/**
 * `draw({n, values, low, high, scale, names, groups, cell, frame, rows, rings, lines, axes, label})` draws cells in display order:
 *   names(i) of a row, groups [{name, from, to}] that replace the names, or null, cell(i, j) -> {title, value, images} for hover,
 *   frame [row, column] or null, rows: indices with a band around them, rings: indices marked on the diagonal, lines:
 *   positions between groups, axes [first, second], label: description for a screen reader.
 * `pick(i, j)` is called on a click, `move(di, dj)` on an arrow key, `zoomed(bool)` after drags and `reset`.
 */
function matrixView({ pick, move, clear, zoomed, images = null }) {
  const canvas = el("canvas", { tabindex: 0, role: "img" });
  const node = el("div", { class: "matrix" }, canvas);
  const tip = tooltip(node);
  const cells = document.createElement("canvas");
  let spec = null, view = null, box = null, drag = null, over = null, most = 0, image = null;

  /** Positions and sizes of all parts, in pixels. */
  function arranged() {
    const width = wide(), n = view.to - view.from;
    const names = spec.groups ? spec.groups.map((s) => s.name) : Array.from({ length: Math.min(n, 400) }, (_, i) => spec.names(view.from + i));
    const longest = Math.max(20, ...names.map(widthOf));
    const room = Math.min(longest, 150, width * 0.25);
    const left = room + 26, bar = 54;
    const side = Math.max(120, Math.min(width - left - bar, most || 620));
    const level = side / (spec.groups?.length ?? n) > longest + 4;
    const below = level ? 14 : room;
    const top = 8; // half a line of text: the name of the first row is as high as that
    return { left, top, side, room, below, level, width, height: top + side + below + 26, size: side / n };
  }

  function draw(next) {
    if (next) {
      if (view === null || next.n !== spec?.n) { view = { from: 0, to: next.n, column: 0 }; zoomed?.(false); }
      spec = next;
      paint();
    }
    if (!spec || wide() === 0) return; // is drawn as soon as it has a width
    box = arranged();
    const g = sized(canvas, box.width, box.height);
    const { left, top, side, size } = box, n = view.to - view.from;
    g.imageSmoothingEnabled = false;
    g.drawImage(cells, view.column, view.from, n, n, left, top, side, side);
    g.strokeStyle = colour(node, "soft");
    g.lineWidth = 1;
    const at = (i) => top + (i - view.from) * size, across = (j) => left + (j - view.column) * size;
    g.save();
    g.beginPath();
    g.rect(left - 1, top - 1, side + 2, side + 2);
    g.clip();
    for (const i of spec.lines ?? []) {
      g.strokeStyle = "rgba(255,255,255,0.75)";
      g.beginPath();
      g.moveTo(left, at(i)); g.lineTo(left + side, at(i)); g.moveTo(across(i), top); g.lineTo(across(i), top + side);
      g.stroke();
    }
    for (const i of spec.rows ?? []) {
      g.strokeStyle = THEME.palette[4];
      g.lineWidth = 2;
      g.strokeRect(left, at(i), side, size);
      g.strokeRect(across(i), top, size, side);
    }
    for (const i of spec.rings ?? []) {
      g.strokeStyle = THEME.palette[1];
      g.lineWidth = 2.5;
      g.beginPath();
      g.arc(across(i + 0.5), at(i + 0.5), Math.min(14, Math.max(4, size * 0.6)), 0, 7);
      g.stroke();
    }
    if (spec.frame) {
      const [i, j] = spec.frame, pad = size < 8 ? 3 : 0;
      g.lineWidth = 4.5;
      g.strokeStyle = "#fff";
      g.strokeRect(across(j) - pad, at(i) - pad, size + 2 * pad, size + 2 * pad);
      g.lineWidth = 2.5;
      g.strokeStyle = spec.scale === "diverging" ? "#1f2933" : THEME.palette[1]; // the scale of differences contains the orange
      g.strokeRect(across(j) - pad, at(i) - pad, size + 2 * pad, size + 2 * pad);
    }
    if (drag?.to) {
      g.strokeStyle = "#fff";
      g.setLineDash([4, 3]);
      g.lineWidth = 1.5;
      const [x, y] = drag.from, [u, v] = drag.to;
      g.strokeRect(Math.min(x, u), Math.min(y, v), Math.abs(u - x), Math.abs(v - y));
    }
    g.restore();
    labels(g);
    colourBar(g);
    canvas.setAttribute("aria-label", spec.label);
    if (next && over) point(); // the mouse has not moved, but what is under it may have changed
  }

  /** Paint the cells, one pixel each. */
  function paint() {
    const { n, values, low, high } = spec, table = COLOURS[spec.scale];
    if (image?.width !== n) {
      image = new ImageData(n, n);
      cells.width = cells.height = n;
    }
    const words = new Uint32Array(image.data.buffer), colours = new Uint32Array(table.buffer);
    const factor = 255 / (high - low || 1);
    for (let i = 0; i < n * n; i++) {
      const v = values[i];
      words[i] = v === v ? colours[v <= low ? 0 : v >= high ? 255 : ((v - low) * factor + 0.5) | 0] : 0; // transparent without a score
    }
    cells.getContext("2d").putImageData(image, 0, 0);
  }

  function labels(g) {
    const { left, top, side, room, below, level, size } = box, n = view.to - view.from;
    g.font = `11px ${FONT}`;
    g.textBaseline = "middle";
    const marks = (from) => (spec.groups
      ? spec.groups.map((s) => ({ name: s.name, at: (Math.max(s.from, from) + Math.min(s.to, from + n)) / 2 - from, room: (s.to - s.from) * size }))
        .filter((s) => s.at >= 0 && s.at <= n)
      : Array.from({ length: n }, (_, i) => ({ get name() { return spec.names(from + i); }, at: i + 0.5, room: size })));
    const ink = colour(node, "ink"), soft = colour(node, "soft");
    const side_ = (from, put, lit) => {
      const there = lit !== null && !spec.groups ? (lit - from + 0.5) * size : null; // the hovered name replaces its neighbours
      let free = -Infinity;
      for (const mark of marks(from)) {
        const place = mark.at * size, here = place === there;
        if (!here && (place < free || (there !== null && Math.abs(place - there) < 12))) continue;
        g.fillStyle = here ? ink : soft;
        put(mark.name, place);
        free = place + 12;
      }
    };
    g.textAlign = "right";
    side_(view.from, (name, place) => g.fillText(fitting(g, name, room), left - 6, top + place), over?.[0] ?? null);
    if (level) {
      g.textAlign = "center";
      side_(view.column, (name, place) => g.fillText(name, left + place, top + side + 10), over?.[1] ?? null);
    } else {
      side_(view.column, (name, place) => {
        g.save();
        g.translate(left + place, top + side + 6);
        g.rotate(-Math.PI / 2);
        g.textAlign = "right";
        g.fillText(fitting(g, name, room), 0, 0);
        g.restore();
      }, over?.[1] ?? null);
    }
    g.fillStyle = soft;
    g.font = `12px ${FONT}`;
    g.textAlign = "center";
    g.fillText(spec.axes[1], left + side / 2, top + side + below + 16);
    g.save();
    g.translate(9, top + side / 2);
    g.rotate(-Math.PI / 2);
    g.fillText(spec.axes[0], 0, 0);
    g.restore();
  }

  function colourBar(g) {
    const { left, top, side } = box, x = left + side + 12, table = COLOURS[spec.scale];
    for (let i = 0; i < 256; i++) {
      g.fillStyle = `rgb(${table[4 * i]},${table[4 * i + 1]},${table[4 * i + 2]})`;
      g.fillRect(x, top + side - ((i + 1) * side) / 256, 10, side / 256 + 1);
    }
    g.fillStyle = colour(node, "soft");
    g.font = `11px ${FONT}`;
    g.textAlign = "left";
    for (const t of ticks(spec.low, spec.high, 5)) {
      const y = top + side - ((t - spec.low) / (spec.high - spec.low || 1)) * side;
      g.fillText(String(t).replace("-", "−"), x + 14, Math.min(Math.max(y, top + 6), top + side - 6));
    }
  }

  /** The cell at a position of the mouse, [row, column] in display order, or null. */
  function cellAt([x, y]) {
    if (!box) return null;
    const { left, top, size, side } = box;
    if (x < left || y < top || x >= left + side || y >= top + side) return null;
    return [view.from + Math.floor((y - top) / size), view.column + Math.floor((x - left) / size)];
  }

  let pointed = null; // position of the mouse

  function hover(place) {
    const before = over;
    pointed = place;
    over = cellAt(place);
    if (!same(over, before)) draw();
    point();
  }

  /** Show what is under the mouse. */
  function point() {
    over = cellAt(pointed);
    if (over && !drag?.to) show(pointed, over);
    else tip.hide();
  }

  function show(place, at) {
    const { title, value } = spec.cell(...at);
    const faces = el("div", { class: "faces" });
    tip.show(...place, el("b", {}, title), el("br"), value, faces);
    images?.(at, faces);
  }

  canvas.addEventListener("pointermove", (event) => {
    const place = placeIn(canvas, event);
    if (drag && Math.hypot(place[0] - drag.from[0], place[1] - drag.from[1]) > 6) { drag.to = place; tip.hide(); draw(); return; }
    hover(place);
  });
  canvas.addEventListener("pointerleave", () => { over = null; tip.hide(); draw(); });
  canvas.addEventListener("pointerdown", (event) => {
    const place = placeIn(canvas, event);
    if (event.button !== 0 || !cellAt(place)) return;
    drag = { from: place, to: null };
    canvas.setPointerCapture?.(event.pointerId); // so that a drag that ends outside the canvas ends here, too
  });
  canvas.addEventListener("pointerup", (event) => {
    const began = drag;
    drag = null;
    if (!began) return;
    if (!began.to) { const at = cellAt(placeIn(canvas, event)); if (at) pick(...at); return; }
    zoom(began.from, began.to);
  });
  canvas.addEventListener("pointercancel", () => { drag = null; draw(); });
  canvas.addEventListener("dblclick", () => reset());
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (step) { move(...step); event.preventDefault(); }
    if (event.key === "Escape") clear();
  });

  /** The square of cells that a drag selects. */
  function zoom(from, to) {
    const inBox = ([x, y]) => [Math.min(Math.max(x, box.left), box.left + box.side - 1), Math.min(Math.max(y, box.top), box.top + box.side - 1)];
    const [a, b] = [cellAt(inBox(from)), cellAt(inBox(to))];
    const n = Math.max(2, Math.abs(a[0] - b[0]) + 1, Math.abs(a[1] - b[1]) + 1);
    if (n >= view.to - view.from) { draw(); return; }
    const row = Math.min(Math.min(a[0], b[0]), spec.n - n), column = Math.min(Math.min(a[1], b[1]), spec.n - n);
    view = { from: row, to: row + n, column };
    zoomed?.(true);
    draw();
  }

  function reset() {
    if (!spec) return;
    view = { from: 0, to: spec.n, column: 0 };
    zoomed?.(false);
    draw();
  }

  const wide = redrawn(node, () => draw());
  return { node, draw, reset, limit: (pixels) => { most = pixels; }, get shown() { return { ...spec, view, box }; } };
}
