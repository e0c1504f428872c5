import { createTestDatabase, type TestDatabase } from '../../support/database.js';
import { expectCountersMatchLog } from '../../support/recount.js';
import { expectSoundLog } from '../event-store/fixture.js';
import { expectRightExpiries, HOUR, logOf, Node } from './fixture.js';

let db: TestDatabase;
let nodes: Node[] = [];
const start = async (settings = {}) => {
  const node = await Node.start(db, settings);
  nodes.push(node);
  return node;
};
beforeEach(async () => {
  db = await createTestDatabase();
});
afterEach(async () => {
  await Promise.all(nodes.map((node) => node.stop()));
  nodes = [];
  await expectCountersMatchLog(db);
  await expectSoundLog(db);
  await db.drop();
});

it('given sessions that nobody uses, when their time to live has passed, then those expire and no others', async () => {
  const node = await start();
  await node.create('idle');
  await node.create('used');
  await node.create('generating');
  await node.generate('generating', 'gen1');
  await db.setClock({ offsetMs: HOUR / 2 });
  await node.say('used', 'still here');
  await node.leases.take(['generation:gen1']);

  await db.setClock({ offsetMs: HOUR - 10_000 });
  expect((await node.sweep()).found).toEqual({ ttl: 0, cap: 0, lease: 1, retention: 0 });
});
