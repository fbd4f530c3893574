// @ts-check
/** A file of rows: what of them is learned, the settings with the recipe's choices, and the start of a job. */

import { announce } from "../lib/announce.js";
import { curl, commands, quoted } from "../lib/command.js";
import { errorNotice, fill, h } from "../lib/dom.js";
import { fileDrop, uploadCommands } from "./train_file.js";
import { settingsForm } from "./train_settings.js";
import { megabytes } from "./train_words.js";

const SHOWN_ROWS = 3;
const TYPING_MS = 350;

/**
 * Show an uploaded file.
 * @param {any} root
 * @param {import("./index.js").Context} context
 * @param {string} id the file's
 * @param {any} options what jobs may have
 */
export async function showRows(root, context, id, options) {
  const { api, signal } = context;
  const file = await api.get(`/v1/files/${encodeURIComponent(id)}`, { signal });
  const rows = h("div", { class: "stack", "aria-busy": "true" }, h("p", { class: "hint" }, "Reading the rows …"));
  const form = settingsForm({ name: `train-${id}`, options, context, onChange: () => later() });
  const started = h("div", { class: "stack" });
  const validation = validationChooser(context, options, () => later());
  const body = () => jobBody(form.values(), file.id, validation.id());
  const start = h("button", { type: "submit", class: "primary" }, "Start training");
  const shown = h("div");
  form.element.append(validation.element, h("div", { class: "actions" }, start), started, shown);
  form.element.addEventListener("submit", async (/** @type {Event} */ event) => {
    event.preventDefault();
    await startJob(context, body(), start, started, form, "train");
  });
  root.append(
    h("p", null, h("a", { href: "#/train" }, "← Another file")),
    h("div", { class: "grid wide" }, card(file, rows, options), h("section", { class: "card" }, h("h2", null, "Settings"), form.element)),
  );
  const look = async () => {
    fill(shown, startCommands(body(), file.filename, options.model, validation.id()));
    try {
      const found = await api.post(`/v1/files/${file.id}/preview`, previewBody(body()), { signal });
      fill(rows, preview(found));
      form.offerPairs(found.method_types.includes("dpo"));
      form.explain(found.settings);
      rows.setAttribute("aria-busy", "false");
    } catch (error) {
      if (!signal.aborted) show(rows, form, error);
    }
  };
  const later = debounced(look, signal);
  api.onBack(look, signal);
  await look();
}

/** An error about a setting stands at the setting, another one in place of the rows. @param {any} rows @param {any} form @param {any} error */
function show(rows, form, error) {
  rows.setAttribute("aria-busy", "false");
  if (!form.blame(error)) fill(rows, errorNotice(error));
}

/** Call it when nothing has changed for a while. @param {() => void} call @param {AbortSignal} signal */
export function debounced(call, signal) {
  let timer = 0;
  signal.addEventListener("abort", () => clearTimeout(timer));
  return () => {
    clearTimeout(timer);
    if (!signal.aborted) timer = setTimeout(call, TYPING_MS);
  };
}

/** @param {any} file @param {any} rows @param {any} options */
function card(file, rows, options) {
  return h(
    "section",
    { class: "card" },
    h("h2", null, file.filename),
    h("p", { class: "hint" }, `${megabytes(file.bytes)}, every row checked`),
    rows,
    uploadCommands(file.filename, options.model),
  );
}

/** The rows of a preview, what is learned of them, and notes. @param {any} found */
export function preview(found) {
  const estimated = found.read_rows === null ? "" : `about ${found.read_rows} rows that were read`;
  const share = found.tokens ? Math.round((100 * found.learned_tokens) / found.tokens) : 0;
  const isPair = found.rows.some((/** @type {any} */ row) => row.rejected);
  const counts = `${count(found.train_rows, "row")} to train on and ${count(found.validation_rows, "row")} to validate; ${count(found.learned_tokens, "token")} of ${found.tokens.toLocaleString("en")} are learned (${share} %)`;
  return h(
    "div",
    { class: "stack" },
    h("p", null, counts, estimated && ` — estimated from ${estimated}`, "."),
    h("p", { class: "legend" }, h("span", { class: "token" }, "read"), h("mark", { class: "learned" }, isPair ? "chosen" : "learned"), isPair && h("mark", { class: "rejected" }, "rejected")),
    h("ol", { class: "bare", "aria-label": "The first rows as the model reads them" }, found.rows.map((/** @type {any} */ row) => shownRow(row, found.head))),
    found.notes.map((/** @type {string} */ note) => h("p", { class: "hint" }, `Note: ${note}`)),
  );
}

