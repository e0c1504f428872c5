import { mkdir, realpath } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { messageOf } from './account.js';
import { ensureCluster, ensurePassword } from './cluster.js';
import { readIfThere } from './files.js';
import { isPostmasterOf, readPidFile } from './leftover-server.js';
import { readLocation, writeLocation } from './moved-data.js';
import { choosePlace } from './place.js';
import { RestartingServer } from './restarting-server.js';
import { startOnFreePort, startServer } from './server-process.js';
import { ensureDatabase, urlOf, withClient } from './sign-in.js';

/** A running PostgreSQL that this process has started. */
export interface EmbeddedPostgres {
  /** `postgres://colloquy:<password>@127.0.0.1:<port>/colloquy`; stays valid when the server has to be restarted. */
  readonly url: string;
  /** e.g. `18.4` */
  readonly serverVersion: string;
  /** The folder of the cluster, which holds `PG_VERSION`. */
  readonly dataDir: string;
  /** What the user should be told, e.g. where data or binaries went and why. One sentence each, no secrets. */
  readonly notes: readonly string[];
  /** Shuts the server down (PostgreSQL's fast shutdown); resolves when it is gone. Safe to call more than once. */
  stop(): Promise<void>;
}

/** Milliseconds that a command waits for the server of a service that is just starting. */
const ANSWER_LIMIT_MS = 10_000;

/**
 * Starts a real PostgreSQL (binaries from npm) on the data in `<dataDir>/postgres`, which is made at first use.
 *
 * The server never outlives this process: when the process ends in any way, even by `kill -9`, the server is shut down
 * within five seconds. The server does not keep the process alive. Until `stop()`, a server that ends by itself is
 * started again on the same port, with a process warning (`COLLOQUY_EMBEDDED_POSTGRES`).
 *
 * The caller must hold the lock of the data folder. Without it, two calls at once would start two servers on the same
 * data.
 *
 * @param options.settings PostgreSQL settings that override the defaults, as in `postgresql.conf`
 * @throws Error with a message for the user: no binaries for this platform, a folder that cannot be reached, data
 *   of another major version, or the end of the server's log if it does not start
 */
export async function startEmbeddedPostgres(options: {
  dataDir: string;
  settings?: Readonly<Record<string, string>>;
}): Promise<EmbeddedPostgres> {
  await mkdir(options.dataDir, { recursive: true });
  const dataDir = await realpath(options.dataDir);
  const place = await choosePlace(dataDir);
  const password = await ensurePassword(place);
  await ensureCluster(place);
  if (place.home !== join(dataDir, 'postgres')) await writeLocation(dataDir, place.home);

  const start = { place, password, settings: options.settings ?? {} };
  const { process, port, version } = await startOnFreePort(start);
  const server = new RestartingServer(process, (signal) => startServer(start, port, signal));
  try {
    await ensureDatabase(port, password);
  } catch (error) {
    await server.stop();
    throw error;
  }
  return {
    url: urlOf(port, password),
    serverVersion: version,
    dataDir: place.cluster,
    notes: place.notes,
    stop: () => server.stop(),
  };
}

/**
 * The URL of the server that another process runs on this data folder, once the server answers.
 * @throws Error with a message for the user when no server answers within ten seconds
 */
export async function findEmbeddedPostgres(dataDir: string): Promise<string> {
  const folder = await realpath(dataDir);
  const home = (await readLocation(folder)) ?? join(folder, 'postgres');
  const cluster = join(home, 'data');
  const deadline = performance.now() + ANSWER_LIMIT_MS;
  for (;;) {
    const password = (await readIfThere(join(home, 'password')))?.trim();
    const { pid, port } = await readPidFile(cluster);
    let reason = 'it is not running';
    if (
      password !== undefined &&
      port !== undefined &&
      pid !== undefined &&
      (await isPostmasterOf(pid, cluster))
    ) {
      try {
        await withClient(port, password, (client) => client.query('SELECT 1'));
        return urlOf(port, password);
      } catch (error) {
        reason = messageOf(error);
      }
    }
    if (performance.now() > deadline) {
      throw new Error(`The database of the service that runs on ${dataDir} does not answer: ${reason}.`);
    }
    await sleep(100);
  }
}
