import { Injectable } from '@nestjs/common';
import { CommandBus } from '@nestjs/cqrs';
import { boundedCache } from '../bounded-cache.js';
import { DomainError } from '../domain/decider.js';
import { fieldsOf } from '../domain/loose-json.js';
import {
  AppendMessages,
  CancelGeneration,
  GrantToolApproval,
  type NewMessage,
  RewindHistory,
} from '../domain/session.commands.js';
import { type Json, sessionEvents } from '../domain/session.events.js';
import { streamKey } from '../event-store/lane.js';
import { VersionMismatch } from '../event-store/refusals.js';
import { Generations } from '../generation/generations.js';
import { type LiveReply } from '../generation/live-reply.js';
import { parametersIn } from '../generation/parameters.js';
import { type WriteContext } from '../http/preconditions.js';
import { invalidRequest, jsonPointer } from '../http/problem.js';
import { type MessageView } from '../read-models/history.projection.js';
import { type CommandContext, refTo, type SessionRef } from '../sessions/command-context.js';
import { dispatch } from '../sessions/command-handlers.js';
import { replyIdOf } from '../sessions/ids.js';
import { SessionCommands } from '../sessions/session-commands.js';
import { SessionQueries } from '../sessions/session-queries.js';
import { contextOf } from '../sessions/sessions.controller.js';
import { type ChatBody, uiMessagesOf } from './chat.schemas.js';
import {
  callIdOf,
  callsOf,
  draftedResult,
  draftedUi,
  type Group,
  groupsOf,
  type Part,
  stateOf,
  toolNameOf,
  type UiMessage,
} from './ui-messages.js';

/** Messages that are read at once, the latest first: what a client sends follows on the end of the history. */
const PAGE = 200;

/** An answer to a request of `useChat`. */
export interface ChatTurn {
  /** The UI message that the answer is, or goes on with. */
  readonly messageId: string;
  /** The reply; none while tools that were approved have to be run by the client. */
  readonly live?: LiveReply;
  /** Calls that were refused, which the client learns first. */
  readonly denied: readonly string[];
  /** Calls that were approved and that the client has to run. */
  readonly approved: readonly Part[];
}

/** The UI messages at the end of a history, by their ids, and the version of the session at which they are. */
interface KnownEnd {
  readonly version: number;
  readonly ids: ReadonlySet<string>;
}
/** Chats of which this process keeps the end, because it has just answered them. */
const KNOWN_CHATS = 2_000;

/** What a request changes in a history before it is answered. */
interface Change {
  /** All messages of later versions leave. */
  readonly toVersion?: number;
  readonly reason?: string;
  readonly messages: readonly NewMessage[];
  /** The UI message that the reply goes on with. */
  readonly continues?: string | undefined;
  readonly denied?: readonly string[];
  readonly approved?: readonly Part[];
  /** Where the history ended before, as far as this process knows, if the request only adds to it. */
  readonly end?: KnownEnd | undefined;
}

/** Chats of the AI SDK. Each is a session, whose history is kept on this side. */
@Injectable()
export class Chats {
  private readonly ends = boundedCache<string, KnownEnd>(KNOWN_CHATS);

  constructor(
    private readonly bus: CommandBus,
    private readonly commands: SessionCommands,
    private readonly queries: SessionQueries,
    private readonly generations: Generations,
  ) {}

  /** @throws ApiError `invalid-request`; what `Generations.start` throws */
  async answer(write: WriteContext, body: ChatBody): Promise<ChatTurn> {
    const session = refTo(write.caller, body.id);
    const context = contextOf(write, 'POST /ai-sdk/chat', body);
    const again = context.idempotency && (await this.generations.startedBefore(session, context.idempotency));
    if (again) {
      const last = uiMessagesOf(body).at(-1);
      const messageId = last?.role === 'assistant' ? last.id : replyIdOf(again.generationId);
      return { messageId, live: again, denied: [], approved: [] };
    }
    const end = this.knownEnd(session, body);
    if (end) {
      const sent = uiMessagesOf(body);
      const messages = drafted(sent, sent.findLastIndex(({ id }) => end.ids.has(id)) + 1);
      // Others may have written to the chat elsewhere, and what they wrote may be among what was sent.
      const ifMatch = context.ifMatch ?? [end.version];
      try {
        return await this.start(session, { ...context, ifMatch }, body, { messages, end });
      } catch (error) {
        if (!(error instanceof VersionMismatch) || context.ifMatch !== undefined) throw error;
      }
    }
    const change = await this.changeFor(session, body);
    const { messages, denied = [], approved = [] } = change;
    if (approved.length > 0) {
      const messageId = change.continues ?? '';
      return this.approve(session, context, { messageId, denied, approved }, messages);
    }
    const ifMatch = await this.rewind(session, context, change);
    return this.start(session, { ...context, ...(ifMatch && { ifMatch }) }, body, change);
  }

