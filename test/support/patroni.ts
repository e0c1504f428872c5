import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { chmod, chown, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { Client } from 'pg';
import { describeUnless, freePort } from './programs.js';

const INSTALLED = '/usr/lib/postgresql';
const NOBODY = 65_534;
const isRoot = process.getuid?.() === 0;
const user = isRoot ? { uid: NOBODY, gid: NOBODY } : {};
const PASSWORD = 'secret';
const LIMIT_MS = 60_000;

const running = new Set<ChildProcess>();
process.once('exit', () => {
  for (const child of running) kill(child, 'SIGKILL');
});

function missing(): string | undefined {
  const absent = ['/usr/bin/patroni', '/usr/bin/patronictl', '/usr/bin/etcd', INSTALLED].filter(
    (path) => !existsSync(path),
  );
  return absent.length > 0 ? `not installed: ${absent.join(', ')}` : undefined;
}

/** Declares tests that need Patroni, etcd and a PostgreSQL of the system; with REQUIRE_PROGRAMS=1 they fail without it. */
export const describeWithPatroni = (name: string, tests: () => void): void => {
  describeUnless(missing(), { what: 'Patroni', variable: 'REQUIRE_PROGRAMS' }, name, tests);
};

/** Two servers, of which Patroni makes one the primary, with etcd, in a temporary folder. */
export interface PatroniCluster {
  /** With both hosts. */
  readonly url: string;
  /** The name of the primary, according to Patroni; undefined while there is none. */
  leader(): Promise<string | undefined>;
  /** Waits until there is a primary with a standby that follows it, and synchronously where that is asked for. */
  settled(): Promise<string>;
  /** Ends Patroni and the server of a member in the way of `kill -9`. */
  kill9(member: string): Promise<void>;
  /** Starts them again. */
  start(member: string): void;
  /** Stops both where they stand, until `thaw`. */
  freeze(member: string): Promise<void>;
  thaw(member: string): Promise<void>;
  /** Cuts Patroni of a member off from etcd, so that it must step down; `rejoin` ends it. */
  cutOff(member: string): Promise<void>;
  rejoin(member: string): Promise<void>;
  switchOver(from: string, to: string): Promise<void>;
  query<Row = Record<string, unknown>>(member: string, sql: string): Promise<Row[]>;
  end(): Promise<void>;
}

const MEMBERS = ['one', 'two'];

export async function startPatroni({
  isSynchronous,
}: {
  readonly isSynchronous: boolean;
}): Promise<PatroniCluster> {
  const folder = await mkdtemp(join(tmpdir(), 'colloquy-patroni-'));
  await chmod(folder, 0o755);
  if (isRoot) await chown(folder, NOBODY, NOBODY);
  const ports = new Map<string, { postgres: number; api: number; etcd: TcpGate }>();
  const [version = ''] = readdirSync(INSTALLED).sort((a, b) => Number(b) - Number(a));
  const run = (command: string, args: readonly string[]): ChildProcess => {
    const child = spawn(command, args, {
      cwd: folder,
      env: { PATH: process.env['PATH'], HOME: folder, LC_ALL: 'C.UTF-8' },
      stdio: 'ignore',
      // A group of its own, with the servers that it starts.
      detached: true,
      ...user,
    });
    running.add(child);
    child.once('exit', () => running.delete(child));
    return child;
  };

  const [etcdPort, peerPort] = [await freePort(), await freePort()];
  const clients = `http://127.0.0.1:${etcdPort}`;
  const peers = `http://127.0.0.1:${peerPort}`;
  const etcd = run('/usr/bin/etcd', [
    ...['--data-dir', join(folder, 'etcd'), '--unsafe-no-fsync'],
    ...['--listen-client-urls', clients, '--advertise-client-urls', clients],
    ...['--listen-peer-urls', peers, '--initial-advertise-peer-urls', peers],
    ...['--initial-cluster', `default=${peers}`],
  ]);

  const children = new Map<string, ChildProcess>();
  const start = (member: string): void => {
    children.set(member, run('/usr/bin/patroni', [join(folder, `${member}.yml`)]));
  };
  for (const member of MEMBERS) {
    const etcdGate = await openGate(etcdPort);
    const own = { postgres: await freePort(), api: await freePort(), etcd: etcdGate };
    ports.set(member, own);
    await mkdir(join(folder, member));
    if (isRoot) await chown(join(folder, member), NOBODY, NOBODY);
    await writeFile(
      join(folder, `${member}.yml`),
      `scope: colloquy
name: ${member}
restapi: { listen: "127.0.0.1:${own.api}", connect_address: "127.0.0.1:${own.api}" }
etcd3: { hosts: ["127.0.0.1:${etcdGate.port}"], use_proxies: true }
bootstrap:
  dcs:
    ttl: 8
    loop_wait: 1
    retry_timeout: 3
    synchronous_mode: ${isSynchronous}
    postgresql:
      use_pg_rewind: true
      parameters: { fsync: "off", wal_log_hints: "on", max_connections: 100 }
  initdb: [ { encoding: UTF8 }, { locale: C.UTF-8 } ]
postgresql:
  listen: "127.0.0.1:${own.postgres}"
  connect_address: "127.0.0.1:${own.postgres}"
  data_dir: ${join(folder, member, 'data')}
  bin_dir: ${join(INSTALLED, version, 'bin')}
  pgpass: ${join(folder, member, 'pgpass')}
  authentication:
    superuser: { username: colloquy, password: ${PASSWORD} }
    replication: { username: replicator, password: ${PASSWORD} }
    rewind: { username: rewinder, password: ${PASSWORD} }
  pg_hba: [ "host all all 127.0.0.1/32 scram-sha-256", "host replication all 127.0.0.1/32 scram-sha-256" ]
  parameters: { unix_socket_directories: "", password_encryption: scram-sha-256 }
`,
    );
    start(member);
  }

  interface Listed {
    readonly Member: string;
    readonly Role: string;
    readonly State: string;
  }
  const patronictl = (...args: string[]) =>
    promisify(execFile)('/usr/bin/patronictl', ['-c', join(folder, 'listed.yml'), ...args], {
      env: { PATH: process.env['PATH'], HOME: folder, LC_ALL: 'C.UTF-8' },
    });
  // Not through a gate, which may be closed.
  await writeFile(join(folder, 'listed.yml'), `scope: colloquy\netcd3: { host: "127.0.0.1:${etcdPort}" }\n`);
  const list = async (): Promise<Listed[]> => {
    const { stdout } = await patronictl('list', '-f', 'json').catch(() => ({ stdout: '[]' }));
    return JSON.parse(stdout) as Listed[];
  };
  const leader = async (): Promise<string | undefined> =>
    (await list()).find(({ Role, State }) => Role === 'Leader' && State === 'running')?.Member;
  const url = (hosts: string): string => `postgres://colloquy:${PASSWORD}@${hosts}/postgres`;
  const hostOf = (member: string): string => `127.0.0.1:${ports.get(member)?.postgres ?? 0}`;

  /** The processes of a member: Patroni, and the server with its children. */
  const groups = async (member: string): Promise<number[]> => {
    const file = join(folder, member, 'data', 'postmaster.pid');
    const [line = ''] = (await readFile(file, 'utf8').catch(() => '')).split('\n');
    const postmaster = Number(line);
    const child = children.get(member)?.pid;
    return [...(child === undefined ? [] : [child]), ...(postmaster > 0 ? await family(postmaster) : [])];
  };
  const signal = async (member: string, name: NodeJS.Signals): Promise<void> => {
    for (const pid of await groups(member)) send(pid, name);
  };

  return {
    url: url(MEMBERS.map(hostOf).join(',')),
    leader,
    settled: async () => {
      const wanted = isSynchronous ? 'Sync Standby' : 'Replica';
      for (const deadline = Date.now() + LIMIT_MS; ;) {
        const members = await list();
        const first = members.find(({ Role, State }) => Role === 'Leader' && State === 'running');
        if (first && members.some(({ Role, State }) => Role === wanted && /running|streaming/.test(State)))
          return first.Member;
        if (Date.now() > deadline) throw new Error(`Patroni did not settle: ${JSON.stringify(members)}`);
        await sleep(200);
      }
    },
    kill9: (member) => signal(member, 'SIGKILL'),
    start,
    freeze: (member) => signal(member, 'SIGSTOP'),
    thaw: (member) => signal(member, 'SIGCONT'),
    cutOff: (member) => {
      ports.get(member)?.etcd.close();
      return Promise.resolve();
    },
    rejoin: (member) => {
      ports.get(member)?.etcd.open();
      return Promise.resolve();
    },
    switchOver: async (from, to) => {
      await patronictl('switchover', 'colloquy', '--master', from, '--candidate', to, '--force');
    },
    query: async <Row>(member: string, sql: string) => {
      const client = new Client({ connectionString: url(hostOf(member)) });
      await client.connect();
      try {
        return (await client.query(sql)).rows as Row[];
      } finally {
        await client.end();
      }
    },
    end: async () => {
      for (const member of MEMBERS) {
        const pids = await groups(member);
        for (const pid of pids) send(pid, 'SIGKILL');
      }
      kill(etcd, 'SIGKILL');
      for (const { etcd: gate } of ports.values()) await gate.end();
      await sleep(200);
      await rm(folder, { recursive: true, force: true, maxRetries: 5 });
    },
  };
}

function send(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch {
    // It has ended.
  }
}

const kill = (child: ChildProcess, signal: NodeJS.Signals): void => {
  if (child.pid !== undefined) send(child.pid, signal);
};

/** A process and its children. */
async function family(pid: number): Promise<number[]> {
  const { stdout } = await promisify(execFile)('ps', ['-o', 'pid=', '--ppid', String(pid)]).catch(() => ({
    stdout: '',
  }));
  return [pid, ...stdout.split('\n').map(Number).filter(Boolean)];
}

/** A way to a port of this machine that can be closed. */
interface TcpGate {
  readonly port: number;
  close(): void;
  open(): void;
  end(): Promise<void>;
}

async function openGate(port: number): Promise<TcpGate> {
  const sockets = new Set<Socket>();
  let isClosed = false;
  const server = createServer((client) => {
    if (isClosed) {
      client.resetAndDestroy();
      return;
    }
    const upstream = connect(port, '127.0.0.1');
    for (const socket of [client, upstream]) {
      sockets.add(socket);
      socket.on('error', () => socket.destroy()).on('close', () => sockets.delete(socket));
    }
    client.pipe(upstream).pipe(client);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return {
    port: (server.address() as AddressInfo).port,
    close: () => {
      isClosed = true;
      for (const socket of sockets) socket.destroy();
    },
    open: () => {
      isClosed = false;
    },
    end: () =>
      new Promise((resolve) => {
        for (const socket of sockets) socket.destroy();
        server.close(() => {
          resolve();
        });
      }),
  };
}
