import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { cp, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { promisify } from 'node:util';
import { describeWith, find } from '../support/programs.js';
import { apiOf, eventually, expectProblem } from '../support/http.js';
import { createWorld, say, type World } from './fixture.js';

const HOUR = 3_600_000;
const OPS = join(__dirname, '../../ops');

describe('metrics', () => {
  let world: World;
  beforeEach(async () => {
    world = await createWorld();
  });
  afterEach(() => world.end());

  /** The samples of a scrape, by their name and labels in the exposition format. */
  const samples = (text: string): Record<string, number> =>
    Object.fromEntries(
      text
        .split('\n')
        .filter((line) => line !== '' && !line.startsWith('#'))
        .map((line) => [line.slice(0, line.lastIndexOf(' ')), Number(line.slice(line.lastIndexOf(' ') + 1))]),
    );

  it('given sessions that were refused, swept and restored, when metrics are scraped, then they are counted', async () => {
    const { api } = await world.node({ MAX_SESSIONS: '2' });
    for (const id of ['a', 'b', 'c']) await api.post('/v1/sessions', { id });
    await world.database.setClock({ offsetMs: 2 * HOUR });
    expect((await api.get('/v1/sessions')).status).toBe(200);
    expect((await api.post('/v1/admin/sweep')).status).toBe(200);
    await say(api, 'a', 'back again');
    // Read models gather events for a moment.
    const { status, text, headers } = await eventually(async () => {
      const answer = await api.get('/metrics');
      return /^colloquy_projection_lag_events.* [1-9]/m.test(answer.text) ? undefined : answer;
    });
    expect([status, headers.get('content-type')]).toEqual([200, 'text/plain; version=0.0.4; charset=utf-8']);
    const found = samples(text);
    expect(found).toMatchObject({
      colloquy_sessions_rejected_total: 1,
      'colloquy_sessions_swept_total{reason="ttl"}': 2,
      'colloquy_sessions_swept_total{reason="cap"}': 0,
      colloquy_sessions_restored_total: 1,
      'colloquy_sessions_made_room_total{reason="evicted"}': 0,
    });
    // Both sessions had been due for an hour.
    expect(found['colloquy_sweep_lag_seconds']).toBeGreaterThan(3_500);
    expect(found['colloquy_sweep_lag_seconds']).toBeLessThan(3_700);
    expect(
      Object.entries(found).filter(([name]) => name.startsWith('colloquy_projection_lag_events')),
    ).toEqual([
      [expect.stringContaining('sessions'), 0],
      [expect.stringContaining('history'), 0],
      [expect.stringContaining('usage'), 0],
      [expect.stringContaining('search'), 0],
      [expect.stringContaining('generations'), 0],
    ]);
    // Nothing is published here, so there is no lag.
    expect(text).not.toMatch(/^colloquy_relay/m);
  });

  it('given work of every kind, when metrics are scraped, then histograms and counters of seconds show it', async () => {
    const { api } = await world.node();
    await api.post('/v1/chat', { message: 'Hello', sessionId: 'a' });
    await api.get('/v1/sessions/a');
    await api.get('/v1/nothing');
    // The service counts a request when its response is written completely, which may be a moment after the client has
    // it.
    const unmatched =
      'colloquy_http_request_duration_seconds_count{method="GET",route="unmatched",status="404"}';
    const found = await eventually(async () => {
      const seen = samples((await api.get('/metrics')).text);
      return seen[unmatched] === 1 && seen;
    });
    const value = (name: string) => found[name] ?? 0;
    expect(
      value('colloquy_http_request_duration_seconds_count{method="POST",route="/v1/chat",status="200"}'),
    ).toBe(1);
    // The appends are: the session with its first turn, the reply.
    expect(value('colloquy_append_outcomes_total{outcome="ok"}')).toBe(2);
    expect(value('colloquy_append_wait_seconds_count')).toBe(2);
    expect(value('colloquy_append_commit_seconds_count')).toBe(value('colloquy_append_batch_size_count'));
    expect(value('colloquy_model_call_seconds_count{model="echo",outcome="completed"}')).toBe(1);
    expect(value('colloquy_model_first_text_seconds_count{model="echo"}')).toBe(1);
    expect(value('colloquy_model_tokens_total{model="echo",kind="input"}')).toBe(1);
    expect(found).toMatchObject({
      'colloquy_pool_waiting{pool="log"}': 0,
      colloquy_process_resident_memory_bytes: expect.any(Number) as number,
      colloquy_nodejs_eventloop_lag_seconds: expect.any(Number) as number,
    });
    expect(
      Object.keys(found).filter((name) => name.startsWith('colloquy_projection_lag_seconds')),
    ).toHaveLength(5);
  });

  it('given API keys, when metrics or the state of the relay are requested, then only operators get them', async () => {
    const { service } = await world.node({ COLLOQUY_API_KEYS: 'ops:*:secret-ops,desk:acme:secret-desk' });
    const as = (key: string) => apiOf(service.url, { authorization: `Bearer ${key}` });
    for (const path of ['/metrics', '/v1/admin/relay']) {
      expect((await as('secret-ops').get(path)).status).toBe(200);
      expectProblem(await as('secret-desk').get(path), 403, 'forbidden');
      expectProblem(await apiOf(service.url).get(path), 401, 'unauthenticated');
    }
  });

  it('given the metrics of a service, when they are compared with the page on operations, then the page describes exactly these metrics', async () => {
    const { api } = await world.node();
    const { text } = await api.get('/metrics');
    const page = readFileSync(join(__dirname, '../../docs/operations.md'), 'utf8');

    const own = [...text.matchAll(/^# TYPE (colloquy_\w+) /gm)].map(([, name]) => name);
    const described = [...page.matchAll(/`(colloquy_\w+)`/g)].map(([, name]) => name);

    const isUsual = (name = '') => /^colloquy_(process|nodejs)_/.test(name);
    // The metrics of the relay exist only with brokers.
    const isOfRelay = (name = '') => name.startsWith('colloquy_relay_');
    expect(own.filter((name) => !isUsual(name)).sort()).toEqual(
      [...new Set(described)].filter((name) => !isOfRelay(name)).sort(),
    );
    expect(described.filter(isOfRelay)).toHaveLength(3);

    // Alerts and dashboard speak of nothing else, and each alert is explained.
    const names = new Set([...own, ...described.filter(isOfRelay)]);
    const alerts = readFileSync(join(OPS, 'alerts.yml'), 'utf8');
    for (const text of [alerts, readFileSync(join(OPS, 'dashboard.json'), 'utf8')]) {
      const used = [...text.matchAll(/colloquy_\w+/g)].map(([name]) =>
        name.replace(/_(bucket|count|sum)$/, ''),
      );
      expect(used.length).toBeGreaterThan(10);
      expect(used.filter((name) => !names.has(name))).toEqual([]);
    }
    for (const [, alert] of alerts.matchAll(/alert: (\w+)/g)) expect(page).toContain(`| ${alert} |`);
  });
});

describeWith('promtool', 'the rules for Prometheus', () => {
  it('given promtool, when it checks the alert rules and the configuration, then it finds nothing', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'colloquy-rules-'));
    try {
      for (const file of ['alerts.yml', 'prometheus.yml']) await cp(join(OPS, file), join(folder, file));
      await writeFile(join(folder, 'colloquy.key'), 'key');
      const promtool = find('promtool') ?? '';
      const { stdout } = await promisify(execFile)(promtool, ['check', 'rules', join(folder, 'alerts.yml')]);
      expect(stdout).toMatch(/SUCCESS: \d+ rules found/);
      await promisify(execFile)(promtool, ['check', 'config', join(folder, 'prometheus.yml')]);
    } finally {
      await rm(folder, { recursive: true });
    }
  });
});
