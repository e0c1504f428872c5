import { randomBytes, randomUUID } from 'node:crypto';
import { WrittenSession, writeSessions } from '../support/messages.mjs';
import { product } from '../support/product.mjs';
import { median, quantile, rate, ratio, sideBySide, sleep, spread, timed } from '../support/stats.mjs';

const { createPool } = product('dist/database/connection.js');
const { EventLog } = product('dist/event-store/log.js');
const { MerkleStore } = product('dist/proof/merkle-store.js');
const { Notary } = product('dist/proof/notary.js');
const { NotaryKeys } = product('dist/proof/notary-keys.js');
const { Proofs } = product('dist/proof/proofs.js');
const { TreeEdge } = product('dist/proof/tiles.js');
const { TreeKeeper } = product('dist/proof/tree-keeper.js');

const masterKeys = [Buffer.alloc(32, 1).toString('base64')];
/** Appends a second while the lag is watched, and for how many seconds. */
const RATE = 3_000;
const SECONDS = { quick: 10, full: 60 };
/** Leaves of the tree whose proofs are measured. */
const LEAVES = 10_000_000;
const PROOFS = 200;

/** Measures what proves the log: how fast trees take it in, how far they are behind, what they cost, and how long a proof takes. */
export async function notary(server, options) {
  return [
    ...(await catchUp(server, options)),
    ...(await following(server, options)),
    ...(await proofs(server)),
  ];
}

async function parts(server, name, keys = masterKeys) {
  const url = await server.database(name);
  const log = await EventLog.open(url, { masterKeys: keys });
  const pool = createPool(url, 'bench', { max: 2 });
  const store = new MerkleStore(pool);
  const notaryKeys = new NotaryKeys(pool, log);
  const keeper = new TreeKeeper(log, store, notaryKeys);
  const close = async () => {
    await log.close();
    await pool.end();
  };
  return { log, pool, store, keeper, close };
}

async function catchUp(server, { full }) {
  const rows = [];
  for (const [kind, keys] of [
    ['sealed', masterKeys],
    ['plain', ['plain', ...masterKeys]],
  ]) {
    const { log, keeper, close } = await parts(server, `notary_${kind}`, keys);
    const events = full && kind === 'sealed' ? 10_000_000 : 60_000;
    await writeSessions(log, events / 50, 50);
    const ends = await log.lanes.ends();
    const tenth = ends.map((end) => Math.ceil(end / 10));
    let seconds = (await timed(() => keeper.cover(tenth))) / 1_000;
    const before = process.memoryUsage().rss;
    let most = before;
    let isOver = false;
    const watching = (async () => {
      for (; !isOver; await sleep(100)) most = Math.max(most, process.memoryUsage().rss);
    })();
    seconds += (await timed(() => keeper.cover(ends))) / 1_000;
    isOver = true;
    await watching;
    rows.push({
      name: `catch-up of the notary, ${events} ${kind} events`,
      ours: `${Math.round(events / seconds)} events/s`,
      other: `memory at a tenth ${(before / 1e6).toFixed(0)} MB, then at most ${(most / 1e6).toFixed(0)} MB`,
      target: '≥ 20 000/s',
      pass: events / seconds >= 20_000,
    });
    await close();
  }
  return rows;
}

