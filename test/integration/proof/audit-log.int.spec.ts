import { createCipheriv } from 'node:crypto';
import * as session from '../../../src/domain/session.commands.js';
import { plainCommitment } from '../../../src/event-store/commitment.js';
import { EventLog, type EventLogOptions } from '../../../src/event-store/log.js';
import { createTestDatabase, type TestDatabase } from '../../support/database.js';
import { masterKey } from '../../support/master-keys.js';
import { forgetTrees, tamper } from '../../support/tampering.js';
import { seeded } from '../event-store/fixture.js';
import { message, Node, TENANT } from '../projection-engine/fixture.js';
import { Prover } from './fixture.js';

jest.setTimeout(120_000);

const SEALED: EventLogOptions = { masterKeys: [masterKey('one')] };
const PLAIN: EventLogOptions = { masterKeys: ['plain', masterKey('one')] };

let db: TestDatabase;
let node: Node;
let prover: Prover;
const start = async (options: EventLogOptions): Promise<void> => {
  node = await Node.start(db.url, [], options);
  prover = new Prover(db.url, await EventLog.open(db.url, options));
};
beforeEach(async () => {
  db = await createTestDatabase();
});
afterEach(async () => {
  await node.stop();
  await prover.close();
  await prover.log.close();
  // Its log was tampered with, so it is not looked at once more.
  await db.query('delete from counter');
  await db.query(`select set_config('session_replication_role', 'replica', false)`);
  await owner('truncate event');
  await db.drop();
});

const owner = (statement: string, params: readonly unknown[] = []): Promise<void> =>
  tamper(db, statement, params);

/** One session of 300 events, more than a tile has, signed at 3 sizes. */
async function filled(options: EventLogOptions): Promise<{ lane: number }> {
  await start(options);
  await node.handle('alice', new session.CreateSession({ title: 'first' }));
  for (const count of [99, 150, 50]) {
    const messages = Array.from({ length: count }, (_, n) => message(`message ${n}`));
    await node.handle('alice', new session.AppendMessages(messages));
    await prover.sign();
  }
  const [row] = await db.query<{ lane: number }>(`select lane from event limit 1`);
  return { lane: row?.lane ?? 0 };
}

it('given a log with erasures that nobody has tampered with, when it is audited while it grows on, then nothing is found, and every event and checkpoint was looked at', async () => {
  await start(SEALED);
  const random = seeded();
  const ids = ['a', 'b', 'c', 'd'];
  for (let round = 0; round < 4; round += 1) {
    await node.live(random, ids, 60);
    await node.handle(ids[random(4)] ?? '', new session.EraseSession()).catch(() => undefined);
    await prover.sign();
  }
  const kept = await prover.notes();
  await node.live(random, ids, 40);
  const [row] = await db.query<{ events: number; checkpoints: number }>(
    `select (select sum(size)::int from merkle_lane) as events, count(*)::int as checkpoints from signed_checkpoint`,
  );
  const audited = await prover.audit(kept);
  expect(audited).toMatchObject({ findings: [], events: row?.events });
  expect(audited.checkpoints).toBe((row?.checkpoints ?? 0) + kept.length);
});

const set = (columns: string, position = 120): [string, unknown[]] => [
  `update event set ${columns} where position = $1`,
  [position],
];
const tamperings: [
  string,
  readonly [string, unknown[]][],
  kind: string,
  position: number,
  event: string | null,
][] = [
  ['a time was changed', [set(`time = time + interval '1 second'`)], 'changed', 120, `${TENANT}/alice/120`],
  ['an actor was changed', [set(`actor = 'mallory'`, 300)], 'changed', 300, `${TENANT}/alice/300`],
  [
    'two events were exchanged',
    [
      set('position = 1000000', 120),
      set('position = 120', 121),
      [`update event set position = 121 where position = 1000000`, []],
    ],
    'changed',
    121,
    `${TENANT}/alice/120`,
  ],
  [
    'an event in the middle was taken out',
    [[`delete from event where position = 120`, []]],
    'left out',
    120,
    null,
  ],
  ['the last ones were cut off', [[`delete from event where position > 280`, []]], 'cut off', 280, null],
];

