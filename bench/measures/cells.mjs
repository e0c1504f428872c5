import { measurePairs } from '../support/pairs.mjs';
import { cpuSeconds, memoryOf, startService } from '../support/process.mjs';
import { sleep } from '../support/stats.mjs';

/** As many tenants as sessions, so that each cell has about its part. */
const tenantOf = (side) => (n) => [`Colloquy-Tenant: ${side}-${n}`];
const IDLE = [1, 6, 11];
const IDLE_SECONDS = 10;

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
  for (const count of IDLE) {
    const service = await withCells(count);
    try {
      await sleep(5_000);
      const before = cpuSeconds(service.pid);
      await sleep(IDLE_SECONDS * 1_000);
      const share = (cpuSeconds(service.pid) - before) / IDLE_SECONDS;
      idle.push({ count, share, bytes: memoryOf(service.pid) });
    } finally {
      await service.stop();
    }
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
