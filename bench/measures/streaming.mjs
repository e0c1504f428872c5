import { fileURLToPath } from 'node:url';
import { cpuSeconds, startPacedModel, startService } from '../support/process.mjs';
import { median, quantile, sleep } from '../support/stats.mjs';
import { Streamed } from '../support/streamed.mjs';
import { load, newSessions, post } from '../support/streams.mjs';

const PARALLEL = 200;
const TARGETS = { addedMs: 5, loss: 0.02, streamBytes: 64 * 1024 };

/**
 * Measures what Colloquy adds to a streamed reply: the same paced model is asked directly and through the service, in
 * turns.
 */
export async function streaming(server, { full }) {
  const model = await startPacedModel();
  const service = await startService(await server.database('streaming'), {
    env: { OPENAI_BASE_URL: `${model.url}/v1` },
    node: ['--expose-gc', '-r', fileURLToPath(new URL('../support/memory.cjs', import.meta.url))],
  });
  const bench = { model, service };
  try {
    // The parallel streams come first, because code that runs for the first time is slow, and a single stream on a
    // fresh service would measure just that.
    return [
      ...(await compare(bench, {
        parallel: PARALLEL,
        rounds: full ? 5 : 2,
        seconds: full ? 20 : 8,
        tokens: 250,
      })),
      ...(await compare(bench, { parallel: 1, rounds: full ? 200 : 60, seconds: 0.4, tokens: 10 })),
      await memory(service),
    ];
  } finally {
    await service.stop();
    await model.stop();
  }
}

async function compare({ model, service }, { parallel, rounds, seconds, tokens }) {
  const message = `Say ${tokens} tokens.`;
  let sessions;
  const direct = (stream) =>
    stream.ask('/v1/chat/completions', {
      model: 'bench',
      stream: true,
      messages: [{ role: 'user', content: message }],
    });
  const through = (stream, n) => stream.ask(`/v1/sessions/${sessions[n]}/generate`, { message });
  const ways = {
    direct: { url: model.url, ask: direct, rounds: [] },
    service: { url: service.url, ask: through, rounds: [] },
  };
  let cpu = 0;
  for (let round = 0; round <= rounds; round += 1) {
    for (const name of round % 2 ? ['direct', 'service'] : ['service', 'direct']) {
      const way = ways[name];
      // Each round has sessions of its own, so that no history grows long.
      sessions = await newSessions(service, parallel);
      const before = cpuSeconds(service.pid);
      const result = await load(way, parallel, seconds, tokens);
      // The first round warms up.
      if (round === 0) continue;
      way.rounds.push(result);
      if (name === 'service') cpu += cpuSeconds(service.pid) - before;
    }
  }

  const name = parallel === 1 ? '1 stream' : `${parallel} streams`;
  const firsts = (way) => way.rounds.flatMap((round) => round.firsts);
  const [alone, ours] = [firsts(ways.direct), firsts(ways.service)];
  const added = median(ours) - median(alone);
  const ms = (values) => `${median(values).toFixed(1)} ms (p95 ${quantile(values, 0.95).toFixed(1)})`;
  const ofStream = (way) => median(way.rounds.flatMap((round) => round.paces));
  const ofAll = (way) => median(way.rounds.map((round) => round.rate));
  const loss = (what, unit) => {
    const lost = 1 - unit(ways.service) / unit(ways.direct);
    return {
      name: `${name}: tokens/s ${what}`,
      ours: `${unit(ways.service).toFixed(2)} (${(-100 * lost).toFixed(2)} %)`,
      other: `directly ${unit(ways.direct).toFixed(2)}`,
      target: '> -2 %',
      pass: lost < TARGETS.loss,
    };
  };
  const all = ways.service.rounds.reduce((sum, round) => sum + round.tokens, 0);
  return [
    {
      name: `${name}: first token`,
      ours: `${ms(ours)}: +${added.toFixed(1)}`,
      other: `directly ${ms(alone)}`,
      target: '< +5 ms',
      pass: added < TARGETS.addedMs,
    },
    loss('of a stream', ofStream),
    ...(parallel > 1 ? [loss('of all', ofAll)] : []),
    ...(parallel > 1 && Number.isFinite(cpu)
      ? [{ name: `${name}: processor time of a token`, ours: `${((cpu / all) * 1e6).toFixed(0)} µs` }]
      : []),
  ];
}

/**
 * Measures the memory that the open streams hold in the service, each after 250 tokens and with a client that reads.
 */
async function memory(service) {
  // The first round fills caches and pools, which stay.
  await (
    await openStreams(service)
  )();
  const before = await memoryOf(service);
  const close = await openStreams(service);
  const during = await memoryOf(service);
  await close();
  const [used, rss] = ['used', 'rss'].map((kind) => (during[kind] - before[kind]) / PARALLEL);
  return {
    name: 'memory of an open stream',
    ours: `${(used / 1024).toFixed(1)} KiB (RSS ${(rss / 1024).toFixed(1)} KiB)`,
    target: '< 64 KiB',
    pass: used < TARGETS.streamBytes,
  };
}

async function memoryOf(service) {
  const printed = service.printed(/memory (\d+) (\d+) /);
  process.kill(service.pid, 'SIGUSR2');
  const [, used, rss] = await printed;
  return { used: Number(used), rss: Number(rss) };
}

/** Opens streams and waits until each is in the middle of its text. Returns a function that ends them. */
async function openStreams(service) {
  const tokens = 250;
  const sessions = await newSessions(service, PARALLEL);
  const streams = await Promise.all(sessions.map(() => Streamed.open(service.url)));
  const asked = streams.map((stream, n) =>
    stream.ask(`/v1/sessions/${sessions[n]}/generate`, { message: `Say ${tokens} tokens, then hold.` }),
  );
  while (streams.some((stream) => stream.tokens < tokens)) await sleep(50);
  return async () => {
    await Promise.all(sessions.map((id) => post(service, `/v1/sessions/${id}/cancel`)));
    await Promise.all(asked);
  };
}
