import { setTimeout as sleep } from 'node:timers/promises';
import { messageOf } from './account.js';
import { type RunningServer } from './server-process.js';
import { endServer, FAST_SHUTDOWN, type SupervisedServer } from './supervisor.js';

/** Keeps a server running: when it ends by itself, it is started again on the same port, after pauses that grow. */
export class RestartingServer {
  private readonly stopping = new AbortController();
  private readonly watching: Promise<void>;
  private process: SupervisedServer | undefined;
  private stopped: Promise<void> | undefined;

  constructor(process: SupervisedServer, start: (signal: AbortSignal) => Promise<RunningServer>) {
    this.process = process;
    this.watching = this.watch(start);
  }

  /** Shuts the server down (PostgreSQL's fast shutdown); resolves when it is gone. Safe to call more than once. */
  stop(): Promise<void> {
    this.stopped ??= (async () => {
      this.stopping.abort();
      if (this.process) await endServer(this.process, FAST_SHUTDOWN);
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
      // `stop` found no server to end, because this one was just being started.
      if (stopping() && restarted) await endServer(restarted, FAST_SHUTDOWN);
      else this.process = restarted;
    }
  }
}

function warn(message: string): void {
  process.emitWarning(message, { code: 'COLLOQUY_EMBEDDED_POSTGRES' });
}
