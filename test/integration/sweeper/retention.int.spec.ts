import { type SessionEvent } from '../../../src/domain/session.events.js';
import { sessionsProjection } from '../../../src/read-models/sessions.projection.js';
import { tableOf } from '../../../src/projection-engine/projection.js';
import { eventually } from '../../support/http.js';
import { masterKey } from '../../support/master-keys.js';
import { seeded, sized } from '../event-store/fixture.js';
import { HOUR, type Node, World } from './fixture.js';

const world = World.perTest();
const DAY = 24 * HOUR;
const none = { ttl: 0, cap: 0, lease: 0, retention: 0, schedule: 0, erasure: 0 };
const storage = { masterKey: masterKey('one') };
const tenantPath = '/v1/admin/tenants/default';

interface Scheduled {
  readonly at: string;
  readonly eraseAfter?: number;
  readonly reason?: string;
  readonly waitsFor?: string;
}

/** A node that seals, and whose clock is set in hours from now. */
const startNode = (sessions: object = {}): Promise<Node> => world.start({ storage, sessions });
const hours = (count: number): Promise<void> => world.db.setClock({ offsetMs: count * HOUR });
const toCome = (count: number): string => new Date(Date.now() + count * HOUR).toISOString();

/** The trail of a session: types, with cause or reason where there is one. */
async function trailOf(node: Node, id: string, headers: Record<string, string> = {}): Promise<string[]> {
  const { body } = await node.inject('GET', `/v1/sessions/${id}/events?limit=200`, undefined, headers);
  return (body['data'] as { type: string; data: Readonly<Record<string, string>> | null }[]).map(
    ({ type, data }) => {
      const told = data?.['cause'] ?? data?.['reason'];
      return told === undefined ? type : `${type}:${told}`;
    },
  );
}

async function scheduledOf(node: Node, id: string): Promise<Scheduled[]> {
  const { status, body } = await node.inject('GET', `/v1/sessions/${id}/erasure`);
  return status === 404 ? [] : (body['scheduled'] as Scheduled[]);
}

/** In how many hours of the database's clock at its setting of 0 a time comes, rounded. */
const inHours = (time: string | undefined): number =>
  Math.round((Date.parse(time ?? '') - Date.now()) / HOUR);

const sweptIn = async (node: Node): Promise<object> => (await node.sweep()).swept;
const eraseAt = (node: Node, id: string, at: string, reason?: string) =>
  node.inject('POST', `/v1/sessions/${id}/erase`, { at, ...(reason !== undefined && { reason }) });
const callOff = (node: Node, id: string) => node.inject('DELETE', `/v1/sessions/${id}/erasure`);

