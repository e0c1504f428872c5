import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { Telemetry } from '../../../src/event-store/telemetry.js';
import { appendOf } from '../../support/append.js';
import { createTestDatabase, type TestDatabase } from '../../support/database.js';
import { eventually } from '../../support/http.js';
import { startProxy } from '../../support/tcp-proxy.js';
import { Nodes } from './fixture.js';

let db: TestDatabase;
const nodes = new Nodes();
beforeEach(async () => {
  db = await createTestDatabase();
});
afterEach(async () => {
  await nodes.stopAll();
  await db.drop();
});

// The server's "LISTEN was done", and an error of the same length in its place.
const DONE = Buffer.from('C\0\0\0\x0bLISTEN\0', 'latin1');
const ERROR = Buffer.from('E\0\0\0\x0bMfail\0\0', 'latin1');

function refuseListen(answer: Buffer): Buffer {
  const at = answer.indexOf(DONE);
  return at < 0 ? answer : Buffer.concat([answer.subarray(0, at), ERROR, answer.subarray(at + DONE.length)]);
}

const listeners = async (): Promise<number> => {
  const [row] = await db.query<{ count: number }>(
    `select count(*)::int as count from pg_stat_activity
     where datname = current_database() and application_name = 'colloquy wake-up'`,
  );
  return row?.count ?? 0;
};

it('given a server that refuses LISTEN, when the node tries again and again, then each attempt is reported and none leaves a connection behind', async () => {
  const proxy = await startProxy(db.url, refuseListen);
  try {
    const telemetry = new Telemetry();
    const failures: string[] = [];
    telemetry.on('failed', ({ what }) => failures.push(what));
    const store = await nodes.start(proxy.url, { telemetry });

    for (let tries = 1; tries <= 4; tries += 1) {
      store.wakeUp.subscribe(() => undefined);
      await eventually(() => Promise.resolve(failures.length >= tries));
    }

    expect(new Set(failures)).toEqual(new Set(['listening for notifications']));
    await eventually(async () => (await listeners()) <= 1);
  } finally {
    await nodes.stopAll();
    await proxy.close();
  }
});

it('given a lost connection for notifications, when it is replaced, then both events are reported, and notifications arrive again', async () => {
  const telemetry = new Telemetry();
  const seen: boolean[] = [];
  telemetry.on('wakeUp', ({ connected }) => seen.push(connected));
  const store = await nodes.start(db.url, { telemetry });
  store.wakeUp.subscribe(() => undefined);
  await eventually(() => Promise.resolve(seen.length === 1));

  await db.query(
    `select pg_terminate_backend(pid) from pg_stat_activity
     where datname = current_database() and application_name = 'colloquy wake-up'`,
  );
  await eventually(() => Promise.resolve(seen.length === 3));

  expect(seen).toEqual([true, false, true]);
});

it('given a process that has nothing else to do, when it closes the log, then the close has resolved before the process ends', async () => {
  const program = `
    const [, log, append, url] = process.argv;
    const { appendOf } = require(append);
    require(log).EventLog.open(url).then(async (store) => {
      store.wakeUp.subscribe(() => undefined);
      await new Promise((resolve) => store.telemetry.on('wakeUp', resolve));
      await store.append(appendOf({ tenant: 'acme', streamId: 's' }, 0, [{ type: 'Written', data: {} }]));
      await store.close();
      console.log('closed');
    });`;
  const hook = join(__dirname, '../../support/typescript-hook.cjs');
  const log = join(__dirname, '../../../src/event-store/log.ts');

  const append = join(__dirname, '../../support/append.ts');
  const options = ['-r', hook, '-e', program, log, append, db.url];

  const { stdout } = await promisify(execFile)(process.execPath, options);

  expect(stdout).toBe('closed\n');
});

describe('a log to which nobody appends', () => {
  /** A node for which the log is quiet when nothing has happened for a moment; it counts how often its readers are woken. */
  const quietNode = async (url = db.url) => {
    const telemetry = new Telemetry();
    const failures: string[] = [];
    telemetry.on('failed', ({ what }) => failures.push(what));
    const store = await nodes.start(url, { quietMs: 200, telemetry });
    const woken: number[][] = [];
    store.wakeUp.subscribe((lanes) => woken.push([...lanes]));
    await eventually(() => Promise.resolve(store.wakeUp.isQuiet));
    return { store, woken, failures };
  };
  /** Waits until the node has looked at the log so often by one statement. */
  const looks = async (count: number) => {
    const seen = new Set<string>();
    await eventually(async () => {
      const rows = await db.query<{ time: string }>(
        `select query_start::text as time from pg_stat_activity where datname = current_database()
         and application_name = 'colloquy wake-up' and query like '%lane_ends()%' and state = 'idle'`,
      );
      for (const { time } of rows) seen.add(time);
      return seen.size >= count;
    });
  };

  it('given a quiet log, when it is looked at again and again, then its readers are woken by the first look alone', async () => {
    const { woken } = await quietNode();
    await looks(2);
    woken.length = 0;
    await looks(3);
    expect(woken).toEqual([]);
  });

  it('given a quiet log, when another node appends and its notification is lost, then the readers of that lane are woken', async () => {
    const { store, woken } = await quietNode();
    await looks(2);
    woken.length = 0;
    let isStirred = false;
    store.wakeUp.onStir(() => (isStirred = true));
    const silent = await nodes.start(db.url);
    await silent.wakeUp.close();
    const stream = { tenant: 'acme', streamId: 's' };
    await silent.append(appendOf(stream, 0, [{ type: 'Written', data: {} }]));

    await eventually(() => Promise.resolve(woken.length > 0));

    expect(woken[0]).toEqual([store.laneOf(stream)]);
    expect(isStirred).toBe(true);
  });

  it('given a connection that does not answer, when a quiet log is looked at, then it is replaced and the readers are woken', async () => {
    const proxy = await startProxy(db.url);
    try {
      const { store, woken, failures } = await quietNode(proxy.url);
      await looks(2);
      const connected: boolean[] = [];
      store.telemetry.on('wakeUp', (wakeUp) => connected.push(wakeUp.connected));
      proxy.hang();
      await eventually(() => Promise.resolve(connected[0] === false));
      expect(failures[0]).toBe('the look whether a quiet log has grown');
      woken.length = 0;
      proxy.up();
      await eventually(() => Promise.resolve(connected.at(-1) === true && woken.length > 0));
    } finally {
      await nodes.stopAll();
      await proxy.close();
    }
  });
});
