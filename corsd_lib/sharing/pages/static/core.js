// Code that all explorers share: elements, controls, the state, requests to Python, the theme and tooltips.
//
// An explorer is a function (box, host) that fills the element `box`. host = {data, store, ask, links}:
//   data   the content, as plain values and packed arrays
//   store  the state of the controls; see `makeStore`
//   ask    (what, arguments) -> promise of a result that only Python can compute; null if there is no Python
//   faces  positions -> promise of PNGs of probe images by position; null if there are none
//   links  messages between the explorers of a page; see `makeLinks`
// Text from data is never interpreted as markup.

const KINDS = {};

// --- elements ---------------------------------------------------------------------------------------------------------

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

/** An element with attributes (functions are listeners) and children, strings as text. */
const el = (tag, attributes = {}, ...children) => filled(document.createElement(tag), attributes, children);

/** Like `el`, for SVG elements. */
const svg = (tag, attributes = {}, ...children) => filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

const paragraph = (text) => (text ? [el("p", {}, text)] : []);

/** A region that scrolls horizontally if it is too wide, with mouse and keyboard. */
const scrolling = (label, ...children) => el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label }, ...children);

/** A table of texts (or elements); the first cell of a row names it. */
function tableOf(head, rows, caption = "") {
  const line = ([name, ...cells]) => el("tr", {}, el("th", { scope: "row" }, name), ...cells.map((c) => el("td", {}, c)));
  const top = el("tr", {}, ...head.map((name) => el("th", { scope: "col" }, name)));
  return el("table", {}, ...(caption ? [el("caption", {}, caption)] : []), el("thead", {}, top), el("tbody", {}, ...rows.map(line)));
}

const percent = (share, digits = 0) => (Number.isNaN(share) ? "–" : `${(100 * share).toFixed(digits)} %`);
const score = (value, digits = 2) => (Number.isNaN(value) ? "–" : value.toFixed(digits));
const signed = (value, digits = 2) => (Number.isNaN(value) ? "–" : `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(digits)}`);

/** A number of multiply-accumulates as text, with a unit. */
function count(number) {
  const [unit, size] = [["G", 1e9], ["M", 1e6], ["k", 1e3]].find(([, s]) => number >= s) ?? ["", 1];
  return `${(number / size).toPrecision(3)} ${unit}`;
}

/** `names`, with the names that were cut replaced by the whole ones in `whole`, by index. */
const wholes = (names, whole) => names.map((name, i) => whole[i] ?? name);

/** A function from positions to a promise of {position: bytes}, the PNGs of probe images that a page contains. */
function facesOf({ positions, ends, bytes }) {
  const places = Array.from(unpack(positions).values), until = unpack(ends).values, all = unpack(bytes).values;
  const png = (i) => all.subarray(i ? until[i - 1] : 0, until[i]);
  return async (some) => Object.fromEntries(some.flatMap((p) => { const i = places.indexOf(p); return i < 0 ? [] : [[p, png(i)]]; }));
}

/** An image of PNG bytes (a DataView), with the text `alt`. */
function picture(bytes, alt, side) {
  const address = URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
  const free = () => URL.revokeObjectURL(address);
  return el("img", { src: address, alt, title: alt, width: side, height: side, load: free, error: free });
}

// --- controls ---------------------------------------------------------------------------------------------------------

let ids = 0;
const mine = Math.random().toString(36).slice(2, 8);

/** An id that is unique on the page, even if this script was loaded several times. */
const newId = () => `corsd-${mine}-${++ids}`;

/** A labelled control. */
function labelled(text, control, ...after) {
  control.id = newId();
  return el("div", { class: "control" }, el("label", { for: control.id }, text), control, ...after);
}

const group = (name, ...children) => el("div", { class: "group", role: "group", "aria-label": name }, ...children);

/** A labelled list; `options` are [value, text] or [value, text, hover text], with values of any JSON type. */
function choice(text, options, value, change) {
  const list = el("select", { change: () => change(JSON.parse(list.value)) });
  const fill = (some) => list.replaceChildren(...some.map(([v, t, title = null]) => el("option", { value: JSON.stringify(v), title }, t)));
  fill(options);
  const box = labelled(text, list);
  return Object.assign(box, { list, fill, set: (v) => { list.value = JSON.stringify(v); } });
}

let gesture = null; // of the changes that are being made now

/** Call `change`; all its changes of the state, and those of later calls with the same `mine`, are one step of undo. */
function gestured(mine, change) {
  gesture = mine;
  try { change(); } finally { gesture = null; }
}

