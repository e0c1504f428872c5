import { type Signal, signal } from '@preact/signals';
import { call, type Generated, type Message, stream, type ServerEvent } from '../api/client.js';
import { asProblem, isAbort, Problem } from '../api/problem.js';

type ToolCall = NonNullable<NonNullable<Generated['message']>['toolCalls']>[number];
type Asked = Parameters<typeof call<'post', '/v1/sessions/{id}/generate'>>[2] extends infer O
  ? O extends { body?: infer B }
    ? NonNullable<B>
    : never
  : never;

/** A reply that is being written. */
export interface Reply {
  readonly generationId: Signal<string | undefined>;
  readonly text: Signal<string>;
  readonly reasoning: Signal<string>;
  readonly calls: Signal<readonly ToolCall[]>;
}

const PAUSE_MS = 1_000;

/** The reply that a session is given at the moment, whoever asked for it. */
export class ReplyStore {
  readonly current = signal<Reply | undefined>(undefined);
  /** Why the last one did not come to its end. */
  readonly failure = signal<Problem | undefined>(undefined);

  constructor(
    private readonly id: string,
    private readonly signal: AbortSignal,
    private readonly onMessage: (message: Message) => void,
    private readonly onStarted: () => void,
  ) {}

  /** Has the model answer. @throws Problem when that is refused */
  ask(body: Asked): Promise<void> {
    return this.take((onEvent) =>
      stream(
        'post',
        '/v1/sessions/{id}/generate',
        { path: { id: this.id }, body, signal: this.signal },
        onEvent,
      ),
    );
  }

  /** Shows a reply that somebody else has asked for, or that was begun before the page was loaded. */
  async watch(generationId: string): Promise<void> {
    if (this.current.value) return;
    await this.take((onEvent) => this.follow(generationId, onEvent)).catch(() => undefined);
  }

  async cancel(): Promise<void> {
    await call('post', '/v1/sessions/{id}/cancel', { path: { id: this.id } });
  }

  private async take(begin: (onEvent: (event: ServerEvent) => void) => Promise<void>): Promise<void> {
    const reply: Reply = {
      generationId: signal(undefined),
      text: signal(''),
      reasoning: signal(''),
      calls: signal([]),
    };
    this.current.value = reply;
    this.failure.value = undefined;
    const read = { place: undefined as string | undefined, isOver: false };
    const onEvent = ({ id, event, data }: ServerEvent): void => {
      read.place = id ?? read.place;
      read.isOver = this.apply(reply, event, data) || read.isOver;
    };
    try {
      await begin(onEvent).catch((error: unknown) => {
        // What has begun goes on without its reader.
        if (isAbort(error) || reply.generationId.value === undefined || !asProblem(error).isPassing)
          throw error;
      });
      // The connection was lost, or its node was stopped: another one has the rest.
      while (!read.isOver && reply.generationId.value !== undefined) {
        await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
        await this.follow(reply.generationId.value, onEvent, read.place).catch((error: unknown) => {
          if (isAbort(error) || !asProblem(error).isPassing) throw error;
        });
      }
    } finally {
      if (this.current.value === reply) this.current.value = undefined;
    }
  }

  private follow(generationId: string, onEvent: (event: ServerEvent) => void, place?: string): Promise<void> {
    return stream(
      'get',
      '/v1/sessions/{id}/generations/{generationId}/stream',
      { path: { id: this.id, generationId }, signal: this.signal },
      onEvent,
      place,
    );
  }

  /** @returns whether the reply has come to its end */
  private apply(reply: Reply, event: string, data: unknown): boolean {
    switch (event) {
      case 'generation.started':
        reply.generationId.value = (data as { generationId: string }).generationId;
        this.onStarted();
        return false;
      case 'message.delta':
        reply.text.value += (data as { text: string }).text;
        return false;
      case 'reasoning.delta':
        reply.reasoning.value += (data as { text: string }).text;
        return false;
      case 'tool.call':
        reply.calls.value = [...reply.calls.value, data as ToolCall];
        return false;
      case 'message.completed':
      case 'generation.cancelled': {
        const { message } = data as Generated;
        this.current.value = undefined;
        if (message) this.onMessage(message);
        return true;
      }
      case 'generation.failed': {
        const { status, code, detail } = data as { status: number; code: string; detail: string };
        this.failure.value = new Problem(status, code, detail);
        return true;
      }
      default:
        return false;
    }
  }
}
