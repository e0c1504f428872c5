import { readFileSync } from 'node:fs';
import http from 'node:http';
import { connect } from 'node:net';
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';
import { startServer } from '../support/database.mjs';
import { startService } from '../support/process.mjs';
import { quantile, sleep } from '../support/stats.mjs';

/**
 * node bench/bodies/run.mjs — BODIES=5000 bodies of 1 MiB each that arrive together for one session, beside APPENDS=100
 * appends a second of another tenant on the same node: how many of these are acknowledged a second while the flood lasts,
 * as a ratio to those without the flood, and the most memory that the service has held.
 */
const BODIES = Number(process.env.BODIES ?? 5_000);
const APPENDS = Number(process.env.APPENDS ?? 100);
const SECONDS = Number(process.env.SECONDS_EACH ?? 10);
const ROUNDS = Number(process.env.ROUNDS ?? 3);
const MIB = 1024 * 1024;
/** Bytes of a body that a client writes at once. Whole bodies would fill the memory of the kernel, and stall all connections. */
const PIECE = 65_536;
const SESSIONS = 50;

/**
 * Opens all connections before the first body is sent. Each sends its body until it is answered, and leaves then. In a
 * thread of its own, so that the clock of the other tenant is not held up by it.
 */
async function flood({ url }) {
  const { hostname, port } = new URL(url);
  const body = Buffer.from(JSON.stringify({ role: 'user', content: 'x'.repeat(MIB - 100) }));
  const head = Buffer.from(
    [
      'POST /v1/sessions/flood/messages HTTP/1.1',
      'Host: localhost',
      'Colloquy-Tenant: flood',
      'Content-Type: application/json',
      `Content-Length: ${body.length}`,
      '',
      '',
    ].join('\r\n'),
  );
  const open = () =>
    new Promise((resolve, reject) => {
      const socket = connect({ host: hostname, port: Number(port) }, () => resolve(socket));
      socket.once('error', reject);
    });
  const sockets = [];
  // The queue of connections that wait to be accepted is shorter than their number.
  while (sockets.length < BODIES)
    sockets.push(
      ...(await Promise.all(Array.from({ length: Math.min(100, BODIES - sockets.length) }, open))),
    );
  parentPort.postMessage('open');
  await new Promise((resolve) => parentPort.once('message', resolve));
  const counts = {};
  await Promise.all(
    sockets.map(
      (socket) =>
        new Promise((resolve) => {
          const end = (outcome) => {
            counts[outcome] = (counts[outcome] ?? 0) + 1;
            socket.removeAllListeners().on('error', () => undefined);
            socket.destroy();
            resolve();
          };
          socket.once('data', (answer) => end(answer.latin1Slice(9, 12)));
          socket.once('error', (error) => end(error.code));
          socket.once('close', () => end('closed'));
          const send = (from) => {
            if (from < body.length && !socket.destroyed)
              socket.write(body.subarray(from, from + PIECE), () => send(from + PIECE));
          };
          socket.write(head);
          send(0);
        }),
    ),
  );
  parentPort.postMessage(counts);
}

async function startFlood(url) {
  const worker = new Worker(new URL(import.meta.url), { workerData: { url } });
  const next = () =>
    new Promise((resolve, reject) => {
      worker.once('message', resolve);
      worker.once('error', reject);
    });
  await next();
  return {
    run: async () => {
      const counts = next();
      worker.postMessage('go');
      return counts;
    },
    end: () => worker.terminate(),
  };
}

/** The most memory that a process has held since its start, in MiB. */
const peakMemory = (pid) =>
  Number(/VmHWM:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]) / 1024;

function append(agent, url, tenant, path, body) {
  return new Promise((resolve, reject) => {
    const headers = { 'colloquy-tenant': tenant, 'content-type': 'application/json' };
    const request = http.request(`${url}${path}`, { agent, method: 'POST', headers }, (response) => {
      response.resume();
      response.on('end', () => resolve(response.statusCode));
    });
    request.on('error', reject);
    request.end(JSON.stringify(body));
  });
}

/**
 * Appends at an even pace until `over` says so, whatever each takes. The rate is of those that are acknowledged by then: what
 * only the end of the flood lets through does not count.
 */
async function appends(agent, url, over) {
  const times = [];
  const pending = [];
  let refused = 0;
  const started = performance.now();
  for (let n = 0; !over(); n += 1) {
    const due = started + (n * 1000) / APPENDS;
    if (due > performance.now()) await sleep(due - performance.now());
    const asked = performance.now();
    const message = { role: 'user', content: 'a message' };
    pending.push(
      append(agent, url, 'other', `/v1/sessions/s${n % SESSIONS}/messages`, message).then((status) => {
        if (status === 201) times.push(performance.now() - asked);
        else refused += 1;
      }),
    );
  }
  const seconds = (performance.now() - started) / 1000;
  const rate = times.length / seconds;
  await Promise.all(pending);
  return {
    rate,
    p50: quantile(times, 0.5),
    p99: quantile(times, 0.99),
    refused,
    seconds,
  };
}

async function main() {
  const server = await startServer();
  const rates = { alone: [], beside: [] };
  try {
    for (let round = 0; round < ROUNDS; round += 1) {
      const agent = new http.Agent({ keepAlive: true, maxSockets: 64 });
      const service = await startService(await server.database(`bodies${round}`));
      try {
        const { url, pid } = service;
        await append(agent, url, 'flood', '/v1/sessions', { id: 'flood' });
        for (let n = 0; n < SESSIONS; n += 1)
          await append(agent, url, 'other', '/v1/sessions', { id: `s${n}` });
        const forSeconds = () => {
          const end = performance.now() + SECONDS * 1000;
          return () => performance.now() > end;
        };
        await appends(agent, url, forSeconds());
        const alone = await appends(agent, url, forSeconds());
        const before = peakMemory(pid);
        const flooding = await startFlood(url);
        let counts;
        void flooding.run().then((found) => (counts = found));
        const beside = await appends(agent, url, () => counts !== undefined);
        await flooding.end();
        rates.alone.push(alone.rate);
        rates.beside.push(beside.rate);
        const show = ({ rate, p50, p99 }) =>
          `${rate.toFixed(1)}/s, p50 ${p50.toFixed(1)} ms, p99 ${p99.toFixed(0)} ms`;
        console.log(
          `alone ${show(alone)}; beside ${BODIES} bodies of 1 MiB (${Object.entries(counts)
            .map(([status, count]) => `${count} × ${status}`)
            .join(', ')} in ${beside.seconds.toFixed(1)} s) ${show(beside)}, ${beside.refused} refused; ` +
            `most memory ${before.toFixed(0)} MiB before, ${peakMemory(pid).toFixed(0)} MiB after`,
        );
      } finally {
        agent.destroy();
        await service.stop();
      }
    }
    const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
    console.log(
      `the other tenant keeps ${(mean(rates.beside) / mean(rates.alone)).toFixed(2)} of its rate (wanted 0.8)`,
    );
  } finally {
    await server.stop();
  }
}

if (isMainThread) await main();
else await flood(workerData);
