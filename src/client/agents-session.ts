import {
  type AgentInputItem,
  type Session,
  type SessionHistoryTransactionArgs,
  type SessionHistoryTransactionAwareSession,
} from '@openai/agents';
import { isSilent } from '../domain/content.js';
import { type ContentPart, type Json } from '../domain/session.events.js';
import { type Fields, fieldsOf, listOf, textOf } from '../domain/loose-json.js';
import { RemoteSession, type RemoteSessionOptions } from './remote-session.js';
import { dataPart, type MessageForm, type StoredMessage, textIn } from './stored-form.js';

export type ColloquySessionOptions = RemoteSessionOptions;

/**
 * The session of a run of OpenAI Agents JS, kept by a Colloquy service. Each item is a message; what a message has no place
 * for is kept beside it, so that items come back as they were given. Tool calls and their results leave together.
 *
 * @example
 * const session = new ColloquySession({ url: 'http://127.0.0.1:3000', sessionId: 'user-123' });
 * const result = await run(agent, 'What is React?', { session });
 */
export class ColloquySession implements Session, SessionHistoryTransactionAwareSession {
  private readonly remote: RemoteSession;

  constructor(options: ColloquySessionOptions = {}) {
    this.remote = new RemoteSession(AGENTS_FORM, options);
  }

  getSessionId(): Promise<string> {
    return Promise.resolve(this.remote.id);
  }

  /** The latest items, the oldest of them first. */
  async getItems(limit?: number): Promise<AgentInputItem[]> {
    if (limit !== undefined && limit <= 0) return [];
    return (await this.remote.read(limit)) as unknown as AgentInputItem[];
  }

  /** All join the history, or none. */
  async addItems(items: AgentInputItem[]): Promise<void> {
    await this.remote.append(items);
  }

  async popItem(): Promise<AgentInputItem | undefined> {
    return (await this.remote.pop()) as unknown as AgentInputItem | undefined;
  }

  /** Empties the history. The session stays, and its log keeps what was said. */
  clearSession(): Promise<void> {
    return this.remote.clear();
  }

  /**
   * Changes the history in one piece, and once however often it is called with the same operation.
   * @throws Error when the end of the history is not what was expected; ColloquyError `idempotency-key-reused`
   */
  async applyHistoryTransaction({ operationId, transaction }: SessionHistoryTransactionArgs): Promise<void> {
    if (transaction.type === 'append_items') {
      await this.remote.append(transaction.items, operationId);
      return;
    }
    const { expectedSuffix, replacement } = transaction;
    if (await this.remote.replace(expectedSuffix, replacement, operationId)) return;
    throw new Error('the history does not end with the items that are to be replaced');
  }
}

