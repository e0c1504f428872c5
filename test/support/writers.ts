import { setTimeout as sleep } from 'node:timers/promises';
import { type Api } from './http.js';

/** A message whose append was answered with 201. */
export interface Said {
  readonly session: string;
  readonly content: string;
  /** Milliseconds since 1970: when its first try began, and when the answer came. */
  readonly begunAt: number;
  readonly answeredAt: number;
}

/**
 * Writes through these nodes until it is stopped; what is not answered is tried again under its key.
 * @param pauseMs of each writer after a message. Without it they take all that a machine has, from other tests as well
 */
export function writers(apis: readonly Api[], sessions: readonly string[], pauseMs = 0) {
  const said: Said[] = [];
  const odd: unknown[] = [];
  let isOver = false;
  const running = sessions.flatMap((session, index) =>
    apis.map(async (_, which) => {
      for (let count = 0; !isOver; count += 1) {
        const content = `${session} ${which} ${count}`;
        const begunAt = Date.now();
        for (let attempt = index + which; ; attempt += 1) {
          const api = apis[attempt % apis.length] as Api;
          const path = `/v1/sessions/${session}/messages`;
          const answer = await api.post(path, { role: 'user', content }, { 'idempotency-key': content });
          if (answer.status === 201) {
            said.push({ session, content, begunAt, answeredAt: Date.now() });
            if (pauseMs > 0) await sleep(pauseMs);
            break;
          }
          // A session that was lost has to be created anew.
          if (answer.status === 404) await api.post('/v1/sessions', { id: session });
          else if (answer.status !== 503) odd.push(answer);
          await sleep(20);
        }
      }
    }),
  );
  return {
    said,
    odd,
    stop: async () => {
      isOver = true;
      await Promise.all(running);
    },
  };
}
