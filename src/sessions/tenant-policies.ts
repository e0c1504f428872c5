import { type EventData, sessionEvents, type TenantEvent } from '../domain/session.events.js';
import {
  ChangeTenantSettings,
  TENANT_STATE_VERSION,
  TENANT_STREAM,
  tenantDecider,
  type TenantState,
} from '../domain/tenant.js';
import { DatabaseUnavailable } from '../database/connection.js';
import { dataOf } from '../event-store/event-decoder.js';
import { type EventLog } from '../event-store/log.js';
import { type HandleOptions, StreamHandler } from '../event-store/stream-handler.js';
import { type ReservedState } from '../event-store/stream-reader.js';

/** The limits of a tenant's sessions, what happens at the cap, and how long sessions are kept. */
export interface SessionPolicy {
  readonly maxSessions: number;
  /** Milliseconds without a write after which a session is due to expire. */
  readonly sessionTTL: number;
  readonly capPolicy: 'reject' | 'evict';
  /** Milliseconds without a write after which a session is deleted; never unless given. */
  readonly deleteAfter?: number | undefined;
  /** Milliseconds after its end, be it deletion or expiry, after which a session is erased; never unless given. */
  readonly eraseAfter?: number | undefined;
}

type Overrides = { readonly [K in keyof SessionPolicy]?: SessionPolicy[K] | null | undefined };

/** The settings that hold for a tenant, and those that were set through the API. */
export interface TenantSettings {
  readonly version: number;
  readonly effective: SessionPolicy;
  readonly own: Overrides;
}

/** Least time between two looks of a node for settings that other nodes changed. */
const REFRESH_MS = 250;
const RETRY_MS = 1_000;
/** Changed settings that are read at once, per lane: a node with very many tenants starts in a few steps. */
const PAGE = 1_000;

/**
 * The policies in force. Settings made through the API override the settings file, which overrides the defaults.
 *
 * All tenants' own settings are held in memory, so that a command needs no query for them. The node that makes a change
 * knows it at once, the other nodes within `REFRESH_MS` of the wake-up. A look reads only what was changed since the
 * look before, so its cost does not grow with the number of tenants.
 */
export class TenantPolicies {
  private readonly streams: StreamHandler<TenantState, ChangeTenantSettings, TenantEvent>;
  private readonly own = new Map<string, TenantState>();
  private readonly listeners = new Set<() => void>();
  private unsubscribe: (() => void) | undefined;
  private next: NodeJS.Timeout | undefined;
  private stopped = false;
  private refreshed = -Infinity;
  /** Lane → the last position up to which changes of settings are known. */
  private readonly seen: Map<number, number>;

  constructor(
    private readonly store: EventLog,
    readonly defaults: SessionPolicy,
    private readonly tenants: Readonly<Record<string, Overrides>>,
  ) {
    this.streams = new StreamHandler(store, {
      decider: tenantDecider,
      stateVersion: TENANT_STATE_VERSION,
      schemaVersion: (type) => sessionEvents[type].version,
      isActivity: () => true,
      incarnation: () => 1,
      // `refresh` reads stored states alone.
      storesAlways: true,
    });
    this.seen = new Map(Array.from({ length: store.laneCount }, (_, lane) => [lane, 0]));
  }

  async start(): Promise<void> {
    // Subscribed before the first look, so that a change made during the look is seen.
    const unsubscribe = this.store.wakeUp.subscribe(() => {
      this.refreshSoon();
    });
    const unsubscribeGenerations = this.store.generations.onNew(() => {
      this.own.clear();
      for (const lane of this.seen.keys()) this.seen.set(lane, 0);
      this.refreshSoon();
    });
    this.unsubscribe = () => {
      unsubscribe();
      unsubscribeGenerations();
    };
    await this.refresh();
  }

  stop(): void {
    this.stopped = true;
    this.unsubscribe?.();
    clearTimeout(this.next);
  }

  of(tenant: string): SessionPolicy {
    return this.policy(tenant, this.own.get(tenant)?.overrides);
  }

  /** The tenants whose policies may differ from the defaults. */
  *named(): Generator<readonly [tenant: string, policy: SessionPolicy]> {
    for (const tenant of new Set([...Object.keys(this.tenants), ...this.own.keys()])) {
      yield [tenant, this.of(tenant)];
    }
  }

  /** Calls `listener` when a policy may have changed. */
  onChange(listener: () => void): void {
    this.listeners.add(listener);
  }

  /** The settings of a tenant as the log has them now. */
  async read(tenant: string): Promise<TenantSettings> {
    const { state } = await this.streams.load({ tenant, streamId: TENANT_STREAM });
    return this.remember(tenant, state);
  }

