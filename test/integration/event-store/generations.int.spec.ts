import { randomUUID } from 'node:crypto';
import { Client } from 'pg';
import { connect } from '../../../src/database/connection.js';
import { LogGenerations } from '../../../src/event-store/log-generations.js';
import { Telemetry } from '../../../src/event-store/telemetry.js';
import { EventLog } from '../../../src/event-store/log.js';
import { appendOf } from '../../support/append.js';
import { insist, settableDatabase } from '../../support/settable-database.js';
import { by, Nodes, tallies } from './fixture.js';

const stream = { tenant: 'acme', streamId: 's' };
const nodes = new Nodes();
const ends: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  await nodes.stopAll();
  for (const end of ends.splice(0).reverse()) await end();
});

const settable = () => settableDatabase(ends);

it.each([
  ['notices it by the append', false],
  ['has noticed it before', true],
])(
  'given a state of events that are gone, when others have brought the stream to its version, then a process that %s decides nothing upon it',
  async (_, isNoticed) => {
    const database = await settable();
    const one = await nodes.start(database.url);
    const add = (log: EventLog, number: number) =>
      insist(() => tallies(log).handle(stream, { numbers: [number] }, by));
    const kept = tallies(one);
    await kept.handle(stream, { numbers: [1] }, by);
    await database.keep();
    await insist(() => kept.handle(stream, { numbers: [2] }, by));
    expect((await insist(() => kept.handle(stream, { numbers: [3] }, by))).state).toMatchObject({
      sum: 6,
      version: 3,
    });
    const former = await database.setBack();

    const two = await EventLog.open(database.url);
    try {
      await add(two, 20);
      expect((await add(two, 30)).state).toMatchObject({ sum: 51, version: 3 });
      // What the first process remembers has the right version, and is of events that are gone.
      if (isNoticed) {
        await insist(() => one.streams.versions([stream]));
        expect(one.generations.current).toBe(2);
      }
      const { state } = await insist(() => kept.handle(stream, { numbers: [4] }, by));
      expect(state).toMatchObject({ sum: 55, version: 4 });
      expect([one.generations.current, two.generations.current]).toEqual([2, 2]);
      const lane = one.laneOf(stream);
      expect([1, 2, 4].map((position) => one.generations.of({ lane, position }))).toEqual([1, 2, 2]);
      expect(one.generations.keptOf(1, lane)).toBe(1);
      const zombie = new Client({ connectionString: former });
      await zombie.connect();
      await expect(one.generations.check(zombie)).rejects.toMatchObject({ name: 'NotPrimary' });
      await zombie.end();
      // An append that was decided before is not made, though the stream is at the version which it expects.
      const outdated = { ...appendOf(stream, 4, [{ type: 'Added', data: { number: 9 } }]), generation: 1 };
      expect(await one.append(outdated)).toMatchObject({ status: 'conflict' });
    } finally {
      await two.close();
    }
  },
  60_000,
);

it('given two connections that are checked at the same time after a set-back, then one generation begins, not another one for what was seen in the one before', async () => {
  const { url } = await settable();
  const client = await connect(url, 'test');
  ends.push(() => client.end());
  const generations = new LogGenerations(16, new Telemetry());
  await generations.check(client);
  // As if the log had been longer.
  generations.appended(3, 100);
  await client.query(`update log_generation set server = 'the former one'`);
  let checkedMeanwhile = 0;
  await generations.check({
    query: (async (text: string, values: unknown[]) => {
      // While what is gone is written down, which takes a round trip.
      if (text.includes('log_loss')) {
        checkedMeanwhile += 1;
        await generations.check(client);
      }
      return client.query(text, values);
    }) as unknown as Client['query'],
  });
  expect(checkedMeanwhile).toBe(1);
  expect(generations.current).toBe(2);
  expect(await generations.records(client)).toMatchObject([{}, { lost: [{ lane: 3, from: 1, to: 100 }] }]);
});

it('given leases whose epochs are gone with the last events, when they are taken after that, then their epochs are higher than all before', async () => {
  const database = await settable();
  const one = await nodes.start(database.url);
  await database.keep();
  const taken: number[] = [];
  const take = async (log: EventLog): Promise<number> => {
    const leases = log.leases(randomUUID());
    const epoch = (await insist(() => leases.take(['work']))).get('work') ?? -1;
    await leases.close();
    return epoch;
  };
  // A sequence is written down some numbers ahead.
  for (let n = 0; n < 100; n += 1) taken.push(await take(one));
  await database.setBack();

  const two = await insist(() => EventLog.open(database.url));
  try {
    expect(two.generations.current).toBe(2);
    expect(await take(two)).toBeGreaterThan(Math.max(...taken));
  } finally {
    await two.close();
  }
});
