/**
 * What happens inside the kernel and in those who follow its log, for metrics, logs and traces. Each entry is the name
 * of a kind of event and what is told of one. Times are milliseconds, sizes bytes.
 */
export interface TelemetryEvents {
  /** An append was answered: how long it waited for its batch, and how long that batch took to commit. */
  appended: { readonly outcome: AppendOutcome; readonly waitMs: number; readonly commitMs: number };
  /** One commit of the batch writer. */
  batch: { readonly appends: number; readonly events: number; readonly commitMs: number };
  /** Something was turned away because too much waits already. */
  overloaded: { readonly what: 'append' | 'command'; readonly tenant: string };
  /** Another writer appended to a stream first: the command loads the stream and decides again. */
  conflict: { readonly tenant: string };
  /** A lease that this node held belongs to another node, or to nobody, by the database's word. */
  leaseLost: { readonly name: string };
  /** Notifications of other nodes arrive, or no longer do: then the log is polled. */
  wakeUp: { readonly connected: boolean };
  /** A read model took in events of the log. */
  projected: { readonly projection: string; readonly events: number; readonly ms: number };
  /** A read model could not take in an event, and leaves its session out from now on. */
  parked: { readonly projection: string };
  /** Brokers acknowledged events. */
  published: { readonly events: number; readonly bytes: number; readonly ms: number };
  /** Another node had taken over a lane that this node was about to publish or move the checkpoint of. */
  fenced: { readonly work: string };
  /** A model was called. */
  modelCalled: {
    readonly model: string;
    readonly outcome: 'completed' | 'failed' | 'timeout' | 'cancelled';
    readonly ms: number;
    /** Until the first piece of text; undefined when none came. */
    readonly firstTextMs?: number | undefined;
    readonly inputTokens: number;
    readonly outputTokens: number;
  };
  /**
   * Something failed that nobody waits for, and that is tried again or made good later.
   * @see Telemetry.failed
   */
  failed: { readonly what: string; readonly error: unknown };
}

export type AppendOutcome = 'ok' | 'duplicate' | 'conflict' | 'refused' | 'failed';

type Name = keyof TelemetryEvents;
type Listener<N extends Name> = (event: TelemetryEvents[N]) => void;

/**
 * The one place where the inside tells what happens. It is synchronous, keeps nothing, and costs a look at an empty list
 * while nobody listens. A listener must neither throw nor take long: it runs in the middle of what it is told of.
 */
export class Telemetry {
  private readonly listeners: { [N in Name]?: Listener<N>[] } = {};

  /** Calls back for each event of this kind. Returns how to stop that. */
  on<N extends Name>(name: N, listener: Listener<N>): () => void {
    const known = this.listeners[name] ?? [];
    this.listeners[name] = [...known, listener] as (typeof this.listeners)[N];
    return () => {
      const left = this.listeners[name] ?? [];
      this.listeners[name] = left.filter((one) => one !== listener) as (typeof this.listeners)[N];
    };
  }

  emit<N extends Name>(name: N, event: TelemetryEvents[N]): void {
    for (const listener of this.listeners[name] ?? []) listener(event);
  }

  /**
   * For `.catch(…)` on work that nobody waits for: the error is told instead of lost.
   * @param what was tried, as the subject of a sentence: `the renewal of leases`
   */
  failed(what: string): (error: unknown) => undefined {
    return (error) => {
      this.emit('failed', { what, error });
    };
  }
}
