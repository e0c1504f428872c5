import { z } from 'zod';

/** What is looked at here; all other members go on to the provider as they are. */
export const ChatCompletionBody = z.looseObject({
  model: z
    .string()
    .regex(/^\S{1,200}$/, 'must be 1 to 200 characters without blanks')
    .nullish(),
  messages: z
    .array(z.looseObject({ role: z.enum(['system', 'developer', 'user', 'assistant', 'tool']) }))
    .min(1)
    .max(10_000),
  stream: z.boolean().nullish(),
  store: z.boolean().nullish(),
  metadata: z
    .looseObject({ session_id: z.string().optional() })
    .nullish()
    .meta({ description: 'with `store: true`, `session_id` names the session that records the turn' }),
});
export type ChatCompletionBody = z.infer<typeof ChatCompletionBody>;

export const ChatCompletion = z
  .looseObject({
    id: z.string(),
    object: z.literal('chat.completion'),
    created: z.int(),
    model: z.string(),
    choices: z.array(z.looseObject({ index: z.int(), finish_reason: z.string() })),
  })
  .meta({ id: 'OpenAiChatCompletion' });
