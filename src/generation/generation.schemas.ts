import { z } from 'zod';
import { instructions, sessionId, toolCall, toolDefinition, usage } from '../domain/session.events.js';
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
    onBusy: z.enum(['reject', 'queue']).default('reject').meta({
      description: 'while another generation runs: answer 409 `session-busy`, or wait for its end',
    }),
  })
  .default({ onBusy: 'reject' });

export const ChatBody = z.strictObject({ message: text, sessionId: sessionId.optional() });

const ReportedCall = toolCall.extend({
  approval: z.enum(['required', 'granted']).optional().meta({
    description: 'of a tool that needs one: whether the session has an approval for it',
  }),
});

export const Generated = z
  .object({
    content: z.string().meta({ description: 'the text of the reply' }),
    message: Message.extend({ toolCalls: z.array(ReportedCall).optional() })
      .nullable()
      .meta({
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

export const generationPath = z.string().min(1).max(128);
export const Cancelled = z.object({ cancelled: z.boolean() });
export const TitleBody = z
  .strictObject({ overwrite: z.boolean().default(false) })
  .default({ overwrite: false });

export const Generation = z
  .object({
    generationId: z.string(),
    sessionId,
    status: z.enum(['running', 'completed', 'failed', 'cancelled']),
    model: z.string(),
    startedAt: z.iso.datetime(),
    prompt: z.object({
      instructions: z.string().optional(),
      tools: z.array(toolDefinition).optional(),
      messages: z.array(z.record(z.string(), z.unknown())),
    }),
    result: Generated.nullable(),
    error: z.string().nullable(),
  })
  .meta({ id: 'Generation' });
