import { isDeepStrictEqual } from 'node:util';
import { type Decider } from '../domain/decider.js';
import { EraseSession, type SessionCommand } from '../domain/session.commands.js';
import { type EventData, type SessionEvent, sessionEvents } from '../domain/session.events.js';
import { isErased, type SessionState } from '../domain/session.state.js';
import { type EventLog } from '../event-store/log.js';
import { CounterAtLimit, VersionMismatch } from '../event-store/refusals.js';
import { StreamHandler } from '../event-store/stream-handler.js';
import { type LostEvent } from '../kafka/lost-events.js';
import { activeSessions } from '../sessions/active-sessions.js';
import { withErasure } from '../sessions/session-commands.js';
import { sessionKind } from '../sessions/session-kind.js';
import { checkFollows, ImportRefused } from './import-format.js';

/**
 * - `lost`: they can be appended again
 * - `recovered`: they were appended again just now
 * - `there`: they were appended again before
 * - `went on`: the session has other events instead
 * - `incomplete`: what came before them is missing, or the data of one of them
 * - `key lost`: the key of one of them was in the end of the log that is gone, so that nobody can read it any more
 * - `at cap`: the tenant has as many active sessions as it may have
 * - `erased`: its erasure was lost. The session was erased again, or will be when the events are appended; nothing else
 *   of it was
 * - `not a session`: settings of a tenant, which have to be made again
 */
export type Outcome =
  | 'lost'
  | 'recovered'
  | 'there'
  | 'went on'
  | 'incomplete'
  | 'key lost'
  | 'at cap'
  | 'erased'
  | 'not a session';

/** What became of the lost events of one session. */
export interface RecoveredSession {
  readonly tenant: string;
  readonly sessionId: string;
  readonly generation: number;
  /** Versions of the first and the last of them. */
  readonly from: number;
  readonly to: number;
  /** Time of the last of them. */
  readonly time: string;
  readonly outcome: Outcome;
}

export interface RecoveryOptions {
  /** Without it nothing is written. */
  readonly append: boolean;
  readonly maxSessions: (tenant: string) => number;
}

/** Who has appended what was lost; the correlation ids are those of the lost events. */
const ACTOR = 'system:recovery';

/**
 * Appends lost events again, as new ones: with the data that they had, with times and positions of their own. Only what
 * goes on where its session stands is appended, so no event that came since is contradicted. It may be broken off and
 * started again at any time.
 * @throws DatabaseUnavailable
 */
export async function recoverSessions(
  store: EventLog,
  lost: readonly LostEvent[],
  options: RecoveryOptions,
): Promise<RecoveredSession[]> {
  const recovery = new Recovery(store, options);
  const groups = new Map<string, LostEvent[]>();
  for (const one of lost) {
    const key = `${one.generation}/${one.tenant}/${one.sessionId}`;
    const group = groups.get(key);
    if (group) group.push(one);
    else groups.set(key, [one]);
  }
  // Where two failovers have taken the same versions of a session, the later events count: they were answered last.
  const inOrder = [...groups.values()].sort(
    ([a], [b]) => (b?.generation ?? 0) - (a?.generation ?? 0) || ((a?.time ?? '') < (b?.time ?? '') ? -1 : 1),
  );
  /** The last lost erasure of a session, by tenant and id. */
  const erasures = new Map<string, LostEvent>();
  for (const one of lost) {
    const key = `${one.tenant}/${one.sessionId}`;
    const other = erasures.get(key);
    if (one.event?.type === 'SessionErased' && (!other || other.time < one.time)) erasures.set(key, one);
  }
  const recovered: RecoveredSession[] = [];
  for (const events of inOrder) {
    events.sort((a, b) => a.version - b.version);
    const [first, last] = [events[0], events.at(-1)];
    if (!first || !last) continue;
    const { tenant, sessionId, generation } = first;
    const erasure = erasures.get(`${tenant}/${sessionId}`);
    const outcome = await (erasure ? recovery.eraseAgain(erasure) : recovery.recover(events, first));
    recovered.push({
      ...{ tenant, sessionId, generation, outcome },
      from: first.version,
      to: last.version,
      time: last.time,
    });
  }
  return recovered;
}

class Recovery {
  private readonly streams: StreamHandler<SessionState, readonly SessionEvent[], SessionEvent>;
  private readonly erasures: StreamHandler<SessionState, SessionCommand, SessionEvent>;

  constructor(
    private readonly store: EventLog,
    private readonly options: RecoveryOptions,
  ) {
    this.streams = new StreamHandler(store, { ...sessionKind, decider: asTheyWere });
    this.erasures = new StreamHandler<SessionState, SessionCommand, SessionEvent>(store, {
      ...sessionKind,
      prepare: (command, state, stream) =>
        command instanceof EraseSession ? withErasure(store, stream, command, state) : command,
    });
  }

