import {
  AppendMessages,
  RemoveMessage,
  type Removed,
  RewindHistory,
  type Rewound,
  type SessionCommand,
  StartGeneration,
} from '../domain/session.commands.js';
import { type EventData } from '../domain/session.events.js';
import {
  carryOn,
  DEPARTURE_EVENTS,
  type DepartureEvent,
  HISTORY_EVENTS,
  leavesWith,
} from '../domain/history.js';
import { exists, type SessionState } from '../domain/session.state.js';
import { type EventLog } from '../event-store/log.js';
import { type HistoryRecord, type MessageRecord } from '../read-models/session-record.js';
import { type SessionRef } from './command-context.js';

/** A message of a history. */
export interface VersionedMessage {
  readonly version: number;
  readonly message: EventData<'MessageAppended'>;
}

/** What a change of a history has to know of a message. */
interface MessageHead {
  readonly version: number;
  readonly message: Pick<EventData<'MessageAppended'>, 'messageId' | 'role' | 'toolCalls' | 'toolCallId'>;
}
type Departure = DepartureEvent & { readonly version: number };

/** Versions that are read at once, first and at most: most changes concern the end of a history. */
const FIRST_PAGE = 64;
const LARGEST_PAGE = 1_024;

type OpenToolCalls = SessionState['openToolCalls'];

/** Reads the histories of sessions from the log, so that no read model has to have caught up. */
export class HistoryReader {
  constructor(private readonly log: EventLog) {}

  /**
   * The messages of the history that the session had at a version, in their order.
   * @param ranges of versions, both ends inclusive, ascending: of which messages are wanted
   */
  async messages(
    session: SessionRef,
    ranges: readonly (readonly [number, number])[],
    at: number,
  ): Promise<VersionedMessage[]> {
    const [first] = ranges;
    if (!first) return [];
    const left =
      ranges.length === 1
        ? await this.carriedOn(session, first[0], at)
        : await this.messagesLeft(session, ranges, at);
    return left
      .filter(({ version }) => ranges.some(([from, to]) => from <= version && version <= to))
      .map(({ version, data }) => ({ version, message: data }));
  }

  /**
   * The messages of ranges of versions that have not left the history by another version. Nothing is held of those that
   * have.
   * @param check called with each message that is left; what it throws ends the reading
   */
  async messagesLeft(
    session: SessionRef,
    ranges: readonly (readonly [number, number])[],
    at: number,
    check: (message: MessageRecord) => void = () => undefined,
  ): Promise<MessageRecord[]> {
    const stream = streamOf(session);
    const departures: (HistoryRecord & DepartureEvent)[] = [];
    const events = this.log.streams.events(stream, {
      from: ranges[0]?.[0] ?? 1,
      to: at,
      types: DEPARTURE_EVENTS,
    });
    for await (const event of events) departures.push(event as HistoryRecord & DepartureEvent);
    const leaves = leavesWith(departures);
    const left: MessageRecord[] = [];
    for (const [from, to] of ranges) {
      for await (const event of this.log.streams.events(stream, { from, to, types: ['MessageAppended'] })) {
        if (leaves(event.version)) continue;
        left.push(event as MessageRecord);
        check(event as MessageRecord);
      }
    }
    return left;
  }

  /** The messages from one version on that are left at another one, in a single pass. */
  private async carriedOn(session: SessionRef, from: number, to: number): Promise<MessageRecord[]> {
    const left: MessageRecord[] = [];
    for await (const event of this.log.streams.events(streamOf(session), { from, to, types: HISTORY_EVENTS }))
      carryOn(left, event as HistoryRecord);
    return left;
  }

