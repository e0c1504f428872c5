import { z } from 'zod';
import {
  content,
  type Content,
  extensions,
  messageStatus,
  metadata,
  moment,
  owner,
  reason,
  role,
  sessionEvents,
  sessionId,
  title,
  toolCall,
  usage,
} from '../domain/session.events.js';
import { isSilent } from '../domain/content.js';
import { termsOf } from '../read-models/search-keys.js';

/** Requests and answers of the session routes. Types, validation and OpenAPI are derived from these schemas. */

export const sessionPath = sessionId;

const usageTotals = usage.required();
export const time = z.iso.datetime();

export const Session = z
  .object({
    id: sessionId,
    status: z.enum(['active', 'expired']),
    owner: owner.optional().meta({ description: 'absent where nobody was named' }),
    title: title.nullable(),
    metadata,
    messageCount: z.int().nonnegative().meta({ description: 'messages of the present history' }),
    version: z.int().positive(),
    createdAt: time,
    lastActivityAt: time,
    expiresAt: time
      .nullable()
      .meta({ description: 'when it is due to expire if nothing is written; null when expired' }),
    usage: usageTotals,
    forkedFrom: z.object({ sessionId, version: z.int().positive() }).optional(),
  })
  .meta({ id: 'Session' });

export const Message = z
  .object({
    id: z.string(),
    role,
    content,
    version: z.int().positive(),
    createdAt: time,
    status: messageStatus,
    name: z.string().optional(),
    toolCalls: z.array(toolCall).optional(),
    toolCallId: z.string().optional(),
    generationId: z.string().optional(),
    extensions: extensions.optional(),
    origin: z.object({ sessionId, messageId: z.string(), createdAt: time }).optional(),
  })
  .meta({ id: 'Message' });

export const CreateSessionBody = z
  .strictObject({
    id: sessionId.optional(),
    owner: owner
      .optional()
      .meta({ description: 'stays with the id for ever; a token of one owner may name that alone' }),
    title: title.optional(),
    metadata: metadata.optional(),
  })
  .default({});

export const ChangeSessionBody = z.strictObject({
  title: title.nullable().optional(),
  metadata: metadata.optional(),
  legalHold: z.boolean().optional().meta({ description: 'keeps it from being deleted; operators only' }),
});

export const ReasonBody = z.strictObject({ reason: reason.optional() }).default({});

const { reason: erasureReason, ...erased } = sessionEvents.SessionErased.data.shape;
export const EraseBody = z
  .strictObject({
    at: moment.optional().meta({ description: 'a time to come; now unless given' }),
    reason: erasureReason,
  })
  .default({});
export const CancelErasureBody = z.strictObject({ reason: erasureReason }).default({});
export const ScheduledErasure = z
  .object({
    sessionId,
    at: time,
    eraseAfter: z.int().optional().meta({
      description: 'the setting of the tenant that scheduled it; absent where somebody asked for it',
    }),
    reason: erasureReason,
    waitsFor: z.enum(['legal-hold', 'deletion']).optional().meta({
      description:
        'why it is not carried out at its time: a legal hold; or the id was used again since, and is to be deleted first',
    }),
  })
  .meta({ id: 'ScheduledErasure' });
export type Scheduled = z.infer<typeof ScheduledErasure>;
export const ErasureReceipt = z
  .object({
    tenant: z.string(),
    sessionId,
    erasedAt: time,
    version: z.int().positive().meta({ description: 'of the event `SessionErased`' }),
    actor: z.string(),
    ...erased,
    reason: erasureReason,
    forks: z
      .array(sessionId)
      .meta({ description: 'sessions that copied from it before, and were not erased themselves' }),
    commitments: z.array(z.object({ version: z.int().positive(), commitment: z.string().nullable() })).meta({
      description:
        'what the erased events commit to, as the trees of the notary have it: SHA-256 in hex digits; null for an event that was sealed before there were commitments',
    }),
    statement: z.string().nullable().meta({
      description: 'the receipt as the notary signed it (a C2SP signed note), for `colloquy verify-export`',
    }),
  })
  .meta({ id: 'ErasureReceipt' });
