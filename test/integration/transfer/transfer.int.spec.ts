import { createHash, randomBytes } from 'node:crypto';
import { STATE_VERSION } from '../../../src/domain/session.state.js';
import { sessionDecider } from '../../../src/domain/session.js';
import { isActivity, type SessionState } from '../../../src/domain/session.state.js';
import * as session from '../../../src/domain/session.commands.js';
import { type SessionEvent } from '../../../src/domain/session.events.js';
import { type EventLog } from '../../../src/event-store/log.js';
import { laneOf } from '../../../src/event-store/lane.js';
import { historyProjection } from '../../../src/read-models/history.projection.js';
import { tableOf } from '../../../src/projection-engine/projection.js';
import { ProjectionLagging } from '../../../src/projection-engine/strong-reads.js';
import { sessionsProjection } from '../../../src/read-models/sessions.projection.js';
import { usageProjection } from '../../../src/read-models/usage.projection.js';
import { appendOf } from '../../support/append.js';
import { createTestDatabase, type TestDatabase } from '../../support/database.js';
import { expectCountersMatchLog } from '../../support/recount.js';
import { expectSoundLog, Nodes, seeded, sized } from '../event-store/fixture.js';
import { message, Node, TENANT } from '../projection-engine/fixture.js';
import { exportOf, importInto, importMessages, type Line, linesOf, recorded, withStore } from './fixture.js';
import { masterKey } from '../../support/master-keys.js';
import { heavy } from '../../support/heavy.js';

jest.setTimeout(600_000);

const EVENTS = sized(100_000, 4_000, 2_000);
/** More events than are read or written at once. */
const LONG = sized(20_000, 1_500, 1_100);

const open: TestDatabase[] = [];
const stores = new Nodes();
const database = async (): Promise<TestDatabase> => {
  const db = await createTestDatabase();
  open.push(db);
  return db;
};

let source: TestDatabase;
/** All that `source` holds. */
let text: string;

beforeAll(async () => {
  source = await createTestDatabase();
  await fill(source);
  text = await exportOf(source);
});
afterEach(async () => {
  await stores.stopAll();
  for (const db of open.splice(0)) await expectSoundLog(db).finally(() => db.drop());
});
afterAll(async () => {
  await expectSoundLog(source).finally(() => source.drop());
});

/** Creates sessions with every kind of history: resets, deletions, later incarnations, all statuses, and a long one. */
async function fill(db: TestDatabase): Promise<void> {
  const node = await Node.start(db.url, []);
  try {
    const random = seeded();
    const ids = Array.from({ length: EVENTS / 50 }, (_, index) => `s${index}`);
    // The tests name some of the first ones, and which are used below depends on how the writers take turns.
    for (const id of ids.slice(0, 10)) await node.handle(id, new session.CreateSession());
    let events = 10;
    while (events < EVENTS - LONG) {
      const rounds = Array.from({ length: 8 }, (_, part) =>
        // Each writer has a part of the sessions, so that no two commands on one session are concurrent.
        node.live(
          random,
          ids.filter((_, index) => index % 8 === part),
          250,
        ),
      );
      for (const added of await Promise.all(rounds)) events += added;
    }
    await node.handle('long', new session.CreateSession());
    for (let from = 0; from < LONG; from += 500) {
      const texts = Array.from({ length: 500 }, (_, index) => message(`line ${from + index} é 漢 "\\u0000"`));
      await node.handle('long', new session.AppendMessages(texts));
    }
    await node.handle(
      'long',
      new session.StartGeneration({ generationId: 'g-long', model: 'm' }, [message('and now?')]),
    );
  } finally {
    await node.stop();
  }
  // Other tenants, of which one sorts before and one after this tenant.
  const lines = [
    { sessionId: 'a', role: 'user', content: 'hello', createdAt: '2020-01-01T00:00:00Z' },
    { sessionId: 'a', role: 'assistant', content: 'hi', createdAt: '2020-01-01T00:00:01.500Z' },
  ];
  await importMessages(db, lines, 'aaa');
  await importMessages(db, lines, 'zzz');
  await withStore(db.url, (store) =>
    store.append(
      appendOf({ tenant: TENANT, streamId: '~tenant' }, 0, [
        { type: 'TenantSettingsChanged', data: { maxSessions: 7 } },
      ]),
    ),
  );
}

