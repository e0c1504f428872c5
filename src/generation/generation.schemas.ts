import { z } from 'zod';
import { instructions, sessionId, toolCall, toolDefinition, usage } from '../domain/session.events.js';
import { type EventStream } from '../http/openapi.js';
import { parameters, parametersWithoutTools } from './parameters.js';
import { Message, NewMessage } from '../sessions/session.schemas.js';

const model = z.string().regex(/^\S{1,200}$/, 'must be 1 to 200 characters without blanks');
const text = z.string().min(1);

/** What is asked of the model, besides what it is to answer. */
export const modelOptions = {
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
  ...parameters,
};
type ModelOptions = z.infer<z.ZodObject<typeof modelOptions>>;

/** The arguments of `refine` that check a choice among the tools. */
export const TOOL_CHOICE_EXISTS: [
  (body: Pick<ModelOptions, 'toolChoice' | 'tools'>) => boolean,
  { path: string[]; error: string },
] = [
  ({ toolChoice, tools }) =>
    typeof toolChoice !== 'object' || (tools ?? []).some(({ name }) => name === toolChoice.name),
  { path: ['toolChoice', 'name'], error: 'must be the name of one of the tools' },
];

export const GenerateBody = z
  .strictObject({
    message: z.union([text, NewMessage]).optional().meta({
      description: 'a text of the user, or a message; without it the history as it stands is answered',
    }),
    ...modelOptions,
    regenerate: z.literal(true).optional().meta({
      description:
        'the last reply leaves the history first, so that the message before it is answered again; not together with `message`',
    }),
    onBusy: z.enum(['reject', 'queue']).default('reject').meta({
      description:
        'while another generation runs: answer 409 `session-busy`, or wait for its end, at most a minute and behind at most 15 others',
    }),
  })
  .meta({
    examples: [
      { message: 'What is React?' },
      { message: 'And Vue?', onBusy: 'queue' },
      { regenerate: true },
      { message: 'Name three.', temperature: 0.2, maxOutputTokens: 200, stop: ['4.'] },
      { message: { role: 'tool', toolCallId: 'call_1', content: '18 °C' } },
      {
        message: 'How warm is it in Rome?',
        tools: [{ name: 'weather', parameters: { type: 'object' }, approval: 'required' }],
      },
    ],
  })
  .refine(({ message, regenerate }) => !regenerate || message === undefined, {
    path: ['regenerate'],
    error: 'answers the message before the last reply: give no `message` with it',
  })
  .refine(...TOOL_CHOICE_EXISTS)
  .default({ onBusy: 'reject' });

export const ChatBody = z.strictObject({
  message: text,
  sessionId: sessionId.optional(),
  ...parametersWithoutTools,
});

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

const sse = (id: string, event: string, data: object): string =>
  `id: ${id}\nevent: ${event}\ndata: ${JSON.stringify(data)}\n\n`;

/** A streamed reply. The id of an event is the place up to which a client has the reply: for `Last-Event-ID`. */
export const replyStream: EventStream = {
  events: {
    'generation.started': z.object({ generationId: z.string(), sessionId, model: z.string() }),
    'reasoning.delta': z.object({
      text: z.string().meta({ description: 'what the model thinks before it answers, since the last one' }),
    }),
    'message.delta': z.object({ text: z.string().meta({ description: 'what has come since the last one' }) }),
    'tool.call': ReportedCall,
    'message.completed': Generated,
    'generation.cancelled': Generated,
    'generation.failed': 'Problem',
  },
  example: [
    sse('0-0', 'generation.started', {
      generationId: 'gen_1',
      sessionId: 'user-123',
      model: 'gpt-5-mini',
    }),
    sse('2-0', 'message.delta', { text: 'A ' }),
    sse('10-0', 'message.delta', { text: 'library.' }),
    sse('10-0', 'message.completed', {
      content: 'A library.',
      message: {
        id: 'msg_1',
        role: 'assistant',
        content: 'A library.',
        version: 4,
        createdAt: '2026-11-22T02:20:52.302Z',
        status: 'complete',
        generationId: 'gen_1',
      },
      usage: { inputTokens: 9, outputTokens: 3 },
      finishReason: 'stop',
      sessionId: 'user-123',
      generationId: 'gen_1',
    }),
  ].join(''),
};

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
      parameters: z.record(z.string(), z.unknown()).optional(),
      messages: z.array(z.record(z.string(), z.unknown())),
    }),
    result: Generated.nullable(),
    error: z.string().nullable(),
  })
  .meta({ id: 'Generation' });
