/** How many sessions a tenant may have active, for how long, and what happens at the cap. */
export interface SessionPolicy {
  readonly maxSessions: number;
  /** Milliseconds without a write after which a session is due to expire. */
  readonly sessionTTL: number;
  readonly capPolicy: 'reject' | 'evict';
}

/** The policies in force: a tenant's own settings stand over the defaults. */
export class TenantPolicies {
  constructor(
    private readonly defaults: SessionPolicy,
    private readonly tenants: Readonly<
      Record<string, { readonly [K in keyof SessionPolicy]?: SessionPolicy[K] | undefined }>
    >,
  ) {}

  of(tenant: string): SessionPolicy {
    const own = this.tenants[tenant];
    return {
      maxSessions: own?.maxSessions ?? this.defaults.maxSessions,
      sessionTTL: own?.sessionTTL ?? this.defaults.sessionTTL,
      capPolicy: own?.capPolicy ?? this.defaults.capPolicy,
    };
  }
}
