// @ts-check
/** The matrix as a CSV file (RFC 4180) that no spreadsheet runs: a cell never begins a formula. */

import { questionOf, referenceOf, verdict } from "./evaluate_score.js";

// What Excel, LibreOffice and Google Sheets take for the beginning of a formula (OWASP, CSV Injection).
const FORMULA = /^[=+\-@\t\r\n]/;

/** A cell: in quotes, and behind an apostrophe where a spreadsheet would run it. */
export function csvCell(value) {
  const text = String(value);
  return `"${(FORMULA.test(text) ? `'${text}` : text).replaceAll('"', '""')}"`;
}

/** The file's text: a row of names, then a row for each row of the matrix. */
export function csvOf(rows, titles, cells, chosen) {
  const heading = [
    "line",
    "input",
    "reference",
    ...titles.flatMap((title) => [title, `${title}: right`, `${title}: error`]),
  ];
  const body = chosen.map((i) => {
    const answers = titles.flatMap((_, c) => cellFields(cells[c][i], rows[i]));
    return [rows[i].line, questionOf(rows[i]), referenceOf(rows[i]), ...answers];
  });
  return [heading, ...body].map((fields) => `${fields.map(csvCell).join(",")}\r\n`).join("");
}

function cellFields(cell, row) {
  const right = verdict(cell, row);
  return [cell?.answer ?? "", right === null ? "" : Number(right), cell?.error ?? ""];
}
