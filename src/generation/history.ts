import { boundedCache } from '../bounded-cache.js';
import { type ContextWindow, type NewMessage } from '../domain/session.commands.js';
import { type SessionEvent, type ToolDefinition } from '../domain/session.events.js';
import { exists, type SessionState } from '../domain/session.state.js';
import { endOfTurn } from '../event-store/end-of-turn.js';
import { type EventLog } from '../event-store/log.js';
import { HistoryReader, type VersionedMessage } from '../sessions/history-reader.js';
import { type SessionRef } from '../sessions/command-context.js';
import { type SessionCommands } from '../sessions/session-commands.js';
import { definitionTokens, fitWindow, loadTokenizer, messageTokens } from './context-window.js';

/**
 * What is read of a session while the start of a generation is appended. Otherwise the model would have to wait for
 * this read.
 */
export interface EarlyHistory {
  readonly historyStart: number;
  readonly version: number;
  /**
   * Resolves to undefined when the messages will not be needed or could not be read; in the latter case they are read
   * again later.
   */
  readonly messages: Promise<VersionedMessage[] | undefined>;
}

/** Number of messages whose token counts are cached. A recorded message never changes, and neither does its count. */
const CACHED_COUNTS = 50_000;

/** Reads the history of a session for a model: its messages, and the window of them that fits the model's context. */
export class History {
  private readonly counts = boundedCache<string, number>(CACHED_COUNTS);
  private readonly reader: HistoryReader;

  constructor(
    private readonly log: EventLog,
    private readonly commands: SessionCommands,
    /** Tokens of a prompt; without it the model is given the whole history. */
    private readonly maxInputTokens: number | undefined,
  ) {
    this.reader = new HistoryReader(log);
  }

  /** The messages that the history had at a version, those in inclusive ranges of versions, in their order. */
  messages(
    session: SessionRef,
    ranges: readonly (readonly [number, number])[],
    at: number,
  ): Promise<VersionedMessage[]> {
    return this.reader.messages(session, ranges, at);
  }

  /** Begins to read what a generation will probably see. The result may be out of date by the time of the append. */
  async readAhead(
    session: SessionRef,
    { isNew, mayCreate }: { isNew: boolean | undefined; mayCreate: boolean },
  ): Promise<EarlyHistory> {
    if (isNew) return { historyStart: 0, version: 0, messages: Promise.resolve([]) };
    const { state } = await this.commands.lastKnown(session);
    const { historyStart, version } = state;
    const isMissing = !exists(state);
    if (isMissing && mayCreate) return { historyStart, version, messages: Promise.resolve([]) };
    // A session that is busy or does not exist will refuse the generation, so its messages are not read.
    const isWanted = !isMissing && !state.generation;
    if (!isWanted) return { historyStart, version, messages: Promise.resolve(undefined) };
    if (state.messageCount === 0) return { historyStart, version, messages: Promise.resolve([]) };
    // The append is sent before this read, so that it need not wait behind it. With a token budget the append has to
    // wait for the messages all the same, because they determine the window, so they are read at once.
    const turn = this.maxInputTokens === undefined ? endOfTurn() : Promise.resolve();
    const messages = turn.then(() => this.messages(session, [[historyStart + 1, version]], version));
    const reportFailure = this.log.telemetry.failed('reading the history ahead of a generation');
    return { historyStart, version, messages: messages.catch(reportFailure) };
  }

  /**
   * The messages that the model sees in a generation whose start is about to be appended.
   * @param events the events of that append; `before` is the state before them
   * @param recorded resolves when the events are recorded; if the messages that were read ahead are out of date, they
   * are read again then
   */
  async seenBy(
    session: SessionRef,
    ahead: EarlyHistory,
    events: readonly SessionEvent[],
    before: SessionState,
    recorded: Promise<unknown>,
  ): Promise<VersionedMessage[]> {
    const { version, historyStart } = before;
    const start = events.at(-1);
    const context = start?.type === 'GenerationStarted' ? start.data.context : [];
    const isCurrent = ahead.version === version && ahead.historyStart === historyStart;
    const known = isCurrent ? await ahead.messages : undefined;
    if (!known) {
      await recorded;
      return this.messages(session, context, version + events.length);
    }
    let seen = [...known];
    for (const [index, event] of events.entries()) {
      if (event.type === 'MessageAppended') seen.push({ version: version + 1 + index, message: event.data });
      else if (event.type === 'HistoryRewound')
        seen = seen.filter((one) => one.version <= event.data.toVersion);
    }
    return seen.filter((one) => context.some(([from, last]) => from <= one.version && one.version <= last));
  }

  /** The part of the history that fits the budget; undefined when there is no budget or no history. */
  async window(
    session: SessionRef,
    request: {
      readonly messages?: readonly NewMessage[] | undefined;
      readonly instructions?: string | undefined;
      readonly tools?: ToolDefinition[] | undefined;
    },
    { historyStart, version, messages }: EarlyHistory,
  ): Promise<ContextWindow | undefined> {
    if (this.maxInputTokens === undefined) return undefined;
    const [tokens, known] = await Promise.all([loadTokenizer(), messages]);
    const history = known ?? (await this.messages(session, [[historyStart + 1, version]], version));
    const { messages: added = [], instructions, tools } = request;
    const fixed =
      added.reduce((sum, message) => sum + messageTokens(message, tokens), 0) +
      (instructions === undefined ? 0 : messageTokens({ content: instructions }, tokens)) +
      definitionTokens(tools, tokens);
    const count = (one: VersionedMessage): number => {
      const key = `${session.tenant}/${session.sessionId}/${one.version}`;
      const counted = this.counts.get(key) ?? messageTokens(one.message, tokens);
      this.counts.set(key, counted);
      return counted;
    };
    // The result of a tool or a system message continues the last turn instead of beginning a new one.
    return fitWindow(history, this.maxInputTokens - fixed, count, added.at(-1)?.role === 'user');
  }
}
