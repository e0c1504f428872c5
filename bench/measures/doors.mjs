import { ask, Connection, request } from '../support/http.mjs';
import { startPacedModel, startService } from '../support/process.mjs';
import { median, rate, ratio, sideBySide, spread } from '../support/stats.mjs';
import { load, newSessions } from '../support/streams.mjs';

const PARALLEL = 200;
const CLIENTS = 16;
const SESSIONS_EACH = 40;
const TARGETS = { addedMs: 1, pace: 0.95, responses: 0.8 };

/** How each door is asked for a reply, and how the pieces of its text look. */
const DOORS = {
  '/v1': (sessions, message) => ({
    ask: (stream, n) => stream.ask(`/v1/sessions/${sessions[n]}/generate`, { message }),
  }),
  '/openai/v1': (sessions, message) => ({
    ask: (stream, n) =>
      stream.ask('/openai/v1/responses', { conversation: sessions[n], input: message, stream: true }),
    pattern: /"type":"response\.output_text\.delta"[^\n]*"delta":"([^"]*)"[^\n]*\n/g,
  }),
  '/ai-sdk': (sessions, message) => ({
    ask: (stream, n) => {
      const text = [{ type: 'text', text: message }];
      return stream.ask('/ai-sdk/chat', {
        id: sessions[n],
        messages: [{ id: `m${(messages += 1)}`, role: 'user', parts: text }],
      });
    },
    pattern: /"type":"text-delta"[^\n]*"delta":"([^"]*)"[^\n]*\n/g,
  }),
};
let messages = 0;

/** Measures what the other protocols cost beside the native one, on the same service, by turns. */
export async function doors(server, { full }) {
  const model = await startPacedModel();
  const service = await startService(await server.database('doors'), {
    env: { OPENAI_BASE_URL: `${model.url}/v1` },
  });
  const echo = await startService(await server.database('doors_echo'));
  try {
    return [
      ...(await streams(service, {
        parallel: PARALLEL,
        rounds: full ? 5 : 2,
        seconds: full ? 20 : 8,
        tokens: 250,
      })),
      ...(await streams(service, { parallel: 1, rounds: full ? 200 : 60, seconds: 0.4, tokens: 10 })),
      await responses(echo, { rounds: full ? 9 : 5, seconds: full ? 5 : 3 }),
    ];
  } finally {
    await echo.stop();
    await service.stop();
    await model.stop();
  }
}

async function streams(service, { parallel, rounds, seconds, tokens }) {
  const names = Object.keys(DOORS);
  const results = Object.fromEntries(names.map((name) => [name, []]));
  for (let round = 0; round <= rounds; round += 1) {
    for (let turn = 0; turn < names.length; turn += 1) {
      const name = names[(round + turn) % names.length];
      const sessions = await newSessions(service, parallel);
      const door = DOORS[name](sessions, `Say ${tokens} tokens.`);
      const result = await load({ url: service.url, ...door }, parallel, seconds, tokens);
      // The first round warms up.
      if (round > 0) results[name].push(result);
    }
  }
  const [native, ...others] = names;
  const first = (name) => median(results[name].flatMap(({ firsts }) => firsts));
  const pace = (name) => median(results[name].map((result) => result.rate));
  const what = parallel === 1 ? '1 stream' : `${parallel} streams`;
  return others.flatMap((name) =>
    parallel === 1
      ? [
          {
            name: `${what} through ${name}: first token`,
            ours: `${first(name).toFixed(2)} ms`,
            other: `${native} ${first(native).toFixed(2)} ms`,
            target: `< +${TARGETS.addedMs} ms`,
            pass: first(name) - first(native) < TARGETS.addedMs,
          },
        ]
      : [
          {
            name: `${what} through ${name}: tokens/s`,
            ours: pace(name).toFixed(0),
            other: `${native} ${pace(native).toFixed(0)}`,
            ratio: pace(name) / pace(native),
            atLeast: TARGETS.pace,
          },
        ],
  );
}

/** A response in a conversation beside a generation in a session, both answered by the echo. */
async function responses(service, { rounds, seconds }) {
  const connections = await Promise.all(Array.from({ length: CLIENTS }, () => Connection.open(service.url)));
  const measured = async (path, bodyOf) => {
    // Histories stay short: each turn has sessions of its own, and many of them.
    const requests = await Promise.all(
      connections.map(async (connection) => {
        const made = [];
        for (let n = 0; n < SESSIONS_EACH; n += 1) {
          const { id } = await ask(connection, 'POST', '/v1/sessions', {});
          made.push(request('POST', path(id), bodyOf(id)));
        }
        return made;
      }),
    );
    let sent = 0;
    return rate(CLIENTS, seconds, async (worker) => {
      const { status, body } = await connections[worker].send(requests[worker][(sent += 1) % SESSIONS_EACH]);
      if (status !== 200) throw new Error(`${status} ${body}`);
    });
  };
  const rates = await sideBySide(rounds, {
    responses: () =>
      measured(
        () => '/openai/v1/responses',
        (id) => ({ conversation: id, input: 'Hello' }),
      ),
    generate: () =>
      measured(
        (id) => `/v1/sessions/${id}/generate`,
        () => ({ message: 'Hello' }),
      ),
  });
  for (const connection of connections) connection.close();
  return {
    name: `responses beside generate, ${CLIENTS} clients`,
    ours: `${median(rates.responses).toFixed(0)}/s`,
    other: `${median(rates.generate).toFixed(0)}/s`,
    ratio: ratio(rates.responses, rates.generate),
    spread: spread(rates.responses),
    atLeast: TARGETS.responses,
  };
}