describe.each([
  ['plain', PLAIN],
  ['sealed', SEALED],
])('a %s log', (kind, options) => {
  it.each([
    ...tamperings,
    [
      'one bit of a payload was changed',
      [
        kind === 'plain'
          ? set(`data = jsonb_set(data, '{content}', '"nessage 18"')`)
          : set('sealed = set_bit(sealed, 400, 1 - get_bit(sealed, 400))'),
      ],
      'changed',
      120,
      `${TENANT}/alice/120`,
    ] as (typeof tamperings)[number],
  ])(
    'given that %s, when it is audited, then that is found and named',
    async (_, statements, found, position, event) => {
      const { lane } = await filled(options);
      expect((await prover.audit()).findings).toEqual([]);
      for (const [statement, params] of statements) await owner(statement, params);
      const { findings } = await prover.audit();
      expect(findings).toContainEqual(expect.objectContaining({ kind: found, lane, position, event }));
      // And nothing is blamed that was not touched.
      expect(findings.length).toBeLessThanOrEqual(4);
    },
  );

  it('given that a commitment and its data were changed together with the tree, when it is audited, then the checkpoint does not agree', async () => {
    const { lane } = await filled(options);
    await owner(`update event set actor = 'mallory' where position = 120`);
    const forged = new Prover(db.url, prover.log);
    await db.query('delete from merkle_tile');
    await db.query(`update merkle_lane set size = 0, root = sha256('')`);
    await db.query('delete from signed_checkpoint where size > 250');
    await forged.keeper.advance([lane], () => false);
    await forged.close();
    expect((await prover.audit()).findings).toEqual([
      expect.objectContaining({ kind: 'rewritten', lane, position: 250 }),
    ]);
  });
});

it('given sealed data that was exchanged by somebody who has its key, with the commitment left as it was, when it is audited, then the event is named', async () => {
  const { lane } = await filled(SEALED);
  const [row] = await db.query<{ key_id: string; sealed: Buffer }>(
    'select key_id, sealed from event where position = 120',
  );
  const key = (await prover.log.secrets?.get([row?.key_id ?? '']))?.get(row?.key_id ?? '');
  if (!row || !key) throw new Error('no key');
  const nonce = Buffer.alloc(12, 7);
  const identity = JSON.stringify([TENANT, 'alice', 120, 'MessageAppended']);
  const cipher = createCipheriv('aes-256-gcm', key, nonce).setAAD(Buffer.from(identity));
  const bytes = Buffer.concat([cipher.update(`${'A'.repeat(22)}{"content":"forged"}`), cipher.final()]);
  const sealed = Buffer.concat([Buffer.of(2), nonce, cipher.getAuthTag(), bytes, row.sealed.subarray(-32)]);
  await owner('update event set sealed = $1 where position = 120', [sealed]);
  expect((await prover.audit()).findings).toEqual([
    expect.objectContaining({
      ...{ kind: 'changed', lane, position: 120, event: `${TENANT}/alice/120` },
      message: 'its data is not what it commits to',
    }),
  ]);
});

it('given the same message twice, when it is sealed, then the commitments differ, and none is the hash of what was said', async () => {
  await start(SEALED);
  await node.handle('alice', new session.CreateSession());
  const same = { ...message('yes'), messageId: 'm' };
  await node.handle('alice', new session.AppendMessages([same]));
  await node.handle('alice', new session.ResetConversation());
  await node.handle('alice', new session.AppendMessages([same]));
  const { leaves } = prover.log;
  const commitments = await leaves.commitments({ tenant: TENANT, streamId: 'alice' }, 10);
  expect(new Set(commitments.map(({ commitment }) => commitment)).size).toBe(4);
  const stored = await node.store.streams.read({ tenant: TENANT, streamId: 'alice' });
  const guesses = stored.map(({ data }) => plainCommitment(data));
  for (const { commitment } of commitments) expect(guesses).not.toContain(commitment);
});

