import { z } from 'zod';
import { InputItem, ItemsQuery, MAX_ITEMS, Metadata } from './items.schemas.js';

/** Most items with which a conversation may begin, as at OpenAI. */
const MAX_FIRST_ITEMS = 20;

export const CreateConversationBody = z
  .strictObject({
    items: z.array(InputItem).max(MAX_FIRST_ITEMS).nullish(),
    metadata: Metadata.nullish(),
  })
  .default({});

export const UpdateConversationBody = z.strictObject({ metadata: Metadata.nullable() });

export const CreateItemsBody = z.strictObject({ items: z.array(InputItem).min(1).max(MAX_ITEMS) });

export const Conversation = z
  .object({
    id: z.string(),
    object: z.literal('conversation'),
    created_at: z.int().meta({ description: 'seconds since 1970' }),
    metadata: z.record(z.string(), z.string()),
  })
  .meta({ id: 'OpenAiConversation' });

export const ConversationList = z.object({
  object: z.literal('list'),
  data: z.array(Conversation),
  first_id: z.string().nullable(),
  last_id: z.string().nullable(),
  has_more: z.boolean(),
});

export const ConversationsQuery = ItemsQuery.pick({ after: true, limit: true });

export const ConversationDeleted = z.object({
  id: z.string(),
  object: z.literal('conversation.deleted'),
  deleted: z.literal(true),
});
