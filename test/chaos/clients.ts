import { setTimeout as sleep } from 'node:timers/promises';
import { CAPPED, type ChaosNode } from './cluster.js';
import { now, type Operation, type Outcome, TOKEN } from './history.js';
import { type Random } from './random.js';

/** An answer that is later than this is taken as none. Nodes that are stopped answer nothing for longer. */
const LIMIT_MS = 6_000;
const ATTEMPTS = 6;
/** Appends after which a session is left, so that one page shows all of its messages. */
const SESSION_LENGTH = 60;
const VOLATILE = 5;

/** Sessions of which nothing is ever removed, so that what was acknowledged has to be there in every later read. */
interface Stable {
  readonly tenant: string;
  readonly id: string;
  writes: number;
}

interface Answer {
  readonly status: number;
  readonly text: string;
  readonly body: Readonly<Record<string, unknown>>;
}

/** One user of the service with several protocols, who does one thing at a time. */
export class ChaosClient {
  private readonly tenant: string;
  private count = 0;
  private own: Stable | undefined;

  constructor(
    private readonly number: number,
    private readonly nodes: readonly ChaosNode[],
    private readonly random: Random,
    /** By tenant: sessions that several clients use. */
    private readonly shared: Map<string, Stable[]>,
    private readonly record: (operation: Operation) => void,
  ) {
    this.tenant = random.pick(['a', 'b']);
  }

  async run(until: () => boolean): Promise<void> {
    while (!until()) {
      await this.step();
      await sleep(this.random.int(5, 60));
    }
  }

  private async step(): Promise<void> {
    switch (
      this.random.weighted({
        append: 10,
        batch: 2,
        generate: 3,
        stream: 2,
        chat: 2,
        items: 3,
        response: 1,
        ui: 2,
        session: 4,
        messages: 6,
        list: 1,
        search: 1,
        volatile: 5,
        capped: 4,
      })
    ) {
      case 'append':
        return this.append(1);
      case 'batch':
        return this.append(this.random.int(2, 4));
      case 'generate':
        return this.generate(false);
      case 'stream':
        return this.generate(true);
      case 'chat':
        return this.chat();
      case 'items':
        return this.items();
      case 'response':
        return this.response();
      case 'ui':
        return this.ui();
      case 'session':
        return this.readSession();
      case 'messages':
        return this.readMessages();
      case 'list':
        return this.readList();
      case 'search':
        return this.search();
      case 'volatile':
        return this.changeVolatile();
      case 'capped':
        return this.fillCap();
    }
  }

  private token(tenant = this.tenant): string {
    this.count += 1;
    return `tk${tenant}${this.number}n${this.count}z`;
  }

  /** A session of one's own, or one that others write to as well. */
  private async session(): Promise<Stable | undefined> {
    const shared = this.shared.get(this.tenant) ?? [];
    this.shared.set(this.tenant, shared);
    const known = this.random.chance(0.5) ? this.own : shared[this.random.int(0, 1)];
    if (known && known.writes < SESSION_LENGTH) return known;
    const made: Stable = { tenant: this.tenant, id: `s-${this.token()}`, writes: 0 };
    const { outcome } = await this.write('POST', '/v1/sessions', { id: made.id }, made.id, [], true);
    if (outcome !== 'ok') return undefined;
    if (known === this.own) this.own = made;
    else shared[known ? shared.indexOf(known) : shared.length] = made;
    return made;
  }

  private async append(count: number): Promise<void> {
    const session = await this.session();
    if (!session) return;
    session.writes += count;
    const tokens = Array.from({ length: count }, () => this.token());
    const messages = tokens.map((token) => ({ role: 'user', content: `I say ${token}.` }));
    await this.write(
      'POST',
      `/v1/sessions/${session.id}/messages`,
      count === 1 ? messages[0] : { messages },
      session.id,
      tokens,
      this.random.chance(0.6),
    );
  }

  private async generate(streams: boolean): Promise<void> {
    const session = await this.session();
    if (!session) return;
    session.writes += 2;
    const token = this.token();
    if (this.random.chance(0.2)) void this.cancel(session.id);
    await this.write(
      'POST',
      `/v1/sessions/${session.id}/generate`,
      { message: `Answer ${token}.`, ...(this.random.chance(0.5) && { onBusy: 'queue' }) },
      session.id,
      [token],
      this.random.chance(0.5),
      streams ? { accept: 'text/event-stream' } : {},
    );
  }

