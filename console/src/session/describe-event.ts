import { type Content, type Event } from '../api/client.js';
import { numberOf, visible } from '../ui/format.js';

const LENGTH = 160;

/** What an event did, in some words. Erased ones say nothing any more. */
export function describeEvent({ type, data, erased }: Event): string {
  if (erased) return 'erased';
  if (!data) return '';
  const text = (name: string): string => (typeof data[name] === 'string' ? data[name] : '');
  switch (type) {
    case 'SessionCreated': {
      const from = data['forkedFrom'] as { sessionId: string; version: number } | undefined;
      return from ? `from ${from.sessionId} at ${from.version}` : text('title');
    }
    case 'SessionDetailsChanged':
      return Object.keys(data).join(', ');
    case 'MessageAppended': {
      const calls = (data['toolCalls'] as { name: string }[] | undefined) ?? [];
      const words = [textOf(data['content'] as Content), ...calls.map(({ name }) => `calls ${name}`)];
      return short(`${text('role')}: ${words.filter(Boolean).join(' ')}`);
    }
    case 'GenerationStarted':
      return text('model');
    case 'GenerationCompleted': {
      const usage = data['usage'] as { inputTokens: number; outputTokens: number } | undefined;
      return usage
        ? `${numberOf(usage.inputTokens)} → ${numberOf(usage.outputTokens)} tokens`
        : text('finishReason');
    }
    case 'GenerationFailed':
      return short(`${text('code')}: ${text('message')}`);
    case 'ToolApprovalGranted':
      return `${text('tool')}, ${text('scope')}`;
    case 'ToolApprovalRevoked':
      return text('tool');
    case 'HistoryRewound':
      return `to ${String(data['toVersion'])}`;
    case 'ErasureScheduled':
      return `for ${text('at')}`;
    case 'ErasureCancelled':
    case 'SessionErased':
    case 'ConversationReset':
    case 'SessionDeleted':
    case 'SessionExpired':
      return short(text('reason'));
    default:
      return '';
  }
}

/** The words of a message; other parts by what they are. */
export const textOf = (content: Content): string =>
  typeof content === 'string'
    ? content
    : content.map((part) => ('text' in part ? (part.text ?? '') : `[${part.type}]`)).join(' ');

const short = (text: string): string =>
  visible(text.length > LENGTH ? `${text.slice(0, LENGTH).toWellFormed()}…` : text);
