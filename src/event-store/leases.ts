import { type Pool } from 'pg';
import { available, connect } from '../database/connection.js';
import { alignedInterval } from './aligned-interval.js';
import { type NewLease } from './append.js';
import { endOfTurn } from './end-of-turn.js';
import { type Telemetry } from './telemetry.js';
import { announceRelease, QUIET_MS, type WakeUp } from './wake-up.js';

/** How long a lease lasts without renewal, and so the longest time for which a dead node blocks its work. */
export const LEASE_MS = 6_000;
const RENEW_MS = 1_500;
/**
 * The same in a quiet log, where there is no work that could be blocked. Whoever notices that something happens ends what is
 * longer than `LEASE_MS` from then on (`rouse`).
 */
export const QUIET_LEASE_MS = 3 * QUIET_MS;

/**
 * SQL condition: an owner holds a lease, and will for at least `forMs` milliseconds more. For statements that write
 * under a lease; the arguments are SQL expressions.
 */
export const leaseHeldBy = (lease: {
  readonly name: string;
  readonly owner: string;
  readonly forMs: string;
}): string =>
  `exists (select from lease l where l.name = ${lease.name} and l.owner = ${lease.owner}
             and l.until > colloquy_now() + ${lease.forMs} * interval '1 millisecond')`;

/** SQL condition: somebody holds the lease. The clock is asked once per statement, so that an index can be used. */
export const leaseStands = (name: string): string =>
  `exists (select from lease l where l.name = ${name} and l.until > (select colloquy_now()))`;

/**
 * SQL of a statement that lets the leases of others end in `LEASE_MS`. Whoever holds one and lives renews it before: it
 * hears of the same append, or of the announcement.
 *
 * @param then what is selected
 */
const shorten = (then: string): string =>
  `with long as (
     select name from lease
     where owner <> $1::uuid and until > colloquy_now() + $2::bigint * interval '1 millisecond' order by name for update
   ), shortened as (
     update lease l set until = colloquy_now() + $2::bigint * interval '1 millisecond' from long where l.name = long.name
   )
   select ${then}`;

/** SQL for how many leases with each of these prefixes are held. */
const counts = (prefixes: string): string =>
  `select p.prefix as name, count(*) as count
   from unnest(${prefixes}::text[]) as p (prefix) join lease l on starts_with(l.name, p.prefix)
   where l.until > colloquy_now() group by p.prefix`;

/** Ends all leases. Only for a database that no other process can be using: they belong to a process that is gone. */
export async function forgetLeases(url: string): Promise<void> {
  const client = await connect(url, 'start');
  await client.query('delete from lease').finally(() => client.end());
}

/**
 * The leases that this node holds, renewed together by one statement. The database clock decides when a lease is over.
 *
 * Holding a lease here is a hint, not a proof: a process that was suspended learns late that its leases ran out.
 * Whoever writes under a lease must therefore also fence the write (by a compare-and-set, a version or an epoch).
 *
 * In a quiet log leases are long and renewed seldom (ADR 54), unless this node has begun something with a lease of its own.
 */
export class Leases {
  private readonly held = new Map<string, number>();
  private readonly stopBeating: () => void;
  private readonly beats = new Set<() => Promise<void>>();
  private beating: Promise<void> | undefined;
  /** Whether something has changed during the beat in progress, which may have looked before. */
  private beatsAgain = false;
  private readonly stopListening: () => void;
  private readonly stopWatching: () => void;
  private closed = false;
  /** Whether somebody has noticed that something happens in a quiet log, and the leases of others are still long. */
  private mustShorten = false;
  /** When the nodes were last said to change, by `performance.now()`; at first the start of this one. */
  private rousedAt = performance.now();
  /** When the last renewal began, and whether all that is held since was taken for long. */
  private renewed = { at: -Infinity, isLong: false };
  /** Those of the held leases that began with an append: whoever waits for what they stand for must not wait for long. */
  private readonly adopted = new Set<string>();
  /** The renewal statement in flight. */
  private renewing: Promise<unknown> | undefined;
  private readonly asked = new Set<string>();
  /** All prefixes that were ever asked for: the renewal counts them along, for the work of its beat. */
  private readonly prefixes = new Set<string>();
  private counted: ReadonlyMap<string, number> = new Map();
  private counting: Promise<Map<string, number>> | undefined;

