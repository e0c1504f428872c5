import { Body, Controller, Delete, Get, Param, Post, Query } from '@nestjs/common';
import { CommandBus } from '@nestjs/cqrs';
import { type z } from 'zod';
import { Caller } from '../access/caller.js';
import { Requires } from '../access/requirement.js';
import {
  AppendMessages,
  ChangeSessionDetails,
  CreateSession,
  DeleteSession,
  RemoveMessage,
} from '../domain/session.commands.js';
import { DomainError } from '../domain/decider.js';
import { Answers } from '../http/openapi.js';
import { Write, type WriteContext } from '../http/preconditions.js';
import { type CommandContext, refTo } from '../sessions/command-context.js';
import { dispatch } from '../sessions/command-handlers.js';
import { SessionQueries } from '../sessions/session-queries.js';
import { type SessionAnswer } from '../sessions/session.schemas.js';
import { contextOf, idFor, READ_EXISTING, WRITE_EXISTING } from '../sessions/sessions.controller.js';
import { ConversationItems, type ItemPage, pageOf } from './conversation-items.js';
import {
  Conversation,
  ConversationDeleted,
  ConversationList,
  ConversationsQuery,
  CreateConversationBody,
  CreateItemsBody,
  UpdateConversationBody,
} from './conversations.schemas.js';
import { OPENAI_PREFIX, seconds, sessionOf } from './wire.js';
import { draftedItems, type Item, itemsOf } from './items.js';
import { Item as ItemSchema, ItemList, ItemsQuery } from './items.schemas.js';

const WRITE = ['session-busy', ...WRITE_EXISTING] as const;

/** Conversations of OpenAI's API. Each is a session, and each item a message of it or a part of one. */
@Controller(`${OPENAI_PREFIX}/conversations`)
export class ConversationsController {
  constructor(
    private readonly bus: CommandBus,
    private readonly queries: SessionQueries,
    private readonly items: ConversationItems,
  ) {}

  @Requires('sessions:write:own', 'messages')
  @Post()
  @Answers(200, Conversation, {
    summary: 'Create a conversation, with its first items',
    problems: ['session-limit-reached', ...WRITE],
  })
  async create(
    @Write() write: WriteContext,
    @Body({ schema: CreateConversationBody }) body: z.infer<typeof CreateConversationBody>,
  ) {
    const route = 'POST /openai/v1/conversations';
    const session = refTo(write.caller, idFor(write, route, 'conv'));
    const details = body.metadata ? { metadata: body.metadata } : {};
    const command = new CreateSession(details, draftedItems(body.items ?? [], 'items'));
    const context = { ...contextOf(write, route, body), isNew: write.idempotencyKey === undefined };
    const done = await dispatch(this.bus, session, command, context).catch(asItems);
    return conversationOf(this.queries.answer(session, done));
  }

  @Requires('sessions:read:own')
  @Get()
  @Answers(200, ConversationList, {
    summary: 'List conversations, the oldest first; OpenAI has no such list',
    problems: READ_EXISTING,
  })
  async all(
    @Caller() caller: Caller,
    @Query({ schema: ConversationsQuery }) { after, limit }: z.infer<typeof ConversationsQuery>,
  ) {
    const behind = after === undefined ? undefined : sessionOf(caller, after).sessionId;
    const { data, hasMore } = await this.queries.listBehind(caller, { behind, limit });
    return pageOf(data.map(conversationOf), hasMore);
  }

  @Requires('sessions:read:own')
  @Get(':id')
  @Answers(200, Conversation, { summary: 'Get a conversation', problems: READ_EXISTING })
  async get(@Caller() caller: Caller, @Param('id') id: string) {
    return conversationOf(await this.queries.find(sessionOf(caller, id), 'strong'));
  }

  @Requires('sessions:write:own')
  @Post(':id')
  @Answers(200, Conversation, { summary: 'Replace the metadata of a conversation', problems: WRITE })
  async update(
    @Write() write: WriteContext,
    @Param('id') id: string,
    @Body({ schema: UpdateConversationBody }) body: z.infer<typeof UpdateConversationBody>,
  ) {
    const session = sessionOf(write.caller, id);
    const command = new ChangeSessionDetails({ metadata: body.metadata ?? {} });
    const context = this.contextOf(write, 'POST', id, body);
    return conversationOf(this.queries.answer(session, await dispatch(this.bus, session, command, context)));
  }