/** @param {any} row @param {string} head */
function shownRow(row, head) {
  const size = (/** @type {any} */ answer) => `${count(answer.tokens, "token")}, ${answer.learned_tokens} learned`;
  const text = (/** @type {any} */ answer, /** @type {"learned" | "chosen" | "rejected"} */ kind) =>
    h("p", { class: "row-text" }, head ? h("span", { class: "hint" }, head) : null, marked(answer.pieces, kind));
  const { line, rejected } = row;
  if (!rejected) return h("li", null, h("h3", { class: "hint" }, `Line ${line}: ${size(row)}`), text(row, "learned"));
  return h(
    "li",
    null,
    h("h3", { class: "hint" }, `Line ${line}, the chosen answer: ${size(row)}`),
    text(row, "chosen"),
    h("h3", { class: "hint" }, `Line ${line}, the rejected answer: ${count(rejected.tokens, "token")}, ${rejected.learned_tokens} compared`),
    text(rejected, "rejected"),
  );
}

/** @param {any[]} pieces @param {"learned" | "chosen" | "rejected"} kind of answer */
function marked(pieces, kind) {
  const look = kind === "rejected" ? "rejected" : "learned";
  return pieces.map((piece) =>
    piece.learned
      ? h("mark", { class: look }, h("span", { class: "unseen" }, ` ${kind}: `), piece.text, h("span", { class: "unseen" }, " (end) "))
      : piece.text,
  );
}

/** @param {number} number @param {string} word */
function count(number, word) {
  return `${number.toLocaleString("en")} ${word}${number === 1 ? "" : "s"}`;
}

/** A second file, to validate on. @param {import("./index.js").Context} context @param {any} options @param {() => void} onChange */
function validationChooser(context, options, onChange) {
  let chosen = /** @type {any} */ (null);
  const state = h("p", { class: "hint", hidden: true });
  const drop = fileDrop({
    title: "Validation rows",
    hint: "Optional: without them a tenth of the rows is held out.",
    accept: ".jsonl",
    maxBytes: options.quotas.file_bytes,
    context,
    isSmall: true,
    onUploaded: (file) => {
      chosen = file;
      fill(state, `Validation on ${file.filename}. `, h("button", { type: "button", class: "quiet", onClick: () => { chosen = null; state.hidden = true; onChange(); } }, "Leave it out"));
      state.hidden = false;
      onChange();
    },
  });
  const element = h("details", null, h("summary", null, "Validation file"), drop, state);
  return { element, id: () => chosen?.id ?? "" };
}

/** The body of a job on rows. @param {any} values of the form @param {string} training @param {string} validation */
export function jobBody(values, training, validation) {
  const body = { ...values, training_file: training };
  return validation ? { ...body, validation_file: validation } : body;
}

/** The preview of the same job. @param {any} body */
function previewBody(body) {
  const { model, seed, hyperparameters, method, soft_prompt, validation_file } = body;
  return plain({ model, seed, hyperparameters, method, soft_prompt, validation_file, rows: SHOWN_ROWS });
}

/** Without what is not given. @param {Record<string, any>} values */
export function plain(values) {
  return Object.fromEntries(Object.entries(values).filter(([, value]) => value !== undefined && value !== ""));
}

/**
 * Put a job into the queue and go to its page.
 * @param {import("./index.js").Context} context @param {any} body @param {any} button @param {any} place of an error
 * @param {{blame: (error: any) => boolean, isReadable: () => boolean}} form @param {string} view
 */
export async function startJob(context, body, button, place, form, view) {
  if (button.disabled || !form.isReadable()) return;
  button.disabled = true;
  fill(place);
  try {
    const job = await context.api.post("/v1/fine_tuning/jobs", body);
    announce("The job is in the queue.");
    location.hash = `#/${view}?job=${encodeURIComponent(job.id)}`;
  } catch (error) {
    if (!form.blame(error)) fill(place, errorNotice(error));
    button.disabled = false;
  }
}

/** The start as commands; the command line trains on this machine. @param {any} body @param {string} filename @param {string} model @param {string} validation */
function startCommands(body, filename, model, validation) {
  const { soft_prompt: own = {}, method } = body;
  const hyper = (method ? method[method.type].hyperparameters : body.hyperparameters) ?? {};
  const name = (body.suffix ?? "my-prompt").toLowerCase().split(/\s+/).join("-");
  const words = ["softprompt", "train", "--model", quoted(model), "--data", quoted(filename), "--name", quoted(name)];
  const flags = { "--method": own.method, "--n-tokens": own.n_tokens, "--minutes": own.minutes, "--epochs": hyper.n_epochs, "--batch-size": hyper.batch_size, "--objective": method?.type, "--beta": hyper.beta, "--seed": body.seed };
  for (const [flag, value] of Object.entries(flags)) if (value !== undefined) words.push(flag, quoted(String(value)));
  // A factor of the rate, and a file for validation alone, are no options of the command line.
  const sayable = !validation && hyper.learning_rate_multiplier === undefined && body.model === model;
  return commands({ curl: curl("POST", "/v1/fine_tuning/jobs", body), cli: sayable ? words.join(" ") : "" });
}
