import { z } from 'zod';
import { changesBetween, jsonChanges, withChanges } from '../domain/json-changes.js';
import { fieldsOf, listOf } from '../domain/loose-json.js';
import { type NewMessage } from '../domain/session.commands.js';
import { type ContentPart, type Json, toolCall } from '../domain/session.events.js';
import { newId } from '../sessions/ids.js';
import { isUrl } from '../sessions/session.schemas.js';

/*
 * UI messages of the AI SDK. One of the user or of the system is one message here. One of the assistant may be several: for
 * each of its steps a message of the model, and a message for each result of a tool.
 */

/** A part of a UI message. */
export type Part = Record<string, Json> & { readonly type: string };

/** A message as `useChat` has it. */
export type UiMessage = Record<string, Json> & {
  readonly id: string;
  readonly role: 'system' | 'user' | 'assistant';
  readonly parts: Part[];
};

/** What is kept beside the first message of a UI message, and beside the result of a tool that a client gave to a call. */
const Kept = z.object({
  /** Of how many messages the UI message is made; as many as there are up to the next one unless given. */
  messages: z.int().positive().optional(),
  /** False: the steps of the assistant are not marked. */
  steps: z.literal(false).optional(),
  changes: jsonChanges.optional(),
  result: jsonChanges.optional(),
});
type Kept = z.infer<typeof Kept>;
const PROTOCOL = 'ai-sdk';

/** What UI messages are made of. */
export type Said = { readonly id: string } & Pick<
  NewMessage,
  'role' | 'content' | 'status' | 'toolCalls' | 'toolCallId' | 'extensions'
>;

/** A UI message, and the messages of which it is made. */
export interface Group<Message extends Said = Said> {
  readonly ui: UiMessage;
  readonly messages: readonly Message[];
}

/** Anybody may write it; what has another form is no use. */
const keptOf = (message: Said): Kept => Kept.safeParse(message.extensions?.[PROTOCOL]).data ?? {};

const isAnswer = ({ role }: Said): boolean => role === 'assistant' || role === 'tool';

/** The UI messages of a history. */
export function groupsOf<Message extends Said>(history: readonly Message[]): Group<Message>[] {
  const groups: Group<Message>[] = [];
  for (let at = 0; at < history.length;) {
    const first = history[at] as Message;
    const kept = keptOf(first);
    let end = at + (kept.messages ?? 1);
    if (isAnswer(first) && kept.messages === undefined) {
      const isOfGroup = (one: Message | undefined): boolean =>
        one !== undefined && isAnswer(one) && keptOf(one).messages === undefined;
      while (isOfGroup(history[end])) end += 1;
    }
    const messages = history.slice(at, end);
    const derived = derivedUi(messages, kept.steps ?? true);
    const changed = kept.changes && withChanges(derived, kept.changes);
    groups.push({ ui: isUiMessage(changed) ? changed : derived, messages });
    at = end;
  }
  return groups;
}

function isUiMessage(value: Json | undefined): value is UiMessage {
  const { id, role, parts } = fieldsOf(value);
  return (
    typeof id === 'string' &&
    (role === 'user' || role === 'assistant' || role === 'system') &&
    Array.isArray(parts) &&
    parts.every((part) => typeof fieldsOf(part)['type'] === 'string')
  );
}

function derivedUi(messages: readonly Said[], steps: boolean): UiMessage {
  const [first] = messages;
  if (!first) throw new Error('a UI message of nothing');
  if (!isAnswer(first)) {
    const role = first.role === 'user' ? 'user' : 'system';
    return { id: first.id, role, parts: partsOf(first).map((part) => plainPart(part, false)) };
  }
  const parts: Part[] = [];
  for (const message of messages) {
    if (message.role === 'tool') {
      const index = parts.findLastIndex(
        (part) => part['toolCallId'] === message.toolCallId && part['state'] === 'input-available',
      );
      const part = parts[index];
      if (part) parts[index] = resolved(part, message);
      continue;
    }
    if (steps) parts.push({ type: 'step-start' });
    parts.push(...partsOf(message).map((part) => plainPart(part, true)));
    for (const call of message.toolCalls ?? []) {
      parts.push({
        type: `tool-${call.name}`,
        toolCallId: call.id,
        state: 'input-available',
        input: inputOf(call.arguments),
      });
    }
  }
  return { id: first.id, role: 'assistant', parts };
}

