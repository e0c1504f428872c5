import { Injectable } from '@nestjs/common';
import { EventLog } from '../event-store/log.js';
import { Relay } from '../kafka/relay.js';
import { BEHIND_AT_MOST, Projector } from '../projection-engine/projector.js';

/** By the name of what was looked at. A degraded part does not keep requests from being served. */
export type Checks = Record<
  string,
  { status: 'ok' | 'degraded' | 'unavailable'; detail?: string | undefined }
>;

/** A database that has not answered for this long counts as unavailable. */
const PATIENCE_MS = 1_500;
/** Checks are answered from memory for this long, so that nobody can make the service run queries by asking often. */
const FRESH_MS = 1_000;

/** How this node, its database and the brokers are. */
@Injectable()
export class Health {
  private looking: Promise<Checks> | undefined;
  private seen: { readonly checks: Checks; readonly at: number } | undefined;

  constructor(
    private readonly store: EventLog,
    private readonly projector: Projector,
    private readonly relay: Relay,
  ) {}

  /** Whether requests can be served from this database. */
  async isReady(): Promise<boolean> {
    return areFine(await this.checks());
  }

  async checks(): Promise<Checks> {
    if (this.seen && performance.now() - this.seen.at < FRESH_MS) return this.seen.checks;
    this.looking ??= this.look().finally(() => {
      this.looking = undefined;
    });
    const checks = await within(PATIENCE_MS, this.looking, SILENT);
    this.seen = { checks, at: performance.now() };
    return checks;
  }

  private async look(): Promise<Checks> {
    const checks: Checks = {};
    try {
      await this.store.now();
      checks['database'] = { status: 'ok' };
      for (const { projection, behind } of await this.projector.lag()) {
        checks[`projection ${projection}`] =
          behind <= BEHIND_AT_MOST
            ? { status: 'ok' }
            : { status: 'unavailable', detail: `${behind} events behind the log` };
      }
      if (this.relay.isOn) checks['kafka'] = await this.kafka();
    } catch (error) {
      checks['database'] = { status: 'unavailable', detail: (error as Error).message };
    }
    return checks;
  }

  private async kafka(): Promise<Checks[string]> {
    const { problem } = this.relay;
    const { behind } = await this.relay.lag();
    const detail = [...(problem === undefined ? [] : [problem]), `${behind} events behind the log`].join(
      '; ',
    );
    return { status: problem === undefined ? 'ok' : 'degraded', detail };
  }
}

export const areFine = (checks: Checks): boolean =>
  Object.values(checks).every(({ status }) => status !== 'unavailable');

const SILENT: Checks = { database: { status: 'unavailable', detail: `no answer within ${PATIENCE_MS} ms` } };

async function within<T>(ms: number, answer: Promise<T>, otherwise: T): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<T>((resolve) => {
    timer = setTimeout(resolve, ms, otherwise);
  });
  return Promise.race([answer, late]).finally(() => {
    clearTimeout(timer);
  });
}
