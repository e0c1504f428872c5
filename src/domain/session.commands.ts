import { type EventData, type Json, type ToolDefinition } from './session.events.js';

/**
 * What may be asked of a session. A command carries the intent alone: which session it is for, who asks and under which
 * conditions stand beside it (`CommandContext`), because the rules must not depend on them.
 */

/** A message on its way into a session; ids come from outside, since the rules know no random. */
export type NewMessage = EventData<'MessageAppended'>;
/** What had arrived of a reply when its generation ended early. */
export type PartialReply = Pick<NewMessage, 'messageId' | 'content'> & {
  /** Whose reply it is; one of another generation than the current is left out. */
  readonly generationId?: string;
};

export class CreateSession {
  readonly type = 'CreateSession';
  constructor(readonly details: Pick<EventData<'SessionCreated'>, 'title' | 'metadata'> = {}) {}
}
/** Makes a session whose history begins as a copy of another's; the target must not exist. */
export class ForkSession {
  readonly type = 'ForkSession';
  constructor(
    readonly from: { readonly sessionId: string; readonly version: number },
    readonly messages: readonly NewMessage[],
    readonly details: Pick<EventData<'SessionCreated'>, 'title' | 'metadata'> = {},
  ) {}
}
/** A field that is given replaces the old value; `title: null` takes the title away. */
export class ChangeSessionDetails {
  readonly type = 'ChangeSessionDetails';
  constructor(readonly details: EventData<'SessionDetailsChanged'>) {}
}
export class AppendMessages {
  readonly type = 'AppendMessages';
  constructor(readonly messages: readonly NewMessage[]) {}
}
/** Ranges of versions up to `upTo`; what is appended later is always seen. */
export interface ContextWindow {
  readonly ranges: readonly (readonly [number, number])[];
  readonly upTo: number;
}
export class StartGeneration {
  readonly type = 'StartGeneration';
  constructor(
    readonly generation: {
      readonly generationId: string;
      readonly model: string;
      readonly instructions?: string | undefined;
      readonly parameters?: Record<string, Json> | undefined;
      readonly tools?: ToolDefinition[] | undefined;
    },
    readonly message?: NewMessage,
    /** What had arrived of the generation before, should that one turn out to be dead. */
    readonly partial?: PartialReply,
    /** What of the history up to a version the model is to see; all of it unless given. */
    readonly window?: ContextWindow,
  ) {}
}
export class CompleteGeneration {
  readonly type = 'CompleteGeneration';
  constructor(
    readonly result: Omit<EventData<'GenerationCompleted'>, 'model'>,
    readonly reply: Pick<NewMessage, 'messageId' | 'content' | 'toolCalls'>,
  ) {}
}
export class FailGeneration {
  readonly type = 'FailGeneration';
  constructor(
    readonly failure: Omit<EventData<'GenerationFailed'>, 'model'>,
    readonly partial?: PartialReply,
  ) {}
}
/** With a `generationId` it ends that one only: a node that stops late must not end the successor of its own. */
export class CancelGeneration {
  readonly type = 'CancelGeneration';
  constructor(
    readonly partial?: PartialReply,
    readonly end: Pick<EventData<'GenerationCancelled'>, 'usage' | 'durationMs'> = {},
    readonly generationId?: string,
  ) {}
}
/** Ends a generation whose node is gone; refused with `session-busy` while its lease stands. */
export class AbandonGeneration {
  readonly type = 'AbandonGeneration';
  constructor(
    readonly generationId: string,
    readonly partial?: PartialReply,
  ) {}
}
export class GrantToolApproval {
  readonly type = 'GrantToolApproval';
  constructor(readonly approval: EventData<'ToolApprovalGranted'>) {}
}
export class RevokeToolApproval {
  readonly type = 'RevokeToolApproval';
  constructor(readonly tool: string) {}
}
export class ResetConversation {
  readonly type = 'ResetConversation';
  constructor(
    readonly reason?: string,
    readonly partial?: PartialReply,
  ) {}
}
/** Takes a session out of the active set. `idleFor` (ms) is checked again when the event is stamped. */
export class ExpireSession {
  readonly type = 'ExpireSession';
  constructor(
    readonly reason: EventData<'SessionExpired'>['reason'],
    readonly lastActivityAt: string,
    readonly idleFor?: number,
  ) {}
}
export class DeleteSession {
  readonly type = 'DeleteSession';
  constructor(readonly reason?: string) {}
}

export type SessionCommand =
  | CreateSession
  | ForkSession
  | ChangeSessionDetails
  | AppendMessages
  | StartGeneration
  | CompleteGeneration
  | FailGeneration
  | CancelGeneration
  | AbandonGeneration
  | GrantToolApproval
  | RevokeToolApproval
  | ResetConversation
  | ExpireSession
  | DeleteSession;