  constructor(
    private readonly pool: Pool,
    /** UUID of this process. */
    readonly owner: string,
    private readonly wakeUp: WakeUp,
    private readonly telemetry: Telemetry,
  ) {
    this.stopListening = wakeUp.onRelease((released) => {
      if (released === owner || this.closed) return;
      this.rousedAt = performance.now();
      if (this.beats.size + this.held.size > 0) this.beatAnew();
    });
    this.stopWatching = wakeUp.onStir(() => {
      if (this.closed || this.held.size === 0) return;
      this.mustShorten = true;
      this.beatAnew();
    });
    this.stopBeating = alignedInterval(RENEW_MS, () => {
      const { at, isLong } = this.renewed;
      if (!isLong || !this.isQuiet || wakeUp.isNewPeriod(at)) void this.beat();
    });
  }

  /**
   * Tells the other nodes that something changes among them, so that they renew their leases and divide the work anew at
   * once, and sees to it that those which do not answer lose theirs soon.
   */
  async rouse(): Promise<void> {
    this.rousedAt = performance.now();
    await this.shortenOthers(announceRelease('$1::text'));
  }

  private get isQuiet(): boolean {
    return (
      this.adopted.size === 0 &&
      this.wakeUp.isQuiet &&
      performance.now() - this.rousedAt > this.wakeUp.quietMs
    );
  }

  private async shortenOthers(then: string): Promise<void> {
    await available(() => this.pool.query(shorten(then), [this.owner, LEASE_MS]));
  }

  /** Describes a lease that an append is to begin. After the append, call `adopt`. */
  wanted(name: string): NewLease {
    return { name, owner: this.owner, ms: LEASE_MS };
  }

  /**
   * Starts to renew a lease that began with an append of this process. Its epoch is unknown and cannot fence writes.
   */
  adopt(name: string): void {
    this.held.set(name, 0);
    this.adopted.add(name);
    this.renewed.isLong = false;
  }

  /** Takes those of the leases that are free. Returns the epochs of all that this node holds now. */
  async take(names: readonly string[]): Promise<Map<string, number>> {
    const taken = await this.takeRows(names);
    for (const name of names) {
      const epoch = taken.get(name);
      if (epoch === undefined) this.forget(name);
      else this.held.set(name, epoch);
    }
    return taken;
  }

  private async takeRows(names: readonly string[]): Promise<Map<string, number>> {
    if (names.length === 0) return new Map();
    const { rows } = await available(() =>
      this.pool.query<{ name: string; epoch: number }>({
        name: 'lease_take',
        text: 'select name, epoch from lease_take($1, $2, $3)',
        values: [[...names].sort(), this.owner, LEASE_MS],
      }),
    );
    // In a quiet log too: the next beat comes soon then, and renews all for long.
    this.renewed.isLong = false;
    return new Map(rows.map(({ name, epoch }) => [name, epoch]));
  }

  /** Takes leases like `takeRows`, and counts for the work of this beat in the same statement. */
  private async renewRows(names: readonly string[]): Promise<Map<string, number>> {
    if (names.length === 0) return new Map();
    const isLong = this.isQuiet;
    this.renewed = { at: performance.now(), isLong };
    const prefixes = [...this.prefixes];
    const { rows } = await available(() =>
      this.pool.query<{ name: string; epoch: number | null; count: number | null }>({
        name: 'lease_renew',
        text: `select name, epoch, null::bigint as count from lease_take($1, $2, $3)
               union all select name, null, count from (${counts('$4')}) as c`,
        values: [[...names].sort(), this.owner, isLong ? QUIET_LEASE_MS : LEASE_MS, prefixes],
      }),
    );
    const counted = new Map(prefixes.map((prefix) => [prefix, 0]));
    const taken = new Map<string, number>();
    for (const { name, epoch, count } of rows) {
      if (epoch !== null) taken.set(name, epoch);
      if (count !== null) counted.set(name, count);
    }
    this.counted = counted;
    return taken;
  }

  /** Releases leases at once, so that nobody has to wait until they run out. */
  release(names: readonly string[]): Promise<void> {
    return this.giveUp(names, 'null');
  }

  /**
   * Releases leases and tells the other nodes, which look for free ones at once. Without it they would at their next
   * beat, and their work would rest for so long: read models longer than a strong read waits.
   */
  handOver(names: readonly string[]): Promise<void> {
    return this.giveUp(names, announceRelease('$2::text'));
  }

  private async giveUp(names: readonly string[], announcement: string): Promise<void> {
    for (const name of names) this.forget(name);
    // A renewal in flight still names these leases and would insert their rows again after the deletion.
    await this.renewing;
    await available(() =>
      this.pool.query(
        `with own as (
           select name from lease where name = any ($1) and owner = $2::uuid order by name for update
         ), gone as (delete from lease l using own where l.name = own.name returning l.name)
         select ${announcement} where exists (select from gone)`,
        [names, this.owner],
      ),
    );
  }

