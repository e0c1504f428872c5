import { Injectable, type OnModuleDestroy } from '@nestjs/common';
import { DatabaseUnavailable } from '../database/connection.js';
import { EventLog } from '../event-store/log.js';
import { type FeedFilter } from '../event-store/feed-reader.js';
import { type RecordedEvent } from '../event-store/recorded-event.js';
import { ApiError } from '../http/problem.js';
import { notFound } from '../sessions/session-queries.js';
import { type EventAnswer } from './audit.schemas.js';

/** Events that a stream takes from the log at once; a reader that does not read on holds no more of them. */
const BATCH = 100;
/** After a look at the log events gather for so long: a reader costs at most so many queries, whatever is written. */
const GATHER_MS = 20;
/** While the database is away a stream stays open: a browser that is refused once does not come back. */
const RETRY_MS = 1_000;

type TrailFilter = Omit<FeedFilter, 'streamId'>;

interface Session {
  readonly tenant: string;
  readonly sessionId: string;
}

/** A step of a stream: an event with the id under which to come back for the next one, or an id only. */
export interface Step {
  readonly id: string;
  readonly event?: EventAnswer;
}

/**
 * What happened, from the log itself: of one session by version, of a tenant by cursor. A cursor holds a position per
 * lane; positions of a lane become visible in order and without gaps, so nothing is ever missed behind one.
 */
@Injectable()
export class Feed implements OnModuleDestroy {
  private readonly closing = new AbortController();

  constructor(private readonly store: EventLog) {}

  /** The service is about to close: streams end, else it would wait for their clients. */
  onModuleDestroy(): void {
    this.closing.abort();
  }

  /**
   * A page of a tenant's events.
   * @throws ApiError `invalid-cursor`
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
    const cursor = this.store.vectors.encode(tenant, place);
    return { data: events.map((event) => this.present(event)), nextCursor: more ? cursor : null, cursor };
  }

  /**
   * A page of a session's events, of all its incarnations, also when it is deleted.
   * @throws DomainError `session-not-found`
   */
  async trail(
    session: Session,
    { after, limit, filter }: { after: number; limit: number; filter: TrailFilter },
  ): Promise<EventAnswer[]> {
    const stream = { tenant: session.tenant, streamId: session.sessionId };
    const { types, ...others } = filter;
    const isFiltered = Object.values(others).some((one) => one !== undefined);
    const range = { from: after + 1, unknownAsStored: true, ...(types && { types }) };
    const data: EventAnswer[] = [];
    for await (const event of this.store.streams.events(stream, range, isFiltered ? undefined : limit)) {
      if (matches(event, filter)) data.push(this.present(event));
      if (data.length === limit) break;
    }
    if (data.length === 0) await this.mustExist(session);
    return data;
  }

  /** Where a tenant's stream begins. @throws ApiError `invalid-cursor` */
  async placeOf(tenant: string, after: string | undefined): Promise<number[]> {
    if (after === 'end') return this.store.lanes.ends();
    if (after === undefined) return Array.from({ length: this.store.laneCount }, () => 0);
    const place = this.store.vectors.decode(tenant, after);
    if (!place)
      throw new ApiError('invalid-cursor', 'The cursor was not given out for the events of this tenant.');
    return place;
  }

  /** A tenant's events from a place on: what is stored, then what comes, until the reader is gone. */
  async *follow(
    tenant: string,
    from: readonly number[],
    filter: FeedFilter,
    gone: AbortSignal,
  ): AsyncGenerator<Step> {
    const place = [...from];
    const read = (lanes: readonly number[]) =>
      this.store.feed.read(tenant, new Map(lanes.map((lane) => [lane, place[lane] ?? 0])), BATCH, filter);
    const lanes =
      filter.streamId === undefined
        ? [...place.keys()]
        : [this.store.laneOf({ tenant, streamId: filter.streamId })];
    for await (const { events, seen } of this.pages(lanes, gone, read)) {
      for (const event of events) {
        place[event.lane] = event.position;
        yield { id: this.store.vectors.encode(tenant, place), event: this.present(event) };
      }
      // Past its last event a page has seen what the filter passed over.
      const moved = [...seen].filter(([lane, position]) => position > (place[lane] ?? 0));
      for (const [lane, position] of moved) place[lane] = position;
      if (moved.length > 0) yield { id: this.store.vectors.encode(tenant, place) };
    }
  }

