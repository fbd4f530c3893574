// @ts-check
/** Tokens colored by the log-probability that the model gave them: 8 steps, darker is less expected. */

import { h } from "./dom.js";

const STEPS = [0.9, 0.7, 0.5, 0.3, 0.1, 0.03, 0.01]; // probabilities: at least the first one is step 0, below the last 7

/** The step of a log-probability, 0 (expected) to 7. @param {number} logprob natural logarithm */
export function step(logprob) {
  const found = STEPS.findIndex((least) => Math.exp(logprob) >= least);
  return found < 0 ? STEPS.length : found;
}

/** A probability in words of a tooltip. @param {number} logprob */
export function probability(logprob) {
  const share = Math.exp(logprob);
  return share >= 0.001 ? `${(share * 100).toFixed(1)} %` : share.toExponential(1);
}

/**
 * A token with its color.
 * @param {{token: string, logprob: number | null}} token as in the API's logprobs; the first token of a text has none
 */
export function tokenSpan({ token, logprob }) {
  if (logprob === null || logprob === undefined) return h("span", { class: "token" }, token);
  const title = `${JSON.stringify(token)}: ${probability(logprob)} (log-probability ${logprob.toFixed(3)})`;
  return h("span", { class: `token step-${step(logprob)}`, title }, token);
}

/**
 * The same tokens as a table, for screen readers and those who want numbers, in a closed disclosure.
 * @param {{token: string, logprob: number | null}[]} tokens
 */
export function tokenTable(tokens) {
  const rows = tokens.map(({ token, logprob }) =>
    h(
      "tr",
      null,
      h("th", { scope: "row" }, h("code", null, JSON.stringify(token).slice(1, -1) || "(no text)")),
      h("td", { class: "number" }, logprob === null || logprob === undefined ? "–" : probability(logprob)),
      h("td", { class: "number" }, logprob === null || logprob === undefined ? "–" : logprob.toFixed(3)),
    ),
  );
  const head = ["Token", "Probability", "Log-probability"].map((title, i) => h("th", { scope: "col", class: i ? "number" : "" }, title));
  const body = h("table", null, h("thead", null, h("tr", null, head)), h("tbody", null, rows));
  const frame = h("div", { class: "table", tabindex: "0", role: "group", "aria-label": "Tokens and their probabilities" }, body);
  return h("details", null, h("summary", null, "Tokens as a table"), frame);
}

/** The legend of the colors. */
export function tokenLegend() {
  const words = ["≥ 90 %", "≥ 70 %", "≥ 50 %", "≥ 30 %", "≥ 10 %", "≥ 3 %", "≥ 1 %", "< 1 %"];
  const parts = words.map((word, i) => h("span", { class: `token step-${i}` }, word));
  return h("p", { class: "legend" }, "Probability of a token: ", parts);
}