/** A labelled slider over whole numbers; `say` puts the number into words. `set` moves it without calling `change`. */
function slider(text, last, value, say, change) {
  const range = el("input", { type: "range", min: 0, max: last, step: 1, value, disabled: last < 1 });
  const output = el("output", {});
  const show = () => {
    output.textContent = say(+range.value);
    range.setAttribute("aria-valuetext", output.textContent);
  };
  const box = labelled(text, range, output);
  let drag = null; // from the first movement until the release
  output.htmlFor = range.id;
  range.addEventListener("input", () => { show(); drag ??= {}; gestured(drag, () => change(+range.value)); });
  range.addEventListener("change", () => { drag = null; });
  show();
  const size = (most) => { range.max = most; range.disabled = most < 1; };
  return Object.assign(box, { range, size, set: (v) => { range.value = v; show(); } });
}

const button = (text, click, attributes = {}) => el("button", { type: "button", click, ...attributes }, text);

/** Disable a control, or enable it. If it has the focus when it is disabled, the next enabled control of its explorer gets it. */
function disable(control, is) {
  const focused = is && control.getRootNode().activeElement === control;
  control.disabled = is;
  if (!focused) return;
  const box = control.closest(".corsd") ?? control.parentElement;
  const controls = [...box.querySelectorAll("button, select, input")], usable = (c) => !c.disabled && c.offsetParent !== null;
  const at = controls.indexOf(control);
  (controls.slice(at).find(usable) ?? controls.slice(0, at).findLast(usable))?.focus({ preventScroll: true });
}

/** Replace the children of a node. If a button among them has the focus, the new button with its text gets it. */
function refill(node, ...children) {
  const focused = node.getRootNode().activeElement, text = node.contains(focused) ? focused.textContent : null;
  node.replaceChildren(...children);
  if (text !== null) [...node.querySelectorAll("button")].find((b) => b.textContent === text)?.focus({ preventScroll: true });
}

/** A button that plays through `count()` steps, from step `at()`, or from the first if that is the last. */
function player(count, at, go, interval = 500) {
  let timer = null, playing = null;
  const stop = () => { clearInterval(timer); timer = null; show(); };
  const to = (step) => gestured(playing, () => go(step));
  const step = () => {
    if (!node.isConnected) return stop();
    to(Math.min(at() + 1, count() - 1));
    if (at() >= count() - 1) stop();
  };
  const node = button("", () => {
    if (timer !== null) return stop();
    playing = {};
    if (at() >= count() - 1) to(0);
    timer = setInterval(step, interval);
    show();
  }, { class: "play", disabled: count() < 2 });
  const show = () => { node.textContent = timer === null ? "▶ play" : "❚❚ pause"; };
  show();
  return node;
}

// --- the state --------------------------------------------------------------------------------------------------------

const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

/** The state of the controls: `state`, `set(patch)`, `undo()`, `on(listener)`. `sync(patch)` reports every change made here to the host. */
function makeStore(state, sync = () => {}) {
  const listeners = [], past = [];
  let latest = null; // gesture of the last change
  const changed = (patch) => Object.fromEntries(Object.entries(patch).filter(([name, value]) => !same(state[name], value)));
  const apply = (patch) => {
    Object.assign(state, patch);
    listeners.forEach((listener) => listener(patch));
  };
  return {
    state,
    on: (listener) => listeners.push(listener),
    /** Apply a choice of the user. */
    set(patch) {
      const news = changed(patch);
      if (!Object.keys(news).length) return;
      const before = Object.fromEntries(Object.keys(news).map((name) => [name, state[name]]));
      if (gesture && gesture === latest && past.length) past.push({ ...before, ...past.pop() });
      else past.push(before);
      latest = gesture;
      if (past.length > 100) past.shift();
      apply(news);
      sync(news);
    },
    /** Apply a consequence of the last choice of the user, which `undo` takes back together with that choice. */
    follow(patch) {
      const news = changed(patch);
      if (!Object.keys(news).length) return;
      const before = Object.fromEntries(Object.keys(news).map((name) => [name, state[name]]));
      if (past.length) past.push({ ...before, ...past.pop() });
      apply(news);
      sync(news);
    },
    /** Apply a choice that the user made in another explorer, where it can be undone. */
    adopt(patch) {
      const news = changed(patch);
      if (!Object.keys(news).length) return;
      apply(news);
      sync(news);
    },
    /** Apply a change that comes from the host. */
    receive(patch) {
      const news = changed(patch);
      if (Object.keys(news).length) apply(news);
    },
    undo() {
      const before = past.pop();
      latest = null;
      if (!before) return;
      apply(before);
      sync(before);
    },
    get undoable() { return past.length > 0; },
  };
}

