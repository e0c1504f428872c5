import { type Client, type QueryResultRow } from 'pg';
import { arrayLiteral, type Element, jsonArray, sparse } from '../database/array-literal.js';
import { rfc3339 } from '../database/connection.js';
import { type Append, type AppendEvent, type AppendResult, endOf, follows } from './append.js';
import { type StreamId } from './lane.js';

/** The last event of a lane that this process has seen. Other processes may have appended to the lane since. */
export interface LastEvent extends StreamId {
  readonly version: number;
  readonly position: number;
  readonly time: string;
}

interface Row extends QueryResultRow {
  status: string;
  r_version: number;
  r_position: number;
  r_time: string;
  r_reference?: unknown;
}

/** An append of a batch. What it says of itself holds together with the appends before it that it follows. */
interface Link {
  readonly append: Append;
  /** Whether it follows the append before it in the batch. */
  readonly isChained: boolean;
  /** Whether an append that it was to follow was refused. */
  readonly isBroken: boolean;
  readonly begins: boolean;
  readonly activity: boolean;
}

function linksOf(appends: readonly Append[]): Link[] {
  const links: Link[] = [];
  for (const append of appends) {
    const before = links.at(-1);
    const isChained = before !== undefined && follows(append, before.append);
    links.push({
      append,
      isChained,
      isBroken: isChained ? before.isBroken : append.expected !== append.chain.version,
      begins: append.begins || (isChained && before.begins),
      activity: append.activity || (isChained && before.activity),
    });
  }
  return links;
}

/**
 * Commits appends with a single autocommit statement: the cheapest statement that covers what they ask for.
 *
 * @param run start time of the server that the connection leads to
 * @param lastOf returns the last event that this process saw in a lane
 * @returns one result per append, in the order of the appends
 */
export async function commitAppends(
  client: Client,
  appends: readonly Append[],
  run: string,
  lastOf: (lane: number) => LastEvent | undefined,
): Promise<AppendResult[]> {
  const links = linksOf(appends);
  const intact = links.filter(({ isBroken }) => !isBroken);
  const results = await send(client, intact, run, lastOf);
  return links.map(({ append, isBroken }) =>
    // What it was to follow is not in the log, so there is nothing to ask the database.
    isBroken ? { status: 'conflict', version: append.chain.version } : (results.shift() as AppendResult),
  );
}

async function send(
  client: Client,
  links: readonly Link[],
  run: string,
  lastOf: (lane: number) => LastEvent | undefined,
): Promise<AppendResult[]> {
  const [link] = links;
  if (!link) return [];
  const { append } = link;
  if (links.length > 1 || !isPlain(append)) return sendBatch(client, links);
  const last = lastOf(append.lane);
  const next = last && isNext(append, last) ? await sendNext(client, append, last, run) : undefined;
  return [next ?? (await sendOne(client, append, last?.position, run))];
}

const isNext = ({ stream, expected, events, state, lease }: Append, last: LastEvent): boolean =>
  expected === last.version &&
  stream.streamId === last.streamId &&
  stream.tenant === last.tenant &&
  events.length === 1 &&
  !state &&
  !lease;

/**
 * Appends one event directly behind the last event of its stream. The statement assumes that this event is also the
 * last of its lane, as it is for most lone appends. If the next position of the lane is free, the lane and therefore
 * the stream end where this process believes, and nothing else has to be checked: this costs hardly more than a bare
 * INSERT.
 *
 * @returns undefined when the position is taken, or when the server was restarted since the lane's end was seen
 */
async function sendNext(
  client: Client,
  append: Append,
  last: LastEvent,
  run: string,
): Promise<AppendResult | undefined> {
  const [event] = append.events;
  if (!event) throw new Error('append_next needs an event');
  const { rows } = await client.query<{ time: string }>({
    name: 'append_next',
    // The inner query takes the lock first, and only then the clock is read.
    text: `insert into event (lane, position, tenant, stream_id, version, incarnation, id, type, schema_version, time,
                              actor, correlation_id, causation_id, data, sealed, key_id)
           select $1::smallint, $2::bigint, $3::text, $4::text, $5::int, $6::int, $7::uuid, $8::text, $9::smallint,
                  greatest($10::timestamptz, colloquy_now()), $11::text, $12::text, $13::text, $14::jsonb, $15::bytea,
                  $16::uuid
           from (select pg_advisory_xact_lock(7301, $1::smallint)) as lane_lock
           where pg_postmaster_start_time() = $17::timestamptz
           on conflict do nothing returning time`,
    values: [
      append.lane,
      last.position + 1,
      append.stream.tenant,
      append.stream.streamId,
      append.expected + 1,
      append.incarnation,
      event.id,
      event.type,
      event.schemaVersion,
      last.time,
      append.actor,
      append.correlationId,
      append.causationId,
      event.payload.json,
      event.payload.sealed,
      event.payload.keyId,
      run,
    ],
  });
  return rows[0] && endOf(append, append.expected + 1, last.position + 1, rows[0].time);
}

const isPlain = ({ events, guard, counters, key }: Append): boolean =>
  events.length > 0 &&
  !guard &&
  !counters?.length &&
  !key &&
  events.slice(1).every(({ payload }) => !payload.sealed);

