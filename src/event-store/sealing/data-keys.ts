import { randomBytes, randomUUID } from 'node:crypto';
import { type Pool, type QueryConfig } from 'pg';
import { boundedCache } from '../../bounded-cache.js';
import { arrayLiteral, bytesArray } from '../../database/array-literal.js';
import { available, DatabaseUnavailable } from '../../database/connection.js';
import { COMMAND_READ_MS } from '../../database/query.js';
import { Coalescer } from '../coalescer.js';
import { type StreamId } from '../lane.js';
import { type LogGenerations } from '../log-generations.js';
import { type Telemetry } from '../telemetry.js';
import { type MasterKeys, type WrappedKey } from './master-keys.js';

export interface DataKey {
  readonly id: string;
  readonly key: Buffer;
}

/** An incarnation of a stream, and a version up to which its events are of interest. */
export interface Incarnation extends StreamId {
  readonly incarnation: number;
  readonly version: number;
  /** Whether the log has nothing of it yet. */
  readonly begins?: boolean | undefined;
}

/** An event, and the key that it is said to be sealed with. */
export interface KeyOfEvent extends StreamId {
  readonly version: number;
  readonly keyId: string;
}

/** Keys that are made at once: at first, and at most where many streams begin. */
const STOCK = { least: 64, most: 1_024 };
/** So many keys are remembered, and the keys of so many incarnations: about as many as states of streams are cached. */
const REMEMBERED = 20_000;
/** A key that was destroyed is not used any longer than this, on any node. */
export const KEPT_MS = 60_000;
/** Keys that are in use are confirmed so often, all at once, so that no append has to wait for it. */
const CONFIRM_MS = 20_000;
/** A key that was not used for so long is looked up again when it is. */
const IDLE_MS = 600_000;
/** Connections that may lead to a former server: all those of a pool. */
const TRIES = 12;

interface Held {
  readonly key: Buffer;
  usedAt: number;
  /** When the statement began by which the database was last seen to have the key. */
  confirmedAt: number;
}

/**
 * The keys of payloads in the database, and those of them that this process has at hand.
 *
 * **No event is committed whose key the database does not have.** A key is given out after the commit that stored it,
 * so whatever log has the event, also one that a crash or a failover has cut off, has the key: it is earlier in the same
 * write-ahead log, of which a server keeps a beginning and never an end alone. This would not hold for a key that went with the lost end of a former log. Therefore everything is
 * forgotten when a new generation of the log begins (`forget`), before anything is read or written on the connection
 * that leads to it; what was under way is thrown away by its epoch; and each statement says of which generation the log
 * is on which it ran, so that a connection to a former server that still lives gives no keys. An append that took its
 * key before then was decided, and encoded, in the former generation: it says so, and the committer refuses it on every
 * connection of a later one, whereupon it is decided and encoded anew.
 */
export class DataKeys {
  private stock: DataKey[] = [];
  private stockSize = STOCK.least;
  /** Keys that callers wait for. */
  private wanted = 0;
  private making: Promise<void> | undefined;
  private epoch = 0;
  /** Incarnation → id of the key of its last payload; version 0: it was given out here, and not seen in the log. */
  private readonly known = boundedCache<string, { readonly keyId: string; readonly version: number }>(
    REMEMBERED,
  );
  private readonly held = boundedCache<string, Held>(REMEMBERED);
  /** Incarnation → its key, which is being looked for: all that is encoded meanwhile gets the same one. */
  private readonly finding = new Map<string, Promise<DataKey>>();
  private readonly lookups = new Coalescer((asked: readonly Incarnation[]) => this.lookUp(asked));
  private readonly questions = new Coalescer((asked: readonly KeyOfEvent[]) => this.lookUpForEvents(asked));
  private timer: NodeJS.Timeout | undefined;
  private isClosed = false;

  constructor(
    private readonly pool: Pool,
    private readonly masters: MasterKeys,
    private readonly generations: LogGenerations,
    private readonly laneOf: (stream: StreamId) => number,
    private readonly telemetry: Telemetry,
    /** Milliseconds; for tests. */
    private readonly now: () => number = () => performance.now(),
  ) {}

