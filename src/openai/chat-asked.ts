import { type Fields, fieldsOf, listOf } from '../domain/loose-json.js';
import { type NewMessage } from '../domain/session.commands.js';
import { toolDefinition, type ToolDefinition } from '../domain/session.events.js';
import { type GenerationParameters, parameters } from '../generation/parameters.js';
import { NewMessage as NewMessageSchema } from '../sessions/session.schemas.js';
import { drafted } from '../sessions/sessions.controller.js';
import { fromOpenAi } from '../transfer/openai-messages.js';
import { type ChatCompletionBody } from './chat-completions.schemas.js';
import { faulty, unsupported } from './refusals.js';

/** What a request of the chat completions API asks of the model, in the words of a generation. */
export interface AskedChat {
  readonly model: string | undefined;
  readonly messages: NewMessage[];
  readonly tools: ToolDefinition[] | undefined;
  readonly parameters: GenerationParameters | undefined;
}

/** Parameters by the names that they have there, where their values are the same. */
const NAMES = {
  temperature: 'temperature',
  top_p: 'topP',
  seed: 'seed',
  parallel_tool_calls: 'parallelToolCalls',
  verbosity: 'verbosity',
  max_tokens: 'maxOutputTokens',
  max_completion_tokens: 'maxOutputTokens',
} as const;
const UNSUPPORTED = ['functions', 'function_call', 'logprobs', 'audio', 'prediction', 'web_search_options'];

/** @throws ApiError `invalid-request` */
export function askedOfChat(body: ChatCompletionBody): AskedChat {
  for (const name of UNSUPPORTED) if (body[name]) throw unsupported([name], name);
  if ((body['n'] ?? 1) !== 1) throw unsupported(['n'], 'more than one choice');
  const tools = listOf(body['tools']).map(fieldsOf).map(toolOf);
  const asked: Record<string, unknown> = {};
  for (const [wire, name] of Object.entries(NAMES)) asked[name] = body[wire] ?? asked[name];
  const { stop, tool_choice: choice, response_format: format, reasoning_effort: effort } = body;
  asked['stop'] = typeof stop === 'string' ? [stop] : (stop ?? undefined);
  asked['toolChoice'] =
    typeof choice === 'object' && choice !== null
      ? { name: fieldsOf(fieldsOf(choice)['function'])['name'] }
      : choice;
  asked['responseFormat'] = format ? formatOf(fieldsOf(format)) : undefined;
  asked['reasoning'] = effort ? { effort } : undefined;
  const given: Record<string, unknown> = {};
  for (const [name, schema] of Object.entries(parameters)) {
    const value = asked[name];
    if (value === undefined || value === null) continue;
    const result = schema.safeParse(value);
    if (!result.success) throw faulty([wireName(name)], result.error.issues);
    given[name] = result.data;
  }
  return {
    model: body.model ?? undefined,
    messages: body.messages.map(messageOf),
    tools: tools.length > 0 ? tools : undefined,
    parameters: Object.keys(given).length > 0 ? given : undefined,
  };
}

const wireName = (name: string): string => name.replaceAll(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);

function messageOf(message: Fields, index: number): NewMessage {
  const result = NewMessageSchema.safeParse(fromOpenAi(message));
  if (!result.success) {
    // The faults are told by the names that the client has sent.
    const issues = result.error.issues.map((issue) => ({
      ...issue,
      path: issue.path.map((part) => (typeof part === 'string' ? wireName(part) : part)),
    }));
    throw faulty(['messages', index], issues);
  }
  return drafted(result.data);
}

function toolOf(tool: Fields, index: number): ToolDefinition {
  if (tool['type'] !== 'function') throw unsupported(['tools', index, 'type'], String(tool['type']));
  const given = Object.entries(fieldsOf(tool['function'])).filter(([, value]) => value !== null);
  const result = toolDefinition.safeParse(Object.fromEntries(given));
  if (result.success) return result.data;
  throw faulty(['tools', index, 'function'], result.error.issues);
}

const formatOf = ({ type, json_schema: schema }: Fields): Fields =>
  type === 'json_schema' ? { type, ...fieldsOf(schema) } : { type };
