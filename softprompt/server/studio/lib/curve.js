// @ts-check
/** Curves over training steps, drawn by uPlot on a canvas, with the same numbers as a table. */

import { fill, h } from "./dom.js";

const HEIGHT = 260; // pixels, reserved before anything is drawn
const COLORS = ["--curve-1", "--curve-2", "--curve-3", "--curve-4"];
const TABLE_ROWS = 500;

/** @type {Promise<any> | null} */
let library = null;

/** uPlot, loaded on first use: two files of this server. */
function uplot() {
  library ??= new Promise((resolve, reject) => {
    const base = new URL("../vendor/", import.meta.url);
    document.head.append(h("link", { rel: "stylesheet", href: new URL("uplot.css", base).href }));
    const script = h("script", { src: new URL("uplot.js", base).href });
    script.addEventListener("load", () => resolve(/** @type {any} */ (globalThis).uPlot));
    script.addEventListener("error", () => reject(new Error("uplot.js cannot be loaded")));
    document.head.append(script);
  });
  return library;
}

/** The color that a variable of the style sheet has now. @param {HTMLElement} element @param {string} name */
function colorOf(element, name) {
  const probe = h("span", { class: "unseen" });
  probe.style.setProperty("color", `var(${name})`);
  element.append(probe);
  const color = getComputedStyle(probe).color;
  probe.remove();
  return color;
}

/**
 * A picture of curves.
 * @param {{title: string, xLabel: string, series: string[], signal?: AbortSignal}} options `title` is its caption,
 *   `series` the names of the curves, and `signal` ends it
 * @returns {{element: any, update: (x: number[], values: (number | null)[][]) => void}} `update` draws: x ascending,
 *   and for each curve a value or null at every x
 */
export function curve({ title, xLabel, series, signal }) {
  const plotted = h("div", { class: "plot", "aria-hidden": "true" });
  plotted.style.setProperty("min-height", `${HEIGHT}px`);
  const numbers = h("div", { class: "table", tabindex: "0", role: "region", "aria-label": title });
  const element = h(
    "figure",
    { class: "curve" },
    h("figcaption", null, title),
    plotted,
    h("details", null, h("summary", null, "The numbers"), numbers),
  );
  /** @type {[number[], ...(number | null)[][]]} */
  let data = [[], ...series.map(() => [])];
  /** @type {any} */
  let plot = null;
  const draw = async () => {
    const uPlot = await uplot();
    if (signal?.aborted || !plotted.clientWidth) return;
    plot?.destroy();
    plot = new uPlot(options(plotted, xLabel, series), data, plotted);
  };
  watch(plotted, draw, () => plot?.setSize({ width: plotted.clientWidth, height: HEIGHT }), signal);
  const update = (/** @type {number[]} */ x, /** @type {(number | null)[][]} */ values) => {
    data = [x, ...values];
    fill(numbers, table(xLabel, series, data));
    if (plot) plot.setData(data);
    else draw();
  };
  signal?.addEventListener("abort", () => plot?.destroy());
  return { element, update };
}

/** Draw again in other colors when the theme changes, and in another size when the width does. @param {HTMLElement} element @param {() => void} draw @param {() => void} resize @param {AbortSignal} [signal] */
function watch(element, draw, resize, signal) {
  let known = 0;
  const sizes = new ResizeObserver(() => {
    if (element.clientWidth === known) return;
    if (known) resize();
    else draw();
    known = element.clientWidth;
  });
  sizes.observe(element);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", draw, { signal });
  document.addEventListener("softprompt-theme", draw, { signal });
  signal?.addEventListener("abort", () => sizes.disconnect());
}

const WHOLE = Array.from({ length: 30 }, (_, i) => [1, 2, 5][i % 3] * 10 ** Math.floor(i / 3)); // there is no half step

/** @param {HTMLElement} element @param {string} xLabel @param {string[]} series */
function options(element, xLabel, series) {
  const [text, grid] = [colorOf(element, "--text-2"), colorOf(element, "--line")];
  const font = `12px ${getComputedStyle(element).fontFamily}`;
  const axis = { stroke: text, font, labelFont: font, grid: { stroke: grid, width: 1 }, ticks: { stroke: grid, width: 1 } };
  const lines = series.map((label, i) => ({
    label,
    stroke: colorOf(element, COLORS[i % COLORS.length]),
    width: 2,
    dash: i % 2 ? [6, 4] : undefined, // so that color is not the only difference
    spanGaps: true,
    points: { size: 6 },
  }));
  return {
    width: element.clientWidth,
    height: HEIGHT,
    legend: { live: false },
    scales: { x: { time: false } },
    axes: [{ ...axis, label: xLabel, labelSize: 20, incrs: WHOLE }, { ...axis, size: 56 }],
    series: [{ label: xLabel }, ...lines],
  };
}

/** @param {string} xLabel @param {string[]} series @param {(number | null)[][]} data */
function table(xLabel, series, data) {
  const first = Math.max(0, data[0].length - TABLE_ROWS);
  const rows = data[0].slice(first).map((x, i) =>
    h("tr", null, h("th", { scope: "row", class: "number" }, x), data.slice(1).map((values) => h("td", { class: "number" }, shown(values[first + i])))),
  );
  const head = [xLabel, ...series].map((name) => h("th", { scope: "col", class: "number" }, name));
  const note = first ? h("caption", null, `The last ${TABLE_ROWS} of ${data[0].length}`) : null;
  return h("table", null, note, h("thead", null, h("tr", null, head)), h("tbody", null, rows));
}

/** @param {number | null | undefined} value */
function shown(value) {
  return value === null || value === undefined ? "–" : value.toPrecision(4);
}