  /** The epoch of a lease that this node believes to hold. */
  epochOf(name: string): number | undefined {
    return this.held.get(name);
  }

  /** Runs `work` after every renewal. Returns a function that stops this. */
  onBeat(work: () => Promise<void>): () => void {
    this.beats.add(work);
    return () => this.beats.delete(work);
  }

  /**
   * Counts the nodes that hold a lease with this prefix. On a beat the renewal has counted them, else calls in the same
   * turn of the event loop share one query.
   */
  async count(prefix: string): Promise<number> {
    const counted = this.counted.get(prefix);
    if (counted !== undefined) return counted;
    this.prefixes.add(prefix);
    this.asked.add(prefix);
    this.counting ??= endOfTurn().then(() => this.countAsked());
    return (await this.counting).get(prefix) ?? 0;
  }

  private async countAsked(): Promise<Map<string, number>> {
    const prefixes = [...this.asked];
    this.asked.clear();
    this.counting = undefined;
    const { rows } = await available(() =>
      this.pool.query<{ name: string; count: number }>({
        name: 'lease_counts',
        text: counts('$1'),
        values: [prefixes],
      }),
    );
    return new Map(rows.map((row) => [row.name, row.count]));
  }

  /**
   * Whether a node holds a lease with this prefix, or held one up to `graceMs` ago without releasing it: such a node
   * may only be suspended and come back.
   */
  async wasHeld(prefix: string, graceMs: number): Promise<boolean> {
    const { rowCount } = await available(() =>
      this.pool.query({
        name: 'lease_was_held',
        text: `select from lease where starts_with(name, $1)
                 and until > colloquy_now() - $2::bigint * interval '1 millisecond' limit 1`,
        values: [prefix, graceMs],
      }),
    );
    return rowCount === 1;
  }

  /** Returns those of the leases that any node holds. */
  async standing(names: readonly string[]): Promise<Set<string>> {
    const { rows } = await available(() =>
      this.pool.query<{ name: string }>({
        name: 'lease_standing',
        text: 'select name from lease where name = any ($1) and until > colloquy_now()',
        values: [names],
      }),
    );
    return new Set(rows.map(({ name }) => name));
  }

  async close(): Promise<void> {
    this.closed = true;
    this.stopBeating();
    this.stopListening();
    this.stopWatching();
    await this.beating;
    if (this.held.size === 0) return;
    await this.handOver([...this.held.keys()]).catch(
      this.telemetry.failed('the release of leases at the end'),
    );
  }

  /** Deletes the rows of leases that were not renewed for a day, which dead nodes left behind. */
  async prune(): Promise<void> {
    await available(() =>
      this.pool.query(`delete from lease where until < colloquy_now() - interval '1 day'`),
    );
  }

  private forget(name: string): void {
    this.held.delete(name);
    this.adopted.delete(name);
  }

  /** A beat that begins now or, if there is one in progress, after it. */
  private beatAnew(): void {
    if (this.beating) this.beatsAgain = true;
    else void this.beat();
  }

  private beat(): Promise<void> {
    return (this.beating ??= this.renew()
      .catch(this.telemetry.failed('the renewal of leases'))
      .finally(() => {
        this.beating = undefined;
        if (!this.beatsAgain || this.closed) return;
        this.beatsAgain = false;
        void this.beat();
      }));
  }

  private async renew(): Promise<void> {
    if (this.mustShorten) {
      // What fails is tried again by the next beat, and must not keep this node from renewing its own.
      await this.shortenOthers('1').then(
        () => (this.mustShorten = false),
        this.telemetry.failed('the end of long leases'),
      );
    }
    const names = [...this.held.keys()];
    const renewal = this.renewRows(names);
    this.renewing = renewal.catch(() => undefined); // told by `beat`, which waits for the renewal itself
    const taken = await renewal.finally(() => (this.renewing = undefined));
    for (const name of names) {
      // A lease that was released during the renewal stays released.
      if (!this.held.has(name)) continue;
      const epoch = taken.get(name);
      if (epoch !== undefined) this.held.set(name, epoch);
      else {
        this.forget(name);
        this.telemetry.emit('leaseLost', { name });
      }
    }
    // All work runs to its end even when some of it fails: no lease may be taken after the last beat was awaited.
    const works = await Promise.allSettled([...this.beats].map((work) => work())).finally(() => {
      this.counted = new Map();
    });
    for (const work of works) {
      if (work.status === 'rejected')
        this.telemetry.emit('failed', { what: 'the balancing of lanes among nodes', error: work.reason });
    }
  }
}
