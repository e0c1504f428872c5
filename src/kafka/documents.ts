import { z } from 'zod';
import { type EventType, sessionEvents } from '../domain/session.events.js';
import { LOG_KEY, REFERENCE, schemaUrn, TRUNCATION } from './contract.js';

/*
 * The contract of the topic as documents: JSON Schemas, an AsyncAPI description, and docs/events.md. All are generated
 * from the schemas by which events are validated, so that they cannot contradict the code.
 */

export type JsonSchema = Record<string, unknown>;

/** The settings of the topic, which operators choose. */
export interface TopicDescription {
  readonly topic: string;
  readonly partitions: number;
  readonly retentionMs: number;
  readonly maxMessageBytes: number;
}

const DIALECT = 'http://json-schema.org/draft-07/schema#';

const SUMMARIES: Record<EventType, string> = {
  SessionCreated:
    'A session begins; on an id that was deleted before, a new incarnation: nothing of the old one counts any more.',
  SessionDetailsChanged:
    'Title, metadata or legal hold changed; a field that is there replaces the old value.',
  MessageAppended: 'A message joined the conversation.',
  GenerationStarted: 'A model call began.',
  GenerationCompleted: 'A model call ended with an answer; its tokens.',
  GenerationFailed: 'A model call ended without a usable answer; tokens that were spent all the same.',
  GenerationCancelled: 'A model call was called off; tokens that were spent all the same.',
  ToolApprovalGranted: 'A tool may be used.',
  ToolApprovalRevoked: 'A tool may no longer be used.',
  MessageRemoved: 'Messages left the conversation: one, or a tool call with its results.',
  HistoryRewound: 'All messages after a version left the conversation.',
  ConversationReset: 'History and tool approvals are emptied; the session, its title and its usage stay.',
  SessionExpired: 'The session left the active set; its history is kept.',
  SessionResumed: 'An expired session is active again.',
  SessionDeleted: 'The session ended. Its id may be used again, which begins a new incarnation.',
  SessionErased:
    'What the session was until then was erased: nobody can read it any more, and consumers must delete what they keep of it. Its id may be used again, which begins a new incarnation.',
  ErasureScheduled:
    'The session is to be erased at a time to come, with all its incarnations, because somebody asked for it or a setting of its tenant says so. Consumers need do nothing: `SessionErased` follows when it is done.',
  ErasureCancelled:
    'No erasure of the session is scheduled any more; with the cause `policy`, none by a setting of its tenant.',
  TenantSettingsChanged:
    'Limits of a whole tenant changed; null takes one back. The session id is `~tenant`.',
};

const reference = z.object({
  reference: z.string().meta({ description: 'Path of the event in the API, relative to the service' }),
  bytes: z.int().positive().meta({ description: 'Size of the data that was left out' }),
});

const truncation = z.object({
  generation: z.int().positive().meta({ description: 'The generation of the log that has begun' }),
  lane: z.int().nonnegative().meta({ description: 'The lane that the record is about' }),
  from: z.int().positive().meta({
    description:
      'The first position of earlier generations that is gone; none is where the log was not set back',
  }),
});
const TRUNCATED =
  'Another generation of the log has begun, after a failover or a restore. What a lane had from a position on is gone.';

const eventTypes = Object.keys(sessionEvents) as EventType[];
export const schemaFile = (type: string, version: number): string => `${type}.v${version}.json`;

function jsonSchema(type: string, version: number, description: string, schema: z.ZodType): JsonSchema {
  const { $schema: _, ...rest } = z.toJSONSchema(schema, {
    io: 'input',
    target: 'draft-7',
    unrepresentable: 'any',
    override: ({ jsonSchema: converted }) => {
      // Consumers ignore unknown fields; a schema that forbade them would not let an optional field be added.
      delete converted.additionalProperties;
      // The format says the same as the pattern. The pattern depends on the release of zod, so an upgrade of zod would
      // look like a change of the contract.
      if (converted.format === 'date-time') delete converted.pattern;
    },
  });
  return { $schema: DIALECT, $id: schemaUrn(type, version), title: type, description, ...rest };
}

