import { randomUUID } from 'node:crypto';
import { boundedCache } from '../bounded-cache.js';
import { type RedisLink } from '../database/redis-link.js';
import { repeat } from '../housekeeping.js';
import { ApiError } from '../http/problem.js';
import { type Caller } from './caller.js';

/** What one tenant or one key may do at most; what is not given is not limited. */
export interface Limit {
  readonly requestsPerSecond?: number | undefined;
  /** Replies that are generated at the same time. */
  readonly generations?: number | undefined;
  /** Streams of events that are open at the same time. */
  readonly streams?: number | undefined;
}

export interface LimitSettings {
  /** Of each tenant that has none of its own. */
  readonly tenant: Limit;
  /** Of each key, and of each subject of tokens. */
  readonly key: Limit;
  /** A map, because a tenant may be called `constructor`. */
  readonly ofTenants: ReadonlyMap<string, Limit>;
}

type Concurrent = 'generations' | 'streams';
type Counted = Pick<Caller, 'tenant' | 'actor'>;
/** Gives a place back; a second call does nothing. */
export type Leave = () => void;

/** Whom a limit is for, and where it is set. */
interface Holder {
  readonly id: string;
  readonly limit: Limit;
  readonly text: string;
  readonly setting: string;
}

/**
 * Limits of tenants and of keys. They are counted in Redis, for all nodes together, if there is one; without it, and
 * while it is away, each process counts for itself.
 */
export class Limits {
  private readonly rates: Rates;
  private readonly places: Places;
  private readonly isFree: boolean;
  /** By tenant and key. They are looked for at each request. */
  private readonly known = boundedCache<string, readonly Holder[]>(KNOWN_HOLDERS);
  /** How often which limit was reached. */
  readonly refused: Record<keyof Limit, number> = { requestsPerSecond: 0, generations: 0, streams: 0 };

  constructor(
    private readonly settings: LimitSettings,
    redis: RedisLink | null,
  ) {
    this.rates = new Rates(redis);
    this.places = new Places(redis);
    const all = [settings.tenant, settings.key, ...settings.ofTenants.values()];
    // Opens the connection, so that the first replies and streams are counted with those of the other nodes.
    if (all.some(({ generations, streams }) => (generations ?? streams) !== undefined)) redis?.open();
    this.isFree = all.every((limit) => Object.values(limit).every((value) => value === undefined));
  }

  /**
   * Counts a request.
   * @returns undefined at once if nothing has to be asked elsewhere
   * @throws ApiError `rate-limited`
   */
  request(caller: Counted): Promise<void> | undefined {
    if (this.isFree) return undefined;
    const holders = this.holders(caller);
    for (const [index, holder] of holders.entries()) {
      if (holder.limit.requestsPerSecond === undefined) continue;
      const wait = this.take(holder);
      if (typeof wait !== 'number') return this.takeLater(holders.slice(index), wait);
      if (wait > 0) throw this.tooMany(holder, wait);
    }
    return undefined;
  }

  /** @throws ApiError `rate-limited` */
  async enter(kind: Concurrent, caller: Counted): Promise<Leave> {
    if (this.isFree) return () => undefined;
    const taken: Leave[] = [];
    const leave: Leave = () => {
      for (const one of taken.splice(0)) one();
    };
    for (const holder of this.holders(caller)) {
      const most = holder.limit[kind];
      if (most === undefined) continue;
      const place = await this.places.enter(`${kind}:${holder.id}`, most);
      if (place) {
        taken.push(place);
        continue;
      }
      leave();
      this.refused[kind] += 1;
      const what = kind === 'generations' ? 'replies are generated' : 'streams are open';
      throw new ApiError(
        'rate-limited',
        `${most} ${what} for ${holder.text}, which is its limit (${holder.setting}.${kind}): try again when one has ended.`,
        { headers: { 'retry-after': '1' } },
      );
    }
    return leave;
  }

  close(): void {
    this.places.close();
  }

  private take({ id, limit }: Holder): number | Promise<number> {
    return this.rates.take(id, limit.requestsPerSecond ?? Infinity);
  }

