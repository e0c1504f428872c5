import {
  type ConsumedEvent,
  placeOf,
  type Placed,
  sealedIn,
  toEvent,
  type Truncation,
  truncationOf,
  type UnknownEvent,
} from './contract.js';
import { type EventApi, fetchEvents, lastVersionBefore } from './event-api.js';
import { type IncomingMessage } from './group-member.js';
import { type KeyRing, type SealedRecord } from './key-ring.js';
import { type Place, type Places, sessionKey } from './places.js';

/** How much is handed to `apply` at once: one transaction. A single event may be larger than `bytes`. */
export interface PageLimits {
  readonly events: number;
  /** Size of the events' data as JSON. */
  readonly bytes: number;
}

export interface ApplyOptions<Tx> {
  readonly places: Places<Tx>;
  readonly apply: (events: readonly (ConsumedEvent | UnknownEvent)[], tx: Tx) => Promise<void>;
  readonly truncated?: ((sessions: readonly TruncatedSession[], tx: Tx) => Promise<void>) | undefined;
  readonly api?: EventApi | undefined;
  /** Opens sealed values; without it they stay sealed. */
  readonly keys?: KeyRing | undefined;
  readonly page: PageLimits;
  /** False once another consumer has the partition and applies its records. */
  readonly isOurs: () => boolean;
}

/** A session of which events were applied that are gone. */
export interface TruncatedSession {
  readonly tenant: string;
  readonly sessionId: string;
  /** The last version that is kept; 0: none is. */
  readonly version: number;
  /** The last version that was applied. */
  readonly applied: number;
}

interface Candidate {
  /** That of the record, or of the one before which the event was missing. */
  readonly place: Placed;
  readonly event: ConsumedEvent | UnknownEvent;
  readonly bytes: number;
}

interface PlacedRecord {
  readonly place: Placed;
  readonly message: IncomingMessage;
}

/**
 * Applies records and the events that are missing before them, page by page. Each page moves the places of its sessions
 * in the transaction of its effect, so after an error the next call goes on behind the last page that succeeded.
 * However large a gap is, only one page and one answer of the service are in memory besides the records.
 * @returns false when another consumer got the partition before all records were applied
 */
export async function applyRecords<Tx>(
  options: ApplyOptions<Tx>,
  messages: readonly IncomingMessage[],
): Promise<boolean> {
  let events: IncomingMessage[] = [];
  for (const message of messages) {
    const truncation = truncationOf(message);
    if (!truncation) {
      events.push(message);
      continue;
    }
    if (!(await applyEvents(options, events))) return false;
    events = [];
    await truncate(options, truncation);
  }
  return applyEvents(options, events);
}

/** Sessions that are looked at together after the log was set back. */
const TRUNCATED_AT_ONCE = 100;

/**
 * Moves the places of sessions back whose last events are gone: others come with the same versions. A session that is
 * at its place again takes no part, so a repetition changes nothing.
 */
async function truncate<Tx>(
  { places, api, truncated, isOurs }: ApplyOptions<Tx>,
  truncation: Truncation,
): Promise<void> {
  const { lane, from, generation } = truncation;
  const sessions = await places.behind(truncation);
  for (let start = 0; start < sessions.length && isOurs(); start += TRUNCATED_AT_ONCE) {
    const some = sessions.slice(start, start + TRUNCATED_AT_ONCE);
    const kept = new Map<string, number>();
    for (const session of some)
      kept.set(sessionKey(session), await lastVersionBefore(api, session, session.version, generation));
    await places.transaction(some, async (tx, last) => {
      const cut = some
        .map(({ tenant, sessionId }) => ({
          tenant,
          sessionId,
          version: kept.get(sessionKey({ tenant, sessionId })) ?? 0,
          applied: last.get(sessionKey({ tenant, sessionId })) ?? 0,
        }))
        .filter(({ version, applied }) => version < applied);
      if (cut.length > 0) await truncated?.(cut, tx);
      return new Map<string, Place>(
        cut.map((session) => [
          sessionKey(session),
          { version: session.version, lane, position: from - 1, generation },
        ]),
      );
    });
  }
}

