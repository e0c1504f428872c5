import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

// This file runs before anything is installed. It may import Node's own modules only, and its syntax must be one that
// an old Node can parse, so that it can say that the Node is too old.

export const root = dirname(dirname(fileURLToPath(import.meta.url)));

/**
 * Installs and builds what is missing or out of date, and prints nothing when nothing is. Ends the process on failure.
 * @param say prints what is being done; must not be standard output where that is for the results of a command
 */
export function prepare(say = console.log) {
  const [major, minor] = process.versions.node.split('.').map(Number);
  if (major < 20 || (major === 20 && minor < 19)) {
    fail(`Colloquy needs Node.js 20.19 or newer; this is ${process.versions.node} (${process.execPath}).`);
  }
  // A container image holds no sources: it was built elsewhere and has production dependencies only.
  if (!existsSync(join(root, 'src'))) return;
  install(say);
  build(say);
}

function install(say) {
  const lock = readFileSync(join(root, 'package-lock.json'));
  const stamp = join(root, 'node_modules', '.colloquy-install');
  const wanted = hash([lock]);
  if (readIfThere(stamp) === wanted) return;
  if (!installedAlready(JSON.parse(lock))) {
    say('Installing dependencies …');
    // Only errors are shown: packages that merely warn about this version of Node would look like a failure to a
    // newcomer.
    const options = ['ci', '--include=dev', '--no-audit', '--no-fund', '--loglevel=error'];
    // `npm start` passes the path of the npm that runs this script. There may be no other npm on the PATH.
    const npm = process.env.npm_execpath;
    const own = npm !== undefined && /npm-cli\.c?js$/.test(npm);
    run(own ? process.execPath : 'npm', own ? [npm, ...options] : options, 'ignore', 'npm ci');
  }
  writeFileSync(stamp, wanted);
}

/**
 * Whether the dependencies were installed by hand: npm leaves a copy of the lock file in node_modules when an
 * installation is complete. Installing again would empty the folder while other processes may use it.
 */
function installedAlready(lock) {
  const text = readIfThere(join(root, 'node_modules', '.package-lock.json'));
  if (text === undefined) return false;
  const installed = JSON.parse(text).packages;
  return Object.entries(lock.packages).every(([path, wanted]) => {
    if (path === '') return true;
    const found = installed[path];
    // Packages for other platforms are not installed.
    if (found === undefined) return wanted.optional === true || wanted.devOptional === true;
    return found.version === wanted.version && found.integrity === wanted.integrity;
  });
}

function build(say) {
  const sources = ['tsconfig.json', 'tsconfig.build.json', 'nest-cli.json', 'package-lock.json'];
  for (const folder of ['src', 'console']) {
    for (const entry of readdirSync(join(root, folder), { recursive: true, withFileTypes: true })) {
      if (entry.isFile())
        sources.push(join(entry.parentPath ?? entry.path, entry.name).slice(root.length + 1));
    }
  }
  const parts = sources.sort().flatMap((file) => [file, readFileSync(join(root, file))]);
  const stamp = join(root, 'dist', '.colloquy-build');
  const wanted = hash(parts);
  if (readIfThere(stamp) === wanted && existsSync(join(root, 'dist', 'main.js'))) return;
  say('Building …');
  const stdout = say === console.log ? 'inherit' : process.stderr;
  const tool = (file, ...options) => [join(root, 'node_modules', file), ...options];
  run(process.execPath, tool('@nestjs/cli/bin/nest.js', 'build'), stdout, 'The build');
  const page = tool('vite/bin/vite.js', 'build', 'console', '--logLevel', 'warn');
  run(process.execPath, page, stdout, 'The build of the console');
  // The hash was computed before the build, so files that were edited during the build are built next time.
  writeFileSync(stamp, wanted);
}

function run(program, options, stdout, name) {
  const { status, error } = spawnSync(program, options, { cwd: root, stdio: ['ignore', stdout, 'inherit'] });
  if (error !== undefined) fail(`${name} could not be started: ${error.message}`);
  if (status !== 0) fail(`${name} failed; see above.`);
}

/**
 * A hash over all parts and their lengths. Without the lengths, text that moves from one part to the next would not
 * change the hash.
 */
function hash(parts) {
  const sum = createHash('sha256');
  for (const part of parts) sum.update(`${part.length}:`).update(part);
  return sum.digest('hex');
}

function readIfThere(file) {
  return existsSync(file) ? readFileSync(file, 'utf8') : undefined;
}

function fail(message) {
  console.error(message);
  process.exit(1);
}
