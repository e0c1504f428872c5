import type { Pool, PoolClient } from 'pg';
import { type Truncation } from './contract.js';
import { transaction } from '../database/transaction.js';

/** Identifies a session among those of all tenants; also the key of its records. */
export const sessionKey = ({ tenant, sessionId }: Session): string => `${tenant}/${sessionId}`;

interface Session {
  readonly tenant: string;
  readonly sessionId: string;
}

/** The last event of a session that was applied. */
export interface Place {
  readonly version: number;
  readonly lane: number;
  /** In the lane, or a later one: of an event that was fetched only that of the record behind it is known. */
  readonly position: number;
  /** The generation of the log in which it was appended. */
  readonly generation: number;
}

/** Where a consumer keeps the last version of each session that it has applied. */
export interface Places<Tx> {
  /** By `tenant/session id`; 0 or absent for a session that is new. */
  read(sessions: readonly Session[]): Promise<Map<string, number>>;
  /**
   * Locks the places of these sessions, runs `work`, and stores the places that `work` returns together with what
   * `work` did through `tx`: both or none.
   */
  transaction(
    sessions: readonly Session[],
    work: (tx: Tx, last: ReadonlyMap<string, number>) => Promise<ReadonlyMap<string, Place>>,
  ): Promise<void>;
  /**
   * The sessions of a lane whose places are at this position of an earlier generation of the log, or behind it, and
   * their versions.
   */
  behind(truncation: Truncation): Promise<readonly (Session & { readonly version: number })[]>;
}

/** Places in memory, for effects that are in memory as well and are lost with the process. */
export function memoryPlaces(): Places<undefined> {
  const places = new Map<string, Place & Session>();
  let turn: Promise<unknown> = Promise.resolve();
  const read = (sessions: readonly Session[]) =>
    new Map(sessions.map((session) => [sessionKey(session), places.get(sessionKey(session))?.version ?? 0]));
  return {
    read: (sessions) => Promise.resolve(read(sessions)),
    transaction: (sessions, work) => {
      // Transactions run one after the other, because several partitions may be processed at the same time.
      const result = turn.then(async () => {
        const moved = await work(undefined, read(sessions));
        for (const { tenant, sessionId } of sessions) {
          const place = moved.get(sessionKey({ tenant, sessionId }));
          if (place) places.set(sessionKey({ tenant, sessionId }), { ...place, tenant, sessionId });
        }
      });
      // The caller gets the error; the next transaction runs all the same.
      turn = result.catch(() => undefined);
      return result;
    },
    behind: ({ lane, from, generation }) =>
      Promise.resolve(
        [...places.values()].filter(
          (place) => place.lane === lane && place.position >= from && place.generation < generation,
        ),
      ),
  };
}

export interface PostgresPlacesOptions {
  /** Name of the consumer. Several consumers may share a table. */
  readonly consumer: string;
  /** Name of the table, which is created when it is missing. Default `colloquy_place`. */
  readonly table?: string;
}

/**
 * Places in a table of the database that the effects go to. `apply` gets the client of the transaction, and what it
 * writes through this client is committed together with the places.
 */
export function postgresPlaces(
  pool: Pool,
  { consumer, table = 'colloquy_place' }: PostgresPlacesOptions,
): Places<PoolClient> {
  if (!/^[a-z_][a-z0-9_]{0,62}$/.test(table)) throw new Error(`${table} is not a plain name of a table`);
  let tableMade: Promise<unknown> | undefined;
  const ready = async () => {
    tableMade ??= makeTable(pool, table).catch((error: unknown) => {
      tableMade = undefined;
      throw error;
    });
    await tableMade;
  };
  // Rows are always locked in the same order. Otherwise two consumers, which may hold the same partition for a moment
  // after a rebalance, would deadlock.
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
        // Only a row that exists can be locked, so missing ones are inserted; the update locks those that exist.
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
          `update ${table} place
           set version = moved.version, lane = moved.lane, position = moved.position, generation = moved.generation
           from unnest($2::text[], $3::text[], $4::integer[], $5::smallint[], $6::bigint[], $7::integer[])
                as moved (tenant, session_id, version, lane, position, generation)
           where place.consumer = $1 and (place.tenant, place.session_id) = (moved.tenant, moved.session_id)`,
          [
            consumer,
            movedSessions.map(({ tenant }) => tenant),
            movedSessions.map(({ sessionId }) => sessionId),
            ...(['version', 'lane', 'position', 'generation'] as const).map((field) =>
              movedSessions.map((session) => moved.get(sessionKey(session))?.[field]),
            ),
          ],
        );
      });
    },
    behind: async ({ lane, from, generation }) => {
      await ready();
      // Places of before there were generations are not known to be in another lane.
      const { rows } = await pool.query<Row>(
        `select tenant, session_id, version from ${table}
         where consumer = $1 and (lane is null or (lane = $2 and position >= $3 and generation < $4))`,
        [consumer, lane, from, generation],
      );
      return rows.map((row) => ({ tenant: row.tenant, sessionId: row.session_id, version: row.version }));
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
    // When two connections create a table at the same moment, one of them fails, even with `if not exists`.
    await client.query('select pg_advisory_xact_lock(7304)');
    await client.query(
      `create table if not exists ${table} (
         consumer text collate "C" not null,
         tenant text collate "C" not null,
         session_id text collate "C" not null,
         version integer not null,
         lane smallint,
         position bigint,
         generation integer,
         primary key (consumer, tenant, session_id)
       ) with (fillfactor = 70)`,
    );
    // A table of before there were generations of the log.
    await client.query(
      `alter table ${table} add column if not exists lane smallint,
         add column if not exists position bigint, add column if not exists generation integer`,
    );
  });
}
