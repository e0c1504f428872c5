import { Injectable } from '@nestjs/common';
import { CommandBus } from '@nestjs/cqrs';
import { Forks } from '../audit/fork.js';
import { DomainError } from '../domain/decider.js';
import { fieldsOf } from '../domain/loose-json.js';
import {
  CancelGeneration,
  DeleteSession,
  type NewMessage,
  RemoveMessage,
} from '../domain/session.commands.js';
import { type Json } from '../domain/session.events.js';
import { VersionMismatch } from '../event-store/refusals.js';
import { type Ask, Generations, type RecordedGeneration } from '../generation/generations.js';
import { type LiveReply } from '../generation/live-reply.js';
import { buildPrompt } from '../generation/prompt.js';
import { type WriteContext } from '../http/preconditions.js';
import { ApiError, invalidRequest } from '../http/problem.js';
import { type CommandContext, type Reach, refTo } from '../sessions/command-context.js';
import { dispatch } from '../sessions/command-handlers.js';
import { replyIdOf } from '../sessions/ids.js';
import { SessionCommands } from '../sessions/session-commands.js';
import { contextOf, idFor } from '../sessions/sessions.controller.js';
import { draftedItems, type Item, itemsOf } from './items.js';
import { type Asked, askedOf } from './response-asked.js';
import { sessionOf } from './wire.js';
import { generationIdOf, type ResponseHead } from './response-view.js';
import { type CreateResponseBody } from './responses.schemas.js';

/** A response that runs or has ended, and how it began. */
export interface FollowedResponse {
  readonly live: LiveReply;
  readonly head: ResponseHead;
}

const CREATE = 'POST /openai/v1/responses';

/** Responses of OpenAI's API. Each is a generation of a session. */
@Injectable()
export class Responses {
  constructor(
    private readonly bus: CommandBus,
    private readonly commands: SessionCommands,
    private readonly generations: Generations,
    private readonly forks: Forks,
  ) {}

  /**
   * Starts a response: in a conversation, behind another response, or in a session of its own.
   * @param gone aborts one of which nothing is kept, when its client goes away
   * @throws ApiError `invalid-request`; what `Generations.start` throws
   */
  async create(write: WriteContext, body: CreateResponseBody, gone: AbortSignal): Promise<FollowedResponse> {
    const asked = askedOf(body);
    const messages = messagesOf(body.input);
    if (body.store === false) return this.createUnstored(write, body, asked, messages, gone);
    const { model, instructions, tools, parameters, shown } = asked;
    const ask: Ask = {
      ...{ model, instructions, tools, parameters, messages },
      extensions: Object.keys(shown).length > 0 ? { openai: shown } : undefined,
    };
    const live = await this.start(write, body, ask).catch((error: unknown) => {
      // Each item of the input is one message.
      throw error instanceof DomainError
        ? error.withField(([_messages, index]) => ['input', ...(index === undefined ? [] : [index])])
        : error;
    });
    return { live, head: headOf(live, asked, true) };
  }

  /** @throws ApiError `not-found` */
  async find(reach: Reach, responseId: string): Promise<RecordedGeneration> {
    const found = await this.generations.find(reach, generationIdOf(responseId)).catch((error: unknown) => {
      throw error instanceof ApiError && error.code === 'not-found' ? notFound(responseId) : error;
    });
    if (found.isRemoved) throw notFound(responseId);
    return found;
  }

  /** @throws ApiError `not-found` */
  async follow(reach: Reach, responseId: string): Promise<FollowedResponse> {
    const found = await this.find(reach, responseId);
    const live = await this.generations.follow(found.session, found.start.data.generationId);
    return { live, head: recordedHead(found) };
  }

  /** Ends a response that runs; what has arrived is kept. One that has ended stays as it is. */
  async cancel(write: WriteContext, responseId: string): Promise<RecordedGeneration> {
    const { session, start } = await this.find(write.caller, responseId);
    const context = contextOf(write, `${CREATE}/${responseId}/cancel`, null);
    const { generationId } = start.data;
    await dispatch(this.bus, session, new CancelGeneration(undefined, {}, generationId), context);
    return this.find(write.caller, responseId);
  }

  /**
   * Deletes the session of a response that has one of its own and is its only one; else takes the reply out of the history.
   */
  async delete(write: WriteContext, responseId: string): Promise<void> {
    const found = await this.find(write.caller, responseId);
    const { session, start, end } = found;
    if (!end) throw new DomainError('session-busy', 'the response has not ended: cancel it first');
    const context = contextOf(write, `DELETE /openai/v1/responses/${responseId}`, null);
    const isAlone = shownOf(found)['conversation'] !== true && (await this.generations.isOnlyOne(found));
    const command = isAlone ? new DeleteSession() : new RemoveMessage(replyIdOf(start.data.generationId));
    await dispatch(this.bus, session, command, context).catch((error: unknown) => {
      // There is no reply that could be taken out, of one that failed.
      if (!(error instanceof DomainError && error.code === 'not-found')) throw error;
    });
  }

  /** The items that the model was given, in their order. */
  async inputItems(reach: Reach, responseId: string): Promise<Item[]> {
    const found = await this.find(reach, responseId);
    const messages = await this.generations.messagesOf(found);
    return messages.flatMap(({ message }) => itemsOf({ ...message, id: message.messageId }));
  }

