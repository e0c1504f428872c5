import { randomUUID } from 'node:crypto';
import { type EventLog } from '../../../src/event-store/log.js';
import { LaneShare } from '../../../src/event-store/lane-share.js';
import { LEASE_MS, type Leases } from '../../../src/event-store/leases.js';
import { type NodeList } from '../../../src/event-store/node-list.js';
import { createTestDatabase, type TestDatabase } from '../../support/database.js';
import { eventually } from '../../support/http.js';
import { suspend } from '../../support/suspended.js';
import { Nodes } from './fixture.js';

let db: TestDatabase;
let store: EventLog;
const stores = new Nodes();
const opened: Leases[] = [];
beforeEach(async () => {
  db = await createTestDatabase();
  store = await stores.start(db.url);
});
afterEach(async () => {
  await Promise.all(opened.splice(0).map((leases) => leases.close()));
  await stores.stopAll();
  await db.drop();
});

const later = (ms: number) => db.setClock({ offsetMs: ms });
const DAY = 86_400_000;

/** A node that is on the list and shares lanes with the others. */
async function startNode(log = store): Promise<{ list: NodeList; leases: Leases; share: LaneShare }> {
  const leases = log.leases(randomUUID());
  opened.push(leases);
  const list = log.nodes(leases, '1.2.3');
  await list.announce();
  const share = new LaneShare(leases, 'work', log.laneCount, () => undefined);
  await share.join();
  return { list, leases, share };
}

describe('the list of nodes', () => {
  it('given nodes that share lanes, when the list is read, then each says what it is, and has its lanes', async () => {
    const [one, two] = [await startNode(), await startNode()];
    await one.share.balance();
    await two.share.balance();
    // Of a reply it writes at the moment, which is no lane.
    await one.leases.take(['generation/g']);

    const nodes = await one.list.all();
    expect(nodes).toMatchObject(
      [one, two].map(({ leases }) => ({
        ...{ id: leases.owner, pid: process.pid, version: '1.2.3', isThere: true },
      })),
    );
    for (const { startedAt, seenAt } of nodes)
      expect(Date.parse(seenAt ?? '') - Date.parse(startedAt)).toBeLessThan(5_000);
    const lanes = nodes.map((node) => node.lanes.get('work') ?? []);
    expect(lanes.map((some) => some.length)).toEqual([8, 8]);
    expect(lanes.flat().sort((a, b) => a - b)).toEqual(Array.from({ length: 16 }, (_, lane) => lane));
    expect([...(nodes[0]?.lanes.keys() ?? [])]).toEqual(['work']);
  });

  it('given a node that is gone without a word, when its leases have run out, then it is away and has no lanes; after a day it is forgotten', async () => {
    const [dead, alive] = [await startNode(), await startNode()];
    await dead.share.balance();
    await suspend(dead.leases);
    await later(LEASE_MS + 1_000);
    await alive.share.join();
    await alive.leases.take([`work/member/${alive.leases.owner}`]);

    const [first, second] = await alive.list.all();
    expect(first).toMatchObject({ id: alive.leases.owner, isThere: true });
    expect(second).toMatchObject({ id: dead.leases.owner, isThere: false, lanes: new Map() });

    await later(DAY + LEASE_MS + 2_000);
    await alive.leases.take([`work/member/${alive.leases.owner}`]);
    await alive.leases.prune();
    await alive.list.prune();
    expect((await alive.list.all()).map(({ id }) => id)).toEqual([alive.leases.owner]);
  });

  it('given a node that died in a log to which nobody appends, when the list is read, then it says so within seconds, and tells when it was seen', async () => {
    const quiet = await stores.start(db.url, { quietMs: 200 });
    const [dead, alive] = [await startNode(quiet), await startNode(quiet)];
    for (const { share } of [dead, alive]) await share.balance();
    const isLong = async ({ leases: { owner } }: typeof dead) => {
      const rows = await db.query(
        `select from lease where owner = '${owner}' and until < colloquy_now() + interval '80 seconds'`,
      );
      return rows.length === 0;
    };
    await eventually(async () => (await isLong(dead)) && (await isLong(alive)));
    await suspend(dead.leases);

    const byId = async () => new Map((await alive.list.all()).map((node) => [node.id, node]));
    const before = await byId();
    for (const { seenAt } of before.values())
      expect(Math.abs(Date.parse(seenAt ?? '') - Date.now())).toBeLessThan(10_000);
    await eventually(async () => !(await isLong(dead)));
    await later(LEASE_MS + 1_000);
    await eventually(async () => {
      const nodes = await byId();
      return nodes.get(dead.list.self)?.isThere === false && nodes.get(alive.list.self)?.isThere === true;
    });
  });

  it('given a node that stops while it is still being announced, when both are done, then it is not on the list, and never comes back to it', async () => {
    const { list } = await startNode();
    const other = store.nodes(store.leases(randomUUID()), '1.2.3');
    await Promise.all([other.announce(), other.leave()]);
    await other.announce();
    expect((await list.all()).map(({ id }) => id)).toEqual([list.self]);
    await list.announce();
    expect(await list.all()).toHaveLength(1);
  });
});
