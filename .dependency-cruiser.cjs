/**
 * The arrows of docs/architecture.md: imports go one way.
 * domain <- event-store <- projections, kafka <- sessions, generation, sweeper, audit <- app.module
 * http, config and database are leaves.
 */
const path = (...folders) => `^src/(${folders.join('|')})`;
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
      to: { path: '^src/', pathNot: '^src/(event-store/|database/|domain/decider)' },
    },
    forbid(
      'projections-read-the-log',
      path('projections/', 'kafka/'),
      path('sessions/', 'generation/', 'sweeper/', 'audit/', 'http/', 'client/', 'config', 'app.module'),
    ),
    forbid(
      'features-do-not-import-the-root',
      path('sessions/', 'generation/', 'sweeper/', 'audit/'),
      path('app.module', 'main', 'client/'),
    ),
    {
      name: 'nothing-imports-the-command-line',
      severity: 'error',
      from: { path: '^src/', pathNot: '^src/cli/' },
      to: { path: path('cli/') },
    },
    forbid(
      'http-is-a-leaf',
      path('http/'),
      path(
        'event-store/',
        'projections/',
        'kafka/',
        'sessions/',
        'generation/',
        'sweeper/',
        'audit/',
        'app.module',
      ),
    ),
    {
      name: 'config-and-database-are-leaves',
      severity: 'error',
      from: { path: path('config', 'database/') },
      to: { path: '^src/', pathNot: '^src/(config|database/)' },
    },
  ],
  options: {
    doNotFollow: { path: 'node_modules' },
    tsPreCompilationDeps: true,
    tsConfig: { fileName: 'tsconfig.json' },
    enhancedResolveOptions: { extensions: ['.ts', '.js'] },
  },
};
