import { type Api, apiOf } from '../support/http.js';
import { createWorld, type World } from './fixture.js';

interface Document {
  readonly openapi: string;
  readonly paths: Record<
    string,
    Record<
      string,
      { responses: Record<string, { content?: object }>; requestBody?: object; security?: object[] }
    >
  >;
  readonly components: { readonly schemas: Record<string, unknown> };
}

describe('health and documents', () => {
  let world: World;
  let api: Api;
  beforeAll(async () => {
    world = await createWorld();
    ({ api } = await world.node());
  });
  afterAll(() => world.end());

  it('given a running service, when its health is requested, then it is alive and ready', async () => {
    const live = await api.get('/health/live');
    expect([live.status, live.body]).toEqual([200, { status: 'ok' }]);
    const ready = await api.get<{ status: string; checks: Record<string, { status: string }> }>(
      '/health/ready',
    );
    expect(ready.status).toBe(200);
    expect(ready.body).toMatchObject({ status: 'ok', checks: { database: { status: 'ok' } } });
    const projections = Object.keys(ready.body.checks).filter((check) => check.startsWith('projection '));
    expect(projections.map((name) => name.replace(/_v\d+$/, '')).sort()).toEqual([
      'projection generations',
      'projection history',
      'projection search',
      'projection sessions',
      'projection usage',
    ]);
    expect((await api.send('HEAD', '/health/live', undefined)).status).toBe(200);
  });

  it('given the API, when its OpenAPI document is read, then it holds every route with the answers that the route gives', async () => {
    const { status, body, headers } = await api.get<Document>('/openapi.json');
    expect(status).toBe(200);
    expect(headers.get('content-type')).toContain('application/json');
    expect(body.openapi).toBe('3.1.0');
    const expected: Record<string, string[]> = {
      'post /v1/sessions': ['200', '201', '400', '409', '412', '413', '415', '429', '503'],
      'get /v1/sessions': ['200', '400', '503'],
      'get /v1/sessions/{id}': ['200', '400', '404', '503'],
      'patch /v1/sessions/{id}': ['200', '400', '404', '409', '412', '413', '415', '503'],
      'delete /v1/sessions/{id}': ['204', '400', '404', '409', '412', '503'],
      'post /v1/sessions/{id}/reset': ['200', '404', '409', '412', '503'],
      'post /v1/sessions/{id}/messages': ['201', '400', '404', '409', '412', '413', '415', '429', '503'],
      'get /v1/sessions/{id}/messages': ['200', '400', '404', '410', '503'],
      'get /v1/sessions/{id}/events': ['200', '400', '404', '503'],
      'get /v1/events': ['200', '400', '503'],
      'get /v1/search': ['200', '400', '503'],
      'get /v1/sessions/{id}/state': ['200', '400', '404', '503'],
      'get /v1/sessions/{id}/diff': ['200', '400', '404', '503'],
      'get /v1/sessions/{id}/forks': ['200', '400', '404', '503'],
      'post /v1/sessions/{id}/fork': ['200', '201', '400', '404', '409', '412', '413', '415', '429', '503'],
      'get /v1/sessions/{id}/usage': ['200', '404', '503'],
      'post /v1/sessions/{id}/generate': ['200', '400', '404', '409', '412', '429', '502', '503', '504'],
      'post /v1/chat': ['200', '400', '409', '412', '429', '502', '503', '504'],
      'get /health/live': ['200'],
      'get /health/ready': ['200', '503'],
    };
    for (const [route, statuses] of Object.entries(expected)) {
      const [method = '', path = ''] = route.split(' ');
      const documented = Object.keys(body.paths[path]?.[method]?.responses ?? {});
      expect({ route, missing: statuses.filter((one) => !documented.includes(one)) }).toEqual({
        route,
        missing: [],
      });
    }
    for (const schema of ['Session', 'Message', 'Event', 'NewMessage', 'Generated', 'Problem']) {
      expect(body.components.schemas).toHaveProperty(schema);
    }
    // Every reference points to something in the document.
    const names = [...JSON.stringify(body).matchAll(/"#\/components\/(\w+)\/(\w+)"/g)];
    expect(names.length).toBeGreaterThan(20);
    for (const [, kind = '', name = ''] of names) expect(body).toHaveProperty(['components', kind, name]);
  });

  it('given streamed replies, when the document is read, then it describes their events, and the answer of a busy session', async () => {
    const { paths } = (await api.get<Document>('/openapi.json')).body;
    const json = 'application/json';
    for (const [method, path, types] of [
      ['post', '/v1/sessions/{id}/generate', [json, 'text/event-stream']],
      ['post', '/v1/chat', [json, 'text/event-stream']],
      ['get', '/v1/sessions/{id}/generations/{generationId}/stream', ['text/event-stream']],
    ] as const) {
      const content = paths[path]?.[method]?.responses['200']?.content ?? {};
      expect([path, Object.keys(content)]).toEqual([path, types]);
      const text = JSON.stringify(content);
      for (const event of [
        'generation.started',
        'message.delta',
        'tool.call',
        'message.completed',
        'generation.cancelled',
        'generation.failed',
      ]) {
        expect(text).toContain(`"event":{"const":"${event}"}`);
      }
    }
    const generate = paths['/v1/sessions/{id}/generate']?.['post'];
    expect(JSON.stringify(generate?.requestBody)).toContain('"onBusy":"queue"');
    expect(generate?.responses['409']?.content).toMatchObject({
      'application/problem+json': { examples: { 'session-busy': { value: { code: 'session-busy' } } } },
    });
  });

  it('given API keys, when the document is read, then it says that /v1 needs one', async () => {
    const node = await world.node({ COLLOQUY_API_KEYS: 'a:acme:k' });
    const { body } = await apiOf(node.api.url).get<Document>('/openapi.json');
    expect(body.paths['/v1/sessions']?.['get']?.security).toEqual([{ apiKey: [] }]);
    expect(body.paths['/health/live']?.['get']?.security).toBeUndefined();
  });

  it('given a browser, when it opens the page of the API, then everything that the page loads exists and comes from this service', async () => {
    const page = await api.get('/docs');
    expect(page.status).toBe(200);
    expect(page.headers.get('content-type')).toContain('text/html');
    expect(page.headers.get('content-security-policy')).toContain("default-src 'self'");
    const loaded = [...page.text.matchAll(/(?:src|href)="([^"]+)"/g)].map(([, url]) => url ?? '');
    expect(loaded.length).toBeGreaterThan(2);
    for (const url of loaded) {
      expect(url).toMatch(/^\/docs\//);
      const { status, text } = await api.get(url);
      expect(status).toBe(200);
      expect(text.length).toBeGreaterThan(50);
    }
  });
});
