import { type Pool } from 'pg';
import { createPool } from './connection.js';
import { RELAXED } from './server-settings.js';

/**
 * Connections whose commits do not wait for the disk. They are for what is made from the log and can be made again:
 * what a crash of the database takes back, rows and checkpoint alike, is simply made once more.
 */
export class RelaxedPool {
  readonly pool: Pool;

  /** @param max connections at the same time */
  constructor(url: string, max: number) {
    this.pool = createPool(url, 'relaxed', { max, settings: RELAXED });
  }

  async close(): Promise<void> {
    await this.pool.end();
  }
}
