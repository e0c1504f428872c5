import { z } from 'zod';
import { MAX_VERSION } from '../sessions/session.schemas.js';
import { InputItem, Item, MAX_ITEMS, Metadata } from './items.schemas.js';

const text = z.string().max(512).nullish();
const model = z.string().regex(/^\S{1,200}$/, 'must be 1 to 200 characters without blanks');

/** The names of what OpenAI's API has and this does not: refused by name, so that nobody waits for its effect. */
export const UNSUPPORTED = ['prompt', 'context_management', 'moderation'] as const;

/** What only the answer shows again: it has no effect here. */
const shownAgain = {
  max_tool_calls: z.int().positive().nullish(),
  prompt_cache_key: text,
  prompt_cache_retention: text,
  safety_identifier: text,
  service_tier: text,
  truncation: z.enum(['auto', 'disabled']).nullish(),
  user: text,
};
export const SHOWN_AGAIN = Object.keys(shownAgain) as (keyof typeof shownAgain)[];

export const CreateResponseBody = z.strictObject({
  model: model.nullish(),
  input: z.union([z.string().min(1), z.array(InputItem).max(MAX_ITEMS)]).nullish(),
  instructions: z.string().max(100_000).nullish(),
  conversation: z
    .union([z.string().max(512), z.looseObject({ id: z.string().max(512) })])
    .nullish()
    .meta({ description: 'a session; not together with `previous_response_id`' }),
  previous_response_id: z.string().max(512).nullish().meta({
    description: 'the newest response goes on, an older one becomes a fork',
  }),
  store: z.boolean().nullish().meta({ description: 'false: nothing is kept' }),
  stream: z.boolean().nullish(),
  stream_options: z.looseObject({}).nullish(),
  background: z.boolean().nullish(),
  include: z.array(z.string()).nullish(),
  metadata: Metadata.nullish(),
  max_output_tokens: z.int().min(1).max(100_000_000).nullish(),
  temperature: z.number().min(0).max(2).nullish(),
  top_p: z.number().min(0).max(1).nullish(),
  top_logprobs: z.literal(0).nullish(),
  tools: z
    .array(z.looseObject({ type: z.string() }))
    .max(128)
    .nullish(),
  tool_choice: z.union([z.string(), z.looseObject({ type: z.string() })]).nullish(),
  parallel_tool_calls: z.boolean().nullish(),
  text: z.looseObject({}).nullish(),
  reasoning: z.looseObject({}).nullish(),
  ...shownAgain,
  ...(Object.fromEntries(UNSUPPORTED.map((name) => [name, z.unknown().optional()])) as Record<
    (typeof UNSUPPORTED)[number],
    z.ZodOptional<z.ZodUnknown>
  >),
});
export type CreateResponseBody = z.infer<typeof CreateResponseBody>;

export const GetResponseQuery = z.looseObject({
  stream: z.enum(['true', 'false']).optional(),
  starting_after: z.coerce.number().int().min(0).max(MAX_VERSION).optional(),
});

/** Clients expect every member, also those that mean nothing here. */
export const Response = z
  .looseObject({
    id: z.string(),
    object: z.literal('response'),
    created_at: z.int(),
    completed_at: z.int().nullable(),
    status: z.enum(['completed', 'failed', 'in_progress', 'cancelled', 'incomplete']),
    error: z.object({ code: z.string(), message: z.string() }).nullable(),
    incomplete_details: z.object({ reason: z.string() }).nullable(),
    model: z.string(),
    output: z.array(Item),
    conversation: z.object({ id: z.string() }).nullable(),
    previous_response_id: z.string().nullable(),
    usage: z.looseObject({}).nullable(),
  })
  .meta({ id: 'OpenAiResponse' });

export const ResponseDeleted = z.object({
  id: z.string(),
  object: z.literal('response'),
  deleted: z.literal(true),
});
