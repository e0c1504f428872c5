import { Injectable } from '@nestjs/common';
import { ForkSession, type NewMessage } from '../domain/session.commands.js';
import { type MessageRecord } from '../read-models/session-record.js';
import { EventLog } from '../event-store/log.js';
import { VersionMismatch } from '../event-store/refusals.js';
import { invalidRequest } from '../http/problem.js';
import { type WriteContext } from '../http/preconditions.js';
import { type CommandContext, type SessionRef } from '../sessions/command-context.js';
import { HistoryReader } from '../sessions/history-reader.js';
import { newId } from '../sessions/ids.js';
import { SessionCommands } from '../sessions/session-commands.js';
import { incarnationIn, SessionQueries } from '../sessions/session-queries.js';

/** Most messages of a fork. A fork is a single append, which holds up its lane. */
const MAX_MESSAGES = 10_000;
const MAX_BYTES = 32 * 1024 * 1024;

/** Creates the command that begins a session with a copy of another session's history. Nothing is shared afterwards. */
@Injectable()
export class Forks {
  private readonly histories: HistoryReader;

  constructor(
    private readonly store: EventLog,
    private readonly commands: SessionCommands,
    private readonly queries: SessionQueries,
  ) {
    this.histories = new HistoryReader(store);
  }

  /**
   * @param source the session that is copied
   * @param idempotency of the request that makes the fork
   * @param at a version or time of the source's present incarnation; now unless given
   * @param ifMatch versions that the source may have
   * @throws DomainError `session-not-found`; VersionMismatch; ApiError `invalid-request` for what is not inside the
   * incarnation and for a history that is too long
   */
  async command(
    source: SessionRef,
    idempotency: CommandContext['idempotency'],
    at: number | string | undefined,
    ifMatch: WriteContext['ifMatch'],
  ): Promise<ForkSession> {
    // A retry gets the fork that the first request made, even if the source has changed since.
    const { tenant, sessionId } = source;
    if (idempotency && (await this.store.keyed.find(tenant, idempotency.scope, idempotency.key))) {
      return new ForkSession({ sessionId, version: 1 }, []);
    }
    const { state: now } = await this.commands.load(source);
    const incarnation = incarnationIn(now, undefined);
    if (Array.isArray(ifMatch) && !ifMatch.includes(now.version)) throw new VersionMismatch(now.version);
    const pointer = { pointer: '/at', in: 'body' } as const;
    const { version } = await this.queries.pointAt(
      source,
      { ...now, incarnation },
      at ?? now.version,
      pointer,
    );
    const then = await this.commands.stateAt(source, version);
    if (then.messageCount > MAX_MESSAGES) throw tooLong(`${MAX_MESSAGES} messages`);
    let bytes = 0;
    const left = await this.histories.messagesLeft(
      source,
      [[then.historyStart, version]],
      version,
      ({ data }) => {
        bytes += Buffer.byteLength(JSON.stringify(data));
        if (bytes > MAX_BYTES) throw tooLong(`${MAX_BYTES / 1024 / 1024} MiB`);
      },
    );
    const messages = left.map((event) => copyOf(sessionId, event));
    return new ForkSession({ sessionId, version }, messages, {
      // The fork is its source's owner's, whoever makes it.
      ...(then.owner !== null && { owner: then.owner }),
      ...(then.title !== null && { title: then.title }),
      ...(Object.keys(then.metadata).length > 0 && { metadata: then.metadata }),
    });
  }
}

/** The copy has no `generationId`, because the generation is one of the source session. */
function copyOf(
  sessionId: string,
  { data: { generationId: _generation, messageId, ...message }, time }: MessageRecord,
): NewMessage {
  const createdAt = message.origin?.createdAt ?? time;
  return { ...message, messageId: newId('msg'), origin: { sessionId, messageId, createdAt } };
}

const tooLong = (limit: string): Error =>
  invalidRequest([
    { pointer: '/at', in: 'body', detail: `has a history of more than ${limit}: too long to copy` },
  ]);
