import { setTimeout as sleep } from 'node:timers/promises';
import { Client } from 'pg';
import { tableOf } from '../../src/projection-engine/projection.js';
import { historyProjection } from '../../src/read-models/history.projection.js';
import { CAPPED, CELLS, type ChaosNode, type Cluster } from './cluster.js';
import { type Random } from './random.js';

/** What is broken, and by whom it is brought back. Resolves when it is whole again. */
type Fault = (cluster: Cluster, random: Random) => Promise<void>;

/** Those that are moved between the cells: what clients use, and the one whose sessions are capped. */
const TENANTS = ['a', 'b', CAPPED.tenant] as const;

const someNode = ({ nodes }: Cluster, random: Random): ChaosNode => random.pick(nodes);

const FAULTS = {
  'kill a node': async (cluster, random) => {
    const node = someNode(cluster, random);
    await node.kill();
    await sleep(random.int(0, 2_000));
    await node.start();
  },
  'stop a node past its leases': async (cluster, random) => {
    const { service } = someNode(cluster, random);
    service?.signal('SIGSTOP');
    await sleep(random.int(6_000, 14_000));
    service?.signal('SIGCONT');
  },
  'stop a node for a moment': async (cluster, random) => {
    const { service } = someNode(cluster, random);
    service?.signal('SIGSTOP');
    await sleep(random.int(200, 3_000));
    service?.signal('SIGCONT');
  },
  "turn a node's clock": async (cluster, random) => {
    const node = someNode(cluster, random);
    await node.kill();
    await node.start(random.int(-3_600_000, 3_600_000));
  },
  'kill the database': async (cluster, random) => {
    await cluster.killPostgres();
    await sleep(random.int(1_000, 4_000));
  },
  'cut connections in the middle of commits': async (cluster, random) => {
    const { proxy } = someNode(cluster, random);
    const share = random.pick([0.01, 0.05, 0.2]);
    proxy.decide(() =>
      random.chance(share) ? (random.chance(0.5) ? 'lose answer' : 'lose request') : 'pass',
    );
    await sleep(random.int(1_000, 4_000));
    proxy.decide(() => 'pass');
  },
  'cut all connections': async (cluster, random) => {
    const { proxy } = someNode(cluster, random);
    proxy.down();
    await sleep(random.int(0, 4_000));
    proxy.up();
  },
  'let the database hang': async (cluster, random) => {
    const { proxy } = someNode(cluster, random);
    proxy.hang();
    await sleep(random.int(500, 6_000));
    proxy.up();
  },
  'take all connections of the database': async (cluster, random) => {
    const clients: Client[] = [];
    for (let n = 0; n < 110; n += 1) {
      const client = new Client({ connectionString: cluster.postgres.url });
      client.on('error', () => undefined);
      if (
        !(await client.connect().then(
          () => true,
          () => false,
        ))
      )
        break;
      clients.push(client);
    }
    await sleep(random.int(500, 3_000));
    await Promise.all(clients.map((client) => client.end().catch(() => undefined)));
  },
  'end connections of the database': async (cluster, random) => {
    await ask(cluster.postgres.url, (client) =>
      client.query(
        `select pg_terminate_backend(pid) from pg_stat_activity
         where backend_type = 'client backend' and pid <> pg_backend_pid() and random() < $1`,
        [random.pick([0.2, 0.6, 1])],
      ),
    );
  },
  'hold back a read model': async (cluster, random) => {
    await ask(cluster.postgres.url, async (client) => {
      await client.query('begin');
      await client.query(`lock table ${tableOf(historyProjection)} in exclusive mode`);
      await sleep(random.int(500, 3_000));
      await client.query('rollback');
    });
  },
  'fill the disk of the database': async ({ disk }, random) => {
    await disk?.fill();
    await sleep(random.int(500, 3_000));
    await disk?.free();
  },
  'restart the broker': async (cluster, random) => {
    await cluster.broker.stop();
    await sleep(random.int(0, 3_000));
    await cluster.broker.start();
  },
  'kill Redis': async ({ redis }, random) => {
    await redis?.kill9();
    await sleep(random.int(500, 3_000));
    await redis?.start();
  },
  'move a tenant': async (cluster, random) => {
    const cell = random.pick(CELLS);
    // Long enough for most moves, and short enough to kill some in all of their parts.
    await cluster.command(['tenants', 'move', random.pick(TENANTS), cell], random.int(1_000, 9_000));
  },
} satisfies Record<string, Fault>;

/** What finds most comes most often; what takes long comes rarely. */
const WEIGHTS: Readonly<Record<keyof typeof FAULTS, number>> = {
  'kill a node': 3,
  'stop a node past its leases': 2,
  'stop a node for a moment': 2,
  "turn a node's clock": 1,
  'kill the database': 2,
  'cut connections in the middle of commits': 4,
  'cut all connections': 2,
  'let the database hang': 2,
  'take all connections of the database': 1,
  'end connections of the database': 2,
  'hold back a read model': 1,
  'fill the disk of the database': 1,
  'restart the broker': 1,
  'kill Redis': 1,
  'move a tenant': 3,
};

async function ask(url: string, work: (client: Client) => Promise<unknown>): Promise<void> {
  const client = new Client({ connectionString: url });
  client.on('error', () => undefined);
  try {
    await client.connect();
    await work(client);
  } catch {
    // It is another fault's turn to have the database away.
  } finally {
    await client.end().catch(() => undefined);
  }
}

/** Breaks one thing after the other until `until`, with quiet between them. @returns how often each was broken */
export async function breakThings(
  cluster: Cluster,
  random: Random,
  until: () => boolean,
  say: (what: string) => void,
): Promise<Map<string, number>> {
  // What is not there cannot break.
  const weights = {
    ...WEIGHTS,
    ...(!cluster.disk && { 'fill the disk of the database': 0 }),
    ...(!cluster.redis && { 'kill Redis': 0 }),
  };
  const done = new Map<string, number>();
  while (!until()) {
    await sleep(random.int(300, 2_500));
    if (until()) break;
    const name = random.weighted(weights);
    say(name);
    await FAULTS[name](cluster, random);
    done.set(name, (done.get(name) ?? 0) + 1);
  }
  return done;
}
