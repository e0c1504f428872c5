import { type RunningService } from '../support/process.js';
import { colloquy } from '../support/colloquy.js';
import { eventually } from '../support/http.js';
import { createWorld, type World } from './fixture.js';

let world: World;
beforeAll(async () => {
  world = await createWorld();
});
afterAll(() => world.end());

interface NodeAnswer {
  readonly id: string;
  readonly pid: number;
  readonly status: string;
  readonly isAnswering: boolean;
  readonly lanes: Readonly<Record<string, readonly number[]>>;
}

it('given two nodes, when one is killed, then the other lists it as away and has all lanes; one that is stopped is on the list no longer', async () => {
  const [one, two] = [await world.node(), await world.node()];
  const listed = async (): Promise<readonly NodeAnswer[]> =>
    (await one.api.get<{ data: NodeAnswer[] }>('/v1/admin/nodes')).body.data;
  const sweeps = (nodes: readonly NodeAnswer[], { pid }: Pick<RunningService, 'pid'>) =>
    nodes.find((node) => node.pid === pid)?.lanes['sweeper']?.length ?? 0;
  await eventually(async () => {
    const nodes = await listed();
    return [one, two].every(({ service }) => sweeps(nodes, service) === 8);
  });
  expect((await listed()).map(({ pid, isAnswering, status }) => [pid, isAnswering, status])).toEqual([
    [one.service.pid, true, 'ok'],
    [two.service.pid, false, 'ok'],
  ]);

  await two.service.kill9();
  await eventually(async () => sweeps(await listed(), one.service) === 16, 20_000);
  expect((await listed()).map(({ pid, status }) => [pid, status])).toEqual([
    [one.service.pid, 'ok'],
    [two.service.pid, 'away'],
  ]);
  const { out, code } = await colloquy(['nodes'], { env: { COLLOQUY_URL: one.service.url } });
  expect(code).toBe(0);
  expect(
    out
      .trim()
      .split('\n')
      .map((line) => (JSON.parse(line) as NodeAnswer).status),
  ).toEqual(['ok', 'away']);

  const three = await world.node();
  expect((await listed()).map(({ pid }) => pid)).toContain(three.service.pid);
  await three.service.stop();
  expect((await listed()).map(({ pid }) => pid)).not.toContain(three.service.pid);
});
