import { randomUUID } from 'node:crypto';
import { upcast } from '../../../src/domain/session.events.js';
import { type EventLog } from '../../../src/event-store/log.js';
import { type LostEvent } from '../../../src/kafka/lost-events.js';
import { recoverSessions } from '../../../src/transfer/recovery.js';
import { createTestDatabase, type TestDatabase } from '../../support/database.js';
import { expectSoundLog, Nodes } from '../event-store/fixture.js';

let db: TestDatabase;
let store: EventLog;
const nodes = new Nodes();
beforeEach(async () => {
  db = await createTestDatabase();
  store = await nodes.start(db.url, { upcast });
});
afterEach(async () => {
  await nodes.stopAll();
  await expectSoundLog(db).finally(() => db.drop());
});

const created = { type: 'SessionCreated', data: { title: 'Lost' } };
const said = (text: string) => ({
  type: 'MessageAppended',
  data: { messageId: `msg_${text}`, role: 'user', content: text, status: 'complete' },
});

/** Events as the topic has them: of one session, from a version on, each of a request of its own. */
const lost = (
  sessionId: string,
  from: number,
  events: (LostEvent['event'] | object | undefined)[],
  rest = {},
) =>
  events.map((event, index): LostEvent => ({
    tenant: 'acme',
    sessionId,
    version: from + index,
    incarnation: 1,
    generation: 1,
    id: randomUUID(),
    time: `2026-01-01T00:00:0${index}.000Z`,
    correlationId: `request-${from + index}`,
    event: event as LostEvent['event'],
    ...rest,
  }));

const recover = async (events: readonly LostEvent[], { append = true, maxSessions = 100 } = {}) => {
  const recovered = await recoverSessions(store, events, { append, maxSessions: () => maxSessions });
  return Object.fromEntries(recovered.map(({ sessionId, outcome }) => [sessionId, outcome]));
};
const logged = (sessionId: string) =>
  db.query<{ version: number; type: string; correlation_id: string; causation_id: string; actor: string }>(
    'select version, type, correlation_id, causation_id, actor from event where stream_id = $1 order by version',
    [sessionId],
  );

it('given lost events that follow the log, when they are recovered, then they are new events with their order and their requests, and a second time changes nothing', async () => {
  const events = lost('s', 1, [created, said('one'), said('two')]);
  // Whatever the order in which the topic was read.
  expect(await recover([...events].reverse(), { append: false })).toEqual({ s: 'lost' });
  expect(await logged('s')).toEqual([]);
  expect(await recover([...events].reverse())).toEqual({ s: 'recovered' });
  expect(await logged('s')).toEqual(
    events.map(({ version, id, correlationId, event }) => ({
      version,
      type: event?.type,
      correlation_id: correlationId,
      causation_id: id,
      actor: 'system:recovery',
    })),
  );
  expect(await recover(events)).toEqual({ s: 'there' });
  expect(await logged('s')).toHaveLength(3);
});

it('given a recovery that was broken off, when it is started again, then it goes on where it was', async () => {
  const events = lost('s', 1, [created, said('one'), said('two')]);
  expect(await recover(events.slice(0, 2))).toEqual({ s: 'recovered' });
  expect(await recover(events)).toEqual({ s: 'recovered' });
  expect((await logged('s')).map(({ version }) => version)).toEqual([1, 2, 3]);
});

it('given lost events that do not follow the log, when they are recovered, then it is said why, and nothing is appended', async () => {
  await recover(lost('other', 1, [created, said('instead')]));
  await recover(lost('twice', 1, [created]));
  const [first, , third] = lost('gap', 1, [created, said('one'), said('two')]) as [
    LostEvent,
    LostEvent,
    LostEvent,
  ];
  expect(
    await recover([
      ...lost('beginning', 3, [said('three')]),
      first,
      third,
      ...lost('reference', 1, [created, undefined]),
      ...lost('newer', 1, [created, { type: 'unknown', ceType: 'colloquy.New.v1', data: {} }]),
      ...lost('odd', 1, [created, { type: 'MessageAppended', data: { role: 'nobody' } }]),
      ...lost('twice', 2, [created]),
      ...lost('other', 2, [said('what was lost')]),
      ...lost('~tenant', 1, [{ type: 'TenantSettingsChanged', data: { maxSessions: 7 } }]),
    ]),
  ).toEqual({
    beginning: 'incomplete',
    gap: 'incomplete',
    reference: 'incomplete',
    newer: 'incomplete',
    odd: 'incomplete',
    twice: 'incomplete',
    other: 'went on',
    '~tenant': 'not a session',
  });
  const [row] = await db.query<{ count: number }>('select count(*)::int as count from event');
  expect(row?.count).toBe(3);
});

it('given a tenant at its cap, when a session would be the one too many, then it stays lost, and the counter is that of the log', async () => {
  const events = [...lost('a', 1, [created]), ...lost('b', 1, [created])];
  expect(Object.values(await recover(events, { maxSessions: 1 })).sort()).toEqual(['at cap', 'recovered']);
  expect(await db.query('select key, value::int from counter')).toEqual([{ key: 'active:acme', value: 1 }]);
});

it('given two failovers that took the same versions, when they are recovered, then the later events count', async () => {
  const earlier = lost('s', 1, [created, said('first')]);
  const later = lost('s', 1, [created, said('second')], { generation: 2 });
  await recoverSessions(store, [...earlier, ...later], { append: true, maxSessions: () => 10 });
  expect((await logged('s')).map(({ correlation_id: id, causation_id: cause }) => [id, cause])).toEqual(
    later.map(({ correlationId, id }) => [correlationId, id]),
  );
});
