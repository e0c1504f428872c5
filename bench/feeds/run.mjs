import http from 'node:http';
import { databaseSeconds, startServer } from '../support/database.mjs';
import { cpuSeconds, startService } from '../support/process.mjs';
import { quantile, sleep } from '../support/stats.mjs';

/**
 * node bench/feeds/run.mjs: measures FEEDS=1000 idle live feeds of one tenant on a node, while another tenant makes
 * APPENDS=200 appends a second on the same node. Rounds without and with the feeds alternate.
 */
const FEEDS = Number(process.env.FEEDS ?? 1_000);
const APPENDS = Number(process.env.APPENDS ?? 200);
const SECONDS = Number(process.env.SECONDS_EACH ?? 15);
const agent = new http.Agent({ keepAlive: true, maxSockets: 64 });

function ask(url, method, path, tenant, body) {
  return new Promise((resolve, reject) => {
    const text = body === undefined ? undefined : JSON.stringify(body);
    const headers = { 'colloquy-tenant': tenant, ...(text && { 'content-type': 'application/json' }) };
    const request = http.request(`${url}${path}`, { agent, method, headers }, (response) => {
      response.resume();
      response.on('end', () => {
        if (response.statusCode < 300) resolve();
        else reject(new Error(`${method} ${path}: ${response.statusCode}`));
      });
    });
    request.on('error', reject);
    request.end(text);
  });
}

/** Opens a live feed that gets no events. `end` closes it. */
function openFeed(url, tenant) {
  return new Promise((resolve, reject) => {
    const request = http.get(
      `${url}/v1/events?after=end`,
      { agent: false, headers: { accept: 'text/event-stream', 'colloquy-tenant': tenant } },
      (response) => {
        if (response.statusCode !== 200) reject(new Error(`the feed answered ${response.statusCode}`));
        response.on('error', () => undefined).resume();
        resolve({ end: () => request.destroy() });
      },
    );
    request.on('error', reject);
  });
}

/** Appends at an even pace, however long each append takes. Resolves to the times in milliseconds. */
async function appends(url) {
  const times = [];
  const pending = [];
  const started = performance.now();
  for (let n = 0; n < APPENDS * SECONDS; n += 1) {
    const due = started + (n * 1000) / APPENDS;
    if (due > performance.now()) await sleep(due - performance.now());
    const asked = performance.now();
    const path = `/v1/sessions/s${n % 50}/messages`;
    pending.push(
      ask(url, 'POST', path, 'writer', { role: 'user', content: 'a message' }).then(() =>
        times.push(performance.now() - asked),
      ),
    );
  }
  await Promise.all(pending);
  return times;
}

const server = await startServer();
const databaseUrl = await server.database('feeds');
const service = await startService(databaseUrl);
try {
  const { url, pid } = service;
  for (let n = 0; n < 50; n += 1) await ask(url, 'POST', '/v1/sessions', 'writer', { id: `s${n}` });
  const measure = async (work) => {
    const before = [cpuSeconds(pid), await databaseSeconds(databaseUrl)];
    const times = await work();
    const after = [cpuSeconds(pid), await databaseSeconds(databaseUrl)];
    const [node, database] = after.map((value, index) => ((value - before[index]) / SECONDS) * 100);
    return { node, database, p50: quantile(times, 0.5), p99: quantile(times, 0.99) };
  };
  const found = { without: [], with: [] };
  await appends(url);
  for (let round = 0; round < 4; round += 1) {
    for (const name of round % 2 ? ['with', 'without'] : ['without', 'with']) {
      const feeds =
        name === 'with'
          ? await Promise.all(Array.from({ length: FEEDS }, () => openFeed(url, 'reader')))
          : [];
      await sleep(1_000);
      found[name].push(await measure(() => appends(url)));
      for (const feed of feeds) feed.end();
      await sleep(1_000);
    }
  }
  const mean = (name, key) => found[name].reduce((sum, row) => sum + row[key], 0) / found[name].length;
  for (const name of Object.keys(found)) {
    const show = (key) => mean(name, key).toFixed(1);
    console.log(
      `${APPENDS} appends/s ${name === 'with' ? `beside ${FEEDS} feeds` : 'alone'}: p50 ${show('p50')} ms, p99 ${show('p99')} ms; ` +
        `${show('node')} % of a core in the service, ${show('database')} % in the database`,
    );
  }
  const more = ['node', 'database'].reduce((sum, key) => sum + mean('with', key) - mean('without', key), 0);
  console.log(
    `the feeds cost ${more.toFixed(1)} % of a core (wanted 10); p50 is ${(mean('with', 'p50') / mean('without', 'p50')).toFixed(2)} of that without them`,
  );
} finally {
  agent.destroy();
  await service.stop();
  await server.stop();
}
