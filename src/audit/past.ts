import { Injectable } from '@nestjs/common';
import { isDeepStrictEqual } from 'node:util';
import { type EventOf } from '../domain/session.events.js';
import { type SessionState } from '../domain/session.state.js';
import { EventLog } from '../event-store/log.js';
import { invalidRequest } from '../http/problem.js';
import { type MessageView, readGone, readHistory } from '../read-models/history.projection.js';
import { ReadModels } from '../projection-engine/strong-reads.js';
import { type SessionRef } from '../sessions/command-context.js';
import { SessionCommands } from '../sessions/session-commands.js';
import { endOf, incarnationIn, SessionQueries } from '../sessions/session-queries.js';
import { type DiffAnswer, type StateAnswer } from './audit.schemas.js';

type Moment = number | string | undefined;
type GenerationEvent = EventOf<
  'GenerationStarted' | 'GenerationCompleted' | 'GenerationFailed' | 'GenerationCancelled'
> & { readonly version: number };

const GENERATION_TYPES = [
  'GenerationStarted',
  'GenerationCompleted',
  'GenerationFailed',
  'GenerationCancelled',
] as const satisfies readonly GenerationEvent['type'][];

/** Past states of sessions, from the log. */
@Injectable()
export class Past {
  constructor(
    private readonly store: EventLog,
    private readonly models: ReadModels,
    private readonly commands: SessionCommands,
    private readonly queries: SessionQueries,
  ) {}

  /**
   * The state of a session at a version or time.
   * @throws DomainError `session-not-found`; ApiError `invalid-request` when the version or time is outside the incarnation;
   *   Erased
   */
  async state(
    session: SessionRef,
    asked: { readonly at?: Moment; readonly incarnation?: number | undefined },
  ): Promise<StateAnswer> {
    const { state } = await this.commands.load(session);
    const incarnation = incarnationIn(state, asked.incarnation);
    const point = await this.queries.pointAt(session, { ...state, incarnation }, asked.at);
    const then = await this.stateAt(session, point.version);
    return { sessionId: session.sessionId, ...then, time: point.time } as StateAnswer;
  }

  /** The changes of a session from one version or time to another. @throws as `state` */
  async diff(
    session: SessionRef,
    asked: {
      readonly from: Moment;
      readonly to?: Moment;
      readonly incarnation?: number | undefined;
      readonly limit: number;
    },
  ): Promise<DiffAnswer> {
    const loaded = await this.commands.load(session);
    const incarnation = incarnationIn(loaded.state, asked.incarnation);
    const at = (pointer: string, moment: Moment) =>
      this.queries.pointAt(session, { ...loaded.state, incarnation }, moment, { pointer, in: 'query' });
    const later = at('/to', asked.to);
    // When both are wrong, the error of the first one is thrown, even if the second fails earlier.
    later.catch(() => undefined);
    const from = await at('/from', asked.from);
    const to = await later;
    if (from.version > to.version) {
      throw invalidRequest([{ pointer: '/to', in: 'query', detail: 'must not be before from' }]);
    }
    const [before, after, events, generations] = await Promise.all([
      this.stateAt(session, from.version),
      this.stateAt(session, to.version),
      this.store.streams.countTypes(streamOf(session), from.version + 1, to.version),
      this.generations(session, from.version, to.version, asked.limit),
    ]);
    // A deletion removes the totals from the state, but the tokens were used.
    const isDeletedBetween = after.status === 'deleted' && before.status !== 'deleted';
    const last = isDeletedBetween ? await this.beforeDeletion(session, from.version, to.version) : after;
    const history = async (at: number, later = 0) => {
      const page = { ...session, incarnation, at, after: later, order: 'asc', limit: asked.limit } as const;
      const found = await readHistory(this.models, endOf(loaded), page);
      return JSON.parse(found?.messages ?? '[]') as MessageView[];
    };
    // A reset begins another history, and a deletion ends the last one.
    const isSame = before.historyStart === after.historyStart;
    const gone = isSame
      ? await readGone(this.models, endOf(loaded), {
          ...session,
          from: { start: before.historyStart, version: from.version },
          to: to.version,
          limit: asked.limit,
        })
      : { count: before.messageCount, data: undefined };
    const removed = gone.count;
    const added = after.messageCount - (isSame ? before.messageCount - removed : 0);
    return {
      sessionId: session.sessionId,
      incarnation,
      from: from.version,
      to: to.version,
      events,
      ...changed(before, after),
      messages: {
        added: { count: added, data: added ? await history(to.version, isSame ? from.version : 0) : [] },
        removed: { count: removed, data: gone.data ?? (removed ? await history(from.version) : []) },
      },
      approvals: {
        added: missing(after.approvals, before.approvals),
        removed: missing(before.approvals, after.approvals),
      },
      generations,
      usage: {
        inputTokens: last.usage.inputTokens - before.usage.inputTokens,
        outputTokens: last.usage.outputTokens - before.usage.outputTokens,
        cachedTokens: last.usage.cachedTokens - before.usage.cachedTokens,
        reasoningTokens: last.usage.reasoningTokens - before.usage.reasoningTokens,
      },
    };
  }

