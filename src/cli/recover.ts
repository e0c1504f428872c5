import { FIRST_CELL, loadConfig } from '../config.js';
import { upcast } from '../domain/session.events.js';
import { lostEvents } from '../kafka/lost-events.js';
import { openLog } from '../open-log.js';
import { TenantPolicies } from '../sessions/tenant-policies.js';
import { type RecoveredSession, recoverSessions } from '../transfer/recovery.js';
import { withDatabase } from './database.js';
import { print } from './output.js';

/** Records after which the terminal is told how far it is. */
const TOLD_EVERY = 10_000;

export interface RecoverOptions {
  /** Without it nothing is written. */
  readonly append?: boolean;
  readonly tenant?: string | undefined;
  readonly cell?: string | undefined;
}

/**
 * Shows what the topic has of events that were gone when the log was set back, and appends it again on demand.
 * @returns whether anything is left that only somebody who knows more can decide upon
 */
export async function recoverFromKafka({ append = false, tenant, cell }: RecoverOptions): Promise<boolean> {
  const { kafka, sessions, tenants } = loadConfig({ env: process.env, cwd: process.cwd() });
  if (kafka.brokers.length === 0)
    throw new Error('no brokers are named: set kafka.brokers, or KAFKA_BROKERS');
  return withDatabase({ create: false, cell }, async (database) => {
    const store = await openLog(database, { upcast });
    const policies = new TenantPolicies(store, sessions, tenants);
    try {
      await policies.start();
      let records = 0;
      const lost = await lostEvents(kafka, kafka.topic, store, cell === FIRST_CELL ? undefined : cell, () => {
        records += 1;
        if (process.stderr.isTTY && records % TOLD_EVERY === 0) process.stderr.write(`\r${records} records`);
      });
      if (process.stderr.isTTY) process.stderr.write(`\r${records} records, ${lost.length} lost events\n`);
      const wanted = lost.filter((one) => tenant === undefined || one.tenant === tenant);
      const recovered = await recoverSessions(store, wanted, {
        append,
        maxSessions: (of) => policies.of(of).maxSessions,
      });
      await print(recovered, COLUMNS);
      return recovered.some(({ outcome }) => outcome !== 'recovered' && outcome !== 'there');
    } finally {
      policies.stop();
      await store.close();
    }
  });
}

const COLUMNS = (['tenant', 'sessionId', 'generation', 'from', 'to', 'time', 'outcome'] as const).map(
  (title) => ({ title, of: (row: RecoveredSession) => row[title] }),
);