/** The lines with a matching manifest, as a forger would make it. */
function resealed(lines: readonly Line[]): string {
  const kept = lines
    .slice(0, -1)
    .map((line) => `${JSON.stringify(line)}\n`)
    .join('');
  const manifest = {
    format: 1,
    sessions: lines.filter((line) => 'session' in line).length,
    events: lines.filter((line) => 'type' in line).length,
    sha256: createHash('sha256').update(kept).digest('hex'),
  };
  return `${kept}${JSON.stringify({ manifest })}\n`;
}

const contents = async (db: TestDatabase): Promise<unknown> =>
  (
    await db.query(
      `select (select md5(string_agg(e::text, ',' order by lane, position)) from event e) as events,
            (select md5(string_agg(s::text, ',' order by tenant, stream_id)) from stream_state s) as streams,
            (select md5(string_agg(c::text, ',' order by key)) from counter c) as counters`,
    )
  )[0];

/** The sessions of a log by id, folded from their first events. */
async function folded(
  store: EventLog,
): Promise<Map<string, { state: SessionState; createdAt: string; lastActivityAt: string }>> {
  const sessions = new Map<string, { state: SessionState; createdAt: string; lastActivityAt: string }>();
  for (const stream of await store.cuts.streamsAfter({ tenant: TENANT, streamId: '' }, 100_000, TENANT)) {
    if (stream.streamId === '~tenant') continue;
    let state = sessionDecider.initialState;
    let lastActivityAt = '';
    let createdAt = '';
    for await (const event of store.streams.events(stream)) {
      state = sessionDecider.evolve(state, event as unknown as SessionEvent);
      if (isActivity(event)) lastActivityAt = event.time;
      if (event.type === 'SessionCreated') createdAt = event.time;
    }
    sessions.set(stream.streamId, { state, createdAt, lastActivityAt });
  }
  return sessions;
}

/** The rows of a read model after it has applied everything that is in the log, however long that takes. */
async function caughtUp({ models }: Node, table: string, query: string): Promise<unknown[]> {
  const ends = await models.ends();
  for (;;) {
    try {
      return await models.read(table, ends, query, []);
    } catch (error) {
      if (!(error instanceof ProjectionLagging)) throw error;
    }
  }
}

