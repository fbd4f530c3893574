// @ts-check
/** The fidelity of a distillation, beside that of the same text's other soft prompts. */

import { h } from "../lib/dom.js";
import { fidelityPicture, fidelityTable, percent } from "./distill_picture.js";
import { jobPath } from "./train_follow.js";
import { nameOfJob } from "./train_words.js";

const MOST_OTHERS = 12;

/** A section with picture and numbers; null without a fidelity. @param {import("./index.js").Context} context @param {any} job @param {any} fidelity */
export async function distilled(context, job, fidelity) {
  if (!fidelity) return null;
  const own = pointOf(job, fidelity);
  const points = [own, ...(await others(context, job))];
  const { full_text: text, no_text: without, rows, text_tokens: tokens } = fidelity;
  const again = `#/distill?file=${encodeURIComponent(job.soft_prompt.distill.file)}`;
  return h(
    "section",
    { class: "card", "aria-label": "Fidelity" },
    h("h2", null, `${percent(own.recovered)} of the text's effect, in ${own.tokens} tokens in place of ${tokens}`),
    fidelityPicture(points, tokens),
    fidelityTable(points, { tokens, kvBytes: text.kv_bytes, agreement: text.agreement }, (point) =>
      point.model === own.model ? `${point.name} (this one)` : h("a", { href: `#/distill?job=${encodeURIComponent(point.job)}` }, point.name),
    ),
    h("p", { class: "hint" }, `Effect: how far the text moves the next token of answers to ${rows} held-out queries; without it the divergence is ${without.divergence.toFixed(3)} nats.`),
    h("div", { class: "actions" }, h("a", { class: "button", href: again }, "Try another number of tokens")),
  );
}

/** @param {any} job @param {any} fidelity @returns {import("./distill_picture.js").Point & {job: string}} */
function pointOf(job, fidelity) {
  const soft = /** @type {any} */ (Object.values(fidelity.soft)[0]);
  return { job: job.id, name: nameOfJob(job), model: job.fine_tuned_model, tokens: soft.prefix_tokens, recovered: soft.recovered, agreement: soft.agreement, kvBytes: soft.kv_bytes };
}

/** The soft prompts of other finished jobs on the same text. @param {import("./index.js").Context} context @param {any} job */
async function others({ api, signal }, job) {
  const file = job.soft_prompt.distill.file;
  const { data } = await api.get("/v1/fine_tuning/jobs?limit=100", { signal });
  const same = data.filter((/** @type {any} */ each) => each.id !== job.id && each.status === "succeeded" && each.soft_prompt.distill?.file === file);
  const found = same.slice(0, MOST_OTHERS).map(async (/** @type {any} */ each) => {
    const page = await api.get(`${jobPath(each.id)}/events?limit=20`, { signal });
    const fidelity = page.data.find((/** @type {any} */ event) => event.data?.fidelity)?.data.fidelity;
    return fidelity ? [pointOf(each, fidelity)] : [];
  });
  return (await Promise.all(found)).flat();
}
