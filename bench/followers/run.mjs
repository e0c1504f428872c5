/**
 * How far a reader on another node is behind one on the node that runs a generation: replies of a model that is paced at
 * 50 tokens/s, read on both nodes at once, by way of the database and by way of Redis. `redis-server` must be installed.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createServer } from 'node:net';
import { TextDecoder } from 'node:util';
import { startServer } from '../support/database.mjs';
import { startPacedModel, startService } from '../support/process.mjs';
import { quantile } from '../support/stats.mjs';

const REPLIES = 6;
const TOKENS = 100;

const port = await freePort();
const redis = spawn('redis-server', ['--port', String(port), '--bind', '127.0.0.1', '--save', ''], {
  stdio: 'ignore',
});
process.once('exit', () => redis.kill('SIGKILL'));
const server = await startServer();
const model = await startPacedModel();
try {
  for (const [way, more] of [
    ['database', {}],
    ['redis', { REDIS_URL: `redis://127.0.0.1:${port}` }],
  ]) {
    const behind = await measure(`by_${way}`, {
      OPENAI_BASE_URL: model.url,
      OPENAI_API_KEY: 'none',
      ...more,
    });
    const [p50, p95, p99] = [0.5, 0.95, 0.99].map((q) => quantile(behind, q).toFixed(1));
    console.log(`by way of ${way}: ${p50} ms behind, p95 ${p95} ms, p99 ${p99} ms (${behind.length} tokens)`);
  }
} finally {
  await model.stop();
  await server.stop();
  redis.kill();
}

/** @returns milliseconds by which the other node shows each piece of text later */
async function measure(name, env) {
  const url = await server.database(name);
  const [runs, follows] = await Promise.all([startService(url, { env }), startService(url, { env })]);
  const behind = [];
  for (let n = 0; n < REPLIES; n += 1) {
    const path = `/v1/sessions/reply-${n}`;
    await post(`${runs.url}/v1/sessions`, { id: `reply-${n}` });
    const own = lengths(await post(`${runs.url}${path}/generate`, { message: `Say ${TOKENS} tokens.` }));
    const { generationId } = await own.started;
    const other = lengths(await fetch(`${follows.url}${path}/generations/${generationId}/stream`));
    const [shown, seen] = await Promise.all([own.all, other.all]);
    // By the first reply everything connects and is compiled.
    if (n === 0) continue;
    for (const { at, length } of shown) {
      const same = seen.find((one) => one.length >= length);
      if (same) behind.push(same.at - at);
    }
  }
  await Promise.all([runs.stop(), follows.stop()]);
  return behind;
}

/** How long the text of a streamed reply was when: the id of each event begins with the length. */
function lengths(response) {
  let started;
  const first = new Promise((resolve) => (started = resolve));
  const all = (async () => {
    const found = [];
    const decoder = new TextDecoder();
    let text = '';
    for await (const bytes of response.body) {
      const at = performance.now();
      const piece = decoder.decode(bytes, { stream: true });
      text += piece;
      const data = /^data: (\{.*generationId.*\})$/m.exec(text)?.[1];
      if (data) started(JSON.parse(data));
      for (const [, length] of piece.matchAll(/^id: (\d+)-/gm)) found.push({ at, length: Number(length) });
    }
    return found;
  })();
  return { started: first, all };
}

function post(url, body) {
  return fetch(url, {
    method: 'POST',
    headers: { 'content-type': 'application/json', accept: 'text/event-stream, application/json' },
    body: JSON.stringify(body),
  });
}

async function freePort() {
  const probe = createServer().listen(0, '127.0.0.1');
  await once(probe, 'listening');
  const { port: free } = probe.address();
  probe.close();
  return free;
}
