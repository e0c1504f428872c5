import { type Telemetry } from '../event-store/telemetry.js';
import { thoughtsOf } from '../sessions/ids.js';
import { type PartialReplies } from '../sessions/partial-replies.js';
import { type Chunk } from '../sessions/reply-reader.js';
import { type ReplyOwner } from '../sessions/reply-texts.js';

/**
 * Milliseconds for which text is gathered before it is written to the database, or to Redis. If this node dies, the text
 * of this time is lost, and readers on other nodes see text later by as much.
 */
const GATHER_MS = { table: 75, streams: 3 };

/** A reply that arrives, and how much of it is where. */
interface Shared {
  readonly owner: ReplyOwner;
  readonly pieces: string[];
  /** Characters of all pieces. */
  length: number;
  /** Pieces that were written to Redis, and in which epoch of the connection. */
  inStream: number;
  epoch: number | undefined;
  /** Pieces that are in chunks of the table, and the number of the last of these. */
  inTable: number;
  number: number;
  /** Chunks that are not known to be stored. */
  unwritten: (Chunk & { readonly owner: ReplyOwner })[];
}

/**
 * Writes the text of the replies that arrive in this process to where other nodes can read it: to Redis if there is one,
 * else to the database. What Redis may have lost is written again, from the beginning of the reply. One
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

  /** @param owner always the same for one generation */
  add(generationId: string, text: string, owner: ReplyOwner): void {
    let shared = this.replies.get(generationId);
    if (!shared) {
      shared = {
        owner,
        pieces: [],
        length: 0,
        inStream: 0,
        epoch: undefined,
        inTable: 0,
        number: 0,
        unwritten: [],
      };
      this.replies.set(generationId, shared);
    }
    shared.pieces.push(text);
    shared.length += text.length;
    this.writeSoon();
  }

  /** Must be called when a generation has ended. The log then holds its reply, so the shared text is removed. */
  async drop(generationId: string): Promise<void> {
    this.replies.delete(generationId);
    this.replies.delete(thoughtsOf(generationId));
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
    const gatherMs = this.partials.streams?.epoch === undefined ? GATHER_MS.table : GATHER_MS.streams;
    this.timer ??= setTimeout(() => {
      // Writes do not overlap: a reader that finds a chunk must find all chunks before it.
      this.writing = this.write().finally(() => {
        this.timer = undefined;
        if ([...this.replies.values()].some((shared) => this.isUnwritten(shared))) this.writeSoon();
      });
    }, gatherMs);
  }

  private isUnwritten({ pieces, inStream, epoch, inTable, unwritten }: Shared): boolean {
    const isInStream = epoch !== undefined && epoch === this.partials.streams?.epoch;
    return isInStream ? inStream < pieces.length : unwritten.length > 0 || inTable < pieces.length;
  }

  private async write(): Promise<void> {
    const sharing = [...this.replies].filter(([, shared]) => this.isUnwritten(shared));
    if (!(await this.writeToStreams(sharing))) await this.writeToTable(sharing);
  }

  /** @returns whether the texts are there now */
  private async writeToStreams(sharing: readonly (readonly [string, Shared])[]): Promise<boolean> {
    const { streams } = this.partials;
    const epoch = streams?.epoch;
    if (!streams || epoch === undefined) return false;
    const parts = sharing.map(([generation, shared]) => {
      const { pieces, length, inStream } = shared;
      const text = pieces.slice(shared.epoch === epoch ? inStream : 0).join('');
      return { shared, pieces: pieces.length, generation, end: length, text, owner: shared.owner };
    });
    // Without the key that seals it the table cannot take the text either, which is told then.
    const isWritten =
      (await streams.write(parts.filter(({ text }) => text !== '')).catch(() => false)) &&
      streams.epoch === epoch;
    if (!isWritten) return false;
    for (const { shared, pieces } of parts) Object.assign(shared, { epoch, inStream: pieces });
    return true;
  }

  private async writeToTable(sharing: readonly (readonly [string, Shared])[]): Promise<void> {
    for (const [generation, shared] of sharing) {
      const text = shared.pieces.slice(shared.inTable).join('');
      shared.inTable = shared.pieces.length;
      if (text === '') continue;
      shared.number += 1;
      shared.unwritten.push({ generation, number: shared.number, text, owner: shared.owner });
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
