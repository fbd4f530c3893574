// @ts-check
/** The requests of a column, the commands that make the same ones, and what they take. */

import { quoted } from "../lib/command.js";
import { baseModel, modelOf } from "./compare_columns.js";

const APART = "\n\n"; // between a text prompt and the words after it, as in the library

/** The turns as a column's model gets them: a text prompt joins the system turn, or stands before the user's words. */
export function withTextPrompt(column, messages) {
  const text = column.kind === "text" ? column.text.trim() : "";
  if (!text) {
    return messages;
  }
  const first = messages.findIndex((turn) => turn.role === (column.place === "front" ? "user" : "system"));
  if (first < 0) {
    return [{ role: "system", content: text }, ...messages];
  }
  const said = messages[first].content;
  const content = column.place === "front" ? text + APART + said : said + APART + text;
  return messages.map((turn, i) => (i === first ? { ...turn, content } : turn));
}

/** The turns of a conversation in which `answers` came so far. @returns {{role: string, content: string}[]} */
export function conversation(turns, answers) {
  return turns.flatMap((content, i) => {
    const answer = answers[i];
    return [{ role: "user", content }, ...(answer === undefined ? [] : [{ role: "assistant", content: answer }])];
  });
}

/** The body of a streamed chat request. */
export function streamBody(column, models, messages, sampling) {
  return {
    ...chatBody(column, models, messages, sampling),
    logprobs: true,
    stream: true,
    stream_options: { include_usage: true },
  };
}

/** The body of a chat request. */
export function chatBody(column, models, messages, sampling) {
  const model = column.kind === "soft" ? column.model : baseModel(models)?.id;
  return { model, messages: withTextPrompt(column, messages), ...sampling };
}

/** Bytes of keys and values that a request holds at its end, virtual tokens included; null where that is not known. */
export function kvBytes(column, models, usage) {
  const model = modelOf(column, models);
  if (!model || model.n_tokens === null || !usage) {
    return null;
  }
  return (model.n_tokens + usage.total_tokens) * model.kv_bytes_per_token;
}

/** A soft prompt as the command line finds it: its name, or the folder that the server's jobs write to. */
export function cliName(column, models) {
  const model = modelOf(column, models);
  if (!model) {
    return column.model;
  }
  const full = model.root.startsWith("ft:") ? models.find((other) => other.id === model.root) : model;
  return full && full.id.startsWith("ft:") ? `jobs/prompts/${full.root}` : model.root;
}

/** `softprompt generate` for the columns of a conversation; "" without a soft prompt, which that verb needs. */
export function generateLine(columns, models, conversations, sampling) {
  const soft = columns.map((column, i) => ({ column, i })).filter(({ column }) => column.kind === "soft");
  if (!soft.length) {
    return "";
  }
  const names = [...new Set(soft.map(({ column }) => cliName(column, models)))].join(",");
  const flags = samplingFlags(sampling);
  const messages = conversations[soft[0].i];
  const text = messages.length === 1 ? messages[0].content : "";
  if (text.trim() && text !== "-") {
    const others = baselineFlags(columns);
    return `softprompt generate ${quoted(names)} ${flags}${others} -- ${quoted(text)}`;
  }
  const rows = soft.map(({ column, i }) => ({ prompt: cliName(column, models), messages: conversations[i] }));
  const lines = rows.map((row) => quoted(JSON.stringify(row))).join(" ");
  return `printf '%s\\n' ${lines} | softprompt generate ${quoted(names)} - --jsonl ${flags}`;
}

function samplingFlags(sampling) {
  return (
    `--max-new-tokens ${sampling.max_tokens} --temperature ${sampling.temperature}` +
    ` --top-p ${sampling.top_p} --seed ${sampling.seed}`
  );
}

function baselineFlags(columns) {
  const base = columns.some((column) => column.kind === "base") ? " --base" : "";
  const text = columns.find((column) => column.kind === "text" && column.text.trim());
  return base + (text ? ` --text-prompt ${quoted(text.text)}` : "");
}