describe('deleteAfter of a tenant', () => {
  it('given another value than that of the file, when sessions have been expired for so long, then those of the tenant are deleted, active ones never, with a reason that names the policy', async () => {
    const node = await world.start({
      sessions: { deleteAfter: 3 * DAY },
      tenants: { early: { deleteAfter: HOUR / 2 }, late: { deleteAfter: 9 * DAY } },
    });
    for (const tenant of ['default', 'early', 'late', 'own']) await node.create('s', tenant);
    await node.create('held', 'early');
    await node.inject('PATCH', '/v1/sessions/held', { legalHold: true }, { 'colloquy-tenant': 'early' });
    await node.inject('PUT', '/v1/admin/tenants/own', { deleteAfter: 5 * DAY });
    const left = async (): Promise<string[]> => {
      await node.sweep();
      await node.sweep();
      const statuses: string[] = [];
      for (const tenant of ['default', 'early', 'late', 'own']) {
        const { status } = await node.inject('GET', '/v1/sessions/s', undefined, {
          'colloquy-tenant': tenant,
        });
        if (status === 200) statuses.push(tenant);
      }
      return statuses;
    };

    // Longer without use than `deleteAfter` of one tenant, and not for as long as a session lives.
    await hours(0.75);
    expect(await left()).toEqual(['default', 'early', 'late', 'own']);
    await hours(1.25);
    expect(await left()).toEqual(['default', 'early', 'late', 'own']);
    await hours(2);
    expect(await left()).toEqual(['default', 'late', 'own']);
    // One that is under legal hold is not looked at again and again.
    expect((await node.sweep()).found).toEqual(none);
    expect(await trailOf(node, 's', { 'colloquy-tenant': 'early' })).toEqual([
      'SessionCreated',
      'SessionExpired:ttl',
      `SessionDeleted:retention: deleteAfter ${HOUR / 2} ms`,
    ]);
    await hours(4 * 24);
    expect(await left()).toEqual(['late', 'own']);
    await hours(6 * 24);
    expect(await left()).toEqual(['late']);
    await node.inject('PUT', '/v1/admin/tenants/late', { deleteAfter: DAY });
    expect(await left()).toEqual([]);
    expect((await trailOf(node, 'held', { 'colloquy-tenant': 'early' })).at(-1)).toBe('SessionExpired:ttl');
  });

  it('given a change that is tried with dryRun, when it is answered, then it says how many sessions it would concern, and nothing is changed', async () => {
    const node = await startNode();
    for (const id of ['a', 'b', 'c', 'held']) await node.create(id);
    await node.inject('PATCH', '/v1/sessions/held', { legalHold: true });
    await hours(2);
    await node.sweep();
    await hours(3.25);
    await node.say('c', 'here');
    await node.create('d');
    await node.inject('DELETE', '/v1/sessions/d');
    const tried = (body: object) => node.inject('PUT', `${tenantPath}?dryRun=true`, body);

    expect((await tried({ deleteAfter: HOUR })).body).toMatchObject({
      version: 0,
      effective: { deleteAfter: HOUR },
      dryRun: { delete: 2, scheduleErasure: 0, callOffErasure: 0 },
    });
    expect((await tried({ eraseAfter: 10 * DAY })).body['dryRun']).toEqual({
      delete: 0,
      scheduleErasure: 3,
      callOffErasure: 0,
    });
    expect((await node.inject('GET', tenantPath)).body).toMatchObject({ version: 0, own: {} });
    expect((await node.sweep()).found).toEqual(none);

    await node.inject('PUT', tenantPath, { eraseAfter: 10 * DAY });
    expect(await sweptIn(node)).toEqual({ ...none, schedule: 3 });
    expect((await tried({ eraseAfter: null })).body['dryRun']).toMatchObject({ callOffErasure: 3 });
    expect((await tried({ eraseAfter: 5 * DAY })).body['dryRun']).toMatchObject({ scheduleErasure: 3 });
    expect((await tried({ eraseAfter: 10 * DAY })).body['dryRun']).toMatchObject({ scheduleErasure: 0 });
    expect((await node.inject('PUT', `${tenantPath}?dryRun=true`, { deleteAfter: 0 })).status).toBe(400);
    expect((await node.inject('PUT', `${tenantPath}?dryRun=perhaps`, {})).status).toBe(400);
  });
});

