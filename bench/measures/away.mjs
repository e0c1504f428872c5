import { readdirSync, readFileSync } from 'node:fs';
import { Connection, request } from '../support/http.mjs';
import { CONTENT } from '../support/messages.mjs';
import { startServer } from '../support/database.mjs';
import { startService } from '../support/process.mjs';
import { product } from '../support/product.mjs';
import { median, quantile, rate, sleep } from '../support/stats.mjs';

const { connect } = product('dist/database/connection.js');

const CONNECTIONS = 32;
/** Of the tenants of the cell that goes away. They wait as long as a refusal tells them to. */
const THEIRS = 8;
const SECONDS = 4;
const ROUNDS = 3;

/** The processes of a PostgreSQL server. */
const processesOf = (pid) => [
  pid,
  ...readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((one) => {
      try {
        return Number(readFileSync(`/proc/${one}/stat`, 'utf8').split(') ').at(-1).split(' ')[1]) === pid;
      } catch {
        return false;
      }
    }),
];

/** So much memory becomes the disk that gets full. */
const DISK_MB = 400;

/**
 * Three cells on three servers, of which one freezes, and then has a full disk: what the tenants of the others feel of it,
 * and what its own are told.
 */
export async function away(server) {
  // Only root can make a disk.
  const isRoot = process.getuid?.() === 0;
  const [second, third] = [await startServer(), await startServer({ diskMb: isRoot && DISK_MB })];
  const urls = await Promise.all([server, second, third].map((one, n) => one.database(`away_${n}`)));
  const service = await startService(urls[0], {
    env: { DATABASE_CELLS: `two=${urls[1]} three=${urls[2]}`, LOG_LEVEL: 'fatal' },
  });
  const signal = (name) => {
    for (const pid of processesOf(third.pid)) process.kill(pid, name);
  };
  try {
    const homes = { default: [], two: [], three: [] };
    const setup = await Connection.open(service.url);
    for (let n = 0; n < 60; n += 1) {
      const tenant = `t-${n}`;
      await setup.send(request('POST', '/v1/sessions', { id: 's' }, [`Colloquy-Tenant: ${tenant}`]));
    }
    for (const [cell, url] of Object.entries({ default: urls[0], two: urls[1], three: urls[2] }))
      homes[cell] = await tenantsOf(url);
    const others = [...homes.default, ...homes.two];
    const append = (tenant) =>
      request('POST', '/v1/sessions/s/messages', { messages: [{ role: 'user', content: CONTENT }] }, [
        `Colloquy-Tenant: ${tenant}`,
      ]);
    const workers = await Promise.all(
      Array.from({ length: CONNECTIONS }, () => Connection.open(service.url)),
    );
    let refusals = [];
    let isOver = false;
    const theirs = Array.from({ length: THEIRS }, async (_, n) => {
      const connection = await Connection.open(service.url);
      while (!isOver) {
        const began = performance.now();
        const { status } = await connection.send(append(homes.three[n % homes.three.length]));
        if (status === 503) {
          refusals.push(performance.now() - began);
          await sleep(1_000);
        }
      }
      connection.close();
    });
    const measured = () =>
      rate(CONNECTIONS, SECONDS, async (worker) => {
        const { status, body } = await workers[worker].send(append(others[worker % others.length]));
        if (status >= 300) throw new Error(`${status} ${body}`);
      });
    await measured();
    const rows = [];
    const faults = {
      freezes: { begin: () => signal('SIGSTOP'), end: () => signal('SIGCONT') },
      ...(third.disk && { 'has a full disk': { begin: third.disk.fill, end: third.disk.free } }),
    };
    for (const [what, { begin, end }] of Object.entries(faults)) {
      const ratios = [];
      const back = [];
      refusals = [];
      for (let round = 0; round < ROUNDS; round += 1) {
        const before = await measured();
        begin();
        const during = await measured().finally(end);
        ratios.push(during / before);
        const began = performance.now();
        const probe = append(homes.three[0]);
        while ((await setup.send(probe)).status >= 300) await sleep(20);
        back.push(performance.now() - began);
        await sleep(1_000);
      }
      rows.push(
        {
          name: `one of three servers ${what}: appends of the tenants of the others`,
          ours: `${median(ratios).toFixed(2)} of before`,
          other: `${ROUNDS} times`,
          ratio: median(ratios),
          atLeast: 0.95,
        },
        {
          name: 'the same: its own tenants get 503 after (longest); are back after (longest)',
          ours: `${Math.round(Math.max(...refusals))} ms; ${Math.round(Math.max(...back))} ms`,
          other: `${refusals.length} refusals, median ${Math.round(quantile(refusals, 0.5))} ms`,
          target: '2 s',
          pass: refusals.length > 0 && Math.max(...refusals) <= 2_000,
        },
      );
    }
    isOver = true;
    await Promise.all(theirs);
    for (const connection of [setup, ...workers]) connection.close();
    return rows;
  } finally {
    signal('SIGCONT');
    await service.stop();
    await Promise.all([second.stop(), third.stop()]);
  }
}

async function tenantsOf(url) {
  const client = await connect(url, 'bench');
  const { rows } = await client.query('select distinct tenant from event');
  await client.end();
  return rows.map(({ tenant }) => tenant);
}
