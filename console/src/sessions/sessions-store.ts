import { signal } from '@preact/signals';
import { call, follow, type Session } from '../api/client.js';
import { asProblem, isAbort, type Problem } from '../api/problem.js';

export interface SessionFilter {
  readonly q: string;
  readonly status: 'all' | 'active' | 'expired';
  readonly owner: string;
}

const PAGE = 100;
/** Events of a busy tenant come by the hundred; sessions that changed are asked for so seldom. */
const REFRESH_MS = 500;
/** Where the feed may not be read, the newest sessions are asked for so often. */
const POLL_MS = 5_000;
/** Sessions that are asked for one by one at a time; with more than these the list is read anew. */
const MOST_ONE_BY_ONE = 10;

/** The sessions of the tenant that match a filter, from the newest on, kept up to date by the feed of events. */
export class SessionsStore {
  readonly sessions = signal<readonly Session[]>([]);
  readonly problem = signal<Problem | undefined>(undefined);
  readonly isComplete = signal(false);
  readonly isLoaded = signal(false);
  /** Whether changes are seen as they happen. */
  readonly isLive = signal(false);

  private cursor: string | undefined;
  private isLoading = false;
  private readonly ended = new AbortController();
  private readonly changed = new Set<string>();
  private timer: ReturnType<typeof setTimeout> | undefined;

  constructor(readonly filter: SessionFilter) {}

  start(): () => void {
    void this.listen();
    void this.more();
    return () => {
      this.ended.abort();
      clearTimeout(this.timer);
    };
  }

  /** Reads the next page, if there is one. */
  async more(): Promise<void> {
    if (this.isLoading || this.isComplete.value) return;
    this.isLoading = true;
    try {
      const page = await this.page(this.cursor);
      const known = new Set(this.sessions.value.map(({ id }) => id));
      this.sessions.value = [...this.sessions.value, ...page.data.filter(({ id }) => !known.has(id))];
      this.cursor = page.nextCursor ?? undefined;
      this.isComplete.value = page.nextCursor === null;
      this.problem.value = undefined;
      this.isLoaded.value = true;
    } catch (error) {
      if (!isAbort(error)) this.problem.value = asProblem(error);
    } finally {
      this.isLoading = false;
    }
  }

  private page(cursor?: string) {
    return call('get', '/v1/sessions', {
      query: { order: 'desc', limit: PAGE, ...this.filter, ...(cursor !== undefined && { cursor }) },
      signal: this.ended.signal,
    });
  }

  private async listen(): Promise<void> {
    try {
      const { signal: aborted } = this.ended;
      // The place from which the feed is read is kept: after a lost connection nothing of meanwhile is missed.
      const place = await call('get', '/v1/events', { query: { after: 'end', limit: 1 }, signal: aborted });
      this.isLive.value = true;
      await follow('/v1/events', { query: { after: place.cursor }, signal: aborted }, ({ data }) => {
        this.changed.add((data as { sessionId: string }).sessionId);
        this.timer ??= setTimeout(() => void this.refresh(), REFRESH_MS);
      });
    } catch {
      // Keys that see the sessions of one owner alone have no feed of the tenant.
      this.isLive.value = false;
      const poll = async (): Promise<void> => {
        await this.newest().catch(() => undefined);
        if (!this.ended.signal.aborted) this.timer = setTimeout(() => void poll(), POLL_MS);
      };
      this.timer = setTimeout(() => void poll(), POLL_MS);
    }
  }

  private async refresh(): Promise<void> {
    const ids = [...this.changed];
    this.changed.clear();
    const known = new Set(this.sessions.value.map(({ id }) => id));
    const shown = ids.filter((id) => known.has(id));
    try {
      if (ids.length > shown.length || shown.length > MOST_ONE_BY_ONE) await this.newest();
      if (shown.length <= MOST_ONE_BY_ONE) await Promise.all(shown.map((id) => this.refreshOne(id)));
    } catch {
      // What could not be read is read with the next event.
    } finally {
      this.timer = this.changed.size > 0 ? setTimeout(() => void this.refresh(), REFRESH_MS) : undefined;
    }
  }

  private async refreshOne(id: string): Promise<void> {
    const now = await call('get', '/v1/sessions/{id}', { path: { id }, signal: this.ended.signal }).catch(
      (error: unknown) => {
        if (asProblem(error).status === 404) return undefined;
        throw error;
      },
    );
    this.sessions.value = this.sessions.value.flatMap((session) =>
      session.id === id ? (now ? [now] : []) : [session],
    );
  }

  /** Puts what is on the first page now before what is there already. */
  private async newest(): Promise<void> {
    const { data } = await this.page();
    const oldest = data.at(-1);
    const fresh = new Set(data.map(({ id }) => id));
    // What is as new as the page and not on it has been deleted, or does not match any more.
    const rest = this.sessions.value.filter(
      ({ id, createdAt }) => !fresh.has(id) && oldest !== undefined && createdAt < oldest.createdAt,
    );
    this.sessions.value = [...data, ...rest];
    this.isLoaded.value = true;
  }
}