async function following(server, { full }) {
  const withNotary = await parts(server, 'notary_following');
  const without = await parts(server, 'notary_not');
  const leases = withNotary.log.leases(randomUUID());
  const errors = [];
  const running = new Notary({
    ...withNotary,
    leases,
    onSigned: () => undefined,
    onError: (error) => errors.push(error),
  });
  await running.start();
  const rows = [];

  // At a rate.
  const writers = Array.from({ length: 300 }, (_, n) => new WrittenSession(withNotary.log, `paced-${n}`));
  const seconds = full ? SECONDS.full : SECONDS.quick;
  const lags = [];
  const started = performance.now();
  let sent = 0;
  let isOver = false;
  const watching = (async () => {
    while (!isOver) {
      const heads = new Map(
        (await withNotary.store.heads(Array.from({ length: 16 }, (_, lane) => lane))).map(
          ({ lane, size }) => [lane, size],
        ),
      );
      lags.push(await withNotary.log.lanes.lagSeconds(heads));
      await sleep(50);
    }
  })();
  const busy = new Set();
  while (performance.now() - started < seconds * 1_000) {
    const due = Math.floor(((performance.now() - started) / 1_000) * RATE);
    for (; sent < due; sent += 1) {
      const writer = writers[sent % writers.length];
      const append = writer.append().finally(() => busy.delete(append));
      busy.add(append);
    }
    await sleep(1);
  }
  await Promise.all(busy);
  const paced = sent / ((performance.now() - started) / 1_000);
  isOver = true;
  await watching;
  rows.push({
    name: `lag of the notary at ${Math.round(paced)} appends/s, sealed: most, p99`,
    ours: `${Math.max(...lags).toFixed(2)} s, ${quantile(lags, 0.99).toFixed(2)} s`,
    target: '≤ 2 s',
    pass: Math.max(...lags) <= 2,
  });

  // What appends as fast as they can have to pay for it.
  let streams = 0;
  const appending = (store) => {
    const sessions = new Map();
    return async (writer) => {
      if (!sessions.has(writer)) sessions.set(writer, new WrittenSession(store, `session-${(streams += 1)}`));
      await sessions.get(writer).append();
    };
  };
  for (const writersAtOnce of [1, 32, 256]) {
    const rates = await sideBySide(full ? 9 : 7, {
      ours: () => rate(writersAtOnce, 2, appending(withNotary.log)),
      other: () => rate(writersAtOnce, 2, appending(without.log)),
    });
    rows.push({
      name: `appends beside the notary, ${writersAtOnce} writers, sealed`,
      ours: `${Math.round(median(rates.ours))}/s`,
      other: `without it ${Math.round(median(rates.other))}/s`,
      ratio: ratio(rates.ours, rates.other),
      spread: Math.max(spread(rates.ours), spread(rates.other)),
    });
  }
  await running.stop();
  await leases.close();
  if (errors.length > 0) throw errors[0];
  await withNotary.close();
  await without.close();
  return rows;
}

/** Proofs of a tree of ten million leaves. The leaves are random: nothing of the events is read for a proof. */
async function proofs(server) {
  const { store, pool, close } = await parts(server, 'notary_proofs');
  const [head] = await store.heads([0]);
  const edge = new TreeEdge();
  let from = head;
  const STEP = 100_000;
  const growing = await timed(async () => {
    while (edge.size < LEAVES) {
      const bytes = randomBytes(32 * STEP);
      for (let at = 0; at < STEP; at += 1) edge.append(bytes.subarray(32 * at, 32 * (at + 1)));
      const to = { lane: 0, size: edge.size, root: edge.root() };
      await store.take([{ from, to, tiles: edge.takeChanged(), note: undefined }]);
      from = to;
    }
  });
  // In a service the tree grew over months. Here the disk would still be busy with it.
  await pool.query('vacuum analyze merkle_tile');
  await pool.query('checkpoint');
  const times = [];
  for (let n = 0; n < PROOFS; n += 1) {
    // Of a process that has no tile in memory.
    const fresh = new Proofs(store);
    const position = 1 + Math.floor(((n + 0.5) / PROOFS) * LEAVES);
    times.push(await timed(() => fresh.inclusion(0, [position], LEAVES)));
  }
  const memory = process.memoryUsage().rss / 1e6;
  await close();
  return [
    {
      name: `a proof of inclusion in ${LEAVES} events: median, p99`,
      ours: `${median(times).toFixed(1)} ms, ${quantile(times, 0.99).toFixed(1)} ms`,
      other: `the tree grew in ${(growing / 1_000).toFixed(0)} s, process ${memory.toFixed(0)} MB`,
      target: '≤ 10 ms',
      pass: quantile(times, 0.99) <= 10,
    },
  ];
}
