import { Logger } from '@nestjs/common';
import { NestFactory } from '@nestjs/core';
import { type NestFastifyApplication } from '@nestjs/platform-fastify';
import { AppModule } from '../../../src/app.module.js';
import { loadConfig } from '../../../src/config.js';
import {
  AppendMessages,
  CreateSession,
  type SessionCommand,
  StartGeneration,
} from '../../../src/domain/session.commands.js';
import { EventLog } from '../../../src/event-store/log.js';
import { Leases } from '../../../src/event-store/leases.js';
import { configureApp, createHttpAdapter } from '../../../src/http/server.js';
import { ReadModels } from '../../../src/projection-engine/strong-reads.js';
import { SESSIONS } from '../../../src/read-models/sessions.projection.js';
import { type CommandContext } from '../../../src/sessions/command-context.js';
import { newId } from '../../../src/sessions/ids.js';
import { type HandledSession, SessionCommands } from '../../../src/sessions/session-commands.js';
import { TenantPolicies } from '../../../src/sessions/tenant-policies.js';
import { Sweeper } from '../../../src/sweeper/sweeper.js';
import { createTestDatabase, type TestDatabase } from '../../support/database.js';
import { sized } from '../../support/heavy.js';
import { expectCountersMatchLog } from '../../support/recount.js';
import { expectSoundLog } from '../event-store/fixture.js';

export const TENANT = 'default';
export const HOUR = 3_600_000;

export interface Settings {
  readonly sessions?: object;
  readonly tenants?: object;
  readonly auth?: object;
  readonly storage?: object;
}

/** A whole node in this process, as the application module makes it. Requests are injected without a network. */
export class Node {
  private constructor(readonly app: NestFastifyApplication) {}

  readonly commands = this.app.get(SessionCommands);
  readonly policies = this.app.get(TenantPolicies);
  readonly sweeper = this.app.get(Sweeper);
  readonly store = this.app.get(EventLog);
  readonly leases = this.app.get(Leases);
  private readonly models = this.app.get(ReadModels);

  static async start(db: TestDatabase, settings: Settings = {}): Promise<Node> {
    Logger.overrideLogger(false);
    const config = loadConfig({ env: {}, cwd: '/nonexistent', overrides: settings });
    const app = await NestFactory.create<NestFastifyApplication>(
      AppModule.create(config, db.url),
      createHttpAdapter(config),
      { logger: false, abortOnError: false },
    );
    configureApp(app, { ...config, version: 'test' });
    await app.init();
    await app.getHttpAdapter().getInstance().ready();
    return new Node(app);
  }

  async stop(): Promise<void> {
    await this.app.close();
  }

  create(sessionId: string, tenant = TENANT): Promise<HandledSession> {
    return this.handle(sessionId, new CreateSession(), { tenant });
  }

  say(sessionId: string, content: string, tenant = TENANT): Promise<HandledSession> {
    const message = { messageId: newId('msg'), role: 'user', content, status: 'complete' } as const;
    return this.handle(sessionId, new AppendMessages([message]), { tenant });
  }

  /** Starts a generation, with or without a lease of this node. */
  async generate(sessionId: string, generationId: string, lease: 'held' | 'missing' = 'held'): Promise<void> {
    if (lease === 'held') await this.leases.take([`generation:${generationId}`]);
    await this.handle(
      sessionId,
      new StartGeneration({ generationId, model: 'm' }, [
        { messageId: newId('msg'), role: 'user', content: 'ask', status: 'complete' },
      ]),
    );
  }

  handle(
    sessionId: string,
    command: SessionCommand,
    { tenant = TENANT, ...context }: Partial<CommandContext> & { readonly tenant?: string } = {},
  ): Promise<HandledSession> {
    const by = { actor: 'tester', correlationId: 'test', ...context };
    return this.commands.handle({ tenant, sessionId, ownedBy: null }, command, by);
  }

  /** Waits until the read models have applied everything that is in the log now. */
  async caughtUp(): Promise<void> {
    await this.models.read(SESSIONS, await this.models.ends(), 'select 1 as one', []);
  }

