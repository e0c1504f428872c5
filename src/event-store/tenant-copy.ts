import { createHash } from 'node:crypto';
import { type Pool, type PoolClient } from 'pg';
import { jsonArray } from '../database/array-literal.js';
import { available } from '../database/connection.js';
import { rowsOf } from '../database/query.js';
import { transaction } from '../database/transaction.js';
import { EVENT_COLUMNS, type EventRow, PAYLOAD_SIZE, STATE_COLUMNS, type StateRow } from './event-rows.js';
import { type LogGenerations } from './log-generations.js';

/** Events that are copied in one commit; fewer where they are large. */
const PAGE_EVENTS = 1_000;
const PAGE_BYTES = 4 * 1024 * 1024;
/** Keyed results that are copied at once. */
const PAGE_KEYS = 2_000;
/** So long a keyed result may take from its time to its commit. */
const COMMIT_S = 10;

/** What an event says, whatever its place in a log is: 64 hex digits. */
const DIGEST = `encode(sha256(convert_to(row(e.tenant, e.stream_id, e.version, e.incarnation, e.id, e.type, e.schema_version,
  extract(epoch from e.time), e.actor, e.correlation_id, e.causation_id, e.data, e.sealed, e.key_id, e.hash)::text, 'UTF8')), 'hex')`;

/** One side of a copy. */
export interface CopiedLog {
  readonly pool: Pool;
  /** Secret of the log, by which others know it. */
  readonly key: Buffer;
  readonly laneCount: number;
  readonly generations: LogGenerations;
  /** Tells the readers of the log that lanes have grown. */
  grown(lanes: Iterable<number>): void;
}

interface CopiedEvent extends EventRow {
  /** Of the log in which it was read. */
  generation: number;
  /** As JSON text. */
  data: string | null;
  hash: Buffer | null;
  digest: string;
}

/** A row of `data_key`. */
interface KeyRow {
  id: string;
  master: string;
  wrapped: Buffer | null;
  created_at: string;
  destroyed_at: string | null;
}

/** The two logs are not what they have to be for a copy; to go on would make the tenant's history a wrong one. */
export class CopyRefused extends Error {
  override readonly name = 'CopyRefused';
}

/**
 * Copies all that belongs to a tenant from the log where it is at home to one from which it is absent: events with their
 * ids, versions and times, lane by lane in their order, with the states of their streams. Each page is one commit, with
 * the place to go on from, so that a copy may be broken off at any moment and taken up by any process. What is there
 * already, from an earlier stay, is left as it is, and must be the same.
 */
export class TenantCopy {
  /** Keyed results that are older were copied, by the clock of the source. */
  private keyedUntil = '-infinity';
  /** By lane: up to where the events of both sides were counted. */
  private counted: { source: number[]; target: number[]; events: number } = {
    source: [],
    target: [],
    events: 0,
  };

  constructor(
    private readonly source: CopiedLog,
    private readonly target: CopiedLog,
    private readonly tenant: string,
  ) {
    if (source.laneCount !== target.laneCount)
      throw new CopyRefused(
        `one log has ${source.laneCount} lanes, the other ${target.laneCount}: a tenant keeps its lanes`,
      );
    if (source.key.equals(target.key)) throw new CopyRefused('both are the same log, or one is a copy of it');
  }

