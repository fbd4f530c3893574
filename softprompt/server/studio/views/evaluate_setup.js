// @ts-check
/** What is evaluated: a file, columns and settings; as a form, in a link, and as the key of what is kept. */

import { errorNotice, field, fill, h } from "../lib/dom.js";
import { firstColumns, readColumns, readSampling, writeColumns, writeSampling } from "./compare_columns.js";
import { columnPicker } from "./compare_picker.js";

const MOST_ROWS = 5_000;
const NUMBERS = {
  limit: ["Rows", { min: "1", max: String(MOST_ROWS), step: "1" }, "the first ones of the file", 200],
  max_tokens: ["Longest answer in tokens", { min: "1", step: "1" }, "", 64],
  concurrency: ["Requests at a time", { min: "1", max: "16", step: "1" }, "", 4],
  temperature: ["Temperature", { min: "0", max: "2", step: "0.1" }, "0 is the likeliest answer", 0],
  seed: ["Seed", { step: "1" }, "the same for all rows and columns", 0],
};
const ANSWERS = { auto: "One of the labels, where they are few", free: "Free text" };

/**
 * @typedef {{file: string, columns: any[], answers: string, numbers: Record<string, number>}} Setup
 */

/** The setup of a link. @returns {Setup} */
export function readSetup(hash, models) {
  const linked = readColumns(hash);
  const starts = Object.fromEntries(Object.entries(NUMBERS).map(([name, [, , , start]]) => [name, start]));
  const read = readSampling(hash, starts);
  const numbers = Object.fromEntries(Object.keys(NUMBERS).map((name) => [name, read[name]]));
  return {
    file: hash.get("file") ?? "",
    columns: linked.length ? linked : firstColumns(models),
    answers: hash.get("answers") === "free" ? "free" : "auto",
    numbers: { ...numbers, ...inside(numbers) },
  };
}

function inside(numbers) {
  const limit = Math.min(MOST_ROWS, Math.max(1, Math.floor(numbers.limit)));
  return { limit, concurrency: Math.min(16, Math.max(1, Math.floor(numbers.concurrency))) };
}

/** The link of a setup. @param {Setup} setup */
export function linkOf(setup) {
  const hash = new URLSearchParams();
  if (setup.file) hash.set("file", setup.file);
  writeColumns(setup.columns, hash);
  hash.set("answers", setup.answers);
  writeSampling(setup.numbers, hash);
  return hash;
}

/** What answers belong to: all of a setup that a request depends on. @param {Setup} setup */
export function keyOf(setup) {
  const { concurrency: _, ...numbers } = setup.numbers;
  return JSON.stringify([setup.file, setup.columns, setup.answers, numbers]);
}

/** The sampling of a setup's requests. @param {Setup} setup */
export function samplingOf(setup) {
  return { temperature: setup.numbers.temperature, max_tokens: setup.numbers.max_tokens, seed: setup.numbers.seed };
}

/**
 * The form; it changes the setup in place.
 * @param {Setup} setup @param {any[]} models @param {{api: any, signal: AbortSignal, announce: (text: string) => void}} context
 * @param {() => void} onChange
 */
export function setupForm(setup, models, context, onChange) {
  const numbers = Object.entries(NUMBERS).map(([name, [label, limits, hint, start]]) => {
    const changed = (/** @type {any} */ event) => {
      const read = readSampling(new URLSearchParams({ [name]: event.target.value }), { [name]: start });
      setup.numbers[name] = read[name];
      Object.assign(setup.numbers, inside(setup.numbers));
      event.target.value = setup.numbers[name];
      onChange();
    };
    return field(label, h("input", { type: "number", ...limits, value: setup.numbers[name], onChange: changed }), hint);
  });
  const answered = (/** @type {any} */ event) => {
    setup.answers = event.target.value;
    onChange();
  };
  const options = Object.entries(ANSWERS).map(([value, label]) => h("option", { value }, label));
  const answers = field("Answers", h("select", { value: setup.answers, onChange: answered }, options));
  return h(
    "fieldset",
    { class: "plain stack" },
    h("legend", { class: "unseen" }, "What is evaluated"),
    fileChoice(setup, context, onChange),
    columnPicker(models, setup.columns, onChange),
    h(
      "details",
      { class: "sampling" },
      h("summary", null, "Settings"),
      h("div", { class: "grid settings" }, answers, numbers),
    ),
  );
}

/** The key's files, and a new one from the user's disk. */
function fileChoice(setup, { api, signal, announce }, onChange) {
  const select = h("select", { onChange: () => chosen(select.value) });
  const place = h("div");
  const progress = h("progress", { max: "1", value: 0, hidden: true, "aria-label": "Upload" });
  const chosen = (/** @type {string} */ id) => {
    setup.file = id;
    onChange();
  };
  const load = async () => {
    try {
      const { data } = await api.get("/v1/files?purpose=fine-tune", { signal });
      const known = data.some((file) => file.id === setup.file) || !setup.file;
      const others = known ? [] : [h("option", { value: setup.file }, setup.file)];
      fill(
        select,
        h("option", { value: "" }, data.length ? "Choose a file" : "No files yet"),
        others,
        data.map((file) => h("option", { value: file.id }, `${file.filename} · ${file.id}`)),
      );
      select.value = setup.file;
    } catch (error) {
      if (!signal.aborted) fill(place, errorNotice(error));
    }
  };
  const upload = async (/** @type {any} */ event) => {
    const [file] = event.target.files;
    if (!file) return;
    fill(place);
    progress.hidden = false;
    try {
      const { id } = await api.upload(file, "fine-tune", (share) => {
        progress.value = share;
      });
      chosen(id);
      await load();
      announce(`${file.name} is uploaded.`);
    } catch (error) {
      fill(place, errorNotice(error));
    }
    progress.hidden = true;
    event.target.value = "";
  };
  load();
  const input = h("input", { type: "file", accept: ".jsonl", onChange: upload });
  return h(
    "div",
    { class: "stack" },
    h("div", { class: "grid" }, field("File with rows", select), field("Or upload one", input, "JSONL, a row a line")),
    progress,
    place,
  );
}