  private stateAt(session: SessionRef, version: number): Promise<SessionState> {
    return this.commands.stateAt(session, version);
  }

  /** The state at the last version before the deletion that is between two versions. */
  private async beforeDeletion(session: SessionRef, from: number, to: number): Promise<SessionState> {
    const range = { from: from + 1, to, types: ['SessionDeleted'] };
    const [deletion] = await this.store.streams.read(streamOf(session), range);
    return this.stateAt(session, (deletion?.version ?? to) - 1);
  }

  /** The first generations that began or ended after a version and up to another. */
  private async generations(
    session: SessionRef,
    from: number,
    to: number,
    limit: number,
  ): Promise<DiffAnswer['generations']> {
    const range = { from: from + 1, to, types: GENERATION_TYPES };
    // A session has one generation at a time, so beginnings and ends alternate, and the first end may belong to an
    // earlier start.
    const events = await this.store.streams.read(streamOf(session), { ...range, limit: 2 * limit + 1 });
    const found: DiffAnswer['generations'] = [];
    for (const { type, data, version } of events as unknown as GenerationEvent[]) {
      const { generationId, model } = data;
      if (type === 'GenerationStarted') {
        found.push({ generationId, model, status: 'running', started: version, ended: null });
        continue;
      }
      const begun = found.at(-1)?.ended === null ? found.pop() : undefined;
      found.push({
        generationId,
        model,
        status: ENDS[type],
        started: begun?.started ?? null,
        ended: version,
        ...('finishReason' in data && data.finishReason !== undefined && { finishReason: data.finishReason }),
        ...('code' in data && { code: data.code }),
      });
    }
    return found.slice(0, limit);
  }
}

const ENDS = {
  GenerationCompleted: 'completed',
  GenerationFailed: 'failed',
  GenerationCancelled: 'cancelled',
} as const;

const streamOf = ({ tenant, sessionId }: SessionRef) => ({ tenant, streamId: sessionId });

/** `{before, after}` for each field with a single value that differs between two states. */
function changed(
  before: SessionState,
  after: SessionState,
): Pick<DiffAnswer, 'status' | 'title' | 'metadata' | 'legalHold'> {
  const names = ['status', 'title', 'metadata', 'legalHold'] as const;
  const differing = names.filter((name) => !isDeepStrictEqual(before[name], after[name]));
  return Object.fromEntries(differing.map((name) => [name, { before: before[name], after: after[name] }]));
}

const missing = (from: SessionState['approvals'], others: SessionState['approvals']) =>
  from.filter((one) => !others.some((other) => isDeepStrictEqual(one, other)));
