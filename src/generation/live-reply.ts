import { type ToolCall } from '../domain/session.events.js';
import { type GeneratedAnswer } from './generation.schemas.js';
import { firstThoughts } from './reply-content.js';

/** How a generation ended. `version` is that of the session afterwards. */
export type ReplyEnd =
  | { readonly type: 'completed' | 'cancelled'; readonly answer: GeneratedAnswer; readonly version: number }
  /** `content` and `reasoning`: the text of the partial reply, which is kept, and what was thought before it. */
  | {
      readonly type: 'failed';
      readonly error: unknown;
      readonly version?: number | undefined;
      readonly content?: string | undefined;
      readonly reasoning?: string | undefined;
    };

/** A tool call as clients see it: `required` when the session has no approval for it. */
export type ReportedCall = ToolCall & { readonly approval?: 'required' | 'granted' | undefined };

export type ReplyEvent =
  | { readonly type: 'started' }
  /** What the model thinks before it answers. `offset`: characters of it up to the end of `text`. */
  | { readonly type: 'reasoning'; readonly text: string; readonly offset: number }
  /** `offset`: characters of the reply up to the end of `text`. */
  | { readonly type: 'delta'; readonly text: string; readonly offset: number }
  | { readonly type: 'toolCall'; readonly call: ReportedCall; readonly number: number }
  | ReplyEnd;

/** The place of a reader: how much it has received of what the model thinks, says and calls. */
export interface ReplyPlace {
  /** Without it a reader of any text has read all thoughts. */
  readonly reasoning?: number | undefined;
  readonly offset: number;
  readonly toolCalls: number;
}

/** A text that arrives in pieces. */
class ArrivingText {
  readonly pieces: string[] = [];
  length = 0;

  get text(): string {
    return this.pieces.join('');
  }

  add(text: string): void {
    this.pieces.push(text);
    this.length += text.length;
  }

  /** Adds what is missing of the whole text: another node ran the generation, and its last piece was not shared. */
  complete(whole: string): void {
    if (whole.length > this.length) this.add(whole.slice(this.length));
  }

  /** Each call of the returned function gives what has come behind the place, in one piece. */
  reader(from: number): () => { readonly text: string; readonly offset: number } | undefined {
    let piece = 0;
    let start = 0;
    return () => {
      let text = '';
      for (; piece < this.pieces.length; piece += 1) {
        const next = this.pieces[piece] ?? '';
        text += start < from ? next.slice(from - start) : next;
        start += next.length;
      }
      return text === '' ? undefined : { text, offset: start };
    };
  }
}

/**
 * A reply while it arrives, for any number of readers. Each reader takes text at its own pace: a slow reader gets fewer
 * and longer pieces, and nothing is queued for it.
 */
export class LiveReply {
  private readonly said = new ArrivingText();
  private readonly thought = new ArrivingText();
  private readonly calls: ReportedCall[] = [];
  private readonly waiting = new Set<() => void>();
  private ended: ReplyEnd | undefined;

  constructor(
    readonly sessionId: string,
    readonly generationId: string,
    readonly model: string,
    /** When the generation was started, RFC 3339. */
    readonly startedAt: string,
    /** Version of the session at which it was started; 0 outside of any. */
    readonly version = 0,
  ) {}

  get text(): string {
    return this.said.text;
  }

  /** What the model thought before the first text. */
  get reasoning(): string {
    return this.thought.text;
  }

  get end(): ReplyEnd | undefined {
    return this.ended;
  }

  append(text: string): void {
    if (text === '') return;
    this.said.add(text);
    this.wake();
  }

  /** What is thought after the first text is not shown before the end, so that all readers see one order. */
  think(text: string): void {
    if (text === '' || this.said.length > 0) return;
    this.thought.add(text);
    this.wake();
  }

  addToolCall(call: ReportedCall): void {
    this.calls.push(call);
    this.wake();
  }

  finish(end: ReplyEnd): void {
    const { content, reasoning = '' } =
      end.type === 'failed'
        ? { content: end.content ?? '', reasoning: end.reasoning }
        : { content: end.answer.content, reasoning: firstThoughts(end.answer.message?.content ?? '') };
    if (this.said.length === 0) this.thought.complete(reasoning);
    this.said.complete(content);
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
   * Reads the reply from a place on. Each call of the returned function gives the next event: first all that is there,
   * thoughts in one piece and text in one piece, then what arrives, then the end; undefined when there is nothing new.
   */
  reader(from?: ReplyPlace): () => ReplyEvent | undefined {
    let isNew = !from;
    let calls = from?.toolCalls ?? 0;
    const thoughts = this.thought.reader(from?.reasoning ?? (from && from.offset > 0 ? Infinity : 0));
    const text = this.said.reader(from?.offset ?? 0);
    return () => {
      if (isNew) {
        isNew = false;
        return { type: 'started' };
      }
      const thought = thoughts();
      if (thought) return { type: 'reasoning', ...thought };
      const said = text();
      if (said) return { type: 'delta', ...said };
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
