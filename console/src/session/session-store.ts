import { computed, signal } from '@preact/signals';
import { call, type Event, follow, type Session, type State } from '../api/client.js';
import { asProblem, isAbort, type Problem } from '../api/problem.js';
import { HistoryStore, type Moment } from './history-store.js';
import { ReplyStore } from './reply-store.js';
import { TrailStore } from './trail-store.js';

/** Moving the slider passes by many moments; only where it rests is asked for. */
const REST_MS = 100;

/** One session: what it is, its events, its messages, and the moment of it that is looked at. */
export class SessionStore {
  /** As it is now; undefined when it is not there, or not any more. */
  readonly session = signal<Session | undefined>(undefined);
  /** Why there is nothing to show at all. */
  readonly problem = signal<Problem | undefined>(undefined);
  readonly isDeleted = signal(false);
  readonly isLoaded = signal(false);
  readonly state = signal<State | undefined>(undefined);
  readonly stateProblem = signal<Problem | undefined>(undefined);
  /** The version that is looked at; undefined: now, also when that goes on. */
  readonly version = signal<number | undefined>(undefined);
  /** The version that stands in the address because the slider has put it there. */
  addressed: number | undefined;
  readonly trail: TrailStore;
  readonly reply: ReplyStore;
  readonly history = signal<HistoryStore>(undefined as never);
  /** The version that is shown, of now as well. */
  readonly shown = computed(() => this.version.value ?? this.trail.end.value);
  readonly isPast = computed(() => this.version.value !== undefined);

  private readonly ended = new AbortController();
  private readonly present: HistoryStore;
  private looking = new AbortController();
  private timer: ReturnType<typeof setTimeout> | undefined;
  private refreshing: ReturnType<typeof setTimeout> | undefined;

  constructor(readonly id: string) {
    const { signal: aborted } = this.ended;
    this.trail = new TrailStore(id, aborted);
    this.present = new HistoryStore(id, undefined, aborted);
    this.history.value = this.present;
    this.reply = new ReplyStore(
      id,
      aborted,
      (message) => {
        this.present.append(message);
      },
      () => {
        // Whoever may not read events does not hear of the question.
        if (this.trail.problem.value) void this.present.reload();
      },
    );
  }

  /** @param version the moment to begin with @returns what ends it */
  start(version: number | undefined): () => void {
    this.version.value = version;
    this.addressed = version;
    // What is said now must not stand under the name of another moment, not even for a moment.
    if (version !== undefined)
      this.history.value = new HistoryStore(this.id, { version, incarnation: undefined }, this.ended.signal);
    void this.load();
    return () => {
      this.ended.abort();
      this.looking.abort();
      clearTimeout(this.timer);
      clearTimeout(this.refreshing);
    };
  }

  /** Looks at another moment; undefined: now. */
  look(version: number | undefined): void {
    const { value: end } = this.trail.end;
    const wanted = version === undefined ? undefined : Math.min(Math.max(version, 1), end);
    // The last version of a session that is there is now. What was deleted has no now.
    this.version.value =
      wanted === end && !this.isDeleted.value
        ? undefined
        : (wanted ?? (this.isDeleted.value ? end : undefined));
    clearTimeout(this.timer);
    this.looking.abort();
    this.looking = new AbortController();
    const { signal: aborted } = this.looking;
    this.timer = setTimeout(() => void this.show(aborted), REST_MS);
  }

  /** Goes some events back or on. */
  step(by: number): void {
    this.look(this.shown.value + by);
  }

  async refresh(): Promise<void> {
    try {
      this.session.value = await call('get', '/v1/sessions/{id}', {
        path: { id: this.id },
        signal: this.ended.signal,
      });
      this.isDeleted.value = false;
      this.trail.end.value = Math.max(this.trail.end.value, this.session.value.version);
    } catch (error) {
      if (isAbort(error)) return;
      const problem = asProblem(error);
      if (problem.status !== 404) throw problem;
      this.session.value = undefined;
      this.isDeleted.value = true;
    }
    if (!this.isPast.value) await this.readState(undefined, this.ended.signal);
  }

  private async load(): Promise<void> {
    try {
      await this.refresh();
      if (this.isDeleted.value) {
        await this.trail.findEnd();
        this.version.value ??= this.trail.end.value;
      }
      const { signal: aborted } = this.looking;
      await Promise.all([
        this.isDeleted.value ? undefined : this.present.older(),
        this.isPast.value ? this.show(aborted) : undefined,
      ]);
      this.isLoaded.value = true;
      const running = this.state.value?.generation;
      if (running && !this.isPast.value) void this.reply.watch(running.id);
      await this.listen();
    } catch (error) {
      if (!isAbort(error)) this.problem.value = asProblem(error);
    }
  }

  private async listen(): Promise<void> {
    const options = {
      path: { id: this.id },
      query: { after: this.trail.end.value },
      signal: this.ended.signal,
    };
    await follow('/v1/sessions/{id}/events', options, ({ data }) => {
      this.heard(data as Event);
    }).catch((error: unknown) => {
      // Messages can still be read and written.
      this.trail.problem.value = asProblem(error);
    });
  }

  private heard(event: Event): void {
    if (event.type === 'SessionErased') this.trail.forget();
    this.trail.add(event);
    if (event.data && this.present.apply(event)) void this.present.reload();
    if (event.type === 'GenerationStarted' && event.data)
      void this.reply.watch(String(event.data['generationId']));
    this.refreshing ??= setTimeout(() => {
      this.refreshing = undefined;
      void this.refresh().catch(() => undefined);
    }, REST_MS);
  }

  /** Shows the moment that is looked at. What was shown before stays until it is there. */
  private async show(aborted: AbortSignal): Promise<void> {
    const { value: version } = this.version;
    if (version === undefined) {
      this.history.value = this.present;
      await this.readState(undefined, aborted);
      return;
    }
    const event = await this.trail.read(version);
    const moment = { version, incarnation: event?.incarnation };
    const history = new HistoryStore(this.id, moment, aborted);
    await Promise.all([history.older(), this.readState(moment, aborted)]);
    // Another moment is looked at by now.
    if (aborted.aborted) return;
    this.history.value = history;
  }

  private async readState(moment: Moment | undefined, aborted: AbortSignal): Promise<void> {
    try {
      const state = await call('get', '/v1/sessions/{id}/state', {
        path: { id: this.id },
        query: {
          ...(moment && { at: moment.version }),
          ...(moment?.incarnation !== undefined && { incarnation: moment.incarnation }),
        },
        signal: aborted,
      });
      if (aborted.aborted) return;
      this.state.value = state;
      this.stateProblem.value = undefined;
    } catch (error) {
      if (isAbort(error)) return;
      this.state.value = undefined;
      this.stateProblem.value = asProblem(error);
    }
  }
}
