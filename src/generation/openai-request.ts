import type OpenAI from 'openai';
import { type Content, type ContentPart } from '../domain/session.events.js';
import { type ModelRequest, type PromptMessage } from './chat-model.js';
import { type GenerationParameters } from './parameters.js';

type MessageParam = OpenAI.Chat.Completions.ChatCompletionMessageParam;
type PartParam = OpenAI.Chat.Completions.ChatCompletionContentPart;
type Params = OpenAI.Chat.Completions.ChatCompletionCreateParamsStreaming;

/** In what a server that speaks the API differs from OpenAI's own. */
export interface Dialect {
  /** Whether instructions and system messages are sent as one message in front: templates of many models allow no other. */
  readonly systemFirst: boolean;
  /** Whether the number of tokens is asked for; some servers refuse a request that asks. */
  readonly usage: boolean;
  /** By which name the limit on the tokens of a reply goes: OpenAI has renamed it, and others know the old name alone. */
  readonly maxTokens: 'max_completion_tokens' | 'max_tokens';
  /** In which member of a reply its reasoning is sent back; undefined: not at all. */
  readonly reasoning?: 'reasoning_content' | 'reasoning' | undefined;
  /** Most bytes of `data:` URLs in a prompt: providers refuse larger ones, and photographs of long ago are seldom asked about. */
  readonly maxAttachedBytes?: number | undefined;
}

export interface SentRequest {
  readonly params: Params;
  /** The name of a tool as the request has it, for the name by which it was sent. */
  readonly toolName: (sent: string) => string;
}

/**
 * A request in the form of the chat completions API, streamed. What the API would refuse is mended here and not in the
 * log: one such message would make every later turn fail.
 */
export function toRequest(request: ModelRequest, dialect: Dialect): SentRequest {
  const { systemFirst, usage } = dialect;
  const names = new SentNames([
    ...(request.tools ?? []).map(({ name }) => name),
    ...request.messages.flatMap(({ toolCalls }) => (toolCalls ?? []).map(({ name }) => name)),
  ]);
  const messages: MessageParam[] = [];
  if (request.instructions !== undefined) messages.push({ role: 'system', content: request.instructions });
  // What only a message of the user can hold. It has to wait until all results of the calls have come.
  let attached: PartParam[] = [];
  const attach = (): void => {
    if (attached.length > 0) messages.push({ role: 'user', content: attached });
    attached = [];
  };
  for (const message of withinBytes(request.messages, dialect.maxAttachedBytes)) {
    if (message.role === 'tool') {
      const { text, parts } = resultOf(message);
      messages.push({ role: 'tool', content: text, tool_call_id: message.toolCallId ?? '' });
      attached.push(...parts);
      continue;
    }
    attach();
    messages.push(toParam(message, names, dialect.reasoning));
  }
  attach();
  const params: Params = {
    model: request.model,
    stream: true,
    ...(usage && { stream_options: { include_usage: true } }),
    messages: inTurns(systemFirst ? withSystemFirst(messages) : messages, systemFirst),
    ...parametersOf(request, names, dialect),
    ...(request.tools?.length && {
      tools: request.tools.map(({ name, description, parameters, strict }) => ({
        type: 'function' as const,
        function: {
          name: names.sent(name),
          ...(strict !== undefined && { strict }),
          ...(description !== undefined && { description }),
          ...(parameters && { parameters }),
        },
      })),
    }),
  };
  return { params, toolName: (sent) => names.given(sent) };
}

/**
 * The messages with two replies in a row as one, because some providers refuse them, and so two messages of the user where
 * a template wants roles to take turns.
 */
function inTurns(messages: readonly MessageParam[], alsoUser: boolean): MessageParam[] {
  const joined: MessageParam[] = [];
  for (const message of messages) join(joined, message, alsoUser);
  return joined;
}

function join(messages: MessageParam[], next: MessageParam, alsoUser: boolean): void {
  const last = messages.at(-1);
  if (last?.role === 'assistant' && next.role === 'assistant' && !last.tool_calls) {
    // Those of the assistant are texts: see `toParam`.
    const texts = [last.content, next.content] as (string | null)[];
    const content = texts.filter(Boolean).join('\n');
    messages.splice(-1, 1, { ...last, ...next, content });
  } else if (alsoUser && last?.role === 'user' && next.role === 'user') {
    const isText = typeof last.content === 'string' && typeof next.content === 'string';
    const content = isText
      ? `${last.content as string}\n\n${next.content as string}`
      : [...asParts(last.content), ...asParts(next.content)];
    const { name, ...others } = last;
    messages.splice(-1, 1, { ...others, ...(name !== undefined && name === next.name && { name }), content });
  } else messages.push(next);
}

