// @ts-check
/** What a finished job is worth: scores beside base model and text prompt, and the ways on. */

import { commands, curl, quoted } from "../lib/command.js";
import { h, fill } from "../lib/dom.js";
import { distilled } from "./distill_result.js";
import { jobPath } from "./train_follow.js";

const LONGEST_TEXT = 6000; // characters of a text prompt in an address
const COLUMNS = /** @type {[string, string][]} */ ([["base", "Base model"], ["text_prompt", "Text prompt"], ["soft_prompt", "Soft prompt"]]);

/**
 * Show a finished job's worth.
 * @param {any} place @param {import("./index.js").Context} context @param {any} job @param {any} told data of its last events
 * @param {"train" | "distill"} view
 */
export async function showResult(place, context, job, told, view) {
  const name = job.fine_tuned_model;
  const text = view === "distill" ? await textOf(context, job) : told.text_prompt ?? "";
  const body = { model: name, messages: [{ role: "user", content: "Hi" }] };
  const card = h(
    "section",
    { class: "card", "aria-label": "Result" },
    h("h2", null, "The soft prompt is ready"),
    h("p", null, "Requests call it ", h("code", null, job.user_provided_suffix || name), ". It answers at once; the server needs no restart."),
    view === "train" && told.comparison ? scores(told.comparison) : null,
    h(
      "div",
      { class: "actions" },
      h("a", { class: "button primary", href: compareAddress(name, text, view) }, "Compare"),
      h("a", { class: "button", href: `#/evaluate?${evaluated(job, columns(name, text, view))}` }, "Evaluate"),
      h("a", { class: "button", href: `#/inspect?${new URLSearchParams({ model: name })}` }, "Inspect"),
      job.result_files.map((/** @type {string} */ id) =>
        h("button", { type: "button", class: "quiet", onClick: () => context.api.download(`/v1/files/${id}/content`, `${job.id}.csv`) }, "Steps as CSV"),
      ),
    ),
    commands({ curl: curl("POST", "/v1/chat/completions", body), cli: `softprompt generate ${quoted(`jobs/prompts/${await folderOf(context, name)}`)} -- Hi` }),
  );
  fill(place, card, view === "distill" ? await distilled(context, job, told.fidelity) : null);
}

/** The name of a soft prompt's folder in the server's store. @param {import("./index.js").Context} context @param {string} name */
async function folderOf(context, name) {
  return (await context.api.get(`/v1/models/${encodeURIComponent(name)}`, { signal: context.signal })).root;
}

/** The text that a job has distilled; "" where it is gone or too long for an address. @param {import("./index.js").Context} context @param {any} job */
async function textOf(context, job) {
  try {
    const text = await context.api.text(`/v1/files/${job.soft_prompt.distill.file}/content`, { signal: context.signal });
    return text.length <= LONGEST_TEXT ? text : "";
  } catch {
    return "";
  }
}

/** The columns base model, text prompt and soft prompt, as links of Compare and Evaluate name them. @param {string} name @param {string} text @param {string} view */
function columns(name, text, view) {
  const isShown = Boolean(text) && text.length <= LONGEST_TEXT;
  const written = name.replaceAll("%", "%25").replaceAll(",", "%2C");
  const hash = new URLSearchParams({ columns: ["base", ...(isShown ? ["text"] : []), written].join(",") });
  if (!isShown) return hash;
  hash.set("text", text);
  hash.set("place", view === "distill" ? "system" : "front");
  return hash;
}

/** Evaluate on the validation rows, or on those that were trained on if there are no others. @param {any} job @param {URLSearchParams} hash */
function evaluated(job, hash) {
  const file = job.validation_file ?? job.training_file;
  if (file) hash.set("file", file);
  return hash;
}

/** Compare with the base model and the text prompt. @param {string} name @param {string} text @param {string} view */
export function compareAddress(name, text, view) {
  return `#/compare?${columns(name, text, view)}`;
}

/** Scores on the validation rows with their 95 % intervals. @param {any} comparison */
function scores(comparison) {
  const metrics = Object.keys(comparison.soft_prompt.confidence_interval);
  const rows = COLUMNS.filter(([key]) => comparison[key]).map(([key, title]) => {
    const found = comparison[key];
    const cells = metrics.map((metric) => h("td", { class: "number" }, found[metric]?.toFixed(3) ?? "", " ", interval(found.confidence_interval[metric])));
    return h("tr", null, h("th", { scope: "row" }, title), cells);
  });
  const caption = `On ${comparison.soft_prompt.rows} validation rows, with 95 % intervals`;
  const head = h("tr", null, h("th", { scope: "col" }, "What answers"), metrics.map((metric) => h("th", { scope: "col", class: "number" }, metric.replaceAll("_", " "))));
  const inner = h("table", null, h("caption", { class: "hint" }, caption), h("thead", null, head), h("tbody", null, rows));
  return h("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Comparison" }, inner);
}

/** @param {[number, number] | undefined} bounds */
function interval(bounds) {
  return bounds ? h("small", null, `${bounds[0].toFixed(2)}–${bounds[1].toFixed(2)}`) : null;
}

/** The soft prompt as it was at each validation so far, read when the disclosure opens. @param {import("./index.js").Context} context @param {any} job */
export function checkpoints(context, job) {
  if (job.soft_prompt.distill) return null;
  const place = h("div");
  const details = h("details", null, h("summary", null, "Checkpoints"), place);
  details.addEventListener("toggle", async () => {
    if (!details.open) return;
    const page = await context.api.get(`${jobPath(job.id)}/checkpoints?limit=100`, { signal: context.signal });
    const lines = page.data.map((/** @type {any} */ each) =>
      h("li", null, h("a", { href: compareAddress(each.fine_tuned_model_checkpoint, "", "train") }, `Step ${each.step_number}`), ` — validation loss ${each.metrics.valid_loss?.toFixed(4)}`),
    );
    fill(place, lines.length ? h("ul", { class: "bare" }, lines) : h("p", { class: "hint" }, "None yet: the first one comes with a validation."));
  });
  return details;
}
