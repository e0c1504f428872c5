import { type TapRecord, offences } from '../support/kafka.js';
import { CAPPED } from './cluster.js';
import { type Operation, type Read, TOKEN, type Write } from './history.js';

/** An event as it is in the log, read by SQL alone. */
export interface LoggedEvent {
  readonly cell: string;
  readonly lane: number;
  readonly position: number;
  readonly tenant: string;
  readonly session: string;
  readonly version: number;
  readonly id: string;
  readonly type: string;
  readonly incarnation: number;
  readonly data: Readonly<Record<string, unknown>>;
}

/** What is there in the end, when everything is whole again and still. */
export interface Evidence {
  readonly history: readonly Operation[];
  /** Of the cells in which their tenants live, by lane and position. */
  readonly log: readonly LoggedEvent[];
  /** What tenants have left behind in other cells. */
  readonly left: readonly LoggedEvent[];
  readonly counters: ReadonlyMap<string, number>;
  /** Most active sessions of the capped tenant that were seen in one moment. */
  readonly mostActive: number;
  readonly topic: readonly TapRecord[];
  /** The ids of the events that took effect at a consumer, by `tenant/session`, in their order. */
  readonly consumed: ReadonlyMap<string, readonly string[]>;
  /** What a client that follows the events of the tenant `a` got. */
  readonly followed: readonly { readonly session: string; readonly version: number }[];
  /** Read models that differ from a fold of the log. */
  readonly unequal: readonly string[];
  /** Messages that the history of each session shows in the end, by `tenant/session`. */
  readonly shown: ReadonlyMap<string, readonly string[]>;
  /** Milliseconds until an event reached a follower on another node, while nothing was broken. */
  readonly wakeUpMs: readonly number[];
  /** Nodes that were not ready a minute after everything was whole. */
  readonly notBack: readonly string[];
}

/** What was promised and did not hold: the name of the property, and where it was seen. */
export interface Violation {
  readonly property: string;
  readonly detail: string;
}

/** Half of the time after which readers look without having been told. */
const WAKE_UP_LIMIT_MS = 250;

/** Checks everything that the service promises, against what happened. Pure. */
export function check(evidence: Evidence): Violation[] {
  return Object.entries(PROPERTIES).flatMap(([property, find]) =>
    find(evidence)
      .slice(0, 20)
      .map((detail) => ({ property, detail })),
  );
}

type Property = (evidence: Evidence) => string[];

