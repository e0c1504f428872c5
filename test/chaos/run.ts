import { setTimeout as sleep } from 'node:timers/promises';
import { Client } from 'pg';
import { consume } from '../../src/kafka/consumer.js';
import { memoryPlaces } from '../../src/kafka/places.js';
import { openEvents } from '../support/event-stream.js';
import { tap } from '../support/kafka.js';
import { ChaosClient } from './clients.js';
import { check, type Evidence, type LoggedEvent, type Violation } from './checker.js';
import { CAPPED, type CellName, CELLS, type Cluster, startCluster } from './cluster.js';
import { breakThings } from './faults.js';
import { now, type Operation } from './history.js';
import { Random } from './random.js';

const CLIENTS = 20;
/** How long a node may take to be ready after everything is whole. */
const BACK_LIMIT_MS = 60_000;
const STILL_LIMIT_MS = 60_000;
const WAKE_UPS = 21;

export interface ChaosOptions {
  readonly seconds: number;
  readonly seed: number;
  readonly nodes: number;
  /** `main.js` of another build. */
  readonly main?: string;
  /** Run on the database before anything else happens. */
  readonly sql?: string;
  readonly say: (line: string) => void;
}

export interface Report {
  readonly violations: readonly Violation[];
  readonly operations: Readonly<Record<string, number>>;
  readonly faults: Readonly<Record<string, number>>;
  readonly events: number;
}

/** Lets clients do everything while things break, waits until all is whole and still, and checks. */
export async function run(options: ChaosOptions): Promise<Report> {
  const { seconds, seed, nodes, main, sql, say } = options;
  const random = new Random(seed);
  const cluster = await startCluster({ nodes, ...(main !== undefined && { main }) });
  try {
    if (sql !== undefined) for (const cell of CELLS) await query(cluster, sql, cell);
    const history: Operation[] = [];
    const watching = watchCap(cluster);
    const following = follow(cluster, new Random(seed + 1));
    const consuming = consumeAll(cluster);
    const until = now() + seconds * 1_000;
    const isOver = (): boolean => now() > until;
    const shared: ConstructorParameters<typeof ChaosClient>[3] = new Map();
    const clients = Array.from({ length: CLIENTS }, (_, n) =>
      new ChaosClient(n, cluster.nodes, new Random(seed * 1_000 + n), shared, (operation) => {
        history.push(operation);
      }).run(isOver),
    );
    const begun = now();
    const faults = await breakThings(cluster, random, isOver, (what) => {
      say(`${((now() - begun) / 1_000).toFixed(1)} s: ${what}`);
    });
    await Promise.all(clients);
    say(`${history.length} operations; waiting until everything is whole`);
    const notBack = [...(await back(cluster)), ...(await finishMoves(cluster))];
    const wakeUpMs = notBack.length === 0 ? await wakeUps(cluster) : [];
    const mostActive = await watching.stop();
    const homes = await homesOf(cluster);
    const isHome = ({ cell, tenant }: LoggedEvent): boolean => (homes.get(tenant) ?? 'default') === cell;
    const total = (map: ReadonlyMap<string, readonly string[]>): number =>
      [...map.values()].reduce((sum, ids) => sum + ids.length, 0);
    let listening: Awaited<ReturnType<typeof tap>> | undefined;
    let all = await logOf(cluster);
    let evidence: Evidence;
    for (;;) {
      const log = all.filter(isHome);
      say(`${log.length} events; reading what is there`);
      const ofA = log.filter(({ tenant }) => tenant === 'a').length;
      await still(() => following.events.length >= ofA);
      // Only now, because a plain consumer may not outlive the faults of the brokers.
      const { records } = (listening ??= await tap(cluster.broker.brokers, cluster.topic));
      await still(() => new Set(records.map(({ id }) => id)).size >= log.length);
      await still(() => total(consuming.consumed) >= log.length);
      evidence = {
        history,
        log,
        left: all.filter((event) => !isHome(event)),
        mostActive,
        wakeUpMs,
        notBack,
        counters: await countersOf(cluster, homes),
        topic: records,
        consumed: consuming.consumed,
        followed: following.events,
        unequal: await unequalModels(cluster),
        shown: await shownMessages(cluster, log),
      };
      // The service may have written by itself meanwhile, as it does for a reply whose node has died. Then nothing of this fits
      // together, and is looked at once more.
      const last = all.length;
      all = await logOf(cluster);
      if (all.length === last) break;
    }
    following.stop();
    await consuming.stop();
    await listening.stop();
    return {
      violations: check(evidence),
      operations: counted(
        history.map((one) => (one.kind === 'write' ? `${one.kind} ${one.outcome}` : one.kind)),
      ),
      faults: Object.fromEntries(faults),
      events: evidence.log.length,
    };
  } finally {
    await cluster.end();
  }
}

