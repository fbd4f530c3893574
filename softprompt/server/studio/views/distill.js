// @ts-check
/** Distill: a text in, a soft prompt that has its effect out. `file` in the address is an uploaded text, `job` a job. */

import { commands, curl, quoted } from "../lib/command.js";
import { errorNotice, fill, h, uniqueId } from "../lib/dom.js";
import { draft, keepDraft } from "../lib/state.js";
import { fileDrop, previewCommands, uploadedFiles } from "./train_file.js";
import { showJob } from "./train_job.js";
import { jobsTable } from "./train_jobs.js";
import { debounced, plain, startJob } from "./train_rows.js";
import { settingsForm } from "./train_settings.js";
import { jobOptions, megabytes } from "./train_words.js";

const DRAFT = "distill-text";
const SHOWN_CHARS = 2000;
const TEXT_NAME = /\.(txt|md)$/i;

export const view = {
  path: "distill",
  title: "Distill",
  /** @param {any} root @param {import("./index.js").Context} context */
  async render(root, context) {
    const options = await jobOptions(root, context);
    if (!options) return;
    const [job, file] = [context.hash.get("job"), context.hash.get("file")];
    if (job) await showJob(root, context, job, "distill");
    else if (file) await showText(root, context, file, options);
    else await showStart(root, context, options);
  },
};

/** Paste or drop a text, or look at a job. @param {any} root @param {import("./index.js").Context} context @param {any} options */
async function showStart(root, context, options) {
  const bytes = options.quotas.file_bytes;
  const onUploaded = (/** @type {any} */ file) => { location.hash = `#/distill?file=${encodeURIComponent(file.id)}`; };
  const drop = fileDrop({
    title: "A text of yours",
    hint: `A system prompt, a policy, a manual: .txt or .md in UTF-8${bytes ? `, at most ${megabytes(bytes)}` : ""}.`,
    accept: ".txt,.md",
    maxBytes: bytes,
    context,
    onUploaded,
  });
  const known = h("div");
  drop.append(known);
  root.append(h("div", { class: "grid" }, pasteCard(context, onUploaded), drop), jobsTable(context, (job) => Boolean(job.soft_prompt?.distill), "distill"));
  try {
    const files = await uploadedFiles(context, (file) => TEXT_NAME.test(file.filename));
    const links = files.slice(0, 8).map((/** @type {any} */ file) =>
      h("li", null, h("a", { href: `#/distill?file=${encodeURIComponent(file.id)}` }, file.filename), " ", h("small", null, megabytes(file.bytes))),
    );
    fill(known, links.length ? [h("h3", null, "Uploaded texts"), h("ul", { class: "bare" }, links)] : null);
  } catch (error) {
    if (!context.signal.aborted) fill(known, errorNotice(error));
  }
}

/** @param {import("./index.js").Context} context @param {(file: any) => void} onUploaded */
function pasteCard(context, onUploaded) {
  const id = uniqueId("text");
  const area = h("textarea", { id, rows: "10", value: draft(DRAFT, ""), placeholder: "You are the friendly assistant of a parcel service. …" });
  const problem = h("div");
  const go = h("button", { type: "submit", class: "primary" }, "Read this text");
  const form = h(
    "form",
    { class: "card" },
    h("h2", null, h("label", { for: id }, "Paste a text")),
    area,
    h("div", { class: "actions" }, go),
    h("p", { class: "hint" }, "It becomes a few virtual tokens with its effect, which cost less than the words in every request."),
    problem,
  );
  area.addEventListener("input", () => keepDraft(DRAFT, area.value || undefined));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (go.disabled) return;
    if (!area.value.trim()) {
      fill(problem, errorNotice({ message: "The text is empty." }));
      area.focus();
      return;
    }
    go.disabled = true;
    fill(problem);
    try {
      onUploaded(await context.api.upload(new File([area.value], "text.txt"), "fine-tune"));
    } catch (error) {
      fill(problem, errorNotice(error));
    } finally {
      go.disabled = false;
    }
  });
  return form;
}

