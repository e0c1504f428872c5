import { execFile } from 'node:child_process';
import { createHash, randomUUID } from 'node:crypto';
import { copyFile, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { type Api, apiOf, eventually } from '../support/http.js';
import { describeWithKafka } from '../support/kafka.js';
import { masterKey } from '../support/master-keys.js';
import { forgetTrees, tamper } from '../support/tampering.js';
import { createWorld, user, type World } from './fixture.js';

const ROOT = join(__dirname, '../..');
const KEYED = { COLLOQUY_MASTER_KEY: masterKey('one') };

let world: World;
beforeEach(async () => {
  world = await createWorld();
});
afterEach(() => world.end());

interface Checkpoints {
  readonly log: string;
  readonly behind: number;
  readonly keys: readonly { verifier: string; retiredAt: string | null }[];
  readonly data: readonly { lane: number; size: number; note: string }[];
}
const checkpointsOf = async (api: Api): Promise<Checkpoints> =>
  (await api.get<Checkpoints>('/v1/checkpoints')).body;

/** Runs a program as a user would, and gives what it wrote and its exit code. */
async function run(
  program: string,
  args: readonly string[],
  env: Readonly<Record<string, string>> = {},
  cwd = ROOT,
): Promise<{ code: number; out: string; err: string }> {
  try {
    const options = { cwd, env: { PATH: process.env['PATH'] ?? '', ...env } };
    const { stdout, stderr } = await promisify(execFile)(process.execPath, [program, ...args], options);
    return { code: 0, out: stdout, err: stderr };
  } catch (error) {
    const { code, stdout, stderr } = error as { code: number; stdout: string; stderr: string };
    return { code, out: stdout, err: stderr };
  }
}
const colloquy = (args: readonly string[], env: Readonly<Record<string, string>> = {}, cwd?: string) =>
  run(join(ROOT, 'dist/cli/main.js'), args, { DATABASE_URL: world.database.url, ...KEYED, ...env }, cwd);

async function say(api: Api, session: string, count: number): Promise<void> {
  await api.post('/v1/sessions', { id: session });
  for (let n = 0; n < count; n += 1)
    await api.post(`/v1/sessions/${session}/messages`, user(`${session} ${n}`));
}

const sha256 = (...parts: readonly Buffer[]): Buffer =>
  createHash('sha256').update(Buffer.concat(parts)).digest();

/** The root that an audit path leads to, by the definition of the tree: RFC 6962, section 2.1.1. */
function rootOf(leaf: Buffer, index: number, size: number, path: readonly Buffer[]): Buffer {
  if (size === 1) return leaf;
  const sibling = path.at(-1) ?? Buffer.alloc(0);
  const rest = path.slice(0, -1);
  let k = 1;
  while (2 * k < size) k *= 2;
  return index < k
    ? sha256(Buffer.of(1), rootOf(leaf, index, k, rest), sibling)
    : sha256(Buffer.of(1), sibling, rootOf(leaf, index - k, size - k, rest));
}

it('given two nodes of which one is killed while it writes, when all is taken in, then every event has a proof that leads to what was signed, and each lane was signed by one at a time', async () => {
  const [one, two] = [await world.node(KEYED), await world.node(KEYED)];
  const writing = Promise.allSettled(
    ['a', 'b', 'c', 'd'].map((session, index) => say(index % 2 ? one.api : two.api, session, 12)),
  );
  await one.service.kill9();
  await writing;
  await say(two.api, 'after', 5);
  await eventually(async () => (await checkpointsOf(two.api)).behind === 0, 30_000);
  expect((await two.api.get('/metrics')).text).toMatch(/^colloquy_notary_lag_events\{lane="\d+"\} 0$/m);
  // An export signs what was not signed yet.
  expect((await colloquy(['export', '--proof'])).code).toBe(0);

  const { data, keys, log } = await checkpointsOf(two.api);
  expect(keys).toMatchObject([{ retiredAt: null }]);
  let proven = 0;
  for (const { lane, size, note } of data) {
    expect(note).toMatch(new RegExp(`^${log}/lane/${lane}\n${size}\n`));
    for (let position = 1; position <= size; position += 1) {
      const { body } = await two.api.get<{ leaf: string; path: string[]; tlogProof: string }>(
        `/v1/checkpoints/${lane}/inclusion?position=${position}&size=${size}`,
      );
      const path = body.path.map((hash) => Buffer.from(hash, 'base64'));
      const root = rootOf(sha256(Buffer.of(0), Buffer.from(body.leaf)), position - 1, size, path);
      expect(note.split('\n')[2]).toBe(root.toString('base64'));
      expect(JSON.parse(body.leaf)).toMatchObject({ lane, position });
      expect(body.tlogProof).toBe(
        `c2sp.org/tlog-proof@v1\nextra ${Buffer.from(body.leaf).toString('base64')}\nindex ${position - 1}\n` +
          `${body.path.map((hash) => `${hash}\n`).join('')}\n${note}`,
      );
      proven += 1;
    }
    const { body } = await two.api.get<{ path: string[] }>(`/v1/checkpoints/${lane}/consistency?from=1`);
    expect(body).toMatchObject({ lane, from: 1, size });
    expect((await two.api.get(`/v1/checkpoints/${lane}?size=${size}`)).body).toMatchObject({ note });
  }
  const [row] = await world.database.query<{ count: number }>('select count(*)::int from event');
  expect(proven).toBe(row?.count);
});

it('given an export with proofs and the public keys, when an auditor checks them with the one file alone, then it says so, and names what was changed', async () => {
  const { api } = await world.node(KEYED);
  await say(api, 'alice', 3);
  await say(api, 'bob', 3);
  await api.post('/v1/sessions/bob/erase', { reason: 'asked' });
  const folder = await world.folder();
  const at = (name: string): string => join(folder, name);
  await copyFile(join(ROOT, 'dist/proof/verify-export.js'), at('verify.js'));
  const file = at('export.jsonl');
  expect(await colloquy(['export', file, '--proof'])).toMatchObject({ code: 0 });
  const keys = await colloquy(['notary', '--public']);
  await writeFile(at('notary.pub'), `# the notary of this test\n${keys.out}`);

  // In a folder where there is nothing else.
  const checked = await run(at('verify.js'), ['export.jsonl', 'notary.pub'], {}, folder);
  expect(checked).toMatchObject({ code: 0, err: '' });
  expect(JSON.parse(checked.out)).toMatchObject({ sessions: 2, events: 9, erased: 4, findings: 0 });
  expect(await colloquy(['verify-export', file, '--key', at('notary.pub')])).toMatchObject({
    code: 0,
    out: '',
  });

  await writeFile(file, (await readFile(file, 'utf8')).replace('"alice 1"', '"alice 2"'));
  const changed = await run(at('verify.js'), ['export.jsonl', 'notary.pub'], {}, folder);
  expect(changed.code).toBe(1);
  expect(changed.out).toMatch(/changed: default\/alice\/3: the log did not have it/);
  const told = await colloquy(['verify-export', file, '--key', at('notary.pub')]);
  expect(told.code).toBe(1);
  expect(told.out).toContain('default/alice/3');

  const { text } = await api.get('/v1/sessions/bob/erasure');
  await writeFile(at('receipt.json'), text);
  expect(await colloquy(['verify-export', at('receipt.json'), '--key', at('notary.pub')])).toMatchObject({
    code: 0,
  });
  await writeFile(at('receipt.json'), text.replace('asked', 'never'));
  expect(await run(at('verify.js'), ['receipt.json', 'notary.pub'], {}, folder)).toMatchObject({
    code: 1,
    out: expect.stringContaining('it is not what was signed') as string,
  });
  expect(await colloquy(['verify-export', file])).toMatchObject({ code: 2, out: '' });
  expect(await colloquy(['export', '--proof', '--format', 'openai'])).toMatchObject({ code: 2, out: '' });
});

it('given a log that was tampered with, when it is audited, then the event is named and the exit code is 1; a new key signs after its rotation', async () => {
  const { api } = await world.node(KEYED);
  await say(api, 'alice', 3);
  await eventually(async () => (await checkpointsOf(api)).data.length > 0);
  expect(await colloquy(['audit-log'])).toMatchObject({ code: 0, out: '' });
  const rotated = (await colloquy(['notary', 'rotate'])).out.trim().split('\n');
  expect(
    rotated.map((line) => (JSON.parse(line) as { retiredAt: string | null }).retiredAt === null),
  ).toEqual([false, true]);
  await say(api, 'alice', 1);
  expect((await colloquy(['export', '--proof'])).code).toBe(0);
  expect(await colloquy(['audit-log'])).toMatchObject({ code: 0, out: '' });

  await tamper(
    world.database,
    `update event set actor = 'mallory' where stream_id = 'alice' and version = 2`,
  );
  const found = await colloquy(['audit-log']);
  expect(found.code).toBe(1);
  expect(JSON.parse(found.out.split('\n')[0] ?? '')).toMatchObject({
    kind: 'changed',
    event: 'default/alice/2',
  });
});

it('given no such thing, or no right to it, when checkpoints are asked for, then the answer is 404 or 403', async () => {
  const { api } = await world.node({ ...KEYED, COLLOQUY_API_KEYS: 'op:*:operator-key,one:acme:tenant-key' });
  const operator = apiOf(api.url, { authorization: 'Bearer operator-key' });
  const tenant = apiOf(api.url, { authorization: 'Bearer tenant-key' });
  const paths = ['', '/3', '/3/inclusion?position=1', '/3/consistency?from=1'].map(
    (path) => `/v1/checkpoints${path}`,
  );
  for (const path of paths) expect([path, (await tenant.get(path)).status]).toEqual([path, 403]);
  expect((await operator.get(paths[0] ?? '')).body).toMatchObject({ data: [], behind: 0 });
  for (const path of paths.slice(1)) expect([path, (await operator.get(path)).status]).toEqual([path, 404]);
  for (const path of ['/99', '/3/consistency?from=2&size=1', '/3?size=7'])
    expect((await operator.get(`/v1/checkpoints${path}`)).status).toBe(404);
  for (const path of ['/x', '/3/inclusion', '/3/inclusion?position=0', '/3/consistency?from=-1'])
    expect((await operator.get(`/v1/checkpoints${path}`)).status).toBe(400);
});

it('given a service without a master key, when it is used, then trees grow, and nothing is signed', async () => {
  const { api } = await world.node();
  await say(api, 'alice', 3);
  await eventually(async () => {
    const [row] = await world.database.query<{ size: number }>(
      'select sum(size)::int as size from merkle_lane',
    );
    return row?.size === 4;
  });
  expect(await checkpointsOf(api)).toMatchObject({ keys: [], data: [], behind: 0 });
  const refused = await colloquy(['export', '--proof'], { COLLOQUY_MASTER_KEY: '' });
  expect(refused).toMatchObject({ code: 1, out: '' });
  expect(refused.err).toContain('COLLOQUY_MASTER_KEY');
});

describeWithKafka('checkpoints on Kafka', (brokers) => {
  it('given a log that its owner rewrote whole and had signed anew, when it is audited with what was published, then it is found', async () => {
    const folder = await world.folder();
    const topic = `proof-${randomUUID()}`;
    await writeFile(join(folder, 'colloquy.yml'), `kafka: { topic: ${topic} }\n`);
    const env = { ...KEYED, KAFKA_BROKERS: brokers };
    const { api, service } = await world.node(env, folder);
    await say(api, 'alice', 3);
    await eventually(async () => (await checkpointsOf(api)).data.length > 0);
    const audit = (...more: string[]) => colloquy(['audit-log', ...more], env, folder);
    // The publication comes after the signature.
    await eventually(async () => (await audit('--from-kafka')).err.includes('"checkpoints":2'), 40_000);
    expect((await audit('--from-kafka')).code).toBe(0);
    await service.stop();

    await tamper(world.database, `update event set actor = 'mallory' where version = 2`);
    await forgetTrees(world.database);
    const again = await world.node(KEYED);
    await eventually(async () => (await checkpointsOf(again.api)).data.length > 0, 30_000);

    expect((await audit()).code).toBe(0);
    const found = await audit('--from-kafka');
    expect(found.code).toBe(1);
    expect(found.out).toMatch(/"kind":"rewritten".*that was published/);
  }, 120_000);
});
