import { type ContextWindow, type NewMessage } from '../domain/session.commands.js';
import { type ContentPart, type ToolDefinition } from '../domain/session.events.js';
import { type VersionedMessage } from '../sessions/history-reader.js';

/** Tokens of each message in addition to its text, for role and separators. */
const MESSAGE_OVERHEAD = 4;

/** Assumed tokens of an image or a file. The real number depends on the model and is not known from the URL. */
const ATTACHMENT_TOKENS = 1_000;

/**
 * The time of the tokenizer grows with the square of the longest run of letters or of blanks: a message of 1 MB without
 * a blank would block the process for minutes. Long runs are therefore cut before they are counted. Each cut adds at
 * most one token to the count.
 */
const LONG_WORDS = /\S{256}(?=\S)/gu;
const LONG_BLANKS = /\s{256}(?=\s)/gu;

let count: ((text: string) => number) | undefined;

/** Tokens by the encoding of OpenAI's current models; for others a close estimate. Loaded when first needed. */
export async function loadTokenizer(): Promise<(text: string) => number> {
  if (!count) {
    const { countTokens } = await import('gpt-tokenizer/encoding/o200k_base');
    // Text that looks like a control token is counted as plain text.
    count = (text) => {
      const cut = text.replaceAll(LONG_WORDS, '$& ').replaceAll(LONG_BLANKS, '$&x');
      return countTokens(cut, { disallowedSpecial: new Set() });
    };
  }
  return count;
}

/**
 * The part of a history that fits a budget. Only whole turns are left out, the oldest first. A turn begins with a
 * message of the user, unless a tool call before it has its result after it, because a call and its result must stay
 * together. System messages and the turn that the model is to answer are kept even if they exceed the budget.
 *
 * @param budget tokens for the messages, after what instructions, tools and the new message take
 * @param cost tokens of a message; called only for messages that may be kept
 * @param isNewTurn whether the new message begins a turn of its own, in which case no turn of the history has to be
 * kept
 */
export function fitWindow(
  history: readonly VersionedMessage[],
  budget: number,
  cost: (message: VersionedMessage) => number,
  isNewTurn: boolean,
): ContextWindow | undefined {
  const upTo = history.at(-1)?.version;
  if (upTo === undefined) return undefined;
  let left = budget;
  for (const one of history) if (one.message.role === 'system') left -= cost(one);
  const startsTurn = turnStarts(history);
  // Goes backwards turn by turn; the kept turns begin at `from`.
  let from = history.length;
  for (let index = history.length - 1; index >= 0; index -= 1) {
    const one = history[index];
    if (one && one.message.role !== 'system') left -= cost(one);
    const mustStay = !isNewTurn && from === history.length;
    if (left < 0 && !mustStay) break;
    if (startsTurn[index]) from = index;
  }
  const kept = history.map(({ message }, index) => index >= from || message.role === 'system');
  return { ranges: rangesOf(history, kept), upTo };
}

/** The messages at which turns begin: no tool call before them is without a result. */
function turnStarts(history: readonly VersionedMessage[]): boolean[] {
  const open = new Set<string>();
  return history.map(({ message }, index) => {
    const starts = index === 0 || (message.role === 'user' && open.size === 0);
    for (const call of message.toolCalls ?? []) open.add(call.id);
    if (message.toolCallId !== undefined) open.delete(message.toolCallId);
    return starts;
  });
}

/** The kept messages as inclusive ranges of versions. */
function rangesOf(history: readonly VersionedMessage[], kept: readonly boolean[]): [number, number][] {
  const ranges: [number, number][] = [];
  history.forEach(({ version }, index) => {
    if (!kept[index]) return;
    const last = ranges.at(-1);
    if (last && kept[index - 1]) last[1] = version;
    else ranges.push([version, version]);
  });
  return ranges;
}

export function messageTokens(
  message: Pick<NewMessage, 'content' | 'toolCalls'>,
  tokens: (text: string) => number,
) {
  const { content, toolCalls } = message;
  const parts =
    typeof content === 'string' ? tokens(content) : sum(content.map((part) => partTokens(part, tokens)));
  return MESSAGE_OVERHEAD + parts + (toolCalls ? tokens(JSON.stringify(toolCalls)) : 0);
}

function partTokens(part: ContentPart, tokens: (text: string) => number): number {
  switch (part.type) {
    case 'text':
    case 'refusal':
      return tokens(part.text);
    case 'data':
      return tokens(JSON.stringify(part.data));
    case 'reasoning':
      return 0;
    default:
      return ATTACHMENT_TOKENS;
  }
}

const sum = (numbers: readonly number[]): number => numbers.reduce((total, one) => total + one, 0);

export const definitionTokens = (
  tools: readonly ToolDefinition[] | undefined,
  tokens: (text: string) => number,
) => (tools ? tokens(JSON.stringify(tools)) : 0);
