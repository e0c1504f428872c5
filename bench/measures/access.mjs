import { generateKeyPairSync } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ask, Connection, request } from '../support/http.mjs';
import { CONTENT } from '../support/messages.mjs';
import { startService } from '../support/process.mjs';
import { product } from '../support/product.mjs';
import { median, rate, ratio, sideBySide, spread } from '../support/stats.mjs';

const CONNECTIONS = 64;
const SESSIONS = 200;
const ISSUER = 'https://issuer.example';
const SCOPES = 'sessions:read:own sessions:write:own generate:own';

/**
 * Measures what it costs to know who calls: the service with tokens, scopes of owners, limits and a log line per request,
 * in comparison with the same service without any of it, on one database. Metrics are counted by both.
 */
export async function access(server, { full }) {
  const url = await server.database('access');
  const folder = mkdtempSync(join(tmpdir(), 'colloquy-bench-'));
  const { privateKey, publicKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
  const settings = join(folder, 'colloquy.yml');
  writeFileSync(
    settings,
    'server: { limits: { tenant: { requestsPerSecond: 1000000, streams: 1000 }, key: { requestsPerSecond: 1000000 } } }',
  );
  const open = await startService(url, { env: { LOG_LEVEL: 'fatal' } });
  const guarded = await startService(url, {
    env: {
      LOG_LEVEL: 'info',
      COLLOQUY_CONFIG: settings,
      COLLOQUY_JWT_ISSUER: ISSUER,
      COLLOQUY_JWT_AUDIENCE: 'colloquy',
      COLLOQUY_JWT_PUBLIC_KEY: publicKey.export({ type: 'spki', format: 'pem' }),
    },
  });
  try {
    const { SignJWT } = product('jose');
    const token = await new SignJWT({ tenant: 'default', scope: SCOPES })
      .setProtectedHeader({ alg: 'RS256' })
      .setIssuer(ISSUER)
      .setAudience('colloquy')
      .setSubject('alice')
      .setExpirationTime('1h')
      .sign(privateKey);
    const authorization = [`Authorization: Bearer ${token}`];
    const [toOpen, toGuarded] = await Promise.all(
      [open.url, guarded.url].map((each) =>
        Promise.all(Array.from({ length: CONNECTIONS }, () => Connection.open(each))),
      ),
    );
    // Each service has sessions of its own, so that no two processes write to one.
    for (let n = 0; n < SESSIONS; n += 1) {
      await ask(toOpen[0], 'POST', '/v1/sessions', { id: `open-${n}` });
      await ask(toOpen[0], 'POST', '/v1/sessions', { id: `guarded-${n}`, owner: 'alice' });
    }
    const message = { role: 'user', content: CONTENT };
    const requests = {
      'durable append': (name) =>
        request(
          'POST',
          `/v1/sessions/${name}/messages`,
          message,
          name.startsWith('guarded') ? authorization : [],
        ),
      'GET one session': (name) =>
        request('GET', `/v1/sessions/${name}`, undefined, name.startsWith('guarded') ? authorization : []),
      'GET the last 50 messages': (name) =>
        request(
          'GET',
          `/v1/sessions/${name}/messages?order=desc&limit=50`,
          undefined,
          name.startsWith('guarded') ? authorization : [],
        ),
    };
    const rows = [];
    for (const [name, make] of Object.entries(requests)) {
      let next = 0;
      const against = (connections, prefix) => {
        const all = Array.from({ length: SESSIONS }, (_, n) => make(`${prefix}-${n}`));
        return () =>
          rate(CONNECTIONS, full ? 10 : 3, async (worker) => {
            const { status, body } = await connections[worker].send(all[(next += 1) % SESSIONS]);
            if (status >= 300) throw new Error(`${name}: ${status} ${body}`);
          });
      };
      const rates = await sideBySide(full ? 11 : 7, {
        guarded: against(toGuarded, 'guarded'),
        open: against(toOpen, 'open'),
      });
      rows.push({
        name: `${name}, with tokens, owners, limits and log, ${CONNECTIONS} connections`,
        ours: `${Math.round(median(rates.guarded))}/s`,
        other: `without ${Math.round(median(rates.open))}/s`,
        ratio: ratio(rates.guarded, rates.open),
        atLeast: 0.93,
        spread: Math.max(spread(rates.guarded), spread(rates.open)),
      });
    }
    for (const connection of [...toOpen, ...toGuarded]) connection.close();
    return rows;
  } finally {
    await open.stop();
    await guarded.stop();
    rmSync(folder, { recursive: true, force: true });
  }
}
