import { DomainError } from '../../../src/domain/decider.js';
import {
  AppendMessages,
  CreateSession,
  RemoveMessage,
  ResetConversation,
  RewindHistory,
  type SessionCommand,
} from '../../../src/domain/session.commands.js';
import { type SessionEvent } from '../../../src/domain/session.events.js';
import { createTestDatabase, type TestDatabase } from '../../support/database.js';
import { sized } from '../../support/heavy.js';
import { messagesIn, recount, removalIn, rewoundIn } from '../../unit/domain/naive-session.js';
import { seeded } from '../event-store/fixture.js';
import { message, Node, TENANT } from '../projection-engine/fixture.js';

const SEEDS = sized(300, 60, 20);
const COMMANDS = 40;
jest.setTimeout(sized(600_000, 120_000, 60_000));

let db: TestDatabase;
let node: Node;
beforeAll(async () => {
  db = await createTestDatabase();
  node = await Node.start(db.url, []);
});
afterAll(async () => {
  await node.stop();
  await db.drop();
});

const logOf = async (sessionId: string): Promise<SessionEvent[]> =>
  (await node.store.streams.read({ tenant: TENANT, streamId: sessionId })) as unknown as SessionEvent[];

it('given histories that are changed again and again, when a message or a stretch leaves, then the events say what the naive rules say', async () => {
  const met = { removed: 0, together: 0, rewound: 0, reopened: 0 };
  for (let seed = 1; seed <= SEEDS; seed += 1) {
    const random = seeded(seed);
    const sessionId = `s${seed}`;
    await node.handle(sessionId, new CreateSession());
    let call = 0;
    for (let step = 0; step < COMMANDS; step += 1) {
      const before = await logOf(sessionId);
      const present = messagesIn(before);
      const open = recount(before).openToolCalls;
      const any = present[random(Math.max(present.length, 1))];
      const answered = open[random(Math.max(open.length, 1))];
      const calls = Array.from({ length: 1 + random(2) }, () => ({
        id: `c${(call += 1)}`,
        name: 'search',
        arguments: '{}',
      }));
      const commands: (() => SessionCommand)[] = [
        () => new AppendMessages(Array.from({ length: 1 + random(3) }, () => message('said'))),
        () => new AppendMessages([message('asks', { role: 'assistant', toolCalls: calls })]),
        () => new AppendMessages([message('found', { role: 'tool', toolCallId: answered?.id ?? 'none' })]),
        () => new AppendMessages([message('found', { role: 'tool', toolCallId: answered?.id ?? 'none' })]),
        () => new RemoveMessage(any?.message.messageId ?? 'none'),
        () => new RewindHistory(Math.max(1, before.length - random(9))),
        () => (random(6) === 0 ? new ResetConversation() : new AppendMessages([message('more')])),
      ];
      const command = commands[random(commands.length)]?.();
      if (!command) continue;
      await node.handle(sessionId, command).catch((error: unknown) => {
        if (!(error instanceof DomainError)) throw error;
      });

      const log = await logOf(sessionId);
      const last = log.length > before.length ? log.at(-1) : undefined;
      if (last?.type === 'MessageRemoved') {
        const { messageId } = last.data;
        expect(last.data).toEqual({ messageId, ...removalIn(before, messageId) });
        met.removed += 1;
        if (last.data.versions.length > 1) met.together += 1;
      }
      if (last?.type === 'HistoryRewound') {
        expect(last.data).toEqual(rewoundIn(before, last.data.toVersion));
        met.rewound += 1;
        if ((last.data.openToolCalls?.length ?? 0) > open.length) met.reopened += 1;
      }
      const { state } = await node.load(sessionId);
      const { messageCount, openToolCalls } = recount(log);
      expect({ messageCount: state.messageCount, openToolCalls: state.openToolCalls }).toEqual({
        messageCount,
        openToolCalls,
      });
    }
  }
  // Otherwise the sequences above would prove little.
  expect(Math.min(...Object.values(met))).toBeGreaterThan(SEEDS / 4);
});

it('given a history of many pages with long stretches that have left it, when its first message is removed, then it is found', async () => {
  const said = Array.from({ length: 1_000 }, () => message('said'));
  await node.handle('long', new CreateSession());
  const first = message('first');
  await node.handle('long', new AppendMessages([first]));
  await node.handle('long', new AppendMessages(said));
  await node.handle('long', new RewindHistory(500));
  for (let round = 0; round < 5; round += 1) {
    await node.handle(
      'long',
      new AppendMessages(said.map((one) => ({ ...one, messageId: `${one.messageId}-${round}` }))),
    );
    await node.handle('long', new RewindHistory(700));
  }
  const { events } = await node.handle('long', new RemoveMessage(first.messageId));
  expect(events).toEqual([{ type: 'MessageRemoved', data: { messageId: first.messageId, versions: [2] } }]);
  expect((await node.load('long')).state.messageCount).toBe(messagesIn(await logOf('long')).length);
});