  /**
   * Copies the events up to the present ends of the lanes.
   * @param onCopied gets the number of events after each commit
   * @returns how many were copied, those left out that were there
   * @throws CopyRefused, DatabaseUnavailable
   */
  async copyEvents(onCopied: (events: number) => void = () => undefined): Promise<number> {
    const { ends, generation } = await this.endsOf(this.source);
    let copied = 0;
    for (const [lane, end] of ends.entries()) {
      let place = await this.placeOf(lane);
      while (place < end) {
        const page = await this.page(lane, place, end);
        const isLast = page.length === 0 || (page.at(-1)?.position ?? end) >= end;
        const to = isLast ? end : (page.at(-1)?.position ?? end);
        const states = await this.statesOf(page);
        const keys = await this.keysOf([...page, ...states]);
        const added = await available(() =>
          transaction(this.target.pool, (client) =>
            this.write(client, {
              lane,
              from: place,
              to,
              page,
              states,
              keys,
              // If the log was set back between the two reads, the place is one of the earlier generation, so that the
              // next copy notices.
              generation: Math.min(generation, page[0]?.generation ?? generation),
            }),
          ),
        );
        if (added > 0) this.target.grown([lane]);
        copied += added;
        if (page.length > 0) onCopied(page.length);
        place = to;
      }
    }
    await this.copyDestructions();
    return copied;
  }

  /**
   * Destroys the keys that were destroyed in the source after they had been copied, now or in an earlier stay. To which
   * tenant a key belongs only payloads tell, but a key that was destroyed anywhere must be there nowhere.
   */
  private async copyDestructions(): Promise<void> {
    for (let after: string | null = null; ;) {
      const rows: { id: string; destroyed_at: string }[] = await rowsOf(this.source.pool, {
        text: `select id, destroyed_at from data_key
               where destroyed_at is not null and ($1::uuid is null or id > $1) order by id limit $2`,
        values: [after, PAGE_KEYS],
      });
      const last = rows.at(-1);
      if (!last) return;
      await rowsOf(this.target.pool, {
        text: `update data_key k set wrapped = null, destroyed_at = d.at
               from unnest($1::uuid[], $2::timestamptz[]) as d (id, at)
               where k.id = d.id and k.wrapped is not null`,
        values: [rows.map(({ id }) => id), rows.map(({ destroyed_at: at }) => at)],
      });
      after = last.id;
    }
  }

  /**
   * Compares how many events of the tenant both logs have up to the places of the copy; after the first time only those
   * that came since.
   * @returns how many there are
   * @throws CopyRefused when the target has others as well, from an earlier stay that the source knows nothing of
   */
  async compare(): Promise<number> {
    const lanes = Array.from({ length: this.source.laneCount }, (_, lane) => lane);
    const places = await Promise.all(lanes.map((lane) => this.placeOf(lane)));
    const { ends } = await this.endsOf(this.target);
    const [there, here] = await Promise.all([
      this.count(this.source, this.counted.source, places),
      this.count(this.target, this.counted.target, ends),
    ]);
    for (const lane of lanes) {
      if (there[lane] === here[lane]) continue;
      throw new CopyRefused(
        `in lane ${lane} the cell has ${here[lane]} events of ${this.tenant} where its home has ${there[lane]}: ` +
          'they are of another time of its log, and it cannot be moved there',
      );
    }
    const events = this.counted.events + here.reduce((sum, count) => sum + count, 0);
    this.counted = { source: places, target: ends, events };
    return events;
  }

  /** How many events the source has; undefined when some of them were not copied to the target. */
  async countCopied(): Promise<number | undefined> {
    const rows = await rowsOf<{ lane: number; last: number | null; events: number }>(this.source.pool, {
      text: `select l.lane, e.last, e.events from lane_ends() l
             cross join lateral (
               select max(position) as last, count(*)::int as events from event where lane = l.lane and tenant = $1
             ) e`,
      values: [this.tenant],
    });
    for (const { lane, last } of rows) if ((await this.placeOf(lane)) < (last ?? 0)) return undefined;
    return rows.reduce((sum, { events }) => sum + events, 0);
  }