/** An uploaded text: what it costs, the settings, and the start. @param {any} root @param {import("./index.js").Context} context @param {string} id @param {any} options */
async function showText(root, context, id, options) {
  const { api, signal } = context;
  const file = await api.get(`/v1/files/${encodeURIComponent(id)}`, { signal });
  const facts = h("div", { class: "stack", "aria-busy": "true" }, h("p", { class: "hint" }, "Counting its tokens …"));
  const form = settingsForm({ name: `distill-${id}`, options, context, isText: true, onChange: () => later() });
  const mode = modeField(() => later());
  const start = h("button", { type: "submit", class: "primary", disabled: true }, "Distill"); // until the mode is known
  const [started, shown] = [h("div"), h("div")];
  let chosen = "text";
  const body = () => distillBody(form.values(), file.id, mode.value() || chosen);
  form.element.append(mode.element, h("div", { class: "actions" }, start), started, shown);
  form.element.addEventListener("submit", async (/** @type {Event} */ event) => {
    event.preventDefault();
    await startJob(context, body(), start, started, form, "distill");
  });
  root.append(
    h("p", null, h("a", { href: "#/distill" }, "← Another text")),
    h(
      "div",
      { class: "grid wide" },
      h("section", { class: "card" }, h("h2", null, file.filename), facts, beginning(context, file)),
      h("section", { class: "card" }, h("h2", null, "Settings"), form.element),
    ),
  );
  const look = async () => {
    const asked = previewBody(form.values(), mode.value());
    try {
      const found = await api.post(`/v1/files/${file.id}/preview`, asked, { signal });
      chosen = found.settings.find((/** @type {any} */ each) => each.setting === "distill.mode").value;
      form.explain(found.settings.filter((/** @type {any} */ each) => each.setting !== "distill.mode"));
      start.disabled = false;
      mode.explain(found.settings.find((/** @type {any} */ each) => each.setting === "distill.mode"));
      fill(facts, textFacts(found, file), previewCommands(file.id, asked));
    } catch (error) {
      if (!signal.aborted && !form.blame(error)) fill(facts, errorNotice(error));
    }
    facts.setAttribute("aria-busy", "false");
    fill(shown, startCommands(body(), file.filename, options.model));
  };
  const later = debounced(look, signal);
  api.onBack(look, signal);
  await look();
}

/** @param {() => void} onChange */
function modeField(onChange) {
  const [id, hintId] = [uniqueId("mode"), uniqueId("hint")];
  const options = [["", "auto"], ["text", "text: it fits in the context"], ["document", "document: read in chunks"]];
  const control = h("select", { id, "aria-describedby": hintId, onChange }, options.map(([value, words]) => h("option", { value }, words)));
  const hint = h("small", { class: "hint", id: hintId }, " ");
  const element = h("div", { class: "field" }, h("label", { for: id }, "Mode"), control, hint);
  return { element, value: () => control.value, explain: (/** @type {any} */ setting) => { hint.textContent = `${setting.value} — ${setting.why}`; } };
}

/** @param {any} found @param {any} file */
function textFacts(found, file) {
  const tokens = found.settings.find((/** @type {any} */ each) => each.setting === "method.n_tokens").value;
  const share = found.tokens ? `, ${(found.tokens / tokens).toFixed(1)} times fewer` : "";
  return h(
    "div",
    { class: "stack" },
    h("p", null, `${found.tokens.toLocaleString("en")} tokens (${megabytes(file.bytes)}) become ${tokens} virtual tokens${tokens < found.tokens ? share : ""}.`),
    found.notes.map((/** @type {string} */ note) => h("p", { class: "hint" }, `Note: ${note}`)),
  );
}

/** The first words of the text. @param {import("./index.js").Context} context @param {any} file */
function beginning({ api, signal }, file) {
  const shown = h("pre", { class: "output", tabindex: "0", "aria-label": "The beginning of the text" });
  api.text(`/v1/files/${file.id}/content`, { signal }).then(
    (text) => { shown.textContent = text.length > SHOWN_CHARS ? `${text.slice(0, SHOWN_CHARS)} …` : text; },
    (error) => { if (!signal.aborted) fill(shown, errorNotice(error)); },
  );
  return shown;
}

/** @param {any} values @param {string} file @param {string} mode */
function distillBody(values, file, mode) {
  return { ...values, soft_prompt: { ...values.soft_prompt, distill: { file, mode } } };
}

/** @param {any} values @param {string} mode */
function previewBody(values, mode) {
  const { seed, hyperparameters, soft_prompt: own = {} } = values;
  return plain({ seed, hyperparameters, soft_prompt: mode ? { ...own, distill: { mode } } : own });
}

/** @param {any} body @param {string} filename @param {string} model */
function startCommands(body, filename, model) {
  const { hyperparameters: hyper = {}, soft_prompt: own } = body;
  const name = (body.suffix ?? "my-text").toLowerCase().split(/\s+/).join("-");
  const words = ["softprompt", "distill", "--model", quoted(model), `--${own.distill.mode}`, quoted(filename), "--name", quoted(name)];
  const flags = { "--method": own.method, "--n-tokens": own.n_tokens, "--minutes": own.minutes, "--epochs": hyper.n_epochs, "--batch-size": hyper.batch_size, "--seed": body.seed };
  for (const [flag, value] of Object.entries(flags)) if (value !== undefined) words.push(flag, quoted(String(value)));
  const cli = hyper.learning_rate_multiplier === undefined ? words.join(" ") : "";
  return commands({ curl: curl("POST", "/v1/fine_tuning/jobs", body), cli });
}
