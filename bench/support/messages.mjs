import { randomUUID } from 'node:crypto';
import { product } from './product.mjs';

const { sessionDecider } = product('dist/domain/session.js');

/** About 100 characters: a typical message of a chat. */
export const CONTENT =
  'Could you tell me how far along my order is? I was told that it would be here by the end of the week.';

/** The data of a `MessageAppended`. */
export const message = () => ({
  messageId: `msg_${randomUUID()}`,
  role: 'user',
  content: CONTENT,
  status: 'complete',
});

const created = sessionDecider.evolve(sessionDecider.initialState, { type: 'SessionCreated', data: {} });

/** A session with its only writer, which keeps the state between its appends, as a command handler does. */
export class WrittenSession {
  #state = { ...created, version: 0 };
  #chain = { version: 0, createdAt: null, lastActivityAt: null };
  #lag;

  constructor(store, streamId, tenant = 'default') {
    this.store = store;
    this.stream = { tenant, streamId };
  }

  async append() {
    const data = message();
    const expected = this.#state.version;
    this.#state = sessionDecider.evolve(this.#state, { type: 'MessageAppended', data });
    const result = await this.store.append({
      stream: this.stream,
      expected,
      incarnation: 1,
      begins: expected === 0,
      chain: this.#chain,
      lag: this.#lag,
      activity: true,
      state: this.#state,
      stateVersion: 1,
      actor: 'bench',
      correlationId: randomUUID(),
      causationId: null,
      events: [{ type: 'MessageAppended', schemaVersion: 1, data }],
    });
    if (result.status !== 'ok') throw new Error(`append: ${result.status}`);
    this.#lag = result.lag;
    return result;
  }
}

/** Writes whole sessions as an import does, which is several times faster than appends: each a creation and messages. */
export async function writeSessions(store, sessions, length) {
  const log = await store.beginImport();
  const time = '2026-01-01T00:00:00.000Z';
  const by = {
    schemaVersion: 1,
    incarnation: 1,
    time,
    actor: 'bench',
    correlationId: 'bench',
    causationId: null,
  };
  const PAGE = 20;
  for (let from = 0; from < sessions; from += PAGE) {
    const ids = Array.from({ length: Math.min(PAGE, sessions - from) }, (_, n) => `session-${from + n}`);
    await log.add(
      ids.map((streamId) => ({
        stream: { tenant: 'default', streamId },
        begins: true,
        events: Array.from({ length }, (_, n) => ({
          ...by,
          id: randomUUID(),
          version: n + 1,
          ...(n === 0 ? { type: 'SessionCreated', data: {} } : { type: 'MessageAppended', data: message() }),
        })),
      })),
    );
    await log.commit(
      ids.map((streamId) => ({
        ...{ tenant: 'default', streamId, version: length, incarnation: 1, time },
        ...{ createdAt: time, lastActivityAt: time, stamped: false, state: {} },
      })),
      1,
    );
  }
  await log.close();
}