/** Messages between the explorers of a page: `hear(name, listener, me)`, `tell(name, value, me)`, and `leave(me)` at the end. */
function makeLinks() {
  let listeners = [];
  return {
    hear: (name, listener, me) => listeners.push({ name, listener, me }),
    tell: (name, value, me) => listeners.filter((l) => l.name === name && l.me !== me).forEach((l) => l.listener(value)),
    leave: (me) => { listeners = listeners.filter((l) => l.me !== me); },
  };
}

/** Requests of one kind: only the answer to the newest one is returned, undefined for all others. */
function newestOf(ask) {
  let newest = 0;
  const questions = async (...question) => {
    const mine = ++newest;
    try {
      const answer = await ask(...question);
      return mine === newest ? answer : undefined;
    } catch (error) {
      if (mine === newest) throw error;
      return undefined;
    }
  };
  questions.forget = () => { newest += 1; };
  return questions;
}

// --- theme and size -----------------------------------------------------------------------------------------------------

const themed = new Set();
let inks = new WeakMap(); // colours by node, as long as the theme is the same: reading one forces a layout
const dark = matchMedia("(prefers-color-scheme: dark)");
const still = matchMedia("(prefers-reduced-motion: reduce)");
let watching = false;

/** Call `draw` when the colours of the page around `node` or its width change. Returns a function with the width, which forces no layout. */
function redrawn(node, draw) {
  let width = 0;
  const whole = () => { // clientWidth may be rounded up, and the drawing would then be too wide by a part of a pixel
    const round = node.clientWidth, exact = node.getBoundingClientRect().width;
    return Math.abs(round - exact) < 1 ? Math.floor(exact) : round;
  };
  const measured = () => { const now = whole() || width, changed = now !== width; width = now; return changed; };
  new ResizeObserver(() => { if (measured()) draw(); }).observe(node);
  themed.add({ node, draw: () => { measured(); draw(); } });
  watch();
  return () => width || (measured(), width);
}

/** Redraw everything when the theme changes; it also happens before a page is printed, when widths change. */
function watch() {
  if (watching) return;
  watching = true;
  const all = () => {
    inks = new WeakMap();
    themed.forEach((e) => (e.node.isConnected ? e.draw() : e.seen ? themed.delete(e) : undefined));
  };
  const options = { attributes: true, attributeFilter: ["class", "theme", "data-theme", "data-jp-theme-light", "data-vscode-theme-kind"] };
  for (const root of [document.documentElement, document.body]) new MutationObserver(all).observe(root, options);
  dark.addEventListener("change", all);
}

/** A colour of the style of `node`: "ink", "soft", "line", "accent" or "paper". */
function colour(node, name) {
  if (!inks.has(node)) inks.set(node, {});
  const known = inks.get(node);
  known[name] ||= getComputedStyle(node).getPropertyValue(`--${name}`).trim();
  return known[name] || "#888";
}

const ruler = document.createElement("canvas").getContext("2d"), widths = new Map();

/** Width in pixels of a text in the font of the names on axes. */
function widthOf(text) {
  if (!widths.has(text)) {
    if (widths.size > 10_000) widths.clear();
    ruler.font = `11px ${FONT}`;
    widths.set(text, ruler.measureText(text).width);
  }
  return widths.get(text);
}

/** 256 colours, four bytes each, from a scale of [position in [0, 1], "#rrggbb"]. */
function lookup(scale) {
  const stops = scale.map(([at, text]) => [at, [1, 3, 5].map((i) => parseInt(text.slice(i, i + 2), 16))]);
  const table = new Uint8ClampedArray(256 * 4);
  for (let i = 0; i < 256; i++) {
    const x = i / 255, k = Math.max(1, stops.findIndex(([at]) => at >= x));
    const [a, from] = stops[k - 1], [b, to] = stops[k];
    const t = (x - a) / (b - a);
    for (let c = 0; c < 3; c++) table[4 * i + c] = from[c] + (to[c] - from[c]) * t;
    table[4 * i + 3] = 255;
  }
  return table;
}
const COLOURS = { scale: lookup(THEME.scale), diverging: lookup(THEME.diverging) };