  /** Copies the results of keyed requests, after the first time only newer ones. @returns how many */
  async copyKeyedResults(): Promise<number> {
    // What is older than this, and was not committed now, is not committed any more.
    const [now] = await rowsOf<{ before: string }>(this.source.pool, {
      text: `select (colloquy_now() - $1 * interval '1 second')::text as before`,
      values: [COMMIT_S],
    });
    let copied = 0;
    let after = { time: this.keyedUntil, scope: '', key: '' };
    for (let count = PAGE_KEYS; count === PAGE_KEYS;) {
      const rows = await rowsOf<Record<string, unknown> & { time: string; scope: string; key: string }>(
        this.source.pool,
        {
          text: `select scope, key, fingerprint, reference::text as reference, stream_id, version, time::text as time
                 from command where tenant = $1 and time >= $2 and (time, scope, key) > ($2, $3, $4)
                 order by time, scope, key limit $5`,
          values: [this.tenant, after.time, after.scope, after.key, PAGE_KEYS],
        },
      );
      count = rows.length;
      after = rows.at(-1) ?? after;
      copied += count;
      await this.addKeyedResults(rows);
    }
    this.keyedUntil = now?.before ?? this.keyedUntil;
    return copied;
  }

  private async addKeyedResults(rows: readonly Record<string, unknown>[]): Promise<void> {
    if (rows.length === 0) return;
    await rowsOf(this.target.pool, {
      text: `insert into command (tenant, scope, key, fingerprint, reference, stream_id, version, time)
             select $1, c.scope, c.key, c.fingerprint, c.reference::jsonb, c.stream_id, c.version, c.time
             from unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::int[], $8::timestamptz[])
                  as c (scope, key, fingerprint, reference, stream_id, version, time)
             on conflict on constraint command_pkey do update
               set fingerprint = excluded.fingerprint, reference = excluded.reference,
                   stream_id = excluded.stream_id, version = excluded.version, time = excluded.time`,
      values: [
        this.tenant,
        ...['scope', 'key', 'fingerprint', 'reference', 'stream_id', 'version', 'time'].map((column) =>
          rows.map((row) => row[column]),
        ),
      ],
    });
  }

  /** Gives the counter of the target the value that it has in the source. */
  async copyCounter(key: string): Promise<void> {
    const [row] = await rowsOf<{ value: number }>(this.source.pool, {
      text: 'select value from counter where key = $1',
      values: [key],
    });
    await rowsOf(this.target.pool, {
      text: `insert into counter (key, value) values ($1, $2)
             on conflict on constraint counter_pkey do update set value = excluded.value`,
      values: [key, row?.value ?? 0],
    });
  }

  /** Copies where events stood in logs that the tenant has lived in before, for tokens that are as old. */
  async copyFormerPositions(): Promise<void> {
    for (let after: unknown[] = ['', '', -1, -1]; ;) {
      const rows = await rowsOf<Record<string, unknown>>(this.source.pool, {
        text: `select origin, target, generation, lane, first, from_positions::text, to_positions::text
               from moved_position
               where tenant = $1 and (origin, target, lane, first) > ($2, $3, $4, $5) and origin <> $6
               order by origin, target, lane, first limit $7`,
        values: [this.tenant, ...after, this.target.key, 100],
      });
      const last = rows.at(-1);
      if (!last) return;
      await rowsOf(this.target.pool, {
        text: `insert into moved_position (tenant, origin, target, generation, lane, first, from_positions, to_positions)
               select $1, m.origin, m.target, m.generation, m.lane, m.first, m.from_positions::bigint[],
                      m.to_positions::bigint[]
               from unnest($2::bytea[], $3::bytea[], $4::int[], $5::smallint[], $6::bigint[], $7::text[], $8::text[])
                    as m (origin, target, generation, lane, first, from_positions, to_positions)
               on conflict do nothing`,
        values: [
          this.tenant,
          ...['origin', 'target', 'generation', 'lane', 'first', 'from_positions', 'to_positions'].map(
            (column) => rows.map((row) => row[column]),
          ),
        ],
      });
      after = ['origin', 'target', 'lane', 'first'].map((column) => last[column]);
    }
  }

