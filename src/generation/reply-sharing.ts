import { type Telemetry } from '../event-store/telemetry.js';
import { type Chunk, type PartialReplies } from '../sessions/partial-replies.js';

/** What arrives can be read by other nodes, and survives the end of this one, after at most so many milliseconds. */
const GATHER_MS = 75;

interface Shared {
  /** Number of the last chunk. */
  number: number;
  /** Chunks that are not known to be stored. */
  unwritten: Chunk[];
  /** Text that came after them. */
  text: string;
}

/** Writes the text of the replies that arrive in this process where other nodes can read it, all replies together. */
export class ReplySharing {
  private readonly replies = new Map<string, Shared>();
  private timer: NodeJS.Timeout | undefined;
  private writing: Promise<void> = Promise.resolve();
  private isFailing = false;

  constructor(
    private readonly partials: PartialReplies,
    private readonly telemetry: Telemetry,
  ) {}

  add(generationId: string, text: string): void {
    const shared = this.replies.get(generationId);
    if (shared) shared.text += text;
    else this.replies.set(generationId, { number: 0, unwritten: [], text });
    this.writeSoon();
  }

  /** The generation has ended and the log holds its reply: what was shared of it is removed. */
  async drop(generationId: string): Promise<void> {
    this.replies.delete(generationId);
    // A write that is under way would put its rows back behind the removal.
    await this.writing;
    // What stays behind is removed after a day.
    await this.partials
      .drop(generationId)
      .catch(this.telemetry.failed('the removal of the shared text of a reply that has ended'));
  }

  /** Writes no more, and resolves when the last write has ended. */
  async close(): Promise<void> {
    clearTimeout(this.timer);
    await this.writing;
  }

  private writeSoon(): void {
    this.timer ??= setTimeout(() => {
      // One write after the other: whoever reads a chunk must find those before it.
      this.writing = this.write().finally(() => {
        this.timer = undefined;
        if ([...this.replies.values()].some(isUnwritten)) this.writeSoon();
      });
    }, GATHER_MS);
  }

  private async write(): Promise<void> {
    const sharing = [...this.replies].filter(([, shared]) => isUnwritten(shared));
    for (const [generation, shared] of sharing) {
      if (shared.text === '') continue;
      shared.number += 1;
      shared.unwritten.push({ generation, number: shared.number, text: shared.text });
      shared.text = '';
    }
    const chunks = sharing.flatMap(([, shared]) => shared.unwritten);
    if (chunks.length === 0) return;
    try {
      await this.partials.write(chunks);
      for (const [, shared] of sharing) shared.unwritten = [];
      this.isFailing = false;
    } catch (error) {
      // Nobody knows whether they were stored. The same chunks are sent again, so other nodes see them later. It is
      // told once: while the database is away every one of the next tries fails in the same way.
      if (!this.isFailing)
        this.telemetry.emit('failed', { what: 'the sharing of replies that arrive', error });
      this.isFailing = true;
    }
  }
}

const isUnwritten = ({ unwritten, text }: Shared): boolean => unwritten.length > 0 || text !== '';
