import { type EventLog } from '../event-store/log.js';
import { type SessionCommands } from '../sessions/session-commands.js';
import { Superseded } from './generation.errors.js';
import { type RunningGeneration } from './running-generation.js';

/** Milliseconds for which notifications are gathered before one look at the log answers all of them. */
const GATHER_MS = 100;
const RETRY_MS = 1_000;

/**
 * Stops model calls whose generation another node has ended by a cancel, a reset or a delete. Otherwise the model would
 * go on to the end of its reply, which costs money, and the reply would then be dropped.
 */
export class SupersededWatch {
  /** For each generation, the version of its session at which it was last seen to be the running one. */
  private readonly versions = new Map<RunningGeneration, number>();
  private readonly grownLanes = new Set<number>();
  private timer: NodeJS.Timeout | undefined;
  private closed = false;

  constructor(
    private readonly log: EventLog,
    private readonly commands: SessionCommands,
  ) {
    log.wakeUp.subscribe((lanes) => {
      this.lookSoon(lanes);
    });
  }

  /** @param version of the session when the generation began. Returns how to stop watching. */
  watch(running: RunningGeneration, version: number): () => void {
    this.versions.set(running, version);
    return () => this.versions.delete(running);
  }

  close(): void {
    this.closed = true;
    clearTimeout(this.timer);
  }

  private lookSoon(lanes: Iterable<number>, ms = GATHER_MS): void {
    if (this.versions.size === 0 || this.closed) return;
    for (const lane of lanes) this.grownLanes.add(lane);
    this.timer ??= setTimeout(() => {
      this.timer = undefined;
      const grown = new Set(this.grownLanes);
      this.grownLanes.clear();
      this.look(grown).catch((error: unknown) => {
        const what = 'the look at whether running generations were ended by another node';
        this.log.telemetry.emit('failed', { what, error });
        this.lookSoon(grown, RETRY_MS);
      });
    }, ms);
  }

  private async look(lanes: ReadonlySet<number>): Promise<void> {
    const suspects = [...this.versions.keys()].filter(({ lane }) => lanes.has(lane));
    const versions = await this.log.streams.versions(
      suspects.map(({ session }) => ({ tenant: session.tenant, streamId: session.sessionId })),
    );
    // All sessions are checked even if one check fails: a session that cannot be read must not keep the others from
    // being checked.
    const looks = await Promise.allSettled(
      suspects.map((running, index) => this.check(running, versions[index])),
    );
    const failed = looks.find((one) => one.status === 'rejected');
    if (failed) throw failed.reason;
  }

  private async check(running: RunningGeneration, end: number | undefined): Promise<void> {
    if (end === this.versions.get(running)) return;
    const { state } = await this.commands.load(running.session);
    if (state.generation?.id !== running.reply.generationId) running.controller.abort(new Superseded());
    else if (this.versions.has(running)) this.versions.set(running, state.version);
  }
}
