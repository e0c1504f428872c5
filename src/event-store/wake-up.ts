import { randomUUID } from 'node:crypto';
import { type Client } from 'pg';
import { connect, endConnection, keepsProcessAlive } from '../database/connection.js';
import { alignedInterval } from './aligned-interval.js';
import { LANE_ENDS } from './lane-reader.js';
import { type Telemetry } from './telemetry.js';

const CHANNEL = 'colloquy_log';
/** Tells the owners of leases that some became free, or that there is one more; the payload is the owner who says so. */
const LEASES_CHANNEL = 'colloquy_leases';

/** SQL expression that tells all nodes, once its transaction is committed, that this owner released leases, or takes part. */
export const announceRelease = (owner: string): string => `pg_notify('${LEASES_CHANNEL}', ${owner})`;

/**
 * Least time between two notifications of one node. NOTIFY takes a lock that is global to the server, so it is never
 * part of an append; commits within the gap share the next notification. Each one is a statement by itself, and wakes
 * this process a second time, as one that listens: with a gap of 10 ms one log took 3 % fewer appends over HTTP, and the
 * three logs of a process 6 % fewer (measured). Other nodes hear of the first append after a gap at once. What a node appends
 * right before it stops they find by polling.
 */
const NOTIFY_GAP_MS = 50;

/** A lost notification delays readers by at most this much, or in a quiet log by a period of it. */
const POLL_MS = 1_000;
/** How long the look at a quiet log may take, before the connection that does not answer is replaced. */
const LOOK_MS = 3_000;
/**
 * A log to which nobody has appended for so long is quiet, if there is a connection by which an append would be told. It is
 * also the time between two of the things that are done in a quiet log again and again, here and by `Leases`: at the same
 * moments in all logs of a process. They are all that an idle log costs, and a process may have a hundred of them (cells).
 */
export const QUIET_MS = 30_000;

/** Gets the lanes that may have grown. With `isPoll` nothing is known of them: only the time has come to look. */
type Listener = (lanes: Iterable<number>, isPoll: boolean) => void;

/** Wakes the readers of the log when lanes have grown: directly within the process, by NOTIFY on other nodes. */
export class WakeUp {
  private readonly origin = randomUUID();
  private readonly listeners = new Set<Listener>();
  private readonly releaseListeners = new Set<(owner: string) => void>();
  private readonly waitListeners = new Map<() => void, string>();
  private readonly stirListeners = new Set<() => void>();
  private readonly all: readonly number[];
  private readonly unannounced = new Set<number>();
  private announcing = false;
  private readonly grown = new Set<number>();
  private emitting: NodeJS.Immediate | undefined;
  private client: Client | undefined;
  private connecting: Promise<void> | undefined;
  private readonly stopPolling: () => void;
  private closed = false;
  /** When this node last heard that a lane has grown, or that a reader waits for it to grow, by `performance.now()`. */
  private stirredAt = -Infinity;
  private lookedAt = -Infinity;
  /** By lane, the ends that all readers of a quiet log know of; undefined while it is not quiet. */
  private quietEnds: readonly number[] | undefined;

  constructor(
    private readonly url: string,
    lanes: number,
    /** Called before the listeners when other nodes may have appended to these lanes. */
    private readonly onForeign: (lanes: Iterable<number>) => void,
    /** Called with each new connection before it is used. */
    private readonly check: (client: Client) => Promise<void>,
    private readonly telemetry: Telemetry,
    readonly quietMs = QUIET_MS,
  ) {
    this.all = Array.from({ length: lanes }, (_, lane) => lane);
    this.stopPolling = alignedInterval(POLL_MS, () => {
      this.ensureConnected();
      if (!this.isQuiet) this.look();
      else if (this.isNewPeriod(this.lookedAt)) void this.lookQuietly();
    });
  }

  /** Whether nobody appends to the log at present, as far as this node hears. */
  get isQuiet(): boolean {
    return this.client !== undefined && performance.now() - this.stirredAt > this.quietMs;
  }

  /** Whether one of the periods of a quiet log has ended since a moment, by `performance.now()`. */
  isNewPeriod(since: number): boolean {
    return Math.floor(performance.now() / this.quietMs) > Math.floor(since / this.quietMs);
  }

  /** Calls `listener` when a log that was quiet is so no longer. Returns a function that stops this. */
  onStir(listener: () => void): () => void {
    this.stirListeners.add(listener);
    return () => this.stirListeners.delete(listener);
  }

  /**
   * Calls `listener` with the lanes that may have grown, and with all lanes every second as long as the log is not quiet,
   * and once when it has become so. Who fails at what it is woken for must try again by itself: nothing may follow for
   * hours. Returns a function that stops this.
   */
  subscribe(listener: Listener): () => void {
    this.listeners.add(listener);
    this.ensureConnected();
    return () => this.listeners.delete(listener);
  }

  /**
   * Calls `listener` with each owner that released leases, and with an empty text when nobody can tell who did. Returns a
   * function that stops this.
   */
  onRelease(listener: (owner: string) => void): () => void {
    this.releaseListeners.add(listener);
    this.ensureConnected();
    return () => this.releaseListeners.delete(listener);
  }

  /** Replaces the connection at once: another one to the same server was lost, and this one may only not know it yet. */
  reconnect(): void {
    const { client } = this;
    if (!client || this.closed) return;
    this.client = undefined;
    this.telemetry.emit('wakeUp', { connected: false });
    // Its end is not awaited, because a server that does not answer would delay it.
    client.end().catch(this.telemetry.failed('closing the connection for notifications'));
    this.ensureConnected();
  }

