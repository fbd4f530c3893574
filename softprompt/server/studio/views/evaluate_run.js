// @ts-check
/** Runs the rows of an evaluation through the public API, a few at a time. No page. */

import { modelOf } from "./compare_columns.js";
import { chatBody } from "./compare_request.js";

const LONGEST_WAIT_S = 30;
const MOST_TRIES = 8; // of a request that the server puts off
const AWAY = "server_away";

/** The body of the request for one cell. `choices`: the answers to choose from; null leaves the model free. */
export function cellBody(column, models, row, sampling, choices) {
  const model = modelOf(column, models);
  const hasFields = model && model.fields.length > 1 && model.fields.every((name) => name in row.fields);
  const asked = JSON.stringify(
    Object.fromEntries(hasFields ? model.fields.map((name) => [name, row.fields[name]]) : []),
  );
  const messages = hasFields ? [{ role: "user", content: asked }] : row.messages;
  const body = chatBody(column, models, messages, sampling);
  return choices ? { ...body, structured_outputs: { choice: withSpace(choices) } } : body;
}

/** Each choice, and the same after a space, as a model trained on plain text writes it. */
function withSpace(choices) {
  return choices.flatMap((choice) => (/^\s/.test(choice) ? [choice] : [choice, ` ${choice}`]));
}

/** An evaluation that runs until all cells have an answer, or it is stopped. */
export class Evaluation {
  /**
   * @param {object} work
   * @param {{post: Function}} work.api
   * @param {(column: number, row: number) => object} work.body of a cell's request.
   * @param {(column: number, row: number) => boolean} work.isDone whether a cell needs no request.
   * @param {(column: number, row: number, cell: object) => void} work.onCell
   * @param {(isAway: boolean) => void} work.onAway when the server goes away or comes back.
   * @param {{columns: number, rows: number, concurrency: number}} work.size
   */
  constructor(work) {
    this.work = work;
    this.next = 0;
    this.control = new AbortController();
  }

  /** Ask for all open cells; resolves when all are answered or it was stopped. */
  async run() {
    const workers = Array.from({ length: this.work.size.concurrency }, () => this.worker());
    await Promise.all(workers);
    return !this.control.signal.aborted;
  }

  /** End all requests; what was answered stays. */
  stop() {
    this.control.abort();
  }

  /** Row by row, so that the columns of a row can be compared as soon as possible. */
  async worker() {
    const { columns, rows } = this.work.size;
    while (this.next < columns * rows && !this.control.signal.aborted) {
      const row = Math.floor(this.next / columns);
      const column = this.next % columns;
      this.next += 1;
      if (!this.work.isDone(column, row)) {
        const cell = await this.ask(column, row);
        if (cell) {
          this.work.onCell(column, row, cell);
        }
      }
    }
  }

  /** A cell's answer or error; null if the evaluation was stopped first. */
  async ask(column, row) {
    for (let tries = 1; ;) {
      try {
        const reply = await this.work.api.post("/v1/chat/completions", this.work.body(column, row), {
          signal: this.control.signal,
        });
        this.work.onAway(false);
        return cellOf(reply);
      } catch (error) {
        if (this.control.signal.aborted) {
          return null;
        }
        const isAway = error.code === AWAY;
        const isPutOff = error.status === 429 || error.status === 503;
        if (!isAway && (!isPutOff || tries === MOST_TRIES)) {
          return { answer: "", finish: "", tokens: 0, error: error.message };
        }
        this.work.onAway(isAway);
        await this.pause(isAway ? 1 : Math.min(LONGEST_WAIT_S, 2 ** tries / 4));
        tries += isAway ? 0 : 1;
      }
    }
  }

  pause(seconds) {
    return new Promise((resolve) => {
      const timer = window.setTimeout(resolve, seconds * 1000);
      this.control.signal.addEventListener(
        "abort",
        () => {
          window.clearTimeout(timer);
          resolve(undefined);
        },
        { once: true },
      );
    });
  }
}

function cellOf(reply) {
  const [choice] = reply.choices;
  return {
    answer: choice.message.content ?? "",
    finish: choice.finish_reason,
    tokens: reply.usage?.completion_tokens ?? 0,
    error: "",
  };
}
