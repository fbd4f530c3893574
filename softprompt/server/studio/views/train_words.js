// @ts-check
/** Words about jobs that several views share: states, sizes, times, and what to do after a failure. */

import { empty, errorNotice, fill } from "../lib/dom.js";

export const FINISHED = new Set(["succeeded", "failed", "cancelled"]);

/** What jobs may have; null, and why in the page, where the server has no jobs. @param {any} root @param {import("./index.js").Context} context */
export async function jobOptions(root, context) {
  try {
    return await context.api.get("/v1/fine_tuning/options", { signal: context.signal });
  } catch (error) {
    const found = /** @type {any} */ (error);
    if (context.signal.aborted) return null;
    if (found.code === "unsupported_path") fill(root, empty("This server has no jobs", found.message));
    else fill(root, errorNotice(found));
    return null;
  }
}

/** @param {any} job */
export function stateOf(job) {
  if (job.paused && !FINISHED.has(job.status)) return job.status === "running" ? "pausing" : "paused";
  return job.status;
}

const KINDS = /** @type {Record<string, string>} */ ({
  succeeded: "good", failed: "bad", cancelled: "", running: "accent", paused: "warn", pausing: "warn",
});

/** The class of a state's badge. @param {any} job */
export function badgeClass(job) {
  return `badge ${KINDS[stateOf(job)] ?? ""}`;
}

/** A job's own name: its suffix, or its id. @param {any} job */
export function nameOfJob(job) {
  return job.user_provided_suffix || job.id;
}

/** @param {number} bytes */
export function megabytes(bytes) {
  const units = ["bytes", "kB", "MB", "GB"];
  let [value, unit] = [bytes, 0];
  while (value >= 1000 && unit < units.length - 1) [value, unit] = [value / 1024, unit + 1];
  return `${unit && value < 10 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

/** A span of time. @param {number} seconds */
export function span(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  if (seconds < 90 * 60) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

/** A local time, with its day unless that is today. @param {number} seconds since 1970 */
export function clock(seconds) {
  const [time, now] = [new Date(seconds * 1000), new Date()];
  const hours = time.toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit" });
  return time.toDateString() === now.toDateString() ? hours : `${time.toLocaleDateString()} ${hours}`;
}

/** The end of a running job as it is estimated, "" if nothing is known. @param {any} job */
export function expectedEnd(job) {
  if (!job.estimated_finish || job.status !== "running" || job.paused) return "";
  const left = job.estimated_finish - Date.now() / 1000;
  return left < 2 ? "about to end" : `about ${span(left)} left, until ${clock(job.estimated_finish)}`;
}

const ADVICE = /** @type {Record<string, string>} */ ({
  invalid_file: "Mend the file, upload it again and start a new job.",
  invalid_hyperparameters: "Change the setting and start again.",
  training_diverged: "Start again with a smaller learning rate, for example times 0.3.",
  out_of_memory: "Start again with a smaller batch, fewer virtual tokens or shorter rows.",
  time_limit: "Its checkpoints can be used. Start again with fewer epochs, or with minutes that bound the training.",
  invalid_model: "Start again from the base model.",
  storage: "The disk of the server or of the worker refused. Start again when its operator has looked at it.",
  worker_lost: "Start again. If workers die once more, their log says why; a smaller batch needs less memory.",
});

/** What to do about a failed job. @param {{code: string}} failure */
export function adviceFor(failure) {
  return ADVICE[failure.code] ?? "Start again. If it fails once more, the log of the worker says why.";
}

/** Seconds between looks at something that changes, as a promise that the view's end breaks off. @param {number} ms @param {AbortSignal} signal */
export function wait(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => { clearTimeout(timer); resolve(undefined); }, { once: true });
  });
}
