// Points on a canvas: a scatter plot with selection by a lasso, clicks, zoom, and smooth movement.

const GLYPHS = ["●", "◆", "■", "▲", "✕", "✚"];

/** Draw a point with its symbol at (x, y), with radius r. */
function glyph(g, symbol, x, y, r) {
  g.beginPath();
  if (symbol === 0) g.arc(x, y, r, 0, 7);
  else if (symbol === 1) { g.moveTo(x, y - r * 1.3); g.lineTo(x + r * 1.3, y); g.lineTo(x, y + r * 1.3); g.lineTo(x - r * 1.3, y); }
  else if (symbol === 2) g.rect(x - r, y - r, 2 * r, 2 * r);
  else if (symbol === 3) { g.moveTo(x, y - r * 1.2); g.lineTo(x + r * 1.2, y + r); g.lineTo(x - r * 1.2, y + r); }
  else { g.save(); g.translate(x, y); if (symbol === 4) g.rotate(Math.PI / 4); g.rect(-r * 1.3, -r * 0.4, r * 2.6, r * 0.8); g.rect(-r * 0.4, -r * 1.3, r * 0.8, r * 2.6); g.restore(); }
  g.fill();
}

/**
 * The part of a scatter plot that is shown, which several of them share, and its tools, buttons: what dragging does
 * ("select" or "move"), zoom, and the way back to the whole picture. `x` and `y`: the centre, relative to the side of the whole
 * square and its middle. `changed()` draws the plots.
 */
function cameraOf(changed) {
  const camera = { x: 0, y: 0, zoom: 1, drag: "select", move, closer, keys };
  const select = button("◌ select", () => dragging("select"), { title: "dragging draws around points and selects them" });
  const pan = button("✥ move", () => dragging("move"), { title: "dragging moves the picture; also arrow keys" });
  const more = button("+", () => closer(1.5), { title: "zoom in; also + or Ctrl and the mouse wheel", "aria-label": "zoom in" });
  const less = button("−", () => closer(1 / 1.5), { title: "zoom out; also - or Ctrl and the mouse wheel", "aria-label": "zoom out" });
  const whole = button("whole picture", () => { Object.assign(camera, { x: 0, y: 0, zoom: 1 }); update(); }, { title: "also 0" });

  function update() {
    if (camera.zoom === 1) camera.drag = "select"; // there is nowhere to move to
    select.setAttribute("aria-pressed", String(camera.drag === "select"));
    pan.setAttribute("aria-pressed", String(camera.drag === "move"));
    disable(whole, camera.zoom === 1);
    disable(less, camera.zoom === 1);
    disable(pan, camera.zoom === 1);
    changed();
  }
  function dragging(drag) { camera.drag = drag; update(); }

  /** Move the centre by a part of the side of the whole square, at most to an edge of it. */
  function move(dx, dy) {
    const most = (1 - 1 / camera.zoom) / 2, kept = (v) => Math.max(-most, Math.min(most, v));
    Object.assign(camera, { x: kept(camera.x + dx), y: kept(camera.y + dy) });
    update();
  }

  /** Zoom by a factor, from 1 (all points) to 32, about a point relative to the centre of the picture. */
  function closer(factor, [x, y] = [0, 0]) {
    const before = camera.zoom, zoom = Math.max(1, Math.min(32, before * factor));
    camera.zoom = zoom < 1.01 ? 1 : zoom;
    move(x * (1 / before - 1 / camera.zoom), y * (1 / before - 1 / camera.zoom));
  }

  /** Answer a key; returns whether it was one of the camera's. */
  function keys(key) {
    const step = 0.1 / camera.zoom, arrows = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
    if (key === "+" || key === "=") closer(1.5);
    else if (key === "-") closer(1 / 1.5);
    else if (key === "0") whole.click();
    else if (arrows[key] && camera.zoom > 1) move(...arrows[key]);
    else return false;
    return true;
  }

  return Object.assign(camera, { tools: [select, pan, more, less, whole], update });
}

/**
 * `draw({at, low, high, look, chosen, rings, label})`: at a Float32Array of x, y; the square from `low` to `high` is shown;
 * look(i) -> {color, symbol, small}; chosen a Set or null; rings [image, ...neighbours] or []. Points move to where they are
 * next, at once if reduced motion is preferred. `camera` is what is shown of the square. `pick(i)` is called on a click, `caught(positions)` with the points inside a lasso,
 * `hover(i)` returns the hover text of a point, `over(i)` is called when the mouse comes to another point or to none (null).
 * `light(i)` rings a point, as its own plot and others do for the one under the mouse.
 */
