/**
 * What happens in the event store and in those who follow its log, for metrics, logs and traces. Each entry maps the
 * name of a kind of event to its fields. Times are milliseconds, sizes bytes.
 */
export interface TelemetryEvents {
  /** An append was answered: how long it waited for its batch, and how long the commit of that batch took. */
  appended: {
    readonly outcome: AppendOutcome;
    readonly correlationId: string;
    readonly waitMs: number;
    readonly commitMs: number;
  };
  /** A command was decided, and what it leads to is about to be appended. */
  decided: { readonly command: string; readonly correlationId: string; readonly ms: number };
  /** One commit of the batch writer. */
  batch: { readonly appends: number; readonly events: number; readonly commitMs: number };
  /** An append or a command was refused because too many wait already. */
  overloaded: { readonly what: 'append' | 'command'; readonly tenant: string };
  /** The log is another than it was: on another server, or shorter. What this process remembered of it is forgotten. */
  newGeneration: {
    readonly generation: number;
    readonly server: string;
    /** Events that this process has appended and that are gone. Other processes may have lost others. */
    readonly lost: number;
  };
  /** Another writer appended to a stream first: the command loads the stream and decides again. */
  conflict: { readonly tenant: string };
  /** The database says that a lease which this node held belongs to another node, or to nobody. */
  leaseLost: { readonly name: string };
  /** Notifications of other nodes arrive, or no longer arrive; in the latter case the log is polled. */
  wakeUp: { readonly connected: boolean };
  /** A read model applied events of the log. */
  projected: {
    readonly projection: string;
    readonly events: number;
    readonly ms: number;
    readonly causes: Causes;
  };
  /** A read model could not apply an event, and skips the session of that event from now on. */
  parked: { readonly projection: string };
  /** A replica was asked for rows of a read model. Unless it answered, the server itself was asked. */
  replicaRead: { readonly outcome: 'answered' | 'late' | 'failed' };
  /** The brokers acknowledged events. */
  published: {
    readonly topic: string;
    readonly events: number;
    readonly bytes: number;
    readonly ms: number;
    readonly causes: Causes;
  };
  /** Another node had taken over a lane whose events or checkpoint this node was about to write. */
  fenced: { readonly work: string };
  /** A model was called. */
  modelCalled: {
    readonly model: string;
    /** Of the request that asked for it, where there was one. */
    readonly correlationId?: string | undefined;
    readonly outcome: 'completed' | 'failed' | 'timeout' | 'cancelled';
    readonly ms: number;
    /** Time until the first piece of text; undefined when no text came. */
    readonly firstTextMs?: number | undefined;
    readonly inputTokens: number;
    readonly outputTokens: number;
  };
  /**
   * Background work failed. Nobody waits for it, and it is retried or made up for later.
   *
   * @see Telemetry.failed
   */
  failed: { readonly what: string; readonly error: unknown };
}

/** The correlation ids of the events, gathered only for who asks. */
export type Causes = () => readonly string[];

export type AppendOutcome = 'ok' | 'duplicate' | 'conflict' | 'refused' | 'failed';

type Name = keyof TelemetryEvents;
type Listener<N extends Name> = (event: TelemetryEvents[N]) => void;

/**
 * The only emitter of telemetry. It is synchronous, stores nothing, and without listeners costs a look at an empty
 * list. A listener must neither throw nor block, because it runs in the middle of the work that it observes.
 */
export class Telemetry {
  private readonly listeners: { [N in Name]?: Listener<N>[] } = {};

  /** Calls `listener` for each event of this kind. Returns a function that stops this. */
  on<N extends Name>(name: N, listener: Listener<N>): () => void {
    const known = this.listeners[name] ?? [];
    this.listeners[name] = [...known, listener] as (typeof this.listeners)[N];
    return () => {
      const left = this.listeners[name] ?? [];
      this.listeners[name] = left.filter((one) => one !== listener) as (typeof this.listeners)[N];
    };
  }

  /** Whether anybody listens, for what would cost something to tell. */
  isHeard(name: Name): boolean {
    return (this.listeners[name]?.length ?? 0) > 0;
  }

  emit<N extends Name>(name: N, event: TelemetryEvents[N]): void {
    for (const listener of this.listeners[name] ?? []) listener(event);
  }

  /**
   * For `.catch(…)` on work that nobody waits for: reports the error instead of losing it.
   *
   * @param what was tried, as the subject of a sentence: `the renewal of leases`
   */
  failed(what: string): (error: unknown) => undefined {
    return (error) => {
      this.emit('failed', { what, error });
    };
  }
}