async function sendOne(
  client: Client,
  append: Append,
  laneEnd: number | undefined,
  run: string,
): Promise<AppendResult> {
  const { lease, state } = append;
  const [event, ...more] = append.events;
  if (!event) throw new Error('append_event needs an event');
  const { rows } = await client.query<{ stored: string[] }>({
    name: 'append_event',
    text: `select append_event($1,case when pg_postmaster_start_time() = $26 then $2::bigint end,$3,$4,$5,$6,$7,$8,$9,$10,$11,
                               $12,$13,$14,$15,$16,$17,$18,$19,$20,$21,$22,$23,$24,$25) as stored`,
    values: [
      append.lane,
      laneEnd ?? null,
      append.stream.tenant,
      append.stream.streamId,
      append.expected,
      event.id,
      event.type,
      event.schemaVersion,
      append.incarnation,
      append.actor,
      append.correlationId,
      append.causationId,
      event.payload.json,
      event.payload.sealed,
      event.payload.keyId,
      more.length > 0 ? `[${more.map(eventJson).join()}]` : null,
      lease?.name,
      lease?.owner,
      lease?.ms,
      state?.version,
      state?.payload.json,
      state?.payload.sealed,
      state?.payload.keyId,
      state && !append.begins ? append.chain.createdAt : null,
      state && !append.activity ? append.chain.lastActivityAt : null,
      run,
    ],
  });
  const [status, version, position, time = ''] = rows[0]?.stored ?? [];
  if (status !== 'ok') return { status: 'conflict', version: Number(version) };
  return endOf(append, Number(version), Number(position), rfc3339(time));
}

const eventJson = ({ id, type, schemaVersion, payload }: AppendEvent): string =>
  `{"id":"${id}","type":${JSON.stringify(type)},"schemaVersion":${schemaVersion},"data":${payload.json ?? 'null'}}`;

async function sendBatch(client: Client, links: readonly Link[]): Promise<AppendResult[]> {
  const appends = links.map(({ append }) => append);
  const lanes = [...new Set(appends.map((append) => append.lane))].sort((a, b) => a - b);
  const laneNumber = new Map(lanes.map((lane, index) => [lane, index + 1]));
  const events = appends.flatMap((append, index) =>
    append.events.map((event, ordinal) => ({ ...event, append: index + 1, ordinal: ordinal + 1 })),
  );
  const counters = appends.flatMap((append, index) =>
    (append.counters ?? []).map((counter) => ({ ...counter, append: index + 1 })),
  );
  const of = (pick: (append: Append) => Element): string => arrayLiteral(appends.map(pick));
  const ofEvents = (pick: (event: (typeof events)[number]) => Element): string =>
    arrayLiteral(events.map(pick));
  const ofCounters = (pick: (counter: (typeof counters)[number]) => Element): string =>
    arrayLiteral(counters.map(pick));
  const values = [
    arrayLiteral(lanes),
    of((append) => laneNumber.get(append.lane)),
    of((append) => append.stream.tenant),
    of((append) => append.stream.streamId),
    of((append) => append.expected),
    of((append) => append.incarnation),
    sparse(links, ({ append, begins }) => (begins ? null : append.chain.createdAt)),
    sparse(appends, (append) => append.chain.lastActivityAt),
    arrayLiteral(links.map((link) => link.activity)),
    of((append) => append.actor),
    of((append) => append.correlationId),
    sparse(appends, (append) => append.causationId),
    of((append) => append.events.length),
    jsonArray(appends.map((append) => append.state?.payload.json)),
    sparse(appends, (append) => append.state?.version),
    sparse(appends, (append) => append.state?.payload.sealed),
    sparse(appends, (append) => append.state?.payload.keyId),
    sparse(appends, (append) => (append.guard && 'idleFor' in append.guard ? append.guard.idleFor : null)),
    sparse(appends, (append) => (append.guard && 'before' in append.guard ? append.guard.before : null)),
    sparse(appends, (append) =>
      append.guard && 'leaseOver' in append.guard ? append.guard.leaseOver : null,
    ),
    sparse(appends, (append) => append.key?.scope),
    sparse(appends, (append) => append.key?.key),
    sparse(appends, (append) => append.key?.fingerprint),
    jsonArray(appends.map((append) => append.key && JSON.stringify(append.key.reference))),
    sparse(appends, (append) => append.lease?.name),
    sparse(appends, (append) => append.lease?.owner),
    sparse(appends, (append) => append.lease?.ms),
    ofEvents((event) => event.append),
    ofEvents((event) => event.ordinal),
    ofEvents((event) => event.id),
    ofEvents((event) => event.type),
    ofEvents((event) => event.schemaVersion),
    jsonArray(events.map((event) => event.payload.json)),
    sparse(events, (event) => event.payload.sealed),
    sparse(events, (event) => event.payload.keyId),
    ofCounters((counter) => counter.append),
    ofCounters((counter) => counter.key),
    ofCounters((counter) => counter.delta),
    ofCounters((counter) => counter.max),
    sparse(links, (link) => link.isChained || null),
  ];
  const { rows } = await client.query<Row>({
    name: 'append_chains',
    text: `select * from append_chains(${values.map((_, index) => `$${index + 1}`).join()})`,
    values,
  });
  return rows.map((row, index) => {
    const append = appends[index];
    if (!append) throw new Error('append_chains returned more than it was asked for');
    return toResult(append, row);
  });
}

function toResult(append: Append, row: Row): AppendResult {
  switch (row.status) {
    case 'ok':
      return endOf(append, row.r_version, row.r_position, row.r_time);
    case 'duplicate':
      return { status: 'duplicate', version: row.r_version, reference: row.r_reference };
    case 'conflict':
      return { status: 'conflict', version: row.r_version };
    default:
      return { status: row.status as 'reused' | 'guard' | 'counter' | 'retry' };
  }
}