  private async cancel(session: string): Promise<void> {
    await sleep(this.random.int(0, 40));
    await this.write('POST', `/v1/sessions/${session}/cancel`, undefined, session, [], false);
  }

  private async chat(): Promise<void> {
    const session = await this.session();
    if (!session) return;
    session.writes += 2;
    const token = this.token();
    const body = { message: `Chat ${token}.`, sessionId: session.id };
    await this.write('POST', '/v1/chat', body, session.id, [token], this.random.chance(0.5));
  }

  private async items(): Promise<void> {
    const session = await this.session();
    if (!session) return;
    session.writes += 1;
    const token = this.token();
    await this.write(
      'POST',
      `/openai/v1/conversations/${session.id}/items`,
      { items: [{ type: 'message', role: 'user', content: `Item ${token}.` }] },
      session.id,
      [token],
      this.random.chance(0.5),
    );
  }

  private async response(): Promise<void> {
    const session = await this.session();
    if (!session) return;
    session.writes += 2;
    const token = this.token();
    const body = { input: `Respond ${token}.`, conversation: session.id, model: 'echo' };
    await this.write('POST', '/openai/v1/responses', body, session.id, [token], false);
  }

  private async ui(): Promise<void> {
    const session = await this.session();
    if (!session) return;
    session.writes += 2;
    const token = this.token();
    const message = { id: `msg-${token}`, role: 'user', parts: [{ type: 'text', text: `Ui ${token}.` }] };
    await this.write(
      'POST',
      '/ai-sdk/chat',
      { id: session.id, messages: [message] },
      session.id,
      [token],
      false,
    );
  }

  private async readSession(): Promise<void> {
    const session = await this.session();
    if (!session) return;
    await this.read(`/v1/sessions/${session.id}`, 'session', session.id, ({ body }) => ({
      version: Number(body['version']),
    }));
  }

  private async readMessages(): Promise<void> {
    const session = await this.session();
    if (!session) return;
    type Item = { readonly role?: string; readonly content?: unknown; readonly parts?: unknown };
    const ofUsers = (items: readonly Item[]): string[] =>
      items
        .filter(({ role }) => role === 'user')
        .flatMap(({ content, parts }) =>
          [...JSON.stringify(content ?? parts).matchAll(TOKEN)].map(([token]) => token),
        );
    const { path, of } = this.random.pick([
      {
        path: `/v1/sessions/${session.id}/messages?order=desc&limit=200`,
        of: ({ body }: Answer) => ({
          version: Number(body['version']),
          tokens: ofUsers(body['data'] as Item[]),
          isPartial: body['nextCursor'] !== null,
        }),
      },
      {
        path: `/openai/v1/conversations/${session.id}/items?limit=100`,
        of: ({ body }: Answer) => ({
          tokens: ofUsers(body['data'] as Item[]),
          isPartial: body['has_more'] === true,
        }),
      },
      {
        path: `/ai-sdk/chat/${session.id}/messages`,
        of: ({ text }: Answer) => {
          const parsed = JSON.parse(text) as Item[] | { readonly messages: Item[] };
          return { tokens: ofUsers('messages' in parsed ? parsed.messages : parsed), isPartial: false };
        },
      },
    ]);
    await this.read(path, 'messages', session.id, of);
  }

  private async readList(): Promise<void> {
    const begunAt = now();
    const sessions: string[] = [];
    let cursor: string | null = null;
    do {
      const query: string = cursor === null ? '' : `&cursor=${encodeURIComponent(cursor)}`;
      const answer = await this.send('GET', `/v1/sessions?limit=200${query}`);
      if (answer.status !== 200) return;
      sessions.push(...(answer.body['data'] as { id: string }[]).map(({ id }) => id));
      cursor = answer.body['nextCursor'] as string | null;
    } while (cursor !== null);
    this.record({
      ...{ kind: 'read', what: 'list', tenant: this.tenant, session: undefined, sessions },
      ...{ begunAt, endedAt: now(), status: 200 },
    });
  }

