import { randomUUID } from 'node:crypto';
import { type EventLog } from '../../../src/event-store/log.js';
import { LaneShare } from '../../../src/event-store/lane-share.js';
import { LEASE_MS, type Leases } from '../../../src/event-store/leases.js';
import { createTestDatabase, type TestDatabase } from '../../support/database.js';
import { suspend } from '../../support/suspended.js';
import { eventually } from '../../support/http.js';
import { Nodes, StreamWriter } from './fixture.js';

let db: TestDatabase;
let store: EventLog;
const nodes = new Nodes();
const opened: Leases[] = [];
beforeEach(async () => {
  db = await createTestDatabase();
  store = await nodes.start(db.url);
});
afterEach(async () => {
  await Promise.all(opened.splice(0).map((leases) => leases.close()));
  await nodes.stopAll();
  await db.drop();
});

function node(log = store): Leases {
  const leases = log.leases(randomUUID());
  opened.push(leases);
  return leases;
}
const epoch = async (leases: Leases, name: string) => (await leases.take([name])).get(name) ?? 'not held';
/** Expires the leases as if their node had died. */
const later = (leases = 1) => db.setClock({ offsetMs: leases * (LEASE_MS + 1_000) });

describe('a lease', () => {
  it('given a free lease, when two nodes try to take it, then one holds it and keeps it by renewing', async () => {
    const [one, two] = [node(), node()];
    const epochs = await Promise.all([epoch(one, 'a'), epoch(two, 'a')]);
    expect(epochs.filter((each) => each === 'not held')).toHaveLength(1);

    const [holder, other] = epochs[0] === 'not held' ? [two, one] : [one, two];
    await db.setClock({ offsetMs: LEASE_MS - 1_000 });
    expect(await epoch(holder, 'a')).toBe(holder.epochOf('a'));
    await db.setClock({ offsetMs: LEASE_MS + 3_000 });
    expect(await epoch(other, 'a')).toBe('not held');
    expect(other.epochOf('a')).toBeUndefined();
    expect(await holder.standing(['a', 'b'])).toEqual(new Set(['a']));
  });

  it('given a renewal in progress, when a lease is released, then it stays released, both in its row and in the memory of the node', async () => {
    const one = node();
    await one.take(['a', 'kept']);
    // The renewal has to wait for this row.
    await db.query('begin');
    await db.query(`select from lease where name = 'a' for update`);
    await eventually(async () => {
      const waiting = await db.query(
        `select from pg_stat_activity
         where datname = current_database() and wait_event_type = 'Lock' and query like '%lease_take%'`,
      );
      return waiting.length > 0;
    });

    const released = one.release(['a']);
    await db.query('commit');
    await released;
    await new Promise<void>((resolve) => {
      one.onBeat(() => {
        resolve();
        return Promise.resolve();
      });
    });

    expect(one.epochOf('a')).toBeUndefined();
    expect(one.epochOf('kept')).toEqual(expect.any(Number));
    expect(await db.query('select name from lease')).toEqual([{ name: 'kept' }]);
  });

  it('given rows that were not renewed for a day, when leases are pruned, then only these rows are deleted', async () => {
    const one = node();
    await one.take(['held']);
    await db.query(
      `insert into lease select name, gen_random_uuid(), nextval('lease_epoch'), colloquy_now() - age
       from (values ('dead', interval '25 hours'), ('hanging', interval '1 minute')) as l (name, age)`,
    );
    await one.prune();
    expect(await db.query('select name from lease order by name')).toEqual([
      { name: 'hanging' },
      { name: 'held' },
    ]);
  });

  it('given a holder that is gone, when its lease has expired, then another node takes it with a higher epoch, and the first one notices', async () => {
    const [one, two] = [node(), node()];
    const first = await epoch(one, 'a');
    expect(await epoch(two, 'a')).toBe('not held');

    await later();
    expect(await two.standing(['a'])).toEqual(new Set());
    const second = await epoch(two, 'a');

    expect(second).toBeGreaterThan(first as number);
    // The first node believes that it holds the lease until it renews.
    expect(one.epochOf('a')).toBe(first);
    expect(await epoch(one, 'a')).toBe('not held');
    expect(one.epochOf('a')).toBeUndefined();
  });

  it('given a holder that was suspended for longer than its lease, when no other node took the lease, then the holder has it again, with a higher epoch', async () => {
    const one = node();
    const first = await epoch(one, 'a');
    await later();
    expect(await epoch(one, 'a')).toBeGreaterThan(first as number);
  });

  it('given a released lease, when another node takes it, then it gets it at once, with an epoch that is higher than all before', async () => {
    const [one, two, three] = [node(), node(), node()];
    await epoch(one, 'a');
    await later();
    const second = await epoch(two, 'a');
    await one.release(['a']);
    expect(await epoch(three, 'a')).toBe('not held');

    await two.release(['a']);

    // A checkpoint keeps the epoch of its last writer, so a node with a lower epoch would be fenced for ever.
    expect(await epoch(three, 'a')).toBeGreaterThan(second as number);
  });

  it('given many nodes, when they take the same leases at once in any order, then each lease has one holder and there is no deadlock', async () => {
    const names = Array.from({ length: 30 }, (_, index) => `x${index}`);
    const all = Array.from({ length: 8 }, node);
    for (let round = 0; round < 5; round += 1) {
      const taken = await Promise.all(
        all.map((leases, index) => leases.take(index % 2 === 0 ? names : [...names].reverse())),
      );
      expect(taken.reduce((sum, held) => sum + held.size, 0)).toBe(names.length);
      await Promise.all(all.map((leases) => leases.release(names)));
    }
    expect(await db.query('select name from lease')).toEqual([]);
  });

  it('given a node that closes, when another node takes its leases, then they are free', async () => {
    const one = node();
    await one.take(['a', 'b']);
    await one.close();
    expect(await node().standing(['a', 'b'])).toEqual(new Set());
  });
});