describe('eraseAfter of a tenant', () => {
  it('given sessions that have ended, when the sweeper comes, then their erasure is scheduled in the trail, and carried out at its time and not before', async () => {
    const node = await startNode();
    await node.inject('PUT', tenantPath, { eraseAfter: 10 * DAY });
    for (const id of ['deleted', 'expired', 'used']) {
      await node.create(id);
      await node.say(id, 'a secret');
    }
    await node.inject('DELETE', '/v1/sessions/deleted');
    expect(await sweptIn(node)).toEqual({ ...none, schedule: 1 });
    await hours(2);
    await node.say('used', 'here');
    expect(await sweptIn(node)).toMatchObject({ ttl: 1 });
    await node.sweep();
    const [ofDeleted] = await scheduledOf(node, 'deleted');
    const [ofExpired] = await scheduledOf(node, 'expired');
    expect([inHours(ofDeleted?.at), inHours(ofExpired?.at)]).toEqual([240, 242]);
    expect(ofDeleted).toEqual({ sessionId: 'deleted', at: ofDeleted?.at, eraseAfter: 10 * DAY });
    expect(await trailOf(node, 'expired')).toEqual([
      'SessionCreated',
      'MessageAppended',
      'SessionExpired:ttl',
      'ErasureScheduled',
    ]);

    await hours(239);
    await node.say('used', 'here');
    expect(await sweptIn(node)).toEqual(none);
    await hours(241);
    await node.say('used', 'here');
    expect(await sweptIn(node)).toEqual({ ...none, erasure: 1 });
    await hours(243);
    expect(await sweptIn(node)).toMatchObject({ erasure: 1 });
    for (const id of ['deleted', 'expired']) {
      const { body } = await node.inject('GET', `/v1/sessions/${id}/erasure`);
      expect(body).toMatchObject({
        data: [{ reason: `retention: eraseAfter ${10 * DAY} ms`, actor: 'system:sweeper' }],
        scheduled: [],
      });
      expect((await trailOf(node, id)).slice(-2)).toEqual([
        'ErasureScheduled',
        `SessionErased:retention: eraseAfter ${10 * DAY} ms`,
      ]);
    }
    expect((await node.inject('GET', '/v1/sessions/used')).status).toBe(200);
  });

  it('given a session of which deletion follows expiry, when its erasure is scheduled, then the time counts from the expiry, and a deletion does not move it', async () => {
    const node = await startNode({ deleteAfter: DAY });
    for (const id of ['before', 'after']) await node.create(id);
    await hours(2);
    await node.sweep();
    await hours(20);
    await node.inject('DELETE', '/v1/sessions/before');
    await node.inject('PUT', tenantPath, { eraseAfter: 10 * DAY });
    expect(await sweptIn(node)).toEqual({ ...none, schedule: 2 });
    await hours(27);
    expect(await sweptIn(node)).toEqual({ ...none, retention: 1 });
    expect(await sweptIn(node)).toEqual(none);
    for (const id of ['before', 'after']) expect(inHours((await scheduledOf(node, id))[0]?.at)).toBe(242);
    await hours(243);
    expect(await sweptIn(node)).toEqual({ ...none, erasure: 2 });
  });

  it('given sessions that ended long ago, when a policy is set, then there is a day to call their erasure off', async () => {
    const node = await startNode();
    await node.create('long');
    await node.inject('DELETE', '/v1/sessions/long');
    await hours(100 * 24);
    await node.inject('PUT', tenantPath, { eraseAfter: 30 * DAY });
    expect(await sweptIn(node)).toEqual({ ...none, schedule: 1 });
    expect(inHours((await scheduledOf(node, 'long'))[0]?.at)).toBe(101 * 24);
    expect(await sweptIn(node)).toEqual(none);
    // A shorter policy has a shorter window.
    await node.inject('PUT', tenantPath, { eraseAfter: 2 * HOUR });
    expect(await sweptIn(node)).toEqual({ ...none, schedule: 1 });
    expect(inHours((await scheduledOf(node, 'long'))[0]?.at)).toBe(100 * 24 + 2);
  });

  it('given scheduled erasures, when the policy is changed, then they are scheduled anew; taken back, they are called off, and scheduled again when it is back', async () => {
    const node = await startNode();
    await node.inject('PUT', tenantPath, { eraseAfter: 10 * DAY });
    await node.create('s');
    await node.inject('DELETE', '/v1/sessions/s');
    await node.sweep();
    await node.inject('PUT', tenantPath, { eraseAfter: 20 * DAY });
    expect(await sweptIn(node)).toEqual({ ...none, schedule: 1 });
    expect(await scheduledOf(node, 's')).toMatchObject([{ eraseAfter: 20 * DAY }]);
    await hours(11 * 24);
    expect(await sweptIn(node)).toEqual(none);
    await node.inject('PUT', tenantPath, { eraseAfter: null });
    expect(await sweptIn(node)).toEqual({ ...none, schedule: 1 });
    expect(await scheduledOf(node, 's')).toEqual([]);
    await hours(21 * 24);
    expect(await sweptIn(node)).toEqual(none);
    await node.inject('PUT', tenantPath, { eraseAfter: DAY });
    expect(await sweptIn(node)).toEqual({ ...none, schedule: 1 });
    await hours(22 * 24 + 1);
    expect(await sweptIn(node)).toEqual({ ...none, erasure: 1 });
    expect(await trailOf(node, 's')).toEqual([
      'SessionCreated',
      'SessionDeleted',
      'ErasureScheduled',
      'ErasureScheduled',
      'ErasureCancelled',
      'ErasureScheduled',
      `SessionErased:retention: eraseAfter ${DAY} ms`,
    ]);
  });

  it('given a setting of the file that is gone at the next start, when the sweeper comes, then what it had scheduled is called off', async () => {
    const before = await startNode({ eraseAfter: 10 * DAY });
    await before.create('s');
    await before.inject('DELETE', '/v1/sessions/s');
    await before.sweep();
    await world.stopAll();
    const node = await startNode();
    await hours(11 * 24);
    await eventually(async () => {
      await node.sweep();
      return (await trailOf(node, 's')).at(-1) === 'ErasureCancelled:policy';
    });
    expect(await sweptIn(node)).toEqual(none);
  });

  it('given a policy that another node took back a moment ago, when an erasure is due, then it is not carried out', async () => {
    const [one, two] = [await startNode(), await startNode()];
    await one.inject('PUT', tenantPath, { eraseAfter: HOUR });
    await one.create('s');
    await one.inject('DELETE', '/v1/sessions/s');
    await one.sweep();
    await eventually(() => Promise.resolve(two.policies.of('default').eraseAfter === HOUR));
    await hours(2);
    // The other node does not hear of the change.
    two.policies.stop();
    await one.inject('PUT', tenantPath, { eraseAfter: null });
    expect(two.policies.of('default').eraseAfter).toBe(HOUR);
    await two.sweep();
    expect((await trailOf(two, 's')).at(-1)).toBe('ErasureScheduled');
  });
});

