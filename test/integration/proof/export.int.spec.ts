import { createCipheriv, createHash } from 'node:crypto';
import * as session from '../../../src/domain/session.commands.js';
import { EventLog, type EventLogOptions } from '../../../src/event-store/log.js';
import { createTestDatabase, type TestDatabase } from '../../support/database.js';
import { masterKey } from '../../support/master-keys.js';
import { expectSoundLog, seeded, sized } from '../event-store/fixture.js';
import { message, Node, TENANT } from '../projection-engine/fixture.js';
import { exportOf, importInto, type Line, linesOf } from '../transfer/fixture.js';
import { Prover, verified } from './fixture.js';

jest.setTimeout(120_000);

const SEALED: EventLogOptions = { masterKeys: [masterKey('one')] };
/** With a place for the notary's key, and payloads in plain. */
const PLAIN: EventLogOptions = { masterKeys: ['plain', masterKey('one')] };

let db: TestDatabase;
const nodes: Node[] = [];
const provers: Prover[] = [];
async function start(options: EventLogOptions = SEALED): Promise<{ node: Node; prover: Prover }> {
  const node = await Node.start(db.url, [], options);
  nodes.push(node);
  return { node, prover: await proverOf(options) };
}
async function proverOf(options: EventLogOptions = SEALED): Promise<Prover> {
  // As the command line does: without an upcaster.
  const prover = new Prover(db.url, await EventLog.open(db.url, options));
  provers.push(prover);
  return prover;
}
beforeEach(async () => {
  db = await createTestDatabase();
});
afterEach(async () => {
  await Promise.all(nodes.splice(0).map((node) => node.stop()));
  for (const prover of provers.splice(0)) {
    await prover.close();
    await prover.log.close();
  }
  await expectSoundLog(db).finally(() => db.drop());
});

/** Three sessions with messages, of which the second is erased and goes on. */
async function threeSessions(node: Node): Promise<void> {
  for (const id of ['alice', 'bob', 'carol']) {
    await node.handle(id, new session.CreateSession({ title: `of ${id}` }));
    for (let n = 0; n < 4; n += 1)
      await node.handle(id, new session.AppendMessages([message(`${id} says ${n}`)]));
  }
  await node.handle('bob', new session.EraseSession());
  await node.handle('bob', new session.CreateSession());
}

const textOf = (lines: readonly Line[]): string => {
  const rest = lines.filter((line) => !('manifest' in line)).map((line) => `${JSON.stringify(line)}\n`);
  const last = lines.find((line) => 'manifest' in line) as { manifest: Line } | undefined;
  const sha256 = createHash('sha256').update(rest.join('')).digest('hex');
  // Whoever changes the file would change its hash as well.
  return `${rest.join('')}${last ? `${JSON.stringify({ manifest: { ...last.manifest, sha256 } })}\n` : ''}`;
};