const LANES = 16;
function member(work = 'work', log = store) {
  const leases = node(log);
  const taken: number[] = [];
  const share = new LaneShare(leases, work, LANES, (lanes) => taken.push(...lanes));
  return { leases, share, taken };
}
type Member = ReturnType<typeof member>;
const lanesOf = ({ share }: Member) => [...share.owned.keys()].sort((a, b) => a - b);

describe('sharing lanes', () => {
  const balance = async (members: readonly Member[], rounds = 3) => {
    for (let round = 0; round < rounds; round += 1) for (const { share } of members) await share.balance();
  };
  const expectEachLaneOnce = (members: readonly Member[]) => {
    expect(members.flatMap(lanesOf).sort((a, b) => a - b)).toEqual(
      Array.from({ length: LANES }, (_, lane) => lane),
    );
  };

  it('given three nodes that start one after the other, when each balances from time to time, then they share the lanes evenly', async () => {
    const members = [member()];
    await balance(members);
    expectEachLaneOnce(members);
    members.push(member());
    await balance(members);
    expectEachLaneOnce(members);
    expect(members.map((each) => lanesOf(each).length)).toEqual([8, 8]);
    members.push(member());
    await balance(members);

    expectEachLaneOnce(members);
    for (const each of members) {
      expect(lanesOf(each).length).toBeGreaterThanOrEqual(4);
      expect(lanesOf(each).length).toBeLessThanOrEqual(6);
      // A node that gets a lane is notified, so that it begins to work on it.
      expect(each.taken).toEqual(expect.arrayContaining(lanesOf(each)));
    }
    // Other work is shared independently.
    const other = member('other');
    await other.share.balance();
    expect(lanesOf(other)).toHaveLength(LANES);
  });

  it('given three nodes, when all balance at the same moment, then no lane has two owners', async () => {
    const members = [member(), member(), member()];
    for (let round = 0; round < 6; round += 1) {
      await Promise.all(members.map(({ share }) => share.balance()));
      const lanes = members.flatMap(lanesOf);
      expect(new Set(lanes).size).toBe(lanes.length);
    }
    expectEachLaneOnce(members);
  });

  it('given three nodes, when one closes, then the others have its lanes after they balance again', async () => {
    const members = [member(), member(), member()];
    await balance(members);
    const [gone, ...rest] = members;
    await gone?.leases.close();
    await balance(rest);
    expectEachLaneOnce(rest);
    expect(rest.map((each) => lanesOf(each).length)).toEqual([8, 8]);
  });

  it('given two nodes, when one closes, then the other takes its lanes at once instead of at its next beat', async () => {
    const members = [member(), member()];
    await balance(members);
    const [gone, left] = members as [Member, Member];
    // Without its timer nothing but the word of the other makes it look.
    (left.leases as unknown as { stopBeating: () => void }).stopBeating();
    await gone.leases.close();
    await eventually(() => Promise.resolve(lanesOf(left).length === LANES));
    expectEachLaneOnce([left]);
  });

  it('given three nodes, when one is suspended, then its lanes are taken over once its leases have expired, with higher epochs', async () => {
    const members = [member(), member(), member()];
    await balance(members);
    const [stopped, ...rest] = members as [Member, ...Member[]];
    // The suspended node sends no heartbeats and still believes that it holds its lanes.
    await suspend(stopped.leases);
    const before = stopped.share.owned;
    expect(before.size).toBeGreaterThan(0);
    await balance(rest);
    for (const lane of before.keys()) expect(rest.flatMap(lanesOf)).not.toContain(lane);

    await later();
    for (const { share, leases } of rest) {
      await leases.take([...share.owned.keys()].map((lane) => `work/lane/${lane}`));
    }
    // A beat that is under way may have counted three nodes; the next one counts two.
    await eventually(async () => {
      await balance(rest);
      return rest.flatMap(lanesOf).length === LANES;
    });

    expectEachLaneOnce(rest);
    for (const [lane, epochBefore] of before) {
      const now = rest.map(({ share }) => share.owned.get(lane)).find((each) => each !== undefined);
      expect(now).toBeGreaterThan(epochBefore);
    }
    // When it wakes up, it notices that it holds no lane.
    await stopped.leases.take([...before.keys()].map((lane) => `work/lane/${lane}`));
    expect(lanesOf(stopped)).toEqual([]);
  });
});

