import { BaseListChatMessageHistory } from '@langchain/core/chat_history';
import {
  type BaseMessage,
  mapChatMessagesToStoredMessages,
  mapStoredMessagesToChatMessages,
  type StoredMessage as LangChainMessage,
} from '@langchain/core/messages';
import { isSilent } from '../domain/content.js';
import { type ContentPart, type Json } from '../domain/session.events.js';
import { type Fields, fieldsOf, listOf, textOf } from '../domain/loose-json.js';
import { RemoteSession, type RemoteSessionOptions } from './remote-session.js';
import { dataPart, type MessageForm } from './stored-form.js';

export type ColloquyChatMessageHistoryOptions = RemoteSessionOptions;

/**
 * The history of a chat of LangChain, kept by a Colloquy service. What a message has no place for is kept beside it, so that
 * messages come back as they were given.
 *
 * @example
 * const history = new ColloquyChatMessageHistory({ url: 'http://127.0.0.1:3000', sessionId: 'user-123' });
 * await history.addUserMessage('What is React?');
 */
export class ColloquyChatMessageHistory extends BaseListChatMessageHistory {
  override lc_namespace = ['colloquy', 'stores', 'message'];
  private readonly remote: RemoteSession;

  constructor(options: ColloquyChatMessageHistoryOptions = {}) {
    super(options);
    this.remote = new RemoteSession(LANGCHAIN_FORM, options);
  }

  get sessionId(): string {
    return this.remote.id;
  }

  async getMessages(): Promise<BaseMessage[]> {
    return mapStoredMessagesToChatMessages((await this.remote.read()) as unknown as LangChainMessage[]);
  }

  addMessage(message: BaseMessage): Promise<void> {
    return this.addMessages([message]);
  }

  /** All join the history, or none. */
  override async addMessages(messages: BaseMessage[]): Promise<void> {
    await this.remote.append(mapChatMessagesToStoredMessages(messages));
  }

  /** Empties the history. The session stays, and its log keeps what was said. */
  override async clear(): Promise<void> {
    await this.remote.clear();
  }
}

const ROLES = { human: 'user', ai: 'assistant', system: 'system' } as const;

export const LANGCHAIN_FORM: MessageForm = {
  protocol: 'langchain',

  draft(given) {
    const { type, data } = fieldsOf(given) as { type?: string; data?: Fields };
    const { content: said, name, tool_calls: calls, tool_call_id: callId } = data ?? {};
    const content = contentOf(said);
    const named = typeof name === 'string' && name !== '' && name.length <= 128 ? { name } : {};
    if (type === 'tool' && typeof callId === 'string' && /^.{1,128}$/s.test(callId))
      return { role: 'tool', toolCallId: callId, content, ...named };
    const role = Object.hasOwn(ROLES, type ?? '') ? ROLES[type as keyof typeof ROLES] : undefined;
    if (!role) return { role: 'assistant', content: [dataPart(type ?? 'unknown', given)] };
    if (role !== 'assistant') {
      // The service takes no message that says nothing.
      return { role, content: isSilent(content) ? [dataPart('empty', '')] : content, ...named };
    }
    const toolCalls = listOf(calls)
      .map(fieldsOf)
      .map(({ id, name: called, args }) => ({
        id: textOf(id) ?? '',
        name: textOf(called) ?? '',
        arguments: JSON.stringify(args ?? {}),
      }));
    const isCallable = toolCalls.every(
      ({ id, name: called }) => id !== '' && /^[A-Za-z0-9_.:-]{1,64}$/.test(called),
    );
    return { role, content, ...named, ...(isCallable && toolCalls.length > 0 && { toolCalls }) };
  },

  show({ role, content, name, toolCalls, toolCallId }) {
    const [part] = typeof content === 'string' ? [] : content;
    if (role === 'assistant' && part?.type === 'data' && OF_LANGCHAIN.test(part.name) && !toolCalls)
      return part.data;
    const data = {
      content: shownContent(content),
      ...(name !== undefined && { name }),
      additional_kwargs: {},
      response_metadata: {},
    };
    if (role === 'tool') return { type: 'tool', data: { ...data, tool_call_id: toolCallId ?? '' } };
    if (role !== 'assistant') return { type: role === 'user' ? 'human' : 'system', data };
    const calls = (toolCalls ?? []).map((call) => ({
      name: call.name,
      args: argumentsOf(call.arguments),
      id: call.id,
      type: 'tool_call',
    }));
    return { type: 'ai', data: { ...data, tool_calls: calls, invalid_tool_calls: [] } };
  },
};

/** Kinds of messages that are neither said nor results, and that are kept as they were given. */
const OF_LANGCHAIN = /^(?:generic|function|remove)$/;

function argumentsOf(text: string): Json {
  try {
    return JSON.parse(text) as Json;
  } catch {
    return { text };
  }
}

function contentOf(given: unknown): string | ContentPart[] {
  if (typeof given === 'string') return given;
  const parts = listOf(given).map((one): ContentPart => {
    const part = fieldsOf(one);
    const type = textOf(part['type']) ?? 'unknown';
    const text = textOf(part['text']);
    if (type === 'text' && text !== undefined) return { type: 'text', text };
    const image = part['image_url'];
    const url = textOf(image) ?? textOf(fieldsOf(image)['url']);
    if (type === 'image_url' && url !== undefined && /^(?:https?|data):/i.test(url) && URL.canParse(url))
      return { type: 'image', url };
    return dataPart(type, one as Json);
  });
  return parts.length === 0 ? '' : parts;
}

function shownContent(content: string | readonly ContentPart[]): Json {
  if (typeof content === 'string') return content;
  return content
    .filter((part) => part.type !== 'reasoning')
    .map((part): Json => {
      switch (part.type) {
        case 'text':
        case 'refusal':
          return { type: 'text', text: part.text };
        case 'image':
          return { type: 'image_url', image_url: { url: part.url } };
        case 'data':
          return fieldsOf(part.data)['type'] === part.name
            ? part.data
            : { type: 'text', text: `${part.name}: ${JSON.stringify(part.data)}` };
        default:
          return { type: 'file', url: part.url };
      }
    });
}