  /** @param first the answer that is awaited for the first of them */
  private async takeLater(holders: readonly Holder[], first: Promise<number>): Promise<void> {
    for (const [index, holder] of holders.entries()) {
      if (holder.limit.requestsPerSecond === undefined) continue;
      const wait = await (index === 0 ? first : this.take(holder));
      if (wait > 0) throw this.tooMany(holder, wait);
    }
  }

  private tooMany({ text, setting, limit }: Holder, waitMs: number): ApiError {
    this.refused.requestsPerSecond += 1;
    return new ApiError(
      'rate-limited',
      `More than ${limit.requestsPerSecond} requests a second for ${text} (${setting}.requestsPerSecond).`,
      { headers: { 'retry-after': String(Math.ceil(waitMs / 1_000)) } },
    );
  }

  private holders(caller: Counted): readonly Holder[] {
    const id = `${caller.tenant}/${caller.actor}`;
    let holders = this.known.get(id);
    if (!holders) this.known.set(id, (holders = this.holdersOf(caller)));
    return holders;
  }

  private holdersOf({ tenant, actor }: Counted): readonly Holder[] {
    const { tenant: usual, key, ofTenants } = this.settings;
    const own = ofTenants.get(tenant);
    return [
      { id: `key:${tenant}/${actor}`, limit: key, text: 'this key', setting: 'server.limits.key' },
      {
        id: `tenant:${tenant}`,
        limit: own ?? usual,
        text: `tenant ${tenant}`,
        setting: own ? `tenants.${tenant}.limits` : 'server.limits.tenant',
      },
    ];
  }
}

const KNOWN_HOLDERS = 100_000;
/** Part of a second's requests that a process takes from Redis at once, so that it need not ask for each. */
const STOCK = 1 / 50;
const STOCK_MS = 1_000;

interface Bucket {
  tokens: number;
  at: number;
}
interface Stock {
  left: number;
  until: number;
  /** Until then there is nothing to be had. */
  emptyUntil: number;
  asked: Promise<number> | undefined;
}

/** Token buckets that hold the requests of one second. */
class Rates {
  private readonly buckets = boundedCache<string, Bucket>(KNOWN_HOLDERS);
  private readonly stocks = boundedCache<string, Stock>(KNOWN_HOLDERS);

  constructor(private readonly redis: RedisLink | null) {}

  /** Takes one. @returns 0, or milliseconds until there is one to be had; a promise where Redis has to be asked */
  take(id: string, perSecond: number): number | Promise<number> {
    if (this.redis?.epoch === undefined) return this.takeHere(id, perSecond);
    let stock = this.stocks.get(id);
    if (!stock) this.stocks.set(id, (stock = { left: 0, until: 0, emptyUntil: 0, asked: undefined }));
    const now = performance.now();
    if (stock.left > 0 && now < stock.until) {
      stock.left -= 1;
      return 0;
    }
    if (now < stock.emptyUntil) return stock.emptyUntil - now;
    return this.takeFromRedis(this.redis, id, perSecond, stock);
  }

  private takeHere(id: string, perSecond: number): number {
    const now = performance.now();
    let bucket = this.buckets.get(id);
    if (!bucket) this.buckets.set(id, (bucket = { tokens: perSecond, at: now }));
    bucket.tokens = Math.min(perSecond, bucket.tokens + ((now - bucket.at) * perSecond) / 1_000);
    bucket.at = now;
    if (bucket.tokens < 1) return ((1 - bucket.tokens) * 1_000) / perSecond;
    bucket.tokens -= 1;
    return 0;
  }

  /** Requests that come while Redis is asked wait for its answer and take from what it gives. */
  private async takeFromRedis(
    redis: RedisLink,
    id: string,
    perSecond: number,
    stock: Stock,
  ): Promise<number> {
    for (;;) {
      stock.asked ??= this.ask(redis, id, perSecond, stock).finally(() => {
        stock.asked = undefined;
      });
      const answered = await stock.asked;
      if (answered < 0) return this.takeHere(id, perSecond);
      if (stock.left > 0) {
        stock.left -= 1;
        return 0;
      }
      if (answered > 0) return answered;
    }
  }

