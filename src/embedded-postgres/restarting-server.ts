import { setTimeout as sleep } from 'node:timers/promises';
import { messageOf } from './account.js';
import { type RunningServer } from './server-process.js';
import { endServer, POLITELY, type SupervisedServer } from './supervisor.js';

/** Keeps a server running: what ends by itself is started again, with growing pauses, on the same port. */
export class RestartingServer {
  private readonly stopping = new AbortController();
  private readonly watching: Promise<void>;
  private process: SupervisedServer | undefined;
  private stopped: Promise<void> | undefined;

  constructor(process: SupervisedServer, start: (signal: AbortSignal) => Promise<RunningServer>) {
    this.process = process;
    this.watching = this.watch(start);
  }

  /** Fast shutdown; resolves when the server is gone. Safe to call more than once. */
  stop(): Promise<void> {
    this.stopped ??= (async () => {
      this.stopping.abort();
      if (this.process) await endServer(this.process, POLITELY);
      else await this.watching;
    })();
    return this.stopped;
  }

  private async watch(start: (signal: AbortSignal) => Promise<RunningServer>): Promise<void> {
    const { signal } = this.stopping;
    const stopping = () => signal.aborted;
    let pauseMs = 0;
    while (this.process) {
      const since = performance.now();
      const reason = await this.process.ended;
      this.process = undefined;
      if (performance.now() - since > 10_000) pauseMs = 0;
      if (!stopping()) warn(`The embedded PostgreSQL ended by itself (${reason}); starting it again.`);
      let restarted: SupervisedServer | undefined;
      while (!stopping() && restarted === undefined) {
        try {
          await sleep(pauseMs, undefined, { ref: false, signal });
          restarted = (await start(signal)).process;
        } catch (error) {
          if (!stopping()) warn(messageOf(error));
        }
        pauseMs = Math.min(Math.max(2 * pauseMs, 100), 5_000);
      }
      // stop() found no server to end while this one was being started.
      if (stopping() && restarted) await endServer(restarted, POLITELY);
      else this.process = restarted;
    }
  }
}

function warn(message: string): void {
  process.emitWarning(message, { code: 'COLLOQUY_EMBEDDED_POSTGRES' });
}