  private async start(
    session: SessionRef,
    context: CommandContext,
    body: ChatBody,
    { messages, continues, denied = [], end }: Change,
  ): Promise<ChatTurn> {
    const { model, instructions, tools } = body;
    const live = await this.generations.start(session, context, {
      ...{ model, instructions, tools, parameters: parametersIn(body), messages },
      create: {},
    });
    const messageId = continues ?? replyIdOf(live.generationId);
    if (end) this.rememberEnd(session, live, end, messages.length, [...sentIds(body), messageId]);
    return { messageId, live, denied, approved: [] };
  }

  /**
   * Keeps where a chat ends when a turn has ended, unless somebody else has written to it meanwhile. The next turn of the
   * same client then need not read the history to know what is new.
   */
  private rememberEnd(
    session: SessionRef,
    live: LiveReply,
    before: KnownEnd,
    added: number,
    ids: readonly string[],
  ): void {
    // The messages and the start; then the reply and the end.
    if (live.version !== before.version + added + 1) return;
    void live.finished().then((end) => {
      if (end.type !== 'completed' || end.version !== live.version + 2) return;
      // As many as a page that is read would have: a long chat must not fill the memory.
      const latest = new Set([...before.ids, ...ids].slice(-PAGE));
      this.ends.set(keyOf(session), { version: end.version, ids: latest });
    });
  }

  /** Where a chat ends, if this process believes to know it, and the request only adds to it. */
  private knownEnd(session: SessionRef, body: ChatBody): KnownEnd | undefined {
    const isPlain = body.trigger === 'submit-message' && (body.messageId ?? undefined) === undefined;
    if (!isPlain || body.messages.at(-1)?.role !== 'user') return undefined;
    const state = this.commands.known(session)?.state;
    if (!state) return undefined;
    const { version, messageCount } = state;
    if (messageCount === 0) return { version, ids: new Set() };
    const end = this.ends.get(keyOf(session));
    return end?.version === version ? end : undefined;
  }

  /** The reply that is being generated; undefined when there is none. */
  async running(session: SessionRef): Promise<ChatTurn | undefined> {
    const { state } = await this.commands.load(session);
    if (!state.generation) return undefined;
    const { id } = state.generation;
    const live = await this.generations.follow(session, id);
    const last = groupsOf((await this.latest(session)).messages).at(-1);
    const continues = last?.ui.role === 'assistant' ? last.ui.id : undefined;
    return { messageId: continues ?? replyIdOf(id), live, denied: [], approved: [] };
  }

  /** The present history, as `useChat` has it. @throws DomainError `session-not-found` */
  async messages(session: SessionRef): Promise<UiMessage[]> {
    const messages: MessageView[] = [];
    for (let after: number | undefined; ;) {
      const page = await this.queries.messagePage(session, { order: 'asc', limit: PAGE, after });
      messages.push(...(JSON.parse(page?.messages ?? '[]') as MessageView[]));
      if (!page?.hasMore || page.last === null) break;
      after = page.last;
    }
    const groups = groupsOf(messages);
    const last = groups.pop();
    return [...groups.map(({ ui }) => ui), ...(last ? [await this.withApprovals(session, last)] : [])];
  }

  /** Ends the reply that is being generated; what has arrived is kept. */
  async stop(write: WriteContext, session: SessionRef): Promise<boolean> {
    const context = contextOf(write, `POST /ai-sdk/chat/${session.sessionId}/stop`, null);
    const done = await dispatch(this.bus, session, new CancelGeneration(), context);
    return done.duplicate !== undefined || done.events.length > 0;
  }

  private async changeFor(session: SessionRef, body: ChatBody): Promise<Change> {
    const sent = uiMessagesOf(body);
    const { trigger } = body;
    const named = body.messageId ?? undefined;
    const version = this.commands.known(session)?.state.version;
    // What is new follows on the end of the history; what is named may be anywhere in it.
    const groups = groupsOf(
      named === undefined ? (await this.latest(session)).messages : await this.back(session, named),
    );
    const known = new Map(groups.map((group) => [group.ui.id, group]));
    const lastKnown = sent.findLastIndex(({ id }) => known.has(id));
    const target = named === undefined ? undefined : known.get(named);

    if (trigger === 'regenerate-message') {
      const again = target ?? (named === undefined ? groups.at(-1) : known.get(sent[lastKnown]?.id ?? ''));
      if (!again) return { messages: drafted(sent, 0) };
      const isReply = again.ui.role === 'assistant';
      return {
        toVersion: isReply ? firstVersion(again) - 1 : lastVersion(again),
        reason: 'regenerate',
        messages: [],
      };
    }
    const last = sent.at(-1);
    const lastGroup = last && known.get(last.id);
    if (last?.role === 'assistant' && lastGroup) return resultsFor(last, lastGroup);
    if (last && target) {
      return {
        toVersion: firstVersion(target) - 1,
        reason: 'edited',
        messages: drafted(sent, sent.length - 1),
      };
    }
    const end = version === undefined ? undefined : { version, ids: new Set(known.keys()) };
    return { messages: drafted(sent, lastKnown + 1), end };
  }

  private async rewind(
    session: SessionRef,
    context: CommandContext,
    { toVersion, reason }: Change,
  ): Promise<number[] | undefined> {
    if (toVersion === undefined) return undefined;
    const { idempotency: _key, ...rewinding } = context;
    const done = await dispatch(this.bus, session, new RewindHistory(toVersion, reason), rewinding);
    return [done.state.version];
  }