describe('a scheduled erasure', () => {
  it('given one that is called off, when its time comes, then nothing is erased, and the policy schedules none until the session was used and has ended again', async () => {
    const node = await startNode({ eraseAfter: 10 * DAY });
    await node.create('s');
    await hours(2);
    await node.sweep();
    await node.sweep();
    expect((await callOff(node, 's')).status).toBe(204);
    expect((await callOff(node, 's')).body).toMatchObject({ status: 404, code: 'not-found' });
    await hours(20 * 24);
    expect((await node.sweep()).found).toEqual(none);
    await node.inject('DELETE', '/v1/sessions/s');
    expect(await sweptIn(node)).toEqual(none);
    await node.create('s');
    await node.say('s', 'again');
    await hours(20 * 24 + 2);
    // Whether the first sweep already sees that it has expired depends on the read model.
    await node.sweep();
    await node.sweep();
    expect(await scheduledOf(node, 's')).toHaveLength(1);
    await hours(31 * 24);
    expect(await sweptIn(node)).toEqual({ ...none, erasure: 1 });
  });

  it('given a request for a time to come, when that comes, then the session is erased though it is in use, unless it was called off', async () => {
    const node = await startNode();
    for (const id of ['s', 'kept']) await node.create(id);
    const asked = await eraseAt(node, 's', toCome(5 * 24), 'contract 7 ends');
    expect(asked).toMatchObject({ status: 202, body: { sessionId: 's', reason: 'contract 7 ends' } });
    await eraseAt(node, 'kept', toCome(5 * 24));
    // A new request takes the place of the one before, and is no use of the session.
    await hours(0.5);
    expect((await eraseAt(node, 's', toCome(6 * 24), 'contract 7 ends')).status).toBe(202);
    expect(await scheduledOf(node, 's')).toMatchObject([{ reason: 'contract 7 ends' }]);
    await hours(1.25);
    expect(await sweptIn(node)).toMatchObject({ ttl: 2 });
    await node.say('s', 'in use');
    await callOff(node, 'kept');
    await hours(5 * 24 + 1);
    await node.say('s', 'in use');
    expect(await sweptIn(node)).toEqual(none);
    await hours(6 * 24 + 1);
    await node.say('s', 'in use');
    expect(await sweptIn(node)).toEqual({ ...none, erasure: 1 });
    expect((await trailOf(node, 's')).at(-1)).toBe('SessionErased:contract 7 ends');
    expect((await node.inject('GET', '/v1/sessions/s')).status).toBe(404);
    expect((await trailOf(node, 'kept')).at(-1)).toBe('ErasureCancelled:request');
  });

  it('given a legal hold that is placed after, when the time comes, then nothing is erased, and it is carried out when the hold is lifted', async () => {
    const node = await startNode({ eraseAfter: 10 * DAY });
    for (const id of ['policy', 'request']) await node.create(id);
    await eraseAt(node, 'request', toCome(24));
    await hours(2);
    await node.sweep();
    await node.sweep();
    for (const id of ['policy', 'request'])
      expect((await node.inject('PATCH', `/v1/sessions/${id}`, { legalHold: true })).status).toBe(200);
    expect((await eraseAt(node, 'request', toCome(30))).body).toMatchObject({
      status: 409,
      code: 'legal-hold',
    });
    await hours(20 * 24);
    expect(await sweptIn(node)).toEqual(none);
    for (const id of ['policy', 'request'])
      expect((await scheduledOf(node, id))[0]).toMatchObject({ waitsFor: 'legal-hold' });
    for (const id of ['policy', 'request'])
      await node.inject('PATCH', `/v1/sessions/${id}`, { legalHold: false });
    expect(await sweptIn(node)).toEqual({ ...none, erasure: 2 });
  });

  it('given a hold from before the end, when it is lifted long after, then the policy gives a day to call the erasure off', async () => {
    const node = await startNode({ eraseAfter: 10 * DAY });
    await node.create('s');
    await node.inject('PATCH', '/v1/sessions/s', { legalHold: true });
    await hours(2);
    await node.sweep();
    await hours(40 * 24);
    expect(await sweptIn(node)).toEqual(none);
    await node.inject('PATCH', '/v1/sessions/s', { legalHold: false });
    expect(await sweptIn(node)).toEqual({ ...none, schedule: 1 });
    expect(inHours((await scheduledOf(node, 's'))[0]?.at)).toBe(41 * 24);
  });

  it('given a session that is used again, when the schedule of its policy would come, then it does not; and a request waits until the later session is deleted', async () => {
    const node = await startNode({ eraseAfter: 2 * DAY });
    for (const id of ['back', 'anew']) await node.create(id);
    await eraseAt(node, 'anew', toCome(3 * 24), 'asked for');
    await hours(2);
    await node.sweep();
    await node.inject('DELETE', '/v1/sessions/anew');
    await node.sweep();
    expect(await scheduledOf(node, 'back')).toHaveLength(1);
    expect(await scheduledOf(node, 'anew')).toHaveLength(2);
    await hours(40);
    await node.say('back', 'I am back');
    await node.create('anew');
    await node.say('anew', 'of somebody else');
    expect(await scheduledOf(node, 'back')).toEqual([]);
    expect(await scheduledOf(node, 'anew')).toMatchObject([{ reason: 'asked for', waitsFor: 'deletion' }]);
    await hours(3 * 24 + 1);
    await node.say('back', 'still here');
    await node.say('anew', 'still here');
    expect(await sweptIn(node)).toEqual(none);
    // Expired, it may be used again, so it still waits.
    await hours(3 * 24 + 3);
    await node.sweep();
    expect((await node.sweep()).swept).toMatchObject({ erasure: 0 });
    await node.inject('DELETE', '/v1/sessions/anew');
    expect(await sweptIn(node)).toMatchObject({ erasure: 1 });
    expect((await trailOf(node, 'anew')).at(-1)).toBe('SessionErased:asked for');
  });

  it('given a session that is used between the look of the sweeper and its command, when it is erased or deleted, then it is not', async () => {
    const node = await startNode({ eraseAfter: 2 * DAY, deleteAfter: 20 * DAY });
    for (const id of ['due', 'old']) await node.create(id);
    await hours(2);
    await node.sweep();
    await node.sweep();
    await callOff(node, 'old');
    await hours(21 * 24);
    await node.caughtUp();
    // The read model does not see the use.
    const holder = await node.store.pool.connect();
    await holder.query('begin');
    await holder.query(`lock table ${tableOf(sessionsProjection)} in exclusive mode`);
    for (const id of ['due', 'old']) await node.say(id, 'back');
    const report = await node.sweeper.sweep('all');
    await holder.query('rollback');
    holder.release();
    expect(report).toMatchObject({ found: { retention: 2, erasure: 1 }, swept: none });
    for (const id of ['due', 'old']) expect((await trailOf(node, id)).at(-1)).toBe('MessageAppended');
  });

  it('given nodes that sweep at the same time, when sessions are due, then each is scheduled, and erased, once', async () => {
    const nodes = [await startNode({ eraseAfter: 2 * DAY }), await startNode({ eraseAfter: 2 * DAY })];
    const [one] = nodes;
    if (!one) throw new Error('no node');
    const ids = Array.from({ length: 60 }, (_, index) => `s${index}`);
    await Promise.all(ids.map((id) => one.create(id)));
    for (const at of [2, 3, 51, 52]) {
      await hours(at);
      await one.caughtUp();
      await Promise.all(nodes.map((node) => node.sweeper.sweep('all')));
    }
    const counts = await world.db.query<{ type: string; count: number }>(
      'select type, count(*)::int as count from event group by type order by type',
    );
    expect(counts).toEqual(
      ['ErasureScheduled', 'SessionCreated', 'SessionErased', 'SessionExpired'].map((type) => ({
        type,
        count: 60,
      })),
    );
  });

  it('given a time that is past, or is none, when an erasure is asked for, then it is refused', async () => {
    const node = await startNode();
    await node.create('s');
    for (const at of ['2020-01-01T00:00:00Z', 'soon', 7]) {
      const { status, body } = await node.inject('POST', '/v1/sessions/s/erase', { at });
      expect([status, body['code']]).toEqual([400, 'invalid-request']);
      expect(body['errors']).toMatchObject([{ pointer: '/at' }]);
    }
    expect((await eraseAt(node, 'nobody', toCome(1))).status).toBe(404);
    expect((await callOff(node, 'nobody')).status).toBe(404);
    expect((await callOff(node, 's')).body).toMatchObject({ status: 404, code: 'not-found' });
    expect(await trailOf(node, 's')).toEqual(['SessionCreated']);
    // Where nothing is left to erase, nothing is scheduled.
    await node.inject('POST', '/v1/sessions/s/erase');
    expect((await eraseAt(node, 's', toCome(1))).status).toBe(200);
  });
});