describe('export', () => {
  it('given sessions of all kinds, when they are exported, then the export holds every event in order, and the manifest counts them', async () => {
    const lines = linesOf(text);
    const events = await source.query<{ tenant: string; stream_id: string; version: number; id: string }>(
      `select tenant, stream_id, version, id from event where stream_id <> '~tenant'
       order by tenant, stream_id, version`,
    );

    expect(lines.filter((line) => 'type' in line).map((line) => line['id'])).toEqual(
      events.map(({ id }) => id),
    );
    expect(Object.keys(lines[0] ?? {})).toEqual([
      'id',
      'type',
      'schemaVersion',
      'tenant',
      'sessionId',
      'incarnation',
      'version',
      'time',
      'actor',
      'correlationId',
      'causationId',
      'data',
    ]);
    const last = new Map(events.map((event) => [`${event.tenant}/${event.stream_id}`, event.version]));
    expect(lines.filter((line) => 'session' in line)).toEqual(
      [...last].map(([key, version]) => {
        const [tenant, sessionId] = key.split('/');
        return { session: { tenant, sessionId, version } };
      }),
    );
    const before = text.slice(0, text.lastIndexOf('{"manifest"'));
    expect(lines.at(-1)).toEqual({
      manifest: {
        format: 1,
        sessions: last.size,
        events: events.length,
        sha256: createHash('sha256').update(before).digest('hex'),
      },
    });
    expect(await exportOf(source)).toBe(text);
  });

  it('given a tenant or sessions, when they are exported by name, then the export holds nothing else', async () => {
    const of = (lines: Line[]) =>
      new Set(
        lines.flatMap((line) =>
          'type' in line ? [`${String(line['tenant'])}/${String(line['sessionId'])}`] : [],
        ),
      );

    expect(of(linesOf(await exportOf(source, { tenant: 'zzz' })))).toEqual(new Set(['zzz/a']));
    const some = await exportOf(source, { sessions: { tenant: TENANT, sessionIds: ['s3', 'long', 'none'] } });
    expect(of(linesOf(some))).toEqual(new Set([`${TENANT}/long`, `${TENANT}/s3`]));
    expect(linesOf(await exportOf(source, { tenant: 'nobody' }))).toEqual([
      { manifest: { format: 1, sessions: 0, events: 0, sha256: createHash('sha256').digest('hex') } },
    ]);
  });

  heavy(
    'given messages of a megabyte, when they are exported and imported, then few are in memory at a time, and none is missing',
    async () => {
      const [db, copy] = [await database(), await database()];
      const lines = Array.from({ length: 24 }, (_, index) => ({
        sessionId: `big${index >> 3}`,
        role: 'user',
        // The text is random, so that PostgreSQL cannot compress it.
        content: randomBytes(512 * 1024).toString('base64'),
        createdAt: '2020-01-01T00:00:00Z',
      }));
      await importMessages(db, lines, 'big');
      let written = 0;
      const exported = await exportOf(db, {}, {}, () => {
        written += 1;
        return Promise.resolve();
      });

      expect(written).toBeGreaterThan(3);
      const contents = linesOf(exported).flatMap((line) =>
        line['type'] === 'MessageAppended' ? [(line['data'] as { content: string }).content] : [],
      );
      expect(contents).toEqual(lines.map(({ content }) => content));
      await importInto(copy, exported);
      expect(await exportOf(copy)).toBe(exported);
    },
  );

  it('given concurrent writes, when the log is exported, then the export shows the log at one moment', async () => {
    const db = await database();
    await importInto(db, text);
    const still = await exportOf(db);
    const store = await stores.start(db.url);
    const versions = new Map(
      (await store.cuts.streamsAfter({ tenant: '', streamId: '' }, 100_000)).map((one) => [
        one.streamId,
        one,
      ]),
    );
    let round = 0;

    const moving = await exportOf(db, {}, {}, async () => {
      round += 1;
      await Promise.all([
        // The writes concern a session that was not read yet, one that is being read, and a new one.
        ...['s9', 'long', 'zz'].map((streamId) => {
          const { tenant, version } = versions.get(streamId) ?? { tenant: TENANT, version: 0 };
          const at = version + (round - 1);
          return store.append(
            appendOf({ tenant, streamId }, at, [{ type: 'SessionDetailsChanged', data: {} }]),
          );
        }),
      ]);
    });

    expect(round).toBeGreaterThan(3);
    expect(moving).toBe(still);
    expect(await exportOf(db)).not.toBe(still);
    await db.query(`delete from counter`);
  });
});

