import { Pool } from 'pg';
import { migrate } from '../database/migrate.js';
import { RelayCheckpoints } from '../kafka/relay-checkpoints.js';
import { migrations } from '../migrations.js';
import { withDatabase } from './database.js';

/** Forgets how far the log is published, and to which topic. */
export const publishAnew = (): Promise<void> =>
  withDatabase({ create: false }, async (url) => {
    await migrate(url, migrations);
    const pool = new Pool({ connectionString: url, max: 1 });
    try {
      await new RelayCheckpoints(pool, 'cli').beginAnew();
    } finally {
      await pool.end();
    }
  });