describe('what is stored in plain', () => {
  it('given a service without a master key, when eraseAfter is set, then it is refused; from the file, the sweeper says so and goes on', async () => {
    const node = await world.start({ sessions: { eraseAfter: HOUR } });
    expect((await node.inject('PUT', tenantPath, { eraseAfter: DAY })).body).toMatchObject({
      status: 409,
      code: 'not-sealed',
    });
    expect((await node.inject('PUT', tenantPath, { eraseAfter: null })).status).toBe(200);
    await node.create('s');
    expect((await eraseAt(node, 's', toCome(1))).body).toMatchObject({ status: 409, code: 'not-sealed' });
    await hours(2);
    expect(await sweptIn(node)).toEqual({ ...none, ttl: 1 });
    expect((await node.sweep()).found).toEqual(none);
    expect((await node.inject('GET', '/v1/admin/sweep')).body).toMatchObject({ lacksMasterKey: true });
  });

  it('given sessions from before the master key, when their erasure is due, then it is tried once, recorded and counted, and others are erased', async () => {
    const plain = await world.start();
    for (const id of ['plain', 'mixed']) await plain.create(id);
    await world.stopAll();
    const node = await startNode({ eraseAfter: HOUR });
    await node.say('mixed', 'sealed');
    await node.create('sealed');
    await hours(2);
    await node.sweep();
    await node.sweep();
    await hours(4);
    const report = await node.sweep();
    expect(report).toMatchObject({ found: { erasure: 3 }, swept: { erasure: 1 }, notSealed: 2 });
    for (const id of ['plain', 'mixed'])
      expect((await trailOf(node, id)).at(-1)).toBe('ErasureCancelled:not-sealed');
    expect(await node.sweep()).toMatchObject({ found: none, notSealed: 0 });
    expect((await node.inject('GET', '/v1/admin/sweep')).body).toMatchObject({
      lacksMasterKey: false,
      totals: { notSealed: 2, erasure: 1 },
    });
  });
});