describe.each([
  ['sealed', SEALED],
  ['plain', PLAIN],
])('an export with proofs of a %s log', (kind, options) => {
  it('given any histories, with erasures, when they are exported with proofs, then all is proven, the export says the same as one without, and can be imported', async () => {
    const { node, prover } = await start(options);
    const random = seeded();
    const ids = Array.from({ length: 12 }, (_, index) => `s${index}`);
    const events = sized(4_000, 700, 300);
    for (let done = 0; done < events;) {
      done += await node.live(random, ids, 60);
      if (kind === 'sealed')
        await node.handle(ids[random(ids.length)] ?? '', new session.EraseSession()).catch(() => undefined);
      // Trees grow in steps, and are signed at some of them.
      if (random(2)) await prover.sign();
    }
    const text = await prover.export();
    const found = await verified(text, await prover.publicKeys());
    expect(found.findings).toEqual([]);
    const plainText = await exportOf(db, {}, options);
    const isEvent = (line: Line): boolean => 'id' in line;
    const withoutProof = ({ proof: _, ...line }: Line): Line => line;
    expect(linesOf(text).filter(isEvent).map(withoutProof)).toEqual(linesOf(plainText).filter(isEvent));
    expect(found).toMatchObject({
      events: linesOf(plainText).filter(isEvent).length,
      erased: linesOf(plainText).filter((line) => line['erased']).length,
      withoutCommitment: 0,
      claim: 'all sessions of all tenants',
    });
    if (kind === 'sealed') expect(found.erased).toBeGreaterThan(10);

    const copy = await createTestDatabase();
    try {
      await importInto(copy, text, options);
      // An import ends sessions that were active.
      const imported = linesOf(await exportOf(copy, {}, options)).filter(isEvent);
      expect(imported.filter(({ actor }) => actor !== 'system:import')).toEqual(
        linesOf(plainText).filter(isEvent),
      );
    } finally {
      await copy.drop();
    }
  });

  const signed = async (): Promise<{ lines: Line[]; keys: string; prover: Prover; node: Node }> => {
    const { node, prover } = await start(options);
    if (kind === 'sealed') await threeSessions(node);
    else
      for (const id of ['alice', 'bob', 'carol']) {
        await node.handle(id, new session.CreateSession({ title: `of ${id}` }));
        for (let n = 0; n < 4; n += 1)
          await node.handle(id, new session.AppendMessages([message(`${id} says ${n}`)]));
      }
    const lines = linesOf(await prover.export({ tenant: TENANT }));
    return { lines, keys: await prover.publicKeys(), prover, node };
  };
  const at = (lines: readonly Line[], id: string, version: number): number =>
    lines.findIndex((line) => line['sessionId'] === id && line['version'] === version);

  type Tampering = (lines: Line[]) => Line[];
  const changed =
    (id: string, version: number, change: (line: Line) => Line): Tampering =>
    (lines) =>
      lines.map((line, index) => (index === at(lines, id, version) ? change(line) : line));
  const tamperings: [string, Tampering, string, RegExp][] = [
    [
      'one letter of a message is another one',
      changed('carol', 3, (line) => JSON.parse(JSON.stringify(line).replace('says 1', 'says 7')) as Line),
      `${TENANT}/carol/3`,
      /did not have it at position/,
    ],
    [
      'a time is another one',
      changed('carol', 3, (line) => ({ ...line, time: '2026-01-01T00:00:00.000Z' })),
      `${TENANT}/carol/3`,
      /did not have it/,
    ],
    [
      'who did it is another one',
      changed('alice', 2, (line) => ({ ...line, actor: 'mallory' })),
      `${TENANT}/alice/2`,
      /did not have it/,
    ],
    [
      'two events are exchanged',
      (lines) => {
        const [a, b] = [at(lines, 'carol', 2), at(lines, 'carol', 3)];
        return lines.map((line, index) => lines[index === a ? b : index === b ? a : index] ?? line);
      },
      `${TENANT}/carol/3`,
      /versions 1 to 2|versions 2 to 2 are missing/,
    ],
    [
      'the data of two events is exchanged',
      (lines) => {
        const [a, b] = [lines[at(lines, 'carol', 2)], lines[at(lines, 'carol', 3)]];
        return lines.map((line) =>
          line === a ? { ...a, data: b?.['data'] } : line === b ? { ...b, data: a?.['data'] } : line,
        );
      },
      `${TENANT}/carol/2`,
      /did not have it/,
    ],
    [
      'an event in the middle is left out',
      (lines) => lines.filter((_, index) => index !== at(lines, 'carol', 3)),
      `${TENANT}/carol/4`,
      /versions 3 to 3 are missing/,
    ],
    [
      'the last events are cut off, and the line of the session says so',
      (lines) =>
        lines
          .filter((line) => line['sessionId'] !== 'carol' || Number(line['version']) < 4)
          .map((line) =>
            (line['session'] as Line | undefined)?.['sessionId'] === 'carol'
              ? { ...line, session: { ...(line['session'] as Line), version: 3 } }
              : line,
          ),
      `${TENANT}/carol`,
      /ends at version 3, and had version 5/,
    ],
    [
      'an event is added',
      (lines) =>
        lines.flatMap((line, index) =>
          index === at(lines, 'carol', 5) ? [line, { ...line, version: 6 }] : [line],
        ),
      `${TENANT}/carol/6`,
      /did not have it/,
    ],
    [
      'a whole session is left out',
      (lines) =>
        lines.filter(
          (line) =>
            line['sessionId'] !== 'bob' && (line['session'] as Line | undefined)?.['sessionId'] !== 'bob',
        ),
      `${TENANT}/carol`,
      /1 sessions are missing before it/,
    ],
    [
      'the last session is left out',
      (lines) =>
        lines.filter(
          (line) =>
            line['sessionId'] !== 'carol' && (line['session'] as Line | undefined)?.['sessionId'] !== 'carol',
        ),
      'the file',
      /1 sessions less than were exported, 1 of them the last/,
    ],
    [
      'the data of an event is taken away, and it is said to be erased',
      changed('carol', 3, (line) => {
        const { data, proof, ...rest } = line as { data: object; proof: { salt?: string } } & Line;
        const commitment = createHash('sha256')
          .update(proof.salt ?? '')
          .update(canonical(data))
          .digest('hex');
        return { ...rest, data: null, erased: true, proof: { ...proof, commitment } };
      }),
      `${TENANT}/carol/3`,
      /no erasure behind it/,
    ],
    [
      'the statement on the whole is missing',
      (lines) => lines.filter((line) => !('statement' in line) || 'session' in line),
      'the file',
      /statement of the notary on the whole/,
    ],
    [
      'the file ends in the middle',
      (lines) => lines.slice(0, at(lines, 'carol', 3)),
      'the file',
      /its manifest is missing/,
    ],
    [
      'a checkpoint is signed by somebody else',
      (lines) =>
        lines.map((line) => {
          const checkpoint = line['checkpoint'] as { note: string } | undefined;
          return checkpoint
            ? { checkpoint: { ...checkpoint, note: checkpoint.note.replace(/(?<=— \S+ \S{20})./, 'A') } }
            : line;
        }),
      'lane',
      /not signed by a key that was given/,
    ],
  ];
  it.each(tamperings)(
    'given that %s, when it is verified, then that is found and named',
    async (_, tamper, what, message) => {
      const { lines, keys } = await signed();
      expect((await verified(textOf(lines), keys)).findings).toEqual([]);
      const { findings } = await verified(textOf(tamper(structuredClone(lines))), keys);
      expect(findings).toContainEqual(
        expect.objectContaining({
          what: expect.stringContaining(what) as unknown,
          message: expect.stringMatching(message) as unknown,
        }),
      );
    },
  );

  it('given a checkpoint that is replaced by an older one, when the export is verified, then the events behind it are named', async () => {
    const { node, prover } = await start(options);
    await node.handle('carol', new session.CreateSession());
    const older = linesOf(await prover.export());
    await node.handle('carol', new session.AppendMessages([message('more')]));
    const newer = linesOf(await prover.export());
    const lines = newer.map((line) => ('checkpoint' in line ? (older[0] ?? line) : line));
    const { findings } = await verified(textOf(lines), await prover.publicKeys());
    expect(findings).toContainEqual(
      expect.objectContaining({ kind: 'not covered', what: `${TENANT}/carol/2` }),
    );
  });
});

