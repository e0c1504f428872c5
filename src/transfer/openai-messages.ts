import { type Fields, fieldsOf, listOf, textOf } from '../domain/loose-json.js';
import { type Content, type ContentPart, type Json } from '../domain/session.events.js';
import { type NewMessage } from '../domain/session.commands.js';

/*
 * Messages in the form of the OpenAI chat completions API, which most stores of conversations use, to messages of sessions
 * and back. What has no place here is kept as a part `data`.
 */

/** Other names of roles, at other providers and in older versions. */
const ROLES: Readonly<Record<string, string>> = {
  human: 'user',
  ai: 'assistant',
  bot: 'assistant',
  model: 'assistant',
  function: 'tool',
};
export const roleOf = (role: unknown): unknown => (typeof role === 'string' ? (ROLES[role] ?? role) : role);

/** A message in the form of a request, not checked yet, of one in OpenAI's form. */
export function fromOpenAi(message: Fields): Fields {
  const { role, content, name, tool_call_id: toolCallId, refusal, reasoning_content: reasoning } = message;
  const given = contentOf(content);
  const extra: ContentPart[] = [
    ...(textOf(reasoning) ? [{ type: 'reasoning' as const, text: textOf(reasoning) ?? '' }] : []),
  ];
  const refused: ContentPart[] = textOf(refusal) ? [{ type: 'refusal', text: textOf(refusal) ?? '' }] : [];
  const isPlain = extra.length === 0 && refused.length === 0;
  const toolCalls = listOf(message['tool_calls']).map(fieldsOf).map(callOf);
  return {
    role: roleOf(role),
    content: isPlain ? given : [...extra, ...partsOf(given), ...refused],
    ...(textOf(name) && { name }),
    ...(toolCalls.length > 0 && { toolCalls }),
    ...(textOf(toolCallId) !== undefined && { toolCallId }),
  };
}

/** A call in OpenAI's form, or in that of LangChain, which has the arguments as an object. */
export function callOf(call: Fields): Fields {
  const called = call['function'] === undefined ? call : fieldsOf(call['function']);
  const given = called['arguments'] ?? called['args'] ?? '';
  return {
    id: call['id'] ?? '',
    name: called['name'],
    arguments: typeof given === 'string' ? given : JSON.stringify(given),
  };
}

const partsOf = (content: Content): ContentPart[] =>
  typeof content !== 'string' ? content : content === '' ? [] : [{ type: 'text', text: content }];

/** Content in any of the forms that are in use: nothing, text, or a list of texts and parts. */
export function contentOf(content: unknown): Content {
  if (typeof content === 'string') return content;
  if (!Array.isArray(content))
    return content === undefined || content === null ? '' : JSON.stringify(content);
  const parts = (content as unknown[]).map(partOf);
  return parts.length === 0 ? '' : parts;
}

function partOf(part: unknown): ContentPart {
  if (typeof part === 'string') return { type: 'text', text: part };
  const fields = fieldsOf(part);
  const type = textOf(fields['type']) ?? 'unknown';
  switch (type) {
    case 'text':
    case 'input_text':
    case 'output_text': {
      const text = textOf(fields['text']);
      if (text !== undefined) return { type: 'text', text };
      break;
    }
    case 'image_url':
    case 'input_image': {
      const image = fields['image_url'];
      const url = textOf(image) ?? textOf(fieldsOf(image)['url']);
      const detail = textOf(fieldsOf(image)['detail'] ?? fields['detail']);
      if (url === undefined) break;
      const known = detail === 'low' || detail === 'high' || detail === 'auto';
      return { type: 'image', url, ...(known && { detail }) };
    }
    case 'file':
    case 'input_file': {
      const file = fields['file'] === undefined ? fields : fieldsOf(fields['file']);
      const url = textOf(file['file_data']) ?? textOf(file['file_url']);
      const name = textOf(file['filename']);
      if (url !== undefined) return { type: 'file', url, ...(name && { name }) };
      break;
    }
    case 'input_audio': {
      const { data, format } = fieldsOf(fields['input_audio']);
      if (typeof data === 'string')
        return { type: 'audio', url: `data:audio/${textOf(format) ?? 'wav'};base64,${data}` };
      break;
    }
    case 'refusal': {
      const text = textOf(fields['refusal']);
      if (text !== undefined) return { type: 'refusal', text };
      break;
    }
  }
  return { type: 'data', name: type.slice(0, 128), data: part as Json };
}

/** A message of a session in OpenAI's form. */
export function toOpenAi(message: NewMessage): Fields {
  const { role, content, name, toolCalls, toolCallId } = message;
  const parts = typeof content === 'string' ? [] : content;
  const refusal = parts.flatMap((part) => (part.type === 'refusal' ? [part.text] : [])).join('');
  const reasoning = parts.flatMap((part) => (part.type === 'reasoning' ? [part.text ?? ''] : [])).join('');
  const said = parts.filter((part) => part.type !== 'refusal' && part.type !== 'reasoning');
  const isText = said.every((part) => part.type === 'text' && !part.annotations);
  const text = said.map((part) => (part.type === 'text' ? part.text : '')).join('\n');
  return {
    role,
    content: typeof content === 'string' ? content : isText ? text : said.map(toPart),
    ...(refusal !== '' && { refusal }),
    ...(reasoning !== '' && { reasoning_content: reasoning }),
    ...(name !== undefined && { name }),
    ...(toolCalls && {
      tool_calls: toolCalls.map(({ id, name: called, arguments: text }) => ({
        id,
        type: 'function',
        function: { name: called, arguments: text },
      })),
    }),
    ...(toolCallId !== undefined && { tool_call_id: toolCallId }),
  };
}

function toPart(part: ContentPart): Fields {
  switch (part.type) {
    case 'image':
      return { type: 'image_url', image_url: { url: part.url, ...(part.detail && { detail: part.detail }) } };
    case 'file':
      return {
        type: 'file',
        file: { file_data: part.url, ...(part.name !== undefined && { filename: part.name }) },
      };
    case 'audio': {
      const [, format, data] = /^data:audio\/([^;,]+);base64,(.*)$/s.exec(part.url) ?? [];
      return data === undefined ? { ...part } : { type: 'input_audio', input_audio: { data, format } };
    }
    case 'data':
      // A part that came in from elsewhere and has no place here goes out as it was.
      return fieldsOf(part.data)['type'] === part.name ? fieldsOf(part.data) : { ...part };
    default:
      return { ...part };
  }
}