  /** How far a lane was copied. @throws CopyRefused when the source was set back behind that */
  private async placeOf(lane: number): Promise<number> {
    const [row] = await rowsOf<{ position: number; generation: number }>(this.target.pool, {
      text: 'select position, generation from tenant_copy where tenant = $1 and origin = $2 and lane = $3',
      values: [this.tenant, this.source.key, lane],
    });
    if (row && row.position > this.source.generations.keptOf(row.generation, lane))
      throw new CopyRefused(
        `the home of ${this.tenant} was set back, by a failover or a restore, behind what was copied: ` +
          'the cell has events that are gone, and it cannot be moved there',
      );
    return row?.position ?? 0;
  }

  private async page(lane: number, after: number, to: number): Promise<CopiedEvent[]> {
    return rowsOf<CopiedEvent>(this.source.pool, {
      name: 'copy_page',
      text: `select ${EVENT_COLUMNS.replace('e.data,', 'e.data::text as data,')}, e.hash, ${DIGEST} as digest,
                    (select max(generation) from log_generation) as generation
             from (
               select e.*, sum(e.size) over (order by e.position rows unbounded preceding) - e.size as before
               from (
                 select e.*, ${PAYLOAD_SIZE} as size from event e
                 where e.lane = $1 and e.tenant = $2 and e.position > $3 and e.position <= $4
                 order by e.position limit $5
               ) e
             ) e where e.before < $6 order by e.position`,
      values: [lane, this.tenant, after, to, PAGE_EVENTS, PAGE_BYTES],
    });
  }

  /** The stored states of the streams of a page, which may be of later versions than the page has. */
  private async statesOf(page: readonly CopiedEvent[]): Promise<StateRow[]> {
    const ids = [...new Set(page.map((event) => event.stream_id))];
    if (ids.length === 0) return [];
    return rowsOf<StateRow>(this.source.pool, {
      name: 'copy_states',
      text: `select ${STATE_COLUMNS.replace('s.state,', 's.state::text as state,')}
             from stream_state s where s.tenant = $1 and s.stream_id = any ($2)`,
      values: [this.tenant, ids],
    });
  }

  /** The keys that payloads are sealed with, as they are: all cells have the same master keys. */
  private async keysOf(sealed: readonly { readonly key_id: string | null }[]): Promise<KeyRow[]> {
    const ids = [...new Set(sealed.flatMap(({ key_id: id }) => id ?? []))];
    if (ids.length === 0) return [];
    return rowsOf<KeyRow>(this.source.pool, {
      name: 'copy_keys',
      text: 'select id, master, wrapped, created_at, destroyed_at from data_key where id = any ($1::uuid[])',
      values: [ids],
    });
  }

  /** In the commit of what they seal, which could not be read without them. */
  private async addKeys(client: PoolClient, keys: readonly KeyRow[]): Promise<void> {
    if (keys.length === 0) return;
    const of = <Column extends keyof KeyRow>(column: Column) => keys.map((key) => key[column]);
    await client.query(
      `insert into data_key (id, master, wrapped, created_at, destroyed_at)
       select * from unnest($1::uuid[], $2::text[], $3::bytea[], $4::timestamptz[], $5::timestamptz[])
       on conflict do nothing`,
      [of('id'), of('master'), of('wrapped'), of('created_at'), of('destroyed_at')],
    );
  }

