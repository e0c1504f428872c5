import { Client } from 'pg';
import { type RecordedEvent } from '../../../src/event-store/recorded-event.js';
import { createTestDatabase, type TestDatabase } from '../../support/database.js';
import { killWriters, startWriter, type WriterProcess } from '../../support/writer-process.js';
import { expectSoundLog, Nodes, sized, sleep } from './fixture.js';

let db: TestDatabase;
const nodes = new Nodes();
beforeAll(async () => {
  db = await createTestDatabase();
  await db.query('create table foreign_work (id int)');
});
afterAll(async () => {
  await killWriters();
  await nodes.stopAll();
  await expectSoundLog(db).finally(() => db.drop());
});

it('given 4 writing processes of which one is killed, and another transaction left open, when a reader keeps only lane and position, then it sees each acknowledged event once and in order, without delay', async () => {
  const store = await nodes.start(db.url);
  const positions = new Map(Array.from({ length: store.laneCount }, (_, lane) => [lane, 0]));
  const versions = new Map<string, number>();
  const disorder: unknown[] = [];
  let seen = 0;
  const see = (event: RecordedEvent): void => {
    const position = (positions.get(event.lane) ?? 0) + 1;
    const version = (versions.get(event.streamId) ?? 0) + 1;
    if (event.position !== position || event.version !== version) disorder.push({ event, position, version });
    positions.set(event.lane, event.position);
    versions.set(event.streamId, event.version);
    seen += 1;
  };
  const read = async (): Promise<number> => {
    // Pages are small, so that they end in the middle of what is being written.
    const events = await store.lanes.read(positions, 7);
    events.forEach(see);
    return events.length;
  };
  const load = { isOver: false };
  const reading = (async () => {
    while (!load.isOver) if ((await read()) === 0) await sleep(1);
  })();

  const writers: WriterProcess[] = await Promise.all(
    ['a', 'b', 'c', 'd'].map((name) => startWriter(db.url, name, 8)),
  );
  const foreigner = new Client({ connectionString: db.url });
  await foreigner.connect();
  await foreigner.query('begin');
  await foreigner.query('insert into foreign_work values (1)');
  const before = seen;
  await writers[0]?.past(sized(2_000, 300));
  await writers[0]?.kill9();
  await sleep(sized(5_000, 1_000));
  const meanwhile = seen - before;
  await foreigner.query('rollback');
  await foreigner.end();
  await Promise.all(writers.slice(1).map((writer) => writer.past(sized(5_000, 500))));
  await Promise.all(writers.slice(1).map((writer) => writer.stop()));
  load.isOver = true;
  await reading;
  while ((await read()) > 0);

  expect(disorder).toEqual([]);
  // The reader followed the log while the other transaction was open, and did not wait for it.
  expect(meanwhile).toBeGreaterThan(sized(2_000, 300));
  for (const { acknowledged } of writers) {
    for (const [streamId, version] of acknowledged) {
      // The append in progress when the process was killed may be in the log without an acknowledgement: one per
      // stream.
      expect([version, version + 1]).toContain(versions.get(streamId));
    }
  }
  expect(writers.flatMap(({ acknowledged }) => [...acknowledged])).toHaveLength(32);
  const [stored] = await db.query<{ count: string }>('select count(*) from event');
  expect(seen).toBe(Number(stored?.count));
}, 120_000);
