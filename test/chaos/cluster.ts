import { execFile } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { chmod, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { Client } from 'pg';
import {
  type EmbeddedPostgres,
  startEmbeddedPostgres,
} from '../../src/embedded-postgres/embedded-postgres.js';
import { startColloquy } from '../support/colloquy.js';
import { ownBroker, type OwnBroker } from '../support/kafka.js';
import { type RunningService, startService } from '../support/process.js';
import { find, type RunningProgram, startRedis } from '../support/programs.js';
import { startProxy, type TcpProxy } from '../support/tcp-proxy.js';

/** The cells; all on one server, so that whatever breaks it breaks both. */
export const CELLS = ['default', 'two'] as const;
export type CellName = (typeof CELLS)[number];
const DATABASE_OF_TWO = 'chaos_two';

export const CAPPED = { tenant: 'c', sessions: 12 } as const;
const SKEW = join(__dirname, 'clock-skew.cjs');

/** A node, the way from it to the database, and its life. */
export interface ChaosNode {
  readonly proxy: TcpProxy;
  readonly service: RunningService | undefined;
  url(): string | undefined;
  /** @param skewMs how far the clock of the process is off */
  start(skewMs?: number): Promise<void>;
  kill(): Promise<void>;
}

/** Everything that a run consists of. */
export interface Cluster {
  readonly nodes: readonly ChaosNode[];
  readonly postgres: EmbeddedPostgres;
  readonly broker: OwnBroker;
  readonly redis: RunningProgram | undefined;
  readonly topic: string;
  /** That of the database; undefined: it could not be made, because this process is not root. */
  readonly disk: SmallDisk | undefined;
  killPostgres(): Promise<void>;
  /** The URL of the database of a cell. */
  cellUrl(cell: CellName): string;
  /** Runs the command line on the databases. @param killAfterMs kills it, if it runs for as long */
  command(
    args: readonly string[],
    killAfterMs?: number,
  ): Promise<{ code: number | null; out: string; err: string }>;
  end(): Promise<void>;
}

/** Small and in memory, so that it can be full. */
interface SmallDisk {
  fill(): Promise<void>;
  free(): Promise<void>;
  remove(): Promise<void>;
}

const inDatabase = (url: string, database: string): string => {
  const found = new URL(url);
  found.pathname = `/${database}`;
  return found.href;
};

const SETTINGS = { max_connections: '120', fsync: 'off', max_wal_size: '96MB', min_wal_size: '64MB' };
const DISK_MB = 900;
const nothing = (): void => undefined;

async function smallDisk(folder: string): Promise<SmallDisk | undefined> {
  if (process.getuid?.() !== 0) return undefined;
  const run = promisify(execFile);
  const mounted = await run('mount', ['-t', 'tmpfs', '-o', `size=${DISK_MB}m`, 'tmpfs', folder]).then(
    () => true,
    () => false,
  );
  if (!mounted) return undefined;
  await chmod(folder, 0o755);
  const ballast = join(folder, 'ballast');
  return {
    // It fails in the end, because then the disk is full.
    fill: () => run('dd', ['if=/dev/zero', `of=${ballast}`, 'bs=64k']).then(nothing, nothing),
    free: () => rm(ballast, { force: true }),
    remove: async () => {
      await run('umount', [folder]);
    },
  };
}

/** @param options.main `main.js` of another build */
export async function startCluster(options: { nodes: number; main?: string }): Promise<Cluster> {
  const folder = await mkdtemp(join(tmpdir(), 'colloquy-chaos-'));
  await chmod(folder, 0o755);
  const data = join(folder, 'data');
  await mkdir(data);
  const disk = await smallDisk(data);
  await chmod(data, 0o755);
  const [postgres, broker, redis] = await Promise.all([
    startEmbeddedPostgres({ dataDir: data, settings: SETTINGS }),
    ownBroker(),
    find('redis-server') === undefined ? undefined : startRedis(),
  ]);
  const admin = new Client({ connectionString: postgres.url });
  await admin.connect();
  await admin.query(`create database ${DATABASE_OF_TWO}`).finally(() => admin.end());
  const topic = `chaos-${randomUUID()}`;
  await writeFile(
    join(folder, 'colloquy.yml'),
    `kafka: { topic: ${topic}, partitions: 4, brokers: ['${broker.brokers}'] }
sessions: { maxSessions: 1000000 }
storage: { maxConnections: 20 }
tenants: { ${CAPPED.tenant}: { maxSessions: ${CAPPED.sessions} } }
`,
  );
  const cellUrl = (cell: CellName): string =>
    cell === 'default' ? postgres.url : inDatabase(postgres.url, DATABASE_OF_TWO);
  const startNode = async (): Promise<ChaosNode> => {
    const proxy = await startProxy(postgres.url);
    let service: RunningService | undefined;
    return {
      proxy,
      get service() {
        return service;
      },
      url: () => service?.url,
      start: async (skewMs = 0) => {
        service = await startService({
          cwd: folder,
          ...(options.main !== undefined && { main: options.main }),
          env: {
            DATABASE_URL: proxy.url,
            DATABASE_CELLS: `two=${inDatabase(proxy.url, DATABASE_OF_TWO)}`,
            LOG_LEVEL: 'warn',
            ...(redis && { REDIS_URL: `redis://127.0.0.1:${redis.port}` }),
            ...(skewMs !== 0 && { NODE_OPTIONS: `--require=${SKEW}`, CLOCK_SKEW_MS: String(skewMs) }),
          },
        });
      },
      kill: async () => {
        const killed = service;
        service = undefined;
        await killed?.kill9();
      },
    };
  };
  const nodes: ChaosNode[] = [];
  const end = async (): Promise<void> => {
    await Promise.all(nodes.map((node) => node.kill()));
    await Promise.all(nodes.map((node) => node.proxy.close()));
    await redis?.end();
    await broker.remove();
    await postgres.stop();
    await disk?.remove();
    await rm(folder, { recursive: true, force: true });
  };
  try {
    for (let n = 0; n < options.nodes; n += 1) {
      const node = await startNode();
      nodes.push(node);
      await node.start();
    }
  } catch (error) {
    await end();
    throw error;
  }
  return {
    nodes,
    postgres,
    broker,
    redis,
    topic,
    disk,
    cellUrl,
    command: async (args, killAfterMs) => {
      const env = { DATABASE_URL: postgres.url, DATABASE_CELLS: `two=${cellUrl('two')}` };
      const { child, ended } = startColloquy(args, { env, cwd: folder });
      const timer =
        killAfterMs === undefined ? undefined : setTimeout(() => child.kill('SIGKILL'), killAfterMs);
      return ended.finally(() => {
        clearTimeout(timer);
      });
    },
    // Its supervisor starts it again.
    killPostgres: async () => {
      const [pid = ''] = (await readFile(join(postgres.dataDir, 'postmaster.pid'), 'utf8')).split('\n');
      process.kill(Number(pid), 'SIGQUIT');
    },
    end,
  };
}