it('given sessions that policies concern, when a dry run is made, then it lists what would be deleted, scheduled and erased, and when, and changes nothing', async () => {
  const node = await startNode({ deleteAfter: 10 * DAY, eraseAfter: 2 * DAY });
  await node.create('erased');
  await node.inject('DELETE', '/v1/sessions/erased');
  await node.sweep();
  await node.create('old');
  await hours(2);
  await node.sweep();
  await node.sweep();
  await callOff(node, 'old');
  await hours(11 * 24);
  await node.create('ended');
  await node.inject('DELETE', '/v1/sessions/ended');
  await node.caughtUp();
  const before = await world.db.query('select count(*) from event');
  const { body } = await node.inject('GET', '/v1/admin/sweep?dryRun=true');
  const { actions } = body['dryRun'] as { actions: Record<string, string>[] };
  expect(actions.map(({ sessionId, action, reason }) => [sessionId, action, reason])).toEqual([
    ['old', 'delete', 'retention'],
    ['ended', 'schedule-erasure', 'schedule'],
    ['erased', 'erase', 'erasure'],
  ]);
  expect(inHours(actions[1]?.['at'])).toBe(13 * 24);
  for (const { why } of actions) expect(why).toMatch(/deleteAfter is|eraseAfter is/);
  expect(await world.db.query('select count(*) from event')).toEqual(before);
  expect(await sweptIn(node)).toEqual({ ...none, retention: 1, schedule: 1, erasure: 1 });
});

