import { type Provider, type Type } from '@nestjs/common';
import { AsyncContext, CommandHandler, type CommandBus } from '@nestjs/cqrs';
import {
  AbandonGeneration,
  AppendMessages,
  CancelErasure,
  CancelGeneration,
  ChangeSessionDetails,
  CompleteGeneration,
  CreateSession,
  DeleteSession,
  EraseSession,
  ExpireSession,
  FailGeneration,
  ForkSession,
  GrantToolApproval,
  RemoveMessage,
  ResetConversation,
  RevokeToolApproval,
  RewindHistory,
  ScheduleErasure,
  type SessionCommand,
  StartGeneration,
} from '../domain/session.commands.js';
import { type CommandContext, type SessionRef } from './command-context.js';
import { type HandledSession, SessionCommands } from './session-commands.js';

type ClassOf<Command> = new (...parameters: never[]) => Command;

/** The class of each command of the union. A command that is missing here does not compile. */
const COMMANDS: { readonly [Command in SessionCommand as Command['type']]: ClassOf<Command> } = {
  CreateSession,
  ForkSession,
  ChangeSessionDetails,
  AppendMessages,
  StartGeneration,
  CompleteGeneration,
  FailGeneration,
  CancelGeneration,
  AbandonGeneration,
  GrantToolApproval,
  RevokeToolApproval,
  RemoveMessage,
  RewindHistory,
  ResetConversation,
  ExpireSession,
  DeleteSession,
  EraseSession,
  ScheduleErasure,
  CancelErasure,
};

/** Carries the session and the context of a command through Nest's bus. */
class Delivery extends AsyncContext {
  constructor(
    readonly session: SessionRef,
    readonly context: CommandContext,
  ) {
    super();
  }
}

/** One handler per command. All of them do the same, because the differences between commands are in the rules. */
export const commandHandlers: Provider[] = Object.values(COMMANDS).map((command) => {
  class Handler {
    constructor(private readonly sessions: SessionCommands) {}

    execute(given: SessionCommand): Promise<HandledSession> {
      const delivery = AsyncContext.of(given);
      if (!(delivery instanceof Delivery)) throw new Error(`${given.type} was not sent by dispatch()`);
      return this.sessions.handle(delivery.session, given, delivery.context);
    }
  }
  Object.defineProperty(Handler, 'name', { value: `${command.name}Handler` });
  CommandHandler(command as Type)(Handler);
  return {
    provide: Handler,
    useFactory: (sessions: SessionCommands) => new Handler(sessions),
    inject: [SessionCommands],
  };
});

/**
 * Sends a command to a session through Nest's bus. A command object can be sent only once; create another one to try
 * again.
 * @throws what `SessionCommands.handle` throws
 */
export function dispatch(
  bus: CommandBus,
  session: SessionRef,
  command: SessionCommand,
  context: CommandContext,
): Promise<HandledSession> {
  new Delivery(session, context).attachTo(command);
  return bus.execute(command);
}
