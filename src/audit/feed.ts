import { setTimeout } from 'node:timers/promises';
import { Injectable, type OnModuleDestroy } from '@nestjs/common';
import { DatabaseUnavailable } from '../database/connection.js';
import { EventLog } from '../event-store/log.js';
import { type FeedFilter } from '../event-store/feed-reader.js';
import { type Topic } from '../event-store/live-tail.js';
import { TokenOutdated } from '../event-store/moved-positions.js';
import { type RecordedEvent } from '../event-store/recorded-event.js';
import { ApiError } from '../http/problem.js';
import { type SessionAddress } from '../sessions/command-context.js';
import { notFound } from '../sessions/session-commands.js';
import { type EventAnswer } from './audit.schemas.js';

/** Events that a stream reads from the log at once, and so the most that a slow reader holds in memory. */
const BATCH = 100;
/**
 * Pause before a stream tries the database again. The stream stays open, because a browser that is refused does not
 * come back.
 */
const RETRY_MS = 1_000;

/** A trail shows that there was something, also where nobody can tell what. */
const AS_STORED = { unknownAsStored: true, erasedToo: true };

type TrailFilter = Omit<FeedFilter, 'streamId'>;

/** Events that a reader gets at once. */
interface Batch {
  readonly events: readonly RecordedEvent[];
  /** Lane → position up to which the page has looked, also past events that the filter left out. */
  readonly seen?: ReadonlyMap<number, number>;
}

/** A step of a stream: an event with the id from which to resume after it, or such an id alone. */
export interface Step {
  readonly id: string;
  readonly event?: EventAnswer;
}

/**
 * Events from the log: those of a session by version, those of a tenant by cursor. A cursor holds a position per lane.
 * The positions of a lane become visible in order and without gaps, so a reader misses nothing behind its cursor.
 */
@Injectable()
export class Feed implements OnModuleDestroy {
  private readonly closing = new AbortController();

  constructor(private readonly store: EventLog) {}

  /** Ends all streams when the service closes, which would otherwise wait for their clients. */
  onModuleDestroy(): void {
    this.closing.abort();
  }

  /**
   * A page of a tenant's events.
   * @throws ApiError `invalid-cursor`, `position-gone`
   */
  async page(
    tenant: string,
    { after, limit, filter }: { after: string | undefined; limit: number; filter: FeedFilter },
  ): Promise<{ data: EventAnswer[]; nextCursor: string | null; cursor: string }> {
    const place = await this.placeOf(tenant, after);
    const { events, seen, more } = await this.store.feed.read(
      tenant,
      new Map(place.entries()),
      limit,
      filter,
    );
    for (const [lane, position] of seen) place[lane] = position;
    const cursor = this.cursorOf(tenant, place);
    return { data: events.map((event) => this.present(event)), nextCursor: more ? cursor : null, cursor };
  }

  /**
   * A page of the events of all incarnations of a session, also of a deleted one.
   * @throws DomainError `session-not-found`
   */
  async trail(
    session: SessionAddress,
    { after, limit, filter }: { after: number; limit: number; filter: TrailFilter },
  ): Promise<EventAnswer[]> {
    const stream = { tenant: session.tenant, streamId: session.sessionId };
    const { types, ...others } = filter;
    const isFiltered = Object.values(others).some((one) => one !== undefined);
    const range = { from: after + 1, ...AS_STORED, ...(types && { types }) };
    const data: EventAnswer[] = [];
    for await (const event of this.store.streams.events(stream, range, isFiltered ? undefined : limit)) {
      if (matches(event, filter)) data.push(this.present(event));
      if (data.length === limit) break;
    }
    if (data.length === 0) await this.versionOf(session);
    return data;
  }

  /** The positions at which a tenant's stream begins. @throws ApiError `invalid-cursor`, `position-gone` */
  async placeOf(tenant: string, after: string | undefined): Promise<number[]> {
    if (after === 'end') return this.store.lanes.ends();
    if (after === undefined) return Array.from({ length: this.store.laneCount }, () => 0);
    const vector = this.store.vectors.decode(tenant, after);
    if (!vector) return this.placeBefore(tenant, after);
    const { positions, generation } = vector;
    const kept = positions.map((position, lane) =>
      Math.min(position, this.store.generations.keptOf(generation, lane)),
    );
    if (kept.every((position, lane) => position === positions[lane])) return positions;
    throw new ApiError(
      'position-gone',
      'The last events before the cursor are gone, by a failover or a restore of the database. ' +
        'Drop what you have of them, and go on with `after`, or read again from the beginning.',
      { details: { after: this.cursorOf(tenant, kept) } },
    );
  }

  /** The place of a cursor that was given out where the tenant lived before. */
  private async placeBefore(tenant: string, after: string): Promise<number[]> {
    try {
      const place = await this.store.moved.translate(tenant, after);
      if (place) return place;
    } catch (error) {
      if (!(error instanceof TokenOutdated)) throw error;
      throw new ApiError(
        'position-gone',
        'Events before the cursor may be gone, by a failover or a restore of the database that the tenant lived in ' +
          'before. Read again from the beginning.',
        { details: { after: this.cursorOf(tenant, []) } },
      );
    }
    throw new ApiError('invalid-cursor', 'The cursor was not given out for the events of this tenant.');
  }

  private cursorOf(tenant: string, place: readonly number[]): string {
    return this.store.vectors.encode(tenant, place, this.store.generations.current);
  }

