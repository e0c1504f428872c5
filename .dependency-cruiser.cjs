/**
 * The arrows of docs/architecture.md: imports go one way.
 *
 *   domain <- event-store <- projection-engine <- read-models <- sessions <- generation
 *                         <- kafka <- proof <- sessions       <- audit, transfer, sweeper <- ops <- app.module
 *                                                                generation, audit <- openai, ai-sdk <- app.module
 *
 * A cell is a whole application; `cells` gives requests to them, and only `service`, `ops` and `cli` know of it.
 *
 * The page of `console/` is built by itself; `src/console` serves its files.
 *
 * `http`, `access`, `config`, `database` and `embedded-postgres` know no feature. A feature's `*.module.ts` wires it
 * into the application; `storage.module.ts` gives all of them the settings, the connections and the log.
 */
const path = (...folders) => `^src/(${folders.join('|')})`;
const FEATURES = [
  'sessions/',
  'generation/',
  'audit/',
  'transfer/',
  'sweeper/',
  'ops/',
  'openai/',
  'ai-sdk/',
];
const forbid = (name, from, to, comment) => ({
  name,
  severity: 'error',
  comment,
  from: { path: from },
  to: { path: to },
});

module.exports = {
  forbidden: [
    { name: 'no-circular', severity: 'error', from: {}, to: { circular: true } },
    {
      name: 'domain-is-pure',
      severity: 'error',
      comment: 'the rules of a session know zod and each other, nothing else',
      from: { path: path('domain/') },
      to: { pathNot: '^src/domain/|^node_modules/zod/' },
    },
    {
      name: 'event-store-knows-only-the-decider',
      severity: 'error',
      comment: 'the log is generic: of the domain it may see the Decider type only',
      from: { path: path('event-store/') },
      to: { path: '^src/', pathNot: '^src/(event-store/|database/|domain/decider|bounded-cache)' },
    },
    {
      name: 'readers-of-the-log-know-no-feature',
      severity: 'error',
      comment: 'a *.module.ts wires its folder into the application, so it alone may know the settings',
      from: { path: path('projection-engine/', 'read-models/', 'kafka/'), pathNot: '\\.module\\.ts$' },
      to: {
        path: path(...FEATURES, 'http/', 'access/', 'client/', 'config', 'storage.module', 'app.module'),
      },
    },
    forbid(
      'modules-of-readers-know-no-feature',
      path('read-models/', 'kafka/'),
      path(...FEATURES, 'client/'),
    ),
    forbid(
      'proofs-are-of-the-log-alone',
      path('proof/'),
      path(...FEATURES, 'domain/', 'read-models/', 'projection-engine/', 'client/', 'app.module'),
      'they are made of envelopes and commitments, whatever the events say',
    ),
    forbid('engine-knows-no-chat', path('projection-engine/'), path('domain/')),
    forbid('engine-and-relay-know-no-read-model', path('projection-engine/', 'kafka/'), path('read-models/')),
    forbid(
      'sessions-are-below-the-other-features',
      path('sessions/'),
      path('generation/', 'audit/', 'transfer/', 'sweeper/', 'ops/', 'openai/', 'ai-sdk/'),
    ),
    {
      name: 'features-do-not-import-ops',
      severity: 'error',
      comment: 'operators look at the features, not the other way round',
      from: { path: '^src/', pathNot: path('ops/', 'app.module', 'service', 'client/', 'cli/') },
      to: { path: path('ops/') },
    },
    forbid(
      'protocols-are-above-the-features',
      path('generation/', 'audit/', 'transfer/', 'sweeper/', 'ops/'),
      path('openai/', 'ai-sdk/'),
      'an adapter turns its requests into the commands and queries that there are',
    ),
    {
      name: 'an-application-knows-nothing-of-cells',
      severity: 'error',
      comment: 'the root hands them to operators; whatever serves a tenant is the same in each cell',
      from: {
        path: '^src/',
        pathNot: path('cells/', 'ops/', 'app.module', 'storage.module', 'service', 'cli/'),
      },
      to: { path: path('cells/') },
    },
    forbid('features-do-not-import-the-root', path(...FEATURES), path('app.module', 'main', 'client/')),
    {
      name: 'nothing-imports-the-command-line',
      severity: 'error',
      from: { path: '^src/', pathNot: '^src/cli/' },
      to: { path: path('cli/') },
    },
    forbid(
      'transport-knows-no-feature',
      path('http/', 'access/'),
      path('projection-engine/', 'read-models/', 'kafka/', ...FEATURES, 'app.module'),
    ),
    forbid(
      'settings-have-one-door',
      '^src/(?!config(/|\\.ts$))',
      '^src/config/',
      'import src/config.ts instead',
    ),
    forbid(
      'the-console-is-a-client',
      '^console/',
      '^src/',
      'it knows the service by its OpenAPI document alone',
    ),
    forbid('nothing-imports-the-page', '^src/', '^console/'),
    forbid('parts-of-the-page-know-no-view', '^console/src/(api|ui)/', '^console/src/(?!api/|ui/)'),
    {
      name: 'views-know-no-other-view',
      severity: 'error',
      from: { path: '^console/src/(sessions|session|search|usage|operations)/' },
      to: {
        path: '^console/src/(sessions|session|search|usage|operations)/|^console/src/app',
        pathNot: '^console/src/$1/',
      },
    },
    {
      name: 'leaves',
      severity: 'error',
      from: { path: path('config', 'database/', 'embedded-postgres/') },
      to: { path: '^src/', pathNot: '^src/(config|database/|embedded-postgres/)' },
    },
  ],
  options: {
    doNotFollow: { path: 'node_modules' },
    tsPreCompilationDeps: true,
    tsConfig: { fileName: 'tsconfig.json' },
    enhancedResolveOptions: { extensions: ['.ts', '.tsx', '.js'] },
  },
};
