import { type CommittedEvent } from '../event-store/leaf-reader.js';
import { type EventLog } from '../event-store/log.js';
import { leafOf } from './leaf.js';
import { type MerkleStore } from './merkle-store.js';
import { hashesOf, nameOf, TreeEdge } from './tiles.js';
import { openNote, type readKeys } from './verify-export.js';

/** Events read at once; as many as the leaves of a tile, so that a page is compared with one tile. */
const PAGE = 256;
const CHECKPOINTS = 10_000;

/** Something in the log that is not as it was signed. */
export interface LogFinding {
  readonly kind: 'changed' | 'cut off' | 'left out' | 'not signed' | 'rewritten';
  readonly lane: number;
  /** Of the event, or the number of events that a checkpoint is of. */
  readonly position: number;
  /** Of an event: tenant/session/version. */
  readonly event: string | null;
  readonly message: string;
}

export interface AuditedLog {
  readonly events: number;
  readonly checkpoints: number;
  readonly findings: readonly LogFinding[];
}

export interface AuditOptions {
  readonly log: EventLog;
  readonly store: MerkleStore;
  /** The public keys that may have signed. */
  readonly keys: ReturnType<typeof readKeys>;
  /** Checkpoints that were kept elsewhere, such as those of the Kafka topic. */
  readonly kept?: readonly string[] | undefined;
  /** Called after each page with the number of events so far, and of all. */
  readonly onProgress?: ((done: number, all: number) => void) | undefined;
}

interface Checkpoint {
  readonly size: number;
  readonly root: Buffer;
  readonly isKept: boolean;
}

/**
 * Holds a log against what was signed of it: every event against the leaf that the notary took in, every tree against the
 * checkpoints of the database, and against those that were kept where its owner could not change them. Memory does not grow
 * with the log, but with what is found.
 *
 * @throws DatabaseUnavailable; NoKeys where payloads are sealed and there is no master key
 */
export async function auditLog({
  log,
  store,
  keys,
  kept = [],
  onProgress,
}: AuditOptions): Promise<AuditedLog> {
  const findings: LogFinding[] = [];
  const heads = await store.heads(Array.from({ length: log.laneCount }, (_, lane) => lane));
  const all = heads.reduce((sum, { size }) => sum + size, 0);
  let events = 0;
  let checkpoints = 0;
  for (const head of heads) {
    const lane = new LaneAudit(log, store, head.lane, findings);
    checkpoints += await lane.readCheckpoints(keys, kept);
    await lane.readEvents(head.size, (count) => {
      events += count;
      onProgress?.(events, all);
    });
  }
  return { events, checkpoints, findings };
}

class LaneAudit {
  private checkpoints: Checkpoint[] = [];
  private isRewritten = false;

  constructor(
    private readonly log: EventLog,
    private readonly store: MerkleStore,
    private readonly lane: number,
    private readonly findings: LogFinding[],
  ) {}

  /** @returns how many there are */
  async readCheckpoints(keys: AuditOptions['keys'], kept: readonly string[]): Promise<number> {
    const sizes = new Set<number>();
    for (let after = 0; ;) {
      const page = await this.store.checkpoints(this.lane, after, CHECKPOINTS);
      for (const { size, note } of page) {
        const found = this.read(note, keys);
        if (found?.size !== size)
          this.find('not signed', size, 'the checkpoint in the database is not signed by a known key');
        else this.checkpoints.push({ ...found, isKept: false });
        sizes.add(size);
        after = size;
      }
      if (page.length < CHECKPOINTS) break;
    }
    for (const note of kept) {
      const found = this.read(note, keys);
      if (!found) continue;
      this.checkpoints.push({ ...found, isKept: true });
      if (!sizes.has(found.size))
        this.find('left out', found.size, 'the database lacks a checkpoint that was published');
    }
    this.checkpoints.sort((a, b) => a.size - b.size);
    return this.checkpoints.length;
  }

