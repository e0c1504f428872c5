import { randomBytes } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { parse } from 'yaml';

// Usage: node docker/entrypoint.mjs <main module>. Inside a container the service is reached from outside the container
// only, so it listens on every address there; and what listens on every address does not go without a key.

process.env.HOST ||= '0.0.0.0';
if (!process.env.COLLOQUY_API_KEYS && !configuresAuth(process.env.COLLOQUY_CONFIG || 'colloquy.yml')) {
  process.env.COLLOQUY_API_KEYS = `admin:*:${adminKey(process.env.COLLOQUY_DATA_DIR || '.colloquy')}`;
}
// In this process: the container's signals reach the service itself.
const [main] = process.argv.splice(2, 1);
await import(pathToFileURL(resolve(main)).href);

/** Whoever writes an `auth` section has decided, also for `mode: none`. A broken file is the service's to report. */
function configuresAuth(file) {
  try {
    return existsSync(file) && Boolean(parse(readFileSync(file, 'utf8'))?.auth);
  } catch {
    return true;
  }
}

/** Made at the first start, kept in the volume, and printed that one time. */
function adminKey(dataDir) {
  const file = join(dataDir, 'admin-api-key');
  if (existsSync(file)) return readFileSync(file, 'utf8').trim();
  const key = randomBytes(24).toString('base64url');
  mkdirSync(dataDir, { recursive: true });
  // Never there in part: a start that was cut short must not leave an empty key behind.
  rmSync(`${file}.new`, { force: true });
  writeFileSync(`${file}.new`, `${key}\n`, { mode: 0o600, flag: 'wx', flush: true });
  renameSync(`${file}.new`, file);
  console.log(
    `No API keys are set, so one was made. This is the only time it is shown; it is kept in ${file}.`,
  );
  console.log(`API key (operator): ${key}`);
  return key;
}
