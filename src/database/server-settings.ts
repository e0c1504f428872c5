/** Settings of PostgreSQL, by name, as a session has them. */
export type ServerSettings = Readonly<Record<string, string>>;

/**
 * What every session has. A process that was stopped between BEGIN and COMMIT would keep its row locks: the server ends
 * such a transaction before any lease of that process has run out, so that whoever takes over is not held up.
 */
export const EVERY_SESSION: ServerSettings = {
  TimeZone: 'UTC',
  idle_in_transaction_session_timeout: '5000',
  lock_timeout: '10000',
};

/** For statements whose plan does not depend on their parameters: to plan them anew is a good part of a small read. */
export const GENERIC_PLANS: ServerSettings = { plan_cache_mode: 'force_generic_plan' };

/**
 * Every query on a read model has an index that finds its rows, and one in the order of its answer where there may be
 * many. Without these settings the server would decide by its statistics, of which there are none for a table that has
 * just grown, and plan anew for each call. Before version 18, PostgreSQL takes a plan that cannot do without sorting for
 * very expensive and compiles it, which takes a third of a second for a query of a millisecond: hence no `jit`.
 */
export const PLANS_BY_INDEX: ServerSettings = {
  ...GENERIC_PLANS,
  enable_seqscan: 'off',
  enable_sort: 'off',
  jit: 'off',
};

/** For commits that need not wait for the disk. */
export const RELAXED: ServerSettings = { synchronous_commit: 'off' };

/** Settings as the parameter `options` of a connection. */
export const optionsOf = (settings: ServerSettings): string =>
  Object.entries(settings)
    .map(([name, value]) => `-c ${name}=${value}`)
    .join(' ');
