import { z } from 'zod';
import { toolName } from '../domain/session.events.js';

const MAX_PARTS = 100;
/** Most items of one request. */
export const MAX_ITEMS = 1_000;

const id = z.string().min(1).max(128);
const itemId = z.string().min(1).max(512).nullish();
const part = z.looseObject({ type: z.string().min(1).max(128) });
const parts = z.array(part).max(MAX_PARTS);
const text = z.looseObject({ type: z.string(), text: z.string() });
const status = z.string().max(32).nullish();

const Message = z
  .looseObject({
    type: z.literal('message').nullish(),
    id: itemId,
    role: z.enum(['user', 'assistant', 'system', 'developer']),
    content: z.union([z.string(), parts]),
    status,
  })
  .refine(({ role, content }) => role === 'assistant' || content.length > 0, {
    path: ['content'],
    error: 'must not be empty',
  });

const FunctionCall = z.looseObject({
  type: z.literal('function_call'),
  id: itemId,
  call_id: id,
  name: toolName,
  arguments: z.string(),
  status,
});

const FunctionCallOutput = z.looseObject({
  type: z.literal('function_call_output'),
  id: itemId,
  call_id: id,
  output: z.union([z.string(), parts.min(1)]),
  status,
});

const Reasoning = z.looseObject({
  type: z.literal('reasoning'),
  id: itemId,
  summary: z.array(text).max(1_000).nullish(),
  content: z.array(text).max(1_000).nullish(),
  encrypted_content: z.string().nullish(),
  status,
});

const KNOWN: Readonly<Record<string, z.ZodType>> = {
  message: Message,
  function_call: FunctionCall,
  function_call_output: FunctionCallOutput,
  reasoning: Reasoning,
};

export type InputItem =
  | z.infer<typeof Message>
  | z.infer<typeof FunctionCall>
  | z.infer<typeof FunctionCallOutput>
  | z.infer<typeof Reasoning>;

/**
 * An item that a client sends: a message, which may lack its type, a tool call, its result, or reasoning. Members that are
 * not known here are kept. The faults are those of the kind of item that the client names.
 */
export const InputItem = z
  .looseObject({ type: z.string().nullish() })
  .meta({
    anyOf: Object.values(KNOWN).map((kind) => {
      const { $schema: _, ...schema } = z.toJSONSchema(kind, { io: 'input' });
      return schema;
    }),
  })
  .transform((item, context): InputItem => {
    const type = item.type ?? 'message';
    const schema = Object.hasOwn(KNOWN, type) ? KNOWN[type] : undefined;
    if (!schema) {
      context.addIssue({
        code: 'custom',
        path: ['type'],
        message: `${type} is not supported; items of the types ${Object.keys(KNOWN).join(', ')} are`,
      });
      return z.NEVER;
    }
    const result = schema.safeParse(item);
    if (result.success) return result.data as InputItem;
    for (const issue of result.error.issues) context.addIssue({ ...issue, code: 'custom', path: issue.path });
    return z.NEVER;
  });

export const Metadata = z
  .record(z.string().min(1).max(64), z.string().max(512))
  .refine((value) => Object.keys(value).length <= 16, { error: 'must have at most 16 entries' });

export const ItemsQuery = z.looseObject({
  after: z.string().max(512).optional(),
  limit: z.coerce.number().int().min(1).max(100).default(20),
  order: z.enum(['asc', 'desc']).default('desc'),
});

export const Item = z.looseObject({ id: z.string(), type: z.string() }).meta({ id: 'OpenAiItem' });

export const ItemList = z
  .object({
    object: z.literal('list'),
    data: z.array(Item),
    first_id: z.string().nullable(),
    last_id: z.string().nullable(),
    has_more: z.boolean(),
  })
  .meta({ id: 'OpenAiItemList' });