const asParts = (content: string | readonly PartParam[]): readonly PartParam[] =>
  typeof content === 'string' ? [{ type: 'text', text: content }] : content;

function parametersOf(
  { parameters, tools }: ModelRequest,
  names: SentNames,
  { maxTokens }: Dialect,
): Partial<Params> {
  if (!parameters) return {};
  const { temperature, topP, maxOutputTokens, stop, seed, responseFormat, reasoning } = parameters;
  const { toolChoice, parallelToolCalls, verbosity } = parameters;
  // Without tools a choice among them is refused.
  const hasTools = (tools?.length ?? 0) > 0;
  return given({
    temperature,
    top_p: topP,
    [maxTokens]: maxOutputTokens,
    stop,
    seed,
    response_format: responseFormat && toFormat(responseFormat),
    verbosity,
    reasoning_effort: reasoning?.effort as Params['reasoning_effort'],
    tool_choice: hasTools ? choiceOf(toolChoice, names) : undefined,
    parallel_tool_calls: hasTools ? parallelToolCalls : undefined,
  });
}

const choiceOf = (
  choice: GenerationParameters['toolChoice'],
  names: SentNames,
): Params['tool_choice'] | undefined =>
  typeof choice === 'object' ? { type: 'function', function: { name: names.sent(choice.name) } } : choice;

function toFormat(
  format: NonNullable<GenerationParameters['responseFormat']>,
): NonNullable<Params['response_format']> {
  if (format.type !== 'json_schema') return { type: format.type };
  const { type, ...schema } = format;
  return { type, json_schema: given(schema) };
}

/** Without the members that are undefined. */
const given = <Value extends object>(
  value: Value,
): { [Key in keyof Value]: Exclude<Value[Key], undefined> } =>
  Object.fromEntries(Object.entries(value).filter(([, one]) => one !== undefined)) as never;

/** The messages with all that the system says in one message in front. */
function withSystemFirst(messages: readonly MessageParam[]): MessageParam[] {
  const said = messages.flatMap((message) => (message.role === 'system' ? [message.content as string] : []));
  const others = messages.filter(({ role }) => role !== 'system');
  return said.length > 0 ? [{ role: 'system', content: said.join('\n\n') }, ...others] : others;
}

function toParam(message: PromptMessage, names: SentNames, reasoning: Dialect['reasoning']): MessageParam {
  // The API allows no other characters in a name and would refuse the whole prompt because of one.
  const name = message.name?.replaceAll(/[^a-zA-Z0-9_-]/g, '_').slice(0, 64);
  const named = name === undefined ? {} : { name };
  switch (message.role) {
    case 'user':
      return {
        role: 'user',
        content: typeof message.content === 'string' ? message.content : message.content.flatMap(toParts),
        ...named,
      };
    case 'assistant':
      return {
        role: 'assistant',
        content: asText(message.content),
        ...named,
        ...(reasoning && thoughtsIn(message.content, reasoning)),
        ...(message.toolCalls && {
          tool_calls: message.toolCalls.map((call) => ({
            id: call.id,
            type: 'function' as const,
            function: { name: names.sent(call.name), arguments: argumentsOf(call.arguments) },
          })),
        }),
      };
    default:
      return { role: 'system', content: asText(message.content), ...named };
  }
}

/** What a model thought before it said this, in the member where its provider wants it back. */
function thoughtsIn(content: Content, member: NonNullable<Dialect['reasoning']>): Record<string, string> {
  const parts = typeof content === 'string' ? [] : content;
  const text = parts.flatMap((part) => (part.type === 'reasoning' ? [part.text ?? ''] : [])).join('');
  return text === '' ? {} : { [member]: text };
}

/** The messages with the oldest attachments named instead of sent, where all of them would be too many bytes. */
function withinBytes(messages: readonly PromptMessage[], most = Infinity): readonly PromptMessage[] {
  let bytes = 0;
  const leftOut = new Set<ContentPart>();
  for (const { content } of messages.toReversed()) {
    for (const part of typeof content === 'string' ? [] : content.toReversed()) {
      if (!('url' in part) || !/^data:/i.test(part.url)) continue;
      bytes += part.url.length;
      if (bytes > most) leftOut.add(part);
    }
  }
  if (leftOut.size === 0) return messages;
  return messages.map((message) =>
    typeof message.content === 'string'
      ? message
      : { ...message, content: message.content.map((part) => (leftOut.has(part) ? named(part) : part)) },
  );
}

