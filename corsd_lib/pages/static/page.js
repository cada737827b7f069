"use strict";
// The page: reads its data, builds each panel by the function of its kind, and keeps all in light or dark.
// A kind is a function (data, box) that fills the element `box`. No names from data ever become markup.

const PAGE = JSON.parse(document.getElementById("page-data").textContent);
const THEME = PAGE.theme;
const KINDS = {};
const REDRAWS = []; // what draws anew when the colours change

// --- small things ---------------------------------------------------------------------------------------------------

/** An element with attributes (functions are listeners) and children, strings as text. */
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

/** Text for plotly, which reads some tags. */
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

/** A whole name for plotly's hover: in lines of 80 characters, which it does not break itself. */
const wrapped = (text) => (text.match(/.{1,80}/gsu) ?? [""]).map(plain).join("<br>");

/** `names`, those that are cut by the whole ones, which `whole` has by place. */
const wholes = (names, whole) => names.map((name, i) => whole[i] ?? name);

const TYPES = { uint8: Uint8Array, uint16: Uint16Array, int32: Int32Array, float32: Float32Array };

/** A packed array as {shape, values, at(i, j, ...)}; `at` is the part of those leading indices. */
function unpack({ dtype, shape, base64 }) {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const values = new TYPES[dtype](bytes.buffer);
  const at = (...indices) => {
    let size = values.length, start = 0;
    indices.forEach((index, axis) => { size /= shape[axis]; start += index * size; });
    return values.subarray(start, start + size);
  };
  return { shape, values, at };
}

const percent = (share, digits = 0) => `${(100 * share).toFixed(digits)} %`;
const score = (value) => (Number.isNaN(value) ? "–" : value.toFixed(2));

/** Multiply-accumulates in words. */
function count(number) {
  const [unit, size] = [["G", 1e9], ["M", 1e6], ["k", 1e3]].find(([, s]) => number >= s) ?? ["", 1];
  return `${(number / size).toPrecision(3)} ${unit}`;
}

// --- controls ---------------------------------------------------------------------------------------------------------

let ids = 0;

/** A labelled control. */
function labelled(text, control, ...after) {
  control.id = `control-${++ids}`;
  return el("div", { class: "control" }, el("label", { for: control.id }, text), control, ...after);
}

/** A labelled list; `options` are [value, text] or [value, text, what hover says]. */
function choice(text, options, value, change) {
  const list = el("select", { change: () => change(list.value) });
  list.append(...options.map(([v, t, title = null]) => el("option", { value: v, title }, t)));
  list.value = value;
  return Object.assign(labelled(text, list), { list });
}

/** A labelled slider over whole numbers; `say` puts the number into words. */
function slider(text, last, value, say, change) {
  const range = el("input", { type: "range", min: 0, max: last, step: 1, value, disabled: last === 0 });
  const output = el("output", {});
  const show = () => {
    output.textContent = say(+range.value);
    range.setAttribute("aria-valuetext", output.textContent);
  };
  const box = labelled(text, range, output);
  output.htmlFor = range.id;
  range.addEventListener("input", () => { show(); change(+range.value); });
  show();
  return Object.assign(box, { range, set: (v) => { range.value = v; show(); change(+range.value); } });
}

/** A button that plays a slider from where it is, or from its beginning when it is at its end. */
function player(of, interval = 500) {
  let timer = null;
  const last = +of.range.max;
  const stop = () => { clearInterval(timer); timer = null; show(); };
  const step = () => { of.set(+of.range.value + 1); if (+of.range.value === last) stop(); };
  const button = el("button", { type: "button", class: "play", disabled: last === 0, click: () => {
    if (timer !== null) return stop();
    if (+of.range.value === last) of.set(0);
    timer = setInterval(step, interval);
    show();
  } });
  const show = () => { button.textContent = timer === null ? "▶ play" : "❚❚ pause"; };
  show();
  return button;
}

// --- plots ------------------------------------------------------------------------------------------------------------

const asked = matchMedia("(prefers-color-scheme: dark)");
let theme = "auto";
const dark = () => (theme === "auto" ? asked.matches : theme === "dark");
const ink = () => THEME.ink[+dark()];

/** Draw into `div`, in the page's colours. */
function plot(div, traces, layout) {
  const axis = { gridcolor: THEME.grid, linecolor: THEME.grid, zerolinecolor: THEME.grid, automargin: true };
  const look = {
    template: { layout: { xaxis: { ...axis, title: { standoff: 8 } }, yaxis: { ...axis, title: { standoff: 8 } } } },
    font: { family: "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", size: 13, color: ink() },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 10, r: 10, t: 10, b: 10 },
    autosize: true,
  };
  return Plotly.react(div, traces, { ...look, ...layout }, { responsive: true, displaylogo: false, showSendToCloud: false });
}

