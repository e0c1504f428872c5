import { Client } from 'pg';

const ROLE = 'colloquy';
const DATABASE = 'colloquy';

export const urlOf = (port: number, password: string): string =>
  `postgres://${ROLE}:${password}@127.0.0.1:${port}/${DATABASE}`;

/** Options of initdb that make the role. */
export const ROLE_OPTIONS = [`--username=${ROLE}`, '--auth=scram-sha-256'];

/** Makes the database that the service works in, if it is not there yet. */
export async function ensureDatabase(port: number, password: string): Promise<void> {
  await withClient(port, password, async (client) => {
    const found = await client.query('SELECT 1 FROM pg_database WHERE datname = $1', [DATABASE]);
    if (found.rowCount === 0) await client.query(`CREATE DATABASE ${DATABASE}`);
  });
}

/** A connection for as long as `use` takes; it gives up after 5 s, and a query of it after 30 s. */
export async function withClient<T>(
  port: number,
  password: string,
  use: (client: Client) => Promise<T>,
): Promise<T> {
  const client = new Client({
    host: '127.0.0.1',
    port,
    user: ROLE,
    password,
    database: 'postgres',
    ssl: false,
    connectionTimeoutMillis: 5_000,
    query_timeout: 30_000,
  });
  // Without a listener a server that goes away between two queries would end our process.
  client.on('error', () => undefined);
  try {
    await client.connect();
    return await use(client);
  } finally {
    await client.end().catch(() => undefined);
  }
}
