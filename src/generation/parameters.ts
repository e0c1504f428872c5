import { z } from 'zod';
import { toolName } from '../domain/session.events.js';

const TOOL_CHOICES = ['auto', 'none', 'required'] as const;
const responseFormat = z.discriminatedUnion('type', [
  z.strictObject({ type: z.literal('text') }),
  z.strictObject({ type: z.literal('json_object') }),
  z.strictObject({
    type: z.literal('json_schema'),
    name: z.string().regex(/^[a-zA-Z0-9_-]{1,64}$/, 'must be 1 to 64 of A-Z a-z 0-9 _ -'),
    description: z.string().max(10_000).optional(),
    schema: z.record(z.string(), z.unknown()).meta({ description: 'JSON Schema of the reply' }),
    strict: z.boolean().optional(),
  }),
]);

/** How a model is to answer. What is given is recorded with the start of the generation and passed on to the provider. */
export const parameters = {
  temperature: z.number().min(0).max(2).optional(),
  topP: z.number().min(0).max(1).optional(),
  maxOutputTokens: z.int().min(1).max(100_000_000).optional(),
  stop: z
    .array(z.string().min(1).max(1_000))
    .min(1)
    .max(16)
    .optional()
    .meta({ description: 'texts at which the reply ends' }),
  seed: z.int().optional(),
  toolChoice: z
    .union([z.enum(TOOL_CHOICES), z.strictObject({ name: toolName })])
    .optional()
    .meta({ description: 'whether a tool is called, or which one' }),
  parallelToolCalls: z.boolean().optional(),
  responseFormat: responseFormat.optional(),
  reasoning: z
    .strictObject({
      effort: z
        .string()
        .regex(/^[a-z]{1,32}$/, 'must be a word, such as low or high')
        .optional(),
    })
    .optional()
    .meta({ description: 'how long the model thinks before it answers' }),
  verbosity: z
    .enum(['low', 'medium', 'high'])
    .optional()
    .meta({ description: 'how much the model says, of models that know this' }),
};
export type GenerationParameters = z.infer<z.ZodObject<typeof parameters>>;

/** The parameters among the members of a body; undefined when there are none. */
export function parametersIn(body: GenerationParameters): GenerationParameters | undefined {
  const names = Object.keys(parameters) as (keyof GenerationParameters)[];
  const given = names.filter((name) => body[name] !== undefined).map((name) => [name, body[name]]);
  return given.length > 0 ? (Object.fromEntries(given) as GenerationParameters) : undefined;
}

const { toolChoice: _toolChoice, parallelToolCalls: _parallelToolCalls, ...others } = parameters;
/** Those that mean something where no tools are given. */
export const parametersWithoutTools = others;