describe('leases in a log to which nobody appends', () => {
  /** A node for which the log is quiet when nothing has happened for a moment. */
  const quietNode = () => nodes.start(db.url, { quietMs: 200 });
  /** Of each lease of a node: the seconds for which it stands. */
  const secondsLeft = async ({ owner }: Leases): Promise<number[]> => {
    const rows = await db.query<{ left: number }>(
      `select extract(epoch from until - colloquy_now())::float8 as left from lease where owner = '${owner}'`,
    );
    return rows.map(({ left }) => left);
  };
  /** Whether a node has leases, and all of them are as in a quiet log, or as in a busy one. */
  const are = async (leases: Leases, isSo: (seconds: number) => boolean) => {
    const left = await secondsLeft(leases);
    return left.length > 0 && left.every(isSo);
  };
  const areLong = (leases: Leases) => are(leases, (left) => left > (2 * LEASE_MS) / 1_000);
  const areShort = (leases: Leases) => are(leases, (left) => left <= LEASE_MS / 1_000);
  /** Two nodes that share the lanes and have become quiet, each on a log of its own. */
  const twoQuiet = async () => {
    const logs = [await quietNode(), await quietNode()] as const;
    const members = [member('work', logs[0]), member('work', logs[1])] as const;
    for (const { share } of members) await share.balance();
    await eventually(async () => {
      const shared = members.every((each) => lanesOf(each).length === LANES / 2);
      return shared && (await Promise.all(members.map(({ leases }) => areLong(leases)))).every(Boolean);
    });
    return { logs, members };
  };
  const stream = { tenant: 'default', streamId: 'one' };

  it('given a quiet log, when leases are renewed, then they are long, and short again with the next append', async () => {
    const { logs, members } = await twoQuiet();
    await new StreamWriter(logs[0], stream).append();
    for (const { leases } of members) await eventually(() => areShort(leases));
    for (const { leases } of members) await eventually(() => areLong(leases));
  });

  it('given a node that died in a quiet log, when another one appends, then the work of the dead one is blocked for no longer than in a busy log', async () => {
    const { logs, members } = await twoQuiet();
    const [dead, living] = members;
    await suspend(dead.leases);
    await new StreamWriter(logs[1], stream).append();
    await eventually(() => areShort(dead.leases));
    await later();
    await eventually(() => Promise.resolve(lanesOf(living).length === LANES));
  });

  it('given a node that died in a quiet log, when a reader waits for what it should have done, then its work is soon free', async () => {
    const { logs, members } = await twoQuiet();
    await suspend(members[0].leases);
    logs[1].wakeUp.readerWaits('work');
    await eventually(() => areShort(members[0].leases));
  });

  it('given two nodes in a quiet log of which one died, when another one starts, then it gets lanes of the living one at once, and those of the dead one are soon free', async () => {
    const { members } = await twoQuiet();
    const [dead, living] = members;
    await suspend(dead.leases);
    // Without its timer nothing but the word of the new one makes the living one look.
    (living.leases as unknown as { stopBeating: () => void }).stopBeating();
    const third = member('work', await quietNode());
    await third.share.balance();
    await eventually(() => Promise.resolve(lanesOf(third).length > 0));
    await eventually(() => areShort(dead.leases));
  });

  it('given a lease that began with an append, when the log is quiet, then it and what its node holds stay short', async () => {
    const { members } = await twoQuiet();
    const [{ leases }] = members;
    await leases.take(['begun']);
    leases.adopt('begun');
    await eventually(() => areShort(leases));
    await leases.release(['begun']);
    await eventually(() => areLong(leases));
  });
});
