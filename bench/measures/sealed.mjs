import { connect } from '../support/database.mjs';
import { WrittenSession, writeSessions } from '../support/messages.mjs';
import { measurePairs } from '../support/pairs.mjs';
import { startService } from '../support/process.mjs';
import { product } from '../support/product.mjs';
import { projecting } from '../support/projecting.mjs';
import { median, rate, ratio, sideBySide, spread } from '../support/stats.mjs';

const { upcast } = product('dist/domain/session.events.js');
const { EventLog } = product('dist/event-store/log.js');
const { historyProjection } = product('dist/read-models/history.projection.js');

const masterKeys = [Buffer.alloc(32, 1).toString('base64')];
const SESSION_LENGTH = 50;
/** As most read models are: plain events are not applied inside the database either. */
const byCode = { ...historyProjection, applyInside: undefined };

/**
 * Measures a log whose payloads are sealed in comparison with a plain one: appends, the rebuild of a read model, and
 * what clients see of it.
 */
export async function sealed(server, options) {
  return [
    ...(await appends(server, options)),
    ...(await rebuilds(server, options)),
    ...(await overHttp(server, options)),
  ];
}

async function overHttp(server, options) {
  const [ours, other] = [await server.database('sealed_http'), await server.database('sealed_http_not')];
  const start = (url, env) => () => startService(url, { env });
  return measurePairs(
    {
      ours: { start: start(ours, { COLLOQUY_MASTER_KEY: masterKeys[0] }), headers: () => [] },
      other: { start: start(other, {}), headers: () => [] },
    },
    options,
    { what: 'sealed', beside: 'plain', atLeast: 0.95 },
  );
}

async function appends(server, { full }) {
  const [ours, other] = [
    await EventLog.open(await server.database('sealed'), { masterKeys }),
    await EventLog.open(await server.database('sealed_not')),
  ];
  let streams = 0;
  const appending = (store) => {
    const sessions = new Map();
    return async (writer) => {
      if (!sessions.has(writer)) sessions.set(writer, new WrittenSession(store, `session-${(streams += 1)}`));
      await sessions.get(writer).append();
    };
  };
  /** Every append begins a session: each takes a key from the stock. */
  const beginning = (store) => async () => {
    await new WrittenSession(store, `session-${(streams += 1)}`).append();
  };
  const rows = [];
  for (const [what, writers, work, atLeast] of [
    ['appends', 1, appending, 0.9],
    ['appends', 32, appending, 0.9],
    ['appends', 256, appending, 0.9],
    // A key is made, wrapped and stored for each, once in the life of a session.
    ['beginnings of sessions', 32, beginning, 0.75],
  ]) {
    const seconds = full ? 5 : 2;
    const rates = await sideBySide(full ? 9 : 7, {
      sealed: () => rate(writers, seconds, work(ours)),
      plain: () => rate(writers, seconds, work(other)),
    });
    rows.push({
      name: `sealed ${what}, ${writers} writer${writers > 1 ? 's' : ''}`,
      ours: `${Math.round(median(rates.sealed))}/s`,
      other: `plain ${Math.round(median(rates.plain))}/s`,
      ratio: ratio(rates.sealed, rates.plain),
      atLeast,
      spread: Math.max(spread(rates.sealed), spread(rates.plain)),
    });
  }
  await Promise.all([ours.close(), other.close()]);
  return rows;
}

async function rebuilds(server, { full }) {
  const sessions = full ? 10_000 : 1_200;
  const ours = await rebuilding(await server.database('sealed_rebuild'), sessions, { masterKeys });
  const other = await rebuilding(await server.database('sealed_rebuild_not'), sessions, {});
  const coded = await rebuilding(await server.database('sealed_rebuild_code'), sessions, {}, byCode);
  try {
    const rates = await sideBySide(full ? 5 : 9, {
      sealed: ours.rebuild,
      plain: other.rebuild,
      byCode: coded.rebuild,
    });
    return [
      ['plain', 'plain'],
      ['byCode', 'plain, by its code'],
    ].map(([name, what]) => ({
      name: `rebuild of history, ${sessions * SESSION_LENGTH} sealed events`,
      ours: `${Math.round(median(rates.sealed))}/s`,
      other: `${what} ${Math.round(median(rates[name]))}/s`,
      ratio: ratio(rates.sealed, rates[name]),
      atLeast: 0.6,
      spread: Math.max(spread(rates.sealed), spread(rates[name])),
    }));
  } finally {
    await ours.close();
    await other.close();
    await coded.close();
  }
}

/** A log with so many sessions, and a projector of the read model `history` that has caught up. */
async function rebuilding(url, sessions, options, projection = historyProjection) {
  const store = await EventLog.open(url, { upcast, ...options });
  await writeSessions(store, sessions, SESSION_LENGTH);
  const client = await connect(url, 'bench', { statementMs: 600_000 });
  await client.query('vacuum analyze event');
  await client.end();
  const { rebuild, close } = await projecting(store, url, projection);
  return {
    rebuild: async () => (sessions * SESSION_LENGTH) / (await rebuild()),
    close: async () => {
      await close();
      await store.close();
    },
  };
}
