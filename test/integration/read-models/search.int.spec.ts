import { type Pool, type QueryConfig } from 'pg';
import { type Role } from '../../../src/domain/session.events.js';
import { ReadModels } from '../../../src/projection-engine/strong-reads.js';
import {
  fold,
  keyOfOwner,
  keyOfRole,
  keysOfText,
  keysOfTime,
  termsOf,
} from '../../../src/read-models/search-keys.js';
import { searchProjection, SEARCH } from '../../../src/read-models/search.projection.js';
import { type Hit, type Search, searchMessages } from '../../../src/read-models/search.js';
import { type SessionRecord } from '../../../src/read-models/session-record.js';
import { createTestDatabase, type TestDatabase } from '../../support/database.js';
import { openWatched, planOf } from '../../support/plans.js';
import { seeded, sized } from '../event-store/fixture.js';
import { Node } from '../projection-engine/fixture.js';

const MESSAGES = sized(20_000, 3_000);
const DAY_MS = 86_400_000;
const START = Date.UTC(2025, 0, 1);
const ROLES: readonly Role[] = ['user', 'assistant', 'system', 'tool'];
const WORDS = [
  'refund',
  'Order',
  'late',
  'shipping',
  'Zoë',
  'AI',
  'go',
  '天気予報',
  '返品する',
  'สวัสดีครับ',
  '100%',
  '🎉',
];

let db: TestDatabase;
let node: Node;
let pool: Pool;
let models: ReadModels;
let last: QueryConfig;
let rowsRead = 0;
let statements = 0;

interface Said extends Omit<Hit, 'messageId'> {
  readonly tenant: string;
}
const said: Said[] = [];

/** Times lie close together and far apart, and several messages share one. */
beforeAll(async () => {
  db = await createTestDatabase();
  node = await Node.start(db.url);
  const random = seeded();
  let time = START;
  for (let number = 0; number < MESSAGES; number += 1) {
    time += [0, 1, 20_000, 3_600_000][random(4)] ?? 0;
    if (number === MESSAGES / 2) time += 500 * DAY_MS;
    const words = Array.from({ length: 1 + random(8) }, () => WORDS[Math.min(random(12), random(12))]);
    if (number === 17) words.push('needle');
    said.push({
      tenant: number % 5 === 0 ? 'other' : 'acme',
      sessionId: `s${random(50)}`,
      version: number + 1,
      role: ROLES[Math.min(random(40), 3)] ?? 'user',
      createdAt: new Date(time).toISOString(),
      text: `${words.join(' ')} n${number}`,
    });
  }
  await apply(
    said.map(({ tenant, sessionId, version, role, createdAt, text }) =>
      record(tenant, sessionId, version, 'MessageAppended', {
        ...{ messageId: `m${version}`, role, content: text, status: 'complete' },
        // Some times are finer than milliseconds.
        origin: {
          sessionId,
          messageId: 'm',
          createdAt: version % 3 === 0 ? createdAt : finer(createdAt, version),
        },
      }),
    ),
  );
  pool = openWatched(db.url, (statement, rows) => {
    last = statement;
    statements += 1;
    rowsRead += rows;
  });
  models = new ReadModels(pool, node.store);
}, 120_000);
afterAll(async () => {
  await pool.end();
  await node.stop();
  await db.drop();
});

const finer = (time: string, number: number): string => time.replace('Z', `${100 + (number % 900)}Z`);

const record = (
  tenant: string,
  streamId: string,
  version: number,
  type: string,
  data: object,
): SessionRecord =>
  ({
    ...{ tenant, streamId, version, type, data },
    ...{ incarnation: 1, time: new Date(START).toISOString(), lane: 0, position: version },
  }) as unknown as SessionRecord;

async function apply(events: readonly SessionRecord[]): Promise<void> {
  for (let from = 0; from < events.length; from += 1_000) {
    const statements = await searchProjection.apply(events.slice(from, from + 1_000), SEARCH, () =>
      Promise.resolve([]),
    );
    for (const { text, values } of statements) await db.query(text, values);
  }
}

