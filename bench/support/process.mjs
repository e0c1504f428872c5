import { spawn } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { fileURLToPath } from 'node:url';
import { fastifyEntry, main } from './product.mjs';

/** The built service as a process of its own. */
export const startService = (databaseUrl) =>
  start([main], {
    DATABASE_URL: databaseUrl,
    PORT: '0',
    MAX_SESSIONS: '1000000',
    SESSION_TTL_MS: '86400000',
  });

/** A bare Fastify that sends each body back. */
export const startEcho = () =>
  start([fileURLToPath(new URL('./echo.mjs', import.meta.url)), fastifyEntry()], {});

async function start(args, env) {
  // Nothing of our own environment: a key or another database's URL must not leak in.
  const options = { cwd: tmpdir(), env: { PATH: process.env.PATH, NO_COLOR: '1', ...env } };
  const child = spawn(process.execPath, [...extra(), ...args], {
    ...options,
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const kill = () => child.kill('SIGKILL');
  process.once('exit', kill);
  const ended = new Promise((resolve) => child.once('close', resolve));
  const url = await new Promise((resolve, reject) => {
    let output = '';
    child.stdout.setEncoding('utf8').on('data', (text) => {
      output += text;
      const found = /listening on (http:\/\/[^\s]+)\s/.exec(output);
      if (found) resolve(found[1]);
    });
    void ended.then((code) => reject(new Error(`${args[0]} ended with ${code}: ${output}`)));
  });
  return {
    url,
    pid: child.pid,
    stop: async () => {
      child.kill('SIGTERM');
      await ended;
      process.off('exit', kill);
    },
  };
}

/** Node options for the processes under test, e.g. `BENCH_NODE_OPTIONS=--cpu-prof`. */
const extra = () => process.env.BENCH_NODE_OPTIONS?.split(' ') ?? [];

const TICKS_PER_SECOND = 100;

/** Seconds of processor time that a process has used; undefined where there is no /proc. */
export function cpuSeconds(pid) {
  const file = `/proc/${pid}/stat`;
  if (!existsSync(file)) return undefined;
  // The name in brackets may hold blanks; user and system time are fields 14 and 15.
  const fields = readFileSync(file, 'utf8').split(') ')[1].split(' ');
  return (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND;
}