export const AGENTS_FORM: MessageForm = {
  protocol: 'openai-agents',

  draft(given) {
    const item = fieldsOf(given);
    const type = textOf(item['type']) ?? 'message';
    const role = textOf(item['role']);
    if (type === 'message' && (role === 'user' || role === 'system' || role === 'assistant')) {
      const content = contentOf(item['content']);
      const isEmpty = role !== 'assistant' && isSilent(content);
      return { role, content: isEmpty ? [dataPart('message', given)] : content };
    }
    const [callId, name, text] = [item['callId'], item['name'], item['arguments']].map(textOf);
    if (type === 'function_call' && isId(callId) && isName(name) && text !== undefined)
      return { role: 'assistant', content: '', toolCalls: [{ id: callId, name, arguments: text }] };
    if (type === 'function_call_result' && isId(callId))
      return { role: 'tool', toolCallId: callId, content: contentOf(item['output']) };
    if (type === 'reasoning') {
      const texts = listOf(item['content']).map((part) => textOf(fieldsOf(part)['text']) ?? '');
      return { role: 'assistant', content: [{ type: 'reasoning', text: texts.join('') }] };
    }
    // Calls of tools that the provider runs, and the like.
    return { role: 'assistant', content: [dataPart(type, given)] };
  },

  show(message) {
    const { role, content, toolCalls, toolCallId } = message;
    const [part] = typeof content === 'string' ? [] : content;
    if (role === 'assistant' && part?.type === 'data' && OF_AGENTS.test(part.name) && !toolCalls)
      return part.data;
    if (role === 'tool')
      return {
        type: 'function_call_result',
        name: message.name ?? '',
        callId: toolCallId ?? '',
        status: 'completed',
        output: { type: 'text', text: textIn(content) },
      };
    const [call] = toolCalls ?? [];
    if (call && textIn(content) === '')
      return {
        type: 'function_call',
        callId: call.id,
        name: call.name,
        status: 'completed',
        arguments: call.arguments,
      };
    if (part?.type === 'reasoning' && typeof content !== 'string' && content.length === 1)
      return { type: 'reasoning', content: [{ type: 'input_text', text: part.text ?? '' }] };
    if (role === 'assistant')
      return { type: 'message', role, status: 'completed', content: partsOf(content, 'output_text') };
    if (typeof content === 'string')
      return { type: 'message', role: role === 'user' ? role : 'system', content };
    if (role === 'user') return { type: 'message', role, content: partsOf(content, 'input_text') };
    // What the system says is a text alone.
    const texts = partsOf(content, 'output_text').map((part) => textOf(fieldsOf(part)['text']) ?? '');
    return { type: 'message', role: 'system', content: texts.join('\n') };
  },
};

/** Kinds of items that are no messages and that are kept as they were given; another one is told as a text. */
const OF_AGENTS =
  /^(?:hosted_tool_call|(?:computer|shell|apply_patch|program|tool_search)_\w+|compaction|unknown)$/;

const isId = (value: string | undefined): value is string => value !== undefined && /^.{1,128}$/s.test(value);
const isName = (value: string | undefined): value is string =>
  value !== undefined && /^[A-Za-z0-9_.:-]{1,64}$/.test(value);

function contentOf(given: unknown): string | ContentPart[] {
  if (typeof given === 'string') return given;
  const output = fieldsOf(given);
  if (output['type'] === 'text' && typeof output['text'] === 'string') return output['text'];
  const list = Array.isArray(given) ? (given as unknown[]) : [given];
  const parts = list.map((part) => partOf(fieldsOf(part)));
  const [first] = parts;
  if (!first) return '';
  return parts.length === 1 && first.type === 'text' ? first.text : parts;
}

function partOf(part: Fields): ContentPart {
  const type = textOf(part['type']) ?? 'unknown';
  const text = textOf(part['text']);
  if (/^(?:input_|output_)?text$/.test(type) && text !== undefined) return { type: 'text', text };
  const refusal = textOf(part['refusal']);
  if (type === 'refusal' && refusal !== undefined) return { type: 'refusal', text: refusal };
  const image = textOf(part['image']);
  if (
    type === 'input_image' &&
    image !== undefined &&
    /^(?:https?|data):/i.test(image) &&
    URL.canParse(image)
  )
    return { type: 'image', url: image };
  return dataPart(type, part as Json);
}

function partsOf(content: StoredMessage['content'], text: 'input_text' | 'output_text'): Json[] {
  const parts: readonly ContentPart[] =
    typeof content === 'string' ? (content === '' ? [] : [{ type: 'text', text: content }]) : content;
  return parts
    .filter((part) => part.type !== 'reasoning')
    .map((part): Json => {
      switch (part.type) {
        case 'text':
          return { type: text, text: part.text };
        case 'refusal':
          return { type: 'refusal', refusal: part.text };
        case 'data':
          return { type: text, text: `${part.name}: ${JSON.stringify(part.data)}` };
        default:
          // The model itself says texts alone.
          if (text === 'output_text') return { type: text, text: part.url };
          return part.type === 'image'
            ? { type: 'input_image', image: part.url }
            : { type: 'input_file', file: part.url };
      }
    });
}
