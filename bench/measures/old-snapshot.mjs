import { connect } from '../support/database.mjs';
import { WrittenSession } from '../support/messages.mjs';
import { product } from '../support/product.mjs';
import { rate, sleep } from '../support/stats.mjs';

const { EventStore } = product('dist/event-store/event-store.js');

const SESSIONS = 5_000;
const WRITERS = 64;

/** Appends over many sessions while somebody else holds an old snapshot, as a backup does. */
export async function oldSnapshot(server, { full }) {
  const url = await server.database('snapshot');
  const store = await EventStore.open(url);
  const sessions = Array.from({ length: SESSIONS }, (_, n) => new WrittenSession(store, `session-${n}`));
  let turn = 0;
  // In turn, so that no two writers meet in one session: there are far more of these than writers.
  const append = () => sessions[(turn += 1) % SESSIONS].append();
  const age = full ? 60 : 10;
  const seconds = full ? 10 : 5;

  await rate(WRITERS, 3, append);
  const before = await rate(WRITERS, seconds, append);
  const backup = await connect(url, 'bench', { options: '-c idle_in_transaction_session_timeout=0' });
  await backup.query('begin isolation level repeatable read');
  await backup.query('select 1');
  await rate(WRITERS, age, append);
  const during = await rate(WRITERS, seconds, append);
  await backup.query('commit');
  await backup.end();
  await sleep(1_000);
  const after = await rate(WRITERS, seconds, append);
  await store.close();
  return [
    {
      name: `${WRITERS} writers beside a snapshot of ${age} s`,
      ours: `${Math.round(during)}/s`,
      other: `without it ${Math.round(before)}/s before, ${Math.round(after)}/s after`,
      ratio: during / Math.max(before, after),
      atLeast: 0.5,
    },
  ];
}
