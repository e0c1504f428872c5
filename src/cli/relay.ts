import { RelayCheckpoints } from '../kafka/relay-checkpoints.js';
import { withPool } from './database.js';

/** Forgets how far the log is published, and to which topic. */
export const publishAnew = (): Promise<void> =>
  withPool({ create: false }, (pool) => new RelayCheckpoints(pool, 'cli').beginAnew());
