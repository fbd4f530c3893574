// @ts-check
/** The settings of a job: empty fields are the recipe's choice, which stands below each field with its reason. */

import { field, fill, h, uniqueId } from "../lib/dom.js";
import { draft, keepDraft } from "../lib/state.js";

/**
 * A field: its key, the part of the request it goes into, its label, what kind of input it is, and the setting of the
 * run that the recipe chooses for it.
 * @typedef {{key: string, part: "" | "hyperparameters" | "soft_prompt", label: string, setting: string, input: Record<string, any>, more?: boolean, hint?: string, ofPairs?: boolean}} Field
 */

const NUMBER = { type: "number", inputmode: "decimal", placeholder: "auto" };
/** @type {Field[]} */
const FIELDS = [
  { key: "suffix", part: "", label: "Name", setting: "", input: { type: "text", maxlength: "64", placeholder: "tone", autocomplete: "off" }, hint: "Letters, digits and . _ -; requests then call the soft prompt by it." },
  { key: "n_tokens", part: "soft_prompt", label: "Virtual tokens", setting: "method.n_tokens", input: { ...NUMBER, min: "1", max: "1024", step: "1" } },
  { key: "n_epochs", part: "hyperparameters", label: "Epochs", setting: "train.epochs", input: { ...NUMBER, min: "1", max: "50", step: "1" } },
  { key: "minutes", part: "soft_prompt", label: "Minutes", setting: "train.minutes", input: { ...NUMBER, min: "0", step: "any" }, hint: "Bounds the training; empty: the epochs end it." },
  { key: "batch_size", part: "hyperparameters", label: "Batch size", setting: "train.batch_size", input: { ...NUMBER, min: "1", max: "256", step: "1" }, more: true },
  { key: "learning_rate_multiplier", part: "hyperparameters", label: "Learning rate, times", setting: "train.lr", input: { ...NUMBER, min: "0", step: "any" }, more: true },
  { key: "beta", part: "hyperparameters", label: "Beta", setting: "objective.beta", input: { ...NUMBER, min: "0", max: "2", step: "any" }, more: true, ofPairs: true },
  { key: "seed", part: "", label: "Seed", setting: "", input: { type: "number", min: "0", step: "1", placeholder: "drawn" }, more: true },
];

/**
 * The form.
 * @param {{name: string, options: any, context: import("./index.js").Context, onChange: () => void, isText?: boolean}} options
 *   `name` is the draft's, `options` what jobs may have; `isText` is for a text to distill
 */
export function settingsForm({ name, options, context, onChange, isText = false }) {
  const saved = draft(name, /** @type {Record<string, string>} */ ({}));
  const hints = new Map();
  const controls = new Map();
  const others = h("div");
  const problem = h("p", { class: "notice bad", role: "alert", hidden: true });
  const fields = FIELDS.map((each) => labeled(each, saved, controls, hints));
  const method = select("Method", ["", ...options.methods], saved.method, (value) => value || "auto");
  controls.set("method", method.control);
  hints.set("method.name", method.hint);
  const learn = learnFrom(saved, controls);
  const model = select("Begin with", [options.model], saved.model, (value) => (value === options.model ? "the base model" : value));
  controls.set("model", model.control);
  const more = [method.element, isText ? null : model.element, ...fields.filter((_, i) => FIELDS[i].more)];
  const element = h(
    "form",
    { class: "stack", novalidate: true, "aria-label": "Settings" },
    problem,
    learn.element,
    h("div", { class: "grid small" }, fields.filter((_, i) => !FIELDS[i].more)),
    h("details", { open: FIELDS.some((each) => each.more && saved[each.key]) || Boolean(saved.method) }, h("summary", null, "More settings"), h("div", { class: "grid small" }, more)),
    others,
  );
  element.addEventListener("input", () => {
    keepDraft(name, Object.fromEntries([...controls].map(([key, control]) => [key, control.value])));
    forgive(problem, controls);
    onChange();
  });
  learn.offer(saved.learn === "dpo");
  if (!isText) offerPrompts(context, model.control, options, saved.model);
  return {
    element,
    values: () => valuesOf(controls, options),
    explain: (/** @type {any[]} */ settings) => explain(settings, hints, others),
    offerPairs: learn.offer,
    blame: (/** @type {any} */ error) => blame(error, problem, controls),
    isReadable: () => {
      const [key] = [...controls].find(([, control]) => control.validity.badInput) ?? [];
      return !key || !blame({ param: key, message: "This is not a number." }, problem, controls);
    },
  };
}

/** @param {Field} each @param {Record<string, string>} saved @param {Map<string, any>} controls @param {Map<string, any>} hints */
function labeled(each, saved, controls, hints) {
  const control = h("input", { ...each.input, name: each.key, value: saved[each.key] ?? "" });
  controls.set(each.key, control);
  const element = field(each.label, control, each.hint ?? " ");
  if (each.setting) hints.set(each.setting, element.lastChild);
  return element;
}

