import { type Fields, fieldsOf } from '../domain/loose-json.js';
import { type Json, toolDefinition, type ToolDefinition } from '../domain/session.events.js';
import { type GenerationParameters, parameters } from '../generation/parameters.js';
import { faulty, unsupported } from './refusals.js';
import { type CreateResponseBody, SHOWN_AGAIN, UNSUPPORTED } from './responses.schemas.js';

/** What a request asks of the model, in the words of a generation. */
export interface Asked {
  readonly model: string | undefined;
  readonly instructions: string | undefined;
  readonly tools: ToolDefinition[] | undefined;
  readonly parameters: GenerationParameters | undefined;
  /** What the response shows and a generation does not say. */
  readonly shown: Record<string, Json>;
}

/** @throws ApiError `invalid-request`; what OpenAI's API has and this does not is refused by name */
export function askedOf(body: CreateResponseBody): Asked {
  for (const name of UNSUPPORTED) {
    if (body[name] !== undefined && body[name] !== null) throw unsupported([name], name);
  }
  const tools = body.tools?.map((tool, index) => toolOf(tool, index));
  const given = parametersOf(body);
  return {
    model: body.model ?? undefined,
    instructions: body.instructions || undefined,
    tools: tools && tools.length > 0 ? tools : undefined,
    parameters: Object.keys(given).length > 0 ? given : undefined,
    shown: shownOf(body),
  };
}

function shownOf(body: CreateResponseBody): Record<string, Json> {
  const { reasoning, metadata } = body;
  const conversation = body.conversation !== undefined && body.conversation !== null;
  const shown: Record<string, Json | undefined> = {
    ...Object.fromEntries(SHOWN_AGAIN.map((name) => [name, body[name] ?? undefined])),
    metadata: metadata && Object.keys(metadata).length > 0 ? metadata : undefined,
    previous_response_id: body.previous_response_id ?? undefined,
    conversation: conversation || undefined,
    background: body.background || undefined,
    reasoning_summary: typeof reasoning?.['summary'] === 'string' ? reasoning['summary'] : undefined,
  };
  return Object.fromEntries(Object.entries(shown).filter(([, value]) => value !== undefined)) as Record<
    string,
    Json
  >;
}

function toolOf(tool: Fields, index: number): ToolDefinition {
  if (tool['type'] !== 'function') throw unsupported(['tools', index, 'type'], String(tool['type']));
  const { name, description, parameters: schema, strict } = tool;
  const result = toolDefinition.safeParse(present({ name, description, parameters: schema, strict }));
  if (result.success) return result.data;
  throw faulty(['tools', index], result.error.issues);
}

function parametersOf(body: CreateResponseBody): GenerationParameters {
  const { temperature, top_p, max_output_tokens, parallel_tool_calls } = body;
  const effort = body.reasoning?.['effort'];
  const checked = {
    ...check('reasoning', ['reasoning'], effort ? { effort } : undefined),
    ...check('responseFormat', ['text', 'format'], formatOf(body.text?.['format'])),
    ...check('verbosity', ['text', 'verbosity'], body.text?.['verbosity'] ?? undefined),
    ...check('toolChoice', ['tool_choice'], choiceOf(body.tool_choice)),
  };
  return {
    ...present({
      temperature,
      topP: top_p,
      maxOutputTokens: max_output_tokens,
      parallelToolCalls: parallel_tool_calls,
    }),
    ...checked,
  };
}

/** A parameter by its name, if it is given and has its form. */
function check(name: keyof typeof parameters, field: string[], value: unknown): Fields {
  if (value === undefined) return {};
  const result = parameters[name].safeParse(value);
  if (!result.success) throw faulty(field, result.error.issues);
  return { [name]: result.data };
}

/** OpenAI's API names the schema of a format beside its type. */
function formatOf(format: unknown): unknown {
  if (format === undefined || format === null) return undefined;
  return present(fieldsOf(format));
}

function choiceOf(choice: CreateResponseBody['tool_choice']): unknown {
  if (choice === undefined || choice === null || typeof choice === 'string') return choice ?? undefined;
  if (choice.type !== 'function') throw unsupported(['tool_choice', 'type'], choice.type);
  return { name: choice['name'] };
}

const present = (fields: Fields): Fields =>
  Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined && value !== null));
