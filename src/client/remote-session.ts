import { randomUUID } from 'node:crypto';
import { type Json } from '../domain/session.events.js';
import { ColloquyError, Connection } from './connection.js';
import { type MessageForm, shown, stored, type StoredMessage } from './stored-form.js';

export interface RemoteSessionOptions {
  /** Of the service. Default `http://127.0.0.1:3000`. */
  readonly url?: string | undefined;
  readonly apiKey?: string | undefined;
  /** The session; a new one unless given. It is created when it is first written to. */
  readonly sessionId?: string | undefined;
}

interface Page {
  readonly data: readonly StoredMessage[];
  readonly nextCursor: string | null;
  readonly version: number;
}

const PAGE = 200;

/** The history of one session of a running service, in the form of a library of agents. */
export class RemoteSession {
  readonly id: string;
  private readonly connection: Connection;
  private readonly path: string;
  private created: Promise<unknown> | undefined;

  constructor(
    private readonly form: MessageForm,
    { url = 'http://127.0.0.1:3000', apiKey, sessionId }: RemoteSessionOptions,
  ) {
    this.id = sessionId ?? `sess_${randomUUID()}`;
    this.path = `/v1/sessions/${encodeURIComponent(this.id)}`;
    const base = url.replace(/\/+$/, '');
    this.connection = new Connection(
      (path, init) => fetch(base + path, init),
      apiKey === undefined ? {} : { authorization: `Bearer ${apiKey}` },
    );
  }

  /** The latest messages, the oldest of them first; all without a limit. None when there is no session yet. */
  async read(limit = Infinity): Promise<Json[]> {
    const { messages } = await this.latest(limit);
    return messages.map((message) => shown(this.form, message));
  }

  /** @param key the same messages with the same key join the history once */
  async append(messages: readonly object[], key: string = randomUUID()): Promise<void> {
    if (messages.length === 0) return;
    await this.create();
    const body = { messages: messages.map((one) => stored(this.form, one)) };
    await this.connection.json('POST', `${this.path}/messages`, {
      body,
      headers: { 'idempotency-key': key },
    });
  }

  /**
   * Puts messages in the place of the last ones, if these are what is expected.
   * @returns false when they are not, unless a request with this key has replaced them before
   * @throws ColloquyError `idempotency-key-reused` when that was another request
   */
  async replace(expected: readonly object[], messages: readonly object[], key: string): Promise<boolean> {
    await this.create();
    const { messages: last, version } = await this.latest(expected.length);
    const isExpected =
      last.length === expected.length &&
      last.every((message, index) => isSame(shown(this.form, message), expected[index]));
    const replaceLast = expected.length > 0 ? { replaceLast: expected.length } : {};
    const body = { ...replaceLast, messages: messages.map((one) => stored(this.form, one)) };
    // No session has the version 0: then only a request that took effect before is answered.
    const headers = { 'idempotency-key': key, 'if-match': `"${isExpected ? version : 0}"` };
    try {
      await this.connection.json('POST', `${this.path}/messages`, { body, headers });
      return true;
    } catch (error) {
      if (error instanceof ColloquyError && error.code === 'version-mismatch') return false;
      throw error;
    }
  }

  /** Takes the latest message out of the history; undefined when there is none. */
  async pop(): Promise<Json | undefined> {
    const [last] = (await this.latest(1)).messages;
    if (!last) return undefined;
    await this.connection.json('DELETE', `${this.path}/messages/${encodeURIComponent(last.id ?? '')}`, {
      headers: { 'idempotency-key': randomUUID() },
    });
    return shown(this.form, last);
  }

  /** Empties the history. The log keeps it. */
  async clear(): Promise<void> {
    await this.connection
      .json('POST', `${this.path}/reset`, { headers: { 'idempotency-key': randomUUID() } })
      .catch(unlessMissing);
  }

  private async latest(limit: number): Promise<{ messages: StoredMessage[]; version: number }> {
    const messages: StoredMessage[] = [];
    let cursor: string | null = '';
    let version = 0;
    while (cursor !== null && (messages.length < limit || version === 0)) {
      const size = Math.max(1, Math.min(PAGE, limit - messages.length));
      const next: string = cursor === '' ? '' : `&cursor=${encodeURIComponent(cursor)}`;
      const page: Page | undefined = await this.connection
        .json<Page>('GET', `${this.path}/messages?order=desc&limit=${size}${next}`)
        .catch(unlessMissing);
      if (!page) break;
      messages.push(...page.data);
      ({ nextCursor: cursor, version } = page);
    }
    return { messages: messages.slice(0, limit).reverse(), version };
  }

  private create(): Promise<unknown> {
    this.created ??= this.connection
      .json('POST', '/v1/sessions', { body: { id: this.id }, headers: { 'idempotency-key': randomUUID() } })
      .catch((error: unknown) => {
        this.created = undefined;
        throw error;
      });
    return this.created;
  }
}

function unlessMissing(error: unknown): undefined {
  if (error instanceof ColloquyError && error.code === 'session-not-found') return undefined;
  throw error;
}

/** Whether two values are the same JSON; the order of members does not matter. */
function isSame(one: unknown, other: unknown): boolean {
  const sorted = (value: unknown): unknown =>
    typeof value === 'object' && value !== null && !Array.isArray(value)
      ? Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)))
      : value;
  const text = (value: unknown): string => JSON.stringify(value, (_key, inner: unknown) => sorted(inner));
  return text(one) === text(other);
}
