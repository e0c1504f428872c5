import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, mkdtempSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { Client } from 'pg';
import { prepare, root } from '../scripts/prepare.mjs';

// Starts everything that token-usage.mjs needs, shows what the example does, and removes everything again.

prepare();
const { startEmbeddedPostgres } = createRequire(import.meta.url)(
  '../dist/embedded-postgres/embedded-postgres.js',
);
const folder = mkdtempSync(join(tmpdir(), 'colloquy-example-'));
// PostgreSQL refuses to run as root. When root starts this program, PostgreSQL runs as another user, who must be able
// to enter the folder.
chmodSync(folder, 0o755);
const cleanups = [() => rmSync(folder, { recursive: true, force: true })];

/** Starts a program and resolves with what `pattern` finds in its output. */
async function start(script, env, pattern) {
  const child = spawn(process.execPath, [join(root, script)], {
    env: { ...process.env, ...env },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  cleanups.push(async () => {
    if (child.exitCode !== null) return;
    child.kill('SIGTERM');
    await once(child, 'exit');
  });
  for await (const line of createInterface(child.stdout)) {
    const found = pattern.exec(line)?.[1];
    if (found !== undefined) {
      child.stdout.resume();
      return found;
    }
  }
  throw new Error(`${script} ended`);
}

try {
  console.log('Starting Kafka, PostgreSQL and the service …');
  const postgres = await startEmbeddedPostgres({ dataDir: folder });
  cleanups.push(() => postgres.stop());
  const KAFKA_BROKERS = await start('scripts/kafka.mjs', {}, /^KAFKA_BROKERS=(.*)$/);
  const shared = { KAFKA_BROKERS, DATABASE_URL: postgres.url };
  const url = await start(
    'dist/main.js',
    { ...shared, PORT: '0', HOST: '127.0.0.1' },
    /listening on (http:\S+)/,
  );
  await start('examples/token-usage.mjs', { ...shared, COLLOQUY_URL: url }, /^(Counting)/);

  const messages = ['Hello', 'How many tokens was that?', 'And this?'];
  for (const tenant of ['acme', 'globex']) {
    for (const message of messages) {
      const response = await fetch(`${url}/v1/chat`, {
        method: 'POST',
        headers: { 'content-type': 'application/json', 'colloquy-tenant': tenant },
        body: JSON.stringify({ message, sessionId: 'first' }),
      });
      if (!response.ok) throw new Error(`the chat failed: ${await response.text()}`);
    }
  }
  console.log(`${messages.length} chats each of two tenants at ${url}; what the consumer made of them:`);

  const client = new Client({ connectionString: postgres.url });
  await client.connect();
  cleanups.push(() => client.end());
  // The consumer needs a first rebalance of its group before it gets any event.
  const deadline = Date.now() + 30_000;
  let before = '';
  for (;;) {
    const { rows } = await client.query(
      `select day::text, tenant, model, input_tokens::int, output_tokens::int from token_usage order by 1, 2, 3`,
    );
    const now = JSON.stringify(rows);
    if (rows.length === 2 && now === before) {
      console.table(rows);
      break;
    }
    if (Date.now() > deadline) throw new Error('the table is still empty');
    before = now;
    await sleep(1_000);
  }
} finally {
  for (const step of cleanups.reverse()) await step();
}
