import { type QueryResultRow } from 'pg';
import { arrayLiteral, bytesArray, type Element, jsonArray, sparse } from '../database/array-literal.js';
import { type Append, type AppendResult, endOf } from './append.js';
import { type Link } from './append-links.js';

/** A row that `append_chains` returns. */
export interface ChainsRow extends QueryResultRow {
  status: string;
  r_version: number;
  r_position: number;
  r_time: string;
  r_reference?: unknown;
}

/** Parameters of `append_chains` for these appends. */
export function chainsParameters(links: readonly Link[]): (string | Buffer | null)[] {
  const appends = links.map(({ append }) => append);
  const lanes = [...new Set(appends.map((append) => append.lane))].sort((a, b) => a - b);
  const laneNumber = new Map(lanes.map((lane, index) => [lane, index + 1]));
  const events = appends.flatMap((append, index) =>
    append.events.map((event, ordinal) => ({ ...event, append: index + 1, ordinal: ordinal + 1 })),
  );
  const counters = appends.flatMap((append, index) =>
    (append.counters ?? []).map((counter) => ({ ...counter, append: index + 1 })),
  );
  const of = (pick: (append: Append) => Element): string => arrayLiteral(appends.map(pick));
  const ofEvents = (pick: (event: (typeof events)[number]) => Element): string =>
    arrayLiteral(events.map(pick));
  const ofCounters = (pick: (counter: (typeof counters)[number]) => Element): string =>
    arrayLiteral(counters.map(pick));
  return [
    arrayLiteral(lanes),
    of((append) => laneNumber.get(append.lane)),
    of((append) => append.stream.tenant),
    of((append) => append.stream.streamId),
    of((append) => append.expected),
    of((append) => append.incarnation),
    sparse(links, ({ append, begins }) => (begins ? null : append.chain.createdAt)),
    sparse(appends, (append) => append.chain.lastActivityAt),
    arrayLiteral(links.map((link) => link.activity)),
    of((append) => append.actor),
    of((append) => append.correlationId),
    sparse(appends, (append) => append.causationId),
    of((append) => append.events.length),
    jsonArray(appends.map((append) => append.state?.payload.json)),
    sparse(appends, (append) => append.state?.version),
    bytesArray(appends, (append) => append.state?.payload.sealed),
    sparse(appends, (append) => append.state?.payload.keyId),
    sparse(appends, (append) => (append.guard && 'idleFor' in append.guard ? append.guard.idleFor : null)),
    sparse(appends, (append) => (append.guard && 'before' in append.guard ? append.guard.before : null)),
    sparse(appends, (append) =>
      append.guard && 'leaseOver' in append.guard ? append.guard.leaseOver : null,
    ),
    sparse(appends, (append) => append.key?.scope),
    sparse(appends, (append) => append.key?.key),
    sparse(appends, (append) => append.key?.fingerprint),
    jsonArray(appends.map((append) => append.key && JSON.stringify(append.key.reference))),
    sparse(appends, (append) => append.lease?.name),
    sparse(appends, (append) => append.lease?.owner),
    sparse(appends, (append) => append.lease?.ms),
    ofEvents((event) => event.append),
    ofEvents((event) => event.ordinal),
    ofEvents((event) => event.id),
    ofEvents((event) => event.type),
    ofEvents((event) => event.schemaVersion),
    jsonArray(events.map((event) => event.payload.json)),
    bytesArray(events, (event) => event.payload.sealed),
    sparse(events, (event) => event.payload.keyId),
    ofCounters((counter) => counter.append),
    ofCounters((counter) => counter.key),
    ofCounters((counter) => counter.delta),
    ofCounters((counter) => counter.max),
    sparse(links, (link) => link.isChained || null),
  ];
}

/** The results of these appends from the rows that `append_chains` returned, in order. */
export const chainsResults = (links: readonly Link[], rows: readonly ChainsRow[]): AppendResult[] =>
  rows.map((row, index) => {
    const link = links[index];
    if (!link) throw new Error('append_chains returned more than it was asked for');
    return toResult(link.append, row);
  });

function toResult(append: Append, row: ChainsRow): AppendResult {
  switch (row.status) {
    case 'ok':
      return endOf(append, row.r_version, row.r_position, row.r_time);
    case 'duplicate':
      return { status: 'duplicate', version: row.r_version, reference: row.r_reference };
    case 'conflict':
      return { status: 'conflict', version: row.r_version };
    default:
      return { status: row.status as 'reused' | 'guard' | 'counter' | 'retry' };
  }
}