  @Requires('sessions:write:own')
  @Delete(':id')
  @Answers(200, ConversationDeleted, {
    summary: 'Delete a conversation; its audit trail stays',
    problems: ['legal-hold', ...WRITE],
  })
  async delete(@Write() write: WriteContext, @Param('id') id: string) {
    const session = sessionOf(write.caller, id);
    await dispatch(this.bus, session, new DeleteSession(), this.contextOf(write, 'DELETE', id));
    return { id, object: 'conversation.deleted', deleted: true };
  }

  @Requires('sessions:write:own', 'messages')
  @Post(':id/items')
  @Answers(200, ItemList, {
    summary: 'Append items, all or none',
    // An expired session comes back with them, within the cap.
    problems: ['session-limit-reached', ...WRITE],
  })
  async append(
    @Write() write: WriteContext,
    @Param('id') id: string,
    @Body({ schema: CreateItemsBody }) body: z.infer<typeof CreateItemsBody>,
  ): Promise<ItemPage> {
    const session = sessionOf(write.caller, id);
    const messages = draftedItems(body.items, 'items');
    const context = this.contextOf(write, 'POST items', id, body);
    const done = await dispatch(this.bus, session, new AppendMessages(messages), context).catch(asItems);
    const { messageIds } = (done.duplicate?.reference ?? {}) as { messageIds?: string[] };
    const items = messages.flatMap((message, index) =>
      itemsOf({ ...message, id: messageIds?.[index] ?? message.messageId }),
    );
    return pageOf(items, false);
  }

  @Requires('sessions:read:own')
  @Get(':id/items')
  @Answers(200, ItemList, {
    summary: 'List the items of a conversation, the latest first',
    problems: READ_EXISTING,
  })
  list(
    @Caller() caller: Caller,
    @Param('id') id: string,
    @Query({ schema: ItemsQuery }) query: z.infer<typeof ItemsQuery>,
  ): Promise<ItemPage> {
    return this.items.page(sessionOf(caller, id), query);
  }

  @Requires('sessions:read:own')
  @Get(':id/items/:itemId')
  @Answers(200, ItemSchema, { summary: 'Get an item', problems: ['not-found', ...READ_EXISTING] })
  async item(
    @Caller() caller: Caller,
    @Param('id') id: string,
    @Param('itemId') itemId: string,
  ): Promise<Item> {
    return (await this.items.find(sessionOf(caller, id), itemId)).item;
  }

  @Requires('sessions:write:own')
  @Delete(':id/items/:itemId')
  @Answers(200, Conversation, {
    summary: 'Take an item out of the history; the log keeps it',
    description:
      'A tool call and its results go together, and so do all items of one reply: no history is left that a model would refuse.',
    problems: ['not-found', ...WRITE],
  })
  async remove(@Write() write: WriteContext, @Param('id') id: string, @Param('itemId') itemId: string) {
    const session = sessionOf(write.caller, id);
    const { message } = await this.items.find(session, itemId);
    const context = this.contextOf(write, `DELETE ${itemId}`, id);
    const done = await dispatch(this.bus, session, new RemoveMessage(message.id), context);
    return conversationOf(this.queries.answer(session, done));
  }

  private contextOf(write: WriteContext, what: string, id: string, body: unknown = null): CommandContext {
    return contextOf(write, `${what} /openai/v1/conversations/${id}`, body);
  }
}

/** Any metadata of a session, as texts. */
const conversationOf = ({ id, createdAt, metadata }: SessionAnswer) => ({
  id,
  object: 'conversation',
  created_at: seconds(createdAt),
  metadata: Object.fromEntries(
    Object.entries(metadata).map(([name, value]) => [
      name,
      typeof value === 'string' ? value : JSON.stringify(value),
    ]),
  ),
});

/** Each item is one message, so that a fault of a message is one of the item at the same place. */
function asItems(error: unknown): never {
  throw error instanceof DomainError
    ? error.withField(([_messages, index]) => ['items', ...(index === undefined ? [] : [index])])
    : error;
}