const newestFirst = (a: Said | Hit, b: Said | Hit): number =>
  Date.parse(b.createdAt) - Date.parse(a.createdAt) ||
  (a.sessionId < b.sessionId ? 1 : a.sessionId > b.sessionId ? -1 : 0) ||
  b.version - a.version;

function naive({ tenant, terms, role, from, to }: Search): number[] {
  return said
    .filter(
      (one) =>
        one.tenant === tenant &&
        (role === undefined || one.role === role) &&
        (from === undefined || Date.parse(one.createdAt) >= Date.parse(from)) &&
        (to === undefined || Date.parse(one.createdAt) < Date.parse(to)) &&
        terms.every((term) => fold(one.text).includes(term)),
    )
    .sort(newestFirst)
    .map(({ version }) => version);
}

/** All pages of a search. */
async function all(search: Search): Promise<number[]> {
  const found: number[] = [];
  for (let after: Search['after'] | null = search.after; after !== null;) {
    const { hits, next } = await searchMessages(models, 'eventual', { ...search, after });
    found.push(...hits.map(({ version }) => version));
    after = next;
  }
  return found;
}

const asked = (q: string, more: Partial<Search> = {}): Search => ({
  ...{ tenant: 'acme', terms: termsOf(q), limit: 50 },
  ...more,
});

describe('a search in messages', () => {
  it('given messages in several scripts, when texts, roles and times are searched, then all pages together hold what a naive search finds, in order', async () => {
    const random = seeded();
    const some = [
      'ref',
      'und',
      'refund',
      'REFUND order',
      '"Order late"',
      'ping n1',
      'zoë',
      'ai',
      'go',
      'n7 refund',
    ];
    const scripts = [
      '天気',
      '気予',
      '天',
      '返品',
      'สวัส',
      '🎉',
      '100%',
      '%',
      'needle',
      'nothing like this',
      'n12',
    ];
    for (const q of [...some, ...scripts]) {
      for (let round = 0; round < 3; round += 1) {
        const [one, two] = [random(MESSAGES), random(MESSAGES)].sort((a, b) => a - b);
        const search = asked(q, {
          tenant: random(4) === 0 ? 'other' : 'acme',
          limit: [11, 50, 200][random(3)] ?? 50,
          ...(random(3) === 0 && { role: ROLES[random(4)] ?? 'user' }),
          ...(random(3) === 0 && { from: said[one ?? 0]?.createdAt }),
          ...(random(3) === 0 && { to: said[two ?? 0]?.createdAt }),
        });
        expect({ search, found: await all(search) }).toEqual({ search, found: naive(search) });
      }
    }
  });

  it('given a single match among the oldest messages, when it is searched, then the index finds it, and hardly a row is read', async () => {
    rowsRead = 0;
    expect(await all(asked('needle'))).toEqual([18]);
    expect(rowsRead).toBeLessThan(30);
    const plan = await planOf(pool, last);
    expect(plan).toContain(`Bitmap Index Scan on ${SEARCH}_keys`);
    expect(plan).not.toMatch(/Seq Scan|JIT/);
  });

  it('given a text that many messages contain, when it is searched, then the newest messages suffice', async () => {
    await searchMessages(models, 'eventual', asked('refund'));
    const plan = await planOf(pool, last);
    expect(plan).toContain(`Index Scan Backward using ${SEARCH}_in_time`);
    expect(plan).not.toMatch(/Seq Scan|JIT/);
  });
});

describe('a search across a time in which nothing was said', () => {
  it('given matches of the last second and one of ten years before, when they are searched, then a few questions to the index find it', async () => {
    const at = (version: number): string =>
      new Date(version === 1 ? START - 3_650 * DAY_MS : START + version).toISOString();
    await apply(
      Array.from({ length: 700 }, (_, index) => index + 1).map((version) =>
        record('quiet', 's', version, 'MessageAppended', {
          ...{ messageId: `m${version}`, role: 'user', status: 'complete' },
          content: version === 1 || version % 60 === 0 ? 'a match' : 'something else',
          origin: { sessionId: 's', messageId: 'm', createdAt: at(version) },
        }),
      ),
    );
    statements = 0;
    const { hits } = await searchMessages(models, 'eventual', asked('match', { tenant: 'quiet', limit: 12 }));
    expect(hits.map(({ version }) => version)).toEqual([
      660, 600, 540, 480, 420, 360, 300, 240, 180, 120, 60, 1,
    ]);
    expect(statements).toBeLessThan(12);
  });
});

