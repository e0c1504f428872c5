import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createTestDatabase, type TestDatabase } from '../support/database.js';
import { type FakeOpenAi, startFakeOpenAi } from '../support/fake-openai.js';
import { type Api, apiOf } from '../support/http.js';
import { type RunningService, startService } from '../support/process.js';

export { type EventAnswer } from '../../src/audit/audit.schemas.js';
export { type SessionAnswer } from '../../src/sessions/session.schemas.js';
export { type GeneratedAnswer } from '../../src/generation/generation.schemas.js';
export { type MessageView } from '../../src/read-models/history.projection.js';

/** Large sizes are used on request only. */
export const FULL = process.env['FULL'] === '1';

// Nodes are processes. On a busy machine two of them need more than Jest's five seconds to start.
jest.setTimeout(FULL ? 300_000 : 60_000);

/**
 * A key that no message contains, so that a search for it finds leaks only; nor does any id contain its last four
 * characters, since ids have no capital letters.
 */
export const MODEL_KEY = 'sk-fake-3f9c1dWQZK';

export interface Node {
  readonly service: RunningService;
  /** The header with which operators name the cell of the test, where there is more than one; others do not need it. */
  readonly ofCell: Readonly<Record<string, string>>;
  /** Sends that header always. */
  readonly api: Api;
}

/** Everything that was started for a test file, and how to end it. */
export interface World {
  readonly database: TestDatabase;
  /** The cell that it is, which operators have to name; undefined when it is the only one. */
  readonly cell: string | undefined;
  /** Starts one more node on the database. */
  node(env?: Readonly<Record<string, string>>, cwd?: string): Promise<Node>;
  /** Starts a model, which all nodes that are started later use. */
  model(): Promise<FakeOpenAi>;
  /** Creates a folder that is removed at the end. */
  folder(): Promise<string>;
  /** The output of all nodes. */
  output(): string;
  end(): Promise<void>;
}

/**
 * Whether all nodes have their tenants in a second cell, so that each request of a tenant goes through the directory and
 * the application of another cell: for running all tests with it.
 */
const IN_A_CELL = process.env['TEST_IN_A_CELL'] === '1';
const CELL = 'cell';

export async function createWorld(): Promise<World> {
  const database = await createTestDatabase();
  const directory = IN_A_CELL ? await createTestDatabase() : undefined;
  const cell = directory && CELL;
  const services: RunningService[] = [];
  const folders: string[] = [];
  let model: FakeOpenAi | undefined;
  const folder = async (): Promise<string> => {
    const made = await mkdtemp(join(tmpdir(), 'colloquy-e2e-'));
    folders.push(made);
    return made;
  };
  return {
    database,
    cell,
    folder,
    output: () => services.map((service) => service.output()).join('\n'),
    node: async (env = {}, cwd) => {
      const service = await startService({
        env: {
          DATABASE_URL: database.url,
          ...(directory && {
            DATABASE_URL: directory.url,
            DATABASE_WEIGHT: '0',
            DATABASE_CELLS: `${CELL}=${database.url}`,
          }),
          ...(model && { OPENAI_BASE_URL: model.url, OPENAI_API_KEY: MODEL_KEY }),
          ...env,
        },
        // The nodes must not read a settings file of the person who runs the tests.
        cwd: cwd ?? (await folder()),
      });
      services.push(service);
      // A test that names the databases has other cells.
      const ofCell: Node['ofCell'] =
        cell && env['DATABASE_URL'] === undefined ? { 'colloquy-cell': cell } : {};
      return { service, ofCell, api: apiOf(service.url, ofCell) };
    },
    model: async () => (model ??= await startFakeOpenAi()),
    end: async () => {
      await Promise.all(services.map((service) => service.kill9()));
      await model?.close();
      await database.drop();
      await directory?.drop();
      for (const made of folders) await rm(made, { recursive: true, force: true });
    },
  };
}

/** Everything that a request may change in the database. A refused request must leave it unchanged. */
export async function stored(database: TestDatabase): Promise<Record<string, unknown>> {
  const [counts] = await database.query(
    `select (select count(*)::int from event) as events, (select count(*)::int from stream_state) as streams,
            (select coalesce(sum(version), 0)::int from stream_state) as versions,
            (select count(*)::int from command) as commands,
            (select coalesce(sum(value), 0)::int from counter) as counters`,
  );
  return counts ?? {};
}

/** A session's events in the log itself, by version. */
export function logged(
  database: TestDatabase,
  sessionId: string,
): Promise<
  { version: number; type: string; incarnation: number; actor: string; data: Record<string, unknown> }[]
> {
  return database.query(
    'select version, type, incarnation, actor, data from event where stream_id = $1 order by version',
    [sessionId],
  );
}

/** Checks what must hold for the events of every session, whatever happened to it. */
export function expectWellFormed(
  events: readonly { version: number; type: string; data: object | null }[],
): void {
  expect(events.map((event) => event.version)).toEqual(events.map((_, index) => index + 1));
  const started = new Set<unknown>();
  const ended: unknown[] = [];
  for (const { type, data } of events) {
    const id = (data as { generationId?: string } | null)?.generationId;
    if (type === 'GenerationStarted') started.add(id);
    if (/^Generation(Completed|Failed|Cancelled)$/.test(type)) ended.push(id);
  }
  expect(new Set(ended).size).toBe(ended.length);
  expect([...started].sort()).toEqual(ended.sort());
}

export const user = (content: string): object => ({ role: 'user', content });
export const say = (api: Api, sessionId: string, content: string) =>
  api.post<{ version: number; messages: { messageId: string; version: number }[] }>(
    `/v1/sessions/${sessionId}/messages`,
    user(content),
  );

/** Texts of the present history, oldest first. */
export async function texts(api: Api, sessionId: string): Promise<unknown[]> {
  const { status, body, text } = await api.get<{ data: { content: unknown }[] }>(
    `/v1/sessions/${sessionId}/messages?limit=200`,
  );
  if (status !== 200) throw new Error(`the messages of ${sessionId} are answered by ${status}: ${text}`);
  return body.data.map((message) => message.content);
}