  /** To be called when a new generation of the log begins: the keys may be gone with the end of the former one. */
  forget(): void {
    this.epoch += 1;
    this.stock = [];
    this.known.clear();
    this.held.clear();
    this.finding.clear();
  }

  /** To be called when keys were destroyed here. Other nodes use them for `KEPT_MS` at most. */
  drop(ids: Iterable<string>): void {
    for (const id of ids) this.held.delete(id);
  }

  async close(): Promise<void> {
    this.isClosed = true;
    clearInterval(this.timer);
    await this.making?.catch(() => undefined);
  }

  /** The key of an incarnation, if it is at hand, or a new one for one that begins, if there is one in stock. */
  keyOf(one: Incarnation): DataKey | undefined {
    const name = nameOf(one);
    const known = this.known.get(name);
    if (known) {
      const key = this.use(known.keyId);
      return key && { id: known.keyId, key };
    }
    if (one.begins !== true || this.stock.length === 0 || this.finding.has(name)) return undefined;
    const key = this.fromStock();
    if (key) this.remember(name, key, this.now());
    return key;
  }

  /**
   * The key of an incarnation: that of its last events, or a new one; for one whose key was destroyed one that nobody has.
   * @throws DatabaseUnavailable, MasterKeyRefused
   */
  findKey(one: Incarnation): Promise<DataKey> {
    const name = nameOf(one);
    let finding = this.finding.get(name);
    if (!finding) {
      finding = this.findNow(one).finally(() => {
        if (this.finding.get(name) === finding) this.finding.delete(name);
      });
      this.finding.set(name, finding);
    }
    return finding;
  }

  private async findNow(one: Incarnation): Promise<DataKey> {
    for (;;) {
      const { epoch } = this;
      const since = this.now();
      const found = one.begins === true ? undefined : await this.lookups.ask(one);
      // What is still written for it, such as the rest of a reply, must be as unreadable as what was there.
      if (found?.key === null) return { id: found.id, key: randomBytes(32) };
      const key = found ?? (await this.create());
      if (epoch !== this.epoch) continue;
      // It may have been seen in the log meanwhile.
      const known = this.keyOf(one);
      if (known) return known;
      this.remember(nameOf(one), key, since);
      return key;
    }
  }

  /** Remembers a key that was given out. */
  private remember(name: string, key: DataKey, since: number): void {
    this.known.set(name, { keyId: key.id, version: 0 });
    this.hold(key, since);
  }

  /** Remembers the key of an event or a state that was read. */
  learn(one: Incarnation, keyId: string): void {
    const name = nameOf(one);
    const known = this.known.peek(name);
    if (!known || known.version <= one.version) this.known.set(name, { keyId, version: one.version });
  }

  /**
   * The keys with these ids.
   * @returns id → key; null for one that was destroyed, nothing for one that there is not
   * @throws DatabaseUnavailable, MasterKeyRefused
   */
  async get(ids: Iterable<string>): Promise<Map<string, Buffer | null>> {
    const keys = new Map<string, Buffer | null>();
    const missing: string[] = [];
    for (const id of new Set(ids)) {
      const key = this.use(id);
      if (key) keys.set(id, key);
      else missing.push(id);
    }
    if (missing.length === 0) return keys;
    const { epoch } = this;
    const since = this.now();
    const rows = await this.ask<WrappedRow>({
      name: 'data_keys',
      text: `select k.id, k.master, k.wrapped, g.generation
             from (${GENERATION}) g left join data_key k on k.id = any ($1::uuid[])`,
      values: [missing],
    });
    for (const row of rows) {
      if (row.id === null) continue;
      const key = row.wrapped && this.masters.unwrap(row as WrappedKey);
      keys.set(row.id, key);
      if (key && epoch === this.epoch) this.hold({ id: row.id, key }, since);
    }
    return keys;
  }

  /**
   * The key of an event as the database has it at this moment, for whoever reads outside of the service. What this process
   * remembers is not given out: another one may have destroyed it, and whoever gets a key may keep it for a while in turn.
   * @returns null for a key that was destroyed; undefined where the log has no such event with that key, or its tenant has
   * left the log
   * @throws DatabaseUnavailable, MasterKeyRefused
   */
  ofEvent(event: KeyOfEvent): Promise<Buffer | null | undefined> {
    return this.questions.ask(event);
  }