/** RFC 8785 for this data, by a third hand. */
const canonical = (value: unknown): string =>
  JSON.stringify(value, (_, member: unknown) =>
    typeof member === 'object' && member !== null && !Array.isArray(member)
      ? Object.fromEntries(Object.entries(member).sort(([a], [b]) => (a < b ? -1 : 1)))
      : member,
  );

it('given an export that was made under a former key, when the key was exchanged, then both exports verify with both public keys, and the new one not with the former alone', async () => {
  const { node, prover } = await start();
  await threeSessions(node);
  const [former] = (await prover.keys.list()).concat((await prover.sign(), await prover.keys.list()));
  const before = await prover.export();
  await prover.keys.rotate();
  await node.handle('alice', new session.AppendMessages([message('later')]));
  const after = await prover.export();
  const keys = await prover.publicKeys();
  expect(keys.trim().split('\n')).toHaveLength(2);
  for (const text of [before, after]) expect((await verified(text, keys)).findings).toEqual([]);
  const { findings } = await verified(after, former?.verifier ?? '');
  expect(findings.map(({ kind }) => kind)).toContain('not signed');
});

it('given no master key, when an export with proofs is asked for, then it says what to do, and nothing is made', async () => {
  const { node, prover } = await start({});
  await node.handle('alice', new session.CreateSession());
  await expect(prover.export()).rejects.toThrow(/COLLOQUY_MASTER_KEY/);
  expect(await db.query('select from notary_key')).toEqual([]);
});

it('given events that were sealed before there were commitments, when they are read and exported, then they are as they were, and their envelopes are proven', async () => {
  const { node, prover } = await start();
  await node.handle('old', new session.CreateSession({ title: 'since then' }));
  // What was written before: format 1, the JSON alone, with the same key.
  const [row] = await db.query<{ key_id: string; lane: number; position: string }>(
    `select key_id, lane, position from event where stream_id = 'old'`,
  );
  const key = (await prover.log.secrets?.get([row?.key_id ?? '']))?.get(row?.key_id ?? '');
  if (!row || !key) throw new Error('no key');
  const nonce = Buffer.alloc(12, 7);
  const identity = JSON.stringify([TENANT, 'old', 2, 'MessageAppended']);
  const cipher = createCipheriv('aes-256-gcm', key, nonce).setAAD(Buffer.from(identity));
  const data = JSON.stringify({ messageId: 'm-old', role: 'user', content: 'from before' });
  const bytes = Buffer.concat([cipher.update(data), cipher.final()]);
  const sealed = Buffer.concat([Buffer.of(1), nonce, cipher.getAuthTag(), bytes]);
  await db.query(
    `insert into event (lane, position, tenant, stream_id, version, incarnation, id, type, schema_version, time, actor,
                        correlation_id, sealed, key_id)
     select lane, position + 1, tenant, stream_id, 2, incarnation, gen_random_uuid(), 'MessageAppended', 1, time, actor,
            correlation_id, $1, key_id from event where stream_id = 'old'`,
    [sealed],
  );
  const text = await prover.export();
  expect(linesOf(text).find((line) => line['version'] === 2)?.['data']).toMatchObject({
    content: 'from before',
  });
  const found = await verified(text, await prover.publicKeys());
  expect(found).toMatchObject({ findings: [], events: 2, withoutCommitment: 1 });
});