  /** @returns 0: the stock was filled; -1: Redis is away; else milliseconds to wait */
  private async ask(redis: RedisLink, id: string, perSecond: number, stock: Stock): Promise<number> {
    const wanted = Math.max(1, Math.ceil(perSecond * STOCK));
    const options = { keys: [`colloquy:rate:${id}`], arguments: [String(perSecond), String(wanted)] };
    const answer = await redis.run((client) => client.eval(TAKE, options));
    if (!Array.isArray(answer)) return -1;
    const [given, wait] = answer.map(Number);
    const now = performance.now();
    stock.left = given ?? 0;
    stock.until = now + STOCK_MS;
    if (stock.left > 0) return 0;
    stock.emptyUntil = now + (wait ?? 0);
    return Math.max(1, wait ?? 0);
  }
}

/** A bucket with the time at which it was filled. Gives as many as are wanted and there, else the time to wait. */
const TAKE = `
  local now = redis.call('TIME')
  local ms = now[1] * 1000 + now[2] / 1000
  local rate, wanted = tonumber(ARGV[1]), tonumber(ARGV[2])
  local known = redis.call('HMGET', KEYS[1], 'tokens', 'at')
  local tokens = tonumber(known[1]) or rate
  tokens = math.min(rate, tokens + math.max(0, ms - (tonumber(known[2]) or ms)) * rate / 1000)
  local given = math.min(wanted, math.floor(tokens))
  tokens = tokens - given
  redis.call('HSET', KEYS[1], 'tokens', tostring(tokens), 'at', tostring(ms))
  redis.call('PEXPIRE', KEYS[1], 2000)
  return { given, math.ceil((1 - tokens) * 1000 / rate) }`;

/** A place is lost so long after its process has last said that it holds it. */
const PLACE_MS = 30_000;
const RENEW_MS = 10_000;

/** Counts what happens at the same time. */
class Places {
  /** By id: the places that this process holds, those that Redis has not granted yet as well. */
  private readonly held = new Map<string, Set<string>>();
  /** What Redis has granted. Renewed before that, a place would be counted against itself. */
  private readonly granted = new Set<string>();
  private readonly stopRenewing: () => void;

  constructor(private readonly redis: RedisLink | null) {
    this.stopRenewing = redis
      ? repeat(
          RENEW_MS,
          () => this.renew(redis),
          () => undefined,
        )
      : () => undefined;
  }

  /** @returns undefined when all places are taken */
  async enter(id: string, most: number): Promise<Leave | undefined> {
    const held = this.held.get(id) ?? new Set();
    if (held.size >= most) return undefined;
    const place = randomUUID();
    held.add(place);
    this.held.set(id, held);
    const { redis } = this;
    const leave: Leave = () => {
      if (!held.delete(place)) return;
      if (held.size === 0 && this.held.get(id) === held) this.held.delete(id);
      this.granted.delete(place);
      void redis?.run((client) => client.zRem(keyOf(id), place));
    };
    if (!redis) return leave;
    const options = { keys: [keyOf(id)], arguments: [place, String(most), String(PLACE_MS)] };
    const answer = await redis.run((client) => client.eval(ENTER, options));
    if (Number(answer ?? 1) === 1) {
      this.granted.add(place);
      return leave;
    }
    leave();
    return undefined;
  }

  close(): void {
    this.stopRenewing();
  }

  private async renew(redis: RedisLink): Promise<void> {
    for (const [id, held] of this.held) {
      const places = [...held].filter((place) => this.granted.has(place));
      if (places.length === 0) continue;
      const options = { keys: [keyOf(id)], arguments: [String(PLACE_MS), ...places] };
      await redis.run((client) => client.eval(RENEW, options));
    }
  }
}

const keyOf = (id: string): string => `colloquy:places:${id}`;

/** By the time of Redis: places that nobody has renewed are free again. */
const ENTER = `
  local now = redis.call('TIME')
  local ms = now[1] * 1000 + math.floor(now[2] / 1000)
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ms)
  if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then return 0 end
  redis.call('ZADD', KEYS[1], ms + tonumber(ARGV[3]), ARGV[1])
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  return 1`;
const RENEW = `
  local now = redis.call('TIME')
  local ms = now[1] * 1000 + math.floor(now[2] / 1000)
  for i = 2, #ARGV do redis.call('ZADD', KEYS[1], ms + tonumber(ARGV[1]), ARGV[i]) end
  redis.call('PEXPIRE', KEYS[1], ARGV[1])
  return #ARGV - 1`;