  /** A signed checkpoint of this lane; undefined when the note is another one. */
  private read(note: string, keys: AuditOptions['keys']): Omit<Checkpoint, 'isKept'> | undefined {
    const [origin = '', size, root = ''] = openNote(note, keys)?.split('\n') ?? [];
    const isOfLane = `${origin}/`.startsWith(`colloquy/${this.log.id}/lane/${this.lane}/`);
    return isOfLane ? { size: Number(size), root: Buffer.from(root, 'base64') } : undefined;
  }

  async readEvents(size: number, onPage: (count: number) => void): Promise<void> {
    const edge = new TreeEdge();
    let due = 0;
    while (edge.size < size) {
      const first = edge.size;
      const wanted = Math.min(PAGE - (first % PAGE), size - first);
      const events = (await this.log.leaves.read(new Map([[this.lane, first]]), wanted)).filter(
        ({ position }) => position <= first + wanted,
      );
      const known = await this.leavesOf(first);
      for (const event of events) {
        // A page may have less than was asked for, so only what stands behind it shows that an event is missing.
        while (edge.size < event.position - 1) this.appendMissing(edge, known);
        this.append(edge, event, known.at(edge.size % PAGE));
        due = this.compare(edge, due);
      }
      if (events.length === 0) {
        const isEnd = (await this.log.leaves.read(new Map([[this.lane, first]]), 1)).length === 0;
        if (isEnd) break;
        while (edge.size < first + wanted) this.appendMissing(edge, known);
      }
      for (const { position, fault } of await this.log.leaves.openings(events)) {
        const event = events.find((one) => one.position === position);
        if (fault !== null && event) this.find('changed', position, fault, event);
      }
      // Their hashes are in the root.
      edge.takeChanged();
      onPage(events.length);
    }
    if (edge.size < size)
      this.find('cut off', edge.size, `the lane ends at position ${edge.size}, and had ${size} events`);
    for (const { size: signed, isKept } of this.checkpoints.slice(due)) {
      if (signed <= size && edge.size < size) continue;
      const where = isKept ? 'that was published' : 'of the database';
      this.find(
        'cut off',
        signed,
        `a checkpoint ${where} is of ${signed} events, and the lane has ${edge.size}`,
      );
    }
  }

  /** The hashes of the leaves that the notary took in from this one on, up to the end of its tile. */
  private async leavesOf(first: number): Promise<Buffer[]> {
    const place = { level: 0, index: Math.floor(first / PAGE) };
    return hashesOf((await this.store.tiles(this.lane, [place])).get(nameOf(place)) ?? Buffer.alloc(0));
  }

  private append(edge: TreeEdge, event: CommittedEvent, known: Buffer | undefined): void {
    const leaf = leafOf(event);
    edge.append(leaf);
    if (known && !known.equals(leaf))
      this.find(
        'changed',
        event.position,
        'it is not the event that was there when the tree took it in',
        event,
      );
  }

  /** Goes on with what the tree has, so that one missing event is not found again at each one behind it. */
  private appendMissing(edge: TreeEdge, known: readonly Buffer[]): void {
    const position = edge.size + 1;
    this.find('left out', position, 'the log has no event at this position');
    edge.append(known.at(edge.size % PAGE) ?? Buffer.alloc(32));
  }

  /** Compares the tree with the checkpoints of its present size. @returns how many checkpoints were compared so far */
  private compare(edge: TreeEdge, done: number): number {
    let due = done;
    for (let next = this.checkpoints[due]; next && next.size <= edge.size; next = this.checkpoints[due]) {
      due += 1;
      if (this.isRewritten || next.size !== edge.size || edge.root().equals(next.root)) continue;
      // What differs in one differs in all behind it.
      this.isRewritten = true;
      const where = next.isKept ? 'that was published' : 'of the database';
      this.find(
        'rewritten',
        next.size,
        `the first ${next.size} events are not those of the checkpoint ${where}`,
      );
    }
    return due;
  }

  private find(kind: LogFinding['kind'], position: number, message: string, event?: CommittedEvent): void {
    const what = event ? `${event.tenant}/${event.streamId}/${event.version}` : null;
    this.findings.push({ kind, lane: this.lane, position, event: what, message });
  }
}
