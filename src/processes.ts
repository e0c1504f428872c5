import cluster, { type Worker } from 'node:cluster';
import { availableParallelism } from 'node:os';
import { type Logger as PinoLogger } from 'pino';
import { AggregatorRegistry } from 'prom-client';
import { type Config } from './config.js';
import { openDatabase, type Running, type Undo, undoAll } from './service.js';
import { MARK, type Message } from './sibling-processes.js';

/*
 * The service as several processes that share a port (`server.processes`). Each one is a node like one on another
 * machine: they have nothing in common but the database. The first process serves no requests. It owns the embedded
 * database and the data folder, hands connections to the others in turn, and replaces one that ends by itself.
 */

/** So that a process which cannot live does not keep the machine busy by being started. */
const RESTART_MS = 1_000;

export const processesOf = ({ server }: Config): number =>
  server.processes === 'auto' ? availableParallelism() : server.processes;

/** One of the processes ended before all of them listened. What it wrote tells why. */
export class ProcessEnded extends Error {
  override readonly name = 'ProcessEnded';
}

/**
 * Starts so many processes, and the database if none is named.
 * @throws ProcessEnded; DataFolderInUseError; whatever the database says when it cannot be used
 */
export async function startProcesses(config: Config, count: number, logger: PinoLogger): Promise<Running> {
  const undo: Undo = [];
  const stop = (): Promise<void> => undoAll(undo);
  try {
    const { databaseUrl, embedded, masterKeys } = await openDatabase(config, undo, count);
    const processes = new Processes(logger, {
      [MARK]: 'serving',
      ...(embedded && { DATABASE_URL: databaseUrl, COLLOQUY_MASTER_KEY: masterKeys.join() }),
    });
    undo.push(() => processes.stop());
    const url = await processes.start(count);
    const reload = (): Promise<void> => {
      processes.reload();
      return Promise.resolve();
    };
    return { url, embedded, stop, reload };
  } catch (error) {
    await stop();
    throw error;
  }
}

class Processes {
  private readonly metrics = new AggregatorRegistry();
  private isStopping = false;
  private isStarted = false;
  /** Called when a process ends before all of them listen. */
  private failed: (error: Error) => void = () => undefined;

  constructor(
    private readonly logger: PinoLogger,
    private readonly env: Readonly<Record<string, string>>,
  ) {}

  /** @returns the address, once all of them listen */
  async start(count: number): Promise<string> {
    const failure = new Promise<never>((_, reject) => {
      this.failed = reject;
    });
    const urls = Array.from({ length: count }, () => this.fork());
    const [url = ''] = await Promise.race([Promise.all(urls), failure]);
    this.isStarted = true;
    return url;
  }

  /** Each reads the settings by itself. */
  reload(): void {
    for (const worker of this.running()) worker.process.kill('SIGHUP');
  }

  private running(): Worker[] {
    return Object.values(cluster.workers ?? {}).filter(
      (worker): worker is Worker => worker?.isDead() === false,
    );
  }

  async stop(): Promise<void> {
    this.isStopping = true;
    await Promise.all(
      this.running().map(
        (worker) =>
          new Promise<void>((resolve) => {
            worker.once('exit', () => {
              resolve();
            });
            worker.process.kill('SIGTERM');
          }),
      ),
    );
  }

  /** Starts a process; resolves to its address when it listens. */
  private fork(): Promise<string> {
    const worker = cluster.fork(this.env);
    worker.once('exit', (code, signal) => {
      this.ended(worker, signal || `exit code ${code}`);
    });
    return new Promise((resolve) => {
      worker.on('message', (message: Message) => {
        if (message.colloquy === 'listening') resolve(message.url);
        if (message.colloquy === 'metrics') void this.tellMetrics(worker, message.id);
      });
    });
  }

  private ended(worker: Worker, how: string): void {
    if (this.isStopping) return;
    const what = `process ${worker.process.pid ?? 0} ended by itself (${how})`;
    if (!this.isStarted) {
      this.failed(new ProcessEnded(what));
      return;
    }
    this.logger.error(`${what}; another one takes its place`);
    setTimeout(() => {
      if (!this.isStopping) void this.fork();
    }, RESTART_MS);
  }

  private async tellMetrics(worker: Worker, id: number): Promise<void> {
    const answer = await this.metrics.clusterMetrics().then(
      (text) => ({ text }),
      (error: unknown) => ({ error: (error as Error).message }),
    );
    if (worker.isConnected()) worker.send({ colloquy: 'metrics-of-all', id, ...answer } satisfies Message);
  }
}
