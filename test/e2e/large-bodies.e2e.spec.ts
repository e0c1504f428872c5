import { readFileSync } from 'node:fs';
import { Agent, request } from 'node:http';
import { createTestDatabase } from '../support/database.js';
import { apiOf } from '../support/http.js';
import { startService } from '../support/process.js';
import { heavy } from '../support/heavy.js';

const BODIES = process.env['FULL'] === '1' ? 4_000 : 2_000;
const MIB = 1024 * 1024;

/** The peak memory of a process so far, in bytes. */
const peakMemory = (pid: number): number =>
  Number(/VmHWM:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]) * 1024;

heavy(
  'given a flood of large bodies for one session, when they arrive at once, then those beyond the limit are refused as overloaded, memory stays bounded, and another tenant is served',
  async () => {
    const db = await createTestDatabase();
    const service = await startService({ env: { DATABASE_URL: db.url, LOG_LEVEL: 'error' } });
    const agent = new Agent({ keepAlive: true, maxSockets: BODIES });
    try {
      const api = apiOf(service.url);
      await api.post('/v1/sessions', { id: 'flood' }, { 'colloquy-tenant': 'flood' });
      await api.post('/v1/sessions', { id: 'other' }, { 'colloquy-tenant': 'other' });
      const body = Buffer.from(JSON.stringify({ role: 'user', content: 'x'.repeat(MIB - 100) }));
      const before = peakMemory(service.pid);
      const headers = {
        'content-type': 'application/json',
        'content-length': String(body.length),
        'colloquy-tenant': 'flood',
      };
      /** Sends all but the end of a body, and the end when `rest` resolves, unless the request was refused before. */
      const send = async (chunked: boolean, rest: Promise<void>, sent: () => void): Promise<number> => {
        const { 'content-length': _length, ...others } = headers;
        const sending = request(`${service.url}/v1/sessions/flood/messages`, {
          agent,
          method: 'POST',
          headers: chunked ? others : headers,
        });
        const answered = new Promise<number>((resolve, reject) => {
          sending.on('error', reject).on('response', (response) => {
            response.resume().on('end', () => {
              resolve(response.statusCode ?? 0);
            });
          });
        });
        const end = body.length - 10;
        sending.write(body.subarray(0, end), sent);
        await Promise.race([rest, answered]);
        sending.end(body.subarray(end));
        return answered;
      };

      let waiting = BODIES;
      let allSent = (): void => undefined;
      const rest = new Promise<void>((resolve) => (allSent = resolve));
      const sent = (): void => {
        waiting -= 1;
        if (waiting === 0) allSent();
      };
      const flood = Promise.all(
        Array.from({ length: BODIES }, (_, index) => send(index % 4 === 0, rest, sent)),
      );
      const others: number[] = [];
      for (let index = 0; index < 10; index += 1) {
        const message = { role: 'user', content: `${index}` };
        const answer = await api.post('/v1/sessions/other/messages', message, { 'colloquy-tenant': 'other' });
        others.push(answer.status);
      }
      const statuses = await flood;

      const counts = new Map<number, number>();
      for (const status of statuses) counts.set(status, (counts.get(status) ?? 0) + 1);
      expect([...counts.keys()].sort()).toEqual([201, 503]);
      expect(others).toEqual(Array.from({ length: 10 }, () => 201));
      // All bodies together are larger than this limit, and the service needs several times the size of each.
      expect(peakMemory(service.pid) - before).toBeLessThan(600 * MIB);
      // The service then works as before.
      const more = { role: 'user', content: 'more' };
      expect(
        (await api.post('/v1/sessions/flood/messages', more, { 'colloquy-tenant': 'flood' })).status,
      ).toBe(201);
    } finally {
      agent.destroy();
      await service.stop();
      await db.drop();
    }
  },
  120_000,
);
