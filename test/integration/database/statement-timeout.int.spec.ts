import { available, connect, connectionConfig, createPool } from '../../../src/database/connection.js';
import { createTestDatabase, type TestDatabase } from '../../support/database.js';
import { eventually } from '../../support/http.js';

let db: TestDatabase;
beforeEach(async () => {
  db = await createTestDatabase();
});
afterEach(() => db.drop());

it('given a statement that takes too long, when its caller gives up, then the server has ended the statement, and the connection can run the next one', async () => {
  const client = await connect(db.url, 'slow', { statementMs: 1_000 });
  try {
    const { rows: before } = await client.query<{ pid: number }>('select pg_backend_pid() as pid');

    const slow = available(() => client.query('select pg_sleep(60)'));

    await expect(slow).rejects.toMatchObject({
      code: 'database-unavailable',
      message: 'the database did not answer in time; try again',
    });
    await eventually(async () => {
      const running = await db.query(
        `select from pg_stat_activity where application_name = 'colloquy slow' and state = 'active'`,
      );
      return running.length === 0;
    });
    const { rows: after } = await client.query<{ pid: number }>('select pg_backend_pid() as pid');
    expect(after).toEqual(before);
  } finally {
    await client.end();
  }
});

it('given the default settings of any connection, when they are compared, then the server ends statements before their callers give up', () => {
  const { options = '', query_timeout: callerMs = 0 } = connectionConfig(db.url, 'any') as {
    options?: string;
    query_timeout?: number;
  };
  const serverMs = Number(/statement_timeout=(\d+)/.exec(options)?.[1]);
  expect(serverMs).toBeGreaterThan(0);
  expect(serverMs).toBeLessThan(callerMs);
});

it('given a pool whose connections are all in use, when a query waits for one, then it is refused in time and says why', async () => {
  const pool = createPool(db.url, 'small', { max: 1 });
  const busy = await pool.connect();
  try {
    await expect(available(() => pool.query('select 1'))).rejects.toMatchObject({
      code: 'database-unavailable',
      message: 'no connection to the database became free in time; try again',
    });
  } finally {
    busy.release();
    await pool.end();
  }
});
