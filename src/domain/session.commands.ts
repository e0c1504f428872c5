import { type EventData, type Json, type ToolDefinition } from './session.events.js';

/**
 * What may be asked of a session. A command carries the intent alone: which session it is for, who asks and under which
 * conditions stand beside it (`CommandContext`), because the rules must not depend on them.
 */

/** A message to be appended. Its id comes from the caller, because the rules are pure and cannot draw random ids. */
export type NewMessage = EventData<'MessageAppended'>;
/** The part of a reply that had arrived when its generation ended early. */
export type PartialReply = Pick<NewMessage, 'messageId' | 'content'> & {
  /** The generation of the reply; a reply of another generation than the current one is ignored. */
  readonly generationId?: string;
};

/** What a session is created with. */
export type SessionDetails = Pick<EventData<'SessionCreated'>, 'owner' | 'title' | 'metadata'>;

/** Messages join the history of a session that is created; one that exists already stays as it is. */
export class CreateSession {
  readonly type = 'CreateSession';
  constructor(
    readonly details: SessionDetails = {},
    readonly messages: readonly NewMessage[] = [],
  ) {}
}
/** Creates a session whose history begins as a copy of another session's. The new session must not exist yet. */
export class ForkSession {
  readonly type = 'ForkSession';
  constructor(
    readonly from: { readonly sessionId: string; readonly version: number },
    readonly messages: readonly NewMessage[],
    readonly details: SessionDetails = {},
  ) {}
}
/** A field that is given replaces the old value; `title: null` removes the title. */
export class ChangeSessionDetails {
  readonly type = 'ChangeSessionDetails';
  constructor(readonly details: EventData<'SessionDetailsChanged'>) {}
}
export class AppendMessages {
  readonly type = 'AppendMessages';
  constructor(
    readonly messages: readonly NewMessage[],
    /** So many messages at the end of the history leave it first. */
    readonly replaceLast = 0,
    /** The partial reply of a generation that turns out to be dead, recorded before a part of the history is replaced. */
    readonly partial?: PartialReply,
    /** What is left of the history without them. Without it there are not so many. */
    readonly rewound?: Rewound,
  ) {}
}
/** The model sees the messages in these ranges of versions up to `upTo`, and all messages that are appended later. */
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
      readonly extensions?: NewMessage['extensions'] | undefined;
    },
    /** Join the history first. Without any, the history as it stands is answered. */
    readonly messages: readonly NewMessage[] = [],
    /** The partial reply of the previous generation, recorded if that generation turns out to be dead. */
    readonly partial?: PartialReply,
    /** The part of the history that the model sees; the whole history unless given. */
    readonly window?: ContextWindow,
    /** Whether the last reply leaves the history first, so that the message before it is answered again. */
    readonly regenerate = false,
    /** Where the last reply begins, and what is left before it; null when there is no reply to leave. */
    readonly rewound?: Rewound | null,
    /** What the session is created with if there is none; without it there must be one. */
    readonly create?: SessionDetails,
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
/**
 * With a `generationId`, ends that generation only: a node that stops late must not end the generation after its own.
 */
export class CancelGeneration {
  readonly type = 'CancelGeneration';
  constructor(
    readonly partial?: PartialReply,
    readonly end: Pick<EventData<'GenerationCancelled'>, 'usage' | 'durationMs'> = {},
    readonly generationId?: string,
  ) {}
}
/** Ends a generation whose node is gone. Refused with `session-busy` as long as its lease has not run out. */
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
/** What leaves the history with a message, and what is left. It is read from the log, because the state does not hold it. */
export type Removed = Pick<EventData<'MessageRemoved'>, 'versions' | 'openToolCalls'>;
/** What is left of the history when it is rewound to a version. */
export type Rewound = Pick<EventData<'HistoryRewound'>, 'toVersion' | 'messageCount' | 'openToolCalls'>;

/** Takes a message out of the history; a tool call takes its results along, and a result its call. */
export class RemoveMessage {
  readonly type = 'RemoveMessage';
  constructor(
    readonly messageId: string,
    readonly partial?: PartialReply,
    /** Without it there is no such message. */
    readonly removed?: Removed,
  ) {}
}
/** Takes all messages after a version out of the history. */
export class RewindHistory {
  readonly type = 'RewindHistory';
  constructor(
    readonly toVersion: number,
    readonly reason?: string,
    readonly partial?: PartialReply,
    readonly rewound?: Rewound,
  ) {}
}
export class ResetConversation {
  readonly type = 'ResetConversation';
  constructor(
    readonly reason?: string,
    readonly partial?: PartialReply,
  ) {}
}
/** Expires a session. `idleFor` (ms) is checked again when the event gets its time from the database. */
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

/** What is there to be erased, as the log has it. It is read there, because the state does not hold it. */
export interface Erasure {
  readonly incarnations: readonly Readonly<EventData<'SessionErased'>['incarnations'][number]>[];
  readonly keys: readonly string[];
  /** Whether some of it is stored in plain, so that no key takes it away. */
  readonly isPlain: boolean;
}

/** Makes unreadable what was ever said in a session, through all its incarnations. */
export class EraseSession {
  readonly type = 'EraseSession';
  constructor(
    readonly reason?: string,
    /** Without it the state is a guess. */
    readonly erasure?: Erasure,
    /** Given when its time has come: which scheduled erasure this is. It does nothing if that does not stand any more. */
    readonly planned?: 'requested' | 'byPolicy',
  ) {}
}
/** Schedules an erasure, which takes the place of the one that was scheduled in the same way before. */
export class ScheduleErasure {
  readonly type = 'ScheduleErasure';
  constructor(
    /** RFC 3339. Of a request it must be in the future when the event gets its time from the database. */
    readonly at: string,
    readonly reason?: string,
    /** The policy that schedules it; without one somebody asks for it. */
    readonly policy?: EventData<'ErasureScheduled'>['policy'],
    /** What there would be to erase now, for a request. Without it the state is a guess. */
    readonly erasure?: Erasure,
  ) {}
}
/** Calls off what is scheduled: all of it, or only what a policy scheduled that holds no more. */
export class CancelErasure {
  readonly type = 'CancelErasure';
  constructor(
    readonly reason?: string,
    readonly cause: 'request' | 'policy' = 'request',
  ) {}
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
  | RemoveMessage
  | RewindHistory
  | ResetConversation
  | ExpireSession
  | DeleteSession
  | EraseSession
  | ScheduleErasure
  | CancelErasure;