function counted(names: readonly string[]): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const name of names) counts[name] = (counts[name] ?? 0) + 1;
  return counts;
}

/** Waits until something holds, for a limited time: what does not come is told by the check. */
async function still(holds: () => boolean): Promise<void> {
  const deadline = now() + STILL_LIMIT_MS;
  while (!holds() && now() < deadline) await sleep(100);
}

async function query<Row>(cluster: Cluster, sql: string, cell: CellName = 'default'): Promise<Row[]> {
  const client = new Client({ connectionString: cluster.cellUrl(cell) });
  client.on('error', () => undefined);
  try {
    await client.connect();
    return (await client.query(sql)).rows as Row[];
  } finally {
    await client.end().catch(() => undefined);
  }
}

/** Counts the active sessions of the capped tenant again and again, each time in one snapshot. */
function watchCap(cluster: Cluster): { stop(): Promise<number> } {
  let most = 0;
  const stopping = new AbortController();
  const watching = (async () => {
    while (!stopping.signal.aborted) {
      const rows = await Promise.all(
        CELLS.map((cell) =>
          query<{ active: number }>(
            cluster,
            `select count(*)::int as active from (
           select distinct on (stream_id) type from event where tenant = '${CAPPED.tenant}'
             and type in ('SessionCreated', 'SessionResumed', 'SessionExpired', 'SessionDeleted')
           order by stream_id, version desc
         ) last where type in ('SessionCreated', 'SessionResumed')`,
            cell,
          ),
        ),
      ).catch(() => []);
      most = Math.max(most, ...rows.flat().map(({ active }) => active));
      await sleep(300);
    }
  })();
  return {
    stop: async () => {
      stopping.abort();
      await watching;
      return most;
    },
  };
}

/** Follows the events of the tenant `a` from the beginning of the log, on any node, from where a stream broke off. */
function follow(
  { nodes }: Cluster,
  random: Random,
): { readonly events: { session: string; version: number }[]; stop(): void } {
  const events: { session: string; version: number }[] = [];
  const stopping = new AbortController();
  let leave = (): void => undefined;
  void (async () => {
    let last = '';
    while (!stopping.signal.aborted) {
      try {
        const url = random.pick(nodes).url();
        if (url === undefined) throw new Error('there is no node');
        const stream = await openEvents(`${url}/v1/events`, {
          headers: { 'colloquy-tenant': 'a', ...(last !== '' && { 'last-event-id': last }) },
        });
        leave = () => {
          stream.leave();
        };
        for (;;) {
          const { id, data } = await stream.next();
          last = id;
          events.push({ session: String(data['sessionId']), version: Number(data['version']) });
        }
      } catch {
        await sleep(200);
      }
    }
  })();
  return {
    events,
    stop: () => {
      stopping.abort();
      leave();
    },
  };
}

/** The effect of a consumer that uses what `colloquy/consumer` offers. */
function consumeAll({ broker, topic }: Cluster): {
  readonly consumed: Map<string, string[]>;
  stop(): Promise<void>;
} {
  const consumed = new Map<string, string[]>();
  const consumer = consume({
    kafka: { brokers: [broker.brokers] },
    groupId: `consumer-${topic}`,
    topic,
    maxWaitMs: 200,
    places: memoryPlaces(),
    apply: (events) => {
      for (const { tenant, sessionId, id } of events) {
        const key = `${tenant}/${sessionId}`;
        consumed.set(key, [...(consumed.get(key) ?? []), id]);
      }
      return Promise.resolve();
    },
    onError: () => undefined,
  });
  return { consumed, stop: () => consumer.stop() };
}

/** Waits until all nodes are ready. @returns those that are not in time */
async function back({ nodes }: Cluster): Promise<string[]> {
  const deadline = now() + BACK_LIMIT_MS;
  const late: string[] = [];
  for (const [n, node] of nodes.entries()) {
    for (;;) {
      const answer = await fetch(`${node.url() ?? ''}/health/ready`, {
        signal: AbortSignal.timeout(5_000),
      }).then(
        async (response) => ({ status: response.status, text: await response.text() }),
        (error: unknown) => ({ status: 0, text: String(error) }),
      );
      // What Kafka has not got is no reason to be down; that it gets everything is looked at elsewhere.
      if (answer.status === 200) break;
      if (now() > deadline) {
        late.push(
          `node ${n}: ${answer.status} ${answer.text}\n${node.service?.output().slice(-2_000) ?? ''}`,
        );
        break;
      }
      await sleep(200);
    }
  }
  return late;
}

