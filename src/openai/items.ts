import { type Fields, fieldsOf, listOf } from '../domain/loose-json.js';
import { z } from 'zod';
import { changesBetween, jsonChanges, withChanges } from '../domain/json-changes.js';
import { type NewMessage } from '../domain/session.commands.js';
import {
  type Content,
  type ContentPart,
  extensions,
  type Json,
  type ToolCall,
} from '../domain/session.events.js';
import { invalidRequest } from '../http/problem.js';
import { newId } from '../sessions/ids.js';
import { isUrl } from '../sessions/session.schemas.js';
import { type InputItem } from './items.schemas.js';

/*
 * Items of OpenAI's API are messages, or parts of one. What a client gives becomes one message for each item, so that each
 * can be taken out by itself; a reply of a model is one message with several items: its reasoning, what it says, and each of
 * its tool calls.
 */

/** An item as clients get it. */
export type Item = Record<string, Json> & { readonly id: string; readonly type: string };

/** What is kept beside a message that came as an item: its own id, and what the message itself cannot say. */
const Kept = z.object({ id: z.string().min(1).optional(), changes: jsonChanges.optional() });
type Kept = z.infer<typeof Kept>;
const PROTOCOL = 'openai';

/** What items are made of, of a message that is recorded or is about to be. */
type Said = { readonly id: string } & Pick<
  NewMessage,
  'role' | 'content' | 'status' | 'toolCalls' | 'toolCallId' | 'extensions'
>;

/** The part of a message's id that is the same in the ids of its items. */
const coreOf = (messageId: string): string => messageId.replace(/^msg_/, '');

/** The items of a message, at least one. */
export function itemsOf(message: Said): Item[] {
  // Anybody may write it; what has another form is no use.
  const kept = Kept.safeParse(message.extensions?.[PROTOCOL]).data ?? {};
  const [first, ...others] = derivedItems(message);
  if (!first) return [];
  const changed = kept.changes && withChanges(first, kept.changes);
  const given = typeof fieldsOf(changed)['type'] === 'string' ? (changed as Item) : first;
  return [{ ...given, id: kept.id ?? first.id }, ...others];
}

function derivedItems({ id, role, content, status: said, toolCalls, toolCallId }: Said): Item[] {
  const core = coreOf(id);
  const status = said === 'complete' ? 'completed' : 'incomplete';
  if (role === 'tool') {
    const output = typeof content === 'string' ? content : content.map(inputPart);
    return [
      {
        id: `fco_${core}`,
        type: 'function_call_output',
        call_id: toolCallId ?? '',
        output,
        status: 'completed',
      },
    ];
  }
  const isReply = role === 'assistant';
  const parts: ContentPart[] =
    typeof content !== 'string' ? content : content === '' ? [] : [{ type: 'text', text: content }];
  const thoughts = parts
    .filter((part) => part.type === 'reasoning')
    .map((part, index) => reasoningItem(`rs_${numbered(core, index)}`, part));
  const shown = parts.filter((part) => part.type !== 'reasoning');
  const calls = (toolCalls ?? []).map((call, index) => callItem(`fc_${numbered(core, index)}`, call, status));
  const says = shown.length > 0 || (thoughts.length === 0 && calls.length === 0);
  const shownParts = shown.map(isReply ? outputPart : inputPart);
  // Those that became known with the end of a reply are behind its text.
  const first = parts.findIndex((part) => part.type !== 'reasoning');
  const before = first === -1 ? thoughts.length : first;
  return [
    ...thoughts.slice(0, before),
    ...(says ? [{ id: `msg_${core}`, type: 'message', status, role, content: shownParts }] : []),
    ...thoughts.slice(before),
    ...calls,
  ];
}

const numbered = (core: string, index: number): string => (index === 0 ? core : `${core}_${index + 1}`);

const callItem = (id: string, call: ToolCall, status: string): Item => ({
  id,
  type: 'function_call',
  call_id: call.id,
  name: call.name,
  arguments: call.arguments,
  status,
});

