import { signal } from '@preact/signals';
import { call, type Event } from '../api/client.js';
import { asProblem, isAbort, type Problem } from '../api/problem.js';

const PAGE = 200;

/**
 * The events of a session by version. Versions have no gaps, so a list of all of them can be shown when nothing but the last
 * version is known; pages are read when somebody looks at them.
 */
export class TrailStore {
  /** The last version; 0 until it is known. */
  readonly end = signal(0);
  readonly problem = signal<Problem | undefined>(undefined);
  private readonly events = new Map<number, Event>();
  /** Another object with each change, so that whoever has looked looks again; a copy of the map would take too long. */
  private readonly known = signal({ events: this.events });
  private readonly pages = new Map<number, Promise<void>>();

  constructor(
    private readonly id: string,
    private readonly signal: AbortSignal,
  ) {}

  /** The event of a version, if it was read. */
  at(version: number): Event | undefined {
    return this.known.value.events.get(version);
  }

  /** Reads what is missing of a range of versions, both ends inclusive. */
  async need(from: number, to: number): Promise<void> {
    const pages = [];
    for (let page = pageOf(from); page <= pageOf(to); page += 1) pages.push(this.page(page));
    await Promise.all(pages);
  }

  async read(version: number): Promise<Event | undefined> {
    if (!this.events.has(version)) await this.need(version, version);
    return this.events.get(version);
  }

  /** Takes in an event that has just happened. */
  add(event: Event): void {
    this.events.set(event.version, event);
    this.end.value = Math.max(this.end.value, event.version);
    this.changed();
  }

  /** Finds the last version of a session that cannot be asked for it, because it was deleted. @throws Problem */
  async findEnd(): Promise<void> {
    let low = 0;
    let high = PAGE;
    while ((await this.after(high, 1)).length > 0) {
      low = high;
      high *= 4;
    }
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if ((await this.after(middle, 1)).length > 0) low = middle;
      else high = middle;
    }
    const last = (await this.after(low, 1))[0];
    if (last) this.add(last);
  }

  /** All events, the first one first. @throws Problem */
  async all(): Promise<Event[]> {
    await this.need(1, this.end.value);
    if (this.problem.value) throw this.problem.value;
    return [...this.events.values()].sort((a, b) => a.version - b.version);
  }

  /** Forgets what was read, because an erasure has changed it. */
  forget(): void {
    this.pages.clear();
    this.events.clear();
    this.changed();
  }

  private changed(): void {
    this.known.value = { events: this.events };
  }

  private page(page: number): Promise<void> {
    const from = page * PAGE + 1;
    const to = Math.min(from + PAGE - 1, this.end.value);
    let isWhole = true;
    for (let version = from; version <= to; version += 1) isWhole &&= this.events.has(version);
    if (isWhole) return Promise.resolve();
    const running = this.pages.get(page) ?? this.readPage(page);
    this.pages.set(page, running);
    return running;
  }

  private async readPage(page: number): Promise<void> {
    try {
      for (const event of await this.after(page * PAGE, PAGE)) this.events.set(event.version, event);
      this.problem.value = undefined;
      this.changed();
    } catch (error) {
      if (!isAbort(error)) this.problem.value = asProblem(error);
    } finally {
      this.pages.delete(page);
    }
  }

  private async after(after: number, limit: number): Promise<Event[]> {
    const { data } = await call('get', '/v1/sessions/{id}/events', {
      path: { id: this.id },
      query: { after, limit },
      signal: this.signal,
    });
    return data;
  }
}

const pageOf = (version: number): number => Math.floor((version - 1) / PAGE);