function pointsView({ pick, caught, clear, hover, over = () => {}, camera, height = 320 }) {
  const canvas = el("canvas", { tabindex: 0, role: "img" });
  const node = el("div", { class: "points" }, canvas);
  const tip = tooltip(node);
  let spec = null, now = null, timer = null, lasso = null, grip = null, lit = null, pointed = null;

  const side = () => (Math.min(wide(), height) - 16) * camera.zoom; // of the whole square, in pixels
  function place(i) {
    const [lx, ly] = spec.low, [hx, hy] = spec.high, all = Math.max(hx - lx, hy - ly);
    const x = (now[2 * i] - (lx + hx) / 2) / all - camera.x, y = (now[2 * i + 1] - (ly + hy) / 2) / all - camera.y;
    return [wide() / 2 + x * side(), height / 2 - y * side()];
  }

  function draw(next) {
    if (next) {
      const moved = spec && next.at.length === now?.length && !same(Array.from(next.at.subarray(0, 8)), Array.from(spec.at.subarray(0, 8)));
      spec = next;
      if (moved && !still.matches && wide()) return glide();
      cancelAnimationFrame(timer);
      now = Float32Array.from(spec.at);
    }
    paint();
  }

  /** Move the points to their new positions in a third of a second; a page in the background jumps there. */
  function glide() {
    cancelAnimationFrame(timer);
    const from = Float32Array.from(now), begin = performance.now();
    const step = (time) => {
      const t = Math.min(1, Math.max(0, (time - begin) / 350)), s = t * t * (3 - 2 * t);
      for (let i = 0; i < now.length; i++) now[i] = from[i] + (spec.at[i] - from[i]) * s;
      paint();
      if (t < 1) timer = requestAnimationFrame(step);
    };
    paint();
    timer = requestAnimationFrame(step);
  }

  function paint() {
    if (!spec || wide() === 0) return;
    const g = sized(canvas, wide(), height), { chosen } = spec;
    g.strokeStyle = colour(node, "line");
    g.strokeRect(0.5, 0.5, wide() - 1, height - 1);
    const order = Array.from({ length: now.length / 2 }, (_, i) => i);
    const front = (i) => (chosen ? +chosen.has(i) : 0) * 2 + +!spec.look(i).small;
    order.sort((a, b) => front(a) - front(b));
    for (const i of order) {
      const { color, symbol, small } = spec.look(i), [x, y] = place(i);
      g.globalAlpha = chosen ? (chosen.has(i) ? 1 : 0.12) : small ? 0.5 : 0.8;
      g.fillStyle = color;
      glyph(g, symbol, x, y, small ? 2 : chosen?.has(i) ? 4.5 : 3.5);
    }
    g.globalAlpha = 1;
    const [image, ...near] = spec.rings;
    g.strokeStyle = colour(node, "ink");
    if (image !== undefined) {
      const [x, y] = place(image);
      g.lineWidth = 1;
      for (const p of near) {
        const [u, v] = place(p);
        g.beginPath(); g.moveTo(x, y); g.lineTo(u, v); g.stroke();
        g.beginPath(); g.arc(u, v, 5, 0, 7); g.stroke();
      }
      g.lineWidth = 2;
      g.beginPath(); g.arc(x, y, 9, 0, 7); g.stroke();
    }
    if (lit !== null && lit < now.length / 2) {
      const [x, y] = place(lit);
      for (const [line, width] of [["paper", 5], ["accent", 2.5]]) { // light around it, so that it is seen among points
        g.strokeStyle = colour(node, line);
        g.lineWidth = width;
        g.beginPath(); g.arc(x, y, 7, 0, 7); g.stroke();
      }
      g.strokeStyle = colour(node, "ink");
    }
    if (lasso) {
      g.setLineDash([4, 3]);
      g.lineWidth = 1.5;
      g.beginPath();
      lasso.forEach(([x, y], i) => (i ? g.lineTo(x, y) : g.moveTo(x, y)));
      g.closePath();
      g.stroke();
    }
    canvas.style.cursor = camera.drag === "move" ? (grip ? "grabbing" : "grab") : "crosshair";
    canvas.setAttribute("aria-label", spec.label);
  }

  function light(i) {
    if (i === lit) return;
    lit = i;
    paint();
  }

  function point(i) {
    if (i === pointed) return;
    pointed = i;
    over(i);
  }

  function nearest_([x, y], within = 10) {
    let best = null, least = within ** 2;
    for (let i = 0; i < now.length / 2; i++) {
      const [u, v] = place(i), d = (u - x) ** 2 + (v - y) ** 2;
      if (d < least) [best, least] = [i, d];
    }
    return best;
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    if (camera.drag === "move") grip = { from: placeIn(canvas, event), last: placeIn(canvas, event) };
    else lasso = [placeIn(canvas, event)];
    canvas.setPointerCapture?.(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    const at = placeIn(canvas, event);
    if (lasso || grip) point(null);
    if (lasso) { lasso.push(at); tip.hide(); paint(); return; }
    if (grip) {
      camera.move((grip.last[0] - at[0]) / side(), (at[1] - grip.last[1]) / side());
      grip.last = at;
      tip.hide();
      return;
    }
    const i = now && nearest_(at);
    point(i);
    if (i === null) tip.hide();
    else tip.show(...place(i), ...hover(i));
  });
  canvas.addEventListener("pointerup", (event) => {
    const drawn = lasso ?? (grip && [grip.from, placeIn(canvas, event)]), moved = grip !== null;
    lasso = grip = null; // the outline disappears
    if (!drawn) return;
    const xs = drawn.map(([x]) => x), ys = drawn.map(([, y]) => y);
    const size = Math.max(Math.max(...xs) - Math.min(...xs), Math.max(...ys) - Math.min(...ys));
    if (size < 6) {
      const i = nearest_(placeIn(canvas, event));
      if (i !== null) pick(i);
      paint();
      return;
    }
    if (moved) return paint();
    caught(Array.from({ length: now.length / 2 }, (_, i) => i).filter((i) => inside(...place(i), drawn)));
    paint();
  });
  canvas.addEventListener("pointercancel", () => { lasso = grip = null; paint(); });
  canvas.addEventListener("pointerleave", () => { point(null); tip.hide(); });
  canvas.addEventListener("dblclick", () => clear());
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return; // the wheel alone scrolls the page
    event.preventDefault();
    const [x, y] = placeIn(canvas, event), unit = side() / camera.zoom;
    camera.closer(Math.exp(-event.deltaY / 200), [(x - wide() / 2) / unit, (height / 2 - y) / unit]);
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    if (event.key === "Escape") clear();
    else if (!event.ctrlKey && !event.metaKey && !event.altKey && camera.keys(event.key)) event.preventDefault();
  });
  const wide = redrawn(node, () => paint());
  return { node, draw, light, place: (i) => place(i), get shown() { return { ...spec, now, lit }; } };
}
