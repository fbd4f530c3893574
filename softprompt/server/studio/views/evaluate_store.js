// @ts-check
/** The answers of an evaluation over a reload: blocks of cells in this tab's storage. */

const PREFIX = "softprompt.evaluate.";
const BLOCK = 100; // rows
const WAIT_MS = 200;

/** What is kept of one evaluation; another key's answers are forgotten. */
export class AnswerStore {
  /**
   * @param {string} key says what is evaluated: file, columns and settings.
   * @param {() => void} onFull is called once, when the storage takes no more.
   */
  constructor(key, onFull) {
    this.key = key;
    this.onFull = onFull;
    this.isFull = false;
    this.dirty = new Set();
    this.cells = [];
    this.timer = 0;
  }

  /** Whether a run of this key is kept. */
  isKept() {
    return read(`${PREFIX}run`)?.key === this.key;
  }

  /** The kept run of this key: its state and cells. */
  load(columns, rows) {
    const kept = read(`${PREFIX}run`);
    this.cells = Array.from({ length: columns }, (_, c) => {
      const blocks = Array.from({ length: Math.ceil(rows / BLOCK) }, (_, b) => read(`${PREFIX}${c}.${b}`) ?? []);
      return Array.from({ length: rows }, (_, i) => blocks[Math.floor(i / BLOCK)][i % BLOCK] ?? undefined);
    });
    return { isRunning: Boolean(kept?.isRunning), cells: this.cells };
  }

  /** Begin anew with no answers. */
  begin(columns, rows) {
    forget();
    this.cells = Array.from({ length: columns }, () => new Array(rows).fill(undefined));
    return this.cells;
  }

  /** Keep whether the run goes on after a reload, and the link that shows it. */
  setRunning(isRunning, hash) {
    this.write("run", { key: this.key, isRunning, link: hash.split("?")[1] ?? "" });
    this.flush();
  }

  /** Keep a cell; storage is written a little later, many cells at a time. */
  put(column, row, cell) {
    this.cells[column][row] = cell;
    this.dirty.add(`${column}.${Math.floor(row / BLOCK)}`);
    this.timer ||= window.setTimeout(() => this.flush(), WAIT_MS);
  }

  /** Write what has changed. */
  flush() {
    window.clearTimeout(this.timer);
    this.timer = 0;
    for (const name of this.dirty) {
      const [column, block] = name.split(".").map(Number);
      this.write(name, this.cells[column].slice(block * BLOCK, (block + 1) * BLOCK));
    }
    this.dirty.clear();
  }

  write(name, value) {
    if (this.isFull) {
      return;
    }
    try {
      sessionStorage.setItem(PREFIX + name, JSON.stringify(value));
    } catch {
      this.isFull = true;
      this.onFull();
    }
  }
}

/** The parameters of the link of the kept evaluation, "" if there is none. */
export function keptLink() {
  return read(`${PREFIX}run`)?.link ?? "";
}

function forget() {
  for (const name of Object.keys(sessionStorage).filter((name) => name.startsWith(PREFIX))) {
    sessionStorage.removeItem(name);
  }
}

function read(name) {
  try {
    return JSON.parse(sessionStorage.getItem(name) ?? "null");
  } catch {
    return null;
  }
}
