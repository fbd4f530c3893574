// @ts-check
/** A job: its state, live losses and history; pause, resume and cancel; and at its end what it is worth. */

import { announce } from "../lib/announce.js";
import { address } from "../lib/api.js";
import { commands, curl } from "../lib/command.js";
import { curve } from "../lib/curve.js";
import { confirmed } from "../lib/dialog.js";
import { errorNotice, fill, h } from "../lib/dom.js";
import { keepDraft } from "../lib/state.js";
import { followEvents, followState, jobPath } from "./train_follow.js";
import { checkpoints, showResult } from "./train_result.js";
import { adviceFor, badgeClass, clock, expectedEnd, FINISHED, nameOfJob, stateOf } from "./train_words.js";

const DRAW_MS = 250;
const SHOWN_EVENTS = 200;

/**
 * Show a job and go on with it until it has ended.
 * @param {any} root @param {import("./index.js").Context} context @param {string} id
 * @param {"train" | "distill"} view that shows it
 */
export async function showJob(root, context, id, view) {
  const job = await context.api.get(jobPath(id), { signal: context.signal });
  const state = stateCard(context, job);
  const [losses, history] = [lossCurve(context.signal), eventList()];
  const end = h("div", { class: "stack" });
  const back = h("p", null, h("a", { href: `#/${view}` }, view === "train" ? "← All jobs" : "← All distillations"));
  const live = h("div", { class: "grid wide" }, h("section", { class: "card" }, losses.element), history.element);
  root.append(back, state.element, end, live, ...[checkpoints(context, job), settingsCard(job)].filter(Boolean));
  const told = /** @type {any} */ ({});
  const events = followEvents(context, id, (event) => {
    history.add(event);
    losses.add(event.data);
    state.progress(event);
    Object.assign(told, event.data?.comparison || event.data?.fidelity ? event.data : {});
  });
  try {
    const [ended] = await Promise.all([followState(context, id, state.update), events]);
    if (ended) await showEnd(end, context, ended, told, view);
  } catch (error) {
    if (!context.signal.aborted) fill(end, errorNotice(error));
  }
}

/** The job's state, with what can be done about it. @param {import("./index.js").Context} context @param {any} first */
function stateCard(context, first) {
  let job = first;
  const title = h("h2", { tabindex: "-1" }, nameOfJob(first));
  const badge = h("span");
  const words = h("p", { class: "hint" }, " ");
  const bar = h("progress", { max: "1", "aria-label": "Progress" });
  const [problem, lines] = [h("div"), h("div")];
  const act = async (/** @type {string} */ verb) => {
    fill(problem);
    try {
      update(await context.api.post(`${jobPath(job.id)}/${verb}`));
    } catch (error) {
      if (!context.signal.aborted) fill(problem, errorNotice(error));
    }
  };
  const toggle = h("button", { type: "button", onClick: async () => {
    if (job.paused) return act("resume");
    const text = "It stops at a checkpoint and keeps its place; nothing is lost. Resume lets it go on.";
    return (await confirmed("Pause this job?", text, "Pause")) && act("pause");
  } });
  const cancel = h("button", { type: "button", class: "danger", onClick: async () => {
    const text = "It ends within a training step and cannot go on. Its checkpoints stay.";
    return (await confirmed("Cancel this job?", text, "Cancel the job")) && act("cancel");
  } }, "Cancel the job");
  const actions = h("div", { class: "actions" }, toggle, cancel);
  const update = (/** @type {any} */ changed) => {
    const isNew = stateOf(changed) !== badge.textContent;
    job = changed;
    if (isNew) {
      announce(`${nameOfJob(job)}: ${stateOf(job)}`);
      fill(lines, jobCommands(job)); // only then: an open disclosure stays open
    }
    badge.className = badgeClass(job);
    badge.textContent = stateOf(job);
    toggle.textContent = job.paused ? "Resume" : "Pause";
    const ended = FINISHED.has(job.status);
    if (ended && actions.contains(document.activeElement)) title.focus();
    actions.hidden = ended;
    bar.hidden = ended;
    if (ended) words.textContent = `${job.status === "succeeded" ? "Done" : "Ended"} at ${clock(job.finished_at)}`;
    else words.textContent = [said, expectedEnd(job)].filter(Boolean).join(" · ") || "It waits for a worker.";
  };
  let said = "";
  const progress = (/** @type {any} */ event) => {
    if (event.data?.progress !== undefined) bar.value = event.data.progress;
    if (event.level === "info") said = event.message;
    if (!FINISHED.has(job.status)) words.textContent = [said, expectedEnd(job)].filter(Boolean).join(" · ");
  };
  update(first);
  const element = h("section", { class: "card" }, h("div", { class: "toolbar" }, title, badge), words, bar, actions, problem, lines);
  return { element, update, progress };
}

