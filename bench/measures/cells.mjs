import { measurePairs } from '../support/pairs.mjs';
import { cpuSeconds, memoryOf, startService } from '../support/process.mjs';
import { median, sleep } from '../support/stats.mjs';

/** As many tenants as sessions, so that each cell has about its part. */
const tenantOf = (side) => (n) => [`Colloquy-Tenant: ${side}-${n}`];
const IDLE = [1, 11];
const SETTLED_SECONDS = 20;
const IDLE_ROUNDS = 9;
const IDLE_SECONDS = 5;

/**
 * Measures what cells cost: three of them, on one server, in comparison with one; and what one more costs that is idle.
 */
export async function cells(server, options) {
  const urls = [];
  for (let n = 0; n < IDLE.at(-1); n += 1) urls.push(await server.database(`cell_${n}`));
  const withCells = (count) =>
    startService(urls[0], {
      env: {
        DATABASE_CELLS: urls
          .slice(1, count)
          .map((url, n) => `cell-${n + 1}=${url}`)
          .join(' '),
      },
    });
  const rows = await measurePairs(
    {
      ours: { start: () => withCells(3), headers: tenantOf('three') },
      other: { start: () => withCells(1), headers: tenantOf('one') },
    },
    options,
    { what: 'three cells', beside: 'one', atLeast: 0.95 },
  );
  const idle = [];
  try {
    for (const count of IDLE) idle.push({ count, service: await withCells(count), shares: [] });
    await sleep(SETTLED_SECONDS * 1_000);
    // The same moments for all, and several of them: what a process happens to collect is more than what is looked for.
    for (let round = 0; round < IDLE_ROUNDS; round += 1) {
      const before = idle.map(({ service }) => cpuSeconds(service.pid));
      await sleep(IDLE_SECONDS * 1_000);
      for (const [n, { service, shares }] of idle.entries())
        shares.push((cpuSeconds(service.pid) - before[n]) / IDLE_SECONDS);
    }
    for (const one of idle)
      Object.assign(one, { share: median(one.shares), bytes: memoryOf(one.service.pid) });
  } finally {
    await Promise.all(idle.map(({ service }) => service.stop()));
  }
  const [first, last] = [idle[0], idle.at(-1)];
  const each = (of) => (of(last) - of(first)) / (last.count - first.count);
  return [
    ...rows,
    {
      name: `one cell more, idle (of ${last.count})`,
      ours: `${(each(({ bytes }) => bytes) / 1e6).toFixed(1)} MB, ${(each(({ share }) => share) * 100).toFixed(2)} %`,
      other: `one alone ${(first.bytes / 1e6).toFixed(0)} MB, ${(first.share * 100).toFixed(2)} %`,
    },
  ];
}
