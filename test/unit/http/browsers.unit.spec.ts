import { type NestFastifyApplication } from '@nestjs/platform-fastify';
import { startApp } from './fixture.js';

const APP = 'https://app.example.com';
const KEYS = {
  mode: 'api-key' as const,
  keys: [{ name: 'app', tenant: 'acme', sha256: '0'.repeat(64) }],
};

describe('headers of answers', () => {
  let app: NestFastifyApplication;
  afterEach(() => app.close());

  it.each([
    ['an answer', '/v1/notes/1'],
    ['a path that leads nowhere', '/nothing'],
    ['an error', '/v1/fail/plain'],
  ])('given %s, when a browser gets it, then it takes it for no page, script or frame', async (_, url) => {
    app = await startApp();
    const { headers } = await app.inject({ url });
    expect(headers).toMatchObject({
      'x-content-type-options': 'nosniff',
      'content-security-policy': "default-src 'none';frame-ancestors 'none'",
      'x-frame-options': 'DENY',
      'referrer-policy': 'no-referrer',
      'cross-origin-resource-policy': 'same-origin',
      'strict-transport-security': expect.stringContaining('max-age=') as string,
    });
    expect(headers['access-control-allow-origin']).toBeUndefined();
    expect(headers['vary']).toBeUndefined();
  });

  it('given the page of the documents, when a browser gets it, then its own policy holds', async () => {
    app = await startApp();
    const { headers } = await app.inject({ url: '/docs' });
    expect(headers['content-security-policy']).toContain("default-src 'self'");
  });
});

describe('pages of other origins', () => {
  let app: NestFastifyApplication;
  afterEach(() => app.close());
  const preflight = (origin: string) =>
    app.inject({
      method: 'OPTIONS',
      url: '/v1/notes/1',
      headers: { origin, 'access-control-request-method': 'PATCH' },
    });

  it('given no origins in the settings, when a page asks beforehand, then nothing is allowed', async () => {
    app = await startApp({ auth: KEYS });
    const { statusCode, headers } = await preflight(APP);
    expect([statusCode, headers['access-control-allow-origin']]).toEqual([401, undefined]);
  });

  it('given its origin in the settings, when a page asks, then the answer is its, with a key as for everybody', async () => {
    app = await startApp({ auth: KEYS, corsOrigins: [APP] });
    const asked = await preflight(APP);
    expect(asked.statusCode).toBe(204);
    expect(asked.headers).toMatchObject({
      'access-control-allow-origin': APP,
      'access-control-allow-methods': expect.stringContaining('PATCH') as string,
      'access-control-allow-headers': expect.stringContaining('authorization') as string,
      vary: 'Origin',
    });
    expect(asked.headers).not.toHaveProperty('access-control-allow-credentials');
    const answer = await app.inject({ url: '/v1/notes/1', headers: { origin: APP } });
    expect(answer.statusCode).toBe(401);
    expect(answer.headers['access-control-allow-origin']).toBe(APP);
    expect(answer.headers['access-control-expose-headers']).toContain('etag');
  });

  it.each(['https://evil.example', 'https://app.example.com.evil.example', 'http://app.example.com', 'null'])(
    'given other origins in the settings, when a page of %s asks, then nothing is allowed',
    async (origin) => {
      app = await startApp({ auth: KEYS, corsOrigins: [APP] });
      const { statusCode, headers } = await preflight(origin);
      expect([statusCode, headers['access-control-allow-origin'], headers['vary']]).toEqual([
        401,
        undefined,
        'Origin',
      ]);
    },
  );
});