/** What can be done with a job, as commands. @param {any} job */
function jobCommands(job) {
  const url = ` --url ${address("/")}`;
  if (FINISHED.has(job.status)) return commands({ curl: curl("GET", jobPath(job.id)), cli: `softprompt jobs show ${job.id}${url}` });
  const change = job.paused ? "resume" : "pause";
  return [
    commands({ curl: curl("GET", `${jobPath(job.id)}/events?stream=true`, undefined, ["-N"]), cli: `softprompt jobs events ${job.id} --follow${url}` }),
    h("details", { class: "commands" }, h("summary", null, `${change[0].toUpperCase()}${change.slice(1)} and cancel as commands`),
      [change, "cancel"].map((verb) => commands({ curl: curl("POST", `${jobPath(job.id)}/${verb}`), cli: `softprompt jobs ${verb} ${job.id}${url}` }))),
  ];
}

/** Losses over steps; a step that is trained again after a worker was lost replaces the first one. @param {AbortSignal} signal */
function lossCurve(signal) {
  const drawn = curve({ title: "Loss", xLabel: "step", series: ["training", "validation"], signal });
  const steps = /** @type {Map<number, {train: number | null, valid: number | null}>} */ (new Map());
  let timer = 0;
  const draw = () => {
    timer = 0;
    if (signal.aborted) return;
    const x = [...steps.keys()].sort((a, b) => a - b);
    const at = (/** @type {"train" | "valid"} */ name) => x.map((step) => steps.get(step)?.[name] ?? null);
    drawn.update(x, [at("train"), at("valid")]);
  };
  const add = (/** @type {any} */ data) => {
    if (typeof data?.step !== "number") return;
    const known = steps.get(data.step) ?? { train: null, valid: null };
    steps.set(data.step, { train: data.train_loss ?? known.train, valid: data.valid_loss ?? known.valid });
    timer ||= setTimeout(draw, DRAW_MS);
  };
  return { element: drawn.element, add };
}

/** The events of a job, newest first. */
function eventList() {
  const list = h("ol", { class: "bare events", tabindex: "0", "aria-label": "History, newest first" });
  const add = (/** @type {any} */ event) => {
    const kind = { warn: "warn", error: "bad" }[/** @type {"warn" | "error"} */ (event.level)] ?? "";
    list.prepend(h("li", { class: kind && `notice ${kind}` }, h("small", { class: "hint" }, clock(event.created_at)), " ", event.message));
    if (list.children.length > SHOWN_EVENTS) list.lastChild.remove();
  };
  return { element: h("section", { class: "card" }, h("h3", null, "History"), list), add };
}

/** @param {any} job */
function settingsCard(job) {
  const { hyperparameters: hyper, soft_prompt: own, method } = job;
  const facts = {
    "Learned from": method.type === "dpo" ? "preferences (DPO)" : undefined, Beta: method.dpo?.hyperparameters.beta,
    Job: job.id, "Base model": job.model, "Training file": job.training_file, "Validation file": job.validation_file,
    Method: own.method, "Virtual tokens": own.n_tokens, Minutes: own.minutes, "Text to distill": own.distill?.file, Mode: own.distill?.mode,
    Epochs: hyper.n_epochs, "Batch size": hyper.batch_size, "Learning rate, times": hyper.learning_rate_multiplier, Seed: job.seed,
  };
  const lines = Object.entries(facts).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return h("details", null, h("summary", null, "Settings"), h("dl", { class: "facts" }, lines.flatMap(([name, value]) => [h("dt", null, name), h("dd", null, value)])));
}

/** @param {any} place @param {import("./index.js").Context} context @param {any} job @param {any} told data of its last events @param {"train" | "distill"} view */
async function showEnd(place, context, job, told, view) {
  if (job.status === "succeeded") return showResult(place, context, job, told, view);
  const again = h("a", { class: "button primary", href: againAddress(job, view), onClick: () => keepSettings(job, view) }, "Start again with these settings");
  if (job.status !== "failed") return fill(place, h("div", { class: "actions" }, again));
  const failure = job.error;
  const param = failure.param ? [" ", h("code", null, failure.param)] : null;
  return fill(
    place,
    h("div", { class: "notice bad stack", role: "alert" }, h("p", null, h("strong", null, "It failed: "), failure.message, param), h("p", null, adviceFor(failure))),
    h("div", { class: "actions" }, again),
  );
}

/** @param {any} job @param {string} view */
function againAddress(job, view) {
  return `#/${view}?file=${encodeURIComponent(job.soft_prompt.distill?.file ?? job.training_file)}`;
}

/** Keep a job's settings as the draft of its file's form. @param {any} job @param {string} view */
function keepSettings(job, view) {
  const { soft_prompt: own, hyperparameters: hyper, method: kind } = job;
  const given = { learn: kind.type === "dpo" ? "dpo" : "", beta: kind.dpo?.hyperparameters.beta ?? "", suffix: job.user_provided_suffix, n_tokens: own.n_tokens, minutes: own.minutes, method: own.method, n_epochs: hyper.n_epochs, batch_size: hyper.batch_size, learning_rate_multiplier: hyper.learning_rate_multiplier };
  const text = Object.entries(given).map(([key, value]) => [key, value === null || value === "auto" ? "" : String(value)]);
  keepDraft(`${view}-${own.distill?.file ?? job.training_file}`, Object.fromEntries(text));
}
