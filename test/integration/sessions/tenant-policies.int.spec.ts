import { randomUUID } from 'node:crypto';
import { EventLog } from '../../../src/event-store/log.js';
import { Telemetry } from '../../../src/event-store/telemetry.js';
import { type SessionPolicy, TenantPolicies } from '../../../src/sessions/tenant-policies.js';
import { createTestDatabase, type TestDatabase } from '../../support/database.js';
import { eventually } from '../../support/http.js';
import { startProxy, type TcpProxy } from '../../support/tcp-proxy.js';

const DEFAULTS: SessionPolicy = {
  maxSessions: 10,
  sessionTTL: 60_000,
  capPolicy: 'reject',
  deleteAfter: undefined,
  eraseAfter: undefined,
};

let db: TestDatabase;
let proxy: TcpProxy;
const closed: (() => Promise<void>)[] = [];
beforeEach(async () => {
  db = await createTestDatabase();
  proxy = await startProxy(db.url);
});
afterEach(async () => {
  for (const close of closed.splice(0)) await close();
  await proxy.close();
  await db.drop();
});

/** A node for which the log is quiet when nothing has happened for a moment; it tells how often its looks have failed. */
async function start(url: string) {
  const telemetry = new Telemetry();
  const failures: string[] = [];
  telemetry.on('failed', ({ what }) => failures.push(what));
  const log = await EventLog.open(url, { quietMs: 200, telemetry });
  const policies = new TenantPolicies(log, DEFAULTS, {});
  await policies.start();
  closed.push(async () => {
    policies.stop();
    await log.close();
  });
  return { policies, failures };
}

it('given a node whose looks fail when a setting changes, when they succeed again in a log that has become quiet, then it knows the setting', async () => {
  const { policies, failures } = await start(proxy.url);
  const other = await start(db.url);
  proxy.decide((request) => (request.includes('reserved_states') ? 'lose request' : 'pass'));
  const by = { actor: 'test', correlationId: randomUUID() };
  await other.policies.change('acme', { maxSessions: 3 }, by);
  // More often than it is woken: once by the notification, and once when the log has become quiet.
  await eventually(() => Promise.resolve(failures.length >= 5));
  expect(policies.of('acme').maxSessions).toBe(10);

  proxy.decide(() => 'pass');
  await eventually(() => Promise.resolve(policies.of('acme').maxSessions === 3));
});
