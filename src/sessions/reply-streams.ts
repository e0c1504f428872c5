import { type RedisLink } from '../database/redis-link.js';
import { type ReplyOwner, type ReplyTexts } from './reply-texts.js';

/** What nobody reads any more is gone after a day. */
const KEPT_SECONDS = 24 * 3600;

/** A part of a reply's text. */
export interface Part {
  readonly generation: string;
  /** Length of the reply up to the end of this part, in UTF-16 units. */
  readonly end: number;
  readonly text: string;
}

/**
 * The text of replies that are being generated, in Redis: one stream per generation, whose entries are named by the
 * length of the reply up to their end, and a channel that tells when one has grown.
 */
export class ReplyStreams {
  constructor(
    private readonly redis: RedisLink,
    private readonly texts: ReplyTexts,
  ) {}

  /** See `RedisLink.epoch`: what was written in another epoch has to be written again. */
  get epoch(): number | undefined {
    return this.redis.epoch;
  }

  /** @returns whether the parts are there now */
  async write(parts: readonly (Part & { readonly owner: ReplyOwner })[]): Promise<boolean> {
    const stored = await this.texts.seal(parts.map((part) => ({ ...part, number: part.end })));
    const written = await this.redis.run((client) =>
      // All at once: they go out together, in this order.
      Promise.all(
        parts.flatMap(({ generation, end }, index) => {
          const key = keyOf(generation);
          const { text, sealed, keyId } = stored[index] ?? { text: '' };
          const entry = sealed
            ? { sealed: sealed.toString('base64'), key: keyId ?? '' }
            : { text: text ?? '' };
          return [
            client.xAdd(key, `${end}-0`, entry).catch((error: unknown) => {
              // It was written before, and the answer was lost.
              if (!/equal or smaller/.test((error as Error).message)) throw error;
            }),
            client.expire(key, KEPT_SECONDS),
            client.publish(key, ''),
          ];
        }),
      ),
    );
    return written !== undefined;
  }

  /** The parts that end behind a length, in their order; undefined when Redis is away. */
  async readAfter(generation: string, length: number): Promise<Omit<Part, 'generation'>[] | undefined> {
    const entries = await this.redis.run((client) => client.xRange(keyOf(generation), `(${length}-0`, '+'));
    if (!entries) return undefined;
    const stored = entries.map(({ id, message: { text, sealed, key } }) => ({
      generation,
      number: Number.parseInt(id, 10),
      text: text ?? null,
      sealed: sealed === undefined ? null : Buffer.from(sealed, 'base64'),
      keyId: key ?? null,
    }));
    return (await this.texts.open(stored)).map(({ number, text }) => ({ end: number, text }));
  }

  async drop(generation: string): Promise<void> {
    await this.redis.run((client) => client.del(keyOf(generation)));
  }

  /** Calls the listener when the text of a generation has grown; in vain now and then. */
  onGrowth(generation: string, listener: () => void): () => void {
    return this.redis.listen(keyOf(generation), listener);
  }
}

const keyOf = (generation: string): string => `colloquy:reply:${generation}`;
