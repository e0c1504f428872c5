import { signal } from '@preact/signals';
import { call, type Event, type Message } from '../api/client.js';
import { asProblem, isAbort, type Problem } from '../api/problem.js';

/** A moment of a session that is not now. */
export interface Moment {
  readonly version: number;
  /** Unknown where events may not be read; then it is the present one. */
  readonly incarnation: number | undefined;
}

const FIRST_PAGE = 50;
const PAGE = 200;

/** The messages of a session now, or at a moment, read backwards from the last one. */
export class HistoryStore {
  /** The oldest first. */
  readonly messages = signal<readonly Message[]>([]);
  readonly problem = signal<Problem | undefined>(undefined);
  readonly isComplete = signal(false);
  private cursor: string | undefined;
  /** Changes when messages leave the history: a page that was asked for before may still have them. */
  private epoch = 0;
  private running: Promise<void> | undefined;

  constructor(
    private readonly id: string,
    readonly moment: Moment | undefined,
    private readonly signal: AbortSignal,
  ) {}

  /** Reads the page before what is there. */
  older(): Promise<void> {
    if (this.isComplete.value) return Promise.resolve();
    this.running ??= this.readPage().finally(() => {
      this.running = undefined;
    });
    return this.running;
  }

  /** Reads the history anew, without showing nothing meanwhile. */
  async reload(): Promise<void> {
    await this.running;
    this.cursor = undefined;
    this.isComplete.value = false;
    await this.older();
  }

  /** Takes in a message that has just been appended. */
  append(message: Message): void {
    const { value } = this.messages;
    if (value.some(({ id }) => id === message.id)) return;
    const place = value.findLastIndex(({ version }) => version < message.version) + 1;
    this.messages.value = [...value.slice(0, place), message, ...value.slice(place)];
  }

  /** Does with the history what an event did. @returns whether it has to be read anew */
  apply({ type, data, version, time }: Event): boolean {
    switch (type) {
      case 'MessageAppended': {
        const { messageId, ...rest } = data as unknown as Omit<Message, 'id'> & { messageId: string };
        this.append({ ...rest, id: messageId, version, createdAt: time });
        return false;
      }
      case 'MessageRemoved': {
        const { versions } = data as { versions: number[] };
        this.keep((message) => !versions.includes(message.version));
        return false;
      }
      case 'HistoryRewound': {
        const { toVersion } = data as { toVersion: number };
        this.keep((message) => message.version <= toVersion);
        return false;
      }
      case 'ConversationReset':
      case 'SessionCreated':
      case 'SessionErased':
        this.keep(() => false);
        return type === 'SessionCreated';
      default:
        return false;
    }
  }

  private keep(isKept: (message: Message) => boolean): void {
    this.epoch += 1;
    this.messages.value = this.messages.value.filter(isKept);
  }

  private async readPage(): Promise<void> {
    const isFirst = this.cursor === undefined;
    const { epoch } = this;
    try {
      const page = await call('get', '/v1/sessions/{id}/messages', {
        path: { id: this.id },
        query: {
          order: 'desc',
          limit: isFirst ? FIRST_PAGE : PAGE,
          ...(this.cursor !== undefined && { cursor: this.cursor }),
          ...(this.moment && { at: this.moment.version }),
          ...(this.moment?.incarnation !== undefined && { incarnation: this.moment.incarnation }),
        },
        signal: this.signal,
      });
      if (epoch !== this.epoch) {
        this.cursor = undefined;
        await this.readPage();
        return;
      }
      const read = page.data.reverse();
      // What was appended meanwhile is newer than the first page.
      const newer = isFirst
        ? this.messages.value.filter(({ version }) => version > page.version)
        : this.messages.value;
      this.messages.value = [...read, ...newer];
      this.cursor = page.nextCursor ?? undefined;
      this.isComplete.value = page.nextCursor === null;
      this.problem.value = undefined;
    } catch (error) {
      if (isAbort(error)) return;
      const problem = asProblem(error);
      this.problem.value = problem;
      // The history was reset while it was read: its cursor leads nowhere.
      if (problem.code === 'cursor-expired') {
        this.cursor = undefined;
        await this.readPage();
      }
    }
  }
}