const partsOf = ({ content }: Said): ContentPart[] =>
  typeof content !== 'string' ? content : content === '' ? [] : [{ type: 'text', text: content }];

/** Kinds of parts that the AI SDK has and that are kept as they were given. It refuses others. */
const OF_UI = /^(?:text|reasoning|file|source-url|source-document|step-start|data-.+)$/s;

/** @param isDone parts of the assistant say that they are whole */
function plainPart(part: ContentPart, isDone: boolean): Part {
  const state: { state?: string } = isDone ? { state: 'done' } : {};
  switch (part.type) {
    case 'text':
      return { type: 'text', text: part.text, ...state };
    case 'refusal':
      return { type: 'text', text: part.text, ...state };
    case 'reasoning':
      return { type: 'reasoning', text: part.text ?? (part.summary ?? []).join('\n\n'), ...state };
    case 'image':
    case 'file':
    case 'audio': {
      const name = part.type === 'file' ? part.name : undefined;
      return {
        type: 'file',
        mediaType: mediaTypeOf(part),
        url: part.url,
        ...(name !== undefined && { filename: name }),
      };
    }
    case 'data': {
      const given = fieldsOf(part.data);
      if (given['type'] === part.name && OF_UI.test(part.name)) return given as Part;
      return { type: `data-${part.name}`, data: part.data };
    }
  }
}

function mediaTypeOf(part: ContentPart & { type: 'image' | 'file' | 'audio' }): string {
  const told = part.type === 'image' ? undefined : part.mediaType;
  const [, ofData] = /^data:([^;,]+)/i.exec(part.url) ?? [];
  const general = { image: 'image/*', audio: 'audio/*', file: 'application/octet-stream' };
  return told ?? ofData ?? general[part.type];
}

/** The input of a call: its JSON, or the text that the model wrote instead. */
export function inputOf(text: string): Json {
  try {
    return JSON.parse(text) as Json;
  } catch {
    return text;
  }
}

/** A call with its result. */
function resolved(call: Part, message: Said): Part {
  const part = derivedResult(call, message);
  const { result } = keptOf(message);
  const changed = result && withChanges(part, result);
  return typeof fieldsOf(changed)['type'] === 'string' ? (changed as Part) : part;
}