  /** The events of a tenant from some positions on, stored ones and then live ones, until the reader disconnects. */
  async *follow(
    tenant: string,
    from: readonly number[],
    filter: FeedFilter,
    gone: AbortSignal,
  ): AsyncGenerator<Step> {
    const place = [...from];
    const { streamId } = filter;
    const lanes = streamId === undefined ? [...place.keys()] : [this.store.laneOf({ tenant, streamId })];
    const read = () =>
      this.store.feed.read(tenant, new Map(lanes.map((lane) => [lane, place[lane] ?? 0])), BATCH, filter);
    for await (const { events, seen = new Map<number, number>() } of this.batches(
      { tenant, streamId },
      gone,
      read,
    )) {
      let hasMoved = false;
      for (const event of events) {
        if (event.position <= (place[event.lane] ?? 0)) continue;
        place[event.lane] = event.position;
        hasMoved = !matches(event, filter);
        if (!hasMoved) yield { id: this.cursorOf(tenant, place), event: this.present(event) };
      }
      // Events that the filter left out have been seen as well.
      for (const [lane, position] of seen) {
        if (position <= (place[lane] ?? 0)) continue;
        place[lane] = position;
        hasMoved = true;
      }
      if (hasMoved) yield { id: this.cursorOf(tenant, place) };
    }
  }

  /** The events of a session from a version on, stored ones and then live ones, until the reader disconnects. */
  async *followSession(
    { tenant, sessionId }: SessionAddress,
    after: number,
    filter: TrailFilter,
    gone: AbortSignal,
  ): AsyncGenerator<Step> {
    const stream = { tenant, streamId: sessionId };
    let version = after;
    const read = async () => {
      const range = { from: version + 1, limit: BATCH, ...AS_STORED };
      const events = await this.store.streams.read(stream, range);
      return { events, more: events.length === BATCH };
    };
    for await (const { events } of this.batches(stream, gone, read)) {
      for (const event of events) {
        if (event.version <= version) continue;
        ({ version } = event);
        yield { id: String(version), ...(matches(event, filter) && { event: this.present(event) }) };
      }
    }
  }

  /** @throws DomainError `session-not-found` for a session that has never existed */
  private async versionOf({ tenant, sessionId }: SessionAddress): Promise<number> {
    const [version = 0] = await this.store.streams.versions([{ tenant, streamId: sessionId }]);
    if (version === 0) throw notFound();
    return version;
  }

  /** @throws DomainError `session-not-found`; ApiError `position-gone` for a version that the session has not reached */
  async mustReach(session: SessionAddress, after: number): Promise<void> {
    const version = await this.versionOf(session);
    if (after <= version) return;
    // Nothing was ever given out behind the end of the log, unless the log was set back.
    throw new ApiError('position-gone', `The session ends at version ${version}: go on after that.`, {
      details: { after: version },
    });
  }

  /**
   * Batches of stored events, which `read` gives from where the reader stands, and then of live events, some of which
   * the reader may have already. The next batch is read when the one before has been taken. A reader that is too slow
   * for live events reads stored ones again.
   */
  private async *batches(
    topic: Topic,
    gone: AbortSignal,
    read: () => Promise<Batch & { readonly more: boolean }>,
  ): AsyncGenerator<Batch> {
    const over = AbortSignal.any([gone, this.closing.signal]);
    const isOver = (): boolean => over.aborted;
    const live = this.store.live.subscribe(topic);
    // Where the reader stands may be gone in another generation of the log, and a tenant that is absent goes on in
    // another one: the reader has to come again, and is told then.
    const { absences, generations } = this.store;
    const { current } = generations;
    const isSame = (): boolean => generations.current === current && !absences.has(topic.tenant);
    const leave = (): void => {
      live.end();
    };
    over.addEventListener('abort', leave);
    try {
      while (!over.aborted && isSame()) {
        // Live events are followed before stored ones are read, so that events written meanwhile are not missed.
        let more = await this.retried(over, () => live.begin().then(() => true));
        while (more) {
          const page = await this.retried(over, read);
          if (!isSame()) return;
          if (page) yield page;
          more = page?.more;
        }
        for (let events = await live.take(); events && !isOver(); events = await live.take()) {
          if (!isSame()) return;
          yield { events };
        }
      }
    } finally {
      live.end();
      over.removeEventListener('abort', leave);
    }
  }

  private present({ streamId, lane, position, ...event }: RecordedEvent): EventAnswer {
    return {
      ...event,
      sessionId: streamId,
      position: this.store.positionOf({ lane, position }),
      logGeneration: this.store.generations.of({ lane, position }),
    } as EventAnswer;
  }

  /** Repeats the work as long as the database cannot be reached; undefined when the reader disconnected meanwhile. */
  private async retried<T>(over: AbortSignal, work: () => Promise<T>): Promise<T | undefined> {
    while (!over.aborted) {
      try {
        return await work();
      } catch (error) {
        if (!(error instanceof DatabaseUnavailable)) throw error;
        this.store.telemetry.emit('failed', { what: 'reading the feed for a live reader', error });
        // `setTimeout` rejects only when the reader disconnects.
        await setTimeout(RETRY_MS, undefined, { signal: over }).catch(() => undefined);
      }
    }
    return undefined;
  }
}

function matches({ streamId, type, actor, time }: RecordedEvent, filter: FeedFilter): boolean {
  const at = Date.parse(time);
  return (
    (filter.streamId === undefined || filter.streamId === streamId) &&
    (filter.types === undefined || filter.types.includes(type)) &&
    (filter.actor === undefined || filter.actor === actor) &&
    (filter.from === undefined || at >= Date.parse(filter.from)) &&
    (filter.to === undefined || at < Date.parse(filter.to))
  );
}
