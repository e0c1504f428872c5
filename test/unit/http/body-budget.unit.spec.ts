import { Agent, type ClientRequest, request } from 'node:http';
import type { NestFastifyApplication } from '@nestjs/platform-fastify';
import { startApp } from './fixture.js';

const MIB = 1024 * 1024;

/** A request whose body the test sends piece by piece. */
interface Sending {
  readonly raw: ClientRequest;
  readonly answer: Promise<{ status: number; code: unknown; retryAfter: unknown }>;
}

describe('the bodies that are held at the same time', () => {
  let app: NestFastifyApplication;
  let url: string;
  let agent: Agent;

  beforeEach(async () => {
    app = await startApp();
    await app.listen(0, '127.0.0.1');
    url = await app.getUrl();
    agent = new Agent({ keepAlive: true });
  });
  afterEach(async () => {
    agent.destroy();
    await app.close();
  });

  const send = (tenant: string, length?: number): Sending => {
    const raw = request(`${url}/v1/notes/a/lines`, {
      agent,
      method: 'POST',
      headers: {
        'content-type': 'application/json',
        'colloquy-tenant': tenant,
        ...(length === undefined ? { 'transfer-encoding': 'chunked' } : { 'content-length': String(length) }),
      },
    });
    const answer = new Promise<{ status: number; code: unknown; retryAfter: unknown }>((resolve, reject) => {
      raw.on('error', reject).on('response', (response) => {
        let text = '';
        response.setEncoding('utf8').on('data', (piece: string) => (text += piece));
        response.on('end', () => {
          const { code } = JSON.parse(text) as { code?: unknown };
          resolve({ status: response.statusCode ?? 0, code, retryAfter: response.headers['retry-after'] });
        });
      });
    });
    answer.catch(() => undefined);
    raw.flushHeaders();
    return { raw, answer };
  };
  const whole = JSON.stringify({ role: 'user', content: 'x'.repeat(MIB - 100) });
  const [begin, end] = [whole.slice(0, -10), whole.slice(-10)];
  const refused = { status: 503, code: 'overloaded', retryAfter: '1' };
  /** Resolves when the server has answered so many of them. */
  const answered = (sendings: readonly Sending[], count: number) =>
    new Promise<void>((resolve) => {
      let left = count;
      for (const { answer } of sendings) {
        answer.then(
          () => {
            left -= 1;
            if (left === 0) resolve();
          },
          () => undefined,
        );
      }
    });
  const finish = async (sendings: readonly Sending[]): Promise<number[]> => {
    for (const { raw } of sendings) raw.end(end);
    return (await Promise.all(sendings.map(({ answer }) => answer))).map(({ status }) => status);
  };

  it('given bodies that fill the budget, when more are announced, then these are overloaded before they are sent, and those of another tenant are taken', async () => {
    const sendings = Array.from({ length: 80 }, () => send('flood', whole.length));
    await answered(sendings, 80 - 65);

    const other = send('other', whole.length);
    other.raw.end(whole);
    expect((await other.answer).status).toBe(201);

    for (const { raw } of sendings) raw.write(begin);
    const statuses = await finish(sendings);
    // The last one that is taken in may pass the budget: all bodies are a little smaller than 1 MiB.
    expect(statuses.filter((status) => status === 201)).toHaveLength(65);
    expect(statuses.filter((status) => status === 503)).toHaveLength(15);
    // What was held is free again.
    const again = send('flood', whole.length);
    again.raw.end(whole);
    expect((await again.answer).status).toBe(201);
  });

  it('given bodies that fill the budget, when their clients leave, then there is room again', async () => {
    const sendings = Array.from({ length: 66 }, () => send('flood', whole.length));
    await answered(sendings, 1);
    const late = send('flood', whole.length);
    expect(await late.answer).toEqual(refused);

    for (const { raw } of sendings) raw.destroy();
    let status = 503;
    for (let tries = 0; status === 503 && tries < 200; tries += 1) {
      await new Promise((resolve) => setTimeout(resolve, 10));
      const again = send('flood', whole.length);
      again.raw.end(whole);
      ({ status } = await again.answer);
    }
    expect(status).toBe(201);
  });

  it('given many small chunked bodies, when they are open at the same time, then each counts as what has arrived of it', async () => {
    const sendings = Array.from({ length: 200 }, () => send('acme'));
    const small = JSON.stringify({ role: 'user', content: 'hi' });
    for (const { raw } of sendings) raw.write(small.slice(0, 5));
    await new Promise((resolve) => setTimeout(resolve, 200));
    for (const { raw } of sendings) raw.end(small.slice(5));
    const answers = await Promise.all(sendings.map(({ answer }) => answer));
    expect(new Set(answers.map(({ status }) => status))).toEqual(new Set([201]));
  });

  it('given chunked bodies that outgrow the budget, when they arrive, then the surplus is overloaded, and the connections serve on', async () => {
    const sendings = Array.from({ length: 100 }, () => send('flood'));
    for (const { raw } of sendings) raw.write(begin);
    await answered(sendings, 100 - 66);
    const statuses = await finish(sendings);
    expect(new Set(statuses)).toEqual(new Set([201, 503]));
    expect(statuses.filter((status) => status === 201).length).toBeGreaterThan(50);

    const again = send('flood');
    again.raw.end(whole);
    expect((await again.answer).status).toBe(201);
  });

  it('given a body for each of very many tenants, when they arrive together, then all of them have a bound as well', async () => {
    const sendings = Array.from({ length: 300 }, (_, index) => send(`t${index}`, whole.length));
    await answered(sendings, 300 - 257);
    for (const { raw } of sendings) raw.destroy();
    const answers = await Promise.allSettled(sendings.map(({ answer }) => answer));
    const values = answers.flatMap((one) => (one.status === 'fulfilled' ? [one.value] : []));
    expect(values.length).toBeGreaterThanOrEqual(43);
    expect(values[0]).toEqual(refused);
  });
});
