import { chmodSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { randomUUID } from 'node:crypto';
import { Client, type Pool, type PoolClient } from 'pg';
import { type Consumer, consume, postgresPlaces } from '../../../src/consumer.js';
import { createPool } from '../../../src/database/connection.js';
import {
  type EmbeddedPostgres,
  startEmbeddedPostgres,
} from '../../../src/embedded-postgres/embedded-postgres.js';
import { migrate } from '../../../src/database/migrate.js';
import { type EventLog } from '../../../src/event-store/log.js';
import { migrations } from '../../../src/migrations.js';
import {
  describeWithKafka,
  endLeases,
  killRelays,
  offences,
  ownBroker,
  type OwnBroker,
  type RelayProcess,
  startRelay,
  type Tap,
  tap,
} from '../../support/kafka.js';
import { eventually } from '../../support/http.js';
import { countOf, openStore, sized, sleep, Writers } from './fixture.js';

/**
 * While events are appended, the broker goes away and comes back, nodes are killed or stopped, and the database
 * restarts. After each of these every event is on the topic, first deliveries are in order, and the consumer's effect
 * happened exactly once.
 */
describeWithKafka('relay under faults', () => {
  let folder: string;
  let postgres: EmbeddedPostgres;
  let broker: OwnBroker;
  let store: EventLog;
  let pool: Pool;
  let consumer: Consumer;
  let listening: Tap;
  let writers: Writers;
  let topic: string;
  let nodes: RelayProcess[];

  beforeAll(async () => {
    folder = mkdtempSync(join(tmpdir(), 'colloquy-faults-'));
    chmodSync(folder, 0o755);
    [postgres, broker] = await Promise.all([startEmbeddedPostgres({ dataDir: folder }), ownBroker()]);
    await migrate(postgres.url, migrations);
    store = await openStore(postgres.url);
    pool = createPool(postgres.url, 'consumer');
    await pool.query(
      'create table usage (tenant text primary key, input bigint not null, events bigint not null)',
    );
    topic = `faults-${randomUUID()}`;
    writers = new Writers(store, 200);
    nodes = await Promise.all([start(), start()]);
    await writers.round(1);
    listening = await tap(broker.brokers, topic);
    consumer = consume({
      kafka: { brokers: [broker.brokers] },
      groupId: `faults-${topic}`,
      topic,
      maxWaitMs: 100,
      places: postgresPlaces(pool, { consumer: 'faults' }),
      apply,
      onError: () => undefined,
    });
  }, 120_000);

  afterAll(async () => {
    await writers.stop();
    await Promise.all([consumer.stop(), listening.stop()]);
    await killRelays();
    await pool.end();
    await store.close();
    await broker.remove();
    await postgres.stop();
    rmSync(folder, { recursive: true, force: true });
  }, 60_000);

  const start = () => startRelay(postgres.url, broker.brokers, topic);

  const apply = async (
    events: Parameters<Parameters<typeof consume<PoolClient>>[0]['apply']>[0],
    tx: PoolClient,
  ): Promise<void> => {
    for (const event of events) {
      const input = event.type === 'GenerationCompleted' ? (event.data.usage?.inputTokens ?? 0) : 0;
      await tx.query(
        `insert into usage as u values ($1, $2, 1)
         on conflict (tenant) do update set input = u.input + $2, events = u.events + 1`,
        [event.tenant, input],
      );
    }
  };

  /** Sums of the log and of the consumer's table, which agree when every event had its effect once. */
  async function sums(): Promise<{ log: unknown; table: unknown }> {
    const { rows: log } = await pool.query<object>(
      `select tenant, sum(coalesce((data->'usage'->>'inputTokens')::int, 0))::int as input, count(*)::int as events
       from event group by 1 order by 1`,
    );
    const { rows: table } = await pool.query<object>(
      'select tenant, input::int, events::int from usage order by 1',
    );
    return { log, table };
  }

  /** Number of lanes for which this node has a lease, whether it has expired or not. */
  async function lanesOf({ owner }: RelayProcess): Promise<number> {
    const { rowCount } = await pool.query(
      `select from lease where owner = $1 and starts_with(name, 'relay/lane/')`,
      [owner],
    );
    return rowCount ?? 0;
  }

  async function expectAllIsWell(): Promise<void> {
    await writers.stop();
    const client = new Client({ connectionString: postgres.url });
    await client.connect();
    const { rows } = await client.query<{ key: string; ids: string[] }>(
      `select tenant || '/' || stream_id as key, array_agg(id::text order by version) as ids from event group by 1`,
    );
    await client.end();
    const log = new Map(rows.map(({ key, ids }) => [key, ids]));
    await listening.distinct(countOf(log), 60_000).catch((error: unknown) => {
      throw new Error(nodes.map((node) => node.output()).join('\n'), { cause: error });
    });
    expect(offences(listening.records, log)).toEqual([]);
    const deadline = Date.now() + 90_000;
    for (;;) {
      const { log: expected, table } = await sums();
      if (JSON.stringify(expected) === JSON.stringify(table)) return;
      if (Date.now() > deadline) expect(table).toEqual(expected);
      await sleep(200);
    }
  }

  it('the broker is stopped for a while', async () => {
    writers.flow(300);
    await sleep(1_000);
    await broker.stop();
    await eventually(() => Promise.resolve(nodes.every((node) => node.output().includes('trouble'))), 30_000);
    await sleep(sized(20_000, 3_000));
    await broker.start();
    await sleep(1_000);
    await expectAllIsWell();
    // Each node reports an outage once, not at each retry.
    for (const node of nodes) expect(node.output().match(/trouble/g)?.length ?? 0).toBeLessThanOrEqual(3);
  }, 240_000);

  it('a node is killed with -9 at random points, again and again', async () => {
    writers.flow(300);
    for (let kill = 0; kill < sized(10, 4); kill += 1) {
      await sleep(200 + Math.random() * 2_000);
      const [victim] = nodes.splice(kill % 2, 1);
      await victim?.kill9();
      if (victim) await endLeases((sql, params) => pool.query(sql, params), victim);
      nodes.push(await start());
    }
    await expectAllIsWell();
  }, 240_000);

  it('a node is stopped past its lease and resumed', async () => {
    writers.flow(300);
    await sleep(1_000);
    const [stopped] = nodes as [RelayProcess, ...RelayProcess[]];
    stopped.signal('SIGSTOP');
    await sleep(1_500);
    await endLeases((sql, params) => pool.query(sql, params), stopped);
    await eventually(async () => (await lanesOf(stopped)) === 0, 30_000);
    await sleep(1_000);
    stopped.signal('SIGCONT');
    await sleep(1_000);
    await expectAllIsWell();
  }, 240_000);

  it('PostgreSQL is restarted', async () => {
    writers.flow(300);
    await sleep(1_000);
    const [pid = ''] = readFileSync(join(postgres.dataDir, 'postmaster.pid'), 'utf8').split('\n');
    // The server ends at once; its supervisor starts it again.
    process.kill(Number(pid), 'SIGQUIT');
    await sleep(5_000);
    await expectAllIsWell();
  }, 240_000);
});
