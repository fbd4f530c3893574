// @ts-check
/** The user's jobs with their states, newest first, kept up to date. */

import { curl, commands } from "../lib/command.js";
import { address } from "../lib/api.js";
import { errorNotice, fill, h } from "../lib/dom.js";
import { table } from "../lib/table.js";
import { badgeClass, clock, expectedEnd, nameOfJob, stateOf, wait } from "./train_words.js";

const LOOK_MS = 3000;
const PAGE = 20;

/**
 * A section with the jobs of one kind.
 * @param {import("./index.js").Context} context
 * @param {(job: any) => boolean} isWanted
 * @param {string} view that shows one of them
 */
export function jobsTable(context, isWanted, view) {
  const list = table({
    caption: "Jobs",
    rowHeader: "name",
    columns: [
      { key: "name", title: "Job", cell: (job) => h("a", { href: `#/${view}?job=${encodeURIComponent(job.id)}` }, nameOfJob(job)), sortBy: nameOfJob },
      { key: "state", title: "State", cell: (job) => h("span", { class: badgeClass(job) }, stateOf(job)), sortBy: stateOf },
      { key: "created_at", title: "Created", cell: (job) => clock(job.created_at), sortBy: (job) => job.created_at },
      { key: "end", title: "End", cell: (job) => (job.finished_at ? clock(job.finished_at) : expectedEnd(job)), sortBy: (job) => job.finished_at ?? job.estimated_finish ?? 0 },
      { key: "fine_tuned_model", title: "Soft prompt", cell: (job) => h("span", { class: "mono" }, job.fine_tuned_model ?? "") },
    ],
  });
  let [limit, known] = [PAGE, ""];
  const place = h("div");
  const more = h("button", { type: "button", hidden: true, onClick: () => { limit = Math.min(100, limit + 2 * PAGE); refresh(); } }, "Older jobs");
  const lines = commands({ curl: curl("GET", `/v1/fine_tuning/jobs?limit=${PAGE}`), cli: `softprompt jobs list --url ${address("/")}` });
  const element = h("section", { class: "stack" }, h("h2", null, "Jobs"), place, more, lines);
  const refresh = async () => {
    const page = await context.api.get(`/v1/fine_tuning/jobs?limit=${limit}`, { signal: context.signal });
    const jobs = page.data.filter(isWanted);
    const now = JSON.stringify([jobs, jobs.map(expectedEnd)]);
    if (now !== known) keepFocus(list.element, () => list.update(jobs));
    known = now;
    const shown = jobs.length ? list.element : h("p", { class: "hint" }, "None yet. They go on when this page is closed.");
    if (place.firstChild !== shown) fill(place, shown);
    more.hidden = !page.has_more || limit >= 100;
  };
  keepFresh(context, refresh, place);
  return element;
}

/** Draw links anew without taking the focus from the one that has it. @param {any} element @param {() => void} draw */
function keepFocus(element, draw) {
  const active = element.contains(document.activeElement) ? document.activeElement?.getAttribute("href") : null;
  draw();
  if (active) element.querySelector(`a[href="${CSS.escape(active)}"]`)?.focus();
}

/** Look again and again; also when the server was away. @param {import("./index.js").Context} context @param {() => Promise<void>} refresh @param {any} place */
async function keepFresh(context, refresh, place) {
  while (!context.signal.aborted) {
    try {
      await refresh();
    } catch (error) {
      if (context.signal.aborted) return;
      const found = /** @type {any} */ (error);
      if (found.code !== "server_away") fill(place, errorNotice(found));
    }
    await wait(LOOK_MS, context.signal);
  }
}
