import { type FastifyReply } from 'fastify';
import { type LiveReply, type ReplyEnd } from '../generation/live-reply.js';
import { sendReply } from '../generation/send-reply.js';
import { replyIdOf } from '../sessions/ids.js';
import { type Item } from './items.js';
import { outputOf, type ResponseHead, statusOf, viewOf } from './response-view.js';

/** Numbers that are kept free for the events of an item that is sent as a whole. */
const PER_ITEM = 4;

type Fields = Readonly<Record<string, unknown>>;

/** An item whose text is being sent. */
interface OpenItem {
  readonly index: number;
  readonly item: Item;
  /** The number of its first event. */
  readonly first: number;
  /** The beginning of each of its pieces of text, up to the text itself. */
  readonly delta: string;
  text: string;
}

/**
 * The events of a response, as text, made from a reply as it arrives. All their types are known to the official helper of
 * the client, which throws at others.
 *
 * The numbers of the events rise and follow from the reply alone, so that a client can go on after any of them, at another
 * node or when the reply has long ended: the number of a piece of text says where in the reply the piece ends.
 */
export class ResponseEvents {
  private readonly core: string;
  /** The number of the next event. */
  private number = 0;
  /** Items that were begun. */
  private items = 0;
  private open: OpenItem | undefined;

  /** @param after events up to this number are left out */
  constructor(
    private readonly head: ResponseHead,
    private readonly after = -1,
  ) {
    this.core = replyIdOf(head.generationId).slice('msg_'.length);
  }

  begin(): string {
    const response = viewOf(this.head, undefined);
    return this.event('response.created', { response }) + this.event('response.in_progress', { response });
  }

  /** A piece of what the model thinks before it answers. */
  think(text: string): string {
    const begin = this.open
      ? ''
      : this.openItem('reasoning_text', { id: `rs_${this.core}`, type: 'reasoning', summary: [] });
    return begin + this.delta(text);
  }

  /** A piece of the text. */
  say(text: string): string {
    const isOpen = this.open?.item.type === 'message';
    const begin = isOpen
      ? ''
      : this.closeItem() +
        this.openItem('output_text', {
          id: `msg_${this.core}`,
          type: 'message',
          status: 'in_progress',
          role: 'assistant',
          content: [],
        });
    return begin + this.delta(text);
  }

  /** The rest of the events, with all items that were not sent yet. */
  finish(end: ReplyEnd): string {
    const output = outputOf(end);
    let text = this.closeItem(output[this.items - 1]);
    for (const item of output.slice(this.items)) text += this.wholeItem(item);
    const response = viewOf(this.head, end);
    const status = statusOf(end);
    // The helper of the client throws at `response.cancelled`.
    const last = status === 'completed' || status === 'failed' ? status : 'incomplete';
    return `${text}${this.event(`response.${last}`, { response })}data: [DONE]\n\n`;
  }

  private openItem(part: 'output_text' | 'reasoning_text', item: Item): string {
    const index = this.items++;
    const first = this.number;
    const of = { item_id: item.id, output_index: index, content_index: 0 };
    const type = `response.${part}.delta`;
    const fields = JSON.stringify({ type, ...of }).slice(0, -1);
    this.open = { index, item, first, text: '', delta: `event: ${type}\ndata: ${fields},"delta":` };
    return (
      this.event('response.output_item.added', { output_index: index, item }) +
      this.event('response.content_part.added', { ...of, part: partOf(item, '') })
    );
  }

  /** Built by hand: thousands of them may be sent in a second. */
  private delta(text: string): string {
    const { open } = this;
    if (!open) throw new Error('a piece of text without an item');
    open.text += text;
    const before = this.number - 1;
    this.number += text.length;
    const known = Math.max(0, this.after - before);
    if (known >= text.length) return '';
    const logprobs = open.item.type === 'message' ? ',"logprobs":[]' : '';
    return `${open.delta}${JSON.stringify(text.slice(known))}${logprobs},"sequence_number":${this.number - 1}}\n\n`;
  }

  /** @param whole the item as it is recorded */
  private closeItem(whole?: Item): string {
    const { open } = this;
    if (!open) return '';
    this.open = undefined;
    const { index, text } = open;
    const of = { item_id: open.item.id, output_index: index, content_index: 0 };
    const part = partOf(open.item, text);
    const isMessage = open.item.type === 'message';
    const item = whole ?? {
      ...open.item,
      content: [part],
      ...(isMessage && { status: 'incomplete' }),
    };
    return (
      this.event(`response.${part.type}.done`, { ...of, text, ...(isMessage && { logprobs: [] }) }) +
      this.event('response.content_part.done', { ...of, part }) +
      this.event('response.output_item.done', { output_index: index, item })
    );
  }

  private wholeItem(item: Item): string {
    const index = this.items++;
    const first = this.number;
    const { id, type } = item;
    const begun =
      type === 'function_call'
        ? { ...item, arguments: '', status: 'in_progress' }
        : type === 'message'
          ? { ...item, content: [], status: 'in_progress' }
          : { ...item };
    let text = this.event('response.output_item.added', { output_index: index, item: begun });
    if (type === 'function_call') {
      const of = { item_id: id, output_index: index };
      const { name, arguments: given } = item;
      text += this.event('response.function_call_arguments.delta', { ...of, delta: given });
      text += this.event('response.function_call_arguments.done', { ...of, name, arguments: given });
    }
    text += this.event('response.output_item.done', { output_index: index, item });
    this.number = first + PER_ITEM;
    return text;
  }

  private event(type: string, fields: Fields): string {
    const sequence_number = this.number++;
    if (sequence_number <= this.after) return '';
    return `event: ${type}\ndata: ${JSON.stringify({ type, ...fields, sequence_number })}\n\n`;
  }
}

const partOf = ({ type }: Item, text: string) =>
  type === 'message'
    ? { type: 'output_text', text, annotations: [], logprobs: [] }
    : { type: 'reasoning_text', text };

/**
 * Sends a response as server-sent events.
 * @param after events up to this number are left out
 */
export function sendResponse(
  reply: FastifyReply,
  live: LiveReply,
  head: ResponseHead,
  after?: number,
): Promise<void> {
  const events = new ResponseEvents(head, after);
  return sendReply(reply, live, (event) => {
    switch (event.type) {
      case 'started':
        return events.begin();
      case 'reasoning':
        return events.think(event.text);
      case 'delta':
        return events.say(event.text);
      case 'toolCall':
        // They come with the end, which has all items.
        return '';
      default:
        return events.finish(event);
    }
  });
}
