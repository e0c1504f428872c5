import { type Pool } from 'pg';
import { createPool } from '../../../src/database/connection.js';
import { CreateSession } from '../../../src/domain/session.commands.js';
import { LaneFold } from '../../../src/projection-engine/lane-fold.js';
import { Fenced } from '../../../src/projection-engine/poison.js';
import { type Projection, tableOf } from '../../../src/projection-engine/projection.js';
import { createTables } from '../../../src/projection-engine/tables.js';
import { createTestDatabase, type TestDatabase } from '../../support/database.js';
import { expectSoundLog } from '../event-store/fixture.js';
import { Node } from './fixture.js';

/** A read model that has nothing to write for any event. */
const unmoved: Projection = {
  name: 'unmoved',
  version: 1,
  createTable: (table) => `create table ${table} (tenant text, session_id text)`,
  apply: () => Promise.resolve([]),
};

let db: TestDatabase;
let node: Node;
let pool: Pool;
beforeEach(async () => {
  db = await createTestDatabase();
  node = await Node.start(db.url, []);
  pool = createPool(db.url, 'lane fold');
  await createTables(pool, [unmoved], node.store.laneCount);
});
afterEach(async () => {
  await pool.end();
  await node.stop();
  await expectSoundLog(db).finally(() => db.drop());
});

const fold = (): LaneFold => new LaneFold(node.store, pool, unmoved, tableOf(unmoved), () => undefined);
const epochs = (epoch: number): Map<number, number> =>
  new Map(Array.from({ length: node.store.laneCount }, (_, lane) => [lane, epoch]));
/** So many that there are some in each lane. */
const CREATED = 100;
const create = async (prefix: string): Promise<void> => {
  for (let n = 0; n < CREATED; n += 1) await node.handle(`${prefix}-${n}`, new CreateSession());
};
const moved = (lane: number): Promise<{ position: number; epoch: number }[]> =>
  db.query(
    'select position::int, epoch::int from projection_checkpoint where projection = $1 and lane = $2',
    [tableOf(unmoved), lane],
  );
const checkpoints = async (): Promise<{ at: number; epoch: number }> => {
  const [row] = await db.query<{ at: string; epoch: string }>(
    'select sum(position) as at, max(epoch) as epoch from projection_checkpoint where projection = $1',
    [tableOf(unmoved)],
  );
  return { at: Number(row?.at), epoch: Number(row?.epoch) };
};

it('given events that are nothing to a read model, when lanes advance, then their checkpoints move all the same', async () => {
  await create('a');
  const { events } = await fold().advance(epochs(1), 100);
  expect(events).toHaveLength(CREATED);
  expect(await checkpoints()).toEqual({ at: CREATED, epoch: 1 });
});

it('given a node that has lost its lanes, when it finds events that are nothing to the read model, then it is refused, and the checkpoints stay where the other node has moved them', async () => {
  const [zombie, heir] = [fold(), fold()];
  await create('a');
  await zombie.advance(epochs(1), 100);
  await create('b');
  await heir.advance(epochs(2), 100);
  // It still believes that the checkpoints are where it has moved them; then it has read them anew.
  await expect(zombie.advance(epochs(1), 100)).rejects.toThrow(Fenced);
  await create('c');
  await expect(zombie.advance(epochs(1), 100)).rejects.toThrow(Fenced);
  expect(await checkpoints()).toEqual({ at: 2 * CREATED, epoch: 2 });
});

it('given a node that has lost one of its lanes, when it finds events that are nothing to the read model, then that lane is refused, and the others move once', async () => {
  const [first, heir] = [fold(), fold()];
  await create('a');
  await first.advance(epochs(1), 100);
  await create('b');
  await heir.advance(new Map([[0, 2]]), 100);
  const [lost] = await moved(0);
  await create('c');
  await expect(first.advance(epochs(1), 100)).rejects.toThrow(Fenced);
  expect(await moved(0)).toEqual([lost]);
  const { events } = await heir.advance(new Map([[0, 2]]), 100);
  expect(events.length).toBeGreaterThan(0);
  expect(await checkpoints()).toEqual({ at: 3 * CREATED, epoch: 2 });
});
