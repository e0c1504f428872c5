import {
  getPostgreSQLEventStore,
  postgreSQLRawSQLProjection,
  rebuildPostgreSQLProjections,
} from '@event-driven-io/emmett-postgresql';
import { connect } from '../support/database.mjs';
import { CONTENT } from '../support/messages.mjs';
import { product } from '../support/product.mjs';
import { projecting } from '../support/projecting.mjs';
import { median, ratio, sideBySide, spread } from '../support/stats.mjs';

const { upcast } = product('dist/domain/session.events.js');
const { EventLog } = product('dist/event-store/log.js');
const { historyProjection } = product('dist/read-models/history.projection.js');
const { tableOf } = product('dist/projection-engine/projection.js');

const SESSION_LENGTH = 50;
/** By default emmett's rebuild sleeps for 50 ms after every 100 events. These settings make it as fast as it can be. */
const PULLING = { batchSize: 1_000, pullingFrequencyInMs: 0 };
const literal = (text) => `'${text.replaceAll("'", "''")}'`;

/**
 * Both logs hold the same messages, those of all sessions in turn. They are written by SQL, because appends are not
 * measured here.
 */
const messages = (events) => `
  select n, 'session-' || lpad((n % ${Math.ceil(events / SESSION_LENGTH)})::text, 8, '0') as stream_id,
         n / ${Math.ceil(events / SESSION_LENGTH)} + 1 as version,
         jsonb_build_object('messageId', 'msg_' || gen_random_uuid(), 'role', 'user', 'status', 'complete',
                            'content', '${CONTENT}') as data
  from generate_series(0, ${events - 1}) as n`;

async function ours(server, events) {
  const url = await server.database('rebuild');
  const client = await connect(url, 'bench', { statementMs: 600_000 });
  await client.query(`
    insert into event (lane, position, tenant, stream_id, version, incarnation, id, type, schema_version, time, actor,
                       correlation_id, data)
    select lane, row_number() over (partition by lane order by n), 'default', stream_id, version, 1, gen_random_uuid(),
           case version when 1 then 'SessionCreated' else 'MessageAppended' end, 1, colloquy_now(), 'bench', 'bench',
           case version when 1 then '{}' else data end
    from (select m.*, get_byte(sha256(convert_to('default/' || stream_id, 'UTF8')), 7) % 16 as lane
          from (${messages(events)}) m) e`);
  await client.query('vacuum analyze event');

  const store = await EventLog.open(url, { upcast });
  const { projector, rebuild, close } = await projecting(store, url, historyProjection);
  return {
    rebuild: async () => events / (await rebuild()),
    verify: () => projector.verify(historyProjection),
    count: async () =>
      (await client.query(`select count(*) from ${tableOf(historyProjection)}`)).rows[0].count,
    close: async () => {
      await close();
      await store.close();
      await client.end();
    },
  };
}

async function theirs(server, events) {
  const connectionString = await server.emptyDatabase('rebuild_emmett');
  const emmett = getPostgreSQLEventStore(connectionString);
  await emmett.schema.migrate();
  const client = await connect(connectionString, 'bench', { statementMs: 600_000 });
  await client.query(`
    insert into emt_messages (stream_id, stream_position, message_data, message_metadata, message_schema_version,
                              message_type, message_id, transaction_id)
    select stream_id, version, data, '{}', '1', 'MessageAppended', gen_random_uuid(), pg_current_xact_id()
    from (${messages(events)}) m order by n`);
  await client.query('vacuum analyze emt_messages');
  await client.query(
    'create table history (session_id text, version bigint, message jsonb, primary key (session_id, version))',
  );
  const projection = postgreSQLRawSQLProjection({
    name: 'history',
    canHandle: ['MessageAppended'],
    evolve: ({ data, metadata }) =>
      `insert into history values (${literal(metadata.streamName)}, ${metadata.streamPosition},
                                   ${literal(JSON.stringify(data))})`,
  });
  return {
    rebuild: async () => {
      // emmett keeps its position in the log after a rebuild, so the next rebuild would begin at the end.
      await client.query('truncate history, emt_processors');
      const consumer = rebuildPostgreSQLProjections({
        connectionString,
        projections: [projection],
        pulling: PULLING,
      });
      const began = performance.now();
      await consumer.start();
      const seconds = (performance.now() - began) / 1_000;
      await consumer.close();
      return events / seconds;
    },
    count: async () => (await client.query('select count(*) from history')).rows[0].count,
    close: async () => {
      await client.end();
      await emmett.close();
    },
  };
}

/** Measures a rebuild of the read model `history` from the log, in comparison with emmett's rebuild of the same. */
export async function rebuild(server, { full }) {
  const events = full ? 1_000_000 : 60_000;
  const own = await ours(server, events);
  // emmett gets a tenth of the million events, because all of them would take a quarter of an hour per round.
  const theirEvents = full ? events / 10 : events;
  const other = await theirs(server, theirEvents);
  try {
    const rates = await sideBySide(3, { ours: own.rebuild, theirs: other.rebuild });
    const counts = [await own.count(), await other.count()];
    const { ok } = await own.verify();
    return [
      {
        name: `rebuild of history, ${events} events`,
        ours: `${Math.round(median(rates.ours))}/s`,
        other: `emmett-postgresql ${Math.round(median(rates.theirs))}/s`,
        ratio: ratio(rates.ours, rates.theirs),
        atLeast: 15,
        spread: Math.max(spread(rates.ours), spread(rates.theirs)),
      },
      // This target holds for many events only: with few, the fixed costs (the start, the swap, and the poll that finds
      // the rebuild finished) dominate.
      ...(full
        ? [
            {
              name: 'at least 60 000 events/s',
              ours: `${Math.round(median(rates.ours))}/s`,
              pass: median(rates.ours) >= 60_000,
            },
          ]
        : []),
      {
        name: 'rows',
        ours: `${counts[0]}, verified: ${ok}`,
        other: `${counts[1]}`,
        pass: ok && counts[0] === events && counts[1] === theirEvents,
      },
    ];
  } finally {
    await own.close();
    await other.close();
  }
}
