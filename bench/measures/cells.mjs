import { startServer } from '../support/database.mjs';
import { measurePairs } from '../support/pairs.mjs';
import { cpuSeconds, memoryOf, startService } from '../support/process.mjs';
import { sleep } from '../support/stats.mjs';

/** As many tenants as sessions, so that each cell has about its part. */
const tenantOf = (side) => (n) => [`Colloquy-Tenant: ${side}-${n}`];
const IDLE = 100;
/** Until then their starts are over, and V8 has collected what they left. */
const SETTLED_SECONDS = 150;
/** Several of the periods in which an idle log is looked at, and one sweep. */
const IDLE_SECONDS = 60;
const MOST_SHARE = 0.02;
const MOST_BYTES = 300e6;

/**
 * Measures what cells cost: three of them, on one server, in comparison with one; and a hundred of them that are idle.
 */
export async function cells(server, options) {
  const urls = [];
  for (let n = 0; n < 3; n += 1) urls.push(await server.database(`cell_${n}`));
  const sides = {
    ours: { start: () => withCells(urls), headers: tenantOf('three') },
    other: { start: () => withCells(urls.slice(0, 1)), headers: tenantOf('one') },
  };
  const row = { what: 'three cells', beside: 'one' };
  return [
    // A third of the clients for each cell, which therefore makes smaller commits (ADR 44).
    ...(await measurePairs(sides, options, { ...row, atLeast: 0.85 })),
    // As many for each cell as for the one above, so that as many share a commit, and a query.
    ...(await measurePairs(sides, options, { ...row, atLeast: 0.95 }, { connections: 3 * 64 })),
    ...(await idle()),
  ];
}

const withCells = ([first, ...others]) =>
  startService(first, {
    env: { DATABASE_CELLS: others.map((url, n) => `cell-${n + 1}=${url}`).join(' ') },
  });

/** What a process costs that has a hundred cells in which nothing happens; beside one with a single database. */
async function idle() {
  const server = await startServer({ connections: 15 * IDLE });
  const running = [];
  try {
    const urls = [];
    for (let n = 0; n < IDLE; n += 1) urls.push(await server.database(`cell_${n}`));
    running.push(await withCells(urls), await withCells([await server.database('alone')]));
    await sleep(SETTLED_SECONDS * 1_000);
    const before = running.map(({ pid }) => cpuSeconds(pid));
    await sleep(IDLE_SECONDS * 1_000);
    const [all, alone] = running.map(({ pid }, n) => ({
      share: (cpuSeconds(pid) - before[n]) / IDLE_SECONDS,
      bytes: memoryOf(pid),
    }));
    const percent = (share) => `${(share * 100).toFixed(1)} %`;
    const megabytes = (bytes) => `${(bytes / 1e6).toFixed(0)} MB`;
    return [
      {
        name: `processor, ${IDLE} idle cells`,
        ours: percent(all.share),
        other: `one alone ${percent(alone.share)}`,
        target: `≤ ${percent(MOST_SHARE)}`,
        pass: all.share <= MOST_SHARE,
      },
      {
        name: `memory, ${IDLE} idle cells`,
        ours: megabytes(all.bytes),
        other: `one alone ${megabytes(alone.bytes)}`,
        target: `≤ ${megabytes(MOST_BYTES)}`,
        pass: all.bytes <= MOST_BYTES,
      },
    ];
  } finally {
    await Promise.all(running.map((service) => service.stop()));
    await server.stop();
  }
}
