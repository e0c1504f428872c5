import { z } from 'zod';
import {
  metadata,
  moment,
  owner,
  sessionEvents,
  sessionId,
  title,
  toolName,
  usage,
} from '../domain/session.events.js';
import { TENANT_STREAM } from '../domain/tenant.js';
import { at, incarnation, limit, MAX_VERSION, Message, time } from '../sessions/session.schemas.js';

/** Requests and answers about the past. Types, validation and OpenAPI are derived from these schemas. */

const version = z.int().positive();
const count = z.int().nonnegative();

export const Event = z
  .object({
    id: z.uuid(),
    type: z.string(),
    schemaVersion: version,
    tenant: z.string(),
    sessionId: z.string().meta({ description: '`~tenant` for the settings of the tenant itself' }),
    incarnation: version,
    version,
    position: z.string().meta({ description: 'opaque' }),
    logGeneration: version.meta({
      description: 'the generation of the log in which it was appended; each failover and restore begins one',
    }),
    time,
    actor: z.string(),
    correlationId: z.string(),
    causationId: z.string().nullable(),
    data: z.record(z.string(), z.unknown()).nullable().meta({
      description:
        'lifted to the current schema version, unless the event is newer than this service; null: it was erased',
    }),
    erased: z.literal(true).optional().meta({ description: 'there when the data was erased' }),
  })
  .meta({ id: 'Event' });

const eventTypes = Object.keys(sessionEvents) as [keyof typeof sessionEvents];

const filters = {
  type: z
    .string()
    .max(1000)
    .meta({ pattern: `^(${eventTypes.join('|')})(,(${eventTypes.join('|')}))*$` })
    .transform((text) => text.split(','))
    .pipe(z.array(z.enum(eventTypes)))
    .optional()
    .meta({ description: 'event types, comma-separated' }),
  actor: z.string().min(1).max(256).optional().meta({ description: 'who did it: the name of an API key' }),
  from: moment.optional().meta({ description: 'RFC 3339, inclusive' }),
  to: moment.optional().meta({ description: 'RFC 3339, exclusive' }),
};

const ordered = ({ from, to }: { from?: string | undefined; to?: string | undefined }): boolean =>
  from === undefined || to === undefined || Date.parse(from) < Date.parse(to);
const afterFrom = { path: ['to'], error: 'must be later than from' };

export const FeedQuery = z
  .strictObject({
    after: z.string().min(1).max(512).optional().meta({
      description:
        '`nextCursor` or `cursor` of a page, or the id of a streamed event; `end`: what comes from now on',
    }),
    limit,
    ...filters,
    session: sessionId.optional(),
  })
  .refine(ordered, afterFrom);

export const dataKeyPath = z.uuid();
export const DataKeyQuery = z.strictObject({
  session: z.union([sessionId, z.literal(TENANT_STREAM)]).meta({
    description: 'the session of the event: `ce_subject` of the record',
  }),
  version: z.coerce.number().int().positive().max(MAX_VERSION).meta({
    description: 'the version of the event: `ce_sessionversion` of the record',
  }),
});

export const DataKey = z
  .object({
    id: z.uuid(),
    key: z.string().meta({ description: 'base64 of 32 bytes' }),
    maxAgeSeconds: z
      .int()
      .positive()
      .meta({ description: 'seconds from the request on after which it must be forgotten' }),
  })
  .meta({ id: 'DataKey' });

export const TrailQuery = z
  .strictObject({
    after: z.coerce
      .number()
      .int()
      .nonnegative()
      .max(MAX_VERSION - 1)
      .default(0)
      .meta({ description: 'the last version that is known' }),
    limit,
    ...filters,
  })
  .refine(ordered, afterFrom);

export const Feed = z.object({
  data: z.array(Event),
  nextCursor: z
    .string()
    .nullable()
    .meta({ description: 'null at the end of the log; a filtered page may be short, or empty, before that' }),
  cursor: z
    .string()
    .meta({ description: 'the place after this page: ask with it later for what came since' }),
});
export const Trail = z.object({ data: z.array(Event) });

export const StateQuery = z.strictObject({ at, incarnation });

const approval = sessionEvents.ToolApprovalGranted.data.meta({ id: 'ToolApproval' });

export const State = z
  .object({
    sessionId,
    incarnation: version,
    version,
    time: time.meta({ description: 'of the event of this version' }),
    status: z.enum(['active', 'expired', 'deleted']),
    owner: owner.nullable(),
    title: title.nullable(),
    metadata,
    legalHold: z.boolean(),
    forkedFrom: z.object({ sessionId, version }).nullable(),
    historyStart: count.meta({
      description: 'version at which the history began: creation or the last reset',
    }),
    messageCount: count,
    openToolCalls: z.array(z.object({ id: z.string(), name: toolName })),
    approvals: z.array(approval),
    usage: usage.required(),
    generation: z.object({ id: z.string(), model: z.string() }).nullable(),
    erasedUpTo: version.optional().meta({ description: 'version of the last erasure, if there was one' }),
    planned: z
      .object({
        requested: z.object({ at: moment, incarnation: version, reason: z.string().optional() }).optional(),
        byPolicy: z.object({ at: moment, eraseAfter: version }).optional(),
        isCalledOff: z.literal(true).optional(),
      })
      .optional()
      .meta({ description: 'erasures that are scheduled, or whether one was called off' }),
  })
  .meta({ id: 'SessionState' });

export const DiffQuery = z.strictObject({
  from: at.unwrap(),
  to: at,
  incarnation,
  limit: limit.meta({ description: 'of the messages and generations listed; the counts are exact' }),
});

const change = <T extends z.ZodType>(schema: T) => z.object({ before: schema, after: schema }).optional();
const messages = z.object({ count, data: z.array(Message) });

export const Diff = z
  .object({
    sessionId,
    incarnation: version,
    from: version,
    to: version,
    events: z
      .record(z.string(), count)
      .meta({ description: 'how many events of each type lie between, `from` not included' }),
    status: change(State.shape.status),
    title: change(State.shape.title),
    metadata: change(metadata),
    legalHold: change(z.boolean()),
    messages: z.object({
      added: messages.meta({ description: 'in the history at `to`, not in the one at `from`; oldest first' }),
      removed: messages.meta({ description: 'in the history at `from`, gone at `to` by a reset or delete' }),
    }),
    approvals: z.object({ added: z.array(approval), removed: z.array(approval) }),
    generations: z.array(
      z.object({
        generationId: z.string(),
        model: z.string(),
        status: z.enum(['running', 'completed', 'failed', 'cancelled']),
        started: version.nullable().meta({ description: 'version; null: before `from`' }),
        ended: version.nullable().meta({ description: 'version; null: not by `to`' }),
        finishReason: z.string().optional(),
        code: z.string().optional(),
      }),
    ),
    usage: usage.required().meta({ description: 'tokens used in between' }),
  })
  .meta({ id: 'Diff' });

export const ForkBody = z
  .strictObject({
    at: z
      .union([version.max(MAX_VERSION), moment])
      .optional()
      .meta({
        description: 'a version, or an RFC 3339 time, inside the present incarnation; now unless given',
      }),
    id: sessionId.optional(),
  })
  .default({});

export type EventAnswer = z.infer<typeof Event>;
export type StateAnswer = z.infer<typeof State>;
export type DiffAnswer = z.infer<typeof Diff>;
