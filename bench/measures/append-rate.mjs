import { getPostgreSQLEventStore } from '@event-driven-io/emmett-postgresql';
import { message, WrittenSession } from '../support/messages.mjs';
import { product } from '../support/product.mjs';
import { median, rate, ratio, sideBySide, spread } from '../support/stats.mjs';

const { EventLog } = product('dist/event-store/log.js');
const { Pool } = product('pg');

const TARGETS = new Map([
  [1, undefined],
  [32, 5],
  [256, 8],
]);
/** Appends after which a writer goes on with a new session. */
const SESSION_LENGTH = 50;

/**
 * Measures appends of one message each, every writer on sessions of its own, in comparison with emmett's store on the
 * same server.
 */
export async function appendRate(server, { full }) {
  const store = await EventLog.open(await server.database('rate'));
  const pool = new Pool({ connectionString: await server.emptyDatabase('rate_emmett'), max: 10 });
  const emmett = getPostgreSQLEventStore('', { connectionOptions: { pool } });
  await emmett.schema.migrate();
  let streams = 0;

  const ours = () => {
    const sessions = new Map();
    return async (writer) => {
      let own = sessions.get(writer);
      if (!own || own.length >= SESSION_LENGTH) {
        own = { session: new WrittenSession(store, `session-${(streams += 1)}`), length: 0 };
        sessions.set(writer, own);
      }
      own.length += 1;
      await own.session.append();
    };
  };
  const theirs = () => {
    const sessions = new Map();
    return async (writer) => {
      let own = sessions.get(writer);
      if (!own || own.length >= SESSION_LENGTH) {
        own = { name: `session-${(streams += 1)}`, length: 0 };
        sessions.set(writer, own);
      }
      const expectedStreamVersion = BigInt(own.length);
      own.length += 1;
      await emmett.appendToStream(own.name, [{ type: 'MessageAppended', data: message() }], {
        // emmett treats an append to a new stream with the expected version 0 as a conflict.
        ...(expectedStreamVersion > 0n && { expectedStreamVersion }),
      });
    };
  };

  const rows = [];
  for (const [writers, target] of TARGETS) {
    const seconds = full ? 5 : 2;
    const rates = await sideBySide(full ? 7 : 5, {
      ours: () => rate(writers, seconds, ours()),
      theirs: () => rate(writers, seconds, theirs()),
    });
    rows.push({
      name: `store appends, ${writers} writer${writers > 1 ? 's' : ''}`,
      ours: `${Math.round(median(rates.ours))}/s`,
      other: `emmett-postgresql ${Math.round(median(rates.theirs))}/s`,
      ratio: ratio(rates.ours, rates.theirs),
      atLeast: target,
      spread: Math.max(spread(rates.ours), spread(rates.theirs)),
    });
  }
  await store.close();
  await emmett.close();
  await pool.end();
  return rows;
}