/** By file name: the schemas of the current version of every event's data, and of the reference. */
export function jsonSchemas(): Record<string, JsonSchema> {
  const schemas: Record<string, JsonSchema> = {};
  for (const type of eventTypes) {
    const { version, data } = sessionEvents[type];
    schemas[schemaFile(type, version)] = jsonSchema(type, version, SUMMARIES[type], data);
  }
  schemas[schemaFile(REFERENCE.type, REFERENCE.version)] = jsonSchema(
    REFERENCE.type,
    REFERENCE.version,
    'Stands in place of data that is larger than the topic takes.',
    reference,
  );
  schemas[schemaFile(TRUNCATION.type, TRUNCATION.version)] = jsonSchema(
    TRUNCATION.type,
    TRUNCATION.version,
    TRUNCATED,
    truncation,
  );
  return schemas;
}

const HEADERS: readonly (readonly [name: string, description: string, schema: JsonSchema])[] = [
  ['ce_specversion', 'CloudEvents version', { type: 'string', const: '1.0' }],
  ['ce_id', 'Id of the event; the same however often it is delivered', { type: 'string', format: 'uuid' }],
  ['ce_type', '`colloquy.<EventName>.v<n>`', { type: 'string', pattern: '^colloquy\\.[A-Za-z]+\\.v[0-9]+$' }],
  ['ce_source', '`/colloquy/<tenant>`', { type: 'string', format: 'uri-reference' }],
  ['ce_subject', 'Session id; `~tenant` for what concerns the whole tenant', { type: 'string' }],
  ['ce_time', 'When it was recorded: UTC, RFC 3339', { type: 'string', format: 'date-time' }],
  [
    'ce_dataschema',
    'Names the JSON Schema of the value, or of what is sealed in it',
    { type: 'string', format: 'uri' },
  ],
  ['ce_partitionkey', '`<tenant>/<session id>`, as the record key', { type: 'string' }],
  [
    'content-type',
    '`application/json`, and `application/octet-stream` where the value is sealed',
    { type: 'string', enum: ['application/json', 'application/octet-stream'] },
  ],
  ['ce_tenant', 'Tenant id', { type: 'string' }],
  ['ce_sessionversion', 'Number of the event in its session: 1, 2, 3 … without gaps', digits(1)],
  ['ce_incarnation', 'Which life of the session id', digits(1)],
  ['ce_lane', 'Lane of the log; the partition is this modulo the partition count', digits(0)],
  ['ce_position', 'Number of the event in its lane: 1, 2, 3 … without gaps', digits(1)],
  [
    'ce_loggeneration',
    'Generation of the log in which it was appended: 1, and one more after each failover',
    digits(1),
  ],
  [
    'ce_cell',
    'The cell whose log it is, unless it is the first; lanes and positions are those of a cell',
    { type: 'string' },
  ],
  ['ce_correlationid', 'Correlation id of the request that caused it', { type: 'string' }],
  [
    'ce_erased',
    'Only where the data was erased before it was published: then the value is `null`',
    { type: 'string', const: 'true' },
  ],
  [
    'ce_sealed',
    'Only where the value is [sealed](#sealed-values): by which cipher, and its first byte: `chacha20-poly1305;v=4`, `aes-256-gcm;v=2`, `aes-256-gcm;v=1`',
    { type: 'string', pattern: '^[a-z0-9-]+;v=[0-9]+$' },
  ],
  ['ce_keyid', 'Only where the value is sealed: id of the key', { type: 'string', format: 'uuid' }],
  ['ce_dataref', 'Only where the value is a reference: where the event can be read', { type: 'string' }],
];

/** Headers that most records have not. */
const OPTIONAL: readonly string[] = ['ce_dataref', 'ce_cell', 'ce_erased', 'ce_sealed', 'ce_keyid'];

const PLAIN = 'application/json';
const SEALED_TYPE = 'application/octet-stream';
const SEALED_EVENT = 'SealedEvent';
const SEALED =
  'Any of the events, with its data sealed: `ce_type` says which it is. Only where `kafka.payload` is `sealed`.';
const NEEDED_TO_OPEN: readonly string[] = ['ce_sealed', 'ce_keyid'];

/** @param more by name: what holds for a header in some messages */
const headersOf = (optional: readonly string[], more: Readonly<Record<string, JsonSchema>>): JsonSchema => ({
  type: 'object',
  required: HEADERS.map(([name]) => name).filter((name) => !optional.includes(name)),
  properties: Object.fromEntries(
    HEADERS.map(([name, description, header]) => [name, { ...header, ...more[name], description }]),
  ),
});

function digits(min: 0 | 1): JsonSchema {
  return { type: 'string', pattern: min === 1 ? '^[1-9][0-9]*$' : '^[0-9]+$' };
}

