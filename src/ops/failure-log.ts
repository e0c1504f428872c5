import { Injectable, Logger, type OnModuleInit } from '@nestjs/common';
import { EventLog } from '../event-store/log.js';

/** Time during which the same failure is not logged again, so that an unreachable database does not flood the log. */
const QUIET_MS = 60_000;

/**
 * Logs failures of background work, which nobody waits for: one line each, then nothing for a minute on the same
 * subject.
 */
@Injectable()
export class FailureLog implements OnModuleInit {
  private readonly logger = new Logger('inside');
  private readonly subjects = new Map<string, { readonly since: number; left: number }>();

  constructor(private readonly store: EventLog) {}

  onModuleInit(): void {
    const { telemetry } = this.store;
    telemetry.on('failed', ({ what, error }) => {
      this.tell(what, error);
    });
    telemetry.on('newGeneration', ({ generation, server, lost }) => {
      this.logger.warn(
        `Generation ${generation} of the log has begun, on the server ${server}: ` +
          (lost > 0
            ? `at least the last ${lost} events that this node had appended are gone.`
            : 'nothing that this node had appended is gone.'),
      );
    });
    telemetry.on('leaseLost', ({ name }) => {
      this.logger.warn(`The lease ${name} is not held by this node any more.`);
    });
    telemetry.on('wakeUp', ({ connected }) => {
      if (!connected)
        this.logger.warn('Notifications of other nodes do not arrive; the log is polled meanwhile.');
    });
  }

  private tell(what: string, error: unknown): void {
    const now = performance.now();
    const known = this.subjects.get(what);
    if (known && now - known.since < QUIET_MS) {
      known.left += 1;
      return;
    }
    const again = known && known.left > 0 ? `, and ${known.left} times more in the minute before` : '';
    this.subjects.set(what, { since: now, left: 0 });
    this.logger.warn(`${sentence(what)} failed${again}.`, error);
  }
}

const sentence = (what: string): string => what.slice(0, 1).toUpperCase() + what.slice(1);
