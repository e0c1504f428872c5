import { randomUUID } from 'node:crypto';
import { type Leases } from '../../../src/event-store/leases.js';
import { Notary } from '../../../src/proof/notary.js';
import { createTestDatabase, type TestDatabase } from '../../support/database.js';
import { eventually } from '../../support/http.js';
import { masterKey } from '../../support/master-keys.js';
import { EventLog } from '../../../src/event-store/log.js';
import { expectSoundLog, StreamWriter } from '../event-store/fixture.js';
import { Prover } from './fixture.js';

/** Less than the time after which the notary looks at all lanes again, so that only its own timer can bring it about. */
const SIGN_MS = 6_000;

let db: TestDatabase;
let log: EventLog;
let leases: Leases;
let prover: Prover;
let notary: Notary;
beforeEach(async () => {
  db = await createTestDatabase();
  log = await EventLog.open(db.url, { masterKeys: [masterKey('one')] });
  leases = log.leases(randomUUID());
  prover = new Prover(db.url, log);
  const { store, keeper } = prover;
  const fail = (error: unknown): void => {
    throw error;
  };
  notary = new Notary({
    log,
    store,
    keeper,
    leases,
    onSigned: () => undefined,
    onError: fail,
    signMs: SIGN_MS,
  });
});
afterEach(async () => {
  await notary.stop();
  await leases.close();
  await prover.close();
  await log.close();
  await expectSoundLog(db).finally(() => db.drop());
});

/** Of each lane: how large its tree was when it was last signed, and how large it is. */
const sizes = async (): Promise<{ lane: number; signed: number; size: number }[]> =>
  db.query(`select lane::int, size::int, coalesce((select max(c.size) from signed_checkpoint c where c.lane = l.lane), 0)::int as signed
            from merkle_lane l where size > 0 order by lane`);
const areAll = async (is: (signed: number, size: number) => boolean, size: number): Promise<boolean> => {
  const rows = await sizes();
  return rows.length === 2 && rows.every((row) => row.size === size && is(row.signed, row.size));
};

it('given two lanes that grew one after the other since they were signed, when nothing is appended any more, then both are signed in time', async () => {
  const ids = Array.from({ length: 50 }, (_, n) => `s${n}`);
  const laneOf = (streamId: string): number => log.laneOf({ tenant: 'default', streamId });
  const [one = ''] = ids;
  const other = ids.find((id) => laneOf(id) !== laneOf(one)) ?? '';
  const writers = [one, other].map((streamId) => new StreamWriter(log, { tenant: 'default', streamId }));
  const began = performance.now();
  await notary.start();
  for (const writer of writers) await writer.append();
  await eventually(() => areAll((signed, size) => signed === size, 1));

  // The second one grows when the timer for the first one runs already.
  const hasGrown = async (count: number): Promise<boolean> =>
    (await sizes()).filter(({ size }) => size === 2).length === count;
  await writers[0]?.append();
  await eventually(() => hasGrown(1));
  await writers[1]?.append();
  await eventually(() => hasGrown(2));
  expect(await areAll((signed, size) => signed < size, 2)).toBe(true);

  await eventually(() => areAll((signed, size) => signed === size, 2), 9_500 - (performance.now() - began));
});
