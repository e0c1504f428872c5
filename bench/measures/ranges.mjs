import { Pool } from 'pg';
import { CONTENT, WrittenSession } from '../support/messages.mjs';
import { product } from '../support/product.mjs';
import { median, rate, ratio, sideBySide, spread } from '../support/stats.mjs';

const { EventLog } = product('dist/event-store/log.js');
const { LogRanges } = product('dist/event-store/log-ranges.js');

const SESSION_LENGTH = 50;
const RANGES = 12;

/** Adds sessions by SQL, because these appends are not measured. All of a session is in one range, as most of them are. */
const sessions = (range, count) => `
  insert into event (lane, position, tenant, stream_id, version, incarnation, id, type, schema_version, time, actor,
                     correlation_id, data)
  select lane, row_number() over (partition by lane order by version, stream_id)
           + (select coalesce(max(position), 0) from event e where e.lane = s.lane),
         'default', stream_id, version, 1, gen_random_uuid(), 'MessageAppended', 1, colloquy_now(), 'bench', 'bench',
         jsonb_build_object('messageId', 'msg_' || gen_random_uuid(), 'role', 'user', 'status', 'complete',
                            'content', '${CONTENT}')
  from (select stream_id, version, get_byte(sha256(convert_to('default/' || stream_id, 'UTF8')), 7) % 16 as lane
        from (select 'old-${range}-' || n as stream_id from generate_series(1, ${count}) as n) i,
             generate_series(1, ${SESSION_LENGTH}) as version) s`;

async function log(server, name, { divided, perRange }) {
  const url = await server.database(name);
  const pool = new Pool({ connectionString: url, max: 2 });
  const ranges = new LogRanges(pool);
  for (let range = 1; range <= RANGES; range += 1) {
    await pool.query(sessions(range, perRange));
    if (divided && range < RANGES) for (let lane = 0; lane < 16; lane += 1) await ranges.begin(lane, 0);
  }
  await pool.query('vacuum analyze event');
  await pool.end();
  return EventLog.open(url);
}

/** Measures a log whose lanes have many ranges, in comparison with the same log in one table for each lane. */
export async function ranges(server, { full }) {
  const perRange = full ? 4_000 : 400;
  const divided = await log(server, 'ranges', { divided: true, perRange });
  const whole = await log(server, 'ranges_none', { divided: false, perRange });
  let streams = 0;
  const appends = (store) => {
    const writers = new Map();
    return async (writer) => {
      if (!writers.has(writer)) writers.set(writer, new WrittenSession(store, `session-${(streams += 1)}`));
      await writers.get(writer).append();
    };
  };
  let next = 0;
  const anOldSession = () => {
    next += 1;
    return { tenant: 'default', streamId: `old-${1 + (next % RANGES)}-${1 + (next % perRange)}` };
  };
  const work = {
    'appends of 1 writer': [1, appends],
    'appends of 32 writers': [32, appends],
    'first appends to new sessions, 32 writers': [
      32,
      (store) => () => new WrittenSession(store, `session-${(streams += 1)}`).append(),
    ],
    'reads of an old session, 32 readers': [32, (store) => () => store.streams.read(anOldSession())],
    'the next 100 events of each lane, 4 readers': [
      4,
      (store) => () =>
        store.lanes.read(new Map(Array.from({ length: 16 }, (_, lane) => [lane, (next += 1) % 500])), 100),
    ],
  };
  const rows = [];
  for (const [name, [workers, make]] of Object.entries(work)) {
    const seconds = full ? 5 : 2;
    const rates = await sideBySide(full ? 9 : 7, {
      divided: () => rate(workers, seconds, make(divided)),
      whole: () => rate(workers, seconds, make(whole)),
    });
    rows.push({
      name: `${name}, log of ${RANGES} ranges for each lane`,
      ours: `${Math.round(median(rates.divided))}/s`,
      other: `${Math.round(median(rates.whole))}/s`,
      ratio: ratio(rates.divided, rates.whole),
      spread: Math.max(spread(rates.divided), spread(rates.whole)),
    });
  }
  await Promise.all([divided.close(), whole.close()]);
  return rows;
}
