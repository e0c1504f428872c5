import { z } from 'zod';
import { instructions, sessionId, toolDefinition, usage } from '../domain/session.events.js';
import { Message, NewMessage } from '../sessions/session.schemas.js';

const model = z.string().regex(/^\S{1,200}$/, 'must be 1 to 200 characters without blanks');
const text = z.string().min(1);

export const GenerateBody = z
  .strictObject({
    message: z.union([text, NewMessage]).optional().meta({
      description: 'a text of the user, or a message; without it the history as it stands is answered',
    }),
    model: model.optional(),
    instructions: instructions.max(100_000).optional(),
    tools: z
      .array(toolDefinition)
      .min(1)
      .max(128)
      .refine((tools) => new Set(tools.map((tool) => tool.name)).size === tools.length, {
        error: 'must not name a tool twice',
      })
      .optional(),
  })
  .default({});

export const ChatBody = z.strictObject({ message: text, sessionId: sessionId.optional() });

export const Generated = z
  .object({
    content: z.string().meta({ description: 'the text of the reply' }),
    message: Message.nullable().meta({
      description: 'the reply; null when it was cancelled before anything arrived',
    }),
    usage: usage.nullable(),
    finishReason: z.string(),
    sessionId,
    generationId: z.string(),
  })
  .meta({ id: 'Generated' });

export const ChatAnswer = z.object({ response: z.string(), sessionId });

export type GeneratedAnswer = z.infer<typeof Generated>;
