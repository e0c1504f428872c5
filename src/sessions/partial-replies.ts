import { type Pool } from 'pg';
import { arrayLiteral } from '../database/array-literal.js';
import { available } from '../database/connection.js';

/** A piece of a reply's text; pieces of a generation are numbered from 1 without gaps. */
export interface Chunk {
  readonly generation: string;
  readonly number: number;
  readonly text: string;
}

/** A reply that is being generated in this process. */
export interface OwnReply {
  /** All that has arrived. */
  text(): string;
  /** Its generation was ended by a command of this process. */
  ended(): void;
}

/**
 * The text of replies that are still being generated, shared by all nodes: any of them can show, end or clean up a
 * generation that another one runs. It is no history, and it is dropped when the generation has ended.
 */
export class PartialReplies {
  private readonly own = new Map<string, OwnReply>();

  /** @param pool whose commits need not wait for the disk: what a crash of the database loses was never promised. */
  constructor(private readonly pool: Pool) {}

  /** The generation runs in this process, which knows more than the table. Returns how to end that. */
  register(generation: string, reply: OwnReply): () => void {
    this.own.set(generation, reply);
    return () => this.own.delete(generation);
  }

  async write(chunks: readonly Chunk[]): Promise<void> {
    await available(() =>
      this.pool.query({
        name: 'write_chunks',
        text: `insert into generation_chunk (generation, number, text)
               select * from unnest($1::text[], $2::int[], $3::text[]) on conflict do nothing`,
        values: [
          arrayLiteral(chunks.map((chunk) => chunk.generation)),
          arrayLiteral(chunks.map((chunk) => chunk.number)),
          arrayLiteral(chunks.map((chunk) => chunk.text)),
        ],
      }),
    );
  }

  /** What has arrived so far. */
  async read(generation: string): Promise<string> {
    const own = this.own.get(generation);
    if (own) return own.text();
    return (await this.readAfter(generation, 0)).map((chunk) => chunk.text).join('');
  }

  async readAfter(generation: string, number: number): Promise<Chunk[]> {
    const { rows } = await available(() =>
      this.pool.query<Chunk>({
        name: 'read_chunks',
        text: `select generation, number, text from generation_chunk
               where generation = $1 and number > $2 order by number`,
        values: [generation, number],
      }),
    );
    return rows;
  }

  /** The generation has ended; what arrived is kept elsewhere, or by nobody. */
  async drop(generation: string): Promise<void> {
    this.own.get(generation)?.ended();
    await available(() =>
      this.pool.query('delete from generation_chunk where generation = $1', [generation]),
    );
  }

  /** What a node wrote after its generation had been ended by another one. */
  async prune(): Promise<void> {
    await available(() =>
      this.pool.query(`delete from generation_chunk where time < colloquy_now() - interval '24 hours'`),
    );
  }
}
