import { z } from 'zod';

/**
 * All events as zod schemas, from which types, documentation and published contracts are derived.
 *
 * Events are stored for ever, so a type is never renamed and a schema never edited. A change of meaning is a new schema
 * version with an upcaster below; only a new optional field needs no new version.
 */

/** Marks fields that people write or that name a person, so that the payload codec can seal them. */
const personal = { 'x-personal': true } as const;

export type Json = string | number | boolean | null | Json[] | { [key: string]: Json };

// z.json() is not used because it is recursive: a deeply nested document of a caller would overflow the stack.
const json = z.custom<Json>((value) => value !== undefined).meta({ description: 'any JSON value' });
const jsonObject = z.record(z.string(), json);

export const SESSION_ID = /^[A-Za-z0-9][A-Za-z0-9._:@~-]{0,127}$/;
export const sessionId = z
  .string()
  .regex(SESSION_ID, 'must be 1 to 128 of A-Z a-z 0-9 . _ : @ ~ - and begin with a letter or digit')
  .meta({ description: 'The id of a session within its tenant', example: 'user-alice-support' });

const id = z.string().min(1).max(128);
export const toolName = z
  .string()
  .regex(/^[A-Za-z0-9_.:-]{1,64}$/, 'must be 1 to 64 of A-Z a-z 0-9 _ . : -')
  .meta({ example: 'get_weather' });
/**
 * A time that a caller gives: RFC 3339, restricted to what PostgreSQL accepts. PostgreSQL refuses the year 0, offsets
 * of 16 hours or more, and fractions of any length, and a time that passes here must not fail there.
 */
export const moment = z.iso
  .datetime({ offset: true, error: 'must be an RFC 3339 time, e.g. 2026-11-22T10:00:00Z' })
  .refine((text) => !text.startsWith('0000'), 'must not be of the year 0')
  .refine((text) => !/[+-](?:1[6-9]|2\d):\d\d$/.test(text), 'must have an offset of less than 16 hours')
  .refine((text) => !/\.\d{10}/.test(text), 'must have at most 9 digits of a second');
const version = z.int().positive();
const count = z.int().nonnegative();

export const owner = z
  .string()
  .min(1)
  .max(255)
  // Unicode's class Cc, spelt out: few tools that read the published schemas know classes of Unicode by name.
  // eslint-disable-next-line no-control-regex
  .regex(/^[^\u0000-\u001f\u007f-\u009f]+$/, 'must have no control characters')
  .meta({
    ...personal,
    description:
      'Whose session it is within the tenant: the subject of tokens that see their own sessions alone',
    example: 'user-alice',
  });
export const title = z.string().min(1).max(300).meta(personal);
export const reason = z.string().min(1).max(1000).meta(personal);
/** Not marked as personal: it stays, or is to stay, when the session is erased. */
const plainReason = z
  .string()
  .min(1)
  .max(1000)
  .optional()
  .meta({ description: 'is kept, and must name nobody' });
export const instructions = z.string().min(1).meta(personal);

const METADATA_BYTES = 16_384;
export const metadata = jsonObject
  .refine((value) => Buffer.byteLength(JSON.stringify(value)) <= METADATA_BYTES, {
    error: `must be at most ${METADATA_BYTES} bytes as JSON`,
  })
  .meta({ ...personal, description: `Any JSON object of at most ${METADATA_BYTES} bytes` });

const mediaType = z.string().min(1).max(255).optional();
const contentPart = z.discriminatedUnion('type', [
  z.strictObject({
    type: z.literal('text'),
    text: z.string(),
    annotations: z.array(jsonObject).max(1_000).optional().meta({ description: 'as the model gave them' }),
  }),
  z.strictObject({
    type: z.literal('image'),
    url: z.string().min(1),
    detail: z.enum(['low', 'high', 'auto']).optional(),
  }),
  z.strictObject({
    type: z.literal('file'),
    url: z.string().min(1),
    name: z.string().min(1).max(255).optional(),
    mediaType,
  }),
  z.strictObject({ type: z.literal('audio'), url: z.string().min(1), mediaType }),
  z.strictObject({ type: z.literal('refusal'), text: z.string() }),
  z.strictObject({
    type: z.literal('reasoning'),
    text: z.string().optional(),
    summary: z.array(z.string()).max(1_000).optional(),
    encrypted: z.string().optional().meta({ description: 'for the provider alone' }),
  }),
  z.strictObject({ type: z.literal('data'), name: z.string().min(1).max(128), data: json }),
]);
export type ContentPart = z.infer<typeof contentPart>;

/** Text, or typed parts. `url` of a part is an http(s) or a `data:` URL. */
export const content = z.union([z.string(), z.array(contentPart).min(1).max(100)]).meta(personal);
export type Content = z.infer<typeof content>;

