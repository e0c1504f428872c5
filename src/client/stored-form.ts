import { changesBetween, jsonChanges, withChanges } from '../domain/json-changes.js';
import { type Content, type Json } from '../domain/session.events.js';
import { type NewMessageInput } from '../sessions/session.schemas.js';

/** A message as the service stores it. */
export type StoredMessage = {
  readonly id?: string;
  readonly role: string;
  readonly content: Content;
  readonly name?: string | undefined;
  readonly toolCalls?:
    readonly { readonly id: string; readonly name: string; readonly arguments: string }[] | undefined;
  readonly toolCallId?: string | undefined;
  readonly extensions?: Readonly<Record<string, Json>> | undefined;
};

/** How a library of agents writes messages, and what of it the service understands. */
export interface MessageForm {
  /** The name under which the rest is kept beside a message. */
  readonly protocol: string;
  /** The message that the service stores for one of the library; `data` parts hold what it has no place for. */
  draft(given: Json): NewMessageInput;
  /** A message of the service as the library writes it. */
  show(message: StoredMessage): Json;
}

/** A message for the service, which comes back from `shown` to the letter. */
export function stored(form: MessageForm, given: object): NewMessageInput {
  // What cannot be JSON cannot be compared or stored.
  const json = JSON.parse(JSON.stringify(given)) as Json;
  const draft = form.draft(json);
  const changes = changesBetween(form.show({ ...draft, content: draft.content ?? '' }), json);
  if (changes.length === 0) return draft;
  return { ...draft, extensions: { [form.protocol]: changes } };
}

/** A message of the service in the form of the library. */
export function shown(form: MessageForm, message: StoredMessage): Json {
  // Anybody may write them; what has another form is no use.
  const changes = jsonChanges.safeParse(message.extensions?.[form.protocol]).data;
  const plain = form.show(message);
  return changes ? withChanges(plain, changes) : plain;
}

/** A text, or the parts of it. */
export const textIn = (content: Content): string =>
  typeof content === 'string'
    ? content
    : content.map((part) => (part.type === 'text' || part.type === 'refusal' ? part.text : '')).join('');

/** A part that the library wrote and the service has no place for. */
export const dataPart = (name: string, data: Json) => ({
  type: 'data' as const,
  name: name.slice(0, 128) || 'unknown',
  data,
});
