import { type INestApplicationContext } from '@nestjs/common';
import { NestFactory } from '@nestjs/core';
import { AppModule } from '../../../src/app.module.js';
import { loadConfig } from '../../../src/config.js';
import { type EventLog } from '../../../src/event-store/log.js';
import { RecordedReplies } from '../../../src/generation/recorded-replies.js';
import { derivedId, newId } from '../../../src/sessions/ids.js';
import { SessionCommands } from '../../../src/sessions/session-commands.js';
import { appendOf } from '../../support/append.js';
import { createTestDatabase, type TestDatabase } from '../../support/database.js';
import { sealingCodec } from '../../support/sealing-codec.js';
import { Nodes } from '../event-store/fixture.js';

const SESSION = { tenant: 'default', sessionId: 'long', ownedBy: null };
const STREAM = { tenant: 'default', streamId: 'long' };
/** Number of messages before and after the generation that is searched. */
const PAGES = 6;
const PAGE = 1_000;

let db: TestDatabase;
let app: INestApplicationContext;
const logs = new Nodes();
let log: EventLog;
/** Counts the payloads that are read. They are sealed, so each of them has to be opened. */
let opened = 0;
let version = 0;

const message = (generationId?: string) => ({
  type: 'MessageAppended',
  data: { messageId: newId('msg'), role: 'assistant', content: 'x', status: 'complete', generationId },
});

async function write(events: readonly { type: string; data: unknown }[]): Promise<void> {
  const result = await log.append(appendOf(STREAM, version, events));
  expect(result.status).toBe('ok');
  version += events.length;
}

const writePages = async (): Promise<void> => {
  for (let page = 0; page < PAGES; page += 1) await write(Array.from({ length: PAGE }, () => message()));
};

/** A session of 12 000 messages with one generation in its middle. */
async function writeSession(generationId: string): Promise<void> {
  await writePages();
  await write([{ type: 'GenerationStarted', data: { generationId, model: 'echo', context: [] } }]);
  await write([message(), message()]);
  await write([
    message(generationId),
    {
      type: 'GenerationCompleted',
      data: { generationId, model: 'echo', finishReason: 'stop', durationMs: 1 },
    },
  ]);
  await writePages();
}

beforeEach(async () => {
  db = await createTestDatabase();
  const codec = sealingCodec({ wait: () => Promise.resolve() });
  log = await logs.start(db.url, {
    codec: {
      ...codec,
      encode: (payloads) => codec.encode(payloads),
      openText: (payloads) => {
        opened += payloads.length;
        return codec.openText(payloads);
      },
    },
  });
  const config = loadConfig({
    env: {},
    cwd: '/',
    overrides: { storage: { database: { type: 'postgresql', url: db.url } } },
  });
  app = await NestFactory.createApplicationContext(AppModule.create(config, db.url), { logger: false });
  opened = 0;
  version = 0;
});
afterEach(async () => {
  await app.close();
  await logs.stopAll();
  await db.drop();
});

async function answerOf(generationId: string): Promise<unknown> {
  const replies = new RecordedReplies(log, app.get(SessionCommands));
  const start = await replies.findStart(SESSION, generationId, 1);
  const end = await replies.search(SESSION, { generationId, version: start.version })();
  return end?.type === 'completed' ? end.answer : end;
}

it('given a reply in the middle of a long session, when it is searched, then the number of events read depends on the reply and not on the session', async () => {
  const generationId = newId('gen');
  await writeSession(generationId);

  expect(await answerOf(generationId)).toMatchObject({ generationId, content: 'x', finishReason: 'stop' });

  expect(opened).toBeLessThan(100);
});

it.each([-90, 90])(
  'given a database whose clock is %i minutes off, when a reply is searched, then it is found',
  async (minutes) => {
    await db.setClock({ offsetMs: minutes * 60_000 });
    const generationId = newId('gen');
    await writeSession(generationId);

    expect(await answerOf(generationId)).toMatchObject({ generationId });
  },
);

it('given an id that was derived from a key and holds no time, when its reply is searched, then it is found', async () => {
  const generationId = derivedId('gen', 'a key');
  await writeSession(generationId);

  expect(await answerOf(generationId)).toMatchObject({ generationId });
});

it('given an id that no generation has, when it is searched, then it is not found', async () => {
  await writeSession(newId('gen'));

  await expect(answerOf(newId('gen'))).rejects.toMatchObject({ code: 'not-found' });
});