  /** Records approvals, and the results that came with them. */
  private async approve(
    session: SessionRef,
    context: CommandContext,
    turn: ChatTurn,
    messages: readonly NewMessage[],
  ): Promise<ChatTurn> {
    const { idempotency: _key, ...granting } = context;
    for (const tool of new Set(turn.approved.map(toolNameOf))) {
      const command = new GrantToolApproval({ tool: tool ?? '', scope: 'once' });
      await dispatch(this.bus, session, command, granting);
    }
    if (messages.length > 0) await dispatch(this.bus, session, new AppendMessages(messages), context);
    return turn;
  }

  /** The last UI message, with the calls that wait for an approval. */
  private async withApprovals(session: SessionRef, group: Group<MessageView>): Promise<UiMessage> {
    const { ui, messages } = group;
    const message = messages.findLast(({ role }) => role === 'assistant');
    const open = callsOf(ui).filter((part) => part['state'] === 'input-available');
    if (!message?.toolCalls || message.generationId === undefined || open.length === 0) return ui;
    const { end } = await this.generations.find(session, message.generationId);
    const calls = end && end.type !== 'failed' ? (end.answer.message?.toolCalls ?? []) : [];
    const waiting = new Set(calls.flatMap(({ id, approval }) => (approval === 'required' ? [id] : [])));
    return {
      ...ui,
      parts: ui.parts.map((part) =>
        open.includes(part) && waiting.has(callIdOf(part)) ? awaiting(part) : part,
      ),
    };
  }

  /** The latest messages, as many as are needed to find a UI message. */
  private async back(session: SessionRef, messageId: string): Promise<MessageView[]> {
    let messages: MessageView[] = [];
    for (let after: number | undefined; ;) {
      const page = await this.latest(session, after);
      messages = [...page.messages, ...messages];
      const isFound = groupsOf(page.messages).some(({ ui }) => ui.id === messageId);
      if (page.next === undefined || isFound) return messages;
      after = page.next;
    }
  }

  private async latest(
    session: SessionRef,
    after?: number,
  ): Promise<{ messages: MessageView[]; next: number | undefined }> {
    const page = await this.queries
      .messagePage(session, { order: 'desc', limit: PAGE, after })
      .catch((error: unknown) => {
        // A chat begins with its first message.
        if (error instanceof DomainError && error.code === 'session-not-found') return undefined;
        throw error;
      });
    const messages = (JSON.parse(page?.messages ?? '[]') as MessageView[]).reverse();
    return { messages, next: page?.hasMore ? (page.last ?? undefined) : undefined };
  }
}

/** What a client sends of a reply that called tools: their results, or whether they may be run. */
function resultsFor(sent: UiMessage, { ui, messages }: Group<MessageView>): Change {
  const answered = messages.flatMap(({ toolCallId }) => (toolCallId === undefined ? [] : [toolCallId]));
  const open = new Set(
    messages
      .flatMap(({ toolCalls }) => (toolCalls ?? []).map(({ id }) => id))
      .filter((id) => !answered.includes(id)),
  );
  const results: NewMessage[] = [];
  const approved: Part[] = [];
  const denied: string[] = [];
  for (const part of callsOf(sent)) {
    const id = callIdOf(part);
    if (!open.has(id)) continue;
    if (part['state'] === 'approval-responded') {
      if (fieldsOf(part['approval'])['approved'] === true) approved.push(part);
      else {
        denied.push(id);
        results.push(draftedResult({ ...part, state: 'output-denied' }));
      }
    } else if (/^output-/.test(stateOf(part))) results.push(draftedResult(part));
  }
  return { messages: results, continues: ui.id, approved, denied };
}

/** The messages that joined a chat at a place. @throws ApiError `invalid-request` when one cannot be kept */
function drafted(sent: readonly UiMessage[], from: number): NewMessage[] {
  return sent.slice(from).flatMap((message, index) =>
    draftedUi(message).map((one) => {
      const result = sessionEvents.MessageAppended.data.safeParse(one);
      if (result.success) return one;
      const [issue] = result.error.issues;
      throw invalidRequest([
        {
          pointer: jsonPointer(['messages', from + index, ...(issue?.path ?? [])]),
          in: 'body',
          detail: issue?.message ?? 'is not a message',
        },
      ]);
    }),
  );
}

const sentIds = (body: ChatBody): string[] => uiMessagesOf(body).map(({ id }) => id);
const keyOf = ({ tenant, sessionId }: SessionRef): string => streamKey({ tenant, streamId: sessionId });
const firstVersion = ({ messages }: Group<MessageView>): number => messages[0]?.version ?? 0;
const lastVersion = ({ messages }: Group<MessageView>): number => messages.at(-1)?.version ?? 0;

/** The id of the approval of a call, which has one at most. */
export const approvalIdOf = (toolCallId: string): string => `approval-${toolCallId}`;

const awaiting = (part: Part): Part => ({
  ...part,
  state: 'approval-requested',
  approval: { id: approvalIdOf(callIdOf(part)) } satisfies Json,
});
