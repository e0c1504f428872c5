import { readFile } from 'node:fs/promises';
import { type Browser, type Page } from 'playwright-core';
import { axeFaults, describeInChromium, launch, openConsole, type ConsolePage } from '../support/browser.js';
import { createTestDatabase, type TestDatabase } from '../support/database.js';
import { type Api, apiOf, eventually } from '../support/http.js';
import { masterKey } from '../support/master-keys.js';
import { bearer } from '../support/tokens.js';
import { createWorld, say, type World } from './fixture.js';

const DAY_MS = 86_400_000;
const ENV = {
  COLLOQUY_API_KEYS: 'ops:*:key-of-ops,app:acme:key-of-acme',
  COLLOQUY_MASTER_KEY: masterKey('one'),
};

/** Parks the session `one`, as a read model does with one that it cannot take in. */
const park = (database: TestDatabase) =>
  database.query(
    `insert into projection_parked (projection, tenant, session_id, lane, version, error, parked_at)
     select 'history_v3', 'acme', 'one', lane, 3, 'made by the test', colloquy_now() from event where stream_id = 'one' limit 1`,
  );

describeInChromium('operations in the console', () => {
  let world: World;
  let url: string;
  let ops: Api;
  let acme: Api;
  let browser: Browser;
  let view: ConsolePage;
  let page: Page;
  beforeAll(async () => {
    world = await createWorld();
    const node = await world.node(ENV);
    ({ url } = node.service);
    ops = apiOf(url, { ...bearer('key-of-ops'), ...node.ofCell });
    acme = apiOf(url, bearer('key-of-acme'));
    await acme.post('/v1/sessions', { id: 'one' });
    await say(acme, 'one', 'hello');
    browser = await launch();
  });
  afterAll(async () => {
    await browser.close();
    await world.end();
  });
  const begin = async (key: string, cell = world.cell, of = url): Promise<void> => {
    view = await openConsole(browser, of, { key });
    ({ page } = view);
    await view.open(cell === undefined ? '/operations' : `/operations?cell=${cell}`);
  };
  afterEach(async () => {
    expect(await view.faults()).toEqual([]);
    await view.context.close();
  });
  const press = (name: string) => page.getByRole('button', { name, exact: true }).click();
  const line = (name: string) => page.getByRole('row').filter({ has: page.getByRole('rowheader', { name }) });

  it('given a key of a tenant, when it opens what is for operators, then it is told that it may not, and sees nothing of it', async () => {
    await begin('key-of-acme');
    await page.getByRole('alert').getByText('This key may not do that').waitFor();
    await page.getByText('The node that answers is ok').waitFor();
    expect(await page.getByRole('heading', { level: 2 }).allTextContents()).toEqual(['Health']);
  });

  it('given an operator, when the page is opened, then it tells of the nodes, the cells, the relay by lane and the read models', async () => {
    await begin('key-of-ops');
    await page.getByText('The node that answers is ok').waitFor();
    await line(world.cell ?? 'default').waitFor();
    expect(await page.getByLabel('Cell', { exact: true }).count()).toBe(world.cell === undefined ? 0 : 1);
    const nodes = page.getByRole('region', { name: 'Table of nodes' });
    await nodes.getByText('this one').waitFor();
    await nodes.getByText(/generations 16, history 16, .*sweeper 16/).waitFor();
    await page.getByText('2 events behind').waitFor();
    expect(await page.getByRole('meter').count()).toBe(16);
    for (const name of ['sessions', 'history', 'usage', 'search', 'generations'])
      await line(name).getByText('live', { exact: true }).waitFor();
    await page.getByText('No session is parked.').waitFor();
  });

  it('given a read model, when it is verified and rebuilt, then the page says that it is equal, and shows how far it is', async () => {
    await begin('key-of-ops');
    await press('Verify sessions');
    await line('sessions').getByText('equal, 1 rows').waitFor();
    // A rebuild that may not take its place is seen; one of three events would be over before.
    await world.database.query('begin');
    await world.database.query(
      `select from projection_checkpoint where projection = 'history_v3' for update`,
    );
    try {
      await press('Rebuild history');
      await line('history').getByRole('progressbar').waitFor();
      expect(await page.getByRole('button', { name: 'Rebuild history' }).isDisabled()).toBe(true);
    } finally {
      await world.database.query('commit');
    }
    await line('history').getByRole('progressbar').waitFor({ state: 'detached' });
  });

  it('given a session that a read model could not take in, when it is retried, then it is there again', async () => {
    await begin('key-of-ops');
    await page.getByText('No session is parked.').waitFor();
    await park(world.database);
    await page.getByText('made by the test').waitFor();
    await press('Retry');
    await page.getByText('No session is parked.').waitFor();
  });

  it('given a session that is overdue, when a sweep is tried and then made, then the page says first what it would do, and it does that', async () => {
    await acme.post('/v1/sessions', { id: 'overdue' });
    await world.database.setClock({ offsetMs: DAY_MS });
    await begin('key-of-ops');
    await press('Dry run');
    await line('overdue').getByText('expire').waitFor();
    expect((await acme.get('/v1/sessions/overdue')).body).toMatchObject({ status: 'active' });
    await press('Sweep now');
    await page.getByRole('dialog').getByRole('button', { name: 'Sweep' }).click();
    await page.getByText('Swept: ').waitFor();
    expect((await acme.get('/v1/sessions/overdue')).body).toMatchObject({ status: 'expired' });
    await world.database.setClock({ offsetMs: 0 });
  });

  it('given a tenant, when its settings are changed and taken back, then that holds', async () => {
    await begin('key-of-ops');
    await page.getByLabel('Tenant', { exact: true }).last().fill('acme');
    await page.keyboard.press('Enter');
    await page.getByText(/^acme: /).waitFor();
    await page.getByLabel(/^Active sessions at most/).fill('7');
    await page.getByLabel(/^At the cap/).selectOption('evict');
    await press('Change');
    await page.getByText('Active sessions at most (holds: 7)').waitFor();
    expect((await ops.get('/v1/admin/tenants/acme')).body).toMatchObject({
      own: { maxSessions: 7, capPolicy: 'evict' },
    });
    await page.getByLabel(/^Active sessions at most/).fill('');
    await page.getByLabel(/^At the cap/).selectOption('');
    await press('Change');
    await page.getByText('Active sessions at most (holds: 100)').waitFor();
    expect((await ops.get('/v1/admin/tenants/acme')).body).toMatchObject({ own: {} });
    await page.getByLabel(/^Erased so many ms/).fill('864000000');
    await press('Change');
    await page.getByText('Erased so many ms after its end (holds: 10 d)').waitFor();
    expect((await ops.get('/v1/admin/tenants/acme')).body).toMatchObject({
      own: { eraseAfter: 864_000_000 },
    });
    await page.getByLabel(/^Erased so many ms/).fill('');
    await press('Change');
    await page.getByText('Erased so many ms after its end (holds: never)').waitFor();
  });

  it('given what the notary has signed, when an event of it is proven, then its envelope is shown, and proof, checkpoints and public keys can be kept', async () => {
    const { data } = await eventually(async () => {
      const { body } = await ops.get<{ data: { lane: number; note: string }[] }>('/v1/checkpoints');
      return body.data.length > 0 && body;
    });
    const [{ lane, note } = { lane: 0, note: '' }] = data;
    await begin('key-of-ops');
    await page.getByText(/^signed by [0-9a-f]{8}$/).waitFor();
    const kept = async (button: string): Promise<string> => {
      const [file] = await Promise.all([page.waitForEvent('download'), press(button)]);
      return readFile(await file.path(), 'utf8');
    };
    expect(await kept('Public keys')).toMatch(/^colloquy\/[0-9a-f]{16}\+[0-9a-f]{8}\+/);
    expect(await kept('Checkpoints')).toContain(note);
    await page.getByLabel(`Position in lane ${lane}`).fill('1');
    await press(`Prove an event of lane ${lane}`);
    await page.getByRole('dialog').getByText('"position": 1').waitFor();
    expect(await kept('Keep the proof')).toMatch(/^c2sp\.org\/tlog-proof@v1\nextra /);
  });

  it('given no keys in the database, when one is made and revoked, then it is shown once, works, and works no longer', async () => {
    await begin('key-of-ops');
    await press('New key');
    const dialog = page.getByRole('dialog');
    await dialog.getByLabel('Tenant (* for an operator)').fill('acme');
    await dialog.getByLabel('Name, the actor of what its holder does').fill('reports');
    await dialog.getByLabel('sessions:read').check();
    await dialog.getByRole('button', { name: 'Create' }).click();
    const key = (await page.locator('.secret').textContent()) ?? '';
    expect(key).toMatch(/^clq_/);
    expect((await apiOf(url, bearer(key)).get('/v1/sessions')).status).toBe(200);
    await press('I have it');
    expect(await page.content()).not.toContain(key);
    await line('reports').getByText('sessions:read').waitFor();
    await press('Revoke reports');
    await dialog.getByLabel('Type reports to confirm').fill('reports');
    await dialog.getByRole('button', { name: 'Revoke' }).click();
    await line('reports').getByText('revoked').waitFor();
    await eventually(async () => (await apiOf(url, bearer(key)).get('/v1/sessions')).status === 401);
  });

  describe('of a deployment with two cells, where all tenants live in the second', () => {
    let databases: readonly [TestDatabase, TestDatabase];
    let both: string;
    beforeAll(async () => {
      databases = [await createTestDatabase(), await createTestDatabase()];
      const [first, second] = databases;
      const cells = { DATABASE_URL: first.url, DATABASE_CELLS: `two=${second.url}`, DATABASE_WEIGHT: '0' };
      both = (await world.node({ ...ENV, ...cells })).service.url;
      const inTwo = apiOf(both, bearer('key-of-acme'));
      await inTwo.post('/v1/sessions', { id: 'one' });
      await say(inTwo, 'one', 'hello');
      await park(second);
    });
    afterAll(async () => {
      for (const database of databases) await database.drop();
    });
    const cell = () => page.getByLabel('Cell', { exact: true });
    const relay = () => page.getByRole('region', { name: 'Relay', exact: true });

    it('given the first cell is shown, when the second is chosen, then all that is of a cell is of that one, and the address leads there and back', async () => {
      await begin('key-of-ops', undefined, both);
      await relay().getByText('0 events behind').waitFor();
      await page.getByText('No session is parked.').waitFor();
      expect(await cell().inputValue()).toBe('default');
      await press('Verify sessions');
      await line('sessions').getByText('equal, 0 rows').waitFor();

      await cell().focus();
      await page.keyboard.press('ArrowDown');

      await relay().getByText('2 events behind').waitFor();
      await page.getByText('made by the test').waitFor();
      expect(await cell().inputValue()).toBe('two');
      expect(new URL(page.url()).hash).toBe('#/operations?cell=two');
      expect(await page.getByText('equal, 0 rows').count()).toBe(0);
      await press('Verify sessions');
      await line('sessions').getByText('equal, 1 rows').waitFor();
      expect(await axeFaults(page)).toEqual([]);
      await page.goBack();
      await relay().getByText('0 events behind').waitFor();
      await page.getByText('No session is parked.').waitFor();
      expect(await cell().inputValue()).toBe('default');
      await page.goForward();
      await relay().getByText('2 events behind').waitFor();
    });

    it('given an address that names the second cell, when all is done there that can be done, then nothing is asked of the first but what is of the whole deployment', async () => {
      const asked = new Set<string>();
      view = await openConsole(browser, both, { key: 'key-of-ops' });
      ({ page } = view);
      page.on('request', (request) => {
        const { pathname } = new URL(request.url());
        if (pathname.startsWith('/v1/'))
          asked.add(`${pathname} ${request.headers()['colloquy-cell'] ?? 'of no cell'}`);
      });
      await view.open('/operations?cell=two');
      await press('Verify sessions');
      await line('sessions').getByText('equal, 1 rows').waitFor();
      await press('Retry');
      await page.getByText('two: one is taken in.').waitFor();
      await press('Rebuild history');
      await page.getByText(/^two: history is built anew/).waitFor();
      await press('Dry run');
      await page.getByText('A sweep now would do 0 things').waitFor();
      await press('Sweep now');
      await page.getByRole('dialog').getByRole('button', { name: 'Sweep' }).click();
      await page.getByText(/^two: Swept: /).waitFor();
      const position = page.getByLabel(/^Position in lane/);
      await position.fill('1');
      await position.press('Enter');
      await page.getByRole('dialog').getByText('"position": 1').waitFor();

      const [lane] = await databases[1].query<{ lane: number }>('select distinct lane from event');
      const paths = [
        ...['projections', 'projections/sessions/verify', 'projections/history/rebuild', 'relay', 'nodes'],
        ...['parked', 'parked/retry', 'sweep', 'log/generations'],
      ].map((path) => `/v1/admin/${path}`);
      const ofTwo = [...paths, '/v1/checkpoints', `/v1/checkpoints/${lane?.lane ?? ''}/inclusion`];
      const ofNone = ['/v1/admin/cells', '/v1/admin/keys', '/v1/admin/tenants/default'];
      const expected = [...ofTwo.map((path) => `${path} two`), ...ofNone.map((path) => `${path} of no cell`)];
      expect([...asked].sort()).toEqual(expected.sort());
    });

    it('given answers of the first cell that take their time, when the second is chosen meanwhile, then they do not stand under its name', async () => {
      await begin('key-of-ops', undefined, both);
      await relay().getByText('0 events behind').waitFor();
      const waiting = new Set<string>();
      let release = (): void => undefined;
      const released = new Promise<void>((resolve) => (release = resolve));
      await page.route(/\/(relay|verify|rebuild)$/, async (route) => {
        const request = route.request();
        if (request.headers()['colloquy-cell'] === 'default') {
          waiting.add(request.url().split('/').pop() ?? '');
          await released;
        }
        // Reads are broken off when the cell is no longer looked at.
        await route.continue().catch(() => undefined);
      });
      await press('Verify sessions');
      await press('Rebuild usage');
      await eventually(() => Promise.resolve(waiting.size === 3));

      await cell().selectOption('two');
      await relay().getByText('2 events behind').waitFor();
      const answered = page.waitForResponse((response) => response.url().endsWith('/verify'));
      release();
      await answered;

      await page.getByText(/^default: usage is built anew/).waitFor();
      await relay().getByText('2 events behind').waitFor();
      expect(await page.getByText(/equal|running/).count()).toBe(0);
    });

    it('given an address with a name that no cell has, when it is opened, then the first cell is shown, by its name', async () => {
      await begin('key-of-ops', 'nowhere', both);
      await relay().getByText('0 events behind').waitFor();
      expect(await cell().inputValue()).toBe('default');
    });
  });
});