describe('any history of sessions and policies', () => {
  /** What a session is, by a reading of the rules that shares nothing with the code. Times are in hours. */
  interface Model {
    status: 'none' | 'active' | 'expired' | 'deleted' | 'erased';
    life: number;
    used: number;
    ended: number;
    held: boolean;
    off: boolean;
    request?: { at: number; life: number } | undefined;
    policy?: { at: number; after: number } | undefined;
  }
  interface Policy {
    deleteAfter?: number | undefined;
    eraseAfter?: number | undefined;
  }

  function begin(one: Model, now: number): void {
    const { request } = one.status === 'erased' ? {} : one;
    const isNew = one.status !== 'active' && one.status !== 'expired';
    if (one.status !== 'active') Object.assign(one, { off: false, policy: undefined });
    if (isNew) Object.assign(one, { life: one.life + 1, held: false, used: now });
    Object.assign(one, { request, status: 'active' });
  }

  const isThere = ({ status }: Model): boolean => status === 'active' || status === 'expired';

  /** Everything that sweeps would do at a time. */
  function settle(one: Model, { deleteAfter, eraseAfter }: Policy, now: number): void {
    if (one.status === 'active' && now - one.used >= 1) Object.assign(one, { status: 'expired', ended: now });
    if (deleteAfter !== undefined && one.status === 'expired' && !one.held && now - one.ended >= deleteAfter)
      one.status = 'deleted';
    const hasEnded = one.status === 'expired' || one.status === 'deleted';
    if (hasEnded && !one.held) {
      if (eraseAfter === undefined) one.policy = undefined;
      else if (one.policy ? one.policy.after !== eraseAfter : !one.off)
        one.policy = {
          after: eraseAfter,
          at: Math.max(one.ended + eraseAfter, now + Math.min(eraseAfter, 24)),
        };
    }
    const { request, policy } = one;
    const isRequestDue =
      request && request.at <= now && (request.life === one.life || one.status === 'deleted');
    if (!one.held && (isRequestDue || (policy && policy.at <= now)))
      Object.assign(one, { status: 'erased', request: undefined, policy: undefined, off: false });
  }

  /** The types of the events of all rounds. */
  const reached = new Set<string>();

  it.each(Array.from({ length: sized(20, 6, 2) }, (_, round) => round))(
    'round %i: given random uses, ends, holds, policies, requests, calls-off and jumps of the clock, when sweeps have come, then exactly those are deleted or erased that the rules name',
    async (round) => {
      const random = seeded(Number(process.env['SEED'] ?? 20_261_130) + round);
      const node = await startNode({ maxSessions: 1_000 });
      const tenants = ['one', 'two'];
      const ids = ['a', 'b', 'c', 'd', 'e'];
      const policies = new Map<string, Policy>(tenants.map((tenant) => [tenant, {}]));
      const models = new Map<string, Model>();
      const seen = new Set<string>();
      let now = 0;
      // Thresholds are whole hours and jumps are not, so that the milliseconds of the test do not matter.
      for (let step = 0; step < 120; step += 1) {
        const tenant = tenants[random(tenants.length)] ?? '';
        const id = ids[random(ids.length)] ?? '';
        const key = `${tenant}/${id}`;
        const fresh: Model = { status: 'none', life: 0, used: 0, ended: 0, held: false, off: false };
        const one = models.get(key) ?? fresh;
        models.set(key, one);
        const policy = policies.get(tenant) ?? {};
        const headers = { 'colloquy-tenant': tenant };
        const path = `/v1/sessions/${id}`;
        switch (random(12)) {
          case 0:
          case 1:
            // Of a session that is active already, this is no use.
            if (one.status !== 'active') one.used = now;
            begin(one, now);
            await node.create(id, tenant);
            break;
          case 2:
            if (!isThere(one)) break;
            begin(one, now);
            one.used = now;
            await node.say(id, 'hello', tenant);
            break;
          case 3: {
            const { status } = await node.inject('DELETE', path, undefined, headers);
            expect(status).toBe(!isThere(one) ? 404 : one.held ? 409 : 204);
            if (status === 204)
              Object.assign(one, { status: 'deleted', ended: one.status === 'active' ? now : one.ended });
            break;
          }
          case 4: {
            const held = random(3) === 0;
            if (!isThere(one)) break;
            await node.inject('PATCH', path, { legalHold: held }, headers);
            // Of an active session it counts as use.
            if (held !== one.held && one.status === 'active') one.used = now;
            one.held = held;
            break;
          }
          case 5:
          case 6: {
            const name = random(2) ? 'eraseAfter' : 'deleteAfter';
            const value = [undefined, 3, 30, 60][random(4)];
            await node.inject('PUT', `/v1/admin/tenants/${tenant}`, {
              [name]: value === undefined ? null : value * HOUR,
            });
            policy[name] = value;
            break;
          }
          case 7: {
            const at = Math.floor(now) + 1 + random(60);
            const { status } = await node.inject('POST', `${path}/erase`, { at: toCome(at) }, headers);
            const isOpen = one.status !== 'none' && one.status !== 'erased' && !one.held;
            expect(status).toBe(isOpen ? 202 : one.status === 'none' ? 404 : one.held ? 409 : 200);
            if (isOpen) one.request = { at, life: one.life };
            break;
          }
          case 8: {
            const { status } = await node.inject('DELETE', `${path}/erasure`, undefined, headers);
            expect(status).toBe(one.request || one.policy ? 204 : 404);
            if (status === 204)
              Object.assign(one, {
                request: undefined,
                policy: undefined,
                off: one.status === 'expired' || one.status === 'deleted',
              });
            break;
          }
          default:
            now += 0.5 + (random(2) ? random(4) : random(40));
            await hours(now);
            for (;;) {
              const { swept } = await node.sweep();
              if (Object.values(swept).every((count) => count === 0)) break;
            }
            for (const [name, model] of models)
              settle(model, policies.get(name.split('/')[0] ?? '') ?? {}, now);
        }
        seen.add(`${one.status}${one.policy ? ' planned' : ''}${one.request ? ' asked' : ''}`);
      }
      for (const [key, { status, request, policy }] of models) {
        const [tenant = '', id = ''] = key.split('/');
        const { state } = await node.commands.load({ tenant, sessionId: id, ownedBy: null });
        const isErased = state.version > 0 && state.version === state.erasedUpTo;
        expect([key, isErased ? 'erased' : state.status]).toEqual([key, status]);
        expect([key, state.planned?.byPolicy?.eraseAfter, Boolean(state.planned?.requested)]).toEqual([
          key,
          policy && policy.after * HOUR,
          Boolean(request),
        ]);
        const planned = state.planned?.byPolicy;
        if (policy) expect((Date.parse(planned?.at ?? '') - Date.now()) / HOUR).toBeCloseTo(policy.at, 1);
      }
      expect(seen.size).toBeGreaterThan(6);
      const types = await world.db.query<{ type: SessionEvent['type'] }>('select distinct type from event');
      for (const { type } of types) reached.add(type);
    },
    120_000,
  );

  // A round by itself may happen to call nothing off.
  it('given all these rounds, then they came to deletions, erasures, and plans that were called off', () => {
    expect([...reached]).toEqual(
      expect.arrayContaining(['SessionDeleted', 'SessionErased', 'ErasureScheduled', 'ErasureCancelled']),
    );
  });
});
