// @ts-check
/** Differences between two texts, word by word. No page. */

const MOST_PAIRS = 1_000_000; // of words that are compared; longer texts differ as a whole between their common ends

/**
 * The parts of two texts in order: what both have, what only the first has, what only the second has.
 * @returns {{kind: "same" | "gone" | "new", text: string}[]}
 */
export function differences(before, after) {
  const a = before.split(/(\s+)/).filter(Boolean);
  const b = after.split(/(\s+)/).filter(Boolean);
  let start = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) {
    start += 1;
  }
  let end = 0;
  while (end < a.length - start && end < b.length - start && a[a.length - 1 - end] === b[b.length - 1 - end]) {
    end += 1;
  }
  const middle = between(a.slice(start, a.length - end), b.slice(start, b.length - end));
  const parts = [...a.slice(0, start).map(same), ...middle, ...a.slice(a.length - end).map(same)];
  return joined(parts);
}

function same(text) {
  return { kind: "same", text };
}

/** By the longest common subsequence of words. */
function between(a, b) {
  if (a.length * b.length > MOST_PAIRS || !a.length || !b.length) {
    return [...a.map((text) => ({ kind: "gone", text })), ...b.map((text) => ({ kind: "new", text }))];
  }
  const width = b.length + 1;
  const longest = new Uint32Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i -= 1) {
    for (let j = b.length - 1; j >= 0; j -= 1) {
      const skip = Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
      longest[i * width + j] = a[i] === b[j] ? longest[(i + 1) * width + j + 1] + 1 : skip;
    }
  }
  const parts = [];
  let i = 0;
  let j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) {
      parts.push(same(a[i]));
      i += 1;
      j += 1;
    } else if (j === b.length || (i < a.length && longest[(i + 1) * width + j] >= longest[i * width + j + 1])) {
      parts.push({ kind: "gone", text: a[i] });
      i += 1;
    } else {
      parts.push({ kind: "new", text: b[j] });
      j += 1;
    }
  }
  return parts;
}

/** Neighbors of one kind as one part. */
function joined(parts) {
  const found = [];
  for (const part of parts) {
    const last = found[found.length - 1];
    if (last && last.kind === part.kind) {
      last.text += part.text;
    } else {
      found.push({ ...part });
    }
  }
  return found;
}