  /** A session's events from a version on: what is stored, then what comes, until the reader is gone. */
  async *followSession(
    { tenant, sessionId }: Session,
    after: number,
    filter: TrailFilter,
    gone: AbortSignal,
  ): AsyncGenerator<Step> {
    const stream = { tenant, streamId: sessionId };
    let version = after;
    const read = async () => {
      const range = { from: version + 1, limit: BATCH, unknownAsStored: true };
      const events = await this.store.streams.read(stream, range);
      return { events, more: events.length === BATCH };
    };
    for await (const { events } of this.pages([this.store.laneOf(stream)], gone, read)) {
      for (const event of events) {
        ({ version } = event);
        yield { id: String(version), ...(matches(event, filter) && { event: this.present(event) }) };
      }
    }
  }

  /** @throws DomainError `session-not-found` for a session that never was */
  async mustExist({ tenant, sessionId }: Session): Promise<void> {
    const [version] = await this.store.streams.versions([{ tenant, streamId: sessionId }]);
    if (!version) throw notFound();
  }

  /** Reads when lanes may have grown, the next time when the page before has been taken: a slow reader is not run over. */
  private async *pages<Page extends { readonly more: boolean }>(
    lanes: readonly number[],
    gone: AbortSignal,
    read: (lanes: readonly number[]) => Promise<Page>,
  ): AsyncGenerator<Page> {
    const over = AbortSignal.any([gone, this.closing.signal]);
    const mine = new Set(lanes);
    const grown = new Set(lanes);
    let wake = (): void => undefined;
    // Before the first look, so that what is written meanwhile is not missed.
    const unsubscribe = this.store.wakeUp.subscribe((changed) => {
      for (const lane of changed) if (mine.has(lane)) grown.add(lane);
      if (grown.size > 0) wake();
    });
    const leave = (): void => {
      wake();
    };
    over.addEventListener('abort', leave);
    const pause = (ms: number): Promise<void> =>
      new Promise((resolve) => {
        const timer = setTimeout(resolve, ms);
        wake = () => {
          if (!over.aborted) return;
          clearTimeout(timer);
          resolve();
        };
      });
    try {
      while (!over.aborted) {
        if (grown.size === 0) {
          await new Promise<void>((resolve) => {
            wake = resolve;
          });
          continue;
        }
        const looked = [...grown];
        grown.clear();
        const page = await read(looked).catch((error: unknown) => {
          if (!(error instanceof DatabaseUnavailable)) throw error;
          return undefined;
        });
        if (page) yield page;
        if (!page || page.more) for (const lane of looked) grown.add(lane);
        if (!page?.more) await pause(page ? GATHER_MS : RETRY_MS);
      }
    } finally {
      unsubscribe();
      over.removeEventListener('abort', leave);
    }
  }

  private present({ streamId, lane, position, ...event }: RecordedEvent): EventAnswer {
    return {
      ...event,
      sessionId: streamId,
      position: this.store.positions.encode({ lane, position }),
    } as EventAnswer;
  }
}

function matches({ type, actor, time }: RecordedEvent, filter: TrailFilter): boolean {
  const at = Date.parse(time);
  return (
    (filter.types === undefined || filter.types.includes(type)) &&
    (filter.actor === undefined || filter.actor === actor) &&
    (filter.from === undefined || at >= Date.parse(filter.from)) &&
    (filter.to === undefined || at < Date.parse(filter.to))
  );
}
