// @ts-check
/** A file of the user's: dropped or chosen, sent with progress, and its faults line by line in the words of the API. */

import { announce } from "../lib/announce.js";
import { commands, curl, quoted } from "../lib/command.js";
import { errorNotice, fill, h, uniqueId } from "../lib/dom.js";
import { address } from "../lib/api.js";
import { apiKey } from "../lib/state.js";
import { megabytes } from "./train_words.js";

const PURPOSE = "fine-tune";
const SHOWN_FILES = 200;

/**
 * A place to drop or choose a file.
 * @param {{title: string, hint: string, accept: string, maxBytes: number, context: import("./index.js").Context,
 *   onUploaded: (file: any) => void, isSmall?: boolean}} options `maxBytes` 0 is no maximum
 */
export function fileDrop({ title, hint, accept, maxBytes, context, onUploaded, isSmall = false }) {
  const [id, hintId] = [uniqueId("file"), uniqueId("hint")];
  const input = h("input", { type: "file", id, accept, class: "unseen", "aria-label": title, "aria-describedby": hintId });
  const state = h("div", { class: "stack" });
  const element = h(
    "section",
    { class: isSmall ? "drop small" : "card drop" },
    h(isSmall ? "h3" : "h2", null, title),
    h("div", { class: "actions" }, input, h("label", { class: "button", for: id, "aria-hidden": "true" }, "Choose a file"), h("span", { class: "hint" }, "or drop it here")),
    h("p", { class: "hint", id: hintId }, hint),
    state,
  );
  const take = async (/** @type {File | undefined} */ file) => {
    if (!file || input.disabled) return;
    input.disabled = true;
    try {
      await sendFile(context.api, file, state, { maxBytes, onUploaded });
    } finally {
      input.disabled = false;
      input.value = ""; // so that the mended file of the same name is a change
    }
  };
  input.addEventListener("change", () => take(input.files[0]));
  acceptDrops(element, take, context.signal);
  return element;
}

/** @param {any} element @param {(file: File | undefined) => void} take @param {AbortSignal} signal */
function acceptDrops(element, take, signal) {
  const isOver = (/** @type {boolean} */ over) => element.classList.toggle("over", over);
  element.addEventListener("dragover", (/** @type {DragEvent} */ event) => {
    event.preventDefault();
    isOver(true);
  });
  element.addEventListener("dragleave", () => isOver(false));
  element.addEventListener("drop", (/** @type {DragEvent} */ event) => {
    event.preventDefault();
    isOver(false);
    take(event.dataTransfer?.files[0]);
  });
  // A file that misses the place would replace the page.
  for (const kind of ["dragover", "drop"]) window.addEventListener(kind, (event) => event.preventDefault(), { signal });
}

/** @param {any} api @param {File} file @param {any} state where progress and faults are shown @param {{maxBytes: number, onUploaded: (file: any) => void}} options */
async function sendFile(api, file, state, { maxBytes, onUploaded }) {
  if (maxBytes && file.size > maxBytes) {
    const message = `${file.name} has ${megabytes(file.size)}, and files have at most ${megabytes(maxBytes)}. Nothing was sent.`;
    fill(state, errorNotice({ message }));
    return;
  }
  const bar = h("progress", { max: "1", "aria-label": `Sending ${file.name}` });
  bar.value = 0;
  const words = h("p", { class: "hint" }, `Sending ${file.name}, ${megabytes(file.size)}`);
  fill(state, words, bar);
  announce(`Sending ${file.name}`);
  try {
    const sent = await api.upload(file, PURPOSE, (share) => {
      bar.value = share;
      if (share >= 1) words.textContent = `Checking every row of ${file.name}`;
    });
    fill(state);
    announce(`${file.name} is uploaded and checked.`);
    onUploaded(sent);
  } catch (error) {
    fill(state, faults(error, file.name));
  }
}

/** What is wrong with a file: the API's first line, and the faults below it, each with its line. @param {any} error @param {string} name */
export function faults(error, name) {
  const [heading, ...lines] = String(error.message).split("\n");
  if (!lines.length) return errorNotice(error);
  return h(
    "div",
    { class: "notice bad stack", role: "alert" },
    h("p", null, h("strong", null, name), ": ", heading),
    h("ul", { class: "faults" }, lines.map((line) => h("li", null, line))),
    h("p", null, "Mend these lines and choose the file again."),
  );
}

/** Files that the user has uploaded, newest first. @param {import("./index.js").Context} context @param {(file: any) => boolean} isWanted */
export async function uploadedFiles(context, isWanted) {
  const page = await context.api.get(`/v1/files?purpose=${PURPOSE}&limit=${SHOWN_FILES}`, { signal: context.signal });
  return page.data.filter(isWanted);
}

/** The upload of a file as commands. @param {string} filename @param {string} model */
export function uploadCommands(filename, model) {
  const key = apiKey() ? ' -H "Authorization: Bearer $SOFTPROMPT_API_KEY"' : "";
  const file = quoted(`file=@${filename}`);
  return commands({
    curl: `curl ${quoted(address("/v1/files"))}${key} -F purpose=${PURPOSE} -F ${file}`,
    cli: `softprompt data preview ${quoted(filename)} --model ${quoted(model)}`,
  });
}

/** A request for a preview as commands. @param {string} id @param {any} body */
export function previewCommands(id, body) {
  return commands({ curl: curl("POST", `/v1/files/${id}/preview`, body) });
}