  /**
   * Changes the settings of a tenant: a value replaces a setting, null removes it, a missing field leaves it as it is.
   * @throws VersionMismatch, KeyReused, Overloaded, DatabaseUnavailable
   */
  async change(
    tenant: string,
    settings: EventData<'TenantSettingsChanged'>,
    options: HandleOptions,
  ): Promise<TenantSettings> {
    const stream = { tenant, streamId: TENANT_STREAM };
    const { state } = await this.streams.handle(stream, new ChangeTenantSettings(settings), options);
    return this.remember(tenant, state);
  }

  /** What the settings of a tenant would be after a change, which is not made. */
  async preview(tenant: string, settings: EventData<'TenantSettingsChanged'>): Promise<TenantSettings> {
    const { state } = await this.streams.load({ tenant, streamId: TENANT_STREAM });
    const { events } = tenantDecider.decide(new ChangeTenantSettings(settings), state);
    const { overrides: own } = events.reduce<TenantState>(
      (before, event) => tenantDecider.evolve(before, event),
      state,
    );
    return { version: state.version, effective: this.policy(tenant, own), own };
  }

  private policy(tenant: string, own: Overrides | undefined): SessionPolicy {
    const file = Object.hasOwn(this.tenants, tenant) ? this.tenants[tenant] : undefined;
    return {
      maxSessions: own?.maxSessions ?? file?.maxSessions ?? this.defaults.maxSessions,
      sessionTTL: own?.sessionTTL ?? file?.sessionTTL ?? this.defaults.sessionTTL,
      capPolicy: own?.capPolicy ?? file?.capPolicy ?? this.defaults.capPolicy,
      deleteAfter: own?.deleteAfter ?? file?.deleteAfter ?? this.defaults.deleteAfter,
      eraseAfter: own?.eraseAfter ?? file?.eraseAfter ?? this.defaults.eraseAfter,
    };
  }

  private remember(tenant: string, state: TenantState): TenantSettings {
    if (this.isNews(tenant, state)) this.tellChange();
    return {
      version: state.version,
      effective: this.policy(tenant, state.overrides),
      own: state.overrides,
    };
  }

  /** Keeps a state, unless a newer one is known already: answers may overtake each other. */
  private isNews(tenant: string, state: TenantState): boolean {
    if (state.version <= (this.own.get(tenant)?.version ?? 0)) return false;
    this.own.set(tenant, state);
    return true;
  }

  private tellChange(): void {
    for (const listener of this.listeners) listener();
  }

  private refreshSoon(gapMs = REFRESH_MS): void {
    if (this.stopped) return;
    this.next ??= setTimeout(
      () => {
        this.next = undefined;
        this.refresh().catch((error: unknown) => {
          this.store.telemetry.emit('failed', { what: 'the look for changed settings of tenants', error });
          this.refreshSoon(RETRY_MS);
        });
      },
      Math.max(0, this.refreshed + gapMs - performance.now()),
    ).unref();
  }

  private async refresh(): Promise<void> {
    this.refreshed = performance.now();
    let hasNews = false;
    let counts: Map<number, number>;
    const { current } = this.store.generations;
    try {
      do {
        const changed = await this.store.streams.reservedStates(TENANT_STREAM, this.seen, PAGE);
        const states = await Promise.all(changed.map((one) => this.stateOf(one)));
        // The next look, which is due already, reads all of them anew.
        if (this.store.generations.current !== current) return;
        counts = new Map();
        for (const [index, { tenant, lane, position }] of changed.entries()) {
          const state = states[index];
          if (state && this.isNews(tenant, state)) hasNews = true;
          this.seen.set(lane, position);
          counts.set(lane, (counts.get(lane) ?? 0) + 1);
        }
        // A lane that gave a whole page may hold more.
      } while (Math.max(0, ...counts.values()) === PAGE);
    } finally {
      // Also of what was read before a page that failed: the next look begins behind it.
      if (hasNews) this.tellChange();
    }
  }

  /** @returns undefined when a newer version of the service wrote the settings: this node goes on with what it knows */
  private async stateOf({ tenant, stateVersion, state }: ReservedState): Promise<TenantState | undefined> {
    try {
      if (stateVersion === TENANT_STATE_VERSION) return dataOf(state) as TenantState;
      return (await this.streams.load({ tenant, streamId: TENANT_STREAM })).state;
    } catch (error) {
      if (error instanceof DatabaseUnavailable) throw error;
      this.store.telemetry.emit('failed', { what: `reading the settings of tenant ${tenant}`, error });
      return undefined;
    }
  }
}
