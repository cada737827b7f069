// The host in a page: one HTML file without Python. Explorers, plain panels, light and dark, and print.

const PAGE = JSON.parse(document.getElementById("page-data").textContent);

let theme = "auto";
const isDark = () => (theme === "auto" ? dark.matches : theme === "dark");
const repaints = []; // functions that redraw plotly figures when the colours change

// --- plotly's figures -------------------------------------------------------------------------------------------------

/** Draw into `div` in the colours of the page; an error is shown in its place. */
function plot(div, traces, layout) {
  const axis = { gridcolor: THEME.grid, linecolor: THEME.grid, zerolinecolor: THEME.grid, automargin: true };
  const look = {
    template: { layout: { xaxis: { ...axis, title: { standoff: 8 } }, yaxis: { ...axis, title: { standoff: 8 } } } },
    font: { family: FONT, size: 13, color: THEME.ink[+isDark()] },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 10, r: 10, t: 10, b: 10 },
    autosize: true,
  };
  const done = Plotly.react(div, traces, { ...look, ...layout }, { responsive: true, displaylogo: false, displayModeBar: false });
  return done.catch((error) => div.replaceChildren(el("p", { role: "alert" }, `This cannot be drawn: ${error.message}`)));
}

function recolour(chosen) {
  theme = chosen;
  document.documentElement.dataset.theme = isDark() ? "dark" : "light"; // explorers watch this attribute
  repaints.forEach((draw) => draw());
}

/** A figure that was made for light or dark pages, in the colours of this page. */
function repainted(figure) {
  let text = JSON.stringify(figure);
  for (const [light, darker] of [THEME.ink, THEME.paper]) {
    const [from, to] = isDark() ? [light, darker] : [darker, light];
    text = text.replaceAll(`"${from}"`, `"${to}"`);
  }
  return JSON.parse(text);
}

// --- plain panels -----------------------------------------------------------------------------------------------------

/** Width below which a figure is not legible, in pixels. */
const leastWidth = ({ layout }) => Math.min(layout.width ?? WIDE, WIDE), WIDE = 620;

const PLAIN = {
  text: ({ paragraphs }, box) => box.append(...paragraphs.flatMap(paragraph)),

  table: ({ columns, rows, text }, box) => box.append(scrolling("table", tableOf(columns, rows)), ...paragraph(text)),

  figure: ({ figure, text }, box) => {
    const div = el("div", { class: "plot" });
    const { width, height } = figure.layout;
    if (width) div.style.maxWidth = `${width}px`;
    div.style.minWidth = `${leastWidth(figure)}px`; // a narrow page scrolls the figure
    if (width && height && figure.layout.yaxis?.scaleanchor && !figure.layout.xaxis2) { // one map with square cells: a lower height where the page is narrower
      div.style.height = "auto";
      div.style.aspectRatio = `${width} / ${height}`;
    } else if (height) {
      div.style.height = `${height}px`;
    }
    box.append(scrolling("figure", div), ...paragraph(text));
    const draw = () => {
      const { data, layout } = repainted(figure);
      const { width: _, height: __, template, ...rest } = layout;
      const { font, margin, title, ...own } = template?.layout ?? {};
      plot(div, data, { ...rest, template: { ...template, layout: own }, margin: layout.margin ?? margin,
        title: { ...title, ...layout.title } });
    };
    repaints.push(draw);
    draw();
  },

  curves: ({ charts, text, findings }, box) => {
    const grid = el("div", { class: "grid" });
    box.classList.add("corsd");
    box.append(...findings.map((finding) => el("p", { class: "finding" }, finding)), grid, ...paragraph(text));
    for (const { title, lines, x, y, unit = "" } of charts) {
      const say = (line, i) => [line.name, `epoch ${line.x[i]}: ${+line.y[i].toPrecision(4)}${unit}`];
      const chart = lineChart({ label: title || y.title, height: 320, say });
      grid.append(el("figure", {}, ...(title ? [el("h4", {}, title)] : []), chart.node));
      const drawn = lines.map((line) => ({ ...line, x: unpack(line.x).values, y: unpack(line.y).values,
        color: THEME.palette[line.color % THEME.palette.length], dash: Object.keys(DASHES)[line.dash] }));
      chart.draw({ lines: drawn, x, y });
    }
  },

  columns: ({ panels }, box) => {
    const grid = el("div", { class: "panel-grid" });
    const widths = panels.map(({ kind, data }) => (kind === "figure" ? leastWidth(data.figure) : 0));
    grid.style.setProperty("--column", `${Math.max(380, ...widths)}px`);
    box.append(grid);
    panels.forEach((panel) => grid.append(section(panel, "h3")));
    return () => grid.childNodes.forEach((child) => child.fill());
  },
};

// --- the page ---------------------------------------------------------------------------------------------------------

const pageLinks = makeLinks();
const explorers = [];

/** States of explorers, by index, from the fragment of the address. */
function addressed() {
  try {
    return JSON.parse(decodeURIComponent(location.hash.slice(1)) || "{}") ?? {};
  } catch {
    return {};
  }
}

/** Create an explorer in `box`. Its initial state is that of the page, overridden by the address. */
function explore(kind, data, box) {
  const place = explorers.length, given = addressed()[place] ?? {};
  const known = Object.fromEntries(Object.entries(given).filter(([name]) => name in data.start));
  const store = makeStore({ ...data.start, ...known });
  const address = (state) => {
    const changed = Object.fromEntries(Object.entries(state).filter(([name, value]) => !same(value, data.start[name])));
    return `${location.href.split("#")[0]}#${encodeURIComponent(JSON.stringify({ [place]: changed }))}`;
  };
  explorers.push({ kind, store, address: () => address(store.state) });
  box.corsd = mount(kind, box, { data, store, ask: null, faces: data.faces ? facesOf(data.faces) : null, links: { ...pageLinks, address }, feed: () => data.feed });
}

/** The section of a panel. Its function `fill` creates the content, for which the section must be on the page already. */
function section({ kind, title, data }, heading) {
  const node = el("section", { class: `panel ${kind}`, "data-kind": kind });
  if (title) node.append(el(heading, {}, title));
  const body = el("div", { class: "body" });
  node.append(body);
  node.fill = () => (PLAIN[kind] ? PLAIN[kind](data, body)?.() : explore(kind, data, body));
  return node;
}

function start() {
  document.documentElement.dataset.theme = isDark() ? "dark" : "light";
  const themes = [["auto", "system"], ["light", "light"], ["dark", "dark"]];
  const top = el("header", { class: "page corsd" }, el("h1", {}, document.title), choice("page colours", themes, "auto", recolour));
  const sections = PAGE.panels.map((panel) => section(panel, "h2"));
  const titled = sections.filter((node, i) => PAGE.panels[i].title);
  titled.forEach((node, i) => { node.id = `panel-${i + 1}`; });
  const links = titled.map((node) => el("a", { href: `#${node.id}` }, node.firstChild.textContent));
  const main = el("main", {}, ...sections);
  document.body.append(top, ...(links.length > 2 ? [el("nav", { "aria-label": "on this page" }, ...links)] : []), main);
  sections.forEach((node) => node.fill());
  dark.addEventListener("change", () => recolour(theme));
  let before = theme;
  const paper = (there) => document.documentElement.toggleAttribute("data-printing", there);
  addEventListener("beforeprint", () => { paper(true); before = theme; recolour("light"); });
  addEventListener("afterprint", () => { paper(false); recolour(before); });
}

document.addEventListener("DOMContentLoaded", start);