function derivedResult(call: Part, message: Said): Part {
  const text = typeof message.content === 'string' ? message.content : undefined;
  // The service has made up a result for a call that was not run.
  if (message.status === 'incomplete') return { ...call, state: 'output-error', errorText: text ?? '' };
  const isJson = text !== undefined && /^\s*[[{]/.test(text);
  const output = isJson ? inputOf(text) : (text ?? (message.content as unknown as Json));
  return { ...call, state: 'output-available', output };
}

/** The messages that a UI message becomes. What they do not say by themselves is kept beside the first. */
export function draftedUi(given: UiMessage): NewMessage[] {
  const messages = given.role === 'assistant' ? steps(given.parts) : [asked(given)];
  const [first, ...others] = messages;
  if (!first) return [];
  const named = { ...first, messageId: idOf(given.id) };
  const said = [named, ...others].map((message) => ({ ...message, id: message.messageId }));
  const ways = ([true, false] as const).map((marked) => ({
    marked,
    changes: changesBetween(derivedUi(said, marked), given),
  }));
  const [best] = ways.sort((a, b) => a.changes.length - b.changes.length);
  const kept: Kept = {
    ...(isAnswer(said[0] as Said) && { messages: messages.length }),
    ...(!best?.marked && { steps: false as const }),
    ...(best && best.changes.length > 0 && { changes: best.changes }),
  };
  if (Object.keys(kept).length === 0) return [named, ...others];
  return [{ ...named, extensions: { [PROTOCOL]: kept as unknown as Json } }, ...others];
}

/** An id that a message can have; another one is kept beside it. */
const idOf = (id: string): string => (id.length >= 1 && id.length <= 128 ? id : newId('msg'));

function asked({ role, parts }: UiMessage): NewMessage {
  const content = parts.map(contentPart);
  const [first] = content;
  return {
    messageId: '',
    role: role === 'system' ? 'system' : 'user',
    content: content.length === 1 && first?.type === 'text' ? first.text : content,
    status: 'complete',
  };
}

function contentPart(part: Part): ContentPart {
  const text = (name: string): string | undefined =>
    typeof part[name] === 'string' ? part[name] : undefined;
  const said = text('text');
  if (part.type === 'text' && said !== undefined) return { type: 'text', text: said };
  if (part.type === 'reasoning' && said !== undefined) return { type: 'reasoning', text: said };
  const [url, mediaType = ''] = [text('url'), text('mediaType')];
  if (part.type === 'file' && url !== undefined && isUrl(url)) {
    if (mediaType.startsWith('image/')) return { type: 'image', url };
    const typed = mediaType !== '' && mediaType.length <= 255 ? { mediaType } : {};
    if (mediaType.startsWith('audio/')) return { type: 'audio', url, ...typed };
    const name = text('filename');
    return { type: 'file', url, ...(name && name.length <= 255 && { name }), ...typed };
  }
  return { type: 'data', name: part.type.slice(0, 128) || 'unknown', data: part };
}

const textAt = (part: Part, name: string): string => {
  const value = part[name];
  return typeof value === 'string' ? value : '';
};
/** Which call a part is of, and how far it has come. */
export const callIdOf = (part: Part): string => textAt(part, 'toolCallId');
export const stateOf = (part: Part): string => textAt(part, 'state');

/** The name of the tool that a part calls; undefined for other parts. */
export const toolNameOf = (part: Part): string | undefined =>
  part.type === 'dynamic-tool'
    ? (part['toolName'] as string | undefined)
    : /^tool-(.+)$/s.exec(part.type)?.[1];

const DONE = ['output-available', 'output-error', 'output-denied'];

/** The messages of an assistant: for each step what the model said and called, and the results. */
function steps(parts: readonly Part[]): NewMessage[] {
  const messages: NewMessage[] = [];
  let content: ContentPart[] = [];
  let calls: Part[] = [];
  const close = (): void => {
    if (content.length === 0 && calls.length === 0) return;
    const [first] = content;
    const only = content.length === 1 && first?.type === 'text' ? first.text : content;
    const toolCalls = calls.map((part) => ({
      id: callIdOf(part),
      name: toolNameOf(part) ?? '',
      arguments: argumentsOf(part['input']),
    }));
    messages.push({
      messageId: newId('msg'),
      role: 'assistant',
      content: content.length === 0 ? '' : only,
      ...(toolCalls.length > 0 && { toolCalls }),
      status: 'complete',
    });
    for (const part of calls) {
      if (DONE.includes(stateOf(part))) messages.push(resultOf(part));
    }
    content = [];
    calls = [];
  };
  for (const part of parts) {
    if (part.type === 'step-start') close();
    else if (isCall(part)) calls.push(part);
    else {
      // Words behind calls are of the next message of the model.
      if (calls.length > 0) close();
      content.push(contentPart(part));
    }
  }
  close();
  if (messages.length > 0) return messages;
  return [{ messageId: newId('msg'), role: 'assistant', content: '', status: 'complete' }];
}

const isCall = (part: Part): boolean =>
  toolCall.safeParse({
    id: part['toolCallId'],
    name: toolNameOf(part),
    arguments: '',
  }).success;

const argumentsOf = (input: Json | undefined): string =>
  typeof input === 'string' ? input : JSON.stringify(input ?? {});

function resultOf(part: Part): NewMessage {
  const { output, errorText, approval } = part;
  const denial = fieldsOf(approval)['reason'];
  const text =
    part['state'] === 'output-denied'
      ? `denied${typeof denial === 'string' ? `: ${denial}` : ''}`
      : part['state'] === 'output-error'
        ? typeof errorText === 'string'
          ? errorText
          : 'failed'
        : typeof output === 'string'
          ? output
          : JSON.stringify(output ?? null);
  return {
    messageId: newId('msg'),
    role: 'tool',
    toolCallId: callIdOf(part),
    content: text,
    status: 'complete',
  };
}

/** The result that a client gives to a call of the model, with what it does not say by itself. */
export function draftedResult(part: Part): NewMessage {
  const message = resultOf(part);
  const call: Part = {
    type: part.type,
    toolCallId: callIdOf(part),
    state: 'input-available',
    input: part['input'] ?? {},
  };
  const derived = derivedResult(call, { ...message, id: message.messageId });
  const changes = changesBetween(derived, part);
  if (changes.length === 0) return message;
  return { ...message, extensions: { [PROTOCOL]: { result: changes } as unknown as Json } };
}

/** The parts of a UI message that are calls of tools. */
export const callsOf = ({ parts }: UiMessage): Part[] =>
  listOf(parts).filter((part) => isCall(part as Part)) as Part[];
