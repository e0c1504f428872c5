import { type Pool } from 'pg';
import { COMMAND_READ_MS, rowsOf } from '../database/query.js';

export interface KeyedResult {
  readonly fingerprint: string;
  readonly reference: unknown;
  readonly streamId: string;
  readonly version: number;
}

/** Results of appends that were made under a key, kept for 24 hours. */
export class KeyedResults {
  constructor(private readonly pool: Pool) {}

  /** The result of an append made under this key in the last 24 hours, if there was one. */
  async find(tenant: string, scope: string, key: string): Promise<KeyedResult | undefined> {
    const [row] = await rowsOf<{
      fingerprint: string;
      reference: unknown;
      stream_id: string;
      version: number;
    }>(
      this.pool,
      {
        name: 'find_keyed',
        text: `select fingerprint, reference, stream_id, version from command
               where tenant = $1 and scope = $2 and key = $3 and time > colloquy_now() - interval '24 hours'`,
        values: [tenant, scope, key],
      },
      COMMAND_READ_MS,
    );
    return (
      row && {
        fingerprint: row.fingerprint,
        reference: row.reference,
        streamId: row.stream_id,
        version: row.version,
      }
    );
  }

  /** Deletes results that are older than 24 hours. */
  async prune(): Promise<void> {
    await rowsOf(this.pool, {
      text: `delete from command where time <= colloquy_now() - interval '24 hours'`,
    });
  }
}