  private async lookUpForEvents(asked: readonly KeyOfEvent[]): Promise<(Buffer | null | undefined)[]> {
    const rows = await this.ask<WrappedRow>({
      name: 'keys_of_events',
      text: `select k.id, k.master, k.wrapped, g.generation
             from (${GENERATION}) g,
                  unnest($1::smallint[], $2::text[], $3::text[], $4::int[], $5::uuid[])
                    with ordinality as w (lane, tenant, stream_id, version, key_id, n)
             left join lateral (
               select e.key_id from event e
               where e.lane = w.lane and e.tenant = w.tenant and e.stream_id = w.stream_id and e.version = w.version
               -- Without it the planner would read the whole table.
               limit 1
             ) e on e.key_id = w.key_id
               -- A tenant that has left may have been erased where it is now.
               and not exists (select from tenant_absence a where a.tenant = w.tenant and a.opened is null)
             left join data_key k on k.id = e.key_id
             order by w.n`,
      values: [
        asked.map((one) => this.laneOf(one)),
        asked.map((one) => one.tenant),
        asked.map((one) => one.streamId),
        asked.map((one) => one.version),
        asked.map((one) => one.keyId),
      ],
    });
    return rows.map((row) =>
      row.id === null ? undefined : row.wrapped && this.masters.unwrap(row as WrappedKey),
    );
  }

  private use(id: string): Buffer | undefined {
    const held = this.held.get(id);
    if (!held) return undefined;
    const now = this.now();
    if (now - held.confirmedAt >= KEPT_MS) {
      this.held.delete(id);
      return undefined;
    }
    held.usedAt = now;
    return held.key;
  }

  private hold({ id, key }: DataKey, confirmedAt: number): void {
    this.held.set(id, { key, usedAt: this.now(), confirmedAt });
    if (this.timer || this.isClosed) return;
    this.timer = setInterval(() => {
      this.confirm().catch(this.telemetry.failed('looking which keys of payloads there are'));
    }, CONFIRM_MS).unref();
  }

  /** Asks for all keys in use whether they are still there, and drops the others as well as those that are not used. */
  async confirm(): Promise<void> {
    const since = this.now();
    const { epoch } = this;
    const inUse = [...this.held].filter(([, { usedAt }]) => since - usedAt < IDLE_MS).map(([id]) => id);
    try {
      if (inUse.length === 0) return;
      const rows = await this.ask<{ id: string | null; generation: number }>({
        text: `select k.id, g.generation from (${GENERATION}) g
               left join data_key k on k.id = any ($1::uuid[]) and k.wrapped is not null`,
        values: [inUse],
      });
      if (epoch !== this.epoch) return;
      const there = new Set(rows.map(({ id }) => id));
      for (const id of inUse) {
        const held = this.held.peek(id);
        if (!there.has(id)) this.held.delete(id);
        else if (held) held.confirmedAt = Math.max(held.confirmedAt, since);
      }
    } finally {
      // So that no key stays in memory for longer than it may be used.
      for (const [id, { confirmedAt }] of this.held)
        if (this.now() - confirmedAt > KEPT_MS - CONFIRM_MS) this.held.delete(id);
    }
  }

  /** The keys of the last events of incarnations, null for those that were destroyed; undefined where the log has none. */
  private async lookUp(
    asked: readonly Incarnation[],
  ): Promise<(DataKey | { readonly id: string; readonly key: null } | undefined)[]> {
    const rows = await this.ask<WrappedRow>({
      name: 'keys_of_incarnations',
      text: `select k.id, k.master, k.wrapped, g.generation
             from (${GENERATION}) g,
                  unnest($1::smallint[], $2::text[], $3::text[], $4::int[], $5::int[])
                    with ordinality as w (lane, tenant, stream_id, incarnation, version, n)
             left join lateral (
               select e.incarnation, e.key_id from event e
               where e.lane = w.lane and e.tenant = w.tenant and e.stream_id = w.stream_id and e.version <= w.version
               order by e.version desc limit 1
             ) e on e.incarnation = w.incarnation
             left join data_key k on k.id = e.key_id
             order by w.n`,
      values: [
        asked.map((one) => this.laneOf(one)),
        asked.map((one) => one.tenant),
        asked.map((one) => one.streamId),
        asked.map((one) => one.incarnation),
        asked.map((one) => one.version),
      ],
    });
    return rows.map((row) =>
      row.id === null
        ? undefined
        : { id: row.id, key: row.wrapped && this.masters.unwrap(row as WrappedKey) },
    );
  }

