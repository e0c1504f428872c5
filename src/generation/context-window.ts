import { type ContextWindow, type NewMessage } from '../domain/session.js';
import { type ToolDefinition } from '../domain/session.events.js';

export interface VersionedMessage {
  readonly version: number;
  readonly message: NewMessage;
}

/** Tokens that each message costs beside its text, for role and separators. */
const MESSAGE_OVERHEAD = 4;

let count: ((text: string) => number) | undefined;

/** Tokens by the encoding of OpenAI's current models; for others a close estimate. Loaded when first needed. */
export async function loadTokenizer(): Promise<(text: string) => number> {
  if (!count) {
    const { countTokens } = await import('gpt-tokenizer/encoding/o200k_base');
    // Text that looks like a control token is just text here.
    count = (text) => countTokens(text, { disallowedSpecial: new Set() });
  }
  return count;
}

/**
 * What of a history fits a budget. Whole turns fall out, the oldest first; a turn begins with a user's message, so a
 * tool call is never parted from its result. System messages stay, and so does the turn that is to be answered, whatever it costs.
 *
 * @param budget tokens for the messages, after what instructions, tools and the new message take
 * @param asked whether a new message follows, so that no turn of the history must stay
 */
export function fitWindow(
  history: readonly VersionedMessage[],
  budget: number,
  tokens: (text: string) => number,
  asked: boolean,
): ContextWindow | undefined {
  const upTo = history.at(-1)?.version;
  if (upTo === undefined) return undefined;
  const costs = history.map(({ message }) => messageTokens(message, tokens));
  let left = budget;
  history.forEach(({ message }, index) => {
    if (message.role === 'system') left -= costs[index] ?? 0;
  });
  // Backwards by turns; `from` is where the kept turns begin.
  let from = history.length;
  let cost = 0;
  for (let index = history.length - 1; index >= 0; index -= 1) {
    const role = history[index]?.message.role;
    if (role !== 'system') cost += costs[index] ?? 0;
    const begins = role === 'user' || index === 0;
    if (!begins) continue;
    if ((asked || from < history.length) && cost > left) break;
    left -= cost;
    cost = 0;
    from = index;
  }
  const kept = history.map(({ message }, index) => index >= from || message.role === 'system');
  return { ranges: rangesOf(history, kept), upTo };
}

/** Runs of kept messages as inclusive ranges of versions. */
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
  const text = typeof content === 'string' ? content : content.map((part) => JSON.stringify(part)).join('\n');
  return MESSAGE_OVERHEAD + tokens(text) + (toolCalls ? tokens(JSON.stringify(toolCalls)) : 0);
}

export const definitionTokens = (
  tools: readonly ToolDefinition[] | undefined,
  tokens: (text: string) => number,
) => (tools ? tokens(JSON.stringify(tools)) : 0);
