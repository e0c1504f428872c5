import { sleep } from './stats.mjs';
import { Streamed } from './streamed.mjs';

/** How often the paced model sends a token. */
const TOKEN_MS = 20;

/**
 * The fractional part of the golden ratio. Its multiples are spread evenly over the interval from 0 to 1 without a
 * period.
 */
const SPREAD = (Math.sqrt(5) - 1) / 2;

/**
 * Runs `parallel` streams at a time for `seconds`, with their starts spread over the length of a reply. At even
 * distances of 25 ms the streams would be synchronous: with a token each 20 ms, the tokens of all streams would come in
 * four bursts, which real streams do not do.
 */
export async function load({ url, ask, pattern }, parallel, seconds, tokens) {
  const firsts = [];
  const paces = [];
  let counted = 0;
  let all = 0;
  const spreadMs = parallel === 1 ? 0 : tokens * TOKEN_MS;
  const from = performance.now() + spreadMs;
  const to = from + seconds * 1000;
  await Promise.all(
    Array.from({ length: parallel }, async (_, n) => {
      await sleep(((n * SPREAD) % 1) * spreadMs);
      while (performance.now() < to) {
        const stream = await Streamed.open(url, pattern);
        stream.onTokens = (count) => {
          const now = performance.now();
          all += count;
          if (now >= from && now < to) counted += count;
        };
        await ask(stream, n);
        if (stream.tokens !== tokens) throw new Error(`${url}: ${stream.tokens} of ${tokens} tokens`);
        if (stream.sent < from) continue;
        firsts.push(stream.first - stream.sent);
        paces.push(((tokens - 1) / (stream.last - stream.first)) * 1000);
      }
    }),
  );
  return { firsts, paces, rate: counted / seconds, tokens: all };
}

let lastSession = 0;
export const newSessions = (service, count) =>
  Promise.all(
    Array.from(
      { length: count },
      async () => (await post(service, '/v1/sessions', { id: `stream-${(lastSession += 1)}` })).id,
    ),
  );

export async function post(service, path, body) {
  const response = await fetch(service.url + path, {
    method: 'POST',
    ...(body && { headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) }),
  });
  const answer = await response.json();
  if (!response.ok) throw new Error(`${path}: ${JSON.stringify(answer)}`);
  return answer;
}
