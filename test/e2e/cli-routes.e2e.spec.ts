import { colloquy, startColloquy } from '../support/colloquy.js';
import { createWorld, type Node, say, type World } from './fixture.js';

let world: World;
let node: Node;
let env: Record<string, string>;
beforeAll(async () => {
  world = await createWorld();
  node = await world.node();
  env = { COLLOQUY_URL: node.api.url };
  await node.api.post('/v1/sessions', { id: 'a' });
  for (let index = 0; index < 3; index += 1) await say(node.api, 'a', `text ${index}`);
});
afterAll(() => world.end());

const rows = (out: string): Record<string, unknown>[] =>
  out
    .split('\n')
    .filter(Boolean)
    .map((line) => JSON.parse(line) as Record<string, unknown>);

describe('the command line and a service', () => {
  it('given events, when they are listed, then filters and limit apply', async () => {
    const all = await colloquy(['events', '--session', 'a'], { env });
    expect(rows(all.out).map(({ version }) => version)).toEqual([1, 2, 3, 4]);
    const some = await colloquy(['events', '--type', 'MessageAppended', '--limit', '2'], { env });
    expect(rows(some.out).map(({ version }) => version)).toEqual([2, 3]);
    expect((await colloquy(['events', '--type', 'Nonsense'], { env })).code).toBe(1);
  });

  it('given a running tail, when events are appended, then it prints them', async () => {
    const tail = startColloquy(['tail', '--session', 'a', '--limit', '2'], { env });
    // The tail begins at some time after its process was started, so messages are appended until it prints one.
    while (tail.child.exitCode === null) await say(node.api, 'a', 'more');
    const { code, out } = await tail.ended;
    expect(code).toBe(0);
    const [first, second] = rows(out).map(({ version }) => Number(version));
    expect(first).toBeGreaterThan(4);
    expect(second).toBe((first ?? 0) + 1);
  });

  it('given messages, when a text is searched, then those that contain it are listed, at most as many as asked for', async () => {
    const found = rows((await colloquy(['search', 'TEXT 1'], { env })).out);
    expect(found).toMatchObject([{ sessionId: 'a', version: 3, role: 'user', text: 'text 1' }]);
    expect(rows((await colloquy(['search', 'ext', '--limit', '2'], { env })).out)).toHaveLength(2);
    expect(await colloquy(['search', ' '], { env })).toMatchObject({ code: 1, out: '' });
  });

  it('given a session, when it is forked at a version, then the new one has the history up to there', async () => {
    const forked = await colloquy(['fork', 'a', '--at', '2', '--id', 'b'], { env });
    expect(rows(forked.out)).toMatchObject([{ id: 'b', messageCount: 1 }]);
    expect(rows((await colloquy(['history', 'b'], { env })).out)).toMatchObject([{ content: 'text 0' }]);
    expect(await colloquy(['fork', 'none'], { env })).toMatchObject({ code: 1, out: '' });
  });

  it('given read models, when they are listed, rebuilt, verified and pruned, then verification succeeds until a row is damaged', async () => {
    const listed = rows((await colloquy(['projections'], { env })).out);
    expect(listed).toContainEqual(
      expect.objectContaining({ name: 'history', status: 'live', rebuild: null }),
    );
    const rebuilt = await colloquy(['rebuild', 'history'], { env });
    expect({ code: rebuilt.code, rows: rows(rebuilt.out) }).toMatchObject({
      code: 0,
      rows: [{ name: 'history', status: 'live', rebuild: null }],
    });
    const verified = await colloquy(['verify'], { env });
    expect(verified.code).toBe(0);
    expect(rows(verified.out)).toHaveLength(listed.length);
    expect((await colloquy(['prune'], { env })).code).toBe(0);
    expect(await colloquy(['parked'], { env })).toMatchObject({ code: 0, out: '' });
    expect((await colloquy(['parked', 'retry', 'history', 'default', 'a'], { env })).code).toBe(1);
    expect((await colloquy(['rebuild', 'none'], { env })).code).toBe(1);

    const usage = String(listed.find(({ name }) => name === 'usage')?.['table']);
    await world.database.query(
      `insert into ${usage} (tenant, session_id, model, day, generations, input_tokens, output_tokens,
                             cached_tokens, reasoning_tokens) values ('default', 'a', 'm', '2026-01-01', 1, 1, 1, 1, 1)`,
    );
    const differs = await colloquy(['verify', 'usage'], { env });
    expect(differs.code).toBe(1);
    expect(rows(differs.out)).toMatchObject([
      { ok: false, firstDifference: { tenant: 'default', sessionId: 'a' } },
    ]);
  });
});