it('given a tree that has grown meanwhile, or is another one, when a step is taken from where it was, then nothing changes', async () => {
  const { lane } = await filled(PLAIN);
  const all = async (): Promise<unknown> => [
    await db.query('select * from merkle_lane order by lane'),
    await db.query('select lane, level, index, hashes from merkle_tile order by lane, level, index'),
    await db.query('select lane, size, note from signed_checkpoint order by lane, size'),
  ];
  const before = await all();
  const [head] = await prover.store.heads([lane]);
  if (!head) throw new Error('no head');
  const tiles = [{ level: 0, index: 0, hashes: Buffer.alloc(32) }];
  const to = { lane, size: 7, root: Buffer.alloc(32) };
  for (const from of [
    { ...head, size: head.size - 1 },
    { ...head, root: Buffer.alloc(32, 1) },
  ])
    expect(await prover.store.take([{ from, to, tiles, note: 'a note' }])).toEqual(new Set());
  expect(await all()).toEqual(before);
});

it('given a log that its owner rewrote whole, and had signed anew, when it is audited with what was published, then it is found; without that it is not', async () => {
  const { lane } = await filled(SEALED);
  const published = await prover.notes();
  await owner(`update event set actor = 'mallory' where position = 120`);
  await forgetTrees(db);
  // The service goes on, and cannot know.
  const service = new Prover(db.url, prover.log);
  await node.handle('alice', new session.AppendMessages([message('later')]));
  await service.sign();
  await service.close();
  expect((await prover.audit()).findings).toEqual([]);
  expect((await prover.audit(published)).findings).toEqual([
    expect.objectContaining({ kind: 'left out', lane, position: 300 }),
    expect.objectContaining({ kind: 'rewritten', lane, position: 300 }),
  ]);
});

it('given the last checkpoint deleted from the database, when it is audited with what was published, then that is found', async () => {
  const { lane } = await filled(PLAIN);
  const published = await prover.notes();
  await db.query('delete from signed_checkpoint where size = 300');
  expect((await prover.audit(published)).findings).toEqual([
    expect.objectContaining({ kind: 'left out', lane, position: 300 }),
  ]);
});

it('given many processes that let the trees grow at once, when all are done, then the trees are those of one, and each step was taken once', async () => {
  await start(PLAIN);
  const others = await Promise.all(
    [1, 2, 3].map(async () => new Prover(db.url, await EventLog.open(db.url, PLAIN))),
  );
  const random = seeded();
  for (let round = 0; round < 6; round += 1) {
    const [live] = await Promise.allSettled([
      node.live(random, ['a', 'b', 'c', 'd', 'e'], 60),
      ...[prover, ...others].map((one) => one.sign()),
    ]);
    expect(live.status).toBe('fulfilled');
  }
  await prover.sign();
  expect((await prover.audit()).findings).toEqual([]);
  const [ends] = await db.query<{ same: boolean }>(
    `select bool_and(l.size = e.position) as same from merkle_lane l join lane_ends() e on e.lane = l.lane`,
  );
  expect(ends).toEqual({ same: true });
  // However many wanted to make the first key, there is one.
  expect(await prover.keys.list()).toHaveLength(1);
  for (const other of others) {
    await other.close();
    await other.log.close();
  }
});

it('given a gap in a lane, when the trees grow, then this lane stops before it and says where, and the others go on', async () => {
  await start(PLAIN);
  for (const id of ['a', 'b', 'c', 'd', 'e', 'f']) {
    await node.handle(id, new session.CreateSession());
    await node.handle(id, new session.AppendMessages([message('one'), message('two')]));
  }
  const [row] = await db.query<{ lane: number }>(`select lane from event where stream_id = 'a' limit 1`);
  await owner('delete from event where lane = $1 and position = 2', [row?.lane]);
  const lanes = Array.from({ length: 16 }, (_, lane) => lane);
  const { broken, signed } = await prover.keeper.advance(lanes, () => true);
  expect([...broken.values()].map(({ message }) => message)).toEqual([
    `lane ${row?.lane} of the log has no position 2`,
  ]);
  // What is whole is signed as ever, up to the gap and in the other lanes.
  expect(new Set(signed.map(({ lane }) => lane)).size).toBe(
    new Set((await db.query<{ lane: number }>('select lane from event')).map(({ lane }) => lane)).size,
  );
  await expect(prover.sign()).rejects.toThrow('has no position 2');
  const sizes = await db.query(
    `select l.lane from merkle_lane l join lane_ends() e on e.lane = l.lane where l.size < e.position`,
  );
  expect(sizes).toEqual([{ lane: row?.lane }]);
});