const named = (part: ContentPart): ContentPart => ({ type: 'text', text: textFor(part) });

/** The result of a tool can only be text. Its other parts follow in a message of their own, which the text announces. */
function resultOf({ content, toolCallId }: PromptMessage): { text: string; parts: PartParam[] } {
  const others =
    typeof content === 'string'
      ? []
      : content.filter(({ type }) => type === 'image' || type === 'file' || type === 'audio');
  if (others.length === 0) return { text: asText(content), parts: [] };
  const kinds = others.map((part) => part.type).join(', ');
  const told =
    typeof content === 'string' ? content : asText(content.filter((part) => !others.includes(part)));
  const text = [told, `[The result goes on in the next message: ${kinds}]`].filter(Boolean);
  const announced: PartParam = {
    type: 'text',
    text: `[From the result of the tool call ${toolCallId ?? ''}]`,
  };
  return { text: text.join('\n'), parts: [announced, ...others.flatMap(toParts)] };
}

/** A part of a message of the user. Thoughts of a model are not sent: most providers refuse them. */
function toParts(part: ContentPart): PartParam[] {
  switch (part.type) {
    case 'image':
      return [
        { type: 'image_url', image_url: { url: part.url, ...(part.detail && { detail: part.detail }) } },
      ];
    case 'file':
      return [
        {
          type: 'file',
          file: { file_data: part.url, ...(part.name !== undefined && { filename: part.name }) },
        },
      ];
    case 'audio': {
      const [, format, data] = /^data:audio\/(?:x-)?(wav|mpeg|mp3)[^,]*;base64,(.+)$/s.exec(part.url) ?? [];
      if (format !== undefined && data !== undefined)
        return [{ type: 'input_audio', input_audio: { data, format: format === 'wav' ? 'wav' : 'mp3' } }];
      return [{ type: 'text', text: textFor(part) }];
    }
    default: {
      const text = textFor(part);
      return text === '' ? [] : [{ type: 'text', text }];
    }
  }
}

/** A content where only text can be sent: what cannot be shown is named. */
const asText = (content: Content): string =>
  typeof content === 'string' ? content : content.map(textFor).filter(Boolean).join('\n');

function textFor(part: ContentPart): string {
  switch (part.type) {
    case 'text':
    case 'refusal':
      return part.text;
    case 'data':
      return `${part.name}: ${JSON.stringify(part.data)}`;
    case 'reasoning':
      return '';
    default:
      return part.url.startsWith('data:') ? `[${part.type}]` : `[${part.type}: ${part.url}]`;
  }
}

/** Arguments have to be a JSON object. A model that wrote something else is shown what it wrote. */
function argumentsOf(text: string): string {
  if (text.trim() === '') return '{}';
  try {
    const value: unknown = JSON.parse(text);
    if (typeof value === 'object' && value !== null && !Array.isArray(value)) return text;
    if (value === null) return '{}';
  } catch {
    // A model may break off in the middle.
  }
  return JSON.stringify({ invalid: text });
}

const MAX_NAME = 64;

/** Names of tools in the characters that the API allows, each different from the others. */
class SentNames {
  private readonly sentBy = new Map<string, string>();
  private readonly givenBy = new Map<string, string>();

  constructor(names: readonly string[]) {
    const different = [...new Set(names)];
    const isAllowed = (name: string): boolean => /^[a-zA-Z0-9_-]{1,64}$/.test(name);
    // Those that can stay as they are come first, so that no other takes their place.
    for (const name of different.filter(isAllowed)) this.add(name, name);
    for (const name of different) if (!isAllowed(name)) this.add(name, this.free(name));
  }

  sent(name: string): string {
    return this.sentBy.get(name) ?? name;
  }

  given(name: string): string {
    return this.givenBy.get(name) ?? name;
  }

  private add(name: string, sent: string): void {
    this.sentBy.set(name, sent);
    this.givenBy.set(sent, name);
  }

  private free(name: string): string {
    const allowed = name.replaceAll(/[^a-zA-Z0-9_-]/g, '_').slice(0, MAX_NAME);
    for (let n = 2, sent = allowed; ; n += 1) {
      if (!this.givenBy.has(sent)) return sent;
      sent = `${allowed.slice(0, MAX_NAME - String(n).length - 1)}_${n}`;
    }
  }
}
