import { randomUUID } from 'node:crypto';
import { connect, databaseSeconds } from '../support/database.mjs';
import { message, WrittenSession } from '../support/messages.mjs';
import { product } from '../support/product.mjs';
import { median, sideBySide, spread } from '../support/stats.mjs';

const { EventLog } = product('dist/event-store/log.js');

const BATCHES = [32, 256];
/** Batches after which a batch goes to new sessions. */
const SESSION_LENGTH = 50;

/**
 * Measures the processor time that PostgreSQL takes per event of a batch, beside one INSERT of the same rows into the same
 * table with the same indexes, whose versions and positions somebody else has worked out.
 */
export async function databaseTime(server, { full }) {
  const url = await server.database('time_ours');
  const bareUrl = await server.database('time_bare');
  const store = await EventLog.open(url);
  const client = await connect(bareUrl, 'bench');
  const lanes = Array.from({ length: store.laneCount }, () => 0);
  let sessions = 0;

  const ours = (size) => {
    let batch = [];
    let length = 0;
    return async () => {
      if (length % SESSION_LENGTH === 0)
        batch = Array.from({ length: size }, () => new WrittenSession(store, `session-${(sessions += 1)}`));
      length += 1;
      await Promise.all(batch.map((session) => session.append()));
    };
  };
  const bare = (size) => {
    let batch = [];
    let length = 0;
    return async () => {
      if (length % SESSION_LENGTH === 0) {
        batch = Array.from({ length: size }, () => `session-${(sessions += 1)}`).map((id) => ({
          id,
          lane: store.laneOf({ tenant: 'default', streamId: id }),
        }));
      }
      length += 1;
      await client.query({
        name: 'bare_batch',
        text: `insert into event (lane, position, tenant, stream_id, version, incarnation, id, type, schema_version, time,
                                  actor, correlation_id, data)
               select lane, "position", 'default', stream_id, $4, 1, id, 'MessageAppended', 1, colloquy_now(),
                      'bench', correlation_id, data
               from unnest($1::smallint[], $2::bigint[], $3::text[], $5::uuid[], $6::text[], $7::jsonb[])
                    as r (lane, "position", stream_id, id, correlation_id, data)`,
        values: [
          batch.map(({ lane }) => lane),
          batch.map(({ lane }) => (lanes[lane] += 1)),
          batch.map(({ id }) => id),
          length,
          batch.map(() => randomUUID()),
          batch.map(() => randomUUID()),
          batch.map(() => JSON.stringify(message())),
        ],
      });
    };
  };
  /** Microseconds of the server's processor time per event, over some seconds. */
  const cost = async (where, size, append) => {
    const end = performance.now() + (full ? 5_000 : 2_000);
    // The connection that writes must be there to be counted.
    await append();
    const before = await databaseSeconds(where);
    let events = 0;
    while (performance.now() < end) {
      await append();
      events += size;
    }
    return (((await databaseSeconds(where)) - before) / events) * 1e6;
  };

  const rows = [];
  for (const size of BATCHES) {
    const times = await sideBySide(full ? 7 : 5, {
      ours: () => cost(url, size, ours(size)),
      bare: () => cost(bareUrl, size, bare(size)),
    });
    rows.push({
      name: `PostgreSQL's time per event, batches of ${size}`,
      ours: `${median(times.ours).toFixed(0)} µs`,
      other: `one INSERT ${median(times.bare).toFixed(0)} µs`,
      ratio: median(times.ours.map((time, round) => time / times.bare[round])),
      atMost: 2.5,
      spread: Math.max(spread(times.ours), spread(times.bare)),
    });
  }
  await client.end();
  await store.close();
  return rows;
}