  /**
   * With a lost erasure its destruction of keys is lost as well. Nothing of such a session is brought back; it is erased as
   * it is, unless it has gone on since, so that somebody has to decide.
   */
  async eraseAgain(lost: LostEvent): Promise<Outcome> {
    const { tenant, sessionId } = lost;
    const stream = { tenant, streamId: sessionId };
    const { state, time } = await this.erasures.load(stream);
    if (state.version === 0 || isErased(state)) return 'there';
    if (Date.parse(time) > Date.parse(lost.time)) return 'went on';
    if (!this.options.append) return 'erased';
    const { reason } = lost.event?.data as EventData<'SessionErased'>;
    try {
      await this.erasures.handle(stream, new EraseSession(reason), {
        actor: ACTOR,
        correlationId: lost.correlationId,
        causationId: lost.id,
        ifMatch: [state.version],
        counter: () => ({ key: activeSessions(tenant), max: this.options.maxSessions(tenant) }),
      });
    } catch (error) {
      if (error instanceof VersionMismatch) return 'went on';
      throw error;
    }
    return 'erased';
  }

  /** @param events of one session in the order of their versions */
  async recover(
    events: readonly LostEvent[],
    { tenant, sessionId, version: from }: LostEvent,
  ): Promise<Outcome> {
    if (sessionId.startsWith('~')) return 'not a session';
    const stream = { tenant, streamId: sessionId };
    const { state } = await this.streams.load(stream);
    const isWhole = events.every(({ version }, index) => version === from + index);
    if (state.version < from - 1 || !isWhole) return 'incomplete';
    const there = await this.store.streams.read(stream, {
      from,
      to: from + events.length - 1,
      erasedToo: true,
    });
    const isSame = there.every(
      ({ type, data }, index) =>
        type === events[index]?.event?.type && isDeepStrictEqual(data, events[index].event.data),
    );
    if (!isSame) return 'went on';
    const left = events.slice(there.length);
    if (left.length === 0) return 'there';
    if (left.some(({ event }) => event?.type === 'unknown' && event.sealed)) return 'key lost';
    const steps = stepsOf(left, state);
    if (!steps) return 'incomplete';
    if (!this.options.append) return 'lost';
    for (const { first, events: together } of steps) {
      try {
        await this.streams.handle(stream, together, {
          actor: ACTOR,
          correlationId: first.correlationId,
          causationId: first.id,
          ifMatch: [first.version - 1],
          counter: () => ({ key: activeSessions(tenant), max: this.options.maxSessions(tenant) }),
        });
      } catch (error) {
        if (error instanceof VersionMismatch) return 'went on';
        if (error instanceof CounterAtLimit) return 'at cap';
        throw error;
      }
    }
    return 'recovered';
  }
}

interface Step {
  readonly first: LostEvent;
  readonly events: SessionEvent[];
}

/** The events by the requests that had appended them, each of which was one append; undefined unless all can follow. */
function stepsOf(lost: readonly LostEvent[], from: SessionState): Step[] | undefined {
  const steps: Step[] = [];
  let state = from;
  for (const one of lost) {
    const event = one.event && validated(one.event);
    if (!event) return undefined;
    try {
      checkFollows(state, { ...one, type: event.type });
    } catch (error) {
      if (error instanceof ImportRefused) return undefined;
      throw error;
    }
    state = sessionKind.decider.evolve(state, event);
    const step = steps.at(-1);
    if (step?.first.correlationId === one.correlationId && step.first.incarnation === one.incarnation)
      step.events.push(event);
    else steps.push({ first: one, events: [event] });
  }
  return steps;
}

/** What a topic has may be of code that was newer, or not be what was published. */
function validated({ type, data }: NonNullable<LostEvent['event']>): SessionEvent | undefined {
  if (!Object.hasOwn(sessionEvents, type)) return undefined;
  const result = sessionEvents[type as SessionEvent['type']].data.safeParse(data);
  return result.success ? ({ type, data: result.data } as SessionEvent) : undefined;
}

const isActive = ({ status }: SessionState): number => Number(status === 'active');

/** Decides for the events themselves: they have happened. */
const asTheyWere: Decider<SessionState, readonly SessionEvent[], SessionEvent> = {
  ...sessionKind.decider,
  decide: (events, state) => {
    const after = events.reduce((before, event) => sessionKind.decider.evolve(before, event), state);
    const active = isActive(after) - isActive(state);
    return { events, ...(active !== 0 && { counters: { active } }) };
  },
};