describe('the read model of the search', () => {
  const message = (session: string, version: number, text: string): SessionRecord =>
    record('small', session, version, 'MessageAppended', {
      ...{ messageId: `m${version}`, role: 'user', content: text, status: 'complete' },
    });
  const texts = async (): Promise<string[]> =>
    (await searchMessages(models, 'eventual', asked('word', { tenant: 'small' }))).hits.map(
      ({ text }) => text,
    );

  it('given resets and deletions, when events are applied in one batch or in several, then only present histories are found', async () => {
    const events = [
      message('a', 2, 'word one'),
      message('b', 2, 'word two'),
      record('small', 'a', 3, 'ConversationReset', {}),
      message('a', 4, 'word three'),
      record('small', 'b', 3, 'SessionDeleted', {}),
      message('c', 2, 'word four'),
      record('small', 'c', 3, 'SessionExpired', { reason: 'ttl' }),
    ];
    await apply(events);
    expect((await texts()).sort()).toEqual(['word four', 'word three']);
    await db.query(`delete from ${SEARCH} where tenant = 'small'`);
    for (const event of events) await apply([event]);
    expect((await texts()).sort()).toEqual(['word four', 'word three']);
    await apply([
      record('small', 'a', 5, 'SessionDeleted', {}),
      record('small', 'c', 4, 'SessionDeleted', {}),
    ]);
    expect(await texts()).toEqual([]);
  });

  it('given rows with many keys, few and none, when they are applied together, then each has its own', async () => {
    const texts = [
      'a',
      'Where is my order?',
      'The weather: 天気予報',
      'x',
      'the very same order, late as ever',
    ];
    await apply([
      record('small', 'owned', 1, 'SessionCreated', { owner: 'alice' }),
      ...texts.map((text, n) => message('owned', n + 2, text)),
      ...texts.map((text, n) => message('free', n + 2, text)),
      record('small', 'last', 1, 'SessionCreated', { owner: 'bob' }),
    ]);
    const rows = await db.query<{ session_id: string; version: number; text: string; keys: number[] }>(
      `select session_id, version, text, keys from ${SEARCH} where tenant = 'small' and session_id in ('owned', 'free', 'last')`,
    );
    const expected = (id: string, text: string): number[] => [
      ...keysOfText(fold(text)),
      keyOfRole('user'),
      ...(id === 'owned' ? [keyOfOwner('small', 'alice')] : []),
      ...keysOfTime('small', START),
    ];
    expect(rows).toHaveLength(2 * texts.length + 2);
    for (const { session_id: id, version, text, keys } of rows)
      expect({ id, version, keys }).toEqual({ id, version, keys: version === 0 ? [] : expected(id, text) });
  });

  it('given messages without text, with parts, or too long, when they are applied, then their first 10 000 characters of text are found', async () => {
    const content = [
      { type: 'text', text: 'word in parts' },
      { type: 'image', image: 'https://example.org/word.png' },
    ];
    await apply([
      record('small', 'd', 2, 'MessageAppended', {
        messageId: 'm2',
        role: 'user',
        content,
        status: 'complete',
      }),
      record('small', 'd', 3, 'MessageAppended', {
        ...{ messageId: 'm3', role: 'assistant', content: '', status: 'complete' },
        toolCalls: [{ id: 'c', name: 'word', arguments: '{}' }],
      }),
      message('d', 4, `${'x'.repeat(9_990)} word 😀 ${'😀'.repeat(100)} behind`),
    ]);
    expect((await texts()).map((text) => text.length).sort()).toEqual([10_000, 13]);
    expect(await all(asked('behind', { tenant: 'small' }))).toEqual([]);
  });
});
