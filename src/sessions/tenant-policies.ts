import { type EventData, sessionEvents, type TenantEvent } from '../domain/session.events.js';
import {
  ChangeTenantSettings,
  TENANT_STATE_VERSION,
  TENANT_STREAM,
  tenantDecider,
  type TenantState,
} from '../domain/tenant.js';
import { available } from '../database/connection.js';
import { type EventLog } from '../event-store/log.js';
import { type HandleOptions, StreamHandler } from '../event-store/stream-handler.js';

/** How many sessions a tenant may have active, for how long, and what happens at the cap. */
export interface SessionPolicy {
  readonly maxSessions: number;
  /** Milliseconds without a write after which a session is due to expire. */
  readonly sessionTTL: number;
  readonly capPolicy: 'reject' | 'evict';
}

type Overrides = { readonly [K in keyof SessionPolicy]?: SessionPolicy[K] | null | undefined };

/** What holds for a tenant, and what of it was set through the API. */
export interface TenantSettings {
  readonly version: number;
  readonly effective: SessionPolicy;
  readonly own: Overrides;
}

/** At most so often a node looks whether another one changed a tenant's settings. */
const REFRESH_MS = 250;

/**
 * The policies in force: what was set through the API stands over the settings file, that over the defaults.
 *
 * All tenants' own settings are held in memory, so that a command asks nobody. The node that makes a change has it at
 * once, others within `REFRESH_MS` of the wake-up.
 */
export class TenantPolicies {
  private readonly streams: StreamHandler<TenantState, ChangeTenantSettings, TenantEvent>;
  private readonly own = new Map<string, TenantState>();
  private readonly listeners = new Set<() => void>();
  private unsubscribe: (() => void) | undefined;
  private next: NodeJS.Timeout | undefined;
  private refreshed = -Infinity;

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
      storesAlways: true,
    });
  }

  async start(): Promise<void> {
    // Before the first look, so that a change made meanwhile is seen.
    this.unsubscribe = this.store.wakeUp.subscribe(() => {
      this.refreshSoon();
    });
    await this.refresh();
  }

  stop(): void {
    this.unsubscribe?.();
    clearTimeout(this.next);
  }

  of(tenant: string): SessionPolicy {
    return this.policy(tenant, this.own.get(tenant)?.overrides);
  }

  /** Every tenant whose policy may differ from the defaults. */
  *named(): Generator<readonly [tenant: string, policy: SessionPolicy]> {
    for (const tenant of new Set([...Object.keys(this.tenants), ...this.own.keys()])) {
      yield [tenant, this.of(tenant)];
    }
  }

  /** Calls back when a policy may have changed. */
  onChange(listener: () => void): void {
    this.listeners.add(listener);
  }

  /** As the log has it now. */
  async read(tenant: string): Promise<TenantSettings> {
    const { state } = await this.streams.load({ tenant, streamId: TENANT_STREAM });
    return this.learn(tenant, state);
  }

  /**
   * A field that is given replaces the tenant's own setting, null takes it back.
   * @throws VersionMismatch, KeyReused, Overloaded, DatabaseUnavailable
   */
  async change(
    tenant: string,
    settings: EventData<'TenantSettingsChanged'>,
    options: HandleOptions,
  ): Promise<TenantSettings> {
    const stream = { tenant, streamId: TENANT_STREAM };
    const { state } = await this.streams.handle(stream, new ChangeTenantSettings(settings), options);
    return this.learn(tenant, state);
  }

  private policy(tenant: string, own: Overrides | undefined): SessionPolicy {
    const file = Object.hasOwn(this.tenants, tenant) ? this.tenants[tenant] : undefined;
    return {
      maxSessions: own?.maxSessions ?? file?.maxSessions ?? this.defaults.maxSessions,
      sessionTTL: own?.sessionTTL ?? file?.sessionTTL ?? this.defaults.sessionTTL,
      capPolicy: own?.capPolicy ?? file?.capPolicy ?? this.defaults.capPolicy,
    };
  }

  private learn(tenant: string, state: TenantState): TenantSettings {
    // An answer may come late: what is known already may be newer.
    if (state.version > (this.own.get(tenant)?.version ?? 0)) {
      this.own.set(tenant, state);
      for (const listener of this.listeners) listener();
    }
    return {
      version: state.version,
      effective: this.policy(tenant, state.overrides),
      own: state.overrides,
    };
  }

  private refreshSoon(): void {
    this.next ??= setTimeout(
      () => {
        this.next = undefined;
        // The next wake-up, a second from now at the latest, tries again.
        this.refresh().catch(() => undefined);
      },
      Math.max(0, this.refreshed + REFRESH_MS - performance.now()),
    ).unref();
  }

  private async refresh(): Promise<void> {
    this.refreshed = performance.now();
    const { rows } = await available(() =>
      this.store.pool.query<{ tenant: string; version: number }>({
        name: 'tenant_streams',
        // Not a parameter: only so the planner sees that the partial index holds them all.
        text: `select tenant, version from stream_state where stream_id = '${TENANT_STREAM}'`,
      }),
    );
    const changed = rows.filter(({ tenant, version }) => version > (this.own.get(tenant)?.version ?? 0));
    await Promise.all(changed.map(({ tenant }) => this.read(tenant)));
  }
}