  /** Adds to a command that changes the history what it leaves of it. Other commands stay as they are. */
  async prepare(session: SessionRef, command: SessionCommand, state: SessionState): Promise<SessionCommand> {
    const changes =
      command instanceof RemoveMessage ||
      command instanceof RewindHistory ||
      (command instanceof AppendMessages && command.replaceLast > 0) ||
      (command instanceof StartGeneration && command.regenerate);
    // Upon a guess it cannot be read. The command is refused then, and decided again upon the log. A session that is not
    // there has no history, and what it had may be erased.
    if (!changes || !exists(state) || !(await this.reaches(session, state))) return command;
    if (command instanceof RemoveMessage) {
      const removed = await this.removal(session, state, command.messageId);
      return removed ? withFields(command, { removed }) : command;
    }
    if (command instanceof StartGeneration) {
      const toVersion = await this.beforeLastReply(session, state);
      const rewound = toVersion === undefined ? null : await this.rewind(session, state, toVersion);
      return withFields(command, { rewound });
    }
    if (command instanceof AppendMessages) {
      const toVersion = await this.beforeLast(session, state, command.replaceLast);
      if (toVersion === undefined) return command;
      return withFields(command, { rewound: await this.rewind(session, state, toVersion) });
    }
    const { toVersion } = command;
    if (toVersion < state.historyStart || toVersion > state.version) return command;
    return withFields(command, { rewound: await this.rewind(session, state, toVersion) });
  }

  /**
   * What leaves the history with a message.
   * @returns undefined when the present history has no such message
   */
  private async removal(
    session: SessionRef,
    state: SessionState,
    messageId: string,
  ): Promise<Removed | undefined> {
    /** By id of a call: the results behind, the nearest last. */
    const results = new Map<string, { version: number; isWanted: boolean }[]>();
    /** The version of the named message, if that is a result whose call was not met yet. */
    let namedResult: number | undefined;
    for await (const { version, message } of this.backwards(session, state)) {
      const isNamed = namedResult === undefined && message.messageId === messageId;
      if (message.role === 'tool') {
        if (isNamed) namedResult = version;
        push(results, message.toolCallId ?? '', { version, isWanted: isNamed });
        continue;
      }
      const calls = (message.toolCalls ?? []).map(({ id }) => ({ id, result: results.get(id)?.pop() }));
      if (!isNamed && !calls.some(({ result }) => result?.isWanted)) continue;
      const versions = [version, ...calls.flatMap(({ result }) => (result ? [result.version] : []))];
      const unanswered = calls.flatMap(({ id, result }) => (result ? [] : [id]));
      return {
        versions: versions.sort((one, other) => one - other),
        ...asOpen(without(state.openToolCalls, unanswered)),
      };
    }
    return namedResult === undefined
      ? undefined
      : { versions: [namedResult], ...asOpen(state.openToolCalls) };
  }

  /**
   * What is left of the present history when all messages after a version leave it.
   * @param toVersion inside the present history
   */
  private async rewind(session: SessionRef, state: SessionState, toVersion: number): Promise<Rewound> {
    /** By id of a call: the results behind, the nearest last. True for one that leaves. */
    const results = new Map<string, boolean[]>();
    let messageCount = state.messageCount;
    /** Results that leave and whose calls were not met yet. */
    let unmatched = 0;
    /** Calls that leave without a result. */
    const gone: string[] = [];
    /** Calls that stay and have no result then, as far as they were met. */
    const open: { id: string; name: string }[] = [];
    let isReopened = false;
    /** Those of `open` that have no result now either. */
    let stillOpen = 0;
    for await (const { version, message } of this.backwards(session, state)) {
      const leaves = version > toVersion;
      // With a call that is open again, all others have to be met as well, so that they are in order.
      const unmet = isReopened && stillOpen < state.openToolCalls.length - gone.length;
      if (!leaves && unmatched === 0 && !unmet) break;
      if (leaves) messageCount -= 1;
      if (message.role === 'tool') {
        push(results, message.toolCallId ?? '', leaves);
        if (leaves) unmatched += 1;
      }
      const openOnes: { id: string; name: string }[] = [];
      for (const { id, name } of message.toolCalls ?? []) {
        const resultLeaves = results.get(id)?.pop();
        if (resultLeaves) unmatched -= 1;
        if (leaves && resultLeaves === undefined) gone.push(id);
        if (leaves || resultLeaves === false) continue;
        openOnes.push({ id, name });
        if (resultLeaves) isReopened = true;
        else stillOpen += 1;
      }
      open.unshift(...openOnes);
    }
    return { toVersion, messageCount, ...asOpen(isReopened ? open : without(state.openToolCalls, gone)) };
  }

