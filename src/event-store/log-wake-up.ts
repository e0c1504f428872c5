import { randomUUID } from 'node:crypto';
import { type Client } from 'pg';
import { connect } from '../database/connection.js';

const CHANNEL = 'colloquy_log';

/**
 * At most so often one node tells the others. NOTIFY takes a lock that is global to the server, so it is never part
 * of an append, and what is committed meanwhile goes into the next one.
 */
const NOTIFY_GAP_MS = 10;

/** A lost notification costs at most this much delay. */
const POLL_MS = 1_000;

type Listener = (lanes: Iterable<number>) => void;

/** Tells who reads the log that lanes have grown: at once within the process, by NOTIFY on other nodes. */
export class LogWakeUp {
  private readonly origin = randomUUID();
  private readonly listeners = new Set<Listener>();
  private readonly hurried = new Set<() => void>();
  private readonly all: readonly number[];
  private readonly untold = new Set<number>();
  private telling = false;
  private readonly grown = new Set<number>();
  private emitting: NodeJS.Immediate | undefined;
  private client: Client | undefined;
  private connecting: Promise<void> | undefined;
  private readonly poll: NodeJS.Timeout;
  private closed = false;

  constructor(
    private readonly url: string,
    lanes: number,
    /** Others may have appended to these lanes; called before the listeners are. */
    private readonly onForeign: (lanes: Iterable<number>) => void,
  ) {
    this.all = Array.from({ length: lanes }, (_, lane) => lane);
    this.poll = setInterval(() => {
      this.ensureConnected();
      this.emit(this.all);
    }, POLL_MS);
    this.poll.unref();
  }

  /** Calls back with the lanes that may have grown; now and then without need. Returns how to stop that. */
  subscribe(listener: Listener): () => void {
    this.listeners.add(listener);
    this.ensureConnected();
    return () => this.listeners.delete(listener);
  }

  /** The writer committed to these lanes. Whoever waits for the commit itself goes first. */
  appended(lanes: Iterable<number>): void {
    for (const lane of lanes) this.grown.add(lane);
    this.emitting ??= setImmediate(() => {
      const grown = [...this.grown];
      this.grown.clear();
      this.emitting = undefined;
      for (const lane of grown) this.untold.add(lane);
      this.emit(grown);
      this.ensureConnected();
      void this.tell();
    });
  }

  /** Calls back when a reader on this node waits: no time to let work gather. Returns how to stop that. */
  onHurry(listener: () => void): () => void {
    this.hurried.add(listener);
    return () => this.hurried.delete(listener);
  }

  /** A reader waits for whoever follows the log on this node. */
  hurry(): void {
    for (const listener of this.hurried) listener();
  }

  async close(): Promise<void> {
    this.closed = true;
    clearImmediate(this.emitting);
    clearInterval(this.poll);
    this.listeners.clear();
    await this.connecting;
    await this.client?.end().catch(() => undefined);
  }

  private emitForeign(lanes: readonly number[]): void {
    this.onForeign(lanes);
    this.emit(lanes);
  }

  private emit(lanes: Iterable<number>): void {
    for (const listener of this.listeners) listener(lanes);
  }

  private async tell(): Promise<void> {
    if (this.telling || !this.client || this.untold.size === 0) return;
    this.telling = true;
    const lanes = [...this.untold];
    this.untold.clear();
    try {
      await this.client.query('select pg_notify($1, $2)', [CHANNEL, `${this.origin} ${lanes.join()}`]);
    } catch {
      // The others poll; the connection's own end handler replaces it.
    }
    setTimeout(() => {
      this.telling = false;
      void this.tell();
    }, NOTIFY_GAP_MS).unref();
  }

  private ensureConnected(): void {
    if (this.client || this.closed) return;
    this.connecting ??= this.listen().finally(() => {
      this.connecting = undefined;
    });
  }

  private async listen(): Promise<void> {
    try {
      const client = await connect(this.url, 'wake-up');
      client.on('end', () => {
        if (this.client === client) this.client = undefined;
      });
      client.on('notification', ({ payload = '' }) => {
        const [origin, lanes = ''] = payload.split(' ');
        if (origin !== this.origin) this.emitForeign(lanes.split(',').map(Number));
      });
      // A notification that a crash loses is found by polling, so its commit need not wait for the disk.
      await client.query('set synchronous_commit = off');
      await client.query(`listen ${CHANNEL}`);
      this.client = client;
      this.emitForeign(this.all);
      void this.tell();
    } catch {
      // The next poll tries again.
    }
  }
}