describe('import', () => {
  it('given an export, when it is imported into a new database and exported there, then only the events that close sessions are new', async () => {
    const db = await database();
    const report = await importInto(db, text);

    const again = await exportOf(db);
    expect(recorded(again)).toEqual(recorded(text));
    const states = [...(await folded(await stores.start(source.url))).values()].map(({ state }) => state);
    const active = states.filter(({ status }) => status === 'active').length;
    const generating = states.filter(({ generation }) => generation !== null).length;
    const known = new Set(linesOf(text).map((line) => line['id']));
    const added = linesOf(again).filter((line) => 'type' in line && !known.has(line['id']));
    expect(added.filter(({ type }) => type === 'SessionExpired')).toHaveLength(active);
    expect(added.filter(({ type }) => type === 'GenerationFailed')).toHaveLength(generating);
    expect(added).toHaveLength(active + generating);
    expect(generating).toBeGreaterThan(1);
    const { manifest } = linesOf(text).at(-1) as { manifest: { sessions: number; events: number } };
    expect(report).toEqual({
      sessions: manifest.sessions,
      events: manifest.events,
      imported: manifest.sessions,
      unchanged: 0,
      closed: active,
    });
    // No session counts as active, and the counters are zero.
    expect(await db.query('select from counter where value <> 0')).toEqual([]);
    await expectCountersMatchLog(db);
  });

  it('given a session that was generating, when it is imported, then it ends failed and expired, and the next message restores it', async () => {
    const db = await database();
    await importInto(db, text);
    const node = await Node.start(db.url, []);
    try {
      const stream = { tenant: TENANT, streamId: 'long' };
      const before = (await folded(await stores.start(source.url))).get('long');
      const version = before?.state.version ?? 0;
      const [failed, expired] = await node.store.streams.read(stream, { from: version + 1 });
      expect(failed).toMatchObject({
        type: 'GenerationFailed',
        actor: 'system:import',
        data: { generationId: 'g-long', model: 'm', code: 'imported' },
      });
      expect(expired).toMatchObject({
        type: 'SessionExpired',
        data: {
          reason: 'import',
          lastActivityAt: before?.lastActivityAt,
        },
      });
      // The failure counts as use of the session, as every end of a generation does.
      expect(await node.store.streams.load(stream)).toMatchObject({
        version: version + 2,
        time: expired?.time,
        lastActivityAt: failed?.time,
        state: { status: 'expired', generation: null },
      });

      const { events } = await node.handle('long', new session.AppendMessages([message('back')]));
      expect(events.map(({ type }) => type)).toEqual(['SessionResumed', 'MessageAppended']);
      expect(await node.store.counters.value(`active:${TENANT}`)).toBe(1);
    } finally {
      await node.stop();
    }
  });

  it('given imported sessions, when their states are folded from the log, then they equal the stored states', async () => {
    const db = await database();
    await importInto(db, text);
    const store = await stores.start(db.url);
    const states = await folded(store);
    expect(states.size).toBeGreaterThan(10);
    for (const [streamId, { state, lastActivityAt, createdAt }] of states) {
      const stored = await store.streams.load({ tenant: TENANT, streamId });
      expect(stored).toMatchObject({ stateVersion: STATE_VERSION, lastActivityAt, createdAt, since: [] });
      expect(stored?.state).toEqual(state);
    }
  });

  it('given read models that follow the log, when sessions are imported, then their rows equal those of the source', async () => {
    const db = await database();
    const nodes = [await Node.start(source.url), await Node.start(db.url)] as const;
    try {
      await importInto(db, text);
      const [history, usage, sessions] = [historyProjection, usageProjection, sessionsProjection].map(
        tableOf,
      );
      const queries = {
        [history ?? '']: `select * from ${history} order by tenant, session_id, version`,
        // A generation that the import ended counts as one more, without tokens.
        [usage ?? '']: `
          select tenant, session_id, sum(input_tokens) as input, sum(output_tokens) as output from ${usage}
          group by 1, 2 having sum(input_tokens + output_tokens) > 0 order by 1, 2`,
        [sessions ?? '']: `
          select tenant, session_id, incarnation, title, metadata, message_count, created_at, legal_hold, forked_from,
                 input_tokens, output_tokens, case when status = 'active' then 'expired' else status end as status
          from ${sessions} order by tenant, session_id`,
      };
      for (const [table, query] of Object.entries(queries)) {
        const [before, after] = [
          await caughtUp(nodes[0], table, query),
          await caughtUp(nodes[1], table, query),
        ];
        expect(before.length).toBeGreaterThan(1);
        expect({ [table]: after }).toEqual({ [table]: before });
      }
      expect(nodes.flatMap(({ errors }) => errors)).toEqual([]);
    } finally {
      for (const node of nodes) await node.stop();
    }
  });

  it('given a finished import, when it is repeated, also after sessions were used, then nothing changes', async () => {
    const db = await database();
    await importInto(db, text);
    const store = await stores.start(db.url);
    const { version = 0, state, lag } = (await store.streams.load({ tenant: TENANT, streamId: 's1' })) ?? {};
    expect(lag).toEqual({ events: 0, bytes: 0 });
    const more = appendOf({ tenant: TENANT, streamId: 's1' }, version, [
      { type: 'SessionDetailsChanged', data: {} },
    ]);
    await store.append({ ...more, state });
    const before = await contents(db);

    const report = await importInto(db, text);

    expect(report).toMatchObject({ imported: 0, unchanged: report.sessions, closed: 0 });
    expect(await contents(db)).toEqual(before);
  });

  it('given some existing sessions, when all are imported, then the missing ones are added', async () => {
    const db = await database();
    const part = await exportOf(source, { sessions: { tenant: TENANT, sessionIds: ['long', 's1', 's2'] } });
    await importInto(db, part);

    const report = await importInto(db, text);

    expect(report).toMatchObject({ unchanged: 3, imported: report.sessions - 3 });
    expect(recorded(await exportOf(db))).toEqual(recorded(text));
  });

  it('given the same import twice at once, and appends to the same lanes, then each session is imported once and the lanes have no gap', async () => {
    const db = await database();
    const store = await stores.start(db.url);
    let stopped = false;
    const appending = Promise.allSettled(
      Array.from({ length: 16 }, async (_, index) => {
        for (let version = 0; !stopped; version += 1) {
          const result = await store.append(
            appendOf({ tenant: 'busy', streamId: `b${index}` }, version, [{ type: 'Written', data: {} }]),
          );
          expect(result.status).toBe('ok');
        }
      }),
    );
    const imports = await Promise.allSettled([importInto(db, text), importInto(db, text)]);
    stopped = true;
    expect((await appending).filter(({ status }) => status === 'rejected')).toEqual([]);
    // The import that comes second to a session stops there and is started again.
    for (const { status } of imports) if (status === 'rejected') await importInto(db, text);

    expect(imports.map(({ status }) => status)).toContain('fulfilled');
    expect(recorded(await exportOf(db)).filter((line) => !line.includes('"tenant":"busy"'))).toEqual(
      recorded(text),
    );
  });

  it('given payloads that are sealed, when they are exported and imported, then they are plain in the export and sealed again in the log', async () => {
    const sealed = { masterKeys: [masterKey('one')] };
    const db = await database();
    await importInto(db, text, sealed);

    expect(await db.query('select from event where data is not null or sealed is null')).toEqual([]);
    expect(await db.query('select from stream_state where state is not null or sealed is null')).toEqual([]);
    expect(recorded(await exportOf(db, {}, sealed))).toEqual(recorded(text));
    expect(await importInto(db, text, sealed)).toMatchObject({ imported: 0 });
    // Each incarnation has a key of its own, which its state has as well.
    expect(
      await db.query(
        `select from event group by tenant, stream_id, incarnation having count(distinct key_id) <> 1
         union all select from stream_state s join event e using (tenant, stream_id, version) where s.key_id <> e.key_id`,
      ),
    ).toEqual([]);
    expect(
      await db.query(
        'select from event group by key_id having count(distinct (tenant, stream_id, incarnation)) > 1',
      ),
    ).toEqual([]);
    await expect(exportOf(db)).rejects.toThrow('sealed under the master key');
  });

  it('given an import, when the lanes are read, then its events come in the order of their sessions and versions', async () => {
    const db = await database();
    await importInto(db, text);
    const store = await stores.start(db.url);
    const seen = new Map<number, string[]>();
    const after = new Map(Array.from({ length: store.laneCount }, (_, lane) => [lane, 0]));
    for (
      let page = await store.lanes.read(after, 500);
      page.length > 0;
      page = await store.lanes.read(after, 500)
    ) {
      for (const event of page) {
        expect(event.position).toBe((after.get(event.lane) ?? 0) + 1);
        after.set(event.lane, event.position);
        const ids = seen.get(event.lane);
        if (ids) ids.push(event.id);
        else seen.set(event.lane, [event.id]);
      }
    }
    const lines = linesOf(await exportOf(db));
    for (const [lane, ids] of seen) {
      const inFile = lines.filter(
        (line) =>
          'type' in line &&
          laneOf({ tenant: String(line['tenant']), streamId: String(line['sessionId']) }, store.laneCount) ===
            lane,
      );
      expect(ids).toEqual(inFile.map((line) => line['id']));
    }
  });
});

