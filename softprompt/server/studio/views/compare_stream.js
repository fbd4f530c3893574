// @ts-check
/** Reads a streamed chat answer: its text, its tokens with their log-probabilities, and its times. No page. */

/**
 * An answer. `piece` of a token is the text that it completes; of a part of a character "".
 * @typedef {{text: string, thought: string, tokens: {token: string, logprob: number, piece: string}[], finish: string,
 *   usage: any, firstMs: number | null, perSecond: number | null, state: "running" | "done" | "stopped" | "failed",
 *   error: string}} Answer
 */

/** An answer that has not begun. @returns {Answer} */
export function newAnswer() {
  return {
    text: "",
    thought: "",
    tokens: [],
    finish: "",
    usage: null,
    firstMs: null,
    perSecond: null,
    state: "running",
    error: "",
  };
}

/**
 * Read a stream into an answer, to its end, its error, or until it is stopped.
 * @param {AsyncIterable<any>} events @param {Answer} answer
 * @param {(tokens: Answer["tokens"], text: string) => void} onPiece is called with what is new
 * @param {AbortSignal} signal
 */
export async function readAnswer(events, answer, onPiece, signal) {
  const begun = performance.now();
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  let last = begun;
  try {
    for await (const event of events) {
      answer.usage = event.usage ?? answer.usage;
      const choice = event.choices[0];
      if (!choice) continue;
      const { content = "", reasoning_content: thought = "" } = choice.delta;
      const tokens = (choice.logprobs?.content ?? []).map((one) => scored(one, decoder));
      answer.text += content;
      answer.thought += thought;
      answer.tokens.push(...tokens);
      answer.finish = choice.finish_reason ?? answer.finish;
      if (content || thought || tokens.length) {
        last = performance.now();
        answer.firstMs ??= last - begun;
        onPiece(tokens, content);
      }
    }
    end(answer, decoder, onPiece);
    answer.state = "done";
  } catch (error) {
    answer.state = signal.aborted ? "stopped" : "failed";
    answer.error = signal.aborted ? "" : error.message;
  }
  const count = answer.usage?.completion_tokens ?? answer.tokens.length;
  const seconds = (last - begun - (answer.firstMs ?? 0)) / 1000;
  answer.perSecond = count > 1 && seconds > 0 ? (count - 1) / seconds : null;
}

/** A character that was cut in its middle stands at the last token. */
function end(answer, decoder, onPiece) {
  const rest = decoder.decode();
  const last = answer.tokens[answer.tokens.length - 1];
  if (!rest || !last) return;
  last.piece += rest;
  onPiece([{ ...last, piece: rest }], "");
}

function scored({ token, logprob, bytes }, decoder) {
  return { token, logprob, piece: decoder.decode(Uint8Array.from(bytes ?? []), { stream: true }) };
}

/** Whether the tokens make up the text, so that they can be shown in its place. @param {Answer} answer */
export function isCovered(answer) {
  return answer.tokens.map((token) => token.piece).join("") === answer.text;
}

/** The sum of the tokens' log-probabilities by their number; null without tokens. @param {Answer} answer */
export function meanLogprob(answer) {
  const values = answer.tokens.map((token) => token.logprob);
  return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
}
