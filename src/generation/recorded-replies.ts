import { replyText } from '../domain/content.js';
import { type ToolDefinition } from '../domain/session.events.js';
import { type EventLog } from '../event-store/log.js';
import { type RecordedEvent } from '../event-store/recorded-event.js';
import { Erased } from '../event-store/refusals.js';
import { type StreamRange } from '../event-store/stream-reader.js';
import { ApiError } from '../http/problem.js';
import { type SessionRecord } from '../read-models/session-record.js';
import { type SessionRef } from '../sessions/command-context.js';
import { replyIdOf, timeOf } from '../sessions/ids.js';
import { type SessionCommands } from '../sessions/session-commands.js';
import { generationNotFound, modelProblem, sessionNotFound } from './generation.errors.js';
import { type GeneratedAnswer } from './generation.schemas.js';
import { type ReplyEnd } from './live-reply.js';
import { firstThoughts } from './reply-content.js';
import { reportedCalls } from './tool-calls.js';

type EventNamed<Type extends SessionRecord['type']> = SessionRecord & { type: Type };
export type RecordedStart = EventNamed<'GenerationStarted'>;

/** A generation, and the version of its session at which it was started. */
export interface StartedGeneration {
  readonly generationId: string;
  readonly version: number;
  readonly tools?: readonly ToolDefinition[] | undefined;
}

const OUTCOME_EVENTS = [
  'MessageAppended',
  'GenerationCompleted',
  'GenerationFailed',
  'GenerationCancelled',
  'SessionErased',
];
/**
 * Events of the first page. Most replies end within it. Later pages are larger, so that a distant end is found in few
 * queries.
 */
const FIRST_PAGE_SIZE = 8;
const MAX_PAGE_SIZE = 1_000;
const VERSION_MAX = 2_147_483_647;

/**
 * Finds generations and their ends in the log. What that costs depends on how many events came between a generation's
 * start and its end, not on how long the session was before or has become since.
 */
export class RecordedReplies {
  constructor(
    private readonly log: EventLog,
    private readonly commands: SessionCommands,
  ) {}

  /** The start of a generation, at the version where it is known to be. @throws ApiError `not-found` */
  async startAt(session: SessionRef, generationId: string, version: number): Promise<RecordedStart> {
    const [found] = await this.read(session, { from: version, to: version });
    if (found?.erased) throw new Erased(version);
    if (found && isStartOf(found, generationId)) return found;
    throw generationNotFound();
  }

  /**
   * The start of a generation within one incarnation: what a deleted session held may be seen in the audit trail only.
   * The id holds the time at which it was made, so the search begins at the version that the session had then. It goes
   * on in growing steps in both directions, because the clocks of node and database may differ.
   * @throws ApiError `not-found`
   */
  async findStart(session: SessionRef, generationId: string, incarnation: number): Promise<RecordedStart> {
    const madeAt = timeOf(generationId);
    const stream = streamOf(session);
    const last =
      madeAt === undefined
        ? undefined
        : await this.log.streams.lastVersion(stream, incarnation, { time: madeAt });
    const [end = 0] = await this.log.streams.versions([stream]);
    let low = (last?.version ?? 0) + 1;
    let high = low;
    for (let step = FIRST_PAGE_SIZE * 2; low > 1 || high <= end; step *= 2) {
      const ranges = [
        { from: high, to: high + step - 1 },
        { from: Math.max(1, low - step), to: low - 1 },
      ];
      for (const range of ranges) {
        if (range.from > range.to) continue;
        for await (const event of this.pages(session, { ...range, types: ['GenerationStarted'] })) {
          if (!isStartOf(event, generationId)) continue;
          if (event.incarnation !== incarnation) throw generationNotFound();
          return event;
        }
      }
      low = Math.max(1, low - step);
      high += step;
    }
    throw generationNotFound();
  }

  /**
   * Makes sure that a generation which has begun is still in the log: after a failover it may be gone, and would never end.
   * @throws DomainError `session-not-found`; what tells of an unknown generation
   */
  async mustBeThere(
    session: SessionRef,
    { generationId, version }: Pick<StartedGeneration, 'generationId' | 'version'>,
  ): Promise<void> {
    // Its start is the last event of the append that began it.
    const [event] = await this.read(session, { from: version, to: version });
    if (event && isStartOf(event, generationId)) return;
    const [end = 0] = await this.log.streams.versions([streamOf(session)]);
    throw end === 0 ? sessionNotFound() : generationNotFound();
  }

