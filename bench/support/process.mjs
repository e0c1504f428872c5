import { spawn } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { fileURLToPath } from 'node:url';
import { fastifyEntry, main, pgEntry, product } from './product.mjs';

/** Options of Node.js with which `npm start` and the container start the service. */
const SERVICE_OPTIONS = ['--max-semi-space-size=32'];

/** Starts the built service as a process of its own. `node` are further options of its Node.js. */
export const startService = (databaseUrl, { env = {}, node = [] } = {}) =>
  start([...SERVICE_OPTIONS, ...node, main], {
    DATABASE_URL: databaseUrl,
    PORT: '0',
    MAX_SESSIONS: '1000000',
    SESSION_TTL_MS: '86400000',
    LOG_LEVEL: process.env.BENCH_LOG_LEVEL ?? 'info',
    ...env,
  });

/**
 * Starts a bare Fastify that sends each body back, and, with the URL of a database of the service, reads and writes as
 * a team would do it by hand.
 */
export const startByHand = (databaseUrl) =>
  start([file('./by-hand.mjs'), fastifyEntry(), pgEntry()], {
    ...(databaseUrl && { DATABASE_URL: databaseUrl, ...readModelTables() }),
  });

const readModelTables = () => {
  const { tableOf } = product('dist/projection-engine/projection.js');
  const { sessionsProjection } = product('dist/read-models/sessions.projection.js');
  const { historyProjection } = product('dist/read-models/history.projection.js');
  return { SESSIONS_TABLE: tableOf(sessionsProjection), HISTORY_TABLE: tableOf(historyProjection) };
};

/** Starts a model that sends 50 tokens a second. */
export const startPacedModel = () => start([file('./paced-model.mjs')], {});

const file = (name) => fileURLToPath(new URL(name, import.meta.url));

async function start(args, env) {
  // The process gets nothing of this environment, so that neither a key nor the URL of another database leaks in.
  const options = { cwd: tmpdir(), env: { PATH: process.env.PATH, NO_COLOR: '1', ...env } };
  const child = spawn(process.execPath, [...extra(), ...args], {
    ...options,
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const kill = () => child.kill('SIGKILL');
  process.once('exit', kill);
  const ended = new Promise((resolve) => child.once('close', resolve));
  child.stdout.setEncoding('utf8');
  /** Resolves to the first match in what the process prints from now on. */
  const printed = (pattern) =>
    new Promise((resolve, reject) => {
      let output = '';
      const listen = (text) => {
        output += text;
        const found = pattern.exec(output);
        if (!found) return;
        child.stdout.off('data', listen).resume();
        resolve(found);
      };
      child.stdout.on('data', listen);
      void ended.then((code) => reject(new Error(`${args.at(-1)} ended with ${code}: ${output}`)));
    });
  const [, url] = await printed(/listening on (http:\/\/[^\s"]+)[\s"]/);
  return {
    url,
    pid: child.pid,
    printed,
    stop: async () => {
      child.kill('SIGTERM');
      await ended;
      process.off('exit', kill);
    },
  };
}

/** Node options for the processes under test, e.g. `BENCH_NODE_OPTIONS=--cpu-prof`. */
const extra = () => process.env.BENCH_NODE_OPTIONS?.split(' ').filter(Boolean) ?? [];

const TICKS_PER_SECOND = 100;

/** Seconds of processor time that a process has used; undefined where there is no /proc. */
export function cpuSeconds(pid) {
  const fields = statOf(pid);
  return fields && (fields[UTIME] + fields[STIME]) / TICKS_PER_SECOND;
}

/** The same of a process and all its children, also of those that have ended. */
export function cpuSecondsOfAll(pid) {
  const own = statOf(pid);
  if (!own) return undefined;
  const children = readdirSync('/proc').filter((name) => /^\d+$/.test(name) && statOf(name)?.[PPID] === pid);
  const ended = (own[UTIME + 2] + own[STIME + 2]) / TICKS_PER_SECOND;
  return children.reduce((sum, child) => sum + (cpuSeconds(child) ?? 0), cpuSeconds(pid) + ended);
}

/** Bytes of memory that a process holds; undefined where there is no /proc. */
export function memoryOf(pid) {
  try {
    const [, kilobytes] = /^VmRSS:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'));
    return Number(kilobytes) * 1_024;
  } catch {
    return undefined;
  }
}

// Places behind the name of the process, which stands in brackets and may hold blanks.
const PPID = 1;
const UTIME = 11;
const STIME = 12;

function statOf(pid) {
  try {
    return readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ').at(-1).split(' ').map(Number);
  } catch {
    // It has ended, or there is no /proc.
    return undefined;
  }
}
