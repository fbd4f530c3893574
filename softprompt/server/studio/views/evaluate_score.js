// @ts-check
/** Scores of answers, the filters over rows, and the search. No page and no network; the numbers are `eval`'s own. */

const Z = 1.959964; // standard deviations of a two-sided 95 % interval
const MOST_LABELS = 20;
const MOST_SHARE = 0.5; // distinct labels among the rows
// White space as Python's str.strip takes it, so that a match here is a match in `softprompt eval`.
const SPACE = "[\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]+";
const ENDS = new RegExp(`^${SPACE}|${SPACE}$`, "g");

/**
 * A row of GET /v1/files/{id}/rows.
 * @typedef {{line: number, kind: string, scoring: string, messages: {role: string, content: string}[],
 *   fields: Record<string, string>, references: string[], choices: string[], tools: boolean}} Row
 * One column's answer to a row.
 * @typedef {{answer: string, finish: string, tokens: number, error: string}} Cell
 */

export const FILTERS = {
  all: "All rows",
  regressed: "Regressed",
  fixed: "Fixed",
  disagree: "Answers differ",
  wrong: "All wrong",
  failed: "Not answered",
};

/** A text without white space at its ends. */
export function stripped(text) {
  return text.replace(ENDS, "");
}

/** Whether an answer is right: one of the references, or the same set of labels; null for a row without references. */
export function isRight(answer, row) {
  if (!row.references.length) {
    return null;
  }
  if (row.scoring === "labels") {
    return labelSet(answer) === labelSet(row.references[0]);
  }
  return row.references.some((reference) => stripped(reference) === stripped(answer));
}

function labelSet(text) {
  return JSON.stringify([...new Set(text.split(",").map(stripped))].sort());
}

/** Whether a cell is right; null while it has no answer. */
export function verdict(cell, row) {
  return !cell || cell.error ? null : isRight(cell.answer, row);
}

/**
 * Share of right answers with Wilson's score interval (Wilson 1927), as `softprompt eval` reports it.
 * @returns {{n: number, hits: number, share: number, low: number, high: number} | null} null for no answers
 */
export function proportion(verdicts) {
  const known = verdicts.filter((one) => one !== null);
  const n = known.length;
  if (!n) {
    return null;
  }
  const hits = known.filter(Boolean).length;
  const p = hits / n;
  const center = (p + (Z * Z) / (2 * n)) / (1 + (Z * Z) / n);
  const half = (Z * Math.sqrt((p * (1 - p)) / n + (Z * Z) / (4 * n * n))) / (1 + (Z * Z) / n);
  return {
    n,
    hits,
    share: p,
    low: Math.min(p, Math.max(0, center - half)),
    high: Math.max(p, Math.min(1, center + half)),
  };
}

/** The answers that a model has to choose from, for each row; null where they are too many or the rows are free. */
export function choicesFor(rows) {
  if (rows.length && rows.every((row) => row.choices.length)) {
    return rows.map((row) => row.choices);
  }
  const labels = [...new Set(rows.flatMap((row) => row.references))].sort();
  const isFew = labels.length > 1 && labels.length <= MOST_LABELS && labels.length <= MOST_SHARE * rows.length;
  return rows.every((row) => row.scoring === "classification") && isFew ? rows.map(() => labels) : null;
}

/** The column that others are compared with: the text prompt, else the base model; -1 for none. */
export function baselineOf(columns) {
  const text = columns.findIndex((column) => column.kind === "text");
  return text >= 0 ? text : columns.findIndex((column) => column.kind === "base");
}

/** The numbers of the rows that a filter and a search let through. */
export function chosenRows(rows, columns, cells, filter, search) {
  const baseline = baselineOf(columns);
  const words = search.toLowerCase();
  const chosen = [];
  for (let i = 0; i < rows.length; i += 1) {
    const found = columns.map((_, c) => cells[c][i]);
    if (passes(filter, rows[i], columns, found, baseline) && (!words || holds(rows[i], found, words))) {
      chosen.push(i);
    }
  }
  return chosen;
}

function passes(filter, row, columns, found, baseline) {
  if (filter === "all") {
    return true;
  }
  if (filter === "failed") {
    return found.some((cell) => !cell || cell.error);
  }
  if (filter === "disagree") {
    return new Set(found.filter((cell) => cell && !cell.error).map((cell) => stripped(cell.answer))).size > 1;
  }
  const verdicts = found.map((cell) => verdict(cell, row));
  if (filter === "wrong") {
    return verdicts.every((one) => one === false);
  }
  const soft = verdicts.filter((_, c) => columns[c].kind === "soft");
  const was = verdicts[baseline];
  return filter === "regressed" ? was === true && soft.includes(false) : was === false && soft.includes(true);
}

function holds(row, found, words) {
  const texts = [
    ...row.messages.map((turn) => turn.content),
    ...row.references,
    ...found.map((cell) => cell?.answer ?? ""),
  ];
  return texts.some((text) => text.toLowerCase().includes(words));
}

/** A row's question as one text: the user's words, or all turns with their roles. */
export function questionOf(row) {
  const turns = row.messages;
  return turns.length === 1 ? turns[0].content : turns.map((turn) => `${turn.role}: ${turn.content}`).join("\n");
}

/** A row's right answer as one text; of several, their list as JSON. */
export function referenceOf(row) {
  return row.references.length > 1 ? JSON.stringify(row.references) : (row.references[0] ?? "");
}