const reasoningItem = (
  id: string,
  { text, summary, encrypted }: ContentPart & { type: 'reasoning' },
): Item => ({
  id,
  type: 'reasoning',
  summary: (summary ?? []).map((one) => ({ type: 'summary_text', text: one })),
  ...(text !== undefined && { content: [{ type: 'reasoning_text', text }] }),
  ...(encrypted !== undefined && { encrypted_content: encrypted }),
});

function inputPart(part: ContentPart): Json {
  switch (part.type) {
    case 'text':
      return { type: 'input_text', text: part.text };
    case 'image':
      return { type: 'input_image', image_url: part.url, detail: part.detail ?? 'auto' };
    case 'file':
      return {
        type: 'input_file',
        ...(/^data:/i.test(part.url) ? { file_data: part.url } : { file_url: part.url }),
        ...(part.name !== undefined && { filename: part.name }),
      };
    case 'audio': {
      const [, format, data] = /^data:audio\/([^;,]+);base64,(.*)$/s.exec(part.url) ?? [];
      if (format === undefined || data === undefined) return { type: 'input_file', file_url: part.url };
      return { type: 'input_audio', input_audio: { data, format } };
    }
    case 'refusal':
    case 'reasoning':
      return { type: 'input_text', text: part.text ?? '' };
    case 'data':
      return asGiven(part) ?? { type: 'input_text', text: textOf(part) };
  }
}

function outputPart(part: ContentPart): Json {
  switch (part.type) {
    case 'text':
      return {
        type: 'output_text',
        text: part.text,
        annotations: (part.annotations ?? []) as Json[],
        logprobs: [],
      };
    case 'refusal':
      return { type: 'refusal', refusal: part.text };
    case 'data':
      return asGiven(part) ?? { type: 'output_text', text: textOf(part), annotations: [], logprobs: [] };
    default:
      return inputPart(part);
  }
}

/** Kinds of parts that OpenAI's API has. */
const OF_OPENAI = /^(?:(?:input|output)_\w+|refusal)$/;
/** A part that came in as one of OpenAI's API and has no place of its own here goes out as it was. */
const asGiven = ({ name, data }: ContentPart & { type: 'data' }): Json | undefined =>
  fieldsOf(data)['type'] === name && OF_OPENAI.test(name) ? data : undefined;
const textOf = ({ name, data }: ContentPart & { type: 'data' }): string => `${name}: ${JSON.stringify(data)}`;

/**
 * The messages that items become. What a message does not say by itself is kept beside it.
 * @param field of the request that holds the items
 * @throws ApiError `invalid-request` when an item has too much of that
 */
export function draftedItems(items: readonly InputItem[], field: 'items' | 'input'): NewMessage[] {
  return items.map((item, index) => {
    const message = draftedItem(item);
    if (extensions.optional().safeParse(message.extensions).success) return message;
    const detail = 'has more than 64 KiB in members that are not known here';
    throw invalidRequest([{ pointer: `/${field}/${index}`, in: 'body', detail }]);
  });
}

function draftedItem(given: InputItem): NewMessage {
  const item = normalized(given);
  const message = draftOf(item);
  const [derived] = derivedItems({ ...message, id: message.messageId });
  const { id: _made, ...derivedForm } = derived ?? {};
  const { id, ...form } = item;
  const changes = changesBetween(derivedForm, form as Json);
  const kept: Kept = {
    ...(typeof id === 'string' && { id }),
    ...(changes.length > 0 && { changes }),
  };
  return { ...message, ...(Object.keys(kept).length > 0 && { extensions: { [PROTOCOL]: kept as Json } }) };
}

/** Members that some clients send as null to leave them out. */
const CAN_BE_NULL = ['id', 'type', 'status', 'summary', 'content', 'encrypted_content'];

