import { Client } from 'pg';

const ROLE = 'colloquy';
const DATABASE = 'colloquy';

export const urlOf = (port: number, password: string): string =>
  `postgres://${ROLE}:${password}@127.0.0.1:${port}/${DATABASE}`;

/** Options of initdb that create the role. */
export const ROLE_OPTIONS = [`--username=${ROLE}`, '--auth=scram-sha-256'];

/** Creates the database of the service if it does not exist. */
export async function ensureDatabase(port: number, password: string): Promise<void> {
  await withClient(port, password, async (client) => {
    const found = await client.query('SELECT 1 FROM pg_database WHERE datname = $1', [DATABASE]);
    if (found.rowCount === 0) await client.query(`CREATE DATABASE ${DATABASE}`);
  });
}

/** Runs `use` with a connection of its own. Connecting fails after 5 s, and a query after 30 s. */
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
  // Without a listener, Node would end this process when the server goes away between two queries.
  client.on('error', () => undefined);
  try {
    await client.connect();
    return await use(client);
  } finally {
    await client.end().catch(() => undefined);
  }
}
