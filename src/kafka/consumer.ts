import { setTimeout as sleep } from 'node:timers/promises';
import {
  type AnsweredEvent,
  type ConsumedEvent,
  fromAnswer,
  type Placed,
  placeOf,
  toEvent,
  type UnknownEvent,
} from './contract.js';
import { type Batch, follow, type Following, type IncomingMessage } from './group-member.js';
import { type KafkaSettings } from './kafka-connection.js';
import { type Places, sessionKey } from './places.js';

/** Events handed over at once, at most: one transaction. */
const CHUNK = 500;
const FIRST_PAUSE_MS = 200;
const LONGEST_PAUSE_MS = 30_000;
/** Far below the time after which the group takes a member for dead. */
const BEAT_MS = 3_000;
const FETCH_PAGE = 200;
const FETCH_LIMIT_MS = 30_000;

export interface ConsumeOptions<Tx> {
  readonly kafka: KafkaSettings;
  /** Consumers of one group share the partitions. */
  readonly groupId: string;
  /** Default `colloquy.session-events`. */
  readonly topic?: string;
  /** Where the last version of each session is kept: `postgresPlaces` or `memoryPlaces`. */
  readonly places: Places<Tx>;
  /**
   * The effect of events that are new, each session's in order. What it does through `tx` is stored together with the
   * consumer's place: exactly once. What it does elsewhere may happen again. If it throws, the same events come again,
   * after a pause, and nothing behind them in their partition is looked at until it succeeds.
   */
  readonly apply: (events: readonly (ConsumedEvent | UnknownEvent)[], tx: Tx) => Promise<void>;
  /** The Colloquy service: what is missing on the topic, or too large for it, is fetched there. */
  readonly api?: {
    /** e.g. `http://127.0.0.1:3000` */
    readonly url: string;
    readonly apiKey?: string | undefined;
  };
  /** Partitions worked on at the same time. Default 1. */
  readonly concurrency?: number;
  /** Milliseconds that the brokers may wait for more events before they answer. Default 5 000. */
  readonly maxWaitMs?: number;
  /** Told of everything that is tried again. Default: `console.error`. */
  readonly onError?: (error: unknown) => void;
}

export interface Consumer {
  /** Lets what is being applied end, then leaves the group. */
  stop(): Promise<void>;
}

/**
 * Consumes session events with an effect that happens exactly once: per session the last version is kept with the
 * effect; a record up to it is dropped, the next one applied, and before one beyond that the gap is fetched from the
 * API. Offsets are committed after the effect. Survives rebalances, restarts, and brokers that come and go.
 */
export function consume<Tx>(options: ConsumeOptions<Tx>): Consumer {
  const onError =
    options.onError ??
    ((error: unknown) => {
      console.error('consuming session events:', error);
    });
  const stopping = new AbortController();
  const following: Following = follow(options.kafka, {
    topic: options.topic ?? 'colloquy.session-events',
    groupId: options.groupId,
    concurrency: options.concurrency ?? 1,
    maxWaitMs: options.maxWaitMs ?? 5_000,
    onError,
    process: async (batch) => {
      for (let start = 0; start < batch.messages.length; start += CHUNK) {
        const chunk = batch.messages.slice(start, start + CHUNK);
        const last = chunk.at(-1);
        if (!last || !(await persist(batch, chunk))) return;
        batch.done(last);
        await batch.beat();
      }
    },
  });

  /** Tries until the effect is stored; false when the partition is no longer ours. */
  async function persist(batch: Batch, chunk: readonly IncomingMessage[]): Promise<boolean> {
    for (let pauseMs = FIRST_PAUSE_MS; ; pauseMs = Math.min(LONGEST_PAUSE_MS, pauseMs * 2)) {
      if (!batch.isOurs()) return false;
      try {
        await whileBeating(batch, applyChunk(options, chunk));
        return true;
      } catch (error) {
        onError(error);
      }
      const until = Date.now() + pauseMs * (0.5 + Math.random());
      while (Date.now() < until && batch.isOurs()) {
        await batch.beat();
        await sleep(Math.min(BEAT_MS, Math.max(1, until - Date.now())), undefined, {
          signal: stopping.signal,
        }).catch(() => undefined);
        if (stopping.signal.aborted) return false;
      }
    }
  }

  return {
    stop: () => {
      stopping.abort();
      return following.stop();
    },
  };
}

