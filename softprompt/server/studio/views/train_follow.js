// @ts-check
/** A job as it goes on: its events, each once and in order, and its state. A server that was away changes neither. */

import { FINISHED, wait } from "./train_words.js";

const LOOK_MS = 1500;
const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 5000;

/** The path of a job. @param {string} id */
export function jobPath(id) {
  return `/v1/fine_tuning/jobs/${encodeURIComponent(id)}`;
}

/**
 * Call `onEvent` for every event of a job until it has ended and all are told.
 * @param {import("./index.js").Context} context
 * @param {string} id
 * @param {(event: any) => void} onEvent
 */
export async function followEvents({ api, signal }, id, onEvent) {
  let [after, pause] = ["", FIRST_WAIT_MS];
  while (!signal.aborted) {
    const query = after ? `&after=${encodeURIComponent(after)}` : "";
    try {
      for await (const event of api.stream(`${jobPath(id)}/events?stream=true${query}`, undefined, { signal })) {
        [after, pause] = [event.id, FIRST_WAIT_MS];
        onEvent(event);
      }
      // A stream that was cut ends, too: only a job that has ended, with nothing behind its last event, is done.
      if (FINISHED.has((await api.get(jobPath(id), { signal })).status) && !(await hasMore(api, id, after, signal))) return;
    } catch (error) {
      if (signal.aborted) return;
      if (!isPassing(error)) throw error;
    }
    await wait(pause, signal);
    pause = Math.min(2 * pause, LONGEST_WAIT_MS);
  }
}

/** Whether events follow. @param {any} api @param {string} id @param {string} after @param {AbortSignal} signal */
async function hasMore(api, id, after, signal) {
  const { data } = await api.get(`${jobPath(id)}/events?limit=1`, { signal });
  return data.length > 0 && data[0].id !== after;
}

/** Whether an error is the server's state of the moment: away, stopping or too busy. @param {any} error */
function isPassing(error) {
  return error.status === 0 || error.status === 429 || error.status >= 500 || error.code === "stopping";
}

/**
 * Call `onJob` with the job now, whenever it may have changed, and for the last time when it has ended.
 * @param {import("./index.js").Context} context
 * @param {string} id
 * @param {(job: any) => void} onJob
 * @returns {Promise<any>} the job that has ended; null if the view was left
 */
export async function followState({ api, signal }, id, onJob) {
  while (!signal.aborted) {
    try {
      const job = await api.get(jobPath(id), { signal });
      onJob(job);
      if (FINISHED.has(job.status)) return job;
    } catch (error) {
      if (signal.aborted) return null;
      if (!isPassing(error)) throw error;
    }
    await wait(LOOK_MS, signal);
  }
  return null;
}
