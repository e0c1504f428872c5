import { Injectable } from '@nestjs/common';
import { CommandBus } from '@nestjs/cqrs';
import { replyText } from '../domain/content.js';
import { DomainError } from '../domain/decider.js';
import { type NewMessage, RewindHistory } from '../domain/session.commands.js';
import { Generations } from '../generation/generations.js';
import { exists } from '../domain/session.state.js';
import { type LiveReply } from '../generation/live-reply.js';
import { type CommandContext, type SessionRef } from '../sessions/command-context.js';
import { dispatch } from '../sessions/command-handlers.js';
import { SessionCommands } from '../sessions/session-commands.js';
import { type AskedChat } from './chat-asked.js';

/**
 * Turns of clients that send the whole conversation with each request, recorded in a session: its history is brought to
 * what the client sent, and answered.
 */
@Injectable()
export class RecordedChat {
  constructor(
    private readonly bus: CommandBus,
    private readonly commands: SessionCommands,
    private readonly generations: Generations,
  ) {}

  /** @throws what `Generations.start` throws */
  async start(session: SessionRef, context: CommandContext, asked: AskedChat): Promise<LiveReply> {
    const { model, tools, parameters } = asked;
    const again = context.idempotency && (await this.generations.startedBefore(session, context.idempotency));
    if (again) return again;
    const { state } = await this.commands.load(session);
    const history = exists(state) ? await this.generations.presentVersions(session, state) : [];
    const { messages } = asked;
    let common = 0;
    while (common < history.length && common < messages.length) {
      if (comparable(history[common]?.message) !== comparable(messages[common])) break;
      common += 1;
    }
    let known: number[] | undefined = exists(state) ? [state.version] : undefined;
    if (common < history.length) {
      if (state.generation) throw new DomainError('session-busy', 'the session is generating a reply');
      const toVersion = common === 0 ? state.historyStart : (history[common - 1]?.version ?? 0);
      const command = new RewindHistory(toVersion, 'the client sent another history');
      const { idempotency: _key, ...rewinding } = { ...context, ifMatch: known };
      known = [(await dispatch(this.bus, session, command, rewinding)).state.version];
    }
    return this.generations.start(
      session,
      { ...context, ifMatch: known },
      { model, tools, parameters, messages: messages.slice(common), create: {} },
    );
  }
}

/** A message as it can be compared: clients give replies back without what they do not understand. */
function comparable(message: NewMessage | undefined): string {
  if (!message) return '';
  const { role, content, toolCalls = [], toolCallId } = message;
  const others =
    typeof content === 'string'
      ? []
      : content.filter(({ type }) => type !== 'text' && type !== 'refusal' && type !== 'reasoning');
  const calls = toolCalls.map(({ id, name, arguments: text }) => [id, name, text]);
  return JSON.stringify([role, replyText(content), others, calls, toolCallId ?? null]);
}
