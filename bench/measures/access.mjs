import { generateKeyPairSync } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Connection, request } from '../support/http.mjs';
import { CONTENT } from '../support/messages.mjs';
import { startService } from '../support/process.mjs';
import { product } from '../support/product.mjs';
import { median, rate, ratio, sideBySide, spread } from '../support/stats.mjs';

const CONNECTIONS = 64;
const SESSIONS = 200;
/** Two processes of the same code differ by a tenth, for as long as they live: so several of each are measured. */
const PAIRS = 4;
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
  const { SignJWT } = product('jose');
  const token = await new SignJWT({ tenant: 'default', scope: SCOPES })
    .setProtectedHeader({ alg: 'RS256' })
    .setIssuer(ISSUER)
    .setAudience('colloquy')
    .setSubject('alice')
    .setExpirationTime('1h')
    .sign(privateKey);
  const headers = { guarded: [`Authorization: Bearer ${token}`], open: [] };
  const env = {
    guarded: {
      LOG_LEVEL: 'info',
      COLLOQUY_CONFIG: settings,
      COLLOQUY_JWT_ISSUER: ISSUER,
      COLLOQUY_JWT_AUDIENCE: 'colloquy',
      COLLOQUY_JWT_PUBLIC_KEY: publicKey.export({ type: 'spki', format: 'pem' }),
    },
    open: { LOG_LEVEL: 'fatal' },
  };
  const measured = Object.fromEntries(Object.keys(REQUESTS).map((name) => [name, { guarded: [], open: [] }]));
  try {
    for (let pair = 0; pair < PAIRS; pair += 1) {
      const services = {
        guarded: await startService(url, { env: env.guarded }),
        open: await startService(url, { env: env.open }),
      };
      try {
        await measurePair(pair, services, headers, measured, full);
      } finally {
        await Promise.all(Object.values(services).map((service) => service.stop()));
      }
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
  return Object.entries(measured).map(([name, { guarded, open }]) => ({
    name: `${name}, with tokens, owners, limits and log, ${CONNECTIONS} connections`,
    ours: `${Math.round(median(guarded))}/s`,
    other: `without ${Math.round(median(open))}/s`,
    ratio: ratio(guarded, open),
    atLeast: 0.93,
    spread: Math.max(spread(guarded), spread(open)),
  }));
}

async function measurePair(pair, services, headers, measured, full) {
  const sides = {};
  for (const [side, { url }] of Object.entries(services)) {
    const connections = await Promise.all(Array.from({ length: CONNECTIONS }, () => Connection.open(url)));
    // Each service has sessions of its own, so that no two processes write to one.
    const ids = Array.from({ length: SESSIONS }, (_, n) => `${side}-${pair}-${n}`);
    for (const id of ids) {
      await connections[0].send(request('POST', '/v1/sessions', { id }, headers[side]));
    }
    sides[side] = { connections, ids };
  }
  for (const [name, make] of Object.entries(REQUESTS)) {
    const against = (side) => {
      const { connections, ids } = sides[side];
      const all = ids.map((id) => make(id, headers[side]));
      let next = 0;
      return () =>
        rate(CONNECTIONS, full ? 6 : 2, async (worker) => {
          const { status, body } = await connections[worker].send(all[(next += 1) % SESSIONS]);
          if (status >= 300) throw new Error(`${name}: ${status} ${body}`);
        });
    };
    const rates = await sideBySide(full ? 7 : 5, { guarded: against('guarded'), open: against('open') });
    for (const side of ['guarded', 'open']) measured[name][side].push(...rates[side]);
  }
  for (const { connections } of Object.values(sides))
    for (const connection of connections) connection.close();
}

const REQUESTS = {
  'durable append': (id, headers) =>
    request('POST', `/v1/sessions/${id}/messages`, { role: 'user', content: CONTENT }, headers),
  'GET one session': (id, headers) => request('GET', `/v1/sessions/${id}`, undefined, headers),
  'GET the last 50 messages': (id, headers) =>
    request('GET', `/v1/sessions/${id}/messages?order=desc&limit=50`, undefined, headers),
};