/** An item with all that clients may leave out. */
function normalized(given: InputItem): Fields {
  const left = new Set<string>(CAN_BE_NULL);
  const item: Fields = Object.fromEntries(
    Object.entries(given).filter(([name, value]) => value !== null || !left.has(name)),
  );
  switch (given.type) {
    case 'function_call':
    case 'function_call_output':
      return { status: 'completed', ...item };
    case 'reasoning':
      return { summary: [], ...item };
    default: {
      const isReply = given.role === 'assistant';
      const content =
        typeof given.content === 'string'
          ? given.content === ''
            ? []
            : [{ type: isReply ? 'output_text' : 'input_text', text: given.content }]
          : given.content;
      return {
        status: 'completed',
        ...item,
        type: 'message',
        content: (content as Fields[]).map((part) => {
          if (part['type'] === 'output_text') return { annotations: [], logprobs: [], ...part };
          return part['type'] === 'input_image' ? { detail: 'auto', ...part } : part;
        }),
      };
    }
  }
}

function draftOf(item: Fields): NewMessage {
  const status = item['status'] === 'incomplete' ? 'incomplete' : 'complete';
  const messageId = newId('msg');
  switch (item['type']) {
    case 'function_call':
      return {
        messageId,
        role: 'assistant',
        content: '',
        toolCalls: [
          {
            id: item['call_id'] as string,
            name: item['name'] as string,
            arguments: item['arguments'] as string,
          },
        ],
        status: 'complete',
      };
    case 'function_call_output':
      return {
        messageId,
        role: 'tool',
        toolCallId: item['call_id'] as string,
        content: contentOf(item['output']),
        status: 'complete',
      };
    case 'reasoning': {
      const texts = (name: string): string[] =>
        listOf(item[name]).map((part) => fieldsOf(part)['text'] as string);
      const text = texts('content').join('');
      const summary = texts('summary');
      const encrypted = item['encrypted_content'];
      const part: ContentPart = {
        type: 'reasoning',
        ...(text !== '' && { text }),
        ...(summary.length > 0 && { summary }),
        ...(typeof encrypted === 'string' && { encrypted }),
      };
      return { messageId, role: 'assistant', content: [part], status: 'complete' };
    }
    default: {
      const role = item['role'] as NewMessage['role'];
      // Only a reply can be unfinished.
      return {
        messageId,
        role,
        content: contentOf(item['content']),
        status: role === 'assistant' ? status : 'complete',
      };
    }
  }
}

/** The content of parts; a single text without annotations stands for itself. */
function contentOf(given: unknown): Content {
  if (typeof given === 'string') return given;
  const parts = listOf(given).map((part) => partOf(fieldsOf(part)));
  const [first] = parts;
  if (!first) return '';
  return parts.length === 1 && first.type === 'text' && !first.annotations ? first.text : parts;
}

function partOf(part: Fields): ContentPart {
  const text = (name: string): string | undefined =>
    typeof part[name] === 'string' ? part[name] : undefined;
  const type = text('type') ?? 'unknown';
  const url = text('image_url') ?? text('file_url') ?? text('file_data');
  switch (type) {
    case 'text':
    case 'input_text':
    case 'output_text': {
      const said = text('text');
      const annotations = listOf(part['annotations']).map(fieldsOf) as Record<string, Json>[];
      if (said === undefined) break;
      return { type: 'text', text: said, ...(annotations.length > 0 && { annotations }) };
    }
    case 'refusal': {
      const said = text('refusal');
      if (said === undefined) break;
      return { type: 'refusal', text: said };
    }
    case 'input_image': {
      if (url === undefined || !isUrl(url)) break;
      const detail = text('detail');
      const known = detail === 'low' || detail === 'high';
      return { type: 'image', url, ...(known && { detail }) };
    }
    case 'input_file': {
      if (url === undefined || !isUrl(url)) break;
      const name = text('filename');
      return { type: 'file', url, ...(name && name.length <= 255 && { name }) };
    }
    case 'input_audio': {
      const { data, format } = fieldsOf(part['input_audio']);
      if (typeof data !== 'string' || typeof format !== 'string' || !/^[\w-]+$/.test(format)) break;
      return { type: 'audio', url: `data:audio/${format};base64,${data}` };
    }
  }
  return { type: 'data', name: type.slice(0, 128) || 'unknown', data: part as Json };
}