/** A beat that fails means that the group goes on without us; the effect that runs is stored or dropped all the same. */
async function whileBeating<T>(batch: Batch, work: Promise<T>): Promise<T> {
  const timer = setInterval(() => {
    batch.beat().catch(() => undefined);
  }, BEAT_MS);
  try {
    return await work;
  } finally {
    clearInterval(timer);
  }
}

interface Pending {
  readonly place: Placed;
  readonly message: IncomingMessage;
}

async function applyChunk<Tx>(
  options: ConsumeOptions<Tx>,
  messages: readonly IncomingMessage[],
): Promise<void> {
  const bySession = new Map<string, Pending[]>();
  for (const message of messages) {
    const place = placeOf(message);
    const key = sessionKey(place);
    const pending = bySession.get(key);
    if (pending) pending.push({ place, message });
    else bySession.set(key, [{ place, message }]);
  }
  const sessions = [...bySession.values()].flatMap(([first]) => (first ? [first.place] : []));

  // Gaps are fetched before the transaction, which would otherwise hold its locks for as long as the API takes.
  const before = await options.places.read(sessions);
  const events = new Map<string, (ConsumedEvent | UnknownEvent)[]>();
  for (const [key, pending] of bySession)
    events.set(key, await inOrder(options, pending, before.get(key) ?? 0));

  await options.places.transaction(sessions, async (tx, last) => {
    const fresh: (ConsumedEvent | UnknownEvent)[] = [];
    const moved = new Map<string, number>();
    for (const [key, candidates] of events) {
      let version = last.get(key) ?? 0;
      for (const event of candidates) {
        if (event.version <= version) continue; // Somebody else was here since we looked.
        // Places only grow, and what we have begins right behind the place that we saw: this cannot be.
        if (event.version > version + 1) throw new Error(`the place of ${key} went back to ${version}`);
        fresh.push(event);
        version = event.version;
      }
      if (version !== last.get(key)) moved.set(key, version);
    }
    if (fresh.length > 0) await options.apply(fresh, tx);
    return moved;
  });
}

/** The events behind `last`, in order and without gaps, from the records and, where they do not suffice, from the API. */
async function inOrder<Tx>(
  options: ConsumeOptions<Tx>,
  pending: readonly Pending[],
  last: number,
): Promise<(ConsumedEvent | UnknownEvent)[]> {
  const events: (ConsumedEvent | UnknownEvent)[] = [];
  let version = last;
  for (const { place, message } of pending) {
    if (place.version <= version) continue;
    const event = place.version === version + 1 ? toEvent(message) : undefined;
    if (event) {
      events.push(event);
      version = event.version;
      continue;
    }
    // A gap, or a reference in place of the data.
    for await (const fetched of fetchEvents(options, place, version)) {
      if (fetched.version !== version + 1)
        throw new Error(
          `the API answered version ${fetched.version} of ${sessionKey(place)} after ${version}`,
        );
      events.push(fetched);
      version = fetched.version;
    }
  }
  return events;
}

/** From behind `after` up to the record's version. */
async function* fetchEvents<Tx>(
  { api }: ConsumeOptions<Tx>,
  { tenant, sessionId, version }: Placed,
  after: number,
): AsyncGenerator<ConsumedEvent | UnknownEvent> {
  const what = `versions ${after + 1} to ${version} of ${sessionKey({ tenant, sessionId })}`;
  if (!api)
    throw new Error(`${what} are not on the topic; name the service in \`api\` to have them fetched there`);
  for (let have = after; have < version;) {
    const limit = Math.min(FETCH_PAGE, version - have);
    const url = `${api.url}/v1/sessions/${encodeURIComponent(sessionId)}/events?after=${have}&limit=${limit}`;
    const response = await fetch(url, {
      headers: {
        'colloquy-tenant': tenant,
        ...(api.apiKey !== undefined && { authorization: `Bearer ${api.apiKey}` }),
      },
      signal: AbortSignal.timeout(FETCH_LIMIT_MS),
    });
    if (!response.ok) throw new Error(`${what} could not be fetched: ${url} answered ${response.status}`);
    const { data } = (await response.json()) as { data: AnsweredEvent[] };
    if (data.length === 0) throw new Error(`${what} could not be fetched: ${url} has none`);
    for (const event of data) yield fromAnswer(event);
    have += data.length;
  }
}