/** An AsyncAPI 3.0 description of the topic. */
export function asyncApi(topic: TopicDescription, serviceVersion: string): Record<string, unknown> {
  const schemas: Record<string, JsonSchema> = {};
  const messages: Record<string, unknown> = {};
  for (const type of eventTypes) {
    const { version } = sessionEvents[type];
    const { $schema: _, $id, ...schema } = jsonSchemas()[schemaFile(type, version)] ?? {};
    schemas[type] = schema;
    messages[type] = {
      name: `colloquy.${type}.v${version}`,
      title: type,
      summary: SUMMARIES[type],
      contentType: PLAIN,
      headers: headersOf(OPTIONAL, {
        ce_type: { const: `colloquy.${type}.v${version}` },
        ce_dataschema: { examples: [$id] },
        'content-type': { const: PLAIN },
      }),
      payload: { $ref: `#/components/schemas/${type}` },
      bindings: {
        kafka: { key: { type: 'string', description: '<tenant>/<session id>' }, bindingVersion: '0.5.0' },
      },
    };
  }
  messages[SEALED_EVENT] = {
    name: SEALED_EVENT,
    title: SEALED_EVENT,
    summary: SEALED,
    contentType: SEALED_TYPE,
    headers: headersOf(
      OPTIONAL.filter((name) => !NEEDED_TO_OPEN.includes(name)),
      { 'content-type': { const: SEALED_TYPE } },
    ),
    payload: { type: 'string', format: 'binary' },
    bindings: {
      kafka: { key: { type: 'string', description: '<tenant>/<session id>' }, bindingVersion: '0.5.0' },
    },
  };
  const { $schema: _dialect, ...truncated } =
    jsonSchemas()[schemaFile(TRUNCATION.type, TRUNCATION.version)] ?? {};
  schemas[TRUNCATION.type] = truncated;
  messages[TRUNCATION.type] = {
    name: `colloquy.${TRUNCATION.type}.v${TRUNCATION.version}`,
    title: TRUNCATION.type,
    summary: TRUNCATED,
    contentType: 'application/json',
    payload: { $ref: `#/components/schemas/${TRUNCATION.type}` },
    bindings: { kafka: { key: { type: 'string', const: LOG_KEY }, bindingVersion: '0.5.0' } },
  };
  const names = [...eventTypes, SEALED_EVENT, TRUNCATION.type];
  const messageRefs = (prefix: string) => names.map((type) => ({ $ref: `${prefix}/${type}` }));
  return {
    asyncapi: '3.0.0',
    info: {
      title: 'Colloquy session events',
      version: serviceVersion,
      description:
        'Every event of every session, at least once; first deliveries of a session are in the order of ' +
        'ce_sessionversion. Consumers drop versions that they have, apply the next one, and fetch a gap from the API.',
      license: { name: 'MIT' },
    },
    defaultContentType: 'application/json',
    channels: {
      sessionEvents: {
        address: topic.topic,
        messages: Object.fromEntries(names.map((type) => [type, { $ref: `#/components/messages/${type}` }])),
        bindings: {
          kafka: {
            topic: topic.topic,
            partitions: topic.partitions,
            topicConfiguration: {
              'cleanup.policy': ['delete'],
              'retention.ms': topic.retentionMs,
              'max.message.bytes': topic.maxMessageBytes,
            },
            bindingVersion: '0.5.0',
          },
        },
      },
    },
    operations: {
      publishSessionEvents: {
        action: 'send',
        summary: 'Colloquy publishes what it has recorded.',
        channel: { $ref: '#/channels/sessionEvents' },
        messages: messageRefs('#/channels/sessionEvents/messages'),
      },
    },
    components: { schemas, messages },
  };
}

/** docs/events.md */
export function eventsPage(): string {
  const schemas = jsonSchemas();
  const events = eventTypes.map((type) => {
    const { version } = sessionEvents[type];
    const file = schemaFile(type, version);
    return [
      `### ${type}`,
      '',
      SUMMARIES[type],
      '',
      `\`colloquy.${type}.v${version}\`, schema: [\`schemas/${file}\`](../schemas/${file})`,
      '',
      ...fieldTable(schemas[file] ?? {}),
    ].join('\n');
  });
  return PAGE.replace('{{headers}}', () =>
    [
      '| header | value |',
      '| --- | --- |',
      ...HEADERS.map(([name, description, { const: fixed }]) => {
        const value = typeof fixed === 'string' ? `: \`${fixed}\`` : '';
        return `| \`${name}\` | ${description}${value} |`;
      }),
    ].join('\n'),
  ).replace('{{events}}', () => events.join('\n\n'));
}