  /**
   * Looks for the end of a generation. Each look goes on where the one before it stopped.
   * @returns a look, which gives undefined while the generation has no end
   */
  search(session: SessionRef, started: StartedGeneration): () => Promise<ReplyEnd | undefined> {
    let from = started.version + 1;
    let message: EventNamed<'MessageAppended'> | undefined;
    return async () => {
      for await (const event of this.pages(session, { from, types: OUTCOME_EVENTS })) {
        from = event.version + 1;
        if (event.type === 'SessionErased') return { type: 'failed', error: sessionNotFound() };
        if (event.erased) continue;
        if (!('generationId' in event.data) || event.data.generationId !== started.generationId) continue;
        switch (event.type) {
          case 'MessageAppended':
            message = event;
            break;
          case 'GenerationFailed': {
            const code = event.data.code === 'model-timeout' ? 'model-timeout' : 'model-failed';
            const error = modelProblem(code, event.data.message, session, started.generationId);
            const content = message?.data.content ?? '';
            return {
              type: 'failed',
              error,
              version: event.version,
              content: replyText(content),
              reasoning: firstThoughts(content),
            };
          }
          case 'GenerationCompleted':
          case 'GenerationCancelled':
            return this.toReplyEnd(session, started, event, message);
        }
      }
      return undefined;
    };
  }

  /** Whether the reply of a generation was taken out of the history by itself, after a version. */
  async isRemoved(session: SessionRef, generationId: string, version = 1): Promise<boolean> {
    const messageId = replyIdOf(generationId);
    for await (const event of this.pages(session, { from: version, types: ['MessageRemoved'] }))
      if (event.type === 'MessageRemoved' && !event.erased && event.data.messageId === messageId) return true;
    return false;
  }

  private async toReplyEnd(
    session: SessionRef,
    started: StartedGeneration,
    end: EventNamed<'GenerationCompleted' | 'GenerationCancelled'>,
    message: EventNamed<'MessageAppended'> | undefined,
  ): Promise<ReplyEnd> {
    const isCancelled = end.type === 'GenerationCancelled';
    if (isCancelled && (await this.wasDeletedWith(session, end)))
      return { type: 'failed', error: sessionNotFound() };
    return {
      type: isCancelled ? 'cancelled' : 'completed',
      version: end.version,
      answer: {
        content: message ? replyText(message.data.content) : '',
        message: message ? await this.toMessage(session, message, started.tools) : null,
        usage: end.data.usage ?? null,
        finishReason: isCancelled ? 'cancelled' : end.data.finishReason,
        sessionId: session.sessionId,
        generationId: started.generationId,
      },
    };
  }

  /** Whether the deletion of the session ended the generation. Both events are then of one append. */
  private async wasDeletedWith(session: SessionRef, end: SessionRecord): Promise<boolean> {
    const version = end.version + 1;
    const [next] = await this.read(session, { from: version, to: version });
    return next?.type === 'SessionDeleted' && next.correlationId === end.correlationId;
  }

  private async toMessage(
    session: SessionRef,
    { version, time, data }: EventNamed<'MessageAppended'>,
    tools: readonly ToolDefinition[] | undefined,
  ): Promise<GeneratedAnswer['message']> {
    const { messageId, toolCalls, ...message } = data;
    const view = { id: messageId, ...message, version, createdAt: time };
    if (!toolCalls) return view;
    return { ...view, toolCalls: reportedCalls(toolCalls, tools, await this.commands.load(session)) };
  }

  private async *pages(session: SessionRef, range: StreamRange): AsyncGenerator<SessionRecord> {
    let from = range.from ?? 1;
    for (let limit = FIRST_PAGE_SIZE; ; limit = Math.min(limit * 4, MAX_PAGE_SIZE)) {
      const page = await this.read(session, { ...range, from, limit });
      yield* page;
      const last = page.at(-1);
      if (!last || page.length < limit || last.version === (range.to ?? VERSION_MAX)) return;
      from = last.version + 1;
    }
  }

  private async read(session: SessionRef, range: StreamRange): Promise<SessionRecord[]> {
    return (await this.log.streams.read(streamOf(session), {
      ...range,
      erasedToo: true,
    })) as readonly RecordedEvent[] as SessionRecord[];
  }
}

const streamOf = ({ tenant, sessionId }: SessionRef) => ({ tenant, streamId: sessionId });

const isStartOf = (event: SessionRecord, generationId: string): event is RecordedStart =>
  event.type === 'GenerationStarted' && !event.erased && event.data.generationId === generationId;

/** The message of an error that a client may see; null for any other. */
export const shownError = (end: ReplyEnd | undefined): string | null =>
  end?.type === 'failed' && end.error instanceof ApiError ? end.error.message : null;
