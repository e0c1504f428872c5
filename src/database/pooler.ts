import { connect, STATEMENT_SETTINGS } from './connection.js';
import { EVERY_SESSION, PLANS_BY_INDEX, type ServerSettings } from './server-settings.js';

/** What the sessions behind a pooler must have, since connections cannot bring settings of their own along. */
const NEEDED: ServerSettings = { ...EVERY_SESSION, ...STATEMENT_SETTINGS, ...PLANS_BY_INDEX };

/** The sessions behind a pooler are not as they have to be. The message tells the line that is missing. */
export class PoolerNotReady extends Error {
  override readonly name = 'PoolerNotReady';
  constructor(found: string) {
    const statements = Object.entries(NEEDED).map(([name, value]) => `set ${name} = ''${value}''`);
    super(
      `the sessions behind DATABASE_URL have ${found}. Give the database in pgbouncer.ini the following, ` +
        `then RELOAD and RECONNECT: connect_query='${statements.join('; ')}'`,
    );
  }
}

/**
 * @param url leads through a pooler
 * @throws PoolerNotReady; whatever `pg` throws when it cannot be reached
 */
export async function checkPooler(url: string): Promise<void> {
  const client = await connect(url, 'start', { throughPooler: true });
  try {
    const { rows } = await client.query<{ name: string; setting: string }>(
      'select name, setting from pg_settings where name = any ($1)',
      [Object.keys(NEEDED)],
    );
    const wrong = rows.filter(({ name, setting }) => NEEDED[name] !== setting);
    if (wrong.length > 0)
      throw new PoolerNotReady(wrong.map(({ name, setting }) => `${name} = ${setting}`).join(', '));
  } finally {
    await client.end();
  }
}
