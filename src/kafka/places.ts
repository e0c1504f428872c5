import type { Pool, PoolClient } from 'pg';
import { transaction } from '../database/transaction.js';

/** One text per session of a tenant; the record key, too. */
export const sessionKey = ({ tenant, sessionId }: Session): string => `${tenant}/${sessionId}`;

interface Session {
  readonly tenant: string;
  readonly sessionId: string;
}

/** Where a consumer keeps the last version of each session that it has applied. */
export interface Places<Tx> {
  /** By `tenant/session id`; 0 or absent for a session that is new. */
  read(sessions: readonly Session[]): Promise<Map<string, number>>;
  /**
   * Runs `work` with the places of these sessions held against everybody else, then stores the places that it returns
   * together with what it did through `tx`: both or none.
   */
  transaction(
    sessions: readonly Session[],
    work: (tx: Tx, last: ReadonlyMap<string, number>) => Promise<ReadonlyMap<string, number>>,
  ): Promise<void>;
}

/** Places that end with the process: for effects that do, too. */
export function memoryPlaces(): Places<undefined> {
  const places = new Map<string, number>();
  let turn: Promise<unknown> = Promise.resolve();
  const read = (sessions: readonly Session[]) =>
    new Map(sessions.map((session) => [sessionKey(session), places.get(sessionKey(session)) ?? 0]));
  return {
    read: (sessions) => Promise.resolve(read(sessions)),
    transaction: (sessions, work) => {
      // One after the other: partitions may be worked on at the same time.
      const result = turn.then(async () => {
        for (const [key, version] of await work(undefined, read(sessions))) places.set(key, version);
      });
      turn = result.catch(() => undefined);
      return result;
    },
  };
}

export interface PostgresPlacesOptions {
  /** Whose places they are: several consumers may share a table. */
  readonly consumer: string;
  /** Made when it is missing. Default `colloquy_place`. */
  readonly table?: string;
}

/**
 * Places in a table of the database that the effects go to. `apply` gets the client of the transaction: whatever it
 * writes through it is committed together with the places.
 */
export function postgresPlaces(
  pool: Pool,
  { consumer, table = 'colloquy_place' }: PostgresPlacesOptions,
): Places<PoolClient> {
  if (!/^[a-z_][a-z0-9_]{0,62}$/.test(table)) throw new Error(`${table} is not a plain name of a table`);
  let made: Promise<unknown> | undefined;
  const ready = async () => {
    made ??= makeTable(pool, table).catch((error: unknown) => {
      made = undefined;
      throw error;
    });
    await made;
  };
  // Always in one order, so that two consumers that hold the same partition for a moment cannot deadlock.
  const columns = (sessions: readonly Session[]) => {
    const sorted = [...sessions].sort((a, b) => (sessionKey(a) < sessionKey(b) ? -1 : 1));
    return [sorted.map(({ tenant }) => tenant), sorted.map(({ sessionId }) => sessionId)];
  };
  return {
    read: async (sessions) => {
      await ready();
      const { rows } = await pool.query<Row>(
        `select tenant, session_id, version from ${table}
         join unnest($2::text[], $3::text[]) as wanted (tenant, session_id) using (tenant, session_id)
         where consumer = $1`,
        [consumer, ...columns(sessions)],
      );
      return byKey(rows);
    },
    transaction: async (sessions, work) => {
      await ready();
      await transaction(pool, async (client) => {
        // Makes the rows that are missing, since only a row can be held, and holds them all.
        const { rows } = await client.query<Row>(
          `insert into ${table} as place (consumer, tenant, session_id, version)
           select $1, tenant, session_id, 0 from unnest($2::text[], $3::text[]) as wanted (tenant, session_id)
           on conflict (consumer, tenant, session_id) do update set version = place.version
           returning tenant, session_id, version`,
          [consumer, ...columns(sessions)],
        );
        const moved = await work(client, byKey(rows));
        const movedSessions = sessions.filter((session) => moved.has(sessionKey(session)));
        await client.query(
          `update ${table} place set version = moved.version
           from unnest($2::text[], $3::text[], $4::integer[]) as moved (tenant, session_id, version)
           where place.consumer = $1 and (place.tenant, place.session_id) = (moved.tenant, moved.session_id)`,
          [
            consumer,
            movedSessions.map(({ tenant }) => tenant),
            movedSessions.map(({ sessionId }) => sessionId),
            movedSessions.map((session) => moved.get(sessionKey(session))),
          ],
        );
      });
    },
  };
}

interface Row {
  tenant: string;
  session_id: string;
  version: number;
}

const byKey = (rows: readonly Row[]): Map<string, number> =>
  new Map(rows.map((row) => [sessionKey({ tenant: row.tenant, sessionId: row.session_id }), row.version]));

async function makeTable(pool: Pool, table: string): Promise<void> {
  await transaction(pool, async (client) => {
    // Two that make a table at the same moment fail, `if not exists` or not.
    await client.query('select pg_advisory_xact_lock(7304)');
    await client.query(
      `create table if not exists ${table} (
         consumer text collate "C" not null,
         tenant text collate "C" not null,
         session_id text collate "C" not null,
         version integer not null,
         primary key (consumer, tenant, session_id)
       ) with (fillfactor = 70)`,
    );
  });
}
