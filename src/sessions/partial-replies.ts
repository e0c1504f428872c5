import { Inject, Injectable, Logger, type OnApplicationShutdown, type OnModuleInit } from '@nestjs/common';
import { arrayLiteral, bytesArray } from '../database/array-literal.js';
import { available } from '../database/connection.js';
import { RedisLink } from '../database/redis-link.js';
import { RelaxedPool } from '../database/relaxed-pool.js';
import { type Content } from '../domain/session.events.js';
import { EventLog } from '../event-store/log.js';
import { repeat } from '../housekeeping.js';
import { thoughtsOf } from './ids.js';
import { type Chunk, ReplyReader } from './reply-reader.js';
import { ReplyStreams } from './reply-streams.js';
import { type ReplyOwner, ReplyTexts, type StoredText } from './reply-texts.js';

const PRUNE_MS = 3_600_000;

/** A reply that is being generated in this process. */
export interface OwnReply {
  /** The text that has arrived so far, and what was thought before it. */
  text(): string;
  reasoning(): string;
  /** Called when a command of this process ended the generation. */
  ended(): void;
}

/**
 * The text of replies that are still being generated, shared by all nodes: any node can show, end or clean up a
 * generation that another node runs. The text is not part of the history, and is deleted when the generation has ended.
 */
@Injectable()
export class PartialReplies implements OnModuleInit, OnApplicationShutdown {
  private readonly own = new Map<string, OwnReply>();
  private readonly logger = new Logger('generation');
  private stopPruning = (): void => undefined;
  /** Takes the place of the table while there is a Redis. */
  readonly streams: ReplyStreams | undefined;
  private readonly texts: ReplyTexts;

  /** @param relaxed nothing of an unfinished reply was promised, so a crash of the database may lose it */
  constructor(
    private readonly relaxed: RelaxedPool,
    @Inject(RedisLink) redis: RedisLink | null,
    log: EventLog,
  ) {
    this.texts = new ReplyTexts(log);
    this.streams = redis ? new ReplyStreams(redis, this.texts) : undefined;
  }

  onModuleInit(): void {
    this.stopPruning = repeat(
      PRUNE_MS,
      () => this.prune(),
      (error) => {
        this.logger.warn(
          'Left-over pieces of replies could not be pruned; it is tried again in an hour.',
          error,
        );
      },
    );
  }

  onApplicationShutdown(): void {
    this.stopPruning();
  }

  /** Registers a reply of this process, which knows more of it than the table. Returns a function that ends this. */
  register(generation: string, reply: OwnReply): () => void {
    this.own.set(generation, reply);
    return () => this.own.delete(generation);
  }

  /** Writes to the table. */
  async write(chunks: readonly (Chunk & { readonly owner: ReplyOwner })[]): Promise<void> {
    const stored = await this.texts.seal(chunks);
    await available(() =>
      this.relaxed.pool.query({
        name: 'write_chunks',
        text: `insert into generation_chunk (generation, number, text, sealed, key_id)
               select * from unnest($1::text[], $2::int[], $3::text[], $4::bytea[], $5::uuid[])
               on conflict do nothing`,
        values: [
          arrayLiteral(chunks.map((chunk) => chunk.generation)),
          arrayLiteral(chunks.map((chunk) => chunk.number)),
          arrayLiteral(stored.map(({ text }) => text)),
          bytesArray(stored, ({ sealed }) => sealed),
          arrayLiteral(stored.map(({ keyId }) => keyId)),
        ],
      }),
    );
  }

  /** What has arrived so far; undefined when nothing has. */
  async read(generation: string): Promise<Content | undefined> {
    const own = this.own.get(generation);
    const text = own ? own.text() : await this.readShared(generation);
    const reasoning = own ? own.reasoning() : await this.readShared(thoughtsOf(generation));
    if (reasoning === '') return text === '' ? undefined : text;
    const thought = { type: 'reasoning' as const, text: reasoning };
    return text === '' ? [thought] : [thought, { type: 'text', text }];
  }

  private async readShared(generation: string): Promise<string> {
    using reader = this.reader(generation);
    let text = '';
    for (let more = await reader.next(); more !== ''; more = await reader.next()) text += more;
    return text;
  }

  /** Must be disposed of. */
  reader(generation: string): ReplyReader {
    return new ReplyReader(generation, (number) => this.readAfter(generation, number), this.streams);
  }

  /** Chunks of the table. */
  private async readAfter(generation: string, number: number): Promise<Chunk[]> {
    const { rows } = await available(() =>
      this.relaxed.pool.query<Omit<Chunk, 'text'> & StoredText>({
        name: 'read_chunks',
        text: `select generation, number, text, sealed, key_id as "keyId" from generation_chunk
               where generation = $1 and number > $2 order by number`,
        values: [generation, number],
      }),
    );
    return this.texts.open(rows);
  }

  /** Deletes the text of a generation that has ended. */
  async drop(generation: string): Promise<void> {
    this.own.get(generation)?.ended();
    const names = [generation, thoughtsOf(generation)];
    for (const name of names) await this.streams?.drop(name);
    await available(() =>
      this.relaxed.pool.query('delete from generation_chunk where generation = any ($1)', [names]),
    );
  }

  /** Deletes old text, which nodes wrote after another node had ended their generation. */
  private async prune(): Promise<void> {
    await available(() =>
      this.relaxed.pool.query(
        `delete from generation_chunk where time < colloquy_now() - interval '24 hours'`,
      ),
    );
  }
}
