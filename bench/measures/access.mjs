import { generateKeyPairSync } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { measurePairs } from '../support/pairs.mjs';
import { startService } from '../support/process.mjs';
import { product } from '../support/product.mjs';

const ISSUER = 'https://issuer.example';
const SCOPES = 'sessions:read:own sessions:write:own generate:own';

/**
 * Measures what it costs to know who calls: the service with tokens, scopes of owners, limits and a log line per request,
 * in comparison with the same service without any of it, on one database. Metrics are counted by both.
 */
export async function access(server, options) {
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
  const env = {
    LOG_LEVEL: 'info',
    COLLOQUY_CONFIG: settings,
    COLLOQUY_JWT_ISSUER: ISSUER,
    COLLOQUY_JWT_AUDIENCE: 'colloquy',
    COLLOQUY_JWT_PUBLIC_KEY: publicKey.export({ type: 'spki', format: 'pem' }),
  };
  try {
    return await measurePairs(
      {
        ours: { start: () => startService(url, { env }), headers: () => [`Authorization: Bearer ${token}`] },
        other: { start: () => startService(url, { env: { LOG_LEVEL: 'fatal' } }), headers: () => [] },
      },
      options,
      { what: 'with tokens, owners, limits and log', beside: 'without', atLeast: 0.93 },
    );
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
