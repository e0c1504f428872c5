import type OpenAI from 'openai';
import { textOf } from '../domain/content.js';
import { type ContentPart } from '../domain/session.events.js';
import { type ModelRequest, type PromptMessage } from './chat-model.js';

type MessageParam = OpenAI.Chat.Completions.ChatCompletionMessageParam;
type PartParam = OpenAI.Chat.Completions.ChatCompletionContentPart;

/** A request in the form of the chat completions API, streamed and with the usage at its end. */
export function toParams(request: ModelRequest): OpenAI.Chat.Completions.ChatCompletionCreateParamsStreaming {
  return {
    model: request.model,
    stream: true,
    stream_options: { include_usage: true },
    messages: [
      ...(request.instructions === undefined
        ? []
        : [{ role: 'system' as const, content: request.instructions }]),
      ...request.messages.map(toParam),
    ],
    ...(request.tools?.length && {
      tools: request.tools.map(({ name, description, parameters }) => ({
        type: 'function' as const,
        function: {
          name,
          ...(description !== undefined && { description }),
          ...(parameters && { parameters }),
        },
      })),
    }),
  };
}

function toParam(message: PromptMessage): MessageParam {
  // The API allows no other characters in a name and would refuse the whole prompt because of one.
  const name = message.name?.replaceAll(/[^a-zA-Z0-9_-]/g, '_').slice(0, 64);
  const named = name === undefined ? {} : { name };
  switch (message.role) {
    case 'system':
      return { role: 'system', content: textOf(message.content), ...named };
    case 'user':
      return {
        role: 'user',
        content: typeof message.content === 'string' ? message.content : message.content.map(toPart),
        ...named,
      };
    case 'assistant':
      return {
        role: 'assistant',
        content: textOf(message.content),
        ...named,
        ...(message.toolCalls && {
          tool_calls: message.toolCalls.map((call) => ({
            id: call.id,
            type: 'function' as const,
            function: { name: call.name, arguments: call.arguments },
          })),
        }),
      };
    case 'tool':
      return { role: 'tool', content: textOf(message.content), tool_call_id: message.toolCallId ?? '' };
  }
}

function toPart(part: ContentPart): PartParam {
  switch (part.type) {
    case 'text':
      return { type: 'text', text: part.text };
    case 'image':
      return { type: 'image_url', image_url: { url: part.url, ...(part.detail && { detail: part.detail }) } };
    case 'file':
      return {
        type: 'file',
        file: { file_data: part.url, ...(part.name !== undefined && { filename: part.name }) },
      };
  }
}
