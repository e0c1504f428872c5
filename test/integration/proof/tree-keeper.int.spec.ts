import { AppendMessages, CreateSession } from '../../../src/domain/session.commands.js';
import { createTestDatabase, type TestDatabase } from '../../support/database.js';
import { expectSoundLog } from '../event-store/fixture.js';
import { message, Node } from '../projection-engine/fixture.js';
import { Prover } from './fixture.js';

let db: TestDatabase;
let node: Node;
let prover: Prover;
beforeEach(async () => {
  db = await createTestDatabase();
  node = await Node.start(db.url, []);
  prover = new Prover(db.url, node.store);
});
afterEach(async () => {
  await prover.close();
  await node.stop();
  await expectSoundLog(db).finally(() => db.drop());
});

const all = (): number[] => Array.from({ length: node.store.laneCount }, (_, lane) => lane);
const never = (): boolean => false;

it('given events in all lanes, more than one lane may have at once but few in each, when trees take them in, then they are not behind', async () => {
  for (let n = 0; n < 200; n += 1) await node.handle(`s${n}`, new CreateSession());
  const { isBehind, grown } = await prover.keeper.advance(all(), never);
  expect({ isBehind, lanes: grown.length }).toEqual({ isBehind: false, lanes: node.store.laneCount });
});

it('given one lane with more events than are taken in of a lane at once, when trees take them in, then they are behind until all are', async () => {
  await node.handle('one', new CreateSession());
  const many = Array.from({ length: 60 }, (_, n) => message(`message ${n}`));
  for (let n = 0; n < 3; n += 1) await node.handle('one', new AppendMessages(many));
  const behind: boolean[] = [];
  for (let turn = 0; turn < 3; turn += 1) behind.push((await prover.keeper.advance(all(), never)).isBehind);
  expect(behind).toEqual([true, false, false]);
});
