import { type ToolCall } from '../domain/session.events.js';
import { type GeneratedAnswer } from './generation.schemas.js';

/** How a generation ended. `version` is the session's after it. */
export type ReplyEnd =
  | { readonly type: 'completed' | 'cancelled'; readonly answer: GeneratedAnswer; readonly version: number }
  /** `content`: what had arrived and is kept. */
  | { readonly type: 'failed'; readonly error: unknown; readonly content?: string | undefined };

/** A tool call as clients see it: `required` when the session has no approval for it. */
export type ReportedCall = ToolCall & { readonly approval?: 'required' | 'granted' | undefined };

export type ReplyEvent =
  | { readonly type: 'started' }
  /** `offset`: characters of the reply up to the end of `text`. */
  | { readonly type: 'delta'; readonly text: string; readonly offset: number }
  | { readonly type: 'toolCall'; readonly call: ReportedCall; readonly number: number }
  | ReplyEnd;

/** Where a reader stands: characters and tool calls that it has. */
export interface ReplyPlace {
  readonly offset: number;
  readonly toolCalls: number;
}

/**
 * A reply while it arrives, for any number of readers. Each reads at its own pace from what is here: a slow one gets
 * fewer, longer pieces, and nothing is queued for it.
 */
export class LiveReply {
  private readonly pieces: string[] = [];
  private readonly calls: ReportedCall[] = [];
  private readonly waiting = new Set<() => void>();
  private ended: ReplyEnd | undefined;
  private length = 0;

  constructor(
    readonly sessionId: string,
    readonly generationId: string,
    readonly model: string,
  ) {}

  get text(): string {
    return this.pieces.join('');
  }

  get end(): ReplyEnd | undefined {
    return this.ended;
  }

  append(text: string): void {
    if (text === '') return;
    this.pieces.push(text);
    this.length += text.length;
    this.wake();
  }

  addToolCall(call: ReportedCall): void {
    this.calls.push(call);
    this.wake();
  }

  finish(end: ReplyEnd): void {
    // What this process did not see arrive, because another one ran the generation or the last piece was not shared.
    const content = end.type === 'failed' ? (end.content ?? '') : end.answer.content;
    if (content.length > this.length) this.append(content.slice(this.length));
    const calls = end.type === 'failed' ? [] : (end.answer.message?.toolCalls ?? []);
    for (const call of calls.slice(this.calls.length)) this.addToolCall(call);
    this.ended ??= end;
    this.wake();
  }

  /** Resolves with the end. */
  async finished(): Promise<ReplyEnd> {
    while (!this.ended) await this.change();
    return this.ended;
  }

  /**
   * From a place on: what is there at once, in one piece, then what arrives, then the end. Each call gives the next;
   * undefined when there is none now.
   */
  reader(from?: ReplyPlace): () => ReplyEvent | undefined {
    let isNew = !from;
    let offset = from?.offset ?? 0;
    let calls = from?.toolCalls ?? 0;
    let piece = 0;
    let start = 0;
    return () => {
      if (isNew) {
        isNew = false;
        return { type: 'started' };
      }
      let text = '';
      for (; piece < this.pieces.length; piece += 1) {
        const next = this.pieces[piece] ?? '';
        text += start < offset ? next.slice(offset - start) : next;
        start += next.length;
      }
      if (text !== '') {
        offset = start;
        return { type: 'delta', text, offset };
      }
      const call = this.calls[calls];
      if (!call) return this.ended;
      calls += 1;
      return { type: 'toolCall', call, number: calls };
    };
  }

  /** Resolves when there is more to read, or after `wake`. */
  change(): Promise<void> {
    return new Promise((resolve) => this.waiting.add(resolve));
  }

  wake(): void {
    for (const resolve of this.waiting) resolve();
    this.waiting.clear();
  }
}
