import { createTestDatabase, type TestDatabase } from '../../support/database.js';
import { appendOf } from '../../support/append.js';
import { killWriters, startWriter } from '../../support/writer-process.js';
import { expectSoundLog, Nodes, seeded, sized, sleep } from './fixture.js';

let db: TestDatabase;
const nodes = new Nodes();
beforeAll(async () => {
  db = await createTestDatabase();
});
afterAll(async () => {
  await killWriters();
  await nodes.stopAll();
  await expectSoundLog(db).finally(() => db.drop());
});

/** The time of a lease and a margin. Nothing that a stopped process holds may last longer. */
const LONGEST_MS = 6_000;

it('given a node that is suspended again and again during its work, when others append to the same lanes, then they succeed', async () => {
  const random = seeded();
  const store = await nodes.start(db.url);
  const stopped = await startWriter(db.url, 'stopped', 32);
  // One stream in every lane.
  const streams = new Map<number, string>();
  for (let index = 0; streams.size < store.laneCount; index += 1) {
    streams.set(store.laneOf({ tenant: 'acme', streamId: `s${index}` }), `s${index}`);
  }
  const versions = new Map<string, number>();
  const appendEverywhere = () =>
    Promise.all(
      [...streams.values()].map(async (streamId) => {
        const version = versions.get(streamId) ?? 0;
        const written = [{ type: 'Written', data: {} }];
        const result = await store.append(appendOf({ tenant: 'acme', streamId }, version, written));
        expect(result).toMatchObject({ status: 'ok', version: version + 1 });
        versions.set(streamId, version + 1);
      }),
    );

  await stopped.past(100);
  let slowest = 0;
  for (let stop = 0; stop < sized(20, 5); stop += 1) {
    await sleep(random(40));
    stopped.signal('SIGSTOP');
    for (let round = 0; round < 5; round += 1) {
      const began = Date.now();
      await appendEverywhere();
      slowest = Math.max(slowest, Date.now() - began);
    }
    stopped.signal('SIGCONT');
    await sleep(random(20));
  }
  expect(slowest).toBeLessThan(LONGEST_MS);
  // The suspended node works again as well, and none of its acknowledged appends is lost.
  await stopped.past([...stopped.acknowledged.values()].reduce((sum, version) => sum + version, 0) + 100);
  await stopped.stop();
  for (const [streamId, version] of stopped.acknowledged) {
    expect((await store.streams.load({ tenant: 'load', streamId }))?.version).toBe(version);
  }
}, 120_000);