  private async write(
    client: PoolClient,
    {
      lane,
      from,
      to,
      page,
      states,
      keys,
      generation,
    }: {
      readonly lane: number;
      readonly from: number;
      readonly to: number;
      readonly page: readonly CopiedEvent[];
      readonly states: readonly StateRow[];
      readonly keys: readonly KeyRow[];
      readonly generation: number;
    },
  ): Promise<number> {
    const { tenant, source, target } = this;
    // Locked until the commit, so that of two that copy at the same time one goes on and the other one fails.
    await client.query(
      `insert into tenant_copy (tenant, origin, generation, lane, position) values ($1, $2, $3, $4, 0)
       on conflict do nothing`,
      [tenant, source.key, generation, lane],
    );
    const { rowCount } = await client.query(
      `update tenant_copy set position = $6, generation = $3
       where tenant = $1 and origin = $2 and lane = $4 and position = $5`,
      [tenant, source.key, generation, lane, from, to],
    );
    if (rowCount !== 1) throw new CopyRefused('another process copies the same tenant');
    const { rows: held } = await client.query<{ isAbsent: boolean }>(
      'select hold_absence($1) as "isAbsent"',
      [tenant],
    );
    if (!held[0]?.isAbsent)
      throw new CopyRefused(`${tenant} is at home in the cell that it was to be copied to`);
    if (page.length === 0) return 0;
    await this.addKeys(client, keys);
    const { positions, added } = await this.add(client, lane, page);
    await this.check(client, lane, page, positions);
    await this.addStates(client, lane, states);
    await client.query(
      `insert into moved_position (tenant, origin, target, generation, lane, first, from_positions, to_positions)
       values ($1, $2, $3, $4, $5, $6, $7, $8)`,
      [
        tenant,
        source.key,
        target.key,
        generation,
        lane,
        page[0]?.position,
        page.map(({ position }) => position),
        positions,
      ],
    );
    return added;
  }

  /** Puts those events that are missing at the end of the lane. @returns the positions of all of them */
  private async add(
    client: PoolClient,
    lane: number,
    page: readonly CopiedEvent[],
  ): Promise<{ positions: number[]; added: number }> {
    const of = <Column extends keyof CopiedEvent>(column: Column) => page.map((event) => event[column]);
    await client.query(`select set_config('colloquy.copied_tenant', $1, true)`, [this.tenant]);
    await client.query('select pg_advisory_xact_lock(7301, $1)', [lane]);
    const { rows } = await client.query<{ position: number; isNew: boolean }>(
      `with given as (
         select g.*, p.position as present
         from rows from (
           unnest($3::text[], $4::int[], $5::int[], $6::uuid[], $7::text[], $8::smallint[], $9::timestamptz[],
                  $10::text[], $11::text[], $12::text[], $13::bytea[], $14::uuid[], $15::bytea[]),
           jsonb_array_elements($16::jsonb)
         ) with ordinality as g (stream_id, version, incarnation, id, type, schema_version, time, actor,
                                 correlation_id, causation_id, sealed, key_id, hash, data, n)
         left join lateral (
           select e.position from event e
           where e.lane = $1 and e.tenant = $2 and e.stream_id = g.stream_id and e.version = g.version limit 1
         ) p on true
       ), placed as (
         select g.*, coalesce(g.present, l.position + count(*) filter (where g.present is null) over (order by g.n))
                       as position
         from given g, (select coalesce(max(position), 0) as position from event where lane = $1) as l
       ), added as (
         insert into event (lane, position, tenant, stream_id, version, incarnation, id, type, schema_version, time,
                            actor, correlation_id, causation_id, data, sealed, key_id, hash)
         select $1, p.position, $2, p.stream_id, p.version, p.incarnation, p.id, p.type, p.schema_version, p.time,
                p.actor, p.correlation_id, p.causation_id, nullif(p.data, 'null'), p.sealed, p.key_id, p.hash
         from placed p where p.present is null order by p.n
       )
       select position, present is null as "isNew" from placed order by n`,
      [
        lane,
        this.tenant,
        of('stream_id'),
        of('version'),
        of('incarnation'),
        of('id'),
        of('type'),
        of('schema_version'),
        of('time'),
        of('actor'),
        of('correlation_id'),
        of('causation_id'),
        of('sealed'),
        of('key_id'),
        of('hash'),
        // One that is all null would be shorter than the others.
        jsonArray(of('data')) ?? `[${page.map(() => 'null').join()}]`,
      ],
    );
    return {
      positions: rows.map(({ position }) => position),
      added: rows.filter(({ isNew }) => isNew).length,
    };
  }

