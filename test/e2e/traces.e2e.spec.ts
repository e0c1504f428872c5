import { randomBytes, randomUUID } from 'node:crypto';
import { consume, memoryPlaces } from '../../src/consumer.js';
import { type Api, eventually } from '../support/http.js';
import { describeWithKafka } from '../support/kafka.js';
import { type CollectedSpan, startTraceCollector, type TraceCollector } from '../support/trace-collector.js';
import { createWorld, logged, type World } from './fixture.js';

let world: World;
let collector: TraceCollector;
beforeAll(async () => {
  world = await createWorld();
  collector = await startTraceCollector();
});
afterAll(async () => {
  await world.end();
  await collector.close();
});

const traced = () => ({ OTEL_EXPORTER_OTLP_ENDPOINT: collector.url, OTEL_BSP_SCHEDULE_DELAY: '100' });
const newTrace = (isSampled = true) => {
  const traceId = randomBytes(16).toString('hex');
  return { traceId, traceparent: `00-${traceId}-${randomBytes(8).toString('hex')}-0${isSampled ? 1 : 0}` };
};
const spansOf = (traceId: string): CollectedSpan[] =>
  collector.spans.filter((span) => span.traceId === traceId);
/** Waits until the trace has spans of these names, and returns them by name. */
const arrived = (traceId: string, names: readonly (string | RegExp)[]): Promise<CollectedSpan[]> =>
  eventually(() => {
    const spans = spansOf(traceId);
    const found = names.map((name) =>
      spans.find((span) => (typeof name === 'string' ? span.name === name : name.test(span.name))),
    );
    return Promise.resolve(found.every((span) => span !== undefined) && found);
  }, 30_000);

describe('traces', () => {
  let api: Api;
  beforeAll(async () => {
    ({ api } = await world.node(traced()));
  });

  it('given the trace of a caller, when a turn is taken, then request, decisions, appends, model and read models are in it, one below the other', async () => {
    const { traceId, traceparent } = newTrace();
    const { status, headers } = await api.post(
      '/v1/chat',
      { message: 'hello', sessionId: 'traced' },
      { traceparent },
    );
    expect(status).toBe(200);
    const [request, ...others] = await arrived(traceId, [
      'POST /v1/chat',
      'decide StartGeneration',
      'append',
      /^chat /,
      'decide CompleteGeneration',
      /^project sessions_v/,
      /^project history_v/,
    ]);
    expect(request?.parentSpanId).toBe(traceparent.split('-')[2]);
    for (const { parentSpanId } of others) expect(parentSpanId).toBe(request?.spanId);
    // Each event leads to the trace.
    expect(headers.get('x-correlation-id')).toBe(`00-${traceId}-${request?.spanId}-01`);
    const correlated = await world.database.query<{ correlation_id: string }>(
      `select distinct correlation_id from event where stream_id = 'traced'`,
    );
    expect(correlated).toEqual([{ correlation_id: headers.get('x-correlation-id') }]);
  });

  it('given a correlation id of the client, when it appends, then it stays, and the spans are in the trace all the same', async () => {
    const { traceId, traceparent } = newTrace();
    const named = { traceparent, 'x-correlation-id': 'order-7' };
    const { headers } = await api.post('/v1/sessions', { id: 'named' }, named);
    expect(headers.get('x-correlation-id')).toBe('order-7');
    await arrived(traceId, ['POST /v1/sessions', 'append']);
  });

  it('given a trace that nobody wants, when a request comes, then it makes no spans', async () => {
    const { traceId, traceparent } = newTrace(false);
    const { headers } = await api.post('/v1/sessions', { id: 'unwanted' }, { traceparent });
    // It goes on, so that whoever comes later knows that nobody wants it.
    expect(headers.get('x-correlation-id')).toMatch(new RegExp(`^00-${traceId}-[0-9a-f]{16}-00$`));
    const wanted = newTrace();
    await api.post('/v1/sessions', { id: 'wanted' }, { traceparent: wanted.traceparent });
    await arrived(wanted.traceId, ['POST /v1/sessions']);
    expect(spansOf(traceId)).toEqual([]);
  });

  it('given no collector, when a request comes, then correlation ids are as they were', async () => {
    const node = await world.node();
    const { headers } = await node.api.post(
      '/v1/sessions',
      { id: 'plain' },
      { traceparent: newTrace().traceparent },
    );
    expect(headers.get('x-correlation-id')).toMatch(/^[0-9a-f]{8}-/);
    expect(await logged(world.database, 'plain')).toHaveLength(1);
  });

  it('given a collector that is away, when requests come, then they are answered, and the service stops', async () => {
    const node = await world.node({ ...traced(), OTEL_EXPORTER_OTLP_ENDPOINT: 'http://127.0.0.1:9' });
    expect((await node.api.post('/v1/sessions', {})).status).toBe(201);
    await node.service.stop();
  });
});

describeWithKafka('traces through Kafka', (brokers) => {
  it('given the trace of a caller, when its event is published and consumed, then both are in it', async () => {
    const topic = `traces-${randomUUID()}`;
    const cwd = await world.folder();
    const { writeFile } = await import('node:fs/promises');
    await writeFile(`${cwd}/colloquy.yml`, `kafka: { topic: ${topic}, partitions: 1, replication: 1 }\n`);
    const { api } = await world.node({ ...traced(), KAFKA_BROKERS: brokers }, cwd);
    const { traceId, traceparent } = newTrace();
    const { headers } = await api.post('/v1/sessions', { id: 'published' }, { traceparent });
    await arrived(traceId, ['POST /v1/sessions', `publish ${topic}`]);
    const causes: string[] = [];
    const consumer = consume({
      kafka: { brokers: brokers.split(',') },
      groupId: randomUUID(),
      topic,
      places: memoryPlaces(),
      maxWaitMs: 100,
      apply: (events) => {
        causes.push(
          ...events.filter(({ sessionId }) => sessionId === 'published').map((event) => event.correlationId),
        );
        return Promise.resolve();
      },
    });
    try {
      await eventually(() => Promise.resolve(causes.length > 0), 20_000);
      expect(causes[0]).toBe(headers.get('x-correlation-id'));
      expect(causes[0]).toContain(traceId);
    } finally {
      await consumer.stop();
    }
  });
});