export type Receipt = z.infer<typeof ErasureReceipt>;
export const ErasureReceipts = z.object({
  data: z.array(ErasureReceipt),
  scheduled: z
    .array(ScheduledErasure)
    .meta({ description: 'what is to come, the earliest first: asked for, or by the setting of the tenant' }),
});

/** Versions are PostgreSQL integers; a larger number would fail the query instead of finding nothing. */
export const MAX_VERSION = 2_147_483_647;

export const RewindBody = z.strictObject({
  toVersion: z.int().positive().max(MAX_VERSION).meta({
    description: 'a version of the present history; the messages of later versions leave it',
  }),
  reason: reason.optional(),
});
export const messagePath = z.string().min(1).max(128);

const name = z.string().min(1).max(128).optional();
/** What `url` of a part may be: the model's provider fetches it, or it holds the bytes itself. */
export const isUrl = (url: string): boolean => /^(?:https?|data):/i.test(url) && URL.canParse(url);
const sent = content.superRefine((value: Content, context) => {
  if (typeof value === 'string') return;
  value.forEach((part, index) => {
    if ('url' in part && !isUrl(part.url))
      context.addIssue({
        code: 'custom',
        path: [index, 'url'],
        message: 'must be an http(s) or a data: URL',
      });
  });
});
const filled = sent.refine((value) => !isSilent(value), { error: 'must not be empty' });
const extended = { name, extensions: extensions.optional() };
const asked = { content: filled, ...extended };

/** A message as clients send it. The service adds id and version. */
export const NewMessage = z
  .discriminatedUnion('role', [
    z.strictObject({ role: z.literal('system'), ...asked }),
    z.strictObject({ role: z.literal('developer'), ...asked }),
    z.strictObject({ role: z.literal('user'), ...asked }),
    z.strictObject({
      role: z.literal('assistant'),
      content: sent.nullish().meta({ description: 'may be missing, above all beside tool calls' }),
      ...extended,
      toolCalls: z.array(toolCall).min(1).max(128).optional(),
    }),
    z.strictObject({
      role: z.literal('tool'),
      content: sent,
      ...extended,
      toolCallId: z.string().min(1).max(128),
    }),
  ])
  .meta({ id: 'NewMessage' });

const MessageBatch = z
  .strictObject({
    messages: z.array(NewMessage).max(1000),
    replaceLast: z.int().min(1).max(1000).optional().meta({
      description: 'so many messages at the end of the history leave it first, in the same piece',
    }),
  })
  .refine(({ messages, replaceLast }) => messages.length > 0 || replaceLast !== undefined, {
    path: ['messages'],
    error: 'must not be empty',
  });

/** One message, or up to 1 000 messages that are appended atomically. */
export const AppendMessagesBody = z.union([MessageBatch, NewMessage]);

export const AppendedMessages = z.object({
  messages: z.array(z.object({ messageId: z.string(), version: z.int().positive() })),
  version: z.int().positive(),
  position: z.string().meta({ description: 'opaque' }),
});

export const limit = z.coerce.number().int().min(1).max(200).default(50);
const cursor = z
  .string()
  .min(1)
  .max(2048)
  .optional()
  .meta({ description: '`nextCursor` of the page before' });
const consistency = z.enum(['strong', 'eventual']).default('strong').meta({
  description: 'strong: sees every write acknowledged before the request; eventual: answers at once',
});

const order = z.enum(['asc', 'desc']).default('asc');
const ownedBy = owner.optional().meta({ description: 'of sessions of this owner alone' });

export const ConsistencyQuery = z.strictObject({ consistency });

/** `metadata.<key>=<value>` may be given for any number of keys. */
export const ListSessionsQuery = z
  .object({
    status: z.enum(['active', 'expired', 'all']).default('all'),
    limit,
    cursor,
    order,
    q: z
      .string()
      .min(1)
      .max(200)
      .optional()
      .meta({ description: 'text in title or metadata; case does not matter' }),
    owner: ownedBy,
    consistency,
  })
  .catchall(z.string());