  /**
   * The version before the last reply, if that is still the last word: undefined when a message of the user came after
   * it, or when there is none.
   */
  private async beforeLastReply(session: SessionRef, state: SessionState): Promise<number | undefined> {
    for await (const { version, message } of this.backwards(session, state)) {
      if (message.role === 'assistant') return version - 1;
      if (message.role === 'user') return undefined;
    }
    return undefined;
  }

  /** The version before the last messages of the history; undefined when it has not so many. */
  private async beforeLast(
    session: SessionRef,
    state: SessionState,
    count: number,
  ): Promise<number | undefined> {
    let met = 0;
    for await (const { version } of this.backwards(session, state)) {
      met += 1;
      if (met === count) return version - 1;
    }
    return undefined;
  }

  /** Whether the log has all that the state rests on, which may be a guess. */
  private async reaches(session: SessionRef, { version }: SessionState): Promise<boolean> {
    const [end = 0] = await this.log.streams.versions([streamOf(session)]);
    return end >= version;
  }

  /** The messages of the present history, the last one first. */
  private async *backwards(
    session: SessionRef,
    { historyStart, version: end }: SessionState,
  ): AsyncGenerator<MessageHead> {
    const removed = new Set<number>();
    let to = end;
    for (let size = FIRST_PAGE; to > historyStart; size = Math.min(4 * size, LARGEST_PAGE)) {
      const from = Math.max(historyStart + 1, to - size + 1);
      const range = { from, to, types: HISTORY_EVENTS };
      // Without what was said: a page of long messages would fill the memory.
      const page: (Departure | MessageHead)[] = [];
      for await (const event of this.log.streams.events(streamOf(session), range))
        page.push(headOf(event as HistoryRecord));
      to = from - 1;
      let last = Infinity;
      for (const one of page.toReversed()) {
        if ('message' in one) {
          if (one.version <= last && !removed.has(one.version)) yield one;
        } else if (one.type === 'MessageRemoved')
          for (const version of one.data.versions) removed.add(version);
        else last = Math.min(last, one.data.toVersion);
      }
      // What a rewinding has left behind is not read.
      to = Math.min(to, last);
    }
  }
}

/** The command with more fields, of the same class. */
export function withFields<Command extends SessionCommand>(
  command: Command,
  fields: Partial<Command>,
): Command {
  const copy = Object.create(Object.getPrototypeOf(command) as object) as Command;
  return Object.assign(copy, command, fields);
}

const streamOf = ({ tenant, sessionId }: SessionRef) => ({ tenant, streamId: sessionId });

function headOf(event: HistoryRecord): Departure | MessageHead {
  if (event.type !== 'MessageAppended') return event;
  const { messageId, role, toolCalls, toolCallId } = event.data;
  return { version: event.version, message: { messageId, role, toolCalls, toolCallId } };
}

function push<Value>(lists: Map<string, Value[]>, key: string, value: Value): void {
  const list = lists.get(key);
  if (list) list.push(value);
  else lists.set(key, [value]);
}

/** The calls without those of these ids, one for each id. */
function without(calls: OpenToolCalls, ids: readonly string[]): OpenToolCalls {
  const left = [...calls];
  for (const id of ids) {
    const index = left.findLastIndex((call) => call.id === id);
    if (index >= 0) left.splice(index, 1);
  }
  return left;
}

const asOpen = (calls: OpenToolCalls) => (calls.length > 0 ? { openToolCalls: [...calls] } : {});