export const PROPERTIES: Readonly<Record<string, Property>> = {
  'positions and versions have no gaps': ({ log, left }) => {
    const found: string[] = [];
    const ends = new Map<string, number>();
    const versions = new Map<string, number>();
    const all = [...log, ...left].sort((a, b) => a.lane - b.lane || a.position - b.position);
    for (const { cell, lane: number, position, tenant, session, version } of all) {
      const lane = `${cell}/${number}`;
      const end = ends.get(lane) ?? 0;
      if (position !== end + 1) found.push(`lane ${lane}: ${position} follows ${end}`);
      ends.set(lane, position);
      const key = `${cell}/${tenant}/${session}`;
      const last = versions.get(key) ?? 0;
      if (version !== last + 1) found.push(`${key}: version ${version} follows ${last}`);
      versions.set(key, version);
    }
    return found;
  },

  'what a tenant has left behind is the beginning of its history': ({ log, left }) => {
    const ids = new Map(log.map((event) => [`${keyOf(event)} ${event.version}`, event.id]));
    return left
      .filter((event) => ids.get(`${keyOf(event)} ${event.version}`) !== event.id)
      .map((event) => `${event.cell}: ${keyOf(event)} ${event.version}`);
  },

  'no acknowledged write is lost': ({ history, log }) => {
    const places = placesOfTokens(log);
    return writesOf(history)
      .filter(({ outcome }) => outcome === 'ok')
      .flatMap((write) =>
        write.tokens
          .filter((token) => places.get(token)?.[0]?.key !== keyOf(write))
          .map((token) => `${token} of ${told(write)}`),
      );
  },

  'no write takes effect twice, and none that was refused': ({ history, log }) => {
    const places = placesOfTokens(log);
    const twice = [...places]
      .filter(([, all]) => all.length > 1)
      .map(([token, all]) => `${token}: ${JSON.stringify(all)}`);
    const refused = writesOf(history)
      .filter(({ outcome }) => outcome === 'fail')
      .flatMap((write) =>
        write.tokens.filter((token) => places.has(token)).map((token) => `${token} of ${told(write)}`),
      );
    return [...twice, ...refused];
  },

  'strong reads are never stale': ({ history }) => {
    const bySession = new Map<string, Write[]>();
    for (const write of writesOf(history))
      if (write.outcome === 'ok' && write.session.startsWith('s-')) {
        const key = keyOf(write);
        bySession.set(key, [...(bySession.get(key) ?? []), write]);
      }
    const made = writesOf(history).filter(
      ({ outcome, what, session }) =>
        outcome === 'ok' && what === 'POST /v1/sessions' && session.startsWith('s-'),
    );
    const acknowledged = new Map<string, { write: Write; at: number }>();
    for (const writes of bySession.values())
      for (const write of writes)
        for (const token of write.tokens) acknowledged.set(token, { write, at: write.endedAt });
    return readsOf(history).flatMap((read) => {
      if (read.what === 'list') {
        const listed = new Set(read.sessions);
        return made
          .filter(
            ({ tenant, session, endedAt }) =>
              tenant === read.tenant && endedAt < read.begunAt && !listed.has(session),
          )
          .map(({ session }) => `a list without ${session}`);
      }
      if (read.what === 'search') {
        const { word = '' } = read;
        const known = acknowledged.get(word);
        const isThere = known && known.at < read.begunAt;
        return isThere && read.tokens?.includes(word) !== true
          ? [`a search without ${word} of ${told(known.write)}`]
          : [];
      }
      const before = (bySession.get(keyOf(read)) ?? []).filter(({ endedAt }) => endedAt < read.begunAt);
      if (before.length > 0 && read.status === 404) return [`404 for ${keyOf(read)}, which exists`];
      const version = Math.max(0, ...before.map((write) => write.version ?? 0));
      if (read.version !== undefined && read.version < version)
        return [`${read.what} of ${keyOf(read)} at version ${read.version}, and ${version} was acknowledged`];
      if (!read.tokens || read.isPartial === true) return [];
      const seen = new Set(read.tokens);
      if (seen.size !== read.tokens.length) return [`${keyOf(read)} shows a message twice`];
      return before
        .flatMap(({ tokens }) => tokens)
        .filter((token) => !seen.has(token))
        .map((token) => `messages of ${keyOf(read)} without ${token}`);
    });
  },

  'one generation at a time': ({ log }) => {
    const open = new Map<string, string>();
    const found: string[] = [];
    for (const { tenant, session, version, type, data } of byVersion(log)) {
      const key = `${tenant}/${session}`;
      const generation = String(data['generationId']);
      if (type === 'GenerationStarted') {
        if (open.has(key)) found.push(`${key}: ${generation} at ${version} beside ${open.get(key) ?? ''}`);
        open.set(key, generation);
      } else if (/^Generation(Completed|Failed|Cancelled)$/.test(type)) {
        if (open.get(key) !== generation)
          found.push(`${key}: ${generation} ends at ${version} and is not open`);
        open.delete(key);
      } else if (type === 'SessionDeleted') open.delete(key);
    }
    return found;
  },

  'caps are never passed': ({ mostActive }) =>
    mostActive > CAPPED.sessions ? [`${mostActive} active sessions where ${CAPPED.sessions} may be`] : [],

  'counters equal a recount': ({ log, counters }) => {
    const last = new Map<string, string>();
    for (const { tenant, session, type } of byVersion(log))
      if (/^Session(Created|Resumed|Expired|Deleted)$/.test(type)) last.set(`${tenant}/${session}`, type);
    const active = new Map<string, number>();
    for (const [key, type] of last)
      if (type === 'SessionCreated' || type === 'SessionResumed') {
        const tenant = key.slice(0, key.indexOf('/'));
        active.set(tenant, (active.get(tenant) ?? 0) + 1);
      }
    return [...new Set([...active.keys(), ...counters.keys()])]
      .filter((tenant) => (active.get(tenant) ?? 0) !== (counters.get(tenant) ?? 0))
      .map(
        (tenant) => `${tenant}: ${counters.get(tenant) ?? 0} counted, ${active.get(tenant) ?? 0} in the log`,
      );
  },

  'a key has one effect': ({ history }) => {
    const answers = new Map<string, Write>();
    return writesOf(history).flatMap((write) => {
      if (write.key === undefined || write.outcome !== 'ok') return [];
      const before = answers.get(write.key);
      answers.set(write.key, write);
      return before && before.version !== write.version
        ? [`${write.key}: ${told(before)} and ${told(write)}`]
        : [];
    });
  },

  'every event is on the topic, in the order of its session': ({ topic, log }) => offences(topic, idsOf(log)),

  'each event takes effect once at a consumer': ({ consumed, log }) => differences(consumed, idsOf(log)),

  'a follower gets every event, in order and once': ({ followed, log }) => {
    const last = new Map<string, number>();
    const found: string[] = [];
    for (const { session, version } of followed) {
      const before = last.get(session) ?? 0;
      if (version !== before + 1) found.push(`${session}: ${version} came after ${before}`);
      last.set(session, version);
    }
    for (const [key, ids] of idsOf(log))
      if (key.startsWith('a/') && last.get(key.slice(2)) !== ids.length)
        found.push(`${key}: ${last.get(key.slice(2)) ?? 0} of ${ids.length}`);
    return found;
  },

  'read models equal a fold of the log': ({ unequal }) => [...unequal],

  'the history shows what the log has': ({ shown, log }) => {
    const expected = new Map<string, string[]>();
    for (const { tenant, session, type, data } of byVersion(log)) {
      if (!session.startsWith('s-')) continue;
      const key = `${tenant}/${session}`;
      const all = expected.get(key) ?? [];
      expected.set(key, all);
      if (type === 'MessageAppended') all.push(String(data['messageId']));
    }
    return differences(shown, expected);
  },

  'nothing of one tenant is seen by another': ({ history, log }) => [
    ...history.filter((one) => one.kind === 'foreign').map(({ what, tenant }) => `${what} of ${tenant}`),
    ...log
      .filter(({ tenant, data }) =>
        [...JSON.stringify(data).matchAll(TOKEN)].some(([, letter]) => letter !== tenant),
      )
      .map(({ tenant, session, version }) => `${tenant}/${session} ${version}`),
  ],

  'readers are woken': ({ wakeUpMs }) => {
    const middle = [...wakeUpMs].sort((a, b) => a - b)[Math.floor(wakeUpMs.length / 2)] ?? 0;
    return middle > WAKE_UP_LIMIT_MS ? [`half of the events took more than ${Math.round(middle)} ms`] : [];
  },

  'every node comes back by itself': ({ notBack }) => [...notBack],
};

