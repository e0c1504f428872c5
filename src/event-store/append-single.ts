import { type Client } from 'pg';
import { rfc3339 } from '../database/connection.js';
import { type Append, type AppendEvent, type AppendResult, endOf } from './append.js';
import { type LaneEnd } from './known-ends.js';

/**
 * Appends one event to a stream whose end is known as of the known end of its lane. If the next position of the lane is
 * free, the lane and therefore the stream end where this process believes, and nothing else has to be checked: this costs
 * hardly more than a bare INSERT.
 *
 * @returns undefined when the position is taken, or when the server was restarted since the lane's end was seen
 */
export async function sendNext(
  client: Client,
  append: Append,
  end: LaneEnd,
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
      end.position + 1,
      append.stream.tenant,
      append.stream.streamId,
      append.expected + 1,
      append.incarnation,
      event.id,
      event.type,
      event.schemaVersion,
      end.time,
      append.actor,
      append.correlationId,
      append.causationId,
      event.payload.json,
      event.payload.sealed,
      event.payload.keyId,
      run,
    ],
  });
  return rows[0] && endOf(append, append.expected + 1, end.position + 1, rows[0].time);
}

/** Appends to one stream, with its state and a lease if it comes with them; without key, guard and counters. */
export async function sendOne(
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
