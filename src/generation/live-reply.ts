import { type ToolCall } from '../domain/session.events.js';
import { type GeneratedAnswer } from './generation.schemas.js';

/** How a generation ended. `version` is that of the session afterwards. */
export type ReplyEnd =
  | { readonly type: 'completed' | 'cancelled'; readonly answer: GeneratedAnswer; readonly version: number }
  /** `content`: the partial reply, which is kept. */
  | { readonly type: 'failed'; readonly error: unknown; readonly content?: string | undefined };

/** A tool call as clients see it: `required` when the session has no approval for it. */
export type ReportedCall = ToolCall & { readonly approval?: 'required' | 'granted' | undefined };

export type ReplyEvent =
  | { readonly type: 'started' }
  /** `offset`: characters of the reply up to the end of `text`. */
  | { readonly type: 'delta'; readonly text: string; readonly offset: number }
  | { readonly type: 'toolCall'; readonly call: ReportedCall; readonly number: number }
  | ReplyEnd;

/** The place of a reader: how many characters and tool calls it has received. */
export interface ReplyPlace {
  readonly offset: number;
  readonly toolCalls: number;
}

/**
 * A reply while it arrives, for any number of readers. Each reader takes text at its own pace: a slow reader gets fewer
 * and longer pieces, and nothing is queued for it.
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
    // Adds the text that did not arrive in this process: another node ran the generation, and its last piece of text
    // was not shared.
    const content = end.type === 'failed' ? (end.content ?? '') : end.answer.content;
    if (content.length > this.length) this.append(content.slice(this.length));
    const calls = end.type === 'failed' ? [] : (end.answer.message?.toolCalls ?? []);
    for (const call of calls.slice(this.calls.length)) this.addToolCall(call);
    this.ended ??= end;
    this.wake();
  }

  /** Resolves to the end of the reply. */
  async finished(): Promise<ReplyEnd> {
    while (!this.ended) await this.change();
    return this.ended;
  }

  /**
   * Reads the reply from a place on. Each call of the returned function gives the next event: first all text that is
   * there, in one piece, then the text that arrives, then the end; undefined when there is nothing new.
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
