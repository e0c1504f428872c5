import { type Content } from './session.events.js';

/** The text of a message, without its other parts. */
export function textOf(content: Content): string {
  if (typeof content === 'string') return content;
  return content.flatMap((part) => (part.type === 'text' ? [part.text] : [])).join('\n');
}

/** The text of a reply as it came from the model: what it said, and then with which words it refused. */
export function replyText(content: Content): string {
  if (typeof content === 'string') return content;
  return content
    .flatMap((part) => (part.type === 'text' || part.type === 'refusal' ? [part.text] : []))
    .join('');
}

/** Whether there is nothing in a message that somebody said: thoughts of a model are not said. */
export function isSilent(content: Content): boolean {
  if (typeof content === 'string') return content === '';
  return content.every(
    (part) =>
      part.type === 'reasoning' || ((part.type === 'text' || part.type === 'refusal') && part.text === ''),
  );
}
