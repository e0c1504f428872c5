import { ask, Connection } from '../support/http.mjs';
import { CONTENT } from '../support/messages.mjs';
import { cpuSeconds, startService } from '../support/process.mjs';
import { quantile, sleep, timed } from '../support/stats.mjs';

/**
 * Measures a service with nothing else to do: how long a strong read takes right after a write, and how much processor
 * time the idle service uses.
 */
export async function quietService(server, { full }) {
  const service = await startService(await server.database('quiet'));
  const connection = await Connection.open(service.url);
  try {
    const message = { role: 'user', content: CONTENT };
    await ask(connection, 'POST', '/v1/sessions', { id: 'quiet' });
    const writes = [];
    const reads = [];
    for (let turn = 0; turn < (full ? 1_000 : 300); turn += 1) {
      writes.push(await timed(() => ask(connection, 'POST', '/v1/sessions/quiet/messages', message)));
      reads.push(await timed(() => ask(connection, 'GET', '/v1/sessions/quiet')));
      await sleep(5);
    }
    const warm = (values) => values.slice(50);
    const show = (values) =>
      `p50 ${quantile(warm(values), 0.5).toFixed(1)} ms, p99 ${quantile(warm(values), 0.99).toFixed(1)} ms`;

    await sleep(2_000);
    const seconds = full ? 60 : 10;
    const before = cpuSeconds(service.pid);
    await sleep(seconds * 1000);
    const idle = ((cpuSeconds(service.pid) - before) / seconds) * 100;
    return [
      { name: 'a write over HTTP, quiet service', ours: show(writes) },
      { name: 'a strong read right after it', ours: show(reads) },
      Number.isFinite(idle)
        ? { name: `idle service, ${seconds} s`, ours: `${idle.toFixed(1)} % of a core`, pass: idle < 1.5 }
        : { name: 'idle service', ours: 'not known on this system' },
    ];
  } finally {
    connection.close();
    await service.stop();
  }
}
