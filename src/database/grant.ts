import { connect, isNotPermitted } from './connection.js';

/** What a role may do with the rows of a table, or with some of their columns. */
export type Privilege = 'select' | 'insert' | 'update' | 'delete' | `update (${string})`;
/** What the role of the service needs. */
export interface Rights {
  /** Table → what it may do with the rows. A partitioned table stands for its partitions as well. */
  readonly tables: Readonly<Record<string, readonly Privilege[]>>;
  readonly sequences: readonly string[];
  /** A query for the names of the tables that it makes and drops, as its column `name`. */
  readonly owned: string;
}

const WHY_OWNER =
  'The tables of read models are made and dropped by the service, so that they must belong to its role. ' +
  'A superuser can give them to it, or an owner who is a member of the role (grant <role> to <owner>).';

/**
 * Gives a role what the service needs of a migrated database, and nothing more: it can add to the log, and cannot change
 * or delete what is in it, nor switch off the triggers that refuse that. To be called as the owner of the tables, again
 * after each migration.
 *
 * @throws Error when there is no such role, or the caller does not own the tables
 */
export async function grant(url: string, role: string, rights: Rights): Promise<void> {
  const client = await connect(url, 'grants');
  try {
    await client.query('begin');
    const { rows: roles } = await client.query<{ name: string; database: string; schema: string }>(
      `select quote_ident(rolname) as name, quote_ident(current_database()) as database,
              quote_ident(current_schema()) as schema
       from pg_roles where rolname = $1`,
      [role],
    );
    const [found] = roles;
    if (!found) throw new Error(`there is no role ${role}: create role … login password …`);
    const { name, database, schema } = found;
    await client.query(`grant connect, temporary on database ${database} to ${name}`);
    await client.query(`grant usage, create on schema ${schema} to ${name}`);
    for (const sequence of rights.sequences)
      await client.query(`grant usage on sequence ${sequence} to ${name}`);
    const { rows: tables } = await client.query<{ name: string; base: string; owner: string }>(
      `select c.oid::regclass::text as name, coalesce(pg_partition_root(c.oid), c.oid)::regclass::text as base,
              pg_get_userbyid(c.relowner) as owner
       from pg_class c where c.relnamespace = current_schema()::regnamespace and c.relkind in ('r', 'p')
       order by 1`,
    );
    const { rows: made } = await client.query<{ name: string }>(rights.owned);
    const own = new Set(made.map((table) => table.name));
    // Other programs may have tables in the schema, which are not touched.
    for (const table of tables) {
      const privileges = rights.tables[table.base];
      if (privileges) {
        await client.query(`revoke all on ${table.name} from ${name}`);
        await client.query(`grant ${privileges.join(', ')} on ${table.name} to ${name}`);
      } else if (own.has(table.name) && table.owner !== role) {
        await client.query(`alter table ${table.name} owner to ${name}`);
      }
    }
    await client.query('commit');
  } catch (error) {
    if (!isNotPermitted(error)) throw error;
    throw new Error(`${(error as Error).message}. ${WHY_OWNER}`, { cause: error });
  } finally {
    await client.end();
  }
}
