import { LaneShare } from '../event-store/lane-share.js';
import { type Leases } from '../event-store/leases.js';
import { type EventLog } from '../event-store/log.js';
import { type MerkleStore, type SignedCheckpoint } from './merkle-store.js';
import { type TreeKeeper } from './tree-keeper.js';

/** The name under which the nodes share the lanes among themselves. */
const WORK = 'notary';
/** Events gather for so long: the tiles at the edge of a tree are written anew with each step. */
const GATHER_MS = 500;
const SIGN_MS = 60_000;
/** Where the log wakes its readers because the time has come to look, this one looks so often, and spares a query. */
const LOOK_MS = 10_000;
const RETRY_MS = 2_000;

export interface NotaryParts {
  readonly log: EventLog;
  readonly store: MerkleStore;
  readonly keeper: TreeKeeper;
  readonly leases: Leases;
  /** Receives what was signed, also what another node has signed of a lane that is now this node's. */
  readonly onSigned: (checkpoints: readonly Omit<SignedCheckpoint, 'time'>[]) => void;
  readonly onError: (error: unknown) => void;
  /** A tree that grows is signed so often, in milliseconds; each minute unless given. */
  readonly signMs?: number;
}

/** Keeps the trees of this node's share of the lanes in step with the log, and signs them. */
export class Notary {
  private readonly share: LaneShare;
  private readonly signMs: number;
  private readonly dirty = new Set<number>();
  private readonly signedAt = new Map<number, number>();
  /** Of the lanes whose trees have grown since they were signed: when they are to be. */
  private readonly dueAt = new Map<number, number>();
  private running: Promise<void> | undefined;
  private readonly ends: (() => void)[] = [];
  private timer: NodeJS.Timeout | undefined;
  private resolvePause = (): void => undefined;
  private stopped = false;

  constructor(private readonly parts: NotaryParts) {
    const { log, leases, signMs = SIGN_MS } = parts;
    this.signMs = signMs;
    this.share = new LaneShare(leases, WORK, log.laneCount, (lanes) => {
      this.wake(lanes);
      void this.tellSigned(new Set(lanes));
    });
  }

  async start(): Promise<void> {
    const { log, keeper } = this.parts;
    let lookedAt = -Infinity;
    this.ends.push(
      log.wakeUp.subscribe((lanes, isPoll) => {
        if (isPoll) {
          if (performance.now() - lookedAt < LOOK_MS) return;
          lookedAt = performance.now();
        }
        this.wake(lanes);
      }),
      log.generations.onNew(() => {
        keeper.keep(new Set());
        this.wake(Array.from({ length: log.laneCount }, (_, lane) => lane));
      }),
    );
    await this.share.balance();
  }

  async stop(): Promise<void> {
    this.stopped = true;
    clearTimeout(this.timer);
    for (const end of this.ends) end();
    this.resolvePause();
    await this.running;
  }

  /** By lane, how many events its tree has still to take in. */
  async lag(): Promise<number[]> {
    const { log, store } = this.parts;
    const lanes = Array.from({ length: log.laneCount }, (_, lane) => lane);
    // Before the ends, so that what is appended in between makes the lag larger and never negative.
    const sizes = new Map((await store.heads(lanes)).map(({ lane, size }) => [lane, size]));
    return (await log.lanes.ends()).map((end, lane) => end - (sizes.get(lane) ?? 0));
  }

  private wake(lanes: Iterable<number>): void {
    for (const lane of lanes) this.dirty.add(lane);
    if (this.stopped || this.dirty.size === 0) return;
    this.running ??= this.run();
  }

  private async run(): Promise<void> {
    while (this.dirty.size > 0 && !this.stopped) {
      try {
        if (!(await this.turn())) await this.pause(GATHER_MS);
      } catch (error) {
        this.parts.onError(error);
        await this.pause(RETRY_MS);
      }
    }
    this.running = undefined;
  }

  /** @returns whether there is more to do at once */
  private async turn(): Promise<boolean> {
    const { keeper, onSigned } = this.parts;
    const { owned } = this.share;
    keeper.keep(new Set(owned.keys()));
    // The timer is set anew by each turn, and turns may follow each other without a pause.
    for (const [lane, at] of this.dueAt) if (at <= performance.now()) this.dirty.add(lane);
    const lanes = [...this.dirty].filter((lane) => owned.has(lane));
    this.dirty.clear();
    if (lanes.length === 0) return false;
    const now = performance.now();
    try {
      const isDue = (lane: number): boolean => now - (this.signedAt.get(lane) ?? -Infinity) >= this.signMs;
      const { grown, isBehind, unsigned, signed, broken } = await keeper.advance(lanes, isDue);
      for (const { lane } of signed) this.signedAt.set(lane, now);
      for (const lane of lanes) this.dueAt.delete(lane);
      if (signed.length > 0) onSigned(signed);
      for (const lane of grown) this.dirty.add(lane);
      this.signLater(unsigned);
      for (const [lane, error] of broken) {
        this.dirty.add(lane);
        this.parts.onError(error);
      }
      if (broken.size > 0) await this.pause(RETRY_MS);
      return isBehind;
    } catch (error) {
      for (const lane of lanes) this.dirty.add(lane);
      throw error;
    }
  }

  /** Wakes this when each of these trees is to be signed, also when nothing is appended any more. */
  private signLater(unsigned: readonly number[]): void {
    const now = performance.now();
    for (const lane of unsigned) this.dueAt.set(lane, (this.signedAt.get(lane) ?? now) + this.signMs);
    clearTimeout(this.timer);
    if (this.dueAt.size === 0 || this.stopped) return;
    this.timer = setTimeout(
      () => {
        const time = performance.now();
        const due = [...this.dueAt].flatMap(([lane, at]) => (at <= time ? [lane] : []));
        for (const lane of due) this.dueAt.delete(lane);
        this.signLater([]);
        this.wake(due);
      },
      Math.max(GATHER_MS, Math.min(...this.dueAt.values()) - now),
    ).unref();
  }

  private async tellSigned(lanes: ReadonlySet<number>): Promise<void> {
    const { store, onSigned, onError } = this.parts;
    try {
      const latest = (await store.latest()).filter(({ lane }) => lanes.has(lane));
      if (latest.length > 0) onSigned(latest);
    } catch (error) {
      onError(error);
    }
  }

  private pause(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      timer.unref();
      this.resolvePause = () => {
        clearTimeout(timer);
        resolve();
      };
      if (this.stopped) this.resolvePause();
    });
  }
}
