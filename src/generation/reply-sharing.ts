import { type Telemetry } from '../event-store/telemetry.js';
import { type Chunk, type PartialReplies } from '../sessions/partial-replies.js';

/**
 * Milliseconds for which text is gathered before it is written. If this node dies, the text of this time is lost, and
 * readers on other nodes see text later by as much.
 */
const GATHER_MS = 75;

interface Shared {
  /** Number of the last chunk. */
  number: number;
  /** Chunks that are not known to be stored. */
  unwritten: Chunk[];
  /** Text that arrived after these chunks. */
  text: string;
}

/**
 * Writes the text of the replies that arrive in this process to the database, where other nodes can read it. One
 * statement writes the text of all replies.
 */
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

  /** Must be called when a generation has ended. The log then holds its reply, so the shared text is removed. */
  async drop(generationId: string): Promise<void> {
    this.replies.delete(generationId);
    // Otherwise a write in progress would insert its rows after the removal.
    await this.writing;
    // Rows that are not removed now are removed after a day.
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
      // Writes do not overlap: a reader that finds a chunk must find all chunks before it.
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
      // It is unknown whether the chunks were stored, so the same chunks are sent again, and other nodes see them
      // later. The failure is reported once, because every attempt fails in the same way while the database is
      // unavailable.
      if (!this.isFailing)
        this.telemetry.emit('failed', { what: 'the sharing of replies that arrive', error });
      this.isFailing = true;
    }
  }
}

const isUnwritten = ({ unwritten, text }: Shared): boolean => unwritten.length > 0 || text !== '';
