import { type Pool, type PoolClient } from 'pg';

/**
 * Runs work in one transaction on a connection of the pool; rolls back when it throws. A connection on which even that
 * fails is not used again.
 */
export async function transaction<T>(pool: Pool, work: (client: PoolClient) => Promise<T>): Promise<T> {
  const client = await pool.connect();
  let broken: Error | undefined;
  try {
    await client.query('begin');
    const result = await work(client);
    await client.query('commit');
    return result;
  } catch (error) {
    await client.query('rollback').catch((reason: unknown) => {
      broken = reason as Error;
    });
    throw error;
  } finally {
    client.release(broken);
  }
}
