import { type Client } from 'pg';
import { arrayLiteral } from '../database/array-literal.js';
import { type Append, type AppendResult } from './append.js';
import { chainsParameters, chainsResults, type ChainsRow } from './append-chains.js';
import { divide, type Divided, knownParameters, LANE_HAS_GROWN } from './append-known.js';
import { type Link, linksOf } from './append-links.js';
import { sendNext, sendOne } from './append-single.js';
import { type KnownEnds, type LaneEnd } from './known-ends.js';

/**
 * Commits appends with a single autocommit statement: the cheapest statement that covers what they ask for.
 *
 * @param run start time of the server that the connection leads to
 * @param ends what this process knows without asking
 * @returns one result per append, in the order of the appends
 */
export async function commitAppends(
  client: Client,
  appends: readonly Append[],
  run: string,
  ends: KnownEnds,
): Promise<AppendResult[]> {
  const links = linksOf(appends);
  const intact = links.filter(({ isBroken }) => !isBroken);
  const results = await send(client, intact, run, ends);
  return links.map(({ append, isBroken }) =>
    // What it was to follow is not in the log, so there is nothing to ask the database.
    isBroken ? { status: 'conflict', version: append.chain.version } : (results.shift() as AppendResult),
  );
}

async function send(
  client: Client,
  links: readonly Link[],
  run: string,
  ends: KnownEnds,
): Promise<AppendResult[]> {
  const [link] = links;
  if (!link) return [];
  if (links.some(({ append }) => append.destroys)) return sendDestroying(client, links);
  if (links.length === 1 && isPlain(link.append)) return [await sendPlain(client, link.append, run, ends)];
  const divided = divide(links, run, ends);
  return (await sendKnown(client, links, divided, run, ends)) ?? sendChains(client, links);
}

const isPlain = ({ events, guard, counters, key }: Append): boolean =>
  events.length > 0 &&
  !guard &&
  !counters?.length &&
  !key &&
  events.slice(1).every(({ payload }) => !payload.sealed);

async function sendPlain(
  client: Client,
  append: Append,
  run: string,
  ends: KnownEnds,
): Promise<AppendResult> {
  const { stream, lane, expected, events, state, lease } = append;
  const end = ends.endOf(lane, run);
  const isNext = ends.versionOf(stream, lane, run) === expected && events.length === 1 && !state && !lease;
  const next = end && isNext ? await sendNext(client, append, end, run) : undefined;
  return next ?? sendOne(client, append, end?.position, run);
}

/**
 * Appends without looking where the streams end that this process knows, and in the same transaction what else the batch
 * has.
 *
 * @returns undefined when nothing is known, or when the lanes have grown; then nothing was committed
 */
async function sendKnown(
  client: Client,
  links: readonly Link[],
  divided: Divided,
  run: string,
  ends: KnownEnds,
): Promise<AppendResult[] | undefined> {
  const laneEnds = new Map<number, LaneEnd>();
  for (const { append } of divided.known) {
    const end = ends.endOf(append.lane, run);
    if (end) laneEnds.set(append.lane, end);
  }
  if (laneEnds.size === 0) return undefined;
  const { others } = divided;
  const { values, results } = knownParameters(divided, run, laneEnds);
  try {
    const [row, ...rows] = await queryKnown(client, values, others);
    const found = results(row?.r_time ?? '');
    chainsResults(others, rows).forEach((result, index) => {
      const link = others[index];
      if (link) found.set(link, result);
    });
    return links.map((link) => found.get(link) as AppendResult);
  } catch (error) {
    if ((error as { code?: unknown }).code !== LANE_HAS_GROWN) throw error;
    ends.distrust(laneEnds.keys());
    return undefined;
  }
}

async function sendChains(client: Client, links: readonly Link[]): Promise<AppendResult[]> {
  const values = chainsParameters(links);
  const { rows } = await client.query<ChainsRow>({
    name: 'append_chains',
    text: `select * from append_chains(${numbers(values)})`,
    values,
  });
  return chainsResults(links, rows);
}

/** Appends, and destroys the keys of those appends that are made, in the same commit. */
async function sendDestroying(client: Client, links: readonly Link[]): Promise<AppendResult[]> {
  const destroyed = links.flatMap(({ append }, index) =>
    (append.destroys ?? []).map((id) => ({ append: index + 1, id })),
  );
  const all = links.flatMap(({ append }, index) => (append.destroys ? [index + 1] : []));
  const values = [
    arrayLiteral(all),
    arrayLiteral(destroyed.map(({ id }) => id)),
    arrayLiteral(destroyed.map(({ append }) => append)),
    ...chainsParameters(links),
  ];
  const { rows } = await client.query<ChainsRow>({
    name: 'append_destroying',
    text: `select * from append_destroying(${numbers(values)})`,
    values,
  });
  return chainsResults(links, rows);
}

/** Returns the row of `append_known`, then those of `append_chains` if there are others. */
async function queryKnown(
  client: Client,
  known: readonly (string | Buffer | null)[],
  others: readonly Link[],
): Promise<ChainsRow[]> {
  const text = `select 'known' as status, null::integer as r_version, null::bigint as r_position,
                       append_known(${numbers(known)}) as r_time, null::jsonb as r_reference`;
  if (others.length === 0)
    return (await client.query<ChainsRow>({ name: 'append_known', text, values: [...known] })).rows;
  const chains = chainsParameters(others);
  const both = {
    name: 'append_known_and_chains',
    text: `${text} union all select * from append_chains(${numbers(chains, known.length)})`,
    values: [...known, ...chains],
  };
  return (await client.query<ChainsRow>(both)).rows;
}

const numbers = (values: readonly unknown[], before = 0): string =>
  values.map((_, index) => `$${before + index + 1}`).join();