  /** Tells that the writer committed to these lanes. Readers are woken after those who wait for the commit. */
  appended(lanes: Iterable<number>): void {
    this.stir();
    for (const lane of lanes) this.grown.add(lane);
    this.emitting ??= setImmediate(() => {
      const grown = [...this.grown];
      this.grown.clear();
      this.emitting = undefined;
      for (const lane of grown) this.unannounced.add(lane);
      this.emit(grown);
      this.ensureConnected();
      void this.announce();
    });
  }

  /**
   * Calls `listener` when a reader on this node waits for this work, so that it is done at once instead of gathered into a
   * batch. Returns a function that stops this.
   */
  onReaderWaiting(work: string, listener: () => void): () => void {
    this.waitListeners.set(listener, work);
    return () => this.waitListeners.delete(listener);
  }

  /** Tells that a reader waits until this node has caught up with the log in this work. */
  readerWaits(work: string): void {
    this.stir();
    // It may wait for what another node has appended and this one has not heard of.
    if (performance.now() - this.lookedAt >= POLL_MS) this.look();
    for (const [listener, waited] of this.waitListeners) if (waited === work) listener();
  }

  async close(): Promise<void> {
    this.closed = true;
    clearImmediate(this.emitting);
    this.stopPolling();
    this.listeners.clear();
    await this.connecting;
    if (!this.client) return;
    await endConnection(this.client).catch(this.telemetry.failed('closing the connection for notifications'));
  }

  private look(): void {
    this.lookedAt = performance.now();
    this.emit(this.all, true);
  }

  /**
   * One statement looks whether a quiet log has grown without a word, so that its readers need not look each by itself. It
   * goes to the connection that should have told, and finds out whether that one is still there.
   */
  private async lookQuietly(): Promise<void> {
    const { client } = this;
    if (!client) return;
    this.lookedAt = performance.now();
    try {
      // The driver knows this member of a query, its types do not.
      const limited = { ...LANE_ENDS, query_timeout: LOOK_MS };
      const { rows } = await client.query<{ position: number }>(limited);
      if (!this.isQuiet || this.client !== client) return;
      const ends = rows.map(({ position }) => position);
      const before = this.quietEnds;
      this.quietEnds = ends;
      const grown = this.all.filter((lane) => ends[lane] !== before?.[lane]);
      if (!before) this.emit(this.all);
      else if (grown.length > 0) this.emitForeign(grown);
    } catch (error) {
      if (this.closed || this.client !== client) return;
      this.telemetry.emit('failed', { what: 'the look whether a quiet log has grown', error });
      this.reconnect();
    }
  }

  private stir(): void {
    this.quietEnds = undefined;
    const wasQuiet = this.isQuiet;
    this.stirredAt = performance.now();
    if (wasQuiet) for (const listener of this.stirListeners) listener();
  }

  private emitForeign(lanes: readonly number[]): void {
    this.stir();
    this.onForeign(lanes);
    this.emit(lanes);
  }

  private tellReleased(owner: string): void {
    for (const listener of this.releaseListeners) listener(owner);
  }

  private emit(lanes: Iterable<number>, isPoll = false): void {
    for (const listener of this.listeners) listener(lanes, isPoll);
  }

  private async announce(): Promise<void> {
    if (this.announcing || !this.client || this.unannounced.size === 0) return;
    this.announcing = true;
    const lanes = [...this.unannounced];
    this.unannounced.clear();
    let hasFailed = false;
    try {
      await this.client.query('select pg_notify($1, $2)', [CHANNEL, `${this.origin} ${lanes.join()}`]);
    } catch (error) {
      hasFailed = true;
      // They are told with the next ones, or when there is another connection: this one is replaced when its end is reported.
      for (const lane of lanes) this.unannounced.add(lane);
      if (!this.closed) this.telemetry.emit('failed', { what: 'the notification of other nodes', error });
    }
    setTimeout(() => {
      this.announcing = false;
      if (!hasFailed) void this.announce();
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
      this.client = await this.listeningClient();
      this.quietEnds = undefined;
      this.telemetry.emit('wakeUp', { connected: true });
      // Others may have appended before.
      this.onForeign(this.all);
      this.emit(this.all);
      // Whatever was said before is not heard any more.
      this.tellReleased('');
      void this.announce();
    } catch (error) {
      // The next poll tries again.
      if (!this.closed) this.telemetry.emit('failed', { what: 'listening for notifications', error });
    }
  }

  /** Opens a connection that listens. When LISTEN fails the connection is closed, or each try would leave one open. */
  private async listeningClient(): Promise<Client> {
    const client = await connect(this.url, 'wake-up');
    try {
      client.on('end', () => {
        if (this.client !== client) return;
        this.client = undefined;
        if (!this.closed) this.telemetry.emit('wakeUp', { connected: false });
      });
      client.on('notification', ({ channel, payload = '' }) => {
        if (channel === LEASES_CHANNEL) {
          this.tellReleased(payload);
          return;
        }
        const [origin, lanes = ''] = payload.split(' ');
        if (origin !== this.origin) this.emitForeign(lanes.split(',').map(Number));
      });
      await this.check(client);
      // A notification that is lost in a crash is made up for by polling, so its commit need not wait for the disk.
      await client.query('set synchronous_commit = off');
      await client.query(`listen ${CHANNEL}; listen ${LEASES_CHANNEL}`);
      keepsProcessAlive(client, false);
      return client;
    } catch (error) {
      client.end().catch(this.telemetry.failed('closing a connection that could not listen'));
      throw error;
    }
  }
}
