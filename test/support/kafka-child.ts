import { spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { mkdirSync, openSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createPool } from '../../src/database/connection.js';
import { RELAXED } from '../../src/database/server-settings.js';
import { EventLog } from '../../src/event-store/log.js';
import { Relay } from '../../src/kafka/relay.js';
import { upcast } from '../../src/domain/session.events.js';

/*
 * Programs of the Kafka tests:
 *   kafka-child.ts broker <folder> <pid>          the broker of a run of Jest, which ends with the process <pid>
 *   kafka-child.ts relay <url> <brokers> <topic>  a node that publishes and does nothing else
 */

/**
 * Starts the broker unless another worker has, prints the result (`brokers <host:port>` or `none <reason>`), and ends.
 */
async function broker(folder: string, owner: string): Promise<void> {
  const result = join(folder, 'result');
  const read = () => {
    try {
      return readFileSync(result, 'utf8');
    } catch {
      return '';
    }
  };
  let isStarter = true;
  try {
    mkdirSync(folder);
  } catch {
    // Another worker starts the broker, or has started it.
    isStarter = false;
  }
  if (isStarter) {
    const log = join(folder, 'log');
    const output = openSync(log, 'w');
    const script = join(__dirname, '../../scripts/kafka.mjs');
    const child = spawn(process.execPath, [script], { detached: true, stdio: ['ignore', output, output] });
    const guard =
      'while kill -0 "$1" 2>/dev/null && kill -0 "$2" 2>/dev/null; do sleep 1; done; kill "$2"; rm -rf "$3"';
    spawn('sh', ['-c', guard, 'sh', owner, String(child.pid), folder], {
      cwd: '/',
      detached: true,
      stdio: 'ignore',
    }).unref();
    const ended = () => child.exitCode !== null;
    for (;;) {
      const said = readFileSync(log, 'utf8');
      const brokers = /^KAFKA_BROKERS=(.*)$/m.exec(said)?.[1];
      if (brokers !== undefined || ended()) {
        // The file is renamed at the end, because other workers read it as soon as it exists.
        const what =
          brokers === undefined ? `none ${said.trim().replaceAll('\n', ' ')}` : `brokers ${brokers}`;
        writeFileSync(`${result}.new`, what);
        renameSync(`${result}.new`, result);
        break;
      }
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    child.unref();
  }
  while (read() === '') await new Promise((resolve) => setTimeout(resolve, 50));
  process.stdout.write(read());
}

async function relay(url: string, brokers: string, topic: string): Promise<void> {
  const store = await EventLog.open(url, { upcast });
  const pool = createPool(url, 'relay', { settings: RELAXED });
  const leases = store.leases(randomUUID());
  const node = new Relay(store, pool, leases, {
    kafka: { brokers: [brokers] },
    topic,
    partitions: 4,
    retentionMs: 3_600_000,
    maxMessageBytes: 1_048_576,
    compression: 'gzip',
    onTrouble: (error, forGood) => {
      process.stdout.write(`trouble ${String(forGood)} ${error.message}\n`);
    },
    onRecovered: () => {
      process.stdout.write('recovered\n');
    },
  });
  node.start();
  // In a service the HTTP server keeps the process alive. Here nothing else would while the database is unavailable.
  setInterval(() => undefined, 60_000);
  process.stdout.write(`ready ${leases.owner}\n`);
  process.once('SIGTERM', () => {
    void (async () => {
      await node.stop();
      await leases.close();
      await pool.end();
      await store.close();
      process.exit(0);
    })();
  });
}

const [program, ...args] = process.argv.slice(2);
const [first = '', second = '', third = ''] = args;
(program === 'broker' ? broker(first, second) : relay(first, second, third)).then(
  () => {
    if (program === 'broker') process.exit(0);
  },
  (error: unknown) => {
    console.error(error);
    process.exit(1);
  },
);
