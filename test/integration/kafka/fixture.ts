import { upcast } from '../../../src/domain/session.events.js';
import { EventLog } from '../../../src/event-store/log.js';
import { appendOf } from '../../support/append.js';
import { type TestDatabase } from '../../support/database.js';

export { sized } from '../../support/heavy.js';
export const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

export const openStore = (url: string): Promise<EventLog> => EventLog.open(url, { upcast });

export const completed = (inputTokens: number, outputTokens: number) => ({
  type: 'GenerationCompleted',
  data: {
    generationId: 'g',
    model: 'echo',
    finishReason: 'stop',
    durationMs: 1,
    usage: { inputTokens, outputTokens },
  },
});
export const said = (content: string) => ({
  type: 'MessageAppended',
  data: { messageId: 'm', role: 'user', content, status: 'complete' },
});

/** Appends to several sessions at the same time, and remembers the version of each. */
export class Writers {
  readonly versions = new Map<string, number>();
  private count = 0;
  private stopped = false;
  private running: Promise<unknown> = Promise.resolve();

  constructor(
    private readonly store: EventLog,
    private readonly sessions: number,
    private readonly prefix = 's',
  ) {}

  /** Appends `events` events to every session. */
  async round(events: number): Promise<void> {
    await Promise.all(Array.from({ length: this.sessions }, (_, index) => this.write(index, events)));
  }

  /** Appends about this many events a second until `stop`, spread over the sessions; goes on after errors. */
  flow(perSecond: number): void {
    this.stopped = false;
    this.running = (async () => {
      for (let index = 0; !this.stopped; index += 1) {
        const tenth = Array.from({ length: Math.ceil(perSecond / 20) }, (_, n) =>
          this.write((index * 7 + n) % this.sessions, 1).catch(() => undefined),
        );
        await Promise.all(tenth);
        await sleep(50);
      }
    })();
  }

  async stop(): Promise<void> {
    this.stopped = true;
    await this.running;
  }

  private async write(index: number, events: number): Promise<void> {
    const streamId = `${this.prefix}${index}`;
    const version = this.versions.get(streamId) ?? 0;
    const written = Array.from({ length: events }, () => {
      this.count += 1;
      return this.count % 3 === 0 ? completed(this.count % 100, 1) : said(`message ${this.count}`);
    });
    const stream = { tenant: `t${index % 3}`, streamId };
    const result = await this.store.append(appendOf(stream, version, written));
    // When the connection was lost the append may have happened, so the version is read from the log.
    this.versions.set(
      streamId,
      result.status === 'ok' ? result.version : ((await this.store.streams.versions([stream]))[0] ?? 0),
    );
  }
}

/** The ids of all events of the log, in order, by the key of their records. */
export async function logOf(db: TestDatabase): Promise<Map<string, string[]>> {
  const rows = await db.query<{ key: string; ids: string[] }>(
    `select tenant || '/' || stream_id as key, array_agg(id::text order by version) as ids from event group by 1`,
  );
  return new Map(rows.map(({ key, ids }) => [key, ids]));
}

export const countOf = (log: ReadonlyMap<string, readonly string[]>): number =>
  [...log.values()].reduce((sum, ids) => sum + ids.length, 0);