interface Shape {
  type?: string;
  const?: string;
  enum?: string[];
  anyOf?: Shape[];
  oneOf?: Shape[];
  items?: Shape | Shape[];
  properties?: Record<string, Shape>;
  required?: string[];
  description?: string;
  format?: string;
  'x-personal'?: boolean;
}

function fieldTable(schema: Shape): string[] {
  const fields = Object.entries(schema.properties ?? {});
  if (fields.length === 0) return ['No data.'];
  return [
    '| field | type | |',
    '| --- | --- | --- |',
    ...fields.map(([name, field]) => {
      const notes = [
        schema.required?.includes(name) === true ? '' : 'optional',
        field['x-personal'] === true ? 'personal' : '',
        field.description ?? '',
      ];
      return `| \`${name}\` | ${typeName(field)} | ${notes.filter((note) => note !== '').join('; ')} |`;
    }),
  ];
}

function typeName({
  type,
  const: fixed,
  enum: values,
  anyOf,
  oneOf,
  items,
  properties,
  required,
  format,
}: Shape): string {
  if (fixed !== undefined) return `\`${fixed}\``;
  if (values) return values.map((value) => `\`${value}\``).join(' ');
  const choices = anyOf ?? oneOf;
  if (choices) return [...new Set(choices.map(typeName))].join(' or ');
  if (type === 'array') {
    if (Array.isArray(items)) return `[${items.map(typeName).join(', ')}]`;
    return `array of ${items ? typeName(items) : 'any'}`;
  }
  if (properties) {
    const names = Object.keys(properties).map((name) =>
      required?.includes(name) === true ? name : `${name}?`,
    );
    return `{ ${names.join(', ')} }`;
  }
  return format === 'date-time' ? 'RFC 3339 time' : (type ?? 'any JSON');
}

