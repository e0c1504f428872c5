import { z } from 'zod';
import { sessionId } from '../domain/session.events.js';
import { modelOptions, TOOL_CHOICE_EXISTS } from '../generation/generation.schemas.js';
import { type UiMessage as UiMessageForm } from './ui-messages.js';

const MAX_MESSAGES = 1_000;
const MAX_PARTS = 1_000;

export const UiMessage = z
  .looseObject({
    id: z.string().min(1).max(512),
    role: z.enum(['system', 'user', 'assistant']),
    parts: z.array(z.looseObject({ type: z.string().min(1).max(128) })).max(MAX_PARTS),
  })
  .refine(({ role, parts }) => role === 'assistant' || parts.length > 0, {
    path: ['parts'],
    error: 'must not be empty',
  })
  .meta({ id: 'UiMessage' });

/** What `DefaultChatTransport` sends. Its option `body` adds what is asked of the model. */
export const ChatBody = z
  .looseObject({
    id: sessionId,
    messages: z.array(UiMessage).max(MAX_MESSAGES).meta({
      description: 'the whole conversation, or only what is new of it',
    }),
    trigger: z.enum(['submit-message', 'regenerate-message']).default('submit-message'),
    messageId: z.string().max(512).nullish().meta({
      description: 'the message that is edited, or the reply that is made again',
    }),
    ...modelOptions,
  })
  .refine(...TOOL_CHOICE_EXISTS);
export type ChatBody = z.infer<typeof ChatBody>;

/** The messages as the transport sends them are what `useChat` keeps. */
export const uiMessagesOf = ({ messages }: ChatBody): UiMessageForm[] => messages as UiMessageForm[];

export const UiMessageList = z.array(UiMessage);
export const Stopped = z.object({ stopped: z.boolean() });