  /** Compares what stands in the target with what was read from the source. */
  private async check(
    client: PoolClient,
    lane: number,
    page: readonly CopiedEvent[],
    positions: readonly number[],
  ): Promise<void> {
    const { rows } = await client.query<{ digest: string }>(
      `select ${DIGEST} as digest from event e
       where e.lane = $1 and e.position = any ($2) and e.tenant = $3 order by e.position`,
      [lane, positions, this.tenant],
    );
    if (digestOf(rows) === digestOf(page)) return;
    const index = page.findIndex(({ digest }, at) => rows[at]?.digest !== digest);
    const { stream_id: id = '', version = 0 } = page[index] ?? {};
    throw new CopyRefused(
      `the cell has another event as version ${version} of ${this.tenant}/${id} than its home: it cannot be moved there`,
    );
  }

  private async addStates(client: PoolClient, lane: number, states: readonly StateRow[]): Promise<void> {
    const of = <Column extends keyof StateRow>(column: Column) => states.map((state) => state[column]);
    // A state of a version that is not there yet comes with the page that has the version.
    await client.query(
      `insert into stream_state (tenant, stream_id, lane, version, incarnation, position, time, created_at,
                                 last_activity_at, state, state_version, sealed, key_id)
       select $1, s.stream_id, $2, s.version, s.incarnation, e.position, s.time, s.created_at, s.last_activity_at,
              s.state::jsonb, s.state_version, s.sealed, s.key_id
       from unnest($3::text[], $4::int[], $5::int[], $6::timestamptz[], $7::timestamptz[], $8::timestamptz[], $9::text[],
                   $10::smallint[], $11::bytea[], $12::uuid[])
            as s (stream_id, version, incarnation, time, created_at, last_activity_at, state, state_version, sealed, key_id)
       cross join lateral (
         select e.position from event e
         where e.lane = $2 and e.tenant = $1 and e.stream_id = s.stream_id and e.version = s.version limit 1
       ) e
       on conflict on constraint stream_state_pkey do update
         set version = excluded.version, incarnation = excluded.incarnation, position = excluded.position,
             time = excluded.time, created_at = excluded.created_at, last_activity_at = excluded.last_activity_at,
             state = excluded.state, state_version = excluded.state_version,
             sealed = excluded.sealed, key_id = excluded.key_id`,
      [
        this.tenant,
        lane,
        of('stream_id'),
        of('version'),
        of('incarnation'),
        of('time'),
        of('created_at'),
        of('last_activity_at'),
        of('state'),
        of('state_version'),
        of('sealed'),
        of('key_id'),
      ],
    );
  }

  /** By lane: how many events of the tenant there are behind some positions, up to others. */
  private async count(
    { pool }: CopiedLog,
    after: readonly number[],
    to: readonly number[],
  ): Promise<number[]> {
    const rows = await rowsOf<{ events: number }>(pool, {
      text: `select (
               select count(*)::int from event e
               where e.lane = l.n - 1 and e.tenant = $1 and e.position > l.after and e.position <= l.to
             ) as events
             from unnest($2::bigint[], $3::bigint[]) with ordinality as l (after, "to", n) order by l.n`,
      values: [this.tenant, to.map((_, lane) => after[lane] ?? 0), to],
    });
    return rows.map(({ events }) => events);
  }

  private async endsOf({ pool }: CopiedLog): Promise<{ ends: number[]; generation: number }> {
    const rows = await rowsOf<{ position: number; generation: number }>(pool, {
      text: `select position, (select max(generation) from log_generation) as generation
             from lane_ends() order by lane`,
    });
    return { ends: rows.map(({ position }) => position), generation: rows[0]?.generation ?? 1 };
  }
}

const digestOf = (rows: readonly { readonly digest: string }[]): string =>
  createHash('sha256')
    .update(rows.map(({ digest }) => digest).join())
    .digest('hex');
