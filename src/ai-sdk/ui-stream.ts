import { type FastifyReply } from 'fastify';
import { type ReplyEnd, type ReportedCall } from '../generation/live-reply.js';
import { sendReply } from '../generation/send-reply.js';
import { EventStream, textOfEvent } from '../http/event-stream.js';
import { problemOf } from '../http/problem.js';
import { approvalIdOf, type ChatTurn } from './chats.js';
import { inputOf, toolNameOf } from './ui-messages.js';

type Chunk = { readonly type: string } & Readonly<Record<string, unknown>>;

/** Why a reply ended, by the names that the AI SDK has for it. */
const FINISH: Readonly<Record<string, string>> = {
  stop: 'stop',
  length: 'length',
  content_filter: 'content-filter',
  tool_calls: 'tool-calls',
};

const DONE = 'data: [DONE]\n\n';
const textOf = (...chunks: readonly Chunk[]): string => chunks.map((data) => textOfEvent({ data })).join('');

/** The chunks of a UI message, as text, made from a reply as it arrives. */
export class UiChunks {
  /** The part that is being sent. */
  private open: 'text' | 'reasoning' | undefined;
  private parts = 0;
  private hasThought = false;

  begin({ messageId, denied, approved, live }: ChatTurn): string {
    const text = textOf(
      { type: 'start', messageId },
      ...denied.map((toolCallId) => ({ type: 'tool-output-denied', toolCallId })),
      ...approved.map((part) => ({
        type: 'tool-input-available',
        toolCallId: part['toolCallId'],
        toolName: toolNameOf(part),
        input: part['input'],
        ...(part.type === 'dynamic-tool' && { dynamic: true }),
      })),
    );
    if (live) return text + textOf({ type: 'start-step' });
    return `${text}${textOf({ type: 'finish', finishReason: 'tool-calls' })}${DONE}`;
  }

  think(delta: string): string {
    this.hasThought = true;
    return this.openPart('reasoning') + this.delta(delta);
  }

  say(delta: string): string {
    return this.openPart('text') + this.delta(delta);
  }

  call({ id: toolCallId, name: toolName, arguments: given, approval }: ReportedCall): string {
    const input = inputOf(given);
    const begun: Chunk[] = [
      { type: 'tool-input-start', toolCallId, toolName },
      { type: 'tool-input-delta', toolCallId, inputTextDelta: given },
    ];
    if (approval === 'required')
      return (
        this.closePart() +
        textOf(...begun, { type: 'tool-approval-request', approvalId: approvalIdOf(toolCallId), toolCallId })
      );
    return this.closePart() + textOf(...begun, { type: 'tool-input-available', toolCallId, toolName, input });
  }

  finish(end: ReplyEnd): string {
    const closed = this.closePart();
    if (end.type === 'failed') {
      return `${closed}${textOf({ type: 'error', errorText: problemOf(end.error).detail })}${DONE}`;
    }
    const thoughts = this.hasThought ? '' : this.lateThoughts(end);
    const { finishReason, message } = end.answer;
    const reason = message?.toolCalls ? 'tool-calls' : (FINISH[finishReason] ?? 'other');
    const last = end.type === 'cancelled' ? { type: 'abort' } : { type: 'finish', finishReason: reason };
    return `${closed}${thoughts}${textOf({ type: 'finish-step' }, last)}${DONE}`;
  }

  /** Thoughts that became known only with the end. */
  private lateThoughts({ answer }: Exclude<ReplyEnd, { type: 'failed' }>): string {
    const content = answer.message?.content ?? '';
    const parts = typeof content === 'string' ? [] : content;
    return parts
      .map((part) => (part.type === 'reasoning' ? (part.text ?? (part.summary ?? []).join('\n\n')) : ''))
      .filter(Boolean)
      .map((text) => this.openPart('reasoning') + this.delta(text) + this.closePart())
      .join('');
  }

  private get id(): string {
    return String(this.parts);
  }

  private openPart(type: 'text' | 'reasoning'): string {
    if (this.open === type) return '';
    const closed = this.closePart();
    this.open = type;
    this.parts += 1;
    return closed + textOf({ type: `${type}-start`, id: this.id });
  }

  private delta(delta: string): string {
    return `data: {"type":"${this.open ?? 'text'}-delta","id":"${this.id}","delta":${JSON.stringify(delta)}}\n\n`;
  }

  private closePart(): string {
    const { open } = this;
    if (!open) return '';
    this.open = undefined;
    return textOf({ type: `${open}-end`, id: this.id });
  }
}

/** Sends the answer to a request of `useChat` as a UI message stream. */
export async function sendTurn(reply: FastifyReply, turn: ChatTurn): Promise<void> {
  reply.header('x-vercel-ai-ui-message-stream', 'v1');
  const chunks = new UiChunks();
  if (turn.live) {
    await sendReply(reply, turn.live, (event) => {
      switch (event.type) {
        case 'started':
          return chunks.begin(turn);
        case 'reasoning':
          return chunks.think(event.text);
        case 'delta':
          return chunks.say(event.text);
        case 'toolCall':
          return chunks.call(event.call);
        default:
          return chunks.finish(event);
      }
    });
    return;
  }
  const stream = await EventStream.open(reply);
  await stream.sendText(chunks.begin(turn));
  stream.end();
}
