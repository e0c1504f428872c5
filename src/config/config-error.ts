/**
 * What may be wrong with the settings, one line each. Never carries a value that was given: keys and
 * connection URLs hold secrets, and this message ends up in logs.
 */
export class ConfigError extends Error {
  override readonly name = 'ConfigError';

  constructor(readonly problems: readonly string[]) {
    super(['The settings are not valid:', ...problems.map((problem) => `  - ${problem}`)].join('\n'));
  }
}