export const toolCall = z.strictObject({
  id,
  name: toolName,
  arguments: z.string().meta({ ...personal, description: 'JSON text, as the model wrote it' }),
});
export type ToolCall = z.infer<typeof toolCall>;

export const toolDefinition = z.strictObject({
  name: toolName,
  description: z.string().max(10_000).optional(),
  parameters: jsonObject.optional().meta({ description: 'JSON Schema of the arguments' }),
  approval: z.literal('required').optional().meta({ description: 'a call needs an approval of the session' }),
  strict: z.boolean().optional().meta({
    description: 'whether the provider holds the model to the schema; as the provider does it unless given',
  }),
});
export type ToolDefinition = z.infer<typeof toolDefinition>;

export const usage = z.object({
  inputTokens: count,
  outputTokens: count,
  cachedTokens: count.optional(),
  reasoningTokens: count.optional(),
});
export type Usage = z.infer<typeof usage>;

export const role = z.enum(['system', 'developer', 'user', 'assistant', 'tool']);
export type Role = z.infer<typeof role>;
const EXTENSION_BYTES = 65_536;
/**
 * What only one protocol understands of a message or of a generation, by the name of the protocol, so that its clients get
 * back what they gave.
 */
export const extensions = z
  .record(z.string().regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/, 'must be the name of a protocol'), json)
  .refine((value) => Buffer.byteLength(JSON.stringify(value)) <= EXTENSION_BYTES, {
    error: `must be at most ${EXTENSION_BYTES} bytes as JSON`,
  })
  .meta({ ...personal, description: `By protocol, any JSON; at most ${EXTENSION_BYTES} bytes in all` });

export const messageStatus = z.enum(['complete', 'incomplete']);

const openToolCalls = z
  .array(z.object({ id, name: toolName }))
  .optional()
  .meta({
    description: 'the tool calls of the history that have no result then; absent when there are none',
  });

const sessionVersion = z.object({ sessionId, version });
/** Ranges of stream versions, both ends inclusive. They stand for the messages among the events in them. */
const versionRanges = z.array(z.tuple([version, version]));

const generationEnd = {
  generationId: id,
  model: z.string(),
  usage: usage.optional(),
  // Absent where the end was not recorded by the node that called the model: after a reset, or a take-over after a
  // crash.
  durationMs: count.optional(),
};