/** Where a page of sessions ended. */
export const SessionCursor = z.strictObject({ createdAt: moment, id: sessionId });

export const at = z
  .union([z.coerce.number().int().positive().max(MAX_VERSION), moment])
  .optional()
  .meta({ description: 'a version, or an RFC 3339 time, inside the incarnation' });
export const incarnation = z.coerce.number().int().positive().optional().meta({
  description: 'the present one unless given; one that is over is read only when it is named',
});

export const ListMessagesQuery = z.strictObject({
  limit,
  cursor,
  order,
  at,
  incarnation,
  consistency,
});

export const ListForksQuery = z.strictObject({ limit, cursor, incarnation, consistency });

export const SearchQuery = z.strictObject({
  q: z
    .string()
    .max(200)
    .refine((text) => termsOf(text).length > 0, { error: 'must contain a word' })
    .meta({
      description:
        'words, or phrases within quotes, that a message must contain, also within other words; case does not matter',
    }),
  role: role.optional(),
  owner: ownedBy,
  from: moment.optional().meta({ description: 'messages of this time or later' }),
  to: moment.optional().meta({ description: 'messages before this time' }),
  limit,
  cursor,
  consistency,
});

/** Where a page of a search ended. */
export const SearchCursor = z.strictObject({
  createdAt: moment,
  sessionId,
  version: z.int().positive(),
});

export const SearchHit = z
  .object({
    sessionId,
    messageId: z.string(),
    version: z.int().positive(),
    role,
    createdAt: time,
    snippet: z
      .array(z.object({ text: z.string(), match: z.boolean() }))
      .meta({ description: 'a piece of the message, cut into what was asked for and what stands between' }),
  })
  .meta({ id: 'SearchHit' });
export const SearchResult = z.object({ data: z.array(SearchHit), nextCursor: z.string().nullable() });

/** A year and a day, so that the same day of two years is in it. */
const MOST_DAYS = 367;
const DAY_MS = 86_400_000;

export const TenantUsageQuery = z
  .strictObject({
    by: z.enum(['day', 'owner']).default('day').meta({
      description:
        'a row for each day (UTC) and model, or for each owner and model, the 500 with the most tokens',
    }),
    from: z.iso.date().optional().meta({ description: 'the first day; 30 days unless given' }),
    to: z.iso.date().optional().meta({ description: 'the last day; today unless given' }),
    owner: ownedBy,
    consistency,
  })
  .transform(({ from, to, ...query }) => {
    const last = to ?? dayOf(Date.now());
    return { ...query, from: from ?? dayOf(Date.parse(last) - 29 * DAY_MS), to: last };
  })
  .refine(({ from, to }) => from <= to, { path: ['to'], error: 'must not be before from' })
  .refine(({ from, to }) => Date.parse(to) - Date.parse(from) < MOST_DAYS * DAY_MS, {
    path: ['from'],
    error: `must be at most ${MOST_DAYS} days before to`,
  });
const dayOf = (time: number): string => new Date(time).toISOString().slice(0, 10);

export const SessionList = z.object({ data: z.array(Session), nextCursor: z.string().nullable() });
export const MessageList = z.object({
  data: z.array(Message),
  nextCursor: z.string().nullable(),
  version: z.int().positive(),
});
const generations = z.int().nonnegative();
export const UsageList = z.object({
  data: z.array(usageTotals.extend({ model: z.string(), day: z.iso.date(), generations })),
});
export const TenantUsage = z
  .object({
    from: z.iso.date(),
    to: z.iso.date(),
    data: z.array(
      usageTotals.extend({
        model: z.string(),
        day: z.iso.date().optional().meta({ description: 'of usage by day' }),
        owner: owner.nullable().optional().meta({ description: 'of usage by owner; null: of nobody' }),
        generations,
      }),
    ),
  })
  .meta({ id: 'TenantUsage' });

export type NewMessageInput = z.infer<typeof NewMessage>;
export type SessionAnswer = z.infer<typeof Session>;
