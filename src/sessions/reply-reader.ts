import { type ReplyStreams } from './reply-streams.js';

/** A piece of a reply's text; pieces of a generation are numbered from 1 without gaps. */
export interface Chunk {
  readonly generation: string;
  readonly number: number;
  readonly text: string;
}

/**
 * Reads the text of a generation while it arrives. The same text may come by two ways, in different parts: by Redis, and
 * by the database when Redis is away. Each way holds the text from its beginning on, so what one has given is cut
 * off from what the other gives.
 */
export class ReplyReader implements Disposable {
  /** Characters that were returned. */
  private length = 0;
  /** Number of the last chunk of the table that was read, and characters up to its end. */
  private chunk = 0;
  private chunksLength = 0;
  private hasGrown = false;
  private wake = (): void => undefined;
  private readonly unlisten: (() => void) | undefined;

  /**
   * @param chunksAfter gives the chunks of the table behind a number
   * @param streams undefined: there is no Redis
   */
  constructor(
    private readonly generation: string,
    private readonly chunksAfter: (number: number) => Promise<readonly Chunk[]>,
    private readonly streams: ReplyStreams | undefined,
  ) {
    this.unlisten = streams?.onGrowth(generation, () => {
      this.hasGrown = true;
      this.wake();
    });
  }

  /** The text that has come since the last call. @throws DatabaseUnavailable */
  async next(): Promise<string> {
    this.hasGrown = false;
    return (await this.fromStream()) || (await this.fromTable());
  }

  /** Resolves when there may be more; never if nobody tells. */
  grown(): Promise<void> {
    return new Promise((resolve) => {
      this.wake = resolve;
      if (this.hasGrown) resolve();
    });
  }

  [Symbol.dispose](): void {
    this.unlisten?.();
  }

  private async fromStream(): Promise<string> {
    let found = '';
    for (const { end, text } of (await this.streams?.readAfter(this.generation, this.length)) ?? [])
      found += this.added(end, text);
    return found;
  }

  private async fromTable(): Promise<string> {
    let found = '';
    for (const { number, text } of await this.chunksAfter(this.chunk)) {
      this.chunk = number;
      this.chunksLength += text.length;
      found += this.added(this.chunksLength, text);
    }
    return found;
  }

  /** What a text that ends at a place adds to what was returned. */
  private added(end: number, text: string): string {
    const isNext = end > this.length && end - text.length <= this.length;
    if (!isNext) return '';
    const added = text.slice(text.length - (end - this.length));
    this.length = end;
    return added;
  }
}
