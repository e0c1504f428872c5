import { type Content, type ContentPart } from '../domain/session.events.js';
import { type AnswerEnd } from './chat-model.js';
import { storable } from './storable-text.js';

/**
 * The content of a reply: its text, or parts where the model has also told its thoughts or refused to answer.
 *
 * @param reasoning what the model thought before the first text, as its readers got it. What was thought later, or became
 * known only at the end, comes behind the text: a reader of the running reply gets everything in this order.
 */
export function contentOf(
  text: string,
  reasoning: string,
  { reasoning: told, refusal: given = '' }: Pick<AnswerEnd, 'reasoning' | 'refusal'> = {},
): Content {
  const refusal = storable(given);
  const isRefusal = refusal !== '' && text.endsWith(refusal);
  const beside: Omit<ContentPart & { type: 'reasoning' }, 'type' | 'text'> = {
    ...(told?.summary && { summary: told.summary.map(storable) }),
    ...(told?.encrypted !== undefined && { encrypted: storable(told.encrypted) }),
  };
  const late = storable(told?.late ?? '');
  const isFirst = reasoning !== '';
  const isLast = late !== '' || (!isFirst && Object.keys(beside).length > 0);
  if (!isFirst && !isLast && !isRefusal) return text;
  const said = isRefusal ? text.slice(0, -refusal.length) : text;
  return [
    ...(isFirst ? [{ type: 'reasoning' as const, text: reasoning, ...beside }] : []),
    ...(said === '' ? [] : [{ type: 'text' as const, text: said }]),
    ...(isRefusal ? [{ type: 'refusal' as const, text: refusal }] : []),
    ...(isLast
      ? [{ type: 'reasoning' as const, ...(late !== '' && { text: late }), ...(!isFirst && beside) }]
      : []),
  ];
}

/** What the model thought before the first text of a reply, for readers that begin with it. */
export function firstThoughts(content: Content): string {
  const [first] = typeof content === 'string' ? [] : content;
  return first?.type === 'reasoning' ? (first.text ?? '') : '';
}
