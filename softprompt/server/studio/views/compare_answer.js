// @ts-check
/** A column of Compare: a conversation as it streams, its measures, and its own stop and retry. */

import { fill, h, uniqueId } from "../lib/dom.js";
import { tokenSpan, tokenTable } from "../lib/tokens.js";
import { kvBytes } from "./compare_request.js";
import { isCovered, meanLogprob } from "./compare_stream.js";

const NONE = "–";
const NEAR = 40; // pixels from the end within which the text keeps being followed
const MEASURES = {
  tokens: "Tokens",
  first: "First token",
  speed: "Speed",
  bytes: "Keys and values",
  logprob: "Mean log-probability",
};
const STATES = { running: "Answering …", stopped: "Stopped.", failed: "Failed.", done: "" };

/** A column on the page. */
export class AnswerColumn {
  /**
   * @param {{model: any, onStop: () => void, onRetry: () => void}} options `model` is its row of /v1/models, if the
   *   server has one
   */
  constructor({ model, onStop, onRetry }) {
    const id = uniqueId("column");
    this.heading = h("h2", { id });
    this.output = h("div", { class: "output turns", tabindex: "0", role: "region" });
    this.values = Object.fromEntries(Object.keys(MEASURES).map((name) => [name, h("dd", { class: "number" }, NONE)]));
    this.status = h("p", { class: "hint status" });
    this.stop = h("button", { type: "button", class: "quiet", disabled: true, onClick: onStop }, "Stop");
    this.retry = h("button", { type: "button", class: "quiet", disabled: true, onClick: onRetry }, "Retry");
    this.table = h("div", null, tokenTable([]));
    const measures = Object.entries(MEASURES).flatMap(([name, label]) => [h("dt", null, label), this.values[name]]);
    this.element = h(
      "section",
      { class: "card answer-column", "aria-labelledby": id, "aria-busy": "false" },
      h("header", { class: "toolbar" }, this.heading, facts(model)),
      this.output,
      h("div", { class: "toolbar" }, this.status, h("span", { class: "buttons" }, this.stop, this.retry)),
      h("dl", { class: "facts measures" }, measures),
      this.table,
    );
  }

  /** The column's name, which its parts are called by. @param {string} title */
  rename(title) {
    this.heading.textContent = title;
    this.output.setAttribute("aria-label", `Answers of ${title}`);
    this.stop.setAttribute("aria-label", `Stop ${title}`);
    this.retry.setAttribute("aria-label", `Retry ${title}`);
  }

  /**
   * Show a conversation anew.
   * @param {string[]} turns the user's @param {any[]} answers @param {any} column @param {any[]} models
   */
  show(turns, answers, column, models) {
    const parts = turns.flatMap((said, i) => [this.said(said), answers[i] ? this.answered(answers[i]) : null]);
    fill(this.output, parts.length ? parts : h("p", { class: "hint" }, "The answer appears here."));
    this.output.scrollTop = this.output.scrollHeight;
    this.finish(answers[answers.length - 1], column, models);
  }

  /** Begin an answer below what is shown; returns what adds pieces to it. @param {string} said @param {boolean} isFirst */
  begin(said, isFirst) {
    const words = h("div", { class: "answer" });
    if (isFirst) fill(this.output, this.said(said), words);
    else this.output.append(this.said(said), words);
    this.output.scrollTop = this.output.scrollHeight;
    this.element.setAttribute("aria-busy", "true");
    this.status.textContent = STATES.running;
    passOn(this.retry, this.stop);
    for (const value of Object.values(this.values)) value.textContent = NONE;
    return (tokens, text) => {
      const isFollowed = this.output.scrollHeight - this.output.scrollTop - this.output.clientHeight < NEAR;
      words.append(...(tokens.length ? tokens.filter((one) => one.piece).map(colored) : [text]));
      if (isFollowed) this.output.scrollTop = this.output.scrollHeight;
    };
  }

  said(text) {
    return h("p", { class: "said" }, h("span", { class: "unseen" }, "You: "), text);
  }

  /** An answer as a whole. */
  answered(answer) {
    const shown = isCovered(answer) ? answer.tokens.filter((one) => one.piece).map(colored) : answer.text;
    const thought = answer.thought
      ? h("details", null, h("summary", null, "Thought"), h("p", { class: "hint" }, answer.thought))
      : null;
    const error = answer.error ? h("p", { class: "notice bad" }, answer.error) : null;
    return [thought, h("div", { class: "answer" }, shown), error];
  }

  /** Show the measures of the last answer, and what can be done now. */
  finish(answer, column, models) {
    this.element.setAttribute("aria-busy", "false");
    if (answer) passOn(this.stop, this.retry);
    else this.stop.disabled = this.retry.disabled = true;
    this.status.textContent = statusOf(answer);
    const usage = answer?.usage;
    const mean = answer ? meanLogprob(answer) : null;
    const bytes = kvBytes(column, models, usage);
    this.values.tokens.textContent = usage ? `${usage.prompt_tokens} in, ${usage.completion_tokens} out` : NONE;
    this.values.first.textContent =
      answer?.firstMs == null ? NONE : `${Math.round(answer.firstMs).toLocaleString("en")} ms`;
    this.values.speed.textContent = answer?.perSecond == null ? NONE : `${answer.perSecond.toFixed(1)} tokens/s`;
    this.values.bytes.textContent = bytes === null ? NONE : sizeOf(bytes);
    this.values.logprob.textContent = mean === null ? NONE : mean.toFixed(3);
    const isShown = this.table.firstChild.open;
    fill(this.table, tokenTable(answer?.tokens ?? []));
    this.table.firstChild.open = isShown;
  }
}

/** Disable a button and enable another, which gets the focus if the first one had it. */
export function passOn(from, to) {
  const hadFocus = document.activeElement === from;
  to.disabled = false;
  if (hadFocus) to.focus();
  from.disabled = true;
}

function colored({ piece, logprob }) {
  return tokenSpan({ token: piece, logprob });
}

function statusOf(answer) {
  if (!answer) return "";
  return answer.finish === "length" ? "Cut at the longest answer." : STATES[answer.state];
}

function facts(model) {
  if (!model) return null;
  const tokens = model.n_tokens === null ? "router" : `${model.n_tokens} virtual tokens`;
  return h("span", { class: "badge" }, model.form === "base" ? "no virtual tokens" : `${model.form} · ${tokens}`);
}

/** Bytes for people. @param {number} bytes */
export function sizeOf(bytes) {
  const step = bytes < 1024 ? 0 : bytes < 1024 ** 2 ? 1 : 2;
  return `${(bytes / 1024 ** step).toFixed(step ? 1 : 0)} ${["B", "KiB", "MiB"][step]}`;
}