const writesOf = (history: readonly Operation[]): Write[] => history.filter((one) => one.kind === 'write');
const readsOf = (history: readonly Operation[]): Read[] => history.filter((one) => one.kind === 'read');

const keyOf = ({ tenant, session }: { tenant: string; session: string | undefined }): string =>
  `${tenant}/${session ?? ''}`;

const told = ({ what, session, outcome, status, version, key }: Write): string =>
  `${what} (${session}, ${outcome}, ${status}, version ${version ?? '?'}${key === undefined ? '' : `, ${key}`})`;

/** Where each token was said by a user. Forks repeat what their source has, and are left out. */
function placesOfTokens(log: readonly LoggedEvent[]): Map<string, { key: string; version: number }[]> {
  const places = new Map<string, { key: string; version: number }[]>();
  for (const { tenant, session, version, type, data } of log) {
    if (type !== 'MessageAppended' || data['role'] !== 'user' || session.startsWith('f-')) continue;
    for (const [token] of JSON.stringify(data['content']).matchAll(TOKEN))
      places.set(token, [...(places.get(token) ?? []), { key: `${tenant}/${session}`, version }]);
  }
  return places;
}

function byVersion(log: readonly LoggedEvent[]): LoggedEvent[] {
  return [...log].sort((a, b) =>
    keyOf(a) < keyOf(b) ? -1 : keyOf(a) > keyOf(b) ? 1 : a.version - b.version,
  );
}

function idsOf(log: readonly LoggedEvent[]): Map<string, string[]> {
  const ids = new Map<string, string[]>();
  for (const { tenant, session, id } of byVersion(log)) {
    const key = `${tenant}/${session}`;
    const all = ids.get(key) ?? [];
    ids.set(key, all);
    all.push(id);
  }
  return ids;
}

function differences(
  found: ReadonlyMap<string, readonly string[]>,
  expected: ReadonlyMap<string, readonly string[]>,
): string[] {
  return [...new Set([...found.keys(), ...expected.keys()])].flatMap((key) => {
    const [one, other] = [found.get(key) ?? [], expected.get(key) ?? []];
    if (one.length === other.length && one.every((id, n) => id === other[n])) return [];
    const at = other.findIndex((id, n) => id !== one[n]);
    return [
      `${key}: ${one.length} instead of ${other.length}, different from ${at === -1 ? other.length : at} on`,
    ];
  });
}