/** A canvas as wide as `node` and `height` pixels high, which is drawn on in units of CSS pixels. */
function sized(canvas, width, height) {
  const ratio = globalThis.devicePixelRatio || 1;
  canvas.width = Math.max(1, Math.round(width * ratio));
  canvas.height = Math.max(1, Math.round(height * ratio));
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const g = canvas.getContext("2d");
  g.setTransform(ratio, 0, 0, ratio, 0, 0);
  g.clearRect(0, 0, width, height);
  return g;
}

const FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif";

/** A text, cut to a width of `room` pixels. */
function fitting(g, text, room) {
  if (g.measureText(text).width <= room) return text;
  let low = 0, high = text.length;
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    if (g.measureText(`${text.slice(0, middle)}…`).width <= room) low = middle;
    else high = middle - 1;
  }
  return `${text.slice(0, low)}…`;
}

// --- tooltips -----------------------------------------------------------------------------------------------------------

/** A box that follows the mouse over `node`: `show(x, y, ...children)` in pixels of the node, `hide()`. */
function tooltip(node) {
  const box = el("div", { class: "tip", hidden: true, "aria-hidden": "true" });
  node.append(box);
  return {
    box,
    show(x, y, ...children) {
      box.replaceChildren(...children);
      box.hidden = false;
      const width = node.clientWidth, mine = box.offsetWidth, tall = box.offsetHeight;
      box.style.left = `${Math.max(0, Math.min(x + 14, width - mine))}px`;
      box.style.top = `${y + 18 + tall > node.clientHeight && y > tall + 8 ? y - tall - 8 : y + 18}px`;
    },
    hide() { box.hidden = true; },
  };
}

/** Position of a mouse event in pixels of `node`. */
function placeIn(node, event) {
  const at = node.getBoundingClientRect();
  return [event.clientX - at.left, event.clientY - at.top];
}

// --- an explorer in its element -------------------------------------------------------------------------------------------

const busySigns = new WeakMap();

/** Whether the sign fits to the right of the last controls, where it covers nothing and moves nothing. */
function roomBeside(box, sign) {
  const controls = box.querySelector(":scope > .controls");
  const ends = controls ? [...controls.querySelectorAll("label, select, input, output, button")].map((c) => c.getBoundingClientRect()).filter((at) => at.width) : [];
  if (!ends.length) return false;
  const all = controls.getBoundingClientRect(), height = sign.offsetHeight + 4;
  return ends.filter((at) => at.bottom > all.bottom - height).every((at) => at.right + sign.offsetWidth + 16 <= all.right);
}

/** Show that `what` is being computed until the promise settles, or that the kernel is still busy with a cell. */
function busy(box, what, promise) {
  const sign = busySigns.get(box) ?? el("div", { class: "busy", role: "status", hidden: true });
  if (!busySigns.has(box)) {
    busySigns.set(box, sign);
    const controls = box.querySelector(":scope > .controls");
    const line = el("div", { class: "busy-line" }, sign); // takes no room, and is below the controls
    if (controls) controls.after(line); else box.prepend(line);
    sign.waiting = 0;
    sign.place = () => sign.hidden || sign.classList.toggle("above", roomBeside(box, sign));
    const watch = new ResizeObserver(sign.place); // a control may come, go or grow meanwhile
    if (controls) [controls, ...controls.children].forEach((part) => watch.observe(part));
    box.addEventListener("began", () => { sign.textContent = `${sign.what}…`; });
  }
  sign.waiting += 1;
  sign.what = what;
  sign.textContent = `${what}: waiting for the kernel…`;
  sign.hidden = false;
  sign.place();
  const done = () => { sign.waiting -= 1; if (!sign.waiting) sign.hidden = true; };
  promise.then(done, done);
  return promise;
}

/** Fill `box` with an explorer of this kind. Its own keys work everywhere in it, the shortcuts of the notebook do not. */
function mount(kind, box, host) {
  box.classList.add("corsd", kind);
  box.setAttribute("data-lm-suppress-shortcuts", "true");
  box.addEventListener("keydown", (event) => {
    if ((event.ctrlKey || event.metaKey) && !event.shiftKey && event.key.toLowerCase() === "z" && !event.target.matches("input[type=search]")) {
      host.store.undo();
      event.preventDefault();
    }
    event.stopPropagation();
  });
  try {
    return KINDS[kind](box, host);
  } catch (error) { // show the error in place of the explorer
    box.append(el("p", { role: "alert" }, `This cannot be drawn: ${error.message}`));
    throw error;
  }
}
