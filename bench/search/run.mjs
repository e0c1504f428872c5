/**
 * How long a page of a search takes at 1 000 000 messages of one tenant, beside writes to the same read model. The
 * messages are put into the read model as the projector does it; there are no statistics of its table.
 */
import { startServer } from '../support/database.mjs';
import { product } from '../support/product.mjs';
import { openReadModel } from '../support/read-model.mjs';
import { quantile, timed } from '../support/stats.mjs';
import { present } from '../support/table.mjs';
import { Talk } from './talk.mjs';

const MESSAGES = Number(process.argv[2] ?? 1_000_000);
const BATCH = 500;
const CALLS = 60;
const TARGET_MS = 50;
const YEAR_MS = 365 * 86_400_000;
/** What is written meanwhile. */
const WRITES = { batch: 20, everyMs: 40 };

const { searchProjection, SEARCH } = product('dist/read-models/search.projection.js');
const { searchMessages } = product('dist/read-models/search.js');
const { termsOf } = product('dist/read-models/search-keys.js');

const talk = new Talk();
const start = Date.now() - YEAR_MS;
/** Twenty messages of a session, then those of the next one; one message in 100 000 contains a word of its own. */
const said = (n) => ({
  type: 'MessageAppended',
  tenant: 'default',
  streamId: `session-${Math.floor(n / 20)}`,
  incarnation: 1,
  version: (n % 20) + 2,
  time: new Date(start + Math.floor((n / MESSAGES) * YEAR_MS)).toISOString(),
  data: {
    messageId: `m${n}`,
    role: n % 2 === 0 ? 'user' : 'assistant',
    content: n % 100_000 === 77 ? `${talk.message()} rareword${n}` : talk.message(),
    status: 'complete',
  },
});

const server = await startServer();
try {
  const readModel = await openReadModel(server, searchProjection);
  const { database, models } = readModel;
  const write = (first, count) =>
    readModel.write(Array.from({ length: count }, (_, index) => said(first + index)));
  const filling = await timed(async () => {
    for (let first = 0; first < MESSAGES; first += BATCH) await write(first, BATCH);
  });
  const { rows: sizes } = await database.query(
    `select pg_table_size('${SEARCH}') / $1::float as "table", pg_relation_size('${SEARCH}_keys') / $1::float as keys`,
    [MESSAGES],
  );
  console.error(
    `${MESSAGES} messages of ${Math.round(talk.letters / MESSAGES)} letters in ${(filling / 1000).toFixed(0)} s; ` +
      `${Math.round(sizes[0].table)} bytes of the table and ${Math.round(sizes[0].keys)} of the index for each`,
  );

  let written = MESSAGES;
  let isWriting = true;
  const writing = (async () => {
    while (isWriting) {
      await write(written, WRITES.batch);
      written += WRITES.batch;
      await new Promise((resolve) => setTimeout(resolve, WRITES.everyMs));
    }
  })();
  const searches = {
    'a word that no message contains': (call) => ({ q: `nosuchword${call}` }),
    'a word of one message': (call) => ({ q: `rareword${(call % 10) * 100_000 + 77}` }),
    'one of the most frequent words': (call) => ({ q: talk.word(call % 10) }),
    'a word of every 200th message': (call) => ({ q: talk.word(300 + call) }),
    'a word of every 2 000th message': (call) => ({ q: talk.word(3_000 + call) }),
    'a word of every 20 000th message': (call) => ({ q: talk.word(20_000 + call) }),
    'three letters': (call) => ({
      q: talk
        .word(500 + call)
        .padEnd(3, 'a')
        .slice(0, 3),
    }),
    'two letters': (call) => ({ q: talk.word(call).padEnd(2, 'a').slice(0, 2) }),
    'two frequent words': (call) => ({ q: `${talk.word(50 + call)} ${talk.word(60 + call)}` }),
    'a frequent word and a rare one': (call) => ({ q: `${talk.word(call)} ${talk.word(15_000 + call)}` }),
    'a phrase': (call) => ({ q: `"${talk.word(100 + call)} ${talk.word(200 + call)}"` }),
    'a word, one role, the oldest tenth': (call) => ({
      q: talk.word(1_000 + call),
      role: 'user',
      to: new Date(start + YEAR_MS / 10).toISOString(),
    }),
  };
  const rows = [];
  for (const [name, search] of Object.entries(searches)) {
    const times = [];
    let hits = 0;
    for (let call = 0; call < CALLS; call += 1) {
      const { q, ...more } = search(call);
      const asked = { tenant: 'default', terms: termsOf(q), limit: 50, ...more };
      let found;
      const ms = await timed(async () => {
        found = await searchMessages(models, 'eventual', asked);
      });
      hits += found.hits.length;
      if (call >= 10) times.push(ms);
    }
    const p95 = quantile(times, 0.95);
    rows.push({
      name: `${name} (${(hits / CALLS).toFixed(1)} hits)`,
      ours: `p50 ${quantile(times, 0.5).toFixed(1)} ms, p95 ${p95.toFixed(1)} ms`,
      pass: p95 <= TARGET_MS,
      target: `p95 ≤ ${TARGET_MS} ms`,
    });
  }
  isWriting = false;
  await writing;
  console.log(present(rows));
  process.exitCode = rows.every(({ pass }) => pass) ? 0 : 1;
  await readModel.close();
} finally {
  await server.stop();
}
