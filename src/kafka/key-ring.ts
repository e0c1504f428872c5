import { boundedCache } from '../bounded-cache.js';
import { type SealedPayload } from '../event-store/payload-codec.js';
import { unseal } from '../event-store/sealing/sealed-bytes.js';
import { suspendClock } from '../suspend-clock.js';
import { ask, type EventApi } from './event-api.js';
import { sessionKey } from './places.js';

/** The Colloquy service, which is asked for the keys of sealed values. */
export interface KeyApi extends EventApi {
  /** In place of the global `fetch`, for a proxy or certificates of one's own. */
  readonly fetch?: typeof fetch | undefined;
}

/** Something sealed, and where it comes from. */
export type SealedRecord = SealedPayload & {
  readonly keyId: string;
  /** The generation of the log in which it was appended, and the cell, unless it is the first. */
  readonly generation: number;
  readonly cell: string | undefined;
};

/** No key is kept for longer, whatever the service says: an erasure reaches every consumer within this time. */
const KEPT_MS = 60_000;
/** Keys that are kept at most; those that were used last. */
const REMEMBERED = 10_000;
/** Keys that are fetched at the same time. */
const AT_ONCE = 8;

/** A key, or null for one that was destroyed. */
interface Held {
  readonly key: Buffer | null;
}

/** Keys of sealed values, fetched from the service and kept in memory for at most a minute. */
export class KeyRing {
  private readonly held;

  /** @param now milliseconds; for tests */
  constructor(
    private readonly api: KeyApi,
    private readonly now: () => number = suspendClock,
  ) {
    // What has run out also leaves the memory, although nobody asks for it again.
    this.held = boundedCache<string, Held>(REMEMBERED, {
      ...{ ttl: KEPT_MS, ttlAutopurge: true, ttlResolution: 0 },
      perf: { now },
    });
  }

  /**
   * Fetches the keys that are not at hand, several at a time, so that opening these records need not wait for each of them
   * in turn.
   * @throws Error when the service cannot be asked
   */
  async prepare(records: readonly SealedRecord[]): Promise<void> {
    const missing = [...new Map(records.map((record) => [record.keyId, record])).values()];
    const next = missing.filter(({ keyId }) => !this.held.has(keyId)).values();
    const work = async (): Promise<void> => {
      for (const record of next) await this.fetchKey(record);
    };
    await Promise.all(Array.from({ length: AT_ONCE }, work));
  }

  /**
   * @returns the data; null when its key was destroyed; undefined when the log has the event no longer
   * @throws NotAuthentic; Error when the service cannot be asked, or does not know the event
   */
  async open(record: SealedRecord): Promise<Record<string, unknown> | null | undefined> {
    const held = this.held.get(record.keyId) ?? (await this.fetchKey(record));
    if (!held) return undefined;
    return held.key && (JSON.parse(unseal(record, held.key).toString()) as Record<string, unknown>);
  }

  close(): void {
    this.held.clear();
  }

  /** @returns undefined when the log has the event no longer */
  private async fetchKey(record: SealedRecord): Promise<Held | undefined> {
    const { tenant, streamId, version, keyId } = record;
    const path = `/v1/keys/${keyId}?session=${encodeURIComponent(streamId)}&version=${version}`;
    // The key counts as of the moment when it was asked for: it may be destroyed while the answer is on its way.
    const start = this.now();
    // A cache in between would add its minute to this one.
    const headers = { 'cache-control': 'no-cache' };
    const response = await ask(this.api, tenant, path, { fetch: this.api.fetch, headers });
    const answer = (await response.json().catch(() => ({}))) as KeyAnswer;
    if (response.status === 200 && answer.key !== undefined) {
      const ttl = Math.min(KEPT_MS, Math.floor(1_000 * (answer.maxAgeSeconds ?? Infinity)));
      return this.hold(keyId, { key: Buffer.from(answer.key, 'base64') }, { start, ttl });
    }
    if (response.status === 410 && answer.code === 'key-destroyed')
      return this.hold(keyId, { key: null }, { start, ttl: KEPT_MS });
    if (response.status === 404 && answer.code === 'key-not-found' && isGone(record, answer))
      return undefined;
    const what = `version ${version} of ${sessionKey({ tenant, sessionId: streamId })}`;
    throw new Error(
      `the key of ${what} could not be fetched: ${this.api.url}${path} answered ${response.status} ${answer.code ?? ''}`,
    );
  }

  private hold(keyId: string, held: Held, { start, ttl }: { start: number; ttl: number }): Held {
    if (ttl > 0) this.held.set(keyId, held, { start, ttl });
    return held;
  }
}

/** A key, or a problem; of `key-not-found` it says of which log. */
interface KeyAnswer {
  readonly key?: string;
  readonly maxAgeSeconds?: number;
  readonly code?: string;
  readonly logGeneration?: number;
  readonly cell?: string;
}

/**
 * Whether the log was set back since the event was published, or its tenant has moved without it: then nobody will ever
 * have the key, and the topic goes on without the event. Else the service is that of another log, or the topic is, and a
 * consumer that went on would pass over events.
 */
const isGone = ({ generation, cell }: SealedRecord, { logGeneration = 0, cell: asked }: KeyAnswer): boolean =>
  generation < logGeneration || cell !== asked;
