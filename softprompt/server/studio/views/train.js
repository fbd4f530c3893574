// @ts-check
/** Train: rows in, a soft prompt out. `file` in the address is an uploaded file, `job` a job; without them both are chosen. */

import { errorNotice, fill, h } from "../lib/dom.js";
import { fileDrop, uploadedFiles } from "./train_file.js";
import { showJob } from "./train_job.js";
import { jobsTable } from "./train_jobs.js";
import { showRows } from "./train_rows.js";
import { jobOptions, megabytes } from "./train_words.js";

export const view = {
  path: "train",
  title: "Train",
  /** @param {any} root @param {import("./index.js").Context} context */
  async render(root, context) {
    const options = await jobOptions(root, context);
    if (!options) return;
    const [job, file] = [context.hash.get("job"), context.hash.get("file")];
    if (job) await showJob(root, context, job, "train");
    else if (file) await showRows(root, context, file, options);
    else await showStart(root, context, options);
  },
};

/** Choose a file, or look at a job. @param {any} root @param {import("./index.js").Context} context @param {any} options */
async function showStart(root, context, options) {
  const { file_bytes: bytes, file_rows: rows } = options.quotas;
  const limits = [bytes ? megabytes(bytes) : "", rows ? `${rows.toLocaleString("en")} rows` : ""].filter(Boolean);
  const drop = fileDrop({
    title: "Rows to learn from",
    hint: `JSONL, one row a line${limits.length ? `, at most ${limits.join(" and ")}` : ""}. Every row is checked before anything is trained.`,
    accept: ".jsonl",
    maxBytes: bytes,
    context,
    onUploaded: (/** @type {any} */ file) => { location.hash = `#/train?file=${encodeURIComponent(file.id)}`; },
  });
  const known = h("div");
  const jobs = jobsTable(context, (job) => !job.soft_prompt?.distill, "train");
  root.append(
    h("div", { class: "grid" }, drop, h("section", { class: "card" }, h("h2", null, "What rows look like"), shapes(), known)),
    jobs,
  );
  try {
    const files = await uploadedFiles(context, (file) => file.filename.toLowerCase().endsWith(".jsonl"));
    fill(known, knownFiles(files));
  } catch (error) {
    if (!context.signal.aborted) fill(known, errorNotice(error));
  }
}

function shapes() {
  const lines = [
    '{"prompt": "Where is my parcel?", "completion": "On its way."}',
    '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}',
    '{"text": "great film", "label": "positive"}',
    '{"prompt": "Name a color.", "chosen": "Blue", "rejected": "That is a great question!"}',
  ];
  return h("pre", { tabindex: "0", "aria-label": "Examples of rows" }, lines.join("\n"));
}

/** @param {any[]} files */
function knownFiles(files) {
  if (!files.length) return null;
  const links = files.slice(0, 8).map((file) =>
    h("li", null, h("a", { href: `#/train?file=${encodeURIComponent(file.id)}` }, file.filename), " ", h("small", null, megabytes(file.bytes))),
  );
  return h("div", { class: "stack" }, h("h3", null, "Uploaded files"), h("ul", { class: "bare" }, links));
}