/** Name → current schema version and schema of `data`. */
export const sessionEvents = {
  SessionCreated: {
    version: 1,
    data: z.object({
      owner: owner.optional(),
      title: title.optional(),
      metadata: metadata.optional(),
      forkedFrom: sessionVersion.optional(),
      imported: z.boolean().optional(),
    }),
  },
  SessionDetailsChanged: {
    version: 1,
    data: z.object({
      title: title.nullable().optional(),
      metadata: metadata.optional(),
      legalHold: z.boolean().optional(),
    }),
  },
  MessageAppended: {
    version: 2,
    data: z.object({
      messageId: id,
      role,
      content,
      name: z.string().min(1).max(128).optional().meta(personal),
      toolCalls: z.array(toolCall).min(1).max(128).optional(),
      toolCallId: id.optional(),
      generationId: id.optional(),
      status: messageStatus,
      extensions: extensions.optional(),
      origin: z.object({ sessionId, messageId: id, createdAt: moment }).optional(),
    }),
  },
  GenerationStarted: {
    version: 1,
    data: z.object({
      generationId: id,
      model: z.string(),
      instructions: instructions.optional(),
      parameters: jsonObject.optional(),
      tools: z.array(toolDefinition).optional().meta(personal),
      extensions: extensions.optional(),
      context: versionRanges.meta({ description: 'version ranges of the messages that the model sees' }),
    }),
  },
  GenerationCompleted: { version: 1, data: z.object({ ...generationEnd, finishReason: z.string() }) },
  GenerationFailed: {
    version: 1,
    data: z.object({ ...generationEnd, code: z.string(), message: z.string().meta(personal) }),
  },
  GenerationCancelled: {
    version: 1,
    data: z.object({ ...generationEnd, finishReason: z.string().optional() }),
  },
  ToolApprovalGranted: {
    version: 1,
    data: z.object({ tool: toolName, scope: z.enum(['once', 'session']), expiresAt: moment.optional() }),
  },
  ToolApprovalRevoked: { version: 1, data: z.object({ tool: toolName }) },
  MessageRemoved: {
    version: 1,
    data: z.object({
      messageId: id,
      versions: z.array(version).min(1).meta({
        description:
          'versions of the messages that leave the history: of the removed one, and with a tool call or a result of one those of the call and of all its results',
      }),
      openToolCalls,
    }),
  },
  HistoryRewound: {
    version: 1,
    data: z.object({
      toVersion: version.meta({ description: 'all messages of later versions leave the history' }),
      reason: reason.optional(),
      messageCount: count.meta({ description: 'messages of the history that is left' }),
      openToolCalls,
    }),
  },
  ConversationReset: { version: 1, data: z.object({ reason: reason.optional() }) },
  SessionExpired: {
    version: 1,
    data: z.object({ reason: z.enum(['ttl', 'cap', 'import']), lastActivityAt: moment }),
  },
  SessionResumed: { version: 1, data: z.object({}) },
  SessionDeleted: { version: 1, data: z.object({ reason: reason.optional() }) },
  SessionErased: {
    version: 1,
    data: z.object({
      incarnations: z
        .array(z.object({ incarnation: z.int().positive(), from: version, to: version }))
        .meta({ description: 'the versions that were erased, both ends inclusive, by incarnation' }),
      keys: z.array(z.uuid()).meta({ description: 'ids of the keys that were destroyed' }),
      reason: plainReason,
    }),
  },
  ErasureScheduled: {
    version: 1,
    data: z.object({
      at: moment.meta({ description: 'when the session is to be erased, unless that is called off before' }),
      policy: z.object({ eraseAfter: z.int().positive() }).optional().meta({
        description: 'the setting of the tenant that scheduled it; absent where somebody asked for it',
      }),
      reason: plainReason,
    }),
  },
  ErasureCancelled: {
    version: 1,
    data: z.object({
      cause: z.enum(['request', 'policy', 'not-sealed']).meta({
        description:
          'request: somebody called it off; policy: the setting that had scheduled it was taken back; not-sealed: a part of the session is stored in plain, so it could not be erased',
      }),
      reason: plainReason,
    }),
  },
  TenantSettingsChanged: {
    version: 1,
    data: z.object({
      // null removes the tenant's own setting, so that the default holds again.
      sessionTTL: z.int().positive().nullable().optional(),
      maxSessions: z.int().positive().nullable().optional(),
      capPolicy: z.enum(['reject', 'evict']).nullable().optional(),
      deleteAfter: z.int().positive().nullable().optional(),
      eraseAfter: z.int().positive().nullable().optional(),
    }),
  },
} as const;

type Catalog = typeof sessionEvents;
export type EventType = keyof Catalog;
export type EventData<T extends EventType> = z.infer<Catalog[T]['data']>;
export type EventOf<T extends EventType> = T extends EventType
  ? { readonly type: T; readonly data: EventData<T> }
  : never;

/** The events of the stream `~tenant`. */
export type TenantEvent = EventOf<'TenantSettingsChanged'>;
/** The events of the stream of a session. */
export type SessionEvent = EventOf<Exclude<EventType, 'TenantSettingsChanged'>>;

/** An event that a newer version of the service wrote, during a rolling upgrade: nodes of that version can read it. */
export class NewerEvent extends Error {
  override readonly name = 'NewerEvent';
  readonly code = 'upgrade-in-progress';
  constructor(what: string) {
    super(`${what}: a newer version wrote it. Nodes of that version can answer; upgrade this one as well.`);
  }
}

export type Upcaster = (data: Record<string, unknown>) => Record<string, unknown>;

/** By event type: how data of schema version n becomes data of version n + 1, at index n - 1. */
const upcasters: Partial<Record<EventType, readonly Upcaster[]>> = {
  // Version 2 has more roles and parts, and extensions; all that version 1 could say it says in the same way.
  MessageAppended: [(data) => data],
};

/**
 * Lifts data that was stored under an older schema version to the current one.
 * @throws NewerEvent on a type or schema version newer than this code: reading on would lose what it cannot know.
 */
export function upcast(
  type: string,
  schemaVersion: number,
  data: Record<string, unknown>,
  steps: Partial<Record<string, readonly Upcaster[]>> = upcasters,
  catalog: Partial<Record<string, { readonly version: number }>> = sessionEvents,
): Record<string, unknown> {
  const current = catalog[type]?.version;
  if (current === undefined)
    throw new NewerEvent(`event type ${type} is not known to this version of Colloquy`);
  if (schemaVersion > current) {
    throw new NewerEvent(
      `${type} v${schemaVersion} is newer than this version of Colloquy, which knows v${current}`,
    );
  }
  let lifted = data;
  for (let from = schemaVersion; from < current; from += 1) {
    const step = steps[type]?.[from - 1];
    if (!step) throw new Error(`no upcaster lifts ${type} from v${from} to v${from + 1}`);
    lifted = step(lifted);
  }
  return lifted;
}
