import {
  type HistoryPage,
  type PageOfHistory,
  readHistory,
  readHistoryIfUnmoved,
} from '../../../src/read-models/history.projection.js';
import { createTestDatabase, type TestDatabase } from '../../support/database.js';
import { sized } from '../../support/heavy.js';
import { eventually } from '../../support/http.js';
import { seeded } from '../event-store/fixture.js';
import { Node, TENANT } from '../projection-engine/fixture.js';

const SEEDS = sized(40, 12, 4);
const STEPS = 25;
jest.setTimeout(sized(300_000, 60_000));
const SESSIONS = ['one', 'two', 'three'];

let db: TestDatabase;
beforeAll(async () => {
  db = await createTestDatabase();
});
afterAll(() => db.drop());

const parsed = (page: HistoryPage | undefined): unknown =>
  page && { ...page, messages: JSON.parse(page.messages) as unknown };

it('given random commands, when pages are read right after them, then they are what the read model shows when it has caught up', async () => {
  let added = 0;
  for (let seed = 1; seed <= SEEDS; seed += 1) {
    const random = seeded(seed);
    const node = await Node.start(db.url);
    const recent = jest.spyOn(node.store.lanes, 'recent');
    try {
      const read: { page: PageOfHistory; found: HistoryPage | undefined }[] = [];
      for (let step = 0; step < STEPS; step += 1) {
        await node.live(
          random,
          SESSIONS.map((id) => `${id}-${seed}`),
          1 + random(4),
        );
        for (const id of SESSIONS) {
          const sessionId = `${id}-${seed}`;
          const { state, ...place } = await node.load(sessionId);
          if (state.status !== 'active' && state.status !== 'expired') continue;
          const page: PageOfHistory = {
            ...{ tenant: TENANT, sessionId, incarnation: state.incarnation, at: state.version },
            ...(random(2) === 0 && { after: 1 + random(state.version) }),
            order: random(2) === 0 ? 'asc' : 'desc',
            limit: 1 + random(6),
          };
          const found = await readHistoryIfUnmoved(node.models, { ...place, version: state.version }, page);
          if (found === 'moved') throw new Error('nobody else writes');
          read.push({ page, found });
        }
      }
      await eventually(async () => (await node.projector.lag()).every(({ behind }) => behind === 0));
      for (const { page, found } of read) {
        const later = await readHistory(node.models, 'eventual', page);
        expect({ page, found: parsed(found) }).toEqual({ page, found: parsed(later) });
      }
      added += recent.mock.results.filter(({ value }) => value !== undefined).length;
    } finally {
      await node.stop();
    }
  }
  // Otherwise the read model was never behind, and nothing was shown.
  expect(added).toBeGreaterThan(10 * SEEDS);
});