/** How long it takes until a follower on one node has what was written on another. */
async function wakeUps({ nodes }: Cluster): Promise<number[]> {
  const [one, other] = [nodes[0]?.url() ?? '', nodes[1]?.url() ?? ''];
  const headers = { 'colloquy-tenant': 'd', 'content-type': 'application/json' };
  const stream = await openEvents(`${one}/v1/events?after=end`, { headers: { 'colloquy-tenant': 'd' } });
  const times: number[] = [];
  for (let n = 0; n < WAKE_UPS; n += 1) {
    const begun = now();
    const response = await fetch(`${other}/v1/sessions`, { method: 'POST', headers, body: '{}' });
    if (!response.ok) throw new Error(`a quiet service answers ${response.status}: ${await response.text()}`);
    await stream.next();
    times.push(now() - begun);
    await sleep(37);
  }
  stream.leave();
  return times;
}

/** The events of all cells, also of tenants that have left them. */
const logOf = async (cluster: Cluster): Promise<LoggedEvent[]> => {
  const ofCells = CELLS.map((cell) =>
    query<LoggedEvent>(
      cluster,
      `select '${cell}' as cell, lane::int, position::int, tenant, stream_id as session, version, id::text, type,
              incarnation, data
       from event order by lane, position`,
      cell,
    ),
  );
  return (await Promise.all(ofCells)).flat();
};

/** Tenant → the cell in which it lives. */
async function homesOf(cluster: Cluster): Promise<Map<string, string>> {
  const rows = await query<{ tenant: string; cell: string }>(cluster, 'select tenant, cell from tenant_cell');
  return new Map(rows.map(({ tenant, cell }) => [tenant, cell]));
}

/** Takes up the moves that were broken off. @returns those that do not come to their end */
async function finishMoves(cluster: Cluster): Promise<string[]> {
  const deadline = now() + BACK_LIMIT_MS;
  for (let told = ''; ;) {
    const { out, err } = await cluster.command(['tenants', 'moving']);
    const [way] = out.split('\n').filter(Boolean);
    if (way === undefined && err === '') return [];
    if (now() > deadline) return [`a move: ${way ?? ''} ${err} ${told}`];
    if (way === undefined) continue;
    const { tenant, movingTo } = JSON.parse(way) as { tenant: string; movingTo: string };
    told = (await cluster.command(['tenants', 'move', tenant, movingTo])).err;
  }
}

async function countersOf(
  cluster: Cluster,
  homes: ReadonlyMap<string, string>,
): Promise<Map<string, number>> {
  const counters = new Map<string, number>();
  for (const cell of CELLS) {
    const rows = await query<{ tenant: string; value: number }>(
      cluster,
      `select substr(key, 8) as tenant, value::int from counter where starts_with(key, 'active:')`,
      cell,
    );
    for (const { tenant, value } of rows)
      if ((homes.get(tenant) ?? 'default') === cell) counters.set(tenant, value);
  }
  return counters;
}

async function unequalModels({ nodes }: Cluster): Promise<string[]> {
  const url = nodes[0]?.url() ?? '';
  const unequal: string[] = [];
  for (const cell of CELLS) {
    const headers = { 'colloquy-cell': cell };
    const listed = await fetch(`${url}/v1/admin/projections`, { headers });
    for (const { name } of ((await listed.json()) as { data: { name: string }[] }).data) {
      const response = await fetch(`${url}/v1/admin/projections/${name}/verify`, { method: 'POST', headers });
      const text = await response.text();
      if (!response.ok || !(JSON.parse(text) as { ok: boolean }).ok)
        unequal.push(`${cell}: ${name}: ${text}`);
    }
    const parked = await (await fetch(`${url}/v1/admin/parked`, { headers })).text();
    if ((JSON.parse(parked) as { data: unknown[] }).data.length > 0)
      unequal.push(`${cell}: parked: ${parked.slice(0, 500)}`);
  }
  return unequal;
}

/** The ids of the messages of all sessions that nothing was removed from. */
async function shownMessages(
  { nodes }: Cluster,
  log: readonly LoggedEvent[],
): Promise<Map<string, string[]>> {
  const sessions = new Map(
    log
      .filter(({ session }) => session.startsWith('s-'))
      .map(({ tenant, session }) => [`${tenant}/${session}`, tenant]),
  );
  const shown = new Map<string, string[]>();
  for (const [key, tenant] of sessions) {
    const url = `${nodes[0]?.url() ?? ''}/v1/sessions/${key.slice(tenant.length + 1)}/messages?limit=200`;
    const ids: string[] = [];
    let cursor: string | null = null;
    do {
      const query: string = cursor === null ? '' : `&cursor=${cursor}`;
      const response = await fetch(url + query, { headers: { 'colloquy-tenant': tenant } });
      const page = (await response.json()) as { data?: { id: string }[]; nextCursor?: string | null };
      ids.push(...(page.data ?? []).map(({ id }) => id));
      cursor = page.nextCursor ?? null;
    } while (cursor !== null);
    shown.set(key, ids);
  }
  return shown;
}