/** Draw now and whenever the colours change. */
function drawn(draw) {
  REDRAWS.push(draw);
  draw();
}

function recolour(chosen) {
  theme = chosen;
  document.documentElement.dataset.theme = dark() ? "dark" : "light";
  REDRAWS.forEach((draw) => draw());
}

// --- plain panels -----------------------------------------------------------------------------------------------------

const paragraph = (text) => (text ? [el("p", {}, text)] : []);

/** A region that scrolls sideways where it is too wide, from the keyboard too. */
const scrolling = (label, ...children) => el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label }, ...children);

KINDS.text = ({ paragraphs }, box) => box.append(...paragraphs.flatMap(paragraph));

KINDS.table = ({ columns, rows, text }, box) => {
  const head = el("tr", {}, ...columns.map((name) => el("th", { scope: "col" }, name)));
  const line = ([name, ...cells]) => el("tr", {}, el("th", { scope: "row" }, name), ...cells.map((c) => el("td", {}, c)));
  const table = el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows.map(line)));
  box.append(scrolling("table", table), ...paragraph(text));
};

KINDS.figure = ({ figure, text }, box) => {
  const div = el("div", { class: "plot" });
  const { width, height } = figure.layout;
  if (width) div.style.maxWidth = `${width}px`;
  div.style.minWidth = `${Math.min(width ?? 640, 640)}px`; // panels side by side want room: a narrow page scrolls them
  if (height) div.style.height = `${height}px`;
  box.append(scrolling("figure", div), ...paragraph(text));
  drawn(() => {
    const { data, layout } = repainted(figure);
    const { width: _, height: __, template, ...rest } = layout;
    const { font, margin, title, ...own } = template?.layout ?? {};
    plot(div, data, { ...rest, template: { ...template, layout: own }, margin: layout.margin ?? margin,
      title: { ...title, ...layout.title } });
  });
};

/** A figure made for light or dark pages in the colours of this one. */
function repainted(figure) {
  let text = JSON.stringify(figure);
  for (const [light, darker] of [THEME.ink, THEME.paper]) {
    const [from, to] = dark() ? [light, darker] : [darker, light];
    text = text.replaceAll(`"${from}"`, `"${to}"`);
  }
  return JSON.parse(text);
}

KINDS.columns = ({ panels }, box) => {
  const grid = el("div", { class: "grid" });
  box.append(grid);
  panels.forEach((panel) => grid.append(section(panel, "h3")));
  return () => grid.childNodes.forEach((child) => child.fill());
};

// --- the page ---------------------------------------------------------------------------------------------------------

/** A panel's section; `fill` builds what is in it, which wants the section to be on the page already. */
function section({ kind, title, data }, heading) {
  const node = el("section", { class: `panel ${kind}`, "data-kind": kind });
  if (title) node.append(el(heading, {}, title));
  const body = el("div", { class: "body" });
  node.append(body);
  node.fill = () => KINDS[kind](data, body)?.();
  return node;
}

function start() {
  document.documentElement.dataset.theme = dark() ? "dark" : "light";
  const themes = [["auto", "as the system"], ["light", "light"], ["dark", "dark"]];
  const top = el("header", { class: "page" }, el("h1", {}, document.title), choice("colours", themes, "auto", recolour));
  const sections = PAGE.panels.map((panel) => section(panel, "h2"));
  const titled = sections.filter((node, i) => PAGE.panels[i].title);
  titled.forEach((node, i) => { node.id = `panel-${i + 1}`; });
  const links = titled.map((node) => el("a", { href: `#${node.id}` }, node.firstChild.textContent));
  const main = el("main", {}, ...sections);
  document.body.append(top, ...(links.length > 2 ? [el("nav", { "aria-label": "on this page" }, ...links)] : []), main);
  sections.forEach((node) => node.fill());
  asked.addEventListener("change", () => recolour(theme));
  let before = theme;
  const paper = (there) => document.documentElement.toggleAttribute("data-printing", there);
  addEventListener("beforeprint", () => { paper(true); before = theme; recolour("light"); });
  addEventListener("afterprint", () => { paper(false); recolour(before); });
}

document.addEventListener("DOMContentLoaded", start);
