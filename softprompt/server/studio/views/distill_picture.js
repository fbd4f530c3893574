// @ts-check
/** How much of a text its soft prompts keep, by their tokens: a picture as inline SVG, and the same numbers as a table. */

import { h } from "../lib/dom.js";

const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT] = [640, 260];
const [LEFT, RIGHT, TOP, BOTTOM] = [52, 24, 32, 40];

/**
 * A soft prompt's fidelity.
 * @typedef {{name: string, model: string, tokens: number, recovered: number, agreement: number, kvBytes: number}} Point
 */

/** @param {string} tag @param {Record<string, string | number>} attributes @param {...any} children */
function svg(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  element.append(...children.flat(Infinity));
  return element;
}

/** Percent, whole. @param {number} share */
export function percent(share) {
  return `${Math.round(100 * share)} %`;
}

/**
 * The picture.
 * @param {Point[]} points @param {number} textTokens tokens of the whole text
 */
export function fidelityPicture(points, textTokens) {
  const counts = [...points.map((point) => point.tokens), textTokens];
  const [least, most] = [Math.log2(Math.min(...counts)) - 0.5, Math.log2(Math.max(...counts)) + 0.5];
  const bottom = Math.min(0, ...points.map((point) => point.recovered));
  const top = Math.max(1, ...points.map((point) => point.recovered));
  const x = (/** @type {number} */ tokens) => LEFT + ((Math.log2(tokens) - least) / (most - least)) * (WIDTH - LEFT - RIGHT);
  const y = (/** @type {number} */ share) => TOP + ((top - share) / (top - bottom)) * (HEIGHT - TOP - BOTTOM);
  const best = points.reduce((a, b) => (b.recovered > a.recovered ? b : a));
  const label = `${best.tokens} virtual tokens keep ${percent(best.recovered)} of what the text's ${textTokens} tokens do.`;
  const sorted = [...points].sort((a, b) => a.tokens - b.tokens);
  return svg(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label, class: "fidelity" },
    [0, 0.5, 1].map((share) => [
      svg("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(share), y2: y(share), class: share === 1 ? "whole" : "rule" }),
      svg("text", { x: LEFT - 8, y: y(share) + 4, class: "end" }, percent(share)),
    ]),
    svg("text", { x: WIDTH - RIGHT, y: y(1) - 14, class: "end" }, `the text: ${textTokens} tokens`),
    [...new Set(counts)].map((tokens) => svg("text", { x: x(tokens), y: HEIGHT - BOTTOM + 18, class: "middle" }, String(tokens))),
    svg("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 4, class: "middle" }, "tokens before every request"),
    svg("polyline", { points: sorted.map((point) => `${x(point.tokens)},${y(point.recovered)}`).join(" "), class: "through" }),
    points.map((point) => svg("circle", { cx: x(point.tokens), cy: y(point.recovered), r: 6, class: "soft" }, svg("title", {}, `${point.name}: ${percent(point.recovered)}`))),
    svg("rect", { x: x(textTokens) - 6, y: y(1) - 6, width: 12, height: 12, class: "text" }),
  );
}

/** The numbers of the picture. @param {Point[]} points @param {{tokens: number, kvBytes: number, agreement: number}} text @param {(point: Point) => any} named */
export function fidelityTable(points, text, named) {
  const numbers = (/** @type {(string | number)[]} */ ...cells) => cells.map((cell) => h("td", { class: "number" }, cell));
  const rows = [...points].sort((a, b) => a.tokens - b.tokens).map((point) =>
    h("tr", null, h("th", { scope: "row" }, named(point)), numbers(point.tokens, percent(point.recovered), percent(point.agreement), point.kvBytes.toLocaleString("en"))),
  );
  const whole = h("tr", null, h("th", { scope: "row" }, "The text itself"), numbers(text.tokens, "100 %", percent(text.agreement), text.kvBytes.toLocaleString("en")));
  const titles = ["", "Tokens", "Effect kept", "Same next token", "Bytes of keys and values"];
  const head = h("tr", null, titles.map((title, i) => h("th", { scope: "col", class: i ? "number" : "" }, title || h("span", { class: "unseen" }, "What stands before requests"))));
  const inner = h("table", null, h("caption", { class: "unseen" }, "Fidelity by tokens"), h("thead", null, head), h("tbody", null, rows, whole));
  return h("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Fidelity by tokens" }, inner);
}