  private async start(write: WriteContext, body: CreateResponseBody, ask: Ask): Promise<LiveReply> {
    const context = contextOf(write, CREATE, body);
    const conversation = conversationIn(body);
    if (conversation !== undefined)
      return this.generations.start(sessionOf(write.caller, conversation), context, ask);
    if (body.previous_response_id) {
      const previous = await this.previous(write.caller, body.previous_response_id);
      return this.goOn(previous, write, context, ask);
    }
    const isNew = write.idempotencyKey === undefined;
    return this.generations.start(
      refTo(write.caller, idFor(write, CREATE)),
      { ...context, isNew },
      { ...ask, create: {} },
    );
  }

  /** Goes on behind a response: in its session, if it is the last one there; else in a fork of that. */
  private async goOn(
    previous: RecordedGeneration,
    write: WriteContext,
    context: CommandContext,
    ask: Ask,
  ): Promise<LiveReply> {
    const { session, end } = previous;
    const again = context.idempotency && (await this.generations.startedBefore(session, context.idempotency));
    if (again) return again;
    if (!end) throw new DomainError('session-busy', 'the previous response has not ended');
    const version = end.version ?? previous.start.version;
    let { state } = await this.commands.lastKnown(session);
    let isLatest = state.version === version;
    if (!isLatest) {
      ({ state } = await this.commands.load(session));
      isLatest = await this.generations.isLatest(previous);
    }
    if (isLatest) {
      try {
        return await this.generations.start(session, { ...context, ifMatch: [state.version] }, ask);
      } catch (error) {
        const isBusy = error instanceof DomainError && error.code === 'session-busy';
        if (!isBusy && !(error instanceof VersionMismatch)) throw error;
        // Somebody else goes on behind the same response, so this one becomes a fork.
      }
    }
    const fork = refTo(write.caller, idFor(write, CREATE));
    const command = await this.forks.command(session, undefined, version, undefined);
    const { idempotency: _key, ...forking } = { ...context, ifMatch: undefined };
    await dispatch(this.bus, fork, command, forking);
    return this.generations.start(fork, { ...context, ifMatch: undefined }, ask);
  }

  /** Answers without a session. */
  private async createUnstored(
    write: WriteContext,
    body: CreateResponseBody,
    asked: Asked,
    messages: readonly NewMessage[],
    gone: AbortSignal,
  ): Promise<FollowedResponse> {
    if (conversationIn(body) !== undefined) {
      throw invalidRequest([
        { pointer: '/store', in: 'body', detail: 'must not be false together with a conversation' },
      ]);
    }
    if (body.background) {
      throw invalidRequest([
        {
          pointer: '/store',
          in: 'body',
          detail: 'must not be false in the background: nobody could get the response',
        },
      ]);
    }
    const before = body.previous_response_id
      ? await this.messagesUpTo(await this.previous(write.caller, body.previous_response_id))
      : [];
    const all = [...before, ...messages];
    if (all.length === 0) {
      throw invalidRequest([
        { pointer: '/input', in: 'body', detail: 'is needed: there is nothing to answer' },
      ]);
    }
    const { model, instructions, tools, parameters } = asked;
    const request = { model, instructions, tools, parameters, messages: buildPrompt(all) };
    const live = await this.generations.answer(write.caller, request, gone);
    return { live, head: headOf(live, asked, false) };
  }

  /** The history with which a response has ended. */
  private async messagesUpTo({ session, start, end }: RecordedGeneration): Promise<NewMessage[]> {
    const state = await this.commands.stateAt(session, end?.version ?? start.version);
    return this.generations.presentMessages(session, state);
  }

  private previous(reach: Reach, responseId: string): Promise<RecordedGeneration> {
    return this.find(reach, responseId).catch((error: unknown) => {
      if (!(error instanceof ApiError && error.code === 'not-found')) throw error;
      throw new ApiError('invalid-request', `Previous response with id '${responseId}' not found.`, {
        details: {
          code: 'previous_response_not_found',
          errors: [
            {
              pointer: '/previous_response_id',
              in: 'body',
              detail: `there is no response with the id '${responseId}'`,
            },
          ],
        },
      });
    });
  }
}

/** @throws ApiError `invalid-request` when a conversation and a previous response are named */
function conversationIn({
  conversation,
  previous_response_id: previous,
}: CreateResponseBody): string | undefined {
  const id = typeof conversation === 'string' ? conversation : conversation?.id;
  if (id !== undefined && previous) {
    throw invalidRequest([
      {
        pointer: '/previous_response_id',
        in: 'body',
        detail: 'does not go together with a conversation',
      },
    ]);
  }
  return id;
}

const messagesOf = (input: CreateResponseBody['input']): NewMessage[] =>
  draftedItems(typeof input === 'string' ? [{ role: 'user', content: input }] : (input ?? []), 'input');

const headOf = (
  { generationId, sessionId, startedAt, model }: LiveReply,
  { instructions, tools, parameters, shown }: Asked,
  store: boolean,
): ResponseHead => ({
  ...{ generationId, sessionId, startedAt, model, instructions, tools, parameters, shown, store },
});

const shownOf = ({ start }: RecordedGeneration): Record<string, Json> =>
  fieldsOf(start.data.extensions?.['openai']) as Record<string, Json>;

/** How a response began, from the log. */
export function recordedHead(found: RecordedGeneration): ResponseHead {
  const { generationId, model, instructions, tools, parameters } = found.start.data;
  return {
    ...{ generationId, model, instructions, tools, parameters },
    sessionId: found.session.sessionId,
    startedAt: found.start.time,
    shown: shownOf(found),
    store: true,
  };
}

const notFound = (responseId: string): ApiError =>
  new ApiError('not-found', `Response with id '${responseId}' not found.`);
