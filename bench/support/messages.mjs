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
