import { arrayLiteral, bytesArray, type Element, jsonArray, sparse } from '../database/array-literal.js';
import { type Append, type AppendResult, endOf } from './append.js';
import { type Link } from './append-links.js';
import { type KnownEnds, type LaneEnd } from './known-ends.js';

/** The error by which `append_known` tells that an end is not where this process saw it. */
export const LANE_HAS_GROWN = 'CQ001';

/** Appends whose streams and lanes end where this process believes, and all others of a batch. */
export interface Divided {
  readonly known: readonly Link[];
  readonly others: readonly Link[];
}

/** Divides a batch. Appends that follow one another stay together. */
export function divide(links: readonly Link[], run: string, ends: KnownEnds): Divided {
  const known: Link[] = [];
  const others: Link[] = [];
  let chain: Link[] = [];
  const endChain = (): void => {
    const [first] = chain;
    const isKnown =
      first && isAtEnd(first.append, run, ends) && chain.every(({ append }) => needsNothing(append));
    (isKnown ? known : others).push(...chain);
    chain = [];
  };
  for (const link of links) {
    if (!link.isChained) endChain();
    chain.push(link);
  }
  endChain();
  return { known, others };
}

const isAtEnd = ({ stream, lane, expected }: Append, run: string, ends: KnownEnds): boolean =>
  ends.versionOf(stream, lane, run) === expected;

const needsNothing = ({ events, guard, counters, key, lease }: Append): boolean =>
  events.length > 0 && !guard && !counters?.length && !key && !lease;

/**
 * Parameters of `append_known`.
 *
 * @param known see `divide`
 * @param others what the same statement goes on with
 * @param laneEnds lane → its known end, for the lanes of `known`
 */
export function knownParameters(
  { known, others }: Divided,
  run: string,
  laneEnds: ReadonlyMap<number, LaneEnd>,
): {
  readonly values: (string | Buffer | null)[];
  readonly results: (time: string) => Map<Link, AppendResult>;
} {
  const lanes = new Set([...known, ...others].map(({ append }) => append.lane));
  const positions = new Map([...laneEnds].map(([lane, { position }]) => [lane, position]));
  const placed = known.map((link) => {
    const { lane, events } = link.append;
    const position = (positions.get(lane) ?? 0) + events.length;
    positions.set(lane, position);
    return { link, position, version: link.append.expected + events.length };
  });
  const events = placed.flatMap(({ link: { append }, position, version }) =>
    append.events.map((event, index) => {
      const behind = append.events.length - 1 - index;
      return { append, event, position: position - behind, version: version - behind };
    }),
  );
  // Of the states of a chain only the last one is stored.
  const withState = new Map(
    placed.filter(({ link }) => link.append.state).map((one) => [one.link.append.chain, one]),
  );
  const states = [...withState.values()];
  const ofEvents = (pick: (one: (typeof events)[number]) => Element): string =>
    arrayLiteral(events.map(pick));
  const ofStates = (pick: (one: (typeof states)[number]) => Element): string | null =>
    states.length > 0 ? arrayLiteral(states.map(pick)) : null;
  const values = [
    run,
    arrayLiteral([...lanes].sort((a, b) => a - b)),
    // Times are all of one form, so that the latest is the last in alphabetical order.
    [...laneEnds.values()].reduce((latest, { time }) => (time > latest ? time : latest), ''),
    ofEvents(({ append }) => append.lane),
    ofEvents(({ position }) => position),
    ofEvents(({ append }) => append.stream.tenant),
    ofEvents(({ append }) => append.stream.streamId),
    ofEvents(({ version }) => version),
    ofEvents(({ append }) => append.incarnation),
    ofEvents(({ event }) => event.id),
    ofEvents(({ event }) => event.type),
    ofEvents(({ event }) => event.schemaVersion),
    ofEvents(({ append }) => append.actor),
    ofEvents(({ append }) => append.correlationId),
    sparse(events, ({ append }) => append.causationId),
    jsonArray(events.map(({ event }) => event.payload.json)),
    bytesArray(events, ({ event }) => event.payload.sealed),
    sparse(events, ({ event }) => event.payload.keyId),
    ofStates(({ link }) => link.append.stream.tenant),
    ofStates(({ link }) => link.append.stream.streamId),
    ofStates(({ link }) => link.append.lane),
    ofStates(({ version }) => version),
    ofStates(({ link }) => link.append.incarnation),
    ofStates(({ position }) => position),
    sparse(states, ({ link }) => (link.begins ? null : link.append.chain.createdAt)),
    sparse(states, ({ link }) => (link.activity ? null : link.append.chain.lastActivityAt)),
    jsonArray(states.map(({ link }) => link.append.state?.payload.json)),
    ofStates(({ link }) => link.append.state?.version),
    bytesArray(states, ({ link }) => link.append.state?.payload.sealed),
    sparse(states, ({ link }) => link.append.state?.payload.keyId),
  ];
  return {
    values,
    results: (time) =>
      new Map(
        placed.map(({ link, position, version }) => [link, endOf(link.append, version, position, time)]),
      ),
  };
}
