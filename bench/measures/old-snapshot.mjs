import { connect } from '../support/database.mjs';
import { WrittenSession } from '../support/messages.mjs';
import { product } from '../support/product.mjs';
import { median, rate, ratio, sideBySide, spread } from '../support/stats.mjs';

const { EventLog } = product('dist/event-store/log.js');

const SESSIONS = 5_000;
const WRITERS = 64;

/**
 * Measures appends to many sessions while another transaction holds an old snapshot, as a backup does. The comparison
 * is a second database, because a snapshot keeps old row versions alive in its own database only.
 */
export async function oldSnapshot(server, { full }) {
  const held = await open(server, 'snapshot_held');
  const free = await open(server, 'snapshot_free');
  const turns = { held: () => rate(WRITERS, 1, held.append), free: () => rate(WRITERS, 1, free.append) };
  await sideBySide(2, turns);

  const backup = await connect(held.url, 'bench', { settings: { idle_in_transaction_session_timeout: '0' } });
  await backup.query('begin isolation level repeatable read');
  await backup.query('select from event limit 1');
  const since = performance.now();
  const age = full ? 60 : 10;
  while (performance.now() - since < age * 1_000) await sideBySide(0, turns);
  const rates = await sideBySide(full ? 15 : 7, turns);
  const seconds = (performance.now() - since) / 1_000;
  await backup.query('commit');
  await backup.end();
  await held.store.close();
  await free.store.close();
  return [
    {
      name: `${WRITERS} writers beside a snapshot of ${age} to ${seconds.toFixed(0)} s`,
      ours: `${Math.round(median(rates.held))}/s`,
      other: `without it ${Math.round(median(rates.free))}/s`,
      ratio: ratio(rates.held, rates.free),
      atLeast: 0.5,
      spread: Math.max(spread(rates.held), spread(rates.free)),
    },
  ];
}

async function open(server, name) {
  const url = await server.database(name);
  const store = await EventLog.open(url);
  const sessions = Array.from({ length: SESSIONS }, (_, n) => new WrittenSession(store, `session-${n}`));
  let turn = 0;
  // Sessions are used in turn. There are far more sessions than writers, so no two writers use one session at the same
  // time.
  const append = () => sessions[(turn += 1) % SESSIONS].append();
  return { url, store, append };
}