  /** A key that nothing is sealed with yet. It is in the database. @throws DatabaseUnavailable */
  async create(): Promise<DataKey> {
    this.wanted += 1;
    try {
      for (;;) {
        const key = this.fromStock();
        if (key) return key;
        if (this.making) this.stockSize = Math.min(2 * this.stockSize, STOCK.most);
        await this.make();
      }
    } finally {
      this.wanted -= 1;
    }
  }

  /** Takes a key, and sees to it that the next ones are there before they are needed. */
  private fromStock(): DataKey | undefined {
    const key = this.stock.pop();
    if (key && this.stock.length < this.stockSize / 2 && !this.making)
      this.make().catch(this.telemetry.failed('making keys for payloads'));
    return key;
  }

  private make(): Promise<void> {
    if (this.isClosed && this.wanted === 0) return Promise.resolve();
    return (this.making ??= this.makeNow().finally(() => (this.making = undefined)));
  }

  private async makeNow(): Promise<void> {
    const { epoch } = this;
    const bytes = randomBytes(32 * (this.stockSize + this.wanted));
    const made = Array.from({ length: this.stockSize + this.wanted }, (_, index) => ({
      id: newKeyId(),
      key: bytes.subarray(32 * index, 32 * (index + 1)),
    }));
    const wrapped = made.map(({ id, key }) => this.masters.wrap(id, key));
    await this.ask({
      name: 'add_data_keys',
      // This commit need not wait for the disk: that of an event which is sealed with one of the keys comes later in the
      // same write-ahead log, and does. So nobody waits for the disk twice.
      text: `with relaxed as (
               select set_config('synchronous_commit', 'off', true)
             ), added as (
               insert into data_key (id, master, wrapped)
               select id, $2, wrapped from unnest($1::uuid[], $3::bytea[]) as k (id, wrapped)
               -- Those that came to a former server may come there again.
               on conflict do nothing
             ) select g.generation from relaxed, (${GENERATION}) g`,
      values: [
        arrayLiteral(wrapped.map(({ id }) => id)),
        this.masters.first,
        bytesArray(wrapped, (one) => one.wrapped),
      ],
    });
    if (epoch === this.epoch) this.stock.push(...made);
  }

  /**
   * The rows of a statement that says of which generation the log is. On a connection to a former server it does not
   * count, and the connection is closed.
   * @throws DatabaseUnavailable
   */
  private ask<Row extends { readonly generation: number }>(statement: QueryConfig): Promise<Row[]> {
    return available(async () => {
      for (let attempt = 0; attempt < TRIES; attempt += 1) {
        const client = await this.pool.connect();
        let isFormer = true;
        try {
          // The driver knows this member of a query, its types do not.
          const limited = { ...statement, query_timeout: COMMAND_READ_MS };
          const { rows } = await client.query<Row>(limited);
          isFormer = (rows[0]?.generation ?? 0) < this.generations.current;
          if (!isFormer) return rows;
        } finally {
          client.release(isFormer);
        }
      }
      throw new DatabaseUnavailable(new Error('all connections lead to a former server'));
    });
  }
}

/** The generation of the log on the server that answers. */
const GENERATION = 'select coalesce(max(generation), 1) as generation from log_generation';

/** A row of `data_key`; all null where there is no such row. */
interface WrappedRow {
  readonly id: string | null;
  readonly master: string | null;
  readonly wrapped: Buffer | null;
  readonly generation: number;
}

/**
 * A UUID of version 7, which begins with the time: new rows then lie together in the table and its index, and those of the
 * sessions in use do not take a page of memory each.
 */
function newKeyId(): string {
  const time = Date.now().toString(16).padStart(12, '0');
  return `${time.slice(0, 8)}-${time.slice(8)}-7${randomUUID().slice(15)}`;
}

const nameOf = ({ tenant, streamId, incarnation }: Incarnation): string =>
  `${tenant}/${streamId}/${incarnation}`;