describe('an import that is refused', () => {
  const first = (lines: Line[], is: (line: Line) => boolean): number => lines.findIndex(is);
  const isMessage = (line: Line) => line['type'] === 'MessageAppended';
  const data = (line: Line | undefined): Record<string, unknown> => line?.['data'] as Record<string, unknown>;

  /** What is wrong → how the lines are changed, and the expected error. */
  const faults: Record<string, [(lines: Line[]) => string, RegExp]> = {
    'a character is changed': [() => text.replace('line 7 ', 'line 8 '), /SHA-256/],
    'a line is missing': [
      (lines) =>
        lines
          .filter((_, n) => n !== first(lines, isMessage))
          .map((line) => `${JSON.stringify(line)}\n`)
          .join(''),
      /version \d+ comes after/,
    ],
    'the end is missing': [() => text.slice(0, text.length >> 1), /not JSON|manifest is missing/],
    'the manifest is missing': [() => text.slice(0, text.lastIndexOf('{"manifest"')), /manifest is missing/],
    'it is empty': [() => '', /manifest is missing/],
    'something follows': [() => `${text}{"type":"x"}\n`, /after the manifest/],
    'it is no JSON': [() => `x${text}`, /line 1: it is not JSON/],
    'a count is wrong': [(lines) => resealed(lines).replace(/"sessions":\d+/, '"sessions":1'), /counts/],
    'a session is missing': [
      () => text.replace(/^\{"session":.*"aaa".*\n/m, ''),
      /last version of a is missing/,
    ],
    'a version is missing at the end': [
      (lines) => {
        lines.splice(first(lines, (line) => 'session' in line) - 1, 1);
        return resealed(lines);
      },
      /events are missing before it/,
    ],
    'sessions are in another order': [
      (lines) => {
        const end = first(lines, (line) => 'session' in line) + 1;
        return resealed([...lines.slice(end, -1), ...lines.slice(0, end), {}]);
      },
      /in the order of tenant and id/,
    ],
    'data does not hold to its schema': [
      (lines) => {
        data(lines[first(lines, isMessage)])['role'] = 'robot';
        return resealed(lines);
      },
      /\/data\/role/,
    ],
    'an event is of an unknown type': [
      (lines) => {
        (lines[first(lines, isMessage)] ?? {})['type'] = 'MessageSent';
        return resealed(lines);
      },
      /\/type/,
    ],
    'an event is of a newer schema': [
      (lines) => {
        (lines[first(lines, isMessage)] ?? {})['schemaVersion'] = 99;
        return resealed(lines);
      },
      /newer than this version of Colloquy/,
    ],
    'an event has a field too many': [
      (lines) => {
        (lines[first(lines, isMessage)] ?? {})['lane'] = 3;
        return resealed(lines);
      },
      /Unrecognized key/,
    ],
    'a time goes back': [
      (lines) => {
        (lines[first(lines, isMessage)] ?? {})['time'] = '2001-01-01T00:00:00.000Z';
        return resealed(lines);
      },
      /before that of the event before/,
    ],
    'a time is of the future': [
      (lines) => {
        (lines[first(lines, (line) => 'session' in line) - 1] ?? {})['time'] = '2999-01-01T00:00:00.000Z';
        return resealed(lines);
      },
      /in the future/,
    ],
    'an incarnation is wrong': [
      (lines) => {
        (lines[first(lines, isMessage)] ?? {})['incarnation'] = 7;
        return resealed(lines);
      },
      /incarnation/,
    ],
    'a session begins otherwise': [
      (lines) => {
        (lines[0] ?? {})['type'] = 'SessionResumed';
        (lines[0] ?? {})['data'] = {};
        return resealed(lines);
      },
      /cannot happen to a session whose status is none/,
    ],
    'a text cannot be stored': [
      (lines) => {
        data(lines[first(lines, isMessage)])['content'] = 'nul \0';
        return resealed(lines);
      },
      /U\+0000/,
    ],
    'it is of the reserved stream': [
      (lines) =>
        resealed(lines.map((line) => (line['tenant'] === 'aaa' ? { ...line, sessionId: '~tenant' } : line))),
      /\/sessionId/,
    ],
  };

  let db: TestDatabase;
  let before: unknown;
  beforeAll(async () => {
    db = await createTestDatabase();
    await importMessages(
      db,
      [{ sessionId: 'own', role: 'user', content: 'x', createdAt: '2020-01-01T00:00:00Z' }],
      'own',
    );
    before = await contents(db);
  });
  afterAll(() => db.drop());

  it.each(Object.entries(faults))(
    'given %s, then it says so and changes nothing',
    async (_, [spoil, message]) => {
      const spoilt = spoil(linesOf(text));
      expect(spoilt).not.toBe(text);
      await expect(importInto(db, spoilt)).rejects.toThrow(message);
      expect(await contents(db)).toEqual(before);
    },
  );

  it.each([
    [
      'other events',
      (lines: Line[]) =>
        lines.map((line) => ('id' in line ? { ...line, id: String(line['id']).replace(/^../, '00') } : line)),
    ],
    [
      'the same ids with other data',
      (lines: Line[]) => {
        data(lines.find(isMessage))['content'] = 'never said';
        return lines;
      },
    ],
  ])(
    'given an existing session with %s, when it is imported, then the import is refused with a reason and changes nothing',
    async (_, change) => {
      const taken = await database();
      const ids = { tenant: TENANT, sessionIds: ['s5', 's6', 's7'] };
      await importInto(taken, resealed(change(linesOf(await exportOf(source, { sessions: ids })))));
      const held = await contents(taken);

      await expect(importInto(taken, text)).rejects.toThrow(/acme\/s\d exists with other events/);
      expect(await contents(taken)).toEqual(held);
    },
  );

  it('given an existing session with fewer events, when it is imported, then the import is refused with a reason and changes nothing', async () => {
    const taken = await database();
    const lines = linesOf(await exportOf(source, { sessions: { tenant: TENANT, sessionIds: ['long'] } }));
    const { session: end } = lines.at(-2) as { session: { version: number } };
    end.version = 10;
    await importInto(taken, resealed([...lines.slice(0, 10), ...lines.slice(-2)]));
    const held = await contents(taken);

    await expect(importInto(taken, text)).rejects.toThrow(/acme\/long exists with other events/);
    expect(await contents(taken)).toEqual(held);
  });
});

describe('import of plain messages', () => {
  const said = (sessionId: string, content: string, second: number, more: object = {}) => ({
    sessionId,
    role: 'user',
    content,
    createdAt: `2021-05-01T10:00:${String(second).padStart(2, '0')}+02:00`,
    ...more,
  });

  it('given lines of a history, when they are imported, then messages keep text, order and time, and name their origin', async () => {
    const db = await database();
    const call = { id: 'c1', name: 'get_weather', arguments: '{}' };
    const report = await importMessages(
      db,
      [
        said('b', 'one', 1),
        said('b', '', 2, { role: 'assistant', toolCalls: [call] }),
        said('b', '20 °C', 3, { role: 'tool', toolCallId: 'c1' }),
        said('a', 'two', 2, { messageId: 'mine' }),
      ],
      'acme',
    );
    expect(report).toEqual({ sessions: 2, events: 6, imported: 2, unchanged: 0, closed: 2 });

    const store = await stores.start(db.url);
    const events = await store.streams.read({ tenant: 'acme', streamId: 'a' });
    expect(events).toMatchObject([
      { type: 'SessionCreated', time: '2021-05-01T08:00:02.000Z', data: { imported: true } },
      {
        type: 'MessageAppended',
        time: '2021-05-01T08:00:02.000Z',
        data: {
          messageId: 'mine',
          content: 'two',
          status: 'complete',
          origin: { sessionId: 'a', messageId: 'mine', createdAt: '2021-05-01T08:00:02.000Z' },
        },
      },
      { type: 'SessionExpired', data: { reason: 'import', lastActivityAt: '2021-05-01T08:00:02.000Z' } },
    ]);
    expect(await store.streams.load({ tenant: 'acme', streamId: 'b' })).toMatchObject({
      createdAt: '2021-05-01T08:00:01.000Z',
      lastActivityAt: '2021-05-01T08:00:03.000Z',
      state: { status: 'expired', messageCount: 3, openToolCalls: [] },
    });
  });

  it('given the same lines again, or one more line of an existing session, when they are imported, then nothing changes', async () => {
    const db = await database();
    const lines = Array.from({ length: 2_500 }, (_, index) => said('a', `text ${index}`, 1));
    await importMessages(db, lines, 'acme');
    const before = await contents(db);

    expect(await importMessages(db, lines, 'acme')).toMatchObject({ imported: 0, unchanged: 1 });
    await expect(importMessages(db, [...lines, said('a', 'more', 2)], 'acme')).rejects.toThrow(
      'other events',
    );
    expect(await contents(db)).toEqual(before);
  });

  it.each([
    ['a role that there is not', [said('a', 'x', 1, { role: 'robot' })], /line 1: \/role/],
    ['no content', [said('a', 'x', 1), { ...said('a', 'x', 1), content: undefined }], /line 2: \/content/],
    ['a field that there is not', [said('a', 'x', 1, { colour: 'red' })], /Unrecognized key/],
    ['a time that is none', [said('a', 'x', 1, { createdAt: 'yesterday' })], /\/createdAt/],
    ['times that go back', [said('a', 'x', 2), said('a', 'y', 1)], /line 2: its time is before/],
    [
      'a session in two places',
      [said('a', 'x', 1), said('b', 'x', 1), said('a', 'y', 2)],
      /line 3: .* stand together/,
    ],
    ['a tool result without a call', [said('a', 'x', 1, { role: 'tool', toolCallId: 'c' })], /tool call/],
    ['a time of the future', [said('a', 'x', 1, { createdAt: '2999-01-01T00:00:00Z' })], /future/],
  ])('given %s, then it says so and changes nothing', async (_, lines, refusal) => {
    // The import is for a tenant that `source` does not have.
    await expect(importMessages(source, lines, 'new')).rejects.toThrow(refusal);
    expect(await source.query(`select from stream_state where tenant = 'new'`)).toEqual([]);
  });
});