/** What pairs of answers are learned by; it is shown where the rows are pairs. @param {Record<string, string>} saved @param {Map<string, any>} controls */
function learnFrom(saved, controls) {
  const { control, element, hint } = select("Learn from", ["", "dpo"], saved.learn, (value) => (value ? "preferences (DPO)" : "answers"));
  controls.set("learn", control);
  const ofPairs = FIELDS.filter((each) => each.ofPairs).map((each) => controls.get(each.key).closest(".field"));
  let isOffered = false;
  const show = () => {
    element.hidden = !isOffered;
    for (const each of ofPairs) each.hidden = !isOffered || !control.value;
    hint.textContent = control.value ? "The chosen answers become likelier than the rejected ones." : "The chosen answers are learned; the rejected ones have no use.";
  };
  control.addEventListener("input", show);
  const offer = (/** @type {boolean} */ isPair) => {
    isOffered = isPair;
    if (!isPair) control.value = "";
    show();
  };
  return { element, offer };
}

/** @param {string} label @param {string[]} values @param {string | undefined} chosen @param {(value: string) => string} shown */
function select(label, values, chosen, shown) {
  const control = h("select", null, values.map((value) => h("option", { value }, shown(value))));
  if (chosen && values.includes(chosen)) control.value = chosen;
  const element = field(label, control, " ");
  return { control, element, hint: element.lastChild };
}

/** Add the soft prompts that a job can go on from. @param {import("./index.js").Context} context @param {any} control @param {any} options @param {string | undefined} chosen */
async function offerPrompts(context, control, options, chosen) {
  try {
    const { data } = await context.api.get("/v1/models", { signal: context.signal });
    const names = data.filter((/** @type {any} */ model) => model.id !== options.model).map((/** @type {any} */ model) => model.id);
    control.append(...names.map((/** @type {string} */ name) => h("option", { value: name }, name)));
    if (chosen && names.includes(chosen)) control.value = chosen;
  } catch {
    // the base model is enough to begin with
  }
}

/** The fields of a request that are filled in. @param {Map<string, any>} controls @param {any} options */
function valuesOf(controls, options) {
  const body = /** @type {any} */ ({ model: controls.get("model").value || options.model });
  const kind = controls.get("learn").value;
  for (const { key, part, input, ofPairs } of FIELDS) {
    const text = controls.get(key).value.trim();
    if (!text || (ofPairs && !kind)) continue;
    const target = part ? (body[part] ??= {}) : body;
    target[key] = input.type === "number" ? Number(text) : text;
  }
  const method = controls.get("method").value;
  if (method) (body.soft_prompt ??= {}).method = method;
  if (!kind) return body;
  const { hyperparameters, ...others } = body; // the older field of OpenAI's has none of other kinds
  return { ...others, method: { type: kind, [kind]: hyperparameters ? { hyperparameters } : {} } };
}

/** What the recipe chooses, below the field that would overrule it; the rest in a list. @param {any[]} settings @param {Map<string, any>} hints @param {any} others */
function explain(settings, hints, others) {
  const rest = [];
  for (const [setting, hint] of hints) {
    const found = settings.find((each) => each.setting === setting);
    if (found) hint.textContent = found.why.startsWith("as given") ? found.why : `auto: ${value(found)} — ${found.why}`;
  }
  for (const each of settings) if (!hints.has(each.setting)) rest.push(each);
  const lines = rest.flatMap((each) => [h("dt", null, h("code", null, each.setting)), h("dd", null, `${value(each)} — ${each.why}`)]);
  fill(others, h("details", null, h("summary", null, "What else the recipe chooses"), h("dl", { class: "facts" }, lines)));
}

/** @param {{value: any}} setting */
function value(setting) {
  return typeof setting.value === "number" ? Number(setting.value.toPrecision(4)) : setting.value ?? "none";
}

/** Show an error at the field that it names; false if it names none. @param {any} error @param {any} problem @param {Map<string, any>} controls */
function blame(error, problem, controls) {
  const control = controls.get(String(error.param ?? "").split(".").pop());
  if (!control) return false;
  forgive(problem, controls);
  problem.id ||= uniqueId("problem");
  control.setAttribute("aria-invalid", "true");
  control.setAttribute("aria-errormessage", problem.id);
  problem.textContent = error.message;
  problem.hidden = false;
  const details = control.closest("details");
  if (details) details.open = true;
  return true;
}

/** @param {any} problem @param {Map<string, any>} controls */
function forgive(problem, controls) {
  problem.hidden = true;
  for (const control of controls.values()) {
    control.removeAttribute("aria-invalid");
    control.removeAttribute("aria-errormessage");
  }
}