  private async search(): Promise<void> {
    const session = await this.session();
    if (!session || this.count === 0) return;
    const word = `tk${this.tenant}${this.number}n${this.random.int(1, this.count)}z`;
    await this.read(`/v1/search?q=${word}`, 'search', undefined, ({ body }) => ({
      tokens: [
        ...new Set(
          (body['data'] as { role: string; snippet: { text: string }[] }[])
            .filter(({ role }) => role === 'user')
            .flatMap(({ snippet }) =>
              [
                ...snippet
                  .map(({ text }) => text)
                  .join('')
                  .matchAll(TOKEN),
              ].map(([token]) => token),
            ),
        ),
      ],
      word,
    }));
  }

  /** Whatever a session can go through. What is read of such a session is looked at as a whole in the end. */
  private async changeVolatile(): Promise<void> {
    const id = `v-${this.tenant}-${this.random.int(1, VOLATILE)}`;
    const path = `/v1/sessions/${id}`;
    const isKeyed = this.random.chance(0.5);
    const change = (method: string, rest: string, body?: unknown, tokens: string[] = []) =>
      this.write(method, path + rest, body, id, tokens, isKeyed);
    switch (
      this.random.weighted({
        create: 3,
        append: 8,
        conditional: 2,
        reset: 1,
        delete: 1,
        details: 2,
        rewind: 1,
        remove: 1,
        fork: 1,
        approve: 1,
        generate: 2,
        read: 2,
      })
    ) {
      case 'create':
        await this.write('POST', '/v1/sessions', { id }, id, [], isKeyed);
        return;
      case 'append': {
        const token = this.token();
        await change('POST', '/messages', { role: 'user', content: token }, [token]);
        return;
      }
      case 'conditional': {
        const { body } = await this.send('GET', path);
        const token = this.token();
        const headers = { 'if-match': `"${Number(body['version'] ?? 1)}"` };
        await this.write(
          'POST',
          `${path}/messages`,
          { role: 'user', content: token },
          id,
          [token],
          isKeyed,
          headers,
        );
        return;
      }
      case 'reset':
        await change('POST', '/reset');
        return;
      case 'delete':
        await change('DELETE', '');
        return;
      case 'details':
        await change('PATCH', '', { title: `Title ${this.count}`, metadata: { n: this.count } });
        return;
      case 'rewind': {
        const { body } = await this.send('GET', path);
        await change('POST', '/rewind', { toVersion: Math.max(1, Number(body['version'] ?? 1) - 3) });
        return;
      }
      case 'remove': {
        const { body } = await this.send('GET', `${path}/messages?limit=5`);
        const [message] = (body['data'] ?? []) as { id?: string; messageId?: string }[];
        if (message) await change('DELETE', `/messages/${message.messageId ?? message.id ?? ''}`);
        return;
      }
      case 'fork':
        await change('POST', '/fork', { id: `f-${this.token()}` });
        return;
      case 'approve':
        await change('PUT', '/approvals/weather', {});
        return;
      case 'generate': {
        const token = this.token();
        await change('POST', '/generate', { message: token }, [token]);
        return;
      }
      case 'read':
        await this.send('GET', `${path}/messages`);
    }
  }

  /** Fills the tenant whose sessions are capped, and makes room. */
  private async fillCap(): Promise<void> {
    const { tenant } = CAPPED;
    if (this.random.chance(0.6)) {
      const id = `c-${this.random.int(1, 4 * CAPPED.sessions)}`;
      await this.write('POST', '/v1/sessions', { id }, id, [], this.random.chance(0.5), {}, tenant);
      return;
    }
    const { body } = await this.send('GET', '/v1/sessions?limit=200', undefined, {}, tenant);
    const sessions = (body['data'] ?? []) as { id: string }[];
    if (sessions.length === 0) return;
    const { id } = this.random.pick(sessions);
    if (this.random.chance(0.5))
      await this.write('DELETE', `/v1/sessions/${id}`, undefined, id, [], true, {}, tenant);
    else {
      const token = this.token(tenant);
      const body = { role: 'user', content: token };
      await this.write('POST', `/v1/sessions/${id}/messages`, body, id, [token], true, {}, tenant);
    }
  }