const PAGE = `<!-- Made by \`npm run docs:events\` from src/domain/session.events.ts and src/kafka/documents.ts. Do not edit. -->
# Events on Kafka

Colloquy publishes every event of every session to one topic, \`colloquy.session-events\` unless set otherwise. The same contract
for programs: \`/asyncapi.json\` of a running service, and JSON Schemas (draft 7) in \`schemas/\`, served under \`/schemas/\`.

## What you can rely on

- **Complete.** Every event that was ever acknowledged is published at least once, however far back, whatever was down meanwhile. Naming brokers for the
  first time publishes the log from its first event.
- **In order per session.** All events of a session are in one partition, and their *first* deliveries are in the order of \`ce_sessionversion\`, which
  has no gaps. Events of different sessions have no order among each other.
- **More than once, now and then.** After a failure a stretch may come again, in order, ending further on. \`ce_id\` and \`ce_sessionversion\` stay the same.
- **Only appended to.** Events are never edited, renamed or taken back. A deleted session is a further event.

## The rule of every consumer

Keep, per tenant and session, the last version that you have applied, *in the same transaction as its effect*:

| version of the record | do |
| --- | --- |
| at most the last one | drop it: it has been applied |
| the last one + 1 | apply it |
| beyond that | fetch the gap, \`GET /v1/sessions/<session id>/events?after=<last version>\`, and apply it first |

A gap shows where the topic no longer has the beginning (retention), or where a consumer began in the middle. \`colloquy/consumer\` fetches and applies a gap in pages (\`page\`: 500 events and 4 MiB unless set otherwise), each in a transaction of its own. Start from the beginning of the topic
(\`auto.offset.reset=earliest\`) and commit offsets after the effect; the versions tell what is new. \`colloquy/consumer\` does all of this:

\`\`\`ts
import { consume, postgresPlaces } from 'colloquy/consumer';

const consumer = consume({
  kafka: { brokers: ['127.0.0.1:9092'] },
  groupId: 'usage',
  places: postgresPlaces(pool, { consumer: 'usage' }),
  api: { url: 'http://127.0.0.1:3000', apiKey: process.env.COLLOQUY_API_KEY },
  apply: async (events, tx) => {
    for (const event of events)
      if (event.type === 'MessageAppended') await tx.query('insert into …', [event.data.messageId]);
  },
});
\`\`\`

**When the log was set back.** After a failover to a standby that lacked the last events, or a restore to an earlier state, the log goes on without events that you have seen, and others
come with their versions. Each failover, restore and load from a dump begins a *generation* of the log. Before anything of it is published to a lane, its partition gets a record \`LogTruncated\`, with the key \`~log\` and the value
\`{"generation": 2, "lane": 3, "from": 101}\`: what that lane has of earlier generations (\`ce_loggeneration\`) from position 101 on is gone; mostly nothing is. So an event is told for good by its cell, generation, lane and position. \`colloquy/consumer\` finds the sessions concerned, asks the service which of
their versions were kept, moves its places back, and hands them to \`truncated(sessions, tx)\`, which undoes their effect in the same transaction:

\`\`\`ts
truncated: async (sessions, tx) => {
  for (const { tenant, sessionId, version } of sessions)
    await tx.query('delete from … where tenant = $1 and session_id = $2 and version > $3', [tenant, sessionId, version]);
},
\`\`\`

**When a tenant is moved** to another database of the service (a cell), its sessions go on from there: \`ce_cell\` changes, lane and partition stay, positions are those of the other cell, and the versions of each session go on without a gap. Nothing is published twice, and what comes from the new cell comes after all that came from the old one. Positions are compared within one cell only.

A whole program: [\`examples/token-usage.mjs\`](../examples/token-usage.mjs), \`npm run example:usage\`.

**Ignore what you do not know**: header, field or event type. Values of an \`enum\` do not grow within a version.

## Records

The key is \`<tenant>/<session id>\`, the value the event's data as JSON, unless it is [sealed](#sealed-values), and the headers are those of CloudEvents 1.0 (Kafka binding, binary mode), UTF-8:

{{headers}}

The partition is \`ce_lane\` modulo the number of partitions, not a hash of the key: a lane keeps its order whatever the partition count. Join the topic with others
by its key only after repartitioning.

**Data that is too large.** Colloquy creates the topic with a \`max.message.bytes\` of 8 MiB (\`kafka.maxMessageBytes\`). An event beyond what the topic takes does not hold
up the others: its record has the header \`ce_dataref\`, the \`ce_dataschema\` \`urn:colloquy:event:EventReference:v1\`, and the value
\`{"reference": "/v1/sessions/<id>/events?after=<version - 1>&limit=1", "bytes": 12345678}\`; \`ce_type\` stays that of the event. Read the event there. \`colloquy/consumer\` does.

## Sealed values

With \`kafka.payload: sealed\` the value of a record is what the log has: ciphertext under a key of the session's incarnation. The key of the record and its headers stay plain. Who erases a session destroys its keys, so that what is on the topic, in its archives and wherever
it was copied can be read by nobody a minute later. \`colloquy/consumer\` opens values with keys of the service, for which it needs an API key with \`audit:read\`:

\`\`\`ts
keys: { url: 'http://127.0.0.1:3000', apiKey: process.env.COLLOQUY_API_KEY },
\`\`\`

It keeps a key in memory for at most 60 seconds. While the service is away it waits, and skips nothing. An event whose key was destroyed comes as \`unknown\`, with \`erased\`. Without \`keys\` a sealed event comes as \`unknown\` too, with \`data: null\` and
\`sealed: {keyId, bytes}\`: order and envelopes are there, \`ceType\` says what happened. So comes one of which the service knows that the log has it no longer; \`LogTruncated\` takes it back. What consumers make of the data is theirs to delete on \`SessionErased\`, as ever.

Some records are plain also then, without \`ce_sealed\`: \`SessionErased\`, which holds nothing that was said; events that the log has in plain, from before there was a master key; references; \`LogTruncated\`; and what was published before the setting, until it leaves the topic. A consumer goes by the header of each record.
A sealed record has the version in which the event was written (\`ce_type\`, \`ce_dataschema\`): the relay cannot lift what it does not open. \`colloquy/consumer\` does, others use the schema of that version.

To open a value without it:

1. \`GET /v1/keys/<ce_keyid>?session=<ce_subject>&version=<ce_sessionversion>\` with \`Colloquy-Tenant: <ce_tenant>\` answers \`{"id", "key", "maxAgeSeconds"}\`, the key as base64 of 32 bytes. Forget it after that time, counted from the request. 410 \`key-destroyed\`: it was erased.
   404 \`key-not-found\`: the tenant has no such event with this key; where \`logGeneration\` of the answer is greater than \`ce_loggeneration\`, or \`cell\` is not \`ce_cell\`, the event is gone, else this is not its service.
2. The value is, in bytes: 1 form, 12 nonce, 16 tag, ciphertext, 32 commitment. Form 1, of before there were commitments, ends with the ciphertext.
3. Additional data: the UTF-8 text \`["<ce_tenant>","<ce_subject>",<ce_sessionversion>,"<EventName>"]\`, JSON without blanks, the name that of \`ce_type\`.
4. ChaCha20-Poly1305 (RFC 8439) opens form 4, AES-256-GCM forms 1 and 2 (\`storage.cipher\`). The first 22 characters are a salt, the rest is the data as JSON; the commitment is the SHA-256 of both. Form 1 is the JSON alone.

\`\`\`python
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

def opened(value: bytes, key: bytes, tenant: str, session: str, version: int, name: str) -> dict:
    nonce, tag, text = value[1:13], value[13:29], value[29:] if value[0] == 1 else value[29:-32]
    identity = json.dumps([tenant, session, version, name], separators=(",", ":")).encode()
    cipher = ChaCha20Poly1305 if value[0] == 4 else AESGCM
    plain = cipher(key).decrypt(nonce, text + tag, identity).decode()
    return json.loads(plain if value[0] == 1 else plain[22:])
\`\`\`

## State from events

There is no compacted topic with the latest state of each session, and \`colloquy.session-events\` must not be made one. A node that lost its lease without knowing may
still have one old batch on the wire. Among events that is a repetition, which the version tells; on a compacted topic the late, older record would replace
the newer one *for good*. Fold the events instead:

\`\`\`
state := empty at version 0
for each record, in the order of the partition:
  if record.version <= state.version: drop
  if record.version >  state.version + 1: fetch the gap first
  state := apply(state, record); state.version := record.version
\`\`\`

where \`SessionCreated\` begins a new incarnation with an empty state, \`ConversationReset\` empties the history, \`SessionExpired\` and \`SessionResumed\` change the status, and
\`SessionDeleted\` and \`SessionErased\` end it. Keep the row of a deleted session, at least its version: late repetitions must still find it.

## Retention and erasure

The topic keeps events for \`kafka.retentionMs\`, seven days unless set otherwise when the topic is created. Unless values are [sealed](#sealed-values), this is also the bound of erasure downstream: what is erased in
Colloquy can be read from the topic until then, and wherever consumers have put it for as long as they keep it. Fields marked *personal* below may hold what
a person wrote or is named by; consumers that store them take on the duty to erase them.

\`SessionErased\` says that a session was erased: delete all that is kept of its versions up to this one, in all incarnations, but for the last version itself. An event that was erased
before it was published, or before it was fetched from the API, has the header \`ce_erased\` (\`erased\` in the API) and the value \`null\`: it counts as a version of its session, and \`SessionErased\`
follows. \`colloquy/consumer\` hands it out as \`unknown\`, with \`erased\`.

## Events

{{events}}

## Adding to the contract

What was published stays readable for ever: old records are on topics and in archives, and consumers are upgraded later than we are, or never.
\`test/unit/kafka\` compares the schemas with the committed ones in \`schemas/\` and fails on a change that breaks a reader.

**A new optional field**: add it to \`data\` in \`src/domain/session.events.ts\`, run \`npm run docs:events\`, commit the result. Nothing else; the version stays.

**A new event type**: add it to \`sessionEvents\` with \`version: 1\`, to \`src/domain/session.ts\`, and a summary to \`src/kafka/documents.ts\`; run \`npm run docs:events\`. Consumers ignore it
until they know it.

**Anything else** (a field goes, becomes required or optional, changes its type or meaning, an \`enum\` grows, a limit loosens) is a new version:

1. In \`session.events.ts\` change \`data\`, count \`version\` up, and add an upcaster from the old version to the new one: the log keeps what it has.
2. \`npm run docs:events\` writes \`schemas/<EventName>.v<n+1>.json\` and leaves the file of the old version where it is, for ever.
3. Publish a release of \`colloquy/consumer\` and give consumers time to take it *before* the service writes the new version: from then on records are \`v<n+1>\`, old events that are
   published again included, since the log lifts them when it reads them. A consumer that meets a version newer than it knows must stop and say so; ours does.
4. Add an old record of the event to the upcaster's test.

**While an upgrade is rolled out**, nodes of both versions publish, each of them the lanes that it holds. An older node publishes events of a type or version that it does not know as they are
stored: \`ce_type\` and \`ce_dataschema\` name the version that was written, and the value is what a newer node would publish. No lane waits for the upgrade to end. Old events may come
as \`v<n>\` from one node and as \`v<n+1>\` from the other until then.

An event is never renamed, and its name is never used again for something else: an event that is no longer written stays in the catalogue.
`;