async function applyEvents<Tx>(
  options: ApplyOptions<Tx>,
  messages: readonly IncomingMessage[],
): Promise<boolean> {
  let page: Candidate[] = [];
  let bytes = 0;
  // Gaps are fetched outside of the transactions, which would otherwise hold their locks until the service has
  // answered.
  for await (const candidate of unapplied(options, messages)) {
    const isFull = page.length >= options.page.events || bytes + candidate.bytes > options.page.bytes;
    if (page.length > 0 && isFull) {
      if (!options.isOurs()) return false;
      await applyPage(options, page);
      page = [];
      bytes = 0;
    }
    page.push(candidate);
    bytes += candidate.bytes;
  }
  if (!options.isOurs()) return false;
  if (page.length > 0) await applyPage(options, page);
  return true;
}

/**
 * The records that are not applied yet, and the missing events before them: session by session, each session in order
 * and without gaps.
 */
async function* unapplied<Tx>(
  { places, api, keys, page }: ApplyOptions<Tx>,
  messages: readonly IncomingMessage[],
): AsyncGenerator<Candidate> {
  const sessions = bySession(messages);
  const before = await places.read([...sessions.values()].flatMap(([first]) => (first ? [first.place] : [])));
  if (keys) {
    const fresh = [...sessions].flatMap(([key, records]) =>
      records.filter(({ place }) => place.version > (before.get(key) ?? 0)),
    );
    await keys.prepare(fresh.flatMap((record) => sealedRecord(record) ?? []));
  }
  for (const [key, records] of sessions) {
    let version = before.get(key) ?? 0;
    for (const record of records) {
      const { place, message } = record;
      if (place.version <= version) continue;
      // A record beyond the next version shows a gap, and one without an event refers to data too large for the topic.
      const event = place.version === version + 1 ? await eventOf(record, keys) : undefined;
      if (event) yield { event, place, bytes: message.value?.length ?? 0 };
      else {
        for await (const fetched of fetchEvents(api, place, version, page.bytes))
          yield { event: fetched, place, bytes: Buffer.byteLength(JSON.stringify(fetched.data)) };
      }
      version = place.version;
    }
  }
}

async function eventOf(
  record: PlacedRecord,
  keys: KeyRing | undefined,
): Promise<ConsumedEvent | UnknownEvent | undefined> {
  const sealed = keys && sealedRecord(record);
  return toEvent(record.message, sealed && (await keys.open(sealed)));
}

function sealedRecord({ place, message }: PlacedRecord): SealedRecord | undefined {
  const sealed = sealedIn(message);
  return sealed && { ...sealed, generation: place.generation, cell: message.headers['ce_cell'] };
}

function bySession(messages: readonly IncomingMessage[]): Map<string, PlacedRecord[]> {
  const sessions = new Map<string, PlacedRecord[]>();
  for (const message of messages) {
    const place = placeOf(message);
    const key = sessionKey(place);
    const known = sessions.get(key);
    if (known) known.push({ place, message });
    else sessions.set(key, [{ place, message }]);
  }
  return sessions;
}

async function applyPage<Tx>(
  { places, apply }: ApplyOptions<Tx>,
  candidates: readonly Candidate[],
): Promise<void> {
  const sessions = new Map(candidates.map(({ event }) => [sessionKey(event), event]));
  await places.transaction([...sessions.values()], async (tx, last) => {
    const fresh: (ConsumedEvent | UnknownEvent)[] = [];
    const moved = new Map<string, Place>();
    for (const { event, place } of candidates) {
      const key = sessionKey(event);
      const version = moved.get(key)?.version ?? last.get(key) ?? 0;
      // Another consumer has applied the event since the places were read.
      if (event.version <= version) continue;
      // Places only grow, and candidates begin right behind the place that was read. A gap here means that the store of
      // places has lost a place, and applying the event would skip the ones before it.
      if (event.version > version + 1) throw new Error(`the place of ${key} went back to ${version}`);
      fresh.push(event);
      moved.set(key, { ...place, version: event.version });
    }
    if (fresh.length > 0) await apply(fresh, tx);
    return moved;
  });
}