  /** A write and what is known of it. With a key it is tried again, on any node, until it is known. */
  private async write(
    method: string,
    path: string,
    body: unknown,
    session: string,
    tokens: readonly string[],
    isKeyed: boolean,
    headers: Readonly<Record<string, string>> = {},
    tenant = this.tenant,
  ): Promise<{ outcome: Outcome }> {
    const key = isKeyed ? `key-${this.number}-${(this.count += 1)}` : undefined;
    const begunAt = now();
    let answer: Answer;
    let wasUnknown = false;
    for (let attempt = 1; ; attempt += 1) {
      const all = { ...headers, ...(key !== undefined && { 'idempotency-key': key }) };
      answer = await this.send(method, path, body, all, tenant);
      if (outcomeOf(answer) !== 'unknown' || key === undefined || attempt === ATTEMPTS) break;
      wasUnknown = true;
      await sleep(this.random.int(100, 800));
    }
    let outcome = outcomeOf(answer);
    // A refusal speaks of the last attempt. Whether an attempt before it took effect, only the key could tell.
    if (outcome === 'fail' && wasUnknown) outcome = 'unknown';
    // A session that is deleted during its reply: the question was taken, and the answer is that there is no session.
    if (answer.status === 404 && /\/(generate|chat|responses)$/.test(path)) outcome = 'unknown';
    const told = (one: Answer, what: Outcome): void => {
      const version = Number(one.body['version']);
      this.record({
        kind: 'write',
        what: `${method} ${path.replaceAll(/tk\w+z|v-\w-\d+|c-\d+|msg_\w+/g, '…')}`,
        ...{ tenant, session, tokens, key, begunAt, endedAt: now(), outcome: what, status: one.status },
        version: Number.isSafeInteger(version) ? version : undefined,
      });
    };
    told(answer, outcome);
    // A client that has not got the answer asks again, and has to get the same one. Only an append answers with what it was.
    if (outcome === 'ok' && key !== undefined && path.endsWith('/messages') && this.random.chance(0.3)) {
      const again = await this.send(method, path, body, { ...headers, 'idempotency-key': key }, tenant);
      if (outcomeOf(again) === 'ok') told(again, 'ok');
    }
    return { outcome };
  }

  private async read(
    path: string,
    what: string,
    session: string | undefined,
    of: (answer: Answer) => object,
  ): Promise<void> {
    const begunAt = now();
    const answer = await this.send('GET', path);
    if (answer.status !== 200 && answer.status !== 404) return;
    this.record({
      ...{ kind: 'read', what, tenant: this.tenant, session, begunAt, endedAt: now(), status: answer.status },
      ...(answer.status === 200 && of(answer)),
    });
  }

  /** The status is 0 when no answer came, or not the whole of it. */
  private async send(
    method: string,
    path: string,
    body?: unknown,
    headers: Readonly<Record<string, string>> = {},
    tenant = this.tenant,
  ): Promise<Answer> {
    const url = this.random.pick(this.nodes).url();
    if (url === undefined) {
      await sleep(50);
      return { status: 0, text: '', body: {} };
    }
    try {
      const response = await fetch(url + path, {
        method,
        headers: {
          'colloquy-tenant': tenant,
          ...(body !== undefined && { 'content-type': 'application/json' }),
          ...headers,
        },
        ...(body !== undefined && { body: JSON.stringify(body) }),
        signal: AbortSignal.timeout(LIMIT_MS),
      });
      const text = await response.text();
      for (const [, letter] of text.matchAll(TOKEN))
        if (letter !== tenant) this.record({ kind: 'foreign', what: `${method} ${path}`, tenant, text });
      const isJson = response.headers.get('content-type')?.includes('json') === true;
      const parsed: unknown = isJson && text !== '' ? JSON.parse(text) : {};
      return { status: response.status, text, body: parsed as Answer['body'] };
    } catch {
      return { status: 0, text: '', body: {} };
    }
  }
}

function outcomeOf({ status, text }: Answer): Outcome {
  // A stream that tells of a failure in its end has begun with 200.
  if (status >= 200 && status < 300)
    return /event: generation\.failed|"type":"error"/.test(text) ? 'unknown' : 'ok';
  return status === 0 || status >= 500 ? 'unknown' : 'fail';
}
