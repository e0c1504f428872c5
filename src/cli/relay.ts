import { type Pool } from 'pg';
import { LogGenerations } from '../event-store/log-generations.js';
import { Telemetry } from '../event-store/telemetry.js';
import { RelayCheckpoints } from '../kafka/relay-checkpoints.js';
import { withPool } from './database.js';

/** Forgets how far the log is published, and to which topic. */
export const publishAnew = (cell?: string): Promise<void> =>
  withPool({ create: false, cell }, async (pool) =>
    new RelayCheckpoints(pool, 'cli').beginAnew(await generationIn(pool)),
  );

async function generationIn(pool: Pool): Promise<number> {
  const generations = new LogGenerations(0, new Telemetry());
  await generations.check(pool);
  return generations.current;
}