  /** Sweeps all lanes after the read models have applied everything that was written before. */
  async sweep(): Promise<Awaited<ReturnType<Sweeper['sweep']>>> {
    await this.caughtUp();
    return this.sweeper.sweep('all');
  }

  async inject(
    method: 'GET' | 'POST' | 'PUT' | 'PATCH' | 'DELETE',
    url: string,
    body?: object,
    headers: Record<string, string> = {},
  ): Promise<{ status: number; body: Record<string, unknown>; headers: Record<string, unknown> }> {
    const answer = await this.app.inject({ method, url, headers, ...(body && { payload: body }) });
    return {
      status: answer.statusCode,
      headers: answer.headers,
      body: answer.body === '' ? {} : answer.json<Record<string, unknown>>(),
    };
  }
}

/** `type` or `type:reason` of a session's events, oldest first. */
export async function logOf(db: TestDatabase, sessionId: string, tenant = TENANT): Promise<string[]> {
  const rows = await db.query<{ type: string; reason: string | null }>(
    `select type, data ->> 'reason' as reason from event where tenant = $1 and stream_id = $2 order by version`,
    [tenant, sessionId],
  );
  return rows.map(({ type, reason }) => (reason === null ? type : `${type}:${reason}`));
}

export async function activeInLog(db: TestDatabase, tenant = TENANT): Promise<number> {
  const [row] = await db.query<{ active: number }>(
    `select count(*)::int as active from (
       select distinct on (stream_id) type from event
       where tenant = $1 and type in ('SessionCreated', 'SessionResumed', 'SessionExpired', 'SessionDeleted', 'SessionErased')
       order by stream_id, version desc
     ) last where type in ('SessionCreated', 'SessionResumed')`,
    [tenant],
  );
  return row?.active ?? 0;
}

/**
 * Checks what must hold for every expiry, whatever caused it: its `lastActivityAt` is the last use by the log, it is
 * not the second expiry in a row, and an expiry for idleness comes no earlier than the time to live after the last use.
 */
async function expectRightExpiries(db: TestDatabase, sessionTTL: number): Promise<void> {
  const wrong = await db.query(
    `select * from (
       select tenant, stream_id, version, type, time, data, lag(type) over w as before,
              max(time) filter (where type not in ('SessionExpired', 'ErasureScheduled', 'ErasureCancelled'))
                over (w rows between unbounded preceding and 1 preceding) as used
       from event window w as (partition by tenant, stream_id order by version)
     ) expiry
     where type = 'SessionExpired'
       and (before = 'SessionExpired' or used <> (data ->> 'lastActivityAt')::timestamptz
            or (data ->> 'reason' = 'ttl' and time - used < $1::bigint * interval '1 millisecond'))`,
    [sessionTTL],
  );
  expect(wrong).toEqual([]);
}

/** The nodes of one test file. Each test has a database of its own, which must be sound in the end. */
export class World {
  db!: TestDatabase;
  private readonly nodes: Node[] = [];
  private ttl = HOUR;

  /** Must be called at the top level of a test file, because it registers hooks of Jest. */
  static perTest(): World {
    const world = new World();
    beforeEach(async () => {
      world.ttl = HOUR;
      world.db = await createTestDatabase();
    });
    afterEach(
      async () => {
        await world.stopAll();
        await expectCountersMatchLog(world.db);
        await expectSoundLog(world.db);
        await expectRightExpiries(world.db, world.ttl);
        await world.db.drop();
      },
      sized(120_000, 30_000),
    );
    return world;
  }

  async start(settings: Settings = {}): Promise<Node> {
    const ttls = [settings.sessions ?? {}, ...(Object.values(settings.tenants ?? {}) as object[])].map(
      (one: { sessionTTL?: number }) => one.sessionTTL ?? HOUR,
    );
    this.ttl = Math.min(this.ttl, ...ttls);
    const node = await Node.start(this.db, settings);
    this.nodes.push(node);
    return node;
  }

  async stopAll(): Promise<void> {
    await Promise.all(this.nodes.splice(0).map((node) => node.stop()));
  }
}

/** The item at this index, counted round robin. */
export function nth<T>(items: readonly T[], index: number): T {
  const item = items[index % items.length];
  if (item === undefined) throw new Error('there is none');
  return item;
}
