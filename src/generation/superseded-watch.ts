import { type EventLog } from '../event-store/log.js';
import { type SessionCommands } from '../sessions/session-commands.js';
import { Superseded } from './generation.errors.js';
import { type RunningGeneration } from './running-generation.js';

/** Notifications of so many milliseconds are answered by one look at the log. */
const GATHER_MS = 100;

/**
 * Stops model calls whose generation another node has ended by a cancel, a reset or a delete. Without it the model
 * would go on to the end of its reply, at a price, and the reply would be dropped then.
 */
export class SupersededWatch {
  /** The version of its session at which each generation was last seen to be the current one. */
  private readonly versions = new Map<RunningGeneration, number>();
  private readonly grown = new Set<number>();
  private timer: NodeJS.Timeout | undefined;

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
    clearTimeout(this.timer);
  }

  private lookSoon(lanes: Iterable<number>): void {
    if (this.versions.size === 0) return;
    for (const lane of lanes) this.grown.add(lane);
    this.timer ??= setTimeout(() => {
      this.timer = undefined;
      const what = 'the look at whether running generations were ended by another node';
      // The next notification, a second later at most, looks again.
      this.look().catch(this.log.telemetry.failed(what));
    }, GATHER_MS);
  }

  private async look(): Promise<void> {
    const lanes = new Set(this.grown);
    this.grown.clear();
    const suspects = [...this.versions.keys()].filter(({ lane }) => lanes.has(lane));
    const ends = await this.log.streams.versions(
      suspects.map(({ session }) => ({ tenant: session.tenant, streamId: session.sessionId })),
    );
    // All of them, whatever becomes of one: a session that cannot be read keeps no other from being looked at.
    const looks = await Promise.allSettled(
      suspects.map((running, index) => this.check(running, ends[index])),
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
