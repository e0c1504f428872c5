import { gunzipSync, gzipSync } from 'node:zlib';
import { request } from 'node:http';
import { type Api } from '../support/http.js';
import { createWorld, type World } from './fixture.js';

/*
 * The files of the console as they are served. What the page does with them is tested in a browser, in the other files.
 */

const MOST_BYTES = 250_000;

let world: World;
let api: Api;
beforeAll(async () => {
  world = await createWorld();
  // A key is needed for the API, and none for the page.
  ({ api } = await world.node({ COLLOQUY_API_KEYS: 'ops:*:key-of-ops' }));
});
afterAll(() => world.end());

/** The addresses that the page loads. */
async function assets(): Promise<string[]> {
  const { text } = await api.get('/console');
  return [...text.matchAll(/(?:src|href)="([^"]+)"/g)].flatMap(([, path]) => path ?? []);
}

/** The bytes as they are on their way; `fetch` unpacks them. */
const sent = (path: string): Promise<{ headers: Record<string, unknown>; body: Buffer }> =>
  new Promise((resolve, reject) => {
    request(api.url + path, { headers: { 'accept-encoding': 'gzip' }, agent: false }, (response) => {
      const chunks: Buffer[] = [];
      response.on('data', (chunk: Buffer) => chunks.push(chunk));
      response.once('end', () => {
        resolve({ headers: response.headers, body: Buffer.concat(chunks) });
      });
    })
      .once('error', reject)
      .end();
  });

describe('the page at /console', () => {
  it('given nobody has signed in, when it is asked for, then it is there, under a policy without exceptions', async () => {
    for (const path of ['/console', '/console/']) {
      const { status, headers, text } = await api.get(path);
      expect(status).toBe(200);
      expect(headers.get('content-type')).toBe('text/html; charset=utf-8');
      expect(headers.get('cache-control')).toBe('no-cache');
      const policy = headers.get('content-security-policy') ?? '';
      expect(policy).toMatch(/^default-src 'none'; /);
      expect(policy).not.toMatch(/unsafe|https?:|\*/);
      expect(headers.get('x-frame-options')).toBe('DENY');
      // What the policy would refuse is not there.
      expect(text).not.toMatch(/<style|style=|<script(?![^>]* src=)|onclick|https?:/);
    }
    expect((await api.get('/v1/sessions')).status).toBe(401);
  });

  it('given its files, when they are asked for, then they may be kept for ever, since their names change with them', async () => {
    const paths = await assets();
    expect(paths.length).toBeGreaterThanOrEqual(3);
    for (const path of paths) {
      expect(path).toMatch(/^\/console\/assets\/[\w-]+-[\w-]{8}\.(js|css|svg)$/);
      const { status, headers } = await api.get(path);
      expect({ path, status }).toEqual({ path, status: 200 });
      expect(headers.get('cache-control')).toBe('public, max-age=31536000, immutable');
      const { headers: zipped, body } = await sent(path);
      expect(zipped).toMatchObject({ 'content-encoding': 'gzip', vary: 'Accept-Encoding' });
      expect(gunzipSync(body).toString()).toBe((await api.get(path)).text);
    }
  });

  it('given all that it loads, when it is compressed, then it is less than 250 kB', async () => {
    let bytes = 0;
    for (const path of ['/console', ...(await assets())])
      bytes += gzipSync((await api.get(path)).text, { level: 9 }).length;
    process.stdout.write(`the console is ${bytes} bytes compressed\n`);
    expect(bytes).toBeLessThan(MOST_BYTES);
  });

  it.each([
    '/console/assets/index-00000000.js',
    '/console/assets/..%2Findex.html',
    '/console/assets/..%2f..%2f..%2fmain.js',
  ])('given %s, when it is asked for, then there is no such file', async (path) => {
    const { status, body } = await api.get(path);
    expect({ status, code: body['code'] }).toEqual({ status: 404, code: 'not-found' });
  });
});
